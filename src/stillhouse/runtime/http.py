"""What every endpoint shares: one shape of error, bodies within limits, who may ask, JSON checked as it is read."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from urllib.parse import parse_qsl

import msgspec
from starlette.types import Receive, Scope, Send

from stillhouse.errors import (
    DataError,
    NoChampionError,
    RegistryError,
    RuntimeStateError,
    SpoolFullError,
    StillhouseError,
    UnknownDecisionError,
)
from stillhouse.knowledge.log_files import json_fault

__all__ = [
    "JSON",
    "OPEN",
    "TARGET",
    "Answer",
    "Guard",
    "Refused",
    "RequestLimits",
    "body_of",
    "decoded",
    "encoded",
    "flag",
    "header",
    "media_type",
    "query_of",
    "refusal",
    "reply",
]

JSON = "application/json"
OPEN = ("/healthz", "/readyz", "/ping")
"""What is answered without a token."""
TARGET = "stillhouse.target"
"""In a request's scope: host and port of an absolute request target (see :mod:`stillhouse.runtime.protocol`)."""

T = TypeVar("T")


class Answer(NamedTuple):
    """A whole answer."""

    status: int
    body: bytes
    headers: Sequence[tuple[str, str]] = (("content-type", JSON),)


class Refused(Exception):  # noqa: N818 — an answer, not a defect
    """A request that is not answered as it wants; the body says why: ``{"error": {"code": …, "message": …}}``.

    :param code: a word for programs; ``message`` is a sentence for people.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})

    def answer(self) -> Answer:
        """As it goes over the wire."""
        body = msgspec.json.encode({"error": {"code": self.code, "message": str(self)}})
        return Answer(self.status, body, [("content-type", JSON), *self.headers.items()])


def refusal(error: StillhouseError, retry_after: int) -> Refused:
    """What an error of the engine is over HTTP.

    :param retry_after: seconds, for what may be better later.
    """
    later = {"retry-after": str(retry_after)}
    match error:
        case UnknownDecisionError():
            return Refused(404, "unknown_decision", str(error))
        case DataError():
            return Refused(422, "invalid", str(error))
        case NoChampionError():
            return Refused(503, "no_champion", str(error), later)
        case SpoolFullError():
            return Refused(503, "spool_full", str(error), later)
        case RuntimeStateError() | RegistryError():
            return Refused(503, "unavailable", str(error), later)
    return Refused(500, "internal", str(error))


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """What a server takes in."""

    max_body: int = 2**20
    """Bytes of a request's body."""
    max_rows: int = 1024
    """Observations or outcomes of one request."""
    max_waiting: int = 1024
    """Requests that one worker has in its hands; more are sent away with 503."""
    body_seconds: float = 30.0
    """Within which a body must have arrived."""


# --------------------------------------------------------------------------- reading a request


