"""Load an agent file: read the YAML, validate it, and report every error with line, key and remedy."""

from __future__ import annotations

import difflib
import os
import re
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stillhouse.config.agent import AgentConfig
from stillhouse.config.base import NAME_PATTERN
from stillhouse.config.bounded_yaml import read_yaml
from stillhouse.config.explain import duplicate_keys, explain_errors
from stillhouse.config.paths import agents_folder
from stillhouse.errors import ConfigError

__all__ = ["choose_agent", "load", "load_file"]

_MAX_BYTES = 512 * 1024
_MAX_ERRORS = 20
"""Errors that are reported at once."""


def load(agent: str) -> AgentConfig:
    """Load the agent file ``<agent>.yaml`` from :func:`~stillhouse.config.agents_folder`.

    >>> load("flights").actions  # doctest: +SKIP
    ('no_rebook', 'rebook')

    :raises ConfigError: if the name is not valid, there is no such file, or the file has errors.
    """
    folder = agents_folder()
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if not re.fullmatch(NAME_PATTERN, agent) or agent not in names:
        close = difflib.get_close_matches(agent, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(names) or 'none'}"
        raise ConfigError(f"no agent {agent!r} in {folder} ({hint}); STILLHOUSE_AGENTS names another folder")
    config = load_file(folder / f"{agent}.yaml")
    if config.agent != agent:
        raise ConfigError(f"{folder / agent}.yaml: agent: is {config.agent!r}; it must be the file's name, {agent!r}")
    return config


def choose_agent(name_or_path: str) -> str:
    """The name of an agent that is given by its name, or by the path of its file; if both exist, by its name.

    For commands that a person types. The folder of a given path becomes the folder of agent files of this process and
    its children (``STILLHOUSE_AGENTS``), because later steps load the agent by its name.

    >>> choose_agent("flights")
    'flights'
    >>> choose_agent("drafts/tickets.yaml")  # doctest: +SKIP
    'tickets'

    :raises ConfigError: if it is a path that cannot be read, or the file has errors or another name than its agent.
    """
    path = Path(name_or_path)
    if re.fullmatch(r"[\w-]+", name_or_path) and (
        (agents_folder() / f"{name_or_path}.yaml").is_file() or not _is_file(path)
    ):
        return name_or_path
    agent = load_file(path).agent
    if path.name != f"{agent}.yaml":
        raise ConfigError(f"{path}: agent: is {agent!r}, so the file must be called {agent}.yaml: rename one of them")
    os.environ["STILLHOUSE_AGENTS"] = str(path.resolve().parent)
    return agent


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long
        return False


def load_file(path: Path | str) -> AgentConfig:
    """Read, validate and freeze one agent file.

    :raises ConfigError: naming the file, the line, the key and the remedy.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: cannot be read (it is not a file)")
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise ConfigError(f"{path}: is larger than {_MAX_BYTES:,} bytes, the limit for an agent file")
        text = content.decode("utf-8")
    except (OSError, ValueError) as error:  # ValueError: not UTF-8, or a path with a NUL character
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    return _parse(path, path.absolute().parent, text)


@lru_cache(maxsize=32)  # every task of a run loads its agent; the text is part of the key, so changes are seen
def _parse(path: Path, folder: Path, text: str) -> AgentConfig:
    try:
        root, content = read_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}:{error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}:1: must be a mapping with the keys {', '.join(AgentConfig.model_fields)}")
    if duplicates := list(islice(duplicate_keys(root), _MAX_ERRORS)):
        raise ConfigError("\n".join(f"{path}:{line}" for line in duplicates))
    try:
        config = AgentConfig.model_validate(content)
    except ValidationError as error:
        messages = islice(explain_errors(error, root, content, _schema()), _MAX_ERRORS + 1)
        lines = [f"{path}:{message}" for message in messages]
        if len(lines) > _MAX_ERRORS:
            lines[-1] = f"and more: these are the first {_MAX_ERRORS} errors"
        raise ConfigError("\n".join(lines)) from error
    config._file, config._folder = str(path), folder
    return config


@cache
def _schema() -> dict[str, Any]:
    return AgentConfig.model_json_schema()
