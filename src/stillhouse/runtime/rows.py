"""Observations as an application gives them, checked against the agent's contract."""

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
from stillhouse.runtime.ids import LONGEST_ID
from stillhouse.runtime.outside import OutsideContract
from stillhouse.values import ValueRefused, number_of, text_of

__all__ = ["AHEAD", "Batch", "Contract", "is_unicode", "micros"]

_EPOCH, _MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
AHEAD = time_range.CLOCK_TOLERANCE // _MICROSECOND
"""Microseconds that a clock may be ahead of ours."""

ObservationId = Annotated[str, msgspec.Meta(min_length=1, max_length=LONGEST_ID)]
ObservedAt = Annotated[datetime, msgspec.Meta(tz=True)]


def micros(moment: datetime) -> int:
    """Microseconds since 1970 (UTC)."""
    return (moment - _EPOCH) // _MICROSECOND


_EARLIEST = micros(time_range.EARLIEST)


@dataclass(frozen=True, slots=True)
class Batch:
    """n observations that keep the contract."""

    observation_ids: list[str]
    observed_at: list[int]
    """Microseconds since 1970 (UTC)."""
    columns: list[str]
    """Numbers, then categories, then texts."""
    values: list[Any]
    """n sequences in that order: float, str, or None where missing."""

    def __len__(self) -> int:
        return len(self.values)

    def part(self, places: Sequence[int]) -> Batch:
        """Only the observations at ``places``."""
        return Batch(
            [self.observation_ids[i] for i in places],
            [self.observed_at[i] for i in places],
            self.columns,
            [self.values[i] for i in places],
        )


