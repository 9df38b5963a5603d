"""Where an agent's champion and its teachers contradict each other, with examples for those who write the rules."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pandas as pd

from stillhouse.champion import Champion, load_champion
from stillhouse.config import AgentConfig
from stillhouse.errors import NoChampionError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import Contradictions
from stillhouse.teachers.answers import Allowance, Array
from stillhouse.teachers.contradictions import find_contradictions
from stillhouse.teachers.labeling import member_probs

__all__ = ["read_contradictions"]


def read_contradictions(settings: AgentConfig, period: timedelta, *, examples: int = 3) -> Contradictions:
    """Compare the champion and each of its teachers on the observations of the last ``period``.

    A teacher in this process that is not fitted answers all of these rows. Of the other teachers the stored answers
    count, so that no question is paid for. Nothing is written.

    :param examples: number of rows that each comparison shows.
    :raises NoChampionError: if there is no champion.
    """
    champion = load_champion(settings.agent, settings)
    if champion is None:
        raise NoChampionError(f"agent {settings.agent!r} has no champion yet: refresh it with --trigger bootstrap")
    base = KnowledgeBase(champion.settings)
    now = base.resolve_time(None)
    window = base.window("compared", now - period, now)
    rows = base.join_labels(base.read_observations(window), window, now)
    probs: dict[str, Array] = {str(champion.model): np.asarray(champion.variant.predict_proba(rows))}
    probs |= _teacher_probs(champion, base, rows)
    labels = rows["outcome"].to_numpy()
    return find_contradictions(champion.settings, window, rows, probs, labels, places=True, examples=examples)


def _teacher_probs(champion: Champion, base: KnowledgeBase, rows: pd.DataFrame) -> dict[str, Array]:
    """Probabilities of each teacher by its name, float64 ``[n, K]``; NaN where there is no answer."""
    stored = member_probs(base, champion.teacher, rows)
    for member in champion.teacher.members:
        if champion.teacher.local and member.version is not None and len(rows):
            stored[member.name] = member.answer(rows, Allowance()).probabilities
    return stored
