"""Drafts the ``observations`` section of an agent file from a window of rows, for a person to edit.

A draft says what was seen, with room around it. It is meant to catch what is broken (a unit that changed, a
sentinel such as 9999, a feed that stopped) and to let through what merely moved: drift is watched elsewhere. So
ranges are three times as wide as what was seen, and a regularity is only drafted where chance would have broken it
several times over.
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
from stillhouse.errors import PartError, SchemaError, WindowError
from stillhouse.frames import require_distinct, to_texts
from stillhouse.knowledge import KnowledgeBase
from stillhouse.parts import resolve
from stillhouse.shown import shown

__all__ = ["FEWEST_ROWS", "draft", "rows_of"]

FEWEST_ROWS = 100
"""A window with fewer rows shows too little of an agent's life."""

MOST_VALUES = 40
"""A category with more values is drafted as open."""

SENTENCE = 3
"""Words in half of its values or more make a column with many values a text."""

SURPRISE = 3
"""Breaks that chance alone would have to be expected to bring before a regularity means anything: e⁻³ is 5 %."""

BROKEN = 0.01
"""Share of rows that may break a drafted rule."""

RESERVED = ("observation_id", "observed_at", "content_key")

Frame = pd.DataFrame
Fields = dict[str, Any]


# --------------------------------------------------------------------------- where rows come from


def rows_of(
    config: AgentConfig, start: datetime | None, end: datetime | None, last: timedelta, ask_source: bool = False
) -> Frame:
    """Rows to draft from: of the knowledge base or, where that is empty, of the agent's source.

    :param start: begin of the window; by default ``last`` before ``end``, or ``observations.since`` at the source.
    :param end: end of the window; by default one ``last`` after its begin, and the newest row of the knowledge base.
    :param ask_source: ask the source in any case; it alone knows columns that the agent file does not name.
    :raises PartError: if the source fails, or gives something else than a data frame.
    """
    base = KnowledgeBase(config)
    if not ask_source and (until := base.observed_until()) is not None:
        start, end = _window(start, end, last, otherwise=(until - last, until))
        return base.read("observations", base.window("contract", start, end))
    since = config.observations.since
    start, end = _window(start, end, last, otherwise=(since, since + last))
    where = f"{config.file}: observations.source"
    source = resolve(config.observations.source, where=where)
    try:
        rows = source(start, end)
    except Exception as error:
        raise PartError(f"{where} fails from {start} to {end}: {type(error).__name__}: {error}") from error
    if not isinstance(rows, pd.DataFrame):
        raise PartError(f"{where} gives a {type(rows).__name__}, not a pandas DataFrame")
    return rows


def _window(
    start: datetime | None, end: datetime | None, last: timedelta, otherwise: tuple[datetime, datetime]
) -> tuple[datetime, datetime]:
    if start is None and end is None:
        return otherwise
    if start is None:
        assert end is not None
        return end - last, end
    return start, end if end is not None else start + last


# --------------------------------------------------------------------------- the draft


def draft(rows: Frame, config: AgentConfig) -> str:
    """The ``observations:`` section for ``rows`` as YAML, each line with what was seen; ``load`` accepts it.

    What the agent file says already is kept. Added are what it leaves open: a column's range, missing share and
    values, freshness, volume, unique combinations and rules, and columns that it does not name.

    :param rows: ``observation_id``, ``observed_at`` (with a time zone) and any columns; :data:`FEWEST_ROWS` or more.
    :raises SchemaError: if one of the two is missing, the times have no zone, two columns have one name, or a text is
        no Unicode.
    :raises WindowError: if there are fewer rows.
    """
    rows = _usable(rows)
    lines, columns = _columns(rows, config.observations, reads_text=config.student.reads_text)
    return (
        "\n".join(
            [
                *_head(rows, config.observations),
                *_freshness(rows["observed_at"], config),
                *_volume(rows["observed_at"], config),
                *_unique(rows, config.observations, columns),
                *_rules(rows, config.observations, columns),
                *lines,
            ]
        )
        + "\n"
    )


