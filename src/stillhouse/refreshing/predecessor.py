"""Load the champion's student with everything that is needed to train it further."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.config import AgentConfig
from stillhouse.distill import memory, students
from stillhouse.distill.grow import Columns, grow_student, transfer_weights
from stillhouse.distill.memory import Memory
from stillhouse.errors import RegistryError
from stillhouse.records import Baseline
from stillhouse.refreshing.data import Array
from stillhouse.refreshing.session import Session

_NOT_UPDATABLE = "a student of kind {kind!r} is always trained from scratch"

__all__ = ["Predecessor", "load_predecessor", "require_growable", "without_encoder"]


@dataclass(frozen=True)
class Predecessor:
    """The champion's student.

    :param memory: the replay buffer: a sample of its training rows, with its probabilities at that time.
    """

    student: students.Student
    columns: Columns
    actions: tuple[str, ...]
    memory: Memory
    baseline: Baseline

    def grow(self, columns: Columns, actions: Sequence[str], x: Array, shares: Array) -> students.Student:
        """The same student with more input columns and output units.

        :param x: rows encoded with ``columns``, ``[n, D]``.
        :param shares: share of each action among the new rows, ``[K]``.
        """
        return grow_student(self.student, self.columns, columns, self.actions, actions, x, shares)

    def transfer_to(
        self, student: students.Student, columns: Columns, actions: Sequence[str], x: Array
    ) -> students.Student:
        """``student``, untrained, with the weights of this student wherever the shapes allow it."""
        equal_shares = np.full(len(actions), 1 / len(actions))
        return transfer_weights(student, self.grow(columns, actions, x, equal_shares))


def load_predecessor(session: Session) -> Predecessor:
    """Load the champion's student.

    :raises RegistryError: if there is no champion, its student was logged without its weights, or its kind cannot be
        trained further.
    """
    if not session.settings.student.can_be_updated:
        raise RegistryError(_NOT_UPDATABLE.format(kind=session.settings.student.kind))
    champion = session.champion
    if champion is None:
        raise RegistryError(f"agent {session.agent!r} has no champion to go on from")
    folder = session.registry.models.student_files(champion.model)
    replay_memory = memory.read(folder) if folder else None
    if folder is None or replay_memory is None:
        raise RegistryError(f"{champion.model} was logged without the weights and the memory of its student")
    columns = json.loads((folder / "columns.json").read_text(encoding="utf-8"))
    return Predecessor(
        require_growable(students.load(folder)), columns, replay_memory.actions, replay_memory, champion.baseline
    )


def require_growable(student: students.AnyStudent) -> students.Student:
    """``student``, whose columns and actions can be extended.

    :raises RegistryError: if it is a module of the user, which cannot be extended.
    """
    if not isinstance(student, students.TabularStudent | students.TextStudent):
        raise RegistryError(_NOT_UPDATABLE.format(kind="module"))
    return student


def without_encoder(settings: AgentConfig) -> AgentConfig:
    """The settings without the teacher's text encoder as initial weights: the predecessor's weights replace them."""
    if not settings.student.initialised_by_teacher:
        return settings
    return settings.model_copy(update={"student": settings.student.model_copy(update={"initialise": "none"})})
