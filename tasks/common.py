"""What every task shares: how it is declared, how a user's mistake is told, who may refresh now."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache, lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import pandas as pd
from filelock import FileLock
from prefect import Task, task
from prefect.client.schemas.objects import State, TaskRun
from pydantic import Field

from stillhouse import config
from stillhouse.drift.profile import Profile
from stillhouse.errors import RegistryError, StillhouseError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import Baseline, ModelRef, Window
from stillhouse.registry import Registry
from stillhouse.registry.foreign import ForeignModels
from stillhouse.teachers import ensemble
from stillhouse.variant import Variant

__all__ = [
    "DATA_DOCS",
    "FORM",
    "QUESTIONS",
    "AgentName",
    "Champion",
    "artifact_key",
    "champion_parts",
    "engine_task",
    "knowledge_base",
    "labelled",
    "refresh_lock",
    "registry",
    "training_rows",
    "upkeep_lock",
    "watch_lock",
]

AgentName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$", description="an agent file's name, e.g. flights")]


def artifact_key(what: str, agent: str) -> str:
    """The key of an agent's artifacts in Prefect, which takes lower-case letters, digits and dashes alone."""
    return f"{what}-{agent.replace('_', '--')}"


DATA_DOCS = "data_docs/data_checks.html"
"""The artifact of a run that shows what its data was asked and how it answered."""


FORM = "compression/form.onnx"
"""The artifact of a refresh that holds what the chosen variant was quantised from, in float32."""


QUESTIONS = "questions.json"
"""The artifact of a refresh that says of how many rows the teachers were asked."""


async def _worth_another_try(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """A user's mistake stays one however often it is tried; an MLflow that does not answer may answer soon."""
    try:
        await state.result()
    except StillhouseError as error:
        return isinstance(error, RegistryError)
    except Exception:
        return True
    return False


engine_task: Callable[..., Any] = partial(
    task,
    retries=1,
    retry_delay_seconds=2,
    retry_condition_fn=_worth_another_try,
    timeout_seconds=1800,
    persist_result=False,
)
"""``@engine_task(task_run_name=…)``: one engine call, one retry where a retry can help, half an hour at most."""


def knowledge_base(agent: str, actions: Sequence[str] | None = None) -> KnowledgeBase:
    """The agent's knowledge base; with ``actions``, as a model reads it that was made for these."""
    return KnowledgeBase(config.load(agent), actions=actions)


def labelled(base: KnowledgeBase, window: Window, known_by: datetime) -> pd.DataFrame:
    """:meth:`KnowledgeBase.labelled`, read once for all stations of a run: a pinned window never changes."""
    return _labelled(base.root, base.config.agent, tuple(base.outcomes), _pinned(window), known_by, None)


def training_rows(base: KnowledgeBase, window: Window, known_by: datetime) -> pd.DataFrame:
    """:func:`labelled` rows of a training window, thinned to ``windows.max_train_rows``."""
    most = base.config.windows.max_train_rows
    return _labelled(base.root, base.config.agent, tuple(base.outcomes), _pinned(window), known_by, most)


@lru_cache(maxsize=6)
def _labelled(
    root: Path, agent: str, actions: tuple[str, ...], window: str, known_by: datetime, most: int | None
) -> pd.DataFrame:
    base = KnowledgeBase(config.load(agent), root, actions=actions)
    return base.thin(base.labelled(Window.model_validate_json(window), known_by), most)


def _pinned(window: Window) -> str:
    return window.model_copy(update={"name": "pinned"}).model_dump_json()


@cache
def registry(agent: str) -> Registry:
    """The agent's registry, connected once per process."""
    return Registry(agent)


class Champion(NamedTuple):
    """A registered variant, loaded, with everything that it is compared with."""

    model: ModelRef
    student: Variant
    baseline: Baseline
    teacher: ensemble.Ensemble
    profile: Profile


@lru_cache(maxsize=8)
def champion_parts(agent: str, champion: ModelRef) -> Champion:
    """A registered variant, with what it was proved on and its teacher. A version never changes: loaded once."""
    models = registry(agent)
    baseline, student = models.baseline(champion), Variant(models.fetch(champion))
    as_it_was = knowledge_base(agent, student.actions).config
    return Champion(
        champion,
        student,
        baseline,
        ensemble.load(models.fetch(baseline.teacher), as_it_was, ForeignModels()),
        Profile.from_bytes(models.profile(champion)),
    )


def refresh_lock(agent: str) -> FileLock:
    """One refresh at a time per agent on this store; the operating system frees it when its holder dies."""
    return _lock("refresh", agent)


def watch_lock(agent: str) -> FileLock:
    """One process at a time counts evidence."""
    return _lock("watch", agent)


def upkeep_lock(agent: str) -> FileLock:
    """One upkeep of the tables at a time."""
    return _lock("upkeep", agent)


def _lock(kind: str, agent: str) -> FileLock:
    config.load(agent)  # a name that no agent has leaves nothing behind
    folder = config.home() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    return FileLock(folder / f"{kind}-{agent}.lock")


class _PlainMistakes(logging.Filter):
    """A user's mistake is told in its one sentence; everything else keeps its traceback."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and isinstance(record.exc_info[1], StillhouseError):
            record.exc_info = None
        return True


for _name in ("prefect.flow_runs", "prefect.task_runs"):
    logging.getLogger(_name).addFilter(_PlainMistakes())
