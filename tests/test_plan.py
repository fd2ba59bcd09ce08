from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import toy_line

from edgekd import catalog, machine, pipeline, plan, runner, sizes, spec, store
from edgekd.errors import AssetError, BudgetError, TargetError
from edgekd.progress import Progress

TEACHER = {
    "model_type": "bert",
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 1000,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
}
COUNTS = {"train": 90, "validation": 10, "test": 40}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a teacher's configuration, data and a calibration list; the target's file would lie in it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(machine, "gpu", lambda: None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "cache"))
    (tmp_path / "teacher").mkdir()
    (tmp_path / "teacher" / "config.json").write_text(json.dumps(TEACHER))
    (tmp_path / "calibration").mkdir()
    (tmp_path / "calibration" / "mine.txt").write_text("1\n2\n")
    for name in ("train", "test"):
        (tmp_path / f"{name}.csv").write_text("text,label\nx,a\n")
    return tmp_path


def target(**changes: Any) -> spec.Target:
    options: dict[str, Any] = {
        "name": "mine",
        "task": spec.TextClassification(train="train.csv", test="test.csv", max_length=16, labels=("a", "b", "c")),
        "teacher": spec.Teacher(source="dir:teacher", finetune=spec.Finetune(epochs=2)),
        "student": spec.Student(layers=2, hidden=16, heads=2, ffn=24, vocabulary=200),
        "distill": spec.Distill(epochs=10),
        "quant": spec.Quant(calibration="mine"),
    }
    return spec.Target(**(options | changes))


def made(target: spec.Target, **options: Any) -> dict[str, Any]:
    return plan.plan(target, Path("runs"), beside=Path("mine.py"), **options)


def finish(
    target: spec.Target, seconds: dict[str, float], write: Callable[[str, Path], None] = lambda n, p: None
) -> None:
    """Put finished stages of ``target`` into the store that took so long."""
    for step in pipeline.steps(target, Path("runs"), beside=Path("mine.py")):
        name = step.stage.name
        if name in seconds:
            with store.partial(Path("runs"), step.stage, step.revision, step.inputs) as out:
                if name in ("assets", "transfer"):
                    store.write_json(out / "dataset.json", {"labels": ["a", "b", "c"], "counts": COUNTS})
                write(name, out)
                how = {"seconds": seconds[name], "resumed": False, "device": "cpu", "threads": 1}
                store.finish(Path("runs"), step.stage, made=how)


def actions(found: dict[str, Any]) -> dict[str, str]:
    return {entry["stage"]: entry["action"] for entry in found["stages"]}


# -------------------------------------------------------------------------------------------------------------- actions


def test_with_an_empty_store_everything_runs_and_no_time_is_claimed() -> None:
    found = made(target())
    assert set(actions(found).values()) == {"run"}
    assert found["seconds"] is None
    assert not Path("runs").exists(), "a plan writes nothing"


def test_what_is_finished_is_reused_and_what_was_begun_is_resumed() -> None:
    finish(target(), {"assets": 1, "teacher": 1})
    labels = pipeline.steps(target(), Path("runs"), beside=Path("mine.py"))[2]
    with store.partial(Path("runs"), labels.stage, labels.revision, labels.inputs) as out:
        (out / "half").write_text("x")
    found = actions(made(target()))
    begun = {"assets": "reused", "teacher": "reused", "labels": "resumed"}
    assert found == dict.fromkeys(pipeline.STAGES, "run") | begun


def test_to_and_fresh_are_planned_as_they_would_run() -> None:
    finish(target(), dict.fromkeys(pipeline.STAGES, 1.0))
    assert list(actions(made(target(), to="labels"))) == ["assets", "teacher", "labels"]
    found = actions(made(target(), fresh="quantize"))
    assert found == {n: "run" if n in ("quantize", "export", "bench") else "reused" for n in pipeline.STAGES}


def test_the_planned_actions_are_those_of_the_run(tmp_path: Path) -> None:
    toy_line.walk(tmp_path / "a", count=3)
    with pytest.raises(ZeroDivisionError):
        toy_line.walk(tmp_path / "a", {**toy_line.FUNCTIONS, "second": half}, count=3, factor=3.0)
    planned = {
        s.stage.name: runner.state(s, tmp_path / "a") for s in toy_line.steps(tmp_path / "a", count=3, factor=3.0)
    }
    assert planned == toy_line.walk(tmp_path / "a", count=3, factor=3.0)
    assert planned == {"first": "reused", "second": "resumed", "third": "run"}


