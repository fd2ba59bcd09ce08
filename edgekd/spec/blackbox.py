"""A teacher of which only the answers can be had, and whose terms may forbid to train on them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from edgekd.spec.losses import needs_no_teacher
from edgekd.spec.sources import STORED

if TYPE_CHECKING:
    from edgekd.spec import Target

__all__ = ["BlackBox", "Terms"]

Terms = Literal["outputs may train models", "outputs may not train models"]
"""What whoever provides a teacher says of its outputs."""

FORBIDDEN: Terms = "outputs may not train models"

PROMPT = """Classify the text at the end. The labels are:
{labels}
Answer with exactly one of these labels, spelled as it is here, and nothing else.

Text:
{text}"""

LEAST_VOCABULARY = 260
"""A student's own tokenizer knows all 256 bytes, and four special tokens."""

NOT_IN_KEY: dict[str, object] = {"key": False}
"""Of a field that does not change the answers: it is not part of a stage's key."""


@dataclass(frozen=True, kw_only=True)
class BlackBox:
    """A teacher that shows nothing but its answers: a function of yours, or an endpoint of OpenAI's protocol.

    ``source`` is ``callable:package.module:function``, found from the working folder, or the address before
    ``/chat/completions``, such as ``https://host/v1``, with its ``model``. The function is called with a text and the
    tuple of labels, by several threads at once; it returns a label, or (with ``probabilities``) the probability of
    each label that it names, what is missing to 1 being that of all others together; ``None`` where it has no answer.
    For a function ``model`` is a version of your own, to be changed when it answers otherwise: while it stays, what was
    answered is kept though the file be changed. Without it a file that was changed in any way is asked everything anew.

    An endpoint is asked at temperature 0 with ``prompt``, where ``{text}`` and ``{labels}`` are filled in. With
    ``probabilities`` it must give ``logprobs``, ``top_logprobs`` of them for each token. ``api_key_env`` names the
    environment variable that holds the key. At most ``concurrency`` requests are under way; an answer must begin within
    ``timeout_s``, and be whole in as long again. A request that fails is made again ``retries`` times, after longer and
    longer pauses. Answers are kept in the store, whatever happens.

    Its first student is cut from another backbone, its ``source``, or has a ``config`` and a tokenizer of its own, of
    ``Student.vocabulary`` tokens (8,192 by default), trained on the training split.

    ``max_requests`` and ``max_cost`` hold for all that one store has ever asked of this model; the prices are those of
    a million tokens, in the currency of ``max_cost``. ``max_requests`` is never exceeded, nor is ``max_cost`` while the
    endpoint bills no more than a token for each byte of a prompt, 64 besides, and ``max_tokens`` for the answer. Where
    it bills more, the requests then under way, ``concurrency`` of them at most, may exceed ``max_cost`` by that much;
    further ones are reckoned by the dearest so far. What the endpoint does not count is taken to cost the most.

    An answer that is no label leaves its example out; with more than a share of ``max_unlabelled`` of those the run
    stops.
    """

    source: str
    model: str = ""
    prompt: str = PROMPT
    probabilities: bool = False
    top_logprobs: int = 20
    max_unlabelled: float = field(default=0.05, metadata=NOT_IN_KEY)
    concurrency: int = field(default=8, metadata=NOT_IN_KEY)
    timeout_s: float = field(default=60.0, metadata=NOT_IN_KEY)
    retries: int = field(default=5, metadata=NOT_IN_KEY)
    max_requests: int | None = field(default=None, metadata=NOT_IN_KEY)
    max_cost: float | None = field(default=None, metadata=NOT_IN_KEY)
    input_price: float | None = field(default=None, metadata=NOT_IN_KEY)
    output_price: float | None = field(default=None, metadata=NOT_IN_KEY)
    api_key_env: str | None = field(default=None, metadata=NOT_IN_KEY)
    licence: str | None = field(default=None, metadata=NOT_IN_KEY)
    terms: Terms | None = field(default=None, metadata=NOT_IN_KEY)
    acknowledged_terms: bool = field(default=False, metadata=NOT_IN_KEY)

    @property
    def files(self) -> tuple[str, ...]:
        """What is to be fetched of it."""
        return ()

    @property
    def function(self) -> tuple[str, str] | None:
        """Module and name of the function; ``None`` for an endpoint."""
        match = re.fullmatch(r"callable:([\w.]+):(\w+)", self.source)
        return None if match is None else (match[1], match[2])

    @property
    def name(self) -> str:
        """What people call it."""
        return f"{self.source} ({self.model})" if self.model else self.source


