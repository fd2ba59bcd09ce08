"""One request to an endpoint that speaks OpenAI's protocol of chat completions; the standard library suffices."""

from __future__ import annotations

import json
import math
import os
import random
import textwrap
import time
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import HTTPRedirectHandler, Request, build_opener

from edgekd.errors import AssetError
from edgekd.spec import BlackBox

MOST_BYTES = 2**22
"""No answer of a few tokens is longer."""
MOST_TOKENS = 2**24
"""No request has more: an endpoint that says so cannot count."""
ODD = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError)
"""What reading a reply raises where it is not of the form that it should have."""
AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""What HTTP statuses may go away by themselves."""
UNBILLED = (409, 425, 429, 503)
"""Of those: what no model has worked on. Behind the others one may have."""
LONGEST_PAUSE_S = 60.0


class TryAgain(Exception):
    """A request that failed and may succeed later: after ``wait_s``, if the endpoint said so; maybe ``billed``."""

    def __init__(self, why: str, *, billed: bool, wait_s: float | None = None) -> None:
        super().__init__(why)
        self.billed, self.wait_s = billed, wait_s


class _NoRedirect(HTTPRedirectHandler):
    """The key must not go to wherever an endpoint points."""

    def redirect_request(self, *given: Any, **named: Any) -> None:
        return None


def request(box: BlackBox, text: str, labels: Sequence[str]) -> dict[str, Any]:
    """The body that asks for the label of one text; equal bodies are one question."""
    listed = "\n".join(f"- {label}" for label in labels)
    before, _, after = box.prompt.partition("{text}")
    prompt = before.replace("{labels}", listed) + text + after.replace("{labels}", listed)
    body: dict[str, Any] = {
        "model": box.model,
        "messages": [{"role": "user", "content": prompt}],
        "temperature": 0,
        "max_tokens": max(16, 4 + max(len(label.encode()) for label in labels)),  # a token has one byte at least
    }
    return body | ({"logprobs": True, "top_logprobs": box.top_logprobs} if box.probabilities else {})


def most_cost(box: BlackBox, body: Mapping[str, Any]) -> float:
    """What a request costs at most, if the endpoint bills no more tokens than that; 0 without prices."""
    return cost(box, 64 + size(body), body["max_tokens"])


def size(body: Mapping[str, Any]) -> int:
    """The bytes of a prompt: it has no more tokens than that."""
    return sum(len(message["content"].encode()) for message in body["messages"])


def cost(box: BlackBox, tokens_in: float, tokens_out: float) -> float:
    """Their price."""
    return (tokens_in * (box.input_price or 0.0) + tokens_out * (box.output_price or 0.0)) / 1e6


def key_of(box: BlackBox) -> str | None:
    """The secret; it is read where it is sent, and kept nowhere. Raises ``AssetError`` where there is none."""
    if box.api_key_env is None:
        return None
    found = os.environ.get(box.api_key_env, "").strip()
    if not found or not found.isascii() or not found.isprintable():
        raise AssetError(f"teacher.api_key_env: the variable {box.api_key_env} holds no key; set it in the environment")
    return found


def complete(box: BlackBox, body: Mapping[str, Any]) -> dict[str, Any]:
    """Post one request: ``{"text", "tokens", "positions"}``, the last as ``parse.from_tokens`` reads it, if asked for.

    ``tokens`` are [prompt, completion], or ``None`` where the endpoint does not count. Raises ``TryAgain``, also for an
    answer without the ``logprobs`` that were asked for, or ``AssetError`` where trying again would not help. Whatever
    the endpoint says, the key is in no message.
    """
    secret = key_of(box)
    headers = {"Content-Type": "application/json", "User-Agent": "edgekd"}
    headers |= {"Authorization": f"Bearer {secret}"} if secret else {}
    address = f"{box.source.rstrip('/')}/chat/completions"
    sent = Request(address, json.dumps(body).encode(), headers)
    try:
        with build_opener(_NoRedirect).open(sent, timeout=box.timeout_s) as reply:
            content = _without(secret, _body(reply, box.timeout_s))
    except HTTPError as error:
        raise _refused(box, error, secret) from None
    except URLError as error:  # it could not be sent
        raise TryAgain(f"{box.source} cannot be reached: {error.reason}", billed=False) from None
    except TimeoutError:
        why = f"{box.source} did not answer within {box.timeout_s:g} s; raise teacher.timeout_s if it is slow"
        raise TryAgain(why, billed=True) from None
    except (OSError, HTTPException) as error:
        raise TryAgain(f"{box.source} broke off: {type(error).__name__}", billed=True) from None
    return _read(box, content)


def _body(reply: Any, timeout_s: float) -> bytes:
    """All of a reply. Raises ``TimeoutError`` where it takes longer: a socket's own limit is one for each piece."""
    content, end = bytearray(), time.monotonic() + timeout_s
    while len(content) < MOST_BYTES and (part := reply.read1(MOST_BYTES - len(content))):
        content += part
        if time.monotonic() > end:
            raise TimeoutError
    return bytes(content)


