"""What an agent behind the front door saves: calls, tokens, money and time, against always asking the upstream.

**What a call costs** is what the upstream's answers to the same task have cost: the median of their times, the mean of
their tokens. Only questions that were asked without regard to the champion count where there are any, because those
that it is unsure of may be longer than the others. Audits, deferrals and everything else that goes upstream save
nothing.

**How often local answers agree** with the upstream's is never seen, because it was not asked. It is estimated from the
audit: a random sample of the questions, of which those count that the champion would have answered. The lower bound is
exact (Clopper and Pearson 1934), each for its own stage or week.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Literal

from pydantic import AwareDatetime, Field

from stillhouse.agreement import lower_bound
from stillhouse.config import AgentConfig
from stillhouse.errors import ConfigError
from stillhouse.gateway.deciding import BLIND
from stillhouse.gateway.settings import Price, load_settings
from stillhouse.gateway.store import CaptureOutline, GatewayStore, store_path
from stillhouse.records import PromiseStatus, Record

__all__ = [
    "CAPTURE",
    "ComparedAnswers",
    "DoorStatus",
    "SavedCalls",
    "Savings",
    "UpstreamCost",
    "read_door_status",
    "read_savings",
    "reckon_savings",
]

CAPTURE = "capture"
"""The stage before the first champion."""

_RECENT = timedelta(days=7)


class ComparedAnswers(Record):
    """Answers of the champion beside the upstream's, which was asked blindly."""

    rows: int = Field(ge=0, description="questions that the champion would have answered, and the upstream has")
    agreed: int = Field(
        ge=0,
        description="those that both answered alike; a refusal, or an answer that the champion does not know, is none",
    )
    share: float | None = Field(description="of the rows, those that agree; null: no rows")
    bound: float | None = Field(description="exact lower bound of that share; null: no rows")


class UpstreamCost(Record):
    """What one question costs that the upstream is asked."""

    answers: int = Field(ge=0, description="of the upstream, that the figures rest on")
    median_ms: float | None = Field(description="to the last byte of its answer; null: not known")
    input_tokens: float | None = Field(description="mean; null: the upstream did not report them")
    output_tokens: float | None = Field(description="mean; null: the upstream did not report them")
    money: float | None = Field(description="by the prices of gateway.yaml; null: no price of this model, or no tokens")


class SavedCalls(Record):
    """The questions of one stage, of one week, or of all."""

    name: str = Field(description="a version such as intents@3, 'capture' or 'all'; of a week, its Monday")
    begin: AwareDatetime | None = Field(description="first question; null: none")
    end: AwareDatetime | None = Field(description="last question; null: none")
    requests: int = Field(
        ge=0, description="questions, whoever answered; the sum of the seven counts by who answered and why"
    )
    local: int = Field(ge=0, description="answered by the champion")
    share: float | None = Field(description="of the questions, those answered by the champion; null: no questions")
    first: int = Field(ge=0, description="asked upstream because no champion decided: there was none, or it could not")
    shadow: int = Field(ge=0, description="asked upstream while the champion was not allowed to answer any")
    audit: int = Field(ge=0, description="asked upstream by the blind draw")
    unsure: int = Field(ge=0, description="deferred: asked upstream because the champion was unsure")
    not_local: int = Field(ge=0, description="asked upstream because the answer cannot be given locally")
    credential: int = Field(ge=0, description="asked upstream because the credential was not accepted lately")
    unusable: int = Field(ge=0, description="answers of the upstream that are none of the actions")
    audited: ComparedAnswers = Field(description="of the audit: what is known about local answers")
    shadowed: ComparedAnswers = Field(description="of the shadow: what local answers would have been")
    input_tokens: float | None = Field(description="saved; null: not known what a call needs")
    output_tokens: float | None = Field(description="saved; null: not known what a call needs")
    money: float | None = Field(description="saved, in the unit of the prices; null: no price")
    ms: float | None = Field(description="time saved: the upstream's median less the local answer's own, summed")


class Savings(Record):
    """What an agent saves, as far back as the door's records are kept."""

    agent: str
    task: str
    model: str | None = Field(description="that the task's requests name; null: nothing was recorded")
    as_of: AwareDatetime
    kept_days: float = Field(gt=0, description="how long the door keeps its records (days)")
    confidence: float = Field(description="of the lower bounds")
    upstream: UpstreamCost
    total: SavedCalls
    stages: tuple[SavedCalls, ...] = Field(description="a stage is the reign of a champion's version; oldest first")
    weeks: tuple[SavedCalls, ...] = Field(description="from Monday (UTC), oldest first")


