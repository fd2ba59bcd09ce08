"""Run a shipped bundle with onnxruntime, tokenizers and numpy alone: no torch, no transformers, no onnx.

from edgekd import deploy
classify = deploy.load("dist/reuters_x86")
for found in classify(["Crude oil prices rose sharply today."]):
    print(found.label, found.score)
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekd import machine
from edgekd import session as session_options
from edgekd.bundle import MODEL, read_manifest, verified, verify_files
from edgekd.errors import BundleError, MissingDependencyError, UsageError
from edgekd.spec import Device

INTEGERS = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}


@dataclass(frozen=True)
class Prediction:
    """The label with the highest probability, that probability, and all of them by label."""

    label: str
    score: float
    probabilities: dict[str, float]


class Classifier:
    """A loaded bundle: call it with texts. Made by ``load``."""

    def __init__(self, session: Any, tokenizer: Any, manifest: dict[str, Any], pad_id: int) -> None:
        self.manifest = manifest
        self.labels: tuple[str, ...] = tuple(manifest["labels"])
        self._session, self._tokenizer, self._pad_id = session, tokenizer, pad_id
        self._types = {found.name: INTEGERS.get(found.type) for found in session.get_inputs()}
        odd = [name for name, kind in self._types.items() if name not in _FEEDS or kind is None]
        if odd:
            raise BundleError(f"the model wants inputs that no text gives: {', '.join(odd)}; ship it again")
        self._output = session.get_outputs()[0].name

    def __call__(self, texts: Sequence[str] | str, *, batch_size: int = 1) -> list[Prediction]:
        """Classify each text, in order. A text that is too long is cut; an empty one has an answer too."""
        logits = self.logits(texts, batch_size=batch_size).astype(np.float64)
        wide = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = wide / wide.sum(axis=1, keepdims=True)
        return [
            Prediction(self.labels[best], float(row[best]), dict(zip(self.labels, map(float, row), strict=True)))
            for best, row in zip(shares.argmax(axis=1), shares, strict=True)
        ]

    def logits(self, texts: Sequence[str] | str, *, batch_size: int = 1) -> NDArray[np.float32]:
        """The model's logits, float32, shape (texts, labels).

        ``batch_size`` texts go through the model at once, padded to the longest of them; one by one is as fast on a
        single core and never pads. Raises ``UsageError`` for what is no text.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        for text in texts:
            if not isinstance(text, str):
                raise UsageError(f"a text must be a str, not {type(text).__name__}")
            if not text.isascii() and text != text.encode("utf-8", "ignore").decode():
                raise UsageError(
                    f"a text is no Unicode: it has half of a surrogate pair ({text[:40]!r}); decode it anew"
                )
        if batch_size < 1:
            raise UsageError(f"batch_size must be at least 1, not {batch_size}")
        out = np.empty((len(texts), len(self.labels)), np.float32)
        for start in range(0, len(texts), batch_size):
            out[start : start + batch_size] = self._run(texts[start : start + batch_size])
        return out

    def feeds(self, texts: Sequence[str]) -> dict[str, NDArray[Any]]:
        """What the model is given for these texts: each of its inputs, of shape (texts, tokens of the longest)."""
        found = [self._tokenizer.encode(text) for text in texts]
        length = max(1, max(len(one.ids) for one in found))
        return {
            name: np.array([self._pad(list(getattr(one, _FEEDS[name])), length, name) for one in found], kind)
            for name, kind in self._types.items()
        }

    def _run(self, texts: list[str]) -> NDArray[np.float32]:
        feeds = self.feeds(texts)
        try:
            result: NDArray[np.float32] = self._session.run([self._output], feeds)[0]
        except Exception as error:  # onnxruntime has error types of its own, which are bare Exception
            length = next(iter(feeds.values())).shape[1]
            raise BundleError(
                f"the model fails on texts of up to {length} tokens ({error}); make the bundle again with `edgekd run`"
            ) from error
        if result.shape != (len(texts), len(self.labels)):
            raise BundleError(f"the model answers with shape {result.shape}, not ({len(texts)}, {len(self.labels)})")
        return result

    def _pad(self, values: list[int], length: int, name: str) -> list[int]:
        fill = self._pad_id if name == "input_ids" else 0
        if not values:  # a text of which nothing is left, by a tokenizer without special tokens
            values = [1 if name == "attention_mask" else fill]
        return values + [fill] * (length - len(values))


