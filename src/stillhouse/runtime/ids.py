"""Decision ids that contain what an outcome needs: no table is read to find the observation.

A decision id is ``<observation id>.<token>``. The token holds the observation's time, five random bytes, and a checksum
over both, the observation id, the agent and its knowledge base. So any process can check at any time whether an id was
issued (a wrong one passes with probability 2^-40), and an outcome that arrives months later is matched to its
observation. The checksum detects mistakes, not forgery: access is controlled by the bearer token.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import struct
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["MAX_ID_LENGTH", "DecisionIds", "IdSubject"]

MAX_ID_LENGTH = 200
"""Maximum length of an observation id, in characters."""

_RANDOM_BYTES, _CHECKSUM_BYTES = 5, 5
_TOKEN_LENGTH = 24  # characters: base64 of 8 + 5 + 5 bytes


class IdSubject(NamedTuple):
    """The observation that a decision id refers to."""

    observation_id: str
    observed_at: int
    """Microseconds since 1970 (UTC)."""


class DecisionIds:
    """Creates and parses the decision ids of one agent.

    >>> ids = DecisionIds("flights", "the id of its knowledge base")
    >>> (decision_id,) = ids.create(["UA-1545"], [1_357_020_900_000_000])
    >>> ids.parse(decision_id)
    IdSubject(observation_id='UA-1545', observed_at=1357020900000000)
    >>> ids.parse("UA-1545.invented") is None
    True

    :param agent: its name.
    :param knowledge_base: the identity of its knowledge base: :meth:`Tables.identity`.
    """

    def __init__(self, agent: str, knowledge_base: str) -> None:
        key = hashlib.blake2b(f"{agent}\0{knowledge_base}".encode(), digest_size=32).digest()
        self._keyed_hash = hashlib.blake2b(digest_size=_CHECKSUM_BYTES, key=key)

    def create(self, observation_ids: Sequence[str], observed_at: Sequence[int]) -> list[str]:
        """A new decision id for each observation.

        :param observed_at: microseconds since 1970 (UTC).
        """
        return self._encode(observation_ids, observed_at, os.urandom(_RANDOM_BYTES * len(observation_ids)))

    def derive(self, observation_ids: Sequence[str], observed_at: Sequence[int], names: Sequence[str]) -> list[str]:
        """The decision ids of decisions that were made elsewhere: the same whenever these are handed in.

        :param observed_at: microseconds since 1970 (UTC).
        :param names: what each decision is called where it was made.
        """
        digests = [hashlib.blake2b(name.encode(), digest_size=_RANDOM_BYTES).digest() for name in names]
        return self._encode(observation_ids, observed_at, b"".join(digests))

    def _encode(self, observation_ids: Sequence[str], observed_at: Sequence[int], random: bytes) -> list[str]:
        payloads = [
            time.to_bytes(8, "big", signed=True) + random[_RANDOM_BYTES * i : _RANDOM_BYTES * (i + 1)]
            for i, time in enumerate(observed_at)
        ]
        parts = [
            part
            for observation_id, payload in zip(observation_ids, payloads, strict=True)
            for part in (payload, self._checksum(observation_id, payload))
        ]
        # a token encodes 18 bytes, a multiple of 3: no base64 character spans two tokens
        tokens = base64.urlsafe_b64encode(b"".join(parts)).decode()
        return [
            f"{observation_id}.{tokens[_TOKEN_LENGTH * i : _TOKEN_LENGTH * (i + 1)]}"
            for i, observation_id in enumerate(observation_ids)
        ]

    def parse(self, decision_id: str) -> IdSubject | None:
        """The observation that the decision was about; None if no such id was issued."""
        observation_id, _, token = decision_id.rpartition(".")
        if not observation_id or len(token) != _TOKEN_LENGTH or not token.isascii():
            return None
        try:
            content = base64.urlsafe_b64decode(token)
            payload, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
            is_canonical = base64.urlsafe_b64encode(content).decode() == token
            if not is_canonical or self._checksum(observation_id, payload) != checksum:
                return None
        except (binascii.Error, UnicodeEncodeError):
            return None
        return IdSubject(observation_id, struct.unpack_from(">q", payload)[0])

    def _checksum(self, observation_id: str, payload: bytes) -> bytes:
        digest = self._keyed_hash.copy()
        digest.update(payload + observation_id.encode())
        return digest.digest()
