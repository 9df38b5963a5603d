"""A student made small: what is compressed, what smaller forms are judged on, and where the search begins."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from stillhouse.compress.search.greedy import search
from stillhouse.compress.search.validation_rows import ValidationRows, find_new_actions, select_validation_rows
from stillhouse.compress.target import CompressionTarget, ModelState
from stillhouse.compress.variants import target_from_student, variant_writer
from stillhouse.config import Recipe
from stillhouse.distill import students
from stillhouse.distill.grow import Columns
from stillhouse.distill.train import distil
from stillhouse.distill.training_set import TrainingSet
from stillhouse.evaluate.scorecard import quality
from stillhouse.records import Frontier, Refresh, SizeLimits, StudentRef, TeacherRef
from stillhouse.refreshing.data import Array
from stillhouse.refreshing.session import Session, session_of
from stillhouse.refreshing.students import course_of, student_columns
from stillhouse.registry import names

__all__ = ["RecoverySets", "compress_student", "compression_run", "last_frontier", "training_recovery_sets"]

log = logging.getLogger(__name__)


RecoverySets = Callable[[Session, TeacherRef, StudentRef, Columns], tuple[TrainingSet, TrainingSet | None]]
"""What a smaller form is recovered on, encoded with its columns, and validation rows for its controller."""


def compress_student(
    session: Session, teacher: TeacherRef, student: StudentRef, recovery_sets: RecoverySets
) -> Frontier:
    """The student in many smaller forms, made and measured here, and the one that fits the budgets best.

    :param recovery_sets: picklable, as are the records: worker processes make the subject themselves.
    """
    job, settings = session.job, session.settings
    return search(
        functools.partial(_target, job, teacher, student, recovery_sets),
        settings.compression,
        SizeLimits(**settings.budgets.model_dump(include=set(SizeLimits.model_fields))),
        variant_writer(job.agent, settings.actions, {"refresh": job.refresh_id, "teacher": teacher.version}),
        Path(job.folder) / "compression",
        initial_recipes=_recipes_to_begin_with(session),
        on_candidate=lambda candidate: log.info("%s", candidate),
    )


def compression_run(session: Session) -> str | None:
    """The refresh run in which the champion was compressed; None without a champion."""
    if session.champion is None:
        return None
    run_id = session.registry.models.tags(session.champion.model)["refresh_run"]
    return session.registry.runs.tags(run_id).get("recalibrates", run_id)


def last_frontier(session: Session) -> Frontier | None:
    """What the search found in which the champion was made."""
    run_id = compression_run(session)
    return session.registry.runs.read_record(run_id, names.FRONTIER, Frontier) if run_id else None


def training_recovery_sets(
    session: Session, teacher: TeacherRef, student: StudentRef, columns: Columns
) -> tuple[TrainingSet, TrainingSet | None]:
    """What a student of the whole window has learned from, and the newer half of its validation rows."""
    rows = session.training
    lesson = rows.training_set(teacher, columns, synthetic=course_of(student).synthetic_rows_helped)
    return lesson, rows.validation_sets(teacher, columns)[0]


# --------------------------------------------------------------------------- inside


def _recipes_to_begin_with(session: Session) -> list[Recipe]:
    """The champion's recipe and, after it, those that nothing beat when it was made."""
    frontier = last_frontier(session)
    if frontier is None:
        return []
    recipes = dict.fromkeys([frontier.chosen, *frontier.best])
    return [TypeAdapter(Recipe).validate_python(frontier.named(name).recipe) for name in recipes]


def _target(job: Refresh, teacher: TeacherRef, student: StudentRef, recovery_sets: RecoverySets) -> CompressionTarget:
    """The student as the subject of compression: recovered on what it learned from, judged on the validation days.

    What has just arrived must hold by itself: the newest of these days, and rows of actions that are new.
    """
    session = session_of(job)
    settings, rows = session.settings, session.training
    learned = np.flatnonzero(~rows.validation)
    validation = np.flatnonzero(rows.validation & rows.has_label)
    arrived = _judged_rows(session, teacher, learned, validation)
    judged = np.concatenate([validation, learned[arrived.training_index]])

    def score(probs: Array, labels: Array) -> float:
        return quality(probs, labels).score

    def recover(state: ModelState, epochs: int) -> ModelState:
        assert state.columns is not None  # a student has them
        lesson, control = recovery_sets(session, teacher, student, _plain(state.columns))
        distil(state.module, lesson, settings.distillation, validation=control, epochs=epochs)
        return state

    measure = (
        "AUC"
        if len(settings.actions) == 2 and len(np.unique(rows.labels[validation])) > 1
        else "share of right decisions"
    )
    return target_from_student(
        students.load(Path(student.folder), settings),
        student_columns(student),
        settings.actions,
        calibration=lambda columns: rows.encoded(_plain(columns))[learned],
        validation=lambda columns: rows.encoded(_plain(columns))[judged],
        quality=arrived.make_quality(score),
        slices=arrived.make_slices(score),
        recover=recover,
        quality_name=measure,
        content_hash=f"{session.refresh_id} {teacher.version}",
    )


def _judged_rows(session: Session, teacher: TeacherRef, learned: Array, validation: Array) -> ValidationRows:
    """The validation rows, and rows of new actions; the teacher's answer stands in for a label that is not known."""
    rows, champion = session.training, session.champion
    actions = session.settings.actions
    since, unknown = None, set[int]()
    if champion is not None:
        since = pd.Timestamp(champion.baseline.train.end)
        unknown = {index for index, action in enumerate(actions) if action not in champion.actions}
    probs, labels = rows.teacher_probs(teacher.version)[learned], rows.labels[learned].copy()
    by_teacher = (labels < 0) & ~np.isnan(probs[:, 0])
    labels[by_teacher] = probs[by_teacher].argmax(axis=1)
    times = _moments(rows.frame["observed_at"])
    new = find_new_actions(
        np.concatenate([times[validation], times[learned]]),
        np.concatenate([rows.labels[validation], labels]),
        None if since is None else _moments(pd.Series([since]))[0],
        unknown,
    )
    return select_validation_rows(times[validation], rows.labels[validation], times[learned], labels, new, actions)


def _plain(columns: Any) -> list[dict[str, Any]]:
    """Columns as a form has them: it may read fewer of them, or fewer tokens."""
    return [dict(column) for column in columns]


def _moments(times: pd.Series) -> Array:
    """Moments as datetime64 in UTC, ``[n]``."""
    return pd.to_datetime(times, utc=True).dt.tz_localize(None).to_numpy().astype("datetime64[us]")
