"""Session options: what the bench times, the manifest says and ``deploy.load`` sets is one and the same."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import report_fixture
import tiny_bundle
from bag_of_words import bag_of_words

from edgekd import deploy, session, ship
from edgekd.bench import launch
from edgekd.bench.measure import Artifact, measure
from edgekd.errors import BundleError
from edgekd.progress import Progress
from edgekd.report import limits, markdown, schema
from edgekd.runtimes import ort_cpu

CHOSEN: dict[str, Any] = {
    "enable_cpu_mem_arena": False,
    "enable_mem_pattern": False,
    "session.disable_prepacking": "1",
    "session.intra_op.allow_spinning": "0",
    "disabled_optimizers": ["SkipLayerNormFusion"],
}


def asked(found: Any) -> dict[str, Any]:
    """What a session of onnxruntime says of itself, but for its optimizers, which it does not tell."""
    options = found.get_session_options()
    flags = {name: getattr(options, name) for name in session.ATTRIBUTES}
    return flags | {name: options.get_session_config_entry(name) for name in session.ENTRIES}


EXPECTED = {name: value for name, value in CHOSEN.items() if name != session.OPTIMIZERS}


def tuned_report() -> dict[str, Any]:
    report = tiny_bundle.report() | {"session": CHOSEN}
    return report | {"limits": limits.limits(report)}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("session")
    return ship.pack(tuned_report(), tiny_bundle.export_stage(root / "export"), root / "dist" / "tiny")


def test_the_options_of_a_report_are_in_the_manifest_and_set_when_the_bundle_is_loaded(bundle: Path) -> None:
    written = json.loads((bundle / "manifest.json").read_text())["session"]
    assert written == {"threads": 1, "providers": ["CPUExecutionProvider"]} | CHOSEN
    classify = deploy.load(bundle)
    assert asked(classify._session) == EXPECTED
    assert classify._session.get_providers() == ["CPUExecutionProvider"]
    np.testing.assert_allclose(
        classify.logits("oil prices rose")[0], tiny_bundle.expected("oil prices rose"), rtol=1e-5
    )


def test_the_bench_sets_the_same_options(tmp_path: Path) -> None:
    bag_of_words(tmp_path / "model.onnx")
    found = ort_cpu.load(tmp_path / "model.onnx", 1, CHOSEN)
    assert asked(found._run.__self__) == EXPECTED
    plain = ort_cpu.load(tmp_path / "model.onnx", 1)._run.__self__.get_session_options()
    assert plain.enable_cpu_mem_arena and plain.enable_mem_pattern


def test_options_reach_the_process_that_is_timed_and_are_part_of_what_a_kept_result_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bag_of_words(tmp_path / "model.onnx")
    arrays = {"ids": [5, 6, 7], "offsets": [0, 3], "labels": [1]}
    np.savez(tmp_path / "inputs.npz", **{name: np.array(values) for name, values in arrays.items()})  # type: ignore[arg-type]
    jobs: list[dict[str, Any]] = []
    whole = launch.launch

    def seen(job: dict[str, Any], *rest: Any) -> dict[str, Any]:
        jobs.append(job)
        return whole(job, *rest)

    monkeypatch.setattr(launch, "launch", seen)

    def timed(options: dict[str, Any]) -> Any:
        artifact = Artifact("one", (tmp_path,), tmp_path / "inputs.npz", options)
        quiet = Progress(quiet=True)
        return measure(
            [artifact], runtimes=("ort_cpu",), threads=(1,), workloads={}, rounds=1, calls=3, out=tmp_path / "out",
            progress=quiet, score=lambda logits, labels: 1.0, baseline="one",
        )  # fmt: skip

    (row,) = timed({"enable_mem_pattern": False})
    assert row["p50_ms"] > 0 and jobs[0]["session"] == {"enable_mem_pattern": False}
    timed({"enable_mem_pattern": False})
    assert len(jobs) == 1
    timed({})
    assert len(jobs) == 2 and "session" not in jobs[1]
    (row,) = timed({"enable_mem_pattern": "not a flag"})  # only a child that applies it can stumble over it
    assert row["p50_ms"] is None and not row["valid"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"enable_cpu_memory_arena": False}, "unknown session option 'enable_cpu_memory_arena'"),
        ({"session.set_denormal_as_zero": "1"}, "unknown session option 'session.set_denormal_as_zero'"),
        ({"session.disable_prepacking": True}, 'must be "0" or "1"'),
        ({"enable_mem_pattern": "0"}, "must be true or false"),
        ({"disabled_optimizers": "SkipLayerNormFusion"}, "must be a list of names"),
    ],
)
def test_an_option_that_is_none_is_an_error_of_the_bundle(
    options: dict[str, Any], named: str, bundle: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(bundle, tmp_path / "copy"))
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["session"] |= options
    (copy / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=named):
        deploy.load(copy)


def test_a_report_says_which_options_were_set_and_of_which_artifact() -> None:
    report = tuned_report()
    schema.validate(report)
    text = markdown.render(report)
    assert re.search(r"disabled\\?_optimizers=SkipLayerNormFusion", text)
    assert "The shipped student was measured in onnxruntime, and is deployed, with session options" in text
    assert "session options" not in markdown.render(report_fixture.report())


SKIP = """
<ir_version: 8, opset_import: ["" : 17]>
model (float[batch, sequence, 4] x, float[batch, sequence, 4] y) => (float[batch, sequence, 4] z)
<float[4] scale = {1, 2, 3, 4}, float[4] bias = {0, 1, 0, 1}>
{
    s = Add(x, y)
    z = LayerNormalization <axis = -1, epsilon = 0.001> (s, scale, bias)
}
"""


def operators(options: dict[str, Any], folder: Path) -> list[str]:
    given = onnxruntime.SessionOptions()
    given.log_severity_level = 3
    given.optimized_model_filepath = str(folder / "optimized.onnx")
    more = session.apply(given, options)
    text = onnx.parser.parse_model(SKIP).SerializeToString()
    onnxruntime.InferenceSession(text, given, providers=["CPUExecutionProvider"], **more)
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


def test_an_optimizer_that_is_switched_off_leaves_the_graph_alone(tmp_path: Path) -> None:
    assert operators({}, tmp_path) == ["SkipLayerNormalization"]
    assert operators({"disabled_optimizers": ["SkipLayerNormFusion"]}, tmp_path) == ["Add", "LayerNormalization"]


def test_loading_a_bundle_leaves_the_arithmetic_of_the_process_alone(bundle: Path) -> None:
    deploy.load(bundle)("oil prices rose")
    assert (np.array([1e-310]) * 1.0 > 0).all()
