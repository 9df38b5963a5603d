"""``POST /v1/systemone``: the System One decision protocol, by the requirements of jevcompat's specification 0.1.

A request has a ``state`` and ``questions`` of three types. ``choice`` has named options, ``noul`` is a proposition,
``score`` has ordered levels. Each question is a task of its own, whatever its id and whatever else is asked in the same
request, because neither may change its answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from stillhouse.gateway.questions import Answer, ClosedQuestion, LocalAnswer, Reply, Unrecognised, most_probable

__all__ = ["SystemOne", "choice_confidence", "score_confidence"]

Json = Mapping[str, Any]

MAX_OPTIONS, MAX_LEVELS = 255, 10
MAX_QUESTIONS = 100
_NOUL = ("true", "false")
_FIELDS = {"type", "instructions", "criteria"}


@dataclass(frozen=True, slots=True)
class TypedForm:
    """The form of a typed question's answer; its words are written by :meth:`SystemOne.write_answers`."""

    type: Literal["choice", "noul", "score"]
    actions: tuple[str, ...]
    levels: tuple[Any, ...] = ()
    """The descriptions of a score's levels."""

    @property
    def local_actions(self) -> frozenset[str] | None:
        return None

    def write(self, action: str) -> Reply:
        return Reply(action)

    def read(self, reply: Reply) -> str | None:
        return reply.text if reply.text in self.actions else None


class SystemOne:
    """The System One protocol.

    >>> request = {"model": "m", "state": "Refund me.", "questions": {"q": {"type": "noul", "instructions": "Angry?"}}}
    >>> (question,) = SystemOne().read_request(request)
    >>> question.observation, question.actions
    ('Refund me.', ('true', 'false'))
    """

    name = "systemone"
    path = "/v1/systemone"

    def read_request(self, request: Json, task_name: str | None = None) -> tuple[ClosedQuestion, ...] | Unrecognised:
        """The closed questions in a request, in its order, or why there are none."""
        model, state, asked = request.get("model"), request.get("state"), request.get("questions")
        if not isinstance(model, str) or not isinstance(state, str | dict | list) or not isinstance(asked, dict):
            return Unrecognised("malformed")
        if not asked:
            return Unrecognised("malformed")
        if len(asked) > MAX_QUESTIONS:
            return Unrecognised("too many questions")
        others = {key: request[key] for key in sorted(request) if key not in ("model", "state", "questions")}
        others = {key: value for key, value in others.items() if not key.startswith("x_")}
        if any(others.get(key) for key in ("media", "images")):
            return Unrecognised("images or files")
        if "question" in others:  # it would take the place of the typed question in the key
            return Unrecognised("unknown fields")
        observation = state if isinstance(state, str) else json.dumps(state, ensure_ascii=False)
        questions = list[ClosedQuestion]()
        for question_id, question in asked.items():
            form = _read_form(question)
            if isinstance(form, Unrecognised):
                return form
            # the name of a task says nothing here: the questions are in the key, and the state is the observation
            constant = {"question": {key: question[key] for key in sorted(question)}, **others}
            if any(constant == other.constant for other in questions):
                return Unrecognised("repeated question")
            questions.append(ClosedQuestion(self.name, model, observation, constant, form, question_id=question_id))
        return tuple(questions)

    def read_answers(self, questions: Sequence[ClosedQuestion], body: bytes, streamed: bool) -> tuple[Answer, ...]:
        """The upstream's answers to the questions of one request, in their order.

        :raises ValueError: if the body is not a complete answer of this protocol.
        """
        content = None if streamed else msgspec.json.decode(body)
        answers = content.get("answers") if isinstance(content, dict) else None
        if not isinstance(content, dict) or not isinstance(answers, dict):
            raise ValueError("no System One response")
        model, usage = content.get("model"), content.get("usage")
        tokens = {name: usage.get(name) if isinstance(usage, dict) else None for name in _TOKENS}
        read = []
        for index, question in enumerate(questions):
            probs = _read_probs(question.form, answers.get(question.question_id))
            read.append(
                Answer(
                    None if probs is None else most_probable(probs, question.actions),
                    probs,
                    model=model if isinstance(model, str) else None,
                    # the tokens of a request are counted once, with its first question
                    input_tokens=_count(tokens["input_tokens"]) if index == 0 else 0,
                    output_tokens=_count(tokens["output_tokens"]) if index == 0 else 0,
                    reason="none of the actions" if probs is None else None,
                )
            )
        return tuple(read)

    def write_answers(self, questions: Sequence[ClosedQuestion], answers: Sequence[LocalAnswer]) -> list[bytes]:
        """The body of a local answer, in one part; our marks have the prefix ``x_``."""
        body = {
            "model": questions[0].model,
            "answers": {
                question.question_id: _write_answer(question, answer)
                | {
                    "x_decided_by": "student",
                    "x_version": answer.version,
                    "x_decision_id": answer.decision_id,
                    "x_task": answer.task,
                }
                for question, answer in zip(questions, answers, strict=True)
            },
            "usage": {"input_tokens": sum(answer.input_tokens for answer in answers), "output_tokens": 0},
            "x_decided_by": "student",
        }
        return [msgspec.json.encode(body)]

    def write_error(self, status: int, code: str, message: str) -> bytes:
        """An error of ours in the protocol's shape."""
        return msgspec.json.encode({"detail": {"error_type": code, "message": message}})


