from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import report_fixture
import tiny_bundle
from onnx import TensorProto, helper

from edgekd import ship, store
from edgekd.bundle import contents
from edgekd.errors import BundleError, DataError, StoreError
from edgekd.onnxio import layout
from edgekd.onnxio.signature import signature
from edgekd.report import schema
from edgekd.store import write_json

FILES = {
    *("onnx/model_quantized.onnx", "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("README.md", "report.json", "report.md", "report.html"),
}


@pytest.fixture
def export(tmp_path: Path) -> Path:
    return tiny_bundle.export_stage(tmp_path / "export")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_bundle.bundle(tmp_path_factory.mktemp("ship"))


@pytest.fixture
def copy(packed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(packed, tmp_path / "elsewhere" / "renamed"))


def manifest(bundle: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((bundle / "manifest.json").read_text())
    return found


# ----------------------------------------------------------------------------------------------------------------- ship


def test_a_bundle_holds_the_model_its_tokenizer_its_card_and_its_report(packed: Path) -> None:
    assert set(contents(packed)) == FILES
    schema.load(packed / "report.json")


def test_the_manifest_has_the_hash_and_the_bytes_of_every_file_but_itself(packed: Path) -> None:
    listed = manifest(packed)["files"]
    assert set(listed) == FILES
    for name, entry in listed.items():
        content = (packed / name).read_bytes()
        assert entry == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}


def test_the_manifest_says_what_a_deployer_must_know(packed: Path) -> None:
    found = manifest(packed)
    assert found["schema"] == "edgekd.bundle/1"
    assert (found["opset"], found["ir_version"], found["minimum_onnxruntime"]) == (17, 8, "1.12")
    assert found["scheme"] == "u8s8_static"
    assert found["labels"] == tiny_bundle.LABELS
    shape = ["batch", "sequence"]
    assert found["inputs"] == [
        {"name": "input_ids", "dtype": "int64", "shape": shape},
        {"name": "attention_mask", "dtype": "int64", "shape": shape},
    ]
    assert found["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", len(tiny_bundle.LABELS)]}]
    assert found["score"] == {"test": 0.9712, "teacher": 0.9744, "agreement": 0.9832, "examples": 2189}
    assert found["teacher"]["licence"] == "Apache-2.0"
    assert found["verified"] == [report_fixture.ISA]
    assert found["data"]["licence"] == "Reuters-21578, free for research"


def test_the_models_bytes_are_the_exported_ones(export: Path, tmp_path: Path) -> None:
    bundle = ship.pack(tiny_bundle.report(), export, tmp_path / "out")
    assert (bundle / ship.MODEL).read_bytes() == (export / "student_qad" / "model.onnx").read_bytes()


def test_shipping_twice_gives_the_same_bytes(export: Path, tmp_path: Path) -> None:
    one, two = (ship.pack(tiny_bundle.report(), export, tmp_path / name) for name in ("one", "two"))
    assert manifest(one) == manifest(two)


def test_the_card_tells_scores_limits_licences_and_how_it_was_made(packed: Path) -> None:
    card = (packed / "README.md").read_text()
    assert card.startswith("---\n")
    assert 'license: "other"' in card and 'license_name: "teacher: Apache-2.0; data: Reuters-21578' in card
    for part in (
        "## Scores",
        "97.12 %",
        "## Limits",
        "## Licences",
        "Reuters-21578",
        "## How it was made",
        "256 training",
    ):
        assert part in card
    for line in tiny_bundle.report()["headline"][:1]:
        assert line in card


def test_a_run_is_shipped_from_its_folder(tmp_path: Path) -> None:
    report = tiny_bundle.report()
    key = store.key("export", 1, {})
    stage = store.Stage("export", key, store.folder(tmp_path / "runs", "export", key))
    with store.partial(tmp_path / "runs", stage, 1, {}) as folder:
        tiny_bundle.export_stage(folder)
        store.finish(tmp_path / "runs", stage, made={"seconds": 1.0, "resumed": False, "device": "cpu", "threads": 1})
    report["stages"]["export"]["folder"] = stage.path.name
    (tmp_path / "runs" / "tiny").mkdir()
    write_json(tmp_path / "runs" / "tiny" / "report.json", report)
    out = tmp_path / "deep" / "dist" / "tiny"
    assert ship.ship(tmp_path / "runs" / "tiny", out) == out
    ship.verify_files(out)
    model = stage.path / "student_qad" / "model.onnx"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match=r"student_qad/model\.onnx has changed .*edgekd run reuters_x86"):
        ship.ship(tmp_path / "runs" / "tiny", tmp_path / "new")
    shutil.rmtree(tmp_path / "runs" / "store")
    with pytest.raises(BundleError, match="edgekd run reuters_x86"):
        ship.ship(tmp_path / "runs" / "tiny", tmp_path / "new")


