"""The teacher's outputs on what students are taught on and on validation, computed once; later stages read them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgekd import spec
from edgekd.distill import labels as label_store
from edgekd.distill import record
from edgekd.distill.taps import LOGITS, store_bytes, stored
from edgekd.stages import black_box
from edgekd.stages.common import has_model, load_stage_model, read_data, tokenise_splits
from edgekd.store import Context, Stage, read_json, write_json

REVISION = 3


def run(
    ctx: Context, *, task: spec.Task, taps: tuple[str, ...], assets: Stage, teacher: Stage | tuple[Stage, ...]
) -> None:
    """Write the label store (``edgekd.distill.labels``) and its ``index.json``; work is shared between ranks.

    Of several teachers the best answers; the index then says from which folder (``by``), and the ``scores`` of all.
    """
    data = read_data(task, assets)
    chosen: dict[str, object] = {}
    if isinstance(teacher, tuple):
        teacher, scores = best(teacher)
        chosen = {"by": teacher.path.name, "scores": scores}
    if not has_model(teacher):
        return black_box.label(ctx, teacher, taps, len(data.labels), chosen)
    model, tokenizer = load_stage_model(teacher, data.labels)
    shape = record.shape(model) | {"classes": len(data.labels)}
    needs = stored(taps, shape["layers"], shape["classes"])
    device = torch.device(ctx.device)
    model.to(device)
    splits = ("taught", "validation") if taps else ("validation",)
    tokens = tokenise_splits(tokenizer, data, task.max_length, splits)
    wanted = {"taught": needs, "validation": LOGITS}
    size = sum(
        store_bytes(wanted[name], len(t), len(t.ids), len(data.labels), shape["hidden"]) for name, t in tokens.items()
    )
    if ctx.rank == 0:
        ctx.progress.log(f"labels: {size / 2**20:.1f} MiB on disk ({', '.join(taps) or 'validation only'})")
    for split, part in tokens.items():
        label_store.compute(
            ctx.out,
            split,
            part,
            model,
            wanted[split],
            device,
            ctx.progress,
            ctx.rank,
            ctx.world_size,
            ctx.bf16,
        )
    if ctx.rank == 0:
        index = {"taps": list(taps), "teacher": shape, "bytes": size}
        write_json(ctx.out / "index.json", index | chosen)


def best(teachers: Sequence[Stage]) -> tuple[Stage, dict[str, float]]:
    """The stage whose model scores best on validation, the latest of equals; and the scores by the folders' names."""
    scores = {stage.path.name: read_json(stage.path / "scores.json")["validation"]["score"] for stage in teachers}
    return max(reversed(teachers), key=lambda stage: scores[stage.path.name]), scores
