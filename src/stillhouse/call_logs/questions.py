"""What a call says about an agent: the last user message, the action that was answered, and the task it is of."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, NamedTuple

import pandas as pd

from stillhouse.call_logs.calls import Call, Outcome, Unusable, as_list, as_mapping, decoded, text_of_parts
from stillhouse.config import AgentConfig
from stillhouse.records import short_id
from stillhouse.teachers.answers import Array
from stillhouse.teachers.replies import parse_action, probs_from_logprobs, probs_from_votes, read_tokens

__all__ = ["SINGLE_ANSWER_PROB", "Answered", "QuestionReader"]

_PSEUDO_ANSWERS = 0.1  # in all, beside the one that was given
SINGLE_ANSWER_PROB = 1 / (1 + _PSEUDO_ANSWERS)
"""Probability of the action that an answer without log-probabilities names, but for the share of the others."""

_EARLIEST_SECONDS = 5e8  # 1985
_TASK_KEYS = ("tools", "functions", "tool_choice", "function_call", "response_format", "text")
_UNFINISHED = {"length": "the answer was cut off", "content_filter": "the answer was held back by a filter"}


class Answered(NamedTuple):
    """A call that answers the agent's question."""

    call: Call
    task: str
    """Hash of what the question has in common with others: every message but the last, tools, form of the answer."""
    heading: str
    """The beginning of the first message, to show which task it is."""
    observed_at: pd.Timestamp
    features: dict[str, Any]
    """By column of the agent."""
    action: str
    probs: Array
    """``[K]``."""
    outcome: str | None
    known_at: pd.Timestamp | None


class QuestionReader:
    """Reads calls as questions of one agent.

    :raises SchemaError: if the agent has no column that a message could fill.
    """

    def __init__(self, config: AgentConfig) -> None:
        self.config = config
        importing = config.importing
        self._words = importing.actions if importing is not None else {}
        self._keys = {
            name: (importing.columns if importing else {}).get(name, name) for name in config.observations.columns
        }
        texts = config.observations.texts
        self._text_column = texts[0] if len(texts) == 1 else None

    def read(self, call: Call) -> Answered | Unusable:
        """The call as the agent's question with its answer, or why it is none."""
        try:
            return self._read(call)
        except _NoQuestionError as error:
            return Unusable(call.line, str(error))

    def _read(self, call: Call) -> Answered:
        if call.error:
            raise _NoQuestionError(call.error)
        messages = [as_mapping(message) for message in call.messages]
        _require_single_question(call.parameters, messages)
        text = text_of_parts(messages[-1].get("content"))
        if text is None:
            raise _NoQuestionError("the last message holds more than text")
        action, probs = self._read_answer(call)
        observed_at = _read_time(call.time)
        if observed_at is None:
            raise _NoQuestionError("it has no time, or one before 1700 or after now")
        outcome, known_at = self._read_outcome(call.outcome, action, observed_at)
        before = [[message.get("role"), message.get("content")] for message in messages[:-1]]
        decisive = {key: call.parameters[key] for key in _TASK_KEYS if call.parameters.get(key) is not None}
        heading = next((shown for _, content in before if (shown := text_of_parts(content))), "")
        return Answered(
            call,
            short_id(json.dumps([before, decisive], sort_keys=True, default=str)),
            " ".join(heading.split())[:80],
            observed_at,
            self._read_features(text),
            action,
            probs,
            outcome,
            known_at,
        )

    def _read_features(self, text: str) -> dict[str, Any]:
        """The columns of the agent: from an object in the message, or the whole message as the text column."""
        content = decoded(text) if text.lstrip().startswith("{") else None
        if isinstance(content, Mapping) and set(self._keys.values()) & set(content):
            return {name: content.get(key) for name, key in self._keys.items()}
        if self._text_column is None:
            raise _NoQuestionError("the last message is no JSON object with the agent's columns")
        return {name: text if name == self._text_column else None for name in self._keys}

    # ----------------------------------------------------------------- the answer

    def _read_answer(self, call: Call) -> tuple[str, Array]:
        if len(call.choices) != 1:
            raise _NoQuestionError("it has several answers")
        choice = as_mapping(call.choices[0])
        message = as_mapping(choice.get("message"))
        calls = [as_mapping(tool) for tool in as_list(message.get("tool_calls"))]
        if not calls and message.get("function_call"):
            calls = [{"function": message["function_call"]}]
        if len(calls) > 1:
            raise _NoQuestionError("it calls several tools")
        if calls:
            function = as_mapping(calls[0].get("function")) or calls[0]
            return self._single_answer(self._named_action([function.get("name"), *_values(function.get("arguments"))]))
        if message.get("refusal"):
            raise _NoQuestionError("the model refused to answer")
        text = text_of_parts(message.get("content"))
        content = decoded(text) if text else None
        words = _values(content) if isinstance(content, Mapping) else [text]
        try:
            action = self._named_action(words)
        except _NoQuestionError:
            if reason := _UNFINISHED.get(str(choice.get("finish_reason"))):
                raise _NoQuestionError(reason) from None
            raise
        return self._with_logprobs(choice, text or "", action)

    def _named_action(self, words: Sequence[Any]) -> str:
        """The action that exactly one of ``words`` names."""
        actions = self.config.actions
        named = {
            actions[index]
            for word in words
            if (index := parse_action(self._words.get(str(word), word), actions)) is not None
        }
        if len(named) != 1:
            raise _NoQuestionError(
                "its answer names no action of the agent" if not named else "its answer names several"
            )
        return named.pop()

    def _single_answer(self, action: str) -> tuple[str, Array]:
        """An answer without log-probabilities, as one vote among a tenth of a vote that is spread over all actions."""
        counts = [int(name == action) for name in self.config.actions]
        return action, probs_from_votes(counts, _PSEUDO_ANSWERS / len(counts))

    def _with_logprobs(self, choice: Mapping[str, Any], text: str, action: str) -> tuple[str, Array]:
        """By the log-probabilities of the answer's tokens, if it has any and writes the action as the agent does."""
        logged = as_mapping(as_mapping(choice.get("logprobs"))).get("content")
        begin = text.rfind(json.dumps(action, ensure_ascii=False)[1:-1])
        if not isinstance(logged, list) or begin < 0:
            return self._single_answer(action)
        tokens = read_tokens(SimpleNamespace(logprobs=SimpleNamespace(content=[_token(token) for token in logged])))
        if "".join(token for token, _, _ in tokens) != text:
            return self._single_answer(action)
        return action, probs_from_logprobs(tokens, self.config.actions, begin)

    def _read_outcome(
        self, stated: Outcome | None, action: str, observed_at: pd.Timestamp
    ) -> tuple[str | None, pd.Timestamp | None]:
        if stated is None:
            return None, None
        if stated.value is True:
            outcome: str | None = action
        else:
            try:
                outcome = self._named_action(
                    _values(stated.value) if isinstance(stated.value, Mapping) else [stated.value]
                )
            except _NoQuestionError:
                return None, None
        known_at = _read_time(stated.known_at) or observed_at
        return outcome, max(known_at, observed_at)


