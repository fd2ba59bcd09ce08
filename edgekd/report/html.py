"""``report.html`` and the page of a comparison: self-contained files, pure renderings. They load nothing."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.report import choice, devices, executed, figures, gaps, headline, plots, tensors
from edgekd.report import compare as comparing

Report = Mapping[str, Any]

STATES = ("valid", "INVALID", "failed", "skipped")
"""The order of the column that says so."""


def render(report: Report) -> str:
    """The report as an HTML page: style, script and charts inline, every text of the report escaped."""
    precision = figures.precision(report)
    proxy = f" {figures.PROXY}: not measured on the device." if report["device"]["missing"] else ""
    first = figures.runtime(report["rows"][0]["runtime"]) if report["rows"] else ""
    charts = [
        (
            "Score against latency",
            "Real lengths, one thread, every runtime. A mark's area is the file's size; bars are the score's 95% "
            f"intervals, in {first}.{proxy}",
            plots.accuracy_against_latency,
        ),
        ("Score against size", "Bars are 95% intervals of the score.", plots.accuracy_against_size),
        (f"How long a call takes in {first}", f"Dot: p50; ticks: p90 and p99.{proxy}", plots.latency),
        ("What the bytes are", "Size of the file by kind of tensor.", plots.size_by_kind),
    ]
    drawn = [(title, about, draw(report)) for title, about, draw in charts]
    reasons = gaps.reasons(report["rows"], precision)
    rows = [row for _, part in figures.groups(report["rows"]) for row in part]
    return _page(
        "report.html",
        report=report,
        tensors=tensors,
        executed=executed,
        devices=devices,
        badges=_badges(report),
        tiles=_tiles(report),
        budget=[_budget_row(line, devices.stand_in(report)) for line in report["budget"]],
        runtimes=_runtimes(report),
        rule=choice.RULE,
        columns=_columns(report),
        reasons=reasons,
        whys=list(reasons),
        states=STATES,
        precision=precision,
        rows=gaps.merged(rows),
        threads=len({row["threads"] for row in rows}) > 1,
        charts=[(title, about, _markup(chart)) for title, about, chart in drawn if chart],
        races=_races(report),
        training=[(n, report["training"][n]) for n in ("teacher", "distill", "quantize") if report["training"].get(n)],
        proofs={name: json.dumps(report[name], indent=1, ensure_ascii=False) for name in ("audit", "parity")},
    )


def render_comparison(reports: Sequence[Report]) -> str:
    """What ``compare.compare`` finds of the reports as an HTML page, as self-contained as ``render``'s."""
    found = comparing.compare(reports)
    chart = plots.runs_against_latency(dict(zip(found["runs"], reports, strict=True)))
    words = {
        name.replace("_", " ").replace("int8", found["precision"]): told for name, told in found["verdicts"].items()
    }
    return _page(
        "compare.html",
        found=found,
        runs=tuple(found["runs"]),
        summary=comparing.summary(found),
        head=comparing.HEAD,
        noticed=[[*comparing.line(row, found["precision"]), row["verdict"]] for row in comparing.noticed(found)],
        chart=_markup(chart) if chart else None,
        budget=comparing.budget(found),
        verdicts=[[name, *told] for name, told in words.items()],
        tables=comparing.side_by_side(found),
    )


def _page(template: str, **given: Any) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(figures=figures, **given)


def _markup(chart: str) -> Any:
    from markupsafe import Markup

    return Markup(chart)


def _runtimes(report: Report) -> list[dict[str, Any]]:
    """A card for each runtime: what to ship there, and what that costs and does."""
    cards = []
    for one in report["ship"]:
        name = one["artifact"] or "student_qad"
        row = figures.find(report["rows"], name, one) or {"runtime": one["runtime"], "artifact": name, "valid": False}
        skipped = one["why"].removeprefix("skipped: ") if one["why"].startswith("skipped: ") else ""
        state = figures.state(row) if "rounds" in row else "failed"
        badges = [] if state == "valid" else [("open" if skipped else "bad", state)]
        measured = row.get("rounds")
        cards.append(
            {
                "place": figures.place(one),
                "version": figures.version(row),
                "badges": badges + [("open", word) for word in (figures.caveats(row) if measured else ())],
                "skipped": skipped,
                "ship": one["artifact"] and figures.artifact(name, figures.precision(report)),
                "why": one["why"],
                "facts": [*_facts(row), *executed.more(report, row)] if measured else [],
                "kinds": executed.executed(report, row) if measured else {},
            }
        )
    return cards


def _facts(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(what, figure) of a row that was measured."""
    times = [figures.number(row[f"{p}_ms"]) for p in ("p50", "p90", "p99")]
    with_onnx = row.get("agreement_onnx")
    memory = [figures.amount(row[key], "MiB") for key in ("peak_rss_mib", "import_rss_mib")]
    return [
        ("Score", figures.percent(row["score"])),
        ("As the teacher", figures.percent(row["agreement"])),
        *([("As the .onnx", figures.percent(with_onnx))] if with_onnx is not None else []),
        ("p50, p90, p99", f"{', '.join(times)} ms"),
        ("Load, cold call", f"{figures.number(row['load_ms'])}, {figures.number(row['cold_ms'])} ms"),
        ("Peak memory", f"{memory[0]}, the runtime {memory[1]}"),
        ("Size", figures.amount(row["size_mib"], "MiB")),
    ]


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


def _budget_row(line: Mapping[str, Any], proxy: bool) -> dict[str, Any]:
    measured, limit = (figures.amount(line[key], line["unit"]) for key in ("measured", "limit"))
    mark = {True: ("good", "met"), False: ("bad", "failed"), None: ("open", "undecided")}[line["met"]]
    name = headline.BUDGET.get(line["name"], line["name"])
    tag = figures.PROXY if proxy and line["name"] in headline.TIMED else ""
    return {
        "name": name,
        "measured": measured,
        "tag": tag,
        "asked": f"{line['sense']} {limit}",
        "mark": mark,
        "why": line["why"],
    }


def _columns(report: Report) -> list[figures.Figure]:
    """The columns of the table; what the runtime takes without a model stands below the peak that it is apart from."""
    told = [f for f in figures.FIGURES if f.key != "import_rss_mib"]
    return [f for f in told if any(figures.value(row, f) is not None for row in report["rows"])]


def _races(report: Report) -> list[tuple[str, Mapping[str, Any]]]:
    verdicts = report["verdicts"]
    named = (("the fp32 student", verdicts["speed"]), ("the teacher, ORT dynamic int8", verdicts["today"]))
    return [(base, line) for base, lines in named for line in lines if line["rounds"]]
