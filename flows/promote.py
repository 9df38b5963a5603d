"""Promote: a person makes a version the champion, decides about the waiting challenger, or goes back."""

from __future__ import annotations

from typing import Annotated, Literal

from prefect import flow
from pydantic import Field

from stillhouse.locks import refresh_lock
from stillhouse.records import Verdict
from tasks import events, promoting, reporting
from tasks.common import AgentName
from tasks.endings import conclude_verdict, keep_result, name_run

__all__ = ["promote"]


@flow(name="promote", flow_run_name=name_run, on_completion=[keep_result], validate_parameters=True)
def promote(
    agent: AgentName = "flights",
    action: Literal["promote", "approve", "reject", "rollback"] = "promote",
    version: Annotated[int | None, Field(ge=1)] = None,
    reason: Annotated[str, Field(max_length=500)] = "",
    by: Annotated[str, Field(max_length=100)] = "",
) -> Verdict:
    """Move the alias ``champion``, or reject the challenger; record the champion before, who asked for it and why.

    Args:
        agent: name of the agent file in agents/
        action: promote makes `version` the champion, or the waiting challenger if `version` is empty; approve makes the
            waiting challenger the champion; reject refuses it; rollback makes the previous champion the champion again
        version: version of the registered model that has the agent's name; for approve and reject, the version that was
            looked at (empty: whichever waits)
        reason: why; recorded with the verdict. Required for reject
        by: who; recorded with the verdict. Empty: the user that runs the flow
    """
    with refresh_lock(agent):
        if action == "rollback":
            verdict = promoting.roll_back(agent, reason, by)
        elif action == "reject":
            verdict = promoting.reject(agent, reason, by, version)
        elif action == "approve":
            verdict = promoting.approve(agent, reason, by, version)
        else:
            verdict = promoting.promote_version(agent, version, reason, by)
        reporting.publish_promotion(verdict)
        if verdict.result != "rejected":
            reporting.publish_champion(verdict)
        events.announce_verdict(verdict)
    return conclude_verdict("promote", verdict)
