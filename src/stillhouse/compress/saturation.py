"""Integer layers whose sums overflow: on some processors ONNX Runtime computes them wrong and reports nothing.

Where a processor has AVX2 or AVX-512 but no VNNI, a product of uint8 activations and int8 weights is summed in pairs
by ``vpmaddubsw``, whose 16-bit result saturates at ±32,767, while two products reach ±65,000. Weights of seven bits, or
of uint8, do not overflow (ONNX Runtime, "Quantize ONNX models", section "When and why do I need to try U8U8?").
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from stillhouse.compress.target import Array, Feed
from stillhouse.errors import ExportError
from stillhouse.records import Saturation

__all__ = ["find_saturating_layers"]

_MAX_ROWS = 128  # of the feed that activations are recorded on
_PRODUCT_ROWS = 64  # of one layer's product that pairs are counted on: those with the largest activations
_INT16_MAX, _INT16_MIN = 32_767, -32_768
_SHAPE_OPERATORS = ("Transpose", "Reshape", "Identity")  # an integer tensor keeps its values in them


class _Layer(NamedTuple):
    name: str
    activations: str  # name of the uint8 or int8 tensor
    weight: Array  # int8 ``[inputs, outputs]``; for a convolution ``[outputs, inputs, *kernel]``
    convolution: Any  # the node of a convolution; None for a matrix product


def find_saturating_layers(model: onnx.ModelProto, feed: Feed) -> tuple[Saturation, ...]:
    """The integer layers in which the sum of a pair of products overflows 16 bits on these rows, with their share.

    The overflow is computed, not observed: the result is that of a processor without VNNI on any machine.

    :param model: quantised by ONNX Runtime, in either format: operators on integers, or ``QuantizeLinear`` pairs.
    """
    layers = [layer for layer in _integer_layers(model) if layer.weight.dtype == np.int8]
    if not layers:
        return ()
    activations = _record_activations(model, {layer.activations for layer in layers}, feed)
    shares = [(layer.name, _overflow_share(layer, activations[layer.activations])) for layer in layers]
    return tuple(Saturation(layer=name, share=share) for name, share in shares if share > 0)


def _integer_layers(model: onnx.ModelProto) -> list[_Layer]:
    """All products of an integer activation with a constant weight."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    layers = []
    for node in model.graph.node:
        operands = _operands(node, producers)
        weight = operands and _constant(operands[1], tensors, producers)
        if operands is None or weight is None:
            continue
        name = node.name.removesuffix("_quant").removesuffix("_MatMul")  # the name before ONNX Runtime's quantiser
        if "Conv" in node.op_type:
            layers.append(_Layer(name, operands[0], weight, node))
        else:
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            layers.append(_Layer(name, operands[0], weight.T if transposed else weight, None))
    return layers


def _operands(node: onnx.NodeProto, producers: dict[str, onnx.NodeProto]) -> tuple[str, str] | None:
    """Names of a node's integer activations and integer weights; None if it has none."""
    weight_input = {"MatMulInteger": 1, "ConvInteger": 1, "QLinearMatMul": 3, "QGemm": 3, "QLinearConv": 3}
    if node.op_type in weight_input:
        return node.input[0], node.input[weight_input[node.op_type]]
    if node.op_type in ("MatMul", "Gemm", "Conv"):
        sources = [producers.get(name) for name in node.input[:2]]
        if all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
            return sources[0].input[0], sources[1].input[0]  # type: ignore[union-attr]
    return None


def _constant(name: str, tensors: dict[str, onnx.TensorProto], producers: dict[str, onnx.NodeProto]) -> Array | None:
    """The weight, if it is constant; a weight that the graph itself quantises from float32 is computed."""
    if name in tensors:
        array: Array = numpy_helper.to_array(tensors[name])
        return array
    producer = producers.get(name)
    if producer is None or any(operand not in tensors for operand in producer.input):
        return None
    operands = [tensors[operand] for operand in producer.input]
    outputs = [helper.make_empty_tensor_value_info(name)]
    graph = helper.make_graph([producer], "constant", [], outputs, operands)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    result: Array = onnxruntime.InferenceSession(model.SerializeToString()).run([name], {})[0]
    return result


