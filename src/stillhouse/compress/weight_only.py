"""Weights in 8 or 4 bits, in blocks; the arithmetic stays in float32, so nothing can saturate."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from stillhouse.compress.quantize import in_blocks, quantize_tables, require_layers
from stillhouse.config import WeightOnly
from stillhouse.errors import ExportError

__all__ = ["quantize_weights"]


def quantize_weights(model: onnx.ModelProto, config: WeightOnly) -> onnx.ModelProto:
    """The graph with the weights of its linear layers and its embedding tables in blocks of 8 or 4 bits.

    Each block of ``config.block`` weights has a scale and a zero of its own (ONNX Runtime's ``MatMulNBits`` and
    ``GatherBlockQuantized``; tables of 8 bits have one scale each). With ``config.compute: int8`` each row of
    activations is made int8 for the product.

    :param model: what :func:`~stillhouse.compress.export.export_onnx` made; convolutions stay as they are.
    :raises ExportError: if the graph has nothing that could take the format, or ``keep`` names a layer it has not.
    """
    require_layers(config.keep, model, config.method)
    plain = _products(model, config.keep)
    if config.bits == 8:  # ONNX Runtime has no blocks of 8 bits for tables
        plain = quantize_tables(plain, config.keep)
    made = in_blocks(
        plain,
        ("MatMul", "Gather") if config.bits == 4 else ("MatMul",),
        config.bits,
        config.block,
        4 if config.compute == "int8" else None,
        config.keep,
    )
    if not any(node.op_type in ("MatMulNBits", "GatherBlockQuantized") for node in made.graph.node):
        raise ExportError(f"weights{config.bits}: the graph has no linear layer or table that could take the format")
    return made


def _products(model: onnx.ModelProto, keep: tuple[str, ...]) -> onnx.ModelProto:
    """The graph with every ``Gemm`` that is not kept as ``MatMul`` and ``Add``: the quantiser knows no other form."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in changed.graph.initializer}
    nodes = []
    for node in changed.graph.node:
        settings = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        plain = settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1.0 and not settings.get("transA")
        if node.op_type != "Gemm" or node.name in keep or not plain or node.input[1] not in tensors:
            nodes.append(node)
            continue
        weight = numpy_helper.to_array(tensors[node.input[1]])
        name = f"{node.input[1]}_of_{node.name}"
        whole = np.ascontiguousarray(weight.T if settings.get("transB") else weight)
        changed.graph.initializer.append(numpy_helper.from_array(whole, name))
        biased = len(node.input) > 2 and node.input[2]
        product = f"{node.output[0]}_product" if biased else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], name], [product], name=node.name))
        if biased:
            nodes.append(helper.make_node("Add", [product, node.input[2]], list(node.output), name=f"{node.name}_bias"))
    del changed.graph.node[:]
    changed.graph.node.extend(nodes)
    used = {each for node in nodes for each in node.input}
    kept = [tensor for tensor in changed.graph.initializer if tensor.name in used]
    del changed.graph.initializer[:]
    changed.graph.initializer.extend(kept)
    return changed
