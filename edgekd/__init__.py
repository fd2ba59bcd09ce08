"""edgekd turns a large teacher into a small int8 ONNX student for one device, and proves what it claims."""

__version__ = "0.1.0"
