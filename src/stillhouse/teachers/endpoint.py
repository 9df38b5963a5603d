"""A language model behind the OpenAI protocol: many questions at once, patient with a server that misbehaves."""

from __future__ import annotations

import asyncio
import json
import logging
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
from stillhouse.teachers.kinds import Member, MemberContext, answer_version, describe, open_member, require_version
from stillhouse.teachers.wording import FENCE, answer_schema, fill, from_logprobs, from_votes, instruction, read_action

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["Endpoint"]

_GIVE_UP = 5  # questions in a row that fail with all their retries
_LONGEST_WAIT = 60.0  # seconds that a server may ask to wait; for longer, come back later
_PASSING = {408, 409, 425, 429}  # and all of 500 and above
_REFUSED_REQUEST = {400, 422}
# Servers that refuse a parameter as a fault of their own, or within a reply, say so in words.
_NOT_OFFERED = re.compile(
    r"\b(not|n't) (yet )?(be )?(support|implement|allow|permit|offer)|unsupported|unknown (param|arg|field)"
    r"|unrecogni[sz]ed|unexpected keyword|only one (completion|choice)",
    re.IGNORECASE,
)


class _NoAnswerError(Exception):
    """A question that got no answer with all its retries; another time it may."""


class _UselessAnswerError(Exception):
    """An answer to this row that is of no use."""


class _ErrorReplyError(Exception):
    """A reply with status 200 that holds an error instead of an answer."""

    def __init__(self, error: Any) -> None:
        told = error if isinstance(error, Mapping) else {"message": error}
        code = str(told.get("code", told.get("status", "")))
        super().__init__(str(told.get("message") or told))
        self.status_code = int(code) if re.fullmatch(r"[45]\d\d", code) else None


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
    notes: list[str] = field(default_factory=list)
    finding_out: asyncio.Lock = field(default_factory=asyncio.Lock)


_Extra = Literal["many", "structured", "logprobs", "temperature", "completion_tokens", "system"]
"""What a request may hold beyond the question: several answers at once, a schema, log-probabilities, a temperature,
``max_completion_tokens`` (else ``max_tokens``), a system message (else it begins the question)."""

_EXTRAS: tuple[_Extra, ...] = ("many", "structured", "logprobs")  # in the order in which they are done without
_BASICS: tuple[_Extra, ...] = (
    "temperature",
    "completion_tokens",
    "system",
)  # after those: hardly any server lacks them
_PARAMETERS: Mapping[_Extra, str] = {
    "many": "n",
    "structured": "response_format",
    "logprobs": "logprobs",
    "temperature": "temperature",
    "completion_tokens": "max_completion_tokens (max_tokens is sent instead)",
    "system": "the system role (its message begins the question instead)",
}
# What a refusal says where it names one of the basics.
_NAMED: Mapping[_Extra, re.Pattern[str]] = {
    "temperature": re.compile(r"\btemperature\b", re.IGNORECASE),
    "completion_tokens": re.compile(r"\bmax_completion_tokens\b", re.IGNORECASE),
    "system": re.compile(r"\bsystem\b|\bdeveloper (message|instruction|role)|\broles? must alternate", re.IGNORECASE),
}


@dataclass
class _Offered:
    """Which extras the server has not refused, and with which it has answered."""

    extras: set[_Extra]
    worked: set[frozenset[_Extra]] = field(default_factory=set)


_ALL: frozenset[_Extra] = frozenset((*_EXTRAS, *_BASICS))
log = logging.getLogger(__name__)


@describe.register
def _(section: EndpointTeacher, context: MemberContext) -> dict[str, Any]:
    return {"version": answer_version(context)}


