"""Windows of the knowledge base, and the report of the data contract on one of them."""

from __future__ import annotations

from datetime import datetime, timedelta

from pydantic import AwareDatetime, Field, model_validator

from stillhouse.records.base import Record

__all__ = ["CheckFailure", "DataReport", "Window"]


class Window(Record):
    """A stretch of an agent's life, ``[start, end)``, and the table versions it was read at.

    One with a sample stands for so many of its observations, drawn uniformly: those that are not in quarantine and
    whose keyed hash of ``(seed, observation_id)`` is smallest. Its outcomes are those of the same rows.
    """

    name: str
    start: AwareDatetime
    end: AwareDatetime
    versions: dict[str, int] = Field(default_factory=dict, description="Delta table version by table")
    sample: int | None = Field(default=None, ge=1, description="observations at most; None: all of them")
    seed: int | None = Field(default=None, ge=0, lt=2**64, description="of the sample")
    chosen: str | None = Field(default=None, description="how the bounds came about, where not by a length of time")

    @model_validator(mode="after")
    def _sampled_by_a_seed(self) -> Window:
        if (self.sample is None) != (self.seed is None):
            raise ValueError("a sample needs a seed, and a seed is that of a sample: give both or neither")
        return self

    @classmethod
    def ending(cls, name: str, end: datetime, length: timedelta) -> Window:
        """The window of ``length`` that ends at ``end``."""
        return cls(name=name, start=end - length, end=end)

    def __str__(self) -> str:
        text = f"{self.name} [{self.start:%Y-%m-%d %H:%M}, {self.end:%Y-%m-%d %H:%M})"
        text += f", {self.chosen}" if self.chosen else ""
        return text if self.sample is None else f"{text}, a sample of at most {self.sample:,} rows (seed {self.seed})"


class CheckFailure(Record):
    """One expectation of the data contract that did not hold."""

    expectation: str
    column: str | None
    rows: int = Field(ge=0, description="rows that break it; 0 for an expectation on the window as a whole")
    text: str
    fatal: bool = Field(description="true: the window is refused; false: its rows are quarantined")


class DataReport(Record):
    """What the data contract said about one window."""

    window: Window
    rows: int = Field(ge=0)
    quarantined: int = Field(ge=0)
    failures: tuple[CheckFailure, ...] = ()
    seconds: float = Field(ge=0.0)
    docs: str | None = Field(default=None, description="Data Docs page of this check")
    skipped_because: str | None = Field(
        default=None, min_length=1, description="why the contract was not asked; null: it was"
    )

    @classmethod
    def skipped(cls, window: Window, rows: int, reason: str) -> DataReport:
        """The report of a window whose contract nobody asked; the verdict that rests on it records the reason."""
        return cls(window=window, rows=rows, quarantined=0, seconds=0.0, skipped_because=reason.strip())

    @property
    def broken(self) -> bool:
        """Whether the window as a whole must not be used."""
        return any(failure.fatal for failure in self.failures)
