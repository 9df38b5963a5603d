"""Update: fine-tune the champion's student on new rows, with a replay buffer against forgetting."""

from __future__ import annotations

import logging
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from stillhouse.distill import online
from stillhouse.distill.grow import Columns, extend_columns, require_same_architecture
from stillhouse.distill.history import TrainingHistory
from stillhouse.distill.memory import sample_memory
from stillhouse.distill.online import UpdateProbe, UpdateResult
from stillhouse.distill.split import mask_validation_rows, split_validation
from stillhouse.distill.students import columns_of, new_student
from stillhouse.distill.train import student_probabilities
from stillhouse.distill.training_set import TrainingSet
from stillhouse.drift.evidence import estimate_null_mean
from stillhouse.errors import DataError
from stillhouse.records import Record, Refresh, StudentRef, TeacherRef, Window
from stillhouse.refreshing.data import TrainingRows, build_training_set
from stillhouse.refreshing.modes.mode import RefreshMode
from stillhouse.refreshing.predecessor import Predecessor, load_predecessor, require_growable, without_encoder
from stillhouse.refreshing.session import Session
from stillhouse.refreshing.students import save_student
from stillhouse.registry import names
from stillhouse.variant import encode

__all__ = ["Update", "UpdateReport", "make_replay_recovery_sets", "read_update_metrics"]

log = logging.getLogger(__name__)

_PAST_SPANS = 4  # parts of the period of the replay buffer; forgetting is measured on each
_MAX_SPAN_ROWS = 1000  # rows of each part


class UpdateReport(Record):
    """The result of an update, and of the probe whether it repays its cost."""

    since: datetime
    new_rows: int
    replayed_rows: int
    updated: UpdateResult
    probe: UpdateProbe