class _NoQuestionError(Exception):
    """Why a call is no question of the agent."""


def _require_single_question(parameters: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> None:
    """:raises _NoQuestionError: if more than one question and answer, or something that is not logged, decide."""
    if not messages:
        raise _NoQuestionError("it has no messages")
    if parameters.get("previous_response_id") or parameters.get("conversation"):
        raise _NoQuestionError("it continues a conversation that is stored elsewhere")
    if parameters.get("logit_bias"):
        raise _NoQuestionError("its logit_bias changes the answer")
    if (parameters.get("n") or 1) not in (1, "1"):
        raise _NoQuestionError("it asks for several answers")
    roles = [str(message.get("role", "")) for message in messages]
    if roles[-1] != "user":
        raise _NoQuestionError("its last message is not the user's")
    if set(roles[:-1]) - {"system", "developer", "user"}:
        raise _NoQuestionError("it has a history of answers")


def _values(content: Any) -> list[Any]:
    """The texts of an object, on its first level; of a key ``action`` only that."""
    mapping = as_mapping(content)
    stated = [mapping["action"]] if "action" in mapping else list(mapping.values())
    return [value for value in stated if isinstance(value, str | int | bool)]


def _token(token: Any) -> SimpleNamespace:
    """A token of the log as the client of the protocol gives it."""
    stated = as_mapping(token)
    top = [SimpleNamespace(**as_mapping(alternative)) for alternative in as_list(stated.get("top_logprobs"))]
    return SimpleNamespace(token=stated.get("token"), logprob=stated.get("logprob"), top_logprobs=top)


def _read_time(stated: Any) -> pd.Timestamp | None:
    """A time in UTC: of seconds (or, by their size, milliseconds, micro- or nanoseconds) since 1970, or an ISO text.

    Without a zone it is read as UTC. None if it is none, or lies before 1700 or after now.
    """
    if isinstance(stated, datetime):
        stated = stated.isoformat()
    if isinstance(stated, str) and stated.replace(".", "", 1).isdigit():
        stated = float(stated)
    try:
        if isinstance(stated, int | float) and not isinstance(stated, bool):
            if stated < _EARLIEST_SECONDS:  # a duration, perhaps
                return None
            unit = next((factor for limit, factor in ((1e11, 1), (1e14, 1e3), (1e17, 1e6)) if abs(stated) < limit), 1e9)
            time = pd.Timestamp(round(stated / unit * 1e6), unit="us", tz="UTC")
        elif isinstance(stated, str) and any(char.isdigit() for char in stated):
            time = pd.Timestamp(stated)
            time = time.tz_localize("UTC") if time.tzinfo is None else time.tz_convert("UTC")
        else:
            return None
    except (ValueError, OverflowError, TypeError):
        return None
    is_plausible = pd.Timestamp("1700-01-01", tz="UTC") <= time <= pd.Timestamp(datetime.now(UTC))
    return time.as_unit("us") if is_plausible else None
