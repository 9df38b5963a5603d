"""What all endpoints share: the format of errors, limits of request bodies, access control, validated JSON."""

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
    "PUBLIC_PATHS",
    "TARGET_KEY",
    "AccessGuard",
    "HttpError",
    "HttpResponse",
    "RequestLimits",
    "decode_json",
    "get_header",
    "json_response",
    "parse_flag",
    "parse_query",
    "read_body",
    "require_media_type",
    "send_response",
    "to_http_error",
]

JSON = "application/json"
PUBLIC_PATHS = ("/healthz", "/readyz", "/ping")
"""Paths that need no token."""
TARGET_KEY = "stillhouse.target"
"""Key in a request's ASGI scope: host and port of an absolute request target (:mod:`stillhouse.serving.protocol`)."""

T = TypeVar("T")


class HttpResponse(NamedTuple):
    """A complete response."""

    status: int
    body: bytes
    headers: Sequence[tuple[str, str]] = (("content-type", JSON),)


class HttpError(Exception):
    """An error response with the body ``{"error": {"code": …, "message": …}}``.

    >>> HttpError(404, "unknown_agent", "agent 'x' is not served here").response().body
    b'{"error":{"code":"unknown_agent","message":"agent \\'x\\' is not served here"}}'

    :param code: a word for programs; ``message`` is a sentence for people.
    """

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.headers = status, code, dict(headers or {})

    def response(self) -> HttpResponse:
        """The response to send."""
        body = msgspec.json.encode({"error": {"code": self.code, "message": str(self)}})
        return HttpResponse(self.status, body, [("content-type", JSON), *self.headers.items()])


def to_http_error(error: StillhouseError, retry_after: int) -> HttpError:
    """The HTTP error for an error of the engine.

    >>> to_http_error(NoChampionError("no champion"), 5).status
    503

    :param retry_after: seconds, for errors that may pass.
    """
    retry_headers = {"retry-after": str(retry_after)}
    match error:
        case UnknownDecisionError():
            return HttpError(404, "unknown_decision", str(error))
        case DataError():
            return HttpError(422, "invalid", str(error))
        case NoChampionError():
            return HttpError(503, "no_champion", str(error), retry_headers)
        case SpoolFullError():
            return HttpError(503, "spool_full", str(error), retry_headers)
        case RuntimeStateError() | RegistryError():
            return HttpError(503, "unavailable", str(error), retry_headers)
    return HttpError(500, "internal", str(error))


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Limits of requests."""

    max_body: int = 2**20
    """Bytes of a request's body."""
    max_rows: int = 1024
    """Observations or outcomes of one request."""
    max_waiting: int = 1024
    """Requests in progress in one worker; more are answered with 503."""
    body_seconds: float = 30.0
    """Time within which a body must have arrived."""


# --------------------------------------------------------------------------- reading a request


def get_header(scope: Scope, name: bytes) -> str:
    """The first header with that (lower-case) name, or an empty text."""
    for key, value in scope["headers"]:
        if key == name:
            return str(value.decode("latin-1"))
    return ""