def _record_activations(model: onnx.ModelProto, names: set[str], feed: Feed) -> dict[str, Array]:
    """The values of these integer tensors on some of the rows."""
    instrumented = onnx.ModelProto()
    instrumented.CopyFrom(model)
    graph_inputs = {value.name for value in model.graph.input}
    element_types = _element_types(model)
    recorded = sorted(names - graph_inputs)
    present = {value.name for value in instrumented.graph.output}
    for name in recorded:
        if name not in present:
            instrumented.graph.output.append(
                helper.make_tensor_value_info(name, element_types.get(name, TensorProto.UINT8), None)
            )
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    rows = {
        name: array[np.linspace(0, len(array) - 1, min(len(array), _MAX_ROWS)).astype(int)]
        for name, array in feed.items()
    }
    try:
        session = onnxruntime.InferenceSession(
            instrumented.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        outputs = session.run(recorded, rows) if recorded else []  # an empty list of names would run all outputs
    except Exception as error:  # ONNX Runtime's errors have no common base class
        raise ExportError(f"the model cannot be checked for saturation: {error}") from error
    return dict(zip(recorded, outputs, strict=True)) | {name: rows[name] for name in names & graph_inputs}


def _element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of the quantised tensors, according to their zero points."""
    tensors = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    element_types: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and len(node.input) > 2:
            element_types[node.output[0]] = tensors.get(node.input[2], TensorProto.UINT8)
        elif node.op_type.startswith("QLinear") or node.op_type == "QGemm":
            last = next((tensors[name] for name in reversed(node.input) if tensors.get(name) in (2, 3)), None)
            element_types[node.output[0]] = last or TensorProto.UINT8
        elif (
            node.op_type in (*_SHAPE_OPERATORS, "MaxPool", "Relu", "Gather")
            and node.input
            and node.input[0] in element_types
        ):
            element_types[node.output[0]] = element_types[node.input[0]]
    return element_types


def _overflow_share(layer: _Layer, activations: Array) -> float:
    """The share of the layer's pairs of products whose sum overflows 16 bits, 0…1."""
    if activations.dtype == np.int8:  # the kernels support only uint8 and shift int8 up by 128
        activations = (activations.astype(np.int16) + 128).astype(np.uint8)
    if layer.convolution is None:
        return _product_overflow(
            activations.reshape(-1, activations.shape[-1]), layer.weight.reshape(-1, layer.weight.shape[-1])
        )
    rows, weights = _unfold(activations, layer.weight, layer.convolution)
    return max(_product_overflow(left, right) for left, right in zip(rows, weights, strict=True))


def _product_overflow(left: Array, right: Array) -> float:
    """The share for ``left`` uint8 ``[M, K]`` times ``right`` int8 ``[K, N]``; k = 0 and 1 are a pair, 2 and 3, …"""
    if left.shape[1] != right.shape[0]:
        return 0.0  # a batch of matrices: both sides are activations
    if left.shape[1] % 2:
        left, right = np.pad(left, ((0, 0), (0, 1))), np.pad(right, ((0, 1), (0, 0)))
    pairs = right.astype(np.int32).reshape(-1, 2, right.shape[1])
    largest = left.max(axis=0).astype(np.int32).reshape(-1, 2)
    upper = (pairs.clip(min=0) * largest[:, :, None]).sum(axis=1)
    lower = (pairs.clip(max=0) * largest[:, :, None]).sum(axis=1)
    may_overflow = ((upper > _INT16_MAX) | (lower < _INT16_MIN)).any(axis=1)  # pairs of inputs, by their bounds
    if not may_overflow.any():
        return 0.0
    order = np.argsort(
        -left.reshape(len(left), -1, 2)[:, may_overflow].astype(np.int64).sum(axis=(1, 2)), kind="stable"
    )
    rows = left[order[:_PRODUCT_ROWS]].astype(np.int32).reshape(-1, left.shape[1] // 2, 2)
    overflows = 0
    for pair in np.flatnonzero(may_overflow):
        sums = rows[:, pair] @ pairs[pair]
        overflows += int(((sums > _INT16_MAX) | (sums < _INT16_MIN)).sum())
    return float(overflows / (len(rows) * len(pairs) * right.shape[1]))


def _unfold(activations: Array, weight: Array, node: onnx.NodeProto) -> tuple[list[Array], list[Array]]:
    """A convolution as matrix products, one per group, in both orders that kernels sum in: channels first and last."""
    import torch
    from torch.nn import functional

    settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    groups, kernel = int(settings.get("group", 1)), weight.shape[2:]
    if len(kernel) == 1:
        activations, weight, kernel = activations[..., None], weight[..., None], (*kernel, 1)
    pads = list(settings.get("pads", [0] * 4))
    pads = pads if len(pads) == 4 else [pads[0], 0, pads[1], 0]

    def two_dimensional(name: str) -> tuple[int, ...]:
        values = tuple(settings.get(name, (1, 1)))
        return values if len(values) == 2 else (values[0], 1)

    padded = functional.pad(torch.from_numpy(activations.astype(np.float32)), (pads[1], pads[3], pads[0], pads[2]))
    patches = functional.unfold(
        padded, kernel, dilation=two_dimensional("dilations"), stride=two_dimensional("strides")
    )
    taps = int(np.prod(kernel))
    flat = patches.transpose(1, 2).reshape(-1, activations.shape[1], taps).numpy().astype(np.uint8)
    rows, weights = [], []
    inputs, outputs = activations.shape[1] // groups, weight.shape[0] // groups
    for group in range(groups):
        left = flat[:, group * inputs : (group + 1) * inputs]
        right = weight[group * outputs : (group + 1) * outputs].reshape(outputs, inputs, taps)
        rows += [left.reshape(len(left), -1), left.transpose(0, 2, 1).reshape(len(left), -1)]
        weights += [right.reshape(outputs, -1).T, right.transpose(0, 2, 1).reshape(outputs, -1).T]
    return rows, weights
