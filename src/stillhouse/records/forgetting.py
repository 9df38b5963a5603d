"""A request to forget rows, what stands in the journal while it is carried out, and its report."""

from __future__ import annotations

from pydantic import AwareDatetime, Field

from stillhouse.records.base import Record

__all__ = ["ForgetReport", "ForgetRequest", "PendingForget"]


class ForgetRequest(Record):
    """Which rows to forget: those that any of the conditions selects."""

    ids: tuple[str, ...] = Field(default=(), description="observation ids")
    decisions: tuple[str, ...] = Field(default=(), description="decision ids")
    where: tuple[tuple[str, str], ...] = Field(default=(), description="pairs of a column and its value, as text")
    callers: tuple[str, ...] = Field(default=(), description="keyed hashes of credentials")

    @property
    def is_empty(self) -> bool:
        """Whether it selects nothing."""
        return not (self.ids or self.decisions or self.where or self.callers)


class PendingForget(Record):
    """A request that was begun: ids, times and hashes, and no content of a row. It is deleted at the end."""

    request_id: str
    agent: str
    requested_at: AwareDatetime
    observation_ids: tuple[str, ...]
    content_keys: tuple[str, ...] = Field(description="of contents that no remaining row has")
    callers: tuple[str, ...] = ()
    times: tuple[AwareDatetime, ...] = Field(default=(), description="the distinct times of the observations")
    rows: dict[str, int] = Field(description="rows or files by place, as they were counted at the beginning")
    learned: dict[str, str] = Field(description="how each version that learned from them did, by name")


class ForgetReport(Record):
    """What was forgotten; of a dry run, what would be."""

    agent: str
    request_id: str
    requested_at: AwareDatetime
    dry_run: bool
    observations: int = Field(ge=0, description="number of observations")
    rows: dict[str, int] = Field(description="rows or files by place")
    learned: dict[str, str] = Field(
        default_factory=dict, description="how each version that learned from them did, by name such as flights@7"
    )
    left: tuple[str, ...] = Field(
        default=(), description="files in which an id or a text is still found, relative to STILLHOUSE_HOME"
    )
    problems: tuple[str, ...] = Field(default=(), description="what could not be removed, one sentence each")
    completed: tuple[str, ...] = Field(default=(), description="earlier requests that were completed first")
