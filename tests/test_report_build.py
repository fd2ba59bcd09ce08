from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_fixture as made

from edgekd import spec
from edgekd.errors import StoreError
from edgekd.report import build, card, choice, html, limits, markdown, schema, verdicts
from edgekd.store import read_json, write_json


def built(folders: dict[str, Path], **changes: Any) -> dict[str, Any]:
    target = made.target(**changes)
    report = build.build(target, folders, made.MACHINE, made.VERSIONS, target.name, made.info(folders))
    schema.validate(report)
    return report


def with_co_teachers(root: Path, count: int) -> dict[str, Path]:
    """A run's folders, each co-teacher's too; their scores on validation are 0.91, 0.92..."""
    folders = made.folders(root)
    for i in range(1, count + 1):
        folders[f"teacher_also{i}"] = root / f"teacher_also{i}"
        folders[f"teacher_also{i}"].mkdir()
        write_json(folders[f"teacher_also{i}"] / "scores.json", {"validation": {"score": 0.9 + i / 100}})
    return folders


def test_what_several_teachers_taught_comes_under_all_their_licences(tmp_path: Path) -> None:
    folders = with_co_teachers(tmp_path, 2)
    also = [spec.Teacher(source=f"dir:{name}", licence=name) for name in ("MIT", "Apache-2.0")]
    report = built(folders, co_teachers=tuple(also))
    assert report["licences"]["teacher"] == "Apache-2.0 and MIT"
    assert report["teacher"]["also"] == ["dir:MIT", "dir:Apache-2.0"]
    for page in (markdown.render(report), html.render(report)):
        assert all(f"{score:.2f} %" in page for score in (91, 92))
    unknown = built(folders, co_teachers=(spec.Teacher(source="dir:x"),))
    assert any("The teacher's licence is not stated" in line for line in unknown["limits"])


def test_a_report_built_from_stage_folders_is_valid(tmp_path: Path) -> None:
    report = built(made.folders(tmp_path))
    assert report["budget_met"] is True
    assert report["verdicts"]["int8_vs_fp32"] == "faster"
    assert report["verdicts"]["int8_vs_teacher_ort_dynamic"] == "faster"
    assert report["teacher"]["parameters"] == 22_716_296
    assert report["student"]["vocabulary"]["size"] == 6000
    assert report["training"]["quantize"]["qat_step_time_ratio"] == 1.52
    assert "ranges" not in report["training"]["quantize"]


def test_one_instant_and_one_run_give_one_report() -> None:
    assert made.report() == made.report()


def test_qad_and_ptq_are_compared_on_each_test_example(tmp_path: Path) -> None:
    folders = made.folders(tmp_path)
    labels = np.load(folders["export"] / "inputs" / "student.npz")["labels"]
    right = [
        made.answers(made.ARTIFACTS[name][2], labels, list(made.ARTIFACTS).index(name)).argmax(1) == labels
        for name in ("student_qad", "student_ptq")
    ]
    assert built(folders)["verdicts"]["quality"] == verdicts.quality(*right)


def test_without_raw_samples_only_the_histograms_and_the_verdict_on_qad_are_lost(tmp_path: Path) -> None:
    folders = made.folders(tmp_path)
    for path in (folders["bench"] / "raw").iterdir():
        path.unlink()
    report = built(folders)
    assert report["latency"] == []
    assert report["verdicts"]["qad_vs_ptq"] == "unknown"
    assert report["verdicts"]["int8_vs_fp32"] == "faster"


def test_a_histogram_holds_the_calls_of_all_rounds_but_the_slowest_thousandth(tmp_path: Path) -> None:
    folders = made.folders(tmp_path)
    found = next(h for h in built(folders)["latency"] if h["artifact"] == "student_qad" and h["workload"] == "real")
    files = sorted((folders["bench"] / "raw").glob("student_qad.ort_cpu.t1.real.r*.npz"))
    times = np.sort(np.concatenate([np.load(path)["call_ns"] / 1e6 for path in files]))[:999]
    edges = found["first_ms"] * found["step"] ** np.arange(len(found["counts"]) + 1)
    assert len(files) == 5
    assert np.histogram(times, edges)[0].tolist() == found["counts"]
    assert sum(found["counts"]) == 999


