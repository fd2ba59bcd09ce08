"""Where a finished run's quantization costs it answers, and what more bits for the worst layers would cost instead."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file
from torch import Tensor, nn

from edgekd import runner, shape, spec, store
from edgekd.distill.data import tokenise
from edgekd.errors import StoreError
from edgekd.onnxio import products
from edgekd.progress import Progress
from edgekd.quant import ptq, sensitivity
from edgekd.quant.calibrate import calibrate
from edgekd.report import figures
from edgekd.stages.common import load_stage_model, read_data
from edgekd.stages.export import calibration_tokens
from edgekd.stages.quantize import example, prepare
from edgekd.store import Stage, read_json
from edgekd.tasks.sampling import stratified

NAME = "diagnose.json"
SCHEMA = "edgekd.diagnose/1"
EIGHT: tuple[spec.Scheme, ...] = ("u8s8_dynamic", "u8s7_static")
"""What is tried for 4-bit layers before float: what needs no calibration, where the device has it."""
BENCH_NOT_RUN = "bench not run"


def diagnose(folder: Path, kind: str, examples: int, progress: Progress) -> dict[str, Any]:
    """Measure the student of the run in ``folder``, write ``diagnose.json`` there, and return what it holds.

    ``kind`` is ``qad`` or ``ptq``; at most ``examples`` of the validation split are drawn by class. Beside what
    ``sensitivity.measure`` finds: ``keep_float`` and ``mixed`` rows have ``bytes`` and ``ms``, by which file and p50
    are predicted to grow (``ms`` may be ``None``; ``ms_from`` says where it comes from), and ``line`` is what to write
    into the target. ``mixed`` rows are of 4-bit layers; ``mixed_line`` is what to write for them, or ``None``.
    ``products`` is what ``onnxio.products.measure`` finds in the exported file, ``None`` where no product is in int8 or
    nothing was exported. They are proposed where all together move the answers by a tenth of what the layers do.

    "Float" are the weights of the distill stage where none were trained since: in ``ptq``, and in a ``qad`` that is the
    PTQ. Trained ones are another student's, which differs by more than rounding: there it is the same weights with
    quantizers off.
    Raises ``StoreError`` for a run without a quantized student, or one that cannot be read.
    """
    stages = _stages(folder)
    inputs = read_json(stages["quantize"].path / store.MANIFEST)["inputs"]
    try:
        task, quant = _restored(inputs["task"]), _restored(inputs["quant"])
    except (AttributeError, TypeError) as error:
        raise StoreError(f"another version of edgekd made {folder} ({error}); run its target again") from error
    runner.torch_context("cpu", progress)(folder)
    data = read_data(task, stages["assets"])
    model, tokenizer = load_stage_model(stages["distill"], data.labels)
    part = data.validation.take(stratified(data.validation.labels, examples, 0))
    tokens = tokenise(tokenizer.backend_tokenizer, part.texts, part.labels, task.max_length, tokenizer.pad_token_id)
    spare = copy.deepcopy(model)
    prepare(model, quant)
    plain = copy.deepcopy(model)
    model.load_state_dict(load_file(stages["quantize"].path / f"{kind}.safetensors"))
    floats = _floats(stages["quantize"], kind, model, plain)
    device, stand_in = _device(folder)
    eight = next(scheme for scheme in EIGHT if scheme in device.schemes)
    finer = _finer(model, spare, quant, floats, eight)
    if finer and eight.endswith("_static"):
        seen = calibration_tokens(tokenizer, data, task, inputs["calibration_ids"])
        calibrate(spare, quant, seen, np.arange(len(seen)), progress)
    found = sensitivity.measure(model, tokens, progress, floats, finer)
    for row in (*found["keep_float"], *found["mixed"]):
        layer, scheme = model.get_submodule(row["layer"]), quant.scheme_of(row["layer"])
        row["bytes"] = _more_bytes(layer, scheme, quant.block, row["scheme"])
    file = stages["export"].path / f"student_{kind}" / "model.onnx" if "export" in stages else None
    own = products.measure(file, tokens, progress) if file is not None and file.exists() else None
    proposed = own["keep_float"] if own else []
    if own and own["kl"] < sensitivity.WORTH * found["kl"]:
        proposed.clear()
    for row in proposed:
        row["bytes"] = 0
    milliseconds, source = _milliseconds(stages, kind)
    for row in (*found["keep_float"], *found["mixed"], *proposed):
        times = milliseconds.get("float" if row["scheme"] == "float" else "int8")
        row["ms"] = times and times.get(row["layer"], 0.0)
    result = {
        "schema": SCHEMA,
        "run": folder.name,
        "student": stages["quantize"].path.name,
        "kind": kind,
        "untrained": kind == "qad" and not _trained(stages["quantize"]),
        "scheme": quant.scheme,
        "examples": len(tokens),
        **found,
        "products": own,
        "ms_from": f"{source}, {figures.PROXY}" if stand_in and milliseconds else source,
        "line": _line((*quant.keep_float, *(row["layer"] for row in (*found["keep_float"], *proposed)))),
        "mixed_line": _mixed_line(quant.mixed, {row["layer"]: row["scheme"] for row in found["mixed"]}),
    }
    store.write_json(folder / NAME, result)
    return result


def _stages(folder: Path) -> dict[str, Stage]:
    """The finished stages of a run, by name."""
    try:
        names = read_json(folder / "stages.json")
        if "quantize" not in names:
            raise StoreError(f"{folder} ends with {list(names)[-1]}: nothing is quantized yet; `edgekd run` goes on")
        paths = {name: folder.parent / "store" / names[name] for name in names}
    except (OSError, ValueError, TypeError, IndexError) as error:
        raise StoreError(f"{folder} has no readable stages.json ({error}); run its target again") from error
    for name in ("assets", "distill", "quantize"):
        if why := store.problem(paths[name], contents=False):
            raise StoreError(f"{paths[name]} cannot be used: {why}; run its target again")
    return {name: Stage(name, path.name.rpartition("-")[2], path) for name, path in paths.items()}


def _restored(value: Any) -> Any:
    """What ``store.canonical`` made plain data of, as the dataclass that it was; what it does not name is default."""
    if isinstance(value, list):
        return tuple(map(_restored, value))
    if not isinstance(value, dict):
        return value
    fields = {name: _restored(item) for name, item in value.items() if name != "type"}
    if "type" not in value:
        return fields
    kind: Any = getattr(spec, value["type"])
    ordered = {field.name for field in dataclasses.fields(kind) if field.metadata.get("ordered")}
    return kind(**{name: dict(item) if name in ordered else item for name, item in fields.items()})


def _trained(stage: Stage) -> bool:
    """Whether the shipped student is one that training under quantization made, and not the best PTQ."""
    return bool(read_json(stage.path / "scores.json")["training"]["best"]["step"] > 0)


def _floats(stage: Stage, kind: str, model: Any, plain: Any) -> dict[str, dict[str, Tensor]]:
    """A quantized student's float weights by layer, of ``plain``, the fp32 one; none where its own were trained."""
    if kind == "qad" and _trained(stage):
        return {}
    tried = stage.path / "ptq.json"  # not in runs of before there was more to try than ranges
    best = [found["techniques"] for found in (read_json(tried) if tried.exists() else ()) if found["best"]]
    equalized = any("equalization" in techniques for techniques in best)
    return ptq.unrounded(model, plain, ptq.pairs(plain, example(plain)) if equalized else [])


