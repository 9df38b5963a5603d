"""Int8 forms of an exported student, by ONNX Runtime's own quantiser.

In both forms the weights of the linear layers and the embedding tables are int8 on disk, which are nearly all
of a student's bytes. What turns raw numbers into their piecewise-linear encoding (subtract, divide, clip) stays
float32: it works in the columns' own units, where eight bits would lose the bins. So does the softmax.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from stillhouse.compress.export import INPUT, check_rows
from stillhouse.config import DynamicInt8, StaticInt8

__all__ = ["quantize_dynamic_int8", "quantize_static_int8"]

Array = np.ndarray[Any, Any]


def quantize_dynamic_int8(model: onnx.ModelProto, config: DynamicInt8) -> onnx.ModelProto:
    """Int8 weights ahead of time; the ranges of activations are found in every call.

    Linear layers become ``MatMulInteger`` (ONNX Runtime rewrites ``Gemm``, which has no dynamic int8 form);
    embeddings are looked up in int8 and made float32 again. Biases stay float32.

    :param model: what :func:`~stillhouse.compress.export.export_onnx` made.
    """
    return _quantised(
        quantize_dynamic,
        model,
        op_types_to_quantize=["MatMul", "Gather"],
        per_channel=config.per_channel,
        reduce_range=config.reduce_range is not False,
        weight_type=QuantType.QInt8,
    )


def quantize_static_int8(model: onnx.ModelProto, config: StaticInt8, calibration: Array) -> onnx.ModelProto:
    """Int8 weights, and uint8 activations whose ranges are the least and largest values on calibration rows.

    From the concatenated encodings to the logits everything runs on integers, in fused operators (QOperator
    format: with these models 5 % smaller than QDQ, and as fast).

    :param model: what :func:`~stillhouse.compress.export.export_onnx` made.
    :param calibration: float32 ``[n, D]``; ``config.calibration_rows`` of them, evenly spaced, are used.
    :raises ExportError: if there are no calibration rows.
    """
    check_rows({INPUT: calibration})
    return _quantised(
        quantize_static,
        model,
        _Rows(_evenly_spaced(calibration, config.calibration_rows)),
        quant_format=QuantFormat.QOperator,
        op_types_to_quantize=["Gemm", "MatMul", "Relu", "Gather", "Concat"],
        per_channel=config.per_channel,
        reduce_range=config.reduce_range is not False,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )


def _evenly_spaced(rows: Array, count: int) -> Array:
    """At most ``count`` rows, evenly spaced over all: rows in order of time cover the whole window."""
    if len(rows) <= count:
        return rows
    chosen: Array = rows[np.linspace(0, len(rows) - 1, count).astype(int)]
    return chosen


class _Rows(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not annotated
    """All calibration rows as one batch."""

    def __init__(self, rows: Array) -> None:
        self._batches: Iterator[dict[str, Array]] = iter([{INPUT: rows}])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def _quantised(
    quantizer: Callable[..., None], model: onnx.ModelProto, *reader: _Rows, **settings: Any
) -> onnx.ModelProto:
    """What ONNX Runtime's quantiser makes of the model; it only writes files.

    The model is marked as preprocessed: an exported student leaves the quantiser's preprocessor nothing to do.
    """
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    marked.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with TemporaryDirectory() as folder:
        target = Path(folder, "model.onnx")
        quantizer(marked, target, *reader, **settings)
        return onnx.load(target)