_FEEDS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
"""Model input -> where an encoded text has it."""


def load(folder: str | os.PathLike[str], *, threads: int | None = None, verify: bool = True) -> Classifier:
    """Load a bundle for ``threads`` threads (by default those it was measured with), with the options of its session.

    ``verify`` first hashes what the manifest lists. Warns about an onnxruntime older than the manifest's minimum, and
    about another instruction set or CPU than the bundle was made for, with what was verified there. Raises
    ``BundleError`` if the bundle is incomplete, altered, does not load or asks for an option that is not known,
    ``MissingDependencyError`` without onnxruntime or tokenizers.
    """
    bundle = Path(folder)
    manifest = verify_files(bundle, unlisted=False) if verify else read_manifest(bundle)
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when the library is first loaded
    try:
        import onnxruntime
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingDependencyError(f"{error}; install it with: pip install onnxruntime tokenizers numpy") from error
    for problem in _doubts(manifest, onnxruntime.__version__):
        warnings.warn(problem, stacklevel=2)
    chosen = session_options.chosen(manifest)
    if (why := session_options.problem(chosen)) is not None:
        raise BundleError(f"{bundle}: {why}; use the edgekd that shipped it, or make it again with `edgekd ship`")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads if threads is not None else manifest["session"]["threads"]
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    more = session_options.apply(options, chosen)
    try:
        tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.enable_truncation(manifest["max_length"], direction="right")  # as in training
        pad = json.loads((bundle / "tokenizer_config.json").read_text(encoding="utf-8")).get("pad_token") or ""
        cpu = ["CPUExecutionProvider"]
        session = onnxruntime.InferenceSession(str(bundle / MODEL), options, providers=cpu, **more)
    except Exception as error:  # both libraries have error types of their own, some of them bare Exception
        raise BundleError(f"{bundle} does not load ({error}); make it again with `edgekd ship`") from error
    pad_id = tokenizer.token_to_id(pad["content"] if isinstance(pad, dict) else pad) or 0
    return Classifier(session, tokenizer, manifest, pad_id)


def _doubts(manifest: dict[str, Any], version: str) -> Iterator[str]:
    least = manifest["minimum_onnxruntime"]
    if _parts(version) < _parts(least):
        yield f"onnxruntime {version} is older than {least}, which the bundle needs: pip install 'onnxruntime>={least}'"
    device = manifest.get("device") or {}
    if not device or device["isa"] == "wasm32" or (machine.isa() == device["isa"] and not machine.cpu_flags()):
        return  # nothing asked, or a system that does not tell its flags
    asked = Device(name=device["name"], isa=device["isa"], features=tuple(device["features"]))
    missing = machine.missing_features(asked)
    if missing:
        what = ", ".join(missing)
        yield f"this CPU lacks {what}, for which the bundle was made: it will be slower, {_proof(manifest)}"


def _proof(manifest: dict[str, Any]) -> str:
    """What is known of the bundle's answers on such a CPU as this one."""
    here, rows = machine.instruction_set(), manifest.get("verified") or []
    found = [row for row in rows if row["isa"] == here]
    if not found:
        others = ", ".join(sorted({row["isa"] for row in rows})) or "none"
        return (
            f"and nothing is known of its answers on {here or 'such a CPU'} (where they were verified: {others}); "
            "`edgekd verify` scores it here"
        )
    told = "; ".join(verified(row) for row in found)
    good = all(row["same"] for row in found)
    return f"its answers were verified: {told}" if good else f"AND ITS ANSWERS WERE FOUND TO DIFFER: {told}"


def _parts(version: str) -> tuple[int, ...]:
    """``1.31.1`` -> (1, 31, 1); what follows a part that is no number (``1.32.0.dev1``) does not count."""
    found = []
    for part in version.split("."):
        if not part.isdigit():
            break
        found.append(int(part))
    return tuple(found)