@open_member.register
def _(section: EndpointTeacher, context: MemberContext, part: dict[str, Any]) -> Member:
    require_version(context, part, answer_version(context))
    asked = Endpoint(context.config, context.leaf.name, section)
    return Member(
        context.leaf.name,
        context.leaf.share,
        asked.answer,
        part["version"],
        chunk=asked.chunk,
        dearest=asked.dearest,
        most_calls=asked.most_calls,
    )


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
        columns = config.observations.columns
        self._quotes = any(columns[name].type != "number" for name in teacher.placeholders if name in columns)
        wanted = {"many": True, "structured": teacher.structured, "logprobs": teacher.probabilities != "votes"}
        self._offered = _Offered({*_BASICS, *(extra for extra in _EXTRAS if wanted[extra])})

    def answer(self, rows: pd.DataFrame, allowance: Allowance) -> Answers:
        """Ask about ``rows``, ``concurrency`` at a time, while the allowance lasts and the server answers."""
        with ThreadPoolExecutor(1) as pool:  # a loop of its own, whatever loop the caller may be running in
            return pool.submit(asyncio.run, self._answer(rows, allowance)).result()

    @property
    def most_calls(self) -> int:
        """Requests that one row can take: each vote with all its retries, and those that find out what is offered."""
        return int(self.teacher.votes * (1 + self.teacher.retries) + len(self._with_fewer(_ALL)) + len(_BASICS) + 1)

    def dearest(self, rows: pd.DataFrame) -> list[float]:
        """The most that asking about each of ``rows`` can cost, in the unit of the prices."""
        extras = _ALL
        records: list[dict[str, Any]] = rows.to_dict("records")  # type: ignore[assignment]
        questions = (fill(self.teacher.prompt, row, self.actions, fenced=True) for row in records)
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
            questions = [fill(self.teacher.prompt, row, self.actions, fenced=True) for row in records]
            await asyncio.gather(*(one(place, question) for place, question in enumerate(questions)))
        spending = Spending(
            calls=tally.calls,
            rows=tally.asked,
            input_tokens=tally.tokens["input"],
            output_tokens=tally.tokens["output"],
            seconds=time.perf_counter() - began,
            money=tally.money,
        )
        return Answers(said, spending, refused, tally.stopped, notes=tuple(tally.notes))

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
        # Only now: before, it may have been the question that was refused.
        self._learn(frozenset({"logprobs"}), "votes are drawn instead", tally)
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
            self._learn(frozenset({"logprobs"}), "votes are drawn instead", tally)
            return None
        self._action(choice)
        return from_logprobs(tokens, self.actions)

    async def _by_votes(self, client: AsyncOpenAI, question: str, tally: _Tally) -> Array:
        counts, cast, void, fault = [0] * len(self.actions), 0, "", ""
        while cast < self.teacher.votes:
            wanted = self.teacher.votes - cast if "many" in self._offered.extras else 1
            reply = await self._request(client, question, tally, answers=wanted)
            for choice in reply.choices[:wanted]:
                cast += 1
                try:
                    counts[self._action(choice)] += 1
                except _UselessAnswerError as useless:
                    void = str(useless)
                except _NoAnswerError as error:
                    fault = str(error)
        lost = cast - sum(counts)
        if 2 * lost > cast and fault:
            raise _NoAnswerError(fault)
        if 2 * lost > cast:
            raise _UselessAnswerError(void if cast == 1 else f"{lost} of {cast} votes are void: {void}")
        return from_votes(counts, self.teacher.smoothing)

    def _action(self, choice: Any) -> int:
        """The action that an answer names.

        :raises _UselessAnswerError: if it names none, is a refusal, or was held back.
        :raises _NoAnswerError: if it was cut off, or the server failed: another answer to this row may be of use.
        """
        message, ended = getattr(choice, "message", None), getattr(choice, "finish_reason", None)
        text = getattr(message, "content", None)
        if isinstance(text, list):  # in parts
            text = "".join(str(part.get("text") or "") for part in text if isinstance(part, Mapping))
        found = read_action(text, self.actions)
        if found is not None:
            return found
        if refusal := getattr(message, "refusal", None):
            raise _UselessAnswerError(f"refused: {self._plain(str(refusal))[:200]!r}")
        if ended == "content_filter":
            raise _UselessAnswerError("the server's content filter held the answer back")
        if ended == "length":
            raise _NoAnswerError(
                f"the answer was cut off at `max_output_tokens: {self.teacher.max_output_tokens}`, before it named an "
                f"action: raise it (a model that thinks first may need thousands)"
            )
        if ended == "error" or getattr(choice, "error", None):
            raise _NoAnswerError(self._reason(_ErrorReplyError(getattr(choice, "error", None) or "an error, unnamed")))
        raise _UselessAnswerError(f"answered {self._plain(str(text))[:80]!r}, which is no action")

    # ----------------------------------------------------------------- one request

    async def _request(
        self, client: AsyncOpenAI, question: str, tally: _Tally, answers: int, logprobs: bool = False
    ) -> Any:
        """A reply with at least one choice; None if the server refuses log-probabilities.

        A refused request is tried again without what its refusal names; else without each extra alone, then without
        several, then without the basics, until one is answered: only then is it known what the server does not offer.
        One question finds out at a time. Where the same extras were answered before, the question itself was refused.
        """
        used, extras = self._extras(answers, logprobs), self._extras(answers, logprobs)
        fewer: list[frozenset[_Extra]] | None = None  # what is still to be tried; None: nothing was refused so far
        why, attempt = "", 0
        try:
            while True:
                asked = self._body(question, extras, answers)
                reserved = self._dearest(asked)
                if not tally.allowance.take(reserved):
                    raise _EndError("the budget is reached")
                tally.calls += 1
                try:
                    async with asyncio.timeout(self.teacher.timeout.total_seconds()):
                        reply = await client.chat.completions.create(**asked)
                    _require_choices(reply)
                except Exception as error:
                    tally.allowance.give_back(reserved)
                    status = getattr(error, "status_code", None)
                    if _refuses(error) and extras not in self._offered.worked:
                        if fewer is None:
                            await tally.finding_out.acquire()
                            fewer = self._with_fewer(extras)
                            if (now := self._extras(answers, logprobs)) != used:  # another question has found out
                                tally.finding_out.release()
                                used, extras, fewer = now, now, None
                                if logprobs and "logprobs" not in extras:
                                    return None
                                continue
                        why = why or self._reason(error)
                        named = next((each for each in _BASICS if each in extras and self._names(error, each)), None)
                        if named is not None:
                            extras = extras - {named}
                            fewer = self._with_fewer(extras)
                            continue
                        if fewer:
                            extras = fewer.pop(0)
                            if logprobs and "logprobs" not in extras:
                                return None
                            continue
                    await self._wait(error, status, attempt)
                    attempt += 1
                    continue
                self._settle(reply, asked, reserved, tally)
                self._learn(used - extras, why, tally)
                self._offered.worked.add(extras)
                return reply
        finally:
            if fewer is not None:
                tally.finding_out.release()

    def _extras(self, answers: int, logprobs: bool) -> frozenset[_Extra]:
        """What a request holds, as far as the server has not refused it."""
        asked: dict[_Extra, bool] = {"many": answers > 1, "structured": True, "logprobs": logprobs}
        return frozenset(extra for extra in self._offered.extras if asked.get(extra, True))

    def _with_fewer(self, used: frozenset[_Extra]) -> list[frozenset[_Extra]]:
        """What to ask with instead, in turn: without one of the extras, without two, and so on; then the basics."""
        spare = [extra for extra in _EXTRAS if extra in used]
        if self.teacher.probabilities == "logprobs":
            spare = [extra for extra in spare if extra != "logprobs"]
        basics = [extra for extra in _BASICS if extra in used]
        ways = [used - set(left) for count in range(1, len(spare) + 1) for left in combinations(spare, count)]
        ways += [used - set(left) for count in range(1, len(basics) + 1) for left in combinations(basics, count)]
        least = used - set(spare)
        return list(dict.fromkeys([*ways, *(least - {each} for each in basics), least - set(basics)]))

    def _names(self, error: Exception, extra: _Extra) -> bool:
        """Whether a refusal names it, in its words or as the parameter that is wrong."""
        body = getattr(error, "body", None)
        parameter = body.get("param") if isinstance(body, Mapping) else None
        told = f"{_told(error)} {parameter or ''}"
        for role in ("system", "developer"):  # "messages[0].role"
            told += f" {role}" if extra == "system" and str(parameter).endswith("role") else ""
        return _NAMED[extra].search(told) is not None

    def _learn(self, lost: frozenset[_Extra], why: str, tally: _Tally) -> None:
        """What the server does not offer is not asked for again, and told once."""
        if new := lost & self._offered.extras:
            self._offered.extras -= new
            without = ", ".join(_PARAMETERS[each] for each in (*_EXTRAS, *_BASICS) if each in new)
            tally.notes.append(f"{self.where}: the server does not offer {without}: {why}")
            log.warning("%s", tally.notes[-1])

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
        form = instruction(self.actions, "structured" in extras)
        system = f"{self.teacher.system}\n\n{f'{FENCE} ' if self._quotes else ''}{form}".strip()
        messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
        if "system" not in extras:
            messages = [{"role": "user", "content": f"{system}\n\n{question}"}]
        body: dict[str, Any] = {"model": self.teacher.model, "messages": messages}
        tokens = "max_completion_tokens" if "completion_tokens" in extras else "max_tokens"
        body[tokens] = self.teacher.max_output_tokens
        if "temperature" in extras:
            body["temperature"] = 0.0 if "logprobs" in extras else self.teacher.temperature
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
        return self._price(sent, self.teacher.max_output_tokens * asked.get("n", 1))

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
        if isinstance(error, _ErrorReplyError):
            return f"{self.teacher.base_url} answered with an error: {self._plain(str(error))[:300]}"
        if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
            return f"{self.teacher.base_url} did not answer within {self.teacher.timeout.total_seconds():g} s"
        return f"{self.teacher.base_url}: {type(error).__name__}: {self._plain(_told(error))[:300]}"

    def _plain(self, text: str) -> str:
        """``text`` without the key, which some servers send back."""
        return re.sub(r"\bsk-[\w*.-]+", "***", text if self._key == "none" else text.replace(self._key, "***"))


