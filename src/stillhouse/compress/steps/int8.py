"""Int8 versions of an exported model, made by ONNX Runtime's own quantiser.

In both formats the weights of the linear layers and the embedding tables are int8 on disk; they are almost all of a
student's bytes. The piecewise-linear encoding of raw numbers (subtract, divide, clip) stays float32: it works in the
columns' own units, where eight bits would not resolve the bins. The softmax stays float32 as well.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static

from stillhouse.compress.export import check_rows
from stillhouse.compress.processor import processor
from stillhouse.compress.saturation import find_saturating_layers
from stillhouse.compress.statistics import sample_evenly
from stillhouse.compress.steps.onnxruntime_quantizer import (
    CalibrationBatches,
    excluded_nodes,
    quantize_in_blocks,
    require_layers,
    run_quantizer,
)
from stillhouse.compress.target import Feed
from stillhouse.config import DynamicInt8, StaticInt8
from stillhouse.errors import ExportError

__all__ = ["quantize_dynamic_int8", "quantize_static_int8"]

_DYNAMIC_OPERATORS = ("MatMul", "Gather")  # a dynamic convolution in int8 is slower than in float32
_STATIC_OPERATORS = ("Gemm", "MatMul", "Conv", "Relu", "MaxPool", "Gather", "Concat")
_CALIBRATION_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
}
_HISTOGRAM_ROWS = 256  # for a percentile every activation of every row is held in memory
_PERCENTILE = 99.9  # of the activations that a range covers
_TABLE_BLOCK = 32  # values of an embedding row with one scale, in 4 bits


def quantize_dynamic_int8(model: onnx.ModelProto, config: DynamicInt8, feed: Feed) -> onnx.ModelProto:
    """Weights in int8 ahead of time; the activation ranges are computed in every call.

    Linear layers become ``MatMulInteger`` (ONNX Runtime rewrites ``Gemm``, which has no dynamic int8 form); embeddings
    are looked up in int8 and converted to float32. Biases and convolutions stay float32.

    Example:
        >>> import numpy as np
        >>> from torch import nn
        >>> from stillhouse.compress.export import export_onnx
        >>> rows = {"x": np.random.default_rng(0).normal(size=(16, 32)).astype(np.float32)}
        >>> model = export_onnx(nn.Linear(32, 3).eval(), rows)
        >>> small = quantize_dynamic_int8(model, DynamicInt8(method="int8_dynamic"), rows)
        >>> "MatMulInteger" in {node.op_type for node in small.graph.node}
        True

    :param model: made by :func:`~stillhouse.compress.export.export_onnx`.
    :param feed: calibration rows, on which saturation is checked.
    :raises ExportError: if 8-bit weights are required and saturate on this processor.
    """

    def quantize(reduce_range: bool) -> onnx.ModelProto:
        return _with_small_tables(lambda graph, excluded: run(graph, excluded, reduce_range), model, config)

    def run(graph: onnx.ModelProto, excluded: list[str], reduce_range: bool) -> onnx.ModelProto:
        return run_quantizer(
            quantize_dynamic,
            graph,
            op_types_to_quantize=list(_DYNAMIC_OPERATORS),
            per_channel=config.per_channel,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=excluded,
        )

    return _without_saturation(quantize, config, model, feed)


def quantize_static_int8(model: onnx.ModelProto, config: StaticInt8, feed: Feed) -> onnx.ModelProto:
    """Weights in int8, and activations in uint8 with ranges from calibration rows.

    All operators from the concatenated encodings to the logits run on integers, fused (QOperator format: for these
    models 5 % smaller than QDQ, and as fast).

    :param model: made by :func:`~stillhouse.compress.export.export_onnx`.
    :param feed: n ≥ 1 rows; ``config.calibration_rows`` of them, evenly spaced, are used.
    :raises ExportError: if there are no calibration rows, or 8-bit weights are required and saturate on this processor.
    """
    check_rows(feed)
    rows = config.calibration_rows if config.ranges == "minmax" else min(config.calibration_rows, _HISTOGRAM_ROWS)
    calibration = sample_evenly(feed, rows)

    def quantize(reduce_range: bool) -> onnx.ModelProto:
        return _with_small_tables(lambda graph, excluded: run(graph, excluded, reduce_range), model, config)

    def run(graph: onnx.ModelProto, excluded: list[str], reduce_range: bool) -> onnx.ModelProto:
        return run_quantizer(
            quantize_static,
            graph,
            CalibrationBatches(calibration),
            quant_format=QuantFormat.QOperator,
            op_types_to_quantize=list(_STATIC_OPERATORS),
            per_channel=config.per_channel,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=_CALIBRATION_METHODS[config.ranges],
            extra_options={"CalibPercentile": _PERCENTILE},
            nodes_to_exclude=excluded,
        )

    return _without_saturation(quantize, config, model, feed)


def _with_small_tables(
    quantize: Callable[[onnx.ModelProto, list[str]], onnx.ModelProto],
    model: onnx.ModelProto,
    config: DynamicInt8 | StaticInt8,
) -> onnx.ModelProto:
    """The quantised graph; with ``table_bits`` of 4 its embedding tables in 4 bits, otherwise ``quantize`` does them.

    The tables are quantised last: the quantisers cannot infer types across ONNX Runtime's own operators.

    :param quantize: quantises a graph, except the nodes of the given names.
    """
    excluded = excluded_nodes(config.keep)
    if config.table_bits == 8:
        return quantize(model, excluded)
    tables = [node.name for node in model.graph.node if node.op_type == "Gather"]
    return quantize_in_blocks(quantize(model, [*excluded, *tables]), ("Gather",), 4, _TABLE_BLOCK, None, config.keep)


def _without_saturation(
    quantize: Callable[[bool], onnx.ModelProto], config: DynamicInt8 | StaticInt8, model: onnx.ModelProto, feed: Feed
) -> onnx.ModelProto:
    """8-bit weights where they do not saturate on this processor; otherwise 7-bit ones, if ``reduce_range`` is auto.

    :param quantize: with 7-bit weights for True, 8-bit ones for False.
    """
    require_layers(config.keep, model, config.method)
    if config.reduce_range is True:
        return quantize(True)
    eight_bit = quantize(False)
    saturating = () if processor().sums_without_saturation else find_saturating_layers(eight_bit, feed)
    if not saturating:
        return eight_bit
    if config.reduce_range is False:
        worst = max(saturating, key=lambda layer: layer.share)
        raise ExportError(
            f"{config.method} with reduce_range: false saturates in {worst.layer} ({worst.share:.2%} of its pairs of "
            f"products) on {processor().name}, which has no VNNI: say reduce_range: auto"
        )
    return quantize(True)
