"""The status of an agent: who is champion, since when, why, and whether it is still good; its versions and data."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

from pydantic import AwareDatetime, Field

from stillhouse.config import AgentConfig
from stillhouse.gateway.savings import DoorStatus, read_door_status
from stillhouse.knowledge import KnowledgeBase, integrity
from stillhouse.knowledge.spool import spool_folder, survey
from stillhouse.promoting import describe_unrecorded_champion
from stillhouse.records import PromiseStatus, Record, Response, SameRows, Spending, Verdict, VerdictResult
from stillhouse.registry import Registry, VersionEntry
from stillhouse.runtime.promise import read_promise_status
from stillhouse.serving.reports import read_local_problems
from stillhouse.watching.pool import list_switches_of

__all__ = ["AgentStatus", "ChampionStatus", "WatchStatus", "read_status"]

StillGood = Literal["yes", "doubtful", "no", "not known"]

_STILL_GOOD: Mapping[VerdictResult, StillGood] = {
    "no_drift": "yes",
    "benign_shift": "yes",
    "pays": "yes",
    "due": "yes",
    "drift": "doubtful",
    "teacher_failing": "doubtful",
    "teacher_changed": "doubtful",
    "harmful_drift": "no",
}
"""What a watch says about the champion; the other results leave it open."""


class WatchStatus(Record):
    """The last watch, without what it was decided on."""

    verdict_id: str
    as_of: AwareDatetime
    result: VerdictResult
    response: Response
    summary: str


class ChampionStatus(Record):
    """The champion, and why it is champion."""

    model: str = Field(description="registered version, such as flights@7")
    variant: str
    bytes: int = Field(ge=0, description="size on disk (bytes)")
    p50_ms: float | None = Field(description="median latency of one row on one thread (ms)")
    since: AwareDatetime | None = Field(description="by the agent's clock; None: no verdict says")
    verdict_id: str | None = Field(description="the verdict that made it champion; None: none was recorded")
    why: str = Field(description="the summary of that verdict")
    still_good: StillGood = Field(description="by the last watch since then")


class AgentStatus(Record):
    """Everything that ``stillhouse status`` shows."""

    agent: str
    description: str
    measure: str = Field(description="name of the measure that the agent file names")
    champion: ChampionStatus | None
    challenger: str | None = Field(description="the version that waits for approval; None: none waits")
    last_watch: WatchStatus | None
    versions: tuple[VersionEntry, ...] = Field(description="newest first, all of them")
    promise: PromiseStatus | None = Field(
        default=None, description="how far the promised agreement is held on this machine; None: none, or no decisions"
    )
    door: DoorStatus | None = Field(
        default=None, description="what the front door does with its task; None: it has adopted none"
    )
    same_rows: SameRows | None = Field(description="models on the rows of the newest test window; None: no refresh yet")
    folder: str = Field(description="folder of the knowledge base")
    tables: dict[str, int] = Field(description="rows by table")
    rows_in_spools: int = Field(ge=0, description="rows that wait on this machine for the knowledge base")
    spent: dict[str, Spending] = Field(description="cost of each teacher in all")
    spent_today: dict[str, Spending] = Field(description="cost of each teacher today (UTC); without those of no cost")
    problems: tuple[str, ...]


def read_status(settings: AgentConfig) -> AgentStatus:
    """Read the status of an agent from MLflow, its knowledge base, and the spools of this machine.

    :raises RegistryError: if MLflow does not answer.
    """
    agent, base = settings.agent, KnowledgeBase(settings)
    registry = Registry(agent)
    versions, unrecorded = tuple(registry.versions()), describe_unrecorded_champion(agent)
    last_watch = base.journal.last_verdict("watch")
    spools = survey(spool_folder(agent))
    problems = [f"spool: {problem}" for problem in spools.problems]
    problems += [
        f"{side}: {problem.text}"
        for side, problem in read_local_problems(agent).items()
        if problem.over_at is None and side != "spool"
    ]
    problems += [unrecorded] if unrecorded else []
    problems += [str(problem) for problem in integrity.find_problems(base.tables)]
    champion, promise = _read_champion(base, registry, versions, last_watch), read_promise_status(settings)
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return AgentStatus(
        agent=agent,
        description=settings.description,
        measure=settings.quality.name,
        champion=champion,
        challenger=next((f"{agent}@{entry.version}" for entry in versions if "challenger" in entry.aliases), None),
        last_watch=_describe_watch(last_watch) if last_watch else None,
        versions=versions,
        promise=promise,
        door=read_door_status(settings, has_champion=champion is not None, promise=promise),
        same_rows=registry.runs.newest_same_rows(),
        folder=str(base.root),
        tables=base.tables.count_rows(),
        rows_in_spools=spools.rows,
        spent=base.answers.spending(),
        spent_today=base.answers.spending(asked_since=midnight),
        problems=tuple(problems),
    )


def _read_champion(
    base: KnowledgeBase, registry: Registry, versions: tuple[VersionEntry, ...], last_watch: Verdict | None
) -> ChampionStatus | None:
    entry = next((entry for entry in versions if "champion" in entry.aliases), None)
    if entry is None:
        return None
    model = f"{registry.agent}@{entry.version}"
    switches = [switch for switch in list_switches_of(base, registry.pool_versions()) if switch.champion == model]
    verdict = base.journal.verdict(switches[-1].verdict_id) if switches else None
    return ChampionStatus(
        model=model,
        variant=entry.variant,
        bytes=entry.bytes,
        p50_ms=entry.p50_ms,
        since=verdict.as_of if verdict else None,
        verdict_id=verdict.verdict_id if verdict else None,
        why=verdict.summary if verdict else "",
        still_good=_judge(base, verdict, last_watch),
    )


def _judge(base: KnowledgeBase, promotion: Verdict | None, watch: Verdict | None) -> StillGood:
    """What the last watch says about the champion, if it is later than its promotion by either clock."""
    if watch is None:
        return "not known"
    if promotion is not None:
        promoted, watched = (base.journal.recorded_at(verdict.verdict_id) for verdict in (promotion, watch))
        if watch.as_of <= promotion.as_of or (promoted is not None and watched is not None and watched < promoted):
            return "not known"
    return _STILL_GOOD.get(watch.result, "not known")


def _describe_watch(verdict: Verdict) -> WatchStatus:
    return WatchStatus(**verdict.model_dump(include=set(WatchStatus.model_fields)))
