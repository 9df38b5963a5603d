"""MLflow's scoring protocol: what ``mlflow models serve`` takes for an agent's model, read as observations.

JSON with one of ``dataframe_split``, ``dataframe_records``, ``instances`` and ``inputs``, or CSV. Rows whose values are
plainly numbers and texts are checked against the contract as they are; others go through pandas as MLflow's do, so that
``"3"`` is a number there and an absent value of a record is a missing one. Columns that the agent does not have are
ignored; ``observation_id`` and ``observed_at`` are used where they are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import msgspec
import pandas as pd
from msgspec import UNSET, UnsetType

from stillhouse.errors import SchemaError
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
            return self.frame(pd.DataFrame(kept))

    def csv(self, body: bytes) -> pd.DataFrame:
        """:raises SchemaError: if it is no CSV in UTF-8."""
        observations = self._contract.config.observations
        texts = dict.fromkeys((*observations.categories, *observations.texts, "observation_id"), "string")
        try:
            return pd.read_csv(BytesIO(body), dtype=texts, encoding="utf-8", usecols=lambda name: name in self._wanted)
        except (ValueError, pd.errors.ParserError) as error:
            raise SchemaError(f"the body is no CSV with a header: {error}") from error

    def frame(self, rows: pd.DataFrame) -> Batch:
        """Rows of a frame as observations, as lenient as pandas.

        :raises SchemaError: if they do not keep the contract.
        """
        rows = rows[[name for name in rows.columns if name in self._wanted]]
        try:
            if "observed_at" in rows:
                rows = rows.assign(observed_at=pd.to_datetime(rows["observed_at"], utc=True, format="ISO8601"))
            return self._contract.read(rows)
        except (ValueError, TypeError, OverflowError) as error:
            raise SchemaError(f"the rows cannot be read: {error}") from error


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
