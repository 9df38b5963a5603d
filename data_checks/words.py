"""What an expectation found, in a reader's words: reasons of bad rows and failures of a window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from data_checks.suite import KNOWN_BY_ALL, lived_days, required_columns
from data_checks.validate import error_in
from stillhouse.config import AgentConfig
from stillhouse.records import CheckFailure, Window

if TYPE_CHECKING:
    from great_expectations.core.expectation_validation_result import ExpectationValidationResult

__all__ = ["Reasons", "failure", "structure_failures", "too_many_bad", "value_failures", "window_failures"]

Reasons = dict[int, list[str]]
"""Why a row is bad, by its position in the window."""


def failure(expectation: str, column: str | None, rows: int, text: str, fatal: bool = False) -> CheckFailure:
    return CheckFailure(expectation=expectation, column=column, rows=rows, text=text, fatal=fatal)


# --------------------------------------------------------------------------- structure


def structure_failures(results: list[ExpectationValidationResult], config: AgentConfig) -> Iterator[CheckFailure]:
    """What the columns' presence and types lack; all of it is fatal but columns that are too many."""
    required = required_columns(config)
    missing: list[str] = []
    for result in results:  # the columns' presence is the suite's first expectation
        kind, kwargs, meta = _described(result)
        column = str(kwargs.get("column", ""))
        if error := error_in(result):
            if column not in missing:
                yield failure(kind, column, 0, f"{column or 'columns'}: could not be checked ({error})", fatal=True)
        elif kind == "expect_table_columns_to_match_set":
            found = result.result["observed_value"]
            missing = [name for name in required if name not in found]
            extra = [name for name in found if name not in {*required, *KNOWN_BY_ALL}]
            if missing:
                yield failure(kind, None, 0, f"missing columns: {', '.join(missing)}", fatal=True)
            if extra:
                yield failure(kind, None, 0, f"columns that the contract does not know: {_listed(extra)}")
        elif not result.success:
            holds = result.result.get("observed_value", "mixed types")
            yield failure(kind, column, 0, f"{column}: must hold {meta['wanted']}, holds {holds}", fatal=True)


# --------------------------------------------------------------------------- rows


def value_failures(
    result: ExpectationValidationResult, frame: pd.DataFrame, reasons: Reasons
) -> Iterator[CheckFailure]:
    """What one expectation on rows found; the reasons of its bad rows are added to ``reasons``."""
    kind, kwargs, meta = _described(result)
    about = meta["about"]
    if error := error_in(result):
        yield failure(kind, about, 0, f"{about}: could not be checked ({error})", fatal=True)
        return
    bad = np.asarray(result.result.get("unexpected_index_list") or [], dtype=np.int64)
    refused = _exceeds(len(bad), meta["refuse_above"], len(frame))
    if not len(bad) or not (meta["quarantine"] or refused):
        return

    words = [word + meta["where"] for word in _words(meta["rule"], kwargs, frame.iloc[bad])]
    if meta["quarantine"]:
        for position, word in zip(bad.tolist(), words, strict=True):
            reasons.setdefault(position, []).append(f"{about}: {word}")
    text = f"{about}: {_listed(dict.fromkeys(words))} in {_rows(len(bad), len(frame))}"
    if refused:
        text += f"; at most {meta['refuse_above']:.4g} of the window may"
    yield failure(kind, about, len(bad), text, fatal=refused)


def _words(rule: str, kwargs: Mapping[str, Any], rows: pd.DataFrame) -> list[str]:
    """What is wrong with each of the rows that broke ``rule``."""
    if rule == "range":
        return [_out_of_range(value, kwargs) for value in rows[kwargs["column"]]]
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


def _out_of_range(value: float, kwargs: Mapping[str, Any]) -> str:
    if np.isinf(value):
        return "infinite"
    low, high = kwargs.get("min_value"), kwargs.get("max_value")
    return f"above {high:g}" if high is not None and value > high else f"below {low:g}"


def too_many_bad(bad: int, rows: int, allowed: float) -> Iterator[CheckFailure]:
    """Refuse a window of which more than the share ``allowed`` is in quarantine."""
    if _exceeds(bad, allowed, rows):
        text = f"{_rows(bad, rows)} are bad; at most {allowed:.4g} of the window may"
        yield failure("max_bad_rows", None, bad, text, fatal=True)


def _exceeds(count: int, share: float, total: int) -> bool:
    return count > share * total + 1e-9  # 0.29 of 100 rows is 28.999…, and 29 rows do not exceed it


# --------------------------------------------------------------------------- the window as a whole


def window_failures(
    results: Iterable[ExpectationValidationResult], window: Window, config: AgentConfig
) -> Iterator[CheckFailure]:
    """What freshness and volume lack, which is fatal, and which columns drifted, which is only noted."""
    for result in results:
        kind, kwargs, meta = _described(result)
        rule, column = meta["rule"], kwargs.get("column")
        if error := error_in(result):
            text = f"{column or rule}: could not be checked ({error})"
            yield failure(kind, column, 0, text, fatal=rule != "drift")
        elif not result.success:
            found = result.result.get("observed_value")
            if rule == "freshness":
                yield failure(kind, column, 0, _stale(found, window, config), fatal=True)
            elif rule == "volume":
                yield failure(kind, None, 0, _volume(found, window, config), fatal=True)
            else:
                yield failure(kind, column, 0, _drifted(str(column), result.result["details"]))


def _stale(newest: Any, window: Window, config: AgentConfig) -> str:
    allowed = f"at most {_time(config.observations.freshness)} are allowed"
    if pd.isna(newest):
        return f"no row is left that could be new; {allowed}"
    newest = pd.Timestamp(newest)
    age = _time(pd.Timestamp(window.end) - newest)
    return (
        f"the newest row is of {newest.tz_convert('UTC'):%Y-%m-%d %H:%M} UTC, {age} before the window's end; {allowed}"
    )


def _volume(rows: int, window: Window, config: AgentConfig) -> str:
    days, volume = lived_days(window, config.observations), config.observations.volume
    assert volume is not None  # the expectation comes from it
    ends = [
        f"at {word} {bound:g}"
        for word, bound in (("least", volume.min_per_day), ("most", volume.max_per_day))
        if bound is not None
    ]
    return f"{rows:,} rows in {days:.3g} days are {rows / days:.4g} a day; {' and '.join(ends)} are expected"


def _drifted(column: str, details: Mapping[str, Any]) -> str:
    from data_checks.expectations import observed_in_words

    return f"{column}: {observed_in_words(dict(details))}; PSI up to {details['limits']['psi']:.3g} is usual"


def _time(length: Any) -> str:
    """A length of time as an agent file writes it, to two units: ``1d 21h``."""
    seconds = int(pd.Timedelta(length).total_seconds())
    parts = []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        if seconds >= size:
            parts.append(f"{seconds // size}{unit}")
            seconds %= size
    return " ".join(parts[:2]) or "0s"


def _described(result: ExpectationValidationResult) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Type, arguments and meta of the expectation behind a result."""
    expectation = result.expectation_config
    assert expectation is not None  # every result of a suite has one
    return expectation.type, dict(expectation.kwargs), dict(expectation.meta or {})


def _rows(count: int, total: int) -> str:
    return f"{count} of {total} rows ({count / total:.2%})"


def _listed(names: Iterable[str], most: int = 5) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")
