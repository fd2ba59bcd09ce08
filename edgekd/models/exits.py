"""Early exits: ordinary classifiers of a student's first blocks, which they share with it, with heads of their own."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor

from edgekd.distill.taps import EXITS

BLOCKS = dict.fromkeys(EXITS, "encoder.layer") | {"distilbert": "transformer.layer"}
"""Where the blocks stand in the body of each family."""


def shallower(model: Any, layers: int, head: Any = None) -> Any:
    """A classifier of the student's kind with the first ``layers`` of its blocks, which both share.

    Its own head starts as ``head``, or fresh.
    """
    found = _fresh(model, layers)
    share(found, model)
    if head is not None:
        found.load_state_dict(head.state_dict(), strict=False)
    return found.to(next(model.parameters()).device).train(model.training)


def head(model: Any) -> Any:
    """The head of such a classifier by itself, with the names that it has there: no module of its own to be run."""
    found = _fresh(model, 0)
    for name, _ in list(found.base_model.named_children()):
        if name != "pooler":
            delattr(found.base_model, name)
    return found


def _fresh(model: Any, layers: int) -> Any:
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = layers
    return type(model)(config)


def share(model: Any, other: Any) -> None:
    """Put the embeddings of ``other``, and as many of its blocks as both have, into ``model``: they are trained as one.

    What is quantized in them is quantized in both.
    """
    mine, theirs, path = model.base_model, other.base_model, BLOCKS[model.config.model_type]
    for name, part in theirs.named_children():
        if name not in (path.partition(".")[0], "pooler"):
            setattr(mine, name, part)
    own, blocks = mine.get_submodule(path), theirs.get_submodule(path)
    for i in range(min(len(own), len(blocks))):
        own[i] = blocks[i]


def answer(classifier: Any, states_BTH: Tensor) -> Tensor:
    """The logits (B, C) that the head of a classifier, or a ``head``, gives on the states of its last block."""
    kind, states = classifier.config.model_type, states_BTH
    if kind == "bert":
        states = classifier.dropout(classifier.bert.pooler(states))
    elif kind == "distilbert":
        states = classifier.dropout(classifier.pre_classifier(states[:, 0]).relu())
    logits_BC: Tensor = classifier.classifier(states)
    return logits_BC
