"""What each kind of teacher does: the dispatchers on its section, and the member that an ensemble asks.

The file ``teachers/<kind>.py`` registers its section here. All of them are imported at the end of this module, so that
nothing depends on who imports what first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import singledispatch
from pathlib import Path
from typing import Any

import pandas as pd

from stillhouse.config import AgentConfig, Leaf, LeafTeacher
from stillhouse.errors import PartError
from stillhouse.parts import ModelStore, Teacher, import_kinds
from stillhouse.records import short_id
from stillhouse.teachers.answers import Answering

__all__ = [
    "RENEW",
    "Member",
    "MemberContext",
    "answer_version",
    "describe",
    "new_teacher",
    "open_member",
    "require_version",
]

RENEW = "Refresh with teacher=fit, or restore the agent file"
_CHUNK = 5000  # rows after which what a teacher in this process has said is kept


def _free(rows: pd.DataFrame) -> list[float]:
    return [0.0] * len(rows)


@dataclass(frozen=True)
class Member:
    """One of the teachers.

    :param share: its part of the mean where weights do not follow evidence, in 0…1.
    :param version: under which its own knowledge is kept; None for one that is fitted: it is new with each fit.
    :param chunk: rows after which what it has said is kept.
    :param part: gives the user's object behind it, where it runs in this process.
    :param features: whether its answers hold features.
    :param dearest: rows to the most that asking about each can cost, ``[n]``.
    :param most_calls: that one row can take.
    """

    name: str
    share: float
    answer: Answering
    version: str | None = None
    chunk: int = _CHUNK
    part: Callable[[], object] | None = None
    features: bool = False
    dearest: Callable[[pd.DataFrame], list[float]] = _free
    most_calls: int = 1


@dataclass(frozen=True)
class MemberContext:
    """Where one teacher stands.

    :param leaf: its section, name and share.
    :param folder: of all teachers together; what this one stores lies in ``folder / leaf.name``.
    :param models: where models of kind ``mlflow`` come from; None: nowhere.
    """

    config: AgentConfig
    leaf: Leaf
    folder: Path
    models: ModelStore | None = None

    @property
    def where(self) -> str:
        """The teacher as an error names it."""
        return f"{self.config.file}: teachers.{self.leaf.name}"


@singledispatch
def new_teacher(section: object, where: str) -> Teacher:
    """An unfitted teacher; registered by kinds whose ``is_fitted`` may be true.

    :raises PartError: if it does not import, cannot be made, or lacks a method.
    """
    raise _unknown(section)


@singledispatch
def describe(section: object, context: MemberContext) -> dict[str, Any]:
    """What ``teacher.json`` records about a teacher that is not fitted: its ``version``, no Python and no address.

    What it must keep is written to ``context.folder / context.leaf.name``.

    :raises PartError: if it cannot be described.
    """
    raise _unknown(section)


@singledispatch
def open_member(section: object, context: MemberContext, part: dict[str, Any]) -> Member:
    """The teacher that can be asked, from what :func:`describe` (or fitting) has recorded.

    :raises PartError: if it cannot be opened, or would answer otherwise than what was recorded.
    """
    raise _unknown(section)


def answer_version(context: MemberContext, own: str = "", weights: str = "") -> str:
    """Of a teacher that is not fitted: a hash of all that decides its answers.

    :param own: of a ``python`` teacher its fingerprint, of a model in MLflow its pinned address.
    :param weights: hash of the weights that its section names.
    """
    section = context.leaf.teacher
    decisive = section.model_dump_json(exclude=set(section.non_identity_fields))
    return short_id(decisive, context.config.actions, own, weights)


def require_version(context: MemberContext, part: dict[str, Any], version: str) -> None:
    """:raises PartError: if the teacher would answer otherwise now than when its answers were stored."""
    if part["version"] != version:
        raise PartError(
            f"{context.where}: is described otherwise than when this teacher was made, or is another now, "
            f"so what it says is other knowledge. {RENEW}"
        )


def _unknown(section: object) -> TypeError:
    kind = type(section).__name__
    return TypeError(f"no teacher of kind {getattr(section, 'kind', '?')!r}: {kind} is not registered in its file")


import_kinds("stillhouse.teachers", LeafTeacher)
