"""A language model behind the OpenAI protocol: many questions at once, patient with a server that misbehaves."""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import combinations
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig, EndpointTeacher
from stillhouse.errors import PartError
from stillhouse.records import Spending
from stillhouse.teachers.answers import Allowance, Answers, Array
from stillhouse.teachers.wording import answer_schema, fill, from_logprobs, from_votes, instruction, read_action

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["UNSAID", "Endpoint"]

UNSAID = {"concurrency", "timeout", "retries", "key_variable", "price_per_million_input", "price_per_million_output"}
"""Keys of the agent file that do not decide what the teacher says."""

_GIVE_UP = 5  # questions in a row that fail with all their retries
_LONGEST_WAIT = 60.0  # seconds that a server may ask to wait; for longer, come back later
_PASSING = {408, 409, 425, 429}  # and all of 500 and above
_REFUSED_REQUEST = {400, 422}


class _NoAnswerError(Exception):
    """A question that got no answer with all its retries; another time it may."""


class _UselessAnswerError(Exception):
    """An answer that is of no use, and would not be the next time."""


class _EndError(Exception):
    """Nothing more is to be asked: the budget is reached, or the server will not have us."""


@dataclass
class _Tally:
    """What one round of questions has cost so far, and whether it goes on."""

    allowance: Allowance
    calls: int = 0
    tokens: Counter[str] = field(default_factory=Counter)
    money: float = 0.0
    asked: int = 0
    failures: int = 0
    stopped: str | None = None


_Extra = Literal["many", "structured", "logprobs"]
"""What a request may hold beyond the question: several answers at once, a schema, log-probabilities."""

_EXTRAS: tuple[_Extra, ...] = ("many", "structured", "logprobs")  # in the order in which they are done without


@dataclass
class _Offered:
    """Which extras the server has not refused, and with which it has answered."""

    extras: set[_Extra]
    worked: set[frozenset[_Extra]] = field(default_factory=set)


