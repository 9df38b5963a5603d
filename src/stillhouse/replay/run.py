"""Replay policies on a stretch of an agent's history. Nothing is written: the caller gets a report."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stillhouse.config import AgentConfig, load
from stillhouse.errors import ConfigError, WindowError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.quality import get_row_measure
from stillhouse.replay.history import History
from stillhouse.replay.policies import Played
from stillhouse.replay.report import PolicyReport, ReplayReport, ReplayResponse
from stillhouse.replay.rows import read_ready_probs, read_rows
from stillhouse.replay.rules import Policy, Terms, parse_policy
from stillhouse.replay.script import train_script_student
from stillhouse.replay.training import train_student
from stillhouse.replay.world import World

__all__ = ["replay"]

Array = np.ndarray[Any, Any]
Progress = Callable[[str, int, int], None]
"""Called with what is done, how much of it, and how much there is."""

WEEK = timedelta(weeks=1)


def replay(
    agent: str | AgentConfig,
    policies: Sequence[str],
    *,
    files: Sequence[AgentConfig] = (),
    since: datetime | None = None,
    weeks: int | None = None,
    step: timedelta = WEEK,
    first_weeks: int = 8,
    exchange_rate: float | None = None,
    from_sources: bool = False,
    processes: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> ReplayReport:
    """Play policies on the agent's history: one student is trained a step, and scored on all later steps.

    The first champion is trained on the rows of the first weeks. Then each policy decides at the start of each step,
    from outcomes that are known by then. Responses are carried out without compression and without the gate. Where
    quality is a score of episodes, the accuracy (or agreement) stands in for it: all models play in no later step.

    :param agent: name of an agent file, or its settings.
    :param policies: names, see :data:`~stillhouse.replay.rules.POLICY_NAMES`.
    :param files: further agent files under which every policy is played, too.
    :param since: begin of the history (UTC); None: ``observations.since``, or the oldest row of the knowledge base.
    :param weeks: number of weeks to play after the first ones (≥ 1); None: as many as there are.
    :param step: time between two decisions (> 0).
    :param first_weeks: weeks before the first champion is trained (≥ 1).
    :param exchange_rate: price of a redistillation, points of quality for one week (≥ 0); None: as in the agent file.
    :param from_sources: read the agent's sources; otherwise its knowledge base.
    :param processes: that train models; None: one a core.
    :raises ConfigError: if there is no such policy.
    :raises WindowError: if the history is too short.
    """
    began = time.monotonic()
    main = load(agent) if isinstance(agent, str) else agent
    chosen = [parse_policy(name, step) for name in dict.fromkeys(policies)]
    if not chosen:
        raise ConfigError("a replay needs at least one policy, such as never")
    rate = main.watch.payoff.exchange_rate if exchange_rate is None else exchange_rate
    first = _in_utc(since) if since else KnowledgeBase(main).observed_since(datetime.now(UTC))
    span = _Span(first, first + first_weeks * WEEK, step, weeks, from_sources)
    reports, histories = [], []
    for settings in (main, *files):
        history = _read_history(settings, span, progress)
        histories.append(history)
        reports += _play_all(history, chosen, rate, processes, progress)
    return ReplayReport(
        agent=main.agent,
        measure=get_row_measure(main).name,
        source="sources" if from_sources else "knowledge base",
        since=first,
        start=span.start,
        step_seconds=step.total_seconds(),
        steps=histories[0].steps,
        rows=len(histories[0].rows),
        exchange_rate=rate,
        seconds=time.monotonic() - began,
        policies=tuple(reports),
    )


@dataclass(frozen=True)
class _Span:
    """Which stretch of history is played."""

    first: datetime
    start: datetime
    step: timedelta
    weeks: int | None
    from_sources: bool


def _read_history(settings: AgentConfig, span: _Span, progress: Progress) -> History:
    """The rows of the stretch, with the answers of teachers that do not learn."""
    progress("reading rows", 0, 1)
    until = datetime.now(UTC) if span.weeks is None else span.start + span.weeks * WEEK
    rows = read_rows(settings, span.first, until, from_sources=span.from_sources)
    newest = rows["observed_at"].max()
    if newest < span.start:
        raise WindowError(
            f"agent {settings.agent!r}: the first champion needs the rows until {span.start:%Y-%m-%d}, and the newest "
            f"is of {newest:%Y-%m-%d}: give fewer --first-weeks, or begin earlier"
        )
    ready = read_ready_probs(settings, rows)
    played = newest - span.start if span.weeks is None else span.weeks * WEEK
    steps = max(1, round(played / span.step))  # a last step that lacks an hour is a step, as in the demo
    progress("reading rows", 1, 1)
    return History.of(settings, rows, span.start, span.step, steps, ready)


def _play_all(
    history: History, policies: Sequence[Policy], rate: float, processes: int | None, progress: Progress
) -> list[PolicyReport]:
    """Every policy on one history; those with the same student share one world."""
    settings = history.settings
    trainers = {False: train_student, True: train_script_student}
    measure = get_row_measure(settings)
    worlds = {
        script: World(history, trainers[script], settings.quality.clip, measure.name)
        for script in dict.fromkeys(policy.script for policy in policies)
    }
    for script, world in worlds.items():
        steps = sorted({step for policy in policies if policy.script == script for step in policy.trainings(world)})
        what = "training scripts" if script else "training students"
        world.prepare(steps, processes=processes, progress=partial(progress, what))
    payoff = settings.watch.payoff
    terms = Terms(rate * measure.span, payoff.prices, payoff.pool)
    reports = []
    for number, policy in enumerate(policies):
        progress(f"playing {policy.name}", number, len(policies))
        world = worlds[policy.script]
        reports.append(_report(policy, world, policy.play(world, terms), terms))
    progress("playing policies", len(policies), len(policies))
    return reports


def _report(policy: Policy, world: World, played: Played, terms: Terms) -> PolicyReport:
    history, measure = world.history, get_row_measure(world.history.settings).name
    by_step = {
        name: [world.scores(made)[name][step] for step, made in enumerate(played.champions)]
        for name in dict.fromkeys((measure, "log_loss", "accuracy"))
    }
    gains = played.realised(world)
    trained = sorted({act.new.trained for act in played.acts if act.response == "redistil"})
    share = history.settings.asking.share
    limit = history.settings.windows.max_train_rows
    rows = [min(len(history.training_index(step)), limit or len(history.rows)) for step in trained]
    return PolicyReport(
        policy=policy.name,
        agent_file=Path(history.settings.file).stem or history.settings.agent,
        quality=_finite(_mean(by_step[measure])),
        log_loss=_mean(by_step["log_loss"]),
        accuracy=_mean(by_step["accuracy"]),
        responses=dict(Counter(act.response for act in played.acts)),
        gained_nothing=sum(gain <= 0 for gain in gains),
        trainings=len(trained),
        teacher_calls=sum(round(share * count) for count in rows),
        price=played.price,
        total=played.total(world, terms.exchange_rate) / (history.steps * (history.step / WEEK)),
        quality_by_step=tuple(_finite(value) for value in by_step[measure]),
        log_loss_by_step=tuple(_finite(value) for value in by_step["log_loss"]),
        accuracy_by_step=tuple(_finite(value) for value in by_step["accuracy"]),
        acts=tuple(
            ReplayResponse(
                at=history.bounds[act.step].to_pydatetime(),
                step=act.step,
                response=act.response,
                predicted=_finite(act.predicted),
                gained=gain,
            )
            for act, gain in zip(played.acts, gains, strict=True)
        ),
    )


def _in_utc(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan
