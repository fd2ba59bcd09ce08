"""The charts of ``report.html``: pure functions from a report to SVG text; the door to matplotlib.

Matplotlib is imported when a chart is drawn. Colours and font are the page's style variables, so that a chart follows
the page's theme. A chart that has nothing to show is None.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple
from xml.etree import ElementTree

from edgekd.report import figures, intervals, tensors

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

VARIABLES = ["ink", "soft", "line", "card", *(f"a-{name}" for name in figures.ARTIFACTS)]
VARIABLES += [f"k-{kind}" for kind in tensors.KINDS]
"""The style variables of the page that the charts are drawn in."""

RUNS = ("a-student_qad", "a-student_fp32", "a-student_ptq", "a-teacher_ort_dynamic", "k-linear", "a-teacher_fp32")
"""The colours of the runs that are compared."""

SHAPES = {"o": math.pi / 4, "s": 1.0, "^": 0.5, "D": 1.0, "v": 0.5, "P": 0.56, "X": 0.63, "<": 0.5, ">": 0.5, "p": 0.59}
"""The marks that tell runtimes apart, and the area of each over its size squared."""

FONT = "DejaVu Sans"  # comes with matplotlib, and is wider than what the page then writes in: labels keep their room


def accuracy_against_size(report: Mapping[str, Any]) -> str | None:
    """Score on test against file size, one mark an artifact, in the runtime the budget is judged in."""
    rows = [row for row in _main(report["rows"]) if row["score"] is not None and row["size_mib"]]
    marks = [_mark(report, row, "size_mib", f"a-{row['artifact']}") for row in rows]
    return _scatter(marks, _artifacts(report, rows), "size_mib", "Size (MiB, log scale)", "Score against size")


def accuracy_against_latency(report: Mapping[str, Any]) -> str | None:
    """Score on test against p50 at real lengths, one thread; shapes tell runtimes, a mark's area is the file's size."""
    rows = _timed(report["rows"])
    marks = [_mark(report, row, "p50_ms", f"a-{row['artifact']}") for row in rows]
    return _scatter(marks, _artifacts(report, rows), "p50_ms", "p50 (ms, log scale)", "Score against latency")


def runs_against_latency(reports: Mapping[str, Mapping[str, Any]]) -> str | None:
    """``accuracy_against_latency`` of several runs by name: colours tell runs; what is not shipped is faint."""
    colours = dict(zip(reports, cycle(RUNS), strict=False))
    marks = [
        _mark(report, row, "p50_ms", colours[name], name)
        for name, report in reports.items()
        for row in _timed(report["rows"])
    ]
    return _scatter(marks, colours, "p50_ms", "p50 (ms, log scale)", "Score against latency of all runs")


def latency(report: Mapping[str, Any]) -> str | None:
    """How the calls were distributed: a histogram an artifact where samples were kept, with p50, p90 and p99."""
    rows = [row for row in _main(report["rows"]) if row["valid"] and row["p50_ms"]]
    if not rows:
        return None
    histograms, tips = {figures.key(h): h for h in report["latency"]}, {}
    with _figure("latency", 60 + 56 * len(rows)) as figure:
        ax = figure.add_subplot()
        _lanes(ax, [figures.artifact(row["artifact"], figures.precision(report)) for row in rows], above=0.9)
        for i, row in enumerate(rows):
            name, colour = row["artifact"], _colour(f"a-{row['artifact']}")
            if h := histograms.get(figures.key(row)):
                edges = [h["first_ms"] * h["step"] ** k for k in range(len(h["counts"]) + 1)]
                levels = [i - 0.75 * count / max(h["counts"]) for count in h["counts"]]
                ax.stairs(levels, edges, baseline=i, fill=True, color=colour, alpha=0.32, linewidth=0)
            p50, p90, p99 = (row[f"{p}_ms"] for p in ("p50", "p90", "p99"))
            times = (f"{p} {figures.number(row[f'{p}_ms'])} ms" for p in ("p50", "p90", "p99"))
            tips[f"p50-{name}"] = f"{_named(report, row)}: {', '.join([*times, *figures.caveats(row)])}"
            ax.plot([p50, p99], [i, i], color=colour, linewidth=2)
            ax.plot([p90, p99], [i, i], "|", color=colour, markersize=11, markeredgewidth=2, gid=f"tail-{name}")
            ax.plot([p50], [i], "o", color=colour, markersize=9, markeredgecolor=_colour("card"), gid=f"p50-{name}")
        _log_axis(ax, "Time of a call (ms, log scale)")
        return _svg(figure, "latency", "Distribution of latency", tips)


def size_by_kind(report: Mapping[str, Any]) -> str | None:
    """What the bytes of each artifact are; a second panel enlarges the students where the teacher dwarfs them."""
    sizes = {name: found for name, found in tensors.by_kind(report["sizes"]).items() if found}
    if not sizes:
        return None
    from matplotlib.patches import Patch

    small = {name: found for name, found in sizes.items() if name.startswith("student")}
    most, least = (max((sum(v.values()) for v in part.values()), default=0) for part in (sizes, small))
    panels = {"": sizes}
    if small and len(small) < len(sizes) and most > 3 * least:
        panels = {"All at one scale": sizes, "The students, enlarged": small}
    heights, tips = [len(shown) for shown in panels.values()], {}
    with _figure("size", 30 + sum(64 + 30 * height for height in heights)) as figure:
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)
        for ax, (title, shown) in zip(axes.flat, panels.items(), strict=True):
            _lanes(ax, [figures.artifact(name, figures.precision(report)) for name in shown], above=0.5)
            ax.set(title=title, xlabel="MiB", xmargin=0.12)  # the margin has room for the totals
            ends = [0.0] * len(shown)
            for kind in tensors.KINDS:
                part = [found.get(kind, 0) / 2**20 for found in shown.values()]
                bars = ax.barh(range(len(shown)), part, height=0.66, left=ends, color=_colour(f"k-{kind}"))
                for name, bar, mib in zip(shown, bars, part, strict=True):
                    bar.set_gid(f"{title[:3]}-{kind}-{name}")
                    if mib:
                        whole = figures.artifact(name, figures.precision(report))
                        tips[f"{title[:3]}-{kind}-{name}"] = f"{whole}: {kind} {figures.number(mib)} MiB"
                ends = [end + more for end, more in zip(ends, part, strict=True)]
            for i, end in enumerate(ends):
                ax.annotate(figures.number(end), (end, i), (6, 0), textcoords="offset points", va="center")
        handles = {kind: Patch(color=_colour(f"k-{kind}")) for kind in tensors.kinds(report["sizes"])}
        figure.legend(handles.values(), handles, loc="outside lower left", ncols=5)
        return _svg(figure, "size", "Size by kind of tensor", tips)


# ------------------------------------------------------------------------------------------------------------- drawing


def _ordered(rows: Iterable[Row]) -> list[Row]:
    return [row for _, part in figures.groups(rows) for row in part]


def _main(rows: Sequence[Row]) -> list[Row]:
    """The rows of the first runtime at real lengths, one thread, in the artifacts' order."""
    first = rows[0]["runtime"] if rows else ""
    main = (first, 1, "real", None)
    return _ordered(r for r in rows if (r["runtime"], r["threads"], r["workload"], figures.device(r)) == main)


