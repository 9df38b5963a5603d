"""Weights in blocks: the rounding error is at most half a step, and the arithmetic is float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from stillhouse.compress.export import export_onnx, run_onnx, slim
from stillhouse.compress.saturation import find_saturating_layers
from stillhouse.compress.steps.onnxruntime_quantizer import quantizable_nodes
from stillhouse.compress.steps.weight_only import quantize_weights
from stillhouse.config import WeightOnly
from stillhouse.errors import ExportError
from tests.compress.models_for_tests import feed, linears, tabular

BITS = pytest.mark.parametrize("bits", [8, 4])


def weights(**settings: Any) -> WeightOnly:
    return WeightOnly.model_validate({"method": "weights", **settings})


@pytest.fixture(scope="module")
def source() -> onnx.ModelProto:
    return export_onnx(tabular(), feed(200))


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def blocks(model: onnx.ModelProto, layer: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Of a ``MatMulNBits`` node: weights ``[outputs, inputs]`` as the kernel sees them, and each one's scale."""
    (node,) = (node for node in model.graph.node if node.name.startswith(layer) and node.op_type == "MatMulNBits")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    settings = {value.name: value.i for value in node.attribute}
    size, bits, inputs, outputs = (settings[name] for name in ("block_size", "bits", "K", "N"))
    packed, scales, zeros = (constants[name].reshape(outputs, -1) for name in node.input[1:4])
    if bits == 4:
        packed, zeros = (np.stack([value & 15, value >> 4], axis=2).reshape(outputs, -1) for value in (packed, zeros))
    expanded = [value[:, : scales.shape[1]].astype(np.float64).repeat(size, axis=1) for value in (scales, zeros)]
    dequantized = (packed.astype(np.float64) - expanded[1]) * expanded[0]
    return dequantized[:, :inputs], expanded[0][:, :inputs]


@BITS
@pytest.mark.parametrize("block", [16, 32, 128])
def test_each_weight_is_within_half_a_step_of_its_block(source: onnx.ModelProto, bits: int, block: int) -> None:
    quantized = quantize_weights(source, weights(bits=bits, block=block))
    for number, linear in zip((0, 3, 6), linears(tabular()), strict=True):
        actual, scale = blocks(quantized, f"/student/layers/layers.{number}/Gemm")
        expected = linear.weight.detach().numpy()
        assert actual.shape == expected.shape
        assert (np.abs(actual - expected) <= 0.5001 * scale).all()
        for begin in range(0, expected.shape[1], block):
            part = expected[:, begin : begin + block]
            reach = part.max(axis=1).clip(min=0) - part.min(axis=1).clip(max=0)
            np.testing.assert_allclose(scale[:, begin], reach / (2**bits - 1), rtol=0.01)


@BITS
def test_the_kernel_computes_what_the_blocks_say(bits: int) -> None:
    torch.manual_seed(0)
    module = nn.Linear(64, 5)
    x = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)
    model = export_onnx(module, {"x": x}, softmax=False)
    quantized = quantize_weights(model, weights(bits=bits))
    (layer,) = quantizable_nodes(model)
    actual, _ = blocks(quantized, layer)
    expected = x @ actual.T + module.bias.detach().numpy()
    np.testing.assert_allclose(run_onnx(quantized, {"x": x}), expected, rtol=1e-4, atol=1e-4)


@BITS
def test_smaller_and_close(source: onnx.ModelProto, bits: int) -> None:
    quantized = quantize_weights(source, weights(bits=bits))
    assert slim(quantized).ByteSize() < {8: 0.4, 4: 0.33}[bits] * slim(source).ByteSize()
    rows = feed(500, seed=3)
    assert np.abs(run_onnx(quantized, rows) - run_onnx(source, rows)).mean() < {8: 0.005, 4: 0.05}[bits]
    assert find_saturating_layers(quantized, rows) == ()
    for strange in (np.nan, 1e30):
        row = rows["x"][:1].copy()
        row[:, :20] = strange
        np.testing.assert_allclose(run_onnx(quantized, {"x": row}), run_onnx(source, {"x": row}), atol=0.2)


def test_tables_take_the_format_too(source: onnx.ModelProto) -> None:
    kinds = {
        bits: {tuple(t.dims): t.data_type for t in quantize_weights(source, weights(bits=bits)).graph.initializer}
        for bits in (8, 4)
    }
    for shape in ((17, 8), (4, 2), (106, 8)):
        assert kinds[8][shape] in (TensorProto.INT8, TensorProto.UINT8)
        assert kinds[4][shape] == TensorProto.UINT4


