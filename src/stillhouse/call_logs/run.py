"""Open logs of calls for an import: which task they are about, and whose knowledge their answers are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from stillhouse.call_logs import mlflow, openai, otel
from stillhouse.call_logs.calls import Format, Reader
from stillhouse.call_logs.questions import Answered, QuestionReader
from stillhouse.call_logs.source import CallLog, CallSource
from stillhouse.config import AgentConfig, home, leaves
from stillhouse.errors import ConfigError, SchemaError
from stillhouse.records import short_id
from stillhouse.shown import escape_line
from stillhouse.teachers.kinds import MemberContext, logged_version

__all__ = ["ANY_TASK", "FORMATS", "CallSources", "open_call_logs"]

FORMATS: tuple[Format, ...] = ("openai", "otel", "mlflow")
"""Formats of logs of calls."""

ANY_TASK = "any"
"""Instead of a task: the calls of all tasks whose answers name the agent's actions."""

_SHOWN_TASKS = 10


@dataclass
class _Task:
    """The usable calls of one task."""

    heading: str
    calls: int = 0


@dataclass
class _Model:
    """The usable calls that one model answered."""

    requested: set[str] = field(default_factory=set)
    newest: pd.Timestamp | None = None
    calls: int = 0


@dataclass(frozen=True)
class CallSources:
    """Logs of calls, ready for :func:`~stillhouse.knowledge.importing.import_files`."""

    sources: list[CallSource]
    notes: list[str]
    """Which task is imported, and whose knowledge the answers of which model are."""


@contextmanager
def open_call_logs(
    config: AgentConfig,
    names: Sequence[str],
    kind: Format,
    task: str | None = None,
    teacher: str | None = None,
) -> Iterator[CallSources]:
    """Open logs of calls: they are read once to find their tasks and models.

    :param names: of files; for ``mlflow`` also of experiments, whose traces are read from MLflow.
    :param task: key of the task to import, as an error lists them, or :data:`ANY_TASK`; None: there must be only one.
    :param teacher: whose knowledge all answers are; None: that of the teacher that asks the model that answered.
    :raises SchemaError: if a file cannot be read, or the calls are of several tasks and ``task`` names none.
    :raises ConfigError: if the agent has no such teacher, or it does not ask a model by its name.
    :raises RegistryError: if MLflow does not answer, or has no such experiment.
    """
    questions = QuestionReader(config)
    with _files(config, names, kind) as paths:
        logs = [CallLog(path, _reader(config, kind), questions) for path in paths]
        tasks, models = _scan(logs, None if task == ANY_TASK else task)
        chosen, notes = _choose_task(tasks, task, names)
        versions, version_notes = _teacher_versions(config, models, teacher)
        for log in logs:
            log.task, log.teacher_versions = chosen, versions
        yield CallSources([CallSource(log, config) for log in logs], [*notes, *version_notes])


def _reader(config: AgentConfig, kind: Format) -> Reader:
    if kind == "openai":
        return openai.read_record
    if kind == "otel":
        return otel.read_record
    outcome = config.importing.outcome if config.importing is not None else None
    return mlflow.reader(outcome.action if outcome is not None else None)


@contextmanager
def _files(config: AgentConfig, names: Sequence[str], kind: Format) -> Iterator[list[Path]]:
    """The files; traces of an experiment are written to a file below ``STILLHOUSE_HOME`` while they are imported."""
    paths, written = list[Path](), list[Path]()
    try:
        for name in names:
            if kind != "mlflow" or Path(name).exists():
                paths.append(Path(name))
                continue
            from stillhouse.registry.traces import write_traces

            path = home() / "imports" / config.agent / f"traces-{short_id(name)}.jsonl"
            path.parent.mkdir(parents=True, exist_ok=True)
            written.append(path)
            write_traces(name, path)
            paths.append(path)
        yield paths
    finally:
        for path in written:
            path.unlink(missing_ok=True)


