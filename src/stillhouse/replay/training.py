"""Train one student on rows in memory, as a refresh does: cross-fitted teacher, distillation, no compression."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig, fit_defaults, leaves
from stillhouse.distill.split import mask_validation_rows, seconds_since_1970, split_validation
from stillhouse.distill.students import columns_of, new_student
from stillhouse.distill.train import distil, student_probabilities
from stillhouse.parts import HasTextEncoder, TextEncoderState
from stillhouse.records import short_id
from stillhouse.refreshing.data import build_training_set
from stillhouse.registry.foreign import ForeignModels
from stillhouse.teachers import ensemble
from stillhouse.teachers.answers import Allowance
from stillhouse.teachers.cross_fitting import CrossFit, cross_fit
from stillhouse.teachers.kinds import MemberContext, describe, open_member
from stillhouse.variant import encode

__all__ = ["Predict", "TrainedModel", "Trainer", "train_student"]

Array = np.ndarray[Any, Any]
Predict = Callable[[pd.DataFrame], Array]
"""Raw rows to probabilities ``[n, K]``."""


@dataclass(frozen=True)
class TrainedModel:
    """A student in memory."""

    predict: Predict
    rows: int


Trainer = Callable[[AgentConfig, pd.DataFrame, Array | None], TrainedModel]
"""Settings, labelled rows and what the teachers that do not learn said of them, to a model."""


def train_student(settings: AgentConfig, rows: pd.DataFrame, ready: Array | None) -> TrainedModel:
    """Train a student from random weights on labelled rows, with the probabilities of the agent's teachers.

    Every row is trained on or validates: there is no test window, because a replay scores each model on later rows.

    :param rows: labelled, by time, at least two.
    :param ready: probabilities ``[n, K]`` of the teachers that do not learn; None: all of them learn.
    """
    index = limit_rows(len(rows), settings.windows.max_train_rows)
    frame = rows.iloc[index].reset_index(drop=True)
    times = seconds_since_1970(frame["observed_at"])
    distillation = fit_defaults(settings.distillation, len(frame), times=times)
    settings = settings.model_copy(update={"distillation": distillation})
    cross_fits = CrossFit(settings, frame)
    probs = _teacher_probs(settings, frame, None if ready is None else ready[index], cross_fits)
    initial = _text_encoder(settings, cross_fits)
    validation = mask_validation_rows(frame["observed_at"], distillation)
    train = ~validation if validation.any() and not validation.all() else np.ones(len(frame), dtype=bool)
    columns = columns_of(settings, frame[train], initial)
    x, labels = encode(frame, columns), frame["outcome"].to_numpy()
    training_set = build_training_set(x[train], probs[train], labels[train], columns)
    student = new_student(settings, columns, x[train], initial)
    control = None
    usable = np.flatnonzero(~train & ~np.isnan(probs[:, 0]))
    if len(usable) > 1:
        clusters, newer = split_validation(frame["observed_at"].iloc[usable], settings.promotion.cluster)
        chosen = usable[newer]
        control = build_training_set(x[chosen], probs[chosen], labels[chosen], columns, cluster_ids=clusters[newer])
    distil(student, training_set, distillation, validation=control)
    return TrainedModel(lambda later: student_probabilities(student, encode(later, columns)), len(frame))


def limit_rows(count: int, max_rows: int | None) -> Array:
    """Indices of at most ``max_rows`` of ``count`` rows: the newest half, and a sample of the older ones."""
    if max_rows is None or count <= max_rows:
        return np.arange(count)
    newest = max_rows // 2
    older = np.random.default_rng(count).permutation(count - newest)[: max_rows - newest]
    return np.concatenate([np.sort(older), np.arange(count - newest, count)])


def open_ready_teachers(settings: AgentConfig) -> ensemble.Ensemble | None:
    """The teachers that do not learn, as one, their shares scaled to 1; None: all of them learn."""
    members, models = [], ForeignModels()
    with TemporaryDirectory() as folder:
        for leaf in leaves(settings.teachers):
            if not leaf.teacher.is_fitted:
                context = MemberContext(settings, leaf, Path(folder), models)
                members.append(open_member(leaf.teacher, context, describe(leaf.teacher, context)))
    return ensemble.Ensemble(settings, members, None, "ready") if members else None


def ask_ready_teachers(settings: AgentConfig, rows: pd.DataFrame) -> Array | None:
    """Probabilities ``[n, K]`` of the teachers that do not learn, summed with their shares; None: there are none."""
    teachers = open_ready_teachers(settings)
    if teachers is None:
        return None
    total = np.zeros((len(rows), len(settings.actions)))
    for member in teachers.members:
        total += member.share * member.answer(rows, Allowance()).probabilities
    return total


def _teacher_probs(settings: AgentConfig, rows: pd.DataFrame, ready: Array | None, cross_fits: CrossFit) -> Array:
    """The teachers' mean probabilities ``[n, K]`` of the share of rows that a refresh asks about; NaN elsewhere.

    Teachers that learn are cross-fitted, so none has seen the outcome of a row that it answers.

    :param ready: what :func:`ask_ready_teachers` gave for these rows.
    """
    seed = int(short_id(settings.agent, len(rows), settings.distillation.seed), 16) % 2**32
    mask = np.zeros(len(rows), dtype=bool)
    mask[np.random.default_rng(seed).permutation(len(rows))[: round(settings.asking.share * len(rows))]] = True
    probs = np.zeros((len(rows), len(settings.actions))) if ready is None else ready.copy()
    shares = {leaf.name: leaf.share for leaf in leaves(settings.teachers)}
    for name, answers in cross_fit(settings, rows, mask=mask, cross_fits=cross_fits).items():
        probs += shares[name] * answers
    probs[~mask] = np.nan
    return probs


def _text_encoder(settings: AgentConfig, cross_fits: CrossFit) -> TextEncoderState | None:
    """The text encoder of a teacher, if the student starts from its weights; one that does not learn comes first."""
    if not settings.student.initialised_by_teacher:
        return None
    ready = open_ready_teachers(settings)
    encoder = ready.text_encoder() if ready else None
    if encoder is not None:
        return encoder
    fitted = (teacher for _, teacher in cross_fits.fit_without(0))
    return next((teacher.text_encoder() for teacher in fitted if isinstance(teacher, HasTextEncoder)), None)
