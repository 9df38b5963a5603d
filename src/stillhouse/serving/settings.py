"""Settings of ``stillhouse serve`` from the command line and the environment."""

from __future__ import annotations

import contextlib
import ipaddress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stillhouse.errors import ConfigError
from stillhouse.serving.http import AccessGuard, RequestLimits

if TYPE_CHECKING:
    from stillhouse.gateway.door import DoorSettings

__all__ = ["Settings", "parse_tokens"]


@dataclass(frozen=True)
class Settings:
    """What to serve, where, and to whom.

    >>> Settings(("flights",)).loopback, Settings(("flights",), host="0.0.0.0").loopback
    (True, False)
    """

    agents: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    limits: RequestLimits = field(default_factory=RequestLimits)
    tokens: tuple[str, ...] = field(default=(), repr=False)
    door: DoorSettings | None = None
    """What is passed on to which upstream; None: nothing."""

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return False

    @property
    def access(self) -> str:
        """Who has access, in words."""
        if not self.tokens:
            return "open: every client that can reach it has access, without a token"
        return f"a bearer token is needed: {len(self.tokens)} in STILLHOUSE_TOKENS"

    def guard(self) -> AccessGuard:
        """The access control for these settings."""
        hosts = ("localhost", "127.0.0.1", "[::1]", self.host.lower(), f"[{self.host.lower()}]")
        return AccessGuard(self.tokens, hosts if self.loopback else ())

    def require_safe(self) -> None:
        """:raises ConfigError: if other machines could get access without a token, or an agent is named twice."""
        if not self.loopback and not self.tokens:
            raise ConfigError(
                f"--host {self.host} can be reached from other machines, and no token is set: put one or more, "
                "separated by commas, into the environment variable STILLHOUSE_TOKENS, or listen on 127.0.0.1"
            )
        if not self.agents and self.door is None:
            raise ConfigError("there is nothing to serve: name an agent, or an upstream with --upstream")
        if self.door is not None and self._is_own_address(self.door):
            raise ConfigError(
                f"--upstream {self.door.upstream} is this server itself: requests would go round for ever"
            )
        if len(set(self.agents)) < len(self.agents):
            raise ConfigError(f"an agent is named more than once: {' '.join(self.agents)}")

    def _is_own_address(self, door: DoorSettings) -> bool:
        """Whether the upstream is this server, as far as names tell."""
        names = {"localhost", "127.0.0.1", "::1"} if self.loopback else {self.host.lower()}
        return door.upstream.port == self.port and door.upstream.host.lower() in names


def parse_tokens(text: str | None) -> tuple[str, ...]:
    """The tokens in ``STILLHOUSE_TOKENS``, separated by commas; none if the variable is not set (None).

    >>> parse_tokens("secret, other")
    ('secret', 'other')

    :raises ConfigError: if it is set and holds no token, or a token with a character that is not allowed in a header;
        the message does not show the token.
    """
    if text is None:
        return ()
    tokens = tuple(token for part in text.split(",") if (token := part.strip()))
    if not tokens:
        raise ConfigError(
            "STILLHOUSE_TOKENS is set and holds no token: put one or more in it, separated by commas, or unset it to "
            "serve without a token (on loopback only)"
        )
    for number, token in enumerate(tokens, start=1):
        if invalid := next((character for character in token if not "!" <= character <= "~"), None):
            raise ConfigError(
                f"token {number} of {len(tokens)} in STILLHOUSE_TOKENS has the character U+{ord(invalid):04X}: a token "
                "consists of visible ASCII characters, such as `openssl rand -hex 32` prints"
            )
    return tokens
