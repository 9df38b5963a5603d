"""The protocols that the door understands: reading requests and answers, writing answers of our own.

>>> sorted(PROTOCOLS)
['/v1/chat/completions', '/v1/responses', '/v1/systemone']
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from stillhouse.gateway.protocols.openai_chat import OpenAIChat
from stillhouse.gateway.protocols.openai_responses import OpenAIResponses
from stillhouse.gateway.protocols.systemone import SystemOne
from stillhouse.gateway.questions import Answer, ClosedQuestion, LocalAnswer, Unrecognised

__all__ = ["PROTOCOLS", "WireProtocol"]


class WireProtocol(Protocol):
    """One protocol, without input and output: all methods are pure but for new ids and the time in answers."""

    name: str
    path: str

    def read_request(
        self, request: Mapping[str, Any], task_name: str | None = None
    ) -> tuple[ClosedQuestion, ...] | Unrecognised:
        """The closed questions in a request."""

    def read_answers(self, questions: Sequence[ClosedQuestion], body: bytes, streamed: bool) -> tuple[Answer, ...]:
        """The upstream's answers to them.

        :raises ValueError: if the body is not a complete answer of this protocol.
        """

    def write_answers(self, questions: Sequence[ClosedQuestion], answers: Sequence[LocalAnswer]) -> list[bytes]:
        """Our answers to them, in parts that are sent one by one."""

    def write_error(self, status: int, code: str, message: str) -> bytes:
        """An error in the protocol's shape."""


PROTOCOLS: Mapping[str, WireProtocol] = {
    protocol.path: protocol for protocol in (OpenAIChat(), OpenAIResponses(), SystemOne())
}
"""By path."""
