"""The end of a recipe: a structural form becomes a graph, and the graph takes its number format."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from pydantic import Field

from stillhouse.compress.export import export_onnx, run_onnx
from stillhouse.compress.saturation import saturation
from stillhouse.compress.steps import quantise
from stillhouse.compress.subject import Array, Columns, Feed, Form, Subject
from stillhouse.config import Fp32, Recipe, number_format, recipe_name
from stillhouse.errors import ExportError
from stillhouse.records import Record, Saturation

__all__ = ["Agreement", "Built", "export_form", "finish"]


class Agreement(Record):
    """How far a model's probabilities lie from those of the uncompressed one."""

    rows: int = Field(ge=1, description="calibration rows compared")
    mean: float = Field(ge=0.0, le=1.0, description="mean |p_variant − p_student| over rows and actions")
    max: float = Field(ge=0.0, le=1.0, description="largest |p_variant − p_student|")


@dataclass(frozen=True)
class Built:
    """What a recipe gave: a graph whose nodes keep their layers' names, and the columns that it reads."""

    recipe: Recipe
    model: onnx.ModelProto
    columns: Columns | None
    agreement: Agreement
    saturates: tuple[Saturation, ...] = ()


def export_form(subject: Subject, form: Form) -> onnx.ModelProto:
    """The float32 graph of a structural form."""
    return export_onnx(
        form.module,
        subject.calibration(form.columns),
        softmax=subject.softmax,
        logits=subject.logits,
        output=subject.output,
    )


def finish(
    subject: Subject,
    recipe: Recipe,
    exported: onnx.ModelProto,
    columns: Columns | None,
    tolerance: float,
    wanted: Array,
) -> Built:
    """Put the exported form that the recipe's structural steps made into the recipe's number format.

    :param wanted: what the subject's own graph says about its calibration rows, as probabilities ``[n, K]``.
    :param tolerance: of the number format: largest mean |p − p_float32|, in 0…1.
    :raises ExportError: naming the step and the layer, if it does not apply or its result cannot serve.
    """
    feed = subject.calibration(columns)
    model = quantise(number_format(recipe), exported, feed)
    if not isinstance(number_format(recipe), Fp32):
        _within(_difference(subject, model, exported, feed), tolerance, recipe)
    found = () if isinstance(number_format(recipe), Fp32) else saturation(model, feed)
    return Built(recipe, model, columns, _agreement(subject, model, feed, wanted, recipe), found)


def _difference(subject: Subject, model: onnx.ModelProto, exported: onnx.ModelProto, feed: Feed) -> float:
    return float(np.abs(_said(subject, model, feed) - _said(subject, exported, feed)).mean())


def _said(subject: Subject, model: onnx.ModelProto, feed: Feed) -> Array:
    return subject.probabilities(run_onnx(model, feed).astype(np.float64))


def _within(difference: float, tolerance: float, recipe: Recipe) -> None:
    if not difference <= tolerance:
        raise ExportError(
            f"{recipe_name(recipe)} differs from its float32 form by {difference:.3g} in probability on average "
            f"(`compression.tolerance` allows {tolerance:g})"
        )


def _agreement(subject: Subject, model: onnx.ModelProto, feed: Feed, wanted: Array, recipe: Recipe) -> Agreement:
    found = _said(subject, model, feed)
    strange = int((~np.isfinite(found).all(axis=1)).sum())
    if strange:
        raise ExportError(
            f"{recipe_name(recipe)} gives probabilities that are not finite on {strange} of {len(found)} rows"
        )
    difference = np.abs(found - wanted)
    return Agreement(rows=len(found), mean=float(difference.mean()), max=float(difference.max()))
