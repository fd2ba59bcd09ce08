"""Does a bundle answer on another instruction set as it does here?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import deploy, machine, session, ship
from edgekd.bundle import MODEL, read_manifest
from edgekd.errors import BundleError
from edgekd.isa import cpus
from edgekd.progress import Progress
from edgekd.tasks.sampling import stratified

Logits = NDArray[np.float32]


def verify(
    bundle: Path, isa: str, examples: int, progress: Progress, install: bool = False
) -> Iterator[dict[str, Any]]:
    """Run the bundle on ``examples`` of the test split (drawn by class) on every CPU of ``isa``, a row for each.

    ``install`` fetches what is missing first, where edgekd can (``cpus.require``).

    Here means this process, on this machine's CPU. A row: ``isa``, ``cpu``, ``emulator`` (null: the machine itself) and
    its ``emulator_version``, ``onnxruntime``, ``examples``, ``same_labels``, ``score``, ``max_logit_difference``,
    ``same``; and of the run here ``native_cpu``, ``native_isa``, ``native_score``. Raises ``MissingDependencyError``
    where it cannot be run, ``BenchError`` where the run fails, and as ``ship.rescore`` does.
    """
    cpus.require(isa, install=install)
    manifest = read_manifest(bundle)
    dataset = ship.dataset(manifest)
    drawn = stratified(np.asarray(dataset.test.labels), examples, manifest["data"]["seed"])
    texts = [dataset.test.texts[row] for row in drawn]
    classify = deploy.load(bundle, threads=1)
    unknown = sorted({dataset.labels[label] for label in dataset.test.labels} - set(classify.labels))
    if unknown:
        raise BundleError(f"{bundle} does not know the label {unknown[0]!r} of its data; run the target again")
    right = np.array([classify.labels.index(dataset.labels[dataset.test.labels[row]]) for row in drawn])
    here, feeds = classify.logits(texts), [classify.feeds([text]) for text in texts]
    for cpu in cpus.ISAS[isa]:
        version = cpus.emulator_version(cpu.emulator)
        where = f"{cpu.model}, emulated by {cpu.emulator} {version}" if cpu.emulator else "this CPU"
        progress.log(f"verify: {len(texts)} examples on {where}")
        there, runtime = cpus.logits(cpu, bundle / MODEL, feeds, session.chosen(manifest))
        row: dict[str, Any] = {"isa": isa, "cpu": cpu.model or machine.cpu_model()}
        row |= {"emulator": cpu.emulator or None, "emulator_version": version or None, "onnxruntime": runtime}
        native = {"native_cpu": machine.cpu_model(), "native_isa": machine.instruction_set()}
        yield row | native | compare(there, here, right)


def compare(there: Logits, here: Logits, right: NDArray[np.int64]) -> dict[str, Any]:
    """How two runs of the same examples differ; logits (N, classes), the right labels (N,).

    ``same`` allows as many other labels as ``ship.rescore`` allows of score: rounding differs between CPUs.
    """
    labels = there.argmax(axis=1), here.argmax(axis=1)
    furthest = float(np.abs(there.astype(np.float64) - here).max())
    count, agree = len(right), int((labels[0] == labels[1]).sum())
    return {
        "examples": count,
        "same_labels": agree,
        "score": float((labels[0] == right).mean()),
        "native_score": float((labels[1] == right).mean()),
        "max_logit_difference": furthest if np.isfinite(furthest) else None,
        "same": bool(np.isfinite(furthest)) and count - agree <= max(1, ship.SCORE_TOLERANCE * count),
    }
