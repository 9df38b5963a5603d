"""The sections ``observations`` (with the data contract: columns and rules) and ``outcomes``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, model_validator

from stillhouse.config.base import Duration, PositiveDuration, Section, Target
from stillhouse.config.explain import as_written, find_repeated, suggest

__all__ = [
    "TEXT_MEASURES",
    "CategoryColumn",
    "Column",
    "NumberColumn",
    "Observations",
    "Ordered",
    "OutcomeSettings",
    "Pairs",
    "PresentWhen",
    "RangeWhen",
    "Rule",
    "TextColumn",
    "Volume",
    "When",
    "column_error",
]


class NumberColumn(Section):
    """A numeric feature."""

    type: Literal["number"]
    min: float | None = Field(default=None, description="smallest allowed value, in the column's unit")
    max: float | None = Field(default=None, description="largest allowed value, in the column's unit")
    max_missing: float = Field(default=0.0, ge=0, le=1, description="largest share of a window without a value")
    drift: bool = Field(
        default=True,
        description="false: drift of the column is not measured, as for a calendar column that moves by itself",
    )

    @model_validator(mode="after")
    def _check_order(self) -> NumberColumn:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}")
        return self


class CategoryColumn(Section):
    """A feature with a finite set of values."""

    type: Literal["category"]
    values: tuple[str, ...] | None = Field(default=None, min_length=1, description="allowed values; absent: any")
    max_unknown: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="largest share of a window outside `values`; above it the window is refused",
    )
    max_missing: float = Field(default=0.0, ge=0, le=1, description="largest share of a window without a value")
    drift: bool = Field(default=True, description="false: drift of the column is not measured")

    @model_validator(mode="after")
    def _check_max_unknown(self) -> CategoryColumn:
        if self.max_unknown and self.values is None:
            raise ValueError("max_unknown is the share of rows with a value outside `values`, and `values` is not set")
        return self

    @model_validator(mode="after")
    def _check_distinct(self) -> CategoryColumn:
        if duplicates := find_repeated(self.values or ()):
            raise ValueError(f"values names {', '.join(map(repr, duplicates))} more than once")
        return self


class TextColumn(Section):
    """A feature of free text; a text without a visible character counts as missing."""

    type: Literal["text"]
    max_length: int | None = Field(default=None, ge=1, description="longest allowed text (characters); absent: any")
    max_missing: float = Field(
        default=0.0, ge=0, le=1, description="largest share of a window with a missing or empty text"
    )
    drift: bool = Field(default=True, description="false: drift of the column is not measured")


TEXT_MEASURES = ("characters", "words", "new words")
"""Measures of a text whose drift is measured, each as a number column: for a text column ``message``,
``message: characters``, ``message: words`` and ``message: new words``."""

Column = Annotated[NumberColumn | CategoryColumn | TextColumn, Field(discriminator="type")]


class When(Section):
    """A condition on one column, for a rule that applies to some rows only."""

    column: str
    values: tuple[str, ...] | None = Field(default=None, min_length=1, description="the category is one of these")
    min: float | None = Field(default=None, description="the number is at least this")
    max: float | None = Field(default=None, description="the number is at most this")

    @model_validator(mode="after")
    def _check_limits(self) -> When:
        if self.values is not None and (self.min is not None or self.max is not None):
            raise ValueError("`values` are for a category, `min` and `max` for a number: give one or the other")
        if self.values is None:
            _check_range(self.min, self.max, error="sets no condition: give `values` of a category, or `min` or `max`")
        if duplicates := find_repeated(self.values or ()):
            raise ValueError(f"values: names {', '.join(map(repr, duplicates))} more than once")
        return self


class Ordered(Section):
    """One number never exceeds another."""

    type: Literal["ordered"]
    low: str
    high: str
    max_broken: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="largest share of a window that breaks the rule; above it the window is refused",
    )

    @model_validator(mode="after")
    def _check_two_columns(self) -> Ordered:
        if self.low == self.high:
            raise ValueError(f"high: must be another column than `low`, {self.low!r}")
        return self


class Pairs(Section):
    """Two categories occur only in these combinations."""

    type: Literal["pairs"]
    columns: tuple[str, str]
    allowed: tuple[tuple[str, str], ...] = Field(min_length=1)
    max_broken: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="largest share of a window that breaks the rule; above it the window is refused",
    )

    @model_validator(mode="after")
    def _check_two_columns(self) -> Pairs:
        if self.columns[0] == self.columns[1]:
            raise ValueError(f"columns: must be two different columns, and {self.columns[0]!r} is given twice")
        if duplicates := find_repeated(self.allowed):
            raise ValueError(f"allowed: {', '.join(str(list(pair)) for pair in duplicates)} is given more than once")
        return self


class RangeWhen(Section):
    """A number has a narrower range on rows that meet a condition."""

    type: Literal["range_when"]
    column: str
    min: float | None = Field(default=None, description="smallest value allowed on those rows")
    max: float | None = Field(default=None, description="largest value allowed on those rows")
    when: When
    max_broken: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="largest share of a window that breaks the rule; above it the window is refused",
    )

    @model_validator(mode="after")
    def _check_limits(self) -> RangeWhen:
        _check_range(self.min, self.max, error="can never be broken: give `min`, `max` or both")
        return self


class PresentWhen(Section):
    """A value may not be missing on rows that meet a condition."""

    type: Literal["present_when"]
    column: str
    when: When
    max_broken: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="largest share of a window that breaks the rule; above it the window is refused",
    )


Rule = Annotated[Ordered | Pairs | RangeWhen | PresentWhen, Field(discriminator="type")]


class Volume(Section):
    """How many rows per day a window may have, on average over its length."""

    min_per_day: float | None = Field(default=None, ge=0, description="smallest mean number of rows per day")
    max_per_day: float | None = Field(default=None, gt=0, description="largest mean number of rows per day")

    @model_validator(mode="after")
    def _check_limits(self) -> Volume:
        if not self.min_per_day and self.max_per_day is None:
            raise ValueError("can never be broken: give `min_per_day` above 0, `max_per_day` or both")
        if self.max_per_day is not None and (self.min_per_day or 0) > self.max_per_day:
            raise ValueError(
                f"min_per_day {as_written(self.min_per_day)} is larger than max_per_day {as_written(self.max_per_day)}"
            )
        return self


class Observations(Section):
    """What the agent observes, and the data contract that each window must keep.

    >>> from stillhouse.config import Observations
    >>> columns = {"temp": {"type": "number", "max": 50}, "origin": {"type": "category"}}
    >>> section = {"source": "feed:rows", "since": "2024-01-01T00:00:00Z", "columns": columns}
    >>> observations = Observations.model_validate(section)
    >>> observations.numbers, observations.categories
    (('temp',), ('origin',))
    """

    source: Target | None = Field(
        default=None,
        description="'module:function', called as (start, end); returns rows with observation_id, observed_at and the "
        "columns; null: rows are those of the knowledge base, where the application or `stillhouse import` puts them",
    )
    columns: dict[str, Column] = Field(min_length=1, description="the features, and what the contract allows in each")
    since: AwareDatetime | None = Field(
        default=None,
        description="first moment for which the source has rows; null, without a source: the oldest row of the "
        "knowledge base",
    )
    min_rows: int = Field(default=100, ge=1, description="fewest rows, or outcomes, that a window is judged on")
    max_bad_rows: float = Field(
        default=0.05, ge=0, le=1, description="largest share of rows in quarantine; above it the window is refused"
    )
    freshness: PositiveDuration | None = Field(
        default=None, description="largest age of the newest row at the end of a window; above it the window is refused"
    )
    volume: Volume | None = Field(default=None, description="expected rows per day; outside it the window is refused")
    unique: tuple[tuple[str, ...], ...] = Field(
        default=(), description="combinations of columns whose values together differ from row to row of a window"
    )
    rules: tuple[Rule, ...] = Field(default=(), description="constraints between columns")

    @model_validator(mode="after")
    def _check_reserved_names(self) -> Observations:
        reserved = {"observation_id", "observed_at", "content_key"} & self.columns.keys()
        if reserved:
            raise ValueError(f"column names {sorted(reserved)} are reserved for the knowledge base")
        measures = {f"{name}: {measure}" for name in self.texts for measure in TEXT_MEASURES}
        if reserved := measures & self.columns.keys():
            raise ValueError(f"column names {sorted(reserved)} are reserved for the measures of a text")
        return self

    @model_validator(mode="after")
    def _check_rules(self) -> Observations:
        errors = list(_unique_errors(self))
        for index, rule in enumerate(self.rules):
            if rule in self.rules[:index]:
                errors.append(f"rules.{index}: is the same as rules.{self.rules.index(rule)}")
            errors += [f"rules.{index}{error}" for error in _rule_errors(rule, self.columns)]
        if errors:
            raise ValueError("\n".join(errors))
        return self

    @property
    def numbers(self) -> tuple[str, ...]:
        """Names of the numeric columns, in order."""
        return tuple(name for name, column in self.columns.items() if column.type == "number")

    @property
    def categories(self) -> tuple[str, ...]:
        """Names of the categorical columns, in order."""
        return tuple(name for name, column in self.columns.items() if column.type == "category")

    @property
    def texts(self) -> tuple[str, ...]:
        """Names of the text columns, in order."""
        return tuple(name for name, column in self.columns.items() if column.type == "text")


def _check_range(low: float | None, high: float | None, *, error: str) -> None:
    """:raises ValueError: with the text ``error`` without any limit, or if the limits are in the wrong order."""
    if low is None and high is None:
        raise ValueError(error)
    if low is not None and high is not None and low > high:
        raise ValueError(f"min {as_written(low)} is larger than max {as_written(high)}")


def _unique_errors(observations: Observations) -> Iterator[str]:
    """``key: error`` for each wrong list in ``unique``; keys are relative to ``observations``."""
    allowed = [*observations.columns, "observed_at"]
    for index, names in enumerate(observations.unique):
        key = f"unique.{index}"
        if not names:
            yield f"{key}: must name at least one column"
        elif "observation_id" in names:
            yield f"{key}: observation_id is unique anyway; leave this list out"
        elif unknown := [name for name in names if name not in allowed]:
            yield f"{key}: no column is called {unknown[0]!r}; {suggest(unknown[0], allowed, 'there are')}"
        elif duplicates := find_repeated(names):
            yield f"{key}: names {', '.join(map(repr, duplicates))} more than once"
        else:
            for other, shorter in enumerate(observations.unique):
                if shorter and (set(shorter) < set(names) or (set(shorter) == set(names) and other < index)):
                    yield f"{key}: follows from unique.{other}; leave it out"


def _rule_errors(rule: Rule, columns: Mapping[str, Column]) -> Iterator[str]:
    """``.key: error`` for one rule: columns that do not exist, rules that no row can break or that no row can keep."""
    column_errors = [
        f".{key}: {error}" for key, name, kind in _columns_of(rule) if (error := column_error(name, kind, columns))
    ]
    if column_errors:
        yield from column_errors
        return
    if isinstance(rule, Ordered):
        (low_min, low_max), (high_min, high_max) = _bounds(columns[rule.low]), _bounds(columns[rule.high])
        if low_max <= high_min:
            yield f": can never be broken: {rule.low} is at most {low_max:g}, {rule.high} at least {high_min:g}"
        if low_min > high_max:
            yield f": is broken by every row: {rule.low} is at least {low_min:g}, {rule.high} at most {high_max:g}"
    elif isinstance(rule, Pairs):
        for side, name in enumerate(rule.columns):
            yield from _unknown_values(".allowed", [pair[side] for pair in rule.allowed], name, columns)
        first, second = (getattr(columns[name], "values", None) for name in rule.columns)
        if first and second and set(rule.allowed) >= {(a, b) for a in first for b in second}:
            yield f".allowed: can never be broken: it has every pair of {rule.columns[0]} and {rule.columns[1]}"
    else:
        yield from _conditional_rule_errors(rule, columns)


def _conditional_rule_errors(rule: RangeWhen | PresentWhen, columns: Mapping[str, Column]) -> Iterator[str]:
    """The same for a rule with a condition."""
    column, when = columns[rule.column], rule.when
    if rule.column == when.column:
        yield ".when.column: must be another column than `column`"
    if isinstance(rule, RangeWhen):
        (low, high), (column_min, column_max) = _bounds(rule), _bounds(column)
        column_range = f"{rule.column} is between {column_min:g} and {column_max:g} on all rows"
        if low <= column_min and column_max <= high:
            yield f": can never be broken: {column_range}"
        if low > column_max or high < column_min:
            yield f": is broken by every row that meets the condition: {column_range}"
    elif not column.max_missing:
        yield f".column: can never be broken: {rule.column} may be missing on no row (max_missing 0)"
    yield from _unknown_values(".when.values", when.values or (), when.column, columns)
    (low, high), (column_min, column_max) = _bounds(when), _bounds(columns[when.column])
    if low > column_max or high < column_min:
        yield f".when: is never met: {when.column} is between {column_min:g} and {column_max:g} on all rows"


def _columns_of(rule: Rule) -> list[tuple[str, str, str | None]]:
    """Key, name and required type (None: any) of each column that a rule names."""
    if isinstance(rule, Ordered):
        return [("low", rule.low, "number"), ("high", rule.high, "number")]
    if isinstance(rule, Pairs):
        return [("columns", name, "category") for name in rule.columns]
    condition = ("when.column", rule.when.column, "category" if rule.when.values else "number")
    return [("column", rule.column, "number" if isinstance(rule, RangeWhen) else None), condition]


def column_error(name: str, kind: str | None, columns: Mapping[str, Column]) -> str | None:
    """Why ``name`` is not a column of type ``kind`` (None: any type); None if it is one."""
    if name not in columns:
        return f"no column is called {name!r}; {suggest(name, columns, 'there are')}"
    if kind and columns[name].type != kind:
        return f"{name!r} is a {columns[name].type} column; it must be a {kind}"
    return None


def _unknown_values(key: str, values: Iterable[str], name: str, columns: Mapping[str, Column]) -> Iterator[str]:
    """``key: error`` for each of the ``values`` that the column ``name`` does not allow."""
    allowed = getattr(columns[name], "values", None)
    for value in dict.fromkeys(values):
        if allowed is not None and value not in allowed:
            yield f"{key}: {value!r} is not among the values of {name}; {suggest(value, allowed, 'those are')}"


def _bounds(limits: Column | RangeWhen | When) -> tuple[float, float]:
    """Smallest and largest value that a column, a rule or a condition allows; ±∞ without a limit."""
    low, high = getattr(limits, "min", None), getattr(limits, "max", None)
    return (-math.inf if low is None else low, math.inf if high is None else high)


class OutcomeSettings(Section):
    """Where the true actions come from, which become known later."""

    source: Target = Field(
        description="'module:function', called as (start, end); returns observation_id, observed_at, known_at, action"
    )
    delay: Duration = Field(description="time until an outcome is known")
    depend_on_decision: bool = Field(
        default=False,
        description="whether the agent's decision changes which outcomes are seen; then the pool may veto a promotion, "
        "and promotes nobody by itself",
    )
