"""Finding targets and calibration lists, and what a target that does not load is told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgekd import catalog
from edgekd.errors import DataError, TargetError
from edgekd.spec import Target

GOOD = '''"""A demo: one line that sums it up.

More of it.
"""

from edgekd.spec import *

TARGET = Target(
    name="demo",
    task=TextClassification(train="a.csv", test="b.csv"),
    teacher=Teacher(source="dir:teacher"),
    student=Student(layers=2),
    quant=Quant(calibration="demo"),
)
'''


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A catalogue of its own: targets/ and calibration/."""
    for name in ("targets", "calibration"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr(catalog, "data_root", lambda: tmp_path)
    return tmp_path


def test_the_checkouts_folders_come_before_the_packaged_ones(tmp_path, monkeypatch):
    package = tmp_path / "edgekd"
    (package / "_data").mkdir(parents=True)
    monkeypatch.setattr(catalog, "__file__", str(package / "catalog.py"))
    assert catalog.data_root() == package / "_data"
    (tmp_path / "targets").mkdir()  # site-packages may have one of somebody else's
    assert catalog.data_root() == package / "_data"
    (tmp_path / "pyproject.toml").touch()
    assert catalog.data_root() == tmp_path


def test_every_target_of_the_checkout_loads_and_says_what_it_is():
    for name in catalog.targets():
        target = catalog.load(name)
        assert target.name == name and catalog.summary(name)
        assert not target.quant.calibration or catalog.calibration_ids(target.quant.calibration)


def test_targets_are_listed_by_name_without_being_executed(root):
    (root / "targets/b.py").write_text("raise SystemExit(1)")
    (root / "targets/a.py").write_text("syntax error here")
    (root / "targets/_shared.py").touch()
    (root / "targets/README.md").touch()
    assert catalog.targets() == ["a", "b"]


def test_a_target_loads_by_name_and_by_path(root, monkeypatch):
    (root / "targets/demo.py").write_text(GOOD)
    monkeypatch.chdir(root / "targets")
    by_name = catalog.load("demo")
    assert isinstance(by_name, Target)
    assert by_name == catalog.load(root / "targets/demo.py") == catalog.load("demo.py") == catalog.load("./demo.py")


def test_loading_leaves_nothing_behind_and_sees_every_edit(root):
    file = root / "targets/demo.py"
    before = set(sys.modules)
    for layers in (2, 3):  # within one second, in a file of the same size
        file.write_text(GOOD.replace("layers=2", f"layers={layers}"))
        assert catalog.load("demo").student.layers == layers
    assert set(sys.modules) == before
    assert [path.name for path in (root / "targets").iterdir()] == ["demo.py"]


def test_a_target_file_may_define_a_dataclass_of_its_own(root):
    own = (
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int = 1\n"
    )
    (root / "targets/demo.py").write_text(own + GOOD)
    assert catalog.load("demo").name == "demo"


def test_a_target_is_not_run_by_being_loaded(root):
    (root / "targets/demo.py").write_text(GOOD + 'if __name__ == "__main__":\n    raise SystemExit(7)\n')
    assert catalog.load("demo").name == "demo"


def test_an_unknown_target_names_the_nearest(root):
    (root / "targets/reuters_x86.py").write_text(GOOD)
    (root / "mine.py").touch()
    with pytest.raises(
        TargetError, match=r"unknown target 'reuters_x68' \(did you mean 'reuters_x86'\?\).*edgekd list"
    ):
        catalog.load("reuters_x68")
    with pytest.raises(TargetError, match=r"unknown target 'zzz'; `edgekd list`"):
        catalog.load("zzz")
    with pytest.raises(TargetError, match=r"no target file .*mime\.py \(did you mean 'mine\.py'\?\)"):
        catalog.load(root / "mime.py")
    with pytest.raises(TargetError, match=r"no target file .*/none/t\.py$"):
        catalog.load(root / "none/t.py")
    (root / "notes.md").write_text("# notes")
    with pytest.raises(TargetError, match=r"notes\.md is no target: .*ends with \.py"):
        catalog.load(root / "notes.md")


def test_a_file_here_that_is_named_without_its_ending_is_pointed_out(root, monkeypatch):
    monkeypatch.chdir(root)
    (root / "mine.py").touch()
    with pytest.raises(TargetError, match=r"unknown target 'mine'; the file mine\.py here is \./mine\.py"):
        catalog.load("mine")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1\ny = (\n", r"line 2: .*never closed: y = \("),
        ("import nothing_of_this_name\n", r"line 1: import nothing_of_this_name: ModuleNotFoundError"),
        (GOOD.replace("layers=2", "layer=2"), r"line 12: student=Student\(layer=2\),: TypeError: .*layer"),
        ("def f():\n    return 1 / 0\n\nf()\n", r"line 2: return 1 / 0: ZeroDivisionError"),
        ("import json\njson.loads('{')\n", r"line 2: json\.loads\('\{'\): JSONDecodeError"),
        ("raise SystemExit('no')\n", r"line 1: .*SystemExit: no"),
        ("x = '\0'\n", "does not load"),
        ("# -*- coding: nonsense -*-\n", "does not load"),
    ],
)
def test_a_target_that_does_not_load_is_told_the_line(content, message, root):
    (root / "targets/demo.py").write_text(content)
    with pytest.raises(TargetError, match=rf"demo\.py does not load: .*{message}|{message}"):
        catalog.load("demo")


@pytest.mark.parametrize("content", ["", "TARGET = 1", "TARGETS = []"])
def test_a_file_without_a_target_is_refused(content, root):
    (root / "targets/demo.py").write_text(content)
    with pytest.raises(TargetError, match=r"holds no `TARGET = Target\(\.\.\.\)`"):
        catalog.load("demo")


def test_a_target_is_called_what_its_file_is_called(root):
    (root / "targets/other.py").write_text(GOOD)
    with pytest.raises(TargetError, match="called 'demo'; give it the file's name, 'other'"):
        catalog.load("other")


def test_a_summary_is_the_docstrings_first_line(root):
    (root / "targets/demo.py").write_text(GOOD)
    (root / "targets/bare.py").write_text("x = 1")
    (root / "targets/broken.py").write_text("x = (")
    assert catalog.summary("demo") == "A demo: one line that sums it up"
    assert catalog.summary("bare") == ""
    assert catalog.summary("broken").startswith("(does not load: line 1")


def test_finding_and_summing_up_targets_imports_nothing_heavy():
    code = (
        "import sys; from edgekd import catalog; [catalog.summary(n) for n in catalog.targets()]; "
        "print([m for m in ('torch', 'numpy', 'transformers', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(catalog.__file__).parents[1], check=True
    )
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------------------------------------------------- calibration


def test_a_calibration_list_is_its_lines_without_comments(root):
    (root / "calibration/demo.txt").write_text("# how it was made\ntrain/3\n\n  train/1  \n#train/9\ntrain/2")
    assert catalog.calibration_ids("demo") == ("train/3", "train/1", "train/2")


def test_a_list_beside_the_target_comes_first(root, tmp_path_factory):
    own = tmp_path_factory.mktemp("own")
    (own / "calibration").mkdir()
    (own / "calibration/demo.txt").write_text("train/1\n")
    (root / "calibration/demo.txt").write_text("train/2\n")
    (root / "calibration/other.txt").write_text("train/3\n")
    assert catalog.calibration_ids("demo", own / "target.py") == ("train/1",)
    assert catalog.calibration_ids("demo", own) == ("train/1",)
    assert catalog.calibration_ids("other", own / "target.py") == ("train/3",)
    assert catalog.calibration_ids("demo") == ("train/2",)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("dmo", "train/1\n", r"no calibration list 'dmo' \(did you mean 'demo'\?\)"),
        ("", "train/1\n", "no calibration list ''"),
        ("../calibration/demo", "train/1\n", "no calibration list"),
        ("demo", "train/1\ntrain/2\ntrain/1\n", "holds 'train/1' more than once"),
        ("demo", "# nothing\n\n", "holds no ids"),
        ("demo", b"\xff\xfe\n", "not UTF-8"),
    ],
)
def test_a_list_that_cannot_be_used_is_refused(name, content, message, root):
    (root / "calibration/demo.txt").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(DataError, match=message):
        catalog.calibration_ids(name)


def test_the_lists_of_the_checkout_hold_ids_of_the_training_source_only():
    for path in (catalog.data_root() / "calibration").glob("*.txt"):
        ids = catalog.calibration_ids(path.stem)
        assert all(name.startswith("train/") and name[6:].isdecimal() for name in ids)
        assert path.read_text().startswith("# ")
