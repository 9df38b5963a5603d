"""The agent lives: it perceives, decides, and learns outcomes. Until an application does, a history is played."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

import pandas as pd

from stillhouse import config
from stillhouse.champion import open_registry
from stillhouse.errors import SchemaError
from stillhouse.frames import require_distinct, to_texts
from stillhouse.knowledge import KnowledgeBase
from stillhouse.parts import resolve
from stillhouse.records import Window
from stillhouse.runtime import Agent

__all__ = ["beginning", "live"]

_ROWS = 10_000  # of one call to the agent, and so of one event in its spool


def beginning(agent: str, start: datetime | None) -> datetime:
    """``start``, or where what was lived so far ends, or where the agent's history begins."""
    return start or KnowledgeBase(config.load(agent)).observed_until() or config.load(agent).observations.since


def live(agent: str, start: datetime, end: datetime) -> int:
    """Observations of ``[start, end)`` arrive, the champion decides them, and outcomes known by ``end`` come in.

    All of it goes through the runtime, as an application's calls do. Idempotent: what was lived is not lived again,
    wherever an earlier run was killed. Returns the number of observations added.
    """
    settings = config.load(agent)
    base = KnowledgeBase(settings)
    where = settings.file
    start, end = base.resolve_time(start), base.resolve_time(end)
    past = (start - settings.outcomes.delay, end - settings.outcomes.delay)
    with Agent(agent, follow=False, flush=False) as lived:
        lived.flush()  # what a killed run had recorded
        champion = lived.follow(open_registry(agent))
        observed = resolve(settings.observations.source, where=f"{where}: observations.source")(start, end)
        new = _not_yet(base, "observations", observed, start, end)
        for part in _parts(new):
            _ = lived.observe(part) if champion is None else lived.decide(part)
        outcomes = resolve(settings.outcomes.source, where=f"{where}: outcomes.source")(*past)
        for part in _parts(_not_yet(base, "outcomes", outcomes, *past)):
            lived.learn(part)
        lived.flush()
    return len(new)


def _not_yet(
    base: KnowledgeBase, table: Literal["observations", "outcomes"], rows: pd.DataFrame, start: datetime, end: datetime
) -> pd.DataFrame:
    """Those of ``rows`` that the table does not have: by their ids, outcomes also by when they became known."""
    keys = ["observation_id", "known_at"] if table == "outcomes" else ["observation_id"]
    require_distinct(rows.columns, f"{table} of agent {base.config.agent!r}")
    if lacking := [name for name in keys if name not in rows.columns]:
        raise SchemaError(f"{table} of agent {base.config.agent!r} lack the columns {lacking}")
    there = base.read(table, Window(name="lived", start=start, end=end), keys)
    return rows[~_keys(rows[keys]).isin(_keys(there))]


def _keys(rows: pd.DataFrame) -> pd.Index[Any]:
    """The rows as keys, times as microseconds whatever their unit was."""
    times = [str(name) for name in rows if name != "observation_id"]
    stamps = {name: pd.to_datetime(rows[name], utc=True).dt.as_unit("us").astype("int64") for name in times}
    rows = rows.assign(observation_id=to_texts(rows["observation_id"], "column 'observation_id'"), **stamps)
    return pd.MultiIndex.from_frame(rows) if times else pd.Index(rows["observation_id"])


def _parts(rows: pd.DataFrame) -> list[pd.DataFrame]:
    return [rows.iloc[i : i + _ROWS] for i in range(0, len(rows), _ROWS)]