def test_what_converters_said_and_what_to_ship_where_are_in_the_report(tmp_path: Path) -> None:
    report = made.report(made.everywhere(), made.CONVERSIONS)
    schema.validate(report)
    assert report["conversions"] == made.CONVERSIONS
    assert report["ship"] == choice.choices(made.target().budget, report["rows"], "ort_cpu")
    places = {(row["runtime"], row.get("host")) for row in report["rows"]}
    assert {(one["runtime"], one.get("host")) for one in report["ship"]} == places
    assert [one for one in report["latency"] if one["runtime"] == "litert"] != []  # the machine's own
    assert len(report["latency"]) == len([row for row in report["rows"] if row["rounds"] and not row.get("host")])


@pytest.mark.parametrize(
    ("stage", "name"),
    [("assets", "dataset.json"), ("bench", "rows.json"), ("export", "sizes.json"), ("quantize", "quant.json")],
)
def test_a_missing_or_damaged_file_is_an_error_that_names_its_stage(tmp_path: Path, stage: str, name: str) -> None:
    folders = made.folders(tmp_path)
    (folders[stage] / name).write_text("{")
    with pytest.raises(StoreError, match=f"the {stage} stage left no readable {name}"):
        built(folders)
    (folders[stage] / name).unlink()
    with pytest.raises(StoreError, match=f"--fresh {stage}"):
        built(folders)


def test_another_cpu_than_the_devices_makes_the_figures_a_host_proxy(tmp_path: Path) -> None:
    folders = made.folders(tmp_path)
    report = build.build(made.target(), folders, made.MACHINE | {"flags": ["avx2"]}, {}, "r", made.info(folders))
    assert report["device"]["missing"] == ["avx512_vnni|avx_vnni"]
    assert report["limits"][0].startswith("host-proxy")
    report = build.build(made.target(), folders, made.MACHINE | {"isa": "aarch64"}, {}, "r", made.info(folders))
    assert report["device"]["missing"] == ["x86_64"]


def test_a_student_that_reads_on_is_said_to_and_ships_with_its_own_length() -> None:
    report = made.report(student=spec.Student(layers=4, hidden=128, vocabulary=6000, max_length=72))
    assert report["task"]["max_length"] == 72
    assert "Documents are cut to 72 tokens, the teacher to 64 of its own." in report["limits"]


def test_what_the_figures_do_not_say_is_listed() -> None:
    table = made.rows()
    for row in table:
        if row["runtime"] == "openvino":
            made.spoil(row, "skipped: pip install 'edgekd[openvino]'", figures=False)
    made.spoil(table[0], "unstable")
    limits = " ".join(made.report(table, teacher=spec.Teacher(source="dir:x"))["limits"])
    assert "OpenVINO was skipped: pip install 'edgekd[openvino]'." in limits
    assert "1 of 25 rows are INVALID" in limits
    assert "The teacher's licence is not stated" in limits
    assert "2.40 % of the test split's tokens are unknown" in limits
    assert "one of them is 0.05 points" in limits
    assert "Documents are cut to 64 tokens." in limits
    assert "Of what the teacher reads of a document the student reads 93.10 %" in limits
    assert "not trained under quantization" not in limits


def test_a_student_that_training_under_quantization_did_not_better_is_said_to_be_the_best_ptq() -> None:
    report = made.report()
    report["training"]["quantize"]["best"] = {"epoch": 0, "step": 0, "loss": None, "score": 0.97}
    said = " ".join(limits.limits(report))
    assert "than the best PTQ: the shipped student is that one, with weights that were not trained under quant" in said


