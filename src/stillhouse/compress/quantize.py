"""Int8 forms of an exported model, by ONNX Runtime's own quantiser.

In both forms the weights of the linear layers and the embedding tables are int8 on disk, which are nearly all
of a student's bytes. What turns raw numbers into their piecewise-linear encoding (subtract, divide, clip) stays
float32: it works in the columns' own units, where eight bits would lose the bins. So does the softmax.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from stillhouse.compress.export import check_rows
from stillhouse.compress.processor import processor
from stillhouse.compress.saturation import saturation
from stillhouse.compress.subject import Array, Feed
from stillhouse.config import DynamicInt8, StaticInt8
from stillhouse.errors import ExportError

__all__ = [
    "evenly_spaced",
    "in_blocks",
    "quantize_dynamic_int8",
    "quantize_static_int8",
    "quantize_tables",
    "require_layers",
    "touched",
]

_DYNAMIC = ("MatMul", "Gather")  # a dynamic convolution in int8 is slower than in float32
_STATIC = ("Gemm", "MatMul", "Conv", "Relu", "MaxPool", "Gather", "Concat")
_METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "percentile": CalibrationMethod.Percentile,
}
_HISTOGRAM_ROWS = 256  # for a percentile every activation of every row is held in memory
_PERCENTILE = 99.9  # of the activations that a range covers
_BATCH = 256
_TABLE_BLOCK = 32


def touched(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes whose weights take a number format, the largest first."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer if len(tensor.dims) > 1}
    named = {
        node.name: max(sizes.get(each, 0) for each in node.input)
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm", "Conv", "Gather") and any(each in sizes for each in node.input)
    }
    return sorted(named, key=lambda name: (-named[name], name))


def require_layers(keep: tuple[str, ...], model: onnx.ModelProto, step: str) -> None:
    """Refuse names of layers that are not there.

    :raises ExportError: naming them, and those that there are.
    """
    if unknown := sorted(set(keep) - {node.name for node in model.graph.node}):
        raise ExportError(
            f"{step}.keep: no layer is called {', '.join(unknown)}; those are: {', '.join(touched(model))}"
        )


def quantize_dynamic_int8(model: onnx.ModelProto, config: DynamicInt8, feed: Feed) -> onnx.ModelProto:
    """Int8 weights ahead of time; the ranges of activations are found in every call.

    Linear layers become ``MatMulInteger`` (ONNX Runtime rewrites ``Gemm``, which has no dynamic int8 form);
    embeddings are looked up in int8 and made float32 again. Biases and convolutions stay float32.

    :param model: what :func:`~stillhouse.compress.export.export_onnx` made.
    :param feed: calibration rows, on which saturation is looked for.
    :raises ExportError: if 8-bit weights are asked for and saturate on this processor.
    """

    def make(reduce_range: bool) -> onnx.ModelProto:
        return _with_small_tables(lambda graph, excluded: quantised(graph, excluded, reduce_range), model, config)

    def quantised(graph: onnx.ModelProto, excluded: list[str], reduce_range: bool) -> onnx.ModelProto:
        return _quantised(
            quantize_dynamic,
            graph,
            op_types_to_quantize=list(_DYNAMIC),
            per_channel=config.per_channel,
            reduce_range=reduce_range,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=excluded,
        )

    return _unsaturated(make, config, model, feed)


def quantize_static_int8(model: onnx.ModelProto, config: StaticInt8, feed: Feed) -> onnx.ModelProto:
    """Int8 weights, and uint8 activations whose ranges are taken from calibration rows.

    From the concatenated encodings to the logits everything runs on integers, in fused operators (QOperator
    format: with these models 5 % smaller than QDQ, and as fast).

    :param model: what :func:`~stillhouse.compress.export.export_onnx` made.
    :param feed: n ≥ 1 rows; ``config.calibration_rows`` of them, evenly spaced, are used.
    :raises ExportError: if there are no calibration rows, or 8-bit weights are asked for and saturate here.
    """
    check_rows(feed)
    rows = config.calibration_rows if config.ranges == "minmax" else min(config.calibration_rows, _HISTOGRAM_ROWS)
    calibration = evenly_spaced(feed, rows)

    def make(reduce_range: bool) -> onnx.ModelProto:
        return _with_small_tables(lambda graph, excluded: quantised(graph, excluded, reduce_range), model, config)

    def quantised(graph: onnx.ModelProto, excluded: list[str], reduce_range: bool) -> onnx.ModelProto:
        return _quantised(
            quantize_static,
            graph,
            _Rows(calibration),
            quant_format=QuantFormat.QOperator,
            op_types_to_quantize=list(_STATIC),
            per_channel=config.per_channel,
            reduce_range=reduce_range,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=_METHODS[config.ranges],
            extra_options={"CalibPercentile": _PERCENTILE},
            nodes_to_exclude=excluded,
        )

    return _unsaturated(make, config, model, feed)


def evenly_spaced(feed: Feed, count: int) -> Feed:
    """At most ``count`` rows, evenly spaced over all: rows in order of time cover the whole window."""
    rows = len(next(iter(feed.values())))
    if rows <= count:
        return feed
    places = np.linspace(0, rows - 1, count).astype(int)
    return {name: array[places] for name, array in feed.items()}


def _with_small_tables(
    make: Callable[[onnx.ModelProto, list[str]], onnx.ModelProto],
    model: onnx.ModelProto,
    config: DynamicInt8 | StaticInt8,
) -> onnx.ModelProto:
    """The quantised graph; its embedding tables in 4 bits where that is asked for, in 8 they are left to the quantiser.

    The tables come last: what a quantiser must know of types does not reach across operators of ONNX Runtime's own.

    :param make: quantises a graph, but for the nodes of these names.
    """
    excluded = _excluded(config.keep)
    if config.table_bits == 8:
        return make(model, excluded)
    tables = [node.name for node in model.graph.node if node.op_type == "Gather"]
    return in_blocks(make(model, [*excluded, *tables]), ("Gather",), 4, _TABLE_BLOCK, None, config.keep)


def _unsaturated(
    make: Callable[[bool], onnx.ModelProto], config: DynamicInt8 | StaticInt8, model: onnx.ModelProto, feed: Feed
) -> onnx.ModelProto:
    """With 8-bit weights where those are safe here; else with 7-bit ones, if the settings leave it open."""
    require_layers(config.keep, model, config.method)
    if config.reduce_range is True:
        return make(True)
    whole = make(False)
    found = () if processor().adds_whole_products else saturation(whole, feed)
    if not found:
        return whole
    if config.reduce_range is False:
        worst = max(found, key=lambda each: each.share)
        raise ExportError(
            f"{config.method} with reduce_range: false saturates in {worst.layer} ({worst.share:.2%} of its pairs of "
            f"products) on {processor().name}, which has no VNNI: say reduce_range: auto"
        )
    return make(True)


def quantize_tables(model: onnx.ModelProto, keep: tuple[str, ...]) -> onnx.ModelProto:
    """The graph with its embedding tables in int8, one scale each, and nothing else changed."""
    return _quantised(
        quantize_dynamic,
        model,
        op_types_to_quantize=["Gather"],
        weight_type=QuantType.QInt8,
        nodes_to_exclude=_excluded(keep),
    )


def _excluded(keep: tuple[str, ...]) -> list[str]:
    """These layers by the names that the quantisers know: to them a ``Gemm`` is a ``MatMul`` and an ``Add``."""
    return [*keep, *(f"{name}_MatMul" for name in keep)]


def in_blocks(
    model: onnx.ModelProto,
    operators: tuple[str, ...],
    bits: int,
    block: int,
    accuracy_level: int | None,
    keep: tuple[str, ...],
) -> onnx.ModelProto:
    """The graph with the constant operand of these operators in blocks of ``block`` values of 8 or 4 bits.

    :param operators: of ``MatMul`` and ``Gather``; the latter takes 4 bits alone.
    """
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer

    settings = DefaultWeightOnlyQuantConfig(
        block_size=block,
        is_symmetric=False,
        accuracy_level=accuracy_level,
        op_types_to_quantize=operators,
        quant_axes=(("MatMul", 0), ("Gather", 1)),
        bits=bits,
    )
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    with quietly():
        try:
            quantizer = MatMulNBitsQuantizer(copied, nodes_to_exclude=_excluded(keep), algo_config=settings)
            quantizer.process()
        except Exception as error:  # of a stranger's graph; the quantiser's errors have no base of their own
            raise ExportError(f"no blocks of {bits} bits: {type(error).__name__}: {error}") from error
    made: onnx.ModelProto = quantizer.model.model
    return made


@contextmanager
def quietly() -> Iterator[None]:
    """Without what ONNX Runtime's quantisers tell the root logger, and print about histograms."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(before)


class _Rows(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not annotated
    """Calibration rows, some at a time."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._batches = self._cut()

    def _cut(self) -> Iterator[dict[str, Array]]:
        rows = len(next(iter(self._feed.values())))
        for begin in range(0, rows, _BATCH):
            yield {name: array[begin : begin + _BATCH] for name, array in self._feed.items()}

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
        try:
            with quietly():
                quantizer(marked, target, *reader, **settings)
        except Exception as error:  # of a stranger's graph; the quantiser's errors have no base of their own
            raise ExportError(
                f"ONNX Runtime's quantiser cannot take the graph: {type(error).__name__}: {error}"
            ) from error
        return onnx.load(target)