class Endpoint:
    """One teacher of kind ``endpoint``.

    :param pause: seconds before the first retry; doubled with each further one, and drawn at random below that.
    :raises PartError: if the environment variable of its key is not set, or the ``openai`` package is missing.
    """

    def __init__(self, config: AgentConfig, name: str, teacher: EndpointTeacher, pause: float = 0.5) -> None:
        self.where = f"{config.file}: teachers.{name}"
        self.actions = config.actions
        self.teacher = teacher
        self.pause = pause
        self.chunk = 8 * teacher.concurrency
        self._key = self._read_key()
        wanted = {"many": True, "structured": teacher.structured, "logprobs": teacher.probabilities != "votes"}
        self._offered = _Offered({extra for extra in _EXTRAS if wanted[extra]})

    def answer(self, rows: pd.DataFrame, allowance: Allowance) -> Answers:
        """Ask about ``rows``, ``concurrency`` at a time, while the allowance lasts and the server answers."""
        with ThreadPoolExecutor(1) as pool:  # a loop of its own, whatever loop the caller may be running in
            return pool.submit(asyncio.run, self._answer(rows, allowance)).result()

    @property
    def most_calls(self) -> int:
        """Requests that one row can take: each vote with all its retries, and those that find out what is offered."""
        return int(self.teacher.votes * (1 + self.teacher.retries) + 2 ** len(_EXTRAS))

    def dearest(self, rows: pd.DataFrame) -> list[float]:
        """The most that asking about each of ``rows`` can cost, in the unit of the prices."""
        extras = frozenset(_EXTRAS)
        records: list[dict[str, Any]] = rows.to_dict("records")  # type: ignore[assignment]
        questions = (fill(self.teacher.prompt, row, self.actions) for row in records)
        return [self.teacher.votes * self._dearest(self._body(question, extras, 1)) for question in questions]

    # ----------------------------------------------------------------- one round

    async def _answer(self, rows: pd.DataFrame, allowance: Allowance) -> Answers:
        began, tally = time.perf_counter(), _Tally(allowance)
        said = np.full((len(rows), len(self.actions)), np.nan)
        refused: dict[int, str] = {}
        turn = asyncio.Semaphore(self.teacher.concurrency)

        async def one(place: int, question: str) -> None:
            async with turn:
                if tally.stopped is None:
                    try:
                        said[place] = await self._ask(client, question, tally)
                    except _UselessAnswerError as useless:
                        refused[place] = str(useless)

        async with self._client() as client:
            records: list[dict[str, Any]] = rows.to_dict("records")  # type: ignore[assignment]
            questions = [fill(self.teacher.prompt, row, self.actions) for row in records]
            await asyncio.gather(*(one(place, question) for place, question in enumerate(questions)))
        spending = Spending(
            calls=tally.calls,
            rows=tally.asked,
            input_tokens=tally.tokens["input"],
            output_tokens=tally.tokens["output"],
            seconds=time.perf_counter() - began,
            money=tally.money,
        )
        return Answers(said, spending, refused, tally.stopped)

    async def _ask(self, client: AsyncOpenAI, question: str, tally: _Tally) -> Any:
        """Probabilities of one row, ``[K]``; NaN where the server failed."""
        calls = tally.calls
        try:
            said = await self._probabilities(client, question, tally)
        except _NoAnswerError as error:
            tally.failures += 1
            if tally.failures >= _GIVE_UP:
                tally.stopped = tally.stopped or f"{tally.failures} questions in a row failed, the last one: {error}"
            return np.nan
        except _EndError as end:
            tally.stopped = tally.stopped or str(end)
            return np.nan
        except _UselessAnswerError:
            tally.failures = 0  # the server does answer
            raise
        finally:
            tally.asked += tally.calls > calls
        tally.failures = 0
        return said

    async def _probabilities(self, client: AsyncOpenAI, question: str, tally: _Tally) -> Array:
        if "logprobs" in self._offered.extras:
            found = await self._by_logprobs(client, question, tally)
            if found is not None:
                return found
        said = await self._by_votes(client, question, tally)
        self._offered.extras.discard("logprobs")  # only now: before, it may have been the question that was refused
        return said

    async def _by_logprobs(self, client: AsyncOpenAI, question: str, tally: _Tally) -> Array | None:
        """None where the server gives none and votes will do."""
        reply = await self._request(client, question, tally, answers=1, logprobs=True)
        if reply is None:
            return None
        choice = reply.choices[0]
        tokens = _tokens(choice)
        if not tokens:
            if self.teacher.probabilities == "logprobs":
                raise _EndError(f"{self.where}: the server gives no log-probabilities: write `probabilities: votes`")
            self._offered.extras.discard("logprobs")
            return None
        self._action(choice)
        return from_logprobs(tokens, self.actions)

    async def _by_votes(self, client: AsyncOpenAI, question: str, tally: _Tally) -> Array:
        counts, cast, void = [0] * len(self.actions), 0, ""
        while cast < self.teacher.votes:
            wanted = self.teacher.votes - cast if "many" in self._offered.extras else 1
            reply = await self._request(client, question, tally, answers=wanted)
            for choice in reply.choices[:wanted]:
                cast += 1
                try:
                    counts[self._action(choice)] += 1
                except _UselessAnswerError as useless:
                    void = str(useless)
        lost = cast - sum(counts)
        if 2 * lost > cast:
            raise _UselessAnswerError(void if cast == 1 else f"{lost} of {cast} votes are void: {void}")
        return from_votes(counts, self.teacher.smoothing)

    def _action(self, choice: Any) -> int:
        text = getattr(getattr(choice, "message", None), "content", None)
        found = read_action(text, self.actions)
        if found is None:
            raise _UselessAnswerError(f"answered {self._plain(str(text))[:80]!r}, which is no action")
        return found

    # ----------------------------------------------------------------- one request

    async def _request(
        self, client: AsyncOpenAI, question: str, tally: _Tally, answers: int, logprobs: bool = False
    ) -> Any:
        """A reply with at least one choice; None if the server refuses log-probabilities.

        A refused request is tried again without each extra alone, then without several, until one is answered: only
        then is it known which of them the server does not offer. Where the same extras were answered before, it is
        the question that was refused.
        """
        used: frozenset[_Extra] = frozenset(
            extra for extra, asked in (("many", answers > 1), ("structured", True), ("logprobs", logprobs))
            if asked and extra in self._offered.extras
        )  # fmt: skip
        fewer = self._with_fewer(used)
        extras, attempt = used, 0
        while True:
            asked = self._body(question, extras, answers)
            reserved = self._dearest(asked)
            if not tally.allowance.take(reserved):
                raise _EndError("the budget is reached")
            tally.calls += 1
            try:
                async with asyncio.timeout(self.teacher.timeout.total_seconds()):
                    reply = await client.chat.completions.create(**asked)
                if not isinstance(getattr(reply, "choices", None), list) or not reply.choices:
                    raise ValueError("a reply without choices")
            except Exception as error:
                tally.allowance.give_back(reserved)
                status = getattr(error, "status_code", None)
                if status in _REFUSED_REQUEST and extras not in self._offered.worked and fewer:
                    extras = fewer.pop(0)
                    if logprobs and "logprobs" not in extras:
                        return None
                    continue
                await self._wait(error, status, attempt)
                attempt += 1
                continue
            self._settle(reply, asked, reserved, tally)
            self._offered.extras -= used - extras
            self._offered.worked.add(extras)
            return reply

    def _with_fewer(self, used: frozenset[_Extra]) -> list[frozenset[_Extra]]:
        """What to ask with instead, in turn: without one of the extras, then without two, and so on."""
        spare = [extra for extra in _EXTRAS if extra in used]
        if self.teacher.probabilities == "logprobs":
            spare = [extra for extra in spare if extra != "logprobs"]
        return [used - set(left) for count in range(1, len(spare) + 1) for left in combinations(spare, count)]

    async def _wait(self, error: Exception, status: int | None, attempt: int) -> None:
        """Wait before another try, if one can help.

        Exponential backoff with full jitter (Brooker 2015, "Exponential Backoff And Jitter"), and never sooner than the
        server's Retry-After.
        """
        why = self._reason(error)
        if status is not None and status not in _PASSING and status < 500:
            raise (_NoAnswerError if status in _REFUSED_REQUEST else _EndError)(why)
        asked = _retry_after(getattr(getattr(error, "response", None), "headers", {}))
        if asked > _LONGEST_WAIT:
            raise _EndError(f"{why}; the server asks to come back in {asked:.0f} s")
        if attempt >= self.teacher.retries:
            raise _NoAnswerError(why)
        backoff = random.uniform(0, min(_LONGEST_WAIT, self.pause * 2**attempt))
        await asyncio.sleep(asked + backoff)

    def _body(self, question: str, extras: frozenset[_Extra], answers: int) -> dict[str, Any]:
        system = f"{self.teacher.system}\n\n{instruction(self.actions, 'structured' in extras)}".strip()
        body: dict[str, Any] = {
            "model": self.teacher.model,
            "messages": [{"role": "system", "content": system}, {"role": "user", "content": question}],
            "max_completion_tokens": self.teacher.max_output_tokens,
            "temperature": 0.0 if "logprobs" in extras else self.teacher.temperature,
        }
        if "many" in extras:
            body["n"] = answers
        if "logprobs" in extras:
            body |= {"logprobs": True, "top_logprobs": 20}
        if "structured" in extras:
            body["response_format"] = answer_schema(self.actions)
        return body

    def _dearest(self, asked: Mapping[str, Any]) -> float:
        """The most that a request can cost: no token is shorter than a byte."""
        sent = sum(len(message["content"].encode()) + 16 for message in asked["messages"])
        return self._price(sent, asked["max_completion_tokens"] * asked.get("n", 1))

    def _price(self, sent: int, answered: int) -> float:
        teacher = self.teacher
        return (sent * teacher.price_per_million_input + answered * teacher.price_per_million_output) / 1e6

    def _settle(self, reply: Any, asked: Mapping[str, Any], reserved: float, tally: _Tally) -> None:
        """Count what the reply says that it cost; a server that does not say is taken to have charged the most."""
        usage = getattr(reply, "usage", None)
        sent, answered = (getattr(usage, name, None) for name in ("prompt_tokens", "completion_tokens"))
        if isinstance(sent, int) and isinstance(answered, int):
            tally.tokens.update(input=max(0, sent), output=max(0, answered))
            cost = self._price(max(0, sent), max(0, answered))
        else:
            cost = reserved
        tally.money += cost
        tally.allowance.give_back(reserved - cost)

    # ----------------------------------------------------------------- key, client, words

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

    def _reason(self, error: Exception) -> str:
        if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
            return f"{self.teacher.base_url} did not answer within {self.teacher.timeout.total_seconds():g} s"
        return f"{self.teacher.base_url}: {type(error).__name__}: {self._plain(str(error))[:300]}"

    def _plain(self, text: str) -> str:
        """``text`` without the key, which some servers send back."""
        return re.sub(r"\bsk-[\w*.-]+", "***", text if self._key == "none" else text.replace(self._key, "***"))


def _tokens(choice: Any) -> list[tuple[str, float, Sequence[tuple[str, float]]]]:
    """The tokens of an answer with their log-probabilities; empty where the server gives none, or nonsense."""
    content = getattr(getattr(choice, "logprobs", None), "content", None) or []
    with suppress(AttributeError, TypeError, ValueError):
        return [
            (str(each.token), min(0.0, float(each.logprob)),
             [(str(top.token), min(0.0, float(top.logprob))) for top in each.top_logprobs or []])
            for each in content
        ]  # fmt: skip
    return []


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait: a number, or a date (RFC 9110, §10.2.3); 0 where it does not."""
    given = headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(given))
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds())
    return 0.0
