"""A model behind the System One decision protocol: a state and one typed question in, a probability per option out.

``POST <base_url>/systemone`` takes ``{"model", "state", "questions": {id: {"type", "instructions", "criteria"}}}`` and
answers ``{"model", "answers": {id: …}, "usage": {"input_tokens", "output_tokens"}}``. A request holds one question,
because other questions of a request may change an answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig, DecisionsTeacher
from stillhouse.teachers.answers import BUDGET_REACHED, Array
from stillhouse.teachers.kinds import Member, MemberContext, answer_version, describe, open_member
from stillhouse.teachers.prompts import fill_prompt
from stillhouse.teachers.remote import RemoteAsker, Round, StopError, as_member
from stillhouse.teachers.replies import ErrorReplyError
from stillhouse.values import is_missing

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["Decisions", "read_probs", "typed_question"]

_QUESTION_ID = "decision"
_SUM_TOLERANCE = 0.05  # of a sum of probabilities that are not rounded
_MAX_NUMBER_BYTES = 32  # of an option's probability in the reply, with what separates it
_MAX_FRAME_BYTES = 512  # of the rest of the reply

log = logging.getLogger(__name__)


@describe.register
def _(section: DecisionsTeacher, context: MemberContext) -> dict[str, Any]:
    return {"version": answer_version(context)}


@open_member.register
def _(section: DecisionsTeacher, context: MemberContext, entry: dict[str, Any]) -> Member:
    asker = Decisions(context.config, context.leaf.name, section)
    return as_member(asker, context, entry, answer_version(context))


def typed_question(section: DecisionsTeacher, actions: Sequence[str]) -> dict[str, Any]:
    """The question as the protocol writes it: its type, the instructions, and the actions as its criteria.

    >>> section = DecisionsTeacher(kind="decisions", name="d", base_url="http://127.0.0.1/v1", model="m",
    ...                            instructions="Will it leave late?", descriptions={"late": "over 15 minutes"})
    >>> typed_question(section, ("on_time", "late"))["criteria"]
    {'on_time': None, 'late': 'over 15 minutes'}
    """
    question: dict[str, Any] = {"type": section.question}
    if section.instructions:
        question["instructions"] = section.instructions
    if section.question == "choice":
        question["criteria"] = {action: section.descriptions.get(action) for action in actions}
    elif section.question == "score":
        question["criteria"] = [section.descriptions.get(action, action) for action in actions]
    else:
        sides = {"true" if action == section.yes else "false": section.descriptions.get(action) for action in actions}
        if criteria := {side: text for side, text in sides.items() if text is not None}:
            question["criteria"] = criteria
    return question


def read_probs(body: object, section: DecisionsTeacher, actions: Sequence[str]) -> Array:
    """Probability of each action in a reply, float64 ``[K]`` that sums to 1.

    >>> section = DecisionsTeacher(kind="decisions", name="d", base_url="http://127.0.0.1/v1", model="m")
    >>> answer = {"type": "choice", "choice": "late", "probabilities": {"on_time": 0.2, "late": 0.8}}
    >>> read_probs({"answers": {"decision": answer}}, section, ("on_time", "late"))
    array([0.2, 0.8])

    :raises ErrorReplyError: if the reply holds an error instead.
    :raises ValueError: if it breaks the protocol: no answer, another type or other options, or no probabilities.
    """
    if not isinstance(body, Mapping):
        raise ValueError(f"a reply that is no JSON object: {str(body)[:100]!r}")
    answers = body.get("answers")
    if not isinstance(answers, Mapping):
        if error := body.get("error") or body.get("detail"):
            raise ErrorReplyError(error)
        raise ValueError("a reply without answers")
    answer = answers.get(_QUESTION_ID)
    if not isinstance(answer, Mapping):
        raise ValueError("a reply without an answer to the question")
    if answer.get("type") != section.question:
        raise ValueError(f"an answer of type {answer.get('type')!r} to a {section.question}")
    if section.question == "noul":
        yes = _read_prob(answer.get("noul"), "noul")
        return np.array([yes if action == section.yes else 1.0 - yes for action in actions])
    options = list(actions) if section.question == "choice" else [str(level) for level in range(len(actions))]
    stated = answer.get("probabilities")
    if not isinstance(stated, Mapping) or set(stated) != set(options):
        raise ValueError("an answer whose probabilities are not those of the options")
    probs = np.array([_read_prob(stated[option], option) for option in options])
    tolerance = max(_SUM_TOLERANCE, 0.005 * len(probs))  # probabilities may be rounded to two decimals
    if not abs(probs.sum() - 1.0) <= tolerance:
        raise ValueError(f"an answer whose probabilities sum to {probs.sum():.3g}")
    normalised: Array = probs / probs.sum()
    return normalised


class Decisions(RemoteAsker):
    """One teacher of kind ``decisions``.

    :param pause: seconds before the first retry at most; it doubles with each further retry.
    :raises PartError: if the environment variable of its key is not set.
    """

    def __init__(self, config: AgentConfig, name: str, teacher: DecisionsTeacher, pause: float = 0.5) -> None:
        super().__init__(config, name, teacher, pause)
        self.teacher = teacher
        self._columns = teacher.columns or tuple(config.observations.columns)
        self._question = typed_question(teacher, config.actions)
        self._answered_by: set[str] = set()

    @property
    def max_calls_per_row(self) -> int:
        """The most requests that one row can take: the first, and all retries."""
        return 1 + self.teacher.retries

    def max_cost(self, rows: pd.DataFrame) -> list[float]:
        """The most that asking about each of ``rows`` can cost, in the unit of the prices."""
        return [self._max_request_cost(self._request_body(state)) for state in self._questions(rows)]

    def _questions(self, rows: pd.DataFrame) -> list[Any]:
        """The state of each row: a text, or an object of its columns."""
        records: list[dict[str, Any]] = rows.to_dict("records")  # type: ignore[assignment]
        if self.teacher.state is not None:
            return [fill_prompt(self.teacher.state, row, self.actions) for row in records]
        return [{name: None if is_missing(row[name]) else row[name] for name in self._columns} for row in records]

    async def _probabilities(self, client: AsyncOpenAI, question: Any, round_: Round) -> Array:
        import httpx

        request, attempt = self._request_body(question), 0
        reserved = self._max_request_cost(request)
        while True:
            if not round_.allowance.take(reserved):
                raise StopError(BUDGET_REACHED)
            round_.calls += 1
            try:
                async with asyncio.timeout(self.teacher.timeout.total_seconds()):
                    response = await client.post("/systemone", cast_to=httpx.Response, body=request)
                body = json.loads(response.content)
                probs = read_probs(body, self.teacher, self.actions)
            except Exception as error:
                round_.allowance.refund(reserved)
                status = getattr(error, "status_code", None)
                await self._wait_or_raise(error, status, attempt)
                attempt += 1
                continue
            usage = body["usage"] if isinstance(body.get("usage"), Mapping) else {}
            self._settle_cost(usage.get("input_tokens"), usage.get("output_tokens"), reserved, round_)
            self._note_model(body.get("model"), round_)
            return probs

    def _request_body(self, state: Any) -> dict[str, Any]:
        return {"model": self.teacher.model, "state": state, "questions": {_QUESTION_ID: self._question}}

    def _max_request_cost(self, request: Mapping[str, Any]) -> float:
        """The most that a request can cost, as no token is shorter than a byte of the JSON."""
        reply_bytes = _MAX_FRAME_BYTES + sum(
            len(action.encode()) + len(self.teacher.descriptions.get(action, action).encode()) + _MAX_NUMBER_BYTES
            for action in self.actions
        )
        return self._price(len(json.dumps(request, ensure_ascii=False).encode()), reply_bytes)

    def _note_model(self, model: object, round_: Round) -> None:
        """Log once that another model answers: a name such as ``…-latest`` may stand for a new one at any time."""
        if not isinstance(model, str) or model in self._answered_by:
            return
        if self._answered_by:
            before = ", ".join(sorted(self._answered_by))
            note = (
                f"{self.where}: {self._redact(model)} answers now, and {before} did before: name the exact version in "
                f"`model`, so that it becomes another teacher"
            )
            round_.notes.append(note)
            log.warning("%s", note)
        self._answered_by.add(model)


def _read_prob(value: object, option: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not 0 <= value <= 1:
        raise ValueError(f"{value!r} as the probability of {option!r}")
    return float(value)
