"""The section ``quality``: the measure that scorecard, gate, pool, watch and pages judge a model by."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from stillhouse.config.base import Section, Target

__all__ = ["OwnScore", "QualitySettings", "ScoreRange"]


class ScoreRange(NamedTuple):
    """What the scores of one row, or episode, can be, and which of them are better."""

    low: float
    high: float
    unit: str
    better: Literal["higher", "lower"]

    @property
    def span(self) -> float:
        """The largest minus the smallest score of a row."""
        return self.high - self.low


class OwnScore(Section):
    """A score of the user's own: a function that returns a number per row, or one per episode that a model plays."""

    target: Target = Field(
        description="'module:function', called as (probs, labels, rows); returns a score per row, float [n]. Of "
        "episodes: called as (policy, seeds, moments); returns a score per seed"
    )
    name: str = Field(
        pattern=r"^[A-Za-z][\w .\-]{0,39}$",
        description="what people call it: letters, digits, spaces and the characters _ . -",
    )
    low: float = Field(description="smallest score of a row, or of an episode")
    high: float = Field(description="largest score of a row, or of an episode")
    unit: str = Field(default="", max_length=20, description="unit of the score, for pages")
    better: Literal["higher", "lower"] = Field(default="higher", description="which direction is better")
    on: Literal["rows", "episodes"] = Field(
        default="rows",
        description="episodes: the model acts in a world that the function simulates; models are compared in episodes "
        "with the same seeds",
    )
    episodes: int | None = Field(
        default=None,
        ge=10,
        le=10_000,
        description="episodes per window and per block of the pool; required with `on: episodes`",
    )

    @model_validator(mode="after")
    def _check_episodes(self) -> OwnScore:
        if self.on == "episodes" and self.episodes is None:
            raise ValueError(
                "episodes: is required with `on: episodes`: how many a model plays per window, such as 200"
            )
        if self.on == "rows" and self.episodes is not None:
            raise ValueError("episodes: is for a score of episodes: write `on: episodes` beside it, or leave it out")
        return self

    @model_validator(mode="after")
    def _check_range(self) -> OwnScore:
        if self.low >= self.high:
            raise ValueError(f"high: must be more than `low`, {self.low:g}; it is {self.high:g}")
        return self

    @model_validator(mode="after")
    def _check_name(self) -> OwnScore:
        if self.name in _DEFAULT_MARGINS:
            raise ValueError(f"name: {self.name!r} is a measure of stillhouse: give your own score another name")
        return self


class QualitySettings(Section):
    """What quality means for this agent.

    >>> from stillhouse.config import QualitySettings
    >>> QualitySettings().measure, QualitySettings().name
    ('log_loss', 'log_loss')
    """

    measure: Literal["log_loss", "accuracy", "agreement", "auc"] = Field(
        default="log_loss",
        description="log_loss: a proper score, clipped at `clip`; auc: for two actions; agreement: with the teacher, "
        "the default of an agent without outcomes. Accuracy, or agreement, is looked at beside each of them",
    )
    own: OwnScore | None = Field(default=None, description="a score of your own, which replaces `measure`")
    clip: float = Field(
        default=0.01, gt=0, le=0.1, description="smallest probability that the log loss counts, so that it is bounded"
    )

    @property
    def name(self) -> str:
        """The name of the measure for people."""
        return self.own.name if self.own else self.measure

    @property
    def range(self) -> ScoreRange:
        """The scores that a row, or an episode, can have.

        0…−ln ``clip`` nats of log loss, 0…1, or as the user's own score states.
        """
        if self.own:
            return ScoreRange(self.own.low, self.own.high, self.own.unit, self.own.better)
        if self.measure == "log_loss":
            return ScoreRange(0.0, -math.log(self.clip), "nats", "lower")
        return ScoreRange(0.0, 1.0, "", "higher")

    @property
    def default_margin(self) -> float:
        """The default of ``promotion.non_inferiority_margin``, in the unit of the measure.

        >>> QualitySettings(measure="auc").default_margin, QualitySettings().default_margin
        (0.005, 0.02)
        """
        return _OWN_MARGINS[self.own.on] * self.range.span if self.own else _DEFAULT_MARGINS[self.measure]


_DEFAULT_MARGINS: Mapping[str, float] = {"log_loss": 0.02, "accuracy": 0.005, "agreement": 0.02, "auc": 0.005}
_OWN_MARGINS: Mapping[str, float] = {"rows": 0.005, "episodes": 0.05}
"""Of the range of a score of the user's own; 100 episodes can prove no less than a twentieth."""