def test_a_student_that_was_not_trained_under_quantization_is_nowhere_said_to_be(tmp_path: Path) -> None:
    folders = made.folders(tmp_path)
    path = folders["quantize"] / "quant.json"
    write_json(path, read_json(path) | {"trained": False})
    report = built(folders)
    schema.validate(report)
    assert report["verdicts"]["quality"]["why"] == "not trained under quantization: PTQ was within the budget"
    line = next(line for line in report["headline"] if "PTQ" in line)
    assert line.startswith(
        "Not trained under quantization: PTQ was within the budget. What ships is KD → best PTQ (mse"
    )
    manifest = {"labels": ["a"], "scheme": "u8s8_static", "max_length": 8, "model": "m", "opset": 17, "inputs": []}
    texts = (html.render(report), markdown.render(report), card.render(report, manifest | {"minimum_onnxruntime": "1"}))
    for text in texts:
        assert "QAD" not in text and "trained on under" not in text and "and trained under quantization" not in text


def test_how_a_student_was_taught_is_told_in_the_words_of_its_target_and_so_are_its_exits(tmp_path: Path) -> None:
    folders = made.folders(tmp_path)
    path = folders["distill"] / "scores.json"
    write_json(path, read_json(path) | {"exits": {"1": {"score": 0.8123}, "4": {"score": 0.9321}}})
    taught = spec.Distill(losses=(spec.KL(2.0), spec.Exits(at=(1,))), select=spec.Select("margin"), epochs=3)
    report = built(folders, distill=taught)
    found = report["training"]["distill"]
    again = found["taught"].replace("Distill(", f"Distill(losses=({', '.join(found['losses'])}), ")
    assert eval(again, vars(spec)) == taught
    text, page = markdown.render(report), html.render(report)
    for word in ("KL(weight=2.0)", "Exits()", "epochs=3"):
        assert word in text and word in page
    assert "81.23 %" in text and "exit after 1 layers 81.23 %" in page
    for name in ("losses", "taught", "exits"):
        found.pop(name)  # a report of an edgekd that did not tell yet
    assert "Losses" not in markdown.render(report) and "Teaching" not in html.render(report)


def test_a_teacher_taken_as_it_comes_has_no_training(tmp_path: Path) -> None:
    folders = made.folders(tmp_path)
    path = folders["teacher"] / "scores.json"
    write_json(path, read_json(path) | {"training": None})
    assert built(folders)["training"]["teacher"] is None


def test_a_student_of_another_backbone_than_its_teacher_names_it_with_its_licence(tmp_path: Path) -> None:
    given = dict(teacher=spec.Teacher(source="dir:x", licence="MIT"))
    manifest = {"labels": ["a"], "scheme": "u8s8_static", "max_length": 8, "model": "m", "opset": 17, "inputs": []}
    manifest["minimum_onnxruntime"] = "1"
    plain = made.report(**given)
    assert "student" not in plain["licences"] and "cut from" not in card.render(plain, manifest)
    report = made.report(**given, student=spec.Student(source="dir:bert", licence="Apache-2.0"))
    schema.validate(report)
    report["training"]["teacher"] = {"train": "head", "epochs": None, "steps": None, "seconds": 2.5, "step_ms": None}
    said = card.render(report, manifest)
    assert "cut from `dir:bert`, distilled from `dir:x`" in said and "Backbone `dir:bert`: Apache-2.0" in said
    assert "data: Reuters-21578, free for research; student: Apache-2.0" in said
    assert "The teacher's head was trained on the training split, its backbone taken as it comes." in said
    assert "backbone: Apache-2.0" in html.render(report)
    report = made.report(**given, student=spec.Student(source="dir:bert"))
    assert "The student's backbone's licence is not stated" in " ".join(report["limits"])


def test_the_licence_of_a_backbone_that_an_assistant_is_cut_from_is_asked_for_too() -> None:
    assistants = (spec.Student(source="dir:big", layers=4), spec.Student(layers=3))
    report = made.report(assistants=assistants)
    assert "The student's backbone's licence is not stated" in " ".join(report["limits"])
    named = (spec.Student(source="dir:big", layers=4, licence="MIT"), spec.Student(layers=3))
    student = spec.Student(source="dir:bert", layers=2, licence="Apache-2.0")
    report = made.report(assistants=named, student=student)
    assert report["licences"]["student"] == "MIT and Apache-2.0"
    schema.validate(report)
    assert made.report(assistants=assistants, student=student)["licences"]["student"] is None
