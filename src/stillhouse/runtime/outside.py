"""Values outside the data contract at decision time: decided as any, but told and counted.

The contract keeps such rows out of training; an application would rather have a decision, and know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from stillhouse.config import (
    CategoryColumn,
    NumberColumn,
    Observations,
    Ordered,
    Pairs,
    PresentWhen,
    RangeWhen,
    TextColumn,
    When,
)

__all__ = ["Outside", "OutsideContract"]

_SHOWN = 100  # characters of a value in a message

Row = Sequence[Any]
Broken = Callable[[Row], "str | None"]


class Outside(NamedTuple):
    """One value that the contract does not allow."""

    column: str
    rule: str
    """``missing``, ``value``, ``range``, ``length``, or the type of a rule: ``ordered``, ``pairs``, …"""
    message: str


class OutsideContract:
    """Finds them in rows, about a tenth of a microsecond a column.

    :param columns: in the order of the rows' values: float, str, or None where missing.
    """

    def __init__(self, observations: Observations, columns: Sequence[str]) -> None:
        places = {name: place for place, name in enumerate(columns)}
        self._columns = list(columns)
        self._required: list[int] = []
        self._ranges: list[tuple[int, float, float]] = []
        self._values: list[tuple[int, frozenset[str | None]]] = []
        self._texts: list[tuple[int, float, bool]] = []
        for name, column in observations.columns.items():
            place, required = places[name], column.max_missing == 0
            if isinstance(column, TextColumn):
                if required or column.max_length is not None:
                    self._texts.append((place, math.inf if column.max_length is None else column.max_length, required))
                continue
            if required:
                self._required.append(place)
            if isinstance(column, NumberColumn) and (column.min, column.max) != (None, None):
                self._ranges.append((place, *_bounds(column)))
            elif isinstance(column, CategoryColumn) and column.values is not None:
                self._values.append((place, frozenset([*column.values, None])))
        self._rules = [(*_rule(rule, places), rule.type) for rule in observations.rules]

    def __call__(self, rows: Sequence[Row]) -> dict[int, list[Outside]]:
        """What lies outside, by the row's place; rows that keep the contract are left out."""
        found: dict[int, list[Outside]] = {}
        for number, row in enumerate(rows):
            if self._keeps(row):
                continue
            found[number] = list(self._outside(row))
        return found

    def _keeps(self, row: Row) -> bool:
        """Whether a row has nothing to tell: what nearly all rows are asked, and no more."""
        for place in self._required:
            if row[place] is None:
                return False
        for place, low, high in self._ranges:
            if (value := row[place]) is not None and not low <= value <= high:
                return False
        for place, allowed in self._values:
            if row[place] not in allowed:
                return False
        for place, most, required in self._texts:
            text = row[place]
            if (required and not (text and text.strip())) or (text is not None and len(text) > most):
                return False
        return not any(broken(row) for _, broken, _ in self._rules)

    def _outside(self, row: Row) -> list[Outside]:
        found = list[Outside]()

        def tell(place: int, rule: str, message: str) -> None:
            found.append(Outside(self._columns[place], rule, f"{self._columns[place]} {message}"))

        for place in self._required:
            if row[place] is None:
                tell(place, "missing", "is missing")
        for place, low, high in self._ranges:
            if (value := row[place]) is not None and not low <= value <= high:
                tell(place, "range", f"is {value:.15g}: the contract allows {_between(low, high)}")
        for place, allowed in self._values:
            if row[place] not in allowed:
                tell(place, "value", f"is {_shown(row[place])}: none of the contract's values")
        for place, most, required in self._texts:
            text = row[place]
            if required and not (text and text.strip()):
                tell(place, "missing", "is missing")
            elif text is not None and len(text) > most:
                tell(place, "length", f"has {len(text)} characters: the contract allows {most:.0f}")
        for place, broken, rule in self._rules:
            if message := broken(row):
                tell(place, rule, message)
        return found


def _rule(rule: Ordered | Pairs | RangeWhen | PresentWhen, places: dict[str, int]) -> tuple[int, Broken]:
    """The place of the column that a rule is told of, and what says how a row breaks it."""
    if isinstance(rule, Ordered):
        low, high = places[rule.low], places[rule.high]

        def exceeds(row: Row) -> str | None:
            if row[low] is None or row[high] is None or row[low] <= row[high]:
                return None
            return f"is {row[low]:.15g}, more than {rule.high}, {row[high]:.15g}"

        return low, exceeds
    if isinstance(rule, Pairs):
        first, second = (places[name] for name in rule.columns)
        allowed = frozenset(rule.allowed)

        def strange(row: Row) -> str | None:
            pair = (row[first], row[second])
            if None in pair or pair in allowed:
                return None
            return f"is {_shown(pair[0])} where {rule.columns[1]} is {_shown(pair[1])}: no pair of the contract"

        return first, strange
    place, meets = places[rule.column], _meets(rule.when, places[rule.when.column])
    if isinstance(rule, PresentWhen):
        return (
            place,
            lambda row: (
                f"is missing where {rule.when.column} meets its condition"
                if row[place] is None and meets(row)
                else None
            ),
        )
    least, most = _bounds(rule)

    def outside(row: Row) -> str | None:
        if row[place] is None or least <= row[place] <= most or not meets(row):
            return None
        allowed = _between(least, most)
        return f"is {row[place]:.15g}: where {rule.when.column} meets its condition the contract allows {allowed}"

    return place, outside


def _meets(when: When, place: int) -> Callable[[Row], bool]:
    if when.values is not None:
        values = frozenset(when.values)
        return lambda row: row[place] in values
    low, high = _bounds(when)
    return lambda row: row[place] is not None and low <= row[place] <= high


def _bounds(ranged: NumberColumn | RangeWhen | When) -> tuple[float, float]:
    return (-math.inf if ranged.min is None else ranged.min, math.inf if ranged.max is None else ranged.max)


def _between(low: float, high: float) -> str:
    if math.isinf(low):
        return f"at most {high:.15g}"
    return f"at least {low:.15g}" if math.isinf(high) else f"{low:.15g} to {high:.15g}"


def _shown(value: str) -> str:
    return repr(value if len(value) <= _SHOWN else value[:_SHOWN] + "…")
