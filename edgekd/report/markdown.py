"""``report.md``: a pure rendering of a report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edgekd.report import choice, devices, executed, figures, gaps, headline, tensors

Report = Mapping[str, Any]

SAME = {True: "same", False: "**OTHER ANSWERS**"}
STATE = {"valid": "yes", "INVALID": "**INVALID**"}
MET = {True: "met", False: "**FAILED**", None: "undecided"}


def render(report: Report) -> str:
    """The report as Markdown (tables as GitHub's), ending in a newline."""
    parts = [
        *_top(report),
        *_budget(report),
        *measurements(report),
        *_runtimes(report),
        *_devices(report),
        *_isa(report),
        *_sizes(report),
        *_training(report),
        *_vocabulary(report),
        *_made(report),
        *_limits(report),
    ]
    return "\n\n".join(parts) + "\n"


def escape(text: object) -> str:
    """Text as it is, whatever Markdown or HTML it looks like, on one line and fit for a table cell."""
    line = " ".join(str(text).split())
    line = re.sub(r"([\\`*\[\]<|$~]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|&(?=#|\w+;))", r"\\\1", line)
    line = re.sub(r"^([#+>=-])", r"\\\1", line)  # what would open a heading, a list or a quotation
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", line)


def code(text: object) -> str:
    """A code span; a backtick in it becomes an apostrophe."""
    return "`" + " ".join(str(text).split()).replace("`", "'").replace("|", r"\|") + "`"


def table(head: Sequence[str], body: Iterable[Sequence[str]], right: int = 1) -> str:
    """A table whose columns from ``right`` on are aligned to the right; cells are Markdown already."""
    rule = [":--" if i < right else "--:" for i in range(len(head))]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))


def bullets(lines: Iterable[str]) -> str:
    """A list; the lines are Markdown already."""
    return "\n".join(f"- {line}" for line in lines)


def _top(report: Report) -> list[str]:
    device = escape(report["device"]["name"])
    about = f"Run {code(report['run'])} for {device}, edgekd {report['edgekd_version']}, measured {report['created']}."
    first, *rest = (escape(line) for line in report["headline"])
    return [f"# {escape(report['run'])}", bullets([f"**{first}**", *rest]), about]


def _budget(report: Report) -> list[str]:
    if not report["budget"]:
        return []
    body = []
    for line in report["budget"]:
        measured, limit = (figures.amount(line[key], line["unit"]) for key in ("measured", "limit"))
        why = f": {escape(line['why'])}" if line["why"] else ""
        name = headline.BUDGET.get(line["name"], line["name"])
        if devices.stand_in(report) and line["name"] in headline.TIMED:
            measured += f", {figures.PROXY}"
        body.append([escape(name), measured, f"{line['sense']} {limit}", MET[line["met"]] + why])
    return ["## Budget", table(["What", "Measured", "Asked", ""], body)]


def measurements(report: Report) -> list[str]:
    """The section of all rows; ``rows``, the machine's ``cpu`` and, if given, ``training`` (the scheme) are read."""
    precision = figures.precision(report)
    parts = ["## Measurements", _how_measured(report)]
    for where, rows in figures.groups(report["rows"]):
        columns = [f for f in figures.FIGURES if any(figures.value(row, f) is not None for row in rows)]
        several = len({figures.place(row) for row in rows}) > 1
        head = ["Artifact", *(["Runtime"] if several else []), *map(figures.heading, columns), "Valid"]
        body = [
            [
                escape(figures.artifact(row["artifact"], precision)),
                *([escape(figures.place(row))] if several else []),
                *(figures.cell(row, f) + _interval(row, f) for f in columns),
                ", ".join([STATE.get(figures.state(row), figures.state(row)), *figures.caveats(row)]),
            ]
            for row in gaps.merged(rows)
        ]
        parts += [f"### {escape(where)}", table(head, body, right=1 + several)]
        if reasons := gaps.reasons(rows, precision):
            states = {row["why_invalid"]: figures.state(row) for row in rows}
            told = (f"{_reason(why, states[why])} ({escape('; '.join(who))})" for why, who in reasons.items())
            parts.append(bullets(told))
    return parts


