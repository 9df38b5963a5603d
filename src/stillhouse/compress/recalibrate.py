"""Recalibration: a new temperature and new thresholds for an existing graph, fitted on recent labels, untrained."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from stillhouse.compress.export import run_onnx
from stillhouse.compress.target import Array, Feed
from stillhouse.errors import ExportError
from stillhouse.stats import Correction, fit_correction

__all__ = ["apply_correction", "fit_graph_correction"]

_MIN_PROBABILITY = 1e-12  # below it a probability's logarithm is not taken


def fit_graph_correction(model: onnx.ModelProto, feed: Feed, labels: Array) -> Correction:
    """The temperature and the bias of each action that minimise the log loss of the model on these rows.

    Bias-corrected temperature scaling, :func:`stillhouse.stats.fit_correction`. A temperature above 1 means that the
    model was overconfident; a bias moves the threshold between actions, as a changed share of the actions asks for.
    With two actions the AUC does not change.

    :param model: ends in probabilities ``[n, K]``.
    :param labels: action indices ``[n]``, n ≥ 1.
    """
    return fit_correction(np.log(np.maximum(run_onnx(model, feed).astype(np.float64), _MIN_PROBABILITY)), labels)


def apply_correction(model: onnx.ModelProto, correction: Correction) -> onnx.ModelProto:
    """The graph with its logits divided by the temperature, plus the biases, before its final softmax.

    Example:
        >>> import numpy as np
        >>> from torch import nn
        >>> from stillhouse.compress.export import export_onnx
        >>> rows = {"x": np.ones((1, 2), np.float32)}
        >>> model = export_onnx(nn.Linear(2, 2).eval(), rows)
        >>> hot = run_onnx(apply_correction(model, Correction(1000.0, np.zeros(2))), rows)
        >>> bool(np.abs(hot - 0.5).max() < 0.01)
        True

    :raises ExportError: if the graph does not end in a softmax.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    last = next((node for node in changed.graph.node if changed.graph.output[0].name in node.output), None)
    if last is None or last.op_type != "Softmax":
        raise ExportError("the graph does not end in a softmax: its confidence cannot be calibrated")
    count = sum(node.op_type == "Softmax" or node.name.startswith("/temperature") for node in changed.graph.node)
    suffix = f"_{count}" if any(node.name == "/temperature" for node in changed.graph.node) else ""
    inverse, bias, scaled, moved = (
        f"{name}{suffix}" for name in ("inverse_temperature", "action_bias", "scaled_logits", "moved_logits")
    )
    changed.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array(1.0 / correction.temperature, np.float32), inverse),
            numpy_helper.from_array(correction.bias.astype(np.float32), bias),
        ]
    )
    multiply = helper.make_node("Mul", [last.input[0], inverse], [scaled], name=f"/temperature{suffix}")
    add = helper.make_node("Add", [scaled, bias], [moved], name=f"/thresholds{suffix}")
    last.input[0] = moved
    for node in (multiply, add):
        changed.graph.node.insert(len(changed.graph.node) - 1, node)
    return changed
