"""The section ``compression``: steps, recipes of steps, and the limits of the search over recipes.

The key ``method`` says which step it is. A structural step changes the torch module and is followed by a short
distillation; a recipe ends with at most one number format, which is written into the ONNX file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, field_validator

from stillhouse.config.base import PositiveDuration, Section

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
    "structural_steps",
]

Share = Annotated[float, Field(gt=0, lt=1)]


# --------------------------------------------------------------------------- number formats


class Fp32(Section):
    """The numbers stay float32."""

    method: Literal["fp32"]

    @property
    def short_name(self) -> str:
        """The step in the name of a variant."""
        return self.method


class _Int8(Section):
    per_channel: bool = Field(
        default=True, description="one scale per output channel of a weight matrix; false: one per matrix"
    )
    reduce_range: bool | Literal["auto"] = Field(
        default="auto",
        description="7-bit weights, which cannot saturate; auto: only if 8-bit weights would saturate on this "
        "processor",
    )
    table_bits: Literal[8, 4] = Field(
        default=8, description="bits of an embedding's values; 4: in blocks of 32, by row"
    )
    keep: tuple[str, ...] = Field(default=(), description="layers that stay float32 (mixed precision), by name")

    @property
    def _tables_suffix(self) -> str:
        return "" if self.table_bits == 8 else f"_tables{self.table_bits}"


class DynamicInt8(_Int8):
    """Weights in int8; the ranges of the activations are computed in each call."""

    method: Literal["int8_dynamic"]

    @property
    def short_name(self) -> str:
        """The step in the name of a variant."""
        return f"{self.method}{self._tables_suffix}"


class StaticInt8(_Int8):
    """Weights and activations in int8; the ranges of the activations are calibrated on training rows."""

    method: Literal["int8_static"]
    calibration_rows: int = Field(default=2000, ge=100)
    ranges: Literal["minmax", "percentile"] = Field(
        default="minmax", description="how the range of an activation is estimated from the calibration rows"
    )

    @property
    def short_name(self) -> str:
        """The step in the name of a variant."""
        return f"{self.method}{self._tables_suffix}"


class WeightOnly(Section):
    """Weights in 8 or 4 bits, in blocks with one scale each."""

    method: Literal["weights"]
    bits: Literal[8, 4] = 8
    block: Literal[16, 32, 64, 128] = Field(default=32, description="weights that share one scale")
    compute: Literal["float32", "int8"] = Field(
        default="float32",
        description="number format of the matrix products; int8: activations are quantised row by row",
    )
    keep: tuple[str, ...] = Field(default=(), description="layers that stay float32, by name")

    @property
    def short_name(self) -> str:
        """The step in the name of a variant."""
        return f"{self.method}{self.bits}"


NumberFormat = Fp32 | DynamicInt8 | StaticInt8 | WeightOnly


# --------------------------------------------------------------------------- structural steps


class _Structural(Section):
    """Base of every structural step, which has a key ``ratio``."""

    name_in_variant: ClassVar[str]
    """What the step is called in the name of a variant, before the ratio in percent."""

    recover_epochs: int = Field(default=3, ge=0, le=1000, description="epochs of the distillation that follows")
    recover_rounds: int = Field(default=1, ge=1, le=100, description="how many times that distillation is repeated")

    @property
    def short_name(self) -> str:
        """The step in the name of a variant: ``units50``."""
        percent = f"{self.ratio * 100:g}".replace(".", "_")  # type: ignore[attr-defined]  # of each step
        return f"{self.name_in_variant}{percent}"  # without a point, which MLflow refuses in a model's name


class _ByLayer(_Structural):
    ratio: Share = Field(default=0.5, description="share removed from each layer that `ratios` does not name")
    ratios: dict[str, Annotated[float, Field(ge=0, lt=1)]] = Field(
        default_factory=dict, description="share removed, by name of the layer; 0: the layer stays as it is"
    )


class PruneUnits(_ByLayer):
    """Remove whole hidden units (neurons, channels of convolutions) and the parameters that depend on them."""

    name_in_variant = "units"

    method: Literal["prune_units"]


class PruneHeads(_ByLayer):
    """Remove whole attention heads."""

    name_in_variant = "heads"

    method: Literal["prune_heads"]


class PruneLayers(_Structural):
    """Remove whole residual layers, those whose removal changes the outputs least."""

    name_in_variant = "layers"

    method: Literal["prune_layers"]
    ratio: Share = Field(default=0.5, description="share of the layers that is removed")


class PruneColumns(_Structural):
    """Remove the feature columns that the student uses least; the variant no longer needs them."""

    name_in_variant = "columns"

    method: Literal["prune_columns"]
    ratio: Share = Field(default=0.25, description="share of the columns that is removed")


class LowRank(_ByLayer):
    """Replace large weight matrices by two low-rank factors; ``ratio`` is the share of the parameters saved."""

    name_in_variant = "rank"

    method: Literal["low_rank"]


class Vocabulary(_Structural):
    """Remove the least used tokens from the vocabulary and from the tokeniser in the variant."""

    name_in_variant = "vocabulary"

    method: Literal["vocabulary"]
    ratio: Share = Field(default=0.5, description="share of the tokens that is removed")


class ShortTexts(_Structural):
    """Read fewer tokens of a text: the last ones are cut off."""

    name_in_variant = "length"

    method: Literal["length"]
    ratio: Share = Field(default=0.25, description="share of a text's tokens that is no longer read")


class HashedRows(_Structural):
    """Hash the ids of an embedding table to fewer rows, which several ids share."""

    name_in_variant = "hashed"

    method: Literal["hashed_rows"]
    ratio: Share = Field(default=0.5, description="share of a table's rows that is removed")


StructuralStep = PruneUnits | PruneHeads | PruneLayers | PruneColumns | LowRank | Vocabulary | ShortTexts | HashedRows

Step = Annotated[NumberFormat | StructuralStep, Field(discriminator="method")]


def _to_list(value: Any) -> Any:
    """A recipe of one step, which may be written without brackets, as a list."""
    return [value] if isinstance(value, dict | Section) else value


Recipe = Annotated[tuple[Step, ...], BeforeValidator(_to_list), Field(min_length=1)]
"""Structural steps in their order, then at most one number format; without a format the numbers stay float32."""


def structural_steps(recipe: tuple[Step, ...]) -> tuple[StructuralStep, ...]:
    """The structural steps of a recipe: all but its number format."""
    return tuple(step for step in recipe if not isinstance(step, NumberFormat))


def number_format(recipe: tuple[Step, ...]) -> NumberFormat:
    """The number format of a recipe; float32 if it names none."""
    last_step = recipe[-1]
    return last_step if isinstance(last_step, NumberFormat) else Fp32(method="fp32")


def recipe_name(recipe: tuple[Step, ...]) -> str:
    """The name of the variant in MLflow and in tables, such as ``layers50+units50+int8_static``.

    Settings that are not part of the name add four characters of their hash: ``int8_static-3f1a``.

    >>> from stillhouse.config import DynamicInt8, PruneUnits
    >>> recipe_name((PruneUnits(method="prune_units", ratio=0.5), DynamicInt8(method="int8_dynamic")))
    'units50+int8_dynamic'
    """
    steps, last_format = structural_steps(recipe), number_format(recipe)
    if not steps:
        return _join_names([last_format])
    structure_name = _join_names(steps)
    return structure_name if isinstance(last_format, Fp32) else f"{structure_name}+{_join_names([last_format])}"


_NAMED_SETTINGS = {"method", "ratio", "bits", "table_bits", "recover_epochs"}
"""Settings that are part of a step's name, or do not need to be; all others are hashed into the variant's name."""


def _join_names(steps: Sequence[Step]) -> str:
    name = "+".join(step.short_name for step in steps)
    unnamed = [step.model_dump(mode="json", exclude_defaults=True, exclude=_NAMED_SETTINGS) for step in steps]
    return f"{name}-{hashlib.sha256(json.dumps(unnamed).encode()).hexdigest()[:4]}" if any(unnamed) else name


# --------------------------------------------------------------------------- the search

_SEARCH_STEPS = Literal[
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
    """Limits of the search for better recipes, and the steps that it may combine."""

    time: PositiveDuration = Field(default=timedelta(minutes=5), description="time limit of one refresh")
    candidates: int = Field(default=40, ge=1, le=10_000, description="largest number of candidates in one refresh")
    patience: int | None = Field(
        default=12,
        ge=1,
        description="candidates in a row that add nothing to the Pareto front after which the search ends; null: no "
        "such limit",
    )
    steps: tuple[_SEARCH_STEPS, ...] = Field(
        default=_SEARCH_STEPS.__args__,  # type: ignore[attr-defined]  # of a Literal
        min_length=1,
        description="steps that the search may combine",
    )
    recover_epochs: int = Field(
        default=2, ge=0, le=1000, description="epochs of the distillation after a structural step"
    )
    parallel: int = Field(
        default=1, ge=1, le=64, description="candidates made in parallel, each in a process of its own"
    )


class Compression(Section):
    """The recipes that are always made, and the search for better recipes.

    >>> from stillhouse.config import Compression
    >>> [recipe_name(recipe) for recipe in Compression().recipes]
    ['fp32', 'int8_dynamic', 'int8_static']
    """

    recipes: tuple[Recipe, ...] = Field(
        default=((Fp32(method="fp32"),), (DynamicInt8(method="int8_dynamic"),), (StaticInt8(method="int8_static"),)),
        min_length=1,
        description="recipes that are always made",
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
    def _check_recipes(cls, recipes: tuple[tuple[Step, ...], ...]) -> tuple[tuple[Step, ...], ...]:
        for recipe in recipes:
            formats = [index for index, step in enumerate(recipe) if isinstance(step, NumberFormat)]
            if len(formats) > 1 or (formats and formats[0] != len(recipe) - 1):
                raise ValueError(
                    f"{', '.join(step.method for step in recipe)}: a recipe is any number of structural steps and then "
                    f"at most one number format (fp32, int8_dynamic, int8_static, weights)"
                )
        names = [recipe_name(recipe) for recipe in recipes]
        if duplicates := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"recipes must differ, and {', '.join(map(repr, duplicates))} is given more than once")
        return recipes
