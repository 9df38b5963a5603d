"""Observations from an application, validated against the agent file's columns."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Annotated, Any

import msgspec
import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig
from stillhouse.errors import SchemaError
from stillhouse.frames import require_distinct
from stillhouse.knowledge import tidy, time_range
from stillhouse.runtime.contract_warnings import ContractChecker
from stillhouse.runtime.ids import MAX_ID_LENGTH
from stillhouse.values import ValueRefused, number_of, text_of

__all__ = ["MAX_AHEAD_MICROS", "Batch", "ObservationSchema", "is_unicode", "to_micros"]

_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
MAX_AHEAD_MICROS = time_range.CLOCK_TOLERANCE // _MICROSECOND
"""Microseconds by which a timestamp may be later than this machine's clock."""

ObservationId = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ID_LENGTH)]
ObservedAt = Annotated[datetime, msgspec.Meta(tz=True)]


def to_micros(moment: datetime) -> int:
    """Microseconds since 1970 (UTC).

    >>> to_micros(datetime(1970, 1, 2, tzinfo=UTC))
    86400000000
    """
    return (moment - _EPOCH) // _MICROSECOND


_EARLIEST_MICROS = to_micros(time_range.EARLIEST)


@dataclass(frozen=True, slots=True)
class Batch:
    """n valid observations."""

    observation_ids: list[str]
    observed_at: list[int]
    """Microseconds since 1970 (UTC)."""
    columns: list[str]
    """Numbers, then categories, then texts."""
    values: list[Any]
    """n sequences in the order of ``columns``: float, str, or None if missing."""

    def __len__(self) -> int:
        return len(self.values)

    def select(self, indices: Sequence[int]) -> Batch:
        """The observations at ``indices``."""
        return Batch(
            [self.observation_ids[i] for i in indices],
            [self.observed_at[i] for i in indices],
            self.columns,
            [self.values[i] for i in indices],
        )