def _device(folder: Path) -> tuple[spec.Device, bool]:
    """The device of a run, and whether its times are a stand-in's, as its report says. Without one, any is taken to be
    meant; the target refuses what is not.
    """
    try:
        given = read_json(folder / "report.json")["device"]
        return spec.Device(name=given["name"], isa=given["isa"], features=tuple(given["features"])), bool(
            given["missing"]
        )
    except (KeyError, OSError, ValueError):
        return spec.X86_VNNI, False


def _finer(
    model: Any, spare: Any, quant: spec.Quant, floats: Mapping[str, Any], eight: spec.Scheme
) -> dict[str, tuple[str, nn.Module]]:
    """The 4-bit layers of a 4-bit run under ``eight``, made of ``spare``, the float student, with the model's weights.

    None where the run has signed activations, which do not go with it. Static ranges are still to be set.
    """
    if quant.scheme != "w4_block" or "s8s8_static" in quant.schemes:
        return {}
    prepare(spare, dataclasses.replace(quant, scheme=eight, mixed={})).eval()
    weights = {f"{layer}.{part}": tensor for layer, parts in floats.items() for part, tensor in parts.items()}
    spare.load_state_dict({**model.state_dict(), **weights}, strict=False)
    layers = [name for name in sensitivity.quantized_layers(model) if quant.scheme_of(name) == "w4_block"]
    return {name: (eight, spare.get_submodule(name)) for name in layers}


