"""Cut a student out of a BERT-shaped teacher: fewer layers, heads, neurons, channels, tokens and positions.

What stays is what the teacher uses most on training examples. Heads and neurons are ranked by their mean absolute
activation (activation-based structured pruning: Muralidharan et al. 2024). The hidden width is cut either to the most
active channels, likewise, or to the principal directions of the hidden states (a rotation first, as in SliceGPT:
Ashkboos et al. 2024). One table says which axis of which parameter is which; the rest is indexing and one product.
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgekd import shape, spec
from edgekd.distill.data import Tokens, by_length
from edgekd.models.loading import set_dropout
from edgekd.progress import Progress

# name pattern -> which of the student's index sets each axis of the parameter is cut by ("": kept whole)
AXES: dict[str, tuple[str, ...]] = {
    "*embeddings.word_embeddings.weight": ("tokens", "hidden"),
    "*embeddings.position_embeddings.weight": ("positions", "hidden"),
    "*embeddings.token_type_embeddings.weight": ("types", "hidden"),
    "*LayerNorm.*": ("hidden",),
    "*attention.self.*.weight": ("heads", "hidden"),
    "*attention.self.*.bias": ("heads",),
    "*attention.output.dense.weight": ("hidden", "heads"),
    "*attention.output.dense.bias": ("hidden",),
    "*intermediate.dense.weight": ("ffn", "hidden"),
    "*intermediate.dense.bias": ("ffn",),
    "*layer.*.output.dense.weight": ("hidden", "ffn"),
    "*layer.*.output.dense.bias": ("hidden",),
    "*pooler.dense.weight": ("hidden", "hidden"),
    "*pooler.dense.bias": ("hidden",),
    "classifier.dense.weight": ("hidden", "hidden"),
    "classifier.dense.bias": ("hidden",),
    "classifier.out_proj.weight": ("", "hidden"),
    "classifier.out_proj.bias": ("",),
    "classifier.weight": ("", "hidden"),
    "classifier.bias": ("",),
}


def student_config(teacher: Any, student: spec.Student, positions: int, vocabulary: int) -> tuple[Any, tuple[int, ...]]:
    """The student's configuration and the teacher layers it keeps; ``TargetError`` as ``shape.check_cut`` raises."""
    shape.check_cut(student, vars(teacher) | {"model_type": teacher.model_type}, positions)
    config = copy.deepcopy(teacher)
    layers = _layers(student.layers, teacher.num_hidden_layers)
    config.num_hidden_layers = len(layers)
    for name, field in shape.WIDTHS.items():
        if (value := getattr(student, field)) is not None:
            setattr(config, name, value)
    if teacher.model_type == "electra":
        config.embedding_size = config.hidden_size
    config.vocab_size = vocabulary
    if getattr(config, "type_vocab_size", 0):
        config.type_vocab_size = 1  # one text: all its tokens are of the first type
    config.max_position_embeddings = positions + shape.position_offset(teacher.model_type, teacher.pad_token_id)
    set_dropout(config, student.dropout)
    return config, layers


def _layers(wanted: int | tuple[int, ...] | None, available: int) -> tuple[int, ...]:
    """``n`` layers spread evenly, the last one always among them; or the ones named."""
    if wanted is None:
        return tuple(range(available))
    if isinstance(wanted, int):
        return tuple(round((i + 1) * available / wanted) - 1 for i in range(wanted))
    return wanted


