"""What ``flows/demo.py`` sums up: the year week by week, against a student that was never refreshed."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np

from stillhouse import config
from stillhouse.errors import WindowError
from stillhouse.evaluate import figures
from stillhouse.evaluate.scorecard import quality
from stillhouse.records import ModelRef, Record, Verdict, Window, drift_report
from tasks.common import champion_parts, engine_task, knowledge_base, registry

__all__ = ["Summary", "Week", "Year", "refreshed", "sum_up", "watched"]


class Week(Record):
    """One week of the demo, decided by ``champion`` before any of its outcomes was known."""

    ending: datetime
    rows: int
    psi: float | None
    drift: str
    response: str
    gate: str
    champion: str
    auc_static: float
    auc_champion: float
    auc_teacher: float
    bytes: int
    p50_ms: float


class Summary(Record):
    """The demo in eleven figures; AUCs are means of the weekly ones."""

    weeks: int
    refreshes: int
    promotions: int
    refused: int
    auc_static: float
    auc_champion: float
    auc_teacher: float
    champion_bytes: int
    champion_p50_ms: float
    teacher_calls: int
    seconds: float


class Year(Record):
    """The whole demo."""

    summary: Summary
    weeks: tuple[Week, ...]
    folder: str


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
    summary = Summary(
        weeks=len(weeks),
        refreshes=len(judged),
        promotions=judged.count("promoted"),
        refused=judged.count("refused"),
        auc_static=float(np.mean([week.auc_static for week in weeks])),
        auc_champion=float(np.mean([week.auc_champion for week in weeks])),
        auc_teacher=float(np.mean([week.auc_teacher for week in weeks])),
        champion_bytes=card.bytes,
        champion_p50_ms=card.latency.p50_ms if card.latency else 0.0,
        teacher_calls=len(base.read("knowledge", columns=["content_key"])),
        seconds=seconds,
    )
    folder = config.home() / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "summary.json", summary.model_dump_json(indent=1))
    _write(folder / "weeks.json", json.dumps([week.model_dump(mode="json") for week in weeks], indent=1))
    figure = figures.year(
        [week.ending for week in weeks],
        {
            "never refreshed": [week.auc_static for week in weeks],
            "teacher": [week.auc_teacher for week in weeks],
            "champion": [week.auc_champion for week in weeks],
        },
        [week.psi for week in weeks],
        [(end, gates[end].outcome) for end in ends if end in gates],
    )
    figure.savefig(folder / "year.png", dpi=110)
    return Year(summary=summary, weeks=weeks, folder=str(folder))


def _week(agent: str, end: datetime, first: ModelRef, gate: Verdict | None) -> Week:
    """The week from what is recorded, and from what the first champion and the teacher say about its rows."""
    base, models = knowledge_base(agent), registry(agent)
    window = Window.ending("week", end, timedelta(weeks=1))
    rows = base.labelled(window, known_by=datetime.now(UTC))
    decided = base.read("decisions", window).set_index("observation_id").loc[rows["observation_id"]]
    champion = models.version(agent, str(decided["version"].iloc[0]).rpartition("@")[2])
    verdict = base.verdict_at("watch", end)
    if champion is None or verdict is None:
        raise WindowError(f"the week ending {end:%Y-%m-%d} was not lived to its end: run the demo again")
    teacher = champion_parts(agent, champion).teacher  # asked about every row: the demo's own yardstick, kept nowhere
    outcomes = rows["outcome"].to_numpy()
    card = models.scorecard(champion)
    report = drift_report(verdict)

    def auc(said: np.ndarray) -> float:
        value = quality(said, outcomes).auc
        return float("nan") if value is None else value

    return Week(
        ending=end,
        rows=len(rows),
        psi=report.worst(1)[0].psi if report else None,
        drift=verdict.outcome,
        response=verdict.response,
        gate=gate.outcome if gate else "",
        champion=str(champion),
        auc_static=auc(champion_parts(agent, first).student.predict_proba(rows)),
        auc_champion=auc(np.stack(decided["probabilities"].to_numpy())),
        auc_teacher=auc(teacher.ask(rows)),
        bytes=card.bytes,
        p50_ms=card.latency.p50_ms if card.latency else 0.0,
    )


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
