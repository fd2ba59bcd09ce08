"""Post-training quantization beyond ranges: channels evened out, weights rounded with their inputs in mind, biases
put right.

Each technique changes a prepared, calibrated model in place and asks of calibration examples only what ``moments``
finds; no label is read. The module structure and the names in the state dict stay as they are, so the result is saved,
loaded and exported like any other. A weight's scale is its largest magnitude over the largest integer, worked out anew
at every call: so where weights are rounded the largest are held, and the others move on the grid that they span.

Convolutions get ranges and biases put right. Their weights are rounded to nearest: GPTQ would need the second moments
of whole patches, (channels x height x width of the kernel) squared numbers for each group, and has nothing to make up
with in the few weights of a depthwise one. Nor are their channels evened out: batch norms, folded into them, have left
scales for each output channel, which the weights' own scales take up.

GPTQ's solver is Brevitas'. Its ``bias_correction_mode`` takes the rounded weights for the float ones, counts padding
and gives layers biases that had none; its activation equalization needs a traced graph or puts multiplications before
layers; its learned rounding (``brevitas_examples``) puts parameters into the state dict, freezes every other, and comes
with accelerate and a training loop of its own: ours is ``rounding``.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
from brevitas.graph.calibrate import quantization_status_manager
from brevitas.graph.gptq import GPTQ
from brevitas.nn import QuantConv2d, QuantLinear
from torch import Tensor, nn

from edgekd.quant import weight_scales
from edgekd.quant.calibrate import Batch, watch
from edgekd.quant.moments import Moments, observed_linears

Pairs = list[tuple[str, list[str]]]
FLOAT16 = 2**-10
TINY = 1e-5  # as small as a channel is taken to be when its scale is chosen


@torch.no_grad()
def equalize(model: Any, observed: dict[str, Moments], found: Pairs, alpha: float = 0.5) -> None:
    """Even out the channels that linears read, moving scales from what writes them into the weights (SmoothQuant, Xiao
    et al. 2022): channel j is divided by ``max|x_j| ** alpha / max|W_j| ** (1 - alpha)``.

    ``found`` is what ``pairs`` gives; there the model's float answers stay as they are. Ranges must then be set anew.
    """
    inputs = {name: given for name, _, given in observed_linears(model, observed)}
    for source, sinks in found:
        given = next((inputs[name] for name in sinks if name in inputs), None)
        if given is not None:
            weight_C = torch.stack([model.get_submodule(name).weight.abs().amax(0) for name in sinks]).amax(0)
            scale_C = given.largest_C.clamp_min(TINY) ** alpha / weight_C.clamp_min(TINY) ** (1 - alpha)
            _move(model, source, sinks, scale_C)
            for name in (source, *sinks):
                if isinstance(module := model.get_submodule(name), QuantLinear):
                    weight_scales.start(module)


@torch.no_grad()
def pairs(model: Any, example: dict[str, Tensor]) -> Pairs:
    """The modules that write channels, each with the linears that read them and alone depend on their scale.

    Candidates are norms (before attention and FFN, where no residual reads them too) and linears (a value projection,
    which attention averages). Each is tried in float: what it writes is multiplied by powers of two and its readers'
    weights are divided by them, which is exact; it is such a module if the logits stay the same to the bit.
    """
    calls: list[tuple[str, Tensor]] = []  # keeps the inputs alive, so their ids are unique
    modules = {name: module for name, module in model.named_modules() if _width(module)}
    handles = [
        module.register_forward_pre_hook(lambda m, args, name=name: calls.append((name, args[0])))
        for name, module in modules.items()
    ]
    found: Pairs = []
    training = model.training
    model.eval()
    with quantization_status_manager(model, disable_act_quant=True, disable_weight_quant=True):
        expected = model(**example).logits
        for handle in handles:
            handle.remove()
        linears: dict[int, list[str]] = {}
        for name, x in calls:
            if isinstance(modules[name], nn.Linear) and name not in linears.setdefault(id(x), []):
                linears[id(x)].append(name)
        candidates: list[str] = []  # what was called since the last tensor that linears read
        for name, x in calls:
            if isinstance(modules[name], nn.Linear) and (sinks := linears.pop(id(x), [])):
                for source in reversed(candidates):
                    pair, fits = (source, sinks), _width(modules[source]) == x.shape[-1]
                    if fits and pair not in found and _scale_moves(model, *pair, example, expected):
                        found.append(pair)
                        break
                candidates = []
            candidates.append(name)
    model.train(training)
    return found


def _scale_moves(model: Any, source: str, sinks: list[str], example: dict[str, Tensor], expected: Tensor) -> bool:
    width, device = _width(model.get_submodule(source)), expected.device
    factor_C = 0.5 ** (1 + torch.arange(width, device=device) % 3)
    _move(model, source, sinks, factor_C)
    same = torch.equal(model(**example).logits, expected)
    _move(model, source, sinks, 1 / factor_C)
    return same


def _width(module: nn.Module) -> int:
    """How many channels a linear or a norm writes; 0 for any other module."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear) or ("Norm" in type(module).__name__ and getattr(weight, "ndim", 0) == 1):
        return len(cast(Tensor, weight))
    return 0


