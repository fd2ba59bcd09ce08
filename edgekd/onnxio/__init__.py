"""Everything that touches ONNX: export, graph passes, fusion audit, parity, sizes, folder layout."""
