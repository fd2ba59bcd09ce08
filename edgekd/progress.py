"""What a person sees while a stage works: one bar on a terminal, one line every ten seconds in a log. Only stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.progress import ProgressColumn as RichColumn
from rich.progress import Task as RichTask
from rich.table import Column
from rich.text import Text

LINE_SECONDS = 10.0
"""On a stream that is no terminal, a bar prints at most one line in this time."""


class Advance(Protocol):
    """What ``Progress.bar`` yields: ``advance(1, loss=0.31)`` after each step."""

    def __call__(self, steps: int = 1, /, **fields: object) -> None:
        """Count ``steps`` as done and show ``fields``."""


class Progress:
    """Bars and log lines on ``console`` (stderr by default); ``quiet`` prints nothing."""

    def __init__(
        self, console: Console | None = None, quiet: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self.quiet = quiet
        self._clock = clock
        self._live: RichProgress | None = None

    def log(self, text: str) -> None:
        """Print one line, as it is: no markup is read from ``text``."""
        if not self.quiet:
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def bar(self, name: str, *, total: int | None, start: int = 0, unit: str = "step") -> Iterator[Advance]:
        """Show ``start`` of ``total`` ``unit`` done, the rate, the time passed and left, and the last fields given.

        ``start`` is where a resumed stage continues; it does not count into the rate. A bar may open inside another.
        """
        if self.quiet:
            yield lambda steps=1, /, **fields: None
        elif self.console.is_terminal:
            yield from self._terminal_bar(name, total, start, unit)
        else:
            yield from self._line_bar(name, total, start, unit)

    def _terminal_bar(self, name: str, total: int | None, start: int, unit: str) -> Iterator[Advance]:
        outer = self._live
        live = outer or RichProgress(*_columns(), console=self.console, refresh_per_second=2, transient=outer is None)
        if outer is None:  # Rich allows one live display: an inner bar becomes a second row of it
            self._live = live
            live.start()
        task = live.add_task(escape(name), total=total, completed=start, unit=unit, fields="")

        def advance(steps: int = 1, /, **fields: object) -> None:
            live.advance(task, steps)
            if fields:
                live.update(task, fields=_text(fields))

        try:
            yield advance
        finally:
            if outer is None:
                live.stop()
                self._live = None
            else:
                live.refresh()
                live.remove_task(task)

    def _line_bar(self, name: str, total: int | None, start: int, unit: str) -> Iterator[Advance]:
        began = printed = self._clock()
        done = shown = start
        last: dict[str, object] = {}

        def advance(steps: int = 1, /, **fields: object) -> None:
            nonlocal done, shown, printed
            done += steps
            last.update(fields)
            if self._clock() - printed >= LINE_SECONDS:
                printed, shown = self._clock(), done
                self.log(_line(name, done, total, start, unit, printed - began, last))

        yield advance
        if printed > began and done > shown:
            self.log(_line(name, done, total, start, unit, self._clock() - began, last))


class _Rate(RichColumn):
    def render(self, task: RichTask) -> Text:
        return Text(f"{task.speed:.3g} {task.fields['unit']}/s" if task.speed else "", style="cyan")


class _Fields(RichColumn):
    """The last fields; the only column that gives way on a narrow terminal."""

    def render(self, task: RichTask) -> Text:
        return Text(task.fields["fields"], no_wrap=True, overflow="ellipsis")


def _columns() -> tuple[RichColumn, ...]:
    fixed = partial(Column, no_wrap=True)
    return (
        TextColumn("{task.description}", table_column=fixed()),
        BarColumn(bar_width=12, table_column=fixed()),
        TextColumn("{task.completed:.0f}/{task.total} {task.fields[unit]}", table_column=fixed()),
        _Rate(table_column=fixed()),
        TimeElapsedColumn(table_column=fixed()),
        TextColumn("left", table_column=fixed()),
        TimeRemainingColumn(table_column=fixed()),
        _Fields(),
    )


def _text(fields: dict[str, object]) -> str:
    return " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in fields.items())


def _line(
    name: str, done: int, total: int | None, start: int, unit: str, seconds: float, last: dict[str, object]
) -> str:
    rate = (done - start) / seconds if seconds > 0 else 0.0
    parts = [f"{name} {done}/{total} {unit}" if total is not None else f"{name} {done} {unit}"]
    if total:
        parts.append(f"{done / total:.0%}")
    parts.append(f"{rate:.3g} {unit}/s")
    parts.append(f"{duration(seconds)} passed")
    if total is not None and rate > 0 and done < total:
        parts.append(f"{duration((total - done) / rate)} left")
    if last:
        parts.append(_text(last))
    return ", ".join(parts)


def duration(seconds: float) -> str:
    """Seconds as a person reads them: ``0.4 s``, ``42 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
