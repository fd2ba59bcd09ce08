"""The teacher's backbone as it came: who teaches before the task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from edgekd import assets as asset_cache
from edgekd import spec
from edgekd.models import loading
from edgekd.stages.common import read_data
from edgekd.store import Context, Stage

REVISION = 1


def run(ctx: Context, *, task: spec.Task, teacher: spec.Teacher, assets: Stage, seed: int) -> None:
    """Write ``model/``, a Hugging Face folder: what is fine-tuned elsewhere, untouched, with a head of no use."""
    model, tokenizer = fetched(ctx, teacher, read_data(task, assets).labels, seed)
    loading.save_model(model, tokenizer, ctx.out / "model")


def fetched(ctx: Context, teacher: spec.Teacher, labels: Sequence[str], seed: int) -> tuple[Any, Any]:
    """The model in the teacher's source, with a fresh head where it is to be fine-tuned, and its tokenizer."""
    folder = asset_cache.resolve(teacher.source, also=teacher.files, progress=ctx.progress)
    torch.manual_seed(seed)
    model = loading.load_classifier(
        folder,
        labels,
        finetuned=teacher.finetune is None,
        gguf_file=teacher.gguf_file,
        dropout=teacher.finetune.dropout if teacher.finetune else None,
    )
    tokenizer = loading.load_tokenizer(folder, teacher.gguf_file)
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer
