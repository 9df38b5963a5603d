"""Redistil: a new student from the whole training window, from the beginning or from the champion's weights."""

from __future__ import annotations

from pathlib import Path

from stillhouse.distill.comparisons import distil_with_control
from stillhouse.distill.grow import extend_columns
from stillhouse.distill.history import TrainingHistory
from stillhouse.distill.memory import sample_memory
from stillhouse.distill.students import columns_of, new_student
from stillhouse.distill.train import student_probabilities
from stillhouse.errors import StillhouseError
from stillhouse.parts import TextEncoderState
from stillhouse.records import StudentRef, TeacherRef
from stillhouse.refreshing.data import require_rows
from stillhouse.refreshing.modes.mode import RefreshMode
from stillhouse.refreshing.predecessor import Predecessor, growable, predecessor, without_encoder
from stillhouse.refreshing.session import Session
from stillhouse.refreshing.students import save_student
from stillhouse.registry import names

__all__ = ["Redistil", "RedistilWarm", "last_training"]


class Redistil(RefreshMode):
    """Train from the beginning."""

    def student(self, session: Session, teacher: TeacherRef) -> StudentRef | None:
        """A new student from the teacher probabilities and labels of the training window."""
        settings, rows = session.settings, session.training
        chosen = rows.to_train_on(teacher)
        require_rows(int(chosen.sum()), settings.windows.min_train_rows // 2, session.job.train)
        frame = rows.frame[chosen]
        old, initial = self.warm_start(session), _initial(session, teacher)
        columns = columns_of(settings, frame, initial)
        if old is not None:
            columns = extend_columns(old.columns, columns)  # its own keep their codes
        lesson = rows.training_set(teacher, columns)
        control, compare = rows.validation_sets(teacher, columns)
        student = new_student(settings, columns, lesson.x.numpy(), initial)
        if old is not None:
            student = old.warm(growable(student), columns, settings.actions, lesson.x.numpy())
        course = distil_with_control(
            student,
            lesson,
            settings.distillation,
            validation_control=control,
            validation_compare=compare,
            checkpoint=Path(session.job.folder) / "training.safetensors",
            previous=last_training(session),
        )
        probs = student_probabilities(student, rows.encoded(columns)[chosen])
        kept = sample_memory(frame, probs, settings.actions, settings.update.memory, older=old.memory if old else None)
        return save_student(session.job, student, columns, kept, course, rows=len(frame))

    def warm_start(self, session: Session) -> Predecessor | None:
        """What the training begins with; None: from random weights."""
        return None


class RedistilWarm(Redistil):
    """Train on the whole window, from the champion's weights where they can be had."""

    def warm_start(self, session: Session) -> Predecessor | None:
        """The champion's student; None, with the reason logged, where none can be gone on from."""
        try:
            old = predecessor(session)
            extend_columns(old.columns, columns_of(without_encoder(session.settings), session.training.labelled))
        except StillhouseError as error:
            session.registry.runs.set_tags(session.job.run_id, warm_start_not_made=str(error))
            return None
        return old


def last_training(session: Session) -> TrainingHistory | None:
    """How the training of the champion's student went; None where that was not logged, or there is no champion."""
    if session.champion is None:
        return None
    student = session.registry.version(f"{session.agent}-student", "champion")
    run_id = student.run_id if student else None
    return session.registry.runs.read_record(run_id, names.TRAINING_HISTORY, TrainingHistory) if run_id else None


def _initial(session: Session, teacher: TeacherRef) -> TextEncoderState | None:
    """The teacher's text encoder, where the student begins with it."""
    return session.teacher(teacher).text_encoder() if session.settings.student.initialised_by_teacher else None
