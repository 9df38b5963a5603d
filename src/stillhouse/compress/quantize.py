"""Int8 forms of an exported student, by ONNX Runtime's own quantiser.

In both forms the weights of the linear layers and the embedding tables are int8 on disk, which are nearly all
of a student's bytes. What turns raw numbers into their piecewise-linear encoding (subtract, divide, clip) stays
float32: it works in the columns' own units, where eight bits would lose the bins. So does the softmax.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from stillhouse.compress.export import INPUT, check_rows, slim
from stillhouse.config import DynamicInt8, StaticInt8

__all__ = ["quantize_dynamic_int8", "quantize_static_int8"]

Array = np.ndarray[Any, Any]


def quantize_dynamic_int8(source: Path, target: Path, config: DynamicInt8) -> None:
    """Int8 weights ahead of time; the ranges of activations are found in every call.

    Linear layers become ``MatMulInteger`` (ONNX Runtime rewrites ``Gemm``, which has no dynamic int8 form);
    embeddings are looked up in int8 and made float32 again. Biases stay float32.

    :param source: ONNX file that :func:`~stillhouse.compress.export.export_onnx` wrote.
    """
    quantize_dynamic(
        _for_quantizer(source),
        target,
        op_types_to_quantize=["MatMul", "Gather"],
        per_channel=config.per_channel,
        reduce_range=config.reduce_range,
        weight_type=QuantType.QInt8,
    )
    _shrink(target)


def quantize_static_int8(source: Path, target: Path, config: StaticInt8, calibration: Array) -> None:
    """Int8 weights, and uint8 activations whose ranges are the least and largest values on calibration rows.

    From the concatenated encodings to the logits everything runs on integers, in fused operators (QOperator
    format: with these models 5 % smaller than QDQ, and as fast).

    :param source: ONNX file that :func:`~stillhouse.compress.export.export_onnx` wrote.
    :param calibration: float32 ``[n, D]``; ``config.calibration_rows`` of them, evenly spaced, are used.
    :raises ExportError: if there are no calibration rows.
    """
    check_rows(calibration)
    quantize_static(
        _for_quantizer(source),
        target,
        _Rows(_evenly_spaced(calibration, config.calibration_rows)),
        quant_format=QuantFormat.QOperator,
        op_types_to_quantize=["Gemm", "MatMul", "Relu", "Gather", "Concat"],
        per_channel=config.per_channel,
        reduce_range=config.reduce_range,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    _shrink(target)


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


def _for_quantizer(source: Path) -> onnx.ModelProto:
    """The model, marked as preprocessed: an exported student leaves the quantiser's preprocessor nothing to do."""
    model = onnx.load(source)
    model.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    return model


def _shrink(path: Path) -> None:
    path.write_bytes(slim(onnx.load(path)).SerializeToString())
