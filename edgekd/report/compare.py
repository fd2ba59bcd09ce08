"""Two reports side by side: every figure that both have, and which differences are more than noise."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from edgekd.bench.statistics import MARGIN, verdict
from edgekd.report import figures, headline, intervals
from edgekd.report.markdown import bullets, escape, table

Report = Mapping[str, Any]
Change = Mapping[str, Any]

SHARES = ("score", "agreement")
EXACT = ("size_mib",)
ALIKE = 1e-3  # a share of an exact figure below which nobody cares


def compare(a: Report, b: Report) -> dict[str, Any]:
    """What ``b`` has otherwise than ``a``.

    ``rows`` has an entry for each figure of each row that both have: ``{"artifact", "runtime", "threads", "workload",
    "figure", "a", "b", "change", "low", "high", "verdict"}``. ``change`` is b - a for shares and b / a for the rest,
    with its 95% interval where one is known. ``verdict`` says what b is: ``better`` or ``worse`` where the
    difference is more than noise, ``same`` where it is not, ``unknown`` where there is no interval to tell by. p50 is
    judged by its rounds, the speed-up by its interval, shares as proportions of independent samples (too cautious over
    one test split), sizes exactly; times and memory of INVALID rows are unknown. ``notes`` says what makes the two
    hard to compare; ``only_a`` and ``only_b`` name the rows that one has alone.
    """
    rows_a, rows_b = ({figures.key(row): row for row in report["rows"]} for report in (a, b))
    same_data = a["task"]["fingerprint"] == b["task"]["fingerprint"]
    tests = [report["task"]["counts"].get("test", 0) for report in (a, b)]
    changes = [
        change
        for _, part in figures.groups(row for key, row in rows_a.items() if key in rows_b)
        for row in part
        for change in _row(row, rows_b[figures.key(row)], tests, same_data)
    ]
    names = [report["run"] for report in (a, b)]
    if names[0] == names[1]:
        names = [f"{report['run']} ({report['created']})" for report in (a, b)]
    return {
        "a": names[0],
        "b": names[1],
        "precision": " → ".join(dict.fromkeys(figures.precision(report) for report in (a, b))),
        "notes": _notes(a, b),
        "budget": _budget(a, b),
        "verdicts": {
            name: [report["verdicts"][name] for report in (a, b)]
            for name in ("int8_vs_fp32", "int8_vs_teacher_ort_dynamic", "qad_vs_ptq")
        },
        "rows": changes,
        "only_a": [_name(row, figures.precision(a)) for key, row in rows_a.items() if key not in rows_b],
        "only_b": [_name(row, figures.precision(b)) for key, row in rows_b.items() if key not in rows_a],
    }


def render(found: Mapping[str, Any]) -> str:
    """What ``compare`` found as Markdown, ending in a newline."""
    a, b, precision = escape(found["a"]), escape(found["b"]), found["precision"]
    parts = [f"# {a} → {b}", _summary(found)]
    if found["notes"]:
        parts.append(bullets(escape(note) for note in found["notes"]))
    body = [
        [escape(headline.BUDGET.get(line["name"], line["name"])), *(_side(line[side]) for side in ("a", "b"))]
        for line in found["budget"]
    ]
    if body:
        parts += ["## Budget", table(["What", a, b], body)]
    verdicts = {name.replace("_", " ").replace("int8", precision): both for name, both in found["verdicts"].items()}
    parts += ["## Verdicts", table(["", a, b], [[escape(name), *map(escape, both)] for name, both in verdicts.items()])]
    noticed = [row for row in found["rows"] if row["verdict"] not in ("same", "unknown")]
    if noticed:
        head = ["Artifact", "Under", "Figure", a, b, "Change", "95%", "Is"]
        parts += ["## More than noise", table(head, [_line(row, precision) for row in noticed], right=3)]
    for where, rows in figures.groups(found["rows"]):
        parts += [f"## {escape(where)}", _side_by_side(rows, precision)]
    for side, name in (("only_a", a), ("only_b", b)):
        if found[side]:
            parts.append(f"Only in {name}: {escape('; '.join(found[side]))}.")
    return "\n\n".join(parts) + "\n"


# ------------------------------------------------------------------------------------------------------------- figures


def _row(a: Mapping[str, Any], b: Mapping[str, Any], tests: list[int], same_data: bool) -> list[Change]:
    place = {name: a[name] for name in ("artifact", "runtime", "threads", "workload")}
    place |= {name: a.get(name) for name in ("host", "measured_on")}
    found: list[Change] = []
    for figure in figures.FIGURES:
        one, two = figures.value(a, figure), figures.value(b, figure)
        if one is None or two is None or (figure.key, a["artifact"]) == ("speedup_vs_teacher", "teacher_fp32"):
            continue  # the teacher's speed-up over itself is 1 by definition
        share = figure.key in SHARES
        change: dict[str, Any] = {**place, "figure": figure.key, "a": one, "b": two}
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


def _budget(a: Report, b: Report) -> list[dict[str, Any]]:
    lines = [{line["name"]: line for line in report["budget"]} for report in (a, b)]
    return [{"name": n, "a": lines[0].get(n), "b": lines[1].get(n)} for n in dict.fromkeys([*lines[0], *lines[1]])]


def _notes(a: Report, b: Report) -> list[str]:
    found = []
    for report in (a, b):
        if report["smoke"]:
            found.append(f"{report['run']}: {headline.SMOKE}")
    if a["task"]["fingerprint"] != b["task"]["fingerprint"]:
        found.append("The data differ: scores do not compare.")
    cpus = [report["machine"]["cpu"] for report in (a, b)]
    if cpus[0] != cpus[1]:
        found.append(f"The machines differ ({cpus[0]}; {cpus[1]}): times do not compare, only ratios do.")
    names = sorted({*a["versions"], *b["versions"]})
    other = [(name, *(report["versions"].get(name, "none") for report in (a, b))) for name in names]
    versions = [f"{name} {one} → {two}" for name, one, two in other if one != two]
    if versions:
        found.append(f"Versions differ: {', '.join(versions)}.")
    stages = [name for name in a["stages"] if a["stages"][name]["key"] == b["stages"].get(name, {}).get("key")]
    if stages:
        found.append(f"The same work in both: {', '.join(stages)}.")
    return found


def _name(row: Mapping[str, Any], precision: str) -> str:
    return f"{figures.artifact(row['artifact'], precision)} ({figures.where(row)})"


def _summary(found: Mapping[str, Any]) -> str:
    counts = {
        name: sum(row["verdict"] == name for row in found["rows"]) for name in ("better", "worse", "same", "unknown")
    }
    told = f"{counts['better']} better, {counts['worse']} worse, {counts['same']} within the noise"
    return (
        f"Of {len(found['rows'])} figures that both have: {told}, {counts['unknown']} without an interval to tell by. "
        "One interval in twenty errs by chance. A p50 also differs by what the machine did that day, which its rounds "
        "do not show; a speed-up, taken side by side within its run, does not."
    )


def _side(line: Mapping[str, Any] | None) -> str:
    if line is None:
        return "–"
    met = {True: "met", False: "**FAILED**", None: "undecided"}[line["met"]]
    measured, limit = (figures.amount(line[key], line["unit"]) for key in ("measured", "limit"))
    return f"{measured} ({line['sense']} {limit}): {met}"


def _line(row: Change, precision: str) -> list[str]:
    """One figure that differs, with its interval."""
    figure, share = _FIGURE[row["figure"]], row["figure"] in SHARES

    def text(value: float | None) -> str:
        return "–" if value is None else f"{figures.points(value)} points" if share else figures.ratio(value)

    both = (figures.amount(row[side], figure.unit) for side in ("a", "b"))
    interval = "–" if row["figure"] in EXACT else f"{text(row['low'])} to {text(row['high'])}"
    place = escape(figures.artifact(row["artifact"], precision)), escape(figures.where(row)), figure.title
    return [*place, *both, text(row["change"]), interval, f"**{row['verdict']}**"]


def _side_by_side(rows: Iterable[Change], precision: str) -> str:
    """Every figure of one condition, a line an artifact: ``0.900 → 0.990``, bold where it is more than noise."""
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        one, two = (figures.cell({**row, row["figure"]: row[side]}, _FIGURE[row["figure"]]) for side in ("a", "b"))
        text = one if one == two else f"{one} → {two}"
        bold = row["verdict"] not in ("same", "unknown")
        lines.setdefault(row["artifact"], {})[row["figure"]] = f"**{text}**" if bold else text
    columns = [f for f in figures.FIGURES if any(f.key in cells for cells in lines.values())]
    body = [
        [escape(figures.artifact(name, precision)), *(cells.get(f.key, "–") for f in columns)]
        for name, cells in lines.items()
    ]
    return table(["Artifact", *map(figures.heading, columns)], body)


_FIGURE = {figure.key: figure for figure in figures.FIGURES}
