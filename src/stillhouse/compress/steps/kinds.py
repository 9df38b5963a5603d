"""Dispatch of a compression step to its function, by the type of its settings.

A new step needs three files: its section in ``config/compression.py``, its arithmetic in a file of this package, and
its registration here.
"""

from __future__ import annotations

from functools import singledispatch

import onnx

from stillhouse.compress.steps.columns import prunable_columns, prune_columns
from stillhouse.compress.steps.hashed_rows import hash_rows, hashable_tables
from stillhouse.compress.steps.heads import prunable_attentions, prune_heads
from stillhouse.compress.steps.int8 import quantize_dynamic_int8, quantize_static_int8
from stillhouse.compress.steps.low_rank import factorizable_layers, factorize_layers
from stillhouse.compress.steps.residual_layers import prunable_stacks, prune_layers
from stillhouse.compress.steps.text_length import shorten_texts, shortenable_texts
from stillhouse.compress.steps.units import prunable_units, prune_units
from stillhouse.compress.steps.vocabulary import shrink_vocabulary, shrinkable_texts
from stillhouse.compress.steps.weight_only import quantize_weights
from stillhouse.compress.target import Feed, ModelState
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

__all__ = ["apply_step", "layers", "quantise"]


@singledispatch
def apply_step(step: object, state: ModelState, feed: Feed) -> ModelState:
    """A smaller state of the same model, not yet recovered; the given ``state`` is not changed.

    Deterministic: equal arguments give an equal state.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from stillhouse.config import LowRank
        >>> state = ModelState(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 3)).eval())
        >>> feed = {"x": torch.randn(16, 32).numpy()}
        >>> step = LowRank(method="low_rank", ratio=0.5)
        >>> layers(step, state, feed)
        ['0']
        >>> apply_step(step, state, feed).module[0]
        Sequential(
          (0): Linear(in_features=32, out_features=10, bias=False)
          (1): Linear(in_features=10, out_features=64, bias=True)
        )

    :param step: settings of a structural step.
    :param feed: calibration rows, encoded with the state's columns.
    :raises ExportError: naming the layer, if the step does not apply to this module.
    """
    raise TypeError(f"no structural step for {type(step).__name__}")


@singledispatch
def quantise(step: object, model: onnx.ModelProto, feed: Feed) -> onnx.ModelProto:
    """The same graph in another number format; the given ``model`` is not changed.

    :param step: settings of a number format.
    :param feed: calibration rows.
    :raises ExportError: naming the layer, if the format does not apply to this graph.
    """
    raise TypeError(f"no number format for {type(step).__name__}")


@singledispatch
def layers(step: object, state: ModelState, feed: Feed) -> list[str]:
    """Names of the layers that a structural step can make smaller; empty if it does not apply to this module."""
    raise TypeError(f"no structural step for {type(step).__name__}")


# --------------------------------------------------------------------------- structural steps


@apply_step.register
def _(step: PruneUnits, state: ModelState, feed: Feed) -> ModelState:
    return prune_units(step, state, feed)


@apply_step.register
def _(step: PruneHeads, state: ModelState, feed: Feed) -> ModelState:
    return prune_heads(step, state, feed)


@apply_step.register
def _(step: PruneLayers, state: ModelState, feed: Feed) -> ModelState:
    return prune_layers(step, state, feed)


@apply_step.register
def _(step: PruneColumns, state: ModelState, feed: Feed) -> ModelState:
    return prune_columns(step, state, feed)


@apply_step.register
def _(step: LowRank, state: ModelState, feed: Feed) -> ModelState:
    return factorize_layers(step, state, feed)


@apply_step.register
def _(step: Vocabulary, state: ModelState, feed: Feed) -> ModelState:
    return shrink_vocabulary(step, state, feed)


@apply_step.register
def _(step: ShortTexts, state: ModelState, feed: Feed) -> ModelState:
    return shorten_texts(step, state)


@apply_step.register
def _(step: HashedRows, state: ModelState, feed: Feed) -> ModelState:
    return hash_rows(step, state)


@layers.register
def _(step: PruneUnits, state: ModelState, feed: Feed) -> list[str]:
    return prunable_units(state, feed)


@layers.register
def _(step: PruneHeads, state: ModelState, feed: Feed) -> list[str]:
    return prunable_attentions(state)


@layers.register
def _(step: PruneLayers, state: ModelState, feed: Feed) -> list[str]:
    return prunable_stacks(state, feed)


@layers.register
def _(step: PruneColumns, state: ModelState, feed: Feed) -> list[str]:
    return prunable_columns(state)


@layers.register
def _(step: LowRank, state: ModelState, feed: Feed) -> list[str]:
    return factorizable_layers(state)


@layers.register
def _(step: Vocabulary, state: ModelState, feed: Feed) -> list[str]:
    return shrinkable_texts(state)


@layers.register
def _(step: ShortTexts, state: ModelState, feed: Feed) -> list[str]:
    return shortenable_texts(state)


@layers.register
def _(step: HashedRows, state: ModelState, feed: Feed) -> list[str]:
    return hashable_tables(state)


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
