"""What ``flows/demo.py`` plays and sums up: week by week, against a student that was never refreshed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np
from pydantic import Field

from stillhouse import config
from stillhouse.errors import WindowError
from stillhouse.evaluate import figures
from stillhouse.evaluate.scorecard import quality
from stillhouse.parts import resolve
from stillhouse.records import ModelRef, Record, Verdict, Window, drift_report
from tasks.common import champion_parts, engine_task, knowledge_base, registry

__all__ = ["Summary", "Week", "Year", "refreshed", "sum_up", "watched", "week_ends"]

_WEEK = timedelta(weeks=1)


class Week(Record):
    """One week of the demo, decided by ``champion`` before any of its outcomes was known."""

    ending: datetime
    rows: int
    psi: float | None
    drift: str
    response: str
    gate: str
    champion: str
    quality_static: float
    quality_champion: float
    quality_teacher: float | None = Field(description="None where asking it about every row would cost money")
    bytes: int
    p50_ms: float


class Summary(Record):
    """The demo in twelve figures; qualities are means of the weekly ones."""

    measure: Literal["auc", "accuracy"]
    weeks: int
    refreshes: int
    promotions: int
    refused: int
    quality_static: float
    quality_champion: float
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
    return knowledge_base(agent).verdict_at("watch", end)


def refreshed(agent: str, end: datetime) -> bool:
    """Whether a gate has judged a refresh of that moment."""
    return knowledge_base(agent).verdict_at("gate", end) is not None


@engine_task(task_run_name="sum up")
def sum_up(agent: str, ends: list[datetime], seconds: float) -> Year:
    """Score static student, champion and teacher on every week; write summary, table and figure."""
    base, models = knowledge_base(agent), registry(agent)
    gates = {v.as_of: v for v in base.verdicts() if v.kind == "gate"}
    first = _first_champion(agent)
    weeks = tuple(_week(agent, end, first, gates.get(end)) for end in ends)
    judged = [gates[end].outcome for end in ends if end in gates]
    champion = models.champion()
    if champion is None:
        raise WindowError(f"agent {agent!r} has no champion: the demo was not bootstrapped")
    card = models.scorecard(champion)
    measure = card.test.measure
    summary = Summary(
        measure=measure,
        weeks=len(weeks),
        refreshes=len(judged),
        promotions=judged.count("promoted"),
        refused=judged.count("refused"),
        quality_static=float(np.mean([week.quality_static for week in weeks])),
        quality_champion=float(np.mean([week.quality_champion for week in weeks])),
        quality_teacher=_mean([week.quality_teacher for week in weeks]),
        champion_bytes=card.bytes,
        champion_p50_ms=card.latency.p50_ms if card.latency else 0.0,
        teacher_calls=sum(spent.calls for spent in base.spending().values()),
        seconds=seconds,
    )
    folder = config.home() / "demo" / agent
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "summary.json", summary.model_dump_json(indent=1))
    _write(folder / "weeks.json", json.dumps([week.model_dump(mode="json") for week in weeks], indent=1))
    figure = figures.year(
        [week.ending for week in weeks],
        {
            "never refreshed": [week.quality_static for week in weeks],
            "teacher": [week.quality_teacher for week in weeks],
            "champion": [week.quality_champion for week in weeks],
        },
        [week.psi for week in weeks],
        [(end, gates[end].outcome) for end in ends if end in gates],
        measure,
        f"{agent}: {len(weeks)} weeks at the decision point",
    )
    figure.savefig(folder / "weeks.png", dpi=110)
    return Year(summary=summary, weeks=weeks, folder=str(folder))


def _week(agent: str, end: datetime, first: ModelRef, gate: Verdict | None) -> Week:
    """The week from what is recorded, and from what the first champion and the teacher say about its rows."""
    base, models = knowledge_base(agent), registry(agent)
    window = Window.ending("week", end, _WEEK)
    rows = base.labelled(window, known_by=datetime.now(UTC))
    decided = base.read("decisions", window).set_index("observation_id").loc[rows["observation_id"]]
    champion = models.version(agent, str(decided["version"].iloc[0]).rpartition("@")[2])
    verdict = base.verdict_at("watch", end)
    if champion is None or verdict is None:
        raise WindowError(f"the week ending {end:%Y-%m-%d} was not lived to its end: run the demo again")
    teacher = champion_parts(agent, champion).teacher  # asked about every row: the demo's own yardstick, kept nowhere
    yardstick = teacher.ask(rows) if teacher.local else None  # a model behind an endpoint would want to be paid
    outcomes = rows["outcome"].to_numpy()
    card = models.scorecard(champion)
    report = drift_report(verdict)

    def score(said: np.ndarray) -> float:
        found = quality(said, outcomes)
        return float("nan") if found.measure != card.test.measure else found.score

    return Week(
        ending=end,
        rows=len(rows),
        psi=report.worst(1)[0].psi if report else None,
        drift=verdict.outcome,
        response=verdict.response,
        gate=gate.outcome if gate else "",
        champion=str(champion),
        quality_static=score(champion_parts(agent, first).student.predict_proba(rows)),
        quality_champion=score(np.stack(decided["probabilities"].to_numpy())),
        quality_teacher=None if yardstick is None else score(yardstick),
        bytes=card.bytes,
        p50_ms=card.latency.p50_ms if card.latency else 0.0,
    )


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _first_champion(agent: str) -> ModelRef:
    """The champion that the bootstrap made: the one that decided first."""
    decided = knowledge_base(agent).read("decisions", columns=["version"])["version"]
    first = None if decided.empty else registry(agent).version(agent, str(decided.iloc[0]).rpartition("@")[2])
    if first is None:
        raise WindowError(f"no champion of agent {agent!r} has decided anything: the demo was not bootstrapped")
    return first


def _write(path, text: str) -> None:
    """All or nothing: a reader never sees half a file."""
    partial = path.with_suffix(".partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)
