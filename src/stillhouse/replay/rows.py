"""The labelled rows of a replay: from the knowledge base, or from the agent's sources. Nothing is written."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.champion import load_version, open_registry
from stillhouse.config import AgentConfig, Leaf, leaves
from stillhouse.errors import ConfigError, SchemaError, WindowError
from stillhouse.knowledge import KnowledgeBase, content_keys, tidy, tidy_outcomes
from stillhouse.parts import resolve
from stillhouse.records import Window
from stillhouse.replay.training import ask_ready_teachers

__all__ = ["read_ready_probs", "read_rows"]

Array = np.ndarray[Any, Any]


def read_rows(settings: AgentConfig, since: datetime, until: datetime, *, from_sources: bool) -> pd.DataFrame:
    """The observations of ``[since, until)`` that have an outcome, with ``known_at`` and ``outcome`` (action index).

    :param from_sources: read the agent's sources; otherwise its knowledge base, without the rows in quarantine.
    :raises WindowError: if there are none.
    :raises SchemaError: if an outcome names an unknown action, or a source lacks a column.
    """
    read = _read_from_sources if from_sources else _read_from_knowledge_base
    rows = read(settings, since, until)
    rows = rows[rows["observed_at"] < until].reset_index(drop=True)
    if rows.empty:
        where, other = (
            ("its sources have", "--since names another beginning")
            if from_sources
            else ("its knowledge base has", "--from-sources reads the agent's sources instead")
        )
        raise WindowError(
            f"agent {settings.agent!r}: {where} no rows with {settings.words.labels} since {since:%Y-%m-%d}; {other}"
        )
    return rows


def read_ready_probs(settings: AgentConfig, rows: pd.DataFrame) -> Array | None:
    """Probabilities ``[n, K]`` of the teachers that do not learn, summed with their shares; None: all of them learn.

    A teacher whose answers cost money, or that is asked over a network, is never asked: its stored answers are used,
    and a row without one is NaN. The others are asked here, once.
    """
    ready = [leaf for leaf in leaves(settings.teachers) if not leaf.teacher.is_fitted]
    if not ready:
        return None
    if not any(_is_dear(leaf) for leaf in ready):
        return ask_ready_teachers(settings, rows)
    return _read_stored_probs(settings, rows, ready)


def _is_dear(leaf: Leaf) -> bool:
    return leaf.teacher.costs_money or leaf.teacher.is_remote


def _read_stored_probs(settings: AgentConfig, rows: pd.DataFrame, ready: list[Leaf]) -> Array:
    """Stored answers of the champion's teachers that do not learn."""
    champion = open_registry(settings.agent).champion()
    if champion is None:
        raise WindowError(
            f"agent {settings.agent!r} has a teacher whose answers are not free, and a replay asks none: it uses the "
            f"stored answers of the champion's teacher, and there is no champion yet"
        )
    teacher, base = load_version(settings.agent, champion).teacher, KnowledgeBase(settings)
    names = {leaf.name for leaf in ready}
    total = np.zeros((len(rows), len(settings.actions)))
    for member in teacher.members:
        if member.name in names:
            total += member.share * base.answers.probs(rows, teacher.member_version(member))
    return total


def _read_from_knowledge_base(settings: AgentConfig, since: datetime, until: datetime) -> pd.DataFrame:
    base = KnowledgeBase(settings)
    known_by = until + settings.block_delay
    rows = base.read_labelled(Window(name="replay", start=since, end=until), known_by)
    return base.join_known_at(rows, known_by)


def _read_from_sources(settings: AgentConfig, since: datetime, until: datetime) -> pd.DataFrame:
    """What the sources give, tidied as the knowledge base would store it; the last value of a corrected outcome."""
    if settings.observations.source is None or settings.outcomes is None:
        lacking = "observations.source" if settings.observations.source is None else "outcomes"
        raise ConfigError(
            f"{settings.file}: {lacking}: is not given, so there is no source of it to replay from: leave "
            "--from-sources out, and the rows of the knowledge base are replayed"
        )
    observe = resolve(
        settings.observations.source, where=f"{settings.file}: observations.source", folder=settings.folder
    )
    learn = resolve(settings.outcomes.source, where=f"{settings.file}: outcomes.source", folder=settings.folder)
    rows = tidy(observe(since, until), settings).drop_duplicates("observation_id")
    outcomes = tidy_outcomes(learn(since, until + timedelta(microseconds=1)), settings)
    outcomes = outcomes.sort_values("known_at", kind="stable").drop_duplicates("observation_id", keep="last")
    index = {action: number for number, action in enumerate(settings.actions)}
    if unknown := sorted(set(outcomes["action"]) - set(index)):
        raise SchemaError(f"{settings.outcomes.source} of agent {settings.agent!r} gives unknown actions {unknown}")
    labels = outcomes.assign(outcome=outcomes["action"].map(index).astype("int64"))
    joined = rows.merge(labels[["observation_id", "known_at", "outcome"]], on="observation_id")
    joined = joined.sort_values(["observed_at", "observation_id"], ignore_index=True)
    return joined.assign(content_key=content_keys(joined, settings))
