"""Raw observations and outcomes as the agent's contract has them, and the content key of an observation."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig
from stillhouse.errors import SchemaError
from stillhouse.frames import require_distinct, to_numbers, to_texts

__all__ = ["content_keys", "tidy", "tidy_outcomes"]


def content_keys(rows: pd.DataFrame, config: AgentConfig) -> list[str]:
    """A key for the features of each row: BLAKE2b, 128 bits in hexadecimal, equal for equal content on any machine.

    :param rows: observations from :func:`tidy`.
    """
    numbers = rows[list(config.observations.numbers)].to_numpy(dtype="<f8", na_value=np.nan) + 0.0  # −0.0 becomes 0.0
    numbers[np.isnan(numbers)] = np.nan  # one bit pattern for every NaN
    parts = [np.ascontiguousarray(numbers).view(np.uint8).reshape(len(rows), 8 * numbers.shape[1])]
    for name in (*config.observations.categories, *config.observations.texts):
        codes, values = pd.factorize(rows[name])  # a missing value has code −1: the last digest
        digests = [hashlib.blake2b(value.encode(), digest_size=16).digest() for value in values] + [bytes(16)]
        parts.append(np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 16)[codes])
    return [hashlib.blake2b(row, digest_size=16).hexdigest() for row in np.hstack(parts)]


def tidy(rows: pd.DataFrame, config: AgentConfig) -> pd.DataFrame:
    """The contract's columns of raw observations: numbers as float64; ids, categories and texts as strings.

    :raises SchemaError: if a column is missing or there twice, a number column does not hold numbers, or a value cannot
        be a string.
    """
    observations, agent = config.observations, config.agent
    required = ["observation_id", "observed_at", *observations.columns]
    _require_frame(rows, f"observations of agent {agent!r}")
    require_distinct(rows.columns, f"observations of agent {agent!r}")
    if missing := [name for name in required if name not in rows.columns]:
        raise SchemaError(
            f"observations of agent {agent!r} lack the columns {missing}; they have {list(rows.columns)}. "
            f"Let {observations.source or 'the application'} deliver them, or change `observations.columns` in the "
            "agent file"
        )
    tidied = rows[required].reset_index(drop=True)
    if tidied.empty:  # an empty frame often has no dtypes
        tidied["observed_at"] = pd.to_datetime(tidied["observed_at"], utc=True)
    if not isinstance(tidied["observed_at"].dtype, pd.DatetimeTZDtype):
        raise SchemaError(
            f"observed_at of agent {agent!r} must be timestamps with a time zone, not {rows['observed_at'].dtype}"
        )
    for name in observations.numbers:
        tidied[name] = to_numbers(tidied[name], f"column {name!r} of agent {agent!r} must be numeric")
    for name in ("observation_id", *observations.categories, *observations.texts):
        tidied[name] = to_texts(tidied[name], f"column {name!r} of agent {agent!r} must be text")
    return tidied


def tidy_outcomes(rows: pd.DataFrame, config: AgentConfig) -> pd.DataFrame:
    """``observation_id, observed_at, known_at, action`` of raw outcomes, with ids and actions as strings.

    :raises SchemaError: if a column is missing or there twice, or a value cannot be a string.
    """
    what = f"outcomes of agent {config.agent!r}"
    _require_frame(rows, what)
    require_distinct(rows.columns, what)
    required = ["observation_id", "observed_at", "known_at", "action"]
    if missing := [name for name in required if name not in rows.columns]:
        raise SchemaError(f"{what} lack the columns {missing}")
    strings = {
        name: to_texts(rows[name], f"column {name!r} of {what} must be text") for name in ("observation_id", "action")
    }
    return rows[required].assign(**strings)


def _require_frame(rows: object, what: str) -> None:
    if not isinstance(rows, pd.DataFrame):
        raise SchemaError(f"{what} must be a pandas DataFrame, not of type {type(rows).__name__}")
