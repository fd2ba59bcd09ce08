from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import toy_line
from hypothesis import given
from hypothesis import strategies as st

from edgekd import runner, spec, store
from edgekd.errors import StoreError
from edgekd.progress import Progress
from edgekd.store import Stage

SCRIPT = Path(toy_line.__file__)


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of fsync has a test of its own; the others need not wait for it."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


LEAVES = st.none() | st.text() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v) | st.lists(v).map(tuple) | st.dictionaries(st.text(), v), max_leaves=12
)


def as_lists(value: Any) -> Any:
    """The value with every tuple as a list: Python's == then is the equality that keys should have."""
    if isinstance(value, dict):
        return {name: as_lists(item) for name, item in value.items()}
    return [as_lists(item) for item in value] if isinstance(value, list | tuple) else value


# ----------------------------------------------------------------------------------------------------------------- keys


@given(VALUES, VALUES)
def test_two_inputs_have_one_key_exactly_if_they_are_equal(a: Any, b: Any) -> None:
    same = store.key("s", 1, {"x": a}) == store.key("s", 1, {"x": b})
    assert same == (as_lists(a) == as_lists(b))


@given(VALUES)
def test_a_key_survives_being_written_to_json_and_read_back(value: Any) -> None:
    inputs = {"x": value}
    again = json.loads(json.dumps(store.canonical(inputs)))
    assert store.key("s", 1, again) == store.key("s", 1, inputs)


@given(st.dictionaries(st.text(), LEAVES, min_size=2), st.randoms())
def test_the_order_of_a_mapping_is_not_in_the_key(value: dict[str, Any], rng: random.Random) -> None:
    items = list(value.items())
    rng.shuffle(items)
    assert store.key("s", 1, {"x": dict(items)}) == store.key("s", 1, {"x": value})


def test_equal_numbers_of_two_types_have_one_key_but_a_truth_is_no_number() -> None:
    assert store.key("s", 1, {"x": 1}) == store.key("s", 1, {"x": 1.0})
    assert store.key("s", 1, {"x": 0.0}) == store.key("s", 1, {"x": -0.0})
    assert store.key("s", 1, {"x": 1}) != store.key("s", 1, {"x": True})
    assert store.key("s", 1, {"x": 2**53}) != store.key("s", 1, {"x": 2**53 + 1})


def test_the_key_is_what_its_definition_says() -> None:
    loss = spec.KL(0.9, temperature=2.0)
    inputs = '{"loss":{"temperature":2,"type":"KL","weight":0.9},"up":"0123456789abcdef"}'
    text = f'{{"inputs":{inputs},"revision":3,"stage":"distill"}}'
    expected = hashlib.sha256(text.encode()).hexdigest()[:16]
    assert store.key("distill", 3, {"up": Stage("labels", "0123456789abcdef", Path("/x")), "loss": loss}) == expected


def test_stage_name_and_revision_are_in_the_key() -> None:
    keys = {store.key(name, revision, {}) for name in ("a", "b") for revision in (1, 2)}
    assert len(keys) == 4


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, Path("x"), {1: 2}, b"x", object(), spec.KL])
def test_what_has_no_json_form_is_refused_rather_than_hashed_by_its_repr(value: Any) -> None:
    with pytest.raises(TypeError):
        store.key("s", 1, {"x": value})


def test_two_losses_of_the_same_fields_have_different_keys() -> None:
    assert dataclasses.asdict(spec.EmbeddingMSE(0.5)) == {"weight": 0.5}
    other = dataclasses.make_dataclass("Other", [("weight", float)])
    assert store.key("s", 1, {"x": spec.EmbeddingMSE(0.5)}) != store.key("s", 1, {"x": other(0.5)})


# ------------------------------------------------------------------------------------------------------ finished stages


def test_a_second_walk_runs_nothing(tmp_path: Path) -> None:
    assert set(toy_line.walk(tmp_path).values()) == {"run"}
    toy_line.CALLS.clear()
    assert set(toy_line.walk(tmp_path).values()) == {"reused"}
    assert toy_line.CALLS == []


