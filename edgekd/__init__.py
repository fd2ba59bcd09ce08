"""edgekd turns a large teacher into a small int8 ONNX student for one device, and proves what it claims."""

import os

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read once, when onnxruntime is first imported

__version__ = "0.1.0"