def _usable(rows: Frame) -> Frame:
    require_distinct(rows.columns, "the rows")
    if lacking := [name for name in RESERVED[:2] if name not in rows.columns]:
        raise SchemaError(f"the rows lack {' and '.join(lacking)}; they have {list(rows.columns)}")
    if len(rows) and not isinstance(rows["observed_at"].dtype, pd.DatetimeTZDtype):
        raise SchemaError(f"observed_at must be timestamps with a time zone, not {rows['observed_at'].dtype}")
    rows = rows.dropna(subset=list(RESERVED[:2])).drop_duplicates("observation_id")
    if len(rows) < FEWEST_ROWS:
        raise WindowError(f"the window has {len(rows)} rows, and a draft needs {FEWEST_ROWS}: choose a longer one")
    return rows.sort_values("observed_at", kind="stable", ignore_index=True)


def _head(rows: Frame, observations: Observations) -> Iterator[str]:
    first, last = rows["observed_at"].iloc[[0, -1]].dt.tz_convert("UTC")
    yield f"# Drafted from {len(rows):,} rows of {first:%Y-%m-%d %H:%M} to {last:%Y-%m-%d %H:%M} UTC."
    yield "# It says what was seen, with room around it; only you know what is right. Edit it."
    yield "observations:"
    yield f"  source: {_flow(observations.source)}"
    yield f"  since: {observations.since.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
    yield f"  min_rows: {observations.min_rows}"
    yield f"  max_bad_rows: {_flow(observations.max_bad_rows)}"


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


def _freshness(times: pd.Series[Any], config: AgentConfig) -> Iterator[str]:
    """Twice the longest silence, as a round length; none where a window that has rows could never break it."""
    silence = times.diff().max()
    seen = f"longest time without a row: {_length(silence)}"
    kept = config.observations.freshness
    if kept is not None:
        yield f"  freshness: {_duration(kept)}    # {seen}"
        return
    name = next((name for name, minutes in _LENGTHS.items() if timedelta(minutes=minutes) >= 2 * silence), None)
    window = _window_length(times, config)
    if name is not None and timedelta(minutes=_LENGTHS[name]) < window:
        yield f"  freshness: {name}    # {seen}"
    else:
        yield f"  # freshness: left out; {seen}, and a window is {_length(window)} long"


def _volume(times: pd.Series[Any], config: AgentConfig) -> Iterator[str]:
    """From half of the quietest stretch to twice the busiest; a stretch is a day, or a window if that is shorter."""
    stretch = min(pd.Timedelta(days=1), pd.Timedelta(_window_length(times, config)))
    number = (times - times.iloc[0]) // stretch
    whole = max(1, int(number.max()))  # the last is rarely complete
    rates = number.value_counts().reindex(range(whole), fill_value=0) * (pd.Timedelta(days=1) / stretch)
    seen = f"{rates.min():,.0f} to {rates.max():,.0f} rows a day in {whole} stretches of {_length(stretch)}"
    volume = config.observations.volume
    if volume is not None:
        yield f"  volume: {_flow(_given(volume))}    # seen: {seen}"
        return
    ends = {"min_per_day": _round(rates.min() / 2, math.floor), "max_per_day": _round(rates.max() * 2, math.ceil)}
    yield f"  volume: {_flow({key: bound for key, bound in ends.items() if bound})}    # seen: {seen}"


def _window_length(times: pd.Series[Any], config: AgentConfig) -> timedelta:
    return config.windows.usual_length(len(times), times.iloc[-1] - times.iloc[0])


def _days(times: pd.Series[Any]) -> pd.Series[int]:
    """The day, 0…, that each row lies in, counted from the first row."""
    days: pd.Series[int] = (times - times.iloc[0]) // pd.Timedelta(days=1)
    return days


# --------------------------------------------------------------------------- columns


def _columns(rows: Frame, observations: Observations, reads_text: bool) -> tuple[list[str], dict[str, Column]]:
    """The lines of ``columns:``, and the columns as they would be loaded."""
    lines, columns = ["  columns:"], {}
    days = _days(rows["observed_at"])
    for name, kept in observations.columns.items():
        if name in rows.columns:
            fields, seen = _describe(rows[name], days, kept.type, _given(kept))
        else:
            fields, seen = _given(kept), "not in these rows"
        columns[name] = _column(fields)
        lines.append(f"{_entry(name, fields)}    # {seen}")
    for name in rows.columns.difference([*RESERVED, *observations.columns], sort=False):
        if why := _no_feature(name, rows[name]):
            lines.append(f"    # {_flow(str(name))}: left out; {why}")
            continue
        kind = _kind(rows[name])
        if kind == "text" and not reads_text:
            lines.append(f"    # {_flow(name)}: left out; a text, which only a student of kind 'text' reads")
            continue
        fields, seen = _describe(rows[name], days, kind, {})
        columns[name] = _column(fields)
        lines.append(f"{_entry(name, fields)}    # new; {seen}")
    return lines, columns