def _more_bytes(module: nn.Module, scheme: str, block: int, other: str = "float") -> int:
    """How many more bytes the weight takes under another scheme."""
    weight: Any = module.weight
    kind, rows = "embedding" if isinstance(module, nn.Embedding) else "linear", len(weight)
    columns = weight.numel() // rows
    now, then = (sum(shape.weight_bytes(kind, rows, columns, name, block)) for name in (scheme, other))
    return then - now


def _milliseconds(stages: Mapping[str, Stage], kind: str) -> tuple[dict[str, dict[str, float]], str]:
    """``float`` and ``int8`` -> layer or product -> the time that it would lose so; and where that is from.

    The quantized student's p50 below the fp32 one's, told over the layers by their share of the multiply-accumulates
    that are quantized. What only moves numbers, such as an embedding, gets none of it. Nobody has timed the student in
    eight bits: it is taken to be as much faster than in fp32 as onnxruntime's dynamic quantization makes the teacher.
    """
    name = f"student_{kind}"
    try:
        rows = read_json(stages["bench"].path / "rows.json")
        counted = read_json(stages["export"].path / "audit.json")[name]["multiplications"]
    except (KeyError, OSError, ValueError):
        return {}, BENCH_NOT_RUN
    pairs = [(row, figures.find(rows, "student_fp32", row)) for row in rows if row["artifact"] == name]
    timed = [(mine, its) for mine, its in pairs if its is not None and mine["p50_ms"] and its["p50_ms"]]
    if not timed:
        return {}, BENCH_NOT_RUN
    mine, its = timed[0]
    macs: dict[str, int] = {}
    total = 0
    for row in counted:
        if row.get("kind", "int8" if row["int8"] else "float") != "float":
            for path in (row["node"], row["node"].rpartition(".")[0]):
                macs[path] = macs.get(path, 0) + row["macs"]
            total += row["macs"]
    teachers = [figures.find(rows, teacher, mine) for teacher in ("teacher_ort_dynamic", "teacher_fp32")]
    dynamic, plain = (row["p50_ms"] if row else None for row in teachers)
    used = [mine, its, *(row for row in teachers if row and dynamic and plain)]
    others = {"float": its["p50_ms"]} | ({"int8": its["p50_ms"] * dynamic / plain} if dynamic and plain else {})
    sure = "" if all(row["valid"] for row in used) else "; INVALID there"
    source = f"predicted, from the run's own bench ({figures.where(mine)}{sure})"
    shares = {name: count / total for name, count in macs.items() if total}
    gains = {scheme: p50 - mine["p50_ms"] for scheme, p50 in others.items()}
    return {scheme: {name: gain * share for name, share in shares.items()} for scheme, gain in gains.items()}, source


def _line(patterns: tuple[str, ...]) -> str:
    names = ", ".join(f'"{name}"' for name in patterns)
    return f"keep_float=({names}{',' if len(patterns) == 1 else ''})"


def _mixed_line(mixed: Mapping[str, str], more: Mapping[str, str]) -> str | None:
    """``mixed`` with the schemes of more layers before its own: the first glob that matches decides.

    ``None`` where it would be all float, which is ``keep_float``'s line. A static scheme needs a list to calibrate on.
    """
    table = {**more, **{glob: scheme for glob, scheme in mixed.items() if glob not in more}}
    return f"mixed={json.dumps(table)}" if {*EIGHT} & {*more.values()} else None
