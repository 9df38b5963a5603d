"""Who calls: credentials as keyed hashes, and who may be answered locally.

A credential is read from a request's head, hashed with a key of this installation, and forgotten with the request. A
*caller* is one credential. It may be answered locally for a model only if the upstream has accepted the same
credentials for the same model a short time ago, or if it shows a token of ours.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from urllib.parse import parse_qsl

__all__ = ["OWN_HEADERS", "TASK_HEADER", "TOKEN_HEADER", "Access", "Caller", "is_credential"]

OWN_HEADERS = b"x-stillhouse-"
"""Headers of a request that begin so are ours, and never forwarded."""
TOKEN_HEADER = b"x-stillhouse-token"
TASK_HEADER = b"x-stillhouse-task"

_SECRETS = (b"authorization", b"api-key", b"x-api-key", b"x-goog-api-key")
_ORGANISATIONS = (b"openai-organization", b"openai-project", b"x-goog-user-project", b"anthropic-organization-id")
_OTHERS = (b"cookie", b"proxy-authorization")
_LIKE_CREDENTIALS = re.compile(
    rb"auth|api-?key|token|secret|passw|credential|session|signature|subscription|jwt|(^|[-_])keys?$"
)
_HARMLESS_HEADERS = frozenset({b"idempotency-key", b"x-idempotency-key", b"authority", b"author"})
_HARMLESS_PARAMETERS = frozenset({"api-version", "after", "before", "beta", "include", "limit", "order", "stream"})
_MIN_SECRET_BYTES = 8
"""A shorter value is not searched for in bodies: it would be found by chance."""
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_MAX_ACCEPTED = 20_000
_MAX_MODEL_CHARACTERS = 256
_SCHEMES = frozenset({b"bearer", b"basic", b"digest", b"negotiate", b"token"})

Headers = Iterable[tuple[bytes, bytes]]


def is_credential(header: bytes) -> bool:
    """Whether a header (in lower case) holds a credential, or names whose it is.

    >>> is_credential(b"authorization"), is_credential(b"ocp-apim-subscription-key"), is_credential(b"accept")
    (True, True, False)
    """
    is_known = header in _SECRETS or header in _ORGANISATIONS or header in _OTHERS
    return is_known or header == TOKEN_HEADER or _is_like_a_credential(header)


def _is_like_a_credential(header: bytes) -> bool:
    """Whether a header, by its name, holds a credential of a gateway or a vendor that is not known here."""
    is_ours = header.startswith(OWN_HEADERS) or header in _HARMLESS_HEADERS
    return not is_ours and _LIKE_CREDENTIALS.search(header) is not None


@dataclass(frozen=True, slots=True)
class Caller:
    """The caller of one request; neither its text nor its ``repr`` holds a credential."""

    id: str
    """Keyed hash of its credential, in hexadecimal."""
    tenant: str
    has_token: bool
    """Whether it shows a token of ours."""
    is_ambiguous: bool
    """Whether it shows credentials of several kinds: which one counts only the upstream knows, so nothing is learned
    from it."""
    everything: str = field(repr=False)
    """Keyed hash of all credentials, organisations and query parameters together."""
    secrets: tuple[bytes, ...] = field(repr=False, default=())
    """The values that must not appear in a record."""

    def is_in(self, body: bytes) -> bool:
        """Whether a credential of this caller is in a body."""
        return any(secret in body for secret in self.secrets)


class Access:
    """Reads callers, and remembers which were accepted. Not thread-safe: one per event loop.

    >>> access = Access(b"0" * 32, tokens=["ours"])
    >>> caller = access.read([(b"authorization", b"Bearer sk-1")], b"")
    >>> access.is_allowed(caller, "m")
    False
    >>> access.note(caller, "m", 200)
    >>> access.is_allowed(caller, "m"), access.is_allowed(caller, "another model")
    (True, False)
    >>> "sk-1" in repr(caller)
    False

    :param key: of the hashes.
    :param seconds: for which an acceptance counts.
    :param tokens: of ours.
    :param tenant: the header that names the tenant; None: the caller's hash is the tenant.
    :param joined: whether all callers are one tenant.
    :param credential: the header that identifies a caller; None: the only one that there is.
    """

    def __init__(
        self,
        key: bytes,
        *,
        seconds: float = 600.0,
        tokens: Sequence[str] = (),
        tenant: str | None = None,
        joined: bool = False,
        credential: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._key, self._seconds, self._joined, self._clock = key, seconds, joined, clock
        self._tokens = [hashlib.sha256(token.encode()).digest() for token in tokens]
        self._tenant_header = None if tenant is None else tenant.lower().encode("latin-1")
        self._credential_header = None if credential is None else credential.lower().encode("latin-1")
        self._accepted: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._known: OrderedDict[str, None] = OrderedDict()

    def read(self, headers: Headers, query: bytes) -> Caller:
        """The caller of a request.

        :param headers: with names in lower case.
        """
        secrets, others, unlisted = (list[tuple[bytes, bytes]]() for _ in range(3))
        cookies, token, tenant = list[bytes](), b"", b""
        for name, value in headers:
            if name in _SECRETS or name == self._credential_header:
                secrets.append((name, value))
            elif name in _ORGANISATIONS or name == b"proxy-authorization":
                others.append((name, value))
            elif name == b"cookie":
                cookies.append(value)
            elif name == TOKEN_HEADER:
                token = value
            elif name == self._tenant_header:
                tenant = value
            elif _is_like_a_credential(name):
                unlisted.append((name, value))
        others += unlisted
        parameters = _credential_parameters(query)
        secrets += [(b"?" + name.encode(), value.encode()) for name, value in parameters]
        identity = secrets or unlisted or [(b"cookie", value) for value in cookies]
        if self._credential_header is not None:  # a caller without that header is the one that it would be otherwise
            identity = [pair for pair in identity if pair[0] == self._credential_header] or identity
        has_token = bool(token) and self._is_valid(token)
        if not identity and has_token:
            identity = [(TOKEN_HEADER, token)]
        # by the value alone: the same key in another header, or with a scheme in other letters, is the same caller
        caller = self._hash(b"caller", [(b"", _without_scheme(value)) for _, value in identity])
        values = [value for _, value in (*secrets, *others)] + cookies + ([token] if token else [])
        return Caller(
            id=caller,
            tenant=self._tenant(tenant, caller),
            has_token=has_token,
            is_ambiguous=len(identity) > 1,
            everything=self._hash(b"all", sorted((*secrets, *others, *((b"cookie", value) for value in cookies)))),
            secrets=tuple(part for value in values for part in _searched(value)),
        )

    def is_allowed(self, caller: Caller, model: str) -> bool:
        """Whether the caller may be answered locally in the place of this model."""
        if caller.has_token:
            return True
        accepted = self._accepted.get((caller.everything, model))
        return accepted is not None and self._clock() - accepted <= self._seconds

    def was_accepted(self, caller: Caller) -> bool:
        """Whether the upstream ever accepted the caller's credential here, for whatever model and however long ago."""
        return caller.has_token or caller.everything in self._known

    def note(self, caller: Caller, model: str, status: int) -> None:
        """Remember how the upstream answered a request for this model."""
        if len(model) > _MAX_MODEL_CHARACTERS:
            return
        key = (caller.everything, model)
        if 200 <= status < 300:
            _put_last(self._accepted, key, self._clock())
            _put_last(self._known, caller.everything, None)
        elif status in (401, 403, 404):
            self._accepted.pop(key, None)

    def _tenant(self, named: bytes, caller: str) -> str:
        if self._joined:
            return "all"
        if self._tenant_header is None:
            return caller
        text = named.decode("latin-1").strip()
        plain = text.isascii() and text.isprintable() and 0 < len(text) <= 64
        return text if plain else f"unnamed-{caller}"

    def _is_valid(self, token: bytes) -> bool:
        digest = hashlib.sha256(token.strip()).digest()
        # compare with all of them, so that the time does not depend on the token
        matches = [hmac.compare_digest(digest, valid) for valid in self._tokens]
        return any(matches)

    def _hash(self, purpose: bytes, parts: Sequence[tuple[bytes, bytes]]) -> str:
        digest = hashlib.blake2b(digest_size=16, key=self._key, person=purpose)
        for name, value in parts:
            digest.update(b"%d:%s=%d:" % (len(name), name, len(value)))
            digest.update(value)
        return digest.hexdigest()


def _put_last(of: OrderedDict[_Key, _Value], key: _Key, value: _Value) -> None:
    of[key] = value
    of.move_to_end(key)
    if len(of) > _MAX_ACCEPTED:
        of.popitem(last=False)


def _credential_parameters(query: bytes) -> list[tuple[str, str]]:
    """The query's parameters but for the few that are known to be harmless: any other may be a credential."""
    if not query:
        return []
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return sorted((name, value) for name, value in pairs if name not in _HARMLESS_PARAMETERS)


def _without_scheme(value: bytes) -> bytes:
    words = value.split()
    return b" ".join(words[1:] if len(words) > 1 and words[0].lower() in _SCHEMES else words)


def _searched(value: bytes) -> list[bytes]:
    """What of a credential is searched for in bodies: its long words, without the scheme, or the name of a cookie."""
    words = value.replace(b";", b" ").replace(b",", b" ").split()
    parts = [word.partition(b"=")[2] if b"=" in word[:-2] else word for word in words if word.lower() not in _SCHEMES]
    return [part for part in parts if len(part) >= _MIN_SECRET_BYTES]
