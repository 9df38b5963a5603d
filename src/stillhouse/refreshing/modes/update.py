"""Update: fine-tune the champion's student on what is new, with a replay buffer against forgetting."""

from __future__ import annotations

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
from stillhouse.distill.split import split_validation, validation_days
from stillhouse.distill.students import columns_of, new_student
from stillhouse.distill.train import student_probabilities
from stillhouse.distill.training_set import TrainingSet
from stillhouse.drift.evidence import estimate_null_mean
from stillhouse.errors import DataError
from stillhouse.records import Record, Refresh, StudentRef, TeacherRef, Window
from stillhouse.refreshing.data import LearningRows, lesson_of
from stillhouse.refreshing.modes.mode import RefreshMode
from stillhouse.refreshing.predecessor import Predecessor, growable, predecessor, without_encoder
from stillhouse.refreshing.session import Session
from stillhouse.refreshing.students import save_student
from stillhouse.registry import names
from stillhouse.variant import encode

__all__ = ["Update", "UpdateReport", "new_and_replayed", "update_metrics"]

_SPANS = 4  # of the time that is remembered: forgetting is measured on each
_SPAN_ROWS = 1000  # at most, of each


class UpdateReport(Record):
    """How an update went, and whether it has repaid its cost."""

    since: datetime
    new_rows: int
    replayed_rows: int
    updated: UpdateResult
    probe: UpdateProbe


