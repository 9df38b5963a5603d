"""Which rows a refresh learns from, and which of them it asks the teachers about."""

from __future__ import annotations

import json
from datetime import datetime
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd

from stillhouse import config
from stillhouse.distill import select
from stillhouse.distill.train import validation_days
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import Refresh, Window, short_id
from stillhouse.registry import Registry
from stillhouse.teachers.asking import Account
from stillhouse.teachers.ensemble import Ensemble
from stillhouse.variant import Variant
from tasks.common import registry, training_rows

__all__ = ["learning_rows", "questions"]


def learning_rows(base: KnowledgeBase, window: Window, known_by: datetime) -> pd.DataFrame:
    """:func:`training_rows`, and the rows whose outcome is not known (−1) as far as there is room, in time's order."""
    rows = training_rows(base, window, known_by)
    most = base.config.windows.max_train_rows
    room = None if most is None else most - len(rows)
    if not base.config.asking.without_outcomes or room == 0:
        return rows
    others = _unlabelled(base.root, base.config.agent, window.model_dump_json(exclude={"name"}), known_by, room)
    if others.empty:
        return rows
    return pd.concat([rows, others]).sort_values(["observed_at", "observation_id"], ignore_index=True)


@lru_cache(maxsize=2)
def _unlabelled(root: Path, agent: str, window: str, known_by: datetime, room: int | None) -> pd.DataFrame:
    base = KnowledgeBase(config.load(agent), root)
    pinned = Window.model_validate({"name": "pinned", **json.loads(window)})
    return base.thin(base.unlabelled(pinned, known_by), room)


def questions(
    job: Refresh, base: KnowledgeBase, teacher: Ensemble, rows: pd.DataFrame, account: Account
) -> tuple[np.ndarray, bool]:
    """Which ``rows`` are to be known after asking, bool ``[n]``, and whether the budget allows fewer than were wanted.

    The selection is kept before anybody is asked: a run that goes on asks about the same rows.
    """
    settings = base.config.asking
    known = ~np.isnan(base.knowledge(rows, teacher.version)[:, 0])
    wanted = round(settings.share * len(rows))
    kept = base.questions(job.refresh_id, teacher.version)
    if kept is not None:
        return rows["observation_id"].isin(kept["observation_id"]).to_numpy(), len(kept) < wanted
    size = int(known.sum()) + account.affordable(teacher, max(0, wanted - int(known.sum())))
    if size >= len(rows):
        return np.ones(len(rows), dtype=bool), False
    said = _students_say(registry(job.agent), rows)
    selection = select.plan(
        size,
        known=known,
        kept_back=validation_days(rows["observed_at"], base.config.distillation.validation_every),
        scores=select.scores(settings.by, said),
        alike=_alike(base, rows, said) if "diversity" in settings.by else None,
        uniform_share=settings.uniform_share,
        seed=int(short_id(job.refresh_id, teacher.version), 16),
    )
    base.append_questions(
        rows.iloc[selection.rows], selection.probability[selection.rows], known[selection.rows],
        job=job.refresh_id, teacher=teacher.version,
    )  # fmt: skip
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[selection.rows] = True
    return chosen, size < wanted


def _students_say(models: Registry, rows: pd.DataFrame) -> list[np.ndarray]:
    """What the champion says about ``rows``, and its predecessor, as far as there are such."""
    snapshots = [each for each in (models.champion(), models.previous()) if each is not None]
    return [Variant(models.fetch(each)).predict_proba(rows) for each in snapshots]


def _alike(base: KnowledgeBase, rows: pd.DataFrame, said: list[np.ndarray]) -> np.ndarray | None:
    numbers = rows[list(base.config.observations.numbers)].to_numpy(dtype=np.float64)
    return select.space(numbers, said[0] if said else None)
