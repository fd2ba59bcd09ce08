"""A recurrent text classifier: embeddings, LSTMs in both directions, the maximum over time (Tang et al. 2019).

onnxruntime computes an LSTM in float (its integer one quantizes anew at every token, which no training here stands
for), so a target names ``lstm`` in ``quant.keep_float``; the embeddings, most of such a model, and the classifier are
quantized.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from edgekd.models.text_cnn import start


class Config(PretrainedConfig):  # type: ignore[misc]
    """``hidden_size`` channels of an embedding and of every layer, of which each direction of an LSTM gives half.

    Raises ``ValueError`` for an odd ``hidden_size``.
    """

    model_type = "edgekd_text_lstm"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 300,
        num_hidden_layers: int = 1,
        hidden_dropout_prob: float = 0.0,
        pad_token_id: int = 0,
        **others: Any,
    ) -> None:
        if hidden_size % 2 or num_hidden_layers < 1:
            raise ValueError(f"hidden_size {hidden_size} must be even, and num_hidden_layers {num_hidden_layers} >= 1")
        self.vocab_size, self.hidden_size = vocab_size, hidden_size
        self.num_hidden_layers, self.hidden_dropout_prob = num_hidden_layers, hidden_dropout_prob
        super().__init__(pad_token_id=pad_token_id, **others)


class Layer(nn.Module):
    """Two LSTMs, of which one reads backwards."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.forwards = nn.LSTM(width, width // 2, batch_first=True)
        self.backwards = nn.LSTM(width, width // 2, batch_first=True)

    def forward(self, states_BTH: Tensor, turned_BT: Tensor) -> Tensor:
        """The states (batch, sequence, hidden) of both; ``turned_BT`` is what ``turned`` gives."""
        first_BTD, _ = self.forwards(states_BTH)
        second_BTD, _ = self.backwards(states_BTH.flatten(0, 1)[turned_BT])
        return torch.cat([first_BTD, second_BTD.flatten(0, 1)[turned_BT]], -1)


def turned(mask_BT: Tensor) -> Tensor:
    """Where in all rows, one after the other, stand the tokens of each text read backwards; padding stays in place."""
    row_B1 = torch.ones_like(mask_BT[:, :1]).cumsum(0) - 1
    place_BT = torch.ones_like(mask_BT).cumsum(1) - 1  # a range, whose length shape inference can tell
    back_BT = mask_BT.sum(1, keepdim=True) - 1 - place_BT
    return row_B1 * mask_BT.shape[1] + torch.where(back_BT < 0, place_BT, back_BT)


class Classifier(PreTrainedModel):  # type: ignore[misc]
    """The classifier of a ``Config``."""

    config_class = Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.lstm = nn.ModuleList(Layer(width) for _ in range(config.num_hidden_layers))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.classifier = nn.Linear(width, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        start(module)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False
    ) -> SequenceClassifierOutput:
        """Logits (batch, labels) of tokens (batch, sequence), and the states of embeddings and layers if asked for.

        Padding stands behind a text. Nothing that comes before it has read it: backwards, a text is turned in place.
        """
        turned_BT = turned(attention_mask)
        states = [self.embeddings(input_ids)]
        for layer in self.lstm:
            states.append(layer(states[-1], turned_BT))
        # Below what any state can be, which is the product of a sigmoid and a tanh.
        pooled_BH = states[-1].masked_fill(attention_mask.unsqueeze(-1) == 0, -1.0).amax(1)
        hidden = tuple(states) if output_hidden_states else None
        return SequenceClassifierOutput(logits=self.classifier(self.dropout(pooled_BH)), hidden_states=hidden)
