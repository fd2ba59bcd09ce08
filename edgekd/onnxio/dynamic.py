"""What most users pick today: onnxruntime's own dynamic quantization of a float file. The rival in every report."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

from onnxruntime.quantization import QuantType
from onnxruntime.quantization import quantize_dynamic as ort_quantize_dynamic

from edgekd.errors import ExportError
from edgekd.onnxio import files


def quantize_dynamic(src: Path, dst: Path) -> None:
    """Write ``src`` (float32) to ``dst`` with int8 weights per channel and activations quantized at run time.

    Everything else is left at onnxruntime's defaults. Equal inputs give equal bytes. Raises ``ExportError``.
    """
    files.read(src)
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # it advises a pre-processing that our graphs have behind them
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            ort_quantize_dynamic(src, file, per_channel=True, weight_type=QuantType.QInt8)
            model = files.read(file)
    except ExportError:
        raise
    except Exception as error:  # onnxruntime raises plain exceptions here
        raise ExportError(f"onnxruntime cannot quantize {src.name} dynamically: {error}") from error
    finally:
        logging.disable(level)
    model.producer_name, model.producer_version, model.doc_string = "onnxruntime.quant", "", ""
    del model.metadata_props[:]
    files.write(model, dst)
