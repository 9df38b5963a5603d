"""The section ``windows``: the training window, the test window and the current window."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from stillhouse.config.base import PositiveDuration, Section, parse_duration

__all__ = ["NewestRows", "SincePromotion", "Windows"]


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
    test: PositiveDuration = Field(
        description="length of the test window, directly after `train`; not trained on, the gate judges on it"
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
    min_train_rows: int = Field(
        default=1000, ge=50, description="fewest training rows with outcomes; with fewer, a refresh is refused"
    )

    def typical_length(self, rows: int, span: timedelta) -> timedelta:
        """Typical length of a current window if ``rows`` observations were made in the time ``span``.

        For a window since the promotion it is ``at_most`` or, without that limit, the length of the test window.
        """
        match self.current:
            case NewestRows():
                return max(timedelta(microseconds=1), span * (self.current.rows / max(rows, 1)))
            case SincePromotion():
                return self.current.at_most or self.test
            case length:
                return length
