"""What a number format does to the answers, one layer at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx

from stillhouse.compress.export import run_onnx
from stillhouse.compress.quantize import touched
from stillhouse.compress.steps import quantise
from stillhouse.compress.subject import Array, Feed
from stillhouse.config import DynamicInt8, StaticInt8

__all__ = ["layer_changes"]

_MOST_LAYERS = 32  # looked at: the largest


def layer_changes(
    model: onnx.ModelProto, chosen: DynamicInt8 | StaticInt8, feed: Feed, probabilities: Callable[[Array], Array]
) -> dict[str, float]:
    """Mean |p − p_float32| where this layer alone takes the format, by layer; of many, the largest are looked at.

    :param feed: rows, few are enough.
    :param probabilities: from what the model gives.
    """
    wanted = probabilities(run_onnx(model, feed))
    names = touched(model)
    found = {}
    for layer in names[:_MOST_LAYERS]:
        others = tuple(each for each in names if each != layer)
        alone = quantise(chosen.model_copy(update={"keep": others}), model, feed)
        found[layer] = float(np.abs(probabilities(run_onnx(alone, feed)) - wanted).mean())
    return found
