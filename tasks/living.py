"""The agent lives: it perceives, decides, and learns outcomes. Until an application does, a history is played."""

from __future__ import annotations

from datetime import datetime

import numpy as np

from stillhouse import config
from stillhouse.parts import resolve
from tasks.common import champion_parts, engine_task, knowledge_base, registry

__all__ = ["beginning", "live"]


def beginning(agent: str, start: datetime | None) -> datetime:
    """``start``, or where what was lived so far ends, or where the agent's history begins."""
    return start or knowledge_base(agent).lived_until() or config.load(agent).observations.since


@engine_task(task_run_name="live until {end:%Y-%m-%d}")
def live(agent: str, start: datetime, end: datetime) -> int:
    """Observations of ``[start, end)`` arrive, the champion decides them, and outcomes known by ``end`` come in.

    Idempotent: a stretch that was lived is not lived again. Returns the number of observations added.
    """
    settings = config.load(agent)
    base = knowledge_base(agent)
    where = f"agents/{agent}.yaml"
    start, end = base.moment(start), base.moment(end)
    batch = f"live:{start:%Y%m%dT%H%M%S}:{end:%Y%m%dT%H%M%S}"
    source = resolve(settings.observations.source, where=f"{where}: observations.source")
    rows = source(start, end)
    added = base.append_observations(rows, batch=batch)

    champion = registry(agent).champion()
    if champion is not None and len(rows) and not base.has_batch("decisions", batch):
        student = champion_parts(agent, champion).student
        decided = student.predict_proba(rows)
        decisions = rows[["observation_id", "observed_at"]].assign(
            decision_id=rows["observation_id"] + ":" + str(champion.version),
            decided_at=rows["observed_at"],
            action=np.asarray(student.actions, dtype=object)[decided.argmax(axis=1)],
            probabilities=list(decided.astype(np.float64)),
            decider="student",
            version=str(champion),
        )
        base.append("decisions", decisions, batch=batch)

    delay = settings.outcomes.delay
    outcomes = resolve(settings.outcomes.source, where=f"{where}: outcomes.source")(start - delay, end - delay)
    base.append("outcomes", outcomes, batch=batch)
    return added
