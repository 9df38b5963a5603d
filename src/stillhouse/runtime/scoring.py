"""MLflow's scoring protocol: what ``mlflow models serve`` takes for an agent's model, read as observations.

JSON with one of ``dataframe_split``, ``dataframe_records``, ``instances`` and ``inputs``, or CSV, which is read as
``stillhouse import`` reads it. Rows whose values are plainly numbers and texts are checked against the contract as they
are; of others ``"3"`` is a number too where one is wanted, and an absent value of a record is a missing one. Columns
that the agent does not have are ignored; ``observation_id`` and ``observed_at`` are used where they are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import msgspec
import numpy as np
import pandas as pd
from msgspec import UNSET, UnsetType

from stillhouse.errors import SchemaError
from stillhouse.frames import has_time_zone, require_distinct
from stillhouse.knowledge.log_files import heading_hint, read_csv
from stillhouse.runtime.agent import Decision
from stillhouse.runtime.rows import Batch, Contract

__all__ = ["CSV", "Scoring", "predictions"]

CSV = "text/csv"

_FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")


class _Split(msgspec.Struct, forbid_unknown_fields=True):
    data: list[list[Any]]
    columns: list[str]
    index: list[Any] | None = None


class _Asked(msgspec.Struct):
    dataframe_split: _Split | UnsetType = UNSET
    dataframe_records: list[dict[str, Any]] | UnsetType = UNSET
    instances: list[dict[str, Any]] | dict[str, Any] | UnsetType = UNSET
    inputs: list[dict[str, Any]] | dict[str, Any] | UnsetType = UNSET


class Scoring:
    """Reads the bodies of ``/invocations`` for one agent."""

    def __init__(self, contract: Contract) -> None:
        self._contract = contract
        self._wanted = [*contract.columns, "observation_id", "observed_at"]
        self.decoder = msgspec.json.Decoder(_Asked)

    def rows_of(self, asked: _Asked) -> list[dict[str, Any]]:
        """Decoded JSON as rows.

        :raises SchemaError: if it has not exactly one of the four forms, or columns of several lengths.
        """
        given = [(name, value) for name in _FORMATS if (value := getattr(asked, name)) is not UNSET]
        if len(given) != 1:
            raise SchemaError(f"the body must have exactly one of {', '.join(_FORMATS)}; it has {len(given)}")
        ((name, value),) = given
        if isinstance(value, _Split):
            require_distinct(value.columns, f"the rows of {name}")
            wide = len(value.columns)
            if strange := [i for i, row in enumerate(value.data) if len(row) != wide]:
                raise SchemaError(f"row {strange[0]} of {name} has not {wide} values, one for each of its columns")
            return [dict(zip(value.columns, row, strict=True)) for row in value.data]
        if isinstance(value, list):
            return value
        return _turned(name, value)

    def batch(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Rows as observations.

        :raises SchemaError: if they do not keep the contract.
        """
        known = set(self._wanted)
        kept = [row if row.keys() <= known else {k: v for k, v in row.items() if k in known} for row in rows]
        try:
            return self._contract.batch(msgspec.convert(kept, list[self._contract.type]))  # type: ignore[name-defined]
        except msgspec.ValidationError:
            return self.frame(pd.DataFrame(kept, dtype=object))  # no type is guessed: 1 beside a gap stays whole

    def csv(self, body: bytes) -> pd.DataFrame:
        """The columns that the agent has, as texts; an empty field is None.

        :raises SchemaError: if it is no CSV in UTF-8 with the contract's columns in its heading.
        """
        rows = read_csv(BytesIO(body), "the body")
        if lacking := [name for name in self._contract.columns if name not in rows.columns]:
            hint = next(filter(None, (heading_hint(name, list(rows.columns)) for name in lacking)), "")
            raise SchemaError(
                f"the body lacks the columns {lacking}; it has {list(rows.columns)}{f': {hint}' if hint else ''}"
            )
        return rows[[name for name in rows.columns if name in self._wanted]]

    def frame(self, rows: pd.DataFrame) -> Batch:
        """Rows of a frame as observations: texts may write numbers, and moments in ISO 8601 with their time zone.

        :raises SchemaError: if they do not keep the contract.
        """
        require_distinct(rows.columns, "the rows")
        rows = rows[[name for name in rows.columns if name in self._wanted]]
        if "observed_at" in rows:
            rows = rows.assign(observed_at=_moments(rows["observed_at"]))
        return self._contract.read(rows)


def _moments(given: pd.Series[Any]) -> pd.Series[Any]:
    """UTC, missing as NaT.

    :raises SchemaError: at the first that is no ISO moment, or does not say its time zone.
    """
    texts = given.where(given.map(lambda value: isinstance(value, str)), None).astype("str").str.strip()
    zoned = has_time_zone(texts)
    found = pd.to_datetime(texts.where(zoned), format="ISO8601", utc=True, errors="coerce")
    for place in np.flatnonzero(found.isna() & given.notna()).tolist():
        why = "is no ISO moment" if zoned.iloc[place] else "is no ISO moment with a time zone"
        raise SchemaError(f"observed_at, row {place}: {given.iloc[place]!r} {why}, such as 2024-05-01T12:00:00Z")
    return found


def _turned(name: str, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Columns as rows; a single value is a column of one."""
    lists = {key: value if isinstance(value, list) else [value] for key, value in columns.items()}
    lengths = {len(each) for each in lists.values()}
    if len(lengths) > 1:
        raise SchemaError(f"the columns of {name} have different lengths: {sorted(lengths)}")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def predictions(decisions: Sequence[Decision]) -> list[dict[str, Any]]:
    """What the model's own ``predict`` gives, a record per row: ``action`` and ``p_<action>`` for each action."""
    return [
        {"action": each.action, **{f"p_{action}": p for action, p in each.probabilities.items()}} for each in decisions
    ]