class Update(RefreshMode):
    """Fine-tune the champion's student; redistil if that does not repay its cost."""

    fallback = "redistil"
    compares_teachers = False

    def plan(self, session: Session) -> Refresh:
        """The refresh as an update on rows that are newer than the champion's training window.

        The teacher is kept, unless the agent file has other actions than the champion: then a new teacher is fitted.

        :raises DataError: if fewer than ``update.min_rows`` new rows have outcomes.
        :raises StillhouseError: if the champion's student cannot be extended to the present columns and actions.
        """
        job, settings = session.job, session.settings
        predecessor = load_predecessor(session)
        teacher = "keep" if predecessor.actions == settings.actions else "fit"
        planned = job.model_copy(update={"teacher": teacher, "since": predecessor.baseline.train.end})
        rows = session.data.read_training_rows(planned.new_window).labelled
        if len(rows) < settings.update.min_rows:
            raise DataError(
                f"{len(rows)} rows with {settings.words.labels} are new since {planned.since:%Y-%m-%d %H:%M}, before "
                f"the test window, and `update.min_rows` is {settings.update.min_rows}"
            )
        settings = without_encoder(settings)
        columns = columns_of(settings, rows)
        extend_columns(predecessor.columns, columns)
        untrained = new_student(settings, columns, encode(rows.head(1), columns))
        require_same_architecture(predecessor.student, require_growable(untrained))
        session.registry.runs.log_window(job.run_id, planned.new_window, rows, "new since the champion")
        return planned

    def weighs_teachers(self, job: Refresh) -> bool:
        """Whether the teacher is fitted again; a kept teacher keeps its weights."""
        return job.teacher == "fit"

    def select_rows_to_label(self, session: Session, teacher: TeacherRef) -> TrainingRows | None:
        """The new rows; all rows of the window for a teacher that was fitted on it, for the cross-fitting."""
        fitted_again = session.job.teacher == "fit" and teacher.fitted is not None
        return session.training_rows if fitted_again else session.new_rows

    def make_student(self, session: Session, teacher: TeacherRef) -> StudentRef | None:
        """Fine-tune the champion's student on the new rows; None if that does not repay its cost.

        The probe uses new rows of validation days, never the test window. An update does not repay its cost if a watch
        would still report the disagreement with the teacher as harmful; then a new student is worth its cost.
        """
        settings, registry, predecessor = session.settings, session.registry, load_predecessor(session)
        new_rows = _NewRows.of(session, teacher)
        answered = int(new_rows.rows.has_teacher_probs(teacher.version)[new_rows.train_mask].sum())
        min_answered = settings.update.min_rows // 2
        if answered < min_answered:
            reason = f"the teacher has answered {answered} new rows to train on, and {min_answered} are needed"
            registry.runs.set_tags(session.job.run_id, update_not_made=reason)
            log.info("no update: %s", reason)
            return None
        columns = extend_columns(predecessor.columns, columns_of(without_encoder(settings), new_rows.frame))
        new_set = new_rows.rows.select_training_set(new_rows.train_mask, _without_features(teacher), columns)
        shares = new_set.teacher_probs[new_set.has_teacher_probs].mean(dim=0).numpy()
        student = predecessor.grow(columns, settings.actions, new_set.x.numpy(), shares)
        before = deepcopy(student)
        replay_set = _make_replay_set(session, predecessor, columns)
        updated = online.update(
            student,
            new_set,
            replay_set,
            session.distillation,
            steps=settings.update.steps,
            least_old_share=settings.update.least_old_share,
            stands_for=predecessor.memory.seen,
            past=_make_past_sets(session, predecessor, columns),
        )
        probe_rows = new_rows.rows.select_training_set(new_rows.validation_mask, _without_features(teacher), columns)
        largest_null_mean = estimate_null_mean(predecessor.baseline.losses["disagreement"], settings.watch.tolerance)
        report = UpdateReport(
            since=session.job.new_window.start,
            new_rows=len(new_set),
            replayed_rows=len(replay_set),
            updated=updated,
            probe=online.probe_update(before, student, probe_rows, largest_null_mean),
        )
        registry.runs.log_record(session.job.run_id, report, names.UPDATE)
        if not report.probe.passed:
            registry.runs.set_tags(session.job.run_id, update_not_made=str(report.probe))
            log.info("no update: %s", report.probe)
            return None
        history = TrainingHistory(history=updated.history, changes=(), steps=updated.steps, stopped=False)
        probs = student_probabilities(student, new_set.x.numpy())
        memory = sample_memory(
            new_rows.frame, probs, settings.actions, settings.update.memory, older=predecessor.memory
        )
        reference = save_student(session.job, student, columns, memory, history, rows=len(new_rows.frame))
        (Path(session.job.folder) / "student" / names.UPDATE).write_text(report.model_dump_json(), encoding="utf-8")
        return reference

    def make_recovery_sets(
        self, session: Session, teacher: TeacherRef, student: StudentRef, columns: Columns
    ) -> tuple[TrainingSet, TrainingSet | None]:
        """The new rows together with the replay buffer, and the new validation rows, if any."""
        return make_replay_recovery_sets(session, teacher, columns)


def make_replay_recovery_sets(
    session: Session, teacher: TeacherRef, columns: Columns
) -> tuple[TrainingSet, TrainingSet | None]:
    """The training set of an update, replayed rows first, and the new validation rows; None if fewer than 2."""
    new_rows, unfeatured = _NewRows.of(session, teacher), _without_features(teacher)
    replay_set = _make_replay_set(session, load_predecessor(session), columns)
    new_set = new_rows.rows.select_training_set(new_rows.train_mask, unfeatured, columns)
    training_set = build_training_set(
        np.concatenate([replay_set.x.numpy(), new_set.x.numpy()]),
        np.concatenate([replay_set.teacher_probs.numpy(), new_set.teacher_probs.numpy()]),
        np.concatenate([replay_set.labels.numpy(), new_set.labels.numpy()]),
        columns,
    )
    if new_rows.validation_mask.sum() < 2:
        return training_set, None
    times = new_rows.rows.frame["observed_at"][new_rows.validation_mask]
    cluster_ids, _ = split_validation(times, session.settings.promotion.cluster)
    return training_set, new_rows.rows.select_training_set(
        new_rows.validation_mask, unfeatured, columns, cluster_ids=cluster_ids
    )


