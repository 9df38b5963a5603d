"""The interface of a refresh mode: when it is possible, which rows are labelled, and how the student is made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from stillhouse.distill.grow import Columns
from stillhouse.distill.training_set import TrainingSet
from stillhouse.records import Frontier, Refresh, RefreshModeName, StudentRef, TeacherRef, Window
from stillhouse.refreshing.compressing import compress_student, make_training_recovery_sets
from stillhouse.refreshing.data import TrainingRows
from stillhouse.refreshing.session import Session

__all__ = ["RefreshMode"]


class RefreshMode(ABC):
    """One way to make a challenger. The steps of a refresh are the same for all modes."""

    fallback: ClassVar[RefreshModeName | None] = None
    """The mode to use if this one is impossible or does not repay its cost; None: the refresh fails."""

    compares_teachers: ClassVar[bool] = True
    """Whether the teachers are compared on the training window."""

    trains: ClassVar[bool] = True
    """Whether a student is trained; otherwise the champion's student is used."""

    def plan(self, session: Session) -> Refresh:
        """The refresh as this mode makes it.

        :raises StillhouseError: if it is impossible; the reason is logged, and :attr:`fallback` is used.
        """
        return session.job

    def weighs_teachers(self, job: Refresh) -> bool:
        """Whether the teachers' weights are learned again."""
        return True

    def select_rows_to_label(self, session: Session, teacher: TeacherRef) -> TrainingRows | None:
        """The rows for which teacher probabilities are needed; None: no rows."""
        return session.training_rows

    @abstractmethod
    def make_student(self, session: Session, teacher: TeacherRef) -> StudentRef | None:
        """Make the student; None, with the reason logged, if :attr:`fallback` must be used."""

    def compress(self, session: Session, teacher: TeacherRef, student: StudentRef) -> Frontier:
        """Search compressed variants of the student, and choose the one that fits the budgets best."""
        return compress_student(session, teacher, student, self.make_recovery_sets)

    def make_recovery_sets(
        self, session: Session, teacher: TeacherRef, student: StudentRef, columns: Columns
    ) -> tuple[TrainingSet, TrainingSet | None]:
        """The training set on which a compressed student is recovered, and validation rows for its controller."""
        return make_training_recovery_sets(session, teacher, student, columns)

    def find_training_window(self, session: Session) -> Window:
        """The window that the student was trained on."""
        return session.job.train
