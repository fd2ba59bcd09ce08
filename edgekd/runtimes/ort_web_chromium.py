"""onnxruntime-web in a page of headless Chromium: the browser itself, its compiler as a page gets it, no network.

A call is timed in the page, by a clock of 5 microseconds; memory and threads are those of the page's process.
"""

from __future__ import annotations

from edgekd.runtimes.ort_web import Web

_web = Web("chromium")
load, process, version = _web.load, _web.process, _web.version