def test_a_manifest_lists_every_file_with_size_and_hash(tmp_path: Path) -> None:
    toy_line.walk(tmp_path)
    for folder in (tmp_path / "store").iterdir():
        manifest = store.read_json(folder / store.MANIFEST)
        files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert set(manifest["files"]) == files - {store.MANIFEST}
        for name, entry in manifest["files"].items():
            digest = subprocess.run(["sha256sum", folder / name], capture_output=True, text=True, check=True).stdout
            assert digest.split()[0] == entry["sha256"]
            assert (folder / name).stat().st_size == entry["bytes"]


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[:-1])
    elif how == "altered":
        path.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    else:
        path.unlink()


def heard() -> tuple[Progress, list[str]]:
    """A progress, and what it will have logged."""
    said: list[str] = []
    progress = Progress(quiet=True)
    progress.log = said.append  # type: ignore[method-assign]
    return progress, said


@pytest.mark.parametrize("how", ["truncated", "altered", "missing"])
@pytest.mark.parametrize("stage", ["first", "second", "third"])
def test_a_damaged_file_is_detected_and_its_stage_rebuilt_with_a_warning(tmp_path: Path, stage: str, how: str) -> None:
    toy_line.walk(tmp_path)
    before = toy_line.contents(tmp_path)
    folder = next(p for p in (tmp_path / "store").iterdir() if p.name.startswith(stage))
    damage(next(p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != store.MANIFEST), how)
    progress, said = heard()
    actions = toy_line.walk(tmp_path, progress=progress)
    assert actions == {name: "run" if name == stage else "reused" for name in toy_line.FUNCTIONS}
    assert toy_line.contents(tmp_path) == before
    assert any("warning" in line and folder.name in line for line in said)


def test_every_file_is_on_disk_before_its_folder_gets_the_finished_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Any] = []
    rename = os.rename
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(os.fstat(descriptor).st_ino))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append(Path(b).name), rename(a, b)))
    toy_line.walk(tmp_path)
    for folder in (tmp_path / "store").iterdir():
        before = events[: events.index(folder.name)]
        assert {p.stat().st_ino for p in folder.rglob("*")} <= set(before)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"schema": "edgekd.stage/2"}', '{"schema": 3}'])
def test_a_damaged_manifest_is_a_damaged_stage(tmp_path: Path, content: str) -> None:
    toy_line.walk(tmp_path)
    step = toy_line.steps(tmp_path)[1]
    (step.stage.path / store.MANIFEST).write_text(content)
    assert store.find(tmp_path, step.stage.name, step.stage.key) is None
    assert toy_line.walk(tmp_path)["second"] == "run"


def test_a_folder_of_other_inputs_under_this_key_is_not_taken_for_it(tmp_path: Path) -> None:
    toy_line.walk(tmp_path)
    mine, other = toy_line.steps(tmp_path)[0].stage, toy_line.steps(tmp_path, seed=2)[0].stage
    mine.path.rename(other.path)
    assert store.find(tmp_path, other.name, other.key) is None


def test_a_failed_stage_is_no_finished_one(tmp_path: Path) -> None:
    def fails(ctx: store.Context, **inputs: Any) -> None:
        (ctx.out / "half.txt").write_text("half")
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        toy_line.walk(tmp_path, {**toy_line.FUNCTIONS, "second": fails})
    assert [p.name.partition("-")[0] for p in sorted((tmp_path / "store").glob("[!.]*"))] == ["first"]


# -------------------------------------------------------------------------------------------------------------- lineage


def first_again(folder: Path, *, number: int = 0, seed: int = 1) -> None:
    """Lose the first stage and build it again on a machine where its files come out as ``seed number``."""

    def otherwise(ctx: store.Context, **inputs: Any) -> None:
        for i in range(3):
            (ctx.out / f"part-{i}.txt").write_text(f"{seed} {i + number}\n")

    steps = toy_line.steps(folder)[:1]
    store.discard(folder, "first", steps[0].stage.key)
    quiet = Progress(quiet=True)
    runner.walk(steps, folder, function=lambda name: otherwise, context=toy_line.context, progress=quiet)


