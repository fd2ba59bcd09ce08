"""``report.html``: one self-contained file, a pure rendering of a report. It loads nothing from anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekd.report import devices, figures, headline, plots

Report = Mapping[str, Any]


def render(report: Report) -> str:
    """The report as an HTML page: style, script and charts inline, every text of the report escaped."""
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(Path(__file__).with_name("template.html").read_text(encoding="utf-8"))
    charts = [
        ("Score against size", "Bars are 95% intervals of the score.", plots.accuracy_against_size),
        (
            "Score against latency",
            "Real lengths, one thread. Marks grow with the file.",
            plots.accuracy_against_latency,
        ),
        ("How long a call takes", "Dot: p50; ticks: p90 and p99.", plots.latency),
        ("What the bytes are", "Size of the file by kind of tensor.", plots.size_by_kind),
    ]
    drawn = [(title, about, draw(report)) for title, about, draw in charts]
    return template.render(
        report=report,
        figures=figures,
        devices=devices,
        badges=_badges(report),
        tiles=_tiles(report),
        budget=[_budget_row(line) for line in report["budget"]],
        columns=_columns(report),
        reasons=figures.reasons(report["rows"], figures.precision(report)),
        precision=figures.precision(report),
        rows=[row for _, part in figures.groups(report["rows"]) for row in part],
        charts=[(title, about, Markup(chart)) for title, about, chart in drawn if chart],
        races=_races(report),
        training=[(n, report["training"][n]) for n in ("teacher", "distill", "quantize") if report["training"].get(n)],
        proofs={name: json.dumps(report[name], indent=1, ensure_ascii=False) for name in ("audit", "parity")},
    )


def _badges(report: Report) -> list[tuple[str, str]]:
    """(class, text) of what the page says beside the target's name."""
    met = report["budget_met"]
    words = {True: ("good", "Budget met"), False: ("bad", "Budget failed"), None: ("open", "Budget undecided")}
    found = [words[met] if report["budget"] else ("open", "No budget")]
    return [("bad", "SMOKE"), *found] if report["smoke"] else found


def _tiles(report: Report) -> list[tuple[str, str, str]]:
    """(figure, what it is, its interval or base) of the shipped student."""
    runtime = report["rows"][0]["runtime"] if report["rows"] else ""
    like = {"runtime": runtime, "threads": 1, "workload": "real"}
    mine, its = (figures.find(report["rows"], name, like) for name in ("student_qad", "teacher_fp32"))
    if mine is None:
        return []
    black_box = report["teacher"].get("black_box")
    if black_box:
        its = {**report["teacher"]["scores"]["test"], "size_bytes": None}
    proxy = f", {figures.PROXY}" if mine["measured_on"] == figures.PROXY else ""
    found = [(figures.percent(mine["score"]), "score on test", f"teacher {figures.percent((its or {}).get('score'))}")]
    if its and its["size_bytes"] and mine["size_bytes"]:
        base = f"{figures.amount(mine['size_mib'], 'MiB')} against {figures.amount(its['size_mib'], 'MiB')}"
        found.append((figures.ratio(its["size_bytes"] / mine["size_bytes"]), "smaller than the teacher", base))
    if mine["valid"]:
        span = figures.span(mine["speedup_low"], mine["speedup_high"])
        if not black_box:
            times = figures.ratio(mine["speedup_vs_teacher"])
            found.append((times, f"as fast as the teacher{proxy}", f"95%: {span}" if span else ""))
        found.append(
            (
                figures.amount(mine["p50_ms"], "ms"),
                f"p50 of a call{proxy}",
                f"p99 {figures.amount(mine['p99_ms'], 'ms')}",
            )
        )
        found.append((figures.amount(mine["peak_rss_mib"], "MiB"), f"peak memory{proxy}", "above the loaded runtime"))
    else:
        found.append(("INVALID", "times", mine["why_invalid"]))
    return found


def _budget_row(line: Mapping[str, Any]) -> dict[str, Any]:
    measured, limit = (figures.amount(line[key], line["unit"]) for key in ("measured", "limit"))
    mark = {True: ("good", "met"), False: ("bad", "failed"), None: ("open", "undecided")}[line["met"]]
    name = headline.BUDGET.get(line["name"], line["name"])
    return {"name": name, "measured": measured, "asked": f"{line['sense']} {limit}", "mark": mark, "why": line["why"]}


def _columns(report: Report) -> list[figures.Figure]:
    return [f for f in figures.FIGURES if any(figures.value(row, f) is not None for row in report["rows"])]


def _races(report: Report) -> list[tuple[str, Mapping[str, Any]]]:
    verdicts = report["verdicts"]
    named = (("the fp32 student", verdicts["speed"]), ("the teacher, ORT dynamic int8", verdicts["today"]))
    return [(base, line) for base, lines in named for line in lines]
