"""HTTP/1.1 over real sockets: ambiguous, too long or too slow requests are rejected."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn

from stillhouse.serving import protocol
from stillhouse.serving.http import AccessGuard, HttpError, RequestLimits, json_response, read_body, send_response
from stillhouse.serving.protocol import Protocol

HOST = b"Host: localhost\r\n"
POST = b"POST /x HTTP/1.1\r\n" + HOST


class _UvicornServer(uvicorn.Server):
    """Checks the connections' deadlines more often than a worker does."""

    async def on_tick(self, counter: int) -> bool:
        for connection in list(self.server_state.connections):
            connection.expire(asyncio.get_running_loop().time())  # type: ignore[union-attr]
        return await super().on_tick(counter)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:  # type: ignore[override]
        yield


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The port of an application that returns the length of a body and the names of the headers."""
    guard, limits = (
        AccessGuard(["secret"], ["localhost", "127.0.0.1"]),
        RequestLimits(max_body=100_000, body_seconds=0.4),
    )

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            guard.check(scope)
            body = b"" if scope["path"] == "/unread" else await read_body(scope, receive, limits)
            names = [name.decode() for name, _ in scope["headers"]]
            await send_response(json_response({"bytes": len(body), "path": scope["path"], "headers": names}), send)
        except HttpError as error:
            await send_response(error.response(), send)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "HEAD_TIMEOUT_SECONDS", 0.4)
        patch.setattr(protocol, "BODY_TIMEOUT_SECONDS", 0.8)
        patch.setattr(protocol, "WRITE_TIMEOUT_SECONDS", 0.4)
        options = uvicorn.Config(app, port=0, http=Protocol, lifespan="off", log_config=None, timeout_keep_alive=1)
        server = _UvicornServer(options)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        while not server.started:
            thread.join(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
        server.should_exit = True
        thread.join()


TOKEN = b"Authorization: Bearer secret\r\n"


def send(port: int, *parts: bytes, pause: float = 0.0) -> list[tuple[int, dict[str, Any]]]:
    """Send the parts; returns the responses (status, body) until the server closes the connection."""

    async def exchange() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        received = bytearray()

        async def read() -> None:
            with contextlib.suppress(ConnectionError):
                while chunk := await reader.read(65_536):
                    received.extend(chunk)

        reading = asyncio.create_task(read())
        for part in parts:
            if reading.done():
                break
            writer.write(part)
            with contextlib.suppress(ConnectionError):
                await writer.drain()
            await asyncio.sleep(pause)
        await asyncio.wait_for(reading, 20)
        writer.close()
        return bytes(received)

    answers, rest = [], asyncio.run(exchange())
    while rest:
        head, _, rest = rest.partition(b"\r\n\r\n")
        lines = head.decode().lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length"))
        answers.append((int(lines[0].split()[1]), json.loads(rest[:length])))
        rest = rest[length:]
    return answers


def error_of(answers: list[tuple[int, dict[str, Any]]]) -> tuple[int, str]:
    ((status, body),) = answers
    assert set(body) == {"error"} and set(body["error"]) == {"code", "message"}
    return status, body["error"]["code"]


CLOSE = b"Connection: close\r\n"
AMBIGUOUS = {
    "two lengths": POST + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
    "a length twice": POST + b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
    "a list of lengths": POST + b"Content-Length: 3, 3\r\n\r\nabc",
    "a signed length": POST + b"Content-Length: +3\r\n\r\nabc",
    "a length and chunks": POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunks and a length": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
    "an unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "two codings": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunks not last": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "chunks in HTTP/1.0": b"POST /x HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a blank before the colon": POST + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
    "a folded header": POST + b"X: a\r\n b\r\n\r\n",
    "a bare line feed": b"POST /x HTTP/1.1\nHost: localhost\n\n",
    "a bare carriage return": POST + b"X: a\rb\r\n\r\n",
    "a NUL": POST + b"X: a\x00b\r\n\r\n",
    "a strange chunk": POST + TOKEN + b"Transfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
    "no HTTP": b"hello\r\n\r\n",
    "another HTTP": b"GET /x HTTP/9.9\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a target without a path": b"GET http://localhost HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tunnel": b"CONNECT evil.example:80 HTTP/1.1\r\n" + HOST + b"\r\n",
}


@pytest.mark.parametrize("request_", AMBIGUOUS.values(), ids=AMBIGUOUS)
def test_ambiguous_requests_are_rejected(port: int, request_: bytes) -> None:
    assert error_of(send(port, request_)) == (400, "malformed_request")


HOSTS = {
    "two": b"GET /x HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n" + CLOSE,
    "the same twice": b"GET /x HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n" + CLOSE,
    "none": b"GET /x HTTP/1.1\r\n" + CLOSE,
    "none in HTTP/1.0": b"GET /x HTTP/1.0\r\n",
    "another": b"GET /x HTTP/1.1\r\nHost: evil.example\r\n" + CLOSE,
    "another that begins alike": b"GET /x HTTP/1.1\r\nHost: localhost.evil.example\r\n" + CLOSE,
    "the target's is another": b"GET http://evil.example/x HTTP/1.1\r\nHost: localhost\r\n" + CLOSE,
    "the target's is another's": b"GET http://evil.example/x HTTP/1.1\r\nHost: evil.example\r\n" + CLOSE,
    "the target's port is another": b"GET http://localhost:81/x HTTP/1.1\r\nHost: localhost:80\r\n" + CLOSE,
}


@pytest.mark.parametrize("head", HOSTS.values(), ids=HOSTS)
def test_a_request_for_another_host_is_rejected(port: int, head: bytes) -> None:
    assert error_of(send(port, head + TOKEN + b"\r\n")) == (400, "wrong_host")


def test_a_request_is_answered_for_each_form_of_its_target(port: int) -> None:
    for target, host in ((b"/x", b"LOCALHOST:8000"), (b"http://localhost:8000/x", b"localhost:8000")):
        request_ = b"GET " + target + b" HTTP/1.1\r\nHost: " + host + b"\r\n" + TOKEN + CLOSE + b"\r\n"
        ((status, body),) = send(port, request_)
        assert (status, body["path"]) == (200, "/x")


def test_two_tokens_are_rejected(port: int) -> None:
    assert error_of(send(port, POST + TOKEN + TOKEN + CLOSE + b"\r\n")) == (400, "malformed_request")


def test_trailers_are_not_used_as_headers(port: int) -> None:
    request_ = POST + TOKEN + CLOSE + b"Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nHost: evil\r\nX: y\r\n\r\n"
    ((status, body),) = send(port, request_)
    assert status == 200 and body["bytes"] == 3 and body["headers"].count("host") == 1 and "x" not in body["headers"]


def test_a_complete_request_is_answered_before_invalid_data_closes_the_connection(port: int) -> None:
    ((status, body),) = send(port, POST + TOKEN + b"Content-Length: 3\r\n\r\nabc" + b"\x00rubbish\r\n\r\n")
    assert (status, body["bytes"]) == (200, 3)


LONG: dict[str, Callable[[], list[bytes]]] = {
    "many headers": lambda: [POST, b"".join(b"X%d: y\r\n" % i for i in range(4_000))],
    "one long header": lambda: [POST + b"X: ", b"y" * 20_000, b"y" * 20_000],
    "a long target": lambda: [b"GET /", b"y" * 20_000, b"y" * 20_000],
    "all at once": lambda: [POST + b"X: " + b"y" * 60_000 + b"\r\n\r\n"],
}


@pytest.mark.parametrize("parts", LONG.values(), ids=LONG)
def test_a_head_above_the_limit_is_rejected(port: int, parts: Callable[[], list[bytes]]) -> None:
    assert error_of(send(port, *parts(), pause=0.02)) == (431, "head_too_large")


def test_a_large_body_in_the_same_packet_does_not_count_as_head(port: int) -> None:
    head = POST + TOKEN + CLOSE + b"Content-Length: 90000\r\n"
    ((status, body),) = send(port, head, b"\r\n" + b"x" * 90_000, pause=0.05)
    assert (status, body["bytes"]) == (200, 90_000)


SLOW = {
    "half a head": (POST, (408, "too_slow")),
    "half a line": (b"POST /x HT", (408, "too_slow")),
    "half a body": (POST + TOKEN + b"Content-Length: 10\r\n\r\nabc", (408, "too_slow")),
    "no body": (POST + TOKEN + b"Content-Length: 10\r\n\r\n", (408, "too_slow")),
    "half a chunk": (POST + TOKEN + b"Transfer-Encoding: chunked\r\n\r\na\r\nabc", (408, "too_slow")),
}


@pytest.mark.parametrize(("start", "error"), SLOW.values(), ids=SLOW)
def test_an_incomplete_request_times_out(port: int, start: bytes, error: tuple[int, str]) -> None:
    assert error_of(send(port, start)) == error


@pytest.mark.parametrize("start", [b"", b"\r\n\r\n", b"GET /unread HTTP/1.1\r\n" + HOST + TOKEN + b"\r\n\r\n"])
def test_an_idle_connection_is_closed(port: int, start: bytes) -> None:
    assert all(status == 200 for status, _ in send(port, start))


def test_a_slowly_arriving_head_times_out(port: int) -> None:
    """Single bytes do not extend the deadline."""
    assert error_of(send(port, *[POST[i : i + 1] for i in range(20)], pause=0.05)) == (408, "too_slow")


def test_an_unread_slowly_arriving_body_times_out(port: int) -> None:
    start = b"POST /unread HTTP/1.1\r\n" + HOST + TOKEN + b"Content-Length: 1000\r\n\r\n"
    answers = send(port, start, *[b"x"] * 40, pause=0.05)
    assert [status for status, _ in answers] in ([200], [])  # the connection ended, perhaps before its response arrived