def test_a_folder_without_a_report_cannot_be_shipped(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no report"):
        ship.ship(tmp_path, tmp_path / "out")


def test_an_older_bundle_is_replaced_and_nothing_else_is_left(export: Path, tmp_path: Path) -> None:
    out = ship.pack(tiny_bundle.report(), export, tmp_path / "dist" / "tiny")
    before = manifest(out)
    ship.pack(tiny_bundle.report(seed=7), export, out)
    assert manifest(out) != before
    ship.verify_files(out)
    assert [path.name for path in (tmp_path / "dist").iterdir()] == ["tiny"]


def test_an_empty_folder_is_filled(export: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    ship.verify_files(ship.pack(tiny_bundle.report(), export, tmp_path / "out"))


@pytest.mark.parametrize("kind", ["folder", "file", "link", "bundle with a file of yours"])
def test_what_is_not_a_bundle_is_never_overwritten(export: Path, tmp_path: Path, kind: str) -> None:
    out, mine = tmp_path / "out", tmp_path / "out" / "thesis.tex"
    if kind == "file":
        mine = out
    elif kind == "link":
        (tmp_path / "real").mkdir()
        out.symlink_to(tmp_path / "real")
    elif kind == "folder":
        out.mkdir()
    else:
        ship.pack(tiny_bundle.report(), export, out)
    mine.write_text("years of work")
    with pytest.raises(BundleError, match="--out"):
        ship.pack(tiny_bundle.report(), export, out)
    assert mine.read_text() == "years of work"


@pytest.mark.parametrize("name", ["model.onnx", "config.json", *layout.TOKENIZER_FILES, "signature.json"])
def test_an_export_that_lacks_something_is_not_shipped(export: Path, tmp_path: Path, name: str) -> None:
    next(path for path in export.rglob("*") if path.name == name).unlink()
    with pytest.raises(BundleError, match=name):
        ship.pack(tiny_bundle.report(), export, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_labels_that_contradict_the_report_are_not_shipped(export: Path, tmp_path: Path) -> None:
    report = tiny_bundle.report()
    report["task"]["labels"] = report["task"]["labels"][::-1]
    with pytest.raises(BundleError, match="not the report's"):
        ship.pack(report, export, tmp_path / "out")


def test_a_place_that_cannot_be_made_is_an_error_of_the_bundle(export: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(BundleError, match=r"cannot write the bundle .*file is not a folder one may write to; choose"):
        ship.pack(tiny_bundle.report(), export, tmp_path / "file" / "deep" / "out")


def test_a_failure_half_way_leaves_the_old_bundle_and_no_rubbish(
    export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = ship.pack(tiny_bundle.report(), export, tmp_path / "dist" / "tiny")
    before = manifest(out)
    real = os.replace

    def fail(source: Any, target: Any) -> None:
        if Path(source).name == ".partial-tiny":
            raise OSError("the power went out")
        real(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(BundleError, match="the power went out"):
        ship.pack(tiny_bundle.report(seed=7), export, out)
    assert manifest(out) == before
    ship.verify_files(out)
    assert [path.name for path in (tmp_path / "dist").iterdir()] == ["tiny"]


# --------------------------------------------------------------------------------------------------------------- verify


def test_a_moved_and_renamed_bundle_verifies_from_any_folder(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy.parent)
    assert ship.verify_files(Path("renamed"))["run"] == "reuters_x86"


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_changed_byte_in_any_file_is_found(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 1
    (copy / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"altered: {name}"):
        ship.verify_files(copy)


def test_every_missing_altered_and_unlisted_file_is_named(copy: Path) -> None:
    (copy / "report.md").unlink()
    (copy / "README.md").write_text("better than it is")
    (copy / "onnx" / "other.onnx").write_text("")
    (copy / "link").symlink_to("/etc/hostname")
    expected = r"missing: report\.md; altered: README\.md; not in the manifest: link, onnx/other\.onnx"
    with pytest.raises(BundleError, match=expected):
        ship.verify_files(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": "edgekd.bundle/2"}', '{"schema": "edgekd.bundle/1"}'])
def test_a_manifest_that_says_nothing_is_no_proof(copy: Path, text: str) -> None:
    (copy / "manifest.json").write_text(text)
    with pytest.raises(BundleError):
        ship.verify_files(copy)


def test_a_missing_folder_is_an_error_of_the_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="is no edgekd bundle"):
        ship.verify_files(tmp_path / "nothing")


# -------------------------------------------------------------------------------------------------------------- rescore


def claim(bundle: Path, score: float, path: Path, texts: list[str], labels: list[str]) -> None:
    """Let the bundle claim ``score`` on a test split of these texts (which is its training split too)."""
    from edgekd import spec, tasks

    path.write_text("text,label\n" + "".join(f"{t},{label}\n" for t, label in zip(texts, labels, strict=True)))
    given = manifest(bundle)
    fields: dict[str, Any] = {"train": str(path), "validation": str(path), "test": str(path)}
    fields["labels"] = tuple(tiny_bundle.LABELS)
    fingerprint = tasks.TASKS["text_classification"].load(spec.TextClassification(**fields), 0).fingerprint
    given["data"] |= {"spec": {**fields, "labels": tiny_bundle.LABELS}, "seed": 0, "fingerprint": fingerprint}
    given["score"]["test"] = score
    write_json(bundle / "manifest.json", given)


TEXTS = ["oil prices rose", "wheat", "profit bank", "bank", "prices", "profit rose", "wheat rose", "oil bank"]
RIGHT = [tiny_bundle.LABELS[int(tiny_bundle.expected(text).argmax())] for text in TEXTS]


def test_the_score_is_the_share_of_right_answers(packed: Path) -> None:
    wrong = [tiny_bundle.LABELS[tiny_bundle.LABELS.index(label) - 1] for label in RIGHT]
    assert ship.score(packed, TEXTS, RIGHT) == 1.0
    assert ship.score(packed, TEXTS, RIGHT[:6] + wrong[6:]) == 0.75


def test_labels_that_the_bundle_does_not_know_cannot_be_scored(packed: Path) -> None:
    with pytest.raises(BundleError, match="'sport'"):
        ship.score(packed, ["oil"], ["sport"])
    with pytest.raises(BundleError, match="0 texts"):
        ship.score(packed, [], [])


def test_a_bundle_reads_its_test_split_again_and_proves_its_score(copy: Path, tmp_path: Path) -> None:
    claim(copy, 1.0, tmp_path / "data.csv", TEXTS, RIGHT)
    assert ship.rescore(copy) == {"score": 1.0, "claimed": 1.0, "examples": len(TEXTS)}


def test_a_claim_that_does_not_hold_is_an_error(copy: Path, tmp_path: Path) -> None:
    claim(copy, 0.5, tmp_path / "data.csv", TEXTS, RIGHT)
    with pytest.raises(BundleError, match="claims"):
        ship.rescore(copy)


def test_data_that_changed_since_cannot_prove_anything(copy: Path, tmp_path: Path) -> None:
    claim(copy, 1.0, tmp_path / "data.csv", TEXTS, RIGHT)
    path = tmp_path / "data.csv"
    path.write_text(path.read_text().replace("wheat rose", "wheat fell"))
    with pytest.raises(BundleError, match="changed"):
        ship.rescore(copy)
    path.write_text("nothing\n1\n")
    with pytest.raises(DataError):
        ship.rescore(copy)


# ------------------------------------------------------------------------------------------------------------ signature


def test_the_signature_leaves_out_weights_and_names_other_operator_sets(tmp_path: Path) -> None:
    model = tiny_bundle.model()
    model.graph.input.append(helper.make_tensor_value_info("head", TensorProto.FLOAT, [6, 8]))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    onnx.save(model, tmp_path / "model.onnx")
    found = signature(tmp_path / "model.onnx")
    assert [value["name"] for value in found["inputs"]] == ["input_ids", "attention_mask"]
    assert found["domains"] == {"com.microsoft": 1}


@pytest.mark.parametrize(
    ("opset", "ir_version", "least"),
    [(17, 8, "1.12"), (13, 7, "1.10"), (17, 10, "1.18"), (21, 8, "1.18"), (99, 8, "7.7")],
)
def test_the_minimum_runtime_reads_both_the_operator_set_and_the_file(opset: int, ir_version: int, least: str) -> None:
    assert ship._minimum({"opset": opset, "ir_version": ir_version}, "7.7") == least


def test_verifying_files_does_not_import_torch(packed: Path) -> None:
    script = f"import sys; from edgekd import ship; from pathlib import Path; ship.verify_files(Path({str(packed)!r}));"
    script += "print(sorted({'torch', 'transformers', 'onnx', 'matplotlib', 'pandas', 'pyarrow'} & set(sys.modules)))"
    root = str(Path(ship.__file__).parents[1])
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=root)
    assert done.stdout.strip() == "[]", done.stderr
