"""What becomes of a trained student: its graph, what is timed, and what it may cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

__all__ = ["RUNTIMES", "Bench", "Budget", "Export"]


@dataclass(frozen=True, kw_only=True)
class Export:
    """The ONNX operator set, and how far quantized training and the shipped graph may depart from each other.

    On ``parity_examples`` of validation they agree on a share of ``min_agreement`` at least, and their scores differ by
    ``max_score_gap`` at most, or by what chance explains (Wilson's interval, McNemar's test): fewer examples ask less.
    ``graph`` is another form of the quantized graph, for `edgekd tune` to try and a target to ask for: ``requantized``
    quantizes what linear layers give to one node alone, by ranges that training has not seen; ``sequence`` keeps
    batches as tensors of three dimensions; ``skip_layer_norm`` has onnxruntime's own operator in the place of sums
    that are normalized.
    """

    opset: int = 17
    graph: Literal["plain", "requantized", "sequence", "skip_layer_norm"] = "plain"
    parity_examples: int = 512
    min_agreement: float = 0.995
    max_score_gap: float = 0.003


RUNTIMES = (
    "ort_cpu",
    "ort_mobile",
    "openvino",
    "openvino_bf16",
    "litert",
    "executorch",
    "mnn",
    "ncnn",
    "ort_web",
    "ort_web_chromium",
)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What is timed. A workload is ``real`` (the test split in order) or ``fixedN`` (N tokens)."""

    runtimes: tuple[str, ...] = ("ort_cpu",)
    threads: tuple[int, ...] = (1,)
    workloads: dict[str, tuple[str, ...]] = field(default_factory=lambda: {"ort_cpu": ("real",)})
    rounds: int = 5
    calls: int = 100  # timed calls per round and workload


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What the shipped artifact may cost; ``None``: nothing is asked. Times hold for one thread and real lengths."""

    p50_ms: float | None = None
    p90_ms: float | None = None
    size_mib: float | None = None
    peak_rss_mib: float | None = None
    score_kept: float | None = None  # the least share of the teacher's test score
    speedup: float | None = None  # against the teacher's fp32 ONNX, p50
    shrink: float | None = None  # the teacher's fp32 ONNX bytes over the artifact's
