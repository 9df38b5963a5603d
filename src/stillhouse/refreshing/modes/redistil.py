"""Redistil: train a student on the whole training window, from scratch or from the champion's weights."""

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
from stillhouse.refreshing.predecessor import Predecessor, load_predecessor, require_growable, without_encoder
from stillhouse.refreshing.session import Session
from stillhouse.refreshing.students import save_student
from stillhouse.registry import names

__all__ = ["Redistil", "RedistilWarm", "read_last_history"]


class Redistil(RefreshMode):
    """Train from scratch on the whole window."""

    def make_student(self, session: Session, teacher: TeacherRef) -> StudentRef | None:
        """Distil a new student from the teacher probabilities and labels of the training window."""
        settings, rows = session.settings, session.training_rows
        mask = rows.train_mask(teacher)
        require_rows(int(mask.sum()), settings.min_train_rows // 2, session.job.train, session.settings.words)
        frame = rows.frame[mask]
        predecessor, encoder = self.find_warm_start(session), _read_encoder(session, teacher)
        columns = columns_of(settings, frame, encoder)
        if predecessor is not None:
            columns = extend_columns(predecessor.columns, columns)  # the codes of known values stay
        training_set = rows.make_training_set(teacher, columns)
        control, compare = rows.make_validation_sets(teacher, columns)
        student = new_student(settings, columns, training_set.x.numpy(), encoder)
        if predecessor is not None:
            student = predecessor.transfer_to(
                require_growable(student), columns, settings.actions, training_set.x.numpy()
            )
        history = distil_with_control(
            student,
            training_set,
            session.distillation,
            validation_control=control,
            validation_compare=compare,
            checkpoint=Path(session.job.folder) / "training.safetensors",
            previous=read_last_history(session),
        )
        probs = student_probabilities(student, rows.encode_rows(columns)[mask])
        older = predecessor.memory if predecessor else None
        memory = sample_memory(frame, probs, settings.actions, settings.update.memory, older=older)
        return save_student(session.job, student, columns, memory, history, rows=len(frame))

    def find_warm_start(self, session: Session) -> Predecessor | None:
        """The student whose weights the training starts from; None: random weights."""
        return None


class RedistilWarm(Redistil):
    """Train on the whole window, from the champion's weights if they can be used."""

    def find_warm_start(self, session: Session) -> Predecessor | None:
        """The champion's student; None, with the reason logged, if it cannot be trained further."""
        try:
            predecessor = load_predecessor(session)
            extend_columns(
                predecessor.columns, columns_of(without_encoder(session.settings), session.training_rows.labelled)
            )
        except StillhouseError as error:
            session.registry.runs.set_tags(session.job.run_id, warm_start_not_made=str(error))
            return None
        return predecessor


def read_last_history(session: Session) -> TrainingHistory | None:
    """The training history of the champion's student; None if it was not logged, or there is no champion."""
    if session.champion is None:
        return None
    student = session.registry.version(f"{session.agent}-student", "champion")
    run_id = student.run_id if student else None
    return session.registry.runs.read_record(run_id, names.TRAINING_HISTORY, TrainingHistory) if run_id else None


def _read_encoder(session: Session, teacher: TeacherRef) -> TextEncoderState | None:
    """The teacher's text encoder, if the student starts from its weights."""
    return session.load_teacher(teacher).text_encoder() if session.settings.student.initialised_by_teacher else None