_TOKENS = ("input_tokens", "output_tokens")


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _read_form(question: Any) -> TypedForm | Unrecognised:
    if not isinstance(question, dict):
        return Unrecognised("malformed")
    if set(question) - _FIELDS:
        return Unrecognised("unknown fields")
    kind, criteria = question.get("type"), question.get("criteria")
    if kind == "noul":
        if criteria is not None and not (isinstance(criteria, dict) and set(criteria) <= set(_NOUL)):
            return Unrecognised("malformed")
        return TypedForm("noul", _NOUL)
    if kind == "choice":
        if not isinstance(criteria, dict) or not 2 <= len(criteria) <= MAX_OPTIONS:
            return Unrecognised("malformed")
        return TypedForm("choice", tuple(criteria))
    if kind == "score":
        if not isinstance(criteria, list) or not 2 <= len(criteria) <= MAX_LEVELS or None in criteria:
            return Unrecognised("malformed")
        return TypedForm("score", tuple(str(level) for level in range(len(criteria))), tuple(criteria))
    return Unrecognised("malformed")


def _read_probs(form: Any, answer: Any) -> dict[str, float] | None:
    """The probability of each action; None if the answer does not have them."""
    assert isinstance(form, TypedForm)
    if not isinstance(answer, dict) or answer.get("type") != form.type:
        return None
    if form.type == "noul":
        true = _probability(answer.get("noul"))
        return None if true is None else {"true": true, "false": 1.0 - true}
    given = answer.get("probabilities")
    if not isinstance(given, dict) or set(given) != set(form.actions):
        return None
    probs: dict[str, float] = {}
    for action in form.actions:
        value = _probability(given[action])
        if value is None:
            return None
        probs[action] = value
    total = sum(probs.values())
    return {action: value / total for action, value in probs.items()} if 0.5 < total < 1.5 else None


def _probability(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1 else None


def choice_confidence(probs: Sequence[float]) -> float:
    """How far the largest probability is above that of a guess: 0 … 1 (jevcompat's specification, 4.5).

    >>> choice_confidence([0.5, 0.5]), choice_confidence([1.0, 0.0])
    (0.0, 1.0)
    """
    count = len(probs)
    return (max(probs) - 1 / count) / (1 - 1 / count)


def score_confidence(probs: Sequence[float]) -> float:
    """1 without spread around the most probable level, 0 with that of a uniform distribution, or more (4.5).

    >>> score_confidence([0.0, 1.0, 0.0])
    1.0
    """
    count = len(probs)
    mode = max(range(count), key=lambda level: probs[level])
    spread = sum(p * abs(level - mode) for level, p in enumerate(probs))
    uniform = sum(abs(level - (count - 1) / 2) for level in range(count)) / count
    return max(0.0, 1 - spread / uniform)


def _write_answer(question: ClosedQuestion, answer: LocalAnswer) -> dict[str, Any]:
    form = question.form
    assert isinstance(form, TypedForm)
    total = sum(answer.probs.get(action, 0.0) for action in form.actions)
    probs = {action: answer.probs.get(action, 0.0) / total for action in form.actions}
    if form.type == "noul":
        return {"type": "noul", "noul": probs["true"]}
    values = list(probs.values())
    if form.type == "choice":
        return {
            "type": "choice",
            "choice": most_probable(probs, form.actions),
            "probabilities": probs,
            "confidence": choice_confidence(values),
        }
    return {
        "type": "score",
        "score": sum(level * p for level, p in enumerate(values)),
        "legend": {str(level): text for level, text in enumerate(form.levels)},
        "probabilities": probs,
        "confidence": score_confidence(values),
    }
