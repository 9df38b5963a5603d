"""Ask a window whether it keeps the agent's data contract: a report, and the rows to set aside."""

from __future__ import annotations

import functools
import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from data_checks.suite import KNOWN_BY_ALL, build_suite, required_columns
from stillhouse.config import AgentConfig
from stillhouse.records import CheckFailure, DataReport, Window

if TYPE_CHECKING:
    from great_expectations import ExpectationSuite
    from great_expectations.core.batch_definition import BatchDefinition
    from great_expectations.core.expectation_validation_result import ExpectationValidationResult

__all__ = ["check"]

QUARANTINE_COLUMNS = ("observation_id", "observed_at", "reasons")

Reasons = dict[int, list[str]]
"""Why a row is bad, by its position in the window."""


def check(rows: pd.DataFrame, window: Window, config: AgentConfig) -> tuple[DataReport, pd.DataFrame]:
    """Check ``rows`` of ``window`` against ``config.observations``; a broken contract is a result, never an error.

    Fatal failures (``report.broken``): no rows, a column missing, twice there or of the wrong type, a share of
    missing or unknown values above what its column allows, too large a share of bad rows. Bad rows: no or a
    repeated ``observation_id`` (every copy), no ``observed_at`` or one outside ``[start, end)``, a number out
    of its range or infinite, a missing value where none may be, a category that the contract does not list.

    :returns: the report, and the bad rows on their index labels: ``observation_id``, ``observed_at`` and
        ``reasons``, a list such as ``["temp: above 50"]``. The sound rows are
        ``rows[~rows["observation_id"].isin(bad["observation_id"])]``.
    """
    start = time.perf_counter()
    failures, reasons = _examine(rows, window, config)
    report = DataReport(
        window=window,
        rows=len(rows),
        quarantined=len(reasons),
        failures=tuple(sorted(failures, key=lambda failure: not failure.fatal)),
        seconds=time.perf_counter() - start,
    )
    return report, _quarantine(rows, reasons)


def _examine(rows: pd.DataFrame, window: Window, config: AgentConfig) -> tuple[list[CheckFailure], Reasons]:
    if not len(rows):
        return [_failure("window_not_empty", None, 0, "the window has no rows", fatal=True)], {}
    repeated = rows.columns[rows.columns.duplicated()].unique().tolist()
    if repeated:
        return [_failure("unique_columns", None, 0, f"columns {repeated} are there more than once", fatal=True)], {}

    prepared = _prepared(rows, config)
    failures = list(_structure_failures(_validate(prepared, window, build_suite(config, "structure")), config))
    if any(failure.fatal for failure in failures):
        return failures, {}

    reasons: Reasons = {}
    for result in _validate(prepared, window, build_suite(config, "values")):
        failures += _value_failures(result, prepared, config, reasons)
    failures += _too_many_bad(len(reasons), len(rows), config.observations.max_bad_rows)
    return failures, dict(sorted(reasons.items()))


def _prepared(rows: pd.DataFrame, config: AgentConfig) -> pd.DataFrame:
    """The same rows by position 0…n−1, numbers of any numeric type as float64; nothing else is repaired."""
    prepared = rows.reset_index(drop=True)
    for name in set(config.observations.numbers) & set(prepared.columns):
        values = prepared[name]
        if pd.api.types.is_numeric_dtype(values) or values.isna().all():
            prepared[name] = pd.to_numeric(values).to_numpy(dtype=np.float64, na_value=np.nan)
    return prepared


# --------------------------------------------------------------------------- Great Expectations

_one_at_a_time = threading.Lock()


