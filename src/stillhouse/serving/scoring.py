"""MLflow's scoring protocol: the request formats of ``mlflow models serve``, read as observations.

A body is JSON with one of ``dataframe_split``, ``dataframe_records``, ``instances`` and ``inputs``, or CSV, which is
read as by ``stillhouse import``. Rows whose values already have the columns' types are validated directly; in others a
text such as ``"3"`` is accepted as a number, and a column that a record lacks is missing. Columns that the agent does
not have are ignored; ``observation_id`` and ``observed_at`` are used if present.
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
from stillhouse.runtime.rows import Batch, ObservationSchema

__all__ = ["CSV", "ScoringReader", "to_predictions"]

CSV = "text/csv"

_FORMATS = ("dataframe_split", "dataframe_records", "instances", "inputs")


class _Split(msgspec.Struct, forbid_unknown_fields=True):
    data: list[list[Any]]
    columns: list[str]
    index: list[Any] | None = None


class _ScoringRequest(msgspec.Struct):
    dataframe_split: _Split | UnsetType = UNSET
    dataframe_records: list[dict[str, Any]] | UnsetType = UNSET
    instances: list[dict[str, Any]] | dict[str, Any] | UnsetType = UNSET
    inputs: list[dict[str, Any]] | dict[str, Any] | UnsetType = UNSET


class ScoringReader:
    """Reads the bodies of ``/invocations`` for one agent."""

    def __init__(self, schema: ObservationSchema) -> None:
        self._schema = schema
        self._columns = [*schema.columns, "observation_id", "observed_at"]
        self.decoder = msgspec.json.Decoder(_ScoringRequest)

    def rows(self, request: _ScoringRequest) -> list[dict[str, Any]]:
        """The rows of decoded JSON.

        :raises SchemaError: if it does not have exactly one of the four formats, or has columns of different lengths.
        """
        present = [(name, value) for name in _FORMATS if (value := getattr(request, name)) is not UNSET]
        if len(present) != 1:
            raise SchemaError(f"the body must have exactly one of {', '.join(_FORMATS)}; it has {len(present)}")
        ((name, value),) = present
        if isinstance(value, _Split):
            require_distinct(value.columns, f"the rows of {name}")
            column_count = len(value.columns)
            if wrong := [i for i, row in enumerate(value.data) if len(row) != column_count]:
                raise SchemaError(f"row {wrong[0]} of {name} must have {column_count} values, one for each column")
            return [dict(zip(value.columns, row, strict=True)) for row in value.data]
        if isinstance(value, list):
            return value
        return _columns_to_rows(name, value)

    def batch(self, rows: Sequence[Mapping[str, Any]]) -> Batch:
        """Rows as observations.

        :raises SchemaError: if they do not fit the agent file.
        """
        names = set(self._columns)
        rows = [row if row.keys() <= names else {k: v for k, v in row.items() if k in names} for row in rows]
        row_type = self._schema.row_type
        try:
            return self._schema.to_batch(msgspec.convert(rows, list[row_type]))  # type: ignore[valid-type]
        except msgspec.ValidationError:
            return self.frame_batch(pd.DataFrame(rows, dtype=object))  # object: pandas must not turn 1 into 1.0

    def read_csv(self, body: bytes) -> pd.DataFrame:
        """The agent's columns of a CSV body, as texts; an empty field is None.

        :raises SchemaError: if it is no CSV in UTF-8 with the agent's columns in its header row.
        """
        rows = read_csv(BytesIO(body), "the body")
        if missing := [name for name in self._schema.columns if name not in rows.columns]:
            hint = next(filter(None, (heading_hint(name, list(rows.columns)) for name in missing)), "")
            raise SchemaError(
                f"the body lacks the columns {missing}; it has {list(rows.columns)}{f': {hint}' if hint else ''}"
            )
        return rows[[name for name in rows.columns if name in self._columns]]

    def frame_batch(self, rows: pd.DataFrame) -> Batch:
        """Rows of a frame as observations; texts may hold numbers, and times in ISO 8601 with their time zone.

        :raises SchemaError: if they do not fit the agent file.
        """
        require_distinct(rows.columns, "the rows")
        rows = rows[[name for name in rows.columns if name in self._columns]]
        if "observed_at" in rows:
            rows = rows.assign(observed_at=_parse_times(rows["observed_at"]))
        return self._schema.read(rows)


def _parse_times(values: pd.Series[Any]) -> pd.Series[Any]:
    """The times in UTC, NaT if missing.

    :raises SchemaError: for the first value that is no ISO 8601 time, or has no time zone.
    """
    texts = values.where(values.map(lambda value: isinstance(value, str)), None).astype("str").str.strip()
    has_zone = has_time_zone(texts)
    times = pd.to_datetime(texts.where(has_zone), format="ISO8601", utc=True, errors="coerce")
    for row in np.flatnonzero(times.isna() & values.notna()).tolist():
        reason = "is no ISO moment" if has_zone.iloc[row] else "is no ISO moment with a time zone"
        raise SchemaError(f"observed_at, row {row}: {values.iloc[row]!r} {reason}, such as 2024-05-01T12:00:00Z")
    return times


def _columns_to_rows(name: str, columns: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Columns as rows; a single value is a column of one row."""
    lists = {key: value if isinstance(value, list) else [value] for key, value in columns.items()}
    lengths = {len(values) for values in lists.values()}
    if len(lengths) > 1:
        raise SchemaError(f"the columns of {name} have different lengths: {sorted(lengths)}")
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]


def to_predictions(decisions: Sequence[Decision]) -> list[dict[str, Any]]:
    """The same records as the model's own ``predict``: ``action``, and ``p_<action>`` for each action."""
    return [
        {"action": decision.action, **{f"p_{action}": p for action, p in decision.probabilities.items()}}
        for decision in decisions
    ]
