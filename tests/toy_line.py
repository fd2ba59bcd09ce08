"""A line of toy stages, without torch: what the tests of store, runner and pipeline walk. Also a script to be killed.

``python toy_line.py FOLDER [POINT]`` walks the line; the process kills itself with SIGKILL when it reaches POINT.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the script; pytest finds edgekd by itself

from edgekd import runner, store
from edgekd.progress import Progress
from edgekd.runner import After
from edgekd.store import Context, Stage

CALLS: list[str] = []
"""Names of the stages that ran in this process."""


def reach(point: str) -> None:
    """Where the script may die."""


def first(ctx: Context, *, seed: int, count: int) -> None:
    """A stage that is resumed: files that are there are not written again."""
    CALLS.append("first")
    for i in range(count):
        if not (ctx.out / f"part-{i}.txt").exists():
            reach(f"first {i} before")
            with (ctx.out / f".part-{i}.txt.tmp").open("w") as stream:
                stream.write(f"{seed} ")
                stream.flush()
                reach(f"first {i} torn")
                stream.write(f"{i}\n")
            os.replace(ctx.out / f".part-{i}.txt.tmp", ctx.out / f"part-{i}.txt")
    reach("first end")


def second(ctx: Context, *, first: Stage, factor: float) -> None:
    """A stage that reads another one."""
    CALLS.append("second")
    texts = [path.read_text() for path in sorted(first.path.glob("part-*.txt"))]
    (ctx.out / "deep").mkdir(exist_ok=True)
    store.write_json(ctx.out / "deep" / "sum.json", {"sum": factor * sum(int(t.split()[1]) for t in texts)})
    reach("second end")


def third(ctx: Context, *, second: Stage) -> None:
    """The last one."""
    CALLS.append("third")
    store.write_text(ctx.out / "copy.json", (second.path / "deep" / "sum.json").read_text())


FUNCTIONS = {"first": first, "second": second, "third": third}


def steps(folder: Path, *, seed: int = 1, count: int = 3, factor: float = 2) -> list[runner.Step]:
    """The resolved line."""
    graph: dict[str, dict[str, object]] = {
        "first": {"seed": seed, "count": count},
        "second": {"first": After("first"), "factor": factor},
        "third": {"second": After("second")},
    }
    return runner.resolve(graph, folder, lambda name: 1)


def context(out: Path) -> Context:
    """A context that needs no torch."""
    rank, world = runner.ranks()
    return Context(out, "cpu", 1, Progress(quiet=True), rank, world)


def walk(
    folder: Path, functions: dict[str, Any] = FUNCTIONS, progress: Progress | None = None, **inputs: Any
) -> dict[str, str]:
    """Walk the line; what was done with each stage."""
    return runner.walk(
        steps(folder, **inputs),
        folder,
        function=functions.__getitem__,
        context=context,
        progress=progress or Progress(quiet=True),
    )


def contents(folder: Path) -> dict[str, Any]:
    """Every finished stage: its files' bytes, and what its manifest says of them and of its inputs (not of times)."""
    found: dict[str, Any] = {}
    for path in sorted((folder / "store").glob("[!.]*/**/*")):
        if path.is_file() and path.name != store.MANIFEST:
            found[path.relative_to(folder).as_posix()] = path.read_bytes()
        elif path.is_file():
            found[path.relative_to(folder).as_posix()] = [store.read_json(path)[k] for k in ("files", "made_from")]
    return found


if __name__ == "__main__":
    if len(sys.argv) > 2:

        def reach(point: str) -> None:
            if point == sys.argv[2]:
                os.kill(os.getpid(), signal.SIGKILL)

        os.fsync = lambda descriptor: None  # SIGKILL takes nothing from the page cache
        rename, write_json = os.rename, store.write_json

        def dying_rename(source: Any, target: Any) -> None:
            reach(f"rename {Path(target).name.partition('-')[0]} before")
            rename(source, target)
            reach(f"rename {Path(target).name.partition('-')[0]} after")

        def dying_write_json(path: Path, value: Any) -> None:
            begins = path.name == store.MANIFEST and not value["files"]
            reach(f"{'begin' if begins else 'write'} {path.name}")
            write_json(path, value)

        os.rename = dying_rename
        store.write_json = dying_write_json
    print(walk(Path(sys.argv[1])))
