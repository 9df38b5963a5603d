"""New answers of an agent: what its teacher answers and its champion was not taught, from the knowledge base."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import numpy as np

from stillhouse.actions import align_actions
from stillhouse.agreement.new_answers import find_new_answers
from stillhouse.champion import Champion, load_champion
from stillhouse.config import AgentConfig
from stillhouse.errors import NoChampionError, SchemaError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import NewAnswers
from stillhouse.runtime.promise import join_texts, read_promise_status

__all__ = ["read_new_answers"]

_UNSURE = 0.9
"""Below this confidence the student counts as unsure where no promise and no cascade says it."""


def read_new_answers(
    settings: AgentConfig, period: timedelta, *, min_rows: int = 5, out_of_scope: str | None = None
) -> NewAnswers:
    """The new answers among the observations of the last ``period`` that the champion's teacher has answered.

    No teacher is asked, and nothing is written.

    :param min_rows: smallest number of rows of an untaught answer or a cluster.
    :param out_of_scope: the action that stands for "none of these".
    :raises NoChampionError: if there is no champion.
    :raises SchemaError: if the agent reads no text.
    """
    if not settings.observations.texts:
        raise SchemaError(
            f"agent {settings.agent!r} has no text column, and new answers are told by texts: "
            "`python -m flows watch` reports drift of other columns"
        )
    champion = load_champion(settings.agent, settings)
    if champion is None:
        raise NoChampionError(f"agent {settings.agent!r} has no champion yet: refresh it with --trigger bootstrap")
    base = KnowledgeBase(settings)
    now = base.resolve_time(None)
    rows = base.read_observations(base.window("current", now - period, now))
    answers = base.answers.probs(rows, str(champion.teacher.version))
    answered = ~np.isnan(answers[:, 0])
    rows, answers = rows[answered].reset_index(drop=True), answers[answered]
    probs = align_actions(champion.variant.predict_proba(rows), champion.variant.actions, settings.actions)
    columns = [rows[name].astype(object).where(rows[name].notna(), None) for name in settings.observations.texts]
    return find_new_answers(
        [join_texts(values) for values in zip(*columns, strict=True)],
        probs,
        answers.argmax(axis=1),
        settings.actions,
        _count_taught(base, champion, settings),
        threshold=_unsure_below(settings),
        min_rows=min_rows,
        out_of_scope=out_of_scope,
    )


def _count_taught(base: KnowledgeBase, champion: Champion, settings: AgentConfig) -> Counter[str]:
    """Rows that the champion learned from, by action: the label, or else the teacher's answer."""
    baseline = champion.baseline
    rows = base.join_labels(base.read_observations(baseline.train), baseline.train, baseline.as_of)
    answers = base.answers.probs(rows, str(champion.teacher.version))
    labels = rows["outcome"].to_numpy().copy()
    unlabelled = (labels < 0) & ~np.isnan(answers[:, 0])
    labels[unlabelled] = answers[unlabelled].argmax(axis=1)
    return Counter(settings.actions[label] for label in labels[labels >= 0].tolist())


def _unsure_below(settings: AgentConfig) -> float:
    cascade, status = settings.runtime.cascade, read_promise_status(settings)
    if status is not None:
        return 1.0 if status.threshold is None else status.threshold
    return _UNSURE if cascade is None or cascade.below is None else cascade.below
