"""Claims about exported graphs as torch modules: they answer as onnxruntime does, and can be exported again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from test_onnxio_families import STUDENTS, family, inputs
from test_passes import model
from tiny_onnx import quantized

from edgekd.errors import ExportError
from edgekd.onnxio import export, passes
from edgekd.onnxio.audit import session
from edgekd.onnxio.bridge import Graph
from edgekd.onnxio.files import read

SHAPES = ((1, 5, 0), (3, 17, 6))


def answers(graph: Graph, arrays: dict[str, np.ndarray]) -> np.ndarray:
    with torch.no_grad():
        return graph(**{name: torch.from_numpy(arrays[name]) for name in graph.inputs}).numpy()


@pytest.mark.parametrize("name", STUDENTS)
def test_a_graph_of_any_family_answers_as_onnxruntime_does_in_float_and_folded(name: str, tmp_path: Path) -> None:
    student = family(name)
    export.export_float(student, tmp_path / "float.onnx", opset=17)
    export.export_quantized(
        quantized(student, keep_float=STUDENTS[name]), tmp_path / "int8.onnx", opset=17, keep_float=STUDENTS[name]
    )
    for graph in (read(tmp_path / "float.onnx"), passes.apply(read(tmp_path / "int8.onnx"), passes.FOLDED)):
        module, runtime = Graph(graph), session(graph)
        for batch, length, padding in SHAPES:
            arrays = {
                name: array for name, array in inputs(student, batch, length, padding).items() if name in module.inputs
            }
            expected = runtime.run(None, arrays)[0]
            np.testing.assert_allclose(answers(module, arrays), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_a_graph_is_exported_again_with_lengths_left_open(tmp_path: Path) -> None:
    student = family("Bert")
    module = Graph(export.export_float(student, tmp_path / "model.onnx", opset=17)).eval()
    arrays = [inputs(student, 1, tokens, 2) for tokens in (8, 21)]
    first, other = (tuple(torch.from_numpy(found[name]) for name in module.inputs) for found in arrays)
    length = torch.export.Dim("length", min=2, max=64)
    exported = torch.export.export(module, first, dynamic_shapes={"given": ({1: length},) * len(first)})
    torch.testing.assert_close(exported.module()(*other), module(*other))


def test_a_graph_is_quantized_in_torch_as_it_is_in_onnx(tmp_path: Path) -> None:
    student = family("Bert")
    export.export_quantized(
        quantized(student, keep_float=STUDENTS["Bert"]), tmp_path / "model.onnx", opset=17, keep_float=STUDENTS["Bert"]
    )
    graph = read(tmp_path / "model.onnx")
    arrays = inputs(student, 3, 17, 6)
    exact = session(graph).run(None, arrays)[0]
    assert np.abs(answers(Graph(graph), arrays) - exact).max() < 0.02 * np.abs(exact).max()


def test_an_operator_without_a_counterpart_is_named() -> None:
    with pytest.raises(ExportError, match=r"no torch counterpart of the operators Hardmax"):
        Graph(model("g (float[b,3] x) => (float[b,3] y) { y = Hardmax(x) }"))


def test_attributes_and_shapes_are_read_as_the_standard_says() -> None:
    text = """g (float[b,s,4] x) => (float[n,m] y) {
        shape = Shape(x)
        first = Gather<axis = 0>(shape, zero)
        one = Unsqueeze(first, axis)
        whole = Concat<axis = 0>(one, rest)
        flat = Reshape(x, whole)
        part = Slice(flat, begin, end, axes, steps)
        half = Gemm<alpha = 0.5, transB = 1>(part, w, b)
        y = Gemm<beta = 2.0>(half, w2, c)
    }"""
    rng = np.random.default_rng(0)
    weights = dict(zero=np.array(0), axis=np.array([0]), rest=np.array([-1]), begin=np.array([1]),
                   end=np.array([2**62]), axes=np.array([1]), steps=np.array([2]), w=rng.normal(size=(5, 6)),
                   b=rng.normal(size=5), w2=rng.normal(size=(5, 2)), c=rng.normal(size=2))  # fmt: skip
    weights = {n: w.astype(np.float32) if w.dtype == np.float64 else w for n, w in weights.items()}
    graph = model(text, **weights)
    x = rng.normal(size=(2, 3, 4)).astype(np.float32)
    (expected,) = onnx.reference.ReferenceEvaluator(graph).run(None, {"x": x})
    np.testing.assert_allclose(answers(Graph(graph), {"x": x}), expected, rtol=1e-5)
