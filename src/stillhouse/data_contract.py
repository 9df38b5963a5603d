"""The data contract of an agent file, asked of rows in memory: what is broken, and which rows would be set aside.

The flows hand in the report of a Great Expectations suite (``data_checks``), which also writes Data Docs. This module
evaluates the same rules in milliseconds without it: for the wheel, ``check`` and replay. Both describe what they find
in the words of this module, and tests hold the suite against it rule by rule and on random rows. Drift is no rule of
the contract, and is not measured here.
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
    "KNOWN_BY_ALL",
    "QUARANTINE_COLUMNS",
    "REQUIRED_OF_ALL",
    "Examined",
    "Reasons",
    "check",
    "counted",
    "data_report",
    "examine",
    "exceeds",
    "failure",
    "listed",
    "lived_days",
    "no_rows",
    "out_of_range",
    "prepared",
    "quarantine",
    "repeated_columns",
    "row_failure",
    "skip",
    "stale",
    "too_few_or_many",
    "too_many_bad",
    "where",
]

REQUIRED_OF_ALL = ("observation_id", "observed_at")
QUARANTINE_COLUMNS = ("observation_id", "observed_at", "reasons")
KNOWN_BY_ALL = (*REQUIRED_OF_ALL, "content_key")  # the knowledge base adds the key

Mask = np.ndarray[Any, np.dtype[np.bool_]]

Reasons = dict[int, list[str]]
"""Why a row is bad, by its position in the window."""


class Examined(NamedTuple):
    """What the contract says of some rows."""

    failures: tuple[CheckFailure, ...]
    reasons: Reasons

    @property
    def refused(self) -> tuple[str, ...]:
        """Why the window as a whole could not be used; empty where it could."""
        return tuple(failure.text for failure in self.failures if failure.fatal)


def check(rows: pd.DataFrame, window: Window, config: AgentConfig) -> tuple[DataReport, pd.DataFrame]:
    """The report of the contract on ``rows`` of ``window``, and the rows to set aside, without Great Expectations.

    What ``data_checks.check.check`` returns for the same rows, where no reference is given to measure drift from.

    :returns: the report, and the bad rows on their index labels: ``observation_id``, ``observed_at``, ``reasons``.
    """
    start = time.perf_counter()
    failures, reasons = examine(rows, window, config.observations)
    report = data_report(rows, window, failures, reasons, seconds=time.perf_counter() - start)
    return report, quarantine(rows, reasons)


def skip(reason: str) -> Callable[[pd.DataFrame, Window, AgentConfig], tuple[DataReport, pd.DataFrame]]:
    """Instead of :func:`check`: asks nothing and sets nothing aside; the verdict records the reason.

    >>> import stillhouse
    >>> from stillhouse import data_contract
    >>> unchecked = data_contract.skip("a replay of a week that was checked when it passed")
    >>> verdict = stillhouse.watch("flights", contract=unchecked)  # doctest: +SKIP
    """

    def skipped(rows: pd.DataFrame, window: Window, config: AgentConfig) -> tuple[DataReport, pd.DataFrame]:
        return DataReport.skipped(window, len(rows), reason), quarantine(rows, {})

    return skipped


def data_report(
    rows: pd.DataFrame, window: Window, failures: Iterable[CheckFailure], reasons: Reasons, seconds: float
) -> DataReport:
    """What was found as a record, the fatal failures first."""
    return DataReport(
        window=window,
        rows=len(rows),
        quarantined=len(reasons),
        failures=tuple(sorted(failures, key=lambda failure: not failure.fatal)),
        seconds=seconds,
    )


def quarantine(rows: pd.DataFrame, reasons: Reasons) -> pd.DataFrame:
    """The bad ones of ``rows``, on their index labels, with :data:`QUARANTINE_COLUMNS`."""
    if not reasons:
        return pd.DataFrame(columns=list(QUARANTINE_COLUMNS))
    bad = rows.iloc[list(reasons)][["observation_id", "observed_at"]].copy()
    bad["reasons"] = pd.Series(list(reasons.values()), index=bad.index, dtype=object)
    return bad


def examine(rows: pd.DataFrame, window: Window, observations: Observations) -> Examined:
    """``rows`` of ``window`` against every rule of ``observations``; a broken contract is a result, never an error."""
    if not len(rows):
        return Examined((no_rows(),), {})
    if repeated := repeated_columns(rows):
        return Examined((repeated,), {})
    rows = prepared(rows, observations)
    failures = list(_structure(rows, observations))
    if any(each.fatal for each in failures):
        return Examined(tuple(failures), {})
    reasons: Reasons = {}
    for broken in _broken(rows, window, observations):
        failures += _set_aside(broken, rows, reasons)
    failures += too_many_bad(reasons, len(rows), observations.max_bad_rows)
    sound = rows.drop(index=list(reasons))
    failures += _of_the_window(sound, window, observations)
    return Examined(tuple(sorted(failures, key=lambda each: not each.fatal)), dict(sorted(reasons.items())))


def prepared(rows: pd.DataFrame, observations: Observations) -> pd.DataFrame:
    """The same rows by position 0…n−1, numbers of any numeric type as float64, empty texts as missing."""
    found = rows.reset_index(drop=True)
    for name in set(observations.numbers) & set(found.columns):
        values = found[name]
        if pd.api.types.is_numeric_dtype(values) or values.isna().all():
            found[name] = pd.to_numeric(values).to_numpy(dtype=np.float64, na_value=np.nan)
    for name in set(observations.texts) & set(found.columns):
        found[name] = found[name].mask(found[name].map(_is_blank).astype(bool))
    return found


def lived_days(window: Window, observations: Observations) -> float:
    """Days of the window in which rows can be: what lies before ``observations.since`` does not count."""
    return max(window.end - max(window.start, observations.since), timedelta(0)) / timedelta(days=1)


# --------------------------------------------------------------------------- columns and their types


def no_rows() -> CheckFailure:
    return failure("window_not_empty", None, 0, "the window has no rows", fatal=True)


def repeated_columns(rows: pd.DataFrame) -> CheckFailure | None:
    """Why no rule can be asked of ``rows``: a name that stands for two columns."""
    if not (repeated := rows.columns[rows.columns.duplicated()].unique().tolist()):
        return None
    return failure("unique_columns", None, 0, f"columns {repeated} are there more than once", fatal=True)


def _structure(rows: pd.DataFrame, observations: Observations) -> Iterator[CheckFailure]:
    required = (*REQUIRED_OF_ALL, *observations.columns)
    kind = "expect_table_columns_to_match_set"
    if missing := [name for name in required if name not in rows.columns]:
        yield failure(kind, None, 0, f"missing columns: {', '.join(missing)}", fatal=True)
    if extra := [str(name) for name in rows.columns if name not in {*required, *KNOWN_BY_ALL}]:
        yield failure(kind, None, 0, f"columns that the contract does not know: {listed(extra)}")
    kinds = {"observed_at": "times with a time zone"} | dict.fromkeys(observations.numbers, "numbers")
    for name, wanted in (kinds | dict.fromkeys(observations.texts, "text")).items():
        if name not in missing and not _holds(rows[name], wanted):
            text = f"{name}: must hold {wanted}, holds {rows[name].dtype}"
            yield failure("expect_column_values_to_be_of_type", name, 0, text, fatal=True)


def _holds(values: pd.Series[Any], wanted: str) -> bool:
    if wanted == "numbers":
        return values.dtype == np.float64
    if wanted == "text":
        return bool(values.dropna().map(lambda value: isinstance(value, str)).all())
    return isinstance(values.dtype, pd.DatetimeTZDtype)


# --------------------------------------------------------------------------- rows


class _Broken(NamedTuple):
    """A rule, and the rows that break it."""

    expectation: str
    about: str
    mask: Mask
    words: Sequence[str] | str
    """What is wrong with each of these rows, or with all of them."""
    quarantine: bool = True
    refuse_above: float = 1.0


def _broken(rows: pd.DataFrame, window: Window, observations: Observations) -> Iterator[_Broken]:
    for name in REQUIRED_OF_ALL:
        yield _missing(name, rows[name].isna())
    yield _duplicate("expect_column_values_to_be_unique", rows, ("observation_id",))
    times = rows["observed_at"]
    outside = times.notna() & ~((times >= pd.Timestamp(window.start)) & (times < pd.Timestamp(window.end)))
    yield _Broken("expect_column_values_to_be_between", "observed_at", outside.to_numpy(), "outside the window")
    for name, column in observations.columns.items():
        allowed = column.max_missing
        yield _missing(name, rows[name].isna(), quarantine=not allowed, refuse_above=allowed or 1.0)
        yield from _values(name, column, rows[name])
    for names in observations.unique:
        one = len(names) == 1
        yield _duplicate(f"expect_{'column_values' if one else 'compound_columns'}_to_be_unique", rows, names)
    for rule in observations.rules:
        yield _rule(rule, rows)


def _missing(name: str, missing: pd.Series[bool], **more: Any) -> _Broken:
    return _Broken("expect_column_values_to_not_be_null", name, missing.to_numpy(dtype=bool), "missing", **more)


def _duplicate(expectation: str, rows: pd.DataFrame, names: tuple[str, ...]) -> _Broken:
    compared = rows[list(names)]
    twice = compared.notna().all(axis=1) & compared.duplicated(keep=False)
    return _Broken(expectation, "/".join(names), twice.to_numpy(dtype=bool), "duplicate")


def _values(name: str, column: Column, values: pd.Series[Any]) -> Iterator[_Broken]:
    match column:
        case NumberColumn(min=low, max=high):
            yield _out(name, values, low, high, np.isinf(values.to_numpy()))
        case TextColumn(max_length=int() as longest):
            long = values.map(lambda text: isinstance(text, str) and len(text) > longest).to_numpy(dtype=bool)
            kind = "expect_column_value_lengths_to_be_between"
            yield _Broken(kind, name, long, f"longer than {longest} characters")
        case CategoryColumn(values=tuple() as known):
            strange = (values.notna() & ~values.isin(known)).to_numpy(dtype=bool)
            words = [f"unknown value {value!r}" for value in values[strange]]
            yield _Broken("expect_column_values_to_be_in_set", name, strange, words, refuse_above=column.max_unknown)


def _out(
    name: str, values: pd.Series[float], low: float | None, high: float | None, also: Mask, where: str = "", **more: Any
) -> _Broken:
    numbers = values.to_numpy(dtype=np.float64)
    out = also.copy()
    if low is not None:
        out |= numbers < low
    if high is not None:
        out |= numbers > high
    words = [out_of_range(value, low, high) + where for value in numbers[out]]
    return _Broken("expect_column_values_to_be_between", name, out, words, **more)


def _rule(rule: Rule, rows: pd.DataFrame) -> _Broken:
    """Missing values break no rule but ``present_when``; a condition on a missing value is not met."""
    allowed = rule.max_broken
    match rule:
        case Ordered(low=low, high=high):
            above = (rows[low] > rows[high]).to_numpy(dtype=bool)
            kind = "expect_column_pair_values_a_to_be_greater_than_b"
            return _Broken(kind, low, above, f"above {high}", refuse_above=allowed)
        case Pairs(columns=(first, second)):
            known = set(rule.allowed)
            pairs = pd.Series(list(zip(rows[first], rows[second], strict=True)), index=rows.index, dtype=object)
            wrong = rows[[first, second]].notna().all(axis=1) & ~pairs.isin(known)
            words = [f"not an allowed pair: {one}, {other}" for one, other in pairs[wrong]]
            kind = "expect_column_pair_values_to_be_among"
            return _Broken(kind, f"{first}/{second}", wrong.to_numpy(dtype=bool), words, refuse_above=allowed)
        case PresentWhen():
            bad = _met(rule.when, rows) & rows[rule.column].isna()
            kind = "expect_column_values_to_not_be_null"
            return _Broken(
                kind, rule.column, bad.to_numpy(dtype=bool), "missing" + where(rule.when), refuse_above=allowed
            )
        case RangeWhen():
            met = _met(rule.when, rows).to_numpy(dtype=bool)
            found = rows[rule.column].where(met)
            nothing = np.zeros(len(rows), dtype=bool)
            return _out(rule.column, found, rule.min, rule.max, nothing, where(rule.when), refuse_above=allowed)


def _met(when: When, rows: pd.DataFrame) -> pd.Series[bool]:
    values = rows[when.column]
    if when.values is not None:
        return values.isin(when.values)
    met = values.notna()
    met &= True if when.min is None else values >= when.min
    met &= True if when.max is None else values <= when.max
    return met


def _set_aside(broken: _Broken, rows: pd.DataFrame, reasons: Reasons) -> Iterator[CheckFailure]:
    bad = np.flatnonzero(broken.mask)
    words = [broken.words] * len(bad) if isinstance(broken.words, str) else broken.words
    yield from row_failure(
        broken.expectation, broken.about, bad, words, len(rows), broken.quarantine, broken.refuse_above, reasons
    )


def row_failure(
    expectation: str,
    about: str,
    bad: np.ndarray[Any, Any],
    words: Sequence[str],
    rows: int,
    quarantine: bool,
    refuse_above: float,
    reasons: Reasons,
) -> Iterator[CheckFailure]:
    """What one rule on rows found; the reasons of its bad rows are added to ``reasons``.

    :param bad: positions of the rows that break it, int ``[b]``; ``words`` says of each what is wrong.
    """
    refused = exceeds(len(bad), refuse_above, rows)
    if not len(bad) or not (quarantine or refused):
        return
    if quarantine:
        for position, word in zip(bad.tolist(), words, strict=True):
            reasons.setdefault(position, []).append(f"{about}: {word}")
    text = f"{about}: {listed(dict.fromkeys(words))} in {_rows(len(bad), rows)}"
    if refused:
        text += f"; at most {refuse_above:.4g} of the window may"
    yield failure(expectation, about, len(bad), text, fatal=refused)


# --------------------------------------------------------------------------- the window as a whole


def _of_the_window(sound: pd.DataFrame, window: Window, observations: Observations) -> Iterator[CheckFailure]:
    if observations.freshness is not None:
        newest = sound["observed_at"].max()
        if pd.isna(newest) or newest < pd.Timestamp(window.end) - observations.freshness:
            text = stale(newest, window, observations)
            yield failure("expect_column_max_to_be_between", "observed_at", 0, text, fatal=True)
    if observations.volume is not None:
        days, low, high = (
            lived_days(window, observations),
            observations.volume.min_per_day,
            observations.volume.max_per_day,
        )
        few = low is not None and len(sound) < low * days - 1e-9
        many = high is not None and days > 0 and len(sound) > high * days + 1e-9
        if few or many:
            text = too_few_or_many(len(sound), window, observations)
            yield failure("expect_table_row_count_to_be_between", None, 0, text, fatal=True)


# --------------------------------------------------------------------------- words


def failure(expectation: str, column: str | None, rows: int, text: str, fatal: bool = False) -> CheckFailure:
    return CheckFailure(expectation=expectation, column=column, rows=rows, text=text, fatal=fatal)


def out_of_range(value: float, low: float | None, high: float | None) -> str:
    if np.isinf(value):
        return "infinite"
    return f"above {high:g}" if high is not None and value > high else f"below {low:g}"


def where(when: When) -> str:
    """The condition of a rule, as its words end with it."""
    if when.values is not None:
        return f" where {when.column} is {' or '.join(when.values)}"
    ends = [f"{word} {value:g}" for word, value in (("at least", when.min), ("at most", when.max)) if value is not None]
    return f" where {when.column} is {' and '.join(ends)}"


def too_many_bad(reasons: Reasons, rows: int, allowed: float) -> Iterator[CheckFailure]:
    """Refuse a window of which more than the share ``allowed`` is in quarantine, naming columns and rules."""
    if exceeds(len(reasons), allowed, rows):
        broken = list(counted(reasons.values()).items())
        why = ", ".join(f"{column}: {rule} ({count:,})" for (column, rule), count in broken[:_MOST_NAMED])
        why += f" and {len(broken) - _MOST_NAMED} more" if len(broken) > _MOST_NAMED else ""
        text = f"{_rows(len(reasons), rows)} are bad; at most {allowed:.4g} of the window may: {why}"
        yield failure("max_bad_rows", None, len(reasons), text, fatal=True)


def stale(newest: Any, window: Window, observations: Observations) -> str:
    allowed = f"at most {_time(observations.freshness)} are allowed"
    if pd.isna(newest):
        return f"no row is left that could be new; {allowed}"
    newest = pd.Timestamp(newest)
    age = _time(pd.Timestamp(window.end) - newest)
    return (
        f"the newest row is of {newest.tz_convert('UTC'):%Y-%m-%d %H:%M} UTC, {age} before the window's end; {allowed}"
    )


def too_few_or_many(rows: int, window: Window, observations: Observations) -> str:
    days, volume = lived_days(window, observations), observations.volume
    assert volume is not None  # the rule comes from it
    ends = [
        f"at {word} {bound:g}"
        for word, bound in (("least", volume.min_per_day), ("most", volume.max_per_day))
        if bound is not None
    ]
    return f"{rows:,} rows in {days:.3g} days are {rows / max(days, 1e-9):.4g} a day; {' and '.join(ends)} are expected"


def counted(reasons: Iterable[Sequence[str]]) -> Mapping[tuple[str, str], int]:
    """How many rows broke which rule of which column, most often first.

    :param reasons: why each row is bad, as a check or an import has written it.

    >>> counted([["temp: above 50", "carrier: unknown value 'ZZ'"], ["log.csv:3: carrier: 'a: b' is no text"]])
    {('temp', 'above 50'): 1, ('carrier', 'unknown value'): 1, ('carrier', 'is no text'): 1}
    """
    rules = Counter(rule for why in reasons for rule in dict.fromkeys(map(_rule_of, why)))
    return dict(sorted(rules.items(), key=lambda each: -each[1]))


def _rule_of(reason: str) -> tuple[str, str]:
    """Column and rule of one reason, without the value that broke it."""
    reason = _FILE_AND_LINE.sub("", reason)
    column, colon, rule = reason.partition(": ")
    if not colon:
        return "", reason
    rule = re.sub(r"^(?:'.*'|\".*\") (?=(?:is|comes|says|lies) )", "", rule, flags=re.DOTALL)
    return column, re.sub(r"^(unknown value|not an allowed pair)\b.*", r"\1", rule, flags=re.DOTALL)


_FILE_AND_LINE = re.compile(r"^[^:]+:\d+: ")  # of an import
_MOST_NAMED = 5


def exceeds(count: int, share: float, total: int) -> bool:
    return count > share * total + 1e-9  # 0.29 of 100 rows is 28.999…, and 29 rows do not exceed it


def listed(names: Iterable[str], most: int = 5) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:most]) + (f" and {len(shown) - most} more" if len(shown) > most else "")


def _rows(count: int, total: int) -> str:
    return f"{count} of {total} rows ({count / total:.2%})"


def _time(length: Any) -> str:
    """A length of time as an agent file writes it, to two units: ``1d 21h``."""
    seconds = int(pd.Timedelta(length).total_seconds())
    parts = []
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1)):
        if seconds >= size:
            parts.append(f"{seconds // size}{unit}")
            seconds %= size
    return " ".join(parts[:2]) or "0s"


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()
