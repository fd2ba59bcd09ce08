"""Find targets and calibration lists: in the checkout when there is one, else those packaged with edgekd."""

from __future__ import annotations

import ast
import difflib
import importlib.util
import itertools
import sys
import traceback
from pathlib import Path

from edgekd.errors import DataError, TargetError
from edgekd.spec import Target

_loads = itertools.count()


def data_root() -> Path:
    """Return the folder with ``targets/`` and ``calibration/`` in it: the checkout, or ``edgekd/_data`` in a wheel."""
    package = Path(__file__).resolve().parent
    checkout = package.parent
    # Beside an installed package lies site-packages, where a folder called targets would be somebody else's.
    return (
        checkout if (checkout / "targets").is_dir() and (checkout / "pyproject.toml").is_file() else package / "_data"
    )


def targets() -> list[str]:
    """Return the names of the targets, sorted."""
    return sorted(path.stem for path in (data_root() / "targets").glob("*.py") if not path.name.startswith("_"))


def path_of(name_or_path: str | Path) -> Path:
    """Return the file of a target given by name, or by a path (which ends with ``.py`` or has a folder in it).

    Raise ``TargetError``, with the nearest name, when there is no such file.
    """
    path = Path(name_or_path).expanduser()
    if path.suffix == ".py" or len(path.parts) > 1:
        if path.is_file():
            if path.suffix != ".py":
                raise TargetError(f"{path} is no target: a target is a file of Python that ends with .py")
            return path
        names = [other.name for other in path.parent.glob("*.py")] if path.parent.is_dir() else []
        raise TargetError(f"there is no target file {path}{_near(path.name, names)}")
    names = targets()
    if str(name_or_path) in names:
        return data_root() / "targets" / f"{name_or_path}.py"
    if (here := path.with_suffix(".py")).is_file():
        raise TargetError(f"unknown target {str(name_or_path)!r}; the file {here} here is ./{here}")
    raise TargetError(f"unknown target {str(name_or_path)!r}{_near(str(name_or_path), names)}; `edgekd list` shows all")


def load(name_or_path: str | Path) -> Target:
    """Execute a target's file and return its ``TARGET``.

    Raise ``TargetError`` when it is unknown, does not load (with the line at fault), or its name is not the file's.
    """
    path = path_of(name_or_path).absolute()
    spec = importlib.util.spec_from_file_location(f"_edgekd_target_{next(_loads)}_{path.stem}", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # where a dataclass defined in the file looks up its annotations
    try:
        # Compiled here: the import system would leave bytecode beside the file, and trust it for a second too long.
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise TargetError(f"{path} does not load: {_blame(error, path)}. Mend the file and try again.") from error
    finally:
        del sys.modules[module.__name__]
    target = getattr(module, "TARGET", None)
    if not isinstance(target, Target):
        raise TargetError(f"{path} holds no `TARGET = Target(...)`; copy a target that does (`edgekd copy`)")
    if target.name != path.stem:
        raise TargetError(f"{path}: the target is called {target.name!r}; give it the file's name, {path.stem!r}")
    return target


def summary(name_or_path: str | Path) -> str:
    """Return the first line of a target's docstring without its full stop, read without executing the file."""
    path = path_of(name_or_path)
    try:
        lines = (ast.get_docstring(ast.parse(path.read_bytes())) or "").strip().splitlines()
    except (SyntaxError, ValueError) as error:
        return f"(does not load: {_blame(error, path)})"
    return lines[0].strip().removesuffix(".") if lines else ""


def calibration_ids(name: str, beside: Path | None = None) -> tuple[str, ...]:
    """Return the ids in ``calibration/<name>.txt``: one a line, without blank lines and those that begin with ``#``.

    The ``calibration/`` folder next to ``beside``, the target's file, comes before the catalogue's own. Raise
    ``DataError`` for an unknown list (with the nearest name), an empty one, or an id that stands there twice.
    """
    folders = [data_root() / "calibration"]
    if beside is not None:
        own = beside.expanduser().absolute()
        folders.insert(0, (own if own.is_dir() else own.parent) / "calibration")
    lists = {path.stem: path for folder in reversed(folders) for path in sorted(folder.glob("*.txt"))}
    if name not in lists:
        raise DataError(
            f"there is no calibration list {name!r}{_near(name, list(lists))}; looked for {name}.txt in "
            f"{' and '.join(map(str, folders))}"
        )
    path = lists[name]
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}); a list holds ids only, one a line") from error
    ids = [line for line in lines if line and not line.startswith("#")]
    if not ids:
        raise DataError(f"{path} holds no ids; see the README beside it for how to draw some")
    if len(set(ids)) < len(ids):
        twice = next(line for line in ids if ids.count(line) > 1)
        raise DataError(f"{path} holds {twice!r} more than once; remove {len(ids) - len(set(ids))} repeated lines")
    return tuple(ids)


def _near(name: str, names: list[str]) -> str:
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _blame(error: BaseException, path: Path) -> str:
    """What went wrong, and the line of ``path`` where."""
    said = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename in (str(path), "<unknown>"):
        return f"line {error.lineno}: {error.msg}: {(error.text or '').strip()}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"line {frames[-1].lineno}: {frames[-1].line}: {said}" if frames else said
