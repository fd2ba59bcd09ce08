"""A convolutional text classifier (Kim 2014): embeddings, convolutions of several widths, the maximum over time.

It has no attention and no positions, so its time grows with the length of a text alone, and all that it multiplies is
quantized: the ReLU and the maximum keep their order in integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput


class Config(PretrainedConfig):  # type: ignore[misc]
    """``hidden_size`` channels of an embedding, and as many filters, in equal parts of each of the ``widths``.

    Raises ``ValueError`` for widths that do not divide ``hidden_size`` so, and for more than one layer.
    """

    model_type = "edgekd_text_cnn"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 300,
        widths: Sequence[int] = (3, 4, 5),
        num_hidden_layers: int = 1,
        hidden_dropout_prob: float = 0.0,
        pad_token_id: int = 0,
        **others: Any,
    ) -> None:
        if not widths or min(widths) < 1 or hidden_size % len(widths):
            raise ValueError(f"widths {list(widths)} must be positive, and divide hidden_size {hidden_size} by number")
        if num_hidden_layers != 1:
            raise ValueError(f"its convolutions stand side by side: num_hidden_layers is 1, not {num_hidden_layers}")
        self.vocab_size, self.hidden_size, self.widths = vocab_size, hidden_size, list(widths)
        self.num_hidden_layers, self.hidden_dropout_prob = num_hidden_layers, hidden_dropout_prob
        super().__init__(pad_token_id=pad_token_id, **others)


def start(module: nn.Module) -> None:
    """Set embeddings as Kim does those of unknown words, and padding to zero; other layers start as torch has them."""
    if isinstance(module, nn.Embedding):
        nn.init.uniform_(module.weight, -0.25, 0.25)
        if module.padding_idx is not None:
            nn.init.zeros_(module.weight[module.padding_idx])


class Classifier(PreTrainedModel):  # type: ignore[misc]
    """The classifier of a ``Config``."""

    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        width, each = config.hidden_size, config.hidden_size // len(config.widths)
        self.embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(width, each, (1, words), padding=(0, words)) for words in config.widths
        )  # of images of height 1: onnxruntime's integer convolutions have two dimensions
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(width, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        start(module)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False
    ) -> SequenceClassifierOutput:
        """Logits (batch, labels) of tokens (batch, sequence); if asked for, embeddings and filters from each token on.

        Where the mask is 0 there are zeros, as there are before and behind every text for the length of a filter: so
        each text has a window of nothing but zeros, and more of them change no maximum.
        """
        states_BTH = self.embeddings(input_ids.masked_fill(attention_mask == 0, self.config.pad_token_id))
        image_BH1T = states_BTH.transpose(1, 2).unsqueeze(2)
        found = [functional.relu(convolution(image_BH1T)) for convolution in self.convolutions]
        pooled_BH = torch.cat([filters_BF1T.amax((2, 3)) for filters_BF1T in found], 1)
        hidden = None
        if output_hidden_states:
            length = input_ids.shape[1]
            begun = [found[i][:, :, 0, words : words + length] for i, words in enumerate(self.config.widths)]
            hidden = states_BTH, torch.cat(begun, 1).transpose(1, 2)
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(pooled_BH)), hidden_states=hidden)
