"""The few parts of SVG that the charts need: elements, axes, and labels that keep out of each other's way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from edgekd.report import figures

Box = tuple[float, float, float, float]  # left, top, right, bottom

CHARACTER = 7.2
"""The width of an average character of the charts' 12-pixel labels."""


def tag(name: str, content: str = "", /, **attributes: object) -> str:
    """One element; ``content`` is markup already, attributes are escaped, ``_`` in their names becomes ``-``."""
    given = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(_short(v))}"' for key, v in attributes.items())
    return f"<{name}{given}>{content}</{name}>" if content else f"<{name}{given}/>"


def text(content: str, x: float, y: float, **attributes: object) -> str:
    """A line of text at (x, y)."""
    return tag("text", escape(content), x=x, y=y, **attributes)


def chart(label: str, width: float, height: float, parts: Sequence[str]) -> str:
    """A whole chart; ``label`` is what a screen reader says."""
    size = f"0 0 {_short(width)} {_short(height)}"
    named = {"role": "group", "aria_label": label, "xmlns": "http://www.w3.org/2000/svg"}
    return tag("svg", "".join(parts), class_="chart", viewBox=size, **named)


def mark(content: str, tip: str, **attributes: object) -> str:
    """A group that the keyboard reaches and that shows ``tip`` when it is pointed at."""
    return tag("g", content, class_="mark", tabindex=0, role="img", aria_label=tip, data_tip=tip, **attributes)


@dataclass(frozen=True)
class Axis:
    """A scale from data (``low`` < ``high``) to pixels (``start``, ``end``), linear or logarithmic."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value, kept within the axis."""
        low, high, found = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        share = min(1.0, max(0.0, (found - low) / (high - low)))
        return self.start + share * (self.end - self.start)

    def ticks(self, most: int = 7) -> list[float]:
        """Round values within the axis: at most ``most`` of them, more than one where round values allow."""
        if self.log:
            for steps in ((1, 2, 5), (1, 3), (1,)):
                first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
                found = [step * 10.0**k for k in range(first, last + 1) for step in steps]
                found = [value for value in found if self.low <= value <= self.high]
                if len(found) <= most:
                    break
            if len(found) > 1:
                return found
        span = self.high - self.low
        unit = 10.0 ** math.floor(math.log10(span / most))
        step = next(unit * k for k in (1, 2, 5, 10, 20) if span / (unit * k) <= most - 1)
        return [k * step for k in range(math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9) + 1)]


def around(values: Sequence[float], log: bool, room: float = 0.08) -> tuple[float, float]:
    """(low, high) that hold the values with some room at both ends; some width even for a single value."""
    low, high = min(values), max(values)
    if log:
        factor = max((high / low) ** room, 1.25)
        return low / factor, high * factor
    margin = max((high - low) * room, abs(high) * 1e-3, 1e-6)
    return low - margin, high + margin


def bottom_axis(axis: Axis, y: float, top: float, title: str) -> str:
    """Grid lines from ``top`` down to ``y``, the ticks' values, and the title below."""
    parts = []
    for value in axis.ticks():
        x = axis.at(value)
        parts.append(tag("line", x1=x, x2=x, y1=top, y2=y, class_="grid"))
        parts.append(
            text(
                figures.number(value).rstrip("0").rstrip(".")
                if "." in figures.number(value)
                else figures.number(value),
                x,
                y + 16,
                text_anchor="middle",
                class_="tick",
            )
        )
    return "".join(parts) + text(title, (axis.start + axis.end) / 2, y + 36, text_anchor="middle", class_="title")


def left_axis(axis: Axis, x: float, right: float, title: str, scale: float = 1.0) -> str:
    """Grid lines from ``x`` to ``right``, the ticks' values times ``scale``, and the title above."""
    found = axis.ticks(6)
    digits = max(0, -math.floor(math.log10(scale * abs(found[1] - found[0])) + 1e-9)) if len(found) > 1 else 1
    parts = []
    for value in found:
        y = axis.at(value)
        parts.append(tag("line", x1=x, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(text(f"{scale * value:.{digits}f}", x - 8, y + 4, text_anchor="end", class_="tick"))
    return "".join(parts) + text(title, x, min(axis.start, axis.end) - 12, class_="title")


def place(labels: Sequence[tuple[float, float, str]], taken: Sequence[Box], within: Box) -> list[tuple[float, float]]:
    """Where labels of points (x, y, text) go, as left ends of their baselines: near, and clear of each other.

    Tries right and left of the point, ever further up and down; a label that finds no room sits beside its point.
    """
    boxes, found = list(taken), []
    for x, y, content in labels:
        width = CHARACTER * len(content)
        spots = [(x + 10, y + 4 + dy) for dy in _nearby()] + [(x - 10 - width, y + 4 + dy) for dy in _nearby()]
        spots.sort(key=lambda spot: abs(spot[1] - y - 4))
        best = next((s for s in spots if _free(_box(*s, width), boxes, within)), spots[0])
        boxes.append(_box(*best, width))
        found.append(best)
    return found


def _nearby() -> list[float]:
    return [sign * 7.0 * k for k in range(12) for sign in (1, -1)]


def _box(x: float, y: float, width: float) -> Box:
    return x, y - 11, x + width, y + 3


def _free(box: Box, taken: Sequence[Box], within: Box) -> bool:
    inside = box[0] >= within[0] and box[1] >= within[1] and box[2] <= within[2] and box[3] <= within[3]
    return inside and all(box[2] < t[0] or t[2] < box[0] or box[3] < t[1] or t[3] < box[1] for t in taken)


def _short(value: object) -> str:
    """Numbers with two decimals at most, so that equal charts are equal bytes and small."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)
