"""Read an agent's life from its knowledge base, its registry and the scores of its pool."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

import numpy as np

from stillhouse.champion import open_registry
from stillhouse.errors import StillhouseError
from stillhouse.evaluate.timeline import Act, Reign, TeacherScore, Timeline
from stillhouse.knowledge import KnowledgeBase
from stillhouse.payoff.scores import scoring_rule
from stillhouse.quality import Measure, get_measure
from stillhouse.records import BlockScore, PoolState, RealisedGain, Verdict
from stillhouse.registry import PoolVersion, Registry
from stillhouse.stats import measure_auc
from stillhouse.watching.pool import HISTORY, Switch, count_scores, list_switches_of, loss_to_value, mean_loss

__all__ = ["list_cooldowns", "read_timeline"]

log = logging.getLogger(__name__)

_LONGEST = timedelta(days=400)
"""What is drawn at most, so that the picture of an old agent costs as much as that of a year."""
_MAX_POINTS = 60  # of a curve
_INSTANT = timedelta(microseconds=1)


def read_timeline(base: KnowledgeBase, as_of: datetime | None = None) -> Timeline:
    """The agent's life until ``as_of``, at most 400 days of it.

    :param as_of: None: now, by the clock that the agent file names.
    """
    end = base.resolve_time(as_of)
    registry, measure = open_registry(base.config.agent), get_measure(base.config)
    versions = registry.pool_versions()
    switches = [switch for switch in list_switches_of(base, versions) if switch.as_of <= end]
    start = max(end - _LONGEST, min((switch.as_of for switch in switches), default=base.observed_since(end)))
    reigns = _list_reigns(switches, start, end)
    return Timeline(
        agent=base.config.agent,
        start=start,
        end=end,
        measure=measure.name,
        unit=measure.unit,
        better=measure.better,
        reigns=reigns,
        quality=_read_quality(base, reigns, switches, start, end),
        teachers=tuple(_list_teacher_scores(registry, versions, measure, start, end)),
        steps=tuple(step for step in base.journal.steps(start) if step.end <= end),
        acts=tuple(_list_acts(base, start, end)),
        gains=_read_gains(base, start, end),
        cooldowns=list_cooldowns(base, start, end),
        labels=base.config.labels_are,
    )


def list_cooldowns(base: KnowledgeBase, start: datetime, end: datetime) -> tuple[tuple[datetime, datetime], ...]:
    """From each refresh to the last watch that held because of it, within ``start`` and ``end``, oldest first."""
    refreshes = sorted(at for _, at in base.journal.results("gate").values())
    watches = base.journal.results("watch", since=start).values()
    held = sorted(at for result, at in watches if result == "cooling_down" and at <= end)
    last: dict[datetime, datetime] = {}
    for at in held:
        began = max((refresh for refresh in refreshes if refresh <= at), default=at)
        last[max(began, start)] = at
    return tuple(last.items())


# --------------------------------------------------------------------------- inside


def _list_reigns(switches: Sequence[Switch], start: datetime, end: datetime) -> tuple[Reign, ...]:
    ends = [*(later.as_of for later in switches[1:]), end][: len(switches)]
    reigns = (Reign(s.champion, max(s.as_of, start), until) for s, until in zip(switches, ends, strict=True))
    return tuple(reign for reign in reigns if reign.end > start)


def _read_quality(
    base: KnowledgeBase, reigns: Sequence[Reign], switches: Sequence[Switch], start: datetime, end: datetime
) -> tuple[tuple[str, tuple[tuple[datetime, float], ...]], ...]:
    """The champion of each time, and the first champion, on the blocks of outcomes that are complete."""
    if not switches:
        return ()
    measure, block = get_measure(base.config), base.config.watch.block
    width = max(1, math.ceil((end - start) / block / _MAX_POINTS)) * block

    def read(model: str, since: datetime, until: datetime) -> list[BlockScore]:
        stored = base.journal.scores(scoring_rule(base.config), since=since, member=model, with_rows=measure.is_pooled)
        return [score for score in stored if score.end <= until]

    of_champion = [read(reign.champion, reign.start, reign.end) for reign in reigns]
    curves = {
        "champion": _average(of_champion, start, width, measure),
        "never refreshed": _average([read(switches[0].champion, start, end)], start, width, measure),
    }
    return tuple(curves.items())


def _average(
    scores: Sequence[Sequence[BlockScore]], start: datetime, width: timedelta, measure: Measure
) -> tuple[tuple[datetime, float], ...]:
    """The value of the measure in each bin of ``width``; where two models share one, their mean by rows."""
    bins: dict[int, list[tuple[float, int]]] = {}
    for of_model in scores:
        by_bin: dict[int, list[BlockScore]] = {}
        for score in of_model:
            by_bin.setdefault((score.start - start) // width, []).append(score)
        for index, blocks in by_bin.items():
            value = _measure_blocks(blocks, measure)
            if not math.isnan(value):
                bins.setdefault(index, []).append((value, sum(count_scores(score, measure) for score in blocks)))
    return tuple(
        (start + (index + 0.5) * width, float(np.average([v for v, _ in found], weights=[n for _, n in found])))
        for index, found in sorted(bins.items())
    )


def _measure_blocks(blocks: Sequence[BlockScore], measure: Measure) -> float:
    """The value of the measure on all rows of the blocks; NaN if it has none."""
    if not measure.is_pooled:
        return loss_to_value(mean_loss(blocks, measure), measure)
    probs = np.concatenate([score.probs for score in blocks])
    labels = np.concatenate([score.labels for score in blocks])
    return math.nan if labels.min() == labels.max() else measure_auc(labels, probs)


def _list_teacher_scores(
    registry: Registry, versions: Sequence[PoolVersion], measure: Measure, start: datetime, end: datetime
) -> Iterator[TeacherScore]:
    """The teacher of each refresh on its test window."""
    seen = set[tuple[datetime, datetime]]()
    for version in versions:
        try:
            baseline = registry.baseline(version.model)
            window = (baseline.test.start, baseline.test.end)
            if baseline.as_of > end or window[1] <= start or window in seen:
                continue
            quality = registry.models.scorecard(baseline.teacher).test
        except (StillhouseError, OSError) as error:
            log.warning("the teacher of %s is not drawn: %s", version.model, error)
            continue
        seen.add(window)
        if quality.measure == measure.name:
            yield TeacherScore(max(window[0], start), window[1], quality.score)


def _list_acts(base: KnowledgeBase, start: datetime, end: datetime) -> Iterator[Act]:
    """Refreshes by the verdicts of their gates, and changes of the champion without a refresh."""
    for verdict in base.journal.verdicts("gate", since=start):
        if verdict.as_of <= end:
            yield Act(verdict.as_of, _kind_of_refresh(base, verdict), verdict.result)
    for verdict in base.journal.verdicts("promotion", since=start):
        if verdict.as_of <= end:
            yield Act(verdict.as_of, "reuse" if "pool" in verdict.evidence else "by hand", verdict.result)


def _kind_of_refresh(base: KnowledgeBase, gate: Verdict) -> str:
    watch = base.journal.verdict_at("watch", gate.as_of)
    if watch is not None and watch.refresh_mode is not None:
        return watch.response
    return "by hand" if base.journal.last_refresh(before=gate.as_of) else "bootstrap"


def _read_gains(base: KnowledgeBase, start: datetime, end: datetime) -> tuple[RealisedGain, ...]:
    """From the pool as watches saw it: each saw the gains of 26 weeks, so that a watch per 25 weeks knows all."""
    gains: dict[datetime, RealisedGain] = {}
    moment = end
    while moment > start:
        watch = base.journal.last_verdict("watch", before=moment + _INSTANT)
        if watch is None:
            break
        if found := watch.evidence.get("pool"):
            gains = {gain.as_of: gain for gain in PoolState.model_validate(found).realised} | gains
        moment = min(watch.as_of, moment) - (HISTORY - timedelta(weeks=1))
    return tuple(gain for at, gain in sorted(gains.items()) if start <= at <= end)
