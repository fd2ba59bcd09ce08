"""What a graph has in int8 and a runtime does in float is an error, with the node named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from tiny_onnx import classifier, quantized

from edgekd import runtimes
from edgekd.bench.measure import measure
from edgekd.onnxio import audit, export
from edgekd.progress import Progress
from edgekd.stages import bench
from edgekd.store import write_json

KEEP = ("*.attention.self.MatMul*", "classifier")
FIRST = "bert.encoder.layer.0.attention.output.dense"


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export folder with a student of fixed ranges, and one whose ranges are found at run time."""
    folder = tmp_path_factory.mktemp("export")
    audits = {}
    for name, scheme in (("student_ptq", "u8s8_dynamic"), ("student_qad", "u8s8_static")):
        path = folder / name / "model.onnx"
        path.parent.mkdir()
        model = quantized(classifier(), scheme=scheme, keep_float=KEEP)
        export.export_quantized(model, path, opset=17, keep_float=KEEP)
        audits[name] = audit.audit(path, KEEP)
    write_json(folder / "audit.json", audits)
    (folder / "inputs").mkdir()
    for kind in ("teacher", "student"):
        offsets, labels = np.arange(0, 41, 4), np.zeros(10, np.int64)
        np.savez(folder / "inputs" / f"{kind}.npz", ids=np.arange(40) % 9, offsets=offsets, labels=labels)
    return folder


def rows(exported: Path, out: Path, runtime: str) -> dict[str, str | None]:
    """Artifact -> why its row is INVALID, but for the brevity of this measurement."""
    table = measure(
        bench.artifacts(exported), runtimes=(runtime,), threads=(1,), workloads={}, rounds=1, calls=5, out=out,
        progress=Progress(quiet=True), score=lambda *_: 0.0,
    )  # fmt: skip
    return {row["artifact"]: row["why_invalid"] for row in table}


def test_openvino_does_the_very_multiplications_in_int8_that_the_audit_found_in_the_graph(
    exported: Path, tmp_path: Path
) -> None:
    if (command := runtimes.availability("openvino")) is not None:
        pytest.skip(f"not installed: {command}")
    (static,) = (a for a in bench.artifacts(exported) if a.name == "student_qad")
    ran = runtimes.get("openvino").load(exported / "student_qad/model.onnx", 1).executed()
    assert static.int8 == set(ran["int8"]) and len(static.int8) == 13
    found = rows(exported, tmp_path, "openvino")
    assert "int8" not in str(found["student_qad"])
    assert str(found["student_ptq"]).startswith(
        f"{FIRST}.MatMulInteger (13 in all) is int8 in the graph and ran in float"
    )


def test_onnxruntime_does_both_in_int8(exported: Path, tmp_path: Path) -> None:
    assert not any("int8" in str(why) for why in rows(exported, tmp_path, "ort_cpu").values())
