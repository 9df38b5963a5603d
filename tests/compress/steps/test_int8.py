"""Int8 models have a third of the bytes, small rounding errors and an exact encoding."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, numpy_helper
from torch import nn

from stillhouse.compress.export import export_onnx, run_onnx, slim
from stillhouse.compress.saturation import find_saturating_layers
from stillhouse.compress.steps import int8
from stillhouse.compress.steps.kinds import quantise
from stillhouse.compress.steps.onnxruntime_quantizer import quantizable_nodes
from stillhouse.config import DynamicInt8, StaticInt8
from stillhouse.errors import ExportError
from stillhouse.variant import encode
from tests.compress.models_for_tests import (
    ENCODERS,
    TEXT_COLUMNS,
    WITH_VNNI,
    WITHOUT_VNNI,
    encoded,
    feed,
    sentences,
    tabular,
    text_student,
)

DYNAMIC = DynamicInt8(method="int8_dynamic")
STATIC = StaticInt8(method="int8_static")
BOTH = pytest.mark.parametrize("config", [DYNAMIC, STATIC], ids=["dynamic", "static"])
FIRST = "/student/layers/layers.0/Gemm"
CALIBRATION = feed(1000, seed=1)


@pytest.fixture(autouse=True)
def vnni(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a test says otherwise the processor adds whole products, so that 8-bit weights are always left alone."""
    monkeypatch.setattr(int8, "processor", lambda: WITH_VNNI)


@pytest.fixture(scope="module")
def source() -> onnx.ModelProto:
    return export_onnx(tabular(), feed(200))


