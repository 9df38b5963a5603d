"""Whether final fits gain: earlier ones beside their challengers, on rows that neither had seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from stillhouse.payoff.evidence import compare_members
from stillhouse.records import BlockScore

__all__ = ["MIN_FINAL_FITS", "FinalFitGain", "estimate_final_fit_gain", "has_final_fit_gained"]

MIN_FINAL_FITS = 3  # earlier ones, each scored beside its challenger: with fewer their spread is not known
_CONFIDENCE_SDS = 1.28  # one-sided 90 %: a wrong choice costs at most the little by which the two differ
_UNUSED_ERROR = 0.5  # of an error budget: the comparison is used for its gain only


class FinalFitGain(NamedTuple):
    """What final fits gained over their challengers, per row, oriented so that more is better."""

    number: int
    """Earlier final fits that were scored beside their challengers."""
    mean: float
    """Posterior mean in the unit of the measure, shrunk towards 0."""
    standard_deviation: float
    """Of the posterior."""

    @property
    def lower_bound(self) -> float:
        """Lower bound of the mean gain, at 90 %."""
        return self.mean - _CONFIDENCE_SDS * self.standard_deviation


def estimate_final_fit_gain(
    scores: Mapping[str, Sequence[BlockScore]],
    challengers: Mapping[str, str],
    *,
    measure: str,
    span: float,
    margin: float,
) -> FinalFitGain:
    """The mean gain of final fits over their challengers on later rows, with the prior ``N(0, margin²)``.

    Each refresh counts once, however long its two models were scored, because the rows of one refresh share one final
    fit. Its noise is the spread of the gains over the refreshes; with fewer than :data:`MIN_FINAL_FITS` there is no
    estimate, and the prior is returned.

    :param scores: of each member, by its name.
    :param challengers: the challenger of each final fit, by its name.
    :param measure: ``log_loss``, ``accuracy``, ``auc``, or the name of the user's own score.
    :param span: length of the range of a row's score.
    :param margin: > 0: standard deviation of the prior, in the unit of the measure.
    """
    gains = []
    for final_fit, challenger in challengers.items():
        pair = scores.get(final_fit, ()), scores.get(challenger, ())
        if not all(pair):
            continue
        since = max(blocks[0].start for blocks in map(_by_start, pair))
        evidence = compare_members(*pair, measure=measure, span=span, margin=margin, since=since, error=_UNUSED_ERROR)
        if evidence is not None:
            gains.append(evidence.gain)
    if len(gains) < MIN_FINAL_FITS:
        return FinalFitGain(len(gains), 0.0, margin)
    prior, noise = margin**2, float(np.var(gains, ddof=1)) / len(gains)
    weight = prior / (prior + noise)
    return FinalFitGain(len(gains), weight * float(np.mean(gains)), math.sqrt(weight * noise))


def has_final_fit_gained(gain: FinalFitGain) -> bool:
    """Whether final fits have been shown to gain; False without history.

    >>> has_final_fit_gained(FinalFitGain(number=0, mean=0.0, standard_deviation=0.01))
    False
    >>> has_final_fit_gained(FinalFitGain(number=6, mean=0.004, standard_deviation=0.002))
    True
    """
    return gain.number >= MIN_FINAL_FITS and gain.lower_bound > 0


def _by_start(blocks: Sequence[BlockScore]) -> list[BlockScore]:
    return sorted(blocks, key=lambda block: block.start)
