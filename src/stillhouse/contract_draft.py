"""Draft the ``observations`` section of an agent file from observed rows, for a person to edit.

A draft contains the observed limits with a wide margin. It should detect broken data (a changed unit, a sentinel such
as 9999, a feed that stopped) and accept drift, which a watch measures. So ranges are three times as wide as observed,
and a rule is only drafted if independent columns would have broken it several times.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import yaml
from pydantic import TypeAdapter, ValidationError

from stillhouse.config import AgentConfig, CategoryColumn, Column, Observations
from stillhouse.errors import ConfigError, PartError, SchemaError, WindowError
from stillhouse.frames import require_distinct, to_texts
from stillhouse.knowledge import KnowledgeBase
from stillhouse.parts import resolve
from stillhouse.shown import escape_line

__all__ = ["MIN_ROWS", "draft", "load_rows"]

MIN_ROWS = 100
"""Fewest rows for a draft, and for a rule in it."""

MAX_CATEGORY_VALUES = 40
"""A category with more values is drafted without ``values``."""

MIN_TEXT_WORDS = 3
"""A column with many values is a text if at least half of its values have this many words."""

MIN_EXPECTED_BREAKS = 3
"""How often independent columns would be expected to break a rule before it is drafted: e⁻³ is 5 %."""

DRAFTED_MAX_BROKEN = 0.01
"""Share of rows that may break a drafted rule."""

RESERVED_COLUMNS = ("observation_id", "observed_at", "content_key")

Frame = pd.DataFrame
Fields = dict[str, Any]


# --------------------------------------------------------------------------- reading the rows


def load_rows(
    config: AgentConfig, start: datetime | None, end: datetime | None, last: timedelta, from_source: bool = False
) -> Frame:
    """Load rows for a draft from the knowledge base or, if that is empty, from the agent's source.

    :param start: start of the window; by default ``end`` minus ``last``, or ``observations.since`` for the source.
    :param end: end of the window; by default ``start`` plus ``last``, or the newest row of the knowledge base.
    :param last: length of the window if ``start`` or ``end`` is not given.
    :param from_source: always read from the source, which has columns that the agent file does not name.
    :raises PartError: if the source fails, or does not return a data frame.
    """
    base = KnowledgeBase(config)
    if not from_source and (until := base.observed_until()) is not None:
        start, end = _window(start, end, last, default=(until - last, until))
        return base.read("observations", base.window("contract", start, end))
    where, since = f"{config.file}: observations.source", config.observations.since
    if config.observations.source is None or since is None:
        remedy = "leave --source out" if from_source else "send it observations, or run `stillhouse import`"
        raise ConfigError(f"{where}: the agent has none, and its rows are those of its knowledge base: {remedy}")
    start, end = _window(start, end, last, default=(since, since + last))
    source = resolve(config.observations.source, where=where, folder=config.folder)
    try:
        rows = source(start, end)
    except Exception as error:
        raise PartError(f"{where} fails from {start} to {end}: {type(error).__name__}: {error}") from error
    if not isinstance(rows, pd.DataFrame):
        raise PartError(f"{where} returns a {type(rows).__name__}, not a pandas DataFrame")
    return rows


def _window(
    start: datetime | None, end: datetime | None, last: timedelta, default: tuple[datetime, datetime]
) -> tuple[datetime, datetime]:
    """Start and end of the window; ``default`` if neither is given."""
    if start is None and end is None:
        return default
    if start is None:
        assert end is not None
        return end - last, end
    return start, end if end is not None else start + last


# --------------------------------------------------------------------------- the draft


def draft(rows: Frame, config: AgentConfig) -> str:
    """Draft the ``observations:`` section as YAML, with the observed values beside each line.

    Keys that the agent file sets are kept. The draft adds what it leaves open: ranges, missing shares and values of
    columns, freshness, volume, unique combinations, rules, and columns that it does not name.

    :param rows: ``observation_id``, ``observed_at`` (with a time zone) and any columns; :data:`MIN_ROWS` or more.
    :returns: YAML that :func:`~stillhouse.config.load` accepts as this section.
    :raises SchemaError: if one of the two is missing, the times have no zone, two columns have the same name, or a text
        is not Unicode.
    :raises WindowError: if there are fewer rows.
    """
    rows = _check_rows(rows)
    lines, columns = _draft_columns(rows, config.observations, reads_text=config.student.reads_text)
    return (
        "\n".join(
            [
                *_draft_head(rows, config.observations),
                *_draft_freshness(rows["observed_at"], config),
                *_draft_volume(rows["observed_at"], config),
                *_draft_unique(rows, config.observations, columns),
                *_draft_rules(rows, config.observations, columns),
                *lines,
            ]
        )
        + "\n"
    )


def _check_rows(rows: Frame) -> Frame:
    """The rows in order of time, without missing or repeated ids."""
    require_distinct(rows.columns, "the rows")
    if missing := [name for name in RESERVED_COLUMNS[:2] if name not in rows.columns]:
        raise SchemaError(f"the rows lack {' and '.join(missing)}; they have {list(rows.columns)}")
    if len(rows) and not isinstance(rows["observed_at"].dtype, pd.DatetimeTZDtype):
        raise SchemaError(f"observed_at must be timestamps with a time zone, not {rows['observed_at'].dtype}")
    rows = rows.dropna(subset=list(RESERVED_COLUMNS[:2])).drop_duplicates("observation_id")
    if len(rows) < MIN_ROWS:
        raise WindowError(
            f"the window has {len(rows)} rows, and a draft needs {MIN_ROWS}: choose a longer one (--last), or let it "
            "begin where the rows do (`observations.since`, or --start)"
        )
    return rows.sort_values("observed_at", kind="stable", ignore_index=True)


def _draft_head(rows: Frame, observations: Observations) -> Iterator[str]:
    first, last = rows["observed_at"].iloc[[0, -1]].dt.tz_convert("UTC")
    yield f"# Drafted from {len(rows):,} rows of {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC."
    yield "# It contains the observed limits with a margin; only you know which are right. Edit it."
    yield "observations:"
    if observations.source is not None:
        yield f"  source: {_to_flow_yaml(observations.source)}"
    if observations.since is not None:
        yield f"  since: {observations.since.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    yield f"  min_rows: {observations.min_rows}"
    yield f"  max_bad_rows: {_to_flow_yaml(observations.max_bad_rows)}"


# --------------------------------------------------------------------------- the window as a whole

_LENGTHS = {
    "15m": 15,
    "30m": 30,
    "1h": 60,
    "2h": 120,
    "3h": 180,
    "6h": 360,
    "12h": 720,
    "1d": 1440,
    "2d": 2880,
    "4d": 5760,
    "1w": 10_080,
    "2w": 20_160,
    "4w": 40_320,
}


def _draft_freshness(times: pd.Series[Any], config: AgentConfig) -> Iterator[str]:
    """Twice the longest time without a row, as a round length; no limit where no window with rows could exceed it."""
    longest_gap = times.diff().max()
    observed = f"longest time without a row: {_length(longest_gap)}"
    freshness = config.observations.freshness
    if freshness is not None:
        yield f"  freshness: {_duration(freshness)}    # {observed}"
        return
    name = next((name for name, minutes in _LENGTHS.items() if timedelta(minutes=minutes) >= 2 * longest_gap), None)
    window = _window_length(times, config)
    if name is not None and timedelta(minutes=_LENGTHS[name]) < window:
        yield f"  freshness: {name}    # {observed}"
    else:
        yield f"  # freshness: left out; {observed}, and a window is {_length(window)} long"


def _draft_volume(times: pd.Series[Any], config: AgentConfig) -> Iterator[str]:
    """From half of the lowest daily rate to twice the highest; over days, or over windows if these are shorter."""
    period = min(pd.Timedelta(days=1), pd.Timedelta(_window_length(times, config)))
    period_index = (times - times.iloc[0]) // period
    periods = max(1, int(period_index.max()))  # without the last one, which is rarely complete
    rates = period_index.value_counts().reindex(range(periods), fill_value=0) * (pd.Timedelta(days=1) / period)
    observed = f"{rates.min():,.0f} to {rates.max():,.0f} rows a day in {periods} periods of {_length(period)}"
    volume = config.observations.volume
    if volume is not None:
        yield f"  volume: {_to_flow_yaml(_set_fields(volume))}    # observed: {observed}"
        return
    limits = {"min_per_day": _round(rates.min() / 2, math.floor), "max_per_day": _round(rates.max() * 2, math.ceil)}
    yield f"  volume: {_to_flow_yaml({key: limit for key, limit in limits.items() if limit})}    # observed: {observed}"


def _window_length(times: pd.Series[Any], config: AgentConfig) -> timedelta:
    return config.windows.typical_length(len(times), times.iloc[-1] - times.iloc[0])


def _days(times: pd.Series[Any]) -> pd.Series[int]:
    """Number of the day of each row, counted from 0 at the first row."""
    days: pd.Series[int] = (times - times.iloc[0]) // pd.Timedelta(days=1)
    return days


# --------------------------------------------------------------------------- columns


def _draft_columns(rows: Frame, observations: Observations, reads_text: bool) -> tuple[list[str], dict[str, Column]]:
    """The lines of ``columns:``, and the columns as they would be loaded."""
    lines, columns = ["  columns:"], {}
    days = _days(rows["observed_at"])
    for name, column in observations.columns.items():
        if name in rows.columns:
            fields, observed = _describe(rows[name], days, column.type, _set_fields(column))
        else:
            fields, observed = _set_fields(column), "not in these rows"
        columns[name] = _parse_column(fields)
        lines.append(f"{_entry(name, fields)}    # {observed}")
    for name in rows.columns.difference([*RESERVED_COLUMNS, *observations.columns], sort=False):
        if reason := _reason_to_leave_out(name, rows[name]):
            lines.append(f"    # {_to_flow_yaml(str(name))}: left out; {reason}")
            continue
        kind = _kind(rows[name])
        if kind == "text" and not reads_text:
            lines.append(f"    # {_to_flow_yaml(name)}: left out; a text, which only a student of kind 'text' reads")
            continue
        fields, observed = _describe(rows[name], days, kind, {})
        columns[name] = _parse_column(fields)
        lines.append(f"{_entry(name, fields)}    # new; {observed}")
    return lines, columns


def _parse_column(fields: Fields) -> Column:
    column: Column = TypeAdapter[Column](Column).validate_python(fields)
    return column


def _reason_to_leave_out(name: Any, values: pd.Series[Any]) -> str | None:
    """Why a column that the agent file does not name cannot be a feature; None if it can."""
    if not isinstance(name, str):
        return "a name must be text"
    present = values.dropna()
    if present.empty:
        return "it has no value"
    if pd.api.types.is_datetime64_any_dtype(values) or pd.api.types.is_timedelta64_dtype(values):
        return "a time is neither a number nor a category"
    if pd.api.types.is_numeric_dtype(values):
        return "complex numbers" if pd.api.types.is_complex_dtype(values) else None
    if not present.map(lambda value: isinstance(value, str | bool | int | float)).all():
        return "its values are neither numbers nor text"
    if present.nunique() > len(present) / 2 and _kind(values) != "text":
        return "nearly every row has another value"
    return None


def _kind(values: pd.Series[Any]) -> str:
    """Type of a column that the agent file does not name."""
    if pd.api.types.is_numeric_dtype(values):
        return "number"
    present = values.dropna().astype(str)
    share_of_texts = float(present.map(_count_words).ge(MIN_TEXT_WORDS).mean())
    return "text" if present.nunique() > MAX_CATEGORY_VALUES and share_of_texts >= 0.5 else "category"


def _count_words(text: str) -> int:
    return len(text.split())


def _describe(values: pd.Series[Any], days: pd.Series[int], kind: str, fields: Fields) -> tuple[Fields, str]:
    """The drafted fields of one column, and a text about the observed values.

    :param fields: fields that the agent file sets; they are kept.
    """
    values = (
        pd.to_numeric(values, errors="coerce").astype("float64").replace([np.inf, -np.inf], np.nan)
        if (kind == "number")
        else to_texts(values, f"column {values.name!r}")
    )
    if kind == "text":
        values = values.mask(values.map(lambda value: isinstance(value, str) and not value.strip()).astype(bool))
    fields, observed = {"number": _draft_number, "category": _draft_category, "text": _draft_text}[kind](values, fields)
    missing = values.isna()
    if missing.any():
        worst_day = float(missing.groupby(days).mean().max())
        max_missing = min(1.0, math.ceil(20 * max(3 * missing.mean(), 1.5 * worst_day) - 1e-9) / 20)
        fields.setdefault("max_missing", max_missing)
        observed += f"; missing {missing.mean():.1%}, on one day {worst_day:.1%}"
    order = ["type", "min", "max", "max_length", "values", "max_unknown", "max_missing", "drift"]
    return {key: fields[key] for key in order if key in fields}, observed


def _draft_number(values: pd.Series[float], set_fields: Fields) -> tuple[Fields, str]:
    fields = {"type": "number", **set_fields}
    present = values.dropna()
    if present.empty:
        return fields, "no value"
    low, high = float(present.min()), float(present.max())
    with_range = {**_draft_range(present, low, high), **fields}
    if with_range.get("min", low) <= with_range.get("max", high):
        fields = with_range
    if low == high:
        return fields, f"{_format_number(low)} in every row"
    outside = (present < fields.get("min", -math.inf)) | (present > fields.get("max", math.inf))
    note = f"; {outside.mean():.2%} of the rows are outside" if outside.any() else ""
    return fields, f"{_format_number(low)} to {_format_number(high)}{note}"


def _draft_range(present: pd.Series[float], low: float, high: float) -> Fields:
    """The observed range, widened by its own length on both sides, except at a natural limit.

    A natural limit is zero if no value was negative (or none positive), one or a hundred if it was reached and no value
    was negative (a share, a percentage), and an end that a twentieth of the rows have. If all values are equal, or
    almost equal, only the sign is drafted.
    """
    fields: Fields = {}
    if high - low < _MIN_RANGE:
        return {"min": 0} if low >= 0 else {"max": 0}
    if not math.isfinite(2 * (high - low)):
        return fields  # the widened range would overflow
    step = _step(high - low)
    below = min(low, _tidy(math.floor((2 * low - high) / step) * step))
    above = max(high, _tidy(math.ceil((2 * high - low) / step) * step))
    is_share = low >= 0 and high in (1, 100)
    fields["min"] = low if (present == low).mean() >= 0.05 else 0 if low >= 0 > below else below
    fields["max"] = high if is_share or (present == high).mean() >= 0.05 else 0 if high <= 0 < above else above
    return fields


_MIN_RANGE = 1e-290
"""A narrower range cannot be divided into steps in floating point."""


def _draft_category(values: pd.Series[Any], set_fields: Fields) -> tuple[Fields, str]:
    fields = {"type": "category", **set_fields}
    present_values = sorted(values.dropna().unique())
    if not present_values:
        return fields, "no value"
    count = len(present_values)
    observed = f"{count} value{'s' * (count > 1)}"
    if "values" in fields:
        unknown = float((~values.dropna().isin(fields["values"])).mean())
        return fields, observed + (f"; {unknown:.2%} of the rows have another" if unknown else "")
    new_share = _share_of_new_values(values.dropna())
    if count > MAX_CATEGORY_VALUES or new_share > DRAFTED_MAX_BROKEN:
        reason = "there are many" if new_share <= DRAFTED_MAX_BROKEN else "new ones appear"
        return fields, f"{observed}: any, since {reason}"
    fields |= {"values": present_values, "max_unknown": fields.get("max_unknown", 0.02)}
    return fields, observed


def _draft_text(values: pd.Series[Any], set_fields: Fields) -> tuple[Fields, str]:
    """A text may be three times as long as the longest observed text."""
    fields = {"type": "text", **set_fields}
    present = values.dropna()
    if present.empty:
        return fields, "no text"
    longest, words = int(present.map(len).max()), present.map(_count_words)
    fields.setdefault("max_length", _round(3 * longest, math.ceil))
    return fields, f"{words.min()} to {words.max()} words, at most {longest} characters"


def _share_of_new_values(values: pd.Series[Any]) -> float:
    """Share of the rows in the later half whose value does not occur in the earlier half."""
    half = len(values) // 2
    return float((~values.iloc[half:].isin(values.iloc[:half].unique())).mean())


# --------------------------------------------------------------------------- constraints between columns


def _draft_unique(rows: Frame, observations: Observations, columns: Mapping[str, Column]) -> Iterator[str]:
    """The smallest combinations of time and categories that never repeat, although independent columns would."""
    combinations: list[tuple[list[str], str]] = [(list(names), "as before") for names in observations.unique]
    names = ["observed_at", *(name for name, column in columns.items() if column.type == "category")]
    names = [name for name in names if name in rows.columns][:8]
    for size in range(1, 5):
        for subset in map(list, itertools.combinations(names, size)):
            if any(set(other) <= set(subset) or set(subset) <= set(other) for other, _ in combinations):
                continue
            values = rows[subset].dropna().astype({name: "string" for name in subset if name != "observed_at"})
            expected = _expected_duplicates(values)
            if expected >= MIN_EXPECTED_BREAKS and not values.duplicated().any():
                combinations.append((subset, f"chance alone would give {expected:,.0f} pairs of rows"))
    if combinations:
        yield "  unique:"
        yield from (f"    - {_to_flow_yaml(subset)}    # {observed}" for subset, observed in combinations)


def _expected_duplicates(rows: Frame) -> float:
    """Expected number of pairs of equal rows if the columns were independent."""
    pairs = len(rows) * (len(rows) - 1) / 2
    counts = [rows[name].value_counts().to_numpy(dtype=np.float64) for name in rows.columns]
    return pairs * math.prod(float((count * (count - 1)).sum()) / 2 / pairs for count in counts) if pairs else 0.0


def _number_of_days(rows: Frame) -> int:
    """Number of days with rows; the rows of one day often depend on each other, so they count as one trial."""
    return int(_days(rows["observed_at"]).nunique())


def _draft_rules(rows: Frame, observations: Observations, columns: Mapping[str, Column]) -> Iterator[str]:
    """The rules of the agent file, and drafted rules that it does not have."""
    existing = [_set_fields(rule) for rule in observations.rules]
    lines = [f"    - {_to_flow_yaml(fields)}    # as before" for fields in existing]
    known = [{key: value for key, value in fields.items() if key != "max_broken"} for fields in existing]
    present = {name: column for name, column in columns.items() if name in rows.columns}
    for fields, observed in itertools.chain(_find_ordered(rows, present), _find_pairs(rows, present)):
        if fields not in known and _is_accepted(fields, columns, observations):
            lines.append(f"    - {_to_flow_yaml({**fields, 'max_broken': DRAFTED_MAX_BROKEN})}    # {observed}")
    if lines:
        yield "  rules:"
        yield from lines


def _is_accepted(rule: Fields, columns: Mapping[str, Column], observations: Observations) -> bool:
    """Whether an agent file may have the rule; not if the ranges of the columns imply it already."""
    section = {"source": observations.source, "since": observations.since, "columns": columns, "rules": [rule]}
    try:
        Observations.model_validate(section)
    except ValidationError:
        return False
    return True


def _find_ordered(rows: Frame, columns: Mapping[str, Column]) -> Iterator[tuple[Fields, str]]:
    """Pairs of number columns of which one never exceeds the other, without those that follow from two other pairs."""
    names = [name for name, column in columns.items() if column.type == "number"]
    values = {name: pd.to_numeric(rows[name], errors="coerce").to_numpy(dtype=np.float64) for name in names}
    days = _number_of_days(rows)
    below: dict[tuple[str, str], str] = {}
    for low, high in itertools.permutations(names, 2):
        both = np.isfinite(values[low]) & np.isfinite(values[high])
        lower, upper = values[low][both], values[high][both]
        if len(lower) >= MIN_ROWS and (lower <= upper).all() and (lower < upper).any():
            broken = _probability_above(lower, upper)
            if broken * days >= MIN_EXPECTED_BREAKS:
                below[low, high] = f"kept by {len(lower):,} rows; chance would break it on {broken:.0%}"
    for (low, high), observed in below.items():
        if not any((low, middle) in below and (middle, high) in below for middle in names):
            yield {"type": "ordered", "low": low, "high": high}, observed


def _probability_above(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    """P(X > Y) for independent draws X from the values ``x`` and Y from ``y``."""
    return float(np.searchsorted(np.sort(y), x, side="left").mean() / len(y))


def _find_pairs(rows: Frame, columns: Mapping[str, Column]) -> Iterator[tuple[Fields, str]]:
    """Pairs of categories that occur in some combinations only, although independent columns would occur in others."""
    names = [name for name, column in columns.items() if isinstance(column, CategoryColumn) and column.values]
    days = _number_of_days(rows)
    for first, second in itertools.combinations(names, 2):
        both = rows[[first, second]].dropna().apply(lambda values: to_texts(values, f"column {values.name!r}"))
        for name in (first, second):  # values that the column does not allow break another rule
            both = both[both[name].isin(getattr(columns[name], "values", None) or ())]
        if len(both) < MIN_ROWS:
            continue
        combined = pd.Series(list(zip(both[first], both[second], strict=True)))
        allowed = sorted(set(combined))
        shares = [both[name].value_counts(normalize=True) for name in (first, second)]
        unobserved = 1 - sum(shares[0][a] * shares[1][b] for a, b in allowed)
        if unobserved * days >= MIN_EXPECTED_BREAKS and _share_of_new_values(combined) <= DRAFTED_MAX_BROKEN:
            fields = {"type": "pairs", "columns": [first, second], "allowed": [list(pair) for pair in allowed]}
            yield fields, f"kept by {len(both):,} rows; chance would break it on {unobserved:.0%}"


# --------------------------------------------------------------------------- numbers, lengths and YAML


def _set_fields(section: Any) -> Fields:
    """The fields of a section that the agent file sets, as plain values for YAML."""
    fields: Fields = section.model_dump(mode="json", exclude_unset=True)
    return fields


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten, at most a quarter of ``span``."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= span / 4 * (1 + 1e-9))


def _round(value: float, rounding: Callable[[float], int]) -> int:
    """Round to two significant digits, up or down by ``rounding``."""
    if value < 1:
        return rounding(value)
    power = int(10 ** max(0, math.floor(math.log10(value)) - 1))
    return rounding(value / power) * power


def _tidy(value: float) -> float:
    """Remove floating-point noise: 0.30000000000000004 becomes 0.3."""
    return _to_int_if_whole(float(f"{value:.15g}"))


def _to_int_if_whole(value: float) -> float:
    return int(value) if float(value).is_integer() and abs(value) < 1e15 else value


def _format_number(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


_UNITS = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))


def _length(length: timedelta | pd.Timedelta) -> str:
    """A length of time in its two largest units."""
    seconds, parts = round(length.total_seconds()), []
    for unit, size in _UNITS:
        if seconds >= size:
            parts.append(f"{seconds // size}{unit}")
            seconds %= size
    return " ".join(parts[:2]) or "0s"


def _duration(length: timedelta) -> str:
    """A length of time exactly, as a duration of an agent file."""
    seconds = length.total_seconds()
    return next((f"{seconds / size:.0f}{unit}" for unit, size in _UNITS if not seconds % size), f"{seconds!r}s")


class _Dumper(yaml.SafeDumper):
    """Writes texts with hidden characters or line breaks with escapes."""


def _scalar(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if _has_hidden_characters(text) else None)


_Dumper.add_representer(str, _scalar)


def _has_hidden_characters(text: str) -> bool:
    return escape_line(text) != text


def _texts(value: Any) -> Iterator[str]:
    """All texts in a nested value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for pair in value.items() for part in pair for text in _texts(part))
    elif isinstance(value, list | tuple):
        yield from (text for item in value for text in _texts(item))


def _to_flow_yaml(value: str | float | Sequence[Any] | Fields) -> str:
    """``value`` as YAML on one line."""
    ascii_only = any(map(_has_hidden_characters, _texts(value)))  # otherwise a direction mark would reorder the draft
    text: str = yaml.dump(
        [_plain(value)],
        Dumper=_Dumper,
        default_flow_style=True,
        width=math.inf,
        sort_keys=False,
        allow_unicode=not ascii_only,
    )
    return text.strip()[1:-1]


def _entry(name: str, fields: Fields) -> str:
    """The line of a column; YAML needs an explicit ``?`` before a key of more than 1024 characters."""
    key = _to_flow_yaml(name)
    value = _to_flow_yaml(fields)
    return f"    {key}: {value}" if len(key) < _MAX_PLAIN_KEY else f"    ? {key}\n    : {value}"


_MAX_PLAIN_KEY = 1000  # characters


def _plain(value: Any) -> Any:
    """A nested value with whole floats as integers and tuples as lists."""
    if isinstance(value, float):
        return _to_int_if_whole(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
