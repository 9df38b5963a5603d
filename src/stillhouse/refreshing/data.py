"""The rows of one refresh, read, labelled and encoded once each. Every training set of a refresh is made here."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.agreement.audits import load_audit_draw
from stillhouse.config import AgentConfig, FittedDistillation, fit_defaults
from stillhouse.distill import students
from stillhouse.distill.augment import make_synthetic_rows
from stillhouse.distill.grow import Columns
from stillhouse.distill.split import mask_validation_rows, seconds_since_1970, split_validation
from stillhouse.distill.training_set import TrainingSet
from stillhouse.errors import WindowError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import TeacherRef, Window, Words
from stillhouse.teachers.cross_fitting import CrossFit
from stillhouse.teachers.ensemble import Ensemble
from stillhouse.variant import encode

__all__ = ["Array", "Columns", "Mask", "RefreshData", "TrainingRows", "build_training_set", "require_rows"]

Array = np.ndarray[Any, Any]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

LoadTeacher = Callable[[TeacherRef], Ensemble]

_MAX_CACHED_ENCODINGS = 2  # per window: the columns of the student, and those of a compressed student


class RefreshData:
    """The rows that a refresh may read: its training window, followed by its test window.

    :param base: the knowledge base.
    :param window: both windows together, at the table versions that the refresh reads.
    :param as_of: outcomes that became known later are ignored.
    :param test_start: where the test window begins; None: there is none, all rows may be trained on.
    :param raw: the window's observations as stored, also those in quarantine, if they have been read already.
    :param load_teacher: opens the teachers that students are taught by; None: no teacher overrules an outcome.
    """

    def __init__(
        self,
        base: KnowledgeBase,
        window: Window,
        as_of: datetime,
        test_start: datetime | None = None,
        raw: pd.DataFrame | None = None,
        load_teacher: LoadTeacher | None = None,
    ) -> None:
        self.base = base
        self.window = window
        self.as_of = as_of
        self.test_start = test_start or window.end
        self.load_teacher = load_teacher
        self._raw = raw
        self._training_rows: dict[tuple[datetime, datetime], TrainingRows] = {}
        self._labelled: dict[tuple[datetime, datetime], pd.DataFrame] = {}

    @property
    def raw(self) -> pd.DataFrame:
        """All observations of the window as stored, for the check of the data contract."""
        if self._raw is None:
            self._raw = self.base.read("observations", self.window)
        return self._raw

    def with_window(self, window: Window) -> RefreshData:
        """The same rows at the table versions of ``window``, without the rows quarantined there."""
        if window.model_copy(update={"name": self.window.name}) == self.window:
            return self
        same_rows = window.versions.get("observations") == self.window.versions.get("observations")
        raw = self._raw if same_rows else None
        return RefreshData(self.base, window, self.as_of, self.test_start, raw, self.load_teacher)

    @cached_property
    def rows(self) -> pd.DataFrame:
        """Observations not in quarantine, without duplicates, by time; ``outcome`` is an action index, −1: unknown."""
        return self.base.join_labels(self.base.drop_quarantined(self.raw, self.window), self.window, self.as_of)

    @cached_property
    def distillation(self) -> FittedDistillation:
        """The settings of the distillation; what the agent file leaves open is chosen by the rows to train on."""
        rows = self.rows[self.rows["observed_at"] < self.test_start]
        if not self.base.config.asking.without_outcomes:  # those with an answer only are not counted
            rows = rows[rows["outcome"] >= 0]
        times = seconds_since_1970(rows["observed_at"])
        count = min(len(rows), self.base.config.windows.max_train_rows or len(rows))
        return fit_defaults(self.base.config.distillation, count, times=times)

    @cached_property
    def settings(self) -> AgentConfig:
        """The agent file with :attr:`distillation`."""
        return self.base.config.model_copy(update={"distillation": self.distillation})

    def drop_raw(self) -> None:
        """Free the rows as stored, after the check of the data contract."""
        self.rows  # noqa: B018  # computed from the raw rows, and cached
        self._raw = None

    def read_observations(self, window: Window) -> pd.DataFrame:
        """The rows of ``window`` that are not in quarantine, with or without a label."""
        if not self.covers(window):
            return self.base.join_labels(self.base.read_observations(window), window, self.as_of)
        times = self.rows["observed_at"]
        return self.rows[(times >= window.start) & (times < window.end)].reset_index(drop=True)

    def covers(self, window: Window) -> bool:
        """Whether ``window`` lies within the window of these rows."""
        return self.window.start <= window.start and window.end <= self.window.end

    def read_labelled(self, window: Window) -> pd.DataFrame:
        """The rows of ``window`` with a known label; read from the tables if ``window`` lies elsewhere."""
        key = (window.start, window.end)
        if key not in self._labelled:
            rows = self.read_observations(window)
            self._labelled[key] = rows[rows["outcome"] >= 0].reset_index(drop=True)
        return self._labelled[key]

    def read_training_rows(self, window: Window) -> TrainingRows:
        """The rows of ``window`` that a student may be trained on; the same object at every call."""
        key = (window.start, window.end)
        if key not in self._training_rows:
            rows = self._limit_rows(window)
            self._training_rows[key] = TrainingRows(self.base, rows, window, self.settings, self.load_teacher)
        return self._training_rows[key]

    def _limit_rows(self, window: Window) -> pd.DataFrame:
        """Labelled rows up to ``windows.max_train_rows``, then unlabelled ones as far as there is room."""
        base, max_rows = self.base, self.base.config.windows.max_train_rows
        rows = self.read_observations(window)
        labelled = base.limit(rows[rows["outcome"] >= 0].reset_index(drop=True), max_rows)
        room = None if max_rows is None else max_rows - len(labelled)
        unlabelled = rows[rows["outcome"] < 0].reset_index(drop=True)
        if not base.config.asking.without_outcomes:
            if base.config.labels_are == "outcomes":
                return labelled
            unlabelled = unlabelled[base.answers.has_any(unlabelled)].reset_index(drop=True)
        if room == 0:
            return labelled
        unlabelled = base.limit(unlabelled, room)
        if unlabelled.empty:
            return labelled
        return pd.concat([labelled, unlabelled]).sort_values(["observed_at", "observation_id"], ignore_index=True)


class TrainingRows:
    """Rows to train and validate a student on, by time, with everything derived from them, computed once.

    :param frame: observations with ``outcome`` as action index, −1 if the label is unknown.
    :param settings: the agent file, with fitted defaults of the distillation.
    :param load_teacher: opens the teachers that students are taught by; None: no teacher overrules an outcome.
    """

    def __init__(
        self,
        base: KnowledgeBase,
        frame: pd.DataFrame,
        window: Window,
        settings: AgentConfig,
        load_teacher: LoadTeacher | None = None,
    ) -> None:
        self.base = base
        self.settings = settings
        self.frame = frame
        self.window = window
        self._load_teacher = load_teacher
        self._overruled: dict[str, Mask] = {}
        self._encodings: dict[str, Array] = {}
        self._teacher_probs: dict[str, Array] = {}

    def __len__(self) -> int:
        return len(self.frame)

    @cached_property
    def labels(self) -> Array:
        """Action indices, int64 ``[n]``; −1: unknown."""
        return self.frame["outcome"].to_numpy()

    @cached_property
    def has_label(self) -> Mask:
        """Which rows have a label, bool ``[n]``."""
        return self.labels >= 0

    @cached_property
    def is_validation(self) -> Mask:
        """Which rows lie in validation blocks, bool ``[n]``; no student is trained on them."""
        return mask_validation_rows(self.frame["observed_at"], self.settings.distillation)

    @cached_property
    def may_learn(self) -> Mask:
        """Which rows a student may learn from, bool ``[n]``: outside validation blocks, and not audited.

        Audited rows are those that the audit of ``runtime.cascade.agreement`` draws: they show how far students agree
        with the teacher that never learned from them.
        """
        cascade = self.base.config.runtime.cascade
        if cascade is None or cascade.promise is None:
            unaudited: Mask = ~self.is_validation
            return unaudited
        drawn = load_audit_draw().mask(self.frame["observation_id"].tolist(), cascade.audit)
        mask: Mask = ~self.is_validation & ~np.array(drawn, dtype=bool)
        return mask

    @cached_property
    def labelled(self) -> pd.DataFrame:
        """The rows with a label."""
        return self.frame[self.has_label].reset_index(drop=True)

    @cached_property
    def labelled_validation(self) -> pd.DataFrame:
        """The rows with a label on validation days."""
        return self.frame[self.has_label & self.is_validation].reset_index(drop=True)

    def teacher_probs(self, teacher: str) -> Array:
        """The stored probabilities of a teacher version, float64 ``[n, K]``; NaN where it has no answer.

        Read once; call :meth:`forget_teacher_probs` after the teacher has answered more rows.
        """
        if teacher not in self._teacher_probs:
            self._teacher_probs[teacher] = self.base.answers.probs(self.frame, teacher)
        return self._teacher_probs[teacher]

    def forget_teacher_probs(self) -> None:
        """Read the teacher probabilities again at the next call, because more rows are answered."""
        self._teacher_probs.clear()

    def has_teacher_probs(self, teacher: str) -> Mask:
        """Which rows that teacher version has answered, bool ``[n]``."""
        return ~np.isnan(self.teacher_probs(teacher)[:, 0])

    def is_overruled(self, teacher: TeacherRef) -> Mask:
        """Which rows have a label that the teacher says is of no use any more, bool ``[n]``."""
        if teacher.version not in self._overruled:
            loaded = self._load_teacher(teacher) if self._load_teacher else None
            none = np.zeros(len(self), dtype=bool)
            self._overruled[teacher.version] = none if loaded is None else loaded.overrules(self.frame)
        return self._overruled[teacher.version]

    def features(self, teacher: TeacherRef) -> Array | None:
        """The teacher's internal features of each row, ``[n, D]``; None if it has none."""
        return self.base.answers.features(self.frame, teacher.features) if teacher.features else None

    def encode_rows(self, columns: Columns) -> Array:
        """All rows as the input of a student with ``columns``, float32 ``[n, D]``."""
        key = json.dumps(list(columns))
        if key not in self._encodings:
            while len(self._encodings) >= _MAX_CACHED_ENCODINGS:
                self._encodings.pop(next(iter(self._encodings)))
            self._encodings[key] = encode(self.frame, columns)
        return self._encodings[key]

    @cached_property
    def cross_fit(self) -> CrossFit:
        """The fitted teachers, cross-fitted: for each time block, fitted once on all other blocks."""
        return CrossFit(self.settings, self.frame)

    @cached_property
    def synthetic_rows(self) -> pd.DataFrame:
        """Synthetic rows near labelled training rows, each within one cross-fitting block of the teacher."""
        has_train_label = self.has_label & self.may_learn
        time_blocks = self.cross_fit.time_blocks[has_train_label]
        return make_synthetic_rows(self.settings, self.frame[has_train_label], time_blocks)

    # ----------------------------------------------------------------- training sets

    def train_mask(self, teacher: TeacherRef) -> Mask:
        """Rows to learn from that have teacher probabilities, a label, or both, bool ``[n]``."""
        has_label = self.has_label & ~self.is_overruled(teacher)
        return (self.has_teacher_probs(teacher.version) | has_label) & self.may_learn

    def make_training_set(self, teacher: TeacherRef, columns: Columns, *, synthetic: bool = True) -> TrainingSet:
        """All rows to train on, followed by the synthetic rows that the teacher has answered.

        :param synthetic: whether to append the synthetic rows.
        """
        training_set = self.select_training_set(self.train_mask(teacher), teacher, columns)
        return self._with_synthetic(training_set, teacher, columns) if synthetic else training_set

    def make_validation_sets(
        self, teacher: TeacherRef, columns: Columns
    ) -> tuple[TrainingSet | None, TrainingSet | None]:
        """Labelled rows of validation days with teacher probabilities.

        :returns: the newer half for the controller, and the older half to compare students on; None for an empty half.
        """
        has_label = self.has_label & ~self.is_overruled(teacher)
        mask = self.is_validation & has_label & self.has_teacher_probs(teacher.version)
        if mask.sum() < 2:
            return None, None
        cluster_ids, newer = split_validation(self.frame["observed_at"][mask], self.settings.promotion.cluster)
        index = np.flatnonzero(mask)
        control, compare = (
            self.select_training_set(index[half], teacher, columns, cluster_ids=cluster_ids[half])
            if half.any()
            else None
            for half in (newer, ~newer)
        )
        return control, compare

    def select_training_set(
        self, index: Array, teacher: TeacherRef, columns: Columns, *, cluster_ids: Array | None = None
    ) -> TrainingSet:
        """Some rows with their teacher probabilities, labels and teacher features.

        :param index: a bool mask ``[n]``, or row indices.
        :param cluster_ids: integers, one per selected row; the losses of rows in one cluster are correlated.
        """
        features = self.features(teacher)
        return build_training_set(
            self.encode_rows(columns)[index],
            self.teacher_probs(teacher.version)[index],
            np.where(self.is_overruled(teacher), -1, self.labels)[index],
            columns,
            features=None if features is None else features[index],
            cluster_ids=cluster_ids,
        )

    def _with_synthetic(self, training_set: TrainingSet, teacher: TeacherRef, columns: Columns) -> TrainingSet:
        probs = self.base.answers.probs(self.synthetic_rows, teacher.version)
        answered = ~np.isnan(probs[:, 0])
        if not answered.any():
            return training_set
        rows = self.synthetic_rows[answered]
        features = self.base.answers.features(rows, teacher.features) if teacher.features else None
        no_labels = np.full(len(rows), -1)
        x = encode(rows, columns)
        return training_set.append(build_training_set(x, probs[answered], no_labels, columns, features=features))


def build_training_set(
    x: Array,
    teacher_probs: Array,
    labels: Array,
    columns: Columns,
    *,
    features: Array | None = None,
    cluster_ids: Array | None = None,
) -> TrainingSet:
    """A training set of rows that are already encoded with ``columns``, ``[n, D]``.

    >>> x, columns = np.zeros((2, 1), np.float32), [{"name": "delay", "type": "number"}]
    >>> training_set = build_training_set(x, np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, -1]), columns)
    >>> training_set.has_label.tolist()
    [True, False]
    """
    widths = students.input_widths(columns)
    return TrainingSet(x, teacher_probs, labels, widths.numbers, features, cluster_ids, tokens=widths.tokens)


def require_rows(rows: int, min_rows: int, window: Window, words: Words) -> None:
    """:raises WindowError: if ``window`` has fewer than ``min_rows`` labelled rows."""
    if rows < min_rows:
        raise WindowError(
            f"{window} has {rows} rows with known {words.labels}, and {min_rows} are needed: wait for more, "
            f"or lengthen `windows.{window.name}` in the agent file"
        )