def test_products_may_be_of_integers(source: onnx.ModelProto) -> None:
    levels = {
        compute: {
            attribute.i
            for node in quantize_weights(source, weights(compute=compute)).graph.node
            for attribute in node.attribute
            if attribute.name == "accuracy_level"
        }
        for compute in ("float32", "int8")
    }
    assert levels["int8"] == {4} and 4 not in levels["float32"]
    rows = feed(300, seed=2)
    assert (
        np.abs(run_onnx(quantize_weights(source, weights(compute="int8")), rows) - run_onnx(source, rows)).mean() < 0.02
    )


def gemm(transposed: bool, bias: bool, **settings: float) -> onnx.ModelProto:
    """Two products in a row, of which the second is a plain ``MatMul``."""
    random = np.random.default_rng(0)
    first, second = random.normal(size=(32, 48)).astype(np.float32), random.normal(size=(48, 3)).astype(np.float32)
    tensors = [
        numpy_helper.from_array(np.ascontiguousarray(first.T) if transposed else first, "w"),
        numpy_helper.from_array(second, "v"),
        numpy_helper.from_array(random.normal(size=48).astype(np.float32), "b"),
    ]
    nodes = [
        helper.make_node(
            "Gemm", ["x", "w", *(["b"] if bias else [])], ["h"], name="first", transB=int(transposed), **settings
        ),
        helper.make_node("MatMul", ["h", "v"], ["y"], name="second"),
    ]
    shape = {
        name: helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size])
        for name, size in (("x", 32), ("y", 3))
    }
    graph = helper.make_graph(nodes, "two", [shape["x"]], [shape["y"]], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


X = {"x": np.random.default_rng(1).normal(size=(9, 32)).astype(np.float32)}


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_a_gemm_becomes_a_product_and_a_sum_with_the_same_answers(transposed: bool, bias: bool) -> None:
    """In 8 bits and blocks of 16 the first product is nearly exact; the second is kept, and is exact."""
    model = gemm(transposed, bias)
    quantized = quantize_weights(model, weights(bits=8, block=16, keep=("second",)))
    assert operators(quantized) == ["MatMulNBits", *(["Add"] if bias else []), "MatMul"]
    actual, _ = blocks(quantized, "first")
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    expected = (X["x"] @ actual.T + (constants["b"] if bias else 0)) @ constants["v"]
    np.testing.assert_allclose(run_onnx(quantized, X), expected, rtol=1e-3, atol=1e-3)
    partly = quantize_weights(model, weights(keep=("first",)))
    assert "MatMulNBits" in operators(partly) and operators(partly).count("MatMulNBits") == 1
    assert "w" not in {tensor.name for tensor in quantized.graph.initializer}


@pytest.mark.parametrize("settings", [{"alpha": 0.5}, {"beta": 2.0}])
def test_a_scaled_gemm_is_not_changed(settings: dict[str, float]) -> None:
    quantized = quantize_weights(gemm(True, True, **settings), weights(keep=()))
    assert operators(quantized) == ["Gemm", "MatMulNBits"]


def test_a_layer_that_is_kept_is_exact(source: onnx.ModelProto) -> None:
    names = quantizable_nodes(source)
    last = "/student/layers/layers.6/Gemm"
    quantized = quantize_weights(source, weights(bits=4, keep=tuple(name for name in names if name != last)))
    assert operators(quantized).count("MatMulNBits") == 1 and "GatherBlockQuantized" not in operators(quantized)
    assert operators(quantized).count("Gemm") == 2
    worse = quantize_weights(source, weights(bits=4))
    rows = feed(300, seed=2)
    near, far = (np.abs(run_onnx(model, rows) - run_onnx(source, rows)).mean() for model in (quantized, worse))
    assert 0 < near < far


def test_a_graph_without_quantisable_weights_is_an_error(source: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match="weights4: the graph has no linear layer or table"):
        quantize_weights(source, weights(bits=4, keep=tuple(quantizable_nodes(source))))
    torch.manual_seed(0)
    convolution = nn.Sequential(nn.Conv1d(2, 3, 2), nn.Flatten())
    x = {"x0": np.zeros((3, 2, 4), np.float32)}
    with pytest.raises(ExportError, match="weights8: the graph has no linear layer or table"):
        quantize_weights(export_onnx(convolution, x), weights(bits=8))


def test_an_unknown_layer_to_keep_is_named(source: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match=r"weights.keep: no layer is called x; those are: /student/layers/layers.0"):
        quantize_weights(source, weights(keep=("x",)))


@BITS
def test_deterministic_and_silent(
    source: onnx.ModelProto, bits: int, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    before = source.SerializeToString()
    first, second = (quantize_weights(source, weights(bits=bits)).SerializeToString() for _ in range(2))
    assert first == second and source.SerializeToString() == before
    assert capfd.readouterr() == ("", "") and not caplog.records
