"""What commands report as JSON: the history of verdicts, the weights of teachers, the drift between two tables."""

from __future__ import annotations

from typing import Literal

from pydantic import AwareDatetime, Field

from stillhouse.records.base import Fraction, Record
from stillhouse.records.drift import ColumnDrift
from stillhouse.records.pool import RealisedGain
from stillhouse.records.teachers import Contradictions, WeightChange
from stillhouse.records.verdicts import Reason, Response, VerdictResult

__all__ = ["History", "HistoryEntry", "TableDrift", "TeacherReport", "TeacherShare"]


class HistoryEntry(Record):
    """A verdict without the records that it was decided on, which `stillhouse verify` reads."""

    recorded_at: AwareDatetime = Field(description="when it was decided, by the clock of that machine")
    as_of: AwareDatetime = Field(description="the time of the agent's clock that it is about")
    verdict_id: str
    kind: Literal["watch", "gate", "promotion", "forget"]
    result: VerdictResult
    response: Response
    summary: str
    reasons: tuple[Reason, ...] = ()
    labels_needed: int | None = Field(default=None, description="of an inconclusive gate; None: not foreseeable")
    gain: RealisedGain | None = Field(default=None, description="of a change of the champion; None: not known yet")


class History(Record):
    """The last verdicts about an agent, in the order in which they were decided."""

    agent: str
    entries: tuple[HistoryEntry, ...]


class TeacherShare(Record):
    """One of an agent's teachers, with its share of the weighted mean."""

    teacher: str
    kinds: tuple[str, ...]
    by_file: Fraction = Field(description="share by the agent file")
    now: dict[str, Fraction] = Field(
        description="learned share by slice, 'column=value'; '': all rows. Empty: the share of the agent file"
    )


class TeacherReport(Record):
    """The weights of an agent's teachers, and their last changes, the oldest first."""

    agent: str
    teachers: tuple[TeacherShare, ...]
    changes: tuple[WeightChange, ...] = ()
    contradictions: Contradictions | None = Field(
        default=None, description="where the champion and its teachers contradict each other, if that was asked for"
    )


class TableDrift(Record):
    """The drift of each column between two tables, the largest first."""

    reference_rows: int = Field(ge=0)
    current_rows: int = Field(ge=0)
    columns: tuple[ColumnDrift, ...]
