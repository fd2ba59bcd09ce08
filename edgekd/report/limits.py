"""What a report's figures do not say."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from edgekd import session
from edgekd.bundle import verified
from edgekd.report import executed, figures, headline
from edgekd.spec.blackbox import FORBIDDEN

MUCH_READ = 0.98
"""Of what the teacher reads; a student that reads less might gain by reading on."""


def limits(report: Mapping[str, Any]) -> list[str]:
    """The caveats of a report that is complete but for them, in the order of their weight."""
    found = [headline.SMOKE] if report["smoke"] else []
    cpu = report["machine"]["cpu"]
    said = proxy(report["machine"], report["device"])
    found.append(said or f"Times and memory are those of {cpu}; another machine has others.")
    found += [*_rows(report["rows"]), *_threads(report["rows"], report["device"].get("threads", ()))]
    found += [
        f"Rows on {device['name']} were timed by {device['by']}, by its own rules: it watches no neighbours, keeps no "
        "samples and scores nothing."
        for device in report["devices"]
        if device["imported"]
    ]
    found += [
        f"host-proxy: {device['name']} lacks {', '.join(device['missing'])} of {report['device']['name']}."
        for device in report["devices"]
        if device["missing"]
    ]
    found += [
        f"{device['name']} held its clock back while it measured: let it cool, or give it a fan."
        for device in report["devices"]
        if device["throttled"]
    ]
    found += executed.lost(report)
    found += downloads(report["rows"], figures.precision(report))
    if report["session"]:
        found.append(
            "The shipped student was measured in onnxruntime, and is deployed, with session options that `edgekd tune` "
            f"chose: {session.text(report['session'])}. A session without them has other times; the rest has none."
        )
    found += [
        f"Its answers differ on another instruction set: {verified(row)}. Do not ship it to such CPUs."
        for row in report["isa"]
        if not row["same"]
    ]
    test = report["task"]["counts"].get("test")
    if test:
        found.append(f"The test split has {test:,} examples: one of them is {100 / test:.2f} points of score.")
    found.append("One training run with one seed: another seed moves the scores, by how much was not measured.")
    found += _model(report)
    if report["teacher"]["black_box"]:
        found.append(
            "The teacher is a black box, of which only the answers on the test split are known: how fast the student "
            "is beside it, and how much smaller, cannot be said."
        )
    licences = report["licences"]
    if licences["terms"] == FORBIDDEN:
        found.append(f"The teacher's terms are that {FORBIDDEN}; the target says that this was acknowledged.")
    elif not licences["terms"]:
        found.append("Whether the teacher's outputs may train models is not stated in the target: read its terms.")
    whose = {"teacher": "The teacher's", "data": "The data's", "student": "The student's backbone's"}
    for what, name in whose.items():
        if what in licences and not licences[what]:
            found.append(f"{name} licence is not stated in the target: look it up before you ship.")
    return found


def proxy(machine: Mapping[str, Any], device: Mapping[str, Any]) -> str | None:
    """What is to be said of figures that were not taken on the device they are for; ``None`` where they were."""
    if not device["missing"]:
        return None
    what = f"{figures.PROXY}: measured on {machine['cpu']}, which is no {device['name']}"
    return f"{what} ({', '.join(device['missing'])}); times and memory on the device will differ."


def downloads(rows: list[dict[str, Any]], precision: str) -> list[str]:
    """What a page has the browser download for each student: the model, and beside it the runtime."""

    def told(sizes: Mapping[str, int]) -> str:
        brotli, gzip, plain = (figures.number(sizes[name] / 2**20) for name in ("brotli_bytes", "gzip_bytes", "bytes"))
        return f"{brotli} MiB by brotli, {gzip} by gzip, {plain} as it is"

    found: dict[str, None] = {}
    for row in rows:
        if sizes := row.get("download"):
            name, model = figures.artifact(row["artifact"], precision), told(sizes["model"])
            rest = f"onnxruntime-web itself is {told(sizes['runtime'])}"
            found[f"A page that loads the {name} downloads {model}; {rest}."] = None
    return list(found)


def _rows(rows: list[dict[str, Any]]) -> list[str]:
    invalid = [row for row in rows if not row["valid"]]
    skipped = {row["runtime"]: row["why_invalid"] for row in invalid if row["why_invalid"].startswith("skipped: ")}
    found = [f"{figures.runtime(name)} was {why}." for name, why in skipped.items()]
    measured = len([row for row in invalid if row["runtime"] not in skipped])
    if measured:
        found.append(f"{measured} of {len(rows)} rows are INVALID, each with its reason: use none of their times.")
    return found


def _threads(rows: list[dict[str, Any]], asked: Collection[int]) -> list[str]:
    """Where fewer threads worked than the target asks for: no more could run here, or the runtime used no more."""
    most = max((row["threads"] for row in rows), default=0)
    found = []
    if most and most < max(asked, default=0):
        found.append(f"{max(asked)} threads are asked for; {most} may run at once here (affinity, cgroup quota).")
    idle = {
        f"{figures.where(row)}: no more than {row['busy_threads']} of these threads worked."
        for row in rows
        if row["round_p50_ms"] and row.get("busy_threads", row["threads"]) < row["threads"]
    }
    return found + sorted(idle)


def _model(report: Mapping[str, Any]) -> list[str]:
    mine, its = report["task"]["max_length"], report["task"]["spec"]["max_length"]
    own = "" if mine == its or report["teacher"]["black_box"] else f", the teacher to {its} of its own"
    found = [f"Documents are cut to {mine} tokens{own}."]
    read = report["student"].get("text_read")
    if read is not None and read < MUCH_READ:
        found.append(
            f"Of what the teacher reads of a document the student reads {figures.percent(read)}: a trimmed "
            "vocabulary spells text in more tokens. Student.max_length says how many it reads."
        )
    quantize = report["training"].get("quantize") or {}
    if quantize.get("trained", True) and not figures.trained(quantize):
        found.append(
            "Training under quantization came no closer to the teacher on validation than the best PTQ: the shipped "
            "student is that one, with weights that were not trained under quantization."
        )
    unknown = (report["student"]["vocabulary"].get("unknown_rate") or {}).get("test")
    if unknown:
        found.append(
            f"{figures.percent(unknown)} of the test split's tokens are unknown to the student, whose vocabulary was "
            "cut to the training split's; other text has more."
        )
    return found
