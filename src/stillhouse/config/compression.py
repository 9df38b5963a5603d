"""How a student is made small: steps, recipes of steps, and what a search over recipes may cost.

A step's type is the method. Structural steps change the torch module and are followed by a short distillation; a
recipe ends with one number format, which is written into the ONNX file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from stillhouse.config.base import Length, Section

__all__ = [
    "Compression",
    "DynamicInt8",
    "Fp32",
    "HashedRows",
    "LowRank",
    "NumberFormat",
    "PruneColumns",
    "PruneHeads",
    "PruneLayers",
    "PruneUnits",
    "Recipe",
    "Search",
    "ShortTexts",
    "StaticInt8",
    "Step",
    "StructuralStep",
    "Vocabulary",
    "WeightOnly",
    "number_format",
    "recipe_name",
    "structure",
]

Share = Annotated[float, Field(gt=0, lt=1)]


# --------------------------------------------------------------------------- number formats


class Fp32(Section):
    """The numbers stay what they are."""

    method: Literal["fp32"]


class _Int8(Section):
    per_channel: bool = Field(default=True, description="one scale per output channel of a weight, not one for all")
    reduce_range: bool | Literal["auto"] = Field(
        default="auto",
        description="7-bit weights, which saturate nowhere; auto: where 8-bit ones would saturate without VNNI",
    )
    table_bits: Literal[8, 4] = Field(default=8, description="of an embedding's values; 4: in blocks of 32, by row")
    keep: tuple[str, ...] = Field(default=(), description="layers that stay float32 (mixed precision), by name")


class DynamicInt8(_Int8):
    """Weights in int8 ahead of time, activations' ranges per call."""

    method: Literal["int8_dynamic"]


class StaticInt8(_Int8):
    """Weights and activations in int8, ranges calibrated on training rows."""

    method: Literal["int8_static"]
    calibration_rows: int = Field(default=2000, ge=100)
    ranges: Literal["minmax", "percentile"] = Field(
        default="minmax", description="how an activation's range is taken from what calibration rows show"
    )


class WeightOnly(Section):
    """Weights in 8 or 4 bits, in blocks with a scale each."""

    method: Literal["weights"]
    bits: Literal[8, 4] = 8
    block: Literal[16, 32, 64, 128] = Field(default=32, description="weights that share one scale")
    compute: Literal["float32", "int8"] = Field(
        default="float32", description="number format of the products; int8: activations are rounded row by row"
    )
    keep: tuple[str, ...] = Field(default=(), description="layers that stay float32, by name")


NumberFormat = Fp32 | DynamicInt8 | StaticInt8 | WeightOnly


# --------------------------------------------------------------------------- structural steps


class _Structural(Section):
    recover_epochs: int = Field(default=3, ge=0, le=1000, description="of the distillation that follows")
    recover_rounds: int = Field(default=1, ge=1, le=100, description="how many times that distillation is done")


class _ByLayer(_Structural):
    ratio: Share = Field(default=0.5, description="share that is removed, of each layer that `ratios` does not name")
    ratios: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(
        default_factory=dict, description="share removed by layer; 0: left as it is"
    )


class PruneUnits(_ByLayer):
    """Remove whole hidden units: neurons of linear layers, channels of convolutions, with all that depends on them."""

    method: Literal["prune_units"]


class PruneHeads(_ByLayer):
    """Remove whole attention heads."""

    method: Literal["prune_heads"]


class PruneLayers(_Structural):
    """Remove whole residual layers, those whose absence changes the least."""

    method: Literal["prune_layers"]
    ratio: Share = Field(default=0.5, description="share of the layers that is removed")


class PruneColumns(_Structural):
    """Remove feature columns that the student hardly uses; the artifact no longer asks for them."""

    method: Literal["prune_columns"]
    ratio: Share = Field(default=0.25, description="share of the columns that is removed")


class LowRank(_ByLayer):
    """Replace large weight matrices by two thin factors; ``ratio`` is the share of a matrix's numbers that goes."""

    method: Literal["low_rank"]


class Vocabulary(_Structural):
    """Keep the tokens that the texts of now need; the tokeniser in the artifact shrinks with the table."""

    method: Literal["vocabulary"]
    ratio: Share = Field(default=0.5, description="share of the tokens that is removed")


class ShortTexts(_Structural):
    """Read fewer tokens of a text: what comes last is cut off."""

    method: Literal["length"]
    ratio: Share = Field(default=0.25, description="share of a text's tokens that is no longer read")


class HashedRows(_Structural):
    """Let the rows of an embedding table share fewer rows, by hashing."""

    method: Literal["hashed_rows"]
    ratio: Share = Field(default=0.5, description="share of a table's rows that is removed")


StructuralStep = PruneUnits | PruneHeads | PruneLayers | PruneColumns | LowRank | Vocabulary | ShortTexts | HashedRows

