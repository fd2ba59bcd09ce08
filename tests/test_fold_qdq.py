"""Claims about the pass that makes floats of a quantized graph: on the grid it computes the very same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from test_passes import f32, linear, model, ops, s8, scales
from tiny_onnx import classifier, feed, quantized

from edgekd.onnxio import bridge, export, passes
from edgekd.onnxio.audit import session
from edgekd.onnxio.files import read

RNG = np.random.default_rng(1)


def folded(graph: onnx.ModelProto, *before: str) -> onnx.ModelProto:
    result = passes.apply(graph, ("constants", "fold_clip", *before, *passes.FOLDED))
    onnx.checker.check_model(result, full_check=True)
    assert not {op for op in ops(result) if "Quantize" in op or op == "MatMulInteger"}
    return result


def same(one: onnx.ModelProto, other: onnx.ModelProto, **feeds: Any) -> None:
    expected, found = (ReferenceEvaluator(m).run(None, feeds)[0] for m in (one, other))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def on_grid(scale: float, *shape: int) -> np.ndarray:
    """Numbers that a quantizer of this scale does not round, many of them out of its range."""
    return (RNG.integers(-300, 300, shape) * np.float32(scale)).astype(np.float32)


def test_a_linear_layer_on_the_grid_of_its_input_computes_the_same_beyond_the_range_too() -> None:
    before = linear()
    after = folded(before, "fold_transpose")
    assert ops(after) == ["Clip", "MatMul"]
    same(before, after, x=on_grid(0.02, 2, 5, 3))


@pytest.mark.parametrize(("zero", "clipped"), [(np.uint8(0), False), (np.uint8(100), True)])
def test_a_range_that_holds_all_that_can_come_needs_no_clip(zero: Any, clipped: bool) -> None:
    text = """g (float[b,4] x) => (float[b,4] y) {
        p = Softmax(x)
        q = QuantizeLinear(p, scale, zero)
        y = DequantizeLinear(q, scale, zero)
    }"""
    after = folded(model(text, scale=np.float32(1 / 255 * 1.001), zero=zero))
    assert ops(after) == ["Softmax", *["Clip"] * clipped]


def test_a_range_does_the_work_of_the_activation_that_was_left_to_it() -> None:
    text = """g (float[1,2,5,5] x) => (float[1,3,2,2] y) {
        xq = QuantizeLinear(x, x_scale, x_zero)
        xf = DequantizeLinear(xq, x_scale, x_zero)
        wf = DequantizeLinear<axis = 0>(w, scale, zero)
        c = Conv(xf, wf)
        cq = QuantizeLinear(c, c_scale, c_zero)
        low = Clip(cq, seven)
        pooled = MaxPool<kernel_shape = [2, 2]>(low)
        y = DequantizeLinear(pooled, c_scale, c_zero)
    }"""
    before = model(text, w=s8(3, 2, 3, 3), scale=scales(3), zero=np.zeros(3, np.int8), x_scale=np.float32(0.05),
                   x_zero=np.uint8(0), c_scale=np.float32(6 / 255), c_zero=np.uint8(0), seven=np.uint8(7))  # fmt: skip
    after = folded(before)
    assert ops(after) == ["Clip", "Conv", "Clip", "Clip", "MaxPool"]
    x = on_grid(0.05, 1, 2, 5, 5)
    expected, found = (ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (before, after))
    assert expected.max() == pytest.approx(6.0, abs=1e-5) and expected.min() >= 7 * 6 / 255 - 1e-6
    np.testing.assert_allclose(found, expected, atol=0.5 * 6 / 255 + 1e-5)  # the output's own rounding


def test_a_table_whose_rows_are_looked_up_is_stored_in_floats() -> None:
    text = """g (int64[b,s] ids) => (float[n,3] y) {
        rows = Gather(table, ids)
        flat = Reshape(rows, shape)
        y = DequantizeLinear(flat, scale, zero)
    }"""
    before = model(text, table=s8(7, 3), shape=np.array([-1, 3]), scale=np.float32(0.03), zero=np.int8(0))
    after = folded(before)
    assert ops(after) == ["Gather", "Reshape"]
    same(before, after, ids=RNG.integers(0, 7, (2, 4)))


def test_ranges_found_at_run_time_become_a_product_of_floats() -> None:
    text = """g (float[b,3] x) => (float[b,4] y) {
        q, step, point = DynamicQuantizeLinear(x)
        xf = DequantizeLinear(q, step, point)
        wf = DequantizeLinear<axis = 1>(w, scale, zero)
        y = Gemm(xf, wf, bias)
    }"""
    before = model(text, w=s8(3, 4), scale=scales(4), zero=np.zeros(4, np.int8), bias=f32(4))
    after = folded(before, "dynamic_matmul")
    assert ops(after) == ["MatMul", "Add"]
    x = f32(5, 3)
    expected, found = (ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (before, after))
    np.testing.assert_allclose(found, expected, atol=0.02)


@pytest.mark.parametrize("scheme", ["u8s8_static", "s8s8_static", "u8s8_dynamic"])
def test_a_whole_student_keeps_its_weights_on_their_grid(scheme: str, tmp_path: Path) -> None:
    student = quantized(classifier(), scheme, ("*.attention.self.MatMul*", "classifier"))
    export.export_quantized(
        student, tmp_path / "model.onnx", opset=17, keep_float=("*.attention.self.MatMul*", "classifier")
    )
    shipped = read(tmp_path / "model.onnx")
    after = folded(shipped)
    kept = {weight.integers.tobytes() for weight in bridge.stored(shipped).values() if not weight.table}
    arrays = [onnx.numpy_helper.to_array(t) for t in shipped.graph.initializer]
    assert len(kept) == len([a for a in arrays if a.dtype == np.int8 and a.ndim == 2 and len(a) not in (99, 2, 64)])
    found = bridge.names(after)
    assert all(floats in found for floats, weight in bridge.stored(shipped).items() if not weight.table)
    feeds = feed(3, 20, 5)
    exact, rough = (session(m).run(None, feeds)[0] for m in (shipped, after))
    assert np.abs(exact - rough).max() < 0.1 * np.abs(exact).max()
