"""Graph passes on small graphs written as text; onnx's reference evaluator says whether they still compute the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx.reference import ReferenceEvaluator

from edgekd.errors import ExportError
from edgekd.onnxio import passes
from edgekd.onnxio.audit import session
from edgekd.onnxio.graph import dims, infer

RNG = np.random.default_rng(0)


def model(graph: str, opset: int = 19, **weights: np.ndarray) -> onnx.ModelProto:
    """A checked model from the text of its graph; ``weights`` become initializers."""
    parsed = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : {opset}]> {graph}')
    for name, array in weights.items():
        parsed.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    for number, node in enumerate(parsed.graph.node):
        node.name = node.name or f"/{node.op_type}_{number}"
    onnx.checker.check_model(parsed, full_check=True)
    return parsed


def after(before: onnx.ModelProto, *names: str, **feeds: Any) -> onnx.ModelProto:
    """The model after the passes: valid, and equal in what it computes for ``feeds``."""
    result = passes.apply(before, ("constants", *names))
    onnx.checker.check_model(result, full_check=True)
    expected, found = (ReferenceEvaluator(m).run(None, feeds)[0] for m in (before, result))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    return result


def ops(graph: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in graph.graph.node]


def stored(graph: onnx.ModelProto, name: str) -> np.ndarray:
    return next(onnx.numpy_helper.to_array(t) for t in graph.graph.initializer if t.name == name)


def s8(*shape: int) -> np.ndarray:
    return RNG.integers(-127, 128, shape).astype(np.int8)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def scales(count: int) -> np.ndarray:
    return RNG.uniform(0.001, 0.01, count).astype(np.float32)


LINEAR = """g (float[b,s,3] x) => (float[b,s,4] y) {
    clipped = Clip(w, low, high)
    w_float = DequantizeLinear<axis = 0>(clipped, scale, zero)
    turned = Transpose<perm = [1, 0]>(w_float)
    q = QuantizeLinear(x, x_scale, x_zero)
    x_float = DequantizeLinear(q, x_scale, x_zero)
    y = MatMul(x_float, turned)
}"""


def linear(**changes: Any) -> onnx.ModelProto:
    weights = dict(w=s8(4, 3), low=np.int8(-127), high=np.int8(127), scale=scales(4), zero=np.zeros(4, np.int8),
                   x_scale=np.float32(0.02), x_zero=np.uint8(120))  # fmt: skip
    return model(LINEAR, **(weights | changes))


def test_a_clipped_transposed_weight_is_stored_as_the_multiplication_reads_it() -> None:
    before = linear()
    result = after(before, "fold_clip", "fold_transpose", "dead", x=f32(2, 5, 3))
    assert "Clip" not in ops(result) and "Transpose" not in ops(result)
    weight = next(n for n in result.graph.node if n.op_type == "DequantizeLinear" and len(n.attribute))
    assert weight.attribute[0].name == "axis" and weight.attribute[0].i == 1
    np.testing.assert_array_equal(stored(result, weight.input[0]), stored(before, "w").T)


def test_a_clip_that_cuts_is_evaluated_not_dropped() -> None:
    result = after(linear(high=np.int8(7)), "fold_clip", "dead", x=f32(1, 2, 3))
    weight = next(n for n in result.graph.node if n.op_type == "DequantizeLinear" and len(n.attribute))
    assert stored(result, weight.input[0]).max() <= 7


def test_a_gemm_gets_its_weight_transposed_when_it_transposes_it_itself() -> None:
    before = model(
        """g (float[b,3] x) => (float[b,4] y) {
            w_float = DequantizeLinear<axis = 0>(w, scale, zero)
            y = Gemm<transB = 1>(x, w_float)
        }""",
        w=s8(4, 3), scale=scales(4), zero=np.zeros(4, np.int8),
    )  # fmt: skip
    result = after(before, "fold_transpose", "dead", x=f32(2, 3))
    assert not [a for n in result.graph.node if n.op_type == "Gemm" for a in n.attribute if a.name == "transB"]


DYNAMIC = """g (float[b,s,3] x) => (float[b,s,4] y) {{
    q, x_scale, x_zero = DynamicQuantizeLinear(x)
    x_float = DequantizeLinear(q, x_scale, x_zero)
    w_float = DequantizeLinear<axis = 1>(w, scale, zero)
    {end}
}}"""


@pytest.mark.parametrize("end", ["y = MatMul(x_float, w_float)", "t = MatMul(x_float, w_float) y = Add(t, bias)"])
def test_what_is_quantized_at_run_time_is_multiplied_as_integers(end: str) -> None:
    weights = dict(w=s8(3, 4), scale=scales(4), zero=np.zeros(4, np.int8), bias=f32(4))
    result = after(model(DYNAMIC.format(end=end), **weights), "dynamic_matmul", "dead", x=f32(2, 5, 3))
    assert ops(result)[:4] == ["DynamicQuantizeLinear", "MatMulInteger", "Cast", "Mul"]
    assert "DequantizeLinear" not in ops(result)


def test_the_bias_of_a_gemm_is_added_in_float() -> None:
    text = DYNAMIC.format(end="y = Gemm(x_float, w_float, bias)").replace("b,s,", "b,")
    weights = dict(w=s8(3, 4), scale=scales(4), zero=np.zeros(4, np.int8), bias=f32(4))
    result = after(model(text, **weights), "dynamic_matmul", "dead", x=f32(5, 3))
    assert ops(result)[-1] == "Add" and "Gemm" not in ops(result)


@pytest.mark.parametrize(
    ("axes", "end", "fused"),
    [
        ("b,s,", "t = MatMul(x_float, w_float) y = Add(t, bias)", True),
        ("b,", "y = MatMul(x_float, w_float)", True),
        ("b,", "t = MatMul(x_float, w_float) y = Add(t, bias)", False),
        ("b,", "y = Gemm(x_float, w_float, bias)", False),
    ],
)
def test_onnxruntime_fuses_what_was_quantized_at_run_time_and_dequantized_but_for_a_gemm(
    axes: str, end: str, fused: bool, tmp_path: Path
) -> None:
    weights = dict(w=s8(3, 4), scale=scales(4), zero=np.zeros(4, np.int8), bias=f32(4))
    session(model(DYNAMIC.format(end=end).replace("b,s,", axes), **weights), save=tmp_path / "optimized.onnx")
    found = ops(onnx.load(tmp_path / "optimized.onnx"))
    assert ("DynamicQuantizeMatMul" in found) == fused and ("Gemm" in found) != fused


def test_an_asymmetric_weight_of_a_dynamic_product_is_an_error() -> None:
    weights = dict(w=s8(3, 4), scale=scales(4), zero=np.ones(4, np.int8))
    with pytest.raises(ExportError, match="multiplies in float what was quantized at run time"):
        passes.apply(model(DYNAMIC.format(end="y = MatMul(x_float, w_float)"), **weights), ("dynamic_matmul",))


def embedding(axis: str, scale: np.ndarray, zero: np.ndarray) -> onnx.ModelProto:
    return model(
        f"""g (int64[b,s] ids) => (float[b,s,6] y) {{
            table = DequantizeLinear{axis}(w, scale, zero)
            y = Gather(table, ids)
        }}""",
        w=s8(9, 6), scale=scale, zero=zero,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("axis", "scale", "zero"),
    [("", np.float32(0.01), np.int8(0)), ("<axis = 1>", scales(6), np.zeros(6, np.int8))],
    ids=["per tensor", "per hidden channel"],
)
def test_rows_are_gathered_before_they_are_dequantized(axis: str, scale: np.ndarray, zero: np.ndarray) -> None:
    result = after(embedding(axis, scale, zero), "gather_dequantize", "dead", ids=RNG.integers(0, 9, (2, 5)))
    assert ops(result) == ["Gather", "DequantizeLinear"]


def test_one_scale_per_gathered_row_is_an_error_that_names_the_gather() -> None:
    with pytest.raises(ExportError, match=r"/Gather_1.*one scale per tensor"):
        passes.apply(embedding("<axis = 0>", scales(9), np.zeros(9, np.int8)), ("constants", "gather_dequantize"))


def gemm(bias: np.ndarray, w_scale: np.ndarray | None = None, attributes: str = "") -> onnx.ModelProto:
    return model(
        f"""g (float[b,3] x) => (float[b,4] y) {{
            q = QuantizeLinear(x, x_scale, x_zero)
            x_float = DequantizeLinear(q, x_scale, x_zero)
            w_float = DequantizeLinear<axis = 1>(w, scale, zero)
            y = Gemm{attributes}(x_float, w_float, bias)
        }}""",
        w=s8(3, 4), scale=scales(4) if w_scale is None else w_scale, zero=np.zeros(4, np.int8),
        x_scale=np.float32(0.02), x_zero=np.uint8(120), bias=bias,
    )  # fmt: skip


def test_a_bias_is_int32_at_exactly_the_product_of_the_two_scales() -> None:
    before = gemm(np.array([0.3, -2.0, 0.0, 1.5], np.float32))
    result = passes.apply(before, ("constants", "gemm_bias", "dead"))
    node = next(n for n in result.graph.node if n.op_type == "DequantizeLinear" and n.output[0] in gemm_inputs(result))
    numbers, scale, zero = (stored(result, name) for name in node.input)
    expected = np.float32(0.02) * stored(before, "scale")
    assert numbers.dtype == np.int32 and not zero.any()
    np.testing.assert_array_equal(scale, expected)
    assert np.abs(numbers * expected.astype(np.float64) - stored(before, "bias")).max() <= expected.max() / 2
    x = f32(4, 3)
    found, wanted = (ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (result, before))
    assert np.abs(found - wanted).max() <= expected.max()  # half a step of the bias, and float noise


def gemm_inputs(graph: onnx.ModelProto) -> str:
    return next(n for n in graph.graph.node if n.op_type == "Gemm").input[2]


def test_a_bias_that_int32_cannot_hold_stays_float_behind_a_multiplication() -> None:
    tiny = np.array([1e-3, 1e-12, 1e-3, 1e-3], np.float32)
    result = after(gemm(np.ones(4, np.float32), tiny), "gemm_bias", x=f32(2, 3))
    assert "Gemm" not in ops(result) and ops(result)[-2:] == ["MatMul", "Add"]


def test_a_gemm_with_alpha_is_left_alone() -> None:
    result = after(gemm(np.ones(4, np.float32), attributes="<alpha = 0.5>"), "gemm_bias", x=f32(2, 3))
    assert ops(result).count("DequantizeLinear") == 2


@pytest.mark.parametrize(
    ("point", "kept"), [(np.uint8(0), True), (np.uint8(3), False), (np.int8(0), False)], ids=["u8", "shifted", "s8"]
)
def test_a_relu_behind_an_integer_layer_stays_only_where_the_quantizer_makes_it_needless(
    point: Any, kept: bool
) -> None:
    before = model(
        """g (float[b,3] x) => (float[b,4] y) {
            q = QuantizeLinear(x, x_scale, x_zero)
            x_float = DequantizeLinear(q, x_scale, x_zero)
            w_float = DequantizeLinear<axis = 1>(w, scale, zero)
            linear = Gemm(x_float, w_float)
            rectified = Relu(linear)
            r = QuantizeLinear(rectified, y_scale, y_zero)
            y = DequantizeLinear(r, y_scale, y_zero)
        }""",
        w=s8(3, 4), scale=scales(4), zero=np.zeros(4, np.int8), x_scale=np.float32(0.02), x_zero=np.uint8(120),
        y_scale=np.float32(0.02), y_zero=point,
    )  # fmt: skip
    assert ("Relu" in ops(after(before, "gemm_bias", x=f32(2, 3)))) == kept


def test_a_relu_behind_a_float_layer_stays() -> None:
    before = model("g (float[b,3] x) => (float[b,4] y) { t = Gemm(x, w) y = Relu(t) }", w=f32(3, 4))
    assert ops(after(before, "gemm_bias", x=f32(2, 3))) == ["Gemm", "Relu"]


def test_equal_quantizers_of_one_tensor_become_one() -> None:
    before = model(
        """g (float[n] x) => (float[n] y) {
            a = QuantizeLinear(x, scale, zero)
            b = QuantizeLinear(x, scale_again, zero_again)
            c = QuantizeLinear(x, other_scale, zero)
            a_float = DequantizeLinear(a, scale, zero)
            b_float = DequantizeLinear(b, scale_again, zero_again)
            c_float = DequantizeLinear(c, other_scale, zero)
            sum = Add(a_float, b_float)
            y = Add(sum, c_float)
        }""",
        scale=np.float32(0.1), zero=np.uint8(3), scale_again=np.float32(0.1), zero_again=np.uint8(3),
        other_scale=np.float32(0.2),
    )  # fmt: skip
    result = after(before, "common_subexpressions", "dead", x=f32(7))
    assert ops(result).count("QuantizeLinear") == 2 and ops(result).count("DequantizeLinear") == 2


def test_constants_of_equal_content_and_type_are_stored_once() -> None:
    before = model(
        """g (float[n] x) => (float[n] y) {
            one = Constant<value = float[2] {1.0, 2.0}>()
            same = Identity(w)
            a = Add(x, one)
            b = Add(a, w)
            c = Add(b, same)
            y = Mul(c, v)
        }""",
        w=np.array([1, 2], np.float32), v=np.array([1, 2], np.float32),
    )  # fmt: skip
    result = after(before, x=f32(2))
    assert len(result.graph.initializer) == 1 and ops(result) == ["Add", "Add", "Add", "Mul"]


def test_an_int8_and_a_uint8_zero_are_not_merged() -> None:
    before = model(
        "g (float[n] x) => (uint8[n] y, int8[n] z) { y = QuantizeLinear(x, s, u) z = QuantizeLinear(x, s, i) }",
        s=np.float32(0.1), u=np.uint8(0), i=np.int8(0),
    )  # fmt: skip
    assert len(after(before, x=np.abs(f32(3))).graph.initializer) == 3


HEADS = """g (float[batch,sequence,6] x) => (float[batch,heads,sequence2,width] y) {
    shape = Shape(x)
    b = Gather(shape, zero)
    b1 = Unsqueeze(b, front)
    whole = Concat<axis = 0>(b1, minus, heads, width)
    split = Reshape(x, whole)
    y = Transpose<perm = [0, 2, 1, 3]>(split)
}"""


def test_a_shape_known_but_for_batch_and_sequence_becomes_constant() -> None:
    one = lambda n: np.array([n], np.int64)  # noqa: E731
    before = model(HEADS, zero=np.int64(0), front=one(0), minus=one(-1), heads=one(2), width=one(3))
    result = after(before, "constant_reshape", "dead", x=f32(2, 5, 6))
    assert ops(result) == ["Reshape", "Transpose"]
    assert stored(result, result.graph.node[0].input[1]).tolist() == [0, 0, 2, 3]


def test_a_reshape_that_folds_batch_into_sequence_keeps_one_unknown_only() -> None:
    before = model(
        """g (float[batch,sequence,6] x) => (float[n,m] y) {
            shape = Shape(x)
            b = Gather(shape, zero)
            b1 = Unsqueeze(b, front)
            whole = Concat<axis = 0>(b1, minus)
            flat = Reshape(x, whole)
            y = Neg(flat)
        }""",
        zero=np.int64(0), front=np.array([0]), minus=np.array([-1]),
    )  # fmt: skip
    result = after(before, "constant_reshape", "dead", x=f32(2, 5, 6))
    assert stored(result, result.graph.node[0].input[1]).tolist() == [0, -1]


def test_shape_inference_carries_dynamic_dimensions_through_a_broadcast() -> None:
    before = model("g (float[batch,sequence,6] x, float[batch,one,6] z) => (float[a,b,c] y) { y = Add(x, z) }")
    graph = ir.from_proto(before)
    infer(graph)
    assert dims(graph.graph.inputs[0]) == ("batch", "sequence", 6)
    lone = model("g (float[batch,sequence] x) => (float[a,b] y) { t = Add(x, w) y = Mul(t, t) }", w=f32(1, 1))
    graph = ir.from_proto(lone)
    infer(graph)
    assert dims(graph.graph[0].outputs[0]) == ("batch", "sequence")


ATTENTION_MASK = """g (float[b,s] scores, float[b,s] keep) => (float[b,s] y) {
    off = Sub(one, keep)
    mask = Mul(off, lowest)
    masked = Add(scores, mask)
    y = Softmax<axis = -1>(masked)
}"""


@pytest.mark.parametrize("lowest", [np.finfo(np.float32).min, -np.inf], ids=["lowest float", "minus infinity"])
def test_a_milder_mask_gives_the_same_softmax_to_the_bit(lowest: float) -> None:
    before = model(ATTENTION_MASK, one=np.float32(1), lowest=np.float32(np.finfo(np.float32).min))
    changed = model(ATTENTION_MASK, one=np.float32(1), lowest=np.float32(lowest))
    result = passes.apply(changed, ("constants", "mask_constants"))
    assert min(float(onnx.numpy_helper.to_array(t).min()) for t in result.graph.initializer) >= -1e4
    scores, keep = 5 * f32(3, 8), (np.arange(8) < np.array([[1], [5], [8]])).astype(np.float32)
    found, expected = (ReferenceEvaluator(m).run(None, {"scores": scores, "keep": keep})[0] for m in (result, before))
    np.testing.assert_array_equal(found, expected)


def test_a_row_with_every_token_masked_stays_finite() -> None:
    before = model(ATTENTION_MASK, one=np.float32(1), lowest=np.float32(np.finfo(np.float32).min))
    result = passes.apply(before, ("constants", "mask_constants"))
    y = ReferenceEvaluator(result).run(None, {"scores": f32(2, 4), "keep": np.zeros((2, 4), np.float32)})[0]
    assert np.isfinite(y).all()


@pytest.mark.parametrize(
    ("left", "right"),
    [((1, 4, 1), (1, 1, 5)), ((2, 1, 4, 1), (3, 1, 5)), ((4, 1), (2, 1, 5))],
    ids=["rotary", "broadcast", "ranks"],
)
def test_a_product_over_one_number_is_no_matrix_product(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    rank = max(len(left), len(right))
    y = ",".join("abcd"[:rank])
    before = model(f"g (float{list(left)} x, float{list(right)} z) => (float[{y}] y) {{ y = MatMul(x, z) }}")
    assert ops(after(before, "outer_product", x=f32(*left), z=f32(*right))) == ["Mul"]


@pytest.mark.parametrize(("left", "right"), [("4,2", "2,5"), ("4,n", "n,5"), ("1", "1,5")])
def test_any_other_product_is_left_alone(left: str, right: str) -> None:
    before = model(
        f"g (float[{left}] x, float[{right}] z) => (float[{'a' if left == '1' else 'a,b'}] y) {{ y = MatMul(x, z) }}"
    )
    assert ops(passes.apply(before, ("outer_product",))) == ["MatMul"]


def test_two_unsqueezes_become_one() -> None:
    for first, second in (([1], [1]), ([0], [3]), ([-1], [0]), ([1], [-2])):
        before = model(
            "g (float[n,m] x) => (float[a,b,c,d] y) { t = Unsqueeze(x, first) y = Unsqueeze(t, second) }",
            first=np.array(first), second=np.array(second),
        )  # fmt: skip
        assert ops(after(before, "short_chains", "dead", x=f32(2, 3))) == ["Unsqueeze"]


def test_one_dimension_is_read_by_one_shape_node() -> None:
    before = model(
        "g (float[n,m] x) => (int64[1] y) { s = Shape(x) d = Gather(s, i) y = Unsqueeze(d, a) }",
        i=np.int64(1), a=np.array([0]),
    )  # fmt: skip
    result = after(before, "short_chains", "dead", x=f32(2, 3))
    assert ops(result) == ["Shape"]


LAST_LAYER = """g (float[batch,sequence,4] x) => (float[batch,4] y) {
    q8 = QuantizeLinear(x, s, z)
    q = DequantizeLinear(q8, s, z)
    query = MatMul(q, wq)
    key = MatMul(q, wk)
    turned = Transpose<perm = [0, 2, 1]>(key)
    scores = MatMul(query, turned)
    weights = Softmax<axis = -1>(scores)
    mixed = MatMul(weights, q)
    residual = Add(mixed, x)
    normal = LayerNormalization<axis = -1>(residual, gain, shift)
    y = Gather<axis = 1>(normal, place)
}"""


def last_layer(place: int) -> onnx.ModelProto:
    return model(LAST_LAYER, s=np.float32(0.05), z=np.uint8(128), wq=f32(4, 4), wk=f32(4, 4), gain=f32(4), shift=f32(4),
                 place=np.int64(place))  # fmt: skip


@pytest.mark.parametrize("place", [0, 2])
def test_the_last_layer_is_computed_for_the_chosen_token_only(place: int) -> None:
    result = after(last_layer(place), "first_token", "dead", x=f32(2, 5, 4))
    graph = ir.from_proto(result)
    infer(graph)
    shapes = {node.name: dims(node.outputs[0]) for node in graph.graph}
    assert shapes["/MatMul_2"] == shapes["/LayerNormalization_9"] == ("batch", 1, 4)
    assert shapes["/MatMul_5"] == ("batch", 1, "sequence")
    assert shapes["/MatMul_3"] == ("batch", "sequence", 4)  # keys are needed for every token
    by_output = {name: node for node in result.graph.node for name in node.output}
    query = next(node for node in result.graph.node if node.name == "/MatMul_2")
    assert by_output[query.input[0]].op_type == "DequantizeLinear"  # directly before the product, or it would not fuse


def test_a_choice_over_the_softmax_dimension_is_not_moved() -> None:
    before = model(
        """g (float[batch,sequence,4] x) => (float[batch,4] y) {
            t = MatMul(x, w)
            p = Softmax<axis = 1>(t)
            y = Gather<axis = 1>(p, place)
        }""",
        w=f32(4, 4), place=np.int64(0),
    )  # fmt: skip
    assert "Slice" not in ops(after(before, "first_token", "dead", x=f32(2, 3, 4)))


def test_a_tensor_that_is_an_output_itself_is_not_cut() -> None:
    before = model(
        """g (float[batch,sequence,4] x) => (float[batch,4] y, float[batch,sequence,4] t) {
            t = MatMul(x, w)
            y = Gather<axis = 1>(t, place)
        }""",
        w=f32(4, 4), place=np.int64(0),
    )  # fmt: skip
    assert "Slice" not in ops(after(before, "first_token", "dead", x=f32(2, 3, 4)))


BLOCK = """g (int64[batch,sequence] mask, float[batch,sequence,4] x) => (float[batch,sequence,4] y) {
    q8 = QuantizeLinear(x, s, z)
    q = DequantizeLinear(q8, s, z)
    w_float = DequantizeLinear<axis = 1>(w, w_scale, w_zero)
    product = MatMul(q, w_float)
    linear = Add(bias, product)
    heads = Reshape(linear, split)
    turned = Transpose<perm = [0, 2, 1, 3]>(heads)
    back = Transpose<perm = [0, 2, 1, 3]>(turned)
    merged = Reshape(back, merge)
    residual = Add(merged, x)
    normal = LayerNormalization<axis = 2>(residual, gain, shift)
    out = MatMul(normal, v)
    with_bias = Add(out, bias)
    rectified = Relu(with_bias)
    y = Softmax<axis = 1>(rectified)
}"""


def block() -> onnx.ModelProto:
    return model(BLOCK, s=np.float32(0.05), z=np.uint8(128), w=s8(4, 4), w_scale=scales(4), w_zero=np.zeros(4, np.int8),
                 bias=f32(4), split=np.array([0, 0, 2, 2]), merge=np.array([0, 0, 4]), gain=f32(4), shift=f32(4),
                 v=f32(4, 4))  # fmt: skip


def test_token_wise_work_is_done_on_matrices_with_the_bias_inside() -> None:
    feeds = {"mask": np.ones((2, 5), np.int64), "x": f32(2, 5, 4)}
    result = after(block(), "flatten", "constants", "dead", **feeds)
    graph = ir.from_proto(result)
    infer(graph)
    ranks = {node.op_type: len(dims(node.outputs[0]) or ()) for node in graph.graph}
    assert ranks["Gemm"] == ranks["LayerNormalization"] == 2
    assert ops(result).count("Gemm") == 2
    assert ops(result).count("Concat") == 2 and ops(result).count("Shape") == 1


def test_a_layer_whose_result_is_quantized_and_used_in_float_too_stays_a_multiplication_of_sequences() -> None:
    before = block()
    rectified = next(node for node in before.graph.node if node.output[0] == "rectified")
    made = [("QuantizeLinear", ["with_bias", "s", "z"], "r8"), ("DequantizeLinear", ["r8", "s", "z"], "r")]
    place = list(before.graph.node).index(rectified)
    for offset, (op, inputs, output) in enumerate(made):
        before.graph.node.insert(place + offset, onnx.helper.make_node(op, inputs, [output], name=f"/{output}"))
    rectified.op_type, rectified.input[:] = "Add", ["with_bias", "r"]
    result = after(before, "flatten", "dead", mask=np.ones((2, 5), np.int64), x=f32(2, 5, 4))
    graph = ir.from_proto(result)
    infer(graph)
    assert [len(dims(node.outputs[0]) or ()) for node in graph.graph if node.op_type == "MatMul"] == [3]


REGION = """g (int64[batch,sequence] mask, float[batch,sequence,4] x) => (float[b,t,4] y) {
    out = MatMul(x, w)
    flat = Reshape(out, matrix)
    gemm = Gemm(flat, w)
    back = Reshape(gemm, like)
    y = Softmax<axis = 1>(back)
}"""


def test_a_reshape_to_a_matrix_inside_the_model_is_fed_the_matrix() -> None:
    before = model(REGION, w=f32(4, 4), matrix=np.array([-1, 4]), like=np.array([2, 5, 4]))
    result = after(before, "flatten", "dead", mask=np.ones((2, 5), np.int64), x=f32(2, 5, 4))
    assert "Shape" not in ops(result) and "Concat" not in ops(result)


def test_matrices_serve_one_row_of_one_token_too() -> None:
    after(block(), "flatten", "dead", mask=np.ones((1, 1), np.int64), x=f32(1, 1, 4))


def test_a_layer_for_the_first_token_needs_no_shape_at_run_time() -> None:
    result = after(last_layer(0), "first_token", "flatten", "constants", "dead", x=f32(3, 5, 4))
    queries = next(node for node in result.graph.node if node.name == "/MatMul_2")
    graph = ir.from_proto(result)
    infer(graph)
    shapes = {node.name: dims(node.outputs[0]) for node in graph.graph}
    assert shapes[queries.name] == ("batch", 4)


def test_what_no_output_needs_is_dropped() -> None:
    before = model("g (float[n] x) => (float[n] y) { a = Add(x, w) y = Mul(x, v) }", w=f32(1), v=f32(1))
    result = after(before, "dead", x=f32(3))
    assert ops(result) == ["Mul"] and len(result.graph.initializer) == 1


def test_names_lead_back_to_modules_and_are_unique() -> None:
    before = model(
        "g (float[n,3] x) => (float[n,4] y) { t = MatMul(x, onnx_w) u = Add(t, w2) y = Add(u, w2) }",
        onnx_w=f32(3, 4), w2=f32(4),
    )  # fmt: skip
    for node, name in zip(
        before.graph.node, ("/wrapped/a/dense/MatMul", "/wrapped/a/Add", "/wrapped/a/Add"), strict=True
    ):
        node.name = name
    before.graph.initializer[0].name = before.graph.node[0].input[1] = "onnx::MatMul_12"
    result = after(before, "names", x=f32(2, 3))
    assert [node.name for node in result.graph.node] == ["/a/dense/MatMul", "/a/Add", "/a/Add_1"]
    assert {t.name for t in result.graph.initializer} == {"a.dense.weight", "w2"}
    assert result.graph.node[0].output[0] == "/a/dense/MatMul" and result.graph.output[0].name == "y"


def test_passes_leave_the_model_they_are_given_untouched() -> None:
    before = linear()
    content = before.SerializeToString(deterministic=True)
    passes.apply(before, passes.QUANTIZED_PASSES)
    assert before.SerializeToString(deterministic=True) == content


def test_every_pass_says_what_it_requires_does_and_ensures() -> None:
    for module in passes.PASSES.values():
        assert all(word in (module.__doc__ or "") for word in ("Requires:", "Does:", "Ensures:")), module.__name__


def test_every_pass_changes_nothing_the_second_time() -> None:
    before = last_layer(0)
    for name, module in passes.PASSES.items():
        graph = ir.from_proto(passes.apply(before, ("constants", name)))
        assert module.run(graph) == 0, name


def test_an_unknown_pass_is_named() -> None:
    with pytest.raises(ExportError, match="unknown graph pass 'polish'"):
        passes.apply(linear(), ("polish",))


def test_control_flow_is_refused_by_name() -> None:
    before = model(
        """g (bool c, float[n] x) => (float[n] y) {
            y = If(c) <
                then_branch = one () => (float[n] a) { a = Neg(x) },
                else_branch = two () => (float[n] b) { b = Abs(x) }
            >
        }"""
    )
    with pytest.raises(ExportError, match=r"/If_0 \(If\) holds a graph of its own"):
        passes.apply(before, ("constants",))


CONVOLUTION = """g (float[b,3,6,6] x) => (float[b,h,i,j] y) {
    q = QuantizeLinear(x, x_scale, x_zero)
    x_float = DequantizeLinear(q, x_scale, x_zero)
    w_float = DequantizeLinear<axis = 0>(w, scale, zero)
    c = Conv<pads = [1, 1, 1, 1]>(x_float, w_float, bias)
    %s
}"""


def convolution(body: str, point: np.ndarray, **weights: np.ndarray) -> onnx.ModelProto:
    given = dict(
        w=s8(4, 3, 3, 3), scale=scales(4), zero=np.zeros(4, np.int8), bias=f32(4), x_scale=np.float32(0.02),
        x_zero=np.uint8(120), y_scale=np.float32(0.03), y_zero=point, one=np.float32(1), three=np.float32(3),
        widths=np.array([0, 0, 1, 0, 0, 0, 2, 1]), half=np.float32(0.5), last=np.array([3]),
    )  # fmt: skip
    graph = CONVOLUTION % body
    return model(graph, **{name: array for name, array in (given | weights).items() if name in graph})


@pytest.mark.parametrize("point", [np.uint8(0), np.uint8(3), np.int8(0)], ids=["u8", "shifted", "s8"])
@pytest.mark.parametrize(
    "between",
    ["Relu(c)", "Clip(c, one, three)", "MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c)", "Pad(c, widths)",
     "Pad(c, widths, half)", "ReduceMax(c, last)"],
)  # fmt: skip
def test_a_convolution_is_quantized_before_what_comes_behind_it(between: str, point: np.ndarray) -> None:
    before = convolution(
        f"t = {between} r = Relu(t) p = QuantizeLinear(r, y_scale, y_zero) y = DequantizeLinear(p, y_scale, y_zero)",
        point,
    )
    result = after(before, "early_quantize", "dead", x=2 * f32(2, 3, 6, 6))
    place = ops(result).index("Conv")
    assert ops(result)[place + 1] == "QuantizeLinear" and ops(result)[-1] == "DequantizeLinear"
    assert "Relu" not in ops(result)


@pytest.mark.parametrize(
    ("between", "point", "clips"),
    [
        ("Relu(c)", np.uint8(0), 0),  # the least integer is 0 itself
        ("Relu(c)", np.uint8(3), 1),
        ("Relu(c)", np.int8(0), 1),
        ("Clip(c, one, three)", np.uint8(0), 1),
        ("Clip(c, none, nine)", np.uint8(0), 0),  # 255 steps of 0.03 are less
    ],
)
def test_integers_are_clipped_only_where_their_quantization_does_not_cut_as_much(
    between: str, point: np.ndarray, clips: int
) -> None:
    y = f"t = {between} p = QuantizeLinear(t, y_scale, y_zero) y = DequantizeLinear(p, y_scale, y_zero)"
    before = convolution(y, point, none=np.float32(0), nine=np.float32(9))
    result = after(before, "early_quantize", x=3 * f32(2, 3, 6, 6))
    assert ops(result).count("Clip") == clips


@pytest.mark.parametrize("point", [np.uint8(5), np.int8(0)], ids=["u8", "s8"])
@pytest.mark.parametrize(
    "pool", ["MaxPool<kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]>(r)", "ReduceMax(r, last)"]
)
def test_what_comes_behind_a_quantized_convolution_works_on_its_integers(pool: str, point: np.ndarray) -> None:
    before = convolution(
        f"p = QuantizeLinear(c, y_scale, y_zero) d = DequantizeLinear(p, y_scale, y_zero) r = Relu(d) y = {pool}",
        point,
    )
    result = after(before, "early_quantize", "dead", x=f32(2, 3, 6, 6))
    assert ops(result)[-5:] == ["Conv", "QuantizeLinear", "Clip", re.split("[<(]", pool)[0], "DequantizeLinear"]


@pytest.mark.parametrize(
    "body",
    [
        "t = Relu(c) p = QuantizeLinear(t, y_scale, y_zero) d = DequantizeLinear(p, y_scale, y_zero) y = Add(d, t)",
        "t = Relu(c) p = QuantizeLinear(t, y_scale, y_zero) d = DequantizeLinear(p, y_scale, y_zero) y = Add(d, c)",
        't = Pad<mode = "reflect">(c, widths) p = QuantizeLinear(t, y_scale, y_zero) '
        "y = DequantizeLinear(p, y_scale, y_zero)",
        "t = Relu(c) y = Relu(t)",
        "p = QuantizeLinear(c, y_scale, y_zero) d = DequantizeLinear(p, y_scale, y_zero) y = Clip(d, one, three)",
        "p = QuantizeLinear(c, y_scale, y_zero) d = DequantizeLinear(p, y_scale, y_zero) y = Pad(d, widths, half)",
    ],
    ids=[
        "read in float",
        "convolution read in float",
        "reflected",
        "not quantized",
        "cut between two integers",
        "filled between two integers",
    ],
)
def test_a_convolution_that_is_not_only_quantized_is_left_alone(body: str) -> None:
    before = convolution(body, np.uint8(3))
    assert ops(passes.apply(before, ("constants", "early_quantize"))) == ops(before)


@pytest.mark.parametrize(
    "scale",
    [np.array([1e-3, 1e-3, 2e-3, 1e-3]), np.array([1e-3, 1e-13, 2e-3, 1e-3]), np.array(1e-3), np.array(1e-13)],
    ids=["usual", "a channel of nearly no weights", "one scale", "one scale, nearly no weights"],
)
def test_a_convolutions_bias_is_int32_whatever_the_weights_of_its_channel(scale: np.ndarray) -> None:
    zero = np.zeros(scale.shape, np.int8)
    before = convolution("y = Identity(c)", np.uint8(3), scale=scale.astype(np.float32), zero=zero)
    result = passes.apply(before, ("constants", "gemm_bias", "dead"))
    node = next(n for n in result.graph.node if n.op_type == "Conv")
    made = {n.output[0]: n for n in result.graph.node}
    bias, (step, scale) = made[node.input[2]], (stored(result, made[node.input[i]].input[1]) for i in (0, 1))
    assert stored(result, bias.input[0]).dtype == np.int32
    np.testing.assert_array_equal(stored(result, bias.input[1]), np.asarray(step * scale, np.float32))
    x = f32(2, 3, 6, 6)
    found, wanted = (ReferenceEvaluator(m).run(None, {"x": x})[0] for m in (result, before))
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_a_padding_put_together_of_constants_is_a_constant_or_nothing() -> None:
    before = model(
        """g (float[b,3,4,4] x, int64[8] given) => (float[h,i,j,k] y) {
            shape = ConstantOfShape <value = int64[1] {0}> (four)
            both = Concat<axis = 0>(front, shape)
            widths = Cast<to = 7>(both)
            nothing = Mul(widths, zero)
            z = Pad(x, widths)
            same = Pad(z, nothing)
            y = Pad(same, given)
        }""",
        four=np.array([4]), zero=np.array(0), front=np.array([0, 0, 1, 2]),
    )  # fmt: skip
    result = after(before, "constant_pads", "dead", x=f32(1, 3, 4, 4), given=np.arange(8))
    assert ops(result) == ["Pad", "Pad"]
