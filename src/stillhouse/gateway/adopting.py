"""Adopting a task: the agent file that is drafted from what was recorded of it, for a person to edit."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from stillhouse import config
from stillhouse.config.base import NAME_PATTERN
from stillhouse.errors import ConfigError, DataError
from stillhouse.gateway.handing_over import HandedOver, hand_over
from stillhouse.gateway.questions import NO_TOOL
from stillhouse.gateway.store import GatewayStore, store_path
from stillhouse.gateway.tasks import TaskSummary
from stillhouse.records import Record

__all__ = ["Adopted", "adopt", "draft_agent", "find_task"]

_MIN_LEARNED = 2  # answers, for an action that no schema names
_MAX_FIELDS = 50
_RESERVED = ("observation_id", "observed_at", "content_key")  # the knowledge base's own columns
_FIELD_SHARE = 0.95  # of the messages that are JSON objects with the same fields
_LENGTHS = (100, 200, 500, 1000, 2000, 5000, 10_000, 50_000)  # characters
_TRAIN, _CURRENT = "8w", "7d"


class Adopted(Record):
    """What an adoption has made."""

    path: Path = Field(description="of the agent file")
    agent: str
    actions: tuple[str, ...]
    handed_over: HandedOver


def adopt(task: str, name: str) -> Adopted:
    """Draft the agent file of a task and hand what was recorded over to the agent's knowledge base.

    :param task: its key, the beginning of its key, or the name that callers gave it.
    :param name: of the new agent; an existing file ``<name>.yaml`` is never replaced.
    :raises ConfigError: if there is no such task, several, or a file of that name; or if the task was adopted before.
    :raises DataError: if what was recorded has no two actions to learn.
    """
    if not GatewayStore.exists():
        raise ConfigError("no task was recorded yet: send requests through `stillhouse serve --upstream URL` first")
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"{name[:80]!r} is no name of an agent: it has small letters, digits, _ and -, and begins with a letter"
        )
    folder = config.agents_folder()
    path = folder / f"{name}.yaml"
    if path.exists():
        raise ConfigError(f"{path} exists already, and nothing is overwritten: choose another name")
    store = GatewayStore(store_path())
    try:
        summary = find_task(store.tasks(), task)
        captures = list(store.captures(summary.task.key))
    finally:
        store.close()
    if (other := _find_adopter(summary.task.key)) is not None:
        raise ConfigError(
            f"task {summary.task.key} was adopted by agent {other!r} already: refresh it, or edit its file"
        )
    text = draft_agent(name, summary, captures)
    folder.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as file:
        file.write(text)
    try:
        settings = config.load(name)
        moved = hand_over(settings)
    except Exception:
        path.unlink()  # a name that is no agent's, or a folder that is not that of agents: nothing was adopted
        raise
    return Adopted(path=path, agent=name, actions=settings.actions, handed_over=moved)


def find_task(summaries: Sequence[TaskSummary], wanted: str) -> TaskSummary:
    """The task with this key, beginning of a key, or name.

    :raises ConfigError: if there is none, or several.
    """
    found = [
        summary
        for summary in summaries
        if summary.task.name == wanted or (wanted and summary.task.key.startswith(wanted))
    ]
    if len(found) == 1:
        return found[0]
    if not found:
        raise ConfigError(f"no task is called {wanted!r}: `stillhouse tasks` lists those that were recorded")
    keys = ", ".join(summary.task.key for summary in found)
    raise ConfigError(f"{wanted!r} may be one of {len(found)} tasks, {keys}: give the whole key")


def draft_agent(name: str, summary: TaskSummary, captures: Sequence[Mapping[str, Any]]) -> str:
    """The agent file of a task as YAML.

    :param captures: of the task, as :meth:`GatewayStore.captures` gives them.
    :raises DataError: if there are fewer than two actions.
    """
    actions = _actions(summary, captures)
    columns = _draft_columns([str(capture["observation"]) for capture in captures])
    is_text = columns is None
    sections: dict[str, Any] = {
        "agent": name,
        "description": f"Decides task {summary.task.key} in the place of {_plain(summary.task.model)}.",
        "actions": list(actions),
        "observations": {"columns": columns or {"text": _draft_text(captures)}},
        "front_door": {"task": summary.task.key, **({} if is_text else {"fields": True})},
        "teachers": [{"kind": "recorded", "name": "upstream"}],
        "student": _draft_student(columns),
        "windows": {"train": _TRAIN, "current": _CURRENT},
        "watch": {"every": "1d"},
        "budgets": {"max_bytes": 3_000_000},
        "runtime": {"cascade": {"agreement": 0.98, "confidence": 0.95, "audit": 0.05}},
    }
    head = (
        f"# Drafted by `stillhouse adopt` from {len(captures):,} records of task {summary.task.key}. Edit it freely:\n"
        "# docs/reference/agent-file.md has every key, `stillhouse check` explains what is wrong.\n"
    )
    body = yaml.safe_dump(sections, sort_keys=False, allow_unicode=True, width=110, default_flow_style=None)
    return head + body


def _actions(summary: TaskSummary, captures: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The actions of the schema, or those that were answered more than once."""
    named = tuple(action for action in summary.task.actions if action != NO_TOOL)
    counts = Counter(str(capture["action"]) for capture in captures if capture["action"] is not None)
    if not named:
        named = tuple(sorted(action for action, count in counts.items() if count >= _MIN_LEARNED and action != NO_TOOL))
    if NO_TOOL in counts and NO_TOOL in (*summary.task.actions, *counts):
        named = (*named, NO_TOOL)
    if len(named) < 2:
        raise DataError(
            f"task {summary.task.key} has {len(named)} actions in {len(captures):,} records, and an agent needs two: "
            "let it run until there are more answers"
        )
    return named


