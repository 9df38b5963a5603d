"""How a flow run ends: its state has the name of what came out, its message says why, and its name has both.

Automations match these names: an event ``prefect.flow-run.<name>`` is emitted when a run enters the state.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar, cast
from uuid import UUID

import httpx
from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.states import Completed

from stillhouse.records import Verdict, VerdictResult
from stillhouse.shown import escape_line

__all__ = ["STATE_NAMES", "conclude", "conclude_verdict", "keep_result", "log_verdict", "name_run", "state_name"]

log = logging.getLogger("stillhouse.verdicts")

R = TypeVar("R")

STATE_NAMES: Mapping[VerdictResult, str] = {
    "no_drift": "No drift",
    "benign_shift": "Benign shift",
    "drift": "Drift",
    "harmful_drift": "Harmful drift",
    "teacher_failing": "Teacher failing",
    "teacher_changed": "Teacher changed",
    "cooling_down": "Held",
    "not_enough_evidence": "Not enough evidence",
    "data_broken": "Data broken",
    "pays": "Refresh pays",
    "due": "Refresh due",
    "admitted": "Admitted",
    "promoted": "Promoted",
    "refused": "Refused",
    "inconclusive": "Inconclusive",
    "awaiting_approval": "Awaiting approval",
    "rolled_back": "Rolled back",
    "rejected": "Rejected",
    "forgotten": "Forgotten",
}
"""Name of the final state of a run by the result of its verdict. See also :func:`state_name`."""

_results: dict[UUID, Any] = {}
"""Results of the runs of this process that are about to end, by run."""

_ALARMS = ("drift", "harmful_drift", "teacher_failing", "teacher_changed")


def state_name(verdict: Verdict) -> str:
    """The name of the state in which a run with this verdict ends.

    An alarm after which nothing is done is ``Held``, so that ``Drift`` always means that something follows.
    """
    held = verdict.kind == "watch" and verdict.response == "hold" and verdict.result in _ALARMS
    return "Held" if held else STATE_NAMES[verdict.result]


def name_run() -> str:
    """The name of a run when it begins: flow, agent, what was asked for, and the time that it is about, if given.

    For the argument ``flow_run_name`` of a flow.
    """
    context = FlowRunContext.get()
    if context is None:
        raise RuntimeError("a run is named while it begins")
    parameters = context.parameters or {}
    moment = parameters.get("as_of") or parameters.get("end")
    name = _name_request(context) + (f" {_format_time(moment)}" if moment else "")
    return f"{name} ({parameters['trigger']})" if "trigger" in parameters else name


def conclude(flow: str, result: R, message: str, *, state: str = "Completed", as_of: datetime | None = None) -> R:
    """Return ``result`` from a flow, so that its run ends in a state with this name and message.

    Prefect takes a returned state as the final one, and gives the caller of the flow the result in it; the flow needs
    the hook :func:`keep_result`. The function ``.fn`` of a flow, called without a run of its own, returns the result
    itself.

    :param flow: name of the flow that returns.
    :param message: one or more sentences; text from data is escaped.
    :param state: name of the state; its type is COMPLETED.
    :param as_of: the time that the result is about; if given, the run gets a name with time and state.
    """
    context = FlowRunContext.get()
    if context is None or context.flow is None or context.flow.name != flow:
        return result
    if as_of is not None:
        _rename_run(context, f"{_name_request(context)} {_format_time(as_of)}: {state.lower()}")
    if context.flow_run is not None:
        _results[context.flow_run.id] = result
    return cast(R, Completed(name=state, message=escape_line(message), data=result))


def keep_result(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Put the result back into the final state of a run, where the server's answer is a state without it.

    The server answers so if it had stored the state, and its first answer was lost: under load, or while SQLite is
    locked. The caller of the flow would get the error MissingResult. For the argument ``on_completion`` of a flow.
    """
    result = _results.pop(flow_run.id, None)
    if state.data is None:
        state.data = result


def conclude_verdict(flow: str, verdict: Verdict) -> Verdict:
    """Log the verdict with its reasons, and return it from a flow as by :func:`conclude`."""
    log_verdict(verdict)
    return conclude(flow, verdict, verdict.summary, state=state_name(verdict), as_of=verdict.as_of)


def log_verdict(verdict: Verdict) -> None:
    """One line for the verdict, and one for each of its reasons."""
    log.info("%s: %s: %s", verdict.agent, state_name(verdict), escape_line(verdict.summary))
    for reason in verdict.reasons:
        log.info("  %s %s: %s", reason.status, escape_line(reason.measure), escape_line(reason.text))


# --------------------------------------------------------------------------- inside


def _name_request(context: FlowRunContext) -> str:
    """What the run was asked for, and the agent: ``rollback flights``."""
    parameters = context.parameters or {}
    asked = parameters.get("action") or (context.flow.name if context.flow else "")
    return f"{asked} {parameters['agent']}"


def _rename_run(context: FlowRunContext, name: str) -> None:
    """Rename the run. If that fails, nothing follows: the state says the same."""
    client: Any = context.client
    try:
        if context.flow_run is not None:
            client.set_flow_run_name(context.flow_run.id, name)
    except httpx.HTTPError as error:
        log.info("the run keeps its name: %s", escape_line(error))


def _format_time(moment: datetime) -> str:
    """The time to the minute, in UTC if it has a time zone."""
    return f"{moment.astimezone(UTC) if moment.tzinfo else moment:%Y-%m-%d %H:%M}"
