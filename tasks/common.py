"""Settings that all tasks share: timeout, retries, names of artifacts, and the log."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar

from prefect import Task, runtime, task
from prefect.client.schemas.objects import State, TaskRun
from pydantic import Field

from stillhouse import stations
from stillhouse.errors import RegistryError, StillhouseError
from tasks.logs import configure_logs

__all__ = ["AgentName", "artifact_key", "engine_task", "flow_run_address"]

P = ParamSpec("P")
R = TypeVar("R")

AgentName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$", description="name of an agent file, e.g. flights")]


def artifact_key(kind: str, agent: str) -> str:
    """Return the key of an agent's Prefect artifacts; Prefect allows only lower-case letters, digits and dashes.

    >>> artifact_key("watch", "late_flights")
    'watch-late--flights'
    """
    return f"{kind}-{agent.replace('_', '--')}"


def flow_run_address() -> str:
    """Return the address of the current flow run in Prefect's pages; without a server its id, outside a run ""."""
    return str(runtime.flow_run.ui_url or runtime.flow_run.id or "")


def engine_task(name: str, *, retries: int = 1, timeout_seconds: int = 1800) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Return a decorator for a task that makes one engine call and may run for half an hour.

    The task reports itself as a station, see :mod:`stillhouse.stations`.

    :param name: name of the task's runs, as ``station: details``; may contain the task's parameters in braces.
    :param retries: number of retries after an error that a retry can fix (see :func:`_can_retry`).
    :param timeout_seconds: longest time of the call.
    """
    make_task = task(
        task_run_name=name,
        retries=retries,
        retry_delay_seconds=2,
        retry_condition_fn=_can_retry,
        timeout_seconds=timeout_seconds,
        persist_result=False,
    )
    station = name.partition(":")[0]

    def decorate(call: Callable[P, R]) -> Task[P, R]:
        @functools.wraps(call)
        def call_at_station(*args: P.args, **kwargs: P.kwargs) -> R:
            stations.report(station)
            return call(*args, **kwargs)

        return make_task(call_at_station)

    return decorate


async def _can_retry(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return False for user errors, which no retry fixes, and True for others, such as a lost MLflow server."""
    try:
        await state.result()
    except StillhouseError as error:
        return isinstance(error, RegistryError)
    except Exception:
        return True
    return False


configure_logs()
