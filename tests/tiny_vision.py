"""Tiny image classifiers with random weights and statistics, which tests of quantization and export share."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

SIZE = 32
IMAGE = (3, SIZE, SIZE)
FAMILIES: dict[str, dict[str, Any]] = {
    "ConvNext": dict(num_stages=2, depths=[1, 1], hidden_sizes=[8, 16], layer_scale_init_value=0.5),
    "MobileNetV2": dict(depth_multiplier=0.01),  # eight channels everywhere
    "ResNet": dict(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "ResNet bottleneck": dict(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], layer_type="bottleneck"),
    "ViT": dict(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, patch_size=16,
        attn_implementation="eager",
    ),
}  # fmt: skip


def classifier(name: str) -> Any:
    """A model of four classes, in evaluation mode, whose logits tell images apart."""
    torch.manual_seed(0)
    family = name.partition(" ")[0]
    config = getattr(transformers, f"{family}Config")(num_labels=4, image_size=SIZE, **FAMILIES[name])
    model = getattr(transformers, f"{family}ForImageClassification")(config)
    if family == "MobileNetV2":
        model.mobilenet_v2.layer = model.mobilenet_v2.layer[:2]  # of its 16 blocks, which it has in every size
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor, low, high in ((module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 2.0),
                                          (module.weight, 0.5, 2.0), (module.bias, -0.2, 0.5)):  # fmt: skip
                    tensor.uniform_(low, high)
            elif isinstance(module, (nn.Conv2d, nn.Linear)) and family != "ResNet":
                module.weight.mul_(5)
    return model.eval()


def pixels(batch: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random images (batch, 3, 32, 32)."""
    return {"pixel_values": torch.randn(batch, *IMAGE, generator=torch.Generator().manual_seed(seed))}
