"""The promised agreement of a challenger: its thresholds, from blind rows of the test window, and its novelty guard.

Both are files of the chosen variant's folder, so they are signed with it, and every machine that decides with it has
them: it begins with the coverage that the test window has proved.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from stillhouse.actions import align_actions
from stillhouse.agreement import NoveltyGuard, PromiseKeeper
from stillhouse.agreement.audits import load_audit_draw
from stillhouse.agreement.describe import describe_promise
from stillhouse.config import AgentConfig
from stillhouse.files import write_atomic
from stillhouse.records import Frontier, TeacherRef
from stillhouse.refreshing.data import Mask
from stillhouse.refreshing.modes import get_mode
from stillhouse.refreshing.session import Session
from stillhouse.runtime.promise import NOVELTY_FILE, PROMISE_FILE, join_texts
from stillhouse.variant import Variant

__all__ = ["write_promise"]

log = logging.getLogger(__name__)

_MIN_ANSWERED = 0.99
"""Share of the rows of an examination that the teacher must have answered; else it is not known why others lack."""


def write_promise(session: Session, teacher: TeacherRef, frontier: Frontier) -> None:
    """Fit the promise of the agent file for the chosen variant, and write it into its folder; nothing without one.

    Repeated, it writes the same files.
    """
    cascade = session.settings.runtime.cascade
    promise = None if cascade is None else cascade.promise
    if cascade is None or promise is None:
        return
    folder = Path(frontier.named(frontier.chosen).folder)
    variant, settings = Variant(folder), session.settings
    rows = session.data.read_labelled(session.job.test)
    guard = _make_guard(session, rows)
    if guard is not None:
        guard.save(folder / NOVELTY_FILE)
    answers = session.base.answers.probs(rows, teacher.version)
    blind = _find_blind_rows(session, teacher, rows, ~np.isnan(answers[:, 0]), cascade.audit)
    rows, answers = rows[blind].reset_index(drop=True), answers[blind]
    keeper = PromiseKeeper(promise, novelty_limit=None if guard is None else guard.limit)
    if len(rows):
        probs = align_actions(variant.predict_proba(rows), variant.actions, settings.actions)
        novelties = None if guard is None else [guard.score(text) for text in _texts(rows, settings)]
        confidences = np.clip(probs.max(axis=1), 0.0, 1.0)
        keeper.fit(confidences, probs.argmax(axis=1) == answers.argmax(axis=1), novelties)
    write_atomic(folder / PROMISE_FILE, keeper.state.model_dump_json(), mode=0o644)
    log.info("promise: %s", describe_promise(keeper, frontier.chosen).why)


def _find_blind_rows(session: Session, teacher: TeacherRef, rows: pd.DataFrame, answered: Mask, share: float) -> Mask:
    """The rows of the test window that the teacher was asked about without regard to what a champion said.

    The examination asks about all of them, or about a sample by content; the answers of rows that a champion deferred
    are among them as they are among all rows. If the teacher has left some out, only those drawn for the audit count.
    """
    examined = np.ones(len(rows), dtype=bool)
    if not all(member.version is None for member in session.load_teacher(teacher).members):
        keys = rows["content_key"].sort_values().head(session.settings.teaching.rows)
        examined = rows.index.isin(keys.index)
    if examined.any() and answered[examined].mean() >= _MIN_ANSWERED:
        blind: Mask = examined & answered
        return blind
    return answered & np.array(load_audit_draw().mask(rows["observation_id"].tolist(), share), dtype=bool)


def _make_guard(session: Session, test: pd.DataFrame) -> NoveltyGuard | None:
    """The guard of the texts that the student learned from, calibrated on held-out ones; None for an agent without."""
    settings = session.settings
    if not settings.observations.texts:
        return None
    champion = session.champion
    if not get_mode(session.job).trains and champion is not None:
        try:
            return NoveltyGuard.load(Path(champion.folder) / NOVELTY_FILE)
        except (OSError, ValueError):
            pass  # a champion from before the promise: the guard is made from the present rows
    training = session.training_rows
    learned = training.frame[~training.is_validation]
    held_out = pd.concat([training.frame[training.is_validation], test], ignore_index=True)
    return NoveltyGuard.learn(_texts(learned, settings)).calibrate(list(_texts(held_out, settings)))


def _texts(rows: pd.DataFrame, settings: AgentConfig) -> Iterator[str]:
    columns = [rows[name].astype(object).where(rows[name].notna(), None) for name in settings.observations.texts]
    return (join_texts(values) for values in zip(*columns, strict=True))
