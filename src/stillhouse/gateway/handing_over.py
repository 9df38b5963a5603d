"""Hands the records of an adopted task over to the knowledge base of its agent.

Each record becomes an observation; the upstream's answer becomes what the agent's teacher knows, and where it was asked
blindly also a label; a decision becomes one if there was a champion. Records go in consecutive chunks, each under a
batch name of its own, and the chunk at hand is noted before it is written: a killed hand-over goes on with the same
chunk, and nothing comes twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout
from pydantic import Field

from stillhouse.config import AgentConfig, FrontDoor, home, leaves
from stillhouse.errors import RuntimeStateError, SchemaError
from stillhouse.gateway.deciding import BLIND
from stillhouse.gateway.questions import Answer
from stillhouse.gateway.store import GatewayStore, store_path, teacher_version
from stillhouse.knowledge import KnowledgeBase, content_keys
from stillhouse.knowledge.content import tidy
from stillhouse.records import Record
from stillhouse.runtime.ids import DecisionIds
from stillhouse.teachers.recorded import recorded_version

__all__ = ["CallerQuota", "HandedOver", "RecordedRow", "hand_over", "read_recorded"]

_CHUNK = 2000  # records
_LOCK_SECONDS = 60.0
_FREE_ROWS = 50  # of each caller, before its share is limited


class HandedOver(Record):
    """What a hand-over moved."""

    observations: int = Field(default=0, ge=0)
    answers: int = Field(default=0, ge=0, description="of the upstream, that are actions of the agent")
    labels: int = Field(default=0, ge=0, description="of these answers, those that were given blindly")
    decisions: int = Field(default=0, ge=0)
    capped: int = Field(default=0, ge=0, description="answers left out because their caller has too large a share")
    unknown: int = Field(default=0, ge=0, description="answers that are no action of the agent")
    unreadable: int = Field(default=0, ge=0, description="messages that do not fit the agent's columns")

    def __add__(self, other: HandedOver) -> HandedOver:
        return HandedOver(**{name: getattr(self, name) + getattr(other, name) for name in HandedOver.model_fields})


def hand_over(config: AgentConfig) -> HandedOver:
    """Move all new records of the agent's task into its knowledge base. Idempotent, also after a killed run.

    :param config: with the section ``front_door``.
    :raises RuntimeStateError: if another process has been handing over for a minute.
    :raises StoreError: if the door's records cannot be read.
    """
    door = config.front_door
    assert door is not None
    moved = HandedOver()
    if not GatewayStore.exists():
        return moved
    folder = home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / f"door-{config.agent}.lock", timeout=_LOCK_SECONDS):
            store = GatewayStore(store_path())
            try:
                base = KnowledgeBase(config)
                while (chunk := store.next_chunk(config.agent, door.task, _CHUNK)) is not None:
                    captures = store.captures_between(door.task, *chunk)
                    quota = CallerQuota(door.caller_share, store.kept_by_caller(config.agent))
                    moved += _write(base, config, door, captures, chunk, quota)
                    store.finish_chunk(config.agent, door.task, chunk, quota.kept)
            finally:
                store.close()
    except Timeout as error:
        raise RuntimeStateError(f"another process hands over records of agent {config.agent!r}") from error
    return moved


class RecordedRow(NamedTuple):
    """Which observation a record of the door is."""

    capture: int
    """Its id at the door."""
    observation_id: str
    caller: str


def read_recorded(config: AgentConfig) -> list[RecordedRow]:
    """All records of the agent's task that are still at the door."""
    assert config.front_door is not None
    if not GatewayStore.exists():
        return []
    ids = DecisionIds(config.agent, KnowledgeBase(config).tables.identity())
    store = GatewayStore(store_path())
    try:
        captures: list[dict[str, Any]] = list(store.captures(config.front_door.task))
    finally:
        store.close()
    return [RecordedRow(capture["id"], _subject(capture, ids)[0], capture["caller"]) for capture in captures]


class CallerQuota:
    """Limits the share of each caller in what is learned from and judged by.

    >>> quota = CallerQuota(0.2, {"loud": 200, "b": 75, "c": 75, "d": 75, "e": 75})
    >>> quota.take("loud"), quota.take("b")
    (False, True)
    """

    def __init__(self, share: float, kept: Mapping[str, int]) -> None:
        self.share, self.kept = share, Counter(kept)

    def take(self, caller: str) -> bool:
        """Whether another answer to this caller may be learned from."""
        callers = len(self.kept) + (caller not in self.kept)
        is_limited = callers * self.share >= 1 and self.kept[caller] >= _FREE_ROWS
        if is_limited and self.kept[caller] + 1 > self.share * (self.kept.total() + 1):
            return False
        self.kept[caller] += 1
        return True


