"""Compress a student: the compression target, its validation rows, and the initial recipes of the search."""

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
from stillhouse.quality import get_measure
from stillhouse.records import Frontier, Refresh, SizeLimits, StudentRef, TeacherRef
from stillhouse.refreshing.data import Array
from stillhouse.refreshing.session import Session, get_session
from stillhouse.refreshing.students import read_columns, read_history
from stillhouse.registry import names
from stillhouse.shown import escape_line
from stillhouse.stats import replace_non_finite

__all__ = [
    "RecoverySetBuilder",
    "compress_student",
    "find_compression_run",
    "make_training_recovery_sets",
    "read_last_frontier",
]

log = logging.getLogger(__name__)


RecoverySetBuilder = Callable[[Session, TeacherRef, StudentRef, Columns], tuple[TrainingSet, TrainingSet | None]]
"""Makes the training set on which a compressed student is recovered, and validation rows for its controller.

The columns are those of the compressed student, which may read fewer columns or tokens."""


def compress_student(
    session: Session,
    teacher: TeacherRef,
    student: StudentRef,
    make_recovery_sets: RecoverySetBuilder,
    *,
    recipe: Recipe | None = None,
    folder: str = "compression",
) -> Frontier:
    """Search compressed variants of the student, measure each here, and choose the one that fits the budgets best.

    :param make_recovery_sets: picklable, as are the records: worker processes make the compression target themselves.
    :param recipe: the only one to build beside the float32 reference; None: search.
    :param folder: below the folder of the refresh.
    """
    job, settings = session.job, session.settings
    only = {} if recipe is None else {"recipes": (recipe,), "search": None}
    frontier = search(
        functools.partial(_make_target, job, teacher, student, make_recovery_sets),
        settings.compression.model_copy(update=only),
        SizeLimits(**settings.budgets.model_dump(include=set(SizeLimits.model_fields))),
        variant_writer(job.agent, settings.actions, {"refresh": job.refresh_id, "teacher": teacher.version}),
        Path(job.folder) / folder,
        initial_recipes=_read_initial_recipes(session) if recipe is None else (),
        on_candidate=lambda candidate: log.info("candidate %s", candidate),
    )
    log.info("%s candidates, %s is chosen: %s", len(frontier.candidates), frontier.chosen, escape_line(frontier.why))
    return frontier


def find_compression_run(session: Session) -> str | None:
    """The MLflow run of the refresh that compressed the champion; None without a champion."""
    if session.champion is None:
        return None
    run_id = session.registry.models.tags(session.champion.model)["refresh_run"]
    return session.registry.runs.tags(run_id).get("recalibrates", run_id)


def read_last_frontier(session: Session) -> Frontier | None:
    """The result of the search that made the champion; None without a champion."""
    run_id = find_compression_run(session)
    return session.registry.runs.read_record(run_id, names.FRONTIER, Frontier) if run_id else None


def make_training_recovery_sets(
    session: Session, teacher: TeacherRef, student: StudentRef, columns: Columns
) -> tuple[TrainingSet, TrainingSet | None]:
    """The training set of a student of the whole window, and the newer half of its validation rows."""
    rows = session.training_rows
    training_set = rows.make_training_set(teacher, columns, synthetic=read_history(student).synthetic_rows_helped)
    return training_set, rows.make_validation_sets(teacher, columns)[0]


# --------------------------------------------------------------------------- inside


def _read_initial_recipes(session: Session) -> list[Recipe]:
    """The champion's recipe, then the other recipes on the Pareto front of its search; empty without a champion."""
    frontier = read_last_frontier(session)
    if frontier is None:
        return []
    recipes = dict.fromkeys([frontier.chosen, *frontier.best])
    return [TypeAdapter(Recipe).validate_python(frontier.named(name).recipe) for name in recipes]


def _make_target(
    job: Refresh, teacher: TeacherRef, student: StudentRef, make_recovery_sets: RecoverySetBuilder
) -> CompressionTarget:
    """The student as the compression target: recovered on its training set, measured on the validation days.

    The newest validation days and the rows of new actions also form slices of their own, so that a loss there shows.
    """
    session = get_session(job)
    settings, rows = session.settings, session.training_rows
    train_index = np.flatnonzero(rows.may_learn)
    validation_index = np.flatnonzero(rows.is_validation & rows.has_label)
    validation_rows = _select_validation_rows(session, teacher, train_index, validation_index)
    measured_index = np.concatenate([validation_index, train_index[validation_rows.training_index]])

    measured_rows = rows.frame.iloc[measured_index]
    measure = get_measure(settings).for_labels(rows.labels[validation_index], len(settings.actions))

    def score(probs: Array, index: Array) -> float:
        labels = validation_rows.labels[index]
        defined = measure.for_labels(labels, probs.shape[1])
        return defined.points(replace_non_finite(probs, labels), labels, measured_rows.iloc[index])

    def recover(state: ModelState, epochs: int) -> ModelState:
        assert state.columns is not None  # as for every student
        training_set, validation = make_recovery_sets(session, teacher, student, _to_dicts(state.columns))
        distil(state.module, training_set, session.distillation, validation=validation, epochs=epochs)
        return state

    return target_from_student(
        students.load(Path(student.folder), settings),
        read_columns(student),
        settings.actions,
        calibration=lambda columns: rows.encode_rows(_to_dicts(columns))[train_index],
        validation=lambda columns: rows.encode_rows(_to_dicts(columns))[measured_index],
        quality=validation_rows.make_quality(score),
        slices=validation_rows.make_slices(score),
        recover=recover,
        quality_name=measure.points_title,
        content_hash=f"{session.refresh_id} {teacher.version}",
    )


def _select_validation_rows(
    session: Session, teacher: TeacherRef, train_index: Array, validation_index: Array
) -> ValidationRows:
    """The validation rows and the rows of new actions; a missing label is replaced by the teacher's answer."""
    rows, champion = session.training_rows, session.champion
    actions = session.settings.actions
    since, new_actions = None, set[int]()
    if champion is not None:
        since = pd.Timestamp(champion.baseline.train.end)
        new_actions = {index for index, action in enumerate(actions) if action not in champion.actions}
    probs, labels = rows.teacher_probs(teacher.version)[train_index], rows.labels[train_index].copy()
    teacher_only = (labels < 0) & ~np.isnan(probs[:, 0])
    labels[teacher_only] = probs[teacher_only].argmax(axis=1)
    times = _to_utc_array(rows.frame["observed_at"])
    is_new = find_new_actions(
        np.concatenate([times[validation_index], times[train_index]]),
        np.concatenate([rows.labels[validation_index], labels]),
        None if since is None else _to_utc_array(pd.Series([since]))[0],
        new_actions,
    )
    return select_validation_rows(
        times[validation_index], rows.labels[validation_index], times[train_index], labels, is_new, actions
    )


def _to_dicts(columns: Any) -> list[dict[str, Any]]:
    """The columns of a model state as plain dictionaries."""
    return [dict(column) for column in columns]


def _to_utc_array(times: pd.Series) -> Array:
    """Times as datetime64 in UTC, ``[n]``."""
    return pd.to_datetime(times, utc=True).dt.tz_localize(None).to_numpy().astype("datetime64[us]")
