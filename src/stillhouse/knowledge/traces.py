"""What forgotten rows may have left in files: ids and texts, found and blotted out as text, JSON, HTML and bytes."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from stillhouse.shown import escape_line, escape_markdown

__all__ = ["BLOT", "Traces"]

BLOT = "[forgotten]"
"""Stands where an id or a text of a forgotten row stood."""

_MIN_FREE_CHARS = 8  # a shorter value is recognised between quotes only: "7" is in every file
_MIN_CHARS = 2


class Traces:
    """Ids and texts by which a file is recognised as showing forgotten rows.

    :param values: of one or two characters are left out.

    >>> traces = Traces(["o1", "my flat burned"])
    >>> traces.blot('{"id": "o1", "said": "My flat? my flat burned!"}')
    '{"id": "[forgotten]", "said": "My flat? [forgotten]!"}'
    >>> traces.in_bytes(b"o1 is another word here"), traces.in_bytes(b"... my flat burned")
    (False, True)
    """

    def __init__(self, values: Iterable[str]) -> None:
        self.values = frozenset(value for value in values if len(value) >= _MIN_CHARS)
        forms = {form for value in self.values for form in _forms(value)}
        self._text = re.compile(_trie_pattern(forms)) if forms else None
        self._bytes = re.compile(_trie_pattern(forms).encode()) if forms else None

    def __bool__(self) -> bool:
        return self._text is not None

    def in_bytes(self, content: bytes) -> bool:
        """Whether a file of that content shows one of them."""
        return self._bytes is not None and self._bytes.search(content) is not None

    def in_text(self, text: str | None) -> bool:
        """Whether a text shows one of them."""
        return text is not None and self._text is not None and self._text.search(text) is not None

    def blot(self, text: str) -> str:
        """The text with :data:`BLOT` in their place, between the same quotes."""
        return text if self._text is None else self._text.sub(_blot, text)

    def blot_value(self, value: Any) -> Any:
        """:meth:`blot` of a text, or of the texts in a list, where different ones stay different; else the value."""
        if isinstance(value, str):
            return self.blot(value)
        if isinstance(value, list):
            names = {item: f"{BLOT} {number}" for number, item in enumerate(dict.fromkeys(map(str, value)), 1)}
            return [names[item] if item in self.values else self.blot_value(item) for item in value]
        return value


def _blot(match: re.Match[str]) -> str:
    found = match[0]
    quote = found[0] if len(found) > 1 and found[0] == found[-1] and found[0] in "\"'" else ""
    return f"{quote}{BLOT}{quote}"


def _forms(value: str) -> Iterator[str]:
    """The value as it stands in a text, in JSON (also in a string of JSON), in HTML and in Markdown."""
    once = {value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]}
    forms = once | {json.dumps(form)[1:-1] for form in once}
    forms |= {html.escape(value), html.escape(value, quote=False), escape_line(value), escape_markdown(value)}
    for form in forms:
        if len(value) >= _MIN_FREE_CHARS:
            yield form
        else:
            yield from (f'"{form}"', f"'{form}'")


def _trie_pattern(forms: Iterable[str]) -> str:
    """A pattern that matches the longest of the forms, in time that does not grow with their number."""
    root: dict[str, Any] = {}
    for form in forms:
        node = root
        for character in form:
            node = node.setdefault(character, {})
        node[""] = {}
    return _pattern_of(root)


def _pattern_of(node: dict[str, Any]) -> str:
    prefix = ""
    while len(node) == 1 and "" not in node:  # without a branch there is no need for depth
        ((character, node),) = node.items()
        prefix += re.escape(character)
    branches = [re.escape(character) + _pattern_of(child) for character, child in node.items() if character]
    if not branches:
        return prefix
    joined = f"(?:{'|'.join(branches)})"
    return prefix + (f"{joined}?" if "" in node else joined)
