"""What `edgekd tune` tries, what it chooses, and what becomes of its choice; `test_line.py` tunes a finished run."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd import cli, session, spec, store
from edgekd.bench.rows import Cell, compare, empty
from edgekd.cli import tuning
from edgekd.errors import StoreError
from edgekd.spec.literal import literal
from edgekd.tuning import result, tune
from edgekd.tuning.candidates import DEFAULT, OWN, Candidate, options, placements, united, untrained
from edgekd.tuning.choose import SLACK, choose, least_score, outcome, p50, winners

PRODUCTS = "*.attention.self.MatMul*"


def target(**changes: Any) -> spec.Target:
    given: dict[str, Any] = dict(
        name="toy",
        task=spec.TextClassification(train="train.csv", test="test.csv"),
        teacher=spec.Teacher(source="dir:teacher"),
        student=spec.Student(layers=2),
        quant=spec.Quant(calibration="toy", keep_float=(PRODUCTS, "classifier")),
    )
    return spec.Target(**(given | changes))


def tried(asked: spec.Target) -> dict[str, Candidate]:
    found = list(placements(asked, 128, 4, (PRODUCTS,)))
    assert len({candidate.name for candidate in found}) == len(found)
    return {candidate.name: candidate for candidate in found}


# ----------------------------------------------------------------------------------------------------------- candidates


def test_a_placement_differs_from_the_targets_own_in_one_thing() -> None:
    asked = target()
    found = tried(asked)
    own = found.pop(OWN)
    assert (own.quant, own.export, own.hidden) == (asked.quant, asked.export, None)
    for candidate in found.values():
        changed = [f.name for f in dataclasses.fields(spec.Quant) if _other(f.name, candidate.quant, asked.quant)]
        assert len(changed) + (candidate.export != asked.export) + bool(candidate.hidden) == 1, candidate.name
    kept = {name: candidate.quant.keep_float for name, candidate in found.items()}
    assert kept["attention_int8"] == ("classifier",) and kept["classifier_quantized"] == (PRODUCTS,)
    assert kept["embeddings_float"] == (PRODUCTS, "classifier", "*.embeddings")
    assert {c.quant.scheme for c in found.values()} == {"u8s8_static", "u8s8_dynamic", "w4_block"}
    assert {c.hidden for c in found.values()} == {None, 96, 160}


def _other(name: str, one: spec.Quant, other: spec.Quant) -> bool:
    return bool(getattr(one, name) != getattr(other, name))


def test_a_target_that_quantizes_attention_and_keeps_its_tables_is_tried_the_other_way_round() -> None:
    found = tried(target(quant=spec.Quant(calibration="toy", keep_float=("*.embeddings",))))
    assert found["attention_float"].quant.keep_float == ("*.embeddings", PRODUCTS)
    assert found["embeddings_quantized"].quant.keep_float == ()
    assert PRODUCTS in found["u8s8_dynamic"].quant.keep_float  # which has no static ranges for attention


def test_ranges_found_at_run_time_are_compared_with_calibrated_ones_where_there_is_a_list() -> None:
    dynamic = spec.Quant(scheme="u8s8_dynamic", keep_float=(PRODUCTS,))
    assert not {"u8s8_static", "u8s7_static", "attention_int8", "requantized"} & set(tried(target(quant=dynamic)))
    listed = dataclasses.replace(dynamic, calibration="toy")
    assert {"u8s8_static", "u8s7_static"} <= set(tried(target(quant=listed)))


@pytest.mark.parametrize("device", [spec.X86_VNNI, spec.X86_AVX2, spec.ARM64_DOTPROD], ids=lambda device: device.name)
def test_what_can_be_chosen_is_a_target_that_loads_and_differs_only_in_quant_and_graph(device: spec.Device) -> None:
    quant = spec.Quant(scheme=device.schemes[0], calibration="toy", keep_float=(PRODUCTS,))  # type: ignore[arg-type]
    asked = target(device=device, quant=quant)
    for candidate in tried(asked).values():
        made = candidate.target(asked)
        assert (made is None) == bool(candidate.hidden)
        assert made is None or dataclasses.replace(made, quant=asked.quant, export=asked.export) == asked


def test_a_scheme_that_the_targets_runtimes_cannot_run_is_information_only() -> None:
    asked = target(bench=spec.Bench(runtimes=("ort_cpu", "openvino")))
    assert tried(asked)["w4_block"].target(asked) is None
    assert tried(asked)["u8s8_dynamic"].target(asked) is not None


def test_the_lines_to_paste_are_the_quant_that_was_chosen() -> None:
    asked = target(quant=spec.Quant(calibration="toy", optimizer=spec.Optimizer(learning_rate=1e-4), epochs=1))
    for candidate in tried(asked).values():
        assert eval(literal(candidate.quant), vars(spec)) == candidate.quant
    taught = spec.Distill(
        losses=(spec.KL(temperature=2.0),), source=spec.Mutual(2), select=spec.Select("margin", share=0.3)
    )
    assert eval(literal(taught), vars(spec)) == taught
    assert literal(spec.Quant(calibration="toy")) == "Quant(calibration='toy')"


def test_candidates_that_differ_in_their_training_alone_are_one() -> None:
    short, long = spec.Quant(calibration="toy", epochs=1), spec.Quant(calibration="toy", epochs=9, frozen_fraction=0.1)
    assert untrained(short) == untrained(long) != untrained(spec.Quant(calibration="toy", method="minmax"))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"model_type": "bert"}, "bert.encoder.layer.*.attention.self.MatMul*"),
        ({"model_type": "distilbert"}, "distilbert.transformer.layer.*.attention.MatMul*"),
        ({"model_type": "mpnet"}, "mpnet.encoder.layer.*.attention.attn.MatMul*"),
        ({"model_type": "modernbert"}, "model.layers.*.attn.MatMul*"),
    ],
)
def test_a_familys_own_products_are_named_where_it_has_them(config: dict[str, Any], expected: str) -> None:
    assert tune._attention(config) == (expected,)


@pytest.mark.parametrize("threads", [1, 4])
def test_session_options_to_try_are_known_ones_and_touch_what_is_there(threads: int) -> None:
    found = options({"FusedMatMul": 4, "SkipLayerNormalization": 0, "QGemm": 9}, threads)
    assert found[DEFAULT] == {} and all(session.problem(given) is None for given in found.values())
    assert "no_MatMulScaleFusion" in found and "no_SkipLayerNormFusion" not in found
    assert ("no_spinning" in found) == (threads > 1)


def test_several_options_unite_and_several_optimizers_are_switched_off_together() -> None:
    parts: list[dict[str, Any]] = [
        {"enable_cpu_mem_arena": False}, {"disabled_optimizers": ["A"]}, {"disabled_optimizers": ["B"]}
    ]  # fmt: skip
    assert united(parts) == {"enable_cpu_mem_arena": False, "disabled_optimizers": ["A", "B"]}
    assert parts[1] == {"disabled_optimizers": ["A"]} and united([]) == {}


# --------------------------------------------------------------------------------------------------------------- choice


def row(name: str, times: list[float], score: float | None, valid: bool = True) -> dict[str, Any]:
    found = empty(name, Cell("ort_cpu", 1, "real"), 1000, "" if valid else "noise")
    return found | {"round_p50_ms": times, "score": score, "valid": valid, "why_invalid": None if valid else "noise"}


def table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    compare(rows, OWN)
    return rows


rounds = st.integers(1, 7).flatmap(
    lambda count: st.lists(
        st.tuples(
            st.lists(st.floats(0.1, 10.0), min_size=count, max_size=count),
            st.floats(0.0, 1.0),
            st.booleans(),
            st.booleans(),
        ),
        min_size=1,
        max_size=6,
    )
)


@given(rounds, st.floats(0.0, 1.0))
def test_a_choice_is_within_the_budget_valid_possible_and_surely_faster_or_it_is_the_targets_own(
    found: list[tuple[list[float], float, bool, bool]], least: float
) -> None:
    rows = table([row(OWN if i == 0 else f"c{i}", times, s, valid) for i, (times, s, valid, _) in enumerate(found)])
    choosable = {f"c{i}" for i, (_, _, _, possible) in enumerate(found) if possible}
    chosen = choose(rows, OWN, choosable, least)
    if chosen != OWN:
        mine = next(r for r in rows if r["artifact"] == chosen)
        assert chosen in choosable and mine["valid"] and mine["score"] >= least
        assert mine["speedup_low"] is not None and mine["speedup_low"] > 1
        assert all(mine["speedup_vs_teacher"] >= other["speedup_vs_teacher"] for other in rows
                   if other["artifact"] in winners(rows, OWN, choosable, least))  # fmt: skip
    else:
        assert not winners(rows, OWN, choosable, least)


@given(st.lists(st.floats(0.5, 2.0), min_size=2, max_size=7), st.floats(0.5, 0.999))
def test_times_that_scatter_on_both_sides_of_the_own_ones_are_never_chosen(times: list[float], share: float) -> None:
    swapped = [t * (share if i % 2 else 1 / share) for i, t in enumerate(times)]
    even = len(times) // 2 * 2
    rows = table([row(OWN, times[:even], 1.0), row("c", swapped[:even], 1.0)])
    assert choose(rows, OWN, {"c"}, 0.0) == OWN


def test_a_surely_faster_placement_is_chosen_and_one_a_trifle_faster_is_not() -> None:
    own = [1.0, 1.1, 0.9, 1.0, 1.05]
    rows = table(
        [row(OWN, own, 0.97), row("fast", [0.8 * t for t in own], 0.97), row("same", [0.995 * t for t in own], 1)]
    )
    assert choose(rows, OWN, {"fast", "same"}, 0.96) == "fast"
    assert choose(rows, OWN, {"same"}, 0.96) == OWN
    assert choose(rows, OWN, {"fast"}, 0.98) == OWN and outcome(rows[1], 0.98) == "score"


def test_one_round_shows_nothing() -> None:
    rows = table([row(OWN, [1.0], 1.0), row("c", [0.1], 1.0)])
    assert choose(rows, OWN, {"c"}, 0.0) == OWN and outcome(rows[1], 0.0) == "unknown"


def test_the_score_asked_for_is_the_budgets_share_of_the_teachers_or_near_the_best() -> None:
    rows = [row(OWN, [1.0], 0.95), row("c", [1.0], 0.97), row("gone", [], None)]
    assert least_score(rows, 0.99, 0.98) == pytest.approx(0.99 * 0.98)
    assert least_score(rows, None, 0.98) == 0.97 - SLACK


def test_p50_has_the_interval_of_its_rounds() -> None:
    found = p50(row(OWN, [1.0, 2.0, 4.0], 1.0))
    assert found is not None and found.value == pytest.approx(2.0)
    assert found.low is not None and found.high is not None and found.low < 1.0 and found.high > 4.0
    assert p50(row(OWN, [], None)) is None


# --------------------------------------------------------------------------------------------------------------- result

OPTIONS = {"enable_cpu_mem_arena": False}


def keep(run: Path, asked: spec.Target, missing: tuple[str, ...] = (), **changes: Any) -> None:
    run.mkdir(parents=True, exist_ok=True)
    chosen = {"name": OWN, "placement": result.placement(asked), "session": OPTIONS, "lines": []}
    store.write_json(run / result.NAME, {"schema": result.SCHEMA, "missing": missing, "chosen": chosen | changes})


def test_session_options_hold_for_the_placement_they_were_measured_with_and_no_other(tmp_path: Path) -> None:
    asked = target()
    assert result.session(tmp_path, asked) == {}
    keep(tmp_path, asked)
    assert result.session(tmp_path, asked) == OPTIONS
    longer = dataclasses.replace(asked.quant, epochs=5, keep_float=("classifier", PRODUCTS))
    assert result.session(tmp_path, dataclasses.replace(asked, quant=longer)) == OPTIONS
    for other in (
        {"quant": dataclasses.replace(asked.quant, keep_float=(PRODUCTS,))},
        {"quant": dataclasses.replace(asked.quant, scheme="u8s8_dynamic")},
        {"student": spec.Student(layers=3)},
    ):
        assert result.session(tmp_path, dataclasses.replace(asked, **other)) == {}


def test_session_options_that_a_stand_in_chose_do_not_ship_and_shipping_says_so(tmp_path: Path) -> None:
    keep(tmp_path, target(), missing=("asimddp",))
    assert result.session(tmp_path, target()) == {}
    note = str(result.note(tmp_path, {}))
    assert "host-proxy" in note and "do not ship" in note and "next `edgekd run`" not in note


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"schema": "edgekd.tune/1", "chosen": {"session": []}}'])
def test_a_damaged_record_is_an_error_that_says_what_to_do(content: str, tmp_path: Path) -> None:
    (tmp_path / result.NAME).write_text(content)
    with pytest.raises(StoreError, match=r"tune\.json .*delete it, or make it again with `edgekd tune`"):
        result.session(tmp_path, target())


def test_an_unknown_session_option_in_a_record_is_named(tmp_path: Path) -> None:
    keep(tmp_path, target(), session={"turbo": "1"})
    with pytest.raises(StoreError, match="unknown session option 'turbo'"):
        result.session(tmp_path, target())


def test_shipping_says_which_options_go_along_and_which_were_not_measured(tmp_path: Path) -> None:
    assert result.note(tmp_path, {}) is None
    assert "chosen by `edgekd tune`: enable_cpu_mem_arena=false" in str(result.note(tmp_path, OPTIONS))
    keep(tmp_path, target())
    assert "they ship after the next `edgekd run`" in str(result.note(tmp_path, {}))


def test_a_target_that_is_not_distilled_yet_is_told_how(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("train", "test"):
        (tmp_path / f"{part}.csv").write_text("text,label\na,b\n")
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text("{}")
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration" / "toy.txt").write_text("train/0\n")
    text = f"""
