"""What the protocols share: a closed question, the form of its answer, and an answer that was read.

A *closed question* is a request to a language model whose answer is one of a few known actions. The rest of the door
works with these records only; :mod:`stillhouse.gateway.protocols` translates them from and to each protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

__all__ = [
    "MAX_ACTIONS",
    "MAX_LABEL_CHARACTERS",
    "NO_TOOL",
    "Answer",
    "AnswerForm",
    "ClosedQuestion",
    "LocalAnswer",
    "Reply",
    "ToolCall",
    "Unrecognised",
]

MAX_ACTIONS = 1000
"""Actions of a closed question; a question with more is not recognised."""
MAX_LABEL_CHARACTERS = 64
"""A longer answer is no label."""
NO_TOOL = "(no tool)"
"""The action of an answer in free text where a tool might have been called; it is never given locally."""


class ToolCall(NamedTuple):
    """A call of a tool: its name, and its arguments as JSON."""

    name: str
    arguments: str


class Reply(NamedTuple):
    """What an assistant says: a text, or calls of tools."""

    text: str | None = None
    calls: tuple[ToolCall, ...] = ()


class AnswerForm(Protocol):
    """How an action is said in a protocol of messages: as an enum in JSON, as a tool call, or as a label."""

    @property
    def actions(self) -> tuple[str, ...]:
        """The actions in the request's order; empty if they are learned from the answers."""

    @property
    def local_actions(self) -> frozenset[str] | None:
        """The actions that can be said without a language model; None: all."""

    def write(self, action: str) -> Reply:
        """The reply that says ``action``, one of ``local_actions``."""

    def read(self, reply: Reply) -> str | None:
        """The action that a reply says; None if it says none, or several."""


@dataclass(frozen=True, slots=True)
class ClosedQuestion:
    """One question with a closed answer."""

    protocol: str
    """``openai_chat``, ``openai_responses`` or ``systemone``."""
    model: str
    """As requested."""
    observation: str
    """The part that varies: the last text of the user, or the state as text."""
    constant: Mapping[str, Any]
    """All other parts that change an answer: what the task's key covers."""
    form: AnswerForm
    question_id: str = ""
    """System One's id of the question in its request."""
    streams: bool = False
    stream_usage: bool = False
    """Whether the stream ends with a chunk of token counts."""
    upstream_only: str | None = None
    """Why this request cannot be answered locally; None: it can."""

    @property
    def actions(self) -> tuple[str, ...]:
        """The actions in the request's order; empty if they are learned from the answers."""
        return self.form.actions

    def allows(self, action: str) -> bool:
        """Whether this action may be said locally."""
        if self.form.actions and action not in self.form.actions:
            return False
        return self.form.local_actions is None or action in self.form.local_actions


@dataclass(frozen=True, slots=True)
class Unrecognised:
    """A request that is no closed question of a task: it goes upstream and is not recorded."""

    reason: str
    """One of a few constant texts, for counts."""
    refers_to: str | None = None
    """The id of an earlier answer that the request refers to."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of the upstream, as far as it could be read."""

    action: str | None
    """None if the answer is not one of the actions: ``reason`` says why."""
    probs: Mapping[str, float] | None = None
    model: str | None = None
    """The model that answered, as the upstream names it."""
    fingerprint: str | None = None
    """The upstream's ``system_fingerprint``."""
    input_tokens: int | None = None
    output_tokens: int | None = None
    answer_id: str | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class LocalAnswer:
    """What is needed to write one answer of ours."""

    action: str
    probs: Mapping[str, float]
    version: str
    decision_id: str
    task: str
    input_tokens: int = 0
    """Tokens of the request that the model processed: 0, because no language model did."""
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def confidence(self) -> float:
        """The probability of the action."""
        return self.probs.get(self.action, 0.0)


def most_probable(probs: Mapping[str, float], order: Sequence[str]) -> str:
    """The most probable action; the first one in ``order`` of several.

    >>> most_probable({"a": 0.4, "b": 0.6}, ["a", "b"])
    'b'
    """
    return max(order, key=lambda action: probs.get(action, 0.0))
