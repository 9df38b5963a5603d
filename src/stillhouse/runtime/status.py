"""The status of an agent in one process: its champion, its counts, and its problems by component."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, Field

from stillhouse.records import PromiseStatus, Record

__all__ = ["COMPONENT_PROBLEMS", "Component", "Problem", "ProblemLog", "Status", "merge_problems"]

log = logging.getLogger(__name__)

Component = Literal["registry", "champion", "knowledge_base", "teacher", "spool", "supervisor", "clock", "promise"]

COMPONENT_PROBLEMS: dict[Component, str] = {
    "registry": "MLflow does not answer",
    "champion": "a champion cannot be used here",
    "knowledge_base": "recorded events cannot be moved into the knowledge base",
    "teacher": "the cascade's teacher fails, is late, or its budget is spent",
    "spool": "a spool is damaged, full, or cannot be written",
    "promise": "the promised agreement with the teacher is not held at the usual coverage, or its state is unreadable",
    "clock": "the machine's clock was set while the process ran",
    "supervisor": "the server's workers exit unexpectedly, or it cannot follow, flush or report",
}
"""What a problem with a component means in general, for clients without a token: the details stay hidden."""


class Problem(Record):
    """The latest problem with one component."""

    since: AwareDatetime = Field(description="when it began")
    at: AwareDatetime = Field(description="when it was last seen")
    text: str
    over_at: AwareDatetime | None = Field(default=None, description="when the component worked again; null: not yet")


class Status(Record):
    """The status of one agent in one process."""

    agent: str
    champion: str | None = Field(description="the version that decides now, such as flights@7")
    promoted_at: AwareDatetime | None = Field(description="when the champion was promoted")
    deciding_since: AwareDatetime | None = Field(description="when this process loaded the champion")
    problems: dict[Component, Problem] = Field(
        description="registry: MLflow does not answer; champion: one cannot be used here; knowledge_base: a flush "
        "failed; teacher: it fails, is late, or its budget is spent; spool: one is damaged, full, or cannot be "
        "written; supervisor: workers exit unexpectedly, or the server cannot follow, flush or report; promise: "
        "fewer rows are answered since an alarm, or the state cannot be read or written"
    )
    spool_rows: int = Field(ge=0, description="rows that this process recorded and that were not flushed yet")
    decisions: dict[str, int] = Field(description="number of decisions since this process began, by decider")
    outside_contract: dict[str, int] = Field(
        default_factory=dict, description="values outside the data contract since this process began, by column"
    )
    cascade: dict[str, int] = Field(
        description="rows for the teacher since this process began (unsure, too novel, audited), by result: answered, "
        "remembered "
        "(the teacher's earlier answer was reused), unanswered (no usable answer, or no budget), late, failed, "
        "not_asked (the teacher is not loaded, or is paused after a failure)"
    )
    teacher_calls: int = Field(ge=0, description="calls of the cascade on this machine today (UTC)")
    teacher_cost: float = Field(ge=0, description="cost of these calls, in the unit of the prices in the agent file")
    promise: PromiseStatus | None = Field(
        default=None, description="how far `runtime.cascade.agreement` is held on this machine; null: nothing promised"
    )
    last_flush: AwareDatetime | None = Field(description="when this process last flushed the spools")

    @property
    def open_problems(self) -> dict[Component, Problem]:
        """The problems that are not over."""
        return {component: problem for component, problem in self.problems.items() if problem.over_at is None}


def merge_problems(*problems_by_process: Mapping[Component, Problem]) -> dict[Component, Problem]:
    """Merge the problems of several processes: for each component an open problem first, else the latest.

    >>> merge_problems({}, {})
    {}
    """
    merged: dict[Component, Problem] = {}
    for problems in problems_by_process:
        for component, problem in problems.items():
            if component not in merged or _priority(problem) > _priority(merged[component]):
                merged[component] = problem
    return merged


def _priority(problem: Problem) -> tuple[bool, datetime]:
    return problem.over_at is None, problem.at


class ProblemLog:
    """The latest problem with each component. Thread-safe.

    >>> problems = ProblemLog("flights")
    >>> problems.report("registry", "connection refused")
    >>> problems.resolve("registry")
    >>> problems.all()["registry"].over_at is not None
    True
    """

    def __init__(self, agent: str) -> None:
        self._agent = agent
        self._lock = threading.Lock()
        self._problems: dict[Component, Problem] = {}

    def report(self, component: Component, text: str) -> None:
        """Record a problem; it is logged if it is new or its text changed."""
        now = datetime.now(UTC)
        with self._lock:
            previous = self._problems.get(component)
            is_open = previous is not None and previous.over_at is None
            since = previous.since if previous is not None and is_open else now
            self._problems[component] = Problem(since=since, at=now, text=text)
        if previous is None or not is_open or previous.text != text:
            log.warning("%s: %s: %s", self._agent, component, text)

    def resolve(self, component: Component) -> None:
        """Mark the component's problem as over, if it has one."""
        with self._lock:
            problem = self._problems.get(component)
            if problem is None or problem.over_at is not None:
                return
            self._problems[component] = problem.model_copy(update={"over_at": datetime.now(UTC)})
        log.warning("%s: %s: works again", self._agent, component)

    def all(self) -> dict[Component, Problem]:
        """The problems by component, including those that are over."""
        with self._lock:
            return dict(self._problems)
