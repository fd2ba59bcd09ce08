"""Every target of the catalogue can be planned, and walks its line: on a teacher and data that need no download."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import tiny_target

from edgekd import catalog, pipeline, plan, runtimes, spec
from edgekd.progress import Progress
from edgekd.report import schema
from edgekd.smoke import smoke

R8 = (
    *("reuters_x86", "reuters_x86_avx2", "reuters_rpi5", "reuters_rpi4", "reuters_android_arm64", "reuters_ios_arm64"),
    "reuters_browser",
)
R52 = ("reuters52_x86", "reuters52_rpi5", "reuters52_runtimes")
SHIPS = {
    "reuters_android_arm64": {"ort_mobile/model.ort", "litert/model.tflite"},
    "reuters_ios_arm64": {"ort_mobile/model.ort", "executorch/model.pte"},
}
WARNS = {
    "reuters_x86_avx2": ["size win, less speed win than with VNNI"],
    "reuters_x86_w4": ["size win, no speed win"],
    "reuters_rpi4": ["size win, little speed win"],
}
SHARED = ("assets", "transfer", "teacher", "labels", "distill")
"""What has nothing to do with the device."""


def keys(name: str, folder: Path) -> dict[str, str]:
    return {step.name: step.stage.key for step in pipeline.steps(catalog.load(name), folder)}


@pytest.mark.parametrize("name", catalog.targets())
def test_a_target_is_one_short_file_that_can_be_planned(name: str, tmp_path: Path) -> None:
    assert len(catalog.path_of(name).read_text().splitlines()) < 60
    target = catalog.load(name)
    found = plan.plan(target, tmp_path, beside=catalog.path_of(name))
    stages = [entry["stage"] for entry in found["stages"]]
    assert [stage for stage in stages if not stage.startswith(("transfer", "convert_"))] == list(pipeline.STAGES)
    assert found["problems"] == []
    assert target.device.cores and target.device.memory_mib and target.budget.size_mib
    assert [warning.partition(":")[0] for warning in found["warnings"]] == WARNS.get(name, [])


def test_a_student_that_its_device_has_no_memory_for_is_told_beforehand(tmp_path: Path) -> None:
    target = catalog.load("reuters_rpi5")
    wide = spec.Student(layers=4, hidden=384, heads=12, ffn=1536, vocabulary=6000)
    cramped = replace(target, device=replace(target.device, memory_mib=1), student=wide, budget=spec.Budget())
    (problem,) = plan.plan(cramped, tmp_path)["problems"]
    assert "Raspberry Pi 5 (Cortex-A76) has 1 MiB of memory" in problem


@pytest.mark.parametrize("names", [R8, R52], ids=["R8", "R52"])
def test_targets_of_one_task_share_all_that_the_device_does_not_reach(names: tuple[str, ...], tmp_path: Path) -> None:
    """So whoever has run one has trained the teacher, and the student, of every other."""
    first, *others = (keys(name, tmp_path) for name in names)
    for name, other in zip(names[1:], others, strict=True):
        assert {stage: other[stage] for stage in SHARED} == {stage: first[stage] for stage in SHARED}, name
        same = catalog.load(name).quant == catalog.load(names[0]).quant
        assert (other["export"] == first["export"]) == same


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher of the student's own width, data, and the calibration lists of both tasks over them."""
    from edgekd.models import loading

    folder = tmp_path_factory.mktemp("targets")
    wide = dict(hidden_size=128, intermediate_size=512, max_position_embeddings=128)
    tiny_target.write(folder)
    loading.save_model(tiny.bert(**wide), tiny.fast(tiny.wordpiece()), folder / "teacher")
    for name in ("reuters_r8", "reuters_r52"):
        (folder / f"calibration/{name}.txt").write_text((folder / "calibration/tiny.txt").read_text())
    return folder


def stood_in(name: str, folder: Path) -> spec.Target:
    """The target's smoke run, but for its data, its teacher, and a shrinkage for which that one is too small."""
    target = smoke(catalog.load(name))
    data = {split: f"file:{folder}/{split}.csv" for split in ("train", "test")}
    task = replace(target.task, **data, text_column="text", label_column="label", max_length=32, transfer_words=None)
    assert isinstance(target.teacher, spec.Teacher)
    return replace(
        target,
        task=task,
        teacher=replace(target.teacher, source=f"dir:{folder}/teacher"),
        export=replace(target.export, min_agreement=0.9, max_score_gap=0.1),
        budget=replace(target.budget, shrink=None),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in (*R8, *R52) if name != "reuters52_runtimes"])  # the others have all
def test_a_smoke_run_of_a_target_ships_what_its_device_loads(name: str, place: Path) -> None:
    target = stood_in(name, place)
    bundle = place / "dist" / name
    found = pipeline.run(
        target, device="cpu", folder=place / "runs", out=bundle, beside=place / "any.py", progress=Progress(quiet=True)
    )
    report: Any = schema.load(Path(found["report"]))
    assert report["smoke"] and report["headline"][0].startswith("SMOKE")
    assert report["device"]["name"] == target.device.name
    proxy = bool(spec.Device.differs(target.device, report["machine"]["isa"], report["machine"]["flags"]))
    assert any(line.startswith("host-proxy") for line in report["limits"]) == proxy
    for runtime in target.bench.runtimes:
        rows = [row for row in report["rows"] if row["runtime"] == runtime]
        command = runtimes.availability(runtime)
        if command is not None:
            assert {row["why_invalid"] for row in rows} == {f"skipped: {command}"}
        elif runtimes.converters(runtime) is not None:
            assert all(row["threads"] == 1 for row in rows)
            missing = {row["artifact"]: row["why_invalid"] for row in rows if row["p50_ms"] is None}
            assert missing.keys() <= {"teacher_ort_dynamic"}, missing  # some formats have nothing for its weights
            assert all(why.startswith("not converted: ") for why in missing.values()), missing
    manifest = json.loads((bundle / "manifest.json").read_text())
    paged = any(one.startswith("ort_web") and not runtimes.availability(one) for one in target.bench.runtimes)
    assert manifest["page"] == ("index.html" if paged else None)
    made = {name for name in target.bench.runtimes if runtimes.converters(name) is not None}
    ships = {file for file in SHIPS.get(name, ()) if file.partition("/")[0] in made}
    assert ships <= set(manifest["files"]) and ships <= set(manifest["runtimes"].values())
    if name in ("reuters_rpi4", "reuters_android_arm64"):  # what the Raspberry Pi 5's run made is theirs too
        assert {stage["action"] for stage in found["stages"].values()} == {"reused"}
