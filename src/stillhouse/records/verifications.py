"""The result of computing a verdict again."""

from __future__ import annotations

from pydantic import AwareDatetime, Field

from stillhouse.records.base import Record
from stillhouse.records.verdicts import VerdictResult

__all__ = ["Verification"]


class Verification(Record):
    """What was computed again for one verdict, and what differs from what it says."""

    agent: str
    verdict_id: str
    as_of: AwareDatetime
    result: VerdictResult = Field(description="of the verdict as recorded")
    identical: bool = Field(description="whether everything was computed again, and is as the verdict says")
    checked: tuple[str, ...] = Field(description="what was computed again")
    not_recomputed: tuple[str, ...] = Field(default=(), description="what cannot be computed again, such as timings")
    missing: tuple[str, ...] = Field(
        default=(), description="what should have been computed again and could not be: what is missing, what to do"
    )
    differences: tuple[str, ...] = Field(default=(), description="what is not as the verdict says")