@functools.cache
def _batches() -> BatchDefinition[Any]:
    """The one ephemeral context of this process, ready for data frames."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    import great_expectations as gx

    logging.getLogger("great_expectations").setLevel(logging.WARNING)  # it tells of each temporary folder
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}  # type: ignore[assignment]
    asset = context.data_sources.add_pandas("stillhouse").add_dataframe_asset("window")
    return asset.add_batch_definition_whole_dataframe("whole")


def _validate(frame: pd.DataFrame, window: Window, suite: ExpectationSuite) -> list[ExpectationValidationResult]:
    """One pass over the frame; ``COMPLETE``, because a second pass over what failed costs more than it saves."""
    with _one_at_a_time:
        batch = _batches().get_batch(batch_parameters={"dataframe": frame})
        bounds = {"start": pd.Timestamp(window.start), "end": pd.Timestamp(window.end)}
        return list(batch.validate(suite, result_format="COMPLETE", expectation_parameters=bounds).results)


def _error_in(result: ExpectationValidationResult) -> str | None:
    """Why an expectation could not be evaluated, such as values that cannot be compared; None if it was."""
    info: Mapping[str, Any] = result.exception_info or {}
    several: Iterable[Any] = [info] if "raised_exception" in info else info.values()
    return next((str(each["exception_message"]) for each in several if each.get("raised_exception")), None)


# --------------------------------------------------------------------------- results in words


def _structure_failures(results: list[ExpectationValidationResult], config: AgentConfig) -> Iterator[CheckFailure]:
    required = required_columns(config)
    missing: list[str] = []
    for result in results:  # the columns' presence is the suite's first expectation
        kind, column, meta = _described(result)
        if error := _error_in(result):
            if column not in missing:
                yield _failure(kind, column, 0, f"{column or 'columns'}: could not be checked ({error})", fatal=True)
        elif kind == "expect_table_columns_to_match_set":
            found = result.result["observed_value"]
            missing = [name for name in required if name not in found]
            extra = [name for name in found if name not in {*required, *KNOWN_BY_ALL}]
            if missing:
                yield _failure(kind, None, 0, f"missing columns: {', '.join(missing)}", fatal=True)
            if extra:
                yield _failure(kind, None, 0, f"columns that the contract does not know: {_listed(extra)}")
        elif not result.success:
            holds = result.result.get("observed_value", "mixed types")
            yield _failure(kind, column, 0, f"{column}: must hold {meta['wanted']}, holds {holds}", fatal=True)


def _value_failures(
    result: ExpectationValidationResult, frame: pd.DataFrame, config: AgentConfig, reasons: Reasons
) -> Iterator[CheckFailure]:
    """What one expectation found; the reasons of its bad rows are added to ``reasons``."""
    kind, column, meta = _described(result)
    if error := _error_in(result):
        yield _failure(kind, column, 0, f"{column}: could not be checked ({error})", fatal=True)
        return
    bad = np.asarray(result.result.get("unexpected_index_list") or [], dtype=np.int64)
    refused = _exceeds(len(bad), meta["refuse_above"], len(frame))
    if not len(bad) or not (meta["quarantine"] or refused):
        return

    words = _words(meta["rule"], frame[column].iloc[bad], config.observations.columns.get(column))
    if meta["quarantine"]:
        for position, word in zip(bad.tolist(), words, strict=True):
            reasons.setdefault(position, []).append(f"{column}: {word}")
    text = f"{column}: {_listed(dict.fromkeys(words))} in {_rows(len(bad), len(frame))}"
    if refused:
        text += f"; at most {meta['refuse_above']:.4g} of the window may"
    yield _failure(kind, column, len(bad), text, fatal=refused)


def _words(rule: str, values: pd.Series[Any], column: Any) -> list[str]:
    """What is wrong with each of the values that broke ``rule``."""
    if rule == "range":
        return [_out_of_range(value, column) for value in values]
    if rule == "unknown":
        return [f"unknown value {value!r}" for value in values]
    return [{"missing": "missing", "duplicate": "duplicate", "outside_window": "outside the window"}[rule]] * len(
        values
    )


def _out_of_range(value: float, column: Any) -> str:
    if np.isinf(value):
        return "infinite"
    return f"above {column.max:g}" if column.max is not None and value > column.max else f"below {column.min:g}"


def _too_many_bad(bad: int, rows: int, allowed: float) -> Iterator[CheckFailure]:
    if _exceeds(bad, allowed, rows):
        text = f"{_rows(bad, rows)} are bad; at most {allowed:.4g} of the window may"
        yield _failure("max_bad_rows", None, bad, text, fatal=True)


def _exceeds(count: int, share: float, total: int) -> bool:
    return count > share * total + 1e-9  # 0.29 of 100 rows is 28.999…, and 29 rows do not exceed it


def _described(result: ExpectationValidationResult) -> tuple[str, str, dict[str, Any]]:
    expectation = result.expectation_config
    assert expectation is not None  # every result of a suite has one
    return expectation.type, str(expectation.kwargs.get("column", "")), dict(expectation.meta or {})


def _failure(expectation: str, column: str | None, rows: int, text: str, fatal: bool = False) -> CheckFailure:
    return CheckFailure(expectation=expectation, column=column, rows=rows, text=text, fatal=fatal)


def _rows(count: int, total: int) -> str:
    return f"{count} of {total} rows ({count / total:.2%})"


def _listed(names: Iterable[str], most: int = 5) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def _quarantine(rows: pd.DataFrame, reasons: Reasons) -> pd.DataFrame:
    if not reasons:
        return pd.DataFrame(columns=list(QUARANTINE_COLUMNS))
    bad = rows.iloc[list(reasons)][["observation_id", "observed_at"]].copy()
    bad["reasons"] = pd.Series(list(reasons.values()), index=bad.index, dtype=object)
    return bad
