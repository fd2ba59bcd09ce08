"""Reports side by side: every figure that others share with the first, and which differences are more than noise."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgekd.bench.statistics import MARGIN, verdict
from edgekd.report import devices, figures, headline, intervals, limits
from edgekd.report.markdown import bullets, escape, table

Report = Mapping[str, Any]
Change = Mapping[str, Any]

SHARES = ("score", "agreement", "agreement_onnx")
EXACT = ("size_mib",)
ALIKE = 1e-3  # a share of an exact figure below which nobody cares


def names(reports: Sequence[Report]) -> list[str]:
    """The runs' names; those that are the same are told apart by when they were measured, and by their place."""
    found = [str(report["run"]) for report in reports]
    for more in ([f" ({report['created']})" for report in reports], [f" [{i + 1}]" for i in range(len(reports))]):
        found = [name + (word if found.count(name) > 1 else "") for name, word in zip(found, more, strict=True)]
    return found


def compare(reports: Sequence[Report]) -> dict[str, Any]:
    """What two or more reports have otherwise than the first.

    ``rows`` has an entry for each figure of each row that the first and another have: ``{"run", "artifact", "runtime",
    "threads", "workload", "host", "figure", "base", "value", "caveats", "change", "low", "high", "verdict"}``.
    ``caveats`` are ``figures.caveats`` of either side's row, by ``base`` and ``value``. ``change`` is value - base for
    shares and value / base for the rest, with its 95% interval where one is known. ``verdict`` says what the run is:
    ``better`` or ``worse`` where the difference is more than noise, ``same`` where it is not, ``unknown`` without an
    interval to tell by. p50 is judged by its rounds, the speed-up by its interval, shares as proportions of
    independent samples (too cautious over one test split), sizes exactly; times and memory of INVALID rows are unknown.
    ``notes`` says what makes the runs hard to compare; ``only`` names the rows that not all have, by run.
    """
    base, runs = reports[0], names(reports)
    keyed = [{figures.key(row): row for row in report["rows"]} for report in reports]
    changes: list[Change] = []
    for _, part in figures.groups(base["rows"]):
        for row in part:
            for run, report, rows in list(zip(runs, reports, keyed, strict=True))[1:]:
                if (other := rows.get(figures.key(row))) is not None:
                    tests = [one["task"]["counts"].get("test", 0) for one in (base, report)]
                    same_data = base["task"]["fingerprint"] == report["task"]["fingerprint"]
                    changes += ({"run": run, **change} for change in _row(row, other, tests, same_data))
    words = ("int8_vs_fp32", "int8_vs_teacher_ort_dynamic", "qad_vs_ptq")
    everywhere = set.intersection(*(set(rows) for rows in keyed))
    return {
        "runs": runs,
        "precision": " → ".join(dict.fromkeys(figures.precision(report) for report in reports)),
        "notes": _notes(reports, runs),
        "budget": _budget(reports),
        "verdicts": {name: [report["verdicts"][name] for report in reports] for name in words},
        "rows": changes,
        "only": {
            run: [_name(row, figures.precision(report)) for key, row in rows.items() if key not in everywhere]
            for run, report, rows in zip(runs, reports, keyed, strict=True)
        },
    }


def noticed(found: Mapping[str, Any]) -> list[Change]:
    """The differences that are more than noise."""
    return [row for row in found["rows"] if row["verdict"] not in ("same", "unknown")]


def render(found: Mapping[str, Any]) -> str:
    """What ``compare`` found as Markdown, ending in a newline."""
    runs, precision = [escape(name) for name in found["runs"]], found["precision"]
    parts = [f"# {' → '.join(runs)}", summary(found)]
    if found["notes"]:
        parts.append(bullets(escape(note) for note in found["notes"]))
    body = [[escape(name), *map(escape, sides)] for name, *sides in budget(found)]
    if body:
        parts += ["## Budget", table(["What", *runs], body)]
    verdicts = {name.replace("_", " ").replace("int8", precision): words for name, words in found["verdicts"].items()}
    parts += ["## Verdicts", table(["", *runs], [[escape(n), *map(escape, words)] for n, words in verdicts.items()])]
    if differ := noticed(found):
        body = [[*map(escape, cells), f"**{row['verdict']}**"] for row in differ for cells in [line(row, precision)]]
        parts += ["## More than noise", table([*HEAD, "Is"], body, right=4)]
    for where, columns, lines in side_by_side(found):
        body = [
            [escape(one["artifact"]), escape(one["place"]), ", ".join([escape(one["run"]), *one["caveats"]])]
            + [_marked(*one["cells"].get(f.key, ("–", ""))) for f in columns]
            for one in lines
        ]
        head = ["Artifact", "Runtime", "Run", *map(figures.heading, columns)]
        parts += [f"## {escape(where)}", table(head, body, right=3)]
    for run, rows in found["only"].items():
        if rows:
            parts.append(f"Not in every run, but in {escape(run)}: {escape('; '.join(rows))}.")
    return "\n\n".join(parts) + "\n"


