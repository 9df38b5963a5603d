"""The data contract of an agent file as a Great Expectations suite.

The suite has four parts:

============== ===============================================================================================
``structure``  presence and types of the columns; the other parts are validated only if it passes
``values``     each row: ranges, missing and unknown values, uniqueness, and the rules between columns
``window``     the remaining rows as a whole: their number, and the age of the newest row
``drift``      the same rows against a reference profile, one expectation per watched column
============== ===============================================================================================

The ``meta`` of an expectation says how its failure is handled:

- ``about``: the column or columns in the failure's text (``dewp``, ``origin/dest``);
- ``rule``: which text describes the failure (see :mod:`data_checks.words`);
- ``quarantine``: whether its bad rows go to quarantine;
- ``refuse_above``: largest share of bad rows in the window before the window is refused; 1.0 means never;
- ``place``: index of the expectation in the suite.

Values that depend on the window are suite parameters (:func:`parameters`), so one suite serves every window.
"""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from stillhouse.config import (
    AgentConfig,
    NumberColumn,
    Observations,
    Ordered,
    Pairs,
    PresentWhen,
    RangeWhen,
    TextColumn,
    When,
)
from stillhouse.data_contract import REQUIRED_COLUMNS, describe_condition, observable_days
from stillhouse.records import Window

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite
    from great_expectations.expectations.expectation import Expectation
    from great_expectations.expectations.row_conditions import Condition

    from stillhouse.config import Column, Rule
    from stillhouse.drift.profile import Profile

__all__ = ["Part", "build_suite", "parameters", "required_columns"]

LARGEST_FINITE = sys.float_info.max

Part = Literal["all", "structure", "values", "window", "drift"]


def build_suite(
    config: AgentConfig,
    part: Part = "all",
    *,
    reference: Profile | None = None,
    limits: Mapping[str, float] | None = None,
) -> ExpectationSuite:
    """Build the suite for ``config.observations``, in a few milliseconds.

    The suite does not contain ``min_rows``: too few rows give a verdict of the watch, not a broken contract.

    :param reference: profile from which drift is measured; without it, the suite has no drift part.
    :param limits: limit of the PSI by column; the default is ``watch.thresholds.psi``. A column without either has no
        drift expectation.

    >>> from stillhouse.config import load
    >>> config = load("flights")
    >>> [type(expectation).__name__ for expectation in build_suite(config, "structure").expectations][:2]
    ['ExpectTableColumnsToMatchSet', 'ExpectColumnValuesToBeOfType']
    """
    from great_expectations import ExpectationSuite

    parts = {
        "structure": _structure(config.observations),
        "values": _values(config.observations),
        "window": _window(config.observations),
        "drift": _drift(config, reference, limits or {}),
    }
    chosen_parts = list(parts.values()) if part == "all" else [parts[part]]
    expectations: list[Expectation] = list(itertools.chain.from_iterable(chosen_parts))
    for index, expectation in enumerate(expectations):
        expectation.meta = {**(expectation.meta or {}), "place": index}
    return ExpectationSuite(name=f"{config.agent}-{part}", expectations=expectations)


def parameters(window: Window, observations: Observations) -> dict[str, Any]:
    """Return the suite parameters of one window: its bounds, the earliest allowed newest row, and the row counts."""
    days, volume = observable_days(window, observations), observations.volume
    low = volume.min_per_day if volume else None
    high = volume.max_per_day if volume and days else None
    end = pd.Timestamp(window.end)
    return {
        "start": pd.Timestamp(window.start),
        "end": end,
        "fresh_from": end - (observations.freshness or pd.Timedelta(0)),
        "min_rows": 0 if low is None else math.ceil(low * days - 1e-9),
        "max_rows": sys.maxsize if high is None else math.floor(high * days + 1e-9),
    }


def required_columns(config: AgentConfig) -> tuple[str, ...]:
    """Return the columns that every window must have."""
    return (*REQUIRED_COLUMNS, *config.observations.columns)


# --------------------------------------------------------------------------- structure


