"""The sensitivity of a model to a number format, one layer at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from stillhouse.compress.export import run_onnx
from stillhouse.compress.steps.kinds import quantise
from stillhouse.compress.steps.onnxruntime_quantizer import quantizable_nodes
from stillhouse.compress.target import Array, Feed
from stillhouse.config import DynamicInt8, StaticInt8

__all__ = ["measure_layer_changes"]

_MAX_LAYERS = 32  # that are measured: the largest


def measure_layer_changes(
    model: onnx.ModelProto,
    number_format: DynamicInt8 | StaticInt8,
    feed: Feed,
    to_probabilities: Callable[[Array], Array],
) -> dict[str, float]:
    """Mean |p − p_float32| with only this layer quantised, by layer; measured for the 32 largest layers.

    :param feed: calibration rows; a few are enough.
    :param to_probabilities: converts the model's outputs.
    """
    reference_probs = to_probabilities(run_onnx(model, feed))
    names = quantizable_nodes(model)
    changes = {}
    for layer in names[:_MAX_LAYERS]:
        others = tuple(name for name in names if name != layer)
        quantized = quantise(number_format.model_copy(update={"keep": others}), model, feed)
        changes[layer] = float(np.abs(to_probabilities(run_onnx(quantized, feed)) - reference_probs).mean())
    return changes
