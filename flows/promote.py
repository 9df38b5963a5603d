"""Promote: a person makes a named version, or the previous champion, the champion."""

from __future__ import annotations

from typing import Annotated, Literal

from prefect import flow
from pydantic import Field

from stillhouse.locks import refresh_lock
from stillhouse.records import Verdict
from tasks import promoting, reporting
from tasks.common import AgentName

__all__ = ["promote"]


@flow(name="promote", flow_run_name="{action} {agent}", validate_parameters=True)
def promote(
    agent: AgentName = "flights",
    action: Literal["promote", "rollback"] = "promote",
    version: Annotated[int | None, Field(ge=1)] = None,
    reason: Annotated[str, Field(max_length=500)] = "asked for by hand",
) -> Verdict:
    """Move the alias ``champion``; record the champion before it and the reason.

    Args:
        agent: name of the agent file in agents/
        action: promote makes `version` the champion; rollback makes the previous champion the champion again
        version: version of the registered model that has the agent's name; required for promote
        reason: why the champion changes; recorded with the verdict
    """
    with refresh_lock(agent):
        if action == "rollback":
            verdict = promoting.roll_back(agent, reason)
        else:
            verdict = promoting.promote_version(agent, version, reason)
        reporting.publish_promotion(verdict)
    return verdict
