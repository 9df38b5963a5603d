"""The door: passes requests on to the upstream, records beside them, and answers where a champion may.

Every request that is not one of this server's own goes to the upstream, and its answer comes back as it is. If
anything of ours fails on the way (a request that cannot be read, a champion that cannot decide, a disk that is full),
the request is passed on all the same.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import httpcore

from stillhouse.gateway import CLOSE_KEY, RELAY_KEY
from stillhouse.gateway.access import TASK_HEADER, Access, Caller
from stillhouse.gateway.captures import CaptureLog, Exchange, decode_request, read_questions
from stillhouse.gateway.deciding import Asked, Decider, LocalDecision
from stillhouse.gateway.protocols import PROTOCOLS, WireProtocol
from stillhouse.gateway.protocols.messages import error_body
from stillhouse.gateway.questions import ClosedQuestion, LocalAnswer, Unrecognised
from stillhouse.gateway.settings import GatewaySettings
from stillhouse.gateway.store import store_path
from stillhouse.gateway.tasks import is_task_name, make_task, task_key
from stillhouse.gateway.upstream import Upstream, UpstreamAddress, normalise_path, response_headers

__all__ = ["Door", "DoorSettings", "Handled"]

log = logging.getLogger(__name__)

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
Scope = Any

_CLOSE_SECONDS = 5.0  # for unwritten records at the end, and for a closed connection to be gone
_EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True)
class DoorSettings:
    """What a worker needs to open the door."""

    upstream: UpstreamAddress
    gateway: GatewaySettings
    abstain: bool = False
    """Whether a question that a champion may not answer is answered with 422 instead of being passed on."""


class Handled(NamedTuple):
    """How a request was handled, for metrics."""

    route: str
    """The protocol, or ``other``."""
    result: str
    """``passed_on``, ``local``, ``abstained``, ``unreachable``, ``cut``, ``client_left`` or ``refused``."""
    status: int


class UpstreamCutError(Exception):
    """The upstream's answer ended too early, and so must ours; it has no text, because that might hold a header."""


class _ClientLeftError(Exception):
    """The client left before the end of its body."""


class _Body(NamedTuple):
    """A request's body, as far as it was read."""

    read: bytes
    rest: AsyncIterator[bytes] | None
    """What follows ``read``; None: nothing."""


