"""The Prefect tasks of ``flows/promote.py``; each makes one engine call."""

from __future__ import annotations

from stillhouse import promoting
from stillhouse.records import Verdict
from tasks.common import engine_task

__all__ = ["promote_version", "roll_back"]


@engine_task("promote version {version}", retries=0)
def promote_version(agent: str, version: int | None, reason: str) -> Verdict:
    """Make ``version`` the champion."""
    return promoting.promote_version(agent, version, reason)


@engine_task("roll back", retries=0)
def roll_back(agent: str, reason: str) -> Verdict:
    """Make the previous champion the champion again."""
    return promoting.roll_back(agent, reason)
