"""What eight bits do to a convolution in onnxruntime: ranges fixed before (QLinearConv) or found at run time.

    python benchmarks/convolutions.py [--rounds 9] [--calls 200]

One convolution of 28 x 28 positions and 64 channels, batch 1, one thread: 1x1, 3x3, and 3x3 over each channel alone.
Prints the float p50 and, for each way to quantize it, how many times as long it takes, as the median over rounds in
which all take turns. A fixed range makes Conv between integers a QLinearConv; a dynamic one needs ConvInteger, which is
why ``u8s8_dynamic`` refuses convolutions (``edgekd/quant/replace.py``).
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, checker, numpy_helper, parser

from edgekd.bench.statistics import speedup

SHAPES = {"1x1": (1, 1), "3x3": (3, 1), "3x3 of each channel": (3, 64)}  # kernel, groups
CHANNELS, POSITIONS = 64, 28
BODIES = {
    "float": "y = Conv <pads = [{p},{p},{p},{p}], group = {g}> (x, w)",
    "fixed range": """
        q = QuantizeLinear (x, s, z)
        d = DequantizeLinear (q, s, z)
        v = DequantizeLinear (i, t, n)
        c = Conv <pads = [{p},{p},{p},{p}], group = {g}> (d, v)
        r = QuantizeLinear (c, s, z)
        y = DequantizeLinear (r, s, z)""",
    "range found at run time": """
        q, a, b = DynamicQuantizeLinear (x)
        c = ConvInteger <pads = [{p},{p},{p},{p}], group = {g}> (q, i, b, n)
        f = Cast <to = 1> (c)
        u = Mul (a, t)
        y = Mul (f, u)""",
}


def model(body: str, kernel: int, groups: int) -> ModelProto:
    """A graph of one convolution."""
    size = f"1,{CHANNELS},{POSITIONS},{POSITIONS}"
    text = f'<ir_version: 8, opset_import: ["" : 17]> g (float[{size}] x) => (float[{size}] y) {{{body}}}'
    proto = parser.parse_model(text)
    weight = np.random.default_rng(0).normal(size=(CHANNELS, CHANNELS // groups, kernel, kernel)).astype(np.float32)
    scale = np.float32(np.abs(weight).max() / 127)
    known = {
        "w": weight,
        "i": np.round(weight / scale).astype(np.int8),
        "t": scale,
        "n": np.int8(0),
        "s": np.float32(0.1),
        "z": np.uint8(128),
    }
    read = {name for node in proto.graph.node for name in node.input}
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(v), k) for k, v in known.items() if k in read)
    checker.check_model(proto, full_check=True)
    return proto


def main() -> None:
    """Time the three ways and print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--calls", type=int, default=200)
    given = arguments.parse_args()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    x = np.random.default_rng(1).normal(size=(1, CHANNELS, POSITIONS, POSITIONS)).astype(np.float32)
    for shape, (kernel, groups) in SHAPES.items():
        sessions = {}
        for way, body in BODIES.items():
            proto = model(body.format(p=kernel // 2, g=groups), kernel, groups)
            sessions[way] = ort.InferenceSession(proto.SerializeToString(), options, ["CPUExecutionProvider"])
        rounds: dict[str, list[float]] = {way: [] for way in sessions}
        for _ in range(given.rounds):
            for way, session in sessions.items():
                rounds[way].append(p50(session, x, given.calls))
        print(f"{shape}: float {1e3 * np.median(rounds['float']):.3f} ms")
        for way in list(BODIES)[1:]:
            ratio = speedup(rounds[way], rounds["float"])
            print(f"  {way:24} {ratio.value:.2f} times as long ({ratio.low:.2f} to {ratio.high:.2f})")


def p50(session: ort.InferenceSession, x: NDArray[np.float32], calls: int) -> float:
    """Median seconds of a call."""
    times = []
    for _ in range(calls):
        began = time.perf_counter()
        session.run(None, {"x": x})
        times.append(time.perf_counter() - began)
    return float(np.median(times))


if __name__ == "__main__":
    main()
