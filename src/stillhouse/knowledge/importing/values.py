"""The raw columns of a chunk as numbers, strings, actions, probabilities and times; errors by row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import ImportedTime
from stillhouse.frames import ReadColumn, has_time_zone, read_numbers, read_texts
from stillhouse.knowledge.time_range import is_out_of_range
from stillhouse.values import is_missing

__all__ = ["RawColumns", "RowErrors"]

_COMPACT_DATE = r"\d{8}"  # an integer that is an ISO date: 20130601

RowErrors = dict[int, list[str]]
"""Why rows cannot be used, by row index in the chunk."""


class RawColumns:
    """The columns of a chunk; every method adds the reason for an unusable value to ``errors`` of its row.

    :param missing: strings that stand for a missing value.
    """

    def __init__(self, rows: pd.DataFrame, missing: tuple[str, ...]) -> None:
        self.rows, self.missing = rows, missing

    def numbers(self, column: str, errors: RowErrors) -> pd.Series[float]:
        """Float64 ``[n]``; missing as NaN."""
        raw = self._raw(column)
        numbers = _collect_errors(read_numbers(raw), column, errors)
        _report(numbers.abs() == np.inf, column, raw, "is not finite", errors)
        return numbers

    def texts(
        self, column: str, errors: RowErrors, *, required: bool = False, missing: tuple[str, ...] | None = None
    ) -> pd.Series[str]:
        """Strings or None, ``[n]``; numbers, booleans and dates as they are written.

        :param missing: overrides the strings that stand for a missing value.
        """
        raw = self._raw(column, missing)
        texts = _collect_errors(read_texts(raw), column, errors)
        if required:
            _report(raw.isna(), column, raw, "is missing", errors)
        return texts

    def actions(
        self, column: str, action_of: dict[str, str], allowed: Sequence[str], errors: RowErrors
    ) -> pd.Series[str]:
        """Names of actions or None, ``[n]``.

        :param action_of: maps the file's words to actions.
        """
        raw = self.texts(column, errors)
        actions = raw.map(lambda word: action_of.get(word, word), na_action="ignore")
        is_unknown = actions.notna() & ~actions.isin(list(allowed))
        _report(is_unknown, column, raw, f"is no action; there are: {', '.join(allowed)}", errors)
        return actions.where(actions.notna(), None)

    def probabilities(self, columns: Sequence[str], errors: RowErrors) -> pd.Series[Any]:
        """``[n]`` lists of K probabilities, or None if all are missing."""
        probs = pd.concat([self.numbers(column, errors) for column in columns], axis=1).to_numpy()
        all_missing = np.isnan(probs).all(axis=1)
        is_wrong = ~all_missing & ~((probs >= 0).all(axis=1) & (np.abs(probs.sum(axis=1) - 1) < 1e-3))
        for row in np.flatnonzero(is_wrong).tolist():
            errors[row].append(f"{', '.join(columns)}: {probs[row].tolist()} are no probabilities that sum to 1")
        lists = pd.Series(list(probs), index=self.rows.index, dtype=object)
        return lists.where(~all_missing, None)

    def times(self, setting: ImportedTime, errors: RowErrors, *, required: bool = False) -> pd.Series[pd.Timestamp]:
        """UTC timestamps in microseconds, ``[n]``; missing as NaT."""
        raw = self._raw(setting.column)
        reason = "is before 1700 or after now: are its unit and its zone right?"
        is_absent, is_extreme = raw.isna(), _exceeds_microseconds(raw)
        if is_extreme.any():  # Python's time zones do not reach that far
            in_utc = raw.dt.tz_convert(None) if isinstance(raw.dtype, pd.DatetimeTZDtype) else raw
            _report(is_extreme, setting.column, in_utc, reason, errors)
            raw = raw.mask(is_extreme)
        times = _parse_times(raw, setting, errors)
        out_of_range = is_out_of_range(times)
        _report(out_of_range, setting.column, raw, reason, errors)
        if required:
            _report(is_absent, setting.column, raw, "is missing", errors)
        return times.mask(out_of_range)

    def _raw(self, column: str, missing: tuple[str, ...] | None = None) -> pd.Series[Any]:
        """The raw values, None where they stand for a missing value."""
        raw = self.rows[column]
        if raw.dtype.kind in "biufmM":  # no strings
            return raw
        is_absent = raw.isin(list(self.missing if missing is None else missing))
        return raw.where(~is_absent, None) if is_absent.any() else raw


def _parse_times(raw: pd.Series[Any], setting: ImportedTime, errors: RowErrors) -> pd.Series[pd.Timestamp]:
    if pd.api.types.is_datetime64_any_dtype(raw):
        if isinstance(raw.dtype, pd.DatetimeTZDtype):
            times: pd.Series[pd.Timestamp] = raw.dt.tz_convert("UTC").dt.as_unit("us")
            return times
        return _localize(raw, raw, setting, errors)
    if setting.format in ("s", "ms", "us"):
        ticks = read_numbers(raw).values * {"s": 1e6, "ms": 1e3, "us": 1.0}[setting.format]
        is_valid = raw.isna() | (ticks.abs() < 9e18)
        _report(~is_valid, setting.column, raw, f"is no number of {setting.format} since 1970", errors)
        times = pd.to_datetime(ticks.where(is_valid).round().astype("Int64"), unit="us", utc=True)
        return times.dt.as_unit("us")
    texts = read_texts(raw).values.str.strip()
    texts = texts.where(texts.str.contains(r"\d", na=False), None)  # pandas would parse "now" and "today"
    is_iso = setting.format == "iso" or pd.api.types.infer_dtype(raw, skipna=True) in ("date", "datetime")
    if is_iso:  # a number is accepted only as a compact date; `format` declares other counts
        is_number = raw.map(lambda value: isinstance(value, int | float)).to_numpy(dtype=bool, na_value=False)
        texts = texts.where(~is_number | texts.str.fullmatch(_COMPACT_DATE, na=False), None)
    form = "ISO8601" if is_iso else setting.format
    zoned = has_time_zone(texts) if is_iso else pd.Series("%z" in setting.format, index=texts.index)
    zoned_times = pd.to_datetime(texts.where(zoned), format=form, utc=True, errors="coerce").dt.as_unit("us")
    naive_times = pd.to_datetime(texts.where(~zoned), format=form, errors="coerce")
    what = "is no ISO moment such as 2024-05-01T12:00:00Z" if is_iso else f"is not of the form {setting.format}"
    _report(raw.notna() & zoned_times.isna() & naive_times.isna(), setting.column, raw, what, errors)
    return zoned_times.fillna(_localize(naive_times, raw, setting, errors))


def _localize(
    times: pd.Series[pd.Timestamp], raw: pd.Series[Any], setting: ImportedTime, errors: RowErrors
) -> pd.Series[pd.Timestamp]:
    """Times without a zone as UTC, by the zone of the setting."""
    if setting.timezone is None:
        remedy = f"write `{{column: {setting.column}, timezone: …}}` in `importing`"
        _report(times.notna(), setting.column, raw, f"says no time zone: {remedy}", errors)
        return pd.Series(pd.NaT, index=times.index, dtype="datetime64[us, UTC]")
    localized = times.dt.as_unit("us").dt.tz_localize(setting.timezone, ambiguous="NaT", nonexistent="NaT")
    is_ambiguous = localized.isna() & times.notna()
    reason = f"comes twice or never in {setting.timezone}, when clocks are set"
    _report(is_ambiguous, setting.column, raw, reason, errors)
    return localized.dt.tz_convert("UTC")


def _exceeds_microseconds(raw: pd.Series[Any]) -> pd.Series[bool]:
    """Mask of datetimes outside the range of microsecond timestamps, bool ``[n]``."""
    if not pd.api.types.is_datetime64_any_dtype(raw):
        return pd.Series(False, index=raw.index)
    zone = getattr(raw.dtype, "tz", None)
    first, last = (pd.Timestamp(f"{year}-01-01", tz=zone).as_unit("s") for year in ("0002", "9998"))
    return (raw < first) | (raw > last)


def _collect_errors(column: ReadColumn, name: str, errors: RowErrors) -> pd.Series[Any]:
    for row, reason in column.refused.items():
        errors[row].append(f"{name}: {reason}")
    return column.values


def _report(mask: pd.Series[bool], column: str, raw: pd.Series[Any], reason: str, errors: RowErrors) -> None:
    """Add the reason to the errors of the masked rows, with the raw value."""
    for row in np.flatnonzero(mask.to_numpy(dtype=bool, na_value=False)):
        value = raw.iloc[row]
        shown = "" if is_missing(value) else f"{str(value)[:60]!r} "
        errors[int(row)].append(f"{column}: {shown}{reason}")
