"""Recalibration: a new temperature for an existing graph, fitted on recent labels, without any retraining."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from stillhouse.compress.export import run_onnx
from stillhouse.compress.target import Array, Feed
from stillhouse.errors import ExportError
from stillhouse.stats import fit_temperature

__all__ = ["apply_temperature", "fit_graph_temperature"]

_MIN_PROBABILITY = 1e-12  # below it a probability's logarithm is not taken


def fit_graph_temperature(model: onnx.ModelProto, feed: Feed, labels: Array) -> float:
    """The temperature that minimises the log loss of the model's probabilities on these rows, in 0.05…20.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", §4.2. A temperature above 1 means that the model was
    overconfident. The order of the actions does not change, nor does the accuracy, nor the AUC of two actions.

    :param model: ends in probabilities ``[n, K]``.
    :param labels: action indices ``[n]``, n ≥ 1.
    """
    return fit_temperature(np.log(np.maximum(run_onnx(model, feed).astype(np.float64), _MIN_PROBABILITY)), labels)


def apply_temperature(model: onnx.ModelProto, temperature: float) -> onnx.ModelProto:
    """The graph with its logits divided by the temperature before its final softmax.

    Example:
        >>> import numpy as np
        >>> from torch import nn
        >>> from stillhouse.compress.export import export_onnx
        >>> rows = {"x": np.ones((1, 2), np.float32)}
        >>> model = export_onnx(nn.Linear(2, 2).eval(), rows)
        >>> hot = run_onnx(apply_temperature(model, 1000.0), rows)
        >>> bool(np.abs(hot - 0.5).max() < 0.01)
        True

    :raises ExportError: if the graph does not end in a softmax.
    """
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    last = next((node for node in changed.graph.node if changed.graph.output[0].name in node.output), None)
    if last is None or last.op_type != "Softmax":
        raise ExportError("the graph does not end in a softmax: its confidence cannot be calibrated")
    changed.graph.initializer.append(
        numpy_helper.from_array(np.array(1.0 / temperature, np.float32), "inverse_temperature")
    )
    scaled = helper.make_node("Mul", [last.input[0], "inverse_temperature"], ["scaled_logits"], name="/temperature")
    last.input[0] = "scaled_logits"
    changed.graph.node.insert(len(changed.graph.node) - 1, scaled)
    return changed
