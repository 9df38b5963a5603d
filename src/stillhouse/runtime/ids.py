"""Decision ids that say themselves what they are about: no table need be read to take an outcome.

A decision's id is ``<observation id>.<token>``; the token holds when the observation was perceived, five random bytes,
and a checksum over both, the observation's id, the agent and its knowledge base. So any process, at any time, knows an
id that was given out (one that was not passes once in 2^40), and an outcome that comes months later finds its
observation. The checksum is against mistakes, not against forgery: who may call is decided by the bearer token.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["LONGEST_ID", "DecisionIds", "Subject"]

LONGEST_ID = 200
"""Characters of an observation's id, at most."""

_RANDOM, _CHECK = 5, 5
_TOKEN = 24  # characters: base64 of 8 + 5 + 5 bytes


class Subject(NamedTuple):
    """What a decision was about."""

    observation_id: str
    observed_at: int
    """Microseconds since 1970 (UTC)."""


class DecisionIds:
    """Gives out and reads the ids of one agent's decisions.

    :param agent: its name.
    :param knowledge_base: what tells this knowledge base from every other: :meth:`Tables.identity`.
    """

    def __init__(self, agent: str, knowledge_base: str) -> None:
        key = hashlib.blake2b(f"{agent}\0{knowledge_base}".encode(), digest_size=32).digest()
        self._keyed = hashlib.blake2b(digest_size=_CHECK, key=key)

    def give(self, observation_ids: Sequence[str], observed_at: Sequence[int]) -> list[str]:
        """A new id for a decision about each observation."""
        random = os.urandom(_RANDOM * len(observation_ids))
        said = [
            time.to_bytes(8, "big", signed=True) + random[_RANDOM * i : _RANDOM * (i + 1)]
            for i, time in enumerate(observed_at)
        ]
        checked = [
            part for name, each in zip(observation_ids, said, strict=True) for part in (each, self._check(name, each))
        ]
        tokens = base64.urlsafe_b64encode(b"".join(checked)).decode()  # of 18 bytes each, so none runs into the next
        return [f"{name}.{tokens[_TOKEN * i : _TOKEN * (i + 1)]}" for i, name in enumerate(observation_ids)]

    def read(self, decision_id: str) -> Subject | None:
        """What the decision was about; None if no such id was given out."""
        name, _, token = decision_id.rpartition(".")
        if not name or len(token) != _TOKEN or not token.isascii():
            return None
        try:
            content = base64.urlsafe_b64decode(token)
            said, check = content[:-_CHECK], content[-_CHECK:]
            if base64.urlsafe_b64encode(content).decode() != token or self._check(name, said) != check:
                return None
        except (binascii.Error, UnicodeEncodeError):
            return None
        return Subject(name, struct.unpack_from(">q", said)[0])

    def _check(self, observation_id: str, said: bytes) -> bytes:
        digest = self._keyed.copy()
        digest.update(said + observation_id.encode())
        return digest.digest()
