"""Claims about black boxes that answer oddly: what was paid for is kept, and no reply ends a run with a traceback."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import tiny_endpoint
from test_blackbox import COUNT, RIGHT, TEXTS, asked, box, function, no_pauses  # noqa: F401 (the last is a fixture)

from edgekd.blackbox import ask, cache, client
from edgekd.errors import AssetError, BudgetError, DataError
from edgekd.progress import Progress

PRICES = {"input_price": 1.0, "output_price": 10.0}


@pytest.fixture
def server() -> Iterator[tiny_endpoint.Endpoint]:
    with tiny_endpoint.endpoint() as found:
        yield found


def mangle(monkeypatch: pytest.MonkeyPatch, change: Callable[[dict[str, Any]], Any]) -> None:
    """The endpoint's good replies, changed."""
    answer = tiny_endpoint.Handler.answer

    def changed(self: Any, body: dict[str, Any], fault: Any) -> tuple[int, dict[str, str], str]:
        status, headers, text = answer(self, body, fault)
        reply = json.loads(text)
        change(reply)
        return status, headers, json.dumps(reply)

    monkeypatch.setattr(tiny_endpoint.Handler, "answer", changed)


def bill(given: Any, folder: Path) -> tuple[int, float]:
    answers = cache.Answers(folder, given.name)
    try:
        return answers.spent()
    finally:
        answers.close()


def test_half_a_character_among_the_tokens_is_kept_with_its_answer(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = {"token": "\ud83d", "logprob": -9.0}
    mangle(monkeypatch, lambda reply: reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"].append(half))
    logits, _ = asked(box(server, probabilities=True), tmp_path)
    again, _ = asked(box(server, probabilities=True), tmp_path)
    assert logits.argmax(1).tolist() == RIGHT and len(server.bodies) == COUNT
    np.testing.assert_array_equal(again, logits)


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": float("inf"), "completion_tokens": 1},
        {"prompt_tokens": 10**400, "completion_tokens": 1},
        {"prompt_tokens": 1, "completion_tokens": -5},
        {"prompt_tokens": None, "completion_tokens": None},
        {"total_tokens": 7},
        [1],
        "many",
    ],
)
def test_a_bill_that_cannot_be_read_costs_the_most_and_loses_no_answer(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, usage: Any
) -> None:
    mangle(monkeypatch, lambda reply: reply.update(usage=usage))
    given = box(server, **PRICES, max_cost=1.0)
    logits, _ = asked(given, tmp_path)
    assert logits.argmax(1).tolist() == RIGHT and len(server.bodies) == COUNT
    most = sum(client.most_cost(given, body) for body in server.bodies)
    assert bill(given, tmp_path) == (COUNT, pytest.approx(most))


@pytest.mark.parametrize("odd", [None, [], [7], [{"token": "en", "top_logprobs": [], "logprob": 10**400}]])
def test_an_answer_whose_logprobs_are_missing_is_asked_again_and_not_kept(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: Any
) -> None:
    count = [0, 10]  # replies so far, and the first that is good again

    def change(reply: dict[str, Any]) -> None:
        count[0] += 1
        if 5 < count[0] < count[1]:
            reply["choices"][0]["logprobs"] = {"content": odd}

    mangle(monkeypatch, change)
    given = box(server, probabilities=True, concurrency=1)
    message = "gives no logprobs with the answers of 'm'.*set teacher.probabilities=False.*What was answered is kept"
    with pytest.raises(AssetError, match=message):
        asked(given, tmp_path)
    assert len(server.bodies) == 5 + 3 and bill(given, tmp_path)[0] == 8  # retries of it, each billed
    logits, _ = asked(given, tmp_path)  # the next is odd once more, and then all is well
    assert logits.argmax(1).tolist() == RIGHT and len(server.bodies) == 3 + 1 + COUNT