def _column(fields: Fields) -> Column:
    column: Column = TypeAdapter[Column](Column).validate_python(fields)
    return column


def _no_feature(name: Any, values: pd.Series[Any]) -> str | None:
    """Why a column that the agent file does not name is no feature, if it is none."""
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
    """What a column is that the agent file does not name."""
    if pd.api.types.is_numeric_dtype(values):
        return "number"
    present = values.dropna().astype(str)
    sentences = float(present.map(_words).ge(SENTENCE).mean())
    return "text" if present.nunique() > MOST_VALUES and sentences >= 0.5 else "category"


def _words(text: str) -> int:
    return len(text.split())


def _describe(values: pd.Series[Any], days: pd.Series[int], kind: str, kept: Fields) -> tuple[Fields, str]:
    """The fields of one column, those of the agent file as they are, and what was seen."""
    values = (
        pd.to_numeric(values, errors="coerce").astype("float64").replace([np.inf, -np.inf], np.nan)
        if (kind == "number")
        else to_texts(values, f"column {values.name!r}")
    )
    if kind == "text":
        values = values.mask(values.map(lambda value: isinstance(value, str) and not value.strip()).astype(bool))
    fields, seen = {"number": _number, "category": _category, "text": _text}[kind](values, kept)
    missing = values.isna()
    if missing.any():
        worst = float(missing.groupby(days).mean().max())
        allowed = min(1.0, math.ceil(20 * max(3 * missing.mean(), 1.5 * worst) - 1e-9) / 20)
        fields.setdefault("max_missing", allowed)
        seen += f"; missing {missing.mean():.1%}, on one day {worst:.1%}"
    order = ["type", "min", "max", "max_length", "values", "max_unknown", "max_missing", "drift"]
    return {key: fields[key] for key in order if key in fields}, seen


def _number(values: pd.Series[float], kept: Fields) -> tuple[Fields, str]:
    fields = {"type": "number", **kept}
    present = values.dropna()
    if present.empty:
        return fields, "no value"
    low, high = float(present.min()), float(present.max())
    ranged = {**_range(present, low, high), **fields}
    if ranged.get("min", low) <= ranged.get("max", high):
        fields = ranged
    if low == high:
        return fields, f"{_figure(low)} in every row"
    outside = (present < fields.get("min", -math.inf)) | (present > fields.get("max", math.inf))
    note = f"; {outside.mean():.2%} of the rows are outside" if outside.any() else ""
    return fields, f"{_figure(low)} to {_figure(high)}{note}"


def _range(present: pd.Series[float], low: float, high: float) -> Fields:
    """The range seen, widened by its own length to both sides; an end that nature sets stays where it is.

    Nature sets zero for what never was negative (or never positive), one or a hundred for what reached it and is
    never negative (a share, a percentage), and an end that a twentieth of the rows lie on. Where all values are
    equal (or as good as equal) nothing can be said but the sign.
    """
    fields: Fields = {}
    if high - low < _NARROWEST:
        return {"min": 0} if low >= 0 else {"max": 0}
    if not math.isfinite(2 * (high - low)):
        return fields  # as wide as numbers go
    step = _step(high - low)
    below = min(low, _tidy(math.floor((2 * low - high) / step) * step))
    above = max(high, _tidy(math.ceil((2 * high - low) / step) * step))
    share = low >= 0 and high in (1, 100)
    fields["min"] = low if (present == low).mean() >= 0.05 else 0 if low >= 0 > below else below
    fields["max"] = high if share or (present == high).mean() >= 0.05 else 0 if high <= 0 < above else above
    return fields


_NARROWEST = 1e-290
"""A range that is narrower has no tenths left below it: numbers end there."""


def _category(values: pd.Series[Any], kept: Fields) -> tuple[Fields, str]:
    fields = {"type": "category", **kept}
    known = sorted(values.dropna().unique())
    if not known:
        return fields, "no value"
    seen = f"{len(known)} value{'s' * (len(known) > 1)}"
    if "values" in fields:
        unknown = float((~values.dropna().isin(fields["values"])).mean())
        return fields, seen + (f"; {unknown:.2%} of the rows have another" if unknown else "")
    new = _new_later(values.dropna())
    if len(known) > MOST_VALUES or new > BROKEN:
        return fields, f"{seen}: any, since there are many" if new <= BROKEN else f"{seen}: any, since new ones come"
    fields |= {"values": known, "max_unknown": fields.get("max_unknown", 0.02)}
    return fields, seen