def read_update_metrics(student: StudentRef) -> dict[str, float]:
    """The forgetting and the probe of an update, as metrics of its student; empty for another mode."""
    file = Path(student.folder) / names.UPDATE
    if not file.exists():
        return {}
    report = UpdateReport.model_validate_json(file.read_bytes())
    metrics = {f"forgotten/{name}": rise for name, rise in report.updated.forgotten.items()}
    metrics |= {"probe/before": report.probe.before, "probe/after": report.probe.after}
    return metrics | {"old_share": report.updated.old_share}


# --------------------------------------------------------------------------- inside


@dataclass(frozen=True)
class _NewRows:
    """Rows that are new to the champion.

    :param train_mask: rows outside validation days with teacher probabilities, a label, or both, bool ``[n]``.
    :param validation_mask: rows of validation days with teacher probabilities and a label, bool ``[n]``.
    """

    rows: TrainingRows
    train_mask: np.ndarray[tuple[int], np.dtype[np.bool_]]
    validation_mask: np.ndarray[tuple[int], np.dtype[np.bool_]]

    @classmethod
    def of(cls, session: Session, teacher: TeacherRef) -> _NewRows:
        rows = session.new_rows
        has_both = rows.has_teacher_probs(teacher.version) & rows.has_label
        return cls(rows, rows.train_mask(teacher), has_both & rows.is_validation)

    @property
    def frame(self) -> pd.DataFrame:
        """The rows to train on."""
        return self.rows.frame[self.train_mask]


def _without_features(teacher: TeacherRef) -> TeacherRef:
    """The teacher without features: an update does not distil the teacher's internal features."""
    return teacher.model_copy(update={"features": None})


def _make_replay_set(session: Session, predecessor: Predecessor, columns: Columns) -> TrainingSet:
    """The rows of the replay buffer, with the student's probabilities at that time."""
    rows = _read_memory_period(session, predecessor)
    rows = rows[rows["observation_id"].isin(predecessor.memory.rows["observation_id"])]
    probs = predecessor.memory.probs_of(rows["observation_id"], session.settings.actions)
    return build_training_set(encode(rows, columns), probs, rows["outcome"].to_numpy(), columns)


def _make_past_sets(session: Session, predecessor: Predecessor, columns: Columns) -> dict[str, TrainingSet]:
    """Validation rows of the replay buffer's period, in parts by time, each by its first day."""
    rows = _read_memory_period(session, predecessor)
    rows = rows[mask_validation_rows(rows["observed_at"], session.distillation)]
    rows = rows[rows["observed_at"] < session.job.new_window.start]
    spans = {}
    for part in np.array_split(np.arange(len(rows)), _PAST_SPANS):
        if len(part):
            span = session.base.sample(rows.iloc[part], _MAX_SPAN_ROWS)
            no_probs = np.zeros((len(span), len(session.settings.actions)))
            training_set = build_training_set(encode(span, columns), no_probs, span["outcome"].to_numpy(), columns)
            spans[f"{span['observed_at'].iloc[0]:%Y-%m-%d}"] = training_set
    return spans


def _read_memory_period(session: Session, predecessor: Predecessor) -> pd.DataFrame:
    """The labelled rows of the period of the replay buffer, at the table versions of this refresh."""
    times = predecessor.memory.rows["observed_at"]
    window = Window(
        name="remembered",
        start=times.min(),
        end=times.max() + timedelta(microseconds=1),
        versions=session.job.train.versions,
    )
    return session.data.read_labelled(window)