def tensors(model: onnx.ModelProto) -> dict[str, np.ndarray[Any, Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def weights(model: onnx.ModelProto) -> dict[str, tuple[np.ndarray[Any, Any], ...]]:
    """By layer: 8-bit weights ``[outputs, inputs]`` (tables as they are), scales and zeros that broadcast to them."""
    constants, actual = tensors(model), {}
    for name, quantized in constants.items():
        base = name.removesuffix("_quantized")
        if base != name and base.removesuffix("_Transposed").endswith("weight"):
            quantized = quantized.T if base.endswith("_Transposed") else quantized
            scale, zero = (constants[f"{base}_{kind}"].astype(np.float64) for kind in ("scale", "zero_point"))
            shape = (-1, *[1] * (quantized.ndim - 1)) if scale.ndim else ()
            actual[base.removesuffix("_Transposed")] = quantized, scale.reshape(shape), zero.reshape(shape)
    return actual


@BOTH
def test_smaller_and_close(source: onnx.ModelProto, config: DynamicInt8 | StaticInt8) -> None:
    quantized = quantise(config, source, CALIBRATION)
    assert slim(quantized).ByteSize() < 0.33 * slim(source).ByteSize()
    for count in (1, 1000):
        rows = feed(count, seed=2)
        expected, actual = run_onnx(source, rows), run_onnx(quantized, rows)
        assert expected.std() > 0.05 or count == 1
        np.testing.assert_allclose(actual.sum(axis=1), 1.0, atol=1e-6)
        assert np.abs(actual - expected).mean() < 0.02


@BOTH
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("reduce_range", [True, False])
def test_each_weight_is_within_half_a_step(
    source: onnx.ModelProto, config: DynamicInt8 | StaticInt8, per_channel: bool, reduce_range: bool
) -> None:
    """A scale spans the largest weight of its channel, or of all, in 127 steps; in 64 where the range is reduced."""
    settings = {"per_channel": per_channel, "reduce_range": reduce_range}
    actual, floats = weights(quantise(config.model_copy(update=settings), source, CALIBRATION)), tensors(source)
    layers = [f"student.layers.{number}.weight" for number in (0, 3, 6)]
    assert set(actual) == {*layers, *(f"student.embeddings.{number}.weight" for number in range(3))}
    for name, (quantized, scale, zero) in actual.items():
        error = np.abs((quantized.astype(np.float64) - zero) * scale - floats[name])
        assert (error <= 0.5001 * scale).all(), name
        if name in layers:
            assert quantized.dtype == np.int8 and not zero.any()
            assert scale.size == (len(quantized) if per_channel else 1)
            steps = 64 if reduce_range else 127
            largest = np.abs(floats[name]).max(axis=1, keepdims=True) if per_channel else np.abs(floats[name]).max()
            np.testing.assert_allclose(scale, largest / steps, rtol=0.01)
            assert np.abs(quantized.astype(int)).max() == steps


@BOTH
def test_every_large_weight_is_int8_and_the_encoding_is_not(
    source: onnx.ModelProto, config: DynamicInt8 | StaticInt8
) -> None:
    graph = quantise(config, source, CALIBRATION).graph
    floats = {tuple(t.dims) for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    tables = {tuple(t.dims) for t in graph.initializer if t.data_type in (TensorProto.INT8, TensorProto.UINT8)}
    assert {(17, 8), (4, 2), (106, 8)} <= tables
    assert {shape for shape in floats if len(shape) == 2} == {(20, 12)}
    operators = {node.op_type for node in graph.node}
    assert {"Sub", "Div", "Clip", "Softmax"} <= operators
    assert not {"Gemm", "MatMul"} & operators
    assert ("QGemm" in operators) is (config is STATIC) and ("MatMulInteger" in operators) is (config is DYNAMIC)


@BOTH
def test_a_layer_that_is_kept_stays_float(source: onnx.ModelProto, config: DynamicInt8 | StaticInt8) -> None:
    settings = config.model_copy(update={"keep": (FIRST, "/student/embeddings.2/Gather")})
    quantized = quantise(settings, source, CALIBRATION)
    named = {node.name.removesuffix("_MatMul"): node.op_type for node in quantized.graph.node}
    assert named[FIRST] in ("Gemm", "MatMul") and named["/student/embeddings.2/Gather"] == "Gather"
    assert set(weights(quantized)) == {
        f"student.{name}.weight" for name in ("embeddings.0", "embeddings.1", "layers.3", "layers.6")
    }
    shapes = sorted(tensor.shape for tensor in tensors(quantized).values() if tensor.dtype == np.float32)
    assert (106, 8) in shapes and {(64, 278), (278, 64)} & set(shapes)
    rows = feed(300, seed=2)
    near, far = (
        np.abs(run_onnx(model, rows) - run_onnx(source, rows)).mean()
        for model in (quantized, quantise(config, source, CALIBRATION))
    )
    assert near < far


@BOTH
def test_keeping_all_layers_changes_no_answer(source: onnx.ModelProto, config: DynamicInt8 | StaticInt8) -> None:
    settings = config.model_copy(update={"keep": tuple(quantizable_nodes(source))})
    if isinstance(config, StaticInt8):  # where nothing has int8 weights, activations still may
        assert not weights(quantise(settings, source, CALIBRATION))
    else:
        quantized = quantise(settings, source, CALIBRATION)
        np.testing.assert_allclose(run_onnx(quantized, feed(50)), run_onnx(source, feed(50)), atol=1e-6)


@BOTH
def test_an_unknown_layer_to_keep_is_named_with_those_there_are(
    source: onnx.ModelProto, config: DynamicInt8 | StaticInt8
) -> None:
    with pytest.raises(ExportError) as caught:
        quantise(config.model_copy(update={"keep": (FIRST, "hidden")}), source, CALIBRATION)
    assert str(caught.value) == (
        f"{config.method}.keep: no layer is called hidden; those are: {', '.join(quantizable_nodes(source))}"
    )


@BOTH
def test_tables_in_four_bits_are_half_as_large(config: DynamicInt8 | StaticInt8) -> None:
    """Each block of 32 values of a row has a scale and a zero: of 48 values a row, 24 bytes and nine for these."""
    x = {"x": encode(sentences(200), TEXT_COLUMNS)}
    source = export_onnx(text_student(ENCODERS["bag"]), x)
    plain = quantise(config, source, x)
    small = quantise(config.model_copy(update={"table_bits": 4}), source, x)
    tables = [node for node in small.graph.node if node.op_type == "GatherBlockQuantized"]
    assert len(tables) == 3
    constants, floats = {t.name: t for t in small.graph.initializer}, tensors(source)
    for node in tables:
        name = node.input[0].removesuffix("_Q4")
        assert constants[node.input[0]].data_type == TensorProto.UINT4
        quantized, scale, zero = (numpy_helper.to_array(constants[node.input[i]]).astype(np.float64) for i in (0, 2, 3))
        scale, zero = (array.repeat(32, axis=1)[:, : quantized.shape[1]] for array in (scale, zero))
        assert (np.abs((quantized - zero) * scale - floats[name]) <= 0.5001 * scale).all()
    rows = len(TEXT_COLUMNS[2]["tokens"]) + 300
    assert slim(plain).ByteSize() - slim(small).ByteSize() == pytest.approx((48 - 24 - 9) * rows, rel=0.05)
    assert np.abs(run_onnx(small, x) - run_onnx(source, x)).mean() < 0.03


def test_missing_numbers_and_unknown_categories_survive(source: onnx.ModelProto) -> None:
    rows = np.zeros((3, 23), dtype=np.float32)
    rows[0, :20] = np.nan
    rows[1, :20] = 1e30
    for config in (DYNAMIC, STATIC):
        actual = run_onnx(quantise(config, source, CALIBRATION), {"x": rows})
        np.testing.assert_allclose(actual, run_onnx(source, {"x": rows}), atol=0.1)


def test_an_outlier_widens_minmax_and_not_the_percentile() -> None:
    """One value of 150,000 is a thousand times as large: the others fall into few steps where it sets the range."""
    torch.manual_seed(0)
    module = nn.Linear(600, 2).eval()
    x = np.random.default_rng(0).normal(size=(250, 600)).astype(np.float32)
    strange = x.copy()
    strange[7, 9] = 1000
    model = export_onnx(module, {"x": x})
    lost = {}
    for ranges in ("minmax", "percentile"):
        quantized = quantise(STATIC.model_copy(update={"ranges": ranges}), model, {"x": strange})
        lost[ranges] = float(np.abs(run_onnx(quantized, {"x": x}) - run_onnx(model, {"x": x})).mean())
    assert lost["percentile"] < 0.2 * lost["minmax"]


def test_a_convolution_is_quantised_statically() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(6 * 9, 3)
    ).eval()
    x = {"image": np.random.default_rng(0).normal(size=(120, 2, 6, 6)).astype(np.float32)}
    model = export_onnx(module, x)
    static, dynamic = quantise(STATIC, model, x), quantise(DYNAMIC, model, x)
    assert {"QLinearConv", "QGemm"} <= {node.op_type for node in static.graph.node}
    assert "Conv" in {node.op_type for node in dynamic.graph.node}
    (name,) = (name for name, quantized in tensors(static).items() if quantized.shape == (6, 2, 3, 3))
    quantized, scale = tensors(static)[name], tensors(static)[name.replace("_quantized", "_scale")]
    assert quantized.dtype == np.int8 and scale.shape == (6,)
    error = np.abs(quantized * scale.reshape(-1, 1, 1, 1) - module[0].weight.detach().numpy())
    assert (error <= 0.5001 * scale.reshape(-1, 1, 1, 1)).all()
    assert np.abs(run_onnx(static, x) - run_onnx(model, x)).mean() < 0.02


def test_calibration_rows_cover_the_whole_window(source: onnx.ModelProto) -> None:
    early, late = encoded(500, seed=3), encoded(500, seed=3)
    early[:, :20] = np.nan  # as if nothing had been measured yet
    rows = np.vstack([early, late])
    config = STATIC.model_copy(update={"calibration_rows": 100})
    quantized, first, chosen = (
        quantise(config, source, {"x": subset}).SerializeToString()
        for subset in (rows, rows[:100], rows[np.linspace(0, 999, 100).astype(int)])
    )
    assert quantized == chosen != first


def test_no_calibration_rows_is_an_error(source: onnx.ModelProto) -> None:
    with pytest.raises(ExportError, match="at least one"):
        quantise(STATIC, source, feed(0))


def test_a_failing_quantiser_is_an_export_error(source: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise IndexError("no such tensor")

    for config, name in ((DYNAMIC, "quantize_dynamic"), (STATIC, "quantize_static")):
        monkeypatch.setattr(int8, name, fail)
        with pytest.raises(ExportError, match="quantiser cannot process the graph: IndexError: no such tensor"):
            quantise(config, source, CALIBRATION)


@pytest.mark.parametrize(
    "config",
    [DYNAMIC, STATIC, DYNAMIC.model_copy(update={"table_bits": 4}), STATIC.model_copy(update={"ranges": "percentile"})],
    ids=["dynamic", "static", "dynamic_tables4", "static_percentile"],
)
def test_deterministic_silent_and_without_leftovers(
    source: onnx.ModelProto,
    config: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = source.SerializeToString()
    first = quantise(config, source, CALIBRATION).SerializeToString()
    assert quantise(config, source, CALIBRATION).SerializeToString() == first
    assert source.SerializeToString() == before
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert logging.root.manager.disable == logging.NOTSET


# --------------------------------------------------------------------------- weights that would saturate


@pytest.fixture(scope="module")
def loud() -> onnx.ModelProto:
    """A layer that weighs all of its inputs as much as eight bits allow, and inputs as large as they come."""
    module = nn.Sequential(nn.Linear(4, 2))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 1, 1, 1], [-1, -1, -1, -1]]))
    return export_onnx(module, LOUD)


