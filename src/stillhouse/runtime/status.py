"""What the agent says about itself: who decides, what waits, what is out of reach."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, Field

from stillhouse.records import Record

__all__ = ["SIDES", "Problem", "Side", "Status", "Troubles", "merged"]

log = logging.getLogger(__name__)

Side = Literal["registry", "champion", "knowledge_base", "teacher", "spool", "supervisor", "clock"]

SIDES: dict[Side, str] = {
    "registry": "MLflow does not answer",
    "champion": "a champion cannot be used here",
    "knowledge_base": "what was recorded cannot be moved into the knowledge base",
    "teacher": "the cascade's teacher fails, is late, or its budget is spent",
    "spool": "a spool is damaged, full, or cannot be written",
    "clock": "the machine's clock was set while the process ran",
    "supervisor": "the server's workers end by themselves, or it cannot follow, flush or tell",
}
"""What a problem with each side is, for those who may not know more."""


class Problem(Record):
    """The newest trouble with one side."""

    since: AwareDatetime = Field(description="when it began")
    at: AwareDatetime = Field(description="when it was last met")
    text: str
    over_at: AwareDatetime | None = Field(default=None, description="when that side answered again; null: not yet")


class Status(Record):
    """One agent in one process."""

    agent: str
    champion: str | None = Field(description="that decides now, such as flights@7")
    promoted_at: AwareDatetime | None = Field(description="when it was promoted")
    deciding_since: AwareDatetime | None = Field(description="when this process took it up")
    problems: dict[Side, Problem] = Field(
        description="registry: MLflow does not answer; champion: one cannot be used here; knowledge_base: a flush "
        "failed; teacher: it fails, is late, or its budget is spent; spool: one is damaged, full, or cannot be "
        "written; supervisor: workers end by themselves, or nothing is followed, flushed or told"
    )
    spool_rows: int = Field(ge=0, description="recorded and not yet in the knowledge base, by this process")
    decisions: dict[str, int] = Field(description="since this process began, by decider")
    outside_contract: dict[str, int] = Field(
        default_factory=dict, description="values outside the data contract since this process began, by column"
    )
    cascade: dict[str, int] = Field(
        description="rows that the student was unsure about since this process began, by what came of it: answered, "
        "remembered (the teacher had spoken before), unanswered (no usable answer, or no budget), late, failed, "
        "not_asked (it is not loaded, or was given a rest after it failed)"
    )
    teacher_calls: int = Field(ge=0, description="of the cascade on this machine, this day (UTC)")
    teacher_cost: float = Field(ge=0, description="the same, in the unit of the prices in the agent file")
    last_flush: AwareDatetime | None = Field(description="when this process last moved its records on")

    @property
    def troubled(self) -> dict[Side, Problem]:
        """The problems that are not over."""
        return {side: problem for side, problem in self.problems.items() if problem.over_at is None}


def merged(*told: Mapping[Side, Problem]) -> dict[Side, Problem]:
    """The problems of several processes: of two with one side that which is not over, else the newer."""
    found: dict[Side, Problem] = {}
    for problems in told:
        for side, problem in problems.items():
            if side not in found or _weight(problem) > _weight(found[side]):
                found[side] = problem
    return found


def _weight(problem: Problem) -> tuple[bool, datetime]:
    return problem.over_at is None, problem.at


class Troubles:
    """The newest problem with each side; for several threads."""

    def __init__(self, agent: str) -> None:
        self._agent = agent
        self._lock = threading.Lock()
        self._problems: dict[Side, Problem] = {}

    def tell(self, side: Side, text: str) -> None:
        """There is a problem; it is logged when it is a new one."""
        now = datetime.now(UTC)
        with self._lock:
            before = self._problems.get(side)
            old = before is not None and before.over_at is None
            since = before.since if before is not None and old else now
            self._problems[side] = Problem(since=since, at=now, text=text)
        if before is None or not old or before.text != text:
            log.warning("%s: %s: %s", self._agent, side, text)

    def over(self, side: Side) -> None:
        """That side answers."""
        with self._lock:
            problem = self._problems.get(side)
            if problem is None or problem.over_at is not None:
                return
            self._problems[side] = problem.model_copy(update={"over_at": datetime.now(UTC)})
        log.warning("%s: %s: answers again", self._agent, side)

    def all(self) -> dict[Side, Problem]:
        """By side."""
        with self._lock:
            return dict(self._problems)
