"""The stretch of history that policies are replayed on: labelled rows, cut into steps."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig
from stillhouse.errors import WindowError

__all__ = ["History"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class History:
    """Labelled rows of an agent, by time, with the moments at which a policy may respond.

    :ivar rows: observations with ``observed_at``, ``known_at`` and ``outcome`` (action index), by ``observed_at``.
    :ivar start: end of the rows that the first champion is trained on.
    :ivar step: time between two decisions.
    :ivar steps: number of steps T after ``start``.
    :ivar ready: probabilities ``[n, K]`` of the teachers that do not learn, for all rows; None: all of them learn.
    """

    settings: AgentConfig
    rows: pd.DataFrame
    start: datetime
    step: timedelta
    steps: int
    ready: Array | None = None

    @classmethod
    def of(
        cls,
        settings: AgentConfig,
        rows: pd.DataFrame,
        start: datetime,
        step: timedelta,
        steps: int | None = None,
        ready: Array | None = None,
    ) -> History:
        """The history of ``rows`` from ``start`` on.

        :param steps: None: as many whole steps as the rows have.
        :raises WindowError: if there is no whole step, or no row before ``start``.
        """
        order = rows["observed_at"].argsort(kind="stable").to_numpy()
        ordered = rows.iloc[order].reset_index(drop=True)
        last = ordered["observed_at"].iloc[-1] if len(ordered) else start
        whole = int((last - start) / step) if steps is None else steps
        if whole < 1 or not (ordered["known_at"] <= start).any():
            raise WindowError(
                f"agent {settings.agent!r} has no rows with {settings.words.labels} before {start:%Y-%m-%d %H:%M}, or "
                f"no step of {step} after it: replay a longer stretch"
            )
        return cls(settings, ordered, start, step, whole, None if ready is None else ready[order])

    @cached_property
    def bounds(self) -> list[pd.Timestamp]:
        """Start of each step, and the end of the last one: ``T + 1`` times."""
        return [pd.Timestamp(self.start + i * self.step) for i in range(self.steps + 1)]

    @cached_property
    def offsets(self) -> Array:
        """Row at which each step begins, and the end of the last one: int ``[T + 1]``."""
        times = self.rows["observed_at"]
        return np.array([times.searchsorted(bound) for bound in self.bounds])

    @cached_property
    def labels(self) -> Array:
        """Outcomes of all rows, int ``[n]``."""
        return self.rows["outcome"].to_numpy()

    @cached_property
    def known_at(self) -> Array:
        """When each outcome was known, datetime64 in UTC ``[n]``."""
        known_at: Array = self.rows["known_at"].dt.tz_convert("UTC").dt.tz_localize(None).to_numpy()
        return known_at

    def rows_of_step(self, step: int) -> slice:
        """The rows that are observed in a step."""
        return slice(int(self.offsets[step]), int(self.offsets[step + 1]))

    def known_mask(self, rows: slice, decision: int) -> Array:
        """Which of ``rows`` have an outcome that is known at the start of step ``decision``, bool."""
        known: Array = self.known_at[rows] <= np.datetime64(self.bounds[decision].tz_convert("UTC").tz_localize(None))
        return known

    def training_index(self, decision: int) -> Array:
        """The rows of the training window with outcomes known at the start of step ``decision``, int."""
        now, until = self.bounds[decision], int(self.offsets[decision])
        times = self.rows["observed_at"].iloc[:until]
        first = times.searchsorted(now - self.settings.windows.train)
        last = times.searchsorted(now)
        index: Array = first + np.flatnonzero(self.known_mask(slice(first, last), decision))
        return index
