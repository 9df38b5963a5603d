"""A temperature corrects the confidence and changes no decision."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from torch import nn

from stillhouse.compress.export import export_onnx, run_onnx
from stillhouse.compress.recalibrate import apply_correction, fit_graph_correction
from stillhouse.compress.steps.int8 import quantize_static_int8
from stillhouse.config import StaticInt8
from stillhouse.errors import ExportError
from stillhouse.stats import Correction

ROWS, ACTIONS = 4000, 5


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(ROWS, 12)).astype(np.float32)


@pytest.fixture(scope="module")
def model(x: np.ndarray) -> onnx.ModelProto:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, ACTIONS))
    with torch.no_grad():
        layers[2].weight.mul_(4)
    return export_onnx(layers.eval(), {"x": x[:50]})


def tempered_graph(model: onnx.ModelProto, temperature: float) -> onnx.ModelProto:
    """The model with other temperature and the same thresholds."""
    return apply_correction(model, Correction(temperature, np.zeros(ACTIONS)))


def drawn(probabilities: np.ndarray) -> np.ndarray:
    """Labels that are drawn from these probabilities."""
    uniform = np.random.default_rng(1).random(len(probabilities))[:, None]
    return (probabilities.astype(np.float64).cumsum(axis=1) < uniform).sum(axis=1).clip(max=ACTIONS - 1)


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.5])
def test_the_temperature_that_labels_were_drawn_with_is_fitted(
    model: onnx.ModelProto, x: np.ndarray, truth: float
) -> None:
    labels = drawn(run_onnx(tempered_graph(model, truth), {"x": x}))
    fitted = fit_graph_correction(model, {"x": x}, labels)
    assert fitted.temperature == pytest.approx(truth, rel=0.08)
    assert np.abs(fitted.bias).max() < 0.15


def test_moved_thresholds_are_found_again(model: onnx.ModelProto, x: np.ndarray) -> None:
    """Labels drawn with other shares of the actions: the bias moves the thresholds, and a second one adds to it."""
    bias = np.linspace(0.9, -0.9, ACTIONS)
    moved = apply_correction(model, Correction(1.0, bias))
    labels = drawn(run_onnx(moved, {"x": x}))
    fitted = fit_graph_correction(model, {"x": x}, labels)
    np.testing.assert_allclose(fitted.bias, bias, atol=0.3)
    twice = run_onnx(apply_correction(moved, Correction(1.0, -bias)), {"x": x[:50]})
    np.testing.assert_allclose(twice, run_onnx(model, {"x": x[:50]}), atol=1e-5)


def test_the_fitted_temperature_never_raises_the_log_loss(model: onnx.ModelProto, x: np.ndarray) -> None:
    """Log loss with the temperature found is never above that without."""
    for seed in range(5):
        labels = np.random.default_rng(seed).integers(0, ACTIONS, 200)
        fitted = fit_graph_correction(model, {"x": x[:200]}, labels)
        losses = [
            -np.log(run_onnx(graph, {"x": x[:200]})[np.arange(200), labels]).mean()
            for graph in (model, apply_correction(model, fitted))
        ]
        assert losses[1] <= losses[0] + 1e-6


def test_the_graph_divides_the_logits(model: onnx.ModelProto, x: np.ndarray) -> None:
    plain = run_onnx(model, {"x": x[:100]}).astype(np.float64)
    expected = plain ** (1 / 3)
    expected /= expected.sum(axis=1, keepdims=True)
    tempered = tempered_graph(model, 3.0)
    onnx.checker.check_model(tempered)
    np.testing.assert_allclose(run_onnx(tempered, {"x": x[:100]}), expected, atol=1e-6)
    assert np.array_equal(expected.argmax(axis=1), plain.argmax(axis=1))
    np.testing.assert_allclose(run_onnx(model, {"x": x[:100]}), plain)  # the model itself is left as it is


def test_a_tempered_graph_can_be_quantised(model: onnx.ModelProto, x: np.ndarray) -> None:
    tempered = tempered_graph(model, 2.0)
    small = quantize_static_int8(tempered, StaticInt8(method="int8_static"), {"x": x[:500]})
    assert np.abs(run_onnx(small, {"x": x[:500]}) - run_onnx(tempered, {"x": x[:500]})).mean() < 0.01


def test_a_graph_without_a_softmax_is_refused() -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Relu", ["x"], ["p"])]
    shapes = [value(name, onnx.TensorProto.FLOAT, [None, 2]) for name in ("x", "p")]
    graph = helper.make_graph(nodes, "g", shapes[:1], shapes[1:])
    with pytest.raises(ExportError, match="does not end in a softmax"):
        tempered_graph(helper.make_model(graph), 2.0)