def _scan(logs: Sequence[CallLog], task: str | None) -> tuple[dict[str, _Task], dict[str, _Model]]:
    """The tasks of all usable calls, and the models that answered those of ``task``."""
    tasks, models = dict[str, _Task](), dict[str, _Model]()
    for log in logs:
        for item, _ in log.answered():
            if not isinstance(item, Answered):
                continue
            tasks.setdefault(item.task, _Task(item.heading)).calls += 1
            if task is None or item.task == task:
                model = models.setdefault(item.call.model, _Model())
                model.requested.add(item.call.models[0])
                model.calls += 1
                model.newest = item.observed_at if model.newest is None else max(model.newest, item.observed_at)
    return tasks, models


def _choose_task(tasks: dict[str, _Task], task: str | None, names: Sequence[str]) -> tuple[str | None, list[str]]:
    """The task to import; None: all.

    :raises SchemaError: if it is not there, or there are several and none is named.
    """
    if task == ANY_TASK or (task is None and len(tasks) <= 1):
        return None, []
    ordered = sorted(tasks.items(), key=lambda item: -item[1].calls)
    shown = "; ".join(
        f"{key} ({found.calls:,} calls: {escape_line(found.heading) or 'without a system message'})"
        for key, found in ordered[:_SHOWN_TASKS]
    )
    more = f"; and {len(tasks) - _SHOWN_TASKS:,} more" if len(tasks) > _SHOWN_TASKS else ""
    if task is None:
        raise SchemaError(
            f"{', '.join(names)}: calls of {len(tasks):,} tasks name actions of the agent: choose one with --task, or "
            f"all with --task {ANY_TASK}, if they differ only in words such as a date. There are: {shown}{more}"
        )
    if task not in tasks:
        raise SchemaError(f"{', '.join(names)}: no call is of the task {task!r}; there are: {shown or 'none'}{more}")
    return task, [f"task {task}: {tasks[task].calls:,} of {sum(found.calls for found in tasks.values()):,} calls"]


def _teacher_versions(
    config: AgentConfig, models: dict[str, _Model], teacher: str | None
) -> tuple[dict[str, str], list[str]]:
    """By model that answered, the version of the teacher whose knowledge its answers are; and what to tell about it.

    Of several models that one name stood for, the newest is the teacher. The answers of the others are stored under
    versions of their own, from which nobody learns.

    :raises ConfigError: if ``teacher`` is none of the agent's, or does not ask a model by its name.
    """
    leaf_by_name = {leaf.name: leaf for leaf in leaves(config.teachers)}
    if teacher is not None and teacher not in leaf_by_name:
        raise ConfigError(f"{config.file}: no teacher is called {teacher!r}; there are: {', '.join(leaf_by_name)}")
    versions, notes = dict[str, str](), list[str]()
    newest_first = sorted(models.items(), key=lambda item: item[1].newest or pd.Timestamp.min, reverse=True)
    current = dict[str, str]()  # by teacher, the model that it is
    for model, found in newest_first:
        for name, leaf in leaf_by_name.items() if teacher is None else [(teacher, leaf_by_name[teacher])]:
            asked = getattr(leaf.teacher, "model", None)
            names = [model, *sorted(found.requested)] if teacher is None else [str(asked)]
            version = logged_version(leaf.teacher, MemberContext(config, leaf, Path()), names)
            if version is None:
                continue
            if name not in current:
                current[name], versions[model] = model, version
                notes.append(f"{found.calls:,} answers of {model or 'a model'} are knowledge of the teacher {name}")
            else:
                versions[model] = short_id(version, model)
                notes.append(
                    f"{found.calls:,} answers of {model} are another version than those of {current[name]}, which is "
                    f"the teacher {name} now: nobody learns from them"
                )
            break
        else:
            if teacher is not None:
                raise ConfigError(
                    f"{config.file}: teachers.{teacher}: asks no model by its name: name a teacher that does"
                )
            notes.append(
                f"{found.calls:,} answers of {model or 'a model without a name'} are decisions only: no teacher of the "
                "agent asks this model (--teacher NAME says whose they are)"
            )
    return versions, notes
