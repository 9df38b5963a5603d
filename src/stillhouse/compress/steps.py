"""From a step's settings to what it does: the settings' type is the method."""

from __future__ import annotations

from functools import singledispatch

import onnx

from stillhouse.compress.export import INPUT
from stillhouse.compress.prune import prune_hidden_units
from stillhouse.compress.quantize import quantize_dynamic_int8, quantize_static_int8
from stillhouse.compress.subject import Feed, Form
from stillhouse.config import DynamicInt8, Fp32, PruneUnits, StaticInt8

__all__ = ["quantise", "restructure"]


@singledispatch
def restructure(step: object, form: Form, feed: Feed) -> Form:
    """A smaller form of the same model, not yet recovered; ``form`` itself is left as it is.

    The same arguments give the same form.

    :param step: a structural step's settings.
    :param feed: calibration rows, encoded with the form's columns.
    :raises ExportError: naming the layer, if the step does not apply to this module.
    """
    raise TypeError(f"no structural step for {type(step).__name__}")


@singledispatch
def quantise(step: object, model: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    """The same graph in another number format; ``model`` itself is left as it is.

    :param step: a number format's settings.
    :param feed: calibration rows.
    :raises ExportError: naming the layer, if the format does not apply to this graph.
    """
    raise TypeError(f"no number format for {type(step).__name__}")


# --------------------------------------------------------------------------- structural steps


@restructure.register
def _(step: PruneUnits, form: Form, feed: Feed) -> Form:
    return Form(prune_hidden_units(form.module, step.ratio), form.columns)


# --------------------------------------------------------------------------- number formats


@quantise.register
def _(step: Fp32, model: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    return model


@quantise.register
def _(step: DynamicInt8, model: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    return quantize_dynamic_int8(model, step)


@quantise.register
def _(step: StaticInt8, model: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    return quantize_static_int8(model, step, feed[INPUT])
