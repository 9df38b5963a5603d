"""What the runtime records: frozen batches of events, as bytes and back.

An event is written once to the spool, and its bytes are what is kept until the flush. It must be read back by any
later version of stillhouse: fields are only ever added, with a default.
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

__all__ = ["Decided", "Event", "Observed", "Outcomes", "Taught", "decode", "encode"]

Row = list[Any]
"""A row's values in the order of ``columns``: numbers as float, categories and texts as text, missing as None."""


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", forbid_unknown_fields=False):
    """Base of all: one call's worth, of n rows. Times are microseconds since 1970 (UTC)."""

    name: ClassVar[str] = ""

    @property
    def rows(self) -> int:
        """How many rows it makes in the knowledge base."""
        raise NotImplementedError


class Observed(Event, frozen=True, kw_only=True, tag="observed"):
    """Observations alone, n of them: there was no champion to decide."""

    observation_ids: list[str]
    observed_at: list[int]
    columns: list[str]
    values: list[Row]

    @property
    def rows(self) -> int:
        return len(self.observation_ids)


class Decided(Event, frozen=True, kw_only=True, tag="decided"):
    """Observations and what was decided about each."""

    observation_ids: list[str]
    observed_at: list[int]
    columns: list[str]
    values: list[Row]
    decision_ids: list[str]
    decided_at: list[int]
    actions: list[str]
    """Of each row: what was decided."""
    probabilities: list[list[float]]
    """``[n][K]``, of the decider."""
    deciders: list[str]
    """``student`` or ``teacher``."""
    versions: list[str]
    """Of the decider: ``flights@7``, or a teacher's version."""

    @property
    def rows(self) -> int:
        return len(self.observation_ids)


class Taught(Event, frozen=True, kw_only=True, tag="taught"):
    """What a teacher said about observations that it was asked to decide, and what that cost."""

    teacher: str
    """Its version: the key of its knowledge."""
    observed_at: list[int]
    asked_at: int
    columns: list[str]
    values: list[Row]
    probabilities: list[list[float]]
    """``[n][K]``; rows without a usable answer are not in the event."""
    spending: dict[str, dict[str, float]] = msgspec.field(default_factory=dict)
    """By a teacher's name: the fields of :class:`stillhouse.records.Spending`."""

    @property
    def rows(self) -> int:
        return len(self.observed_at)


class Outcomes(Event, frozen=True, kw_only=True, tag="outcomes"):
    """What turned out to be true."""

    observation_ids: list[str]
    observed_at: list[int]
    known_at: list[int]
    actions: list[str]

    @property
    def rows(self) -> int:
        return len(self.observation_ids)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Observed | Decided | Taught | Outcomes)


def encode(event: Event) -> bytes:
    """The event as MessagePack."""
    return _encoder.encode(event)


def decode(body: bytes) -> Observed | Decided | Taught | Outcomes:
    """:raises msgspec.DecodeError: if the bytes are no event."""
    found: Observed | Decided | Taught | Outcomes = _decoder.decode(body)
    return found
