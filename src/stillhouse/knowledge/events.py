"""The events that the runtime writes to the spool, as MessagePack and back.

An event waits in the spool until the flush, possibly until after an upgrade: any later version of stillhouse must read
it. So fields are only added, and with a default.

>>> event = Outcomes(observation_ids=["o1"], observed_at=[0], known_at=[60_000_000], actions=["move"])
>>> decode(encode(event)) == event, event.rows
(True, 1)
"""

from __future__ import annotations

from typing import Any, ClassVar

import msgspec

__all__ = ["Decided", "Event", "Observed", "Offered", "Outcomes", "TeacherAnswered", "decode", "encode"]

Row = list[Any]
"""Values of a row in the order of ``columns``: numbers as float, categories and texts as string, missing as None."""


class Event(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", forbid_unknown_fields=False):
    """Base class: the n rows of one call. Times are microseconds since 1970 (UTC)."""

    name: ClassVar[str] = ""

    @property
    def rows(self) -> int:
        """Number of rows that the event adds to the knowledge base."""
        raise NotImplementedError


class Observed(Event, frozen=True, kw_only=True, tag="observed"):
    """n observations without a decision: the agent had no champion."""

    observation_ids: list[str]
    observed_at: list[int]
    columns: list[str]
    values: list[Row]

    @property
    def rows(self) -> int:
        return len(self.observation_ids)


class Decided(Event, frozen=True, kw_only=True, tag="decided"):
    """n observations with their decisions."""

    observation_ids: list[str]
    observed_at: list[int]
    columns: list[str]
    values: list[Row]
    decision_ids: list[str]
    decided_at: list[int]
    actions: list[str]
    """The chosen action of each row."""
    probabilities: list[list[float]]
    """Of the decider, ``[n][K]``."""
    deciders: list[str]
    """``student`` or ``teacher``."""
    versions: list[str]
    """The decider's version: ``flights@7``, or the version of a teacher."""
    handed_in: bool = False
    """Whether they were made elsewhere: the sender may repeat them, so the flush leaves out what the tables have."""

    @property
    def rows(self) -> int:
        return len(self.observation_ids)


class Offered(Event, frozen=True, kw_only=True, tag="offered"):
    """The n candidates of one ranking; those that were shown are also in a :class:`Decided`."""

    ranking_id: str
    observation_ids: list[str]
    observed_at: list[int]
    ranked_at: int
    action: str
    """The action by whose probability the candidates were sorted."""
    probabilities: list[float]
    """Of that action, ``[n]``."""
    positions: list[int | None]
    """1 is the candidate that was shown first; None: not shown."""
    version: str
    """The champion's version: ``shelf@7``."""

    @property
    def rows(self) -> int:
        return len(self.observation_ids)


class TeacherAnswered(Event, frozen=True, kw_only=True, tag="taught"):
    """A teacher's probabilities for n observations that the cascade escalated to it, and their cost."""

    teacher: str
    """Version of the teacher, under which the table ``knowledge`` stores its answers."""
    observed_at: list[int]
    asked_at: int
    columns: list[str]
    values: list[Row]
    probabilities: list[list[float]]
    """``[n][K]``; the event leaves out rows without a usable answer."""
    spending: dict[str, dict[str, float]] = msgspec.field(default_factory=dict)
    """By the name of a teacher: the fields of :class:`stillhouse.records.Spending`."""

    @property
    def rows(self) -> int:
        return len(self.observed_at)


class Outcomes(Event, frozen=True, kw_only=True, tag="outcomes"):
    """n outcomes: the true actions, learned later."""

    observation_ids: list[str]
    observed_at: list[int]
    known_at: list[int]
    actions: list[str]

    @property
    def rows(self) -> int:
        return len(self.observation_ids)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Observed | Decided | Offered | TeacherAnswered | Outcomes)


def encode(event: Event) -> bytes:
    """The event as MessagePack bytes."""
    return _encoder.encode(event)


def decode(body: bytes) -> Observed | Decided | Offered | TeacherAnswered | Outcomes:
    """The event of these bytes.

    :raises msgspec.DecodeError: if they are not an event.
    """
    event: Observed | Decided | Offered | TeacherAnswered | Outcomes = _decoder.decode(body)
    return event
