from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edgekd import catalog

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def unzipped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout and unpacked far from it."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def edgekd(site: Path, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    code = "import sys, edgekd.cli; print(edgekd.__file__, file=sys.stderr); sys.exit(edgekd.cli.main(sys.argv[1:]))"
    env = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=cwd, check=False)
    assert str(site) in done.stderr.splitlines()[0], "this would test the checkout"
    return done


def test_the_wheel_lists_and_plans_every_target_without_the_checkout(unzipped: Path, tmp_path: Path) -> None:
    done = edgekd(unzipped, "list", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = [row["name"] for row in json.loads(done.stdout)]
    assert names == catalog.targets()
    for name in names:
        done = edgekd(unzipped, "plan", name, "--json", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["target"] == name


def test_a_target_copied_out_of_the_wheel_finds_its_calibration_list(unzipped: Path, tmp_path: Path) -> None:
    name = catalog.targets()[0]
    assert edgekd(unzipped, "copy", name, "my_target.py", cwd=tmp_path).returncode == 0
    mine = edgekd(unzipped, "plan", "./my_target.py", "--json", cwd=tmp_path)
    theirs = edgekd(unzipped, "plan", name, "--json", cwd=tmp_path)
    assert json.loads(mine.stdout)["stages"] == json.loads(theirs.stdout)["stages"]


def test_the_wheel_holds_the_package_whole_and_nothing_else(unzipped: Path) -> None:
    files = {p.relative_to(unzipped).as_posix() for p in unzipped.rglob("*") if p.is_file()}
    assert {name.split("/")[0].split("-")[0] for name in files} == {"edgekd"}
    ours = {p for p in (ROOT / "edgekd").rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    assert {p.relative_to(ROOT).as_posix() for p in ours} <= files
    data = {
        p.relative_to(ROOT).as_posix() for d in ("targets", "calibration") for p in (ROOT / d).iterdir() if p.is_file()
    }
    assert {f"edgekd/_data/{name}" for name in data} <= files
    assert not [name for name in files if "__pycache__" in name or name.startswith("edgekd/_data/runs")]


def test_the_wheel_says_what_it_needs(unzipped: Path) -> None:
    (info,) = unzipped.glob("edgekd-*.dist-info")
    text = (info / "METADATA").read_text(encoding="utf-8")
    assert "Requires-Python: >=3.11" in text
    for name in ("torch", "transformers", "brevitas", "onnxruntime"):
        assert re.search(rf"^Requires-Dist: {name}[<>=]", text, re.MULTILINE), name
    assert re.search(r"^Requires-Dist: openvino.*extra == 'openvino'", text, re.MULTILINE)
    assert "edgekd = edgekd.__main__:main" in (info / "entry_points.txt").read_text(encoding="utf-8")


def test_a_checkout_installs_by_its_makefile_with_the_pinned_torch_first() -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    installs = [line for line in text.splitlines() if "pip install" in line]
    assert f"-c constraints.txt torch=={pins['torch']}" in installs[0]
    assert all(re.search(r" -c \S*constraints\.txt ", line) for line in installs)


def test_the_readme_has_a_line_for_every_file_of_the_package() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The tree")[2].partition("\n## ")[0]
    told: set[str] = set()
    folders: dict[int, str] = {}
    for line in section.splitlines():
        name, depth = line.strip().partition(" ")[0], len(line) - len(line.lstrip())
        if not name or depth > 10:  # a description on a line of its own
            continue
        path = "".join(folder for level, folder in sorted(folders.items()) if level < depth) + name
        if name.endswith("/"):
            folders = {level: folder for level, folder in folders.items() if level < depth} | {depth: name}
        told.add(path)
    ours = {p.relative_to(ROOT).as_posix() for p in (ROOT / "edgekd").rglob("*.*") if "__" not in p.as_posix()}
    ours = {path for path in ours if (ROOT / path).is_file()}
    assert {path for path in told if path.startswith("edgekd/") and not path.endswith("/")} == ours
