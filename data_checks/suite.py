"""The data contract of an agent file as a Great Expectations suite.

Four parts, each asked when the one before it holds:

============  ===============================================================================================
``structure``  are the columns there, and have they their types? If not, nothing else can be asked
``values``     every row: types, ranges, missing and unknown values, uniqueness, what columns promise about one another
``window``     the rows that are left as a whole: how many, and how new is the newest?
``drift``      the same rows against a reference profile, one expectation a watched column
============  ===============================================================================================

What a broken expectation means stands in its ``meta``:

- ``about``: the column or columns, as a reader knows them (``dewp``, ``origin/dest``);
- ``rule``: which words are said (see :mod:`data_checks.words`);
- ``quarantine``: whether its bad rows are set aside;
- ``refuse_above``: the share of the window's rows from which on the window is refused; 1.0 means never;
- ``place``: where in the suite it stands.

Whatever depends on the window is a suite parameter, so that one suite serves every window: :func:`parameters`.
"""

from __future__ import annotations

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
    """The suite for ``config.observations``; building it takes a few milliseconds.

    ``min_rows`` is not in it: too few rows to judge are a verdict of the watch, not a broken contract.

    :param reference: the profile that drift is measured from; without it there is no drift part.
    :param limits: largest usual PSI by column; a column without one is held to ``watch.thresholds.psi``, and is
        not asked about where there is no such threshold.
    """
    from great_expectations import ExpectationSuite

    parts = {
        "structure": _structure(config.observations),
        "values": _values(config.observations),
        "window": _window(config.observations),
        "drift": _drift(config, reference, limits or {}),
    }
    wanted = parts if part == "all" else {part: parts[part]}
    expectations: list[Expectation] = [expectation for each in wanted.values() for expectation in each]
    for place, expectation in enumerate(expectations):
        expectation.meta = {**(expectation.meta or {}), "place": place}
    return ExpectationSuite(name=f"{config.agent}-{part}", expectations=expectations)


def parameters(window: Window, observations: Observations) -> dict[str, Any]:
    """The suite parameters of one window: its bounds, the oldest newest row, and the numbers of rows allowed."""
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
    """The columns that every window must have."""
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
        meta={"wanted": "times with a time zone"},
    )
    for name in observations.numbers:
        yield gxe.ExpectColumnValuesToBeOfType(
            column=name, type_="float64", severity=FailureSeverity.CRITICAL, meta={"wanted": "numbers"}
        )
    for name in observations.texts:
        yield gxe.ExpectColumnValuesToBeOfType(
            column=name, type_="str", severity=FailureSeverity.CRITICAL, meta={"wanted": "text"}
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
        yield from _of_column(name, column)
    for names in observations.unique:
        yield _unique(names)
    for rule in observations.rules:
        yield _of_rule(rule)


def _of_column(name: str, column: Column) -> Iterator[Expectation]:
    import great_expectations.expectations as gxe

    yield _not_missing(name, column)
    if isinstance(column, NumberColumn):
        # finite bounds even where the contract has none: an infinite value is always a bad row
        yield gxe.ExpectColumnValuesToBeBetween(
            column=name,
            min_value=-LARGEST_FINITE if column.min is None else column.min,
            max_value=LARGEST_FINITE if column.max is None else column.max,
            description=_finite(column),
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


def _finite(column: NumberColumn) -> str | None:
    """What Data Docs say of a range with an open end, instead of the largest finite number."""
    if column.min is not None and column.max is not None:
        return None
    ends = [f"{word} {end:g}" for word, end in (("at least", column.min), ("at most", column.max)) if end is not None]
    return " and ".join(["Values must be finite", *ends]) + "."


def _not_missing(name: str, column: Column) -> Expectation:
    """Where none may be missing, a row that lacks the value is set aside; where some may, only the share counts."""
    import great_expectations.expectations as gxe

    allowed = column.max_missing
    rule = _rule("missing", name, quarantine=False, refuse_above=allowed) if allowed else _rule("missing", name)
    return gxe.ExpectColumnValuesToNotBeNull(column=name, mostly=round(1 - allowed, 12), **rule)


def _unique(names: tuple[str, ...]) -> Expectation:
    """As in SQL: a row that lacks one of the values is not compared."""
    import great_expectations.expectations as gxe

    if len(names) == 1:
        return gxe.ExpectColumnValuesToBeUnique(column=names[0], **_rule("duplicate", names[0]))
    return gxe.ExpectCompoundColumnsToBeUnique(
        column_list=list(names), ignore_row_if="any_value_is_missing", **_rule("duplicate", "/".join(names))
    )


def _of_rule(rule: Rule) -> Expectation:
    """Missing values break no rule but ``present_when``; a condition on a missing value is not met."""
    import great_expectations.expectations as gxe

    from data_checks.expectations import ExpectColumnPairValuesToBeAmong

    broken: dict[str, Any] = {"refuse_above": rule.max_broken}
    if isinstance(rule, Ordered):
        return gxe.ExpectColumnPairValuesAToBeGreaterThanB(
            column_A=rule.high,
            column_B=rule.low,
            or_equal=True,
            ignore_row_if="either_value_is_missing",
            **_rule("ordered", rule.low, **broken),
        )
    if isinstance(rule, Pairs):
        return ExpectColumnPairValuesToBeAmong(
            column_A=rule.columns[0],
            column_B=rule.columns[1],
            value_pairs_set=list(rule.allowed),
            ignore_row_if="either_value_is_missing",
            **_rule("pair", "/".join(rule.columns), **broken),
        )
    on: dict[str, Any] = {"row_condition": _condition(rule.when)}
    if isinstance(rule, PresentWhen):
        meta = _rule("missing", rule.column, where=describe_condition(rule.when), **broken)
        return gxe.ExpectColumnValuesToNotBeNull(column=rule.column, **on, **meta)
    assert isinstance(rule, RangeWhen)
    meta = _rule("range", rule.column, where=describe_condition(rule.when), **broken)
    return gxe.ExpectColumnValuesToBeBetween(column=rule.column, min_value=rule.min, max_value=rule.max, **on, **meta)


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
