"""Control flow in exported graphs: what goes when, what stays, and what becomes of a baseline that keeps it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from edgekd.errors import ExportError
from edgekd.onnxio import branches, dynamic, export
from edgekd.onnxio.audit import session
from edgekd.onnxio.files import read


def model(graph: str, **weights: Any) -> onnx.ModelProto:
    parsed = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 19]> {graph}')
    parsed.graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(w), name) for name, w in weights.items())
    for number, node in enumerate(parsed.graph.node):
        node.name = f"/{node.op_type}_{number}"
    onnx.checker.check_model(parsed, full_check=True)
    return parsed


LENGTHS = """g (int64[batch,sequence] input_ids) => (float[n,m] y) {{
    x = Cast<to = 1>(input_ids)
    shape = Shape(input_ids)
    length = Gather(shape, place)
    condition = {condition}
    first = If(condition) <
        then_branch = a () => (float[n,m] out) {{
            inner = Equal(length, length)
            out = If(inner) <
                then_branch = c () => (float[n,m] t) {{ t = Neg(x) }},
                else_branch = d () => (float[n,m] u) {{ u = Exp(x) }}
            >
        }},
        else_branch = b () => (float[n,m] out) {{ out = Abs(x) }}
    >
    y = If(condition) <
        then_branch = e () => (float[n,m] out) {{ half = Constant<value_float = 0.5>() out = Mul(first, half) }},
        else_branch = f () => (float[n,m] out) {{ out = Identity(first) }}
    >
}}"""
IDS = np.arange(1, 11).reshape(2, 5)


def lengths(condition: str) -> onnx.ModelProto:
    return model(LENGTHS.format(condition=condition), place=np.int64(1), limit=np.int64(1), never=np.int64(1000))


def test_what_always_goes_one_way_becomes_plain_nodes_with_the_same_answers() -> None:
    before = lengths("Equal(length, length)")
    after = branches.inline(before)
    onnx.checker.check_model(after, full_check=True)
    assert branches.left(after) is None and {"Neg", "Mul"} <= {node.op_type for node in after.graph.node}
    assert [value.name for value in after.graph.output] == ["y"]
    for given in (before, after):
        np.testing.assert_array_equal(ReferenceEvaluator(given).run(None, {"input_ids": IDS})[0], -IDS / 2)


@pytest.mark.parametrize("condition", ["Greater(length, limit)", "Less(input_ids, never)"], ids=["length", "content"])
def test_what_differs_between_lengths_or_asks_for_the_content_stays(condition: str) -> None:
    if "input_ids" in condition:  # all the ids that are tried answer alike, and yet another one may not
        condition = "Less(largest, never)"
        graph = LENGTHS.replace("condition = ", "largest = ReduceMax<keepdims = 0>(input_ids)\n    condition = ")
        before = model(graph.format(condition=condition), place=np.int64(1), never=np.int64(1000))
    else:
        before = lengths(condition)
    after = branches.inline(before)
    assert branches.left(after) == branches.left(before) and str(branches.left(before)).endswith("(If)")


def test_a_graph_without_control_flow_is_returned_as_it_is() -> None:
    before = model("g (int64[b,s] input_ids) => (int64[b,s] y) { y = Neg(input_ids) }")
    assert branches.inline(before) is before and branches.left(before) is None


@torch.jit.script
def _moody(ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    if int(ids.max()) > 50:
        return logits * 2.0
    return logits


class Moody(torch.nn.Module):
    """A classifier that computes something else where a large id occurs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.linear = torch.nn.Embedding(99, 32), torch.nn.Linear(32, 4)

    def forward(self, input_ids: torch.Tensor) -> Any:
        return SimpleNamespace(logits=_moody(input_ids, self.linear(self.table(input_ids).mean(1))))


def test_a_baseline_that_branches_on_data_is_exported_as_traced_and_quantized_dynamically(tmp_path: Path) -> None:
    net = Moody().eval()
    written = export.export_float(net, tmp_path / "model.onnx", opset=17)
    dynamic.quantize_dynamic(tmp_path / "model.onnx", tmp_path / "dynamic.onnx")
    assert str(branches.left(written)).endswith("(If)")
    for ids in (np.array([[1, 2, 3]]), np.array([[1, 98, 3, 4]])):
        expected = net(torch.from_numpy(ids)).logits.detach().numpy()
        exact, rough = (session(read(tmp_path / name)).run(None, {"input_ids": ids})[0]
                        for name in ("model.onnx", "dynamic.onnx"))  # fmt: skip
        np.testing.assert_allclose(exact, expected, atol=1e-5)
        np.testing.assert_allclose(rough, expected, atol=0.05 * np.abs(expected).max())


def test_an_int8_student_that_branches_on_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"\(If\) holds a graph of its own: models that branch"):
        export.export_quantized(Moody().eval(), tmp_path / "model.onnx", opset=17)
    assert not list(tmp_path.iterdir())
