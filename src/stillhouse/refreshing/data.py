"""The rows of one refresh, read, labelled and encoded once each: the only place that makes a training set."""

from __future__ import annotations

import json
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig
from stillhouse.distill import students
from stillhouse.distill.augment import make_synthetic_rows
from stillhouse.distill.grow import Columns
from stillhouse.distill.split import split_validation, validation_days
from stillhouse.distill.training_set import TrainingSet
from stillhouse.errors import WindowError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import TeacherRef, Window
from stillhouse.teachers.cross_fitting import CrossFit
from stillhouse.variant import encode

__all__ = ["Array", "Columns", "LearningRows", "Mask", "RefreshData", "lesson_of", "require_rows"]

Array = np.ndarray[Any, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

_ENCODINGS_KEPT = 2  # of one table of rows: the student's columns, and those of a smaller form of it


class RefreshData:
    """What a refresh may look at: the rows of its training window and, after them, of its test window.

    :param base: the knowledge base.
    :param window: both windows together, at the table versions that the refresh reads.
    :param as_of: outcomes that became known later do not count.
    :param raw: the window's observations where somebody has read them already, those in quarantine too.
    """

    def __init__(self, base: KnowledgeBase, window: Window, as_of: datetime, raw: pd.DataFrame | None = None) -> None:
        self.base = base
        self.window = window
        self.as_of = as_of
        self._raw = raw
        self._learning: dict[tuple[datetime, datetime], LearningRows] = {}
        self._labelled: dict[tuple[datetime, datetime], pd.DataFrame] = {}

    @property
    def raw(self) -> pd.DataFrame:
        """Every observation of the window as stored: what the data contract is asked about."""
        if self._raw is None:
            self._raw = self.base.read("observations", self.window)
        return self._raw

    def at(self, window: Window) -> RefreshData:
        """The same rows without those that were quarantined by the table version that ``window`` names."""
        if window.model_copy(update={"name": self.window.name}) == self.window:
            return self
        same = window.versions.get("observations") == self.window.versions.get("observations")
        return RefreshData(self.base, window, self.as_of, self._raw if same else None)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Sound observations, each once, by time and id, with ``outcome`` as action index; −1: not known by then."""
        return self.base.join_labels(self.base.drop_quarantined(self.raw, self.window), self.window, self.as_of)

    def drop_raw(self) -> None:
        """Let go of the rows as stored, once the contract has been asked about them."""
        self.rows  # noqa: B018  # made of them
        self._raw = None

    def observations(self, window: Window) -> pd.DataFrame:
        """The sound rows of a part of the window, with or without a label."""
        if not self.covers(window):
            return self.base.join_labels(self.base.read_observations(window), window, self.as_of)
        times = self.rows["observed_at"]
        return self.rows[(times >= window.start) & (times < window.end)].reset_index(drop=True)

    def covers(self, window: Window) -> bool:
        """Whether all of ``window`` is here."""
        return self.window.start <= window.start and window.end <= self.window.end

    def labelled(self, window: Window) -> pd.DataFrame:
        """The rows of ``window`` whose label was known; of one that lies elsewhere they are read from Delta."""
        key = (window.start, window.end)
        if key not in self._labelled:
            rows = self.observations(window)
            self._labelled[key] = rows[rows["outcome"] >= 0].reset_index(drop=True)
        return self._labelled[key]

    def learning(self, window: Window) -> LearningRows:
        """What a student may learn from in ``window``: the same table however often it is asked for."""
        key = (window.start, window.end)
        if key not in self._learning:
            self._learning[key] = LearningRows(self.base, self._thinned(window), window)
        return self._learning[key]

    def _thinned(self, window: Window) -> pd.DataFrame:
        """Labelled rows up to ``windows.max_train_rows``, then unlabelled ones as far as there is room."""
        base, most = self.base, self.base.config.windows.max_train_rows
        rows = self.observations(window)
        labelled = base.limit(rows[rows["outcome"] >= 0].reset_index(drop=True), most)
        room = None if most is None else most - len(labelled)
        if not base.config.asking.without_outcomes or room == 0:
            return labelled
        others = base.limit(rows[rows["outcome"] < 0].reset_index(drop=True), room)
        if others.empty:
            return labelled
        return pd.concat([labelled, others]).sort_values(["observed_at", "observation_id"], ignore_index=True)


class LearningRows:
    """Rows that a student may learn from, in order of time, with all that is made of them; each thing once.

    :param frame: observations with ``outcome`` as action index, −1 where the label is not known.
    """

    def __init__(self, base: KnowledgeBase, frame: pd.DataFrame, window: Window) -> None:
        self.base = base
        self.settings: AgentConfig = base.config
        self.frame = frame
        self.window = window
        self._encodings: dict[str, Array] = {}
        self._teacher_probs: dict[str, Array] = {}

    def __len__(self) -> int:
        return len(self.frame)

    @cached_property
    def labels(self) -> Array:
        """Action indices, int64 ``[n]``; −1: not known."""
        return self.frame["outcome"].to_numpy()

    @cached_property
    def has_label(self) -> Mask:
        """Which rows have a label."""
        return self.labels >= 0

    @cached_property
    def validation(self) -> Mask:
        """Rows of the days that nobody learns from."""
        return validation_days(self.frame["observed_at"], self.settings.distillation.validation_every)

    @cached_property
    def labelled(self) -> pd.DataFrame:
        """The rows with a label."""
        return self.frame[self.has_label].reset_index(drop=True)

    @cached_property
    def labelled_validation(self) -> pd.DataFrame:
        """Those of them that lie on validation days."""
        return self.frame[self.has_label & self.validation].reset_index(drop=True)

    def teacher_probs(self, teacher: str) -> Array:
        """What a version of the teacher has answered, float64 ``[n, K]``; NaN where it was not asked.

        Looked up once; :meth:`forget_teacher_probs` after somebody has asked.
        """
        if teacher not in self._teacher_probs:
            self._teacher_probs[teacher] = self.base.answers.probs(self.frame, teacher)
        return self._teacher_probs[teacher]

    def forget_teacher_probs(self) -> None:
        """Look them up again: there are more answers now."""
        self._teacher_probs.clear()

    def has_teacher_probs(self, teacher: str) -> Mask:
        """Which rows that version has answered."""
        return ~np.isnan(self.teacher_probs(teacher)[:, 0])

    def features(self, teacher: TeacherRef) -> Array | None:
        """What the teacher makes of each row inside, ``[n, D]``; None where it has no features."""
        return self.base.answers.features(self.frame, teacher.features) if teacher.features else None

    def encoded(self, columns: Columns) -> Array:
        """All rows as the student reads them, float32 ``[n, D]``."""
        key = json.dumps(list(columns))
        if key not in self._encodings:
            while len(self._encodings) >= _ENCODINGS_KEPT:
                self._encodings.pop(next(iter(self._encodings)))
            self._encodings[key] = encode(self.frame, columns)
        return self._encodings[key]

    @cached_property
    def cross_fit(self) -> CrossFit:
        """The teachers that learn, fitted once on all time blocks of these rows but one, for each block."""
        return CrossFit(self.settings, self.frame)

    @cached_property
    def synthetic(self) -> pd.DataFrame:
        """Rows made up near the labelled ones outside validation days, within the teacher's cross-fitting blocks."""
        learned = self.has_label & ~self.validation
        return make_synthetic_rows(self.settings, self.frame[learned], self.cross_fit.blocks[learned])

    # ----------------------------------------------------------------- training sets

    def to_train_on(self, teacher: TeacherRef) -> Mask:
        """Rows apart from validation days that have teacher probabilities, a label, or both."""
        return (self.has_teacher_probs(teacher.version) | self.has_label) & ~self.validation

    def training_set(self, teacher: TeacherRef, columns: Columns, *, synthetic: bool = True) -> TrainingSet:
        """All rows to train on, and the synthetic ones that the teacher has answered after them."""
        lesson = self.lesson(self.to_train_on(teacher), teacher, columns)
        return self._with_synthetic(lesson, teacher, columns) if synthetic else lesson

    def validation_sets(self, teacher: TeacherRef, columns: Columns) -> tuple[TrainingSet | None, TrainingSet | None]:
        """Labelled rows of validation days with teacher probabilities.

        The newer half of them is for the controller, the older one to compare students on; None where there is none.
        """
        chosen = self.validation & self.has_label & self.has_teacher_probs(teacher.version)
        if chosen.sum() < 2:
            return None, None
        groups, newer = split_validation(self.frame["observed_at"][chosen], self.settings.promotion.cluster)
        index = np.flatnonzero(chosen)
        control, compare = (
            self.lesson(index[half], teacher, columns, groups=groups[half]) if half.any() else None
            for half in (newer, ~newer)
        )
        return control, compare

    def lesson(
        self, chosen: Array, teacher: TeacherRef, columns: Columns, *, groups: Array | None = None
    ) -> TrainingSet:
        """Some rows with their teacher probabilities, labels and teacher features.

        :param chosen: bool ``[n]``, or positions.
        :param groups: integers, one a chosen row; rows of one group share what chance did to them.
        """
        features = self.features(teacher)
        return lesson_of(
            self.encoded(columns)[chosen],
            self.teacher_probs(teacher.version)[chosen],
            self.labels[chosen],
            columns,
            features=None if features is None else features[chosen],
            groups=groups,
        )

    def _with_synthetic(self, lesson: TrainingSet, teacher: TeacherRef, columns: Columns) -> TrainingSet:
        probs = self.base.answers.probs(self.synthetic, teacher.version)
        answered = ~np.isnan(probs[:, 0])
        if not answered.any():
            return lesson
        rows = self.synthetic[answered]
        features = self.base.answers.features(rows, teacher.features) if teacher.features else None
        no_labels = np.full(len(rows), -1)
        x = encode(rows, columns)
        return lesson.plus(lesson_of(x, probs[answered], no_labels, columns, features=features))


def lesson_of(
    x: Array,
    teacher_probs: Array,
    labels: Array,
    columns: Columns,
    *,
    features: Array | None = None,
    groups: Array | None = None,
) -> TrainingSet:
    """A training set of rows that are encoded already, ``[n, D]``, with ``columns``."""
    widths = students.input_widths(columns)
    return TrainingSet(x, teacher_probs, labels, widths.numbers, features, groups, tokens=widths.tokens)


def require_rows(rows: int, least: int, window: Window) -> None:
    """:raises WindowError: if ``window`` has fewer than ``least`` labelled rows."""
    if rows < least:
        raise WindowError(
            f"{window} has {rows} rows with known outcomes, and {least} are needed: wait for more, "
            f"or lengthen `windows.{window.name}` in the agent file"
        )