def _colour(name: str) -> str:
    """What stands for a style variable until ``_svg`` names it; an artifact unknown to the page has no own colour."""
    return f"#ed9e{VARIABLES.index(name if name in VARIABLES else 'soft'):02x}"


class _Mark(NamedTuple):
    """A row in a chart of scores: where it is, how it looks and what it tells."""

    name: str
    x: float
    score: float
    examples: int
    mib: float
    colour: str
    runtime: str
    faint: bool
    tip: str


def _timed(rows: Iterable[Row]) -> list[Row]:
    """The rows whose p50 and score are told: valid, at real lengths, on one thread."""
    found = [row for row in rows if (row["workload"], row["threads"]) == ("real", 1)]
    return [row for row in _ordered(found) if row["valid"] and row["score"] is not None and row["p50_ms"]]


def _named(report: Mapping[str, Any], row: Row) -> str:
    return f"{figures.artifact(row['artifact'], figures.precision(report))}, {figures.place(row)}"


def _artifacts(report: Mapping[str, Any], rows: Iterable[Row]) -> dict[str, str]:
    """The legend of colours: artifacts."""
    return {figures.artifact(r["artifact"], figures.precision(report)): f"a-{r['artifact']}" for r in rows}


def _mark(report: Mapping[str, Any], row: Row, key: str, colour: str, run: str = "") -> _Mark:
    told = [figures.percent(row["score"]), f"p50 {figures.amount(row['p50_ms'], 'ms')}"]
    if not row["valid"]:
        told[1] = figures.state(row)
    told += [figures.amount(row["size_mib"], "MiB"), *figures.caveats(row)]
    name = "-".join(filter(None, (row["artifact"], row["runtime"], figures.device(row), run)))
    tip = f"{run + ': ' if run else ''}{_named(report, row)}: {', '.join(told)}"
    faint = bool(run) and row["artifact"] != "student_qad"
    test = report["task"]["counts"].get("test", 0)
    return _Mark(name, row[key], row["score"], test, row["size_mib"] or 0, colour, figures.place(row), faint, tip)