def _text(values: pd.Series[Any], kept: Fields) -> tuple[Fields, str]:
    """A text may be three times as long as the longest that was seen."""
    fields = {"type": "text", **kept}
    present = values.dropna()
    if present.empty:
        return fields, "no text"
    longest, words = int(present.map(len).max()), present.map(_words)
    fields.setdefault("max_length", _round(3 * longest, math.ceil))
    return fields, f"{words.min()} to {words.max()} words, at most {longest} characters"


def _new_later(values: pd.Series[Any]) -> float:
    """Share of the later half of the rows whose value the earlier half does not have."""
    half = len(values) // 2
    return float((~values.iloc[half:].isin(values.iloc[:half].unique())).mean())


# --------------------------------------------------------------------------- what columns promise about one another


def _unique(rows: Frame, observations: Observations, columns: Mapping[str, Column]) -> Iterator[str]:
    """The smallest combinations of time and categories that no two rows share although chance would have it so."""
    kept = [list(names) for names in observations.unique]
    found: list[tuple[list[str], str]] = [(names, "as before") for names in kept]
    names = ["observed_at", *(name for name, column in columns.items() if column.type == "category")]
    names = [name for name in names if name in rows.columns][:8]
    for size in range(1, 5):
        for some in map(list, itertools.combinations(names, size)):
            if any(set(fewer) <= set(some) or set(some) <= set(fewer) for fewer, _ in found):
                continue
            compared = rows[some].dropna().astype({name: "string" for name in some if name != "observed_at"})
            expected = _chance_of_twins(compared)
            if expected >= SURPRISE and not compared.duplicated().any():
                found.append((some, f"chance alone would give {expected:,.0f} pairs of rows"))
    if found:
        yield "  unique:"
        yield from (f"    - {_flow(some)}    # {seen}" for some, seen in found)


def _chance_of_twins(rows: Frame) -> float:
    """Expected pairs of equal rows if the columns were independent of one another."""
    pairs = len(rows) * (len(rows) - 1) / 2
    counts = [rows[name].value_counts().to_numpy(dtype=np.float64) for name in rows.columns]
    return pairs * math.prod(float((count * (count - 1)).sum()) / 2 / pairs for count in counts) if pairs else 0.0


def _number_of_days(rows: Frame) -> int:
    """Number of days of the window: rows of one day are often one piece of evidence, as they share their weather."""
    return int(_days(rows["observed_at"]).nunique())


def _rules(rows: Frame, observations: Observations, columns: Mapping[str, Column]) -> Iterator[str]:
    """The rules of the agent file, and those found that are none of them."""
    kept = [_given(rule) for rule in observations.rules]
    lines = [f"    - {_flow(fields)}    # as before" for fields in kept]
    known = [{key: value for key, value in fields.items() if key != "max_broken"} for fields in kept]
    present = {name: column for name, column in columns.items() if name in rows.columns}
    for fields, seen in itertools.chain(_ordered(rows, present), _pairs(rows, present)):
        if fields not in known and _accepted(fields, columns, observations):
            lines.append(f"    - {_flow({**fields, 'max_broken': BROKEN})}    # {seen}")
    if lines:
        yield "  rules:"
        yield from lines


def _accepted(rule: Fields, columns: Mapping[str, Column], observations: Observations) -> bool:
    """Whether an agent file may have the rule; not where the columns' own ranges say it already."""
    section = {"source": observations.source, "since": observations.since, "columns": columns, "rules": [rule]}
    try:
        Observations.model_validate(section)
    except ValidationError:
        return False
    return True


def _ordered(rows: Frame, columns: Mapping[str, Column]) -> Iterator[tuple[Fields, str]]:
    """Pairs of numbers of which one never exceeds the other; not what follows from two others."""
    names = [name for name, column in columns.items() if column.type == "number"]
    values = {name: pd.to_numeric(rows[name], errors="coerce").to_numpy(dtype=np.float64) for name in names}
    days = _number_of_days(rows)
    below: dict[tuple[str, str], str] = {}
    for low, high in itertools.permutations(names, 2):
        both = np.isfinite(values[low]) & np.isfinite(values[high])
        one, other = values[low][both], values[high][both]
        if len(one) >= FEWEST_ROWS and (one <= other).all() and (one < other).any():
            broken = _share_above(one, other)
            if broken * days >= SURPRISE:
                below[low, high] = f"held on {len(one):,} rows; chance would break it on {broken:.0%}"
    for (low, high), seen in below.items():
        if not any((low, middle) in below and (middle, high) in below for middle in names):
            yield {"type": "ordered", "low": low, "high": high}, seen