class Contract:
    """What an observation of this agent must look like: each column of the agent file, null where it is missing.

    ``observation_id`` and ``observed_at`` may be left out: then it is given a new id, and was perceived now.
    """

    def __init__(self, config: AgentConfig) -> None:
        observations = config.observations
        self.config = config
        self.columns = [*observations.numbers, *observations.categories, *observations.texts]
        self._numbers = len(observations.numbers)
        self._reads: dict[str, type] = dict.fromkeys(self.columns, str) | dict.fromkeys(observations.numbers, float)
        self._reads["observation_id"] = str
        self.outside = OutsideContract(observations, self.columns)
        kinds: list[Any] = [float | None] * self._numbers + [str | None] * (len(self.columns) - self._numbers)
        fields = [(f"c{i}", kind) for i, kind in enumerate(kinds)]
        self.type: type[msgspec.Struct] = msgspec.defstruct(
            "Observation",
            [*fields, ("observation_id", ObservationId | None, None), ("observed_at", ObservedAt | None, None)],
            rename={f"c{i}": name for i, name in enumerate(self.columns)},
            forbid_unknown_fields=True,
            kw_only=False,
            gc=False,
        )

    def read(self, given: Mapping[str, Any] | Sequence[Mapping[str, Any]] | pd.DataFrame) -> Batch:
        """Check what an application hands over in process.

        :raises SchemaError: naming the row, the column and what is wrong with it.
        """
        if isinstance(given, pd.DataFrame):
            return self._of_frame(given)
        try:
            rows = [given] if isinstance(given, Mapping) else list(given)
            plain = [self.written(row, f"$[{place}]") for place, row in enumerate(rows)]
            batch = self.batch(msgspec.convert(plain, list[self.type]))  # type: ignore[name-defined]
        except (msgspec.ValidationError, AttributeError, TypeError) as error:  # what is no mapping has no items
            raise SchemaError(f"observations of agent {self.config.agent!r}: {error}") from error
        self._require_finite(batch)
        self._require_unicode(batch)
        return batch

    def written(self, row: Mapping[str, Any], place: str) -> dict[str, Any]:
        """A row with its values as numbers and texts, by the rule of :mod:`stillhouse.values`; others as they are.

        :param place: where the row stands, for messages: ``$.observations[3]``.
        :raises SchemaError: naming the column and the value that is none of it.
        """
        found = dict[str, Any]()
        for name, value in row.items():
            kind = self._reads.get(name)
            try:
                if kind is None or type(value) is kind:
                    found[name] = _plain(value)
                elif kind is str:
                    found[name] = text_of(value)
                else:
                    found[name] = _plain(number_of(value))
            except ValueRefused as error:
                raise SchemaError(
                    f"observations of agent {self.config.agent!r}: {error} - at `{place}.{name}`"
                ) from error
        return found

    def missing(self) -> Batch:
        """One observation of which nothing is known."""
        return Batch(["missing"], [time.time_ns() // 1000], self.columns, [(None,) * len(self.columns)])

    def frame(self, batch: Batch) -> pd.DataFrame:
        """The observations as a teacher reads them: numbers float64, categories and texts as text."""
        columns = zip(*batch.values, strict=True) if batch.values else ((),) * len(self.columns)
        typed = {
            name: pd.Series(list(values), dtype="float64" if place < self._numbers else "str")
            for place, (name, values) in enumerate(zip(self.columns, columns, strict=True))
        }
        times = pd.to_datetime(batch.observed_at, unit="us", utc=True).as_unit("us")
        return pd.DataFrame({"observation_id": batch.observation_ids, "observed_at": times, **typed})

    def require(self, columns: Sequence[Mapping[str, Any]], version: str) -> None:
        """:raises SchemaError: if a champion reads ``columns`` that the agent file lacks, or has of another type."""
        observations = self.config.observations
        kinds = {
            **dict.fromkeys(observations.numbers, "number"),
            **dict.fromkeys(observations.categories, "category"),
            **dict.fromkeys(observations.texts, "text"),
        }
        strange = [
            f"{column['name']} ({column['type']}, in the agent file {kinds.get(column['name'], 'not at all')})"
            for column in columns
            if kinds.get(column["name"]) != column["type"]
        ]
        if strange:
            raise SchemaError(
                f"{version} does not fit the agent file of {self.config.agent!r}: it reads {', '.join(strange)}; "
                "restore the columns, or refresh, so that a student learns from those of now"
            )

    def batch(self, rows: Sequence[msgspec.Struct]) -> Batch:
        """Decoded observations as a batch.

        :raises SchemaError: if a time lies ahead.
        """
        now = time.time_ns() // 1000
        wide = len(self.columns)
        values = [msgspec.structs.astuple(row) for row in rows]
        new = _new_ids(len(values))
        ids = [row[wide] or new[i] for i, row in enumerate(values)]
        times = [now if row[wide + 1] is None else micros(row[wide + 1]) for row in values]
        return self._checked(Batch(ids, times, self.columns, [row[:wide] for row in values]), now)

    def _of_frame(self, rows: pd.DataFrame) -> Batch:
        now = pd.Timestamp.now("UTC").as_unit("us")
        require_distinct(rows.columns, f"observations of agent {self.config.agent!r}")
        given = rows.assign(
            **{
                name: [value() for _ in range(len(rows))]
                for name, value in (("observation_id", lambda: _new_ids(1)[0]), ("observed_at", lambda: now))
                if name not in rows.columns
            }
        )
        tidied = tidy(given, self.config)
        if tidied["observation_id"].isna().any() or tidied["observed_at"].isna().any():
            raise SchemaError(f"observation_id or observed_at of agent {self.config.agent!r} is missing in a row")
        ids = [str(each) for each in tidied["observation_id"]]
        if strange := [each for each in ids if not 1 <= len(each) <= LONGEST_ID]:
            raise SchemaError(
                f"observation_id {strange[0][:50]!r} of agent {self.config.agent!r} has {len(strange[0])} characters: "
                f"1 to {LONGEST_ID} are allowed"
            )
        times = tidied["observed_at"].dt.tz_convert("UTC").dt.as_unit("us").astype("int64").tolist()
        numbers, others = tidied[self.columns[: self._numbers]], tidied[self.columns[self._numbers :]]
        values = np.hstack([_listed(numbers), _listed(others)]).tolist()
        batch = self._checked(Batch(ids, times, self.columns, values), micros(now.to_pydatetime()))
        if np.isinf(numbers.to_numpy()).any():
            self._require_finite(batch)
        if not is_unicode("".join(ids)):  # of the rest that is known by now
            self._require_unicode(batch)
        return batch

    def _require_finite(self, batch: Batch) -> None:
        for place, row in enumerate(batch.values):
            for name, value in zip(self.columns[: self._numbers], row, strict=False):
                if value is not None and not isfinite(value):
                    raise SchemaError(
                        f"observations of agent {self.config.agent!r}: a number is infinite - at `$[{place}].{name}`; "
                        "missing is null"
                    )

    def _require_unicode(self, batch: Batch) -> None:
        for place, (name, row) in enumerate(zip(batch.observation_ids, batch.values, strict=True)):
            if not is_unicode("".join([name, *(value for value in row[self._numbers :] if value is not None)])):
                raise SchemaError(
                    f"observations of agent {self.config.agent!r}: half a surrogate pair is no Unicode text - at "
                    f"`$[{place}]`: replace such characters"
                )

    def _checked(self, batch: Batch, now: int) -> Batch:
        ahead = [i for i, each in enumerate(batch.observed_at) if each > now + AHEAD]
        early = [i for i, each in enumerate(batch.observed_at) if each < _EARLIEST]
        if early:
            raise SchemaError(
                f"observation {batch.observation_ids[early[0]]!r} of agent {self.config.agent!r} is dated before 1700: "
                "its observed_at is wrong"
            )
        if ahead:
            raise SchemaError(
                f"observation {batch.observation_ids[ahead[0]]!r} of agent {self.config.agent!r} was perceived more "
                "than an hour from now: its observed_at is wrong, or a clock is"
            )
        return batch


def is_unicode(text: str) -> bool:
    """Whether it can be written at all: half a surrogate pair cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _plain(value: Any) -> Any:
    """NumPy's and pandas' scalars as Python's, what they hold for missing as None."""
    if type(value) in (float, str, int):
        return None if value != value else value
    if isinstance(value, np.generic):
        return _plain(value.item())
    if value is pd.NA or value is pd.NaT:
        return None
    return value.to_pydatetime() if isinstance(value, pd.Timestamp) else value


def _listed(values: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.object_]]:
    """Its values as plain Python ones, None where missing."""
    found = values.to_numpy(dtype=object, copy=True)
    found[values.isna().to_numpy(dtype=bool)] = None  # of no columns it would be of objects
    return found


def _new_ids(n: int) -> list[str]:
    """128 random bits each, in hexadecimal."""
    drawn = os.urandom(16 * n).hex()
    return [drawn[32 * i : 32 * (i + 1)] for i in range(n)]
