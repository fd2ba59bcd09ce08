"""The commands that help along: ``copy`` a target to start one's own, and ``doctor``."""

from __future__ import annotations

import ast
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from edgekd import catalog
from edgekd.cli.common import Json, TargetName, print_json, stdout
from edgekd.errors import MissingDependencyError, TargetError, UsageError
from edgekd.store import write_text


def copy(
    target: TargetName,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new file; its stem becomes the target's name.")],
) -> None:
    """Copy a target to a new file under a new name, to be edited: the way to change anything about a run.

    Examples:

    $ edgekd copy reuters_x86 my_target.py
    $ edgekd copy reuters_x86 targets/reuters_tiny.py
    """
    if file.suffix != ".py" or not file.stem.isidentifier():
        raise UsageError(f"{file}: the new file must be called like a Python module, e.g. my_target.py")
    if file.exists():
        raise UsageError(f"{file} exists already; choose another name, or remove it first")
    if not file.absolute().parent.is_dir():
        raise UsageError(f"there is no folder {file.parent}; make it first")
    source = catalog.path_of(target)
    write_text(file, renamed(source.read_text(encoding="utf-8"), file.stem, source))
    try:
        catalog.load(file)
    except TargetError:
        file.unlink()
        raise
    print(file)


def renamed(source: str, name: str, path: Path) -> str:
    """A target file's text with another ``name=`` in its ``Target(...)`` literal and nothing else changed.

    Raises ``TargetError`` if ``path``, whose text it is, holds no such literal.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError as error:
        raise TargetError(f"{path} does not load: line {error.lineno}: {error.msg}") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            called = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            value = next((k.value for k in node.keywords if k.arg == "name"), None)
            if called == "Target" and isinstance(value, ast.Constant) and value.lineno == value.end_lineno:
                lines = source.encode().splitlines(keepends=True)  # ast counts columns in UTF-8 bytes
                line = lines[value.lineno - 1]
                lines[value.lineno - 1] = line[: value.col_offset] + f'"{name}"'.encode() + line[value.end_col_offset :]
                return b"".join(lines).decode()
    raise TargetError(f'{path} holds no literal Target(name="..."), so it cannot be copied; copy another target')


class Kept(StrEnum):
    """The runtimes that edgekd keeps in its own cache."""

    ort_web = "ort_web"


def doctor(
    install: Annotated[
        Kept | None, typer.Option(help="First fetch a runtime that is no package of Python, into edgekd's cache.")
    ] = None,
    json: Json = False,
) -> None:
    """Say what edgekd finds here: versions, CPU, GPU, disk; what is missing, and the command that installs it.

    --install ort_web has npm fetch onnxruntime-web, and what drives Chromium, in the versions and with the hashes that
    edgekd names; no script of theirs is run.

    Exits with 12 if a package is missing that edgekd cannot do without.

    Examples:

    $ edgekd doctor
    $ edgekd doctor --json
    $ edgekd doctor --install ort_web
    """
    from edgekd import doctor as examination

    if install is not None:
        from edgekd.progress import Progress
        from edgekd.web import packages

        Progress().log(f"{install.value} is in {packages.install()}")
    found = examination.examine()
    if json:
        print_json(found)
    else:
        stdout().print(examination.text(found), markup=False)
    missing = [package["name"] for package in found["packages"] if package["required"] and package["advice"]]
    if missing:
        raise MissingDependencyError(f"{', '.join(missing)}: run `{found['install']}`")
