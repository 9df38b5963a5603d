"""The sections ``runtime`` (how an agent decides and records) and ``upkeep`` (maintenance of the tables)."""

from __future__ import annotations

from datetime import timedelta
from typing import Self

from pydantic import Field, model_validator

from stillhouse.config.base import Duration, PositiveDuration, Section
from stillhouse.records.agreement import Promise

__all__ = ["CascadeSettings", "Runtime", "Upkeep"]


class CascadeSettings(Section):
    """When the teacher decides instead of the student, and within which limits."""

    below: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="the teacher decides where the student's largest probability is below this; or give `agreement`",
    )
    agreement: float | None = Field(
        default=None,
        gt=0.5,
        lt=1,
        description="promised share of the student's own answers that agree with the teacher; the threshold follows "
        "from audited rows, in place of `below`",
    )
    confidence: float = Field(
        default=0.95, ge=0.5, lt=1, description="probability with which a threshold keeps `agreement`"
    )
    audit: float = Field(
        default=0.05,
        gt=0,
        le=1,
        description="with `agreement`: share of all rows that the teacher is asked about whatever the student says; "
        "the student never learns from them",
    )
    calls_per_day: int | None = Field(
        default=None,
        ge=1,
        description="teacher calls in one day (UTC): requests to endpoints, rows passed to other teachers",
    )
    cost_per_day: float | None = Field(
        default=None, gt=0, description="teacher cost in one day (UTC), in the currency of the prices"
    )
    timeout: PositiveDuration = Field(
        default=timedelta(seconds=2),
        description="how long the agent waits for the teacher; after that the student's own decision stands",
    )

    @model_validator(mode="after")
    def _require_one_rule(self) -> Self:
        if (self.below is None) == (self.agreement is None):
            found = "neither" if self.below is None else "both"
            raise ValueError(
                f"says when the teacher decides by one of `below` and `agreement`, and here are {found}: keep "
                "`agreement` to promise a share of answers as the teacher's, or `below` to give a threshold"
            )
        if self.agreement is None and (extra := sorted({"confidence", "audit"} & self.model_fields_set)):
            raise ValueError(f"`{extra[0]}` belongs to `agreement`, and here is `below`: remove it, or promise one")
        return self

    @property
    def promise(self) -> Promise | None:
        """What is promised; None: the threshold is ``below``."""
        return None if self.agreement is None else Promise(agreement=self.agreement, confidence=self.confidence)


class Runtime(Section):
    """How the agent decides and records."""

    poll: PositiveDuration = Field(
        default=timedelta(seconds=10), description="how often the agent asks the registry for a new champion"
    )
    flush: PositiveDuration = Field(
        default=timedelta(seconds=30), description="how often the spool is flushed into the knowledge base"
    )
    max_spool_rows: int = Field(
        default=1_000_000,
        ge=1000,
        description="largest number of rows in the spool of one process; more are refused until a flush has moved them",
    )
    threads: int = Field(default=1, ge=1, le=64, description="threads of ONNX Runtime; one is best for single rows")
    cascade: CascadeSettings | None = Field(default=None, description="null: the student always decides")


class Upkeep(Section):
    """How `flows/maintain.py` compacts the tables and deletes old rows and files."""

    target_bytes: int = Field(default=128 * 2**20, ge=2**20, description="size of a compacted file (bytes)")
    min_files: int = Field(default=8, ge=2, description="a month with at least so many small files is compacted")
    keep: Duration | None = Field(
        default=None,
        description="rows observed longer ago are deleted, except those that a registered model was trained or proved "
        "on; null: all rows are kept; at least `windows.train`, `windows.test` and `outcomes.delay` together",
    )
    grace: Duration = Field(
        default=timedelta(days=7),
        description="files that no table version in use names are deleted after this time, in whole hours; set it to "
        "more than a refresh takes",
    )
