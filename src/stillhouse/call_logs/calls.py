"""A logged call in one form, whatever wrote it; and what all formats need to read one."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

__all__ = ["Call", "Format", "Outcome", "Reader", "Unusable", "as_list", "as_mapping", "decoded", "text_of_parts"]

Format = Literal["openai", "otel", "mlflow"]


class Outcome(NamedTuple):
    """What somebody said later about the right action of a call."""

    value: Any
    """An action, or ``True`` if the answer was right."""
    known_at: Any
    """A time as the log writes it; None: when the call was made."""


@dataclass(frozen=True)
class Call:
    """One request to a model with its answer, in the form of OpenAI's chat completions.

    :param line: of the file.
    :param call_id: by which it is recognised in another log; None: by its content and time.
    :param time: as the log writes it: seconds since 1970, an ISO text; None if it says none.
    :param messages: of the request.
    :param parameters: the other keys of the request.
    :param models: the model that was asked for, and the one that answered; either may be empty.
    :param fingerprint: of the system that answered, if the log has one.
    :param choices: of the response, with ``message``, ``finish_reason`` and perhaps ``logprobs``.
    :param error: why there is no response; empty if there is one.
    """

    line: int
    call_id: str | None = None
    time: Any = None
    messages: Sequence[Any] = ()
    parameters: Mapping[str, Any] = field(default_factory=dict)
    models: tuple[str, str] = ("", "")
    fingerprint: str = ""
    choices: Sequence[Any] = ()
    error: str = ""
    outcome: Outcome | None = None

    @property
    def model(self) -> str:
        """The model that answered, or else the one that was asked for."""
        return self.models[1] or self.models[0]


class Unusable(NamedTuple):
    """A record, or a part of one, that is no call that a model answered."""

    line: int
    reason: str


Reader = Callable[[int, Mapping[str, Any]], Iterator[Call | Unusable]]
"""The number of a line and its object → the calls in it."""


def decoded(value: Any) -> Any:
    """``value``, or what it holds if it is a text of JSON: logs often write objects as texts.

    >>> decoded('{"a": 1}'), decoded("book a taxi")
    ({'a': 1}, 'book a taxi')
    """
    if isinstance(value, str) and value.lstrip()[:1] in ("{", "[", '"'):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def as_mapping(value: Any) -> Mapping[str, Any]:
    """``value`` or the object in its text; empty if it is none."""
    value = decoded(value)
    return value if isinstance(value, Mapping) else {}


def as_list(value: Any) -> list[Any]:
    """``value`` or the array in its text; empty if it is none."""
    value = decoded(value)
    return value if isinstance(value, list) else []


def text_of_parts(content: Any) -> str | None:
    """The text of a message's content: a text, or a list of parts that are all texts; None if it holds anything else.

    >>> text_of_parts([{"type": "text", "text": "book "}, {"type": "input_text", "text": "a taxi"}])
    'book a taxi'
    """
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        return None
    texts = [part.get("text", part.get("content")) if isinstance(part, Mapping) else part for part in content]
    kinds = {part.get("type", "text") for part in content if isinstance(part, Mapping)}
    if not kinds <= {"text", "input_text", "output_text"} or not all(isinstance(text, str) for text in texts):
        return None
    return "".join(texts)
