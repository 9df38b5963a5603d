"""The upstream: requests passed on as they are, and answers as they come.

Only what HTTP requires of a proxy is changed (RFC 9110, section 7.6): hop-by-hop headers are removed, ``Host`` names
the upstream, and dot segments of the path are resolved. Bodies are neither decompressed nor re-encoded, redirects are
not followed, cookies are not kept, and the environment's proxies are not used.
"""

from __future__ import annotations

import re
import ssl
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpcore

from stillhouse.errors import ConfigError
from stillhouse.gateway.access import OWN_HEADERS
from stillhouse.gateway.streams import AsyncioBackend

__all__ = ["Upstream", "UpstreamAddress", "normalise_path", "request_headers", "response_headers"]

Headers = list[tuple[bytes, bytes]]

_HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
_KEEP_ALIVE_SECONDS = 5.0  # as httpx does by itself; a longer wait meets connections that the upstream is closing
_MAX_IDLE = 100  # connections


@dataclass(frozen=True)
class UpstreamAddress:
    """Where the upstream is: the only place that anything is sent to.

    >>> address = UpstreamAddress.parse("https://openrouter.ai/api/v1/")
    >>> address.host, address.port, address.prefix
    ('openrouter.ai', 443, '/api')
    """

    scheme: str
    host: str
    port: int
    prefix: str
    """Put before each request's path."""

    @classmethod
    def parse(cls, text: str) -> UpstreamAddress:
        """The address in ``--upstream``; a ``/v1`` at its end is left out, because requests bring it.

        :raises ConfigError: if it is no address of HTTP, or holds a credential.
        """
        try:
            parts = urlsplit(text.strip())
            port = parts.port
        except ValueError:
            raise ConfigError("--upstream: is no address, such as https://api.openai.com") from None
        if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
            raise ConfigError(
                "--upstream: must have no user, password, query or fragment: each caller sends a credential of its own"
            )
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("--upstream: must begin with https:// or http:// and name a host")
        prefix = parts.path.rstrip("/")
        if not re.fullmatch(r"(?:/[A-Za-z0-9._~-]+)*", prefix) or (
            prefix and normalise_path(prefix.encode()) != prefix
        ):
            raise ConfigError("--upstream: its path may have letters, digits and ._~- only")
        default = 443 if parts.scheme == "https" else 80
        return cls(parts.scheme, parts.hostname, port or default, prefix.removesuffix("/v1"))

    @property
    def authority(self) -> str:
        """The value of the header ``Host``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        is_default = self.port == (443 if self.scheme == "https" else 80)
        return host if is_default else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}{self.prefix}"


def normalise_path(raw: bytes) -> str | None:
    """A request's path with its dot segments resolved (RFC 3986, 5.2.4); None if it is no path of this server.

    >>> normalise_path(b"/v1/models/../chat"), normalise_path(b"/v1/%2e%2e/%2E./x"), normalise_path(b"//evil/x")
    ('/v1/chat', '/x', None)
    """
    if not raw.startswith(b"/") or raw.startswith(b"//") or re.search(rb"[\x00-\x20\x7f-\xff\\?#]", raw):
        return None
    text = re.sub("%2e", ".", raw.decode("ascii"), flags=re.IGNORECASE)
    if re.search("%(2f|5c|00)", text, re.IGNORECASE) and ".." in text:  # an encoded slash would hide a dot segment
        return None
    if "/." not in text:
        return text
    kept: list[str] = []
    segments = text[1:].split("/")
    for segment in segments:
        if segment == "..":
            del kept[-1:]
        elif segment != ".":
            kept.append(segment)
    path = "/" + "/".join(kept)
    if segments[-1] in (".", "..") and not path.endswith("/"):
        path += "/"
    return None if path.startswith("//") else path


def _named_by_connection(headers: Iterable[tuple[bytes, bytes]]) -> set[bytes]:
    return {
        part.strip().lower() for name, value in headers if name.lower() == b"connection" for part in value.split(b",")
    }


def request_headers(headers: Headers, address: UpstreamAddress, length: int | None) -> Headers:
    """A request's headers as they go upstream.

    :param headers: with names in lower case.
    :param length: of the body; None: it is sent in chunks.
    """
    dropped = _HOP_BY_HOP | _named_by_connection(headers) | {b"host", b"content-length", b"expect"}
    sent = [(b"host", address.authority.encode("ascii"))]
    sent += [pair for pair in headers if pair[0] not in dropped and not pair[0].startswith(OWN_HEADERS)]
    if length is None:
        sent.append((b"transfer-encoding", b"chunked"))
    elif length or any(name == b"content-length" for name, _ in headers):
        sent.append((b"content-length", b"%d" % length))
    return sent


def response_headers(headers: Iterable[tuple[bytes, bytes]]) -> Headers:
    """A response's headers as they go to the client; the server writes a ``Date`` of its own."""
    pairs = [(name.lower(), value) for name, value in headers]
    dropped = _HOP_BY_HOP | _named_by_connection(pairs) | {b"date"}
    return [pair for pair in pairs if pair[0] not in dropped]


class Upstream:
    """Connections to the upstream, for one event loop.

    :param connect_timeout: seconds. There is no limit for an answer: a client that no longer wants to wait leaves, and
        this closes the connection.
    :param ssl_context: for tests; by default certificates are verified against the usual authorities.
    """

    def __init__(
        self, address: UpstreamAddress, *, connect_timeout: float = 10.0, ssl_context: ssl.SSLContext | None = None
    ) -> None:
        self.address = address
        self._timeout = {"connect": connect_timeout, "read": None, "write": None, "pool": None}
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context,
            max_connections=None,
            max_keepalive_connections=_MAX_IDLE,
            keepalive_expiry=_KEEP_ALIVE_SECONDS,
            network_backend=AsyncioBackend(),
        )

    async def send(
        self, method: str, path: str, query: bytes, headers: Headers, body: bytes | AsyncIterator[bytes]
    ) -> httpcore.Response:
        """Send a request and return the response when its head has arrived; it must be closed.

        :param path: as :func:`normalise_path` returns it.
        :raises httpcore.ConnectError: (and others of httpcore) if the upstream does not answer.
        """
        address = self.address
        target = (address.prefix + path).encode("ascii") + (b"?" + query if query else b"")
        url = httpcore.URL(scheme=address.scheme, host=address.host, port=address.port, target=target)
        length = len(body) if isinstance(body, bytes) else None
        sent = request_headers(headers, address, length)
        request = httpcore.Request(
            method.encode("ascii"), url, headers=sent, content=body, extensions={"timeout": self._timeout}
        )
        return await self._pool.handle_async_request(request)

    async def close(self) -> None:
        """Close all connections."""
        await self._pool.aclose()
