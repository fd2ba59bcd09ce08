"""Which patterns of QuantizeLinear and DequantizeLinear onnxruntime turns into integer kernels on this CPU.

    python benchmarks/fusion.py

Each is a graph of one or two products, given to onnxruntime, which says what it made of it. One line each: the pattern,
the operators left, and whether a product stayed in float.
"""

from __future__ import annotations

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper, parser

Q = "q = QuantizeLinear (x, s, z)\n d = DequantizeLinear (q, s, z)\n"
WEIGHT = "v = DequantizeLinear <axis = 1> (w, t, n)\n"
PRODUCT = f"{WEIGHT} y = MatMul (d, v)"
BIASED = f"{WEIGHT} m = MatMul (d, v)\n y = Add (m, b)"
SECOND = "u = DequantizeLinear <axis = 1> (w2, t, n)\n"
DYNAMIC, STATIC, FLAT = "float[b, s, 32] x", "float[1, 8, 32] x", "float[b, 32] x"
PATTERNS: dict[str, tuple[str, str, type, str]] = {
    "unsigned": (DYNAMIC, Q + PRODUCT, np.uint8, "y"),
    "unsigned, weights transposed behind their DequantizeLinear": (
        DYNAMIC,
        f"{Q} v = DequantizeLinear <axis = 0> (wt, t, n)\n p = Transpose <perm = [1, 0]> (v)\n y = MatMul (d, p)",
        np.uint8, "y",
    ),
    "unsigned, float bias, three dimensions": (DYNAMIC, Q + BIASED, np.uint8, "y"),
    "unsigned, float bias, three known dimensions": (STATIC, Q + BIASED, np.uint8, "y"),
    "unsigned, float bias, two dimensions": (FLAT, Q + BIASED, np.uint8, "y"),
    "range found at run time": (
        DYNAMIC, f"q, a, c = DynamicQuantizeLinear (x)\n d = DequantizeLinear (q, a, c)\n {PRODUCT}", np.uint8, "y",
    ),
    "signed": (DYNAMIC, Q + PRODUCT, np.int8, "y"),
    "signed, one QuantizeLinear, a DequantizeLinear for each of two": (
        DYNAMIC, f"{Q} e = DequantizeLinear (q, s, z)\n {PRODUCT}\n {SECOND} k = MatMul (e, u)", np.int8, "y, k",
    ),
    "signed, one DequantizeLinear that two read": (
        DYNAMIC, f"{Q} {PRODUCT}\n {SECOND} k = MatMul (d, u)", np.int8, "y, k",
    ),
}  # fmt: skip


def operators(shape: str, body: str, kind: type, outputs: str) -> Counter[str]:
    """What onnxruntime runs in the place of a graph."""
    results = ", ".join(f"float[] {name.strip()}" for name in outputs.split(","))
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> g ({shape}) => ({results}) {{{body}}}')
    for output in proto.graph.output:
        output.type.tensor_type.ClearField("shape")
    weight = np.random.default_rng(0).integers(-127, 127, (32, 16)).astype(np.int8)
    known = {
        "w": weight, "w2": weight.copy(), "wt": weight.T.copy(), "t": np.full(16, 0.01, np.float32),
        "n": np.zeros(16, np.int8), "s": np.float32(0.02), "z": kind(0), "b": np.ones(16, np.float32),
    }  # fmt: skip
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in known.items() if k in read)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    with tempfile.TemporaryDirectory() as folder:
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
        return Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)


def main() -> None:
    """Print what becomes of each."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    for name, pattern in PATTERNS.items():
        found = operators(*pattern)
        said = "stays in float" if found["MatMul"] + found["Gemm"] else "is in integers"
        print(f"{name}: {said}: {', '.join(f'{op} x{n}' if n > 1 else op for op, n in sorted(found.items()))}")


if __name__ == "__main__":
    main()
