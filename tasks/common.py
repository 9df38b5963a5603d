"""Settings that all tasks share: timeout, retries, and how user errors are logged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar

from prefect import Task, runtime, task
from prefect.client.schemas.objects import State, TaskRun
from pydantic import Field

from stillhouse.errors import RegistryError, StillhouseError

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

    :param name: name of the task's runs; may contain the task's parameters in braces.
    :param retries: number of retries after an error that a retry can fix (see :func:`_can_retry`).
    :param timeout_seconds: longest time of the call.
    """
    return task(
        task_run_name=name,
        retries=retries,
        retry_delay_seconds=2,
        retry_condition_fn=_can_retry,
        timeout_seconds=timeout_seconds,
        persist_result=False,
    )


async def _can_retry(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Return False for user errors, which no retry fixes, and True for others, such as a lost MLflow server."""
    try:
        await state.result()
    except StillhouseError as error:
        return isinstance(error, RegistryError)
    except Exception:
        return True
    return False


class _WithoutUserTracebacks(logging.Filter):
    """Log a user error as its one-sentence message; other errors keep their traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], StillhouseError):
            record.exc_info = None
        return True


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_WithoutUserTracebacks())