from edgekd.spec import Quant, Student, Target, Teacher, TextClassification
TARGET = Target(
    name="toy", task=TextClassification(train="file:{tmp_path}/train.csv", test="file:{tmp_path}/test.csv"),
    teacher=Teacher(source="dir:{tmp_path}/teacher"), student=Student(layers=2), quant=Quant(calibration="toy"),
)
"""
    (tmp_path / "toy.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["tune", str(tmp_path / "toy.py"), "--smoke"]) == 2
    said = capsys.readouterr()
    assert f"run `edgekd run {tmp_path}/toy.py --smoke --to distill` first" in said.err and said.out == ""
    assert not (tmp_path / "runs").exists()


def test_the_record_is_json_alone() -> None:
    assert json.loads(json.dumps(result.placement(target()))) == result.placement(target())


@pytest.mark.parametrize(
    ("verdicts", "decided"), [([], True), (["INVALID"], False), (["INVALID", "slower"], True), (["slower"], True)]
)
def test_where_no_row_is_valid_nothing_was_decided_and_is_said_so(
    verdicts: list[str], decided: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    line = dict(score=None, p50_ms=None, choosable=True, size_bytes=1, peak_rss_mib=1.0, why=None, why_invalid="noise")
    rows = [line | {"name": OWN, "verdict": "INVALID"}, *(line | {"name": "other", "verdict": v} for v in verdicts)]
    tuning._print(tuned(rows))
    assert ("NOTHING WAS DECIDED" in capsys.readouterr().out) != decided


def tuned(rows: list[dict[str, Any]], missing: tuple[str, ...] = (), **options: Any) -> dict[str, Any]:
    chosen = {"name": OWN, "session": options, "lines": []}
    found = {"placements": rows, "session": rows[1:], "confirmed": [], "chosen": chosen, "machine": {"cpu": "a Xeon"}}
    return found | {"device": "Pi", "missing": missing, "least_score": 0.9, "teacher_score": 0.9}


@pytest.mark.parametrize("missing", [(), ("aarch64",)])
def test_what_a_stand_in_timed_is_printed_as_its_own(
    missing: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    line = {"choosable": True, "score": 0.9, "size_bytes": 1, "peak_rss_mib": 1.0, "why": None, "verdict": "same"}
    line |= {
        f"{name}{end}{unit}": 1.0 for name, unit in (("p50", "_ms"), ("ratio", "")) for end in ("", "_low", "_high")
    }
    tuning._print(tuned([line | {"name": OWN}, line | {"name": "other"}], missing, **OPTIONS))
    said = capsys.readouterr().out
    if not missing:
        assert "host-proxy" not in said
        return
    assert said.startswith("host-proxy: measured on a Xeon, which is no Pi (aarch64)")
    heads = [text for text in said.splitlines() if "p50 (ms)" in text]
    assert len(heads) == 2 and all(head.count("host-proxy") == 3 for head in heads)  # p50, the ratio, memory
    (options,) = (text for text in said.splitlines() if text.startswith("session options: "))
    assert "host-proxy" in options and "do not ship" in options
