"""From a YAML file to a checked agent file, every mistake with its line, key and remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from stillhouse.config.agent import AgentConfig
from stillhouse.config.base import TAGS
from stillhouse.config.places import agents_folder
from stillhouse.config.reading import read_yaml
from stillhouse.config.wording import as_written, nearest
from stillhouse.errors import ConfigError

__all__ = ["load", "load_file"]


def load(agent: str) -> AgentConfig:
    """The agent of that name from :func:`agents_folder`.

    :raises ConfigError: if the name is not one, there is no such file, or the file is wrong.
    """
    folder = agents_folder()
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if not re.fullmatch(r"[a-z][a-z0-9_-]{0,62}", agent) or agent not in known:
        close = difflib.get_close_matches(agent, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"there are: {', '.join(known) or 'none'}"
        raise ConfigError(f"no agent {agent!r} in {folder} ({hint}); STILLHOUSE_AGENTS names another folder")
    config = load_file(folder / f"{agent}.yaml")
    if config.agent != agent:
        raise ConfigError(f"{folder / agent}.yaml: agent: is {config.agent!r}; it must be the file's name, {agent!r}")
    return config


_MOST_BYTES = 512 * 1024
_MOST_MISTAKES = 20
"""That are told at once."""


def load_file(path: Path | str) -> AgentConfig:
    """Read, check and freeze one agent file.

    :raises ConfigError: naming the file, the line, the key and what to do.
    """
    path = Path(path)
    try:
        if path.exists() and not path.is_file():
            raise ConfigError(f"{path}: cannot be read (it is not a file)")
        with path.open("rb") as file:
            content = file.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise ConfigError(f"{path}: has more than the {_MOST_BYTES:,} bytes that an agent file may have")
        text = content.decode("utf-8")
    except (OSError, ValueError) as error:  # not UTF-8, or a path with a NUL
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    return _parsed(path, text)


@lru_cache(maxsize=32)  # every task of a run asks for its agent; a changed text is another key
def _parsed(path: Path, text: str) -> AgentConfig:
    try:
        root, content = read_yaml(text)
    except ConfigError as error:
        raise ConfigError(f"{path}:{error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}:1: must be a mapping with the keys {', '.join(AgentConfig.model_fields)}")
    if twice := list(islice(_written_twice(root), _MOST_MISTAKES)):
        raise ConfigError("\n".join(f"{path}:{line}" for line in twice))
    try:
        config = AgentConfig.model_validate(content)
    except ValidationError as error:
        lines = [f"{path}:{line}" for line in islice(_explain(error, root, content), _MOST_MISTAKES + 1)]
        if len(lines) > _MOST_MISTAKES:
            lines[-1] = f"and more: these are the first {_MOST_MISTAKES} mistakes"
        raise ConfigError("\n".join(lines)) from error
    config._file = str(path)
    return config


def _explain(error: ValidationError, root: yaml.Node | None, content: Any) -> Iterator[str]:
    """One line per mistake: line number, dotted key, what is wrong and what to write instead."""
    for mistake in error.errors(include_url=False):
        if mistake["type"] == "too_short" and len(mistake["input"]) >= mistake["ctx"]["min_length"]:
            continue  # pydantic counts only the entries that are right; what is wrong with the others is said already
        keys, tags = _without_tags(mistake["loc"], content)
        above, messages = _message(keys, tags, mistake)
        for message in messages.split("\n"):
            keys, message = _named(above, message)
            yield f"{_line(root, keys)}: {'.'.join(map(str, keys)) or 'the file'}: {message}"


def _named(above: Keys, message: str) -> tuple[Keys, str]:
    """A message that begins with the key it is about, such as ``rules.0.low: …``, is about that key below."""
    found = re.match(r"([a-z_][a-z_.0-9]*): ", message)
    if not found:
        return above, message
    return above + tuple(int(key) if key.isdigit() else key for key in found[1].split(".")), message[found.end() :]


Keys = tuple[int | str, ...]


def _message(keys: Keys, tags: dict[int, str], mistake: Mapping[str, Any]) -> tuple[Keys, str]:
    """The key that a mistake is about, and the mistake in a reader's words instead of pydantic's."""
    kind, given, context = mistake["type"], mistake["input"], mistake.get("ctx", {})
    if kind == "invalid_key" or (keys and keys[-1] == "[key]"):
        above = keys[:-1] if kind == "invalid_key" else keys[:-2]
        return above, f"the key {as_written(given)} must be text: put it in quotes"
    match kind:
        case "extra_forbidden":
            return keys, f"unknown key; {nearest(keys[-1], _fields_at(keys[:-1], tags), 'known keys')}"
        case "missing":
            about = _fields_at(keys[:-1], tags).get(str(keys[-1]), {}).get("description")
            return keys, "is required and missing" + (f": {about}" if about else "")
        case "union_tag_invalid" | "union_tag_not_found":
            keys = (*keys, context["discriminator"].strip("'"))
            known = _tags_at(keys[:-1], tags)
            if kind == "union_tag_not_found":
                return keys, f"is required and missing: one of {', '.join(known)}"
            return keys, f"{context['tag']!r} is not known; {nearest(context['tag'], known, 'known are')}"
        case "literal_error":
            known = re.findall(r"'([^']*)'", context["expected"]) or re.split(r", | or ", context["expected"])
            return keys, f"{given!r} is not known; {nearest(given, known, 'known are')}"
        case "model_type" | "model_attributes_type" | "dict_type":
            fields = ", ".join(_fields_at(keys, tags))
            return keys, f"must be a mapping, not {as_written(given)}" + (f"; its keys are: {fields}" if fields else "")
        case "value_error":
            return keys, mistake["msg"].removeprefix("Value error, ")
        case "string_pattern_mismatch":
            return keys, f"{given!r} must be {_PATTERNS[context['pattern']]}"
        case _ if kind.split("_")[0] in ("datetime", "timezone"):
            return keys, f"{as_written(given)} must be a moment with a time zone, such as 2013-01-01T00:00:00Z"
    for start, words in _WORDS.items():
        if kind.startswith(start):
            return keys, f"{words.format(**{k: as_written(v) for k, v in context.items()})}, not {as_written(given)}"
    return keys, f"{mistake['msg'][0].lower()}{mistake['msg'][1:]}, got {as_written(given)}"


_WORDS = {
    "string_type": "must be text: put it in quotes",
    "tuple_type": "must be a list, such as [a, b]",
    "int_": "must be a whole number",
    "float_": "must be a number",
    "bool_": "must be true or false",
    "finite_number": "must be a finite number",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "too_short": "must have at least {min_length} entries",
}
_PATTERNS = {
    r"^[a-z][a-z0-9_-]{0,62}$": "a name: a lower-case letter, then lower-case letters, digits, _ or -, at most 63",
    r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$": "of the form 'package.module:object'",
    r"^sha256:[0-9a-f]{64}$": "'sha256:' and 64 hexadecimal digits, as the message says that refuses the model",
    r"^[A-Z][A-Z0-9_]*$": "the name of an environment variable: a capital letter, then capitals, digits or _",
}


def _without_tags(loc: Keys, content: Any) -> tuple[Keys, dict[int, str]]:
    """The keys as the file has them, and the tags that pydantic puts between them, by the place before which."""
    keys: list[int | str] = []
    tags: dict[int, str] = {}
    for key in loc:
        is_tag = isinstance(content, dict) and key in (content.get(tag) for tag in TAGS)
        if is_tag and keys and len(keys) not in tags:
            tags[len(keys)] = str(key)
            continue
        keys.append(key)
        try:
            content = content[key]
        except (KeyError, IndexError, TypeError):
            content = None
    return tuple(keys), tags


def _written_twice(node: yaml.Node | None, above: str = "") -> Iterator[str]:
    """One line per key that a mapping has more than once; YAML would silently take the last."""
    if isinstance(node, yaml.MappingNode):
        first: dict[str, int] = {}
        for name, value in node.value:
            key, line = f"{above}{name.value}", name.start_mark.line + 1
            if key in first:
                yield f"{line}: {key}: is written twice (first in line {first[key]}); remove one"
            first.setdefault(key, line)
            yield from _written_twice(value, f"{key}.")
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from _written_twice(value, f"{above}{number}.")


def _line(node: yaml.Node | None, keys: Keys) -> int:
    """Line (1-based) of the deepest node on the way to ``keys`` that the file has."""
    line = 1 if node is None else node.start_mark.line + 1
    for key in keys:
        if isinstance(node, yaml.MappingNode):
            for name, value in node.value:
                if name.value == str(key):
                    node, line = value, name.start_mark.line + 1
                    break
            else:
                return line
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
    return line


def _fields_at(keys: Keys, tags: Mapping[int, str]) -> dict[str, dict[str, Any]]:
    """The fields that the section at ``keys`` knows, with their JSON schemas."""
    return {name: field for part in _sections_at(keys, tags) for name, field in part.get("properties", {}).items()}


def _tags_at(keys: Keys, tags: Mapping[int, str]) -> list[str]:
    """The tags of the union at ``keys``."""
    return [tag for part in _sections_at(keys, tags) for tag in _tags_of(part)]


@cache
def _schema() -> dict[str, Any]:
    return AgentConfig.model_json_schema()


def _sections_at(keys: Keys, tags: Mapping[int, str]) -> list[dict[str, Any]]:
    schema = _schema()
    here = [schema]
    for place, key in enumerate(keys, start=1):
        here = [_resolved(child, schema) for parent in here for child in _children(parent, key)]
        if place in tags:
            here = [part for part in here if tags[place] in _tags_of(part)]
    return here


def _tags_of(section: dict[str, Any]) -> list[str]:
    fields = section.get("properties", {})
    return [fields[name]["const"] for name in TAGS if "const" in fields.get(name, {})]


def _resolved(part: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    reference = part.get("$ref")
    found: dict[str, Any] = schema["$defs"][reference.rsplit("/", 1)[1]] if reference else part
    return found


def _children(part: dict[str, Any], key: int | str) -> Iterator[dict[str, Any]]:
    child = part.get("items") if isinstance(key, int) else part.get("properties", {}).get(key)
    if child is None and isinstance(part.get("additionalProperties"), dict):
        child = part["additionalProperties"]
    if child is not None:
        yield from child.get("oneOf", child.get("anyOf", [child]))
