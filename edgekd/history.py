"""How long a stage will take, from what earlier stages in the same store took: seconds per unit of work, scaled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd import sizes, store
from edgekd.runner import Step

Facts = Mapping[str, Any]
"""The inputs of a stage and of all before it, in canonical form; ``counts``: examples per split; ``device``."""

ALIKE: dict[str, tuple[str, ...]] = {
    "assets": ("task",),
    "teacher": ("task", "teacher_source", "trained", "device"),
    "transfer": ("task",),
    "augment": ("task", "teacher_source"),
    "backbone": ("teacher_source",),
    "labels": ("task", "teacher_source", "taps", "device"),
    "distill": ("task", "student", "teacher_source", "device"),
    "quantize": ("task", "student", "device"),
    "export": ("task", "student", "teacher_source"),
    "bench": ("task", "student", "machine"),
}
"""What two stages must have in common for the time of one to say something about the other."""

DATA = ("assets", "transfer", "augment")
"""The stages that write a data set."""

WORK: dict[str, Callable[[Facts], float]] = {
    "teacher": lambda f: _epochs(f["teacher"]["finetune"]) * f["counts"]["train"] + f["counts"]["test"],
    "labels": lambda f: sizes.taught(f["counts"]) + f["counts"]["validation"],
    "distill": lambda f: _epochs(f["distill"]) * sizes.taught(f["counts"]),
    "quantize": lambda f: _epochs(f["quant"]) * sizes.taught(f["counts"]) + f["counts"]["validation"],
    "bench": lambda f: f["bench"]["rounds"] * f["bench"]["calls"] * _sessions(f["bench"]),
}
"""The work in a stage, in any unit of its own; a stage that is not here takes the same time whatever its epochs."""


class History:
    """What the finished stages in ``folder`` say about those of ``line``."""

    def __init__(self, folder: Path, line: Sequence[Step], device: str = "cpu") -> None:
        self._line = {step.stage.path.name: step for step in line}
        self._device = device
        self._folder = folder / "store"
        self._manifests: dict[str, dict[str, Any]] = {}
        for path in sorted(self._folder.glob("[!.]*/manifest.json"), key=lambda path: path.stat().st_mtime):
            try:
                self._manifests[path.parent.name] = dict(store.read_json(path))
            except (OSError, ValueError, TypeError):
                continue  # damaged: `run` says so where it matters

    def counts(self, assets: Step) -> dict[str, int] | None:
        """Examples per split, if that stage, which writes a data set, is finished."""
        return self._counts(assets.stage.path.name)

    def estimate(self, step: Step) -> float | None:
        """Seconds the step will take, by the latest finished stage that is alike; ``None`` without one."""
        name = step.stage.name
        mine = self._facts(name, store.canonical(step.inputs)) | {"device": self._device}
        work = WORK.get(name, _constant)
        for folder in reversed(self._manifests):
            if folder.startswith(f"{name}-"):
                manifest = self._manifests[folder]
                try:
                    its = self._facts(name, manifest["inputs"]) | {"device": manifest["device"]}
                    if not manifest["resumed"] and all(mine.get(k) == its.get(k) for k in ALIKE.get(name, ())):
                        return float(manifest["seconds"] * work(mine) / work(its))
                except (KeyError, TypeError, ZeroDivisionError):
                    continue  # of an older version, or the data it was made from are gone: it teaches nothing
        return None

    def _facts(self, name: str, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The inputs of a stage, over those of all that it was made from."""
        facts: dict[str, Any] = {}
        for upstream, value in sorted(inputs.items(), key=lambda item: item[0] == "assets"):  # its own data count
            if upstream in ALIKE and isinstance(value, str):  # the key of a stage, not a value of the target
                facts |= self._upstream(upstream, value)
        facts |= {k: v for k, v in inputs.items() if not (k in ALIKE and isinstance(v, str))}
        if isinstance(facts.get("teacher"), Mapping):
            facts["teacher_source"] = facts["teacher"]["source"]
            facts["trained"] = (facts["teacher"].get("finetune") or {}).get("train")
        return facts

    def _upstream(self, name: str, key: str) -> dict[str, Any]:
        if name == "assets":  # or what stands for it
            name = next((kind for kind in DATA if self._known(f"{kind}-{key}")), name)
        step = self._line.get(f"{name}-{key}")
        facts: dict[str, Any] = {}
        if step is not None:
            facts = self._facts(name, store.canonical(step.inputs))
        elif f"{name}-{key}" in self._manifests:
            facts = self._facts(name, self._manifests[f"{name}-{key}"]["inputs"])
        if name in ("assets", "transfer"):
            facts["counts"] = self._counts(f"{name}-{key}") or self._counts_of_alike(name, facts)
        elif name == "augment" and facts.get("counts"):
            facts["counts"] = sizes.augmented(facts["counts"], facts["augment"]["copies"])
        return facts

    def _known(self, folder: str) -> bool:
        return folder in self._line or folder in self._manifests

    def _counts(self, folder: str) -> dict[str, int] | None:
        if folder not in self._manifests:
            return None
        try:
            counts: dict[str, int] = store.read_json(self._folder / folder / "dataset.json")["counts"]
        except (OSError, ValueError, KeyError):
            return None
        return counts

    def _counts_of_alike(self, name: str, facts: Facts) -> dict[str, int] | None:
        """The same data, split with another seed, have the same counts."""
        for folder, manifest in self._manifests.items():
            if folder.startswith(f"{name}-") and manifest["inputs"]["task"] == facts.get("task"):
                return self._counts(folder)
        return None


def _constant(facts: Facts) -> float:
    return 1.0


def _epochs(training: Mapping[str, Any] | None) -> float:
    return float(training["epochs"]) if training else 0.0


def _sessions(bench: Mapping[str, Any]) -> int:
    return len(bench["threads"]) * sum(len(bench["workloads"].get(runtime, ())) for runtime in bench["runtimes"])
