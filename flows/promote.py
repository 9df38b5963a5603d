"""Promote: a person moves the champion, forwards to a named version or back to the previous one."""

from __future__ import annotations

from typing import Annotated, Literal

from prefect import flow
from pydantic import Field

from stillhouse.records import Verdict
from tasks import promoting, reporting
from tasks.common import AgentName, refresh_lock

__all__ = ["promote"]


@flow(name="promote", flow_run_name="{action} {agent}", validate_parameters=True)
def promote(
    agent: AgentName = "flights",
    action: Annotated[
        Literal["promote", "rollback"], Field(description="promote `version`, or go back to the previous champion")
    ] = "promote",
    version: Annotated[
        int | None, Field(ge=1, description="version of the registered model named after the agent; for promote")
    ] = None,
    reason: Annotated[str, Field(max_length=500, description="why; recorded with the verdict")] = "asked for by hand",
) -> Verdict:
    """Move the alias ``champion`` and record who was champion before, and why it moved."""
    with refresh_lock(agent):
        if action == "rollback":
            verdict = promoting.roll_back(agent, reason)
        else:
            verdict = promoting.promote_version(agent, version, reason)
        reporting.publish_promotion(verdict)
    return verdict
