"""The section ``windows``: which stretches of the agent's life everything is measured on."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from stillhouse.config.base import Length, Section, parse_duration

__all__ = ["NewestRows", "SincePromotion", "Windows"]


class NewestRows(Section):
    """A window by count."""

    rows: int = Field(ge=1, description="the newest so many sound observations, and those of the same moment")


class SincePromotion(Section):
    """A window from the moment on for which the champion was promoted."""

    since: Literal["promotion"] = "promotion"
    at_most: Length | None = Field(default=None, description="no longer than this; absent: all since then")


def _current(value: Any) -> Any:
    if value == "since_promotion":
        return SincePromotion()
    if isinstance(value, NewestRows | SincePromotion):
        return value
    if isinstance(value, Mapping):
        return (NewestRows if "rows" in value else SincePromotion).model_validate(value)
    if isinstance(value, str | timedelta):
        return parse_duration(value)
    raise ValueError("must be a length such as 7d, {rows: 5000}, since_promotion, or {since: promotion, at_most: 14d}")


Current = Annotated[timedelta | NewestRows | SincePromotion, BeforeValidator(_current)]


class Windows(Section):
    """The windows that everything is measured on."""

    train: Length = Field(description="what a student learns from")
    test: Length = Field(description="directly after `train`, never learned from: what the gate judges on")
    current: Current = Field(
        description="what a watch compares with the champion's training window: a length; {rows: 5000}, the newest "
        "ones; since_promotion, or {since: promotion, at_most: 14d}"
    )
    sample: int | None = Field(
        default=None,
        ge=100,
        description="rows of the current window that are measured at most, a uniform sample of it; null: all of them",
    )
    max_train_rows: int | None = Field(
        default=None, ge=100, description="more are thinned: the newest half whole, the rest sampled from before"
    )
    min_train_rows: int = Field(default=1000, ge=50, description="fewer: a refresh is refused")

    def usual_length(self, rows: int, span: timedelta) -> timedelta:
        """How long a current window usually is, where ``rows`` observations were made in a time of ``span``.

        Since the promotion: as long as it may become or, without a limit, as long as the test window.
        """
        match self.current:
            case NewestRows():
                return max(timedelta(microseconds=1), span * (self.current.rows / max(rows, 1)))
            case SincePromotion():
                return self.current.at_most or self.test
            case length:
                return length
