"""A real Chromium, headless, by its own debugging protocol over a pipe: what a test of a page needs, and no package.

``python tests/chromium.py PAGE.html FOLDER`` takes pictures of a page to be looked at: light, dark, a phone, printed.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
INSTALL = "apt-get install -y --no-install-recommends chromium"
TIMEOUT_S = 60.0

KEYS = {"Enter": ("\r", 13), "Tab": ("", 9), "ArrowRight": ("", 39), "End": ("", 35), "Escape": ("", 27)}


def found() -> str | None:
    """The browser's path, if one is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab. ``events`` holds every event that the browser told so far."""

    def __init__(self, process: subprocess.Popen[bytes], into: int, outof: int) -> None:
        self._process, self._into, self._outof = process, into, outof
        self._buffer, self._number, self.events = b"", 0, list[dict[str, Any]]()
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = None
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    _session: str | None = None

    def call(self, method: str, **given: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result; raises ``RuntimeError`` for an error."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": given}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._into, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            pass
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        deadline = time.monotonic() + TIMEOUT_S
        while b"\0" not in self._buffer:
            if not select.select([self._outof], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise TimeoutError("Chromium says nothing")
            if not (more := os.read(self._outof, 1 << 20)):
                raise RuntimeError(f"Chromium ended with {self._process.wait()}")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message

    def told(self, method: str) -> list[dict[str, Any]]:
        """What the events of that name told."""
        return [event["params"] for event in self.events if event["method"] == method]

    def open(self, path: Path) -> None:
        """Load a file and wait until it is there."""
        before = len(self.told("Page.loadEventFired"))
        self.call("Page.navigate", url=path.resolve().as_uri())
        while len(self.told("Page.loadEventFired")) == before:
            self._next()

    def run(self, script: str) -> Any:
        """The value of an expression in the page; raises ``RuntimeError`` if it throws."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(f"{script}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def press(self, key: str, times: int = 1) -> None:
        """Press a key, as a hand does."""
        text, code = KEYS[key]
        like: dict[str, Any] = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        for _ in range(times):
            self.call("Input.dispatchKeyEvent", type="keyDown", **like, **({"text": text} if text else {}))
            self.call("Input.dispatchKeyEvent", type="keyUp", **like)

    def point(self, selector: str) -> None:
        """Move the mouse onto the middle of an element."""
        find = f"const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: 'center'}});"
        middle = "const b = e.getBoundingClientRect(); return [b.left + b.width / 2, b.top + b.height / 2];"
        box = self.run(f"(() => {{ {find} {middle} }})()")
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=box[0], y=box[1])

    def size(self, width: int, height: int = 900) -> None:
        """Make the window that large, in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    def media(self, **features: str) -> None:
        """``prefers_color_scheme="dark"``, or ``media="print"``."""
        asked = [
            {"name": name.replace("_", "-"), "value": value} for name, value in features.items() if name != "media"
        ]
        self.call("Emulation.setEmulatedMedia", media=features.get("media", ""), features=asked)

    def picture(self, path: Path) -> None:
        """A picture of the whole page."""
        taken = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))

    def printed(self, path: Path) -> None:
        """The page as it is printed, as PDF."""
        taken = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=False)
        path.write_bytes(base64.b64decode(taken["data"]))

    def faults(self) -> list[str]:
        """What went wrong so far: exceptions, and errors and warnings in the console."""
        thrown = [event["exceptionDetails"]["text"] for event in self.told("Runtime.exceptionThrown")]
        said = [event for event in self.told("Runtime.consoleAPICalled") if event["type"] in ("error", "warning")]
        logged = [event["entry"]["text"] for event in self.told("Log.entryAdded")]
        return [*thrown, *(str(event["args"]) for event in said), *logged]

    def requests(self) -> list[str]:
        """The address of everything that the page asked for."""
        return [event["request"]["url"] for event in self.told("Network.requestWillBeSent")]


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A fresh browser with one tab; ``profile`` is an empty folder for it. Raises ``RuntimeError`` without one."""
    program = found()
    if program is None:
        raise RuntimeError(f"there is no Chromium: {INSTALL}")
    (theirs_in, into), (outof, theirs_out) = os.pipe(), os.pipe()
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
    options += ["--remote-debugging-pipe", "--hide-scrollbars", "--disable-dev-shm-usage", f"--user-data-dir={profile}"]
    # the browser reads its orders from descriptor 3 and answers on 4
    script = f'exec 3<&{theirs_in} 4>&{theirs_out}; exec "$0" "$@"'
    process = subprocess.Popen(
        ["bash", "-c", script, program, *options, "about:blank"],
        pass_fds=(theirs_in, theirs_out),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Page(process, into, outof)
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)
        os.close(into)
        os.close(outof)


def main(page: Path, folder: Path) -> None:
    """Take the pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    with browser(folder / "profile") as tab:
        tab.open(page)
        for name, width, theme in (("light", 1280, "light"), ("dark", 1280, "dark"), ("phone", 390, "light")):
            tab.size(width)
            tab.media(prefers_color_scheme=theme)
            tab.picture(folder / f"{name}.png")
        tab.printed(folder / "print.pdf")
    shutil.rmtree(folder / "profile", ignore_errors=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
