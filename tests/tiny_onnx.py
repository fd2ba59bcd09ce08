"""Tiny models that the tests of ``edgekd.onnxio`` export: random BERT classifiers, float and fake-quantized."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny import bert

from edgekd.onnxio.export import accepted_inputs, export_quantized
from edgekd.quant.quantizers import act_parameters
from edgekd.quant.replace import act_quantizers, quantize

VOCABULARY = 99
LABELS = 4


def classifier(seed: int = 0, **changes: Any) -> Any:
    """A BERT with weights large enough that its logits tell inputs apart."""
    labels = {i: f"label{i}" for i in range(LABELS)}
    options: dict[str, Any] = dict(
        vocab_size=VOCABULARY, num_hidden_layers=2, id2label=labels, label2id={v: k for k, v in labels.items()}
    )
    model = bert(seed, **(options | changes))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(20 if "embeddings" in name or "pooler" in name else 6)
            elif "bias" in name and "classifier" not in name:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def quantized(model: Any, scheme: str = "u8s8_static", keep_float: tuple[str, ...] = (), **departures: Any) -> Any:
    """The model fake-quantized in place, every activation range set to what it does on a few batches."""
    names = accepted_inputs(model)
    batches = [{k: v for k, v in tensors(feed(8, 20, seed)).items() if k in names} for seed in range(4)]
    quantize(model, scheme, keep_float, batches[0], **departures)
    proxies = act_quantizers(model)
    seen: dict[str, list[float]] = {name: [0.0, 0.0] for name in proxies}

    def hook(name: str) -> Any:
        def observe(module: Any, args: Any) -> None:
            low, high = seen[name]
            seen[name] = [min(low, float(args[0].min())), max(high, float(args[0].max()))]

        return observe

    handles = [model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in proxies]
    for proxy in proxies.values():
        proxy.disable_quant = True
    with torch.no_grad():
        for batch in batches:
            model(**batch)
    for handle in handles:
        handle.remove()
    for name, proxy in proxies.items():
        proxy.disable_quant = False
        scale, shift = act_parameters(proxy)
        low, high = seen[name]
        scale.data.fill_(high - low if shift is not None else max(-low, high))
        if shift is not None:
            shift.data.fill_(-low)
    return model.eval()


KEEP = ("*.attention.self.MatMul*", "classifier")
"""What an exported student has in float."""


def exported(folder: Path, **changes: Any) -> Path:
    """The file of a quantized classifier, as the export stage writes it."""
    path = folder / "model.onnx"
    export_quantized(quantized(classifier(**changes), keep_float=KEEP), path, opset=17, keep_float=KEEP)
    return path


def feed(batch: int, length: int, seed: int = 0, padding: int = 0) -> dict[str, np.ndarray]:
    """Random tokens; the last row ends in ``padding`` masked ones."""
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, length), np.int64)
    if padding:
        mask[-1, -padding:] = 0
    return {
        "input_ids": rng.integers(0, VOCABULARY, (batch, length)),
        "attention_mask": mask,
        "token_type_ids": np.zeros((batch, length), np.int64),
    }


def tensors(arrays: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The same feed for torch."""
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def logits(model: Any, arrays: dict[str, np.ndarray]) -> np.ndarray:
    """What torch answers."""
    with torch.no_grad():
        result: np.ndarray = model(**tensors(arrays)).logits.numpy()
    return result
