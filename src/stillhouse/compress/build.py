"""The last part of a recipe: a model state is exported to ONNX, and the graph is converted to its number format."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from pydantic import Field

from stillhouse.compress.export import export_onnx, run_onnx
from stillhouse.compress.saturation import find_saturating_layers
from stillhouse.compress.steps.kinds import quantise
from stillhouse.compress.target import Array, Columns, CompressionTarget, Feed, ModelState
from stillhouse.config import Fp32, Recipe, number_format, recipe_name
from stillhouse.errors import ExportError
from stillhouse.records import Record, Saturation

__all__ = ["Agreement", "ArtifactWriter", "BuiltModel", "build_model", "export_state"]


class Agreement(Record):
    """The difference between a model's probabilities and those of the uncompressed model."""

    rows: int = Field(ge=1, description="calibration rows compared")
    mean: float = Field(ge=0.0, le=1.0, description="mean |p_variant − p_student| over rows and actions")
    max: float = Field(ge=0.0, le=1.0, description="largest |p_variant − p_student|")


@dataclass(frozen=True)
class BuiltModel:
    """The result of a recipe: a graph whose nodes keep their layers' names, and the columns that it reads."""

    recipe: Recipe
    model: onnx.ModelProto
    columns: Columns | None
    agreement: Agreement
    saturates: tuple[Saturation, ...] = ()


ArtifactWriter = Callable[[Path, onnx.ModelProto, BuiltModel], None]
"""Writes an artifact into an empty folder: the graph with short names, and the other files of its kind of artifact."""


def export_state(target: CompressionTarget, state: ModelState) -> onnx.ModelProto:
    """The float32 graph of a model state."""
    return export_onnx(
        state.module,
        target.calibration(state.columns),
        softmax=target.softmax,
        logits=target.logits,
        output=target.output,
    )


def build_model(
    target: CompressionTarget,
    recipe: Recipe,
    exported: onnx.ModelProto,
    columns: Columns | None,
    tolerance: float,
    reference_probs: Array,
) -> BuiltModel:
    """Convert the exported result of the recipe's structural steps to the recipe's number format.

    :param exported: the float32 graph after the structural steps.
    :param columns: the columns that it reads.
    :param tolerance: of the number format: largest mean |p − p_float32|, in 0…1.
    :param reference_probs: probabilities of the target's own graph on its calibration rows, ``[n, K]``.
    :raises ExportError: naming the step and the layer, if it does not apply or its result cannot serve.
    """
    feed = target.calibration(columns)
    model = quantise(number_format(recipe), exported, feed)
    if not isinstance(number_format(recipe), Fp32):
        _require_tolerance(_mean_difference(target, model, exported, feed), tolerance, recipe)
    saturating = () if isinstance(number_format(recipe), Fp32) else find_saturating_layers(model, feed)
    return BuiltModel(recipe, model, columns, _agreement(target, model, feed, reference_probs, recipe), saturating)


def _mean_difference(target: CompressionTarget, model: onnx.ModelProto, exported: onnx.ModelProto, feed: Feed) -> float:
    return float(np.abs(_probabilities(target, model, feed) - _probabilities(target, exported, feed)).mean())


def _probabilities(target: CompressionTarget, model: onnx.ModelProto, feed: Feed) -> Array:
    return target.to_probabilities(run_onnx(model, feed).astype(np.float64))


def _require_tolerance(difference: float, tolerance: float, recipe: Recipe) -> None:
    if not difference <= tolerance:
        raise ExportError(
            f"{recipe_name(recipe)} differs from its float32 form by {difference:.3g} in probability on average "
            f"(`compression.tolerance` allows {tolerance:g})"
        )


def _agreement(
    target: CompressionTarget, model: onnx.ModelProto, feed: Feed, reference_probs: Array, recipe: Recipe
) -> Agreement:
    probs = _probabilities(target, model, feed)
    n_invalid = int((~np.isfinite(probs).all(axis=1)).sum())
    if n_invalid:
        raise ExportError(
            f"{recipe_name(recipe)} gives probabilities that are not finite on {n_invalid} of {len(probs)} rows"
        )
    difference = np.abs(probs - reference_probs)
    return Agreement(rows=len(probs), mean=float(difference.mean()), max=float(difference.max()))