def parse_query(scope: Scope, names: Iterable[str]) -> dict[str, str]:
    """The query parameters with these ``names``; others are ignored.

    >>> parse_query({"query_string": b"limit=5&other=1"}, ["limit"])
    {'limit': '5'}

    :raises HttpError: if a parameter is given twice.
    """
    query_string = scope["query_string"]
    if not query_string:
        return {}
    allowed, parameters = set(names), dict[str, str]()
    try:
        pairs = parse_qsl(query_string.decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise HttpError(400, "malformed_query", "the query is not percent-encoded UTF-8") from error
    for key, value in pairs:
        if key in allowed and key in parameters:
            raise HttpError(400, "malformed_query", f"the query parameter {key!r} is given more than once")
        if key in allowed:
            parameters[key] = value
    return parameters


def parse_flag(query: Mapping[str, str], name: str) -> bool:
    """A query parameter that is ``true`` or ``false``; false if it is absent.

    :raises HttpError: if it is anything else.
    """
    value = query.get(name, "false")
    if value not in ("true", "false"):
        raise HttpError(422, "invalid", f"the query parameter {name!r} is true or false, not {value[:50]!r}")
    return value == "true"


def require_media_type(scope: Scope, allowed: Sequence[str]) -> str:
    """The body's media type, one of ``allowed``.

    :raises HttpError: if it is another one, not in UTF-8, or compressed.
    """
    content_type = get_header(scope, b"content-type")
    if content_type in allowed:
        media_type = content_type
    else:
        media_type, *parameters = (part.strip().lower() for part in content_type.split(";"))
        is_utf8 = all(part in ("charset=utf-8", 'charset="utf-8"', "") for part in parameters)
        if media_type not in allowed or not is_utf8:
            raise HttpError(
                415,
                "unsupported_media_type",
                f"the body must be {' or '.join(allowed)} in UTF-8 (header Content-Type), not {content_type[:100]!r}",
                {"accept": ", ".join(allowed)},
            )
    if get_header(scope, b"content-encoding") not in ("", "identity"):
        raise HttpError(
            415,
            "unsupported_media_type",
            "the body must not be compressed (header Content-Encoding)",
            {"accept-encoding": "identity"},
        )
    return media_type


async def read_body(scope: Scope, receive: Receive, limits: RequestLimits) -> bytes:
    """The whole body.

    :raises HttpError: if it is larger than the limit, or does not arrive in time.
    """
    if int(get_header(scope, b"content-length") or 0) > limits.max_body:
        raise _body_too_large(limits)
    message = await receive()  # protocol.py limits the time to wait for a client that sends nothing more
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        try:
            body = await asyncio.wait_for(_read_rest(body, receive, limits), limits.body_seconds)
        except TimeoutError as error:
            raise HttpError(
                408, "too_slow", f"the body did not arrive within {limits.body_seconds:g} s", {"connection": "close"}
            ) from error
    if len(body) > limits.max_body:
        raise _body_too_large(limits)
    return body


async def _read_rest(first: bytes, receive: Receive, limits: RequestLimits) -> bytes:
    parts, size, more = [first], len(first), True
    while more and size <= limits.max_body:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HttpError(400, "incomplete", "the connection was closed before the end of the body")
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        more = message.get("more_body", False)
    return b"".join(parts)


def _body_too_large(limits: RequestLimits) -> HttpError:
    # the rest of the body is not read, so the connection cannot be used again
    return HttpError(
        413,
        "body_too_large",
        f"a body may have {limits.max_body:,} bytes: send several requests",
        {"connection": "close"},
    )


def decode_json(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """The body as the decoder's type.

    >>> decode_json(msgspec.json.Decoder(list[int]), b"[1, 2]")
    [1, 2]

    :raises HttpError: 400 if it is no JSON, 422 if it is JSON of another type.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise HttpError(422, "invalid", str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HttpError(400, "malformed_json", f"the body {json_fault(body, error)}") from error


# --------------------------------------------------------------------------- responses

_encoder = msgspec.json.Encoder()


def json_response(content: Any, status: int = 200) -> HttpResponse:
    """A response with ``content`` as JSON.

    >>> json_response({"recorded": 2}).body
    b'{"recorded":2}'
    """
    return HttpResponse(status, _encoder.encode(content))


async def send_response(response: HttpResponse, send: Send) -> None:
    """Send a complete response."""
    headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in response.headers]
    headers.append((b"content-length", b"%d" % len(response.body)))
    await send({"type": "http.response.start", "status": response.status, "headers": headers})
    await send({"type": "http.response.body", "body": response.body})


# --------------------------------------------------------------------------- access control


class AccessGuard:
    """Accepts requests with a valid token and an allowed host name.

    :param tokens: the valid bearer tokens; if empty, no token is needed.
    :param hosts: allowed names in the header Host; empty: any. On loopback this keeps out web pages whose domain name
        an attacker has pointed at this machine (DNS rebinding).
    """

    def __init__(self, tokens: Sequence[str] = (), hosts: Sequence[str] = ()) -> None:
        self._digests = [hashlib.sha256(token.encode()).digest() for token in tokens]
        self._hosts = frozenset(hosts)

    @property
    def requires_token(self) -> bool:
        """Whether a token is needed."""
        return bool(self._digests)

    def check(self, scope: Scope) -> None:
        """:raises HttpError: 401 without a valid token; 400 for another host, for none, or for several."""
        host = authorization = None
        for name, value in scope["headers"]:
            if name == b"host":
                if host is not None:
                    raise HttpError(400, "wrong_host", "the request has more than one header Host")
                host = value
            elif name == b"authorization":
                if authorization is not None:
                    raise HttpError(400, "malformed_request", "the request has more than one header Authorization")
                authorization = value
        self._check_host("" if host is None else host.decode("latin-1"), scope)
        if self._digests and scope["path"] not in PUBLIC_PATHS:
            self._check_token("" if authorization is None else authorization.decode("latin-1"))

    def check_host(self, scope: Scope) -> None:
        """As :meth:`check`, without a token: for what is passed on with the caller's own credential.

        :raises HttpError: 400 for another host, for none, or for several.
        """
        hosts = [value for name, value in scope["headers"] if name == b"host"]
        if len(hosts) > 1:
            raise HttpError(400, "wrong_host", "the request has more than one header Host")
        self._check_host(hosts[0].decode("latin-1") if hosts else "", scope)

    def is_authorized(self, scope: Scope) -> bool:
        """Whether the client may see all details: it sent a valid token, or none is needed."""
        return not self._digests or self._is_valid(get_header(scope, b"authorization"))

    def _check_host(self, host: str, scope: Scope) -> None:
        if not host and scope.get("http_version") != "1.0":
            raise HttpError(400, "wrong_host", "the request has no header Host")
        target = scope.get(TARGET_KEY, host)
        if target.lower() != host.lower():
            raise HttpError(400, "wrong_host", "the request's target names another host than its header Host")
        if self._hosts and _strip_port(host) not in self._hosts:
            raise HttpError(400, "wrong_host", f"this server answers to {', '.join(sorted(self._hosts))} (header Host)")

    def _check_token(self, authorization: str) -> None:
        if not self._is_valid(authorization):
            challenge = 'Bearer realm="stillhouse"' + (', error="invalid_token"' if authorization else "")
            raise HttpError(
                401,
                "unauthorised",
                "a bearer token is needed (header Authorization: Bearer …)",
                {"www-authenticate": challenge},
            )

    def _is_valid(self, authorization: str) -> bool:
        scheme, _, token = authorization.partition(" ")
        digest = hashlib.sha256(token.strip().encode("latin-1")).digest()
        # compare with all of them, so that the time does not depend on the token
        matches = [hmac.compare_digest(digest, valid_digest) for valid_digest in self._digests]
        return scheme.lower() == "bearer" and any(matches)


def _strip_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()
