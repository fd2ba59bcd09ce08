"""An embedding that quantizes no more of its table than it looks up: a step reads few rows of many."""

from __future__ import annotations

from typing import Any

from brevitas.nn import QuantEmbedding
from torch import Tensor
from torch.nn.functional import embedding

from edgekd.quant.fused import WeightQuant


class Lookup(QuantEmbedding):  # type: ignore[misc]
    """Brevitas' embedding whose table has one scale: quantized row by row, it has the same numbers and gradients."""

    def forward(self, ids: Tensor) -> Any:
        """The rows of ``ids``, quantized."""
        quant: Any = self.weight_quant.tensor_quant
        fast = self.weight_quant.is_quant_enabled and isinstance(quant, WeightQuant) and quant.quick(self.weight)
        if not fast or ids.numel() >= len(self.weight):
            return super().forward(ids)
        return quant.part(embedding(ids, self.weight, self.padding_idx), self.weight)
