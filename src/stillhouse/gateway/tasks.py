"""Tasks: closed questions that recur, recognised by an exact key."""

from __future__ import annotations

import hashlib
import re

import msgspec
from pydantic import AwareDatetime, Field

from stillhouse.gateway.questions import ClosedQuestion
from stillhouse.records import Record

__all__ = ["Task", "TaskReport", "TaskSummary", "is_task_name", "make_task", "task_key"]

KEY_LENGTH = 16
"""Hexadecimal digits of a task's key."""

_encoder = msgspec.json.Encoder()


def task_key(tenant: str, question: ClosedQuestion, name: str | None = None) -> str:
    """The key of a question's task: all that changes its answer, except for what varies from request to request.

    :param name: of the task, from the header ``x-stillhouse-task``: a named task and an unnamed one are never the same.
    """
    content = [tenant, question.protocol, question.model, name, question.constant]
    return hashlib.blake2b(_encoder.encode(content), digest_size=KEY_LENGTH // 2).hexdigest()


def is_task_name(text: str) -> bool:
    """Whether a text may name a task.

    >>> is_task_name("refunds.v2"), is_task_name("two words")
    (True, False)
    """
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", text) is not None


class Task(Record):
    """A closed question that recurs."""

    key: str
    tenant: str
    name: str | None = Field(default=None, description="given by the caller")
    protocol: str
    model: str
    actions: tuple[str, ...] = Field(description="in the request's order; empty: learned from the answers")


def make_task(tenant: str, question: ClosedQuestion, name: str | None = None) -> Task:
    """The task of a question.

    >>> from stillhouse.gateway.protocols import PROTOCOLS
    >>> messages = [{"role": "system", "content": "Route."}, {"role": "user", "content": "My card is gone"}]
    >>> request = {"model": "m", "messages": messages, "max_tokens": 5}
    >>> (question,) = PROTOCOLS["/v1/chat/completions"].read_request(request)
    >>> task = make_task("acme", question)
    >>> messages[1]["content"] = "Another text"
    >>> (question,) = PROTOCOLS["/v1/chat/completions"].read_request(request)
    >>> make_task("acme", question) == task, make_task("another tenant", question) == task
    (True, False)
    """
    return Task(
        key=task_key(tenant, question, name),
        tenant=tenant,
        name=name,
        protocol=question.protocol,
        model=question.model,
        actions=question.actions,
    )


class TaskSummary(Record):
    """What ``stillhouse tasks`` shows of a task."""

    task: Task
    first_at: AwareDatetime
    last_at: AwareDatetime
    requests: int = Field(ge=0, description="recorded, whoever answered")
    answered_locally: int = Field(ge=0)
    compared: int = Field(ge=0, description="upstream's answers that it was asked for blindly beside a champion")
    agreed: int = Field(ge=0, description="of these, what the champion said or would have said")
    usable: int = Field(ge=0, description="upstream's answers that are one of the actions")
    answers: int = Field(ge=0, description="different actions in these answers")
    callers: int = Field(ge=0)
    input_tokens: int = Field(ge=0, description="as the upstream reported them")
    output_tokens: int = Field(ge=0, description="as the upstream reported them")
    money: float | None = Field(default=None, ge=0, description="by the prices of gateway.yaml; null without a price")
    median_ms: float | None = Field(default=None, ge=0, description="of the upstream's answers, to their last byte")
    is_closed: bool = Field(description="false: its answers were no labels, so nothing is recorded any more")
    is_referred: bool = Field(description="later requests refer to its answers, so it is never answered locally")


class TaskReport(Record):
    """What ``stillhouse tasks`` shows."""

    tasks: tuple[TaskSummary, ...] = Field(description="the most frequent first")
    counts: dict[str, int] = Field(
        description="requests since the first one, as captures:<what became of the record> and unrecognised:<reason>"
    )