def _structure(observations: Observations) -> Iterator[Expectation]:
    import great_expectations.expectations as gxe
    from great_expectations.expectations.metadata_types import FailureSeverity

    yield gxe.ExpectTableColumnsToMatchSet(
        column_set=[*REQUIRED_COLUMNS, *observations.columns], exact_match=False, severity=FailureSeverity.CRITICAL
    )
    yield gxe.ExpectColumnValuesToBeOfType(
        column="observed_at",
        type_="Timestamp",
        severity=FailureSeverity.CRITICAL,
        meta={"required_type": "times with a time zone"},
    )
    for name in observations.numbers:
        yield gxe.ExpectColumnValuesToBeOfType(
            column=name, type_="float64", severity=FailureSeverity.CRITICAL, meta={"required_type": "numbers"}
        )
    for name in observations.texts:
        yield gxe.ExpectColumnValuesToBeOfType(
            column=name, type_="str", severity=FailureSeverity.CRITICAL, meta={"required_type": "text"}
        )


# --------------------------------------------------------------------------- values


def _values(observations: Observations) -> Iterator[Expectation]:
    import great_expectations.expectations as gxe

    for name in REQUIRED_COLUMNS:
        yield gxe.ExpectColumnValuesToNotBeNull(column=name, **_rule("missing", name))
    yield gxe.ExpectColumnValuesToBeUnique(column="observation_id", **_rule("duplicate", "observation_id"))
    yield gxe.ExpectColumnValuesToBeBetween(
        column="observed_at",
        min_value={"$PARAMETER": "start"},
        max_value={"$PARAMETER": "end"},
        strict_max=True,
        **_rule("outside_window", "observed_at"),
    )
    for name, column in observations.columns.items():
        yield from _column_expectations(name, column)
    for names in observations.unique:
        yield _unique_expectation(names)
    for rule in observations.rules:
        yield _rule_expectation(rule)


def _column_expectations(name: str, column: Column) -> Iterator[Expectation]:
    import great_expectations.expectations as gxe

    yield _missing_expectation(name, column)
    if isinstance(column, NumberColumn):
        # the bounds are finite even if the contract has none, because an infinite value is always a bad row
        yield gxe.ExpectColumnValuesToBeBetween(
            column=name,
            min_value=-LARGEST_FINITE if column.min is None else column.min,
            max_value=LARGEST_FINITE if column.max is None else column.max,
            description=_describe_open_range(column),
            **_rule("range", name),
        )
    elif isinstance(column, TextColumn):
        if column.max_length is not None:
            yield gxe.ExpectColumnValueLengthsToBeBetween(
                column=name, max_value=column.max_length, **_rule("length", name)
            )
    elif column.values is not None:
        yield gxe.ExpectColumnValuesToBeInSet(
            column=name, value_set=list(column.values), **_rule("unknown", name, refuse_above=column.max_unknown)
        )


def _describe_open_range(column: NumberColumn) -> str | None:
    """Return the Data Docs text of a range with an open end, which would else show the largest finite number."""
    if column.min is not None and column.max is not None:
        return None
    ends = [f"{word} {end:g}" for word, end in (("at least", column.min), ("at most", column.max)) if end is not None]
    return " and ".join(["Values must be finite", *ends]) + "."


def _missing_expectation(name: str, column: Column) -> Expectation:
    """A missing value is a bad row if ``max_missing`` is 0; otherwise only the share of missing values is limited."""
    import great_expectations.expectations as gxe

    allowed = column.max_missing
    rule = _rule("missing", name, quarantine=False, refuse_above=allowed) if allowed else _rule("missing", name)
    return gxe.ExpectColumnValuesToNotBeNull(column=name, mostly=round(1 - allowed, 12), **rule)


def _unique_expectation(names: tuple[str, ...]) -> Expectation:
    """Rows with a missing value are not compared, as in SQL."""
    import great_expectations.expectations as gxe

    if len(names) == 1:
        return gxe.ExpectColumnValuesToBeUnique(column=names[0], **_rule("duplicate", names[0]))
    return gxe.ExpectCompoundColumnsToBeUnique(
        column_list=list(names), ignore_row_if="any_value_is_missing", **_rule("duplicate", "/".join(names))
    )


