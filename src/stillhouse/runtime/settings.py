"""What the command line and the environment say about ``stillhouse serve``: for the supervisor and its workers."""

from __future__ import annotations

import contextlib
import ipaddress
from dataclasses import dataclass, field

from stillhouse.errors import ConfigError
from stillhouse.runtime.http import Guard, RequestLimits

__all__ = ["Settings", "tokens_of"]


@dataclass(frozen=True)
class Settings:
    """What the command line and the environment say."""

    agents: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    limits: RequestLimits = field(default_factory=RequestLimits)
    tokens: tuple[str, ...] = field(default=(), repr=False)

    @property
    def loopback(self) -> bool:
        """Whether only this machine can ask."""
        if self.host == "localhost":
            return True
        with contextlib.suppress(ValueError):
            return ipaddress.ip_address(self.host).is_loopback
        return False

    @property
    def access(self) -> str:
        """Who may ask, in words."""
        if not self.tokens:
            return "open: whoever can reach it may ask, without a token"
        return f"a bearer token is needed: {len(self.tokens)} in STILLHOUSE_TOKENS"

    def guard(self) -> Guard:
        """Who may ask."""
        hosts = ("localhost", "127.0.0.1", "[::1]", self.host.lower(), f"[{self.host.lower()}]")
        return Guard(self.tokens, hosts if self.loopback else ())

    def require_safe(self) -> None:
        """:raises ConfigError: if others than this machine could ask without a token, or an agent is named twice."""
        if not self.loopback and not self.tokens:
            raise ConfigError(
                f"--host {self.host} can be reached from other machines, and no token is set: put one or more, "
                "separated by commas, into the environment variable STILLHOUSE_TOKENS, or listen on 127.0.0.1"
            )
        if len(set(self.agents)) < len(self.agents):
            raise ConfigError(f"an agent is named more than once: {' '.join(self.agents)}")


def tokens_of(text: str | None) -> tuple[str, ...]:
    """Of ``STILLHOUSE_TOKENS``: separated by commas; none where it is not set (None).

    :raises ConfigError: if it is set and holds none, or one with a character that no header may have; the message does
        not show a token.
    """
    if text is None:
        return ()
    tokens = tuple(token for part in text.split(",") if (token := part.strip()))
    if not tokens:
        raise ConfigError(
            "STILLHOUSE_TOKENS is set and holds no token: put one or more in it, separated by commas, or unset it to "
            "serve without (on loopback only)"
        )
    for number, token in enumerate(tokens, start=1):
        if strange := next((character for character in token if not "!" <= character <= "~"), None):
            raise ConfigError(
                f"token {number} of {len(tokens)} in STILLHOUSE_TOKENS has the character U+{ord(strange):04X}: a token "
                "is of visible ASCII characters, such as `openssl rand -hex 32` makes"
            )
    return tokens