def _reason(why: str, state: str) -> str:
    return f"skipped: {code(why.removeprefix('skipped: '))}" if state == "skipped" else f"{state}: {escape(why)}"


def _runtimes(report: Report) -> list[str]:
    body = []
    for one in report["ship"]:
        name = one["artifact"] or "student_qad"
        row = figures.find(report["rows"], name, one) or {"runtime": one["runtime"], "artifact": name}
        measured = bool(row.get("rounds"))
        kinds = executed.executed(report, row) if measured else {}
        done = [f"{len(kinds[kind])} in {kind}" for kind in kinds]
        done += [escape(f"{key} {value}") for key, value in executed.more(report, row) if measured]
        rest = ", ".join(map(code, executed.brief(kinds.get("float", ()))))
        body.append(
            [
                escape(figures.place(one)),
                escape(figures.version(row) or "–"),
                f"**{escape(figures.artifact(name, figures.precision(report)))}**" if one["artifact"] else "nothing",
                ", ".join([escape(one["why"]), *(figures.caveats(row) if measured else ())]),
                "; ".join(done) or ("not told" if measured else "–"),
                rest or "–",
            ]
        )
    head = ["Runtime", "Version", "Ship", "Why", "That file runs", "In float"]
    return ["## What to ship where", choice.RULE, table(head, body, right=len(head))] if body else []


def _interval(row: Report, figure: figures.Figure) -> str:
    span = figures.span(row["speedup_low"], row["speedup_high"]) if figure.key == "speedup_vs_teacher" else ""
    return f" ({span})" if span else ""


def _how_measured(report: Report) -> str:
    return (
        f"On {escape(report['machine']['cpu'])}, one example a call, every artifact in fresh processes, interleaved. "
        "Times are medians over rounds of each round's percentile; a speed-up is over the teacher fp32, if that was "
        "measured, under the same conditions, with its 95% interval; memory is the peak above the loaded runtime; "
        "scores are the test split's, in that runtime; agreement is with the teacher's .onnx in onnxruntime, and *As "
        ".onnx* with the same artifact's there."
    )


def _devices(report: Report) -> list[str]:
    if not report["devices"]:
        return []
    body = [[escape(cell) for cell in devices.row(device)] for device in report["devices"]]
    minutes = [escape(line) for device in report["devices"] if (line := devices.sustained(device))]
    return ["## Devices", table(devices.HEAD, body, 6), *([bullets(minutes)] if minutes else [])]


def _isa(report: Report) -> list[str]:
    if not report["isa"]:
        return []
    body = [[escape(cell) for cell in figures.isa_row(row)] + [SAME[row["same"]]] for row in report["isa"]]
    return ["## Same answers on other instruction sets", figures.ISA_ABOUT, table([*figures.ISA_HEAD, ""], body, 2)]


def _sizes(report: Report) -> list[str]:
    if not report["sizes"]:
        return []
    kinds, body = tensors.kinds(report["sizes"]), []
    for name, by_kind in tensors.by_kind(report["sizes"]).items():
        mib = [figures.number(by_kind.get(kind, 0) / 2**20) for kind in kinds]
        name = figures.artifact(name, figures.precision(report))
        body.append([escape(name), *mib, figures.number(sum(by_kind.values()) / 2**20)])
    parts = ["## Size by kind of tensor (MiB)", table(["Artifact", *kinds, "all"], body)]
    if largest := [[code(name), *map(escape, rest)] for name, *rest in tensors.largest(report["sizes"])]:
        parts.append(table(tensors.HEAD, largest, right=4))
    return parts


