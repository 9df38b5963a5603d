"""Replay a recorded history through the agent: ingest observations, let the champion decide them, ingest outcomes."""

from __future__ import annotations

import logging
from datetime import datetime
from typing import Any, Literal

import pandas as pd

from stillhouse import config
from stillhouse.champion import open_registry
from stillhouse.config import AgentConfig
from stillhouse.errors import SchemaError, WindowError
from stillhouse.frames import require_distinct, to_texts
from stillhouse.knowledge import KnowledgeBase
from stillhouse.parts import resolve
from stillhouse.records import Window
from stillhouse.runtime import Agent

__all__ = ["find_start", "ingest"]

log = logging.getLogger(__name__)

_BATCH_ROWS = 10_000  # rows of one call to the agent, and so of one event in its spool


def find_start(agent: str, start: datetime | None) -> datetime:
    """``start``; if that is None, the end of the ingested history; if nothing is ingested, the start of the source.

    :raises WindowError: if there is no source and nothing is ingested.
    """
    settings = config.load(agent)
    found = start or KnowledgeBase(settings).observed_until() or settings.observations.since
    if found is None:
        raise WindowError(f"{_explain_no_source(settings)} It has none yet, so there is nothing to begin with")
    return found


def ingest(agent: str, start: datetime, end: datetime) -> int:
    """Ingest the observations of ``[start, end)``, let the champion decide them, and ingest outcomes known by ``end``.

    All rows pass through the runtime, as an application's calls do. Idempotent, also after a killed run: rows that the
    tables have already are not ingested again. Of an agent without ``observations.source`` nothing is read but its
    outcomes, if they have a source; what its application recorded is flushed.

    :returns: the number of observations added.
    :raises SchemaError: if the rows of a source lack an id column or have a column twice.
    """
    settings = config.load(agent)
    base = KnowledgeBase(settings)
    start, end = base.resolve_time(start), base.resolve_time(end)
    outcome_period = (start - settings.label_delay, end - settings.label_delay)
    observed = 0
    with Agent(agent, follow=False, flush=False) as runtime:
        runtime.flush()  # events of a killed run
        champion = runtime.follow(open_registry(agent))
        if settings.observations.source is None:
            log.info(_explain_no_source(settings))
        else:
            observation_source = resolve(
                settings.observations.source, where=f"{settings.file}: observations.source", folder=settings.folder
            )
            observations = _drop_ingested(base, "observations", observation_source(start, end), start, end)
            for batch in _split_batches(observations):
                _ = runtime.observe(batch) if champion is None else runtime.decide(batch)
            observed = len(observations)
            runtime.flush()  # so a source of outcomes may read what was observed and decided
        if settings.outcomes is not None:
            outcome_source = resolve(
                settings.outcomes.source, where=f"{settings.file}: outcomes.source", folder=settings.folder
            )
            outcomes = _drop_ingested(base, "outcomes", outcome_source(*outcome_period), *outcome_period)
            for batch in _split_batches(outcomes):
                runtime.learn(batch)
        runtime.flush()
    return observed


def _explain_no_source(settings: AgentConfig) -> str:
    return (
        f"{settings.file}: the agent has no `observations.source`: its rows are those that its application, or "
        "`stillhouse import`, puts into the knowledge base."
    )


def _drop_ingested(
    base: KnowledgeBase, table: Literal["observations", "outcomes"], rows: pd.DataFrame, start: datetime, end: datetime
) -> pd.DataFrame:
    """The ``rows`` that the table does not have, compared by id; outcomes also by the time they became known."""
    keys = ["observation_id", "known_at"] if table == "outcomes" else ["observation_id"]
    require_distinct(rows.columns, f"{table} of agent {base.config.agent!r}")
    if missing := [name for name in keys if name not in rows.columns]:
        raise SchemaError(f"{table} of agent {base.config.agent!r} lack the columns {missing}")
    stored = base.read(table, Window(name="ingested", start=start, end=end), keys)
    return rows[~_to_keys(rows[keys]).isin(_to_keys(stored))]


def _to_keys(rows: pd.DataFrame) -> pd.Index[Any]:
    """The rows as index keys; times as microseconds, whatever their unit was."""
    times = [str(name) for name in rows if name != "observation_id"]
    stamps = {name: pd.to_datetime(rows[name], utc=True).dt.as_unit("us").astype("int64") for name in times}
    rows = rows.assign(observation_id=to_texts(rows["observation_id"], "column 'observation_id'"), **stamps)
    return pd.MultiIndex.from_frame(rows) if times else pd.Index(rows["observation_id"])


def _split_batches(rows: pd.DataFrame) -> list[pd.DataFrame]:
    return [rows.iloc[i : i + _BATCH_ROWS] for i in range(0, len(rows), _BATCH_ROWS)]
