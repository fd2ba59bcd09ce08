"""The teacher's outputs on what students are taught on and on validation, computed once; later stages read them."""

from __future__ import annotations

import torch

from edgekd import spec
from edgekd.distill import labels as label_store
from edgekd.distill.taps import hidden_layers
from edgekd.stages.common import load_stage_model, read_data, tokenise_splits
from edgekd.store import Context, Stage, write_json

REVISION = 2


def run(ctx: Context, *, task: spec.Task, taps: tuple[str, ...], assets: Stage, teacher: Stage) -> None:
    """Write the label store (``edgekd.distill.labels``) and its ``index.json``; work is shared between ranks."""
    data = read_data(task, assets)
    model, tokenizer = load_stage_model(teacher, data.labels)
    config = model.config
    layers = hidden_layers(taps, int(config.num_hidden_layers))
    device = torch.device(ctx.device)
    model.to(device)
    tokens = tokenise_splits(tokenizer, data, task.max_length, ("taught", "validation"))
    size = sum(
        label_store.estimate_bytes(len(t), len(t.ids), len(data.labels), len(layers), int(config.hidden_size))
        for t in tokens.values()
    )
    if ctx.rank == 0:
        ctx.progress.log(f"labels: {size / 2**20:.1f} MiB on disk ({', '.join(taps)})")
    for split, part in tokens.items():
        label_store.compute(
            ctx.out,
            split,
            part,
            model,
            layers if split == "taught" else (),
            device,
            ctx.progress,
            ctx.rank,
            ctx.world_size,
            ctx.bf16,
        )
    if ctx.rank == 0:
        index = {
            "taps": list(taps),
            "layers": list(layers),
            "teacher_layers": int(config.num_hidden_layers),
            "teacher_hidden": int(config.hidden_size),
            "bytes": size,
        }
        write_json(ctx.out / "index.json", index)
