"""Every contender as an ONNX folder: teacher, what users pick today, fp32 student, PTQ control, and the product."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from edgekd import spec
from edgekd.distill.data import Tokens, text_read, tokenise
from edgekd.onnxio import (
    audit,
    branches,
    dynamic,
    files,
    layout,
    parity,
    rewrite,
    sizes,
)
from edgekd.onnxio import export as exporter
from edgekd.onnxio.signature import signature
from edgekd.quant.calibrate import calibration_rows
from edgekd.stages.common import has_model, load_stage_model, longest, read_data, tokenise_splits
from edgekd.stages.quantize import prepare
from edgekd.store import MANIFEST, Context, Stage, read_json, write_json
from edgekd.tasks.sampling import stratified

REVISION = 8
STUDENTS = ("student_ptq", "student_qad")
PARITY_BATCH = 16


def run(
    ctx: Context,
    *,
    task: spec.Task,
    quant: spec.Quant,
    export: spec.Export,
    assets: Stage,
    teacher: Stage,
    distill: Stage,
    quantize: Stage,
) -> None:
    """Write ``<artifact>/model.onnx`` with its folder, ``inputs/*.npz``; audit, parity, sizes and signature as JSON,
    and how much of its teacher's text the student reads.

    Raises ``ExportError`` where a quantized graph holds a float leftover or answers otherwise than it was trained to.
    """
    data = read_data(task, assets)
    teachers = ("teacher_fp32", "teacher_ort_dynamic") if has_model(teacher) else ()
    graphs = (*teachers, "student_fp32", *STUDENTS)
    audits: dict[str, Any] = {}
    parities: dict[str, Any] = {}
    with ctx.progress.bar("export", total=len(graphs), unit="graph") as advance:
        read = _teachers(ctx, export, teacher, data) if teachers else None
        advance(len(teachers))
        model, tokenizer = load_stage_model(distill, data.labels, "eager")
        tokens = tokenise_splits(tokenizer, data, task.max_length, ("validation", "test"))
        write_inputs(ctx.out / "inputs" / "student.npz", tokens["test"])
        write_json(ctx.out / "read.json", {"text_read": None if read is None else text_read(tokens["test"], read)})
        exporter.export_float(model.eval(), _place(ctx, "student_fp32", distill, data), opset=export.opset)
        advance(1)
        prepare(model, quant)
        calibration_ids = read_json(quantize.path / MANIFEST)["inputs"]["calibration_ids"]
        calibration = calibration_tokens(tokenizer, data, task, calibration_ids)
        for name in STUDENTS:
            model.load_state_dict(load_file(quantize.path / f"{name.removeprefix('student_')}.safetensors"))
            path = _place(ctx, name, distill, data)
            rewrite.write(model.eval(), path, export, quant)
            feeds, truth = _parity_feeds(model, tokens["validation"], export)
            limits = {"min_agreement": export.min_agreement, "max_score_gap": export.max_score_gap}
            parities[name] = parity.gate(model, path, feeds, truth, **limits)
            for what, before, added in rewrite.steps(path, export, quant, calibration):
                after = files.read(path)
                parities[name][what] = parity.gate_graphs(before, after, added, feeds, truth, what=what, **limits)
            audits[name] = audit.audit(path, quant.floats)
            advance(1)
    audited = audits["student_qad"]
    share = audited["quantized_mac_share"]
    counts = ", ".join(f"{audited[kind]} multiplications in {kind}" for kind in audit.KINDS[:2] if audited[kind])
    ctx.progress.log(
        f"export: {counts}, {audited['float']} in float as asked"
        + (f"; {share:.1%} of the multiply-accumulates at 64 tokens are quantized" if share is not None else "")
    )
    write_json(ctx.out / "audit.json", audits)
    write_json(ctx.out / "parity.json", parities)
    write_json(ctx.out / "sizes.json", {name: sizes.table(ctx.out / name / "model.onnx") for name in graphs})
    write_json(ctx.out / "signature.json", signature(ctx.out / "student_qad" / "model.onnx"))


def _teachers(ctx: Context, export: spec.Export, teacher: Stage, data: Any) -> Tokens:
    """The teacher's graph, and the one that users make of it today; returns the test split as it reads it."""
    model, tokenizer = load_stage_model(teacher, data.labels, "eager")
    model.config.pad_token_id = tokenizer.pad_token_id
    test = tokenise_splits(tokenizer, data, longest(teacher), ("test",))["test"]
    write_inputs(ctx.out / "inputs" / "teacher.npz", test)
    written = exporter.export_float(model.eval(), _place(ctx, "teacher_fp32", teacher, data), opset=export.opset)
    if (node := branches.left(written)) is not None:
        ctx.progress.log(f"export: the teacher's graph branches on data at {node}: left as traced, without passes")
    dynamic.quantize_dynamic(ctx.out / "teacher_fp32" / "model.onnx", _place(ctx, "teacher_ort_dynamic", teacher, data))
    return test


def _place(ctx: Context, name: str, source: Stage, data: Any) -> Path:
    layout.write(ctx.out / name, source.path / "model", data.labels)
    return ctx.out / name / "model.onnx"


def write_inputs(path: Path, tokens: Tokens) -> None:
    """A split as token ids, so that the timed process needs neither tokenizer nor torch."""
    path.parent.mkdir(exist_ok=True)
    np.savez(path, ids=tokens.ids.astype(np.int64), offsets=tokens.offsets, labels=tokens.labels)


def calibration_tokens(tokenizer: Any, data: Any, task: spec.Task, ids: Sequence[str]) -> Tokens:
    """The calibration examples, in the order of their list."""
    rows = calibration_rows(tuple(ids), data.train.ids, everything=task.limit is None)
    texts, labels = [data.train.texts[row] for row in rows], data.train.labels[rows]
    return tokenise(tokenizer.backend_tokenizer, texts, labels, task.max_length, tokenizer.pad_token_id)


def _parity_feeds(model: Any, tokens: Tokens, export: spec.Export) -> tuple[list[dict[str, Any]], Any]:
    """Validation examples, drawn by class, in batches of similar length, as the graph takes them; and their labels."""
    rows = stratified(tokens.labels, export.parity_examples, 0)
    rows = rows[np.argsort(tokens.lengths[rows], kind="stable")]
    names = exporter.accepted_inputs(model)
    feeds = [tokens.feed(rows[i : i + PARITY_BATCH], names) for i in range(0, len(rows), PARITY_BATCH)]
    return feeds, tokens.labels[rows]
