"""What a person sees while pip fetches a wheel."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import tiny_wheels

from edgekd import downloads

SIZE = 6 * downloads.MIB


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A package index on this machine that sends half of its wheel, then waits for ``go``."""
    noise = b"".join(hashlib.sha256(str(i).encode()).digest() for i in range(SIZE // 32))
    wheel, _ = tiny_wheels.build(tmp_path / "built", {"demo/noise": noise})
    content, go = wheel.read_bytes(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            page = f'<a href="/{wheel.name}">{wheel.name}</a>'.encode()
            sent, kind = (content, "application/zip") if self.path.endswith(".whl") else (page, "text/html")
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(sent)))
            self.end_headers()
            self.wfile.write(sent[: len(sent) // 2])
            self.wfile.flush()
            if sent is content:
                go.wait(30)
            self.wfile.write(sent[len(sent) // 2 :])

        def log_message(self, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
    yield {"go": go, "wheel": wheel}
    go.set()
    server.shutdown()


def test_the_bar_knows_the_size_and_grows_while_the_wheel_arrives(index: dict[str, Any], tmp_path: Path) -> None:
    opened: list[tuple[str, int | None, str]] = []
    seen = 0

    @contextmanager
    def bar(name: str, *, total: int | None, start: int = 0, unit: str = "step") -> Iterator[Any]:
        opened.append((name, total, unit))

        def advance(steps: int = 1, /, **fields: object) -> None:
            nonlocal seen
            seen += steps
            if seen >= 2:  # of three that have been sent: only a bar that moves lets the rest come
                index["go"].set()

        yield advance

    status, said = downloads.pip_download("edgekd-demo==1.0", tmp_path / "out", bar)
    assert status == 0, said
    assert opened == [("downloading edgekd-demo==1.0", 6, "MiB")]
    assert 2 <= seen <= 6
    assert (tmp_path / "out" / index["wheel"].name).read_bytes() == index["wheel"].read_bytes()
    assert [path.name for path in (tmp_path / "out").rglob("*.whl")] == [index["wheel"].name], "no temporary file stays"


def test_without_a_bar_the_wheel_comes_all_the_same(index: dict[str, Any], tmp_path: Path) -> None:
    index["go"].set()
    assert downloads.pip_download("edgekd-demo==1.0", tmp_path)[0] == 0
    assert (tmp_path / index["wheel"].name).is_file()


def test_pip_does_not_outlive_an_interrupted_run(
    index: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []

    def interrupted(*given: Any) -> None:
        started.append(given[0])
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads, "_show", interrupted)
    with pytest.raises(KeyboardInterrupt):
        downloads.pip_download("edgekd-demo==1.0", tmp_path, lambda *a, **k: None)  # type: ignore[arg-type,return-value]
    assert started[0].returncode is not None


@pytest.mark.parametrize(
    ("said", "size"),
    [
        ("  Downloading http://x/simple/a-1-py3-none-any.whl (87.5 MB)\n", 87_500_000),
        ("Collecting a\n  Downloading a-1-py3-none-any.whl.metadata (1.2 kB)\n", None),
        ("Downloading a-1-py3-none-any.whl.metadata (1 kB)\nDownloading a-1-py3-none-any.whl (12 kB)", 12_000),
        ("Downloading a-1.whl\n (300 bytes)", 300),
        ("Processing ./a-1.whl", None),
    ],
)
def test_the_size_is_that_which_pip_announces_for_the_wheel(said: str, size: int | None, tmp_path: Path) -> None:
    (tmp_path / "log").write_text(said)
    assert downloads._announced(tmp_path / "log") == size
