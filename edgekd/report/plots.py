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
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from edgekd.report import figures, intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = Mapping[str, Any]

VARIABLES = ["ink", "soft", "line", "card", *(f"a-{name}" for name in figures.ARTIFACTS)]
VARIABLES += [f"k-{kind}" for kind in figures.KINDS]
"""The style variables of the page that the charts are drawn in."""

FONT = "DejaVu Sans"  # comes with matplotlib, and is wider than what the page then writes in: labels keep their room


def accuracy_against_size(report: Mapping[str, Any]) -> str | None:
    """Score on test against file size, one mark an artifact, in the runtime the budget is judged in."""
    rows = [row for row in _main(report["rows"]) if row["score"] is not None and row["size_mib"]]
    return _scatter(report, rows, "size_mib", "Size (MiB, log scale)", "Score against size")


def accuracy_against_latency(report: Mapping[str, Any]) -> str | None:
    """Score on test against p50 at real lengths, one thread; shapes tell runtimes, areas grow with the file's size."""
    rows = [r for r in _own(report["rows"]) if (r["workload"], r["threads"]) == ("real", 1)]
    rows = [row for row in _ordered(rows) if row["valid"] and row["score"] is not None and row["p50_ms"]]
    return _scatter(report, rows, "p50_ms", "p50 (ms, log scale)", "Score against latency")


def latency(report: Mapping[str, Any]) -> str | None:
    """How the calls were distributed: a histogram an artifact where samples were kept, with p50, p90 and p99."""
    rows = [row for row in _main(report["rows"]) if row["valid"] and row["p50_ms"]]
    if not rows:
        return None
    histograms = {figures.key(h): h for h in report["latency"]}
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
            ax.plot([p50, p99], [i, i], color=colour, linewidth=2)
            ax.plot([p90, p99], [i, i], "|", color=colour, markersize=11, markeredgewidth=2, gid=f"tail-{name}")
            ax.plot([p50], [i], "o", color=colour, markersize=9, markeredgecolor=_colour("card"), gid=f"p50-{name}")
        _log_axis(ax, "Time of a call (ms, log scale)")
        return _svg(figure, "latency", "Distribution of latency")


def size_by_kind(report: Mapping[str, Any]) -> str | None:
    """What the bytes of each artifact are; a second panel enlarges the students where the teacher dwarfs them."""
    sizes = {name: found for name, found in figures.by_kind(report["sizes"]).items() if found}
    if not sizes:
        return None
    from matplotlib.patches import Patch

    small = {name: found for name, found in sizes.items() if name.startswith("student")}
    most, least = (max((sum(v.values()) for v in part.values()), default=0) for part in (sizes, small))
    panels = {"": sizes}
    if small and len(small) < len(sizes) and most > 3 * least:
        panels = {"All at one scale": sizes, "The students, enlarged": small}
    heights = [len(shown) for shown in panels.values()]
    with _figure("size", 30 + sum(64 + 30 * height for height in heights)) as figure:
        axes = figure.subplots(len(panels), squeeze=False, height_ratios=heights)
        for ax, (title, shown) in zip(axes.flat, panels.items(), strict=True):
            _lanes(ax, [figures.artifact(name, figures.precision(report)) for name in shown], above=0.5)
            ax.set(title=title, xlabel="MiB", xmargin=0.12)  # the margin has room for the totals
            ends = [0.0] * len(shown)
            for kind in figures.KINDS:
                part = [found.get(kind, 0) / 2**20 for found in shown.values()]
                bars = ax.barh(range(len(shown)), part, height=0.66, left=ends, color=_colour(f"k-{kind}"))
                for name, bar in zip(shown, bars, strict=True):
                    bar.set_gid(f"{title[:3]}-{kind}-{name}")
                ends = [end + more for end, more in zip(ends, part, strict=True)]
            for i, end in enumerate(ends):
                ax.annotate(figures.number(end), (end, i), (6, 0), textcoords="offset points", va="center")
        handles = {kind: Patch(color=_colour(f"k-{kind}")) for kind in figures.kinds(report["sizes"])}
        figure.legend(handles.values(), handles, loc="outside lower left", ncols=5)
        return _svg(figure, "size", "Size by kind of tensor")


