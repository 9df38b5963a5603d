"""Warnings about values outside the data contract at decision time: such an observation is decided, and reported.

The data contract keeps such rows out of training; an application needs a decision all the same.
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

__all__ = ["ContractChecker", "ContractWarning"]

_MAX_VALUE_LENGTH = 100  # characters of a value in a message

Row = Sequence[Any]
RuleCheck = Callable[[Row], "str | None"]


class ContractWarning(NamedTuple):
    """One value that the data contract does not allow."""

    column: str
    rule: str
    """``missing``, ``value``, ``range``, ``length``, or the type of a rule: ``ordered``, ``pairs``, …"""
    message: str


class ContractChecker:
    """Checks rows against the data contract; about 0.1 µs per column.

    >>> observations = Observations.model_validate(
    ...     {
    ...         "source": "module:function",
    ...         "since": "2024-01-01T00:00:00Z",
    ...         "columns": {"temp": {"type": "number", "min": -10, "max": 40}},
    ...     }
    ... )
    >>> ContractChecker(observations, ["temp"]).check([(20.0,), (41.0,)])[1][0].message
    'temp is 41: the contract allows -10 to 40'

    :param columns: in the order of the rows' values: float, str, or None if missing.
    """

    def __init__(self, observations: Observations, columns: Sequence[str]) -> None:
        positions = {name: position for position, name in enumerate(columns)}
        self._columns = list(columns)
        self._required: list[int] = []
        self._ranges: list[tuple[int, float, float]] = []
        self._values: list[tuple[int, frozenset[str | None]]] = []
        self._texts: list[tuple[int, float, bool]] = []
        for name, column in observations.columns.items():
            position, required = positions[name], column.max_missing == 0
            if isinstance(column, TextColumn):
                if required or column.max_length is not None:
                    max_length = math.inf if column.max_length is None else column.max_length
                    self._texts.append((position, max_length, required))
                continue
            if required:
                self._required.append(position)
            if isinstance(column, NumberColumn) and (column.min, column.max) != (None, None):
                self._ranges.append((position, *_bounds(column)))
            elif isinstance(column, CategoryColumn) and column.values is not None:
                self._values.append((position, frozenset([*column.values, None])))
        self._rules = [(*_rule_check(rule, positions), rule.type) for rule in observations.rules]

    def check(self, rows: Sequence[Row]) -> dict[int, list[ContractWarning]]:
        """The warnings by row index; rows without warnings are left out."""
        warnings: dict[int, list[ContractWarning]] = {}
        for index, row in enumerate(rows):
            if self._is_valid(row):
                continue
            warnings[index] = list(self._warnings(row))
        return warnings

    def _is_valid(self, row: Row) -> bool:
        """Whether a row has no warnings: the fast path, without messages."""
        for position in self._required:
            if row[position] is None:
                return False
        for position, low, high in self._ranges:
            if (value := row[position]) is not None and not low <= value <= high:
                return False
        for position, allowed in self._values:
            if row[position] not in allowed:
                return False
        for position, max_length, required in self._texts:
            text = row[position]
            if (required and not (text and text.strip())) or (text is not None and len(text) > max_length):
                return False
        return not any(check(row) for _, check, _ in self._rules)

    def _warnings(self, row: Row) -> list[ContractWarning]:
        warnings = list[ContractWarning]()

        def warn(position: int, rule: str, message: str) -> None:
            column = self._columns[position]
            warnings.append(ContractWarning(column, rule, f"{column} {message}"))

        for position in self._required:
            if row[position] is None:
                warn(position, "missing", "is missing")
        for position, low, high in self._ranges:
            if (value := row[position]) is not None and not low <= value <= high:
                warn(position, "range", f"is {value:.15g}: the contract allows {_format_range(low, high)}")
        for position, allowed in self._values:
            if row[position] not in allowed:
                warn(position, "value", f"is {_shorten(row[position])}: none of the contract's values")
        for position, max_length, required in self._texts:
            text = row[position]
            if required and not (text and text.strip()):
                warn(position, "missing", "is missing")
            elif text is not None and len(text) > max_length:
                warn(position, "length", f"has {len(text)} characters: the contract allows {max_length:.0f}")
        for position, check, rule in self._rules:
            if message := check(row):
                warn(position, rule, message)
        return warnings


def _rule_check(rule: Ordered | Pairs | RangeWhen | PresentWhen, positions: dict[str, int]) -> tuple[int, RuleCheck]:
    """The position of the column that a rule's warnings name, and a function that says how a row breaks the rule."""
    if isinstance(rule, Ordered):
        low, high = positions[rule.low], positions[rule.high]

        def check_order(row: Row) -> str | None:
            if row[low] is None or row[high] is None or row[low] <= row[high]:
                return None
            return f"is {row[low]:.15g}, more than {rule.high}, {row[high]:.15g}"

        return low, check_order
    if isinstance(rule, Pairs):
        first, second = (positions[name] for name in rule.columns)
        allowed = frozenset(rule.allowed)

        def check_pair(row: Row) -> str | None:
            pair = (row[first], row[second])
            if None in pair or pair in allowed:
                return None
            return f"is {_shorten(pair[0])} where {rule.columns[1]} is {_shorten(pair[1])}: no pair of the contract"

        return first, check_pair
    position, condition_holds = positions[rule.column], _condition(rule.when, positions[rule.when.column])
    if isinstance(rule, PresentWhen):
        return (
            position,
            lambda row: (
                f"is missing where {rule.when.column} meets its condition"
                if row[position] is None and condition_holds(row)
                else None
            ),
        )
    least, most = _bounds(rule)

    def check_range(row: Row) -> str | None:
        if row[position] is None or least <= row[position] <= most or not condition_holds(row):
            return None
        return (
            f"is {row[position]:.15g}: where {rule.when.column} meets its condition the contract allows "
            f"{_format_range(least, most)}"
        )

    return position, check_range


def _condition(when: When, position: int) -> Callable[[Row], bool]:
    if when.values is not None:
        values = frozenset(when.values)
        return lambda row: row[position] in values
    low, high = _bounds(when)
    return lambda row: row[position] is not None and low <= row[position] <= high


def _bounds(ranged: NumberColumn | RangeWhen | When) -> tuple[float, float]:
    return (-math.inf if ranged.min is None else ranged.min, math.inf if ranged.max is None else ranged.max)


def _format_range(low: float, high: float) -> str:
    if math.isinf(low):
        return f"at most {high:.15g}"
    return f"at least {low:.15g}" if math.isinf(high) else f"{low:.15g} to {high:.15g}"


def _shorten(value: str) -> str:
    return repr(value if len(value) <= _MAX_VALUE_LENGTH else value[:_MAX_VALUE_LENGTH] + "…")