class Update(RefreshMode):
    """Go on from the champion's student; where that does not repay, redistil."""

    falls_back_to = "redistil"
    compares_teachers = False

    def plan(self, session: Session) -> Refresh:
        """The refresh of what is new since the champion learned.

        The teacher is kept, unless the agent file has other actions by now: then only a new one knows them.
        """
        job, settings = session.job, session.settings
        old = predecessor(session)
        teacher = "keep" if old.actions == settings.actions else "fit"
        planned = job.model_copy(update={"teacher": teacher, "since": old.baseline.train.end})
        rows = session.data.learning(planned.news).labelled
        if len(rows) < settings.update.min_rows:
            raise DataError(
                f"{len(rows)} rows with outcomes are new since {planned.since:%Y-%m-%d %H:%M}, before the test window, "
                f"and `update.min_rows` is {settings.update.min_rows}"
            )
        unaided = without_encoder(settings)
        fresh = columns_of(unaided, rows)
        extend_columns(old.columns, fresh)
        require_same_architecture(old.student, growable(new_student(unaided, fresh, encode(rows.head(1), fresh))))
        session.registry.runs.log_window(job.run_id, planned.news, rows, "new since the champion")
        return planned

    def weighs_teachers(self, job: Refresh) -> bool:
        """A teacher that is kept keeps its weights too."""
        return job.teacher == "fit"

    def rows_to_teach(self, session: Session, teacher: TeacherRef) -> LearningRows | None:
        """What is new; all of the window for a teacher that was fitted on it, and so is cross-fitted."""
        anew = session.job.teacher == "fit" and teacher.fitted is not None
        return session.training if anew else session.new

    def student(self, session: Session, teacher: TeacherRef) -> StudentRef | None:
        """The champion's student with the new knowledge; None where that does not repay its cost.

        Judged on new rows of validation days, never on the test window: where a watch would still call the distance
        to the teacher harm, a new student is worth its price.
        """
        settings, registry, old = session.settings, session.registry, predecessor(session)
        news = _News.of(session, teacher)
        answered = int(news.rows.has_teacher_probs(teacher.version)[news.learned].sum())
        if answered < (least := settings.update.min_rows // 2):
            few = f"the teacher has answered {answered} new rows to learn from, and {least} are needed"
            registry.runs.set_tags(session.job.run_id, update_not_made=few)
            return None
        columns = extend_columns(old.columns, columns_of(without_encoder(settings), news.frame))
        new = news.rows.lesson(news.learned, _without_features(teacher), columns)
        shares = new.teacher_probs[new.has_teacher_probs].mean(dim=0).numpy()
        student = old.grow(columns, settings.actions, new.x.numpy(), shares)
        before = deepcopy(student)
        replay = _replay(session, old, columns)
        updated = online.update(
            student,
            new,
            replay,
            settings.distillation,
            steps=settings.update.steps,
            least_old_share=settings.update.least_old_share,
            stands_for=old.memory.seen,
            past=_past(session, old, columns),
        )
        probe_rows = news.rows.lesson(news.validation, _without_features(teacher), columns)
        largest_null_mean = estimate_null_mean(old.baseline.losses["disagreement"], settings.watch.tolerance)
        report = UpdateReport(
            since=session.job.news.start,
            new_rows=len(new),
            replayed_rows=len(replay),
            updated=updated,
            probe=online.probe_update(before, student, probe_rows, largest_null_mean),
        )
        registry.runs.log_record(session.job.run_id, report, names.UPDATE)
        if not report.probe.passed:
            registry.runs.set_tags(session.job.run_id, update_not_made=str(report.probe))
            return None
        course = TrainingHistory(history=updated.history, changes=(), steps=updated.steps, stopped=False)
        probs = student_probabilities(student, new.x.numpy())
        kept = sample_memory(news.frame, probs, settings.actions, settings.update.memory, older=old.memory)
        made = save_student(session.job, student, columns, kept, course, rows=len(news.frame))
        (Path(session.job.folder) / "student" / names.UPDATE).write_text(report.model_dump_json(), encoding="utf-8")
        return made

    def recovery_sets(
        self, session: Session, teacher: TeacherRef, student: StudentRef, columns: Columns
    ) -> tuple[TrainingSet, TrainingSet | None]:
        """New rows and remembered ones together, and the new validation rows, if any."""
        return new_and_replayed(session, teacher, columns)


def new_and_replayed(session: Session, teacher: TeacherRef, columns: Columns) -> tuple[TrainingSet, TrainingSet | None]:
    """What an update has learned from, and the new validation rows."""
    old, news, unfeatured = predecessor(session), _News.of(session, teacher), _without_features(teacher)
    replay = _replay(session, old, columns)
    new = news.rows.lesson(news.learned, unfeatured, columns)
    together = lesson_of(
        np.concatenate([replay.x.numpy(), new.x.numpy()]),
        np.concatenate([replay.teacher_probs.numpy(), new.teacher_probs.numpy()]),
        np.concatenate([replay.labels.numpy(), new.labels.numpy()]),
        columns,
    )
    if news.validation.sum() < 2:
        return together, None
    times = news.rows.frame["observed_at"][news.validation]
    groups, _ = split_validation(times, session.settings.promotion.cluster)
    return together, news.rows.lesson(news.validation, unfeatured, columns, groups=groups)


def update_metrics(student: StudentRef) -> dict[str, float]:
    """What an update has cost what was known before, as metrics of its student; none for another kind of training."""
    file = Path(student.folder) / names.UPDATE
    if not file.exists():
        return {}
    report = UpdateReport.model_validate_json(file.read_bytes())
    metrics = {f"forgotten/{name}": rise for name, rise in report.updated.forgotten.items()}
    metrics |= {"probe/before": report.probe.before, "probe/after": report.probe.after}
    return metrics | {"old_share": report.updated.old_share}


# --------------------------------------------------------------------------- inside


@dataclass(frozen=True)
class _News:
    """Rows that are new to the champion.

    :param learned: rows with teacher probabilities, a label, or both, apart from validation days, bool ``[n]``.
    :param validation: rows of validation days with both, bool ``[n]``.
    """

    rows: LearningRows
    learned: np.ndarray[tuple[int], np.dtype[np.bool_]]
    validation: np.ndarray[tuple[int], np.dtype[np.bool_]]

    @classmethod
    def of(cls, session: Session, teacher: TeacherRef) -> _News:
        rows = session.new
        both = rows.has_teacher_probs(teacher.version) & rows.has_label
        return cls(rows, rows.to_train_on(teacher), both & rows.validation)

    @property
    def frame(self) -> pd.DataFrame:
        """The rows to learn from."""
        return self.rows.frame[self.learned]


def _without_features(teacher: TeacherRef) -> TeacherRef:
    """An update does not learn from the inside of its teacher."""
    return teacher.model_copy(update={"features": None})


def _replay(session: Session, old: Predecessor, columns: Columns) -> TrainingSet:
    """The rows that the champion's student remembers, with its probabilities of then."""
    rows = _remembered(session, old)
    rows = rows[rows["observation_id"].isin(old.memory.rows["observation_id"])]
    probs = old.memory.probs_of(rows["observation_id"], session.settings.actions)
    return lesson_of(encode(rows, columns), probs, rows["outcome"].to_numpy(), columns)


def _past(session: Session, old: Predecessor, columns: Columns) -> dict[str, TrainingSet]:
    """Validation days of the time that is remembered, by the day on which each of its spans begins."""
    rows = _remembered(session, old)
    rows = rows[validation_days(rows["observed_at"], session.settings.distillation.validation_every)]
    rows = rows[rows["observed_at"] < session.job.news.start]
    spans = {}
    for part in np.array_split(np.arange(len(rows)), _SPANS):
        if len(part):
            span = session.base.sample(rows.iloc[part], _SPAN_ROWS)
            no_probs = np.zeros((len(span), len(session.settings.actions)))
            lesson = lesson_of(encode(span, columns), no_probs, span["outcome"].to_numpy(), columns)
            spans[f"{span['observed_at'].iloc[0]:%Y-%m-%d}"] = lesson
    return spans


def _remembered(session: Session, old: Predecessor) -> pd.DataFrame:
    """Labelled rows from the oldest to the newest that is remembered, at the tables that this refresh reads."""
    times = old.memory.rows["observed_at"]
    window = Window(
        name="remembered",
        start=times.min(),
        end=times.max() + timedelta(microseconds=1),
        versions=session.job.train.versions,
    )
    return session.data.labelled(window)