def _share_above(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """P(X > Y) for a value X of ``one`` and a value Y of ``other`` drawn independently."""
    return float(np.searchsorted(np.sort(other), one, side="left").mean() / len(other))


def _pairs(rows: Frame, columns: Mapping[str, Column]) -> Iterator[tuple[Fields, str]]:
    """Pairs of categories that come only in some combinations, where independent ones would come in others too."""
    names = [name for name, column in columns.items() if isinstance(column, CategoryColumn) and column.values]
    days = _number_of_days(rows)
    for first, second in itertools.combinations(names, 2):
        both = rows[[first, second]].dropna().apply(lambda values: to_texts(values, f"column {values.name!r}"))
        for name in (first, second):  # a value that the column does not allow is another rule's matter
            both = both[both[name].isin(getattr(columns[name], "values", None) or ())]
        if len(both) < FEWEST_ROWS:
            continue
        combined = pd.Series(list(zip(both[first], both[second], strict=True)))
        allowed = sorted(set(combined))
        shares = [both[name].value_counts(normalize=True) for name in (first, second)]
        unseen = 1 - sum(shares[0][a] * shares[1][b] for a, b in allowed)
        if unseen * days >= SURPRISE and _new_later(combined) <= BROKEN:
            fields = {"type": "pairs", "columns": [first, second], "allowed": [list(pair) for pair in allowed]}
            yield fields, f"held on {len(both):,} rows; chance would break it on {unseen:.0%}"


# --------------------------------------------------------------------------- numbers, lengths and YAML


def _given(section: Any) -> Fields:
    """What the agent file says of a section, as YAML has it."""
    fields: Fields = section.model_dump(mode="json", exclude_unset=True)
    return fields


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten, at most a quarter of ``span``."""
    power = 10.0 ** math.floor(math.log10(span / 4))
    return max(factor * power for factor in (1, 2, 5) if factor * power <= span / 4 * (1 + 1e-9))


def _round(value: float, towards: Callable[[float], int]) -> int:
    """To two significant digits."""
    if value < 1:
        return towards(value)
    power = int(10 ** max(0, math.floor(math.log10(value)) - 1))
    return towards(value / power) * power


def _tidy(value: float) -> float:
    """0.30000000000000004 as 0.3."""
    return _whole(float(f"{value:.15g}"))


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() and abs(value) < 1e15 else value


def _figure(value: float) -> str:
    return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


_UNITS = (("d", 86_400), ("h", 3600), ("m", 60), ("s", 1))


def _length(length: timedelta | pd.Timedelta) -> str:
    """A length of time for a reader, in its two largest units."""
    seconds, parts = round(length.total_seconds()), []
    for unit, size in _UNITS:
        if seconds >= size:
            parts.append(f"{seconds // size}{unit}")
            seconds %= size
    return " ".join(parts[:2]) or "0s"


def _duration(length: timedelta) -> str:
    """The same as an agent file has it, exactly."""
    seconds = length.total_seconds()
    return next((f"{seconds / size:.0f}{unit}" for unit, size in _UNITS if not seconds % size), f"{seconds!r}s")


class _Dumper(yaml.SafeDumper):
    """Writes a text in which something would not be seen, or would break the line, with escapes."""


def _scalar(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if _hides(text) else None)


_Dumper.add_representer(str, _scalar)


def _hides(text: str) -> bool:
    return shown(text) != text


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for pair in value.items() for part in pair for text in _texts(part))
    elif isinstance(value, list | tuple):
        yield from (text for each in value for text in _texts(each))


def _flow(value: str | float | Sequence[Any] | Fields) -> str:
    """YAML on one line, which loads back as ``value``."""
    ascii_only = any(map(_hides, _texts(value)))  # else a direction mark would turn the draft round
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
    """``name: fields`` at the place of a column; YAML takes no key of more than 1024 characters without a mark."""
    key = _flow(name)
    return f"    {key}: {_flow(fields)}" if len(key) < _LONGEST_KEY else f"    ? {key}\n    : {_flow(fields)}"


_LONGEST_KEY = 1000


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return _whole(value)
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
