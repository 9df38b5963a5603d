"""What all records have in common."""

from __future__ import annotations

import hashlib
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Fraction", "Record", "short_id"]

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Record(BaseModel):
    """Base of all records: frozen, unknown fields refused, numbers finite (JSON has no NaN to come back from)."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def short_id(*parts: object) -> str:
    """Twelve hexadecimal characters that depend on nothing but ``parts``: the same work, the same id."""
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()[:12]
