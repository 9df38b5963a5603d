"""From a step's settings to what it does: the settings' type is the method."""

from __future__ import annotations

from functools import singledispatch

import onnx

from stillhouse.compress.attention import attentions, prune_heads, prune_layers, stacks
from stillhouse.compress.columns import prunable_columns, prune_columns
from stillhouse.compress.factorize import factorizable, low_rank
from stillhouse.compress.lengths import shorten_texts, shortenable
from stillhouse.compress.prune import prunable_units, prune_units
from stillhouse.compress.quantize import quantize_dynamic_int8, quantize_static_int8
from stillhouse.compress.subject import Feed, Form
from stillhouse.compress.tables import hash_rows, shrink_vocabulary, tables, texts
from stillhouse.compress.weight_only import quantize_weights
from stillhouse.config import (
    DynamicInt8,
    Fp32,
    HashedRows,
    LowRank,
    PruneColumns,
    PruneHeads,
    PruneLayers,
    PruneUnits,
    ShortTexts,
    StaticInt8,
    Vocabulary,
    WeightOnly,
)

__all__ = ["layers", "quantise", "restructure"]


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


@singledispatch
def layers(step: object, form: Form, feed: Feed) -> list[str]:
    """Names of the layers that a structural step may make smaller; empty where it does not apply to this module."""
    raise TypeError(f"no structural step for {type(step).__name__}")


# --------------------------------------------------------------------------- structural steps


@restructure.register
def _(step: PruneUnits, form: Form, feed: Feed) -> Form:
    return prune_units(step, form, feed)


@restructure.register
def _(step: PruneHeads, form: Form, feed: Feed) -> Form:
    return prune_heads(step, form, feed)


@restructure.register
def _(step: PruneLayers, form: Form, feed: Feed) -> Form:
    return prune_layers(step, form, feed)


@restructure.register
def _(step: PruneColumns, form: Form, feed: Feed) -> Form:
    return prune_columns(step, form, feed)


@restructure.register
def _(step: LowRank, form: Form, feed: Feed) -> Form:
    return low_rank(step, form, feed)


@restructure.register
def _(step: Vocabulary, form: Form, feed: Feed) -> Form:
    return shrink_vocabulary(step, form, feed)


@restructure.register
def _(step: ShortTexts, form: Form, feed: Feed) -> Form:
    return shorten_texts(step, form, feed)


@restructure.register
def _(step: HashedRows, form: Form, feed: Feed) -> Form:
    return hash_rows(step, form, feed)


@layers.register
def _(step: PruneUnits, form: Form, feed: Feed) -> list[str]:
    return prunable_units(form, feed)


@layers.register
def _(step: PruneHeads, form: Form, feed: Feed) -> list[str]:
    return attentions(form)


@layers.register
def _(step: PruneLayers, form: Form, feed: Feed) -> list[str]:
    return stacks(form, feed)


@layers.register
def _(step: PruneColumns, form: Form, feed: Feed) -> list[str]:
    return prunable_columns(form)


@layers.register
def _(step: LowRank, form: Form, feed: Feed) -> list[str]:
    return factorizable(form)


@layers.register
def _(step: Vocabulary, form: Form, feed: Feed) -> list[str]:
    return texts(form)


@layers.register
def _(step: ShortTexts, form: Form, feed: Feed) -> list[str]:
    return shortenable(form)


@layers.register
def _(step: HashedRows, form: Form, feed: Feed) -> list[str]:
    return tables(form)


# --------------------------------------------------------------------------- number formats


@quantise.register
def _(step: Fp32, model: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    return model


@quantise.register
def _(step: DynamicInt8, model: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    return quantize_dynamic_int8(model, step, feed)


@quantise.register
def _(step: StaticInt8, model: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    return quantize_static_int8(model, step, feed)


@quantise.register
def _(step: WeightOnly, model: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    return quantize_weights(model, step)
