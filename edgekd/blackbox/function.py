"""A function of the user's as a teacher."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import textwrap
from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from edgekd.blackbox.client import TryAgain
from edgekd.errors import AssetError, TargetError
from edgekd.spec import BlackBox


def fingerprint(box: BlackBox) -> str:
    """What a stage's key says of a black box: a function's file by its content, an endpoint by its address and model.

    Raises ``TargetError`` for a module that is not there.
    """
    if box.function is None:
        return f"endpoint:{box.name}"
    return f"function:{box.function[1]}:{hashlib.sha256(_file(box).read_bytes()).hexdigest()}"


def version(box: BlackBox) -> str:
    """What a question's key says of a black box: a function's ``model``, so that a mended file goes on; else as above.

    The stage's key has the file all the same: for a changed one it looks again, and asks what is missing. Raises as
    above.
    """
    return f"version:{box.model}" if box.function and box.model else fingerprint(box)


def load(box: BlackBox) -> Any:
    """The function. Raises ``TargetError`` where there is none of that name."""
    assert box.function is not None
    module, name = box.function
    _file(box)
    try:
        found = getattr(importlib.import_module(module), name, None)
    except Exception as error:  # the user's code
        raise TargetError(f"teacher.source {box.source!r} does not load ({error!r}): mend the module") from error
    if not callable(found):
        raise TargetError(f"teacher.source {box.source!r}: {module} has no function {name!r}")
    return found


def call(function: Any, box: BlackBox, text: str, labels: Sequence[str]) -> dict[str, Any]:
    """What the function says of one text: ``{"text": ...}``, or ``{"shares": {label: probability}}``.

    Raises ``TryAgain`` where it raises, and ``AssetError`` for what is neither.
    """
    try:
        said = function(text, tuple(labels))
    except Exception as error:  # the user's code, which may ask somebody else
        raise TryAgain(f"{box.source} raised {textwrap.shorten(repr(error), 300)}", billed=True) from error
    if said is None:
        return {"text": ""}
    if not box.probabilities and isinstance(said, str):
        return {"text": said}
    if box.probabilities and isinstance(said, Mapping) and all(isinstance(x, Real) for x in said.values()):
        return {"shares": {str(label): float(share) for label, share in said.items()}}
    wanted = "a dict of probabilities by label" if box.probabilities else "a label"
    raise AssetError(f"{box.source} returned {textwrap.shorten(repr(said), 300)}; it must return {wanted}, or None")


def _file(box: BlackBox) -> Path:
    assert box.function is not None
    if os.getcwd() not in sys.path:  # as `python -m` has it
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.util.find_spec(box.function[0])
    except Exception as error:  # a package on the way to it is imported
        raise TargetError(f"teacher.source {box.source!r} does not load ({error!r}): mend the module") from error
    if found is None or found.origin is None or not Path(found.origin).is_file():
        raise TargetError(
            f"teacher.source {box.source!r}: there is no module {box.function[0]} (looked from {Path.cwd()}); correct "
            "the name, or start from its folder"
        )
    return Path(found.origin)
