"""The model card of a shipped bundle (``README.md``): how it was made, what it scores, what it may be used for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from edgekd.bundle import verified
from edgekd.report import figures
from edgekd.report.markdown import bullets, code, escape, table

Report = Mapping[str, Any]


def render(report: Report, manifest: Mapping[str, Any], phone: str = "") -> str:
    """The card, with the front matter that model hubs read; ``manifest`` is the bundle's, ``files`` not needed.

    ``phone`` are the commands that measure it on one (``android.commands``).
    """
    parts = [_front(report), f"# {escape(report['run'])}", *_what(report, manifest), *_scores(report)]
    parts += [*_use(manifest), *(_phone(phone) if phone else []), *_made(report), *_rights(report)]
    return "\n\n".join(parts) + "\n"


def _front(report: Report) -> str:
    """YAML; JSON values are YAML values."""
    given: dict[str, Any] = {"pipeline_tag": report["task"]["kind"].replace("_", "-"), "library_name": "onnx"}
    how = "quantization-aware-training" if figures.trained(report["training"]["quantize"]) else "quantization"
    given["tags"] = ["onnx", figures.precision(report), "distillation", how, "edgekd"]
    source = report["teacher"]["source"]
    if source.startswith("hf:"):
        given["base_model"] = source.removeprefix("hf:").partition("@")[0]
    licences = {what: licence for what, licence in report["licences"].items() if what != "terms"}
    if len(set(licences.values())) == 1:
        if licences["teacher"]:
            given["license"] = licences["teacher"].lower()
    else:
        said = "; ".join(f"{what}: {licence or 'not stated'}" for what, licence in licences.items())
        given |= {"license": "other", "license_name": said}
    return "\n".join(["---", *(f"{key}: {json.dumps(value)}" for key, value in given.items()), "---"])


def _what(report: Report, manifest: Mapping[str, Any]) -> list[str]:
    labels = ", ".join(code(label) for label in manifest["labels"])
    kind = escape(report["task"]["kind"].replace("_", " "))
    trained = " and trained under quantization" if figures.trained(report["training"]["quantize"]) else ""
    source = report["student"].get("source")
    cut = f"cut from {code(source)}, " if source else ""
    about = (
        f"A student of {figures.plain(report['student']['parameters'])} parameters for {kind}, quantized "
        f"({code(manifest['scheme'])}), {cut}distilled from {_teachers(report)}{trained} "
        f"for {escape(report['device']['name'])} by edgekd {report['edgekd_version']}. It reads "
        f"{manifest['max_length']} tokens at most and answers with one of {len(manifest['labels'])} labels: {labels}."
    )
    return [bullets(escape(line) for line in report["headline"]), about]


def _scores(report: Report) -> list[str]:
    columns = [
        f for f in figures.FIGURES if f.key in ("score", "agreement", "p50_ms", "p90_ms", "size_mib", "peak_rss_mib")
    ]
    found = ["## Scores"]
    for rows in list(figures.by_runtime(report["rows"]).values())[:1]:
        body = [
            [
                escape(figures.artifact(row["artifact"], figures.precision(report))),
                *(figures.cell(row, f) if row["valid"] or not f.key.endswith("_ms") else "INVALID" for f in columns),
            ]
            for row in rows
        ]
        where = f"On {escape(report['machine']['cpu'])}: {escape(figures.where(rows[0]))}"
        found.append(f"{where}, one example a call, test split.")
        found.append(table(["", *(figures.heading(f) for f in columns)], body))
    if report["isa"]:
        found.append("On other instruction sets: " + "; ".join(escape(verified(row)) for row in report["isa"]) + ".")
    return [*found, "More in [report.md](report.md), and with charts in [report.html](report.html)."]


def _use(manifest: Mapping[str, Any]) -> list[str]:
    python = "\n".join(
        [
            "```python",
            "from edgekd import deploy  # pip install onnxruntime tokenizers numpy, then edgekd itself with --no-deps",
            "",
            'classify = deploy.load("path/to/this/folder")',
            'print(classify(["Some text."])[0].label)',
            "```",
        ]
    )
    inputs = ", ".join(code(f"{found['name']} {found['dtype']} {found['shape']}") for found in manifest["inputs"])
    about = (
        f"The graph is {code(manifest['model'])}: opset {manifest['opset']}, for onnxruntime "
        f"{manifest['minimum_onnxruntime']} or later, inputs {inputs}. The folder is laid out as "
        "transformers.js and optimum expect."
    )
    others = [f"{escape(figures.RUNTIMES[name])}: {code(file)}" for name, file in manifest.get("runtimes", {}).items()]
    about += f" The same student for other runtimes: {'; '.join(others)}." if others else ""
    if manifest.get("page"):
        about += (
            f" [{manifest['page']}]({manifest['page']}) classifies in a browser: run `python3 -m http.server "
            "--bind 127.0.0.1` in this folder and open http://127.0.0.1:8000/, or put it on any server of static files."
        )
    return ["## Use", python, about]


def _phone(commands: str) -> list[str]:
    about = (
        "In this folder, with the tools for the phone's architecture beside it: "
        "`onnxruntime_perf_test` from a build of onnxruntime for Android, `benchmark_model` from LiteRT's nightly "
        "binaries (`android_aarch64_benchmark_model`, renamed). Screen on, nothing else running, and cool."
    )
    return ["## Measuring on an Android phone", about, f"```sh\n{commands}\n```"]


def _made(report: Report) -> list[str]:
    training = report["training"]
    steps = []
    part = (training.get("teacher") or {}).get("train")
    if part == "head":
        steps.append("The teacher's head was trained on the training split, its backbone taken as it comes.")
    elif training.get("teacher"):
        how = "fine-tuned by LoRA" if part == "lora" else "fine-tuned"
        steps.append(f"The teacher was {how} on the training split ({_length(training['teacher'])}).")
    else:
        steps.append("The teacher was taken as it comes.")
    steps.append(f"The student learned from the teacher's stored answers ({_length(training['distill'])}).")
    quantize = training["quantize"]
    examples = quantize.get("calibration_examples")
    calibrated = f"calibrated on {figures.plain(examples)} training examples and " if examples else ""
    if figures.trained(quantize):
        steps.append(
            f"It was {calibrated}trained on under fake-quantization with the same losses ({_length(quantize)})."
        )
    else:
        on = f", on {figures.plain(examples)} training examples" if examples else ""
        steps.append(f"It was quantized without further training: {escape(quantize.get('ptq', 'calibrated'))}{on}.")
    return ["## How it was made", bullets(steps), "## Limits", bullets(escape(line) for line in report["limits"])]


def _length(training: Mapping[str, Any]) -> str:
    epochs = training.get("epochs")
    word = "epoch" if epochs == 1 else "epochs"
    return f"{figures.plain(epochs)} {word}, {figures.plain(training.get('steps'))} steps"


def _teachers(report: Report) -> str:
    return " and ".join(code(source) for source in (report["teacher"]["source"], *report["teacher"].get("also", ())))


def _rights(report: Report) -> list[str]:
    sources = ", ".join(code(found) for found in dict.fromkeys(report["task"]["sources"].values()) if found)
    teacher, data = (escape(report["licences"][name] or "not stated") for name in ("teacher", "data"))
    terms = report["licences"].get("terms")
    lines = [f"Teacher {_teachers(report)}: {teacher}" + (f"; its {escape(terms)}." if terms else ".")]
    lines += [f"Data {sources}: {data}."]
    if source := report["student"].get("source"):
        lines.append(f"Backbone {code(source)}: {escape(report['licences']['student'] or 'not stated')}.")
    lines.append(f"What the student may be used for depends on {'all three' if source else 'both'}.")
    return ["## Licences", bullets(lines)]
