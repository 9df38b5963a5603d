"""Score a history that was replayed week by week: the champion beside a student that was never refreshed."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from stillhouse import config
from stillhouse.champion import load_version, open_registry
from stillhouse.config import AgentConfig
from stillhouse.errors import ConfigError, WindowError
from stillhouse.evaluate.scorecard import measure_quality
from stillhouse.evaluate.timeline import Curve, Timeline, plot_timeline
from stillhouse.files import write_atomic
from stillhouse.knowledge import KnowledgeBase, tidy_outcomes
from stillhouse.parts import resolve
from stillhouse.quality import Policy, get_measure
from stillhouse.records import ModelRef, Record, Verdict, Window, drift_report
from stillhouse.registry import Registry
from stillhouse.stats import replace_non_finite
from stillhouse.watching.pool import make_policy
from stillhouse.watching.timeline import read_timeline

__all__ = [
    "DemoResult",
    "DemoSummary",
    "Week",
    "count_duration",
    "find_first_champion",
    "find_watch_verdict",
    "fit_bootstrap_weeks",
    "has_gate_verdict",
    "list_week_ends",
    "read_duration",
    "score_week",
    "summarize",
]

_WEEK = timedelta(weeks=1)
_DURATION, _SUMMARY = "duration.json", "summary.json"
_PROMOTION_KINDS: tuple[Literal["gate", "promotion"], ...] = ("gate", "promotion")


class Week(Record):
    """One week of the demo, decided by ``champion`` before any of its outcomes was known."""

    ending: datetime
    rows: int
    psi: float | None
    drift: str
    response: str
    gate: str = Field(description="result of the week's last refresh; empty: there was none")
    gates: tuple[str, ...] = Field(default=(), description="results of all refreshes of the week")
    champion: str
    quality_static: float | None = Field(description="None if the outcomes of the week do not suffice to measure it")
    quality_champion: float | None = Field(description="None as for quality_static")
    quality_teacher: float | None = Field(description="None as for quality_static, or if the teacher costs money")
    bytes: int
    p50_ms: float


class DemoSummary(Record):
    """The demo in twelve numbers; each quality is the mean of the weekly qualities."""

    measure: str = Field(description="name of the measure that the agent file names")
    weeks: int
    refreshes: int
    promotions: int
    refused: int
    inconclusive: int = 0
    quality_static: float | None = Field(description="None if no week has one")
    quality_champion: float | None = Field(description="None if no week has one")
    quality_teacher: float | None = Field(description="None if the teacher costs money")
    champion_bytes: int
    champion_p50_ms: float
    teacher_calls: int
    seconds: float = Field(description="time that its weeks took when they were played first, in all runs together")


class DemoResult(Record):
    """The result of a whole demo."""

    summary: DemoSummary
    weeks: tuple[Week, ...]
    folder: str


def fit_bootstrap_weeks(agent: str) -> int:
    """The weeks before the first champion, from the length of the source: eight, or a third of a shorter history.

    At least two, since a training and a test window must find room in them.
    """
    return min(8, max(2, _count_weeks(config.load(agent), after=0) // 3))


def list_week_ends(agent: str, bootstrap_weeks: int, weeks: int | None) -> list[datetime]:
    """The ends of the weeks to replay after the bootstrap.

    :param weeks: number of weeks; None: as many as the source has, rounded to whole weeks.
    :raises WindowError: if the source has less than a week after the bootstrap.
    """
    settings = config.load(agent)
    first = _start_of_history(settings) + bootstrap_weeks * _WEEK
    if weeks is None:
        weeks = _count_weeks(settings, after=bootstrap_weeks)
    if not weeks:
        raise WindowError(
            f"the source of agent {agent!r} has no week after {first:%Y-%m-%d}, when the bootstrap ends: "
            f"bootstrap with fewer weeks, or let `observations.since` be where its history begins"
        )
    return [first + (i + 1) * _WEEK for i in range(weeks)]


def find_watch_verdict(agent: str, end: datetime) -> Verdict | None:
    """The verdict of the watch at ``end``; None if the demo has not come that far yet."""
    return _open_base(agent).journal.verdict_at("watch", end)


def has_gate_verdict(agent: str, end: datetime) -> bool:
    """Whether the gate has judged a refresh at ``end``."""
    return _open_base(agent).journal.verdict_at("gate", end) is not None


def find_first_champion(agent: str) -> ModelRef:
    """The first version that the gate or a person promoted.

    :raises WindowError: if no version was promoted; the message names a version that waits for approval.
    """
    registry, base = open_registry(agent), _open_base(agent)
    promoted = [
        verdict for kind in _PROMOTION_KINDS for verdict in base.journal.verdicts(kind) if verdict.result == "promoted"
    ]
    for verdict in sorted(promoted, key=lambda verdict: verdict.as_of):
        number = _promoted_version(registry, verdict)
        if number is not None and (model := registry.version(agent, number)) is not None:
            return model
    if waiting := registry.challenger():
        raise WindowError(
            f"{waiting} waits for a person's approval: promote it with `python -m flows promote --agent {agent}`, "
            f"and run the demo again"
        )
    raise WindowError(f"no version of agent {agent!r} was ever promoted: the demo was not bootstrapped")


def _promoted_version(registry: Registry, verdict: Verdict) -> str | None:
    """The version that a verdict promoted; None if the registry does not have it."""
    certificate: Any = verdict.evidence.get("certificate")
    if certificate is None:
        return str(verdict.evidence["champion"]).rpartition("@")[2]
    return registry.version_of(str(certificate["refresh_id"]), str(certificate["challenger"]["model"]))


@contextmanager
def count_duration(agent: str, *, is_new: bool) -> Iterator[None]:
    """Add the time of this part of the demo to its duration; nothing for a part that an earlier run has played.

    :param is_new: whether this part is played for the first time.
    """
    began = time.monotonic()
    yield
    if is_new:
        file = _demo_folder(agent) / _DURATION
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps({"seconds": read_duration(agent) + time.monotonic() - began}) + "\n")


def read_duration(agent: str) -> float:
    """The seconds that the parts of a demo took when they were played first, in all of its runs."""
    for file in (
        _demo_folder(agent) / _DURATION,
        _demo_folder(agent) / _SUMMARY,
    ):  # earlier versions had the second only
        if file.exists():
            return float(json.loads(file.read_bytes())["seconds"])
    return 0.0


def score_week(agent: str, end: datetime, first: ModelRef) -> Week:
    """Score the week that ends at ``end``: its recorded decisions, the first champion and the teacher on the same rows.

    Where quality is a score of episodes, the three play the same ones.

    The outcomes come from the source, so they include the last day, which the agent has not learned yet.

    :param first: the champion that is never refreshed.
    :raises WindowError: if the week was not replayed to its end.
    """
    base, registry = _open_base(agent), open_registry(agent)
    rows, decisions = _read_decided_rows(base, Window.ending("week", end, _WEEK))
    verdict = base.journal.verdict_at("watch", end)
    judged = base.journal.verdicts("gate", since=end - _WEEK)
    gates = tuple(gate.result for gate in judged if end - _WEEK < gate.as_of <= end)
    if len(decisions):
        champion = registry.version(agent, str(decisions["version"].iloc[0]).rpartition("@")[2])
    else:
        champion = registry.champion()
    if champion is None or verdict is None:
        raise WindowError(f"the week ending {end:%Y-%m-%d} was not replayed to its end: run the demo again")
    teacher = load_version(agent, champion).teacher
    # only a local teacher labels every row here: a remote one costs money; these answers are not stored
    teacher_probs = teacher.ask(rows) if teacher.local and len(rows) else None
    card, report = registry.models.scorecard(champion), drift_report(verdict)
    labels, named = rows["outcome"].to_numpy(), get_measure(base.config)
    never_refreshed, current = (
        make_policy(load_version(agent, model).variant, base.config.actions) for model in (first, champion)
    )

    def score(probs: np.ndarray[Any, Any], policy: Policy | None) -> float | None:
        if not len(labels):
            return None
        measured = measure_quality(replace_non_finite(probs, labels), labels, named, rows, named.play(policy, rows))
        return measured.score if measured.measure == named.name else None

    return Week(
        ending=end,
        rows=len(rows),
        psi=report.worst(1)[0].psi if report else None,
        drift=verdict.result,
        response=verdict.response,
        gate=gates[-1] if gates else "",
        gates=gates,
        champion=str(champion),
        quality_static=score(never_refreshed(rows), never_refreshed) if len(rows) else None,
        quality_champion=score(np.array(decisions["probabilities"].tolist()), current) if len(rows) else None,
        quality_teacher=None if teacher_probs is None else score(teacher_probs, teacher.ask),
        bytes=card.bytes,
        p50_ms=card.latency.p50_ms if card.latency else 0.0,
    )


def summarize(agent: str, weeks: Sequence[Week]) -> DemoResult:
    """Summarise the weeks, and write ``summary.json``, ``weeks.json`` and ``timeline.png`` to the folder of the demo.

    :raises WindowError: if there is no champion.
    """
    registry, spending = open_registry(agent), _open_base(agent).answers.spending()
    champion = registry.champion()
    if champion is None:
        raise WindowError(f"agent {agent!r} has no champion: the demo was not bootstrapped")
    card = registry.models.scorecard(champion)
    gates = Counter(result for week in weeks for result in week.gates)
    summary = DemoSummary(
        measure=config.load(agent).quality.name,
        weeks=len(weeks),
        refreshes=gates.total(),
        promotions=gates["promoted"],
        refused=gates["refused"],
        inconclusive=gates["inconclusive"],
        quality_static=_mean([week.quality_static for week in weeks]),
        quality_champion=_mean([week.quality_champion for week in weeks]),
        quality_teacher=_mean([week.quality_teacher for week in weeks]),
        champion_bytes=card.bytes,
        champion_p50_ms=card.latency.p50_ms if card.latency else 0.0,
        teacher_calls=sum(cost.calls for cost in spending.values()),
        seconds=read_duration(agent),
    )
    folder = _demo_folder(agent)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / _SUMMARY, summary.model_dump_json(indent=1) + "\n")
    write_atomic(folder / "weeks.json", json.dumps([week.model_dump(mode="json") for week in weeks], indent=1) + "\n")
    plot_timeline(_read_weeks(agent, weeks)).savefig(folder / "timeline.png", dpi=110)
    return DemoResult(summary=summary, weeks=tuple(weeks), folder=str(folder))


# --------------------------------------------------------------------------- inside


def _start_of_history(settings: AgentConfig) -> datetime:
    """:raises ConfigError: if the agent has no sources to replay a history from."""
    observations = settings.observations
    if observations.source is None or observations.since is None or settings.outcomes is None:
        raise ConfigError(
            f"{settings.file}: {'outcomes' if observations.source else 'observations.source'}: a demo replays a "
            "history from the agent's sources, and this agent lacks one: name it, or watch and refresh as rows come"
        )
    return observations.since


def _count_weeks(settings: AgentConfig, *, after: int) -> int:
    """The weeks that the source has after its first ``after`` weeks, rounded to whole weeks."""
    first = _start_of_history(settings) + after * _WEEK
    assert settings.observations.source is not None  # as _start_of_history has checked
    where = f"{settings.file}: observations.source"
    source = resolve(settings.observations.source, where=where, folder=settings.folder)
    rows = source(first, datetime.now(UTC))
    return round((rows["observed_at"].max() - first) / _WEEK) if len(rows) else 0


def _read_weeks(agent: str, weeks: Sequence[Week]) -> Timeline:
    """The timeline until the last week, with the quality of each week as it was decided, and the teacher's."""
    timeline = read_timeline(_open_base(agent), weeks[-1].ending)
    values = {
        "champion": [week.quality_champion for week in weeks],
        "never refreshed": [week.quality_static for week in weeks],
        "teacher": [week.quality_teacher for week in weeks],
    }
    middles = [week.ending - _WEEK / 2 for week in weeks]
    quality: dict[str, Curve] = {
        name: tuple((at, value) for at, value in zip(middles, column, strict=True) if value is not None)
        for name, column in values.items()
    }
    return replace(timeline, quality=tuple(quality.items()), teachers=() if quality["teacher"] else timeline.teachers)


