"""Events about verdicts, for automations on the Prefect server (``automations/``, docs/how-to/approve.md)."""

from __future__ import annotations

from uuid import NAMESPACE_URL, uuid5

from prefect.events import emit_event

from stillhouse import promoting
from stillhouse.records import Verdict
from stillhouse.shown import escape_line
from tasks.common import engine_task
from tasks.forms import form_url

__all__ = ["ANNOUNCED_RESULTS", "announce_verdict"]

ANNOUNCED_RESULTS = frozenset(
    {"promoted", "refused", "inconclusive", "awaiting_approval", "rolled_back", "rejected"},
)
"""Results of gates and promotions that have an event, ``stillhouse.<result>``."""


def _find_form(verdict: Verdict) -> str:
    """The address of the form for approving what waits; empty if nothing waits, or there is no such deployment."""
    waits = verdict.result == "awaiting_approval"
    return (form_url("promote", verdict.agent, action="approve") if waits else None) or ""


@engine_task("announce: {verdict.result}")
def announce_verdict(verdict: Verdict) -> None:
    """Emit ``stillhouse.promoted``, ``stillhouse.refused`` and so on: the agent, its champion now, the summary, and the
    address of the form for a challenger that waits.

    The id of the event follows from the verdict: a verdict that is announced again, after a kill, has the same one. The
    summary may quote data and names that people chose; it is text on one line, and nothing evaluates it.
    """
    if verdict.result not in ANNOUNCED_RESULTS:
        return
    emit_event(
        event=f"stillhouse.{verdict.result}",
        id=uuid5(NAMESPACE_URL, f"stillhouse/{verdict.agent}/{verdict.verdict_id}/{verdict.result}"),
        resource={"prefect.resource.id": f"stillhouse.agent.{verdict.agent}", "stillhouse.agent": verdict.agent},
        payload={
            "agent": verdict.agent,
            "result": verdict.result,
            "kind": verdict.kind,
            "champion": promoting.current_champion(verdict.agent),
            "verdict_id": verdict.verdict_id,
            "as_of": verdict.as_of.isoformat(),
            "summary": escape_line(verdict.summary),
            "form": _find_form(verdict),
        },
    )