def _marked(text: str, verdict: str) -> str:
    return f"**{text}** {verdict}" if verdict else text


# ------------------------------------------------------------------------------------------------------------- figures


def _row(a: Mapping[str, Any], b: Mapping[str, Any], tests: list[int], same_data: bool) -> list[Change]:
    place = {name: a.get(name) for name in ("artifact", *figures.CONDITION) if name != "measured_on"}
    caveats = {"base": figures.caveats(a), "value": figures.caveats(b)}  # by where each was measured
    found: list[Change] = []
    for figure in figures.FIGURES:
        one, two = figures.value(a, figure), figures.value(b, figure)
        if one is None or two is None or (figure.key, a["artifact"]) == ("speedup_vs_teacher", "teacher_fp32"):
            continue  # the teacher's speed-up over itself is 1 by definition
        share = figure.key in SHARES
        change: dict[str, Any] = {**place, "figure": figure.key, "base": one, "value": two, "caveats": caveats}
        change["change"] = two - one if share else two / one if one else None
        low, high = _interval(figure.key, a, b, tests) if same_data or not share else (None, None)
        change |= {"low": low, "high": high, "verdict": _verdict(figure, change["change"], low, high)}
        usable = (a["valid"] and b["valid"]) or share or figure.key in EXACT
        found.append(change if usable else change | {"low": None, "high": None, "verdict": "unknown"})
    return found


def _interval(
    key: str, a: Mapping[str, Any], b: Mapping[str, Any], tests: list[int]
) -> tuple[float | None, float | None]:
    """The 95% interval of the change."""
    if key in EXACT:
        return (b[key] / a[key],) * 2
    if key in SHARES:
        return intervals.unpaired_difference(b[key], tests[1], a[key], tests[0]) if all(tests) else (None, None)
    if key == "p50_ms":
        ratio = intervals.unpaired_ratio(b["round_p50_ms"], a["round_p50_ms"])  # times of b over those of a
        return (ratio.low, ratio.high) if ratio else (None, None)
    if key == "speedup_vs_teacher":
        return _quotient(*((row[key], row["speedup_low"], row["speedup_high"]) for row in (a, b)))
    return None, None


def _quotient(
    a: tuple[float, float | None, float | None], b: tuple[float, float | None, float | None]
) -> tuple[float | None, float | None]:
    """The interval of b / a from those of a and b, taken as independent (Donner & Zou 2012, on logarithms)."""
    if None in (*a, *b):
        return None, None
    (va, la, ha), (vb, lb, hb) = (tuple(math.log(x) for x in found if x is not None) for found in (a, b))
    middle = vb - va
    return math.exp(middle - math.hypot(vb - lb, ha - va)), math.exp(middle + math.hypot(hb - vb, va - la))


def _verdict(figure: figures.Figure, change: float | None, low: float | None, high: float | None) -> str:
    if low is None or high is None or change is None:
        return "unknown"
    if figure.key in SHARES:
        up = 1 if low > 0 else -1 if high < 0 else 0
    elif figure.key in EXACT:
        up = (change > 1 + ALIKE) - (change < 1 - ALIKE)
    else:
        up = {"faster": 1, "slower": -1}.get(verdict(low, high, MARGIN), 0)  # more or less than 1 by the margin
    if up == 0:
        return "same"
    return "better" if up == figure.better else "worse" if figure.better else "differs"


# ----------------------------------------------------------------------------------------------------------- the rest


def _budget(reports: Sequence[Report]) -> list[dict[str, Any]]:
    asked = [
        {
            line["name"]: {**line, "caveats": [figures.PROXY] if proxy and line["name"] in headline.TIMED else []}
            for line in report["budget"]
        }
        for report, proxy in zip(reports, map(devices.stand_in, reports), strict=True)
    ]
    return [
        {"name": name, "lines": [lines.get(name) for lines in asked]}
        for name in dict.fromkeys(name for lines in asked for name in lines)
    ]


def _notes(reports: Sequence[Report], runs: Sequence[str]) -> list[str]:
    found = [f"{run}: {headline.SMOKE}" for run, report in zip(runs, reports, strict=True) if report["smoke"]]
    for run, report in zip(runs, reports, strict=True):
        if (said := limits.proxy(report["machine"], report["device"])) is not None:
            found.append(f"{run}: {said}")
    for run, other in list(zip(runs, reports, strict=True))[1:]:
        which = f"{run}: " if len(runs) > 2 else ""
        found += [which + note for note in _differences(reports[0], other)]
    return found


