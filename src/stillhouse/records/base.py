"""The base class of all records, and their short content hash."""

from __future__ import annotations

import hashlib
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Fraction", "Record", "short_id"]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Record(BaseModel):
    """Base of all records: frozen, unknown fields are refused, numbers are finite (JSON has no NaN).

    A field that was renamed is read under both names (``validation_alias``) and written under its first one
    (``serialization_alias``), so that old and new files have the same keys. Keys that were renamed with their fields
    (a verdict's ``result``, a reason's ``failed``) came with a new store version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, serialize_by_alias=True)


def short_id(*parts: object) -> str:
    """The first twelve hexadecimal digits of the SHA-256 of ``parts``, each as text."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()[:12]
