"""The section ``windows``: the training window, the test window and the current window."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from stillhouse.config.base import PositiveDuration, Section, parse_duration

__all__ = ["NewestRows", "SincePromotion", "Windows"]

_TEST_SHARE = 0.2  # of the rows with outcomes
_TEST_ROWS_MARGIN = 1.5  # times the rows that a window is judged on, because rows do not come evenly
_MAX_TEST_ROWS = 5000
_MIN_TRAIN_PARTS = 4  # the training window is at least so many times as long as a chosen test window
_MIN_UNITS = 4
_TEST_UNITS = (timedelta(days=1), timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1))


class NewestRows(Section):
    """A current window of a number of rows."""

    rows: int = Field(
        ge=1, description="this many newest observations outside quarantine, and others of the same moment"
    )


class SincePromotion(Section):
    """A current window that begins at the champion's promotion."""

    since: Literal["promotion"] = "promotion"
    at_most: PositiveDuration | None = Field(default=None, description="largest length of the window; absent: no limit")


def _parse_current(value: Any) -> Any:
    if value == "since_promotion":
        return SincePromotion()
    if isinstance(value, NewestRows | SincePromotion):
        return value
    if isinstance(value, Mapping):
        return (NewestRows if "rows" in value else SincePromotion).model_validate(value)
    if isinstance(value, str | timedelta):
        return parse_duration(value)
    raise ValueError(
        "must be a duration such as 7d, {rows: 5000}, since_promotion, or {since: promotion, at_most: 14d}"
    )


Current = Annotated[timedelta | NewestRows | SincePromotion, BeforeValidator(_parse_current)]


class Windows(Section):
    """The windows that a refresh trains and tests on, and that a watch measures."""

    train: PositiveDuration = Field(description="length of the training window")
    test: PositiveDuration | None = Field(
        default=None,
        description="length of the test window, directly after `train`; not trained on, the gate judges on it; null: "
        "chosen from the rows there are",
    )
    current: Current = Field(
        description="window that a watch compares with the champion's training window: a duration; {rows: 5000}, the "
        "newest rows; since_promotion, or {since: promotion, at_most: 14d}"
    )
    sample: int | None = Field(
        default=None,
        ge=100,
        description="largest number of rows of the current window that are measured, a uniform sample; null: all rows",
    )
    max_train_rows: int | None = Field(
        default=None,
        ge=100,
        description="larger training sets are thinned to this number: the newest half is kept whole, the rest is "
        "sampled",
    )
    min_train_rows: int | None = Field(
        default=None,
        ge=50,
        description="fewest training rows with outcomes; with fewer, a refresh is refused; null: 200, or 20 per action",
    )

    @property
    def longest_test(self) -> timedelta:
        """The length of the test window, or the longest that may be chosen for it: a quarter of ``train``."""
        return self.test or self.train / _MIN_TRAIN_PARTS

    def fit_test(self, rows: int, span: timedelta, min_rows: int) -> timedelta:
        """The length of the test window: ``test``, or one chosen from the rows there are.

        The chosen window holds about a fifth of the rows, and at most 5,000. Where a fifth is less than ``min_rows``,
        it is longer, up to a third of the time. It is a number of whole days or, below four days, of whole hours, so a
        few rows more or less rarely change it.

        :param rows: rows with outcomes in the newest ``train`` and test windows together.
        :param span: time from the first of them to the end of the test window.
        :param min_rows: rows with outcomes that a window is judged on (``observations.min_rows``).

        >>> Windows(train="8w", current="7d").fit_test(rows=2000, span=timedelta(days=40), min_rows=100)
        datetime.timedelta(days=8)
        >>> Windows(train="8w", current="7d").fit_test(rows=2000, span=timedelta(days=2), min_rows=100)
        datetime.timedelta(seconds=32400)
        """
        if self.test is not None:
            return self.test
        wanted = min(max(rows * _TEST_SHARE, _TEST_ROWS_MARGIN * min_rows), _MAX_TEST_ROWS)
        per_row = span / max(rows, 1)
        share = max(span / (_MIN_TRAIN_PARTS + 1), 1.1 * min_rows * per_row)
        length = min(wanted * per_row, share, span / 3, self.longest_test)
        unit = next((unit for unit in _TEST_UNITS if length >= _MIN_UNITS * unit), _TEST_UNITS[-1])
        return max(unit, length // unit * unit)

    def typical_length(self, rows: int, span: timedelta) -> timedelta:
        """Typical length of a current window if ``rows`` observations were made in the time ``span``.

        For a window since the promotion it is ``at_most`` or, without that limit, the longest test window.
        """
        match self.current:
            case NewestRows():
                return max(timedelta(microseconds=1), span * (self.current.rows / max(rows, 1)))
            case SincePromotion():
                return self.current.at_most or self.longest_test
            case length:
                return length
