from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from edgekd.progress import LINE_SECONDS, Progress, duration


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def to_file() -> tuple[Progress, io.StringIO, Clock]:
    stream, clock = io.StringIO(), Clock()
    return Progress(Console(file=stream, width=80), clock=clock), stream, clock


def test_a_stream_that_is_no_terminal_gets_at_most_one_line_in_ten_seconds() -> None:
    progress, stream, clock = to_file()
    with progress.bar("distill", total=1000) as advance:
        for _ in range(1000):
            clock.now += 0.125
            advance(1, loss=0.5)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 125 // LINE_SECONDS + 1  # and the last one
    assert all(line.startswith("distill ") for line in lines)


def test_a_line_tells_done_total_rate_time_passed_time_left_and_the_last_fields() -> None:
    progress, stream, clock = to_file()
    with progress.bar("distill", total=400, start=100) as advance:
        for i in range(100):
            clock.now += 0.25
            advance(1, loss=1 / (i + 1), epoch=3)
    line = stream.getvalue().splitlines()[0]
    assert line == "distill 140/400 step, 35%, 4 step/s, 10 s passed, 1 min 05 s left, loss 0.025 epoch 3"


def test_what_is_over_in_seconds_prints_no_line() -> None:
    progress, stream, clock = to_file()
    with progress.bar("assets", total=3) as advance:
        for _ in range(3):
            clock.now += 1
            advance()
    assert stream.getvalue() == ""


def test_a_terminal_gets_a_bar_with_eta_and_fields() -> None:
    stream = io.StringIO()
    progress = Progress(Console(file=stream, force_terminal=True, width=160, color_system=None))
    with progress.bar("distill", total=10, unit="step") as advance:
        for _ in range(10):
            advance(1, loss=0.25)
        with progress.bar("evaluate [x]", total=2, unit="batch") as inner:
            inner(2, score=0.5)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    assert "10/10 step" in shown
    assert "loss 0.25" in shown
    assert "evaluate [x]" in shown
    assert "2/2 batch" in shown


def test_a_bar_fits_eighty_columns_and_only_the_fields_give_way() -> None:
    stream = io.StringIO()
    progress = Progress(Console(file=stream, width=80, force_terminal=True, _environ={}))
    with progress.bar("bench", total=125, unit="process") as advance:
        advance(7, last="teacher_ort_dynamic", p50_ms=5.4321)
        with progress.bar("quantize: scoring validation", total=549, unit="example") as inner:
            inner(64)
    lines = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line) for line in stream.getvalue().replace("\r", "\n").splitlines()]
    shown = [line.rstrip() for line in lines if line.strip()]
    assert all(len(line) <= 80 for line in shown)
    assert all(line.startswith(("bench ", "quantize: scoring validation ")) for line in shown)  # no second line
    assert any("7/125 process" in line and "left" in line and "last" in line for line in shown)


def test_an_error_inside_a_bar_passes_and_leaves_the_next_bar_working() -> None:
    progress = Progress(Console(file=io.StringIO(), force_terminal=True))
    with pytest.raises(ZeroDivisionError), progress.bar("a", total=1):
        raise ZeroDivisionError
    with progress.bar("b", total=1) as advance:
        advance()


def test_quiet_prints_nothing() -> None:
    stream = io.StringIO()
    progress = Progress(Console(file=stream), quiet=True)
    progress.log("no")
    with progress.bar("x", total=1) as advance:
        advance(1, loss=0.1)
    assert stream.getvalue() == ""


def test_a_log_line_is_printed_as_it_is_and_never_wrapped() -> None:
    progress, stream, _ = to_file()
    text = "[bold]not markup[/bold] " + "x" * 200
    progress.log(text)
    assert stream.getvalue() == text + "\n"


@given(st.floats(0, 1e6))
def test_a_duration_reads_back_to_within_its_last_digit(seconds: float) -> None:
    units = {"s": 1, "min": 60, "h": 3600}
    parts = duration(seconds).split()
    read = sum(float(n) * units[u] for n, u in zip(parts[::2], parts[1::2], strict=True))
    assert abs(read - seconds) <= {"s": 0.5, "min": 60}[parts[-1]] + 1e-6
