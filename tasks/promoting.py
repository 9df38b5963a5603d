"""The Prefect tasks of ``flows/promote.py``, and the first task of a watch; each makes one engine call."""

from __future__ import annotations

from datetime import datetime

from stillhouse import promoting
from stillhouse.records import Verdict
from tasks.common import engine_task

__all__ = ["approve", "promote_version", "record_unrecorded_champion", "reject", "roll_back"]


@engine_task("promote version {version}", retries=0)
def promote_version(agent: str, version: int | None, reason: str, by: str) -> Verdict:
    """Make ``version``, or the waiting challenger, the champion."""
    return promoting.promote_version(agent, version, reason, by)


@engine_task("approve", retries=0)
def approve(agent: str, reason: str, by: str, version: int | None) -> Verdict:
    """Make the waiting challenger the champion."""
    return promoting.approve(agent, reason, by, version)


@engine_task("reject", retries=0)
def reject(agent: str, reason: str, by: str, version: int | None) -> Verdict:
    """Refuse the waiting challenger."""
    return promoting.reject(agent, reason, by, version)


@engine_task("roll back", retries=0)
def roll_back(agent: str, reason: str, by: str) -> Verdict:
    """Make the previous champion the champion again."""
    return promoting.roll_back(agent, reason, by)


def record_unrecorded_champion(agent: str, as_of: datetime | None) -> Verdict | None:
    """Record a champion that somebody made by moving the alias in MLflow; None if the champion is as recorded."""
    return promoting.record_unrecorded_champion(agent, as_of)
