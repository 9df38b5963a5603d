"""A history played week by week, and what it shows: the champion beside a student that was never refreshed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from stillhouse import config
from stillhouse.champion import load_version, open_registry
from stillhouse.errors import WindowError
from stillhouse.evaluate import figures
from stillhouse.evaluate.scorecard import quality
from stillhouse.files import write_atomic
from stillhouse.knowledge import KnowledgeBase, tidy_outcomes
from stillhouse.parts import resolve
from stillhouse.records import ModelRef, Record, Verdict, Window, drift_report
from stillhouse.registry import Registry

__all__ = ["Summary", "Week", "Year", "first_champion", "lived_week", "refreshed", "sum_up", "watched", "week_ends"]

_WEEK = timedelta(weeks=1)
_PROMOTING: tuple[Literal["gate", "promotion"], ...] = ("gate", "promotion")


class Week(Record):
    """One week of the demo, decided by ``champion`` before any of its outcomes was known."""

    ending: datetime
    rows: int
    psi: float | None
    drift: str
    response: str
    gate: str
    champion: str
    quality_static: float | None = Field(description="None where the outcomes of the week cannot tell")
    quality_champion: float | None = Field(description="the same")
    quality_teacher: float | None = Field(description="the same, or asking about every row would cost money")
    bytes: int
    p50_ms: float


class Summary(Record):
    """The demo in twelve figures; qualities are means of the weekly ones."""

    measure: Literal["auc", "accuracy"]
    weeks: int
    refreshes: int
    promotions: int
    refused: int
    quality_static: float | None = Field(description="None where no week could tell")
    quality_champion: float | None = Field(description="the same")
    quality_teacher: float | None = Field(description="None where asking it about every row would cost money")
    champion_bytes: int
    champion_p50_ms: float
    teacher_calls: int
    seconds: float


class Year(Record):
    """The whole demo."""

    summary: Summary
    weeks: tuple[Week, ...]
    folder: str


def week_ends(agent: str, bootstrap_weeks: int, weeks: int | None) -> list[datetime]:
    """The ends of the weeks to play: so many after the bootstrap, or as many as the source has (half a week counts).

    :raises WindowError: if the source has less than a week after the bootstrap.
    """
    settings = config.load(agent)
    observations = settings.observations
    first = observations.since + bootstrap_weeks * _WEEK
    if weeks is None:
        source = resolve(observations.source, where=f"{settings.file}: observations.source")
        rows = source(first, datetime.now(UTC))
        weeks = round((rows["observed_at"].max() - first) / _WEEK) if len(rows) else 0
    if not weeks:
        raise WindowError(
            f"the source of agent {agent!r} has no week after {first:%Y-%m-%d}, when the bootstrap ends: "
            f"bootstrap with fewer weeks, or let `observations.since` be where its history begins"
        )
    return [first + (i + 1) * _WEEK for i in range(weeks)]


def watched(agent: str, end: datetime) -> Verdict | None:
    """What the watch of that week decided, if an interrupted demo got so far."""
    return _base(agent).journal.verdict_at("watch", end)


def refreshed(agent: str, end: datetime) -> bool:
    """Whether a gate has judged a refresh of that moment."""
    return _base(agent).journal.verdict_at("gate", end) is not None


def first_champion(agent: str) -> ModelRef:
    """The first version that a gate or a person promoted.

    :raises WindowError: if none was; one that waits for approval is named.
    """
    registry, base = open_registry(agent), _base(agent)
    promoted = [
        verdict for kind in _PROMOTING for verdict in base.journal.verdicts(kind) if verdict.result == "promoted"
    ]
    for verdict in sorted(promoted, key=lambda each: each.as_of):
        number = _promoted_version(registry, verdict)
        if number is not None and (found := registry.version(agent, number)) is not None:
            return found
    if waiting := registry.challenger():
        raise WindowError(
            f"{waiting} waits for a person's approval: promote it with `python -m flows promote --agent {agent} "
            f"--version {waiting.version}`, and run the demo again"
        )
    raise WindowError(f"no version of agent {agent!r} was ever promoted: the demo was not bootstrapped")


def _promoted_version(registry: Registry, verdict: Verdict) -> str | None:
    """The version that a verdict is about."""
    certificate: Any = verdict.evidence.get("certificate")
    if certificate is None:
        return str(verdict.evidence["champion"]).rpartition("@")[2]
    return registry.version_of(str(certificate["refresh_id"]), str(certificate["challenger"]["model"]))


def lived_week(agent: str, end: datetime, first: ModelRef) -> Week:
    """One week that has passed, from what is recorded and what the first champion and the teacher make of its rows.

    Its outcomes come from the source, those of its last day too, which the agent has yet to learn.

    :param first: the champion that is never refreshed.
    :raises WindowError: if the week was not played to its end.
    """
    base, registry = _base(agent), open_registry(agent)
    rows, decided = _decided_rows(base, Window.ending("week", end, _WEEK))
    verdict, gate = base.journal.verdict_at("watch", end), base.journal.verdict_at("gate", end)
    champion = (
        registry.version(agent, str(decided["version"].iloc[0]).rpartition("@")[2])
        if len(decided)
        else registry.champion()
    )  # nobody asked for a decision in that week
    if champion is None or verdict is None:
        raise WindowError(f"the week ending {end:%Y-%m-%d} was not played to its end: run the demo again")
    teacher = load_version(agent, champion).teacher  # asked about every row: the demo's own yardstick, kept nowhere
    teacher_probs = (
        teacher.ask(rows) if teacher.local and len(rows) else None
    )  # a model behind an endpoint would want to be paid
    card, report = registry.models.scorecard(champion), drift_report(verdict)
    labels = rows["outcome"].to_numpy()

    def score(probs: np.ndarray[Any, Any]) -> float | None:
        found = quality(probs, labels) if len(labels) else None
        return found.score if found is not None and found.measure == card.test.measure else None

    return Week(
        ending=end,
        rows=len(rows),
        psi=report.worst(1)[0].psi if report else None,
        drift=verdict.result,
        response=verdict.response,
        gate=gate.result if gate else "",
        champion=str(champion),
        quality_static=score(load_version(agent, first).variant.predict_proba(rows)) if len(rows) else None,
        quality_champion=score(np.array(decided["probabilities"].tolist())) if len(rows) else None,
        quality_teacher=None if teacher_probs is None else score(teacher_probs),
        bytes=card.bytes,
        p50_ms=card.latency.p50_ms if card.latency else 0.0,
    )


def sum_up(agent: str, weeks: Sequence[Week], seconds: float) -> Year:
    """The weeks in twelve figures; summary, table and picture are written.

    :raises WindowError: if there is no champion.
    """
    registry, spent = open_registry(agent), _base(agent).answers.spending()
    champion = registry.champion()
    if champion is None:
        raise WindowError(f"agent {agent!r} has no champion: the demo was not bootstrapped")
    card = registry.models.scorecard(champion)
    judged = [week for week in weeks if week.gate]
    summary = Summary(
        measure=card.test.measure,
        weeks=len(weeks),
        refreshes=len(judged),
        promotions=sum(week.gate == "promoted" for week in judged),
        refused=sum(week.gate == "refused" for week in judged),
        quality_static=_mean([week.quality_static for week in weeks]),
        quality_champion=_mean([week.quality_champion for week in weeks]),
        quality_teacher=_mean([week.quality_teacher for week in weeks]),
        champion_bytes=card.bytes,
        champion_p50_ms=card.latency.p50_ms if card.latency else 0.0,
        teacher_calls=sum(cost.calls for cost in spent.values()),
        seconds=seconds,
    )
    folder = config.home() / "demo" / agent
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "summary.json", summary.model_dump_json(indent=1) + "\n")
    write_atomic(folder / "weeks.json", json.dumps([week.model_dump(mode="json") for week in weeks], indent=1) + "\n")
    figure = figures.plot_demo_year(
        [week.ending for week in weeks],
        {
            "never refreshed": [week.quality_static for week in weeks],
            "teacher": [week.quality_teacher for week in weeks],
            "champion": [week.quality_champion for week in weeks],
        },
        [week.psi for week in weeks],
        [(week.ending, week.gate) for week in judged],
        card.test.measure,
        f"{agent}: {len(weeks)} weeks at the decision point",
    )
    figure.savefig(folder / "weeks.png", dpi=110)
    return Year(summary=summary, weeks=tuple(weeks), folder=str(folder))


# --------------------------------------------------------------------------- inside


def _base(agent: str) -> KnowledgeBase:
    return KnowledgeBase(config.load(agent))


def _decided_rows(base: KnowledgeBase, window: Window) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The window's rows with ``outcome`` by the agent file's source, and the decisions about them, in one order."""
    settings = base.config
    source = resolve(settings.outcomes.source, where=f"{settings.file}: outcomes.source")
    outcomes = tidy_outcomes(source(window.start, window.end), settings)
    outcomes = outcomes.sort_values("known_at", kind="stable").drop_duplicates("observation_id", keep="last")
    index = {action: position for position, action in enumerate(settings.actions)}
    labels = outcomes.assign(outcome=outcomes["action"].map(index))[["observation_id", "outcome"]].dropna()
    rows = base.read_observations(window).merge(labels, on="observation_id").astype({"outcome": "int64"})
    decisions = base.read("decisions", window, ["observation_id", "version", "probabilities"])
    decisions = decisions.drop_duplicates("observation_id").set_index("observation_id")
    rows = rows[rows["observation_id"].isin(decisions.index)].reset_index(drop=True)
    return rows, decisions.loc[rows["observation_id"]]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
