"""What each kind of teacher does: functions that dispatch on its section, and the member that an ensemble asks.

The file ``teachers/<kind>.py`` registers its section with these functions. All kinds are imported at the end of this
module, so that registration does not depend on the order of imports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import AwareDatetime, Field

from stillhouse.config import AgentConfig, Leaf, LeafTeacher
from stillhouse.errors import PartError
from stillhouse.parts import ModelStore, Teacher, import_kinds
from stillhouse.records import Record, short_id
from stillhouse.teachers.answers import AnswerFunction

__all__ = [
    "REFRESH_ADVICE",
    "Member",
    "MemberContext",
    "TeacherMoment",
    "answer_version",
    "current_version",
    "describe",
    "logged_version",
    "new_teacher",
    "open_member",
    "require_version",
]

REFRESH_ADVICE = "Refresh with teacher=fit, or restore the agent file"
_CHUNK_ROWS = 5000  # answers of a teacher in this process are stored after so many rows


def _no_cost(rows: pd.DataFrame) -> list[float]:
    return [0.0] * len(rows)


@dataclass(frozen=True)
class Member:
    """One teacher of an ensemble.

    :param share: its share of the mean if the weights are fixed, in 0…1.
    :param version: under which its own answers are stored; None for a fitted teacher, which changes with each fit.
    :param chunk_rows: its answers are stored after so many rows.
    :param user_object: returns the user's object if it runs in this process.
    :param has_features: whether its answers hold features.
    :param max_cost: rows → the most that asking about each row can cost, ``[n]``.
    :param max_calls_per_row: the most calls that one row can take.
    """

    name: str
    share: float
    answer: AnswerFunction
    version: str | None = None
    chunk_rows: int = _CHUNK_ROWS
    user_object: Callable[[], object] | None = None
    has_features: bool = False
    max_cost: Callable[[pd.DataFrame], list[float]] = _no_cost
    max_calls_per_row: int = 1


class TeacherMoment(Record):
    """When teachers were made."""

    now: AwareDatetime = Field(description="time of the refresh")
    training_end: AwareDatetime = Field(
        description="end of the training window: the student learns from rows before it"
    )


@dataclass(frozen=True)
class MemberContext:
    """What a kind needs to describe and open one teacher.

    :param leaf: the teacher's section, name and share.
    :param folder: of all teachers together; this one stores its files in ``folder / leaf.name``.
    :param models: loads the models of teachers of kind ``mlflow``; None: there is no registry.
    :param moment: when the teachers are made; None: they are opened, or made for no particular time.
    """

    config: AgentConfig
    leaf: Leaf
    folder: Path
    models: ModelStore | None = None
    moment: TeacherMoment | None = None

    @property
    def where(self) -> str:
        """The teacher as an error names it."""
        return f"{self.config.file}: teachers.{self.leaf.name}"


@singledispatch
def new_teacher(section: object, where: str, config: AgentConfig) -> Teacher:
    """An unfitted teacher. Kinds whose ``is_fitted`` may be true register it.

    :param where: the teacher as an error names it.
    :param config: the agent file.
    :raises PartError: if it does not import, its constructor fails, or it lacks a method.
    """
    raise _unknown_kind(section)


@singledispatch
def describe(section: object, context: MemberContext) -> dict[str, Any]:
    """The entry in ``teacher.json`` for a teacher that is not fitted: its ``version``, but no Python and no address.

    Files that the teacher needs are written to ``context.folder / context.leaf.name``.

    :raises PartError: if it cannot be described.
    """
    raise _unknown_kind(section)


@singledispatch
def open_member(section: object, context: MemberContext, entry: dict[str, Any]) -> Member:
    """The teacher, ready to answer.

    :param entry: of ``teacher.json``, as :func:`describe` or the fit wrote it.
    :raises PartError: if it cannot be opened, or its answers would differ from those stored under its version.
    """
    raise _unknown_kind(section)


@singledispatch
def current_version(section: object, context: MemberContext) -> str | None:
    """The version that :func:`describe` would give a teacher that is not fitted; no teacher is asked.

    :returns: None: a teacher of this kind does not change while its section stays the same.
    """
    return None


@singledispatch
def logged_version(section: object, context: MemberContext, models: Sequence[str]) -> str | None:
    """The version under which answers that were logged elsewhere are stored as this teacher's; None: they are not.

    :param models: names of the model that answered: the one that was asked for, and the one that the answer states.
    """
    return None


def answer_version(context: MemberContext, own: str = "", weights_digest: str = "") -> str:
    """Hash of everything that decides the answers of a teacher that is not fitted.

    :param own: the fingerprint of a ``python`` teacher; the pinned address of an MLflow model.
    :param weights_digest: hash of the weights file that the section names.
    """
    section = context.leaf.teacher
    decisive = section.model_dump_json(exclude=set(section.non_identity_fields))
    return short_id(decisive, context.config.actions, own, weights_digest)


def require_version(context: MemberContext, entry: dict[str, Any], version: str) -> None:
    """:raises PartError: if the teacher would answer otherwise now than when its answers were stored."""
    if entry["version"] != version:
        raise PartError(
            f"{context.where}: the section or the model has changed since this teacher was stored, "
            f"so its stored answers are not valid. {REFRESH_ADVICE}"
        )


def _unknown_kind(section: object) -> TypeError:
    kind = type(section).__name__
    return TypeError(f"no teacher of kind {getattr(section, 'kind', '?')!r}: {kind} is not registered in its file")


import_kinds("stillhouse.teachers", LeafTeacher)