def _write(
    base: KnowledgeBase,
    config: AgentConfig,
    door: FrontDoor,
    captures: Sequence[Mapping[str, Any]],
    chunk: tuple[int, int],
    quota: CallerQuota,
) -> HandedOver:
    """Write one chunk; the observations come last."""
    batch, teacher = f"door:{door.task}:{chunk[0]}-{chunk[1]}", next(iter(leaves(config.teachers))).name
    ids = DecisionIds(config.agent, base.tables.identity())
    rows, used, unreadable = _observations(config, door, captures, ids)
    if rows.empty:
        return HandedOver(unreadable=unreadable)
    known = np.array([capture["action"] in config.actions for capture in used])
    unknown = sum(capture["action"] is not None for capture in used) - int(known.sum())
    pairs = zip(known.tolist(), used, strict=True)
    learned = np.array([is_known and quota.take(capture["caller"]) for is_known, capture in pairs])
    versions = pd.Series([recorded_version(config, teacher, _answered_by(capture)) for capture in used])
    probs = np.array([_probs(capture, config.actions) for capture in used])
    answers = 0
    for version in versions[learned].unique():
        mask = learned & (versions == version).to_numpy()
        answers += base.answers.append(rows[mask], probs[mask], teacher=version)
    blind = learned & np.array([capture["asked"] in BLIND for capture in used])
    labels = 0
    if config.outcomes is None and blind.any():
        known_at = rows["observed_at"] + pd.to_timedelta([capture["ms"] or 0.0 for capture in used], unit="ms")
        outcomes = rows[["observation_id", "observed_at"]].assign(
            known_at=known_at, action=[capture["action"] for capture in used]
        )
        labels = base.append_outcomes(outcomes[blind], batch=batch)
    decisions = _decisions(config, rows, used, versions, probs)
    decided = base.tables.append("decisions", decisions, batch=batch) if len(decisions) else 0
    columns = ["observation_id", "observed_at", *config.observations.columns]
    return HandedOver(
        observations=base.append_observations(rows[columns], batch=batch),
        answers=answers,
        labels=labels,
        decisions=decided,
        capped=int(known.sum() - learned.sum()),
        unknown=unknown,
        unreadable=unreadable,
    )


def _observations(
    config: AgentConfig, door: FrontDoor, captures: Sequence[Mapping[str, Any]], ids: DecisionIds
) -> tuple[pd.DataFrame, list[Mapping[str, Any]], int]:
    """Rows with content keys, the captures that they are of, and how many captures are unreadable."""
    columns = list(config.observations.columns)
    values, used = list[dict[str, Any]](), list[Mapping[str, Any]]()
    for capture in captures:
        try:
            row = door.read_row(capture["observation"], columns)
        except ValueError:
            continue
        observation_id, observed_at = _subject(capture, ids)
        values.append(row | {"observation_id": observation_id, "observed_at": observed_at})
        used.append(capture)
    readable = _readable(config, values)
    rows, used = [values[i] for i in readable], [used[i] for i in readable]
    if not used:
        return pd.DataFrame(), used, len(captures)
    frame = tidy(pd.DataFrame(rows), config).reset_index(drop=True)
    return frame.assign(content_key=content_keys(frame, config)), used, len(captures) - len(used)


def _readable(config: AgentConfig, rows: Sequence[dict[str, Any]]) -> list[int]:
    """Positions of the rows that fit the agent's columns; found by bisection, because almost all do."""
    if not rows:
        return []
    try:
        tidy(pd.DataFrame(rows), config)
    except SchemaError:
        if len(rows) == 1:
            return []
        half = len(rows) // 2
        return _readable(config, rows[:half]) + [half + i for i in _readable(config, rows[half:])]
    return list(range(len(rows)))


def _subject(capture: Mapping[str, Any], ids: DecisionIds) -> tuple[str, pd.Timestamp]:
    """Id and time of the observation: of the decision if there is one, else of the request."""
    subject = None if capture["decision_id"] is None else ids.parse(capture["decision_id"])
    if subject is not None:
        return subject.observation_id, _moment(subject.observed_at)
    return f"{capture['request_id']}{capture['question_id']}", _moment(capture["at"])


def _decisions(
    config: AgentConfig,
    rows: pd.DataFrame,
    captures: Sequence[Mapping[str, Any]],
    versions: pd.Series,
    probs: np.ndarray[Any, Any],
) -> pd.DataFrame:
    """The decisions on the rows where there was a champion: the upstream's answer, or else the student's."""
    decided = list[dict[str, Any]]()
    for index, capture in enumerate(captures):
        if capture["decision_id"] is None:
            continue
        by_upstream = capture["asked"] != "local"
        if by_upstream and capture["action"] not in config.actions:
            continue
        row = rows.iloc[index]
        decided.append(
            {
                "decision_id": capture["decision_id"],
                "observation_id": row["observation_id"],
                "observed_at": row["observed_at"],
                "decided_at": _moment(capture["at"]),
                "action": capture["action"] if by_upstream else capture["local_action"],
                "probabilities": probs[index].tolist() if by_upstream else _local_probs(capture, config.actions),
                "decider": "teacher" if by_upstream else "student",
                "version": versions[index] if by_upstream else capture["local_version"],
            }
        )
    return pd.DataFrame(decided)


def _answered_by(capture: Mapping[str, Any]) -> str:
    return teacher_version(Answer(None, model=capture["model"], fingerprint=capture["fingerprint"]))


def _probs(capture: Mapping[str, Any], actions: Sequence[str]) -> list[float]:
    """The upstream's probabilities: from its log-probabilities, or 1 for its answer; NaN if it is no action."""
    stated = json.loads(capture["probabilities"]) if capture["probabilities"] else {}
    values = [max(0.0, float(stated.get(action, 0.0))) for action in actions]
    if capture["action"] in actions and sum(values) > 0:
        return [value / sum(values) for value in values]
    if capture["action"] in actions:
        return [float(action == capture["action"]) for action in actions]
    return [float("nan")] * len(actions)


def _local_probs(capture: Mapping[str, Any], actions: Sequence[str]) -> list[float]:
    stated = json.loads(capture["local_probabilities"])
    return [float(stated.get(action, 0.0)) for action in actions]


def _moment(microseconds: int) -> pd.Timestamp:
    return pd.Timestamp(microseconds, unit="us", tz="UTC")
