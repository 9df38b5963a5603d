"""Which rows are audited: drawn by a secret key, so that nobody can choose or foresee them.

A row is drawn by its id alone: without regard to its content and to what any student says, the same in every process,
and at a larger share every row of a smaller one again. So a refresh can tell the audited rows, and leaves them out of
what a student learns from.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from stillhouse.config import home
from stillhouse.errors import ConfigError
from stillhouse.files import write_atomic

__all__ = ["AuditDraw", "load_audit_draw"]

_KEY_BYTES = 32


class AuditDraw:
    """Draws rows for the audit by a keyed hash of their id (BLAKE2b).

    >>> draw = AuditDraw(b"secret")
    >>> drawn = [draw.is_drawn(str(i), 0.05) for i in range(10_000)]
    >>> 400 < sum(drawn) < 600, drawn[:100] == AuditDraw(b"secret").mask([str(i) for i in range(100)], 0.05)
    (True, True)

    :param key: at most 64 bytes; who knows it can foresee what is audited.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def is_drawn(self, observation_id: str, share: float) -> bool:
        """Whether a row is audited, at a share of 0…1 of all rows. About 1 µs."""
        digest = hashlib.blake2b(observation_id.encode(), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest, "big") < share * 2.0**64

    def mask(self, observation_ids: Sequence[str], share: float) -> list[bool]:
        """:meth:`is_drawn` of each row."""
        return [self.is_drawn(observation_id, share) for observation_id in observation_ids]


def load_audit_draw() -> AuditDraw:
    """The draw by the key in ``STILLHOUSE_HOME/keys/audit.key``, which is made at first use (mode 0600).

    Machines that serve and refresh the same agents need the same key: copy the file.

    :raises ConfigError: if the key cannot be read or written.
    """
    path = home() / "keys" / "audit.key"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(path.with_suffix(".lock")):
            if not path.exists():
                write_atomic(path, os.urandom(_KEY_BYTES).hex(), durable=True, mode=0o600)
        return AuditDraw(_read_key(path))
    except OSError as error:
        raise ConfigError(f"the key of the audit, {path}, cannot be read or written: {error}") from error


def _read_key(path: Path) -> bytes:
    try:
        key = bytes.fromhex(path.read_text(encoding="ascii").strip())
    except ValueError:
        key = b""
    if not 16 <= len(key) <= 64:
        raise ConfigError(
            f"{path} is not the key of an audit (16 to 64 bytes in hexadecimal): remove it, or restore it"
        )
    return key