def half(ctx: store.Context, **inputs: Any) -> None:
    (ctx.out / "half.txt").write_text("half")
    raise ZeroDivisionError


# ---------------------------------------------------------------------------------------------------------------- sizes


def test_the_students_parameters_are_those_of_the_model_that_surgery_would_make() -> None:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=200, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=16, type_vocab_size=1, num_labels=3,
    )  # fmt: skip
    student = made(target())["student"]
    assert student["parameters"] == sum(p.numel() for p in BertForSequenceClassification(config).parameters())
    assert (student["layers"], student["hidden"], student["vocabulary"]) == (2, 16, 200)


def test_an_exit_is_counted_without_the_layers_after_it() -> None:
    exits = spec.Distill(losses=(spec.KL(), spec.Exits(at=(1,))))
    whole, cut = (made(target(distill=dataclasses.replace(exits, exit=layer)))["student"] for layer in (None, 1))
    block = 4 * (16 * 16 + 16) + 2 * 16 * 24 + 16 + 24 + 4 * 16
    assert (cut["layers"], cut["parameters"]) == (1, whole["parameters"] - block)
    assert cut["int8_bytes_least"] < whole["int8_bytes_least"]


def test_a_student_that_is_built_is_counted_with_the_vocabulary_it_got() -> None:
    def write(name: str, out: Path) -> None:
        if name == "distill":
            store.write_json(out / "student.json", {"vocabulary": {"size": 150}})

    before = made(target())["student"]["parameters"]
    finish(target(), dict.fromkeys(("assets", "teacher", "labels", "distill"), 1), write)
    assert made(target())["student"]["parameters"] == before - 50 * 16


def test_an_unknown_teacher_leaves_the_sizes_unknown(workplace: Path) -> None:
    (workplace / "teacher" / "config.json").write_text('{"model_type": "strange"}')
    student = spec.Student(config={"model_type": "stranger"}, vocabulary=200)
    found = made(target(student=student, budget=spec.Budget(size_mib=0.001)))
    assert found["teacher"] is None
    assert found["student"] is None
    assert found["problems"] == []


def test_a_configuration_that_is_no_json_is_an_asset_error_that_names_it(workplace: Path) -> None:
    for content in (b'{"model_type": ', b"[]", b"\xff\xfe"):
        (workplace / "teacher" / "config.json").write_bytes(content)
        with pytest.raises(AssetError, match=r"config\.json .*mend that folder"):
            made(target())


@pytest.mark.parametrize("strange", [None, "x", [1], 1.5, True])
@pytest.mark.parametrize("name", sorted(TEACHER))
def test_a_configuration_with_strange_values_leaves_sizes_unknown_or_is_refused(
    workplace: Path, name: str, strange: object
) -> None:
    (workplace / "teacher" / "config.json").write_text(json.dumps(TEACHER | {name: strange}))
    try:
        made(target())
    except TargetError:
        assert name == "model_type"


def test_a_teacher_in_the_cache_is_read_there(workplace: Path) -> None:
    pin = "0" * 64
    source = f"pypi:some-model==1.0#sha256={pin}/some/model"
    wanted = target(teacher=spec.Teacher(source=source))
    assert made(wanted)["teacher"] is None
    folder = workplace / "cache" / "pypi" / "some-model-1.0-0123456789abcdef" / "files" / "some" / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(TEACHER))
    assert made(wanted)["teacher"] == made(target())["teacher"]
    (folder / "config.json").write_text("{")
    assert made(wanted)["teacher"] is None, "the run will notice the damage, and unpack it again"


@pytest.mark.parametrize("hidden_states", [False, True])
def test_the_label_stores_size_is_what_the_labels_stage_would_estimate(hidden_states: bool) -> None:
    from edgekd.distill.taps import LOGITS, Needs, store_bytes

    losses: tuple[spec.Loss, ...] = (
        (spec.KL(), spec.HiddenMSE(layers=((0, 0), (2, 4)))) if hidden_states else (spec.KL(),)
    )
    wanted = target(distill=spec.Distill(losses=losses))
    assert made(wanted)["labels_bytes"] is None
    finish(wanted, {"assets": 1})
    needs = Needs(hidden=(0, 4)) if hidden_states else LOGITS
    counts = COUNTS
    taught = store_bytes(needs, counts["train"], counts["train"] * 16, 3, 32)
    assert made(wanted)["labels_bytes"] == taught + store_bytes(LOGITS, counts["validation"], 0, 3, 32)


