"""HTTP/1.1 on a connection: uvicorn's protocol with limits, deadlines, and refusals in our shape.

uvicorn reads a request's head however long it is and takes, waits for the rest of it for ever, and drops the host of
an absolute request target. Here a head has a size and a time, and what is ambiguous (RFC 9112, sections 3.2 and 6.3) is
refused before the application sees it, so that a proxy before us and we can not read two different requests.
"""

from __future__ import annotations

import math
import sys
from typing import TYPE_CHECKING, Any, cast

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from stillhouse.runtime.http import TARGET, Refused

if TYPE_CHECKING:
    import asyncio

__all__ = ["HEAD_BYTES", "HEAD_SECONDS", "Protocol"]

HEAD_BYTES = 32 * 1024
"""Of a request's target and headers together; more are refused with 431."""
HEAD_SECONDS = 10.0
"""Within which a request's head must have arrived, from its first byte or the connection's beginning."""
REST_SECONDS = 32.0
"""Within which the rest of a request must have arrived, also where nobody waits for its body any more: a little longer
than the application waits for one that has begun (``RequestLimits.body_seconds``)."""
WRITE_SECONDS = 60.0
"""For which a client may leave an answer unread that does not fit into the socket's buffers."""


class Protocol(HttpToolsProtocol):
    """One connection.

    Deadlines are plain numbers that :meth:`expire` looks at about once a second for all connections: a timer for each
    request would cost more than the rest of this class.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.deadline = math.inf
        """By the loop's clock: when the client must have done what it is waited for."""
        self._pieces = 0
        self._in_head = False
        self._refused: Refused | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.deadline = self.loop.time() + HEAD_SECONDS

    def data_received(self, data: bytes) -> None:
        if self._refused is not None:  # nothing that follows what was refused is a request
            return
        unfinished = self.scope if self._in_head else None
        super().data_received(data)
        if self._in_head and self.scope is unfinished:  # a long header is no header yet that could be counted
            self._pieces += len(data)
            if self._pieces > HEAD_BYTES:
                self._refuse(_too_large())
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self.deadline == math.inf and self._refused is None:  # blank lines: no request has begun
            self.deadline = self.loop.time() + HEAD_SECONDS

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._pieces, self._in_head = 0, True
        self.deadline = self.loop.time() + HEAD_SECONDS

    def on_headers_complete(self) -> None:
        self._in_head = False
        self.deadline += REST_SECONDS - HEAD_SECONDS
        size = len(self.url)
        for name, value in self.headers:
            size += len(name) + len(value)
            if name == b"transfer-encoding" and (
                value.lower() != b"chunked" or self.parser.get_http_version() == "1.0"
            ):
                raise Refused(400, "malformed_request", "Transfer-Encoding is chunked, and HTTP/1.1, or not there")
        if size > HEAD_BYTES:
            raise _too_large()
        if not self.url.startswith(b"/") and self.url != b"*":
            found = httptools.parse_url(self.url)
            host = (found.host or b"").decode("latin-1")
            host = f"[{host}]" if ":" in host else host
            authority = host if found.port is None else f"{host}:{found.port}"
            cast("dict[str, Any]", self.scope)[TARGET] = authority
        super().on_headers_complete()
        self.headers = _Nowhere()  # for trailers: nobody here reads any, and none may pass for a header

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self.deadline = math.inf

    # ----------------------------------------------------------------- refusing

    def send_400_response(self, msg: str) -> None:
        """In our shape; called by ``data_received`` while the parser's error is handled."""
        error = sys.exc_info()[1]
        while error is not None and not isinstance(error, Refused):
            error = error.__cause__ or error.__context__
        self._refuse(error or Refused(400, "malformed_request", "this is no HTTP/1.1 request"))

    def _refuse(self, refused: Refused) -> None:
        """Answer so and close; after the answer to a request that came whole before."""
        self._refused, self.deadline = refused, math.inf
        before = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        if before:
            self.cycle.keep_alive = False  # its answer, or its end, closes the connection
            self.deadline = self.loop.time() + REST_SECONDS
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            answer = refused.answer()
            headers = [*answer.headers, ("content-length", str(len(answer.body))), ("connection", "close")]
            lines = b"".join(f"{name}: {value}\r\n".encode("latin-1") for name, value in headers)
            self.transport.write(STATUS_LINE[refused.status] + lines + b"\r\n" + answer.body)
        self.transport.close()

    def expire(self, now: float) -> None:
        """Send a client away that has kept us waiting past its deadline."""
        if now < self.deadline or self.transport.is_closing():
            return
        waits = self.cycle is not None and self.cycle.more_body and not self.cycle.response_started
        if self._in_head and self._refused is None:
            self._refuse(Refused(408, "too_slow", f"the request's head did not arrive within {HEAD_SECONDS:g} s"))
        elif waits and self._refused is None:
            self._refuse(Refused(408, "too_slow", f"the request's body did not arrive within {REST_SECONDS:g} s"))
        else:
            self.transport.abort()

    # ----------------------------------------------------------------- a client that does not read

    def pause_writing(self) -> None:
        super().pause_writing()
        self.deadline = self.loop.time() + WRITE_SECONDS

    def resume_writing(self) -> None:
        super().resume_writing()
        self.deadline = math.inf


class _Nowhere(list[tuple[bytes, bytes]]):
    """Keeps nothing of what it is given."""

    def append(self, _: tuple[bytes, bytes]) -> None:
        pass


def _too_large() -> Refused:
    return Refused(431, "head_too_large", f"a request's target and headers may have {HEAD_BYTES:,} bytes together")
