"""HTTP/1.1 on one connection: uvicorn's protocol with size limits, deadlines, and our error format.

uvicorn limits neither the size of a request's head nor the time to wait for the rest of a request, and drops the host
of an absolute request target. This class limits both, and rejects ambiguous requests (RFC 9112, sections 3.2 and 6.3)
before the application sees them, so that a proxy in front of the server cannot read a request differently.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from stillhouse.gateway import CLOSE_KEY, RELAY_KEY
from stillhouse.serving.http import TARGET_KEY, HttpError

if TYPE_CHECKING:
    import asyncio

__all__ = ["HEAD_TIMEOUT_SECONDS", "MAX_HEAD_BYTES", "Protocol"]

MAX_HEAD_BYTES = 32 * 1024
"""Maximum size of a request's target and headers together; larger ones are answered with 431."""
HEAD_TIMEOUT_SECONDS = 10.0
"""Time for a request's head to arrive, from its first byte or from the beginning of the connection."""
BODY_TIMEOUT_SECONDS = 32.0
"""Time for the rest of a request to arrive, even if the application no longer reads it: slightly longer than the
application waits for a body that it reads (``RequestLimits.body_seconds``)."""
WRITE_TIMEOUT_SECONDS = 60.0
"""Time that a client may leave a response unread that does not fit into the socket's buffers."""


class Protocol(HttpToolsProtocol):
    """One connection.

    A deadline is a plain number, which :meth:`expire` checks about once a second for all connections: a timer for each
    request would cost more than the rest of this class.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.deadline = math.inf
        """By the loop's clock: when the client must have sent, or read, what the server waits for."""
        self._head_bytes = 0
        self._in_head, self._is_relayed = False, False
        self._error: HttpError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.deadline = self.loop.time() + HEAD_TIMEOUT_SECONDS

    def data_received(self, data: bytes) -> None:
        if self._error is not None:  # data after a rejected request is not parsed
            return
        unfinished_scope = self.scope if self._in_head else None
        super().data_received(data)
        if self._in_head and self.scope is unfinished_scope:  # counts a long header before the parser has it whole
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self._reject(_head_too_large())
        if self._is_relayed and self.deadline != math.inf:
            self.deadline = self.loop.time() + BODY_TIMEOUT_SECONDS
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self.deadline == math.inf and self._error is None:  # only blank lines: no request has begun
            self.deadline = self.loop.time() + HEAD_TIMEOUT_SECONDS

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._head_bytes, self._in_head, self._is_relayed = 0, True, False
        self.deadline = self.loop.time() + HEAD_TIMEOUT_SECONDS

    def on_headers_complete(self) -> None:
        self._in_head = False
        self.deadline += BODY_TIMEOUT_SECONDS - HEAD_TIMEOUT_SECONDS
        size = len(self.url)
        for name, value in self.headers:
            size += len(name) + len(value)
            if name == b"transfer-encoding" and (
                value.lower() != b"chunked" or self.parser.get_http_version() == "1.0"
            ):
                raise HttpError(
                    400, "malformed_request", "Transfer-Encoding must be chunked, with HTTP/1.1, or be absent"
                )
        if size > MAX_HEAD_BYTES:
            raise _head_too_large()
        if not self.url.startswith(b"/") and self.url != b"*":
            url = httptools.parse_url(self.url)
            host = (url.host or b"").decode("latin-1")
            host = f"[{host}]" if ":" in host else host
            authority = host if url.port is None else f"{host}:{url.port}"
            cast("dict[str, Any]", self.scope)[TARGET_KEY] = authority
        cast("dict[str, Any]", self.scope)[CLOSE_KEY] = self.transport.close
        cast("dict[str, Any]", self.scope)[RELAY_KEY] = self._note_relay
        super().on_headers_complete()
        self.headers = _DiscardedHeaders()  # for trailers: they are not used, and must not count as headers

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.deadline = math.inf

    def _note_relay(self) -> None:
        """The body is passed on as it arrives: the client must go on sending, but may take as long as it needs."""
        self._is_relayed = True

    # ----------------------------------------------------------------- rejected requests

    def send_400_response(self, msg: str) -> None:
        """Reject in our format; called by ``data_received`` while it handles the parser's error."""
        error = sys.exc_info()[1]
        while error is not None and not isinstance(error, HttpError):
            error = error.__cause__ or error.__context__
        self._reject(error or HttpError(400, "malformed_request", "this is no HTTP/1.1 request"))

    def _reject(self, error: HttpError) -> None:
        """Send the error and close the connection; a complete earlier request is answered first."""
        self._error, self.deadline = error, math.inf
        earlier_unanswered = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        if earlier_unanswered:
            self.cycle.keep_alive = False  # its response, or its end, closes the connection
            self.deadline = self.loop.time() + BODY_TIMEOUT_SECONDS
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            response = error.response()
            headers = [*response.headers, ("content-length", str(len(response.body))), ("connection", "close")]
            lines = b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in headers)
            self.transport.write(STATUS_LINE[error.status] + lines + b"\r\n" + response.body)
        self.transport.close()

    def expire(self, now: float) -> None:
        """Reject or abort if the deadline has passed."""
        if now < self.deadline or self.transport.is_closing():
            return
        waits_for_body = self.cycle is not None and self.cycle.more_body and not self.cycle.response_started
        if self._in_head and self._error is None:
            text = f"the request's head did not arrive within {HEAD_TIMEOUT_SECONDS:g} s"
            self._reject(HttpError(408, "too_slow", text))
        elif waits_for_body and self._error is None:
            text = f"the request's body did not arrive within {BODY_TIMEOUT_SECONDS:g} s"
            self._reject(HttpError(408, "too_slow", text))
        else:
            self.transport.abort()

    # ----------------------------------------------------------------- clients that do not read

    def pause_writing(self) -> None:
        super().pause_writing()
        self.deadline = self.loop.time() + WRITE_TIMEOUT_SECONDS

    def resume_writing(self) -> None:
        super().resume_writing()
        self.deadline = math.inf


class _DiscardedHeaders(list[tuple[bytes, bytes]]):
    """A list that stays empty."""

    def append(self, _: tuple[bytes, bytes]) -> None:
        pass


def _head_too_large() -> HttpError:
    return HttpError(
        431, "head_too_large", f"a request's target and headers may have {MAX_HEAD_BYTES:,} bytes together"
    )
