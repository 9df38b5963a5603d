"""A language model behind the OpenAI protocol: log-probabilities or votes, and fallbacks for refused parameters."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from stillhouse.config import AgentConfig, EndpointTeacher
from stillhouse.teachers.answers import BUDGET_REACHED, Array
from stillhouse.teachers.kinds import Member, MemberContext, answer_version, describe, open_member
from stillhouse.teachers.prompts import UNTRUSTED_TEXT_NOTICE, answer_instruction, answer_schema, fill_prompt
from stillhouse.teachers.remote import (
    BAD_REQUEST_STATUS,
    NoAnswerError,
    RemoteAsker,
    Round,
    StopError,
    UnusableAnswerError,
    as_member,
)
from stillhouse.teachers.replies import (
    ErrorReplyError,
    describe_error,
    parse_action,
    probs_from_logprobs,
    probs_from_votes,
    read_tokens,
    require_choices,
)

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["Endpoint"]

# Some servers report an unsupported parameter as their own fault (500), or within a reply; their words tell.
_UNSUPPORTED_WORDS = re.compile(
    r"\b(not|n't) (yet )?(be )?(support|implement|allow|permit|offer)|unsupported|unknown (param|arg|field)"
    r"|unrecogni[sz]ed|unexpected keyword|only one (completion|choice)",
    re.IGNORECASE,
)


_Option = Literal["many", "structured", "logprobs", "temperature", "completion_tokens", "system"]
"""Optional part of a request: several answers at once, a schema, log-probabilities, a temperature,
``max_completion_tokens`` (else ``max_tokens``), a system message (else its text begins the question)."""

_EXTRA_OPTIONS: tuple[_Option, ...] = ("many", "structured", "logprobs")  # left out in this order
_BASIC_OPTIONS: tuple[_Option, ...] = ("temperature", "completion_tokens", "system")  # left out last: few servers lack
_ALL_OPTIONS: frozenset[_Option] = frozenset((*_EXTRA_OPTIONS, *_BASIC_OPTIONS))
_PARAMETER_NAMES: Mapping[_Option, str] = {
    "many": "n",
    "structured": "response_format",
    "logprobs": "logprobs",
    "temperature": "temperature",
    "completion_tokens": "max_completion_tokens (max_tokens is sent instead)",
    "system": "the system role (its message begins the question instead)",
}
# Words of an error that names one of the basic options.
_OPTION_WORDS: Mapping[_Option, re.Pattern[str]] = {
    "temperature": re.compile(r"\btemperature\b", re.IGNORECASE),
    "completion_tokens": re.compile(r"\bmax_completion_tokens\b", re.IGNORECASE),
    "system": re.compile(r"\bsystem\b|\bdeveloper (message|instruction|role)|\broles? must alternate", re.IGNORECASE),
}


@dataclass
class _Support:
    """Options that the server has not refused, and the combinations of options that it has answered."""

    options: set[_Option]
    answered: set[frozenset[_Option]] = field(default_factory=set)


log = logging.getLogger(__name__)


@describe.register
def _(section: EndpointTeacher, context: MemberContext) -> dict[str, Any]:
    return {"version": answer_version(context)}


@open_member.register
def _(section: EndpointTeacher, context: MemberContext, entry: dict[str, Any]) -> Member:
    endpoint = Endpoint(context.config, context.leaf.name, section)
    return as_member(endpoint, context, entry, answer_version(context))


class Endpoint(RemoteAsker):
    """One teacher of kind ``endpoint``.

    :param pause: seconds before the first retry at most; it doubles with each further retry.
    :raises PartError: if the environment variable of its key is not set.
    """

    def __init__(self, config: AgentConfig, name: str, teacher: EndpointTeacher, pause: float = 0.5) -> None:
        super().__init__(config, name, teacher, pause)
        self.teacher = teacher
        columns = config.observations.columns
        self._has_text = any(columns[name].type != "number" for name in teacher.placeholders if name in columns)
        enabled = {"many": True, "structured": teacher.structured, "logprobs": teacher.probabilities != "votes"}
        self._support = _Support({*_BASIC_OPTIONS, *(option for option in _EXTRA_OPTIONS if enabled[option])})

    @property
    def max_calls_per_row(self) -> int:
        """The most requests that one row can take: each vote with all retries, and those that search for a fallback."""
        votes = self.teacher.votes * (1 + self.teacher.retries)
        return int(votes + len(self._fallbacks(_ALL_OPTIONS)) + len(_BASIC_OPTIONS) + 1)

    def max_cost(self, rows: pd.DataFrame) -> list[float]:
        """The most that asking about each of ``rows`` can cost, in the unit of the prices."""
        requests = (self._request_body(question, _ALL_OPTIONS, 1) for question in self._questions(rows))
        return [self.teacher.votes * self._max_request_cost(request) for request in requests]

    def _questions(self, rows: pd.DataFrame) -> list[str]:
        records: list[dict[str, Any]] = rows.to_dict("records")  # type: ignore[assignment]
        return [fill_prompt(self.teacher.prompt, row, self.actions, fenced=True) for row in records]

    async def _probabilities(self, client: AsyncOpenAI, question: str, round_: Round) -> Array:
        if "logprobs" in self._support.options:
            probs = await self._by_logprobs(client, question, round_)
            if probs is not None:
                return probs
        probs = await self._by_votes(client, question, round_)
        # Only after an answer: before it, the server may have refused the question and not the parameter.
        self._drop_options(frozenset({"logprobs"}), "votes are drawn instead", round_)
        return probs

    async def _by_logprobs(self, client: AsyncOpenAI, question: str, round_: Round) -> Array | None:
        """None if the server gives no log-probabilities and the agent file allows votes."""
        reply = await self._request(client, question, round_, answers=1, logprobs=True)
        if reply is None:
            return None
        choice = reply.choices[0]
        tokens = read_tokens(choice)
        if not tokens:
            if self.teacher.probabilities == "logprobs":
                raise StopError(f"{self.where}: the server gives no log-probabilities: write `probabilities: votes`")
            self._drop_options(frozenset({"logprobs"}), "votes are drawn instead", round_)
            return None
        self._read_action(choice)
        return probs_from_logprobs(tokens, self.actions)

    async def _by_votes(self, client: AsyncOpenAI, question: str, round_: Round) -> Array:
        counts, votes, void_reason, failure = [0] * len(self.actions), 0, "", ""
        while votes < self.teacher.votes:
            answers = self.teacher.votes - votes if "many" in self._support.options else 1
            reply = await self._request(client, question, round_, answers=answers)
            for choice in reply.choices[:answers]:
                votes += 1
                try:
                    counts[self._read_action(choice)] += 1
                except UnusableAnswerError as error:
                    void_reason = str(error)
                except NoAnswerError as error:
                    failure = str(error)
        void_votes = votes - sum(counts)
        if 2 * void_votes > votes and failure:
            raise NoAnswerError(failure)
        if 2 * void_votes > votes:
            raise UnusableAnswerError(
                void_reason if votes == 1 else f"{void_votes} of {votes} votes are void: {void_reason}"
            )
        return probs_from_votes(counts, self.teacher.smoothing)

    def _read_action(self, choice: Any) -> int:
        """Index of the action that an answer names.

        :raises UnusableAnswerError: if it names none, is a refusal, or was held back by a filter.
        :raises NoAnswerError: if it was cut off, or the server failed: another answer to this row may be usable.
        """
        message, finish_reason = getattr(choice, "message", None), getattr(choice, "finish_reason", None)
        text = getattr(message, "content", None)
        if isinstance(text, list):  # a list of parts
            text = "".join(str(part.get("text") or "") for part in text if isinstance(part, Mapping))
        action = parse_action(text, self.actions)
        if action is not None:
            return action
        if refusal := getattr(message, "refusal", None):
            raise UnusableAnswerError(f"refused: {self._redact(str(refusal))[:200]!r}")
        if finish_reason == "content_filter":
            raise UnusableAnswerError("the server's content filter held the answer back")
        if finish_reason == "length":
            raise NoAnswerError(
                f"the answer was cut off at `max_output_tokens: {self.teacher.max_output_tokens}`, before it named an "
                f"action: raise it (a model that thinks first may need thousands)"
            )
        if finish_reason == "error" or getattr(choice, "error", None):
            details = getattr(choice, "error", None) or "an error, unnamed"
            raise NoAnswerError(self._describe(ErrorReplyError(details)))
        raise UnusableAnswerError(f"answered {self._redact(str(text))[:80]!r}, which is no action")

    # ----------------------------------------------------------------- one request

    async def _request(
        self, client: AsyncOpenAI, question: str, round_: Round, answers: int, logprobs: bool = False
    ) -> Any:
        """A reply with at least one choice; None if the server refuses log-probabilities.

        After a refusal the request is sent again without the option that the error names; else without each single
        option, then without several, then without the basic ones, until the server answers. Only then are the options
        that were left out known to be unsupported. One question at a time searches for a fallback. If the server has
        answered the same options before, it refuses the question itself.
        """
        first_options = options = self._request_options(answers, logprobs)
        fallbacks: list[frozenset[_Option]] | None = None  # still to try; None: nothing was refused so far
        reason, attempt = "", 0
        try:
            while True:
                request = self._request_body(question, options, answers)
                reserved = self._max_request_cost(request)
                if not round_.allowance.take(reserved):
                    raise StopError(BUDGET_REACHED)
                round_.calls += 1
                try:
                    async with asyncio.timeout(self.teacher.timeout.total_seconds()):
                        reply = await client.chat.completions.create(**request)
                    require_choices(reply)
                except Exception as error:
                    round_.allowance.refund(reserved)
                    status = getattr(error, "status_code", None)
                    if _may_refuse_option(error) and options not in self._support.answered:
                        if fallbacks is None:
                            await round_.fallback_lock.acquire()
                            fallbacks = self._fallbacks(options)
                            supported = self._request_options(answers, logprobs)
                            if supported != first_options:  # another question has found a fallback meanwhile
                                round_.fallback_lock.release()
                                first_options, options, fallbacks = supported, supported, None
                                if logprobs and "logprobs" not in options:
                                    return None
                                continue
                        reason = reason or self._describe(error)
                        named = next((o for o in _BASIC_OPTIONS if o in options and _names_option(error, o)), None)
                        if named is not None:
                            options = options - {named}
                            fallbacks = self._fallbacks(options)
                            continue
                        if fallbacks:
                            options = fallbacks.pop(0)
                            if logprobs and "logprobs" not in options:
                                return None
                            continue
                    await self._wait_or_raise(error, status, attempt)
                    attempt += 1
                    continue
                usage = getattr(reply, "usage", None)
                sent, answered = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
                self._settle_cost(sent, answered, reserved, round_)
                self._drop_options(first_options - options, reason, round_)
                self._support.answered.add(options)
                return reply
        finally:
            if fallbacks is not None:
                round_.fallback_lock.release()

    def _request_options(self, answers: int, logprobs: bool) -> frozenset[_Option]:
        """The options of a request that the server has not refused."""
        needed: dict[_Option, bool] = {"many": answers > 1, "structured": True, "logprobs": logprobs}
        return frozenset(option for option in self._support.options if needed.get(option, True))

    def _fallbacks(self, options: frozenset[_Option]) -> list[frozenset[_Option]]:
        """Smaller sets of options in the order to try them: first without extra options, last without basic ones."""
        extras = [option for option in _EXTRA_OPTIONS if option in options]
        if self.teacher.probabilities == "logprobs":
            extras = [option for option in extras if option != "logprobs"]
        basics = [option for option in _BASIC_OPTIONS if option in options]
        smaller = [options - set(left) for count in range(1, len(extras) + 1) for left in combinations(extras, count)]
        smaller += [options - set(left) for count in range(1, len(basics) + 1) for left in combinations(basics, count)]
        without_extras = options - set(extras)
        smaller += [*(without_extras - {option} for option in basics), without_extras - set(basics)]
        return list(dict.fromkeys(smaller))

    def _drop_options(self, dropped: frozenset[_Option], reason: str, round_: Round) -> None:
        """Send these options no more; log each once."""
        if new := dropped & self._support.options:
            self._support.options -= new
            names = ", ".join(
                _PARAMETER_NAMES[option] for option in (*_EXTRA_OPTIONS, *_BASIC_OPTIONS) if option in new
            )
            round_.notes.append(f"{self.where}: the server does not offer {names}: {reason}")
            log.warning("%s", round_.notes[-1])

    def _request_body(self, question: str, options: frozenset[_Option], answers: int) -> dict[str, Any]:
        form = answer_instruction(self.actions, "structured" in options)
        system = f"{self.teacher.system}\n\n{f'{UNTRUSTED_TEXT_NOTICE} ' if self._has_text else ''}{form}".strip()
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        if "system" not in options:
            messages = [{"role": "user", "content": f"{system}\n\n{question}"}]
        body: dict[str, Any] = {"model": self.teacher.model, "messages": messages}
        limit = "max_completion_tokens" if "completion_tokens" in options else "max_tokens"
        body[limit] = self.teacher.max_output_tokens
        if "temperature" in options:
            body["temperature"] = 0.0 if "logprobs" in options else self.teacher.temperature
        if "many" in options:
            body["n"] = answers
        if "logprobs" in options:
            body |= {"logprobs": True, "top_logprobs": 20}
        if "structured" in options:
            body["response_format"] = answer_schema(self.actions)
        return body

    def _max_request_cost(self, request: Mapping[str, Any]) -> float:
        """The most that a request can cost, as no token is shorter than a byte."""
        max_input = sum(len(message["content"].encode()) + 16 for message in request["messages"])
        return self._price(max_input, self.teacher.max_output_tokens * request.get("n", 1))


def _may_refuse_option(error: Exception) -> bool:
    """Whether an error may mean that the server does not support an option of the request."""
    status = getattr(error, "status_code", None)
    if status in (*BAD_REQUEST_STATUS, 501):
        return True
    needs_words = status == 500 or (status is None and isinstance(error, ErrorReplyError))
    patterns = (_UNSUPPORTED_WORDS, _OPTION_WORDS["temperature"], _OPTION_WORDS["completion_tokens"])
    return needs_words and any(pattern.search(describe_error(error)) for pattern in patterns)


def _names_option(error: Exception, option: _Option) -> bool:
    """Whether an error names the option, in its text or as the wrong parameter."""
    body = getattr(error, "body", None)
    parameter = body.get("param") if isinstance(body, Mapping) else None
    text = f"{describe_error(error)} {parameter or ''}"
    if option == "system" and str(parameter).endswith("role"):  # "messages[0].role"
        text += " system developer"
    return _OPTION_WORDS[option].search(text) is not None
