"""Check rows in memory against the data contract of an agent file: broken rules, and rows for the quarantine.

The flows pass in the report of a Great Expectations suite (``data_checks``), which also writes Data Docs. This module
evaluates the same rules in milliseconds without Great Expectations: for the wheel, ``stillhouse check`` and replays.
Both use the texts of this module, and tests compare the two rule by rule and on random rows. Drift is not a rule of the
contract and is not measured here.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stillhouse.config import (
    AgentConfig,
    CategoryColumn,
    Column,
    NumberColumn,
    Observations,
    Ordered,
    Pairs,
    PresentWhen,
    RangeWhen,
    Rule,
    TextColumn,
    When,
)
from stillhouse.records import CheckFailure, DataReport, Window

__all__ = [
    "ALLOWED_COLUMNS",
    "QUARANTINE_COLUMNS",
    "REQUIRED_COLUMNS",
    "ContractResult",
    "Reasons",
    "bad_share_failures",
    "check",
    "count_by_rule",
    "data_report",
    "describe_condition",
    "describe_out_of_range",
    "describe_staleness",
    "describe_volume",
    "empty_window_failure",
    "examine",
    "exceeds",
    "join_names",
    "make_failure",
    "observable_days",
    "prepare_rows",
    "quarantined_rows",
    "repeated_columns_failure",
    "row_rule_failures",
    "skip",
]

REQUIRED_COLUMNS = ("observation_id", "observed_at")
"""Columns of every window, beside those of the agent file."""
QUARANTINE_COLUMNS = ("observation_id", "observed_at", "reasons")
ALLOWED_COLUMNS = (*REQUIRED_COLUMNS, "content_key")  # the knowledge base adds content_key

Mask = np.ndarray[Any, np.dtype[np.bool_]]

Reasons = dict[int, list[str]]
"""The reasons why a row is bad, by the position of the row in the window."""


class ContractResult(NamedTuple):
    """The broken rules, and the bad rows with their reasons."""

    failures: tuple[CheckFailure, ...]
    reasons: Reasons

    @property
    def refused(self) -> tuple[str, ...]:
        """The reasons why the window as a whole is refused; empty if it is not."""
        return tuple(failure.text for failure in self.failures if failure.fatal)


def check(rows: pd.DataFrame, window: Window, config: AgentConfig) -> tuple[DataReport, pd.DataFrame]:
    """Check the ``rows`` of a ``window`` against the data contract, without Great Expectations.

    ``data_checks.check.check`` returns the same for the same rows if it is not given a reference for drift.

    >>> import pandas as pd, stillhouse
    >>> from stillhouse.records import Window
    >>> window = Window(name="w", start=pd.Timestamp("2013-03-01T00:00Z"), end=pd.Timestamp("2013-03-02T00:00Z"))
    >>> report, bad_rows = check(pd.DataFrame(), window, stillhouse.load_config("flights"))
    >>> report.failures[0].text
    'the window has no rows'

    :returns: the report, and the bad rows with their index labels: ``observation_id``, ``observed_at``, ``reasons``.
    """
    start = time.perf_counter()
    failures, reasons = examine(rows, window, config.observations)
    report = data_report(rows, window, failures, reasons, seconds=time.perf_counter() - start)
    return report, quarantined_rows(rows, reasons)


def skip(reason: str) -> Callable[[pd.DataFrame, Window, AgentConfig], tuple[DataReport, pd.DataFrame]]:
    """A replacement for :func:`check` that checks nothing; the verdict records the ``reason``.

    >>> import stillhouse
    >>> from stillhouse import data_contract
    >>> unchecked = data_contract.skip("a replay of a week that was checked when it passed")
    >>> verdict = stillhouse.watch("flights", contract=unchecked)  # doctest: +SKIP
    """

    def skipped(rows: pd.DataFrame, window: Window, config: AgentConfig) -> tuple[DataReport, pd.DataFrame]:
        return DataReport.skipped(window, len(rows), reason), quarantined_rows(rows, {})

    return skipped


def data_report(
    rows: pd.DataFrame, window: Window, failures: Iterable[CheckFailure], reasons: Reasons, seconds: float
) -> DataReport:
    """The result of a check as a record, with the fatal failures first."""
    return DataReport(
        window=window,
        rows=len(rows),
        quarantined=len(reasons),
        failures=tuple(sorted(failures, key=lambda failure: not failure.fatal)),
        seconds=seconds,
    )


def quarantined_rows(rows: pd.DataFrame, reasons: Reasons) -> pd.DataFrame:
    """The bad ones of ``rows``, with their index labels and :data:`QUARANTINE_COLUMNS`."""
    if not reasons:
        return pd.DataFrame(columns=list(QUARANTINE_COLUMNS))
    bad = rows.iloc[list(reasons)][["observation_id", "observed_at"]].copy()
    bad["reasons"] = pd.Series(list(reasons.values()), index=bad.index, dtype=object)
    return bad


def examine(rows: pd.DataFrame, window: Window, observations: Observations) -> ContractResult:
    """Check the ``rows`` of a ``window`` against every rule of ``observations``; a broken contract is not an error."""
    if not len(rows):
        return ContractResult((empty_window_failure(),), {})
    if repeated := repeated_columns_failure(rows):
        return ContractResult((repeated,), {})
    rows = prepare_rows(rows, observations)
    failures = list(_structure_failures(rows, observations))
    if any(failure.fatal for failure in failures):
        return ContractResult(tuple(failures), {})
    reasons: Reasons = {}
    for broken_rule in _row_rules(rows, window, observations):
        failures += _collect_failures(broken_rule, rows, reasons)
    failures += bad_share_failures(reasons, len(rows), observations.max_bad_rows)
    good_rows = rows.drop(index=list(reasons))
    failures += _window_failures(good_rows, window, observations)
    return ContractResult(tuple(sorted(failures, key=lambda failure: not failure.fatal)), dict(sorted(reasons.items())))


def prepare_rows(rows: pd.DataFrame, observations: Observations) -> pd.DataFrame:
    """The same rows with index 0…n−1, numbers of any numeric type as float64, and blank texts as missing."""
    prepared = rows.reset_index(drop=True)
    for name in set(observations.numbers) & set(prepared.columns):
        values = prepared[name]
        if pd.api.types.is_numeric_dtype(values) or values.isna().all():
            prepared[name] = pd.to_numeric(values).to_numpy(dtype=np.float64, na_value=np.nan)
    for name in set(observations.texts) & set(prepared.columns):
        prepared[name] = prepared[name].mask(prepared[name].map(_is_blank).astype(bool))
    return prepared


def observable_days(window: Window, observations: Observations) -> float:
    """Length of the part of the window after ``observations.since``, the only part that can have rows, in days."""
    start = window.start if observations.since is None else max(window.start, observations.since)
    return max(window.end - start, timedelta(0)) / timedelta(days=1)


# --------------------------------------------------------------------------- columns and their types


def empty_window_failure() -> CheckFailure:
    """The failure of a window without rows."""
    return make_failure("window_not_empty", None, 0, "the window has no rows", fatal=True)


def repeated_columns_failure(rows: pd.DataFrame) -> CheckFailure | None:
    """The failure of rows with two columns of one name, on which no rule can be checked; None if there are none."""
    if not (repeated := rows.columns[rows.columns.duplicated()].unique().tolist()):
        return None
    return make_failure("unique_columns", None, 0, f"columns {repeated} are there more than once", fatal=True)


def _structure_failures(rows: pd.DataFrame, observations: Observations) -> Iterator[CheckFailure]:
    """The failures of missing, unknown and wrongly typed columns."""
    required = (*REQUIRED_COLUMNS, *observations.columns)
    kind = "expect_table_columns_to_match_set"
    if missing := [name for name in required if name not in rows.columns]:
        yield make_failure(kind, None, 0, f"missing columns: {', '.join(missing)}", fatal=True)
    if extra := [str(name) for name in rows.columns if name not in {*required, *ALLOWED_COLUMNS}]:
        yield make_failure(kind, None, 0, f"columns that the contract does not know: {join_names(extra)}")
    types = {"observed_at": "times with a time zone"} | dict.fromkeys(observations.numbers, "numbers")
    for name, required_type in (types | dict.fromkeys(observations.texts, "text")).items():
        if name not in missing and not _has_type(rows[name], required_type):
            text = f"{name}: must hold {required_type}, holds {rows[name].dtype}"
            yield make_failure("expect_column_values_to_be_of_type", name, 0, text, fatal=True)


def _has_type(values: pd.Series[Any], required_type: str) -> bool:
    if required_type == "numbers":
        return values.dtype == np.float64
    if required_type == "text":
        return bool(values.dropna().map(lambda value: isinstance(value, str)).all())
    return isinstance(values.dtype, pd.DatetimeTZDtype)


# --------------------------------------------------------------------------- rows


class _RowRule(NamedTuple):
    """A rule on single rows, and the rows that break it."""

    expectation: str
    about: str
    broken: Mask
    texts: Sequence[str] | str
    """What is wrong with each of the broken rows, or with all of them."""
    quarantine: bool = True
    refuse_above: float = 1.0


def _row_rules(rows: pd.DataFrame, window: Window, observations: Observations) -> Iterator[_RowRule]:
    for name in REQUIRED_COLUMNS:
        yield _missing_rule(name, rows[name].isna())
    yield _duplicate_rule("expect_column_values_to_be_unique", rows, ("observation_id",))
    times = rows["observed_at"]
    outside = times.notna() & ~((times >= pd.Timestamp(window.start)) & (times < pd.Timestamp(window.end)))
    yield _RowRule("expect_column_values_to_be_between", "observed_at", outside.to_numpy(), "outside the window")
    for name, column in observations.columns.items():
        allowed = column.max_missing
        yield _missing_rule(name, rows[name].isna(), quarantine=not allowed, refuse_above=allowed or 1.0)
        yield from _value_rules(name, column, rows[name])
    for names in observations.unique:
        target = "column_values" if len(names) == 1 else "compound_columns"
        yield _duplicate_rule(f"expect_{target}_to_be_unique", rows, names)
    for rule in observations.rules:
        yield _column_rule(rule, rows)


def _missing_rule(name: str, missing: pd.Series[bool], **more: Any) -> _RowRule:
    return _RowRule("expect_column_values_to_not_be_null", name, missing.to_numpy(dtype=bool), "missing", **more)


def _duplicate_rule(expectation: str, rows: pd.DataFrame, names: tuple[str, ...]) -> _RowRule:
    values = rows[list(names)]
    is_duplicate = values.notna().all(axis=1) & values.duplicated(keep=False)
    return _RowRule(expectation, "/".join(names), is_duplicate.to_numpy(dtype=bool), "duplicate")


def _value_rules(name: str, column: Column, values: pd.Series[Any]) -> Iterator[_RowRule]:
    match column:
        case NumberColumn(min=low, max=high):
            yield _range_rule(name, values, low, high, np.isinf(values.to_numpy()))
        case TextColumn(max_length=int() as max_length):
            too_long = values.map(lambda text: isinstance(text, str) and len(text) > max_length).to_numpy(dtype=bool)
            kind = "expect_column_value_lengths_to_be_between"
            yield _RowRule(kind, name, too_long, f"longer than {max_length} characters")
        case CategoryColumn(values=tuple() as allowed):
            unknown = (values.notna() & ~values.isin(allowed)).to_numpy(dtype=bool)
            texts = [f"unknown value {value!r}" for value in values[unknown]]
            yield _RowRule("expect_column_values_to_be_in_set", name, unknown, texts, refuse_above=column.max_unknown)


def _range_rule(
    name: str,
    values: pd.Series[float],
    low: float | None,
    high: float | None,
    always_bad: Mask,
    condition: str = "",
    **more: Any,
) -> _RowRule:
    """The rule of a range ``low…high``; rows of ``always_bad`` break it too."""
    numbers = values.to_numpy(dtype=np.float64)
    outside = always_bad.copy()
    if low is not None:
        outside |= numbers < low
    if high is not None:
        outside |= numbers > high
    texts = [describe_out_of_range(value, low, high) + condition for value in numbers[outside]]
    return _RowRule("expect_column_values_to_be_between", name, outside, texts, **more)


def _column_rule(rule: Rule, rows: pd.DataFrame) -> _RowRule:
    """A missing value breaks no rule except ``present_when``, and meets no condition."""
    allowed = rule.max_broken
    match rule:
        case Ordered(low=low, high=high):
            above = (rows[low] > rows[high]).to_numpy(dtype=bool)
            kind = "expect_column_pair_values_a_to_be_greater_than_b"
            return _RowRule(kind, low, above, f"above {high}", refuse_above=allowed)
        case Pairs(columns=(first, second)):
            pairs = pd.Series(list(zip(rows[first], rows[second], strict=True)), index=rows.index, dtype=object)
            wrong = rows[[first, second]].notna().all(axis=1) & ~pairs.isin(set(rule.allowed))
            texts = [f"not an allowed pair: {value}, {other}" for value, other in pairs[wrong]]
            kind = "expect_column_pair_values_to_be_among"
            return _RowRule(kind, f"{first}/{second}", wrong.to_numpy(dtype=bool), texts, refuse_above=allowed)
        case PresentWhen():
            absent = (_is_met(rule.when, rows) & rows[rule.column].isna()).to_numpy(dtype=bool)
            text = "missing" + describe_condition(rule.when)
            return _RowRule("expect_column_values_to_not_be_null", rule.column, absent, text, refuse_above=allowed)
        case RangeWhen():
            values = rows[rule.column].where(_is_met(rule.when, rows).to_numpy(dtype=bool))
            none = np.zeros(len(rows), dtype=bool)
            condition = describe_condition(rule.when)
            return _range_rule(rule.column, values, rule.min, rule.max, none, condition, refuse_above=allowed)


def _is_met(when: When, rows: pd.DataFrame) -> pd.Series[bool]:
    values = rows[when.column]
    if when.values is not None:
        return values.isin(when.values)
    is_met = values.notna()
    is_met &= True if when.min is None else values >= when.min
    is_met &= True if when.max is None else values <= when.max
    return is_met


def _collect_failures(rule: _RowRule, rows: pd.DataFrame, reasons: Reasons) -> Iterator[CheckFailure]:
    bad = np.flatnonzero(rule.broken)
    texts = [rule.texts] * len(bad) if isinstance(rule.texts, str) else rule.texts
    yield from row_rule_failures(
        rule.expectation, rule.about, bad, texts, len(rows), rule.quarantine, rule.refuse_above, reasons
    )


def row_rule_failures(
    expectation: str,
    about: str,
    bad: np.ndarray[Any, Any],
    texts: Sequence[str],
    rows: int,
    quarantine: bool,
    refuse_above: float,
    reasons: Reasons,
) -> Iterator[CheckFailure]:
    """The failure of a rule on single rows, if it is broken; adds the reasons of its bad rows to ``reasons``.

    :param about: name of the column or columns.
    :param bad: positions of the rows that break the rule, int ``[b]``.
    :param texts: what is wrong with each of them, b texts.
    :param rows: number of rows in the window.
    :param quarantine: whether the bad rows go to quarantine.
    :param refuse_above: share of bad rows above which the window is refused.
    """
    refused = exceeds(len(bad), refuse_above, rows)
    if not len(bad) or not (quarantine or refused):
        return
    if quarantine:
        for position, text in zip(bad.tolist(), texts, strict=True):
            reasons.setdefault(position, []).append(f"{about}: {text}")
    message = f"{about}: {join_names(dict.fromkeys(texts))} in {_describe_share(len(bad), rows)}"
    if refused:
        message += f"; at most {refuse_above:.4g} of the window may"
    yield make_failure(expectation, about, len(bad), message, fatal=refused)


# --------------------------------------------------------------------------- the window as a whole


def _window_failures(good_rows: pd.DataFrame, window: Window, observations: Observations) -> Iterator[CheckFailure]:
    if observations.freshness is not None:
        newest = good_rows["observed_at"].max()
        if pd.isna(newest) or newest < pd.Timestamp(window.end) - observations.freshness:
            text = describe_staleness(newest, window, observations)
            yield make_failure("expect_column_max_to_be_between", "observed_at", 0, text, fatal=True)
    if observations.volume is not None:
        days, low, high = (
            observable_days(window, observations),
            observations.volume.min_per_day,
            observations.volume.max_per_day,
        )
        too_few = low is not None and len(good_rows) < low * days - 1e-9
        too_many = high is not None and days > 0 and len(good_rows) > high * days + 1e-9
        if too_few or too_many:
            text = describe_volume(len(good_rows), window, observations)
            yield make_failure("expect_table_row_count_to_be_between", None, 0, text, fatal=True)


# --------------------------------------------------------------------------- texts


def make_failure(expectation: str, column: str | None, rows: int, text: str, fatal: bool = False) -> CheckFailure:
    """A :class:`~stillhouse.records.CheckFailure` from positional arguments."""
    return CheckFailure(expectation=expectation, column=column, rows=rows, text=text, fatal=fatal)


def describe_out_of_range(value: float, low: float | None, high: float | None) -> str:
    """Which limit a value outside ``low…high`` exceeds: ``above 50``."""
    if np.isinf(value):
        return "infinite"
    return f"above {high:g}" if high is not None and value > high else f"below {low:g}"


def describe_condition(when: When) -> str:
    """The condition of a rule, for the end of a text: `` where origin is EWR or JFK``."""
    if when.values is not None:
        return f" where {when.column} is {' or '.join(when.values)}"
    limits = (("at least", when.min), ("at most", when.max))
    return f" where {when.column} is {' and '.join(f'{word} {limit:g}' for word, limit in limits if limit is not None)}"


def bad_share_failures(reasons: Reasons, rows: int, allowed: float) -> Iterator[CheckFailure]:
    """The failure of a window of which more than the share ``allowed`` is bad; it names columns and rules."""
    if exceeds(len(reasons), allowed, rows):
        counts = list(count_by_rule(reasons.values()).items())
        rules = ", ".join(f"{column}: {rule} ({count:,})" for (column, rule), count in counts[:_MAX_RULES_SHOWN])
        rules += f" and {len(counts) - _MAX_RULES_SHOWN} more" if len(counts) > _MAX_RULES_SHOWN else ""
        text = f"{_describe_share(len(reasons), rows)} are bad; at most {allowed:.4g} of the window may: {rules}"
        yield make_failure("max_bad_rows", None, len(reasons), text, fatal=True)


def describe_staleness(newest: Any, window: Window, observations: Observations) -> str:
    """How old the newest row is at the end of the window, and how old it may be."""
    allowed = f"at most {_format_length(observations.freshness)} are allowed"
    if pd.isna(newest):
        return f"no row is left that could be new; {allowed}"
    newest = pd.Timestamp(newest)
    age = _format_length(pd.Timestamp(window.end) - newest)
    return (
        f"the newest row is of {newest.tz_convert('UTC'):%Y-%m-%d %H:%M} UTC, {age} before the window's end; {allowed}"
    )


def describe_volume(rows: int, window: Window, observations: Observations) -> str:
    """How many rows per day the window has, and how many are expected."""
    days, volume = observable_days(window, observations), observations.volume
    assert volume is not None  # the rule comes from it
    limits = (("at least", volume.min_per_day), ("at most", volume.max_per_day))
    expected = " and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)
    return f"{rows:,} rows in {days:.3g} days are {rows / max(days, 1e-9):.4g} a day; {expected} are expected"


def count_by_rule(reasons: Iterable[Sequence[str]]) -> Mapping[tuple[str, str], int]:
    """Count the rows that broke each rule of each column, the most frequent rule first.

    :param reasons: for each bad row, the reasons that a check or an import recorded.

    >>> count_by_rule([["temp: above 50", "carrier: unknown value 'ZZ'"], ["log.csv:3: carrier: 'a: b' is no text"]])
    {('temp', 'above 50'): 1, ('carrier', 'unknown value'): 1, ('carrier', 'is no text'): 1}
    """
    counts = Counter(rule for row_reasons in reasons for rule in dict.fromkeys(map(_rule_of, row_reasons)))
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _rule_of(reason: str) -> tuple[str, str]:
    """Column and rule of one reason, without the value that broke the rule."""
    reason = _FILE_AND_LINE.sub("", reason)
    column, colon, rule = reason.partition(": ")
    if not colon:
        return "", reason
    rule = re.sub(r"^(?:'.*'|\".*\") (?=(?:is|comes|says|lies) )", "", rule, flags=re.DOTALL)
    return column, re.sub(r"^(unknown value|not an allowed pair)\b.*", r"\1", rule, flags=re.DOTALL)


_FILE_AND_LINE = re.compile(r"^[^:]+:\d+: ")  # of an import
_MAX_RULES_SHOWN = 5


def exceeds(count: int, share: float, total: int) -> bool:
    """Whether ``count`` is more than ``share`` of ``total``, with a tolerance for rounding.

    >>> exceeds(29, 0.29, 100)  # 0.29 · 100 is 28.999… in floating point
    False
    """
    return count > share * total + 1e-9


def join_names(names: Iterable[str], limit: int = 5) -> str:
    """The first ``limit`` names, separated by commas, and the number of the others."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit} more" if len(texts) > limit else "")


def _describe_share(count: int, total: int) -> str:
    return f"{count} of {total} rows ({count / total:.2%})"


def _format_length(length: Any) -> str:
    """A length of time in its two largest units: ``1d 21h``."""
    seconds = int(pd.Timedelta(length).total_seconds())
    parts = []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        if seconds >= size:
            parts.append(f"{seconds // size}{unit}")
            seconds %= size
    return " ".join(parts[:2]) or "0s"


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()