def _scatter(marks: Sequence[_Mark], legend: Mapping[str, str], key: str, x_title: str, label: str) -> str | None:
    if not marks:
        return None
    from matplotlib.lines import Line2D

    shapes = dict(zip(dict.fromkeys(mark.runtime for mark in marks), cycle(SHAPES), strict=False))
    rows = -(-len(legend) // 3) + (-(-len(shapes) // 3) if len(shapes) > 1 else 0)
    largest = max(mark.mib for mark in marks)
    with _figure(key, 380 + 20 * rows) as figure:
        ax = figure.add_subplot(title="Score on test (%)")
        for mark in sorted(marks, key=lambda mark: -mark.mib):  # the small ones on top
            colour = _colour(mark.colour)
            seen = 0.25 if mark.faint else 1.0
            if mark.examples and mark.runtime == marks[0].runtime:  # in the others they are about the same
                ends = [100 * end for end in intervals.wilson(mark.score, mark.examples)]
                ax.plot([mark.x] * 2, ends, color=colour, alpha=0.4 * seen, gid=f"interval-{mark.name}")
            area = 64.0 if key == "size_mib" or not largest else max(25.0, 1600 * mark.mib / largest)
            look: dict[str, Any] = {"color": colour, "markeredgecolor": _colour("card"), "linestyle": "none"}
            look |= {"marker": shapes[mark.runtime], "markersize": math.sqrt(area / SHAPES[shapes[mark.runtime]])}
            look |= {"clip_on": False, "zorder": 3, "alpha": 0.75 * seen, "gid": f"mark-{mark.name}"}
            ax.plot([mark.x], [100 * mark.score], **look)
        handles = {
            name: Line2D([], [], color=_colour(colour), marker="o", linestyle="none") for name, colour in legend.items()
        }
        for name, shape in shapes.items() if len(shapes) > 1 else ():
            handles[name] = Line2D([], [], color=_colour("ink"), marker=shape, linestyle="none")
        _log_axis(ax, x_title)
        low, high = ax.get_ylim()
        ax.set_ylim(max(0.0, low), min(100.0, high))
        figure.legend(handles.values(), handles, loc="outside lower left", ncols=3)
        return _svg(figure, key, label, {f"mark-{mark.name}": mark.tip for mark in marks})


def _log_axis(ax: Axes, title: str) -> None:
    """A logarithmic x axis for what is drawn already, with a handful of round values, written as people do."""
    from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, NullLocator

    ax.set(xscale="log", xlabel=title)
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)) if high > 5 * low else AutoLocator())
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))


def _lanes(ax: Axes, names: Sequence[str], above: float) -> None:
    """A lane an artifact, the first on top, with ``above`` of a lane's height left free over each."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -above)
    ax.tick_params(axis="y", labelcolor=_colour("ink"))
    ax.grid(visible=False, axis="y")


@contextmanager
def _figure(name: str, height: float) -> Iterator[Figure]:
    """An empty figure, 640 by ``height`` pixels; until it is drawn, matplotlib's own style with ours on top."""
    from matplotlib import style
    from matplotlib.figure import Figure

    coloured = ("text.color", "axes.labelcolor", "xtick.labelcolor", "ytick.labelcolor")
    bare = (*(f"axes.spines.{side}" for side in ("left", "right", "top", "bottom")), "xtick.bottom", "ytick.left")
    ours: dict[str, Any] = dict.fromkeys(coloured, _colour("soft")) | dict.fromkeys((*bare, "legend.frameon"), False)
    ours |= {"font.family": FONT, "font.size": 12, "axes.titlesize": 12, "axes.titlelocation": "left"}
    ours |= {"axes.grid": True, "axes.axisbelow": True, "grid.color": _colour("line")}
    ours |= {"text.parse_math": False, "figure.facecolor": "none", "axes.facecolor": "none"}
    with style.context(["default", ours | {"svg.fonttype": "none", "svg.hashsalt": name}]):
        yield Figure((640 / 72, height / 72), dpi=72, layout="constrained")


def _svg(figure: Figure, name: str, label: str, tips: Mapping[str, str]) -> str:
    """The figure as an element of the page: no prolog, the page's colours and font, ids that no other chart has.

    ``tips`` say what parts of it tell, by their ids. They are named for readers of screens and can be walked through by
    the arrow keys (see the page's script); the first is where the tabulator key stops.
    """
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    named = {repr(FONT): "var(--font)"} | {_colour(variable): f"var(--{variable})" for variable in VARIABLES}
    root, first = ElementTree.fromstring(file.getvalue()), True
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
        for key in [key for key in node.attrib if key.endswith("}href")]:
            node.set("href", node.attrib.pop(key))
        if node.tag == "g" and "id" in node.attrib:  # the other ids are hashes, salted with the chart's name
            if tip := tips.get(node.attrib["id"]):
                node.attrib |= {"class": "mark", "role": "img", "aria-label": tip, "tabindex": "0" if first else "-1"}
                title = ElementTree.Element("title")  # where there is no script
                title.text, first = tip, False
                node.insert(0, title)
            node.set("id", f"{name}-{node.attrib['id']}")
        for drawn, meant in named.items() if "style" in node.attrib else ():
            node.set("style", node.attrib["style"].replace(drawn, meant))
    root.remove(next(node for node in root if node.find("style") is not None))  # it would style the whole page
    root.attrib = {"xmlns": "http://www.w3.org/2000/svg", "class": "chart", "viewBox": root.attrib["viewBox"]}
    root.attrib |= {"role": "group", "aria-label": label, "stroke-linejoin": "round"}
    return ElementTree.tostring(root, encoding="unicode")