def _training(report: Report) -> list[str]:
    body = []
    for name in ("teacher", "distill", "quantize"):
        found = report["training"].get(name)
        if found:
            times = (figures.number(found.get(key)) for key in ("seconds", "step_ms"))
            body.append([name, figures.plain(found.get("epochs")), figures.plain(found.get("steps")), *times])
    parts = ["## Training", table(["Stage", "Epochs", "Steps", "Seconds", "ms a step"], body)]
    quantize = report["training"]["quantize"] or {}
    lines = [f"Teacher {code(report['teacher']['source'])}: {_scores(report['teacher']['scores'])}."]
    for source, scores in figures.beside(report["teacher"]):
        lines.append(f"Taught as well by {code(source)}: {_scores(scores)}.")
    distill = report["training"]["distill"]
    if distill.get("losses"):
        lines.append(f"Losses: {', '.join(map(code, distill['losses']))}; {code(distill['taught'])}.")
    lines.append(f"Student fp32: {_scores(report['student']['scores'])}.")
    if distill.get("exits"):
        lines.append(f"Its exits on validation, by layers passed: {_scores(distill['exits'])}.")
    if quantize.get("scores"):
        lines.append(f"{figures.precision(report)} on validation, in training: {_scores(quantize['scores'])}.")
    if quantize.get("scheme"):
        how = f"Scheme {code(quantize['scheme'])}"
        if quantize.get("block"):
            how += f", 4-bit weights in blocks of {quantize['block']}"
        if quantize.get("calibration"):
            examples = figures.plain(quantize.get("calibration_examples"))
            how += f", calibrated on {examples} examples of {code(quantize['calibration'])}"
            how += f", {escape(quantize.get('method'))} ranges"
        lines.append(f"{how}.")
    if quantize.get("mixed"):
        told = (f"{code(glob)} {escape(scheme)}" for glob, scheme in quantize["mixed"])
        lines.append(f"Apart from it, the first that matches: {', '.join(told)}.")
    if quantize.get("ptq"):
        lines.append(f"Best PTQ on validation: {escape(quantize['ptq'])}.")
    if quantize.get("keep_float"):
        lines.append(f"Kept in float: {', '.join(f'{code(name)}' for name in quantize['keep_float'])}.")
    if quantize.get("qat_step_time_ratio"):
        lines.append(
            f"A step under fake-quantization takes {figures.ratio(quantize['qat_step_time_ratio'])} one in fp32."
        )
    return [*parts, bullets(lines)]


def _scores(scores: Mapping[str, Mapping[str, float]]) -> str:
    return (
        ", ".join(f"{escape(name)} {figures.percent(found.get('score'))}" for name, found in scores.items()) or "none"
    )


def _vocabulary(report: Report) -> list[str]:
    student, teacher = report["student"], report["teacher"]
    vocabulary = student["vocabulary"]
    shape = [f"{student[key]} {key}" for key in ("layers", "hidden", "heads", "ffn") if student.get(key)]
    size = f"vocabulary {vocabulary.get('size', 0):,}" if vocabulary.get("size") else None
    facts = ", ".join(filter(None, [f"{figures.plain(student['parameters'])} parameters", *shape, size]))
    lines = [f"Student: {facts}. Teacher: {figures.plain(teacher['parameters'])} parameters."]
    rates, lengths = vocabulary.get("unknown_rate") or {}, vocabulary.get("tokens_per_document") or {}
    body = [
        [escape(split), figures.percent(rates.get(split)), figures.number(lengths.get(split))]
        for split in report["task"]["counts"]
        if split in rates or split in lengths
    ]
    return [
        "## Student and vocabulary",
        bullets(lines),
        *([table(["Split", "Unknown tokens", "Tokens a document"], body)] if body else []),
    ]


def _made(report: Report) -> list[str]:
    machine, task = report["machine"], report["task"]
    counts = ", ".join(f"{count:,} {escape(split)}" for split, count in task["counts"].items())
    facts = ", ".join(
        f"{key} {escape(machine[key])}" for key in ("cores", "threads", "memory_mib", "os", "python") if key in machine
    )
    versions = ", ".join(f"{escape(name)} {escape(version)}" for name, version in sorted(report["versions"].items()))
    lines = [
        f"Data: {len(task['labels'])} labels; {counts}; fingerprint {code(task['fingerprint'][:16])}.",
        f"Machine: {escape(machine['cpu'])}" + (f" ({facts})." if facts else "."),
        f"Versions: {versions}.",
    ]
    stages = [
        [escape(name), code(info["folder"]), figures.number(info["seconds"])] for name, info in report["stages"].items()
    ]
    return ["## How it was made", bullets(lines), table(["Stage", "Folder", "Seconds"], stages, right=2)]


def _limits(report: Report) -> list[str]:
    return ["## Limits", bullets(escape(line) for line in report["limits"])]
