"""A local endpoint of chat completions that labels tiny texts, counts what it is asked, and misbehaves when told to."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import tiny

HINTS = {**dict.fromkeys(tiny.WORDS[:4], 0), **dict.fromkeys(tiny.WORDS[4:8] + tiny.WORDS[16:], 1)}
HINTS |= dict.fromkeys(tiny.WORDS[8:12], 2)


def label(text: str, labels: tuple[str, ...] = tiny.LABELS) -> str:
    """What a good teacher says of a text of ``tiny.split``."""
    votes = [0, 0, 0]
    for word in text.split():
        if word in HINTS:
            votes[HINTS[word]] += 1
    return labels[votes.index(max(votes))]


def shares(text: str, labels: tuple[str, ...] = tiny.LABELS) -> dict[str, float]:
    """The same with probabilities, of two labels out of three."""
    right = labels.index(label(text, labels))
    return {labels[right]: 0.8, labels[(right + 1) % 3]: 0.15}


class Endpoint(ThreadingHTTPServer):
    """``bodies`` and ``keys`` are what was asked with, ``most`` how many requests were ever under way at once.

    ``faults`` are what becomes of the next requests: an HTTP status, ``timeout``, ``nonsense``, or a header to send
    with 429. ``say`` makes the answer of a text; ``pause_s`` is how long that takes.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.source = f"http://127.0.0.1:{self.server_port}/v1"
        self.lock, self.stopped = threading.Lock(), threading.Event()
        self.bodies: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.faults: list[Any] = []
        self.now = self.most = 0
        self.pause_s = 0.0
        self.say: Any = label

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that give up are what the tests are about."""


class Handler(BaseHTTPRequestHandler):
    server: Endpoint

    def do_POST(self) -> None:
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.keys.append(self.headers["Authorization"])
            server.now += 1
            server.most = max(server.most, server.now)
            fault = server.faults.pop(0) if server.faults else None
        try:
            server.stopped.wait(5.0 if fault == "timeout" else server.pause_s)
            self.reply(*self.answer(body, fault))
        finally:
            with server.lock:
                server.now -= 1

    def answer(self, body: dict[str, Any], fault: Any) -> tuple[int, dict[str, str], str]:
        if isinstance(fault, int):
            return fault, {}, json.dumps({"error": {"message": f"no, {self.headers['Authorization']}"}})
        if isinstance(fault, dict):
            return 429, fault, "{}"
        if fault == "nonsense":
            return 200, {}, "<html>a proxy</html>"
        text = body["messages"][0]["content"].rpartition("Text:\n")[2]
        said = self.server.say(text)
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": said}}
        if body.get("logprobs") and not isinstance(fault, list):
            odds = shares(text) if said in tiny.LABELS else {said: 0.9}
            top = [{"token": t[:3], "logprob": math.log(p)} for t, p in odds.items()]
            tail = {"token": said[3:], "logprob": 0.0}
            choice["logprobs"] = {"content": [{**top[0], "top_logprobs": top}, {**tail, "top_logprobs": [tail]}]}
        prompt = sum(len(m["content"].encode()) for m in body["messages"]) // 4
        usage = {"prompt_tokens": prompt, "completion_tokens": 2}
        return 200, {}, json.dumps({"choices": [choice], "usage": usage})

    def reply(self, status: int, headers: dict[str, str], text: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *given: Any) -> None:
        """Says nothing."""


@contextmanager
def endpoint() -> Iterator[Endpoint]:
    """A running endpoint."""
    with Endpoint() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.stopped.set()
            server.shutdown()
            thread.join()


def until(condition: Any) -> None:
    """Wait for it, for a while."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
