"""Calls of ONNX Runtime's quantisers, which the number formats share."""

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
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic

from stillhouse.compress.target import Array, Feed
from stillhouse.errors import ExportError

__all__ = [
    "CalibrationBatches",
    "excluded_nodes",
    "quantizable_nodes",
    "quantize_in_blocks",
    "quantize_tables",
    "require_layers",
    "run_quantizer",
    "silence_onnxruntime",
]

_BATCH_ROWS = 256


def quantizable_nodes(model: onnx.ModelProto) -> list[str]:
    """Names of the nodes whose weights can take another number format, the largest first."""
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer if len(tensor.dims) > 1}
    largest_weight = {
        node.name: max(sizes.get(name, 0) for name in node.input)
        for node in model.graph.node
        if node.op_type in ("MatMul", "Gemm", "Conv", "Gather") and any(name in sizes for name in node.input)
    }
    return sorted(largest_weight, key=lambda name: (-largest_weight[name], name))


def require_layers(names: tuple[str, ...], model: onnx.ModelProto, step: str) -> None:
    """Refuse a step whose ``keep`` names layers that the graph does not have.

    :param names: of the layers that stay float32.
    :param step: the step's method, for the message.
    :raises ExportError: naming them, and the layers that exist.
    """
    if unknown := sorted(set(names) - {node.name for node in model.graph.node}):
        raise ExportError(
            f"{step}.keep: no layer is called {', '.join(unknown)}; those are: {', '.join(quantizable_nodes(model))}"
        )


def excluded_nodes(names: tuple[str, ...]) -> list[str]:
    """The names under which the quantisers see these layers: they split a ``Gemm`` into ``MatMul`` and ``Add``."""
    return [*names, *(f"{name}_MatMul" for name in names)]


def quantize_tables(model: onnx.ModelProto, keep: tuple[str, ...]) -> onnx.ModelProto:
    """The graph with its embedding tables in int8, one scale per table, and no other change.

    :param keep: names of the layers that stay float32.
    """
    return run_quantizer(
        quantize_dynamic,
        model,
        op_types_to_quantize=["Gather"],
        weight_type=QuantType.QInt8,
        nodes_to_exclude=excluded_nodes(keep),
    )


def quantize_in_blocks(
    model: onnx.ModelProto,
    operators: tuple[str, ...],
    bits: int,
    block: int,
    accuracy_level: int | None,
    keep: tuple[str, ...],
) -> onnx.ModelProto:
    """The graph with the constant operand of these operators in blocks of ``block`` values of 8 or 4 bits.

    :param operators: ``MatMul``, ``Gather`` or both; ``Gather`` supports 4 bits only.
    :param accuracy_level: of ``MatMulNBits``: 4 for int8 activations, None for float32.
    :param keep: names of the layers that stay float32.
    :raises ExportError: if ONNX Runtime cannot quantise the graph.
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
    with silence_onnxruntime():
        try:
            quantizer = MatMulNBitsQuantizer(copied, nodes_to_exclude=excluded_nodes(keep), algo_config=settings)
            quantizer.process()
        except Exception as error:  # the quantiser's errors have no common base class
            raise ExportError(f"no blocks of {bits} bits: {type(error).__name__}: {error}") from error
    quantized: onnx.ModelProto = quantizer.model.model
    return quantized


class CalibrationBatches(CalibrationDataReader):  # type: ignore[misc]  # onnxruntime is not annotated
    """Calibration rows in batches, as ONNX Runtime's static quantiser reads them."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._batches = self._split()

    def _split(self) -> Iterator[dict[str, Array]]:
        rows = len(next(iter(self._feed.values())))
        for begin in range(0, rows, _BATCH_ROWS):
            yield {name: array[begin : begin + _BATCH_ROWS] for name, array in self._feed.items()}

    def get_next(self) -> dict[str, Array] | None:
        return next(self._batches, None)


def run_quantizer(
    quantizer: Callable[..., None], model: onnx.ModelProto, *reader: CalibrationBatches, **settings: Any
) -> onnx.ModelProto:
    """The result of one of ONNX Runtime's quantisers, which write files only.

    The model is marked as preprocessed: in an exported student the quantiser's preprocessor would change nothing.

    :raises ExportError: if the quantiser cannot process the graph.
    """
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    marked.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with TemporaryDirectory() as folder:
        target = Path(folder, "model.onnx")
        try:
            with silence_onnxruntime():
                quantizer(marked, target, *reader, **settings)
        except Exception as error:  # the quantiser's errors have no common base class
            raise ExportError(
                f"ONNX Runtime's quantiser cannot process the graph: {type(error).__name__}: {error}"
            ) from error
        return onnx.load(target)


@contextmanager
def silence_onnxruntime() -> Iterator[None]:
    """Suppress what ONNX Runtime's quantisers log to the root logger and print."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        logging.disable(before)
