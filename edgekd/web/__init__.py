"""onnxruntime-web: its packages from npm in edgekd's cache, and the programs of Node that load a model in it."""
