"""Walk a line of stages: reuse what is finished, resume what is not, on one process or on the ranks of ``torchrun``."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path

from edgekd import store
from edgekd.errors import StoreError, UsageError
from edgekd.progress import Progress, duration
from edgekd.store import Context, Stage

SHARDED = ("labels",)
"""Stages that every rank works on; the others are run by rank 0 while the rest wait."""


@dataclass(frozen=True)
class After:
    """In a graph: the finished stage of this name. An input may be a tuple of these."""

    stage: str


@dataclass(frozen=True)
class Step:
    """A stage with its inputs resolved, so that its key is known; ``name`` is its own in the line.

    A stage that a line has several times is called ``distill_1``, ``distill_2`` and so on before the last, ``distill``;
    those of co-teachers ``teacher_also1`` and so on.
    """

    stage: Stage
    revision: int
    inputs: dict[str, object]
    name: str


def resolve(graph: Mapping[str, Mapping[str, object]], folder: Path, revision: Callable[[str], int]) -> list[Step]:
    """Give every stage of a graph (name -> keyword inputs, in order) its key; ``folder`` is the ``--store`` folder."""
    known: dict[str, Stage] = {}
    steps = []

    def finished(value: object) -> object:
        if isinstance(value, tuple):
            return tuple(finished(part) for part in value)
        return known[value.stage] if isinstance(value, After) else value

    for name, given in graph.items():
        inputs = {name: finished(value) for name, value in given.items()}
        kind = name.partition("_")[0]
        key = store.key(kind, revision(kind), inputs)
        known[name] = Stage(kind, key, store.folder(folder, kind, key))
        steps.append(Step(known[name], revision(kind), inputs, name))
    return steps


def state(step: Step, folder: Path) -> str:
    """What ``walk`` would do with the step: ``"reused"``, ``"resumed"`` or ``"run"``."""
    if store.find(folder, step.stage.name, step.stage.key) is not None:
        return "reused"
    return "resumed" if store.leftovers(folder, step.stage.name, step.stage.key) else "run"


def walk(
    steps: Sequence[Step],
    folder: Path,
    *,
    function: Callable[[str], Callable[..., None]],
    context: Callable[[Path], Context],
    progress: Progress,
) -> dict[str, str]:
    """Make every step finished, in order, and say what was done with each: ``"reused"``, ``"resumed"`` or ``"run"``.

    The result is by the steps' names. ``function`` gives the function of a stage's name, ``context`` the context for
    its folder; neither is called for a stage that is reused. A finished folder is hashed before it is reused, and
    rebuilt if a file of it has changed or if the stages it was made from have come out otherwise since.
    """
    return {step.name: _step(step, folder, function, context, progress) for step in steps}


def _step(
    step: Step,
    folder: Path,
    function: Callable[[str], Callable[..., None]],
    context: Callable[[Path], Context],
    progress: Progress,
) -> str:
    name, key = step.stage.name, step.stage.key
    rank, world = ranks()
    shared = world > 1 and name in SHARDED
    if rank > 0:
        meet()  # rank 0 has finished the stage, or has opened it for everybody
        if shared and store.find(folder, name, key) is None:
            function(name)(context(store.partial_folder(folder, name, key)), **step.inputs)
            meet()  # every rank has done its share
            meet()  # rank 0 has finished it
        if store.find(folder, name, key) is None:
            raise StoreError(f"rank {rank} does not see {step.stage.path}: all ranks must share one --store folder")
        return "reused"
    if _reusable(step, folder, progress):
        progress.log(f"reused   {step.name} {key}")
        meet()
        return "reused"
    try:
        with store.partial(folder, step.stage, step.revision, step.inputs) as out:
            resumed = store.leftovers(folder, name, key)
            progress.log(f"{'resuming' if resumed else 'running '} {step.name} {key}")
            began = time.monotonic()
            if shared:
                meet()
            ctx = context(out)
            function(name)(ctx, **step.inputs)
            if shared:
                meet()
            seconds = time.monotonic() - began  # of this try; that it was not the first is said beside it
            made = {"seconds": round(seconds, 3), "resumed": resumed, "device": ctx.device, "threads": ctx.threads}
            store.finish(folder, step.stage, made=made)
    except Exception as error:
        if store.disk_full(error) and not isinstance(error, StoreError):
            raise store.full_disk_error(error) from error
        raise
    progress.log(f"finished {step.name} {key} in {duration(seconds)}")
    meet()
    return "resumed" if resumed else "run"


def _reusable(step: Step, folder: Path, progress: Progress) -> bool:
    """Whether the stage is finished and can be used; what cannot be, finished or begun, is discarded."""
    name, key = step.stage.name, step.stage.key
    for path in (step.stage.path, store.partial_folder(folder, name, key)):
        if path.exists():
            why = store.problem(path, contents=True)
            if why is None:
                return path == step.stage.path
            progress.log(f"warning: {path.name}: {why}; building it again")
            store.discard(folder, name, key)
    return False


# ------------------------------------------------------------------------------------------------------ torch and ranks


def torch_context(device: str, progress: Progress) -> Callable[[Path], Context]:
    """Makes the context of a stage; its first call, or naming a GPU, chooses the device and makes torch deterministic.

    ``device`` is ``"auto"``, ``"cpu"`` or ``"cuda"``; ``UsageError`` for any other, and for a GPU that torch does not
    see. One seed then gives the same bytes on one CPU with one number of threads.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device is auto, cpu or cuda, not {device!r}")

    @cache
    def prepare() -> tuple[str, int, bool]:
        from edgekd import machine

        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads would fight with those of torch
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: torch sees no GPU here; use --device cpu, or ask `edgekd doctor`")
        chosen = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
        if chosen == "cuda":
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        threads = machine.usable_threads(None)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(True, warn_only=chosen == "cuda")
        torch.backends.cudnn.benchmark = False
        return chosen, threads, chosen == "cuda" or machine.multiplies_bf16()

    if device == "cuda":
        prepare()  # so that a run without a GPU ends here, and not where training begins

    def make(out: Path) -> Context:
        chosen, threads, bf16 = prepare()
        rank, world = ranks()
        return Context(out, chosen, threads, progress, rank, world, bf16)

    return make


def ranks() -> tuple[int, int]:
    """(rank, number of processes), as ``torchrun`` and ``accelerate launch`` set them; (0, 1) without either."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


def meet() -> None:
    """Wait until every rank is here; nothing to wait for in a single process."""
    if ranks()[1] == 1:
        return
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(days=30))  # rank 0 may train for long while the others wait
    dist.barrier()


def conversions_of(folders: Mapping[str, Path]) -> dict[str, Path]:
    """Of the folders of a line's steps, those of its ``convert`` stages, by runtime."""
    split = {name: name.partition("_") for name in folders}
    return {runtime: folders[name] for name, (kind, _, runtime) in split.items() if kind == "convert"}