def contradictions(target: Target) -> Iterator[str]:
    """What in a target contradicts its teacher being a black box, or the teacher's terms."""
    teacher = target.teacher
    for one in (teacher, *target.co_teachers):
        if one.terms == FORBIDDEN and not one.acknowledged_terms:
            yield (
                f"the terms of {one.source} are that {FORBIDDEN}: choose another teacher, or set its "
                "acknowledged_terms=True if its provider has agreed to this use"
            )
    if isinstance(teacher, BlackBox):
        yield from _own(teacher)
        yield from _line(target, teacher)


def _own(box: BlackBox) -> Iterator[str]:
    if box.source.startswith("callable:"):
        if box.function is None:
            yield f"teacher.source {box.source!r} names no function: write callable:package.module:function"
        if box.max_cost is not None:
            yield "teacher.max_cost is for endpoints, which bill by tokens: give a function max_requests"
        return
    try:
        address = urlsplit(box.source)
        plain = address.scheme in ("http", "https") and bool(address.hostname) and address.port != 0
        plain = plain and re.fullmatch("[!-~]+", box.source) is not None  # what a request's first line may hold
        plain = plain and all(0 < len(label) < 64 for label in str(address.hostname).rstrip(".").split("."))  # RFC 1035
    except ValueError:
        plain = False
    if not plain or address.username or address.password or address.query or address.fragment:
        yield (
            "teacher.source must be callable:package.module:function or a plain ASCII address such as https://host/v1, "
            "without a key, user or query in it: a key belongs into the variable that api_key_env names"
        )
    if not box.model:
        yield "teacher.model must name the model that the endpoint is to answer with"
    if "{text}" not in box.prompt:
        yield "teacher.prompt must hold {text}, where the text to be labelled is filled in"
    if box.max_cost is not None and None in (box.input_price, box.output_price):
        yield "teacher.max_cost needs teacher.input_price and teacher.output_price, for a million tokens each"


def _line(target: Target, box: BlackBox) -> Iterator[str]:
    distill, budget = target.distill, target.budget
    first = target.learners[0]
    if target.co_teachers:
        yield "a black box teaches alone: remove co_teachers"
    if first.config is None and first.source is None:
        yield "a black box has no weights to cut a student from: give the first student a source, or a config"
    if first.source is None and (first.vocabulary or LEAST_VOCABULARY) < LEAST_VOCABULARY:
        yield f"the first student has a tokenizer of its own, of {LEAST_VOCABULARY} tokens at least: raise vocabulary"
    if distill.source != STORED:
        yield "a black box answers once, into the store: leave distill.source as it is"
    if distill.augment is not None or distill.general is not None:
        yield "distill.augment and distill.general look into the teacher, and a black box shows nothing: remove them"
    if distill.select is not None:
        yield "distill.select would leave out answers that have been paid for: lower task.limit instead"
    shown = ("CE", "PartialKL") if box.probabilities else ("CE",)
    usable = "PartialKL and CE" if box.probabilities else 'CE(labels="teacher"), or PartialKL with probabilities=True'
    for name in dict.fromkeys(type(loss).__name__ for loss in distill.losses if not needs_no_teacher(loss)):
        if name not in shown:
            yield f"distill.losses: {name} asks for more than this black box shows: use {usable}"
    for name in ("speedup", "shrink"):
        if getattr(budget, name) is not None:
            yield f"budget.{name} compares with the teacher's own graph, which a black box does not show: remove it"