def _differences(a: Report, b: Report) -> list[str]:
    found = []
    if a["task"]["fingerprint"] != b["task"]["fingerprint"]:
        found.append("The data differ: scores do not compare.")
    cpus = [report["machine"]["cpu"] for report in (a, b)]
    if cpus[0] != cpus[1]:
        found.append(f"The machines differ ({cpus[0]}; {cpus[1]}): times do not compare, only ratios do.")
    packages = sorted({*a["versions"], *b["versions"]})
    other = [(name, *(report["versions"].get(name, "none") for report in (a, b))) for name in packages]
    versions = [f"{name} {one} → {two}" for name, one, two in other if one != two]
    if versions:
        found.append(f"Versions differ: {', '.join(versions)}.")
    stages = [name for name in a["stages"] if a["stages"][name]["key"] == b["stages"].get(name, {}).get("key")]
    if stages:
        found.append(f"The same work in both: {', '.join(stages)}.")
    return found


def _name(row: Mapping[str, Any], precision: str) -> str:
    return f"{figures.artifact(row['artifact'], precision)} ({figures.where(row)})"


# ------------------------------------------------------------------------------------------------------------- in words

HEAD = ("Run", "Artifact", "Under", "Figure", "First run", "This run", "Change", "95%")


def summary(found: Mapping[str, Any]) -> str:
    """How many figures are better, worse, within the noise or without an interval."""
    counts = {
        name: sum(row["verdict"] == name for row in found["rows"]) for name in ("better", "worse", "same", "unknown")
    }
    told = f"{counts['better']} better, {counts['worse']} worse, {counts['same']} within the noise"
    whose = "both" if len(found["runs"]) == 2 else "the first and another"
    return (
        f"Of {len(found['rows'])} figures that {whose} have: {told}, {counts['unknown']} without an interval to tell "
        "by. One interval in twenty errs by chance. A p50 also differs by what the machine did that day, which its "
        "rounds do not show; a speed-up, taken side by side within its run, does not."
    )


def budget(found: Mapping[str, Any]) -> list[list[str]]:
    """A line of the budget a row: its name, and what it is in each run."""
    return [[headline.BUDGET.get(one["name"], one["name"]), *map(_asked, one["lines"])] for one in found["budget"]]


def _asked(line: Mapping[str, Any] | None) -> str:
    if line is None:
        return "–"
    met = {True: "met", False: "FAILED", None: "undecided"}[line["met"]]
    measured, limit = (figures.amount(line[key], line["unit"]) for key in ("measured", "limit"))
    return f"{', '.join([measured, *line['caveats']])} ({line['sense']} {limit}): {met}"


def line(row: Change, precision: str) -> list[str]:
    """One figure that differs, with its interval: the cells under ``HEAD``."""
    figure, share = _FIGURE[row["figure"]], row["figure"] in SHARES

    def text(value: float | None) -> str:
        return "–" if value is None else f"{figures.points(value)} points" if share else figures.ratio(value)

    here = figure.key not in (*figures.ANSWERS, *EXACT)  # the machine's, and not the file's
    both = (
        ", ".join([figures.amount(row[side], figure.unit), *(row["caveats"][side] if here else ())])
        for side in ("base", "value")
    )
    interval = "–" if row["figure"] in EXACT else f"{text(row['low'])} to {text(row['high'])}"
    place = figures.artifact(row["artifact"], precision), figures.where(row), figure.title
    return [row["run"], *place, *both, text(row["change"]), interval]


def side_by_side(found: Mapping[str, Any]) -> list[tuple[str, list[figures.Figure], list[dict[str, Any]]]]:
    """For each condition a title, its columns and its lines: a line a row and run, with what it shares with the others.

    A line: ``artifact``, ``place`` and ``run`` by name; ``caveats`` of its row; ``cells``: figure -> (text, and
    ``better``, ``worse`` or ``differs`` where that is more than noise, else nothing); ``values``: figure -> number.
    """
    tables = []
    for where, rows in figures.groups(found["rows"]):
        lines: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in rows:
            for run, side in ((found["runs"][0], "base"), (row["run"], "value")):
                place: dict[str, Any] = {"artifact": figures.artifact(row["artifact"], found["precision"])}
                place["place"] = figures.place(row)
                key = (row["artifact"], place["place"], run)
                place |= {"run": run, "caveats": row["caveats"][side]}
                one = lines.setdefault(key, {**place, "cells": {}, "values": {}})
                verdict = row["verdict"] if side == "value" and row["verdict"] not in ("same", "unknown") else ""
                text = figures.cell({**row, row["figure"]: row[side]}, _FIGURE[row["figure"]])
                one["cells"][row["figure"]] = text, verdict
                one["values"][row["figure"]] = row[side]
        columns = [f for f in figures.FIGURES if any(f.key in one["cells"] for one in lines.values())]
        tables.append((where, columns, list(lines.values())))
    return tables


_FIGURE = {figure.key: figure for figure in figures.FIGURES}
