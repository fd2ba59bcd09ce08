"""How a session of onnxruntime is set up beyond its defaults: standard library only, for whoever deploys a bundle.

Options are a mapping as JSON has it. A setting has onnxruntime's own name: an attribute of its ``SessionOptions`` (true
or false), an entry of its configuration (``"1"`` or ``"0"``), or ``disabled_optimizers`` (a list of names).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

ATTRIBUTES = ("enable_cpu_mem_arena", "enable_mem_pattern")
ENTRIES = ("session.disable_prepacking", "session.intra_op.allow_spinning")
"""Not ``session.set_denormal_as_zero``: it leaves the thread that opens the session flushing denormals to zero, in all
that the deployer's process computes from then on."""
OPTIMIZERS = "disabled_optimizers"


def chosen(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a bundle's session, which its manifest has beside its threads and providers."""
    return {name: value for name, value in manifest["session"].items() if name not in ("threads", "providers")}


def problem(chosen: Mapping[str, Any]) -> str | None:
    """Why these are no options of a session, or ``None`` if they are."""
    for name, value in chosen.items():
        if name not in (*ATTRIBUTES, *ENTRIES, OPTIMIZERS):
            return f"unknown session option {name!r}; there are {', '.join((*ATTRIBUTES, *ENTRIES, OPTIMIZERS))}"
        if name in ATTRIBUTES and not isinstance(value, bool):
            return f"session option {name} must be true or false, not {value!r}"
        if name in ENTRIES and value not in ("0", "1"):
            return f'session option {name} must be "0" or "1", not {value!r}'
        if name == OPTIMIZERS and not (isinstance(value, list) and all(isinstance(one, str) for one in value)):
            return f"session option {name} must be a list of names, not {value!r}"
    return None


def apply(options: Any, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """Set them on an ``onnxruntime.SessionOptions``; returns what ``InferenceSession`` takes as keywords beside it."""
    for name in ATTRIBUTES:
        if name in chosen:
            setattr(options, name, chosen[name])
    for name in ENTRIES:
        if name in chosen:
            options.add_session_config_entry(name, chosen[name])
    return {OPTIMIZERS: chosen[OPTIMIZERS]} if chosen.get(OPTIMIZERS) else {}


def text(chosen: Mapping[str, Any]) -> str:
    """``enable_cpu_mem_arena=false, session.disable_prepacking=1``; ``none`` where nothing is set."""
    return ", ".join(f"{name}={_word(value)}" for name, value in chosen.items()) or "none"


def _word(value: Any) -> str:
    return "+".join(value) if isinstance(value, list) else str(value).lower()