class ObservationSchema:
    """The columns and types of an agent's observations: every column of the agent file, null if missing.

    ``observation_id`` and ``observed_at`` may be left out: then the observation gets a new id and the current time.

    >>> from stillhouse.config import AgentConfig
    >>> config = AgentConfig.model_validate(
    ...     {
    ...         "agent": "flights",
    ...         "actions": ["on_time", "late"],
    ...         "observations": {
    ...             "source": "module:function",
    ...             "since": "2013-01-01T00:00:00Z",
    ...             "columns": {"wind": {"type": "number"}, "origin": {"type": "category"}},
    ...         },
    ...         "outcomes": {"source": "module:function", "delay": "1d"},
    ...         "teachers": [{"kind": "python", "name": "rule", "target": "module:Rule"}],
    ...         "student": {"kind": "tabular"},
    ...         "windows": {"train": "7d", "test": "1d", "current": "1d"},
    ...         "watch": {"thresholds": {"psi": 0.25}},
    ...     }
    ... )
    >>> ObservationSchema(config).read({"wind": 12, "origin": None}).values
    [(12.0, None)]
    """

    def __init__(self, config: AgentConfig) -> None:
        observations = config.observations
        self.config = config
        self.columns = [*observations.numbers, *observations.categories, *observations.texts]
        self._number_count = len(observations.numbers)
        self._types: dict[str, type] = dict.fromkeys(self.columns, str) | dict.fromkeys(observations.numbers, float)
        self._types["observation_id"] = str
        self.contract_checker = ContractChecker(observations, self.columns)
        text_count = len(self.columns) - self._number_count
        types: list[Any] = [float | None] * self._number_count + [str | None] * text_count
        fields = [(f"c{i}", type_) for i, type_ in enumerate(types)]
        self.row_type: type[msgspec.Struct] = msgspec.defstruct(
            "Observation",
            [*fields, ("observation_id", ObservationId | None, None), ("observed_at", ObservedAt | None, None)],
            rename={f"c{i}": name for i, name in enumerate(self.columns)},
            forbid_unknown_fields=True,
            kw_only=False,
            gc=False,
        )

    def read(self, observations: Mapping[str, Any] | Sequence[Mapping[str, Any]] | pd.DataFrame) -> Batch:
        """Validate observations that an application passes in process.

        :raises SchemaError: with the row, the column and the invalid value.
        """
        if isinstance(observations, pd.DataFrame):
            return self._read_frame(observations)
        try:
            rows = [observations] if isinstance(observations, Mapping) else list(observations)
            converted = [self.convert_values(row, f"$[{index}]") for index, row in enumerate(rows)]
            batch = self.to_batch(msgspec.convert(converted, list[self.row_type]))  # type: ignore[name-defined]
        except (msgspec.ValidationError, AttributeError, TypeError) as error:  # a row that is no mapping has no items
            raise SchemaError(f"observations of agent {self.config.agent!r}: {error}") from error
        self._require_finite(batch)
        self._require_unicode(batch)
        return batch

    def convert_values(self, row: Mapping[str, Any], path: str) -> dict[str, Any]:
        """A row with its values converted to numbers and texts, by the rule of :mod:`stillhouse.values`.

        Values of unknown columns are left as they are.

        :param path: the row's JSON path, for error messages: ``$.observations[3]``.
        :raises SchemaError: with the column and the value that cannot be converted.
        """
        converted = dict[str, Any]()
        for name, value in row.items():
            type_ = self._types.get(name)
            try:
                if type_ is None or type(value) is type_:
                    converted[name] = _to_python(value)
                elif type_ is str:
                    converted[name] = text_of(value)
                else:
                    converted[name] = _to_python(number_of(value))
            except ValueRefused as error:
                raise SchemaError(
                    f"observations of agent {self.config.agent!r}: {error} - at `{path}.{name}`"
                ) from error
        return converted

    def missing_row(self) -> Batch:
        """One observation with all values missing."""
        return Batch(["missing"], [time.time_ns() // 1000], self.columns, [(None,) * len(self.columns)])

    def to_frame(self, batch: Batch) -> pd.DataFrame:
        """The observations as a teacher reads them: numbers as float64, categories and texts as str."""
        columns = zip(*batch.values, strict=True) if batch.values else ((),) * len(self.columns)
        series = {
            name: pd.Series(list(values), dtype="float64" if position < self._number_count else "str")
            for position, (name, values) in enumerate(zip(self.columns, columns, strict=True))
        }
        times = pd.to_datetime(batch.observed_at, unit="us", utc=True).as_unit("us")
        return pd.DataFrame({"observation_id": batch.observation_ids, "observed_at": times, **series})

    def require_columns(self, columns: Sequence[Mapping[str, Any]], version: str) -> None:
        """:raises SchemaError: if a champion reads ``columns`` that the agent file lacks, or has with another type."""
        observations = self.config.observations
        types = {
            **dict.fromkeys(observations.numbers, "number"),
            **dict.fromkeys(observations.categories, "category"),
            **dict.fromkeys(observations.texts, "text"),
        }
        mismatches = [
            f"{column['name']} ({column['type']}, in the agent file {types.get(column['name'], 'not at all')})"
            for column in columns
            if types.get(column["name"]) != column["type"]
        ]
        if mismatches:
            raise SchemaError(
                f"{version} does not fit the agent file of {self.config.agent!r}: it reads {', '.join(mismatches)}; "
                "restore these columns, or refresh to train a student on the present ones"
            )

    def to_batch(self, rows: Sequence[msgspec.Struct]) -> Batch:
        """Decoded observations as a batch.

        :param rows: instances of ``row_type``.
        :raises SchemaError: if a time is too early, or too far ahead.
        """
        now = time.time_ns() // 1000
        column_count = len(self.columns)
        values = [msgspec.structs.astuple(row) for row in rows]
        new_ids = _new_ids(len(values))
        ids = [row[column_count] or new_ids[i] for i, row in enumerate(values)]
        times = [now if row[column_count + 1] is None else to_micros(row[column_count + 1]) for row in values]
        return self._check_times(Batch(ids, times, self.columns, [row[:column_count] for row in values]), now)

    def _read_frame(self, frame: pd.DataFrame) -> Batch:
        now = pd.Timestamp.now("UTC").as_unit("us")
        require_distinct(frame.columns, f"observations of agent {self.config.agent!r}")
        defaults = (("observation_id", lambda: _new_ids(1)[0]), ("observed_at", lambda: now))
        completed = frame.assign(
            **{
                name: [make_default() for _ in range(len(frame))]
                for name, make_default in defaults
                if name not in frame.columns
            }
        )
        rows = tidy(completed, self.config)
        if rows["observation_id"].isna().any() or rows["observed_at"].isna().any():
            raise SchemaError(f"observation_id or observed_at of agent {self.config.agent!r} is missing in a row")
        ids = [str(observation_id) for observation_id in rows["observation_id"]]
        if invalid := [name for name in ids if not 1 <= len(name) <= MAX_ID_LENGTH]:
            raise SchemaError(
                f"observation_id {invalid[0][:50]!r} of agent {self.config.agent!r} has {len(invalid[0])} characters: "
                f"1 to {MAX_ID_LENGTH} are allowed"
            )
        times = rows["observed_at"].dt.tz_convert("UTC").dt.as_unit("us").astype("int64").tolist()
        numbers, texts = rows[self.columns[: self._number_count]], rows[self.columns[self._number_count :]]
        values = np.hstack([_to_objects(numbers), _to_objects(texts)]).tolist()
        batch = self._check_times(Batch(ids, times, self.columns, values), to_micros(now.to_pydatetime()))
        if np.isinf(numbers.to_numpy()).any():
            self._require_finite(batch)
        if not is_unicode("".join(ids)):  # tidy() checked the values
            self._require_unicode(batch)
        return batch

    def _require_finite(self, batch: Batch) -> None:
        for index, row in enumerate(batch.values):
            for name, value in zip(self.columns[: self._number_count], row, strict=False):
                if value is not None and not isfinite(value):
                    raise SchemaError(
                        f"observations of agent {self.config.agent!r}: a number is infinite - at `$[{index}].{name}`; "
                        "write null for a missing value"
                    )

    def _require_unicode(self, batch: Batch) -> None:
        for index, (name, row) in enumerate(zip(batch.observation_ids, batch.values, strict=True)):
            if not is_unicode("".join([name, *(value for value in row[self._number_count :] if value is not None)])):
                raise SchemaError(
                    f"observations of agent {self.config.agent!r}: half a surrogate pair is no Unicode text - at "
                    f"`$[{index}]`: replace such characters"
                )

    def _check_times(self, batch: Batch, now: int) -> Batch:
        ahead = [i for i, micros in enumerate(batch.observed_at) if micros > now + MAX_AHEAD_MICROS]
        early = [i for i, micros in enumerate(batch.observed_at) if micros < _EARLIEST_MICROS]
        if early:
            raise SchemaError(
                f"observation {batch.observation_ids[early[0]]!r} of agent {self.config.agent!r} is dated before 1700: "
                "its observed_at is wrong"
            )
        if ahead:
            raise SchemaError(
                f"observation {batch.observation_ids[ahead[0]]!r} of agent {self.config.agent!r} has an observed_at "
                "more than an hour from now: it is wrong, or a clock is"
            )
        return batch


def is_unicode(text: str) -> bool:
    """Whether the text can be encoded as UTF-8: half a surrogate pair cannot.

    >>> is_unicode("café"), is_unicode("\\ud83d")
    (True, False)
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _to_python(value: Any) -> Any:
    """NumPy and pandas scalars as Python values; their missing values as None."""
    if type(value) in (float, str, int):
        return None if value != value else value
    if isinstance(value, np.generic):
        return _to_python(value.item())
    if value is pd.NA or value is pd.NaT:
        return None
    return value.to_pydatetime() if isinstance(value, pd.Timestamp) else value


def _to_objects(frame: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.object_]]:
    """Its values as Python objects, None if missing."""
    values = frame.to_numpy(dtype=object, copy=True)
    values[frame.isna().to_numpy(dtype=bool)] = None  # bool: without columns isna() gives an array of objects
    return values


def _new_ids(n: int) -> list[str]:
    """n ids of 128 random bits, in hexadecimal."""
    digits = os.urandom(16 * n).hex()
    return [digits[32 * i : 32 * (i + 1)] for i in range(n)]
