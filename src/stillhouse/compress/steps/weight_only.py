"""Weights in blocks of 8 or 4 bits; the arithmetic stays in float32, so nothing can saturate."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from stillhouse.compress.steps.onnxruntime_quantizer import quantize_in_blocks, quantize_tables, require_layers
from stillhouse.config import WeightOnly
from stillhouse.errors import ExportError

__all__ = ["quantize_weights"]


def quantize_weights(model: onnx.ModelProto, config: WeightOnly) -> onnx.ModelProto:
    """The graph with the weights of its linear layers and its embedding tables in blocks of 8 or 4 bits.

    Each block of ``config.block`` weights has its own scale and zero point (ONNX Runtime's ``MatMulNBits`` and
    ``GatherBlockQuantized``; tables of 8 bits have one scale each). With ``config.compute: int8`` each row of
    activations is converted to int8 for the product.

    :param model: made by :func:`~stillhouse.compress.export.export_onnx`; convolutions are not changed.
    :raises ExportError: if the graph has nothing to quantise, or ``keep`` names a layer that does not exist.
    """
    require_layers(config.keep, model, config.method)
    unfused = _split_gemm(model, config.keep)
    if config.bits == 8:  # ONNX Runtime has no blocks of 8 bits for tables
        unfused = quantize_tables(unfused, config.keep)
    quantized = quantize_in_blocks(
        unfused,
        ("MatMul", "Gather") if config.bits == 4 else ("MatMul",),
        config.bits,
        config.block,
        4 if config.compute == "int8" else None,
        config.keep,
    )
    if not any(node.op_type in ("MatMulNBits", "GatherBlockQuantized") for node in quantized.graph.node):
        raise ExportError(f"weights{config.bits}: the graph has no linear layer or table that could take the format")
    return quantized


def _split_gemm(model: onnx.ModelProto, keep: tuple[str, ...]) -> onnx.ModelProto:
    """The graph with each ``Gemm`` outside ``keep`` as ``MatMul`` and ``Add``: the quantiser supports only these."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in changed.graph.initializer}
    nodes = []
    for node in changed.graph.node:
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        unscaled = settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1.0 and not settings.get("transA")
        if node.op_type != "Gemm" or node.name in keep or not unscaled or node.input[1] not in tensors:
            nodes.append(node)
            continue
        weight = numpy_helper.to_array(tensors[node.input[1]])
        name = f"{node.input[1]}_of_{node.name}"
        transposed = np.ascontiguousarray(weight.T if settings.get("transB") else weight)
        changed.graph.initializer.append(numpy_helper.from_array(transposed, name))
        has_bias = len(node.input) > 2 and node.input[2]
        product = f"{node.output[0]}_product" if has_bias else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], name], [product], name=node.name))
        if has_bias:
            nodes.append(helper.make_node("Add", [product, node.input[2]], list(node.output), name=f"{node.name}_bias"))
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    used_names = {name for node in nodes for name in node.input}
    used = [tensor for tensor in changed.graph.initializer if tensor.name in used_names]
    del changed.graph.initializer[:]
    changed.graph.initializer.extend(used)
    return changed
