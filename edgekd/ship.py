"""Write the bundle that is deployed, and prove one: its files by their hashes, its score by scoring it again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgekd import runtimes, store
from edgekd.bundle import MANIFEST, MODEL, SCHEMA, contents, describe, read_manifest, verify_files
from edgekd.errors import BundleError
from edgekd.onnxio.layout import TOKENIZER_FILES
from edgekd.progress import Progress
from edgekd.report import android, figures, schema, verdicts
from edgekd.runner import conversions_of
from edgekd.stages.bench import CONVERSION
from edgekd.tuning import result
from edgekd.web import page

__all__ = ["pack", "refuse_to_overwrite", "rescore", "score", "ship", "verify_files"]

SCORE_TOLERANCE = 0.003
"""Another CPU rounds otherwise, so an answer may tip over: a score within this of the claimed one is the same."""

OPSETS = {15: "1.10", 16: "1.11", 17: "1.12", 18: "1.14", 19: "1.15", 20: "1.17", 21: "1.18"}
IR_VERSIONS = {8: "1.10", 9: "1.16", 10: "1.18"}
"""ONNX operator set or IR version -> the first onnxruntime that reads it, by its table of compatibility."""
OPERATORS = {"GatherBlockQuantized": "1.22", "MatMulNBits": "1.19"}
"""Operator of onnxruntime's own domain -> the first version that takes it as it is written here: tables in bytes (pull
request 24239), with a bias (20587)."""


def ship(run_folder: Path, out: Path) -> Path:
    """Write the bundle of a finished run (``runs/<run>``) to ``out`` and return ``out``. See ``pack``.

    Raises ``StoreError`` without a report, ``BundleError`` if the export stage's folder is gone from the store or not
    what it was when it was finished.
    """
    report = schema.load(run_folder / "report.json")
    kept = {name: run_folder.parent / "store" / stage["folder"] for name, stage in report["stages"].items()}
    conversions = conversions_of(kept)
    for folder in (kept["export"], *conversions.values()):
        if not folder.is_dir():
            raise BundleError(
                f"{folder} is gone, and the model with it; make it again with `edgekd run {report['target']}`"
            )
        if (why := store.problem(folder, contents=True)) is not None:
            raise BundleError(f"{folder}: {why}; make it again with `edgekd run {report['target']}`, which will notice")
    return pack(report, kept["export"], out, conversions)


def session_note(run_folder: Path) -> str | None:
    """What to say of the session options of the run's bundle, which are those its report was measured with."""
    return result.note(run_folder, schema.load(run_folder / "report.json")["session"])


