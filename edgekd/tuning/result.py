"""What `edgekd tune` found, kept beside the run as ``tune.json``, and for which placement it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgekd import session as session_options
from edgekd import spec
from edgekd.errors import StoreError
from edgekd.report import figures
from edgekd.store import canonical, read_json

NAME = "tune.json"
SCHEMA = "edgekd.tune/1"


def placement(target: spec.Target) -> dict[str, Any]:
    """What of a target decides which graph onnxruntime runs: two with the same placement differ in weights alone."""
    quant = target.quant
    blocks = {"block": quant.block} if "w4_block" in quant.schemes else {}
    exit = {} if target.distill.exit is None else {"exit": target.distill.exit}
    kept = sorted(set(quant.keep_float))
    named = {
        "scheme": quant.scheme,
        "mixed": list(quant.mixed.items()),
        "per_channel": quant.per_channel,
        "keep_float": kept,
    }
    graph = {} if target.export.graph == "plain" else {"graph": target.export.graph}
    return {"student": canonical(target.student), **exit, **named, **blocks, **graph}


def read(run: Path) -> dict[str, Any] | None:
    """The ``tune.json`` of a run's folder, ``None`` without one. Raises ``StoreError`` for a damaged one."""
    try:
        found: dict[str, Any] = read_json(run / NAME)
        chosen = found["chosen"]
        why = session_options.problem(chosen["session"])
        if found["schema"] != SCHEMA or not isinstance(chosen["placement"], dict):
            why = f"it is of format {found['schema']!r}, this edgekd reads {SCHEMA}"
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
    if why is not None:
        raise StoreError(f"cannot use {run / NAME} ({why}); delete it, or make it again with `edgekd tune`")
    return found


def session(run: Path, target: spec.Target) -> dict[str, Any]:
    """The session options that were chosen for exactly the target's placement; none for another one.

    None either where a stand-in chose them: they are no choice for the device.
    """
    found = read(run)
    if found is None or found.get("missing") or found["chosen"]["placement"] != placement(target):
        return {}
    return dict(found["chosen"]["session"])


def note(run: Path, measured: dict[str, Any]) -> str | None:
    """What to say of ``tune.json`` when the run is shipped with the options ``measured``; ``None``: nothing."""
    found = read(run)
    if measured:
        return f"session options chosen by `edgekd tune`: {session_options.text(measured)}"
    if found is None or not found["chosen"]["session"]:
        return None
    chose = f"{NAME} chose session options ({session_options.text(found['chosen']['session'])})"
    if found.get("missing"):
        return f"{chose} by the times of a stand-in ({figures.PROXY}): they do not ship"
    return (
        f"{chose} that were not measured with this run: they ship after the next `edgekd run`, if the target has the "
        "placement that was chosen with them"
    )
