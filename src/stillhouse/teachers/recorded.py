"""A teacher that answers elsewhere: its answers are recorded at the front door, and it is never asked from here.

The front door has no credential of its own, so nobody but a caller can ask the upstream. Its answers come to the
knowledge base with the requests, under a version that follows the model and the fingerprint that the upstream names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig, RecordedTeacher
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import Spending, short_id
from stillhouse.teachers.answers import Allowance, Answers
from stillhouse.teachers.kinds import Member, MemberContext, describe, logged_version, open_member

__all__ = ["NOT_ASKED", "recorded_version"]

NOT_ASKED = "its answers are recorded at the front door, and it is not asked from here"
_PREFIX = "recorded"


def recorded_version(config: AgentConfig, name: str, answered_by: str) -> str:
    """The version under which a recorded teacher's answers are stored.

    :param name: of the teacher in the agent file.
    :param answered_by: model and fingerprint, as the upstream named them with the answer.
    """
    return f"{_PREFIX}:{short_id(name, answered_by, config.actions)}"


@describe.register
def _(section: RecordedTeacher, context: MemberContext) -> dict[str, Any]:
    return {"version": _newest_version(context) or recorded_version(context.config, context.leaf.name, "")}


@open_member.register
def _(section: RecordedTeacher, context: MemberContext, entry: dict[str, Any]) -> Member:
    def answer(rows: pd.DataFrame, _allowance: Allowance) -> Answers:
        nothing = np.full((len(rows), len(context.config.actions)), np.nan)
        return Answers(nothing, Spending(), stop_reason=NOT_ASKED)

    return Member(context.leaf.name, context.leaf.share, answer, entry["version"], max_calls_per_row=0)


@logged_version.register
def _(section: RecordedTeacher, context: MemberContext, models: Sequence[str]) -> str | None:
    return recorded_version(context.config, context.leaf.name, models[-1])


def _newest_version(context: MemberContext) -> str | None:
    """The version of the newest recorded answer; None if there is none yet."""
    return KnowledgeBase(context.config).answers.newest_teacher(f"{_PREFIX}:")