def _rule_expectation(rule: Rule) -> Expectation:
    """Missing values break only ``present_when`` rules; a condition on a missing value is not met."""
    import great_expectations.expectations as gxe

    from data_checks.expectations import ExpectColumnPairValuesToBeAmong

    limit: dict[str, Any] = {"refuse_above": rule.max_broken}
    if isinstance(rule, Ordered):
        return gxe.ExpectColumnPairValuesAToBeGreaterThanB(
            column_A=rule.high,
            column_B=rule.low,
            or_equal=True,
            ignore_row_if="either_value_is_missing",
            **_rule("ordered", rule.low, **limit),
        )
    if isinstance(rule, Pairs):
        return ExpectColumnPairValuesToBeAmong(
            column_A=rule.columns[0],
            column_B=rule.columns[1],
            value_pairs_set=list(rule.allowed),
            ignore_row_if="either_value_is_missing",
            **_rule("pair", "/".join(rule.columns), **limit),
        )
    condition: dict[str, Any] = {"row_condition": _condition(rule.when)}
    if isinstance(rule, PresentWhen):
        meta = _rule("missing", rule.column, where=describe_condition(rule.when), **limit)
        return gxe.ExpectColumnValuesToNotBeNull(column=rule.column, **condition, **meta)
    assert isinstance(rule, RangeWhen)
    meta = _rule("range", rule.column, where=describe_condition(rule.when), **limit)
    return gxe.ExpectColumnValuesToBeBetween(
        column=rule.column, min_value=rule.min, max_value=rule.max, **condition, **meta
    )


def _condition(when: When) -> Condition:
    from great_expectations.expectations.row_conditions import Column as Cell

    if when.values is not None:
        return Cell(when.column).is_in(when.values)
    bounds = [Cell(when.column) >= when.min] if when.min is not None else []
    bounds += [Cell(when.column) <= when.max] if when.max is not None else []
    return bounds[0] if len(bounds) == 1 else bounds[0] & bounds[1]


def _rule(
    rule: str, about: str, *, where: str = "", quarantine: bool = True, refuse_above: float = 1.0
) -> dict[str, Any]:
    return {
        "severity": "warning" if refuse_above == 1.0 else "critical",
        "meta": {"rule": rule, "about": about, "where": where, "quarantine": quarantine, "refuse_above": refuse_above},
    }


# --------------------------------------------------------------------------- the window as a whole


def _window(observations: Observations) -> Iterator[Expectation]:
    import great_expectations.expectations as gxe
    from great_expectations.expectations.metadata_types import FailureSeverity

    if observations.freshness is not None:
        yield gxe.ExpectColumnMaxToBeBetween(
            column="observed_at",
            min_value={"$PARAMETER": "fresh_from"},
            severity=FailureSeverity.CRITICAL,
            meta={"rule": "freshness"},
        )
    if observations.volume is not None:
        yield gxe.ExpectTableRowCountToBeBetween(
            min_value={"$PARAMETER": "min_rows"},
            max_value={"$PARAMETER": "max_rows"},
            severity=FailureSeverity.CRITICAL,
            meta={"rule": "volume"},
        )


def _drift(config: AgentConfig, reference: Profile | None, limits: Mapping[str, float]) -> Iterator[Expectation]:
    if reference is None:
        return
    from great_expectations.expectations.metadata_types import FailureSeverity

    from data_checks.expectations import ExpectColumnDriftToBeBelow, inline

    for name, column in config.observations.columns.items():
        limit = limits.get(name, config.watch.thresholds.psi)
        if column.drift and name in reference.columns and limit is not None:
            yield ExpectColumnDriftToBeBelow(
                column=name,
                reference=inline(reference, name),
                psi=limit,
                severity=FailureSeverity.INFO,
                meta={"rule": "drift"},
            )
