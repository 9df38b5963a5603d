"""Overflowing pairs of products are found by arithmetic, on any machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from torch import nn

from stillhouse.compress.export import export_onnx
from stillhouse.compress.saturation import find_saturating_layers
from stillhouse.compress.steps.onnxruntime_quantizer import CalibrationBatches

Array = np.ndarray[Any, Any]
KINDS = {np.dtype(np.uint8): TensorProto.UINT8, np.dtype(np.int8): TensorProto.INT8}


def model(nodes: list[onnx.NodeProto], x: Array, output: int, **tensors: Array) -> onnx.ModelProto:
    kinds = KINDS | {np.dtype(np.float32): TensorProto.FLOAT}
    graph = helper.make_graph(
        nodes,
        "integers",
        [helper.make_tensor_value_info("x", kinds[x.dtype], ["n", *x.shape[1:]])],
        [helper.make_tensor_value_info("y", output, None)],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def product(x: Array, weight: Array) -> float:
    """Share of the pairs of ``x @ weight`` that saturate, as a dynamic model has them; 0 where none is found."""
    node = helper.make_node("MatMulInteger", ["x", "w"], ["y"], name="layer")
    saturating = find_saturating_layers(model([node], x, TensorProto.INT32, w=weight), {"x": x})
    assert [layer.layer for layer in saturating] in ([], ["layer"])
    return saturating[0].share if saturating else 0.0


def u8(*rows: list[int]) -> Array:
    return np.array(rows, dtype=np.uint8)


def s8(*rows: list[int]) -> Array:
    return np.array(rows, dtype=np.int8)


@pytest.mark.parametrize(
    ("x", "weight", "share"),
    [
        (u8([255, 255]), s8([127], [127]), 1.0),  # 64,770
        (u8([255, 255]), s8([64], [64]), 0.0),  # 32,640: seven bits never do
        (u8([255, 255]), s8([-64], [-64]), 0.0),
        (u8([255, 255]), s8([65], [64]), 1.0),  # 32,895
        (u8([255, 255]), s8([-128], [-128]), 1.0),  # −65,280
        (u8([255, 255]), s8([127], [-127]), 0.0),  # they cancel
        (u8([129, 129]), s8([127], [127]), 0.0),  # 32,766, one below the end
        (u8([129, 130]), s8([127], [127]), 1.0),  # 32,893
        (u8([128, 128]), s8([-128], [-128]), 0.0),  # −32,768, just inside
        (u8([128, 129]), s8([-128], [-128]), 1.0),
        (u8([255, 0, 255, 0]), s8([127], [127], [127], [127]), 0.0),  # pairs are neighbours alone
        (u8([0, 255, 255, 0]), s8([127], [127], [127], [127]), 0.0),
        (u8([255, 255, 0, 0]), s8([127], [127], [127], [127]), 0.5),
        (u8([255, 255, 255]), s8([0], [127], [127]), 0.0),  # the third stands alone
        (u8([255, 255], [1, 1]), s8([127], [127]), 0.5),
        (u8([255, 255]), s8([127, 1], [127, 1]), 0.5),
    ],
)
def test_by_hand(x: Array, weight: Array, share: float) -> None:
    assert product(x, weight) == share


def test_int8_activations_are_moved_up_by_128() -> None:
    """The kernels know uint8 alone: 127 is computed as 255, and −128 as 0."""
    assert product(s8([127, 127]), s8([127], [127])) == 1.0
    assert product(s8([-128, -128]), s8([127], [127])) == 0.0
    assert product(s8([0, 0]), s8([127], [127])) == 0.0  # 128 · 127 · 2 = 32,512
    assert product(s8([2, 1]), s8([127], [127])) == 1.0  # 130 · 127 + 129 · 127 = 32,893


def test_uint8_weights_never_saturate() -> None:
    assert product(u8([255, 255]), u8([255], [255])) == 0.0


@pytest.mark.parametrize("seed", range(8))
def test_the_share_agrees_with_counting_all_pairs(seed: int) -> None:
    random = np.random.default_rng(seed)
    rows, inputs, outputs = random.integers(1, 30), random.integers(1, 12), random.integers(1, 6)
    x = random.integers(0, 256, (rows, inputs)).astype(np.uint8)
    weight = random.integers(-128, 128, (inputs, outputs)).astype(np.int8)
    overflows, pairs = 0, 0
    for row in x.astype(int):
        for column in weight.T.astype(int):
            for k in range(0, inputs, 2):
                total = sum(row[i] * column[i] for i in (k, k + 1) if i < inputs)
                overflows += total > 32_767 or total < -32_768
                pairs += 1
    assert product(x, weight) == pytest.approx(overflows / pairs)


# --------------------------------------------------------------------------- in every state


SCALES = {"s": np.float32(0.1), "xz": np.uint8(0), "wz": np.int8(0)}


@pytest.mark.parametrize(("weight", "saturating"), [(127, ("layer",)), (64, ())])
@pytest.mark.parametrize("operator", ["QLinearMatMul", "QGemm", "QGemm turned"])
def test_operators_on_integers(operator: str, weight: int, saturating: tuple[str, ...]) -> None:
    """As a static model has them; the second of the two products reads what the first gives."""
    x, w = u8([255, 255, 255, 255]), np.full((4, 4), weight, np.int8)
    names = ["x", "s", "xz", "w", "s", "wz"]
    if operator == "QLinearMatMul":
        node = helper.make_node("QLinearMatMul", [*names, "s", "xz"], ["y"], name="layer")
    else:
        node = helper.make_node(
            "QGemm",
            [*names, "", "s", "xz"],
            ["y"],
            name="layer",
            domain="com.microsoft",
            transB=int(operator.endswith("transposed")),
        )
    graph = model([node], x, TensorProto.UINT8, w=w, **SCALES)
    graph.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert tuple(layer.layer for layer in find_saturating_layers(graph, {"x": x})) == saturating


def test_a_transposed_weight() -> None:
    """Of ``[[127, 0], [0, 127]]`` no pair of one output is full; of ``[[127, 127], [0, 0]]`` turned, one is."""
    x = u8([255, 255])
    for w, transposed, share in (
        ([[127, 0], [0, 127]], 1, 0.0),
        ([[127, 127], [0, 0]], 1, 0.5),
        ([[127, 127], [0, 0]], 0, 0.0),
    ):
        node = helper.make_node(
            "QGemm",
            ["x", "s", "xz", "w", "s", "wz", "", "s", "xz"],
            ["y"],
            name="layer",
            domain="com.microsoft",
            transB=transposed,
        )
        graph = model([node], x, TensorProto.UINT8, w=s8(*w), **SCALES)
        graph.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        assert sum(layer.share for layer in find_saturating_layers(graph, {"x": x})) == share


@pytest.mark.parametrize("in_graph", [True, False])
def test_pairs_of_quantise_and_dequantise(in_graph: bool) -> None:
    """Weights as they are stored, or quantised in the graph from float32."""
    x = np.array([[25.5, 25.5]], np.float32)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "s", "xz"], ["xd"]),
        helper.make_node("DequantizeLinear", ["wq", "s", "wz"], ["wd"]),
        helper.make_node("MatMul", ["xd", "wd"], ["y"], name="layer"),
    ]
    tensors: dict[str, Array] = {"wq": s8([127], [127])}
    if in_graph:
        nodes.insert(0, helper.make_node("QuantizeLinear", ["w", "s", "wz"], ["wq"]))
        tensors = {"w": np.array([[12.7], [12.7]], np.float32)}
    model_proto = model(nodes, x, TensorProto.FLOAT, **tensors, **SCALES)
    (saturating,) = find_saturating_layers(model_proto, {"x": x})
    assert (saturating.layer, saturating.share) == ("layer", 1.0)
    assert find_saturating_layers(model_proto, {"x": x / 2}) == ()


@pytest.mark.parametrize("shape", [(1, 2, 1, 1), (1, 1, 1, 2), (1, 1, 2, 1)])
def test_a_convolution_sums_over_channels_or_over_its_kernel(shape: tuple[int, ...]) -> None:
    """Kernels differ in the order of their sums: a pair that one of the orders has counts."""
    x = np.full((1, shape[1], 3, 3), 255, np.uint8)
    node = helper.make_node("ConvInteger", ["x", "w"], ["y"], name="layer")
    for weight, share in ((127, 1.0), (64, 0.0)):
        saturating = find_saturating_layers(
            model([node], x, TensorProto.INT32, w=np.full(shape, weight, np.int8)), {"x": x}
        )
        assert sum(layer.share for layer in saturating) == share


def test_groups_strides_and_padding_of_a_convolution() -> None:
    """Two groups of one channel, of which the second is loud; of five places two strides see three, with padding."""
    x = np.zeros((1, 2, 5), np.uint8)
    x[0, 1] = 255
    w = np.full((2, 1, 3), 127, np.int8)
    node = helper.make_node("ConvInteger", ["x", "w"], ["y"], name="layer", group=2, strides=[2], pads=[1, 1])
    graph = model([node], x, TensorProto.INT32, w=w)
    (saturating,) = find_saturating_layers(graph, {"x": x})
    # windows (0, 1, 1), (1, 1, 1), (1, 1, 0), each with the pair of its first two and the third alone
    assert saturating.share == pytest.approx(2 / 6)
    x[:, 1], x[:, 0] = 0, 255
    (saturating,) = find_saturating_layers(graph, {"x": x})
    assert saturating.share == pytest.approx(2 / 6)


@pytest.mark.parametrize("format", [QuantFormat.QOperator, QuantFormat.QDQ])
@pytest.mark.parametrize("reduced", [False, True])
def test_what_the_quantiser_writes_is_read_in_both_formats(format: QuantFormat, reduced: bool, tmp_path: Any) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)).eval()
    with torch.no_grad():
        for layer in (module[0], module[3]):
            layer.weight.abs_().clamp_(min=float(layer.weight.max()) * 0.9)
    x = {"image": np.abs(np.random.default_rng(0).normal(size=(40, 2, 6, 6))).astype(np.float32).clip(0.8, 1)}
    quantize_static(
        export_onnx(module, x),
        tmp_path / "m.onnx",
        CalibrationBatches(x),
        quant_format=format,
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        reduce_range=reduced,
    )
    saturating = {layer.layer: layer.share for layer in find_saturating_layers(onnx.load(tmp_path / "m.onnx"), x)}
    assert set(saturating) == (set() if reduced else {"/student/student.0/Conv", "/student/student.3/Gemm"})
    assert all(share > 0.3 for share in saturating.values())


def test_a_float_model_has_nothing_to_saturate() -> None:
    x = {"x": np.ones((5, 3), np.float32)}
    assert find_saturating_layers(export_onnx(nn.Linear(3, 2), x), x) == ()