def test_what_was_made_from_other_bytes_than_lie_there_now_is_made_anew_and_the_log_says_why(tmp_path: Path) -> None:
    toy_line.walk(tmp_path)
    first_again(tmp_path, number=5)
    steps = toy_line.steps(tmp_path)
    planned = {step.stage.name: runner.state(step, tmp_path) for step in steps}
    progress, said = heard()
    found = toy_line.walk(tmp_path, progress=progress)
    assert planned == found == {"first": "reused", "second": "run", "third": "run"}
    first, second, third = (step.stage.path for step in steps)
    assert store.read_json(third / "copy.json") == {"sum": 2 * (5 + 6 + 7)}
    for made, read in ((second, first), (third, second)):
        assert f"warning: {made.name}: it was made from another {read.name}; building it again" in said
    assert set(toy_line.walk(tmp_path).values()) == {"reused"}


def test_a_change_reaches_only_as_far_as_the_bytes_differ(tmp_path: Path) -> None:
    toy_line.walk(tmp_path)
    first_again(tmp_path)
    assert toy_line.walk(tmp_path) == dict.fromkeys(toy_line.FUNCTIONS, "reused")
    first_again(tmp_path, seed=9)  # other files, but the numbers that the second adds up are the same
    assert toy_line.walk(tmp_path) == {"first": "reused", "second": "run", "third": "reused"}


def test_how_long_a_stage_took_does_not_make_it_another_one(tmp_path: Path) -> None:
    clock = iter(range(9))

    def timed(ctx: store.Context, **inputs: Any) -> None:
        toy_line.first(ctx, **inputs)
        store.write_json(ctx.out / "scores.json", {"seconds": next(clock)})

    functions = {**toy_line.FUNCTIONS, "first": timed}
    toy_line.walk(tmp_path, functions)
    damage(toy_line.steps(tmp_path)[0].stage.path / "part-0.txt", "altered")
    assert toy_line.walk(tmp_path, functions) == {"first": "run", "second": "reused", "third": "reused"}


def test_what_was_begun_from_other_bytes_is_not_resumed(tmp_path: Path) -> None:
    def fails(ctx: store.Context, **inputs: Any) -> None:
        (ctx.out / "half.txt").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        toy_line.walk(tmp_path, {**toy_line.FUNCTIONS, "second": fails})
    second = toy_line.steps(tmp_path)[1]
    assert runner.state(second, tmp_path) == "resumed"
    first_again(tmp_path, number=5)
    assert runner.state(second, tmp_path) == "run"
    progress, said = heard()
    assert toy_line.walk(tmp_path, progress=progress)["second"] == "run"
    assert any(line.startswith("warning: .partial-second-") and "made from another first-" in line for line in said)
    assert not (second.stage.path / "half.txt").exists()


def test_a_manifest_that_does_not_say_what_its_stage_was_made_from_counts_for_nothing(tmp_path: Path) -> None:
    toy_line.walk(tmp_path)
    for step in toy_line.steps(tmp_path):
        manifest = store.read_json(step.stage.path / store.MANIFEST)
        assert set(manifest["made_from"]) == {i.path.name for i in step.inputs.values() if isinstance(i, Stage)}
        del manifest["made_from"]
        store.write_json(step.stage.path / store.MANIFEST, manifest)
    assert set(toy_line.walk(tmp_path).values()) == {"run"}


# -------------------------------------------------------------------------------------------------------------- kill -9

POINTS = [
    "begin manifest.json",
    *("first 0 before", "first 0 torn", "first 1 torn", "first 2 before", "first end"),
    *("write manifest.json", "rename first before", "rename first after"),
    *("write sum.json", "second end", "rename second before", "rename third after"),
]


@pytest.mark.parametrize("point", POINTS)
def test_a_run_killed_anywhere_and_run_again_gives_the_bytes_of_one_that_was_not(tmp_path: Path, point: str) -> None:
    toy_line.walk(tmp_path / "whole")
    command = [sys.executable, str(SCRIPT), str(tmp_path / "killed")]
    assert subprocess.run([*command, point], check=False).returncode == -signal.SIGKILL
    toy_line.walk(tmp_path / "killed")
    assert toy_line.contents(tmp_path / "killed") == toy_line.contents(tmp_path / "whole")
    assert not list((tmp_path / "killed" / "store").glob(".partial-*"))