def header(scope: Scope, name: bytes) -> str:
    """The first header of that (lower-case) name, or an empty text."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return ""


def query_of(scope: Scope, known: Iterable[str]) -> dict[str, str]:
    """The parameters behind the question mark; those that are not ``known`` are left out.

    :raises Refused: if one is given twice.
    """
    given = scope["query_string"]
    if not given:
        return {}
    names, found = set(known), dict[str, str]()
    try:
        pairs = parse_qsl(given.decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise Refused(400, "malformed_query", "the query is not percent-encoded UTF-8") from error
    for key, value in pairs:
        if key in names and key in found:
            raise Refused(400, "malformed_query", f"the query parameter {key!r} is given more than once")
        if key in names:
            found[key] = value
    return found


def flag(query: Mapping[str, str], name: str) -> bool:
    """A query parameter that is ``true`` or ``false`` (without it, false).

    :raises Refused: if it is anything else.
    """
    value = query.get(name, "false")
    if value not in ("true", "false"):
        raise Refused(422, "invalid", f"the query parameter {name!r} is true or false, not {value[:50]!r}")
    return value == "true"


def media_type(scope: Scope, allowed: Sequence[str]) -> str:
    """The body's media type, one of ``allowed``.

    :raises Refused: if it is another, or not in UTF-8, or compressed.
    """
    given = header(scope, b"content-type")
    if given in allowed:
        kind = given
    else:
        kind, *parameters = (part.strip().lower() for part in given.split(";"))
        fits = all(part in ("charset=utf-8", 'charset="utf-8"', "") for part in parameters)
        if kind not in allowed or not fits:
            wanted = " or ".join(allowed)
            raise Refused(
                415,
                "unsupported_media_type",
                f"the body must be {wanted} in UTF-8 (header Content-Type), not {given[:100]!r}",
                {"accept": ", ".join(allowed)},
            )
    if header(scope, b"content-encoding") not in ("", "identity"):
        raise Refused(
            415,
            "unsupported_media_type",
            "the body must not be compressed (header Content-Encoding)",
            {"accept-encoding": "identity"},
        )
    return kind


async def body_of(scope: Scope, receive: Receive, limits: RequestLimits) -> bytes:
    """The whole body.

    :raises Refused: if it is larger than the limit, or does not arrive in time.
    """
    if int(header(scope, b"content-length") or 0) > limits.max_body:
        raise _too_large(limits)
    message = await receive()  # of a client that sends nothing more, the protocol waits for no longer (protocol.py)
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        try:
            body = await asyncio.wait_for(_rest(body, receive, limits), limits.body_seconds)
        except TimeoutError as error:
            raise Refused(
                408, "too_slow", f"the body did not arrive within {limits.body_seconds:g} s", {"connection": "close"}
            ) from error
    if len(body) > limits.max_body:
        raise _too_large(limits)
    return body


async def _rest(begun: bytes, receive: Receive, limits: RequestLimits) -> bytes:
    parts, size, more = [begun], len(begun), True
    while more and size <= limits.max_body:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "incomplete", "the connection was closed before the body's end")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
    return b"".join(parts)


def _too_large(limits: RequestLimits) -> Refused:
    # the rest of the body is not read, so the connection cannot be used again
    return Refused(
        413,
        "body_too_large",
        f"a body may have {limits.max_body:,} bytes: send several requests",
        {"connection": "close"},
    )


def decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The body as what the decoder wants.

    :raises Refused: 400 if it is no JSON, 422 if it is another JSON than was asked for.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise Refused(422, "invalid", str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(400, "malformed_json", f"the body {json_fault(body, error)}") from error


_encoder = msgspec.json.Encoder()


def encoded(content: Any, status: int = 200) -> Answer:
    """The content as JSON."""
    return Answer(status, _encoder.encode(content))


# --------------------------------------------------------------------------- answering


async def reply(answer: Answer, send: Send) -> None:
    """Send a whole answer."""
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    headers.append((b"content-length", b"%d" % len(answer.body)))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


# --------------------------------------------------------------------------- who may ask


class Guard:
    """Lets through what bears a token and is meant for this host.

    :param tokens: any of them will do; without one, everybody may ask.
    :param hosts: names in the header Host under which this server is asked; empty: any. On loopback this keeps out web
        pages whose name an attacker points at this machine (DNS rebinding).
    """

    def __init__(self, tokens: Sequence[str] = (), hosts: Sequence[str] = ()) -> None:
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]
        self._hosts = frozenset(hosts)

    @property
    def secured(self) -> bool:
        """Whether a token is needed."""
        return bool(self._digests)

    def check(self, scope: Scope) -> None:
        """:raises Refused: 401 without a token that is known; 400 for another host, for none, or for several."""
        host = tokens = None
        for name, value in scope["headers"]:
            if name == b"host":
                if host is not None:
                    raise Refused(400, "wrong_host", "the request has more than one header Host")
                host = value
            elif name == b"authorization":
                if tokens is not None:
                    raise Refused(400, "malformed_request", "the request has more than one header Authorization")
                tokens = value
        self._check_host("" if host is None else host.decode("latin-1"), scope)
        if self._digests and scope["path"] not in OPEN:
            self._check_token("" if tokens is None else tokens.decode("latin-1"))

    def knows(self, scope: Scope) -> bool:
        """Whether whoever asks may know everything: bears a token, or needs none."""
        return not self._digests or self._is_known(header(scope, b"authorization"))

    def _check_host(self, given: str, scope: Scope) -> None:
        if not given and scope.get("http_version") != "1.0":
            raise Refused(400, "wrong_host", "the request has no header Host")
        target = scope.get(TARGET, given)
        if target.lower() != given.lower():
            raise Refused(400, "wrong_host", "the request's target names another host than its header Host")
        if self._hosts and _host(given) not in self._hosts:
            raise Refused(400, "wrong_host", f"this server answers to {', '.join(sorted(self._hosts))} (header Host)")

    def _check_token(self, given: str) -> None:
        if not self._is_known(given):
            challenge = 'Bearer realm="stillhouse"' + (', error="invalid_token"' if given else "")
            raise Refused(
                401,
                "unauthorised",
                "a bearer token is needed (header Authorization: Bearer …)",
                {"www-authenticate": challenge},
            )

    def _is_known(self, given: str) -> bool:
        scheme, _, token = given.partition(" ")
        digest = hashlib.sha256(token.strip().encode("latin-1")).digest()
        known = [hmac.compare_digest(digest, each) for each in self._digests]  # all of them: as long for any token
        return scheme.lower() == "bearer" and any(known)


def _host(given: str) -> str:
    """Without the port."""
    name, colon, port = given.rpartition(":")
    return (name if colon and port.isdigit() else given).lower()
