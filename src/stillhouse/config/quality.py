"""The section ``quality``: the measure that scorecard, gate, pool, watch and pages judge a model by."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from stillhouse.config.base import Section, Target

__all__ = ["OwnScore", "QualitySettings"]


class OwnScore(Section):
    """A score of the user's own: a function of probabilities and outcomes that returns a number per row."""

    target: Target = Field(
        description="'module:function', called as (probs, labels, rows); returns a score per row, float [n]"
    )
    name: str = Field(min_length=1, max_length=40, description="what people call it")
    low: float = Field(description="smallest score of a row")
    high: float = Field(description="largest score of a row")
    unit: str = Field(default="", max_length=20, description="unit of the score, for pages")
    better: Literal["higher", "lower"] = Field(default="higher", description="which direction is better")

    @model_validator(mode="after")
    def _check_range(self) -> OwnScore:
        if self.low >= self.high:
            raise ValueError(f"high: must be more than `low`, {self.low:g}; it is {self.high:g}")
        return self


class QualitySettings(Section):
    """What quality means for this agent.

    >>> from stillhouse.config import QualitySettings
    >>> QualitySettings().measure, QualitySettings().name
    ('log_loss', 'log_loss')
    """

    measure: Literal["log_loss", "accuracy", "auc"] = Field(
        default="log_loss",
        description="log_loss: a proper score, clipped at `clip`; auc: for two actions. Accuracy is looked at beside "
        "each of them",
    )
    own: OwnScore | None = Field(default=None, description="a score of your own, which replaces `measure`")
    clip: float = Field(
        default=0.01, gt=0, le=0.1, description="smallest probability that the log loss counts, so that it is bounded"
    )

    @property
    def name(self) -> str:
        """The name of the measure for people."""
        return self.own.name if self.own else self.measure
