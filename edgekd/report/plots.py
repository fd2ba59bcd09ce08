"""The charts of ``report.html``: pure functions from a report to SVG. Colours and type are the page's style sheet's.

Drawn by hand rather than by a plotting library: a few hundred bytes each, deterministic, following the page's light and
dark themes, and each mark can be reached by keyboard. A chart that has nothing to show is None.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from edgekd.report import figures, intervals, svg
from edgekd.report.svg import Axis

Row = Mapping[str, Any]

WIDTH, HEIGHT = 640.0, 400.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 622.0, 34.0, 350.0

SHAPES = {"circle": "●", "square": "■", "triangle": "▲", "diamond": "◆"}
"""Markers of the runtimes, in order of appearance, and how the legend writes them."""


def accuracy_against_size(report: Mapping[str, Any]) -> str | None:
    """Score on test against file size, one mark an artifact, in the runtime the budget is judged in."""
    rows = [row for row in _main(report["rows"]) if row["score"] is not None and row["size_mib"]]
    return _scatter(report, rows, "size_mib", "Size (MiB, log scale)", "Score against size", by_runtime=False)


def accuracy_against_latency(report: Mapping[str, Any]) -> str | None:
    """Score on test against p50 at real lengths, one thread; the marks' area grows with the file's size."""
    rows = [r for r in report["rows"] if (r["workload"], r["threads"]) == ("real", 1)]
    rows = [row for row in rows if row["valid"] and row["score"] is not None and row["p50_ms"]]
    title = "p50 (ms, log scale)"
    return _scatter(report, rows, "p50_ms", title, "Score against latency; area: size", by_runtime=True)


def latency(report: Mapping[str, Any]) -> str | None:
    """How the calls were distributed: a histogram an artifact where samples were kept, with p50, p90 and p99."""
    rows = [row for row in _main(report["rows"]) if row["valid"] and row["p50_ms"]]
    if not rows:
        return None
    lane, top, left = 56.0, 12.0, 168.0
    bottom = top + lane * len(rows)
    found = {figures.key(h): h for h in report["latency"]}
    values = [row[name] for row in rows for name in ("p50_ms", "p90_ms", "p99_ms")]
    for row in rows:
        if h := found.get(figures.key(row)):
            values += [h["first_ms"], h["first_ms"] * h["step"] ** len(h["counts"])]
    axis = Axis(*svg.around(values, log=True, room=0.02), left, RIGHT, log=True)
    parts = [svg.bottom_axis(axis, bottom, top, "Time of a call (ms, log scale)")]
    for i, row in enumerate(rows):
        base = top + lane * (i + 1) - 8
        name = figures.artifact(row["artifact"])
        parts += [svg.text(name, left - 10, base - 6, text_anchor="end", class_="name")]
        times = ", ".join(f"{p} {figures.number(row[f'{p}_ms'])} ms" for p in ("p50", "p90", "p99"))
        drawn = _lane(row, found.get(figures.key(row)), axis, base, lane - 18)
        parts.append(svg.mark(drawn, f"{name}: {times}"))
    return svg.chart("Distribution of latency", WIDTH, bottom + 46, parts)


def size_by_kind(report: Mapping[str, Any]) -> str | None:
    """What the bytes of each artifact are; a second panel enlarges the students where the teacher dwarfs them."""
    sizes = {name: found for name, found in figures.by_kind(report["sizes"]).items() if found}
    if not sizes:
        return None
    small = {name: found for name, found in sizes.items() if name.startswith("student")}
    most, least = (max((sum(v.values()) for v in part.values()), default=0) for part in (sizes, small))
    panels = [("", sizes)]
    if small and len(small) < len(sizes) and most > 3 * least:
        panels = [("All at one scale", sizes), ("The students, enlarged", small)]
    parts, y = [], 4.0
    for title, shown in panels:
        if title:
            parts.append(svg.text(title, 168.0, y + 12, class_="title"))
            y += 20
        drawn, y = _bars(shown, y)
        parts.append(drawn)
    return svg.chart("Size by kind of tensor", WIDTH, y, parts)


def kinds(report: Mapping[str, Any]) -> list[str]:
    """The kinds of tensor that ``size_by_kind`` shows, for its legend."""
    return figures.kinds(report["sizes"])


def runtimes(report: Mapping[str, Any]) -> dict[str, str]:
    """Runtime -> shape of its marks, for the legend of ``accuracy_against_latency``."""
    names = list(dict.fromkeys(row["runtime"] for row in report["rows"] if row["valid"]))
    return {name: list(SHAPES)[i % len(SHAPES)] for i, name in enumerate(names)}


# ------------------------------------------------------------------------------------------------------------- drawing


def _main(rows: Sequence[Row]) -> list[Row]:
    """The rows of the first runtime at real lengths, one thread, in the artifacts' order."""
    first = rows[0]["runtime"] if rows else ""
    wanted = [r for r in rows if (r["runtime"], r["threads"], r["workload"]) == (first, 1, "real")]
    return [row for _, part in figures.groups(wanted) for row in part]