class Door:
    """The door of one worker: made anywhere, opened and closed in its event loop.

    :param key: the installation's secret key.
    :param tokens: of ours: a caller that shows one needs no accepted credential.
    :param decider: the champions; None: everything is passed on.
    """

    def __init__(
        self,
        settings: DoorSettings,
        key: bytes,
        *,
        tokens: Sequence[str] = (),
        decider: Decider | None = None,
        upstream: Upstream | None = None,
    ) -> None:
        gateway = settings.gateway
        self.settings = settings
        self._decider = decider
        self._upstream = upstream
        self._access = Access(
            key,
            seconds=gateway.accepted_for.total_seconds(),
            tokens=tokens,
            tenant=gateway.tenant_header,
            joined=gateway.tenant == "joined",
            credential=gateway.credential,
        )
        self.records = CaptureLog(gateway, store_path(), decider)
        self._counts: Counter[tuple[str, str]] = Counter()

    def open(self) -> None:
        """Start to record and to connect."""
        if self._upstream is None:
            timeout = self.settings.gateway.connect_timeout.total_seconds()
            self._upstream = Upstream(self.settings.upstream, connect_timeout=timeout)
        self.records.start()

    async def close(self) -> None:
        """Close the connections, and write what is unwritten."""
        if self._upstream is not None:
            await self._upstream.close()
        if not await asyncio.to_thread(self.records.close, _CLOSE_SECONDS):
            log.error("%d records of the door are lost: they were not written in time", self.records.waiting)

    def take_counts(self) -> Counter[tuple[str, str]]:
        """Counts by kind and value since the last call: ``captures``, ``unrecognised``, ``failed``."""
        counts, self._counts = self._counts, Counter()
        counts.update(self.records.take_counts())
        return counts

    # ----------------------------------------------------------------- one request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Handled:
        """Handle one request.

        :raises UpstreamCutError: if the answer has begun and its connection could not be closed here.
        """
        raw = scope.get("raw_path") or scope["path"].encode("utf-8")
        path = normalise_path(raw.partition(b"?")[0])
        if path is None:
            await _respond(send, 400, error_body(400, "malformed_path", "this path is not passed on"))
            return Handled("other", "refused", 400)
        protocol = PROTOCOLS.get(path) if scope["method"] == "POST" else None
        caller = self._access.read(scope["headers"], scope["query_string"])
        if protocol is None:
            self._note_reference(path, caller)
            body = _Body(b"", _stream_body(b"", receive)) if _has_body(scope) else _Body(b"", None)
            return await self._pass_on(scope, receive, send, path, body, caller, None, None)
        began = time.time_ns() // 1000
        try:
            body = await _read_body(receive, self.settings.gateway.max_record_bytes)
        except ConnectionError:
            return Handled(protocol.name, "client_left", 0)
        exchange = self._begin(scope, protocol, caller, body, began)
        model = None
        if exchange is not None and self._decider is not None:
            try:
                model = _model_of(body.read)
                answered = await self._try_locally(exchange, model, send)
            except Exception as error:  # whatever fails here must not fail the request
                self._fail("deciding", error)
                answered = None
                if exchange.asked == "local":  # it cannot be written: the upstream answers
                    exchange.asked = "not_local"
            if answered is not None:
                return answered
        return await self._pass_on(scope, receive, send, path, body, caller, exchange, model)

    def _begin(self, scope: Scope, protocol: WireProtocol, caller: Caller, body: _Body, began: int) -> Exchange | None:
        """The record of a request; None if it is too large or encoded."""
        name, encoding = None, b""
        for key, value in scope["headers"]:
            if key == TASK_HEADER:
                name = value.decode("latin-1").strip()
            elif key == b"content-encoding":
                encoding = value
        reason = None
        if body.rest is not None:
            reason = "too large"
        elif encoding not in (b"", b"identity"):
            reason = "compressed"
        elif name is not None and not is_task_name(name):
            reason = "task name"
        if reason is not None:
            self.records.count("unrecognised", reason)
            return None
        return Exchange(protocol, secrets.token_hex(16), began, caller, body.read, name)

    def _note_reference(self, path: str, caller: Caller) -> None:
        """Note that a request is about an earlier answer, as in ``GET /v1/responses/{id}``."""
        if path.startswith("/v1/responses/") and self._access.was_accepted(caller):
            self.records.refer(path[len("/v1/responses/") :].partition("/")[0][:200])

    def _fail(self, what: str, error: Exception) -> None:
        """Count a failure of ours; its text may hold what a caller sent, so only its class is logged."""
        self._counts["failed", what] += 1
        log.error("the door failed in %s: %s", what, type(error).__name__)

    # ----------------------------------------------------------------- answering locally

    async def _try_locally(self, exchange: Exchange, model: str | None, send: Send) -> Handled | None:
        """Answer if the champions may; None: pass on."""
        decider, protocol, caller = self._decider, exchange.protocol, exchange.caller
        read = read_questions(protocol, exchange.request, exchange.task_name)
        if isinstance(read, Unrecognised):
            if read.refers_to is not None and self._access.was_accepted(caller):
                self.records.refer(read.refers_to)
            return None
        exchange.questions = read
        keys = [task_key(caller.tenant, question, exchange.task_name) for question in read]
        if decider is None or not all(decider.serves(key) for key in keys):
            return None
        if model is None or caller.is_ambiguous or not self._access.is_allowed(caller, model):
            exchange.asked = "credential"
            return None
        decisions = []
        for question in read:
            task = make_task(caller.tenant, question, exchange.task_name)
            decision = await decider.decide(task, caller.tenant, caller.id, question)
            if decision is None:
                return None
            decisions.append(decision)
        exchange.decisions = tuple(decisions)
        can_say = self._can_say(read, decisions, keys)
        exchange.would_answer = can_say and all(decision.may_answer for decision in decisions)
        exchange.asked = self._why_upstream(decisions, can_say)
        if exchange.asked == "local":
            return await self._answer(exchange, read, decisions, keys, send)
        if self.settings.abstain and exchange.asked in ("unsure", "not_local"):
            message = "no champion answers this question with confidence: use your own fallback"
            await _respond(
                send, 422, protocol.write_error(422, "abstained", message), [(b"x-stillhouse-abstain", b"true")]
            )
            return Handled(protocol.name, "abstained", 422)
        return None

    def _can_say(
        self, questions: Sequence[ClosedQuestion], decisions: Sequence[LocalDecision], keys: Sequence[str]
    ) -> bool:
        """Whether the champions' answers can be given in the upstream's place."""
        pairs = zip(questions, decisions, strict=True)
        if any(question.upstream_only or not question.allows(decision.action) for question, decision in pairs):
            return False
        return self.records.referred.isdisjoint(keys)

    def _why_upstream(self, decisions: Sequence[LocalDecision], can_say: bool) -> Asked:
        """Why the upstream has to be asked; ``local``: it has not."""
        standings = {decision.standing for decision in decisions}
        if "shadow" in standings:
            return "shadow"
        if "audit" in standings:
            return "audit"
        if "unsure" in standings:
            return "unsure"
        return "local" if can_say else "not_local"

    async def _answer(
        self,
        exchange: Exchange,
        questions: Sequence[ClosedQuestion],
        decisions: Sequence[LocalDecision],
        keys: Sequence[str],
        send: Send,
    ) -> Handled:
        """Send the champions' answer in the shape that the client expects."""
        protocol = exchange.protocol
        answers = [
            LocalAnswer(decision.action, decision.probs, decision.version, decision.decision_id, key)
            for decision, key in zip(decisions, keys, strict=True)
        ]
        parts = protocol.write_answers(questions, answers)
        streams = questions[0].streams
        marks = {
            "x-stillhouse-decided-by": "student",
            "x-stillhouse-task": ",".join(keys),
            "x-stillhouse-version": ",".join(decision.version for decision in decisions),
            "x-stillhouse-decision": ",".join(decision.decision_id for decision in decisions),
            "x-stillhouse-confidence": ",".join(f"{decision.confidence:.4f}" for decision in decisions),
        }
        if protocol.name == "systemone":  # its marks are in the body, in fields with the prefix x_
            marks = {}
        headers = [(name.encode(), value.encode("ascii", "replace")) for name, value in marks.items()]
        kind = f"{_EVENT_STREAM}; charset=utf-8" if streams else "application/json"
        headers.append((b"content-type", kind.encode()))
        if not streams:
            headers.append((b"content-length", b"%d" % sum(map(len, parts))))
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for part in parts:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        exchange.ms = (time.time_ns() // 1000 - exchange.at) / 1e3
        self.records.offer(exchange)
        return Handled(protocol.name, "local", 200)

    # ----------------------------------------------------------------- passing on

    async def _pass_on(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        path: str,
        body: _Body,
        caller: Caller,
        exchange: Exchange | None,
        model: str | None,
    ) -> Handled:
        """Send the request to the upstream and its answer to the client; stop if the client leaves."""
        route = "other" if exchange is None and path not in PROTOCOLS else PROTOCOLS[path].name
        sent_body = asyncio.Event()
        content: bytes | AsyncIterator[bytes] = body.read
        if body.rest is None:
            sent_body.set()
        else:
            content = _signal_end(body.rest, sent_body)
            if (note_relay := scope.get(RELAY_KEY)) is not None:
                note_relay()
        relay = asyncio.ensure_future(self._relay(scope, send, path, content, exchange))
        leaving = asyncio.ensure_future(_wait_for_leaving(receive, sent_body))
        try:
            await asyncio.wait((relay, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not relay.done():
                relay.cancel()  # closes the upstream's connection
                with suppress(asyncio.CancelledError, Exception):
                    await relay
                return Handled(route, "client_left", 0)
            status, result = relay.result()
            if result == "cut":
                await _cut(scope, leaving)
        finally:
            relay.cancel()
            leaving.cancel()
        if model is not None:
            self._access.note(caller, model, status)
        if exchange is not None and result == "passed_on" and exchange.size <= self.settings.gateway.max_record_bytes:
            if status == 200:
                self.records.offer(exchange)
        elif exchange is not None and result == "passed_on":
            self.records.count("captures", "too large")
        elif exchange is not None:
            self.records.count("captures", "incomplete")
        return Handled(route, result, status)

    async def _relay(
        self,
        scope: Scope,
        send: Send,
        path: str,
        content: bytes | AsyncIterator[bytes],
        exchange: Exchange | None,
    ) -> tuple[int, str]:
        """Status, and ``passed_on``, ``unreachable`` or ``cut``."""
        assert self._upstream is not None, "the door is not open"
        began = time.perf_counter()
        try:
            response = await self._upstream.send(
                scope["method"], path, scope["query_string"], scope["headers"], content
            )
        except _ClientLeftError:
            return 0, "client_left"
        except Exception as error:
            if not isinstance(error, _UNREACHABLE):
                self._fail("passing on", error)
            await self._send_unreachable(send, path, error)
            return 502, "unreachable"
        try:
            if not 200 <= response.status < 600:
                await self._send_unreachable(send, path, None)
                return 502, "unreachable"
            headers = response_headers(response.headers)
            await send({"type": "http.response.start", "status": response.status, "headers": headers})
            keeps = exchange if response.status == 200 else None
            if keeps is not None:
                _note_headers(keeps, headers)
            limit = self.settings.gateway.max_record_bytes
            async for chunk in response.aiter_stream():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                if keeps is not None:
                    if keeps.first_byte_ms is None:
                        keeps.first_byte_ms = 1e3 * (time.perf_counter() - began)
                    keeps.size += len(chunk)
                    if keeps.size <= limit:
                        keeps.answer.append(chunk)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except Exception as error:
            if not isinstance(error, _UNREACHABLE):  # such as a header that no client could read
                self._fail("passing an answer on", error)
            return response.status, "cut"
        finally:
            await response.aclose()
        if exchange is not None:
            exchange.ms = 1e3 * (time.perf_counter() - began)
        return response.status, "passed_on"

    async def _send_unreachable(self, send: Send, path: str, error: Exception | None) -> None:
        """The one answer of ours in the upstream's place: 502."""
        address = self.settings.upstream
        what = _UNREACHABLE_TEXTS.get(type(error), "did not answer in HTTP")
        message = f"stillhouse: the upstream {address.scheme}://{address.authority} {what}"
        protocol = PROTOCOLS.get(path)
        write_error = error_body if protocol is None else protocol.write_error
        await _respond(send, 502, write_error(502, "upstream_unreachable", message))


_UNREACHABLE = (
    httpcore.ConnectError,
    httpcore.ConnectTimeout,
    httpcore.NetworkError,
    httpcore.ProtocolError,
    httpcore.TimeoutException,
    httpcore.UnsupportedProtocol,
)
_UNREACHABLE_TEXTS: dict[type[Exception | None], str] = {
    httpcore.ConnectError: "cannot be reached, or its certificate is not valid",
    httpcore.ConnectTimeout: "does not accept a connection in time",
    httpcore.ReadError: "closed the connection without an answer",
    httpcore.RemoteProtocolError: "closed the connection without an answer, or did not answer in HTTP",
    httpcore.LocalProtocolError: "cannot be sent this request: one of its headers is not valid",
}


async def _respond(send: Send, status: int, body: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
    """Send a whole response of ours."""
    sent = [*headers, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": body, "more_body": False})


def _model_of(body: bytes) -> str | None:
    """The model that a request is for; None if it is malformed, or has a credential in its body."""
    request = decode_request(body)
    model = None if isinstance(request, Unrecognised) else request.get("model")
    return model if isinstance(model, str) else None


def _note_headers(exchange: Exchange, headers: Sequence[tuple[bytes, bytes]]) -> None:
    for name, value in headers:
        if name == b"content-type":
            exchange.streamed = value.lower().startswith(_EVENT_STREAM.encode())
        elif name == b"content-encoding":
            exchange.content_encoding = value.decode("latin-1")


# --------------------------------------------------------------------------- bodies, and clients that leave


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


async def _read_body(receive: Receive, limit: int) -> _Body:
    """The whole body or, if it is larger than ``limit`` bytes, its first part.

    :raises ConnectionError: if the client leaves before its end.
    """
    parts, size = list[bytes](), 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if not message.get("more_body"):
            return _Body(b"".join(parts), None)
        if size > limit:
            return _Body(b"", _stream_body(b"".join(parts), receive))


async def _stream_body(first: bytes, receive: Receive) -> AsyncIterator[bytes]:
    """The parts of a body as they arrive."""
    if first:
        yield first
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _ClientLeftError  # closes the upstream's connection before the body's end
        if part := message.get("body", b""):
            yield part
        if not message.get("more_body"):
            return


async def _signal_end(parts: AsyncIterator[bytes], ended: asyncio.Event) -> AsyncIterator[bytes]:
    try:
        async for part in parts:
            yield part
    finally:
        ended.set()


async def _wait_for_leaving(receive: Receive, sent_body: asyncio.Event) -> None:
    """Return when the client has closed its connection."""
    await sent_body.wait()
    while (await receive())["type"] != "http.disconnect":
        pass


async def _cut(scope: Scope, leaving: asyncio.Future[None]) -> None:
    """End an answer where the upstream's ended.

    :raises UpstreamCutError: if the server does not offer to close the connection; the server then does.
    """
    close = scope.get(CLOSE_KEY)
    if close is None:
        raise UpstreamCutError
    close()
    with suppress(TimeoutError):
        await asyncio.wait_for(asyncio.shield(leaving), _CLOSE_SECONDS)
