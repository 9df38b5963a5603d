"""A language model behind the OpenAI protocol: concurrent questions, retries, and fallbacks for refused parameters."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig, EndpointTeacher
from stillhouse.errors import PartError
from stillhouse.records import Spending
from stillhouse.teachers.answers import BUDGET_REACHED, Allowance, Answers, Array
from stillhouse.teachers.kinds import Member, MemberContext, answer_version, describe, open_member, require_version
from stillhouse.teachers.prompts import UNTRUSTED_TEXT_NOTICE, answer_instruction, answer_schema, fill_prompt
from stillhouse.teachers.replies import (
    ErrorReplyError,
    describe_error,
    parse_action,
    probs_from_logprobs,
    probs_from_votes,
    read_retry_after,
    read_tokens,
    require_choices,
)

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["Endpoint"]

_MAX_FAILURES_IN_A_ROW = 5  # questions; each fails with all its retries
_MAX_WAIT_SECONDS = 60.0  # of a server's Retry-After; for longer, the asking ends
_TRANSIENT_STATUS = {408, 409, 425, 429}  # and all of 500 and above
_BAD_REQUEST_STATUS = {400, 422}
# Some servers report an unsupported parameter as their own fault (500), or within a reply; their words tell.
_UNSUPPORTED_WORDS = re.compile(
    r"\b(not|n't) (yet )?(be )?(support|implement|allow|permit|offer)|unsupported|unknown (param|arg|field)"
    r"|unrecogni[sz]ed|unexpected keyword|only one (completion|choice)",
    re.IGNORECASE,
)


class _NoAnswerError(Exception):
    """A question got no answer with all its retries; it may get one later."""


class _UnusableAnswerError(Exception):
    """The answer to this row is unusable."""


class _StopError(Exception):
    """No more questions: the budget is reached, or the server rejects this client."""


@dataclass
class _Round:
    """Costs of one round of questions so far, and whether it continues."""

    allowance: Allowance
    calls: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    money: float = 0.0
    rows: int = 0
    failures_in_a_row: int = 0
    stop_reason: str | None = None
    notes: list[str] = field(default_factory=list)
    fallback_lock: asyncio.Lock = field(default_factory=asyncio.Lock)


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
    require_version(context, entry, answer_version(context))
    endpoint = Endpoint(context.config, context.leaf.name, section)
    return Member(
        context.leaf.name,
        context.leaf.share,
        endpoint.answer,
        entry["version"],
        chunk_rows=endpoint.chunk_rows,
        max_cost=endpoint.max_cost,
        max_calls_per_row=endpoint.max_calls_per_row,
    )


class Endpoint:
    """One teacher of kind ``endpoint``.

    :param pause: seconds before the first retry at most; it doubles with each further retry.
    :raises PartError: if the environment variable of its key is not set.
    """

    def __init__(self, config: AgentConfig, name: str, teacher: EndpointTeacher, pause: float = 0.5) -> None:
        self.where = f"{config.file}: teachers.{name}"
        self.actions = config.actions
        self.teacher = teacher
        self.pause = pause
        self.chunk_rows = 8 * teacher.concurrency
        self._key = self._read_key()
        columns = config.observations.columns
        self._has_text = any(columns[name].type != "number" for name in teacher.placeholders if name in columns)
        enabled = {"many": True, "structured": teacher.structured, "logprobs": teacher.probabilities != "votes"}
        self._support = _Support({*_BASIC_OPTIONS, *(option for option in _EXTRA_OPTIONS if enabled[option])})

    def answer(self, rows: pd.DataFrame, allowance: Allowance) -> Answers:
        """Ask about ``rows``, ``concurrency`` at a time, until the allowance is spent or the server fails.

        :raises PartError: if the ``openai`` package is missing.
        """
        with ThreadPoolExecutor(1) as pool:  # an event loop of its own: the caller may run in another
            return pool.submit(asyncio.run, self._answer(rows, allowance)).result()

    @property
    def max_calls_per_row(self) -> int:
        """The most requests that one row can take: each vote with all retries, and those that search for a fallback."""
        votes = self.teacher.votes * (1 + self.teacher.retries)
        return int(votes + len(self._fallbacks(_ALL_OPTIONS)) + len(_BASIC_OPTIONS) + 1)

    def max_cost(self, rows: pd.DataFrame) -> list[float]:
        """The most that asking about each of ``rows`` can cost, in the unit of the prices."""
        records: list[dict[str, Any]] = rows.to_dict("records")  # type: ignore[assignment]
        questions = (fill_prompt(self.teacher.prompt, row, self.actions, fenced=True) for row in records)
        requests = (self._request_body(question, _ALL_OPTIONS, 1) for question in questions)
        return [self.teacher.votes * self._max_request_cost(request) for request in requests]

    # ----------------------------------------------------------------- one round

    async def _answer(self, rows: pd.DataFrame, allowance: Allowance) -> Answers:
        began, round_ = time.perf_counter(), _Round(allowance)
        probs = np.full((len(rows), len(self.actions)), np.nan)
        refused: dict[int, str] = {}
        slots = asyncio.Semaphore(self.teacher.concurrency)

        async def answer_row(index: int, question: str) -> None:
            async with slots:
                if round_.stop_reason is None:
                    try:
                        probs[index] = await self._ask(client, question, round_)
                    except _UnusableAnswerError as error:
                        refused[index] = str(error)

        async with self._client() as client:
            records: list[dict[str, Any]] = rows.to_dict("records")  # type: ignore[assignment]
            questions = [fill_prompt(self.teacher.prompt, row, self.actions, fenced=True) for row in records]
            await asyncio.gather(*(answer_row(index, question) for index, question in enumerate(questions)))
        spending = Spending(
            calls=round_.calls,
            rows=round_.rows,
            input_tokens=round_.tokens["input"],
            output_tokens=round_.tokens["output"],
            seconds=time.perf_counter() - began,
            money=round_.money,
        )
        return Answers(probs, spending, refused, round_.stop_reason, notes=tuple(round_.notes))

    async def _ask(self, client: AsyncOpenAI, question: str, round_: _Round) -> Any:
        """Probabilities of one row, ``[K]``; NaN if the server failed.

        :raises _UnusableAnswerError: if the answer to this row is unusable.
        """
        calls = round_.calls
        try:
            probs = await self._probabilities(client, question, round_)
        except _NoAnswerError as error:
            round_.failures_in_a_row += 1
            if round_.failures_in_a_row >= _MAX_FAILURES_IN_A_ROW:
                round_.stop_reason = round_.stop_reason or (
                    f"{round_.failures_in_a_row} questions in a row failed, the last one: {error}"
                )
            return np.nan
        except _StopError as error:
            round_.stop_reason = round_.stop_reason or str(error)
            return np.nan
        except _UnusableAnswerError:
            round_.failures_in_a_row = 0  # the server does answer
            raise
        finally:
            round_.rows += round_.calls > calls
        round_.failures_in_a_row = 0
        return probs

    async def _probabilities(self, client: AsyncOpenAI, question: str, round_: _Round) -> Array:
        if "logprobs" in self._support.options:
            probs = await self._by_logprobs(client, question, round_)
            if probs is not None:
                return probs
        probs = await self._by_votes(client, question, round_)
        # Only after an answer: before it, the server may have refused the question and not the parameter.
        self._drop_options(frozenset({"logprobs"}), "votes are drawn instead", round_)
        return probs

    async def _by_logprobs(self, client: AsyncOpenAI, question: str, round_: _Round) -> Array | None:
        """None if the server gives no log-probabilities and the agent file allows votes."""
        reply = await self._request(client, question, round_, answers=1, logprobs=True)
        if reply is None:
            return None
        choice = reply.choices[0]
        tokens = read_tokens(choice)
        if not tokens:
            if self.teacher.probabilities == "logprobs":
                raise _StopError(f"{self.where}: the server gives no log-probabilities: write `probabilities: votes`")
            self._drop_options(frozenset({"logprobs"}), "votes are drawn instead", round_)
            return None
        self._read_action(choice)
        return probs_from_logprobs(tokens, self.actions)

    async def _by_votes(self, client: AsyncOpenAI, question: str, round_: _Round) -> Array:
        counts, votes, void_reason, failure = [0] * len(self.actions), 0, "", ""
        while votes < self.teacher.votes:
            answers = self.teacher.votes - votes if "many" in self._support.options else 1
            reply = await self._request(client, question, round_, answers=answers)
            for choice in reply.choices[:answers]:
                votes += 1
                try:
                    counts[self._read_action(choice)] += 1
                except _UnusableAnswerError as error:
                    void_reason = str(error)
                except _NoAnswerError as error:
                    failure = str(error)
        void_votes = votes - sum(counts)
        if 2 * void_votes > votes and failure:
            raise _NoAnswerError(failure)
        if 2 * void_votes > votes:
            raise _UnusableAnswerError(
                void_reason if votes == 1 else f"{void_votes} of {votes} votes are void: {void_reason}"
            )
        return probs_from_votes(counts, self.teacher.smoothing)

    def _read_action(self, choice: Any) -> int:
        """Index of the action that an answer names.

        :raises _UnusableAnswerError: if it names none, is a refusal, or was held back by a filter.
        :raises _NoAnswerError: if it was cut off, or the server failed: another answer to this row may be usable.
        """
        message, finish_reason = getattr(choice, "message", None), getattr(choice, "finish_reason", None)
        text = getattr(message, "content", None)
        if isinstance(text, list):  # a list of parts
            text = "".join(str(part.get("text") or "") for part in text if isinstance(part, Mapping))
        action = parse_action(text, self.actions)
        if action is not None:
            return action
        if refusal := getattr(message, "refusal", None):
            raise _UnusableAnswerError(f"refused: {self._redact(str(refusal))[:200]!r}")
        if finish_reason == "content_filter":
            raise _UnusableAnswerError("the server's content filter held the answer back")
        if finish_reason == "length":
            raise _NoAnswerError(
                f"the answer was cut off at `max_output_tokens: {self.teacher.max_output_tokens}`, before it named an "
                f"action: raise it (a model that thinks first may need thousands)"
            )
        if finish_reason == "error" or getattr(choice, "error", None):
            details = getattr(choice, "error", None) or "an error, unnamed"
            raise _NoAnswerError(self._describe(ErrorReplyError(details)))
        raise _UnusableAnswerError(f"answered {self._redact(str(text))[:80]!r}, which is no action")

    # ----------------------------------------------------------------- one request

    async def _request(
        self, client: AsyncOpenAI, question: str, round_: _Round, answers: int, logprobs: bool = False
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
                    raise _StopError(BUDGET_REACHED)
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
                self._settle_cost(reply, request, reserved, round_)
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

    def _drop_options(self, dropped: frozenset[_Option], reason: str, round_: _Round) -> None:
        """Send these options no more; log each once."""
        if new := dropped & self._support.options:
            self._support.options -= new
            names = ", ".join(
                _PARAMETER_NAMES[option] for option in (*_EXTRA_OPTIONS, *_BASIC_OPTIONS) if option in new
            )
            round_.notes.append(f"{self.where}: the server does not offer {names}: {reason}")
            log.warning("%s", round_.notes[-1])

    async def _wait_or_raise(self, error: Exception, status: int | None, attempt: int) -> None:
        """Wait before another attempt, if one can help.

        Exponential backoff with full jitter (Brooker 2015, "Exponential Backoff And Jitter"), never shorter than the
        server's Retry-After.

        :raises _NoAnswerError: if the question failed for good; _StopError: if further questions would fail too.
        """
        reason = self._describe(error)
        if status is not None and status not in _TRANSIENT_STATUS and status < 500:
            raise (_NoAnswerError if status in _BAD_REQUEST_STATUS else _StopError)(reason)
        retry_after = read_retry_after(getattr(getattr(error, "response", None), "headers", {}))
        if retry_after > _MAX_WAIT_SECONDS:
            raise _StopError(f"{reason}; the server asks to come back in {retry_after:.0f} s")
        if attempt >= self.teacher.retries:
            raise _NoAnswerError(reason)
        backoff = random.uniform(0, min(_MAX_WAIT_SECONDS, self.pause * 2**attempt))
        await asyncio.sleep(retry_after + backoff)

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

    def _price(self, input_tokens: int, output_tokens: int) -> float:
        teacher = self.teacher
        return (input_tokens * teacher.price_per_million_input + output_tokens * teacher.price_per_million_output) / 1e6

    def _settle_cost(self, reply: Any, request: Mapping[str, Any], reserved: float, round_: _Round) -> None:
        """Record the cost by the reply's token counts; without them, the reserved maximum."""
        usage = getattr(reply, "usage", None)
        input_tokens, output_tokens = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
        if isinstance(input_tokens, int) and isinstance(output_tokens, int):
            round_.tokens.update(input=max(0, input_tokens), output=max(0, output_tokens))
            cost = self._price(max(0, input_tokens), max(0, output_tokens))
        else:
            cost = reserved
        round_.money += cost
        round_.allowance.refund(reserved - cost)

    # ----------------------------------------------------------------- client, key, error texts

    def _client(self) -> AsyncOpenAI:
        try:
            from openai import AsyncOpenAI
        except ImportError as error:
            raise PartError(f"{self.where}: needs the package openai: pip install 'stillhouse[endpoint]'") from error
        seconds = self.teacher.timeout.total_seconds()
        return AsyncOpenAI(base_url=self.teacher.base_url, api_key=self._key, timeout=seconds, max_retries=0)

    def _read_key(self) -> str:
        name = self.teacher.key_variable
        if name is None:
            return "none"
        if not (key := os.environ.get(name, "").strip()):
            raise PartError(f"{self.where}: the environment variable {name}, which is to hold its key, is not set")
        return key

    def _describe(self, error: Exception) -> str:
        """Text of an error with the server's address and without the key."""
        if isinstance(error, ErrorReplyError):
            return f"{self.teacher.base_url} answered with an error: {self._redact(str(error))[:300]}"
        if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
            return f"{self.teacher.base_url} did not answer within {self.teacher.timeout.total_seconds():g} s"
        return f"{self.teacher.base_url}: {type(error).__name__}: {self._redact(describe_error(error))[:300]}"

    def _redact(self, text: str) -> str:
        """``text`` without the key, as some servers repeat it in errors."""
        return re.sub(r"\bsk-[\w*.-]+", "***", text if self._key == "none" else text.replace(self._key, "***"))


def _may_refuse_option(error: Exception) -> bool:
    """Whether an error may mean that the server does not support an option of the request."""
    status = getattr(error, "status_code", None)
    if status in (*_BAD_REQUEST_STATUS, 501):
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
