"""Where a finished run's quantization costs it answers, and what keeping layers in float would cost in its place."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import nn

from edgekd import runner, shape, spec, store
from edgekd.distill.data import tokenise
from edgekd.errors import StoreError
from edgekd.progress import Progress
from edgekd.quant import sensitivity
from edgekd.report import figures
from edgekd.stages.common import load_stage_model, read_data
from edgekd.stages.quantize import prepare
from edgekd.store import Stage, read_json
from edgekd.tasks.sampling import stratified

NAME = "diagnose.json"
SCHEMA = "edgekd.diagnose/1"
BENCH_NOT_RUN = "bench not run"


def diagnose(folder: Path, kind: str, examples: int, progress: Progress) -> dict[str, Any]:
    """Measure the student of the run in ``folder``, write ``diagnose.json`` there, and return what it holds.

    ``kind`` is ``qad`` or ``ptq``; at most ``examples`` of the validation split are drawn by class. Beside what
    ``sensitivity.measure`` finds: ``keep_float`` rows have ``bytes`` and ``ms``, by which file and p50 are predicted to
    grow (``ms`` may be ``None``; ``ms_from`` says where it comes from), and ``line`` is what to write into the target.
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
    prepare(model, quant).load_state_dict(load_file(stages["quantize"].path / f"{kind}.safetensors"))
    found = sensitivity.measure(model, tokens, progress)
    milliseconds, source = _milliseconds(stages, kind)
    for row in found["keep_float"]:
        row["bytes"] = _more_bytes(model.get_submodule(row["layer"]), quant.scheme_of(row["layer"]), quant.block)
        row["ms"] = milliseconds and milliseconds.get(row["layer"], 0.0)
    result = {
        "schema": SCHEMA,
        "run": folder.name,
        "student": stages["quantize"].path.name,
        "kind": kind,
        "scheme": quant.scheme,
        "examples": len(tokens),
        **found,
        "ms_from": source,
        "line": _line((*quant.keep_float, *(row["layer"] for row in found["keep_float"]))),
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


def _more_bytes(module: nn.Module, scheme: str, block: int) -> int:
    """How many more bytes the weight takes in float32."""
    weight: Any = module.weight
    kind, rows = "embedding" if isinstance(module, nn.Embedding) else "linear", len(weight)
    columns = weight.numel() // rows
    return 4 * int(weight.numel()) - sum(shape.weight_bytes(kind, rows, columns, scheme, block))


def _milliseconds(stages: Mapping[str, Stage], kind: str) -> tuple[dict[str, float] | None, str]:
    """Layer -> the time that it would lose in float, and where that is from.

    The quantized student's p50 below the fp32 one's, told over the layers by their share of the multiply-accumulates
    that are quantized. What only moves numbers, such as an embedding, gets none of it.
    """
    name = f"student_{kind}"
    try:
        rows = read_json(stages["bench"].path / "rows.json")
        counted = read_json(stages["export"].path / "audit.json")[name]["multiplications"]
    except (KeyError, OSError, ValueError):
        return None, BENCH_NOT_RUN
    pairs = [(row, figures.find(rows, "student_fp32", row)) for row in rows if row["artifact"] == name]
    timed = [(mine, its) for mine, its in pairs if its is not None and mine["p50_ms"] and its["p50_ms"]]
    if not timed:
        return None, BENCH_NOT_RUN
    mine, its = timed[0]
    macs: dict[str, int] = {}
    for row in counted:
        if row.get("kind", "int8" if row["int8"] else "float") != "float":
            layer = row["node"].rpartition(".")[0]
            macs[layer] = macs.get(layer, 0) + row["macs"]
    gain, total = its["p50_ms"] - mine["p50_ms"], sum(macs.values())
    sure = "" if mine["valid"] and its["valid"] else "; INVALID there"
    source = f"predicted, from the run's own bench ({figures.where(mine)}{sure})"
    return {layer: gain * count / total for layer, count in macs.items() if total}, source


def _line(patterns: tuple[str, ...]) -> str:
    names = ", ".join(f'"{name}"' for name in patterns)
    return f"keep_float=({names}{',' if len(patterns) == 1 else ''})"
