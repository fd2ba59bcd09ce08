"""Rows of devices in a report; and how a machine does, read from another machine's files."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import report_fixture as made

from edgekd import spec
from edgekd.bench import conditions, sustained
from edgekd.cli.device import seconds
from edgekd.errors import StoreError, UsageError
from edgekd.report import conclude, devices, figures, files, html, markdown, schema
from edgekd.stages import verdict
from edgekd.store import Stage, sha256, write_json

MODEL = "b" * 64
NAME = "Raspberry Pi 5 Model B Rev 1.0"
STATE = {"governor": "ondemand", "temperature_c": 51.2, "frequency_mhz": 2400.0, "available_mib": 6000, "load": 0.1}
STATE |= {"throttled": False, "throttle_events": None}


def entry(**changes: Any) -> dict[str, Any]:
    found = {
        "name": NAME,
        "by": "edgekd's harness over ssh",
        "imported": False,
        "measured": "2026-11-23T10:00:00+00:00",
    }
    found |= {"missing": [], "machine": {"cpu": NAME, "isa": "aarch64", "flags": ["asimddp"]}, "versions": {}}
    found |= {"before": STATE, "after": STATE | {"temperature_c": 70.0}, "throttled": False, "sustained": None}
    return found | changes


def proxied(table: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    """A report whose machine is only a stand-in."""
    device = spec.Device(name="Raspberry Pi 5", isa="aarch64", features=("asimddp",))
    return made.report(
        table, device=device, quant=spec.Quant(scheme="s8s8_static", calibration="reuters_r8"), **changes
    )


def recorded(folder: Path, rows: list[dict[str, Any]] | None = None, **changes: Any) -> dict[str, Any]:
    device = entry(**changes)
    return devices.record(devices.folder(folder, device["name"], MODEL), MODEL, device, rows or made.rows())


def test_every_row_of_a_stand_in_is_marked_and_so_is_every_sentence_on_its_times() -> None:
    report = proxied()
    assert {row["measured_on"] for row in report["rows"]} == {"host-proxy"}
    slow = proxied(table=made.rows(speed={"student_qad": 3.0}))
    assert any("SLOWER" in line for line in slow["headline"])
    for line in (*report["headline"], *slow["headline"]):
        if "as fast" in line or "its time" in line or line.startswith("BUDGET"):
            assert "host-proxy" in line, line
    text, page = markdown.render(report), html.render(report)
    assert all("host-proxy" in line for line in text.splitlines() if line.startswith("### "))
    body = page.partition('<table id="table"')[2].partition("</table>")[0]
    assert body.count('<span class="tag">host-proxy</span>') == len(report["rows"])
    ship = text.partition("## What to ship where")[2].partition("\n## ")[0]
    said = [line for line in ship.splitlines() if "as fast as" in line]
    cards = page.partition('<div class="runtimes">')[2].partition("</section>")[0]
    assert len(said) == cards.count('<span class="tag open">host-proxy</span>') == len(report["ship"])
    assert all("host-proxy" in line for line in said)
    tips = [tip.partition('"')[0] for tip in page.split(' aria-label="')[1:]]
    timed = [tip for tip in tips if " ms" in tip]
    assert len(timed) > len(made.ARTIFACTS) and all("host-proxy" in tip for tip in timed)
    assert {row["measured_on"] for row in made.report()["rows"]} == {"device"}


def test_the_budget_is_judged_where_the_device_itself_was_measured(tmp_path: Path) -> None:
    report = proxied()
    slower = made.rows(speed=dict.fromkeys(made.ARTIFACTS, 10.0))
    merged = conclude.again(devices.merge(report, [recorded(tmp_path, slower)]))
    schema.validate(merged)
    p50 = {line["name"]: line for line in merged["budget"]}["p50_ms"]
    there = figures.find(
        merged["rows"], "student_qad", {"runtime": "ort_cpu", "threads": 1, "workload": "real", "host": NAME}
    )
    assert there is not None and p50["measured"] == there["p50_ms"] and p50["met"] is False
    assert f"Times and memory are those of {NAME}." in merged["headline"][0]
    assert any(line.startswith(f"On {NAME} the int8 student takes") for line in merged["headline"])
    size = {line["name"]: line for line in merged["budget"]}["size_mib"]
    assert size == {line["name"]: line for line in report["budget"]}["size_mib"]  # bytes are bytes anywhere


def test_a_machine_that_is_the_device_is_not_overruled_by_another(tmp_path: Path) -> None:
    report = made.report()
    merged = conclude.again(devices.merge(report, [recorded(tmp_path, made.rows(speed={"student_qad": 50.0}))]))
    assert merged["budget"] == report["budget"] and merged["budget_met"] is True


def test_a_report_concludes_the_same_again_and_merging_twice_is_merging_once(tmp_path: Path) -> None:
    report = made.report()
    assert conclude.again(report) == report
    record = recorded(tmp_path)
    once = conclude.again(devices.merge(report, [record]))
    assert conclude.again(devices.merge(once, [record])) == once
    assert len(once["rows"]) == 2 * len(report["rows"])
    assert conclude.again(devices.merge(once, [])) == report


def test_a_device_whose_record_is_elsewhere_stays_in_the_report(tmp_path: Path) -> None:
    report = made.report()
    record = devices.record(tmp_path / "here", MODEL, entry(), made.rows(), report["latency"][:3])
    shipped = conclude.again(devices.merge(report, [record]))
    recorded(tmp_path / "there", name="Another")
    for _ in range(2):
        written = files.merge(shipped, tmp_path / "there", MODEL)
        assert written is not None
        found = schema.load(written)
        assert [one["name"] for one in found["devices"]] == ["Another", NAME]
        for part in ("rows", "latency"):
            mine = [row for row in found[part] if row.get("host") == NAME]
            assert mine == [row for row in shipped[part] if row.get("host") == NAME]


def test_records_are_found_by_the_file_they_are_of_and_a_damaged_one_is_told(tmp_path: Path) -> None:
    first, _ = recorded(tmp_path), recorded(tmp_path, name="Another")
    assert [record["device"]["name"] for record in devices.recorded(tmp_path, MODEL)] == ["Another", NAME]
    assert devices.recorded(tmp_path, MODEL)[1] == first
    assert devices.recorded(tmp_path, "c" * 64) == []
    (devices.folder(tmp_path, NAME, MODEL) / devices.NAME).write_text("{")
    with pytest.raises(StoreError, match="measure there again"):
        devices.recorded(tmp_path, MODEL)


def test_the_next_run_of_the_line_keeps_what_devices_found_of_the_same_file(tmp_path: Path) -> None:
    stages = {}
    for name, path in made.folders(tmp_path / "store").items():
        write_json(path / "manifest.json", {"seconds": 1.0})
        stages[name] = Stage(name, "0" * 16, path)
    write_json(stages["bench"].path / "environment.json", {"machine": made.MACHINE, "versions": made.VERSIONS})
    model = stages["export"].path / "student_qad" / "model.onnx"
    model.parent.mkdir()
    model.write_bytes(b"shipped")
    out = tmp_path / "reuters_x86"
    device = entry()
    devices.record(devices.folder(out, NAME, sha256(model)), sha256(model), device, made.rows())
    verdict.run(made.target(), stages, out)
    assert [one["name"] for one in schema.load(out / "report.json")["devices"]] == [NAME]
    model.write_bytes(b"another")
    verdict.run(made.target(), stages, out)
    assert schema.load(out / "report.json")["devices"] == []


def test_both_renderings_show_a_device_its_heat_and_its_long_run(tmp_path: Path) -> None:
    one = {"p90_ms": 2.0, "calls": 9, "temperature_c": 60.0, "frequency_mhz": None}
    minutes = [{"minute": n, "p50_ms": 1.0 + 0.1 * n} | one for n in range(1, 11)]
    long = {"runtime": "ort_cpu", "threads": 1, "workload": "real", "seconds": 600, "minutes": minutes}
    record = recorded(tmp_path, throttled=True, sustained=long | {"slowdown": 2.0 / 1.1, "throttled": True})
    report = conclude.again(devices.merge(made.report(), [record]))
    schema.validate(report)
    told = (
        "10 minutes of calls without a pause (onnxruntime, 1 thread, real lengths): p50 1.10 ms in the first minute, "
    )
    told += "2.00 ms in the last, 1.82× the time; the system held the clock back."
    for page in (markdown.render(report), html.render(report).replace("&#39;", "'")):
        assert told in page and "51.2, 70.0 °C" in page
    assert any(line.startswith(f"{NAME} held its clock back") for line in report["limits"])


@pytest.mark.parametrize(("missing", "marked"), [([], False), (["asimddp"], True)])
def test_the_long_run_of_a_stand_in_is_marked(missing: list[str], marked: bool) -> None:
    minutes = [{"minute": 1, "p50_ms": 1.0}, {"minute": 2, "p50_ms": 2.0}]
    long = {"runtime": "ort_cpu", "threads": 1, "workload": "real", "minutes": minutes, "slowdown": 2.0}
    told = devices.sustained(entry(missing=missing, sustained=long | {"throttled": None}))
    assert told is not None and ("host-proxy" in told) == marked


def test_a_device_that_no_field_describes_is_refused(tmp_path: Path) -> None:
    report = conclude.again(devices.merge(made.report(), [recorded(tmp_path)]))
    broken = copy.deepcopy(report)
    broken["rows"][-1]["measured_on"] = "somewhere"
    with pytest.raises(StoreError, match=r"rows\[\d+\]\.measured_on"):
        schema.validate(broken)


# ----------------------------------------------------------------------------------------------------------- conditions


def board(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_conditions_are_read_as_linux_tells_them(tmp_path: Path) -> None:
    root = board(
        tmp_path,
        {
            "sys/class/thermal/thermal_zone0/temp": "48300\n",
            "sys/class/thermal/thermal_zone1/temp": "61250\n",
            "sys/class/thermal/thermal_zone2/temp": "-274000\n",  # a sensor that is off
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "ondemand\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1800000\n",
            "proc/meminfo": "MemTotal: 4000000 kB\nMemAvailable:    2097152 kB\n",
            conditions.PI_THROTTLED: "50005\n",
        },
    )
    found = conditions.conditions(root)
    assert (found["temperature_c"], found["governor"], found["frequency_mhz"]) == (61.25, "ondemand", 1800.0)
    assert (found["available_mib"], found["throttled"], found["throttle_events"]) == (2048, True, None)
    empty = conditions.conditions(tmp_path / "nothing")
    assert {name for name, value in empty.items() if value is not None} == {"load"}


def test_throttling_is_what_the_system_counted_meanwhile(tmp_path: Path) -> None:
    count = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"
    before = conditions.conditions(board(tmp_path, {count: "7"}))
    same = conditions.conditions(tmp_path)
    after = conditions.conditions(board(tmp_path, {count: "9"}))
    unknown = conditions.conditions(tmp_path / "nothing")
    assert [conditions.throttled(before, one) for one in (same, after)] == [False, True]
    assert conditions.throttled(unknown, unknown) is None


def test_a_long_run_is_told_by_the_minute() -> None:
    minute = np.repeat([0, 1, 2], [4, 3, 2])
    call_ns = np.array([10, 20, 30, 41, 2, 4, 6, 50, 60]) * 1_000_000
    states = [{"temperature_c": 50.0 + n, "frequency_mhz": 1000.0} for n in range(3)]
    found = sustained.summary({"minute": minute, "call_ns": call_ns}, states)
    assert [(one["minute"], one["p50_ms"], one["calls"]) for one in found["minutes"]] == [
        (1, 25, 4),
        (2, 4, 3),
        (3, 55, 2),
    ]
    assert [one["temperature_c"] for one in found["minutes"]] == [50, 51, 52]
    assert found["slowdown"] == 55 / 25


@pytest.mark.parametrize(("text", "expected"), [("10m", 600), ("90s", 90), ("1.5h", 5400)])
def test_lengths_of_time_are_read(text: str, expected: float) -> None:
    assert seconds(text) == expected


@pytest.mark.parametrize("text", ["10", "0m", "m", "-1s", "1d", ""])
def test_what_is_no_length_of_time_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        seconds(text)