def test_a_plan_shows_the_steps_of_every_teacher_and_counts_all_their_label_stores() -> None:
    from edgekd.distill.taps import LOGITS, store_bytes

    Path("also").mkdir()
    Path("also", "config.json").write_text(json.dumps(TEACHER))

    def taught_by(*epochs: float) -> spec.Target:
        also = [spec.Teacher(source="dir:also", finetune=spec.Finetune(epochs=count)) for count in epochs]
        return target(co_teachers=tuple(also))

    finish(taught_by(2), {"assets": 1, "teacher": 3, "labels": 5})
    found = made(taught_by(2, 4))
    own = [f"{stage}{name}" for stage in ("assets", "teacher", "labels") for name in ("", "_also1", "_also2")]
    assert list(actions(found)) == [*own, *pipeline.STAGES[3:]]
    assert [name for name in own if actions(found)[name] == "run"] == ["teacher_also2", "labels_also2"]
    seconds = {entry["stage"]: entry["seconds"] for entry in found["stages"]}
    assert seconds["teacher_also2"] == 3 * (4 * 90 + 40) / (2 * 90 + 40) and seconds["labels_also2"] == 5
    finish(target(seed=1), {"assets": 1})
    one = store_bytes(LOGITS, COUNTS["train"], 0, 3, 32) + store_bytes(LOGITS, COUNTS["validation"], 0, 3, 32)
    assert made(dataclasses.replace(taught_by(2, 4), seed=1))["labels_bytes"] == 3 * one


# --------------------------------------------------------------------------------------------------------------- budget


def test_a_student_that_is_too_big_at_one_byte_a_weight_cannot_meet_its_budget() -> None:
    student = made(target())["student"]
    least = student["int8_bytes_least"] / 2**20
    assert made(target(budget=spec.Budget(size_mib=least * 1.01)))["problems"] == []
    tight = target(budget=spec.Budget(size_mib=least * 0.99))
    assert "budget.size_mib" in made(tight)["problems"][0]
    with pytest.raises(BudgetError, match=r"at least .* MiB even if every weight is int8"):
        sizes.check(tight, pipeline.steps(tight, Path("runs"), beside=Path("mine.py")))


def test_the_student_that_reads_less_than_its_teacher_says_so() -> None:
    own = dataclasses.replace(target().student, max_length=target().task.max_length - 1)
    lengths = [made(target(student=student))["student"]["max_length"] for student in (target().student, own)]
    assert lengths == [target().task.max_length, target().task.max_length - 1]


def test_a_vocabulary_that_the_corpus_may_not_fill_does_not_count_against_the_budget() -> None:
    small, large = (
        made(target(student=dataclasses.replace(target().student, vocabulary=n)))["student"] for n in (90, 95)
    )
    assert small["int8_bytes_least"] == large["int8_bytes_least"] and small["int8_bytes"] < large["int8_bytes"]


def test_a_budget_below_what_the_target_itself_gives_is_refused_before_the_teacher_is_known(workplace: Path) -> None:
    source = f"pypi:some-model==1.0#sha256={'0' * 64}/some/model"
    student = made(target())["student"]
    unknown = target(teacher=spec.Teacher(source=source), budget=spec.Budget(size_mib=0.001))
    found = made(unknown)
    assert (found["teacher"], found["student"]) == (None, None)
    assert "budget.size_mib" in found["problems"][0]
    enough = spec.Budget(size_mib=student["int8_bytes_least"] / 2**20)
    assert made(target(teacher=spec.Teacher(source=source), budget=enough))["problems"] == []
    with pytest.raises(BudgetError):
        pipeline.run(unknown, folder=Path("runs"), beside=Path("mine.py"), progress=Progress(quiet=True))
    assert not Path("runs").exists()


def test_the_least_that_a_target_means_is_never_more_than_the_student_it_gets(workplace: Path) -> None:
    for kind in ("bert", "roberta", "electra"):
        config = TEACHER | {"model_type": kind, "max_position_embeddings": 66, "embedding_size": 32}
        (workplace / "teacher" / "config.json").write_text(json.dumps(config))
        for student in (
            spec.Student(),
            spec.Student(heads=2, hidden=16),
            spec.Student(layers=(1, 3), vocabulary=90),
            target().student,
        ):
            wanted = target(student=student)
            assert sizes._least_bytes(wanted) <= made(wanted)["student"]["int8_bytes_least"]