def test_what_a_killed_stage_left_is_resumed_not_done_again(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(SCRIPT), str(tmp_path), "first 2 before"], check=False)
    partial = next((tmp_path / "store").glob(".partial-first-*"))
    inode = (partial / "part-0.txt").stat().st_ino
    assert toy_line.walk(tmp_path)["first"] == "resumed"
    assert (toy_line.steps(tmp_path)[0].stage.path / "part-0.txt").stat().st_ino == inode


# ----------------------------------------------------------------------------------------------------------------- lock

HOLD = """
import sys, time
from pathlib import Path
from edgekd import store
stage = store.Stage("first", sys.argv[2], Path())
with store.partial(Path(sys.argv[1]), stage, 1, {"seed": 1, "count": 3}):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_stage_that_another_process_is_writing_is_refused_until_that_process_is_dead(tmp_path: Path) -> None:
    stage = toy_line.steps(tmp_path)[0].stage
    root = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])}
    command = [sys.executable, "-c", HOLD, str(tmp_path), stage.key]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=root) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match=f"process {other.pid}"):
            toy_line.walk(tmp_path)
        with pytest.raises(StoreError, match=f"process {other.pid}"):
            store.discard(tmp_path, stage.name, stage.key)
        other.kill()
    assert toy_line.walk(tmp_path)["first"] == "run"


def test_discarding_forgets_finished_and_unfinished_alike(tmp_path: Path) -> None:
    toy_line.walk(tmp_path)
    step = toy_line.steps(tmp_path)[0]
    stage = step.stage
    with store.partial(tmp_path, stage, step.revision, step.inputs) as out:
        (out / "x").write_text("x")
    store.discard(tmp_path, stage.name, stage.key)
    left = [p.name for p in (tmp_path / "store").iterdir() if "first" in p.name]
    assert left == []
    store.discard(tmp_path, stage.name, stage.key)  # nothing there is fine


# ------------------------------------------------------------------------------------------------------------ full disk


def test_a_disk_that_fills_up_in_a_stage_is_a_store_error_and_the_stage_resumes_later(tmp_path: Path) -> None:
    def fills(ctx: store.Context, **inputs: Any) -> None:
        (ctx.out / "kept.txt").write_text("kept")
        with open("/dev/full", "w") as stream:  # the kernel's own ENOSPC
            stream.write("x" * 100_000)

    with pytest.raises(StoreError, match=r"disk is full.*--store.*same command"):
        toy_line.walk(tmp_path, {**toy_line.FUNCTIONS, "first": fills})
    assert not list((tmp_path / "store").glob("[!.]*"))
    assert toy_line.walk(tmp_path)["first"] == "resumed"


@pytest.mark.parametrize(("there", "then"), [("*", "run"), ("part-2.txt", "resumed")])
def test_a_disk_that_fills_up_at_the_manifest_leaves_no_finished_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: str, then: str
) -> None:
    def full(descriptor: int) -> None:
        if any(tmp_path.rglob(there)):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="disk is full"):
            toy_line.walk(tmp_path)
    assert not list((tmp_path / "store").glob("[!.]*"))
    assert toy_line.walk(tmp_path)["first"] == then


def test_a_library_that_only_says_so_in_words_has_filled_the_disk_too(tmp_path: Path) -> None:
    def fills(ctx: store.Context, **inputs: Any) -> None:
        try:
            raise RuntimeError("I/O error: No space left on device (os error 28)")
        except RuntimeError as error:
            raise ValueError("could not save") from error

    with pytest.raises(StoreError, match="disk is full"):
        toy_line.walk(tmp_path, {**toy_line.FUNCTIONS, "first": fills})


def test_another_error_of_a_stage_passes_unchanged(tmp_path: Path) -> None:
    def fails(ctx: store.Context, **inputs: Any) -> None:
        raise OSError(errno.EIO, "Input/output error")

    with pytest.raises(OSError, match="Input/output") as caught:
        toy_line.walk(tmp_path, {**toy_line.FUNCTIONS, "first": fails})
    assert not isinstance(caught.value, StoreError)


def test_a_store_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--store"):
        toy_line.walk(tmp_path / "file")


# ---------------------------------------------------------------------------------------------------------------- files


def test_a_json_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    store.write_json(path, {"a": "é"})
    with pytest.raises(ValueError, match="JSON compliant"):
        store.write_json(path, {"a": float("nan")})
    assert store.read_json(path) == {"a": "é"}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]