class DoorStatus(Record):
    """What the front door does with an agent's task at present."""

    task: str
    standing: Literal["recording", "shadow", "answering"] = Field(
        description="recording: there is no champion; shadow: it is compared only; answering: it answers where it may"
    )
    requests: int = Field(ge=0, description="of the last 7 days, whoever answered")
    local: int = Field(ge=0, description="those that the champion answered")
    share: float | None = Field(description="of these requests, those that the champion answered; null: no requests")


# --------------------------------------------------------------------------- reckoning


def reckon_savings(
    agent: str,
    task: str,
    captures: Iterable[CaptureOutline],
    *,
    as_of: datetime,
    model: str | None = None,
    price: Price | None = None,
    confidence: float = 0.95,
    kept: timedelta = timedelta(days=30),
) -> Savings:
    """Reckon what a task's captures say about an agent.

    >>> empty = CaptureOutline("r", 0, "first", "a", None, None, None, 90, 10, 800.0)
    >>> decided = empty._replace(local_action="a", local_version="router@1", would_answer=True)
    >>> local = decided._replace(asked="local", action=None, input_tokens=None, output_tokens=None, ms=2.0)
    >>> rows = [empty, decided._replace(asked="audit"), *(local._replace(request_id=name) for name in "st")]
    >>> price = Price(per_million_input=1000.0, per_million_output=1000.0)
    >>> savings = reckon_savings("router", "0" * 16, rows, as_of=datetime.now(UTC), price=price)
    >>> [(stage.name, stage.requests, stage.local) for stage in savings.stages]
    [('capture', 1, 0), ('router@1', 3, 2)]
    >>> savings.total.money, savings.total.ms, savings.total.audited.rows
    (0.2, 1596.0, 1)

    :param captures: oldest first.
    :param model: that the task's requests name.
    :param price: of that model; None: tokens are reckoned alone.
    :param confidence: of the lower bounds, 0…1.
    :param kept: how long the door keeps its records.
    """
    total, stages, weeks, calls = _Tally(), dict[str, _Tally](), dict[str, _Tally](), _Calls()
    stage, last_request = CAPTURE, None
    for capture in captures:
        stage = capture.local_version or stage
        is_new = capture.request_id != last_request  # a request may ask several questions, and takes its time once
        last_request = capture.request_id
        at = datetime.fromtimestamp(capture.at / 1e6, UTC)
        monday = f"{at - timedelta(days=at.weekday()):%Y-%m-%d}"
        for tally in (total, stages.setdefault(stage, _Tally()), weeks.setdefault(monday, _Tally())):
            tally.add(capture, at, is_new)
        calls.add(capture, is_new)
    cost = calls.cost(price)
    return Savings(
        agent=agent,
        task=task,
        model=model,
        as_of=as_of,
        kept_days=kept / timedelta(days=1),
        confidence=confidence,
        upstream=cost,
        total=total.close("all", cost, confidence),
        stages=tuple(tally.close(name, cost, confidence) for name, tally in stages.items()),
        weeks=tuple(weeks[monday].close(monday, cost, confidence) for monday in sorted(weeks)),
    )


@dataclass(slots=True)
class _Tally:
    """Counts of a stage or a week."""

    begin: datetime | None = None
    end: datetime | None = None
    asked: Counter[str] = field(default_factory=Counter)
    compared: Counter[tuple[str, bool]] = field(default_factory=Counter)
    unusable: int = 0
    timed: int = 0
    local_ms: float = 0.0

    def add(self, capture: CaptureOutline, at: datetime, is_new: bool) -> None:
        self.begin = at if self.begin is None else min(self.begin, at)
        self.end = at if self.end is None else max(self.end, at)
        self.asked[capture.asked] += 1
        if capture.asked == "local":
            if is_new:
                self.timed += 1
                self.local_ms += capture.ms or 0.0
            return
        self.unusable += capture.action is None
        if capture.would_answer and capture.asked in ("audit", "shadow"):
            self.compared[capture.asked, capture.action == capture.local_action] += 1

    def close(self, name: str, cost: UpstreamCost, confidence: float) -> SavedCalls:
        requests, local, ms = self.asked.total(), self.asked["local"], cost.median_ms
        return SavedCalls(
            name=name,
            begin=self.begin,
            end=self.end,
            requests=requests,
            local=local,
            share=local / requests if requests else None,
            first=self.asked["first"],
            shadow=self.asked["shadow"],
            audit=self.asked["audit"],
            unsure=self.asked["unsure"],
            not_local=self.asked["not_local"],
            credential=self.asked["credential"],
            unusable=self.unusable,
            audited=self._compare("audit", confidence),
            shadowed=self._compare("shadow", confidence),
            input_tokens=None if cost.input_tokens is None else local * cost.input_tokens,
            output_tokens=None if cost.output_tokens is None else local * cost.output_tokens,
            money=None if cost.money is None else local * cost.money,
            ms=None if ms is None else self.timed * ms - self.local_ms,
        )

    def _compare(self, asked: str, confidence: float) -> ComparedAnswers:
        agreed, differing = self.compared[asked, True], self.compared[asked, False]
        rows = agreed + differing
        return ComparedAnswers(
            rows=rows,
            agreed=agreed,
            share=agreed / rows if rows else None,
            bound=lower_bound(rows, differing, confidence) if rows else None,
        )


