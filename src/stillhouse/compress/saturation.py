"""Integer layers whose sums do not fit: ONNX Runtime computes them wrong on some processors, without a word.

Where a processor has AVX2 or AVX-512 but no VNNI, a product of uint8 activations and int8 weights is summed in pairs
by ``vpmaddubsw``, whose 16 bits end at ±32,767, while two products reach ±65,000. Weights of seven bits, or of uint8,
stay inside (ONNX Runtime, "Quantize ONNX models", section "When and why do I need to try U8U8?").
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from stillhouse.compress.subject import Array, Feed
from stillhouse.errors import ExportError
from stillhouse.records import Saturation

__all__ = ["saturation"]

_ROWS = 128  # of the feed
_PRODUCTS = 64  # rows of one layer's product that are looked at
_LARGEST, _SMALLEST = 32_767, -32_768
_PASSED_ON = ("Transpose", "Reshape", "Identity")  # an integer tensor goes through them as it is


class _Layer(NamedTuple):
    name: str
    activations: str  # tensor of uint8 or int8
    weight: Array  # int8 ``[inputs, outputs]``, or of a convolution ``[outputs, inputs, *kernel]``
    convolution: Any  # its node; None for a product of matrices


def saturation(model: onnx.ModelProto, feed: Feed) -> tuple[Saturation, ...]:
    """The integer layers in which a pair of products leaves 16 bits on these rows, with how many pairs do.

    It is computed, not observed: the answer is what a processor without VNNI would do, wherever this runs.

    :param model: quantised by ONNX Runtime, in either format: operators on integers, or ``QuantizeLinear`` pairs.
    """
    layers = [layer for layer in _integer_layers(model) if layer.weight.dtype == np.int8]
    if not layers:
        return ()
    seen = _recorded(model, {layer.activations for layer in layers}, feed)
    found = []
    for layer in layers:
        share = _share(layer, seen[layer.activations])
        if share > 0:
            found.append(Saturation(layer=layer.name, share=share))
    return tuple(found)


def _integer_layers(model: onnx.ModelProto) -> list[_Layer]:
    """Every product of an activation and an int8 weight."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    makers = {output: node for node in model.graph.node for output in node.output}
    found = []
    for node in model.graph.node:
        operands = _operands(node, makers)
        weight = operands and _constant(operands[1], tensors, makers)
        if operands is None or weight is None:
            continue
        name = node.name.removesuffix("_quant").removesuffix("_MatMul")  # before ONNX Runtime's quantiser renamed it
        if "Conv" in node.op_type:
            found.append(_Layer(name, operands[0], weight, node))
        else:
            turned = any(each.name == "transB" and each.i for each in node.attribute)
            found.append(_Layer(name, operands[0], weight.T if turned else weight, None))
    return found


def _operands(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto]) -> tuple[str, str] | None:
    """Names of the integer activations and weights of a node; None where it has none."""
    places = {"MatMulInteger": 1, "ConvInteger": 1, "QLinearMatMul": 3, "QGemm": 3, "QLinearConv": 3}
    if node.op_type in places:
        return node.input[0], node.input[places[node.op_type]]
    if node.op_type in ("MatMul", "Gemm", "Conv"):
        sources = [makers.get(name) for name in node.input[:2]]
        if all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
            return sources[0].input[0], sources[1].input[0]  # type: ignore[union-attr]
    return None


def _constant(name: str, tensors: dict[str, onnx.TensorProto], makers: dict[str, onnx.NodeProto]) -> Array | None:
    """The weight, if it is a constant; one that is quantised in the graph from float32 is computed."""
    if name in tensors:
        array: Array = numpy_helper.to_array(tensors[name])
        return array
    maker = makers.get(name)
    if maker is None or any(each not in tensors for each in maker.input):
        return None
    used = [tensors[each] for each in maker.input]
    outputs = [helper.make_empty_tensor_value_info(name)]
    graph = helper.make_graph([maker], "constant", [], outputs, used)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    result: Array = onnxruntime.InferenceSession(model.SerializeToString()).run([name], {})[0]
    return result