LOUD = {"x": np.abs(np.random.default_rng(0).normal(size=(100, 4))).astype(np.float32).clip(0.9, 1)}


@BOTH
def test_eight_bit_weights_that_saturate_are_refused_by_name_without_vnni(
    loud: onnx.ModelProto, config: DynamicInt8 | StaticInt8, monkeypatch: pytest.MonkeyPatch
) -> None:
    eight_bit = config.model_copy(update={"reduce_range": False})
    eight_bit_model = quantise(eight_bit, loud, LOUD)
    assert max(np.abs(quantized.astype(int)).max() for quantized, *_ in weights(eight_bit_model).values()) == 127
    assert find_saturating_layers(eight_bit_model, LOUD)
    monkeypatch.setattr(int8, "processor", lambda: WITHOUT_VNNI)
    with pytest.raises(ExportError) as caught:
        quantise(eight_bit, loud, LOUD)
    text = str(caught.value)
    assert text.startswith(f"{config.method} with reduce_range: false saturates in /student/student.0/Gemm (")
    assert text.endswith("on a processor without VNNI, which has no VNNI: say reduce_range: auto")


@BOTH
def test_auto_falls_back_to_seven_bits_where_eight_saturate(
    loud: onnx.ModelProto, source: onnx.ModelProto, config: DynamicInt8 | StaticInt8, monkeypatch: pytest.MonkeyPatch
) -> None:
    def largest(model: onnx.ModelProto, rows: Any) -> int:
        int8_model = quantise(config, model, rows)
        return max(int(np.abs(quantized.astype(int)).max()) for quantized, *_ in weights(int8_model).values())

    assert largest(loud, LOUD) == 127
    monkeypatch.setattr(int8, "processor", lambda: WITHOUT_VNNI)
    assert largest(loud, LOUD) == 64
    assert not find_saturating_layers(quantise(config, loud, LOUD), LOUD)
    quiet = {"x": LOUD["x"].copy()}
    quiet["x"][:, ::2] = 0  # in every pair of inputs one is silent
    assert largest(loud, quiet) == 127
