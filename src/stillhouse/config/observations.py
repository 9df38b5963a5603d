"""What the agent perceives, and the contract that it keeps; what turned out to be true, later."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Literal

from pydantic import AwareDatetime, Field, model_validator

from stillhouse.config.base import Duration, Length, Section, Target
from stillhouse.config.wording import as_written, nearest, repeated

__all__ = [
    "TEXT_MEASURES",
    "CategoryColumn",
    "Column",
    "NumberColumn",
    "Observations",
    "Ordered",
    "Outcomes",
    "Pairs",
    "PresentWhen",
    "RangeWhen",
    "Rule",
    "TextColumn",
    "Volume",
    "When",
    "wrong_column",
]


class NumberColumn(Section):
    """A numeric feature."""

    type: Literal["number"]
    min: float | None = Field(default=None, description="smallest allowed value, in the column's unit")
    max: float | None = Field(default=None, description="largest allowed value, in the column's unit")
    max_missing: float = Field(default=0.0, ge=0, le=1, description="share of a window that may be missing")
    drift: bool = Field(default=True, description="false: not watched (a calendar column moves by itself)")

    @model_validator(mode="after")
    def _ordered(self) -> NumberColumn:
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min} is larger than max {self.max}")
        return self


class CategoryColumn(Section):
    """A feature with a finite set of values."""

    type: Literal["category"]
    values: tuple[str, ...] | None = Field(default=None, min_length=1, description="allowed values; absent: any")
    max_unknown: float = Field(
        default=0.0, ge=0, le=1, description="share of a window outside `values`; above it the window is refused"
    )
    max_missing: float = Field(default=0.0, ge=0, le=1, description="share of a window that may be missing")
    drift: bool = Field(default=True, description="false: not watched")

    @model_validator(mode="after")
    def _unknown_to_what(self) -> CategoryColumn:
        if self.max_unknown and self.values is None:
            raise ValueError("max_unknown says how many rows may lie outside `values`, and there are no `values`")
        return self

    @model_validator(mode="after")
    def _distinct(self) -> CategoryColumn:
        if twice := repeated(self.values or ()):
            raise ValueError(f"values names {', '.join(map(repr, twice))} more than once")
        return self


class TextColumn(Section):
    """Words as somebody wrote them; a text without any visible character is missing."""

    type: Literal["text"]
    max_length: int | None = Field(default=None, ge=1, description="longest allowed text (characters); absent: any")
    max_missing: float = Field(default=0.0, ge=0, le=1, description="share of a window that may be missing or empty")
    drift: bool = Field(default=True, description="false: neither its length nor its words are watched")


TEXT_MEASURES = ("characters", "words", "new words")
"""What of a text is watched, each as a number of its own: ``said: words``."""

Column = Annotated[NumberColumn | CategoryColumn | TextColumn, Field(discriminator="type")]


class When(Section):
    """A condition on one column, for a rule that holds on some rows only."""

    column: str
    values: tuple[str, ...] | None = Field(default=None, min_length=1, description="a category is one of these")
    min: float | None = Field(default=None, description="a number is at least this")
    max: float | None = Field(default=None, description="a number is at most this")

    @model_validator(mode="after")
    def _says_something(self) -> When:
        if self.values is not None and (self.min is not None or self.max is not None):
            raise ValueError("`values` are for a category, `min` and `max` for a number: give one or the other")
        if self.values is None:
            _check_range(self.min, self.max, nothing="says nothing: give `values` of a category, or `min` or `max`")
        if twice := repeated(self.values or ()):
            raise ValueError(f"values: names {', '.join(map(repr, twice))} more than once")
        return self


class Ordered(Section):
    """One number never exceeds another."""

    type: Literal["ordered"]
    low: str
    high: str
    max_broken: float = Field(default=0.0, ge=0, le=1, description="share of a window; above it the window is refused")

    @model_validator(mode="after")
    def _two_columns(self) -> Ordered:
        if self.low == self.high:
            raise ValueError(f"high: must be another column than `low`, {self.low!r}")
        return self


class Pairs(Section):
    """Two categories come only in these combinations."""

    type: Literal["pairs"]
    columns: tuple[str, str]
    allowed: tuple[tuple[str, str], ...] = Field(min_length=1)
    max_broken: float = Field(default=0.0, ge=0, le=1, description="share of a window; above it the window is refused")

    @model_validator(mode="after")
    def _two_columns(self) -> Pairs:
        if self.columns[0] == self.columns[1]:
            raise ValueError(f"columns: must be two different ones, and {self.columns[0]!r} comes twice")
        if twice := repeated(self.allowed):
            raise ValueError(f"allowed: {', '.join(str(list(pair)) for pair in twice)} comes more than once")
        return self


class RangeWhen(Section):
    """A narrower range of a number on rows that meet a condition."""

    type: Literal["range_when"]
    column: str
    min: float | None = Field(default=None, description="smallest value allowed on those rows")
    max: float | None = Field(default=None, description="largest value allowed on those rows")
    when: When
    max_broken: float = Field(default=0.0, ge=0, le=1, description="share of a window; above it the window is refused")

    @model_validator(mode="after")
    def _says_something(self) -> RangeWhen:
        _check_range(self.min, self.max, nothing="can never be broken: give `min`, `max` or both")
        return self


class PresentWhen(Section):
    """A value may not be missing on rows that meet a condition."""

    type: Literal["present_when"]
    column: str
    when: When
    max_broken: float = Field(default=0.0, ge=0, le=1, description="share of a window; above it the window is refused")


Rule = Annotated[Ordered | Pairs | RangeWhen | PresentWhen, Field(discriminator="type")]


class Volume(Section):
    """How many rows a day of a window may hold, on average."""

    min_per_day: float | None = Field(default=None, ge=0, description="rows, on average over the window's length")
    max_per_day: float | None = Field(default=None, gt=0, description="the same")

    @model_validator(mode="after")
    def _says_something(self) -> Volume:
        if not self.min_per_day and self.max_per_day is None:
            raise ValueError("can never be broken: give `min_per_day` above 0, `max_per_day` or both")
        if self.max_per_day is not None and (self.min_per_day or 0) > self.max_per_day:
            raise ValueError(
                f"min_per_day {as_written(self.min_per_day)} is larger than max_per_day {as_written(self.max_per_day)}"
            )
        return self


class Observations(Section):
    """What the agent perceives, and the contract that it must keep."""

    source: Target = Field(description="'module:function' (start, end) → rows with observation_id, observed_at")
    columns: dict[str, Column] = Field(min_length=1, description="features, in the order the student reads them")
    since: AwareDatetime = Field(description="a moment from which the source has rows; where a history begins")
    min_rows: int = Field(default=100, ge=1, description="a window with fewer rows is not judged")
    max_bad_rows: float = Field(
        default=0.05, ge=0, le=1, description="share of rows in quarantine above which the window is refused"
    )
    freshness: Length | None = Field(
        default=None, description="the newest row is at most this old at a window's end; else the window is refused"
    )
    volume: Volume | None = Field(default=None, description="rows per day; outside it the window is refused")
    unique: tuple[tuple[str, ...], ...] = Field(
        default=(), description="lists of columns whose values together differ from row to row of a window"
    )
    rules: tuple[Rule, ...] = Field(default=(), description="what columns promise about one another")

    @model_validator(mode="after")
    def _no_reserved_names(self) -> Observations:
        reserved = {"observation_id", "observed_at", "content_key"} & self.columns.keys()
        if reserved:
            raise ValueError(f"column names {sorted(reserved)} are reserved for the knowledge base")
        measures = {f"{name}: {measure}" for name in self.texts for measure in TEXT_MEASURES}
        if reserved := measures & self.columns.keys():
            raise ValueError(f"column names {sorted(reserved)} are reserved for what is watched of a text")
        return self

    @model_validator(mode="after")
    def _promises_that_can_be_kept_and_broken(self) -> Observations:
        mistakes = [*_mistakes_of_unique(self)]
        for place, rule in enumerate(self.rules):
            if rule in self.rules[:place]:
                mistakes.append(f"rules.{place}: is the same as rules.{self.rules.index(rule)}")
            mistakes += [f"rules.{place}{mistake}" for mistake in _mistakes_of_rule(rule, self.columns)]
        if mistakes:
            raise ValueError("\n".join(mistakes))
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


def _check_range(low: float | None, high: float | None, *, nothing: str) -> None:
    if low is None and high is None:
        raise ValueError(nothing)
    if low is not None and high is not None and low > high:
        raise ValueError(f"min {as_written(low)} is larger than max {as_written(high)}")


def _mistakes_of_unique(observations: Observations) -> Iterator[str]:
    """``key: what is wrong`` of each list in ``unique``; keys as from ``observations`` on."""
    known = [*observations.columns, "observed_at"]
    for place, names in enumerate(observations.unique):
        key = f"unique.{place}"
        if not names:
            yield f"{key}: must name at least one column"
        elif "observation_id" in names:
            yield f"{key}: observation_id is unique by itself; leave this list out"
        elif strange := [name for name in names if name not in known]:
            yield f"{key}: no column is called {strange[0]!r}; {nearest(strange[0], known, 'there are')}"
        elif twice := repeated(names):
            yield f"{key}: names {', '.join(map(repr, twice))} more than once"
        else:
            for other, fewer in enumerate(observations.unique):
                if fewer and (set(fewer) < set(names) or (set(fewer) == set(names) and other < place)):
                    yield f"{key}: follows from unique.{other}; leave it out"


def _mistakes_of_rule(rule: Rule, columns: Mapping[str, Column]) -> Iterator[str]:
    """``.key: what is wrong`` of one rule: columns that are not there, what can never be broken, what never holds."""
    absent = [
        f".{key}: {wrong}" for key, name, kind in _columns_of(rule) if (wrong := wrong_column(name, kind, columns))
    ]
    if absent:
        yield from absent
        return
    if isinstance(rule, Ordered):
        (least, most), (floor, ceiling) = _bounds(columns[rule.low]), _bounds(columns[rule.high])
        if most <= floor:
            yield f": can never be broken: {rule.low} is at most {most:g}, {rule.high} at least {floor:g}"
        if least > ceiling:
            yield f": can never hold: {rule.low} is at least {least:g}, {rule.high} at most {ceiling:g}"
    elif isinstance(rule, Pairs):
        for side, name in enumerate(rule.columns):
            yield from _strange_values(".allowed", [pair[side] for pair in rule.allowed], name, columns)
        first, second = (getattr(columns[name], "values", None) for name in rule.columns)
        if first and second and set(rule.allowed) >= {(a, b) for a in first for b in second}:
            yield f".allowed: can never be broken: it has every pair of {rule.columns[0]} and {rule.columns[1]}"
    else:
        yield from _mistakes_where(rule, columns)


def _mistakes_where(rule: RangeWhen | PresentWhen, columns: Mapping[str, Column]) -> Iterator[str]:
    """The same for a rule with a condition."""
    column, when = columns[rule.column], rule.when
    if rule.column == when.column:
        yield ".when.column: must be another column than `column`"
    if isinstance(rule, RangeWhen):
        (low, high), (least, most) = _bounds(rule), _bounds(column)
        if low <= least and most <= high:
            yield f": can never be broken: {rule.column} is between {least:g} and {most:g} on all rows"
        if low > most or high < least:
            yield f": can never hold: {rule.column} is between {least:g} and {most:g} on all rows"
    elif not column.max_missing:
        yield f".column: can never be broken: {rule.column} may be missing on no row (max_missing 0)"
    yield from _strange_values(".when.values", when.values or (), when.column, columns)
    (low, high), (least, most) = _bounds(when), _bounds(columns[when.column])
    if low > most or high < least:
        yield f".when: is never met: {when.column} is between {least:g} and {most:g} on all rows"


def _columns_of(rule: Rule) -> list[tuple[str, str, str | None]]:
    """Key, name and wanted type (None: any) of each column that a rule speaks of."""
    if isinstance(rule, Ordered):
        return [("low", rule.low, "number"), ("high", rule.high, "number")]
    if isinstance(rule, Pairs):
        return [("columns", name, "category") for name in rule.columns]
    condition = ("when.column", rule.when.column, "category" if rule.when.values else "number")
    return [("column", rule.column, "number" if isinstance(rule, RangeWhen) else None), condition]


def wrong_column(name: str, kind: str | None, columns: Mapping[str, Column]) -> str | None:
    if name not in columns:
        return f"no column is called {name!r}; {nearest(name, columns, 'there are')}"
    if kind and columns[name].type != kind:
        return f"{name!r} is a {columns[name].type} column; it must be a {kind}"
    return None


def _strange_values(key: str, given: Iterable[str], name: str, columns: Mapping[str, Column]) -> Iterator[str]:
    known = getattr(columns[name], "values", None)
    for value in dict.fromkeys(given):
        if known is not None and value not in known:
            yield f"{key}: {value!r} is not among the values of {name}; {nearest(value, known, 'those are')}"


def _bounds(ranged: Column | RangeWhen | When) -> tuple[float, float]:
    """Smallest and largest value that a column or condition admits."""
    low, high = getattr(ranged, "min", None), getattr(ranged, "max", None)
    return (-math.inf if low is None else low, math.inf if high is None else high)


class Outcomes(Section):
    """What turned out to be true, later."""

    source: Target = Field(description="'module:function' (start, end) → observation_id, observed_at, known_at, action")
    delay: Duration = Field(description="time until an outcome is known")