def _refused(box: BlackBox, error: HTTPError, secret: str | None) -> Exception:
    try:
        said = _line(_without(secret, _body(error, box.timeout_s)).decode(errors="replace"))
    except (OSError, HTTPException):
        said = ""
    what = f"{box.source} answered HTTP {error.code}: {said}"
    if error.code in AGAIN and "insufficient_quota" not in said:
        return TryAgain(what, billed=error.code not in UNBILLED, wait_s=_wait(error.headers.get("Retry-After")))
    if error.code in (401, 403):
        where = f"the key in {box.api_key_env}" if box.api_key_env else "teacher.api_key_env, which names no key"
        return AssetError(f"{what}; look at {where}, and at what it may use")
    if error.code in (402, 429):
        return AssetError(f"{what}; the account has no credit left: top it up, and give the same command again")
    if 300 <= error.code < 400:
        return AssetError(f"{what}; it points elsewhere, and keys are not sent there: write that address in the target")
    if error.code == 404:
        return AssetError(
            f"{what}; teacher.source must be what stands before /chat/completions, and have teacher.model"
        )
    return AssetError(f"{what}; mend what it complains of in the target's teacher")


def _wait(header: str | None) -> float | None:
    """The seconds that Retry-After asks for, as a number or a date; ``None`` if it says nothing that makes sense."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def pause(attempt: int, wait_s: float | None) -> float:
    """Seconds before the next try: what was asked for; else 1, 2, 4 and so on, each less up to a half by chance."""
    if wait_s is not None:
        return wait_s
    return min(LONGEST_PAUSE_S, 2.0**attempt) * random.uniform(0.5, 1.0)


def _read(box: BlackBox, content: bytes) -> dict[str, Any]:
    try:
        reply = json.loads(content)
        choice = reply["choices"][0]
        text = choice["message"]["content"] or ""
        if not isinstance(text, str):
            raise TypeError("its answer is no text")
    except ODD:
        said = _line(content[:1000].decode(errors="replace"))
        raise TryAgain(f"{box.source} answered with what is no chat completion: {said}", billed=True) from None
    try:
        positions = [_position(part) for part in choice["logprobs"]["content"]] if box.probabilities else []
    except ODD:
        positions = []
    if box.probabilities and text and not positions:  # an answer of nothing has no tokens
        why = (
            f"{box.source} gives no logprobs with the answers of {box.model!r}: if it never does, set "
            "teacher.probabilities=False and learn from its labels, or choose a model that gives them"
        )
        raise TryAgain(why, billed=True)
    return {"text": _line(text), "tokens": _tokens(reply.get("usage")), "positions": positions}


def _tokens(usage: Any) -> list[int] | None:
    """[prompt, completion] as the endpoint counts them; ``None`` where it does not, or what it says cannot be."""
    try:
        counted = [int(usage[part]) for part in ("prompt_tokens", "completion_tokens")]
    except ODD:
        return None
    return counted if all(0 <= count <= MOST_TOKENS for count in counted) else None


def _position(part: Mapping[str, Any]) -> dict[str, Any]:
    top = [[str(found["token"]), _log_probability(found["logprob"])] for found in (*part["top_logprobs"], part)]
    return {"token": str(part["token"]), "top": top}


def _log_probability(value: Any) -> float:
    """Servers write null or -9999 for none at all."""
    number = -1e4 if value is None else float(value)
    if math.isnan(number) or number > 1e-3:
        raise ValueError("no log-probability")
    return max(-1e4, min(0.0, number))


def _without(secret: str | None, content: bytes) -> bytes:
    """Some endpoints repeat the key in their complaint about it."""
    for form in (secret, json.dumps(secret)[1:-1], (secret or "").replace("/", "\\/")) if secret else ():
        content = content.replace(str(form).encode(), b"[key]")
    return content


def _line(text: str) -> str:
    return textwrap.shorten("".join(c if c.isprintable() else " " for c in text), 300)
