"""What a mode of refresh decides: whether it can be made, what it asks the teachers, and how it makes its student."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from stillhouse.distill.grow import Columns
from stillhouse.distill.training_set import TrainingSet
from stillhouse.records import Frontier, Refresh, RefreshModeName, StudentRef, TeacherRef, Window
from stillhouse.refreshing.compressing import compress_student, training_recovery_sets
from stillhouse.refreshing.data import LearningRows
from stillhouse.refreshing.session import Session

__all__ = ["RefreshMode"]


class RefreshMode(ABC):
    """One way to come to a challenger; its stations are the same for all modes."""

    falls_back_to: ClassVar[RefreshModeName | None] = None
    """The mode that takes over where this one cannot be made, or does not repay its cost."""

    compares_teachers: ClassVar[bool] = True
    """Whether contradictions of the teachers on the training window are looked for."""

    trains: ClassVar[bool] = True
    """Whether there is a new student; otherwise it is the champion's."""

    def plan(self, session: Session) -> Refresh:
        """The refresh as this mode does it.

        :raises StillhouseError: if it cannot be made; the reason is logged, and :attr:`falls_back_to` takes over.
        """
        return session.job

    def weighs_teachers(self, job: Refresh) -> bool:
        """Whether the teachers' weights are learned anew; a teacher that is kept for the student keeps its weights."""
        return True

    def rows_to_teach(self, session: Session, teacher: TeacherRef) -> LearningRows | None:
        """The rows that the teachers have to answer; None: none."""
        return session.training

    @abstractmethod
    def student(self, session: Session, teacher: TeacherRef) -> StudentRef | None:
        """The student; None, with the reason logged, where :attr:`falls_back_to` has to take over."""

    def compress(self, session: Session, teacher: TeacherRef, student: StudentRef) -> Frontier:
        """The student in many smaller forms, and the one that fits the budgets best."""
        return compress_student(session, teacher, student, self.recovery_sets)

    def recovery_sets(
        self, session: Session, teacher: TeacherRef, student: StudentRef, columns: Columns
    ) -> tuple[TrainingSet, TrainingSet | None]:
        """What a smaller form of the student is recovered on, and validation rows for its controller."""
        return training_recovery_sets(session, teacher, student, columns)

    def learned_from(self, session: Session) -> Window:
        """The window that the student has learned from."""
        return session.job.train
