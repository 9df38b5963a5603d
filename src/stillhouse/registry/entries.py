"""What the registry is given and gives back, besides the records that all rooms share."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import AwareDatetime, Field

from stillhouse.records import ModelRef, Record, Scorecard, Verdict

__all__ = ["Lineage", "NewVariant", "OpenedRefresh", "RefusedVariant", "Role", "VersionEntry"]

Role = Literal["teacher", "student", "variant"]


class Lineage(Record):
    """Where a model comes from; what is absent leaves no tag."""

    student: ModelRef | None = Field(default=None, description="of a variant")
    teacher: ModelRef | None = Field(default=None, description="of a student and its variants")
    knowledge: dict[str, int] = Field(default_factory=dict, description="Delta table version by table")
    drift: str | None = Field(default=None, description="verdict id of the drift report that asked for it")


class NewVariant(NamedTuple):
    """A variant to be logged."""

    folder: Path
    """With ``model.onnx``, ``manifest.json``, ``variant.py`` and ``values.py``."""
    scorecard: Scorecard
    params: Mapping[str, object]
    metrics: Mapping[str, float] = {}
    """Besides the scorecard's; of its run alone."""
    version_tags: Mapping[str, object] | None = None
    """It becomes a version with these tags, besides its own; None: it becomes none."""


class RefusedVariant(NamedTuple):
    """A candidate that cannot serve: there is no model, but the reason is kept."""

    name: str
    why: str
    params: Mapping[str, object]


class OpenedRefresh(NamedTuple):
    """The MLflow run of a refresh, and the verdict if an earlier, unfinished attempt had already reached one."""

    run_id: str
    verdict: Verdict | None


class VersionEntry(Record):
    """One deployable version of an agent, as a table shows it."""

    version: str
    aliases: tuple[str, ...]
    variant: str
    auc: float | None = Field(default=None, description="on the window `test`")
    accuracy: float | None = Field(default=None, description="the same")
    bytes: int = Field(ge=0, description="on disk")
    p50_ms: float | None = Field(default=None, description="one row, one thread (ms)")
    refresh_id: str
    registered_at: AwareDatetime
    champion_before: str | None = Field(default=None, description="version it replaced when it was promoted")
    rolled_back: bool = False