Step = Annotated[NumberFormat | StructuralStep, Field(discriminator="method")]


def _steps(value: Any) -> Any:
    """One step may be written without brackets."""
    return [value] if isinstance(value, dict | Section) else value


Recipe = Annotated[tuple[Step, ...], BeforeValidator(_steps), Field(min_length=1)]
"""Structural steps in their order, then at most one number format; without one the numbers stay float32."""


def structure(recipe: tuple[Step, ...]) -> tuple[StructuralStep, ...]:
    """The recipe without its number format."""
    return tuple(step for step in recipe if not isinstance(step, NumberFormat))


def number_format(recipe: tuple[Step, ...]) -> NumberFormat:
    """The recipe's last step, or float32."""
    last = recipe[-1]
    return last if isinstance(last, NumberFormat) else Fp32(method="fp32")


def recipe_name(recipe: tuple[Step, ...]) -> str:
    """What the variant is called in MLflow and in tables: ``layers50+units50+int8_static``.

    Steps whose settings are not told by that are told apart by four characters of their content: ``int8_static-3f1a``.
    """
    steps, last = structure(recipe), number_format(recipe)
    if not steps:
        return _name([last])
    return _name(steps) if isinstance(last, Fp32) else f"{_name(steps)}+{_name([last])}"


_SHORT = {
    "prune_units": "units",
    "prune_heads": "heads",
    "prune_layers": "layers",
    "prune_columns": "columns",
    "low_rank": "rank",
    "hashed_rows": "hashed",
}
_TOLD = {"method", "ratio", "bits", "table_bits", "recover_epochs"}


def _name(steps: Sequence[Step]) -> str:
    name = "+".join(map(_step_name, steps))
    others = [step.model_dump(mode="json", exclude_defaults=True, exclude=_TOLD) for step in steps]
    return f"{name}-{hashlib.sha256(json.dumps(others).encode()).hexdigest()[:4]}" if any(others) else name


def _step_name(step: Step) -> str:
    if isinstance(step, WeightOnly):
        return f"{step.method}{step.bits}"
    if isinstance(step, _Int8):
        return step.method if step.table_bits == 8 else f"{step.method}_tables{step.table_bits}"
    if isinstance(step, Fp32):
        return step.method
    percent = f"{step.ratio * 100:g}".replace(".", "_")  # MLflow allows no point in a model's name
    return f"{_SHORT.get(step.method, step.method)}{percent}"


# --------------------------------------------------------------------------- the search

_METHODS = Literal[
    "int8_dynamic",
    "int8_static",
    "weights",
    "prune_units",
    "prune_heads",
    "prune_layers",
    "prune_columns",
    "low_rank",
    "vocabulary",
    "length",
    "hashed_rows",
]


class Search(Section):
    """What looking for better recipes may cost, and which steps it may combine."""

    time: Length = Field(default=timedelta(minutes=5), description="of one refresh; the search stops there")
    candidates: int = Field(default=40, ge=1, le=10_000, description="made and measured at most, in one refresh")
    patience: int | None = Field(
        default=12,
        ge=1,
        description="candidates in a row that add nothing to what nothing beats, until the search ends; null: as many "
        "as time and candidates allow",
    )
    steps: tuple[_METHODS, ...] = Field(
        default=_METHODS.__args__,  # type: ignore[attr-defined]  # of a Literal
        min_length=1,
        description="what recipes may be made of",
    )
    recover_epochs: int = Field(default=2, ge=0, le=1000, description="of the distillation after a structural step")
    parallel: int = Field(default=1, ge=1, le=64, description="candidates made at once, each in a process of its own")


class Compression(Section):
    """The recipes that are always made, and the search for better ones."""

    recipes: tuple[Recipe, ...] = Field(
        default=((Fp32(method="fp32"),), (DynamicInt8(method="int8_dynamic"),), (StaticInt8(method="int8_static"),)),
        min_length=1,
        description="always made, whatever the search finds",
    )
    search: Search | None = Field(default=Search(), description="null: no search")
    tolerance: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="largest mean |p_quantised − p_float32| over calibration rows and actions; beyond it a candidate "
        "is refused",
    )

    @field_validator("recipes")
    @classmethod
    def _in_order(cls, recipes: tuple[tuple[Step, ...], ...]) -> tuple[tuple[Step, ...], ...]:
        for recipe in recipes:
            formats = [place for place, step in enumerate(recipe) if isinstance(step, NumberFormat)]
            if len(formats) > 1 or (formats and formats[0] != len(recipe) - 1):
                raise ValueError(
                    f"{', '.join(step.method for step in recipe)}: a recipe is any number of structural steps and then "
                    f"at most one number format (fp32, int8_dynamic, int8_static, weights)"
                )
        names = [recipe_name(recipe) for recipe in recipes]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"recipes must differ, and {', '.join(map(repr, twice))} comes more than once")
        return recipes