def _demo_folder(agent: str) -> Path:
    return config.home() / "demo" / agent


def _open_base(agent: str) -> KnowledgeBase:
    return KnowledgeBase(config.load(agent))


def _read_decided_rows(base: KnowledgeBase, window: Window) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The decided rows of the window with ``outcome`` from the source, and their decisions in the same order."""
    settings = base.config
    assert settings.outcomes is not None  # as list_week_ends has checked
    source = resolve(settings.outcomes.source, where=f"{settings.file}: outcomes.source", folder=settings.folder)
    outcomes = tidy_outcomes(source(window.start, window.end), settings)
    outcomes = outcomes.sort_values("known_at", kind="stable").drop_duplicates("observation_id", keep="last")
    action_indices = {action: index for index, action in enumerate(settings.actions)}
    labels = outcomes.assign(outcome=outcomes["action"].map(action_indices))[["observation_id", "outcome"]].dropna()
    rows = base.read_observations(window).merge(labels, on="observation_id").astype({"outcome": "int64"})
    decisions = base.read("decisions", window, ["observation_id", "version", "probabilities"])
    decisions = decisions.drop_duplicates("observation_id").set_index("observation_id")
    rows = rows[rows["observation_id"].isin(decisions.index)].reset_index(drop=True)
    return rows, decisions.loc[rows["observation_id"]]


def _mean(values: Sequence[float | None]) -> float | None:
    measured = [value for value in values if value is not None]
    return float(np.mean(measured)) if measured else None
