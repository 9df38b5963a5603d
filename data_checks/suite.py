"""The data contract of an agent file as a Great Expectations suite.

Two parts. ``structure`` asks whether the columns are there and have their types: if that fails, nothing else
can be asked. ``values`` asks every row. What a broken expectation means stands in its ``meta``:

- ``rule``: which words a bad row gets (see :mod:`data_checks.check`);
- ``quarantine``: whether its bad rows are set aside;
- ``refuse_above``: the share of the window's rows from which on the window is refused; 1.0 means never.

The window's bounds are suite parameters, ``start`` and ``end``, so that one suite serves every window.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from stillhouse.config import AgentConfig, CategoryColumn, NumberColumn

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite
    from great_expectations.expectations.expectation import Expectation

__all__ = ["KNOWN_BY_ALL", "REQUIRED_OF_ALL", "build_suite", "required_columns"]

REQUIRED_OF_ALL = ("observation_id", "observed_at")
KNOWN_BY_ALL = (*REQUIRED_OF_ALL, "content_key")  # the knowledge base adds the key

LARGEST_FINITE = sys.float_info.max


def build_suite(config: AgentConfig, part: Literal["all", "structure", "values"] = "all") -> ExpectationSuite:
    """The suite for ``config.observations``; building it takes about a millisecond.

    The number of rows is not in it: too few rows are a verdict of the watch, not a broken contract.
    """
    from great_expectations import ExpectationSuite

    expectations: list[Expectation] = []
    if part != "values":
        expectations += _structure(config)
    if part != "structure":
        expectations += _values(config)
    return ExpectationSuite(name=f"{config.agent}-{part}", expectations=expectations)


def required_columns(config: AgentConfig) -> tuple[str, ...]:
    """The columns that every window must have."""
    return (*REQUIRED_OF_ALL, *config.observations.columns)


def _structure(config: AgentConfig) -> Iterator[Expectation]:
    import great_expectations.expectations as gxe

    yield gxe.ExpectTableColumnsToMatchSet(
        column_set=list(required_columns(config)), exact_match=False, severity="critical"
    )
    yield gxe.ExpectColumnValuesToBeOfType(
        column="observed_at", type_="Timestamp", severity="critical", meta={"wanted": "times with a time zone"}
    )
    for name in config.observations.numbers:
        yield gxe.ExpectColumnValuesToBeOfType(
            column=name, type_="float64", severity="critical", meta={"wanted": "numbers"}
        )


def _values(config: AgentConfig) -> Iterator[Expectation]:
    import great_expectations.expectations as gxe

    for name in REQUIRED_OF_ALL:
        yield gxe.ExpectColumnValuesToNotBeNull(column=name, **_rule("missing"))
    yield gxe.ExpectColumnValuesToBeUnique(column="observation_id", **_rule("duplicate"))
    yield gxe.ExpectColumnValuesToBeBetween(
        column="observed_at",
        min_value={"$PARAMETER": "start"},
        max_value={"$PARAMETER": "end"},
        strict_max=True,
        **_rule("outside_window"),
    )
    for name, column in config.observations.columns.items():
        yield _not_missing(name, column)
        if column.type == "number":
            # finite bounds even where the contract has none: an infinite value is always a bad row
            yield gxe.ExpectColumnValuesToBeBetween(
                column=name,
                min_value=-LARGEST_FINITE if column.min is None else column.min,
                max_value=LARGEST_FINITE if column.max is None else column.max,
                **_rule("range"),
            )
        elif column.values is not None:
            yield gxe.ExpectColumnValuesToBeInSet(
                column=name, value_set=list(column.values), **_rule("unknown", refuse_above=column.max_unknown)
            )


def _not_missing(name: str, column: NumberColumn | CategoryColumn) -> Expectation:
    """Where none may be missing, a row that lacks the value is set aside; where some may, only the share counts."""
    import great_expectations.expectations as gxe

    allowed = column.max_missing
    rule = _rule("missing", quarantine=False, refuse_above=allowed) if allowed else _rule("missing")
    return gxe.ExpectColumnValuesToNotBeNull(column=name, mostly=round(1 - allowed, 12), **rule)


def _rule(rule: str, *, quarantine: bool = True, refuse_above: float = 1.0) -> dict[str, Any]:
    return {
        "severity": "warning" if refuse_above == 1.0 else "critical",
        "meta": {"rule": rule, "quarantine": quarantine, "refuse_above": refuse_above},
    }
