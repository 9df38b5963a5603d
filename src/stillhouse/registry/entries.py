"""Values that callers pass to the registry and get from it, besides the shared records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from pydantic import AwareDatetime, Field

from stillhouse.records import ModelRef, Record, Scorecard, Verdict

__all__ = [
    "Lineage",
    "NewVariant",
    "OpenedRefresh",
    "Points",
    "PoolVersion",
    "RefusedVariant",
    "Role",
    "Rollback",
    "UnrecordedChampion",
    "VersionEntry",
]

Role = Literal["teacher", "student", "variant"]

Points: TypeAlias = Sequence[tuple[datetime, int, Mapping[str, float]]]
"""Metrics at times of the agent's life: time, step, and values by name."""


class Lineage(Record):
    """What a model was made from; an absent value leaves no tag."""

    student: ModelRef | None = Field(default=None, description="student of a variant")
    teacher: ModelRef | None = Field(default=None, description="teacher of a student and of its variants")
    knowledge: dict[str, int] = Field(default_factory=dict, description="version of each Delta table, by table")
    drift: str | None = Field(default=None, description="id of the drift verdict that caused the refresh")


class NewVariant(NamedTuple):
    """A variant to log."""

    folder: Path
    """Holds ``model.onnx``, ``manifest.json``, ``variant.py`` and ``values.py``."""
    scorecard: Scorecard
    params: Mapping[str, object]
    metrics: Mapping[str, float] = {}
    """Metrics of its run only, besides those of the scorecard."""
    version_tags: Mapping[str, object] | None = None
    """What a person reads on its version, besides bytes and latency; None: it is logged, but no version."""
    points: Points = ()
    """Metrics of its run and of its logged model at times of the agent's life."""
    tags: Mapping[str, object] = {}
    """Additional tags of its run and of its logged model, for programs."""


class RefusedVariant(NamedTuple):
    """A candidate that cannot serve: no model is logged, only a run with the reason."""

    name: str
    reason: str
    params: Mapping[str, object]


class OpenedRefresh(NamedTuple):
    """The MLflow run of a refresh, and the verdict if an earlier, unfinished attempt had already reached one."""

    run_id: str
    verdict: Verdict | None


class PoolVersion(NamedTuple):
    """A version that may be a member of the pool: chosen by its refresh, or champion at some time."""

    model: ModelRef
    tags: Mapping[str, str]
    aliases: tuple[str, ...]
    released: bool
    """Whether it ever became champion."""
    refused: str
    """Why it cannot become champion: no trusted key has signed it; empty if it can."""

    @property
    def rejected(self) -> bool:
        """Whether a person rejected it, and nobody promoted it since."""
        return bool(self.tags.get("rejected_at"))


class Rollback(NamedTuple):
    """A completed return to the previous champion."""

    champion: ModelRef
    before: ModelRef | None
    """The champion at the time of the request; None: the alias ``champion`` had been deleted."""
    began_at: str
    """ISO 8601, UTC: the time of the request, which an interrupted roll-back keeps when it is resumed."""


class UnrecordedChampion(NamedTuple):
    """A champion that stillhouse did not promote, or not completely."""

    champion: ModelRef
    recorded: ModelRef | None
    """The champion that stillhouse made last; None if it was this one, or its version was deleted."""
    release: int
    """Number of the newest release, which no later move of the champion has; 0 if there is none."""
    by_hand: bool
    """Whether somebody moved the alias in MLflow; False: a promotion of this version was killed before its end."""
    refused: str
    """Why the version cannot be released: no trusted key has signed it; empty if it can."""


class VersionEntry(Record):
    """One deployable version of an agent, as a row of a table."""

    version: str
    aliases: tuple[str, ...]
    variant: str
    auc: float | None = Field(default=None, description="AUC on the window `test`")
    accuracy: float | None = Field(default=None, description="accuracy on the window `test`")
    measure: str | None = Field(default=None, description="the measure that the agent file named at its refresh")
    quality: float | None = Field(default=None, description="its value on the window `test`")
    bytes: int = Field(ge=0, description="size on disk (bytes)")
    p50_ms: float | None = Field(default=None, description="median latency of one row on one thread (ms)")
    refresh_id: str
    registered_at: AwareDatetime
    champion_before: str | None = Field(default=None, description="version that it replaced when it was promoted")
    rolled_back: bool = False
    rejected: bool = Field(default=False, description="whether a person rejected it, and nobody promoted it since")

    def figure(self, measure: str) -> float | None:
        """The value of a measure on the window ``test``; None: it was not recorded."""
        if measure == self.measure:
            return self.quality
        return {"auc": self.auc, "accuracy": self.accuracy}.get(measure)