def test_a_shrinkage_beyond_the_teachers_own_bytes_cannot_be_met() -> None:
    found = made(target())
    most = found["teacher"]["fp32_bytes"] / found["student"]["int8_bytes_least"]
    assert made(target(budget=spec.Budget(shrink=most * 0.99)))["problems"] == []
    assert "budget.shrink" in made(target(budget=spec.Budget(shrink=most * 1.2)))["problems"][0]


def test_a_student_of_another_backbone_than_the_teacher_is_sized_by_that_one(workplace: Path) -> None:
    unknown = spec.Teacher(source=f"pypi:some-model==1.0#sha256={'0' * 64}/some/model")
    student = dataclasses.replace(target().student, source="dir:teacher")
    found = made(target(teacher=unknown, student=student))
    assert (found["teacher"], found["student"]) == (None, made(target())["student"])
    (workplace / "decoder").mkdir()
    (workplace / "decoder" / "config.json").write_text(json.dumps(TEACHER | {"model_type": "llama"}))
    decoder = spec.Teacher(source="dir:decoder")
    assert made(target(teacher=decoder, student=student))["student"] == found["student"]
    with pytest.raises(TargetError, match=r"not 'llama': name another backbone in student\.source"):
        made(target(teacher=decoder))
    with pytest.raises(TargetError, match=r"the teacher 0\.\.4"):  # layers are paired with the teacher's all the same
        losses = (spec.HiddenMSE(layers=((2, 5),)),)
        made(target(teacher=decoder, student=student, distill=spec.Distill(losses=losses)))


def test_what_only_a_measurement_can_say_is_no_problem_of_the_plan() -> None:
    budget = spec.Budget(p50_ms=1e-6, p90_ms=1e-6, peak_rss_mib=1e-6, score_kept=1.0, speedup=1e6)
    assert made(target(budget=budget))["problems"] == []


def test_a_run_stops_at_once_when_its_budget_cannot_be_met() -> None:
    wanted = target(budget=spec.Budget(size_mib=0.001))
    with pytest.raises(BudgetError):
        pipeline.run(wanted, folder=Path("runs"), beside=Path("mine.py"), progress=Progress(quiet=True))
    assert not Path("runs").exists()


# ----------------------------------------------------------------------------------------------------------------- time


def seconds(found: dict[str, Any]) -> dict[str, float | None]:
    return {entry["stage"]: entry["seconds"] for entry in found["stages"]}


def test_reused_stages_cost_nothing_and_training_is_scaled_by_its_epochs() -> None:
    finish(target(), dict.fromkeys(pipeline.STAGES, 60.0))
    assert made(target())["seconds"] == 0
    longer = seconds(made(target(distill=spec.Distill(epochs=25))))
    assert longer == dict.fromkeys(pipeline.STAGES, 0.0) | {
        "distill": 150.0,
        "quantize": 60.0,
        "export": 60.0,
        "bench": 60.0,
    }


def test_a_benchmark_is_scaled_by_its_calls() -> None:
    finish(target(), dict.fromkeys(pipeline.STAGES, 60.0))
    bench = spec.Bench(rounds=10, calls=100, threads=(1, 2), workloads={"ort_cpu": ("real", "fixed16")})
    assert seconds(made(target(bench=bench)))["bench"] == pytest.approx(60 * (10 * 100 * 4) / (5 * 100 * 1))


def test_another_student_says_nothing_about_this_ones_time() -> None:
    finish(target(), dict.fromkeys(pipeline.STAGES, 60.0))
    found = made(target(student=spec.Student(layers=3)))
    assert seconds(found)["distill"] is None
    assert found["seconds"] is None


def test_a_resumed_stage_teaches_nothing_since_only_its_last_try_was_timed() -> None:
    finish(target(), {"assets": 1.0, "teacher": 60.0})
    folder = next(Path("runs/store").glob("teacher-*"))
    manifest = store.read_json(folder / store.MANIFEST)
    store.write_json(folder / store.MANIFEST, manifest | {"resumed": True})
    assert seconds(made(target(seed=1)))["teacher"] is None
    store.write_json(folder / store.MANIFEST, manifest)
    assert seconds(made(target(seed=1)))["teacher"] == pytest.approx(60.0)