def _scatter(
    report: Mapping[str, Any], rows: Sequence[Row], key: str, x_title: str, label: str, by_runtime: bool
) -> str | None:
    if not rows:
        return None
    test = report["task"]["counts"].get("test", 0)
    span = {figures.key(r): intervals.wilson(r["score"], test) if test else (r["score"],) * 2 for r in rows}
    x = Axis(*svg.around([r[key] for r in rows], log=True), LEFT, RIGHT, log=True)
    low, high = svg.around([end for ends in span.values() for end in ends], log=False)
    y = Axis(max(0.0, low), min(1.0, high), BOTTOM, TOP)
    shapes = runtimes(report)
    parts = [svg.bottom_axis(x, BOTTOM, TOP, x_title), svg.left_axis(y, LEFT, RIGHT, "Score on test (%)", scale=100)]
    taken: list[svg.Box] = []
    labelled: list[tuple[tuple[float, float, str], Row]] = []
    for row in rows:
        at = x.at(row[key]), y.at(row["score"])
        ends = [y.at(end) for end in span[figures.key(row)]]
        radius = 3 + 2.2 * math.log2(1 + row["size_mib"]) if by_runtime and row["size_mib"] else 6.0
        name = figures.artifact(row["artifact"]) + (f", {figures.runtime(row['runtime'])}" if by_runtime else "")
        bar = svg.tag("line", x1=at[0], x2=at[0], y1=ends[0], y2=ends[1], class_="error")
        shape = _marker(shapes[row["runtime"]] if by_runtime else "circle", *at, radius)
        facts = [
            figures.percent(row["score"]),
            figures.amount(row["size_mib"], "MiB"),
            figures.amount(row["p50_ms"], "ms"),
        ]
        facts = facts if row["valid"] else [*facts[:2], "times INVALID"]
        parts.append(svg.tag("g", svg.mark(bar + shape, f"{name}: {', '.join(facts)}"), class_=_class(row)))
        taken.append((at[0] - radius, at[1] - radius, at[0] + radius, at[1] + radius))
        if all(other["artifact"] != row["artifact"] for _, other in labelled):  # in its other runtimes, its colour says
            labelled.append(((*at, figures.artifact(row["artifact"])), row))
    spots = [spot for spot, _ in labelled]
    places = svg.place(spots, taken, (LEFT, TOP - 8, WIDTH, BOTTOM))
    for (lx, ly), ((px, py, name), row) in zip(places, labelled, strict=True):
        if abs(ly - 4 - py) > 12:
            end = lx - 2 if lx > px else lx + svg.CHARACTER * len(name) + 2
            parts.append(svg.tag("line", x1=px, y1=py, x2=end, y2=ly - 4, class_="leader"))
        parts.append(svg.text(name, lx, ly, class_=f"label {_class(row)}"))
    return svg.chart(label, WIDTH, HEIGHT, parts)


def _class(row: Row) -> str:
    """The style sheet's class of an artifact; one it does not know has no colour of its own."""
    return f"a-{row['artifact']}" if row["artifact"] in figures.ARTIFACTS else "a-other"


def _marker(shape: str, x: float, y: float, r: float) -> str:
    if shape == "square":
        return svg.tag("rect", x=x - r * 0.9, y=y - r * 0.9, width=r * 1.8, height=r * 1.8, class_="dot")
    if shape == "circle":
        return svg.tag("circle", cx=x, cy=y, r=r, class_="dot")
    corners = [(x, y - 1.2 * r), (x + 1.1 * r, y + 0.8 * r), (x - 1.1 * r, y + 0.8 * r)]
    if shape == "diamond":
        corners = [(x, y - 1.3 * r), (x + 1.3 * r, y), (x, y + 1.3 * r), (x - 1.3 * r, y)]
    return svg.tag("polygon", points=" ".join(f"{px:.1f},{py:.1f}" for px, py in corners), class_="dot")


def _lane(row: Row, histogram: Row | None, axis: Axis, base: float, height: float) -> str:
    """One artifact's distribution over its baseline, with ticks at p50, p90 and p99."""
    parts = []
    if histogram is not None:
        counts, edge = histogram["counts"], histogram["first_ms"]
        top = max(counts)
        path = f"M{axis.at(edge):.1f} {base:.1f}"
        for count in counts:
            level = base - height * count / top
            path += f"V{level:.1f}"
            edge *= histogram["step"]
            path += f"H{axis.at(edge):.1f}"
        parts.append(svg.tag("path", d=f"{path}V{base:.1f}Z", class_="fill"))
    p50, p90, p99 = (axis.at(row[f"{p}_ms"]) for p in ("p50", "p90", "p99"))
    parts.append(svg.tag("line", x1=p50, x2=p99, y1=base, y2=base, class_="whisker"))
    parts += [svg.tag("line", x1=x, x2=x, y1=base - 5, y2=base + 5, class_="whisker") for x in (p90, p99)]
    parts.append(svg.tag("circle", cx=p50, cy=base, r=4.5, class_="dot"))
    return svg.tag("g", "".join(parts), class_=_class(row))


def _bars(sizes: Mapping[str, Mapping[str, int]], y: float) -> tuple[str, float]:
    """Stacked bars on an axis of their own from ``y`` down; and where the next may begin."""
    left, step = 168.0, 30.0
    axis = Axis(0.0, max(sum(found.values()) for found in sizes.values()) / 2**20 * 1.12, left, RIGHT)
    bottom = y + step * len(sizes) + 4
    parts = [svg.bottom_axis(axis, bottom, y, "MiB")]
    for i, (name, found) in enumerate(sizes.items()):
        top, mib = y + step * i + 6, 0.0
        parts.append(svg.text(figures.artifact(name), left - 10, top + 15, text_anchor="end", class_="name"))
        for kind in figures.KINDS:
            size = found.get(kind, 0) / 2**20
            if not size:
                continue
            box = {"x": axis.at(mib), "width": axis.at(mib + size) - axis.at(mib), "y": top, "height": step - 10}
            tip = f"{figures.artifact(name)}, {kind}: {figures.amount(size, 'MiB')}"
            parts.append(svg.mark(svg.tag("rect", class_=f"k-{kind}", **box), tip))
            mib += size
        parts.append(svg.text(figures.number(mib), axis.at(mib) + 6, top + 15, class_="tick"))
    return "".join(parts), bottom + 46
