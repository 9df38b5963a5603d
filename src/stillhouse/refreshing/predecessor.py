"""The champion's student, with all that is needed to go on from it."""

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

_ALWAYS_TRAINED = "a student of kind {kind!r} is always trained from the beginning"

__all__ = ["Predecessor", "growable", "predecessor", "without_encoder"]


@dataclass(frozen=True)
class Predecessor:
    """The champion's student.

    :param memory: a sample of the rows that it has learned from, with its probabilities of then.
    """

    student: students.Student
    columns: Columns
    actions: tuple[str, ...]
    memory: Memory
    baseline: Baseline

    def grow(self, columns: Columns, actions: Sequence[str], x: Array, shares: Array) -> students.Student:
        """The same student with more columns and output units.

        :param x: rows encoded with ``columns``; ``shares``: of each action among what it is to learn, ``[K]``.
        """
        return grow_student(self.student, self.columns, columns, self.actions, actions, x, shares)

    def warm(self, student: students.Student, columns: Columns, actions: Sequence[str], x: Array) -> students.Student:
        """``student``, untrained, with these weights where their shapes allow it."""
        even = np.full(len(actions), 1 / len(actions))
        return transfer_weights(student, self.grow(columns, actions, x, even))


def predecessor(session: Session) -> Predecessor:
    """The champion's student.

    :raises RegistryError: if there is no champion, or its student was logged without its weights.
    """
    if not session.settings.student.can_be_updated:
        raise RegistryError(_ALWAYS_TRAINED.format(kind=session.settings.student.kind))
    champion = session.champion
    if champion is None:
        raise RegistryError(f"agent {session.agent!r} has no champion to go on from")
    folder = session.registry.models.student_files(champion.model)
    kept = memory.read(folder) if folder else None
    if folder is None or kept is None:
        raise RegistryError(f"{champion.model} was logged without the weights and the memory of its student")
    columns = json.loads((folder / "columns.json").read_text(encoding="utf-8"))
    return Predecessor(growable(students.load(folder)), columns, kept.actions, kept, champion.baseline)


def growable(student: students.AnyStudent) -> students.Student:
    """``student``, if its columns and actions can be extended.

    :raises RegistryError: if it is of the user's own.
    """
    if not isinstance(student, students.TabularStudent | students.TextStudent):
        raise RegistryError(_ALWAYS_TRAINED.format(kind="module"))
    return student


def without_encoder(settings: AgentConfig) -> AgentConfig:
    """The agent whose student begins with no teacher's encoder: it begins with its predecessor's weights."""
    if not settings.student.initialised_by_teacher:
        return settings
    return settings.model_copy(update={"student": settings.student.model_copy(update={"initialise": "none"})})