@torch.no_grad()
def _move(model: nn.Module, source: str, sinks: list[str], scale_C: Tensor) -> None:
    """Divide the channels that ``source`` writes by ``scale_C``, and multiply the weights of its readers by it."""
    writer: Any = model.get_submodule(source)
    writer.weight /= scale_C.view(-1, *[1] * (writer.weight.ndim - 1))
    if getattr(writer, "bias", None) is not None:
        writer.bias /= scale_C
    for name in sinks:
        reader: Any = model.get_submodule(name)
        reader.weight *= scale_C


@torch.no_grad()
def unrounded(model: nn.Module, plain: nn.Module, found: Pairs) -> dict[str, dict[str, Tensor]]:
    """The weight and bias of each quantized linear of ``model`` before it was rounded and its bias corrected.

    ``plain`` is the same student as it was prepared, in float; ``found`` are the pairs equalized since, as ``pairs``
    gives them. How far is seen in what each source writes by now: exactly in a norm, in a linear by the largest weight
    of each row, which ``gptq`` holds (in 4-bit blocks as near as float16 has a scale; with one scale for all rows, to
    half a step). ``plain`` is moved by as much, in place, and its float answers stay as they are in any case.
    """
    for source, sinks in found:
        before: Any = plain.get_submodule(source)
        if isinstance(before, QuantLinear):
            weight_scales.start(before)
        now_C, before_C = _largest(model.get_submodule(source)), _largest(before)
        _move(plain, source, sinks, torch.where((now_C > 0) & (before_C > 0), before_C / now_C, 1.0))
    return {
        name: {part: tensor.detach() for part, tensor in module.named_parameters(recurse=False)}
        for name, module in plain.named_modules()
        if isinstance(module, QuantLinear)
    }


def _largest(writer: Any) -> Tensor:
    """The largest magnitude of each channel's weights; a norm's bias counts too, and a learned scale knows better."""
    if not isinstance(writer, nn.Linear):
        parts = [part.abs() for part in (writer.weight, getattr(writer, "bias", None)) if part is not None]
        return torch.stack(parts).amax(0)
    if isinstance(writer, QuantLinear):
        learned = getattr(writer.weight_quant.tensor_quant.scaling_impl, "value", None)
        if learned is not None and learned.numel() > 1:
            return cast(Tensor, learned.detach().abs().flatten())
    return cast(Tensor, writer.weight.abs().amax(1))


class Grid(NamedTuple):
    """A weight's quantization: ``step_RC`` between neighbouring values, integers from ``-limit`` to ``limit``, and
    ``held_RC``: those of the weights that stay at either end, 0 for all others.
    """

    step_RC: Tensor
    held_RC: Tensor
    limit: int