def test_an_answer_of_nothing_has_no_logprobs_and_is_no_label(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(reply: dict[str, Any]) -> None:
        if not reply["choices"][0]["message"]["content"]:
            reply["choices"][0] = {"message": {"content": None}, "logprobs": {"content": None}}

    mangle(monkeypatch, change)
    server.say = lambda text: "" if text == TEXTS[7] else tiny_endpoint.label(text)
    logits, _ = asked(box(server, probabilities=True), tmp_path)
    assert np.isnan(logits[7]).all() and len(server.bodies) == COUNT


@pytest.mark.parametrize("concurrency", [1, 8])
def test_an_endpoint_that_bills_more_than_it_was_asked_for_is_reckoned_by_its_dearest_answer(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, concurrency: int
) -> None:
    server.pause_s = 0.02
    mangle(monkeypatch, lambda reply: reply.update(usage={"prompt_tokens": 400, "completion_tokens": 900}))
    one = (400 * 1.0 + 900 * 10.0) / 1e6
    given = box(server, **PRICES, concurrency=concurrency)
    for room in (4.5, 8.5):  # another process learns it from the answers that were kept
        limited = dataclasses.replace(given, max_cost=room * one)
        asker = ask.Asker(limited, tiny.LABELS, tmp_path, Progress(quiet=True))
        asker.prepare(TEXTS[:1])
        with pytest.raises(BudgetError, match="another request could exceed"):
            asker.ask(TEXTS, "asking")
        asker.close()
        assert (room - 2) * one < bill(given, tmp_path)[1] <= room * one
    assert len(server.bodies) < 9


def test_an_answer_that_comes_in_drops_is_not_awaited_for_ever(
    server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def drip(self: Any, status: int, headers: dict[str, str], text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(40 + len(text)))
        self.end_headers()
        for _ in range(40):
            self.wfile.write(b" ")
            server.stopped.wait(0.05)
        self.wfile.write(text.encode())

    monkeypatch.setattr(tiny_endpoint.Handler, "reply", drip)
    with pytest.raises(AssetError, match=r"did not answer within 0\.5 s; raise teacher.timeout_s"):
        asked(box(server, timeout_s=0.5, retries=0), tmp_path)
    assert bill(box(server), tmp_path)[0] == 1  # it may have been billed
    server.faults = [400]
    with pytest.raises(AssetError, match="HTTP 400: ; mend what it complains of"):  # whatever that is
        asked(box(server, timeout_s=0.5, retries=0), tmp_path)
    asked(box(server, timeout_s=20.0), tmp_path, TEXTS[:1])  # slow, and in time


@pytest.mark.parametrize("version", ["", "1"])
def test_a_mended_function_goes_on_where_it_failed_if_it_has_a_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    given = function(tmp_path, monkeypatch, "return labels[len(text) % 3] if len(ASKED) < 25 else 1 / 0")
    given = dataclasses.replace(given, model=version, retries=0, concurrency=1)
    kept = "give the same command again" if version else "a changed one is asked everything anew. A teacher.model"
    with pytest.raises(AssetError, match=f"ZeroDivisionError.*What was answered is kept.*{kept}"):
        asked(given, tmp_path)
    mended(monkeypatch, tmp_path, given, "return labels[len(text) % 3]")
    logits, _ = asked(given, tmp_path)
    assert logits.argmax(1).tolist() == [len(text) % 3 for text in TEXTS]
    assert len(module(given).ASKED) == (COUNT - 24 if version else COUNT)
    asked(dataclasses.replace(given, model="2"), tmp_path)  # a version of your own is asked anew
    assert len(module(given).ASKED) == (COUNT - 24 if version else COUNT) + COUNT


def test_what_makes_no_sense_of_a_function_is_counted_and_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = function(tmp_path, monkeypatch, "return {'oil': 0.5}", model="1", probabilities=True)
    with pytest.raises(DataError, match="it must name labels"):
        asked(given, tmp_path)
    assert bill(given, tmp_path)[0] == 1
    mended(monkeypatch, tmp_path, given, "return 'a label'")
    with pytest.raises(AssetError, match="it must return a dict of probabilities"):
        asked(given, tmp_path)
    assert bill(given, tmp_path)[0] == 2
    mended(monkeypatch, tmp_path, given, "return {labels[len(text) % 3]: 0.9}")
    logits, _ = asked(given, tmp_path)
    assert logits.argmax(1).tolist() == [len(text) % 3 for text in TEXTS]


def module(given: Any) -> Any:
    return sys.modules[given.source.split(":")[1]]


def mended(monkeypatch: pytest.MonkeyPatch, folder: Path, given: Any, body: str) -> None:
    """The function's file with another body, as a new process finds it."""
    sys.modules.pop(given.source.split(":")[1])
    function(folder, monkeypatch, body)
