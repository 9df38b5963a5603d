"""Windows of the knowledge base, and the result of the data contract on a window."""

from __future__ import annotations

from datetime import datetime, timedelta

from pydantic import AwareDatetime, Field, model_validator

from stillhouse.records.base import Record

__all__ = ["CheckFailure", "DataReport", "Window"]


class Window(Record):
    """The observations of an agent in ``[start, end)``, and the table versions that they were read at.

    With ``sample`` the window has at most that many observations, a uniform sample: of those that are not in
    quarantine, the ones with the smallest keyed hash of ``(seed, observation_id)``. Its outcomes are those of these
    rows.
    """

    name: str
    start: AwareDatetime
    end: AwareDatetime
    versions: dict[str, int] = Field(default_factory=dict, description="Delta table version by table")
    sample: int | None = Field(default=None, ge=1, description="maximal number of observations; None: all")
    seed: int | None = Field(default=None, ge=0, lt=2**64, description="seed of the sample")
    chosen: str | None = Field(default=None, description="how the bounds were chosen, if not by a length of time")

    @model_validator(mode="after")
    def _check_sample_has_seed(self) -> Window:
        if (self.sample is None) != (self.seed is None):
            raise ValueError("sample and seed belong together: give both or neither")
        return self

    @classmethod
    def ending(cls, name: str, end: datetime, length: timedelta) -> Window:
        """The window ``[end − length, end)``."""
        return cls(name=name, start=end - length, end=end)

    @property
    def dates(self) -> str:
        """Its bounds for people, with the time of day only where it is not midnight.

        >>> from datetime import UTC
        >>> Window.ending("test", datetime(2013, 5, 5, tzinfo=UTC), timedelta(days=4)).dates
        '2013-05-01 to 2013-05-05'
        """
        is_whole = all((moment.hour, moment.minute) == (0, 0) for moment in (self.start, self.end))
        form = "%Y-%m-%d" if is_whole else "%Y-%m-%d %H:%M"
        return f"{self.start:{form}} to {self.end:{form}}"

    def __str__(self) -> str:
        text = f"{self.name} [{self.start:%Y-%m-%d %H:%M}, {self.end:%Y-%m-%d %H:%M})"
        text += f", {self.chosen}" if self.chosen else ""
        return text if self.sample is None else f"{text}, a sample of at most {self.sample:,} rows (seed {self.seed})"


class CheckFailure(Record):
    """An expectation of the data contract that failed."""

    expectation: str
    column: str | None
    rows: int = Field(ge=0, description="rows that break it; 0 if it is about the window as a whole")
    text: str
    fatal: bool = Field(description="true: the window is refused; false: its rows are quarantined")


class DataReport(Record):
    """The result of the data contract on one window."""

    window: Window
    rows: int = Field(ge=0)
    quarantined: int = Field(ge=0)
    failures: tuple[CheckFailure, ...] = ()
    seconds: float = Field(ge=0.0)
    docs: str | None = Field(default=None, description="path of the Data Docs page of this check")
    skipped_because: str | None = Field(
        default=None, min_length=1, description="why the contract was not checked; null: it was"
    )

    @classmethod
    def skipped(cls, window: Window, rows: int, reason: str) -> DataReport:
        """The report of a window that was not checked; the verdict on this window records the reason."""
        return cls(window=window, rows=rows, quarantined=0, seconds=0.0, skipped_because=reason.strip())

    @property
    def broken(self) -> bool:
        """Whether an expectation failed that refuses the window as a whole."""
        return any(failure.fatal for failure in self.failures)