@torch.inference_mode()
def importance(model: Any, tokens: Tokens, progress: Progress | None = None) -> dict[str, Tensor]:
    """Mean |activation| over ``tokens``: ``hidden`` (H,), and per layer ``heads.i`` (heads, width) of
    the attention output before its projection, ``ffn.i`` (F,) of the neurons after their non-linearity. Beside them
    ``covariance`` (H, H), the second moment of the hidden states of all layers, float64.
    """
    body = getattr(model, model.base_model_prefix)
    sums: dict[str, Tensor] = {}
    mask: Tensor = torch.empty(0)

    def watch(name: str, given: Tensor) -> None:
        value = given.abs()[mask].sum(0, dtype=torch.float64)
        sums[name] = sums.get(name, torch.zeros_like(value)) + value

    def states(out: Tensor) -> None:
        watch("hidden", out)
        x_NH = out[mask].double()
        sums["covariance"] = sums.get("covariance", 0) + x_NH.T @ x_NH

    hooks = [body.embeddings.register_forward_hook(lambda m, a, out: states(out))]
    for i, layer in enumerate(body.encoder.layer):
        hooks += [
            layer.attention.output.dense.register_forward_pre_hook(lambda m, a, i=i: watch(f"heads.{i}", a[0])),
            layer.output.dense.register_forward_pre_hook(lambda m, a, i=i: watch(f"ffn.{i}", a[0])),
            layer.register_forward_hook(lambda m, a, out: states(out[0] if isinstance(out, tuple) else out)),
        ]
    device = next(model.parameters()).device
    model.eval()
    try:
        with (progress or Progress(quiet=True)).bar(
            "building the student", total=len(tokens), unit="example"
        ) as advance:
            for rows in by_length(tokens, 32):
                ids, valid, _ = tokens.gather(rows)
                mask = torch.from_numpy(valid).to(device)
                model(input_ids=torch.from_numpy(ids).to(device), attention_mask=mask.long())
                advance(len(rows))
    finally:
        for hook in hooks:
            hook.remove()
    width = model.config.hidden_size // model.config.num_attention_heads
    return {k: (v.reshape(-1, width) if k.startswith("heads") else v).cpu() for k, v in sums.items()}


def cut(
    teacher: Any,
    config: Any,
    layers: Sequence[int],
    old_ids: Sequence[int] | None,
    scores: dict[str, Tensor],
    principal: bool = False,
) -> Any:
    """A model of ``config`` holding the teacher's tensors at the kept layers, heads, neurons, channels and tokens.

    ``principal`` keeps the principal directions of the hidden states in place of the most active channels.
    """
    old = teacher.config
    student = type(teacher)(config)
    basis_HK = _basis(scores, config.hidden_size, principal)
    kept: dict[str, Tensor] = {
        "tokens": torch.tensor(old_ids) if old_ids is not None else torch.arange(config.vocab_size),
        "positions": torch.arange(config.max_position_embeddings),
        "types": torch.arange(getattr(config, "type_vocab_size", 0)),
    }
    head_width = config.hidden_size // config.num_attention_heads
    state = {name: tensor.cpu() for name, tensor in teacher.state_dict().items()}
    new: dict[str, Tensor] = {}
    for name in student.state_dict():
        source, layer = name, None
        if ".layer." in name:
            prefix, rest = name.split(".layer.", 1)
            number, rest = rest.split(".", 1)
            layer = layers[int(number)]
            source = f"{prefix}.layer.{layer}.{rest}"
            heads = _top(scores[f"heads.{layer}"].sum(1), config.num_attention_heads)
            kept["heads"] = _head_index(scores[f"heads.{layer}"], heads, head_width)
            kept["ffn"] = _top(scores[f"ffn.{layer}"], config.intermediate_size)
        tensor = state[source]
        for axis, what in enumerate(_axes(name, tensor)):
            if what == "hidden":  # a norm's weight scales each direction by the mean of the channels it mixes
                basis = basis_HK.square() if name.endswith("LayerNorm.weight") else basis_HK
                tensor = torch.movedim(torch.movedim(tensor, axis, -1) @ basis, -1, axis)
            elif what:
                tensor = tensor.index_select(axis, kept[what])
        new[name] = tensor.clone()
    student.load_state_dict(new)
    student.config.id2label, student.config.label2id = old.id2label, old.label2id
    return student


def _axes(name: str, tensor: Tensor) -> tuple[str, ...]:
    for pattern, axes in AXES.items():
        if fnmatch.fnmatch(name, pattern):
            return axes
    return ("",) * tensor.ndim


def _basis(scores: dict[str, Tensor], width: int, principal: bool) -> Tensor:
    """(H, K) with orthonormal columns: the kept channels, or the leading eigenvectors with a reproducible sign."""
    if not principal:
        return torch.eye(len(scores["hidden"]))[:, _top(scores["hidden"], width)]
    vectors = torch.linalg.eigh(scores["covariance"]).eigenvectors.flip(1)[:, :width]
    largest = vectors.gather(0, vectors.abs().argmax(0, keepdim=True))
    basis: Tensor = (vectors * largest.sign()).float()
    return basis


def _top(score: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` highest scores, in their old order."""
    return torch.sort(torch.argsort(score, descending=True, stable=True)[:count]).values


def _head_index(score: Tensor, heads: Tensor, width: int) -> Tensor:
    """Flat rows of the kept heads, each cut to its ``width`` most active channels."""
    return torch.cat([head * score.shape[1] + _top(score[head], width) for head in heads.tolist()])
