"""A report's first lines: whether the budget is met, then what failed, then what is unknown, then what is good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekd.report import figures, verdicts

Row = Mapping[str, Any]

SMOKE = "SMOKE: a run cut to minutes to try the line; its figures say nothing about the target."

BUDGET = {
    "p50_ms": "p50",
    "p90_ms": "p90",
    "size_mib": "size",
    "peak_rss_mib": "peak RSS",
    "score_kept": "share of the teacher's score",
    "speedup": "speed-up over the teacher",
    "shrink": "times smaller than the teacher",
}
"""Budget field -> its name for people."""

TIMED = ("p50_ms", "p90_ms", "peak_rss_mib", "speedup")
"""Those that are another machine's where the figures are a stand-in's."""

_BAD, _UNKNOWN, _GOOD = range(3)
_Line = tuple[int, str]


def headline(
    smoke: bool,
    budget: Sequence[dict[str, Any]],
    speed: Sequence[dict[str, Any]],
    today: Sequence[dict[str, Any]],
    quality: dict[str, Any],
    ptq: str,
    rows: Sequence[Row],
    runtime: str,
    precision: str = "int8",
    black_box: Row | None = None,
    host: str | None = None,
    choices: Sequence[Row] = (),
) -> list[str]:
    """The lines, worst first after the budget's.

    ``budget`` from ``verdicts.budget_lines``; ``speed`` is what ships against the fp32 student and ``today`` against
    the teacher with ORT's dynamic quantization, both from ``verdicts.race``; ``quality`` from ``verdicts.quality``.
    ``ptq`` says how the best PTQ was made; ``runtime`` is the one that the budget is judged in, ``precision`` what the
    shipped student is called by; ``black_box`` and ``host`` as in ``verdicts.budget_lines``; ``choices`` from
    ``choice.choices``.
    """
    like = {"runtime": runtime, "threads": 1, "workload": "real", "host": None}
    found = [*_speed(speed, like, precision, rows, choices), *_size(rows, like, precision)]
    found += _quality(quality, ptq, rows, like)
    found = [*found, *_today(today, like, precision), *_product(rows, like, precision, black_box)]
    found += _devices(rows, like, precision)
    bad = any(rank == _BAD for rank, _ in found)
    lines = [
        _budget(budget, bad) + _whose_times(budget, rows, host),
        *(text for _, text in sorted(found, key=lambda line: line[0])),
    ]
    return [SMOKE, *lines] if smoke else lines


def budget_text(line: dict[str, Any]) -> str:
    """One budget line in words: ``p90 2.31 ms (at most 2.00 ms)``."""
    measured, limit = (figures.amount(line[name], line["unit"]) for name in ("measured", "limit"))
    text = f"{BUDGET.get(line['name'], line['name'])} {measured} ({line['sense']} {limit}"
    if line["measured"] is None:
        text += f"; {line['why']}"
    elif line["low"] is not None and line["low"] < line["limit"] < line["high"]:
        text += f"; the limit lies within the noise, 95%: {figures.span(line['low'], line['high'])}"
    return text + ")"


def _budget(lines: Sequence[dict[str, Any]], bad: bool) -> str:
    failed = [budget_text(line) for line in lines if line["met"] is False]
    undecided = [line for line in lines if line["met"] is None]
    open_ = _open(undecided)
    if not lines:
        return "NO BUDGET is set in the target: nothing was asked."
    if failed:
        rest = f" Not decided: {'; '.join(open_)}." if open_ else ""
        return f"BUDGET FAILED, {len(failed)} of {len(lines)}: {'; '.join(failed)}.{rest}"
    if open_:
        return f"BUDGET UNDECIDED, {len(undecided)} of {len(lines)} could not be judged: {'; '.join(open_)}."
    return f"BUDGET MET, {len(lines)} of {len(lines)}" + (", but read what follows." if bad else ".")


def _whose_times(lines: Sequence[dict[str, Any]], rows: Sequence[Row], host: str | None) -> str:
    if host is not None:
        return f" Times and memory are those of {host}."
    if lines and any(figures.device(row) is None and row.get("measured_on") == figures.PROXY for row in rows):
        return f" Times and memory are a stand-in's ({figures.PROXY})."
    return ""


def _open(lines: Sequence[dict[str, Any]]) -> list[str]:
    """Lines that could not be judged; those of one reason together, since one row has many figures."""
    reasons: dict[str, list[str]] = {}
    for line in lines:
        if line["measured"] is None:
            reasons.setdefault(str(line["why"]), []).append(BUDGET.get(line["name"], line["name"]))
    missing = [f"{', '.join(names)} not measured ({why})" for why, names in reasons.items()]
    return [budget_text(line) for line in lines if line["measured"] is not None] + missing


def _main(lines: Sequence[dict[str, Any]], like: Row) -> dict[str, Any] | None:
    return next((x for x in lines if all(x.get(k) == like[k] for k in like)), None)


def _interval(line: dict[str, Any]) -> str:
    return f"95%: {figures.span(line['low'], line['high'])}; {figures.where(line)}"


def _speed(
    lines: Sequence[dict[str, Any]], like: Row, precision: str, rows: Sequence[Row], choices: Sequence[Row]
) -> list[_Line]:
    """What ships against the fp32 student: the main condition, and every runtime in which it is slower or no faster."""
    slower: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        if line["verdict"] == "slower":
            slower.setdefault(figures.place(line), []).append(line)
    chosen = {figures.place(one): one for one in choices}
    found = [
        (
            _BAD,
            f"{precision} is SLOWER than the fp32 student in {', '.join([place, *figures.caveats(part[0])])}: "
            f"it takes {', '.join(map(_slower, part))}{_instead(chosen.get(place), rows, precision)}.",
        )
        for place, part in slower.items()
    ]
    main = _main(lines, like)
    judged = {figures.where(one) for one in choices}
    for line in lines:
        if line["verdict"] == "same" and line is not main and figures.where(line) in judged:
            place = figures.place(line)
            same = f"{precision} is NOT FASTER than the fp32 student in {place}: {figures.ratio(line['ratio'])}"
            found.append((_UNKNOWN, f"{same} ({_interval(line)}){_instead(chosen[place], rows, precision)}."))
    word = main["verdict"] if main else "unknown"
    why = main["why"] if main else "they were not both measured"
    if word == "unknown":
        found.append((_UNKNOWN, f"Whether {precision} is faster than the fp32 student is unknown: {why}."))
    elif main and word != "slower":
        times, told = figures.ratio(main["ratio"]), f"({_interval(main)})"
        faster = f"{precision} is {times} as fast as the fp32 student"
        same = f"{precision} bought no speed over the fp32 student"
        instead = _instead(chosen.get(figures.place(main)), rows, precision)
        alike = (_UNKNOWN, f"{same}: {times} {told}{instead}.")
        found.append((_GOOD, f"{faster} {told}.") if word == "faster" else alike)
    return found


def _instead(choice: Row | None, rows: Sequence[Row], precision: str) -> str:
    """What to ship in a runtime in which the shipped file is not the faster one."""
    if choice is None or choice["artifact"] is None:
        return "" if choice is None else "; no other file keeps there what is asked"
    if choice["artifact"] != verdicts.SHIPPED:
        return f"; ship the {figures.artifact(choice['artifact'], precision)} there instead"
    if why := choice["refused"].get("student_fp32"):
        return f"; ship it there all the same, since the fp32 student is no choice ({why})"
    mine, its = (figures.find(rows, name, choice) for name in (verdicts.SHIPPED, "student_fp32"))
    sizes = [figures.amount(row["size_mib"], "MiB") for row in (mine, its) if row]
    return f"; at {figures.workload(choice['workload'])} it is what to ship there ({' against '.join(sizes)})"


def _slower(line: dict[str, Any]) -> str:
    span = figures.span(1 / line["high"], 1 / line["low"])
    threads = "" if line["threads"] == 1 else f", {line['threads']} threads"
    times = figures.ratio(1 / line["ratio"])
    return f"{times} its time at {figures.workload(line['workload'])}{threads} (95%: {span})"


def _size(rows: Sequence[Row], like: Row, precision: str) -> list[_Line]:
    shipped, fp32 = (figures.find(rows, name, like) for name in ("student_qad", "student_fp32"))
    mine, its = ((row or {}).get("size_bytes") for row in (shipped, fp32))
    if mine is None or its is None or mine < its:
        return []
    return [(_BAD, f"{precision} is NOT SMALLER than the fp32 student: {mine:,} bytes against {its:,}.")]


def _quality(found: dict[str, Any], how: str, rows: Sequence[Row], like: Row) -> list[_Line]:
    qad, ptq = (
        figures.percent((figures.find(rows, name, like) or {}).get("score")) for name in ("student_qad", "student_ptq")
    )
    best = f"KD → best PTQ ({how})"
    if found == verdicts.UNTRAINED:
        return [(_UNKNOWN, f"N{found['why'][1:]}. What ships is {best}, {qad}.")]
    if found["verdict"] == "unknown":
        return [(_UNKNOWN, f"QAD against {best} ({qad} against {ptq}) is undecided: {found['why']}.")]
    middle, low, high = (figures.points(found[name]) for name in ("difference", "low", "high"))
    alone = f"right in QAD alone {found['only_first']}, in PTQ alone {found['only_second']}"
    counts = f"of {found['examples']:,} examples, {alone}"
    figure = f"{qad} against {ptq}, {middle} points (95%: {low} to {high}; {counts})"
    if found["verdict"] == "better":
        return [(_GOOD, f"QAD beats {best}: {figure}.")]
    if found["verdict"] == "worse":
        return [(_BAD, f"QAD is WORSE than {best}: {figure}; best PTQ is the one to ship.")]
    return [(_UNKNOWN, f"QAD bought nothing over {best} that this test can show: {figure}.")]


def _today(lines: Sequence[dict[str, Any]], like: Row, precision: str) -> list[_Line]:
    line = _main(lines, like)
    if line is None or line["verdict"] == "unknown":
        return []
    name = "the teacher with ORT's dynamic quantization"
    if line["verdict"] == "faster":
        return [(_GOOD, f"{precision} is {figures.ratio(line['ratio'])} as fast as {name} ({_interval(line)}).")]
    return [(_BAD, f"{precision} is NOT FASTER than {name}: {figures.ratio(line['ratio'])} ({_interval(line)}).")]


def _product(rows: Sequence[Row], like: Row, precision: str, black_box: Row | None) -> list[_Line]:
    """What the shipped student costs and keeps, against the teacher in fp32."""
    mine, its = (figures.find(rows, name, like) for name in ("student_qad", "teacher_fp32"))
    its = black_box or its
    if mine is None or its is None:
        return []
    parts = []
    if mine.get("score") is not None and its.get("score"):
        kept = figures.percent(mine["score"] / its["score"])
        scores = f"{figures.percent(mine['score'])} against {figures.percent(its['score'])}"
        parts.append(f"keeps {kept} of the teacher's score ({scores})")
    if mine.get("size_bytes") and its.get("size_bytes"):
        sizes = " against ".join(figures.amount(row.get("size_mib"), "MiB") for row in (mine, its))
        parts.append(f"is {figures.ratio(its['size_bytes'] / mine['size_bytes'])} smaller ({sizes})")
    if mine["valid"] and its["valid"] and mine.get("speedup_vs_teacher") is not None:
        span = figures.span(mine.get("speedup_low"), mine.get("speedup_high"))
        told = "; ".join(
            filter(
                None,
                [f"95%: {span}" if span else "", figures.PROXY if mine.get("measured_on") == figures.PROXY else ""],
            )
        )
        parts.append(f"is {figures.ratio(mine['speedup_vs_teacher'])} as fast at p50" + (f" ({told})" if told else ""))
    if not parts:
        return []
    text = parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
    return [(_GOOD, f"The {precision} student {text}.")]


def _devices(rows: Sequence[Row], like: Row, precision: str) -> list[_Line]:
    """What the shipped student takes on each device that measured it; at other lengths where not at real ones."""
    found: list[_Line] = []
    for host in dict.fromkeys(filter(None, map(figures.device, rows))):
        mine = [
            r for r in rows if figures.device(r) == host and r["artifact"] == verdicts.SHIPPED and r["threads"] == 1
        ]
        row = next((r for r in mine if r["workload"] == "real"), mine[0] if mine else None)
        if row is None:
            continue
        if not row["valid"]:
            found.append((_UNKNOWN, f"On {host} the {precision} student is INVALID: {row['why_invalid']}."))
            continue
        span, times = figures.span(row["speedup_low"], row["speedup_high"]), figures.ratio(row["speedup_vs_teacher"])
        ratio = f" and is {times} as fast as the teacher there" if row["speedup_vs_teacher"] is not None else ""
        text = f"On {host} the {precision} student takes {figures.amount(row['p50_ms'], 'ms')} at p50{ratio}"
        found.append((_GOOD, f"{text} ({f'95%: {span}; ' if span else ''}{figures.where({**row, 'host': None})})."))
    return found
