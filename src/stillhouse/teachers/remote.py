"""A teacher behind an HTTP server: concurrent questions, a budget, retries with pauses, and a key that is never shown.

The kinds ``endpoint`` and ``decisions`` say how one row is asked about; everything else about a round of questions is
here.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig, RemoteTeacher
from stillhouse.errors import PartError
from stillhouse.records import Spending
from stillhouse.teachers.answers import Allowance, Answers, Array
from stillhouse.teachers.kinds import Member, MemberContext, answer_version, logged_version, require_version
from stillhouse.teachers.replies import ErrorReplyError, describe_error, read_retry_after

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = [
    "BAD_REQUEST_STATUS",
    "NoAnswerError",
    "RemoteAsker",
    "Round",
    "StopError",
    "UnusableAnswerError",
    "as_member",
]

_MAX_FAILURES_IN_A_ROW = 5  # questions; each fails with all its retries
_MAX_WAIT_SECONDS = 60.0  # of a server's Retry-After; for longer, the asking ends
_TRANSIENT_STATUS = {408, 409, 425, 429}  # and all of 500 and above
BAD_REQUEST_STATUS = {400, 422}
"""Statuses of a server that refuses the question itself, or a part of it."""


class NoAnswerError(Exception):
    """A question got no answer with all its retries; it may get one later."""


class UnusableAnswerError(Exception):
    """The answer to this row is unusable."""


class StopError(Exception):
    """No more questions: the budget is reached, or the server rejects this client."""


@dataclass
class Round:
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


class RemoteAsker(ABC):
    """Asks a server about rows, ``concurrency`` at a time. Kinds implement the abstract methods.

    :param name: the teacher's, with those of its ensembles.
    :param section: of the agent file.
    :param pause: seconds before the first retry at most; it doubles with each further retry.
    :raises PartError: if the environment variable of its key is not set.
    """

    def __init__(self, config: AgentConfig, name: str, section: RemoteTeacher, pause: float = 0.5) -> None:
        self.where = f"{config.file}: teachers.{name}"
        self.actions = config.actions
        self._section = section
        self.pause = pause
        self.chunk_rows = 8 * section.concurrency
        self._key = self._read_key()

    # ----------------------------------------------------------------- what a kind says

    @property
    @abstractmethod
    def max_calls_per_row(self) -> int:
        """The most requests that one row can take."""

    @abstractmethod
    def max_cost(self, rows: pd.DataFrame) -> list[float]:
        """The most that asking about each of ``rows`` can cost, in the unit of the prices."""

    @abstractmethod
    def _questions(self, rows: pd.DataFrame) -> list[Any]:
        """What the server is asked about each row."""

    @abstractmethod
    async def _probabilities(self, client: AsyncOpenAI, question: Any, round_: Round) -> Array:
        """Probabilities of one row, ``[K]``.

        :raises UnusableAnswerError: if the answer to this row is unusable.
        :raises NoAnswerError: if the question failed for good; StopError: if further questions would fail too.
        """

    # ----------------------------------------------------------------- one round

    def answer(self, rows: pd.DataFrame, allowance: Allowance) -> Answers:
        """Ask about ``rows``, ``concurrency`` at a time, until the allowance is spent or the server fails.

        :raises PartError: if the ``openai`` package is missing.
        """
        with ThreadPoolExecutor(1) as pool:  # an event loop of its own: the caller may run in another
            return pool.submit(asyncio.run, self._answer(rows, allowance)).result()

    async def _answer(self, rows: pd.DataFrame, allowance: Allowance) -> Answers:
        began, round_ = time.perf_counter(), Round(allowance)
        probs = np.full((len(rows), len(self.actions)), np.nan)
        refused: dict[int, str] = {}
        slots = asyncio.Semaphore(self._section.concurrency)

        async def answer_row(index: int, question: Any) -> None:
            async with slots:
                if round_.stop_reason is None:
                    try:
                        probs[index] = await self._ask(client, question, round_)
                    except UnusableAnswerError as error:
                        refused[index] = str(error)

        async with self._client() as client:
            await asyncio.gather(*(answer_row(*numbered) for numbered in enumerate(self._questions(rows))))
        spending = Spending(
            calls=round_.calls,
            rows=round_.rows,
            input_tokens=round_.tokens["input"],
            output_tokens=round_.tokens["output"],
            seconds=time.perf_counter() - began,
            money=round_.money,
        )
        return Answers(probs, spending, refused, round_.stop_reason, notes=tuple(round_.notes))

    async def _ask(self, client: AsyncOpenAI, question: Any, round_: Round) -> Any:
        """Probabilities of one row, ``[K]``; NaN if the server failed.

        :raises UnusableAnswerError: if the answer to this row is unusable.
        """
        calls = round_.calls
        try:
            probs = await self._probabilities(client, question, round_)
        except NoAnswerError as error:
            round_.failures_in_a_row += 1
            if round_.failures_in_a_row >= _MAX_FAILURES_IN_A_ROW:
                round_.stop_reason = round_.stop_reason or (
                    f"{round_.failures_in_a_row} questions in a row failed, the last one: {error}"
                )
            return np.nan
        except StopError as error:
            round_.stop_reason = round_.stop_reason or str(error)
            return np.nan
        except UnusableAnswerError:
            round_.failures_in_a_row = 0  # the server does answer
            raise
        finally:
            round_.rows += round_.calls > calls
        round_.failures_in_a_row = 0
        return probs

    async def _wait_or_raise(self, error: Exception, status: int | None, attempt: int) -> None:
        """Wait before another attempt, if one can help.

        Exponential backoff with full jitter (Brooker 2015, "Exponential Backoff And Jitter"), never shorter than the
        server's Retry-After.

        :raises NoAnswerError: if the question failed for good; StopError: if further questions would fail too.
        """
        reason = self._describe(error)
        if status is not None and status not in _TRANSIENT_STATUS and status < 500:
            raise (NoAnswerError if status in BAD_REQUEST_STATUS else StopError)(reason)
        retry_after = read_retry_after(getattr(getattr(error, "response", None), "headers", {}))
        if retry_after > _MAX_WAIT_SECONDS:
            raise StopError(f"{reason}; the server asks to come back in {retry_after:.0f} s")
        if attempt >= self._section.retries:
            raise NoAnswerError(reason)
        backoff = random.uniform(0, min(_MAX_WAIT_SECONDS, self.pause * 2**attempt))
        await asyncio.sleep(retry_after + backoff)

    # ----------------------------------------------------------------- cost

    def _price(self, input_tokens: int, output_tokens: int) -> float:
        section = self._section
        return (input_tokens * section.price_per_million_input + output_tokens * section.price_per_million_output) / 1e6

    def _settle_cost(self, input_tokens: Any, output_tokens: Any, reserved: float, round_: Round) -> None:
        """Record the cost by the reply's token counts; without them, the reserved maximum."""
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
        seconds = self._section.timeout.total_seconds()
        return AsyncOpenAI(base_url=self._section.base_url, api_key=self._key, timeout=seconds, max_retries=0)

    def _read_key(self) -> str:
        name = self._section.key_variable
        if name is None:
            return "none"
        if not (key := os.environ.get(name, "").strip()):
            raise PartError(f"{self.where}: the environment variable {name}, which is to hold its key, is not set")
        return key

    def _describe(self, error: Exception) -> str:
        """Text of an error with the server's address and without the key."""
        if isinstance(error, ErrorReplyError):
            return f"{self._section.base_url} answered with an error: {self._redact(str(error))[:300]}"
        if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
            return f"{self._section.base_url} did not answer within {self._section.timeout.total_seconds():g} s"
        return f"{self._section.base_url}: {type(error).__name__}: {self._redact(describe_error(error))[:300]}"

    def _redact(self, text: str) -> str:
        """``text`` without the key, as some servers repeat it in errors."""
        return re.sub(r"\bsk-[\w*.-]+", "***", text if self._key == "none" else text.replace(self._key, "***"))


@logged_version.register
def _(section: RemoteTeacher, context: MemberContext, models: Sequence[str]) -> str | None:
    return answer_version(context) if section.model in models else None


def as_member(asker: RemoteAsker, context: MemberContext, entry: dict[str, Any], version: str) -> Member:
    """The member of an ensemble that asks the server.

    :raises PartError: if the section has changed since its answers were stored.
    """
    require_version(context, entry, version)
    return Member(
        context.leaf.name,
        context.leaf.share,
        asker.answer,
        entry["version"],
        chunk_rows=asker.chunk_rows,
        max_cost=asker.max_cost,
        max_calls_per_row=asker.max_calls_per_row,
    )
