"""What an observation holds: its contract's columns in order, and the key of its content."""

from __future__ import annotations

import hashlib

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig
from stillhouse.errors import SchemaError

__all__ = ["content_keys", "tidy"]


def content_keys(rows: pd.DataFrame, config: AgentConfig) -> list[str]:
    """A key for each tidy row's features: 128 bits in hexadecimal, the same for the same content anywhere."""
    numbers = rows[list(config.observations.numbers)].to_numpy(dtype="<f8", na_value=np.nan) + 0.0  # −0.0 is 0.0
    numbers[np.isnan(numbers)] = np.nan  # of the many NaNs, one
    parts = [np.ascontiguousarray(numbers).view(np.uint8).reshape(len(rows), 8 * numbers.shape[1])]
    for name in (*config.observations.categories, *config.observations.texts):
        codes, values = pd.factorize(rows[name])  # missing: −1, the last of `digests`
        digests = [hashlib.blake2b(value.encode(), digest_size=16).digest() for value in values] + [bytes(16)]
        parts.append(np.frombuffer(b"".join(digests), dtype=np.uint8).reshape(-1, 16)[codes])
    return [hashlib.blake2b(row, digest_size=16).hexdigest() for row in np.hstack(parts)]


def tidy(rows: pd.DataFrame, config: AgentConfig) -> pd.DataFrame:
    """The contract's columns of raw observations, numbers as float64, categories and texts as text.

    :raises SchemaError: if columns are missing, a number column does not hold numbers, or a text is no Unicode.
    """
    observations = config.observations
    required = ["observation_id", "observed_at", *observations.columns]
    if missing := [name for name in required if name not in rows.columns]:
        raise SchemaError(
            f"observations of agent {config.agent!r} lack the columns {missing}; they have {list(rows.columns)}. "
            f"Let {observations.source} deliver them, or change `observations.columns` in the agent file"
        )
    tidied = rows[required].copy()
    if tidied.empty:  # no rows, and so often no types
        tidied["observed_at"] = pd.to_datetime(tidied["observed_at"], utc=True)
    if not isinstance(tidied["observed_at"].dtype, pd.DatetimeTZDtype):
        raise SchemaError(
            f"observed_at of agent {config.agent!r} must be timestamps with a time zone, "
            f"not {rows['observed_at'].dtype}"
        )
    for name in observations.numbers:
        if tidied[name].dtype.kind in "mMc":
            raise SchemaError(f"column {name!r} of agent {config.agent!r} must be numeric, not {tidied[name].dtype}")
        try:
            tidied[name] = pd.to_numeric(tidied[name]).astype("float64")
        except (TypeError, ValueError) as error:
            raise SchemaError(f"column {name!r} of agent {config.agent!r} must be numeric: {error}") from error
    for name in (*observations.categories, *observations.texts):
        try:
            tidied[name] = tidied[name].astype("string").astype("object")
        except UnicodeEncodeError as error:
            raise SchemaError(
                f"column {name!r} of agent {config.agent!r} holds what is no Unicode text ({error.reason}): let "
                f"{observations.source} replace such characters"
            ) from error
    return tidied.reset_index(drop=True)
