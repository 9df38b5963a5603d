"""Which int8 models ONNX Runtime computes wrongly on this processor, found by exact integer arithmetic.

Without VNNI, products of unsigned and signed bytes are added in pairs into 16 bits, where they saturate (Intel's
``vpmaddubsw``). No output shows this by itself; so each integer layer is run alone on its inputs in the model, and
compared with numpy's 64-bit integers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

__all__ = ["Layer", "integer_layers", "is_wrong", "quantize_all", "saturates"]

Array = np.ndarray[Any, Any]
INT8 = ["Conv", "Gemm", "MatMul"]


def quantize_all(model: onnx.ModelProto, calibration: Array) -> dict[str, onnx.ModelProto]:
    """ONNX Runtime's int8 models by name: dynamic and static, with all settings that are known to affect saturation.

    The name says ``dynamic``, or ``static``, its format and the activations' type; then the weights' type, and
    ``per_channel`` and ``reduce_range`` where they are on. Models that cannot be
    written or run are left out.

    :param calibration: float32 ``[n, D]``.
    """
    types = (QuantType.QInt8, QuantType.QUInt8)
    models = {}
    for weight_type, per_channel, reduce_range in product(types, (False, True), (False, True)):
        shared = {"weight_type": weight_type, "per_channel": per_channel, "reduce_range": reduce_range}
        flags = [name for name, on in (("per_channel", per_channel), ("reduce_range", reduce_range)) if on]
        models["/".join(["dynamic", weight_type.name, *flags])] = _quantize(quantize_dynamic, model, **shared)
        for quant_format, activation_type in product((QuantFormat.QDQ, QuantFormat.QOperator), types):
            name = "/".join(["static", quant_format.name, activation_type.name, weight_type.name, *flags])
            models[name] = _quantize(
                quantize_static,
                model,
                _Rows(calibration),
                quant_format=quant_format,
                activation_type=activation_type,
                **shared,
            )
    return {
        name: quantized
        for name, quantized in models.items()
        if quantized is not None and _can_run(quantized, calibration[:2])
    }


class _Rows(CalibrationDataReader):
    def __init__(self, rows: Array) -> None:
        self._feeds: Iterator[dict[str, Array]] = iter([{"x": rows}])

    def get_next(self) -> dict[str, Array] | None:
        return next(self._feeds, None)


def _quantize(quantizer: Callable[..., None], model: onnx.ModelProto, *readers: _Rows, **settings: Any) -> Any:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    copied.metadata_props.add(key="onnx.quant.pre_process", value="onnxruntime.quant")
    with TemporaryDirectory() as folder:
        target = Path(folder, "model.onnx")
        try:
            quantizer(copied, target, *readers, op_types_to_quantize=INT8, **settings)
        except Exception:  # the quantiser's errors have no common base class
            return None
        return onnx.load(target)


def _can_run(model: onnx.ModelProto, x: Array) -> bool:
    try:
        _session(model).run(None, {"x": x})
    except Exception:  # the same holds for ONNX Runtime
        return False
    return True


# --------------------------------------------------------------------------- actual and exact results


class Layer:
    """An integer layer with its inputs in a model.

    :param inputs: input arrays in order; None: the optional input is missing.
    :param constant: whether each input is a constant of the model.
    """

    def __init__(self, node: onnx.NodeProto, inputs: list[Array | None], constant: list[bool]) -> None:
        self.node, self.inputs, self.constant = node, inputs, constant
        self.attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}

    def compute(self) -> Array:
        """The output of ONNX Runtime on this processor, for a model with this layer alone."""
        node = onnx.NodeProto()
        node.CopyFrom(self.node)
        for index, value in enumerate(self.inputs):
            node.input[index] = f"i{index}" if value is not None else ""
        node.output[0] = "y"
        named_inputs = [
            (f"i{index}", value, is_constant)
            for index, (value, is_constant) in enumerate(zip(self.inputs, self.constant, strict=True))
            if value is not None
        ]
        graph = helper.make_graph(
            [node],
            "layer",
            [
                helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
                for name, value, is_constant in named_inputs
                if not is_constant
            ],
            [helper.make_empty_tensor_value_info("y")],
            [numpy_helper.from_array(value, name) for name, value, is_constant in named_inputs if is_constant],
        )
        opsets = [helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        output: Array = _session(model).run(
            None, {name: value for name, value, is_constant in named_inputs if not is_constant}
        )[0]
        return output

    def compute_exact(self) -> Array:
        """The exact output: int64 sums, then float64."""
        return _EXACT[self.node.op_type](self)

    def input_value(self, index: int, missing: float = 0) -> Array:
        """An input, or ``missing`` if there is none."""
        value = self.inputs[index] if index < len(self.inputs) else None
        return np.asarray(missing) if value is None else value

    def centre(self, index: int, zero: int, axis: int = -1) -> Array:
        """An input minus its zero point, int64; several zero points lie along ``axis``."""
        values, points = self.input_value(index).astype(np.int64), self.input_value(zero).astype(np.int64)
        return values - _broadcast_along(points, values.ndim, axis)


def integer_layers(model: onnx.ModelProto, x: Array) -> list[Layer]:
    """The integer layers of a model that ONNX Runtime runs, with their inputs for the rows ``x``.

    For a model in QDQ format: the layers after ONNX Runtime's fusion at load time.
    """
    model = _fuse(model)
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    constants |= {
        node.output[0]: numpy_helper.to_array(node.attribute[0].t)
        for node in graph.node
        if node.op_type == "Constant" and node.attribute[0].name == "value"
    }
    nodes = [node for node in graph.node if node.op_type in _EXACT]
    extra_outputs = sorted({name for node in nodes for name in node.input if name and name not in constants})
    declared = {value.name for value in graph.output} | {value.name for value in graph.input}
    graph.output.extend(helper.make_empty_tensor_value_info(name) for name in extra_outputs if name not in declared)
    session = _session(model, onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL)
    names = [output.name for output in session.get_outputs()]
    values_by_name = {"x": x} | dict(zip(names, session.run(None, {"x": x}), strict=True)) | constants
    return [
        Layer(
            node,
            [values_by_name[name] if name else None for name in node.input],
            [name in constants for name in node.input],
        )
        for node in nodes
    ]


def saturates(model: onnx.ModelProto, x: Array) -> bool:
    """Whether ONNX Runtime computes any of the model's integer layers wrongly on this processor, for these rows.

    This includes other reasons: for a ``QLinearConv`` whose uint8 weights have several zero points it uses one of them
    for all channels, which is wrong but no saturation.
    """
    return any(is_wrong(layer) for layer in integer_layers(model, x))


def is_wrong(layer: Layer) -> bool:
    """Whether the output differs from the exact one by more than rounding: one 8-bit step, or 1e-4 of the range."""
    computed, exact = layer.compute(), layer.compute_exact()
    difference = float(np.abs(computed.astype(np.float64) - exact).max(initial=0))
    if computed.dtype == np.int32:
        return difference > 0
    if computed.dtype in (np.int8, np.uint8):
        return difference > 1
    return difference > 1e-4 * float(np.abs(exact).max(initial=1e-6))


def _fuse(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model in QDQ format after ONNX Runtime's fusion; any other model unchanged."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    if any(node.op_type in _EXACT for node in copied.graph.node):
        return copied
    with TemporaryDirectory() as folder:
        file = Path(folder, "fused.onnx")
        _session(model, onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, file)
        return onnx.load(file)


def _session(model: onnx.ModelProto, level: Any = None, target: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    if level is not None:
        options.graph_optimization_level = level
    if target is not None:
        options.optimized_model_filepath = str(target)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


# --------------------------------------------------------------------------- by operator


def _broadcast_along(values: Array, dimensions: int, axis: int) -> Array:
    """Reshape values along an axis so that they broadcast to ``dimensions`` dimensions."""
    if values.ndim != 1 or values.size == 1:
        return values.reshape(-1)[0] if values.size == 1 else values
    shape = [1] * dimensions
    shape[axis] = values.size
    return values.reshape(shape)


def _requantize(layer: Layer, total: Array, scale: Array, out_scale: int, out_zero: int) -> Array:
    """Requantize integer sums to eight bits; return floats if the output has no scale."""
    if out_scale >= len(layer.inputs) or layer.inputs[out_scale] is None:
        return total * scale
    zero = layer.input_value(out_zero)
    limits = np.iinfo(zero.dtype)
    steps: Array = np.rint(total * scale / layer.input_value(out_scale).astype(np.float64)) + zero.astype(np.int64)
    return np.clip(steps, limits.min, limits.max)


def _multiply(a: Array, b: Array) -> Array:
    """Matrix product, int64, computed in float64, which is faster and exact: the sums are far below 2**53."""
    return np.rint(a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64)


def _matmul_integer(layer: Layer) -> Array:
    return _multiply(layer.centre(0, 2, axis=-2), layer.centre(1, 3))


def _matmul_to_float(layer: Layer) -> Array:
    scale = layer.input_value(2).astype(np.float64) * layer.input_value(3).astype(np.float64)
    total: Array = _multiply(layer.centre(0, 4, axis=-2), layer.centre(1, 5)) * scale
    return total + layer.input_value(6).astype(np.float64)


def _qlinear_matmul(layer: Layer) -> Array:
    total = _multiply(layer.centre(0, 2, axis=-2), layer.centre(3, 5))
    scale = layer.input_value(1).astype(np.float64) * layer.input_value(4).astype(np.float64)
    return _requantize(layer, total, scale, 6, 7)


def _qgemm(layer: Layer) -> Array:
    transposed = [bool(layer.attributes.get(name, 0)) for name in ("transA", "transB")]
    a, b = layer.centre(0, 2), layer.centre(3, 5, axis=0 if transposed[1] else -1)
    total = _multiply(a.T if transposed[0] else a, b.T if transposed[1] else b) + layer.input_value(6).astype(np.int64)
    scale = (
        layer.attributes.get("alpha", 1.0)
        * layer.input_value(1).astype(np.float64)
        * layer.input_value(4).astype(np.float64)
    )
    return _requantize(layer, total, scale, 7, 8)


def _conv_integer(layer: Layer) -> Array:
    return _convolve(layer, layer.centre(0, 2), layer.centre(1, 3, axis=0))


def _qlinear_conv(layer: Layer) -> Array:
    total = _convolve(layer, layer.centre(0, 2), layer.centre(3, 5, axis=0))
    total = total + _broadcast_along(layer.input_value(8).astype(np.int64), 4, 1)
    scale = _broadcast_along(
        layer.input_value(1).astype(np.float64) * layer.input_value(4).astype(np.float64).reshape(-1), 4, 1
    )
    return _requantize(layer, total, scale, 6, 7)


def _convolve(layer: Layer, x: Array, weights: Array) -> Array:
    """``[n, C, H, W]`` with ``[O, C / groups, h, w]``, int64; ``x`` is centred, so padding is 0."""
    top, left, bottom, right = layer.attributes.get("pads", [0, 0, 0, 0])
    groups = layer.attributes.get("group", 1)
    (down, across), (high, wide) = layer.attributes.get("strides", [1, 1]), layer.attributes.get("dilations", [1, 1])
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    size = (high * (weights.shape[2] - 1) + 1, wide * (weights.shape[3] - 1) + 1)
    windows = np.lib.stride_tricks.sliding_window_view(x, size, axis=(2, 3))[:, :, ::down, ::across, ::high, ::wide]
    parts = [
        np.tensordot(window, filters, axes=([1, 4, 5], [1, 2, 3])).transpose(0, 3, 1, 2)
        for window, filters in zip(np.split(windows, groups, axis=1), np.split(weights, groups), strict=True)
    ]
    return np.concatenate(parts, axis=1)


_EXACT: dict[str, Callable[[Layer], Array]] = {
    "MatMulInteger": _matmul_integer,
    "MatMulIntegerToFloat": _matmul_to_float,
    "QLinearMatMul": _qlinear_matmul,
    "QGemm": _qgemm,
    "ConvInteger": _conv_integer,
    "QLinearConv": _qlinear_conv,
}
