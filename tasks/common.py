"""What every task shares: how it is declared, when it is tried again, and how a user's mistake is told."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Annotated, Any, ParamSpec, TypeVar

from prefect import Task, task
from prefect.client.schemas.objects import State, TaskRun
from pydantic import Field

from stillhouse.errors import RegistryError, StillhouseError

__all__ = ["AgentName", "artifact_key", "engine_task"]

P = ParamSpec("P")
R = TypeVar("R")

AgentName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$", description="an agent file's name, e.g. flights")]


def artifact_key(what: str, agent: str) -> str:
    """The key of an agent's artifacts in Prefect, which takes lower-case letters, digits and dashes alone."""
    return f"{what}-{agent.replace('_', '--')}"


def engine_task(name: str, *, retries: int = 1) -> Callable[[Callable[P, R]], Task[P, R]]:
    """A task around one call of the engine: one retry where a retry can help, half an hour at most.

    :param name: of its runs; may name parameters in braces.
    """
    return task(
        task_run_name=name,
        retries=retries,
        retry_delay_seconds=2,
        retry_condition_fn=_worth_another_try,
        timeout_seconds=1800,
        persist_result=False,
    )


async def _worth_another_try(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """A user's mistake stays one however often it is tried; an MLflow that does not answer may answer soon."""
    try:
        await state.result()
    except StillhouseError as error:
        return isinstance(error, RegistryError)
    except Exception:
        return True
    return False


class _PlainMistakes(logging.Filter):
    """A user's mistake is told in its one sentence; everything else keeps its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], StillhouseError):
            record.exc_info = None
        return True


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_PlainMistakes())
