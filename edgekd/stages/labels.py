"""The teacher's outputs on what students are taught on and on validation, computed once; later stages read them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from edgekd import spec
from edgekd.distill import labels as label_store
from edgekd.distill import record
from edgekd.distill.signal import Signal
from edgekd.distill.taps import LOGITS, VALIDATION, Needs, by_itself, check_heads, inside, store_bytes, stored
from edgekd.errors import TargetError
from edgekd.models.loading import check_family
from edgekd.models.student import skeleton
from edgekd.stages import black_box
from edgekd.stages.common import has_model, load_stage_model, longest, read_data, tokenise_splits
from edgekd.store import Context, Stage, read_json, write_json

REVISION = 4
EXAMPLE = (1, 7)
"""One text of so many tokens: what a model is tried on."""


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
    tokens = tokenise_splits(tokenizer, data, longest(teacher), splits)
    wanted = {"taught": needs, "validation": needs if VALIDATION in taps else LOGITS}
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


def check(target: spec.Target, teacher: Mapping[str, Any] | None) -> None:
    """Raise ``TargetError`` for a model that gives not what the target's losses look at: a student of a configuration
    of its own, or the ``teacher``, if its configuration is known.
    """
    configs: dict[str, Mapping[str, Any] | None] = {"student": target.student.config}
    configs |= {f"assistants[{i}]": assistant.config for i, assistant in enumerate(target.assistants)}
    if target.student.config is None or not by_itself(target.distill.source):
        configs["teacher"] = teacher  # what is cut out of it is like it
    for who, config in configs.items():
        if config is not None:
            check_signals(config, target.distill.all_losses, who)


def check_signals(config: Mapping[str, Any], losses: Sequence[spec.Loss], who: str) -> None:
    """Raise ``TargetError`` where a model of this configuration has not, for every token, what ``losses`` look at.

    Asked before anything is trained: the model is run without any numbers, or on zeros. Of a family that cannot be,
    only the projections of attention are looked for; the rest is found when its labels are made.
    """
    try:
        model = skeleton({**config, "attn_implementation": "eager"}).eval()
    except TargetError:  # whoever builds it says so better
        return
    name = type(model).__name__
    check_family(model.config, who)
    asked = inside(losses, record.shape(model)["layers"])
    if asked != LOGITS and model.config.is_encoder_decoder:
        raise TargetError(
            f"{who}: {name} is an encoder and a decoder, of which neither's states are taken: leave the losses that "
            "look at any out of distill.losses"
        )
    found = _run_empty(model, asked, who)
    if found is None:
        return
    attention = [states for parts in found.attention.values() for states in parts]
    if any(getattr(states, "shape", ())[:2] != EXAMPLE for states in (*found.hidden.values(), *attention)):
        raise TargetError(
            f"{who}: {name} has not one state for every token in every layer: leave the losses that "
            "look at them out of distill.losses"
        )
    if attention and not found.heads:
        raise TargetError(f"{who}: the configuration of {name} gives no number of attention heads")
    for loss in losses:
        for width in {states.shape[-1] for states in attention}:
            check_heads(loss, who, width)


@torch.no_grad()
def _run_empty(model: Any, asked: Needs, who: str) -> Signal | None:
    """What a ``skeleton`` gives of ``asked``: without any numbers, else on zeros; ``None`` where neither can be."""
    for device in ("meta", "cpu"):
        if device == "cpu":  # zeros that nobody writes to take no memory
            model._apply(lambda x: torch.zeros_like(x, device="cpu"))
        ids_BT = torch.ones(EXAMPLE, dtype=torch.long, device=device)
        try:
            return record.record(model, {"input_ids": ids_BT, "attention_mask": ids_BT}, asked)
        except TypeError as error:
            if "unexpected keyword" not in str(error):
                continue
            raise TargetError(
                f"{who}: {type(model).__name__} takes other inputs than tokens and their mask ({error}): take a model "
                "of another family"
            ) from error
        except (RuntimeError, ValueError, IndexError):  # it looks at numbers; on zeros, at more than there is
            continue
    return None