# ------------------------------------------------------------------------------------------------------------- drawing


def _ordered(rows: Iterable[Row]) -> list[Row]:
    return [row for _, part in figures.groups(rows) for row in part]


def _main(rows: Sequence[Row]) -> list[Row]:
    """The rows of the first runtime at real lengths, one thread, in the artifacts' order."""
    first = rows[0]["runtime"] if rows else ""
    return _ordered(r for r in _own(rows) if (r["runtime"], r["threads"], r["workload"]) == (first, 1, "real"))


def _own(rows: Iterable[Row]) -> Iterator[Row]:
    """What the run's own machine measured: times of two machines do not belong on one axis."""
    return (row for row in rows if figures.device(row) is None)


def _colour(name: str) -> str:
    """What stands for a style variable until ``_svg`` names it; an artifact unknown to the page has no own colour."""
    return f"#ed9e{VARIABLES.index(name if name in VARIABLES else 'soft'):02x}"


def _scatter(report: Mapping[str, Any], rows: Sequence[Row], key: str, x_title: str, label: str) -> str | None:
    if not rows:
        return None
    from matplotlib.lines import Line2D

    test = report["task"]["counts"].get("test", 0)
    shapes = dict(zip(dict.fromkeys(row["runtime"] for row in rows), cycle("os^D"), strict=False))
    with _figure(key, 430) as figure:
        ax = figure.add_subplot(title="Score on test (%)")
        handles = {}
        for row in rows:
            colour, name = _colour(f"a-{row['artifact']}"), f"{row['artifact']}-{row['runtime']}"
            ends = [100 * end for end in (intervals.wilson(row["score"], test) if test else ())]
            ax.plot([row[key]] * len(ends), ends, color=colour, alpha=0.45, gid=f"interval-{name}")
            size = 9 if key == "size_mib" else 6 + 2 * math.sqrt(math.log2(1 + (row["size_mib"] or 0)))
            look: dict[str, Any] = {"color": colour, "markeredgecolor": _colour("card"), "linestyle": "none"}
            look |= {"marker": shapes[row["runtime"]], "clip_on": False, "zorder": 3, "gid": f"mark-{name}"}
            ax.plot([row[key]], [100 * row["score"]], markersize=size, **look)
            handles[figures.artifact(row["artifact"], figures.precision(report))] = Line2D(
                [], [], color=colour, marker="o", linestyle="none"
            )
        for name, shape in shapes.items() if len(shapes) > 1 else ():
            handles[figures.runtime(name)] = Line2D([], [], color=_colour("ink"), marker=shape, linestyle="none")
        _log_axis(ax, x_title)
        low, high = ax.get_ylim()
        ax.set_ylim(max(0.0, low), min(100.0, high))
        figure.legend(handles.values(), handles, loc="outside lower left", ncols=3)
        return _svg(figure, key, label)


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


def _svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an element of the page: no prolog, the page's colours and font, ids that no other chart has."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    named = {repr(FONT): "var(--font)"} | {_colour(variable): f"var(--{variable})" for variable in VARIABLES}
    root = ElementTree.fromstring(file.getvalue())
    for node in root.iter():
        node.tag = node.tag.rpartition("}")[2]
        for key in [key for key in node.attrib if key.endswith("}href")]:
            node.set("href", node.attrib.pop(key))
        if node.tag == "g" and "id" in node.attrib:  # the other ids are hashes, salted with the chart's name
            node.set("id", f"{name}-{node.attrib['id']}")
        for drawn, meant in named.items() if "style" in node.attrib else ():
            node.set("style", node.attrib["style"].replace(drawn, meant))
    root.remove(next(node for node in root if node.find("style") is not None))  # it would style the whole page
    root.attrib = {"xmlns": "http://www.w3.org/2000/svg", "class": "chart", "viewBox": root.attrib["viewBox"]}
    root.attrib |= {"role": "img", "aria-label": label, "stroke-linejoin": "round"}
    return ElementTree.tostring(root, encoding="unicode")