def _recorded(model: onnx.ModelProto, names: set[str], feed: Feed) -> dict[str, Array]:
    """What these integer tensors hold on some of the rows."""
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    graph_inputs = {value.name for value in model.graph.input}
    kinds = _kinds(model)
    wanted = sorted(names - graph_inputs)
    present = {value.name for value in shown.graph.output}
    for name in wanted:
        if name not in present:
            shown.graph.output.append(helper.make_tensor_value_info(name, kinds.get(name, TensorProto.UINT8), None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    rows = {
        name: array[np.linspace(0, len(array) - 1, min(len(array), _ROWS)).astype(int)] for name, array in feed.items()
    }
    try:
        session = onnxruntime.InferenceSession(shown.SerializeToString(), options, providers=["CPUExecutionProvider"])
        values = dict(zip(wanted, session.run(wanted, rows) if wanted else [], strict=True))  # of no names it runs all
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        raise ExportError(f"whether the model saturates cannot be seen: {error}") from error
    return values | {name: rows[name] for name in names & graph_inputs}


def _kinds(model: onnx.ModelProto) -> dict[str, int]:
    """Element types of quantised tensors, as their zero points tell."""
    tensors = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    found: dict[str, int] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and len(node.input) > 2:
            found[node.output[0]] = tensors.get(node.input[2], TensorProto.UINT8)
        elif node.op_type.startswith("QLinear") or node.op_type == "QGemm":
            last = next((tensors[name] for name in reversed(node.input) if tensors.get(name) in (2, 3)), None)
            found[node.output[0]] = last or TensorProto.UINT8
        elif node.op_type in (*_PASSED_ON, "MaxPool", "Relu", "Gather") and node.input and node.input[0] in found:
            found[node.output[0]] = found[node.input[0]]
    return found


def _share(layer: _Layer, seen: Array) -> float:
    """How many of the layer's pairs of products leave 16 bits, 0…1."""
    if seen.dtype == np.int8:  # the kernels know uint8 alone, and move int8 up by 128
        seen = (seen.astype(np.int16) + 128).astype(np.uint8)
    if layer.convolution is None:
        return _of_product(seen.reshape(-1, seen.shape[-1]), layer.weight.reshape(-1, layer.weight.shape[-1]))
    rows, weight = _unfolded(seen, layer.weight, layer.convolution)
    return max(_of_product(part, part_of_weight) for part, part_of_weight in zip(rows, weight, strict=True))


def _of_product(left: Array, right: Array) -> float:
    """Of ``left`` uint8 ``[M, K]`` times ``right`` int8 ``[K, N]``, with k = 0 and 1 a pair, 2 and 3, …"""
    if left.shape[1] != right.shape[0]:
        return 0.0  # a batch of matrices: both sides are activations
    if left.shape[1] % 2:
        left, right = np.pad(left, ((0, 0), (0, 1))), np.pad(right, ((0, 1), (0, 0)))
    pairs = right.astype(np.int32).reshape(-1, 2, right.shape[1])
    largest = left.max(axis=0).astype(np.int32).reshape(-1, 2)
    up = (pairs.clip(min=0) * largest[:, :, None]).sum(axis=1)
    down = (pairs.clip(max=0) * largest[:, :, None]).sum(axis=1)
    reach = ((up > _LARGEST) | (down < _SMALLEST)).any(axis=1)  # pairs of inputs that might: the others cannot
    if not reach.any():
        return 0.0
    order = np.argsort(-left.reshape(len(left), -1, 2)[:, reach].astype(np.int64).sum(axis=(1, 2)), kind="stable")
    chosen = left[order[:_PRODUCTS]].astype(np.int32).reshape(-1, left.shape[1] // 2, 2)
    crossed = 0
    for pair in np.flatnonzero(reach):
        sums = chosen[:, pair] @ pairs[pair]
        crossed += int(((sums > _LARGEST) | (sums < _SMALLEST)).sum())
    return float(crossed / (len(chosen) * len(pairs) * right.shape[1]))


def _unfolded(seen: Array, weight: Array, node: onnx.NodeProto) -> tuple[list[Array], list[Array]]:
    """A convolution as products, one per group, in both orders that kernels sum in: channels first and last."""
    import torch
    from torch.nn import functional

    settings = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    groups, kernel = int(settings.get("group", 1)), weight.shape[2:]
    if len(kernel) == 1:
        seen, weight, kernel = seen[..., None], weight[..., None], (*kernel, 1)
    pads = list(settings.get("pads", [0] * 4))
    pads = pads if len(pads) == 4 else [pads[0], 0, pads[1], 0]

    def two(name: str) -> tuple[int, ...]:
        values = tuple(settings.get(name, (1, 1)))
        return values if len(values) == 2 else (values[0], 1)

    padded = functional.pad(torch.from_numpy(seen.astype(np.float32)), (pads[1], pads[3], pads[0], pads[2]))
    places = functional.unfold(padded, kernel, dilation=two("dilations"), stride=two("strides"))
    taps = int(np.prod(kernel))
    flat = places.transpose(1, 2).reshape(-1, seen.shape[1], taps).numpy().astype(np.uint8)
    rows, weights = [], []
    inside, outside = seen.shape[1] // groups, weight.shape[0] // groups
    for group in range(groups):
        left = flat[:, group * inside : (group + 1) * inside]
        right = weight[group * outside : (group + 1) * outside].reshape(outside, inside, taps)
        rows += [left.reshape(len(left), -1), left.transpose(0, 2, 1).reshape(len(left), -1)]
        weights += [right.reshape(outside, -1).T, right.transpose(0, 2, 1).reshape(outside, -1).T]
    return rows, weights
