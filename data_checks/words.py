"""Translate results of Great Expectations into reasons of bad rows and failures of a window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from data_checks.suite import required_columns
from data_checks.validate import error_in
from stillhouse.config import AgentConfig
from stillhouse.data_contract import (
    ALLOWED_COLUMNS,
    Reasons,
    describe_out_of_range,
    describe_staleness,
    describe_volume,
    join_names,
    make_failure,
    row_rule_failures,
)
from stillhouse.records import CheckFailure, Window

if TYPE_CHECKING:
    from great_expectations.core.expectation_validation_result import ExpectationValidationResult

__all__ = ["structure_failures", "value_failures", "window_failures"]

# --------------------------------------------------------------------------- structure


def structure_failures(results: list[ExpectationValidationResult], config: AgentConfig) -> Iterator[CheckFailure]:
    """Yield the failures of the columns' presence and types. All are fatal except additional columns."""
    required = required_columns(config)
    missing: list[str] = []
    for result in results:  # the first expectation of the suite checks which columns are present
        kind, kwargs, meta = _unpack(result)
        column = str(kwargs.get("column", ""))
        if error := error_in(result):
            if column not in missing:
                yield make_failure(
                    kind, column, 0, f"{column or 'columns'}: could not be checked ({error})", fatal=True
                )
        elif kind == "expect_table_columns_to_match_set":
            observed_columns = result.result["observed_value"]
            missing = [name for name in required if name not in observed_columns]
            extra = [name for name in observed_columns if name not in {*required, *ALLOWED_COLUMNS}]
            if missing:
                yield make_failure(kind, None, 0, f"missing columns: {', '.join(missing)}", fatal=True)
            if extra:
                yield make_failure(kind, None, 0, f"columns that the contract does not know: {join_names(extra)}")
        elif not result.success:
            observed_type = result.result.get("observed_value", "mixed types")
            yield make_failure(
                kind, column, 0, f"{column}: must hold {meta['required_type']}, holds {observed_type}", fatal=True
            )


# --------------------------------------------------------------------------- rows


def value_failures(
    result: ExpectationValidationResult, frame: pd.DataFrame, reasons: Reasons
) -> Iterator[CheckFailure]:
    """Yield the failures of one expectation on rows; add the reasons of its bad rows to ``reasons``."""
    kind, kwargs, meta = _unpack(result)
    about = meta["about"]
    if error := error_in(result):
        yield make_failure(kind, about, 0, f"{about}: could not be checked ({error})", fatal=True)
        return
    bad = np.asarray(result.result.get("unexpected_index_list") or [], dtype=np.int64)
    texts = [text + meta["where"] for text in _describe_rows(meta["rule"], kwargs, frame.iloc[bad])]
    yield from row_rule_failures(kind, about, bad, texts, len(frame), meta["quarantine"], meta["refuse_above"], reasons)


def _describe_rows(rule: str, kwargs: Mapping[str, Any], rows: pd.DataFrame) -> list[str]:
    """Return, for each row that broke ``rule``, what is wrong with it."""
    if rule == "range":
        low, high = kwargs.get("min_value"), kwargs.get("max_value")
        return [describe_out_of_range(value, low, high) for value in rows[kwargs["column"]]]
    if rule == "length":
        return [f"longer than {kwargs['max_value']} characters"] * len(rows)
    if rule == "unknown":
        return [f"unknown value {value!r}" for value in rows[kwargs["column"]]]
    if rule == "ordered":
        return [f"above {kwargs['column_A']}"] * len(rows)
    if rule == "pair":
        pairs = zip(rows[kwargs["column_A"]], rows[kwargs["column_B"]], strict=True)
        return [f"not an allowed pair: {first}, {second}" for first, second in pairs]
    return [{"missing": "missing", "duplicate": "duplicate", "outside_window": "outside the window"}[rule]] * len(rows)


# --------------------------------------------------------------------------- the window as a whole


def window_failures(
    results: Iterable[ExpectationValidationResult], window: Window, config: AgentConfig
) -> Iterator[CheckFailure]:
    """Yield the failures of freshness and volume, which are fatal, and the drifted columns, which are only noted."""
    for result in results:
        kind, kwargs, meta = _unpack(result)
        rule, column = meta["rule"], kwargs.get("column")
        if error := error_in(result):
            text = f"{column or rule}: could not be checked ({error})"
            yield make_failure(kind, column, 0, text, fatal=rule != "drift")
        elif not result.success:
            observed: Any = result.result.get("observed_value")
            if rule == "freshness":
                yield make_failure(
                    kind, column, 0, describe_staleness(observed, window, config.observations), fatal=True
                )
            elif rule == "volume":
                yield make_failure(kind, None, 0, describe_volume(observed, window, config.observations), fatal=True)
            else:
                yield make_failure(kind, column, 0, _describe_drift(str(column), result.result["details"]))


def _describe_drift(column: str, details: Mapping[str, Any]) -> str:
    from data_checks.expectations import describe_observed

    return f"{column}: {describe_observed(dict(details))}; the limit of the PSI is {details['limits']['psi']:.3g}"


def _unpack(result: ExpectationValidationResult) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the type, arguments and meta of a result's expectation."""
    expectation = result.expectation_config
    assert expectation is not None  # every result of a suite has one
    return expectation.type, dict(expectation.kwargs), dict(expectation.meta or {})
