from __future__ import annotations

import ast
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
FILES = {p.relative_to(ROOT / "edgekd").as_posix(): p for p in sorted((ROOT / "edgekd").rglob("*.py"))}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

DOORS = {
    "brevitas": ("quant/*", "onnxio/export.py"),
    "transformers": ("models/*",),
    "onnx": ("onnxio/*",),
    "onnxruntime": (
        "runtimes/ort_cpu.py",
        "runtimes/ort_mobile.py",
        "onnxio/bridge.py",
        "onnxio/audit.py",
        "onnxio/parity.py",
        "onnxio/dynamic.py",
        "deploy.py",
        "isa/child.py",
    ),
    "onnxoptimizer": (),
    "optimum": (),
    "openvino": ("runtimes/openvino.py",),
    "ai_edge_litert": ("runtimes/litert.py",),
    "ai_edge_quantizer": ("runtimes/litert.py",),
    "litert_torch": ("runtimes/litert.py",),
    "executorch": ("runtimes/executorch.py",),
    "MNN": ("runtimes/mnn.py",),
    "_tools": ("runtimes/mnn.py",),
    "ncnn": ("runtimes/ncnn.py",),
    "pnnx": ("runtimes/ncnn.py",),
    "accelerate": (),
    "gguf": (),
    "datasets": ("tasks/*",),
    "huggingface_hub": ("assets.py", "sizes.py"),
    "jinja2": ("report/*", "ship.py"),
    "jsonschema": ("report/*", "ship.py"),
    "matplotlib": ("report/plots.py",),
    "onnx_ir": ("onnxio/*",),
    "typer": ("cli/*",),
    "rich": ("cli/*", "progress.py"),
}
"""Who may import what."""

LAYERS = (
    ("errors.py", "globs.py", "__init__.py"),
    ("spec/*", "checks.py", "devices.py", "smoke.py"),
    (
        "progress.py",
        "machine.py",
        "catalog.py",
        "assets.py",
        "wheels.py",
        "downloads.py",
        "bundle.py",
        "lineage.py",
        "lock.py",
        "session.py",
    ),
    ("store.py", "shape.py", "deploy.py"),
    ("runner.py",),
    (
        *("distill/*", "quant/*", "onnxio/*", "bench/*", "report/*", "models/*", "tasks/*", "runtimes/*", "blackbox/*"),
        "web/*",
    ),
    (
        *("stages/*", "remote/*", "ship.py", "phases.py", "sizes.py", "history.py", "isa/*"),
        *("tuning/__init__.py", "tuning/candidates.py", "tuning/choose.py", "tuning/result.py"),
    ),
    ("graph.py",),
    ("pipeline.py",),
    ("plan.py", "doctor.py", "diagnose.py", "tuning/tune.py"),
    ("cli/*", "__main__.py"),
)
"""A file imports from its own layer or a lower one (lower stands first)."""

IMPORT_NAMES = {
    "onnx-ir": "onnx_ir",
    "ai-edge-litert": "ai_edge_litert",
    "ai-edge-quantizer": "ai_edge_quantizer",
    "litert-torch": "litert_torch",
}
EXTRAS = ("openvino", "litert", "litert-convert", "executorch", "mnn", "ncnn")

LIGHT = (
    *(
        "blackbox/*",
        "cli/*",
        "report/*",
        "assets.py",
        "bundle.py",
        "catalog.py",
        "checks.py",
        "deploy.py",
        "downloads.py",
    ),
    *(
        "graph.py",
        "history.py",
        "isa/*",
        "machine.py",
        "pipeline.py",
        "plan.py",
        "progress.py",
        "runner.py",
        "shape.py",
        "ship.py",
    ),
    *("graph.py", "phases.py", "session.py", "sizes.py", "smoke.py", "spec/*", "store.py", "tuning/*", "wheels.py"),
)


def imports(path: Path, *, at_top: bool = False) -> Iterator[str]:
    """The modules that a file names in its imports: all of them, or those that importing it brings in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    checked = [n for n in tree.body if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    unseen = {id(n) for block in checked for n in ast.walk(block)}
    nodes = list(tree.body) if at_top else [n for n in ast.walk(tree) if id(n) not in unseen]
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are written in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


def file_of(module: str) -> str | None:
    """The file of an ``edgekd.`` name, or of the module that holds it."""
    parts = module.split(".")[1:]
    for depth in range(len(parts), -1, -1):
        stem = "/".join(parts[:depth])
        for candidate in (f"{stem}.py", f"{stem}/__init__.py".lstrip("/")):
            if candidate in FILES:
                return candidate
    return None


def layer(name: str) -> int:
    found = [i for i, patterns in enumerate(LAYERS) if matches(name, patterns)]
    assert found, f"{name} is in no layer: put it into one"
    return found[0]


@pytest.mark.parametrize("name", FILES)
def test_a_heavy_dependency_is_imported_behind_its_door_only(name: str) -> None:
    through = {m.partition(".")[0] for m in imports(FILES[name])} & set(DOORS)
    assert {package for package in through if not matches(name, DOORS[package])} == set()


@pytest.mark.parametrize("name", FILES)
def test_imports_go_down_only(name: str) -> None:
    used = {file_of(m) for m in imports(FILES[name]) if m.partition(".")[0] == "edgekd"} - {None, name}
    assert {other for other in used if other is not None and layer(other) > layer(name)} == set()


@pytest.mark.parametrize("name", FILES)
def test_no_file_has_more_than_300_lines(name: str) -> None:
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= 300


@pytest.mark.parametrize("name", [name for name in FILES if matches(name, LIGHT)])
def test_what_answers_at_once_imports_no_torch(name: str) -> None:
    seen, todo = set[str](), [name]
    while todo:
        file = todo.pop()
        if file not in seen:
            seen.add(file)
            heavy = {m.partition(".")[0] for m in imports(FILES[file], at_top=True)}
            banned = {"torch", "transformers", "brevitas", "onnx", "datasets", "matplotlib"}
            assert not heavy & banned, f"{name} through {file}"
            found = [file_of(m) for m in imports(FILES[file], at_top=True) if m.partition(".")[0] == "edgekd"]
            todo += [other for other in found if other is not None]


def test_every_imported_package_is_a_declared_dependency_and_the_other_way_round() -> None:
    declared = [Requirement(line).name.lower() for line in PROJECT["project"]["dependencies"]]
    extras = PROJECT["project"]["optional-dependencies"]
    declared += [Requirement(line).name for extra in EXTRAS for line in extras[extra]]
    packages = {IMPORT_NAMES.get(name, name) for name in declared}
    used = {m.partition(".")[0] for path in FILES.values() for m in imports(path)}
    third = used - set(sys.stdlib_module_names) - {"edgekd"}
    assert third - {"_tools"} <= packages  # MNN brings it
    needed_by_libraries = {
        "accelerate",
        "gguf",
        "onnxoptimizer",
    }  # transformers' GGUF reader, brevitas' exporter
    assert packages - third <= needed_by_libraries


def test_every_pinned_version_is_inside_its_declared_range() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().split("==") for line in lines if line and not line.startswith("#"))
    extras = PROJECT["project"]["optional-dependencies"]
    for line in (*PROJECT["project"]["dependencies"], *(line for extra in (*EXTRAS, "dev") for line in extras[extra])):
        requirement = Requirement(line)
        assert requirement.specifier.contains(pins[requirement.name.lower()]), line
    assert not [line for line in lines if "+" in line], "a local version is found on one machine only"
