"""The sections about the agent's own side: ``runtime`` (how it decides and records) and ``upkeep`` (of its tables)."""

from __future__ import annotations

from datetime import timedelta

from pydantic import Field

from stillhouse.config.base import Duration, Length, Section

__all__ = ["Cascade", "Runtime", "Upkeep"]


class Cascade(Section):
    """When the teacher answers in the student's place."""

    below: float = Field(gt=0, le=1, description="the student's confidence, its largest probability, below which")
    calls_per_day: int | None = Field(
        default=None, ge=1, description="requests to endpoints, rows put to other teachers, in one day (UTC)"
    )
    cost_per_day: float | None = Field(default=None, gt=0, description="the same, in the unit of the prices")
    timeout: Length = Field(
        default=timedelta(seconds=2), description="after which the student's own answer stands; the agent waits so long"
    )


class Runtime(Section):
    """How the agent decides and records."""

    poll: Length = Field(default=timedelta(seconds=10), description="how often the registry is asked for a champion")
    flush: Length = Field(
        default=timedelta(seconds=30), description="how often what was recorded goes on into the knowledge base"
    )
    max_spool_rows: int = Field(
        default=1_000_000,
        ge=1000,
        description="recorded and not yet in the knowledge base, per process; more are refused until it is there",
    )
    threads: int = Field(default=1, ge=1, le=64, description="of ONNX Runtime; one is best for single rows")
    cascade: Cascade | None = Field(default=None, description="null: the student always answers itself")


class Upkeep(Section):
    """What `flows/maintain.py` does to the tables."""

    target_bytes: int = Field(default=128 * 2**20, ge=2**20, description="of a compacted file")
    min_files: int = Field(default=8, ge=2, description="small files of a month that are worth one large one")
    keep: Duration | None = Field(
        default=None,
        description="rows observed longer ago go, unless a registered model learned from them or was proved on them; "
        "null: none; at least `windows.train`, `windows.test` and `outcomes.delay` together",
    )
    grace: Duration = Field(
        default=timedelta(days=7),
        description="files that no table version in use names are removed after this long, in whole hours; longer than "
        "any refresh takes",
    )