def _draft_text(captures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    longest = max((len(str(capture["observation"])) for capture in captures), default=0)
    limit = next((length for length in _LENGTHS if length >= 2 * longest), None)
    return {"type": "text", **({} if limit is None else {"max_length": limit})}


def _draft_columns(observations: Sequence[str]) -> dict[str, Any] | None:
    """The columns if the messages are JSON objects of the same fields; None: they are texts."""
    contents = [content for text in observations if (content := _read_fields(text)) is not None]
    if not contents or len(contents) < _FIELD_SHARE * len(observations):
        return None
    names = Counter(name for content in contents for name in content)
    fields = [name for name, count in names.items() if count >= _FIELD_SHARE * len(contents) and name not in _RESERVED]
    if not fields or len(names) > _MAX_FIELDS or not all(re.fullmatch(r"[A-Za-z_]\w{0,62}", name) for name in fields):
        return None
    return {name: _draft_field([content.get(name) for content in contents]) for name in fields}


def _read_fields(text: str) -> dict[str, Any] | None:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_flat = isinstance(content, dict) and not any(isinstance(value, dict | list) for value in content.values())
    return content if is_flat else None


def _draft_field(values: Sequence[Any]) -> dict[str, Any]:
    given = [value for value in values if value is not None]
    if given and all(isinstance(value, int | float) and not isinstance(value, bool) for value in given):
        return {"type": "number"}
    texts = [str(value) for value in given]
    many = len(set(texts)) > max(40, len(texts) // 10)
    words = sum(len(text.split()) >= 3 for text in texts)
    return {"type": "text" if many and 2 * words >= len(texts) else "category"}


def _draft_student(columns: Mapping[str, Mapping[str, Any]] | None) -> dict[str, Any]:
    if columns is not None and not any(column["type"] == "text" for column in columns.values()):
        return {"kind": "tabular"}
    return {"kind": "text", "encoder": {"type": "bag", "width": 96}, "length": 32, "widths": [], "dropout": 0.2}


def _find_adopter(key: str) -> str | None:
    """The agent whose file names the task; files that cannot be read are passed over."""
    for path in sorted(config.agents_folder().glob("*.yaml")):
        try:
            settings = config.load_file(path)
        except ConfigError:
            continue
        if settings.front_door is not None and settings.front_door.task == key:
            return settings.agent
    return None


def _plain(text: str) -> str:
    """A text from a request as it may stand in a file that people read."""
    return re.sub(r"[^\w.:/@ -]", "?", text)[:80]
