"""Promote: a person moves the champion, forwards to a named version or back to the previous one."""

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
    """Move the alias ``champion`` and record who was champion before, and why it moved.

    Args:
        agent: name of an agent file in agents/
        action: promote makes `version` the champion; rollback goes back to the previous champion
        version: version of the registered model that is named after the agent; needed to promote
        reason: why; recorded with the verdict
    """
    with refresh_lock(agent):
        if action == "rollback":
            verdict = promoting.roll_back(agent, reason)
        else:
            verdict = promoting.promote_version(agent, version, reason)
        reporting.publish_promotion(verdict)
    return verdict
