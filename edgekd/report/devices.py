"""What devices measured: kept beside the run by device and file, and rows of its report.

``<run>/devices/<name>-<hash>/device.json`` holds ``{"schema", "model", "device", "rows", "latency"}``: the SHA-256 of
the ``.onnx`` that ships, and what of it goes into a report's ``devices``, ``rows`` and ``latency``. The samples lie
beside.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd.devices import Device
from edgekd.errors import StoreError
from edgekd.report import figures
from edgekd.store import read_json, write_json

SCHEMA = "edgekd.device/1"
NAME = "device.json"


def measured_on(missing: Sequence[str]) -> str:
    """``device``, or ``host-proxy`` for a machine that lacks something of the device the target is for."""
    return figures.PROXY if missing else "device"


def missing(device: Mapping[str, Any], machine: Mapping[str, Any]) -> list[str]:
    """What tells a device, as a report or manifest has it, from a machine (its fingerprint): ``Device.differs``."""
    has, lacks = (tuple(device.get(name) or ()) for name in ("features", "without"))
    asked = Device(name=device["name"], isa=device["isa"], features=has, without=lacks)
    return asked.differs(machine.get("isa", asked.isa), machine.get("flags", ()))


def folder(run: Path, name: str, model: str) -> Path:
    """Where the device called ``name`` keeps what it found of the file whose SHA-256 is ``model``."""
    slug = re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:48]
    return run / "devices" / f"{slug}-{hashlib.sha256(f'{name} {model}'.encode()).hexdigest()[:8]}"


def record(
    place: Path,
    model: str,
    device: Mapping[str, Any],
    rows: Iterable[Mapping[str, Any]],
    latency: Iterable[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Write a device's record into its folder, marked as the device's, and return it."""
    host = {"host": device["name"]}
    marked = [{**row, **host, "measured_on": measured_on(device["missing"])} for row in rows]
    found = {"schema": SCHEMA, "model": model, "device": dict(device), "rows": marked}
    found["latency"] = [{**one, **host} for one in latency]
    place.mkdir(parents=True, exist_ok=True)
    write_json(place / NAME, found)
    return found


def recorded(run: Path, model: str) -> list[dict[str, Any]]:
    """The records of exactly this file, by device. Raises ``StoreError`` for a damaged one."""
    found = []
    for path in sorted(run.glob(f"devices/*/{NAME}")):
        try:
            record = read_json(path)
            if (record["schema"], record["model"]) == (SCHEMA, model):
                found.append((record["device"]["name"], record))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise StoreError(f"cannot read {path} ({error}); delete its folder and measure there again") from error
    return [record for _, record in sorted(found, key=lambda pair: str(pair[0]))]


def merge(report: Mapping[str, Any], records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The report with the rows of these devices in the place of what it had of any; conclusions are not drawn."""
    found = dict(report)
    records = list(records)
    found["devices"] = [record["device"] for record in records]
    for part in ("rows", "latency"):
        own = [row for row in report[part] if figures.device(row) is None]
        found[part] = own + [row for record in records for row in record[part]]
    return found


def judge(report: Mapping[str, Any], runtime: str) -> str | None:
    """The device on which a budget's times are judged; ``None``: the run's own machine.

    That is the first which is what the target is for and measured the shipped student in ``runtime``, one thread, real
    lengths, where the own machine is only a stand-in.
    """
    if not report["device"]["missing"]:
        return None
    like = {"runtime": runtime, "threads": 1, "workload": "real"}
    for device in report["devices"]:
        row = figures.find(report["rows"], "student_qad", {**like, "host": device["name"]})
        if not device["missing"] and row is not None and row["valid"]:
            return str(device["name"])
    return None


def stand_in(report: Mapping[str, Any]) -> bool:
    """Whether the times that a report's budget is judged by are those of a machine that is not the device."""
    runtime = report["rows"][0]["runtime"] if report["rows"] else ""
    return bool(report["device"]["missing"]) and judge(report, runtime) is None


HEAD = ("Device", "Stands for the target's", "Measured by", "Temperature before, after", "Governor", "Clock held back")


def row(device: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells under ``HEAD``."""
    before, after = device["before"] or {}, device["after"] or {}
    heat = ", ".join(figures.number(state.get("temperature_c")) for state in (before, after))
    slow = {True: "yes", False: "no", None: "unknown"}[device["throttled"]]
    stands = f"no: it lacks {', '.join(device['missing'])}" if device["missing"] else "yes"
    return device["name"], stands, device["by"], f"{heat} °C", before.get("governor") or "unknown", slow


def sustained(device: Mapping[str, Any]) -> str | None:
    """A sentence on a device's long run, if there was one."""
    found = device["sustained"]
    if not found:
        return None
    first, last = found["minutes"][0], found["minutes"][-1]
    where = figures.where({**found, "measured_on": measured_on(device["missing"])})
    told = f"{device['name']}: {len(found['minutes'])} minutes of calls without a pause ({where}): p50 "
    told += f"{figures.amount(first['p50_ms'], 'ms')} in the first minute, {figures.amount(last['p50_ms'], 'ms')} in "
    told += f"the last, {figures.ratio(found['slowdown'])} the time"
    held = {True: "; the system held the clock back", False: "; the system did not hold the clock back", None: ""}
    return f"{told}{held[found['throttled']]}."