@torch.no_grad()
def grid(layer: Any) -> Grid:
    """The grid on which the weight of a quantized linear is rounded now."""
    value, scale, _, bits = layer.weight_quant.tensor_quant(layer.weight)
    step_RC = scale.expand_as(value).flatten(1)[:, : layer.weight.shape[1]].clone()
    limit = 2 ** (int(bits) - 1) - 1
    exact_RC = layer.weight / step_RC
    held_RC = exact_RC.abs() >= limit * (1 - FLOAT16)  # as near as a block's scale is stored
    return Grid(step_RC, torch.where(held_RC, exact_RC.sign() * limit, 0), limit)


def float_weights(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the quantized linears' weights before they are rounded, by module."""
    return {n: m.weight.detach().clone() for n, m in model.named_modules() if isinstance(m, QuantLinear)}


@torch.no_grad()
def correct_bias(model: nn.Module, observed: dict[str, Moments], weights: dict[str, Tensor]) -> None:
    """Shift biases so that each linear's mean output is that of ``weights`` on unquantized input (Nagel et al. 2019).

    Linears without a bias stay without one.
    """
    for name, layer, given in observed_linears(model, observed):
        if layer.bias is not None:
            wanted = weights[name] @ given.mean_C
            layer.bias += wanted - layer.weight_quant(layer.weight) @ given.quantized_mean_C


@torch.no_grad()
def correct_convolutions(model: nn.Module, batches: Sequence[Batch]) -> None:
    """The same for convolutions, over all positions of ``batches``, the zeros around the borders included."""
    lost: dict[str, Tensor] = {}
    seen: Counter[str] = Counter()

    def see(name: str) -> Any:
        def compare(conv: Any, args: Any, _: Any) -> None:
            exact = conv._conv_forward(args[0], conv.weight, None)
            found = conv._conv_forward(conv.input_quant(args[0]), conv.weight_quant(conv.weight), None)
            lost[name] = lost.get(name, 0) + (exact - found).mean((2, 3)).sum(0)
            seen[name] += len(exact)

        return compare

    convolutions = {n: m for n, m in model.named_modules() if isinstance(m, QuantConv2d) and m.bias is not None}
    if not convolutions:
        return
    handles = [module.register_forward_hook(see(name)) for name, module in convolutions.items()]
    try:
        watch(model, {}, batches, lambda *_: None)
    finally:
        for handle in handles:
            handle.remove()
    for name, sum_C in lost.items():
        convolutions[name].bias += sum_C / seen[name]


@torch.no_grad()
def gptq(model: nn.Module, observed: dict[str, Moments]) -> None:
    """Round each linear's weight column by column, the later ones making up for the error so far (Frantar et al. 2022).

    Columns go from the input with the largest second moment down. All layers are solved from one look at their inputs.
    """
    for name, layer, given in observed_linears(model, observed):
        solver = _OnGrid(layer, name, True, 1, False, num_blocks=math.ceil(layer.in_features / 128))
        solver.grid = grid(layer)
        solver.H = given.second_CC.cpu().unsqueeze(0).clone()
        solver.single_layer_update()


class _OnGrid(GPTQ):  # type: ignore[misc]
    """Brevitas' solver on a grid that stays as it was when it began."""

    grid: Grid

    def get_quant_weights(self, i: int, i1: int, permutation_list: list[Tensor], *_: Any) -> Tensor:
        column = permutation_list[0][i1 + i]
        step_R, held_R = self.grid.step_RC[:, column], self.grid.held_RC[:, column]
        integers_R = (self.layer.weight[:, column] / step_R).round().clamp(-self.grid.limit, self.grid.limit)
        return (torch.where(held_R != 0, held_R, integers_R) * step_R).unsqueeze(0)