def pack(report: Mapping[str, Any], export: Path, out: Path, conversions: Mapping[str, Path] | None = None) -> Path:
    """Write the bundle of the export stage's ``student_qad`` with its card, its report and a manifest of hashes.

    ``conversions`` are the ``convert`` stages' folders by runtime: what was made of the same student for each lies in a
    folder of that name. What was measured in onnxruntime-web has a page that loads it. The bundle appears whole or not
    at all; an older one there is replaced. The model's bytes are the exported ones.

    Raises ``BundleError`` if something to ship is missing or contradicts the report, or if ``out`` is anything but a
    bundle, an empty folder or nothing.
    """
    refuse_to_overwrite(out)
    source = export / verdicts.SHIPPED
    graph = _check_source(source, report)
    partial = out.parent / f".partial-{out.name}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _write(source, conversions or {}, partial)
        inputs = export / "inputs" / "student.npz"
        if android.serves(report["device"]) and inputs.is_file():
            from edgekd.onnxio import testdata

            names = [found["name"] for found in graph["inputs"]]
            testdata.write(partial / android.TEST_DATA, inputs, names, android.tokens(report))
        if any(row["runtime"].startswith("ort_web") and row["rounds"] for row in report["rows"]):
            page.write(partial)
        _describe(report, graph, partial)
        _swap(partial, out)
    except OSError as error:
        raise (store.full_disk_error(error) if store.disk_full(error) else _failed(out, error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return out


def _write(source: Path, conversions: Mapping[str, Path], folder: Path) -> None:
    (folder / MODEL).parent.mkdir(parents=True)
    _copy(source / "model.onnx", folder / MODEL)
    for name in ("config.json", *TOKENIZER_FILES):
        _copy(source / name, folder / name)
    for runtime, stage in conversions.items():
        for file in sorted((stage / verdicts.SHIPPED).iterdir()):
            if file.name != CONVERSION:
                (folder / runtime).mkdir(exist_ok=True)
                _copy(file, folder / runtime / file.name)


def _describe(report: Mapping[str, Any], graph: Mapping[str, Any], folder: Path) -> None:
    from edgekd.report import card, html, markdown

    files = {name: f"{name}/{entry.file}" for name, entry in runtimes.RUNTIMES.items()}
    manifest = _manifest(report, graph)
    manifest["runtimes"] = {name: file for name, file in files.items() if (folder / file).is_file()}
    manifest["page"] = page.PAGE if (folder / page.PAGE).is_file() else None
    phone = (
        android.commands(report, manifest, describe(folder / MODEL)["sha256"]) if (folder / "android").is_dir() else ""
    )
    store.write_text(folder / "README.md", card.render(report, manifest, phone))
    store.write_json(folder / "report.json", report)
    store.write_text(folder / "report.md", markdown.render(report))
    store.write_text(folder / "report.html", html.render(report))
    store.write_json(
        folder / MANIFEST, manifest | {"files": {name: describe(folder / name) for name in contents(folder)}}
    )


def _manifest(report: Mapping[str, Any], graph: Mapping[str, Any]) -> dict[str, Any]:
    """All but ``files``; ``graph`` is the model's signature."""
    task, rows = report["task"], report["rows"]
    like = {"runtime": "ort_cpu", "threads": 1, "workload": "real"}  # which `deploy` runs, and `rescore` asks again
    mine, its = (figures.find(rows, name, like) for name in (verdicts.SHIPPED, "teacher_fp32"))
    scores = {"test": (mine or {}).get("score"), "teacher": (its or {}).get("score")}
    scores |= {"agreement": (mine or {}).get("agreement"), "examples": task["counts"].get("test")}
    return {
        "schema": SCHEMA,
        "target": report["target"],
        "run": report["run"],
        "smoke": report["smoke"],
        "edgekd_version": report["edgekd_version"],
        "model": MODEL,
        "opset": graph["opset"],
        "ir_version": graph["ir_version"],
        "domains": graph["domains"],
        "minimum_onnxruntime": _minimum(graph, report["versions"].get("onnxruntime", "0")),
        "scheme": report["training"]["quantize"].get("scheme"),
        "task": task["kind"],
        "max_length": task["max_length"],
        "labels": task["labels"],
        "inputs": graph["inputs"],
        "outputs": graph["outputs"],
        "session": {"threads": 1, "providers": ["CPUExecutionProvider"], **report["session"]},
        "device": {name: report["device"].get(name, []) for name in ("name", "isa", "features", "without")},
        "score": scores,
        "verified": report["isa"],
        "teacher": {"source": report["teacher"]["source"], "licence": report["licences"]["teacher"]},
        "data": {
            "sources": task["sources"],
            "licence": report["licences"]["data"],
            "fingerprint": task["fingerprint"],
            "spec": task["spec"],
            "seed": report["seed"],
        },
    }


def _minimum(graph: Mapping[str, Any], measured: str) -> str:
    """The first onnxruntime known to read such a graph; for one newer than the tables, the one it was measured in."""
    needs = [OPSETS.get(max(graph["opset"], min(OPSETS))), IR_VERSIONS.get(max(graph["ir_version"], min(IR_VERSIONS)))]
    needs += [OPERATORS.get(name) for names in graph.get("operators", {}).values() for name in names]
    if None in needs:
        return measured
    return max((need for need in needs if need), key=lambda version: [int(part) for part in version.split(".")])


def _check_source(source: Path, report: Mapping[str, Any]) -> dict[str, Any]:
    """Raise ``BundleError`` where something is missing or contradicts the report; return the model's signature."""
    needed = [
        *(source / name for name in ("model.onnx", "config.json", *TOKENIZER_FILES)),
        source.parent / "signature.json",
    ]
    missing = [path.name for path in needed if not path.is_file()]
    if missing:
        what = ", ".join(missing)
        raise BundleError(f"{source} lacks {what}; make it again with `edgekd run {report['target']} --fresh export`")
    named = store.read_json(source / "config.json").get("id2label") or {}
    labels = [named.get(str(i)) for i in range(len(named))]
    if labels != report["task"]["labels"]:
        raise BundleError(
            f"the labels in {source / 'config.json'} ({labels}) are not the report's ({report['task']['labels']}); "
            f"make both again with `edgekd run {report['target']} --fresh export`"
        )
    graph: dict[str, Any] = store.read_json(source.parent / "signature.json")
    return graph


def refuse_to_overwrite(out: Path) -> None:
    """Raise ``BundleError`` if ``out`` is anything but a bundle, an empty folder or nothing, or cannot be written."""
    above = next(folder for folder in out.absolute().parents if folder.exists())
    if not (above.is_dir() and os.access(above, os.W_OK)):
        raise BundleError(
            f"cannot write the bundle {out}: {above} is not a folder one may write to; choose another --out"
        )
    if not os.path.lexists(out) or (out.is_dir() and not out.is_symlink() and not any(out.iterdir())):
        return
    try:
        listed = read_manifest(out).get("files", {})
    except BundleError as error:
        raise BundleError(f"{out} exists and is no edgekd bundle; choose another --out, or move it away") from error
    strange = [name for name in contents(out) if name not in listed]
    if strange or out.is_symlink():
        what = f"holds files of yours ({', '.join(strange[:5])})" if strange else "is a link"
        raise BundleError(f"{out} {what}, which shipping would remove; choose another --out, or move it away")


def _swap(partial: Path, out: Path) -> None:
    """Put the finished folder in the old one's place; the old one comes back if that fails."""
    old = out.parent / f".old-{out.name}"
    shutil.rmtree(old, ignore_errors=True)
    if not out.exists():
        os.replace(partial, out)
        return
    os.replace(out, old)
    try:
        os.replace(partial, out)
    except BaseException:
        os.replace(old, out)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    with target.open("rb") as stream:
        os.fsync(stream.fileno())


def _failed(out: Path, error: OSError) -> BundleError:
    return BundleError(f"cannot write the bundle {out} ({error}); choose another --out")


# ---------------------------------------------------------------------------------------------------------------- proof


def rescore(bundle: Path, progress: Progress | None = None) -> dict[str, Any]:
    """Read the test split again from its source, score the bundle on it, and compare with what the bundle claims.

    Returns ``{"score", "claimed", "examples"}``. Raises ``BundleError`` if the score is not the claimed one within
    ``SCORE_TOLERANCE`` (or one example); ``AssetError`` or ``DataError`` if the data cannot be had or has changed.
    """
    manifest = read_manifest(bundle)
    data = dataset(manifest)
    found = score(bundle, data.test.texts, [data.labels[i] for i in data.test.labels], progress)
    claimed, count = manifest["score"]["test"], len(data.test.texts)
    if claimed is None or abs(found - claimed) > max(SCORE_TOLERANCE, 1 / count) + 1e-9:
        raise BundleError(
            f"{bundle} scores {found:.4f} on the test split of {count} examples, where it claims "
            f"{'nothing' if claimed is None else format(claimed, '.4f')}; do not use it, run the target again"
        )
    return {"score": found, "claimed": claimed, "examples": count}


def score(bundle: Path, texts: Sequence[str], labels: Sequence[str], progress: Progress | None = None) -> float:
    """The share of ``texts`` that the bundle gives the label of the same place in ``labels`` (names).

    Raises ``BundleError`` for a label that the bundle does not know, or no texts.
    """
    from edgekd import deploy

    classify = deploy.load(bundle)
    unknown = sorted(set(labels) - set(classify.labels))
    if unknown or not texts or len(texts) != len(labels):
        what = f"it does not know the label {unknown[0]!r}" if unknown else f"{len(texts)} texts, {len(labels)} labels"
        raise BundleError(f"{bundle} cannot be scored: {what}")
    right = 0
    with (progress or Progress(quiet=True)).bar("scoring the test split", total=len(texts), unit="example") as advance:
        for text, label in zip(texts, labels, strict=True):
            right += classify.labels[int(classify.logits(text).argmax())] == label
            advance(1)
    return right / len(texts)


def dataset(manifest: Mapping[str, Any]) -> Any:
    """The data set of the bundle's task, as the run read it.

    Raises ``BundleError`` where it has changed, ``AssetError`` or ``DataError`` where it cannot be had.
    """
    from edgekd import spec, tasks

    data = manifest["data"]
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in data["spec"].items()
    }
    try:
        task = {"text_classification": spec.TextClassification}[manifest["task"]](**given)
    except (KeyError, TypeError) as error:
        raise BundleError(
            f"this edgekd does not know the task of the bundle ({error}); use the one that shipped it"
        ) from error
    found = tasks.TASKS[task.kind].load(task, data["seed"])
    if found.fingerprint != data["fingerprint"]:
        raise BundleError("the data has changed since the bundle was shipped: its score cannot be checked on this")
    return found