class _Calls:
    """What the upstream's answers took: blind ones, and all others."""

    def __init__(self) -> None:
        self._ms: tuple[list[float], list[float]] = ([], [])
        self._tokens = ([0, 0, 0], [0, 0, 0])  # answers that report them, tokens sent, tokens answered

    def add(self, capture: CaptureOutline, is_new: bool) -> None:
        if capture.asked == "local":
            return
        kind = int(capture.asked not in BLIND)
        if is_new and capture.ms is not None:
            self._ms[kind].append(capture.ms)
        if capture.input_tokens is not None and capture.output_tokens is not None:
            tokens = self._tokens[kind]
            tokens[0] += 1
            tokens[1] += capture.input_tokens
            tokens[2] += capture.output_tokens

    def cost(self, price: Price | None) -> UpstreamCost:
        ms = self._ms[0] or self._ms[1]
        answers, sent, received = self._tokens[0] if self._tokens[0][0] else self._tokens[1]
        per_call = None if not answers else (sent / answers, received / answers)
        money = None
        if per_call is not None and price is not None:
            money = (per_call[0] * price.per_million_input + per_call[1] * price.per_million_output) / 1e6
        return UpstreamCost(
            answers=len(ms),
            median_ms=statistics.median(ms) if ms else None,
            input_tokens=None if per_call is None else per_call[0],
            output_tokens=None if per_call is None else per_call[1],
            money=money,
        )


# --------------------------------------------------------------------------- reading


def read_savings(config: AgentConfig, as_of: datetime | None = None) -> Savings:
    """Reckon what an agent saves from the door's records on this machine.

    :param as_of: when it is reckoned; None: now. All records count.
    :raises ConfigError: if the agent has no section ``front_door``, or ``gateway.yaml`` is invalid.
    :raises StoreError: if the records cannot be read.
    """
    door = config.front_door
    if door is None:
        raise ConfigError(
            f"agent {config.agent!r} decides no task of the front door, so there is nothing that it could save: "
            "`stillhouse adopt` makes an agent of a task"
        )
    settings, cascade = load_settings(), config.runtime.cascade

    def reckon(captures: Iterable[CaptureOutline], model: str | None) -> Savings:
        return reckon_savings(
            config.agent,
            door.task,
            captures,
            as_of=as_of or datetime.now(UTC),
            model=model,
            price=None if model is None else settings.prices.get(model),
            confidence=0.95 if cascade is None else cascade.confidence,
            kept=settings.retention,
        )

    if not GatewayStore.exists():
        return reckon((), None)
    store = GatewayStore(store_path())
    try:
        return reckon(store.outlines(door.task), store.model_of(door.task))
    finally:
        store.close()


def read_door_status(
    config: AgentConfig, *, has_champion: bool, promise: PromiseStatus | None = None, now: datetime | None = None
) -> DoorStatus | None:
    """What the door does with an agent's task at present; None if the agent has no section ``front_door``.

    :param promise: how far its promise is held on this machine; None: nothing was decided here yet.
    :param now: None: the present.
    :raises StoreError: if the records cannot be read.
    """
    door, cascade = config.front_door, config.runtime.cascade
    if door is None:
        return None
    is_proved = cascade is None or cascade.promise is None or (promise is not None and promise.threshold is not None)
    since = (now or datetime.now(UTC)) - _RECENT
    requests = local = 0
    if GatewayStore.exists():
        store = GatewayStore(store_path())
        try:
            requests, local = store.count_local(door.task, int(since.timestamp() * 1e6))
        finally:
            store.close()
    standing: Literal["recording", "shadow", "answering"] = "answering" if is_proved and not door.shadow else "shadow"
    return DoorStatus(
        task=door.task,
        standing=standing if has_champion else "recording",
        requests=requests,
        local=local,
        share=local / requests if requests else None,
    )