def _refuses(error: Exception) -> bool:
    """Whether an error may be a refusal of what a request holds."""
    status = getattr(error, "status_code", None)
    if status in (*_REFUSED_REQUEST, 501):
        return True
    in_words = status == 500 or (status is None and isinstance(error, _ErrorReplyError))
    patterns = (_NOT_OFFERED, _NAMED["temperature"], _NAMED["completion_tokens"])
    return in_words and any(pattern.search(_told(error)) for pattern in patterns)


def _told(error: Exception) -> str:
    """An error in words, with what its reply says where the client leaves that out."""
    text, body = str(error), getattr(error, "body", None)
    if isinstance(body, Mapping) and isinstance(body.get("detail"), list):  # as FastAPI refuses
        items = [each for each in body["detail"] if isinstance(each, Mapping)]
        said = "; ".join(f"{'.'.join(map(str, each.get('loc') or ()))}: {each.get('msg')}" for each in items)
    elif isinstance(body, Mapping):
        said = str(body.get("message") or body.get("detail") or json.dumps(body, default=str))
    else:
        said = str(body or "")
    return text if said in text else f"{text} - {said}"


def _require_choices(reply: Any) -> None:
    """:raises _ErrorReplyError: if the server tells of an error instead."""
    if isinstance(getattr(reply, "choices", None), list) and reply.choices:
        return
    if error := getattr(reply, "error", None):
        raise _ErrorReplyError(error)
    held = getattr(reply, "model_extra", None)
    raise ValueError(f"a reply without choices{f': {held}'[:200] if held else ''}")


def _tokens(choice: Any) -> list[tuple[str, float, Sequence[tuple[str, float]]]]:
    """The tokens of an answer with their log-probabilities; empty where the server gives none, or nonsense."""
    content = getattr(getattr(choice, "logprobs", None), "content", None) or []
    with suppress(AttributeError, TypeError, ValueError):
        return [
            (
                str(each.token),
                min(0.0, float(each.logprob)),
                [(str(top.token), min(0.0, float(top.logprob))) for top in each.top_logprobs or []],
            )
            for each in content
        ]
    return []


def _retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that a server asks to wait: a number, or a date (RFC 9110, §10.2.3); 0 where it does not."""
    given = headers.get("retry-after", "")
    with suppress(ValueError):
        return max(0.0, float(given))
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(given) - datetime.now(UTC)).total_seconds())
    return 0.0