def test_a_damaged_manifest_of_another_run_does_not_stop_a_plan() -> None:
    finish(target(), {"assets": 1.0, "teacher": 60.0})
    for path in Path("runs/store").glob("*/manifest.json"):
        path.write_text("{")
    assert set(actions(made(target(seed=1))).values()) == {"run"}


# ------------------------------------------------------------------------------------------------------------ bad input


def test_a_source_that_is_not_there_is_named(workplace: Path) -> None:
    (workplace / "train.csv").unlink()
    with pytest.raises(AssetError, match=r"train\.csv"):
        made(target())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": spec.Student(layers=9)}, "student.layers=9: the teacher has 4"),
        ({"student": spec.Student(layers=(0, 4))}, "the teacher has layers 0..3"),
        ({"student": spec.Student(hidden=64, heads=4)}, "student.hidden 64 exceeds the teacher's 32"),
        ({"student": spec.Student(hidden=30)}, "width 30 is not divisible by its 4 heads"),
        ({"student": spec.Student(positions=65)}, "65 positions are more than the teacher has"),
        ({"distill": spec.Distill(losses=(spec.HiddenMSE(layers=((3, 4),)),))}, "pair (3, 4) is out of range"),
        ({"distill": spec.Distill(losses=(spec.HiddenMSE(layers=((2, 5),)),))}, "the teacher 0..4"),
        ({"distill": spec.Distill(losses=(spec.Exits(at=(2,)),))}, "the student has 2 blocks"),
        (
            {"student": spec.Student(config={"model_type": "mpnet"}), "distill": spec.Distill(losses=(spec.Exits(),))},
            "not 'mpnet'",
        ),
        (
            {"distill": spec.Distill(losses=(spec.Relations(heads=5),))},
            "heads=5) does not divide the 16 channels of the student",
        ),
        (
            {"distill": spec.Distill(losses=(spec.HiddenMSE(layers=((2, 3),)),), source=spec.Average())},
            "the teacher 0..2",
        ),
        (
            {"distill": spec.Distill(losses=(spec.HiddenMSE(layers=((2, 3),)),), source=spec.Mutual(2, teacher=True))},
            "the teacher 0..2",
        ),
        ({"quant": spec.Quant(calibration="mine", keep_float=("clasifier",))}, "'clasifier' matches no module"),
        ({"quant": spec.Quant(calibration="mine", keep_float=("*.self.MatMull*",))}, "matches no module of the"),
        ({"quant": spec.Quant(calibration="mine", keep_float=("*",))}, "this recipe quantizes nothing"),
        (
            {"quant": spec.Quant(scheme="w4_block")},
            "w4_block has no ranges for the products of bert.encoder.layer.0.att",
        ),
        (
            {"quant": spec.Quant(scheme="u8s8_dynamic")},
            "name them in keep_float, as '*.self.MatMul*', or choose a static",
        ),
        (
            {
                "student": spec.Student(hidden=15, heads=3),
                "quant": spec.Quant(scheme="w4_block", keep_float=("*.self.MatMul*",)),
            },
            "hold 15 numbers, and in 4 bits two share a byte",
        ),
        ({"quant": spec.Quant(calibration="mine", mixed={"*.quary": "float"})}, "'*.quary' matches no layer"),
    ],
)
def test_what_this_teacher_cannot_give_is_refused_by_plan_and_before_the_first_stage(
    changes: dict[str, Any], message: str
) -> None:
    wanted = target(**changes)
    with pytest.raises(TargetError) as planned:
        made(wanted)
    with pytest.raises(TargetError) as ran:
        pipeline.run(wanted, folder=Path("runs"), beside=Path("mine.py"), progress=Progress(quiet=True))
    assert message in str(planned.value) and str(ran.value) == str(planned.value)
    assert not Path("runs").exists()


def test_a_target_of_the_catalogue_with_a_hopeless_budget_is_told_so_with_nothing_in_the_cache() -> None:
    for name in catalog.targets():
        known = catalog.load(name)
        hopeless = dataclasses.replace(known, budget=dataclasses.replace(known.budget, size_mib=0.001))
        found = plan.plan(hopeless, Path("runs"), beside=catalog.path_of(name))
        assert found["teacher"] is None and "budget.size_mib" in found["problems"][0]


def test_an_impossible_target_is_refused_before_it_is_planned() -> None:
    with pytest.raises(TargetError, match="calibration"):
        target(quant=spec.Quant())
