"""The named measure of an agent: the one place that says what quality is, for scorecard, gate, pool, watch and pages.

A measure gives each row a score within a known range, or, for the AUC, all rows together a value. Two models are
compared by :meth:`Measure.score_rows`, where more is better whatever the measure; people read :meth:`Measure.value`, in
the measure's own unit and direction. Compression and the watch need one scale for all measures: that is
:meth:`Measure.points`, the share of the range, 0 to 1.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig, OwnScore, QualitySettings
from stillhouse.errors import PartError
from stillhouse.parts import resolve
from stillhouse.records import NamedQuality
from stillhouse.stats import measure_auc

__all__ = [
    "ACCURACY",
    "AGREEMENT",
    "AUC",
    "Measure",
    "clipped_log_loss",
    "decision_measure",
    "get_admission_measure",
    "get_measure",
    "measure_title",
]

Array = np.ndarray[Any, Any]
RowScores = Callable[[Array, Array, pd.DataFrame | None], Array]
"""Scores of the rows, float ``[n]`` in the measure's own direction, from probabilities, labels and rows."""

_TITLES: Mapping[str, str] = {"auc": "AUC", "accuracy": "accuracy", "agreement": "agreement", "log_loss": "log loss"}


@dataclass(frozen=True)
class Measure:
    """A measure of quality.

    :param name: ``log_loss``, ``accuracy``, ``agreement``, ``auc``, or the name of the user's own score.
    :param low: smallest score of a row, in the unit of the measure; ``high`` likewise.
    :param better: the direction that is better.
    :param row_scores: None: only all rows together have a value (AUC).
    """

    name: str
    unit: str
    low: float
    high: float
    better: Literal["higher", "lower"]
    row_scores: RowScores | None

    @property
    def title(self) -> str:
        """The name for people."""
        return measure_title(self.name)

    @property
    def points_title(self) -> str:
        """What :meth:`points` are, for people."""
        return (
            self.title
            if (self.low, self.high, self.better) == (0.0, 1.0, "higher")
            else (f"{self.title} as a share of its range: 1 is the best value, {self._format_best()}, and 0 the worst")
        )

    def _format_best(self) -> str:
        return f"{self.high if self.better == 'higher' else self.low:g} {self.unit}".rstrip()

    @property
    def span(self) -> float:
        """The largest minus the smallest score of a row."""
        return self.high - self.low

    @property
    def sign(self) -> float:
        """1 if higher values are better, else −1."""
        return 1.0 if self.better == "higher" else -1.0

    def score_rows(self, probs: Array, labels: Array, rows: pd.DataFrame | None = None) -> Array | None:
        """The scores of the rows, oriented so that more is better: float ``[n]`` in a range of length :attr:`span`.

        A label of K or more is an action that the model does not know; its probability is 0.

        >>> ACCURACY.score_rows(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1])).tolist()
        [1.0, 0.0]

        :param probs: float ``[n, K]``, finite.
        :param labels: action indices ``[n]`` ≥ 0.
        :param rows: the observations, for a score of the user's own.
        :returns: None for the AUC.
        :raises PartError: if the user's own score fails, or returns something else than ``[n]`` numbers in its range.
        """
        if self.row_scores is None:
            return None
        scores: Array = self.sign * self.row_scores(_with_unknown_actions(probs, labels), np.asarray(labels), rows)
        return scores

    def value(self, probs: Array, labels: Array, rows: pd.DataFrame | None = None) -> float:
        """The value on all rows, in the unit and the direction of the measure; parameters as in :meth:`score_rows`.

        :raises ValueError: for the AUC, if the labels contain fewer than two actions; see :meth:`for_labels`.
        """
        scores = self.score_rows(probs, labels, rows)
        if scores is None:
            return measure_auc(np.asarray(labels), probs[:, 1])
        return self.sign * float(scores.mean())

    def points(self, probs: Array, labels: Array, rows: pd.DataFrame | None = None) -> float:
        """The value as a share of the range, 0 (worst) to 1 (best); parameters as in :meth:`score_rows`."""
        return self.to_points(self.value(probs, labels, rows))

    def to_points(self, value: float) -> float:
        """A value of the measure as a share of its range, 0 (worst) to 1 (best)."""
        return (value - self.low if self.better == "higher" else self.high - value) / self.span

    def for_labels(self, labels: Array, actions: int = 2) -> Measure:
        """The measure that rows with these labels can be judged by: the accuracy where there is no AUC.

        >>> AUC.for_labels(np.array([0, 0])).name, AUC.for_labels(np.array([0, 1])).name
        ('accuracy', 'auc')

        :param actions: number of columns of the probabilities.
        """
        if self.row_scores is None and (actions != 2 or set(np.unique(labels)) != {0, 1}):
            return ACCURACY
        return self

    def describe(self, value: float) -> NamedQuality:
        """A value of this measure as a record."""
        return NamedQuality(
            measure=self.name, value=value, unit=self.unit, low=self.low, high=self.high, better=self.better
        )


def get_measure(config: AgentConfig) -> Measure:
    """The measure that the agent file names.

    >>> import stillhouse
    >>> measure = get_measure(stillhouse.load_config("flights"))
    >>> measure.title, measure.better
    ('AUC', 'higher')

    :raises PartError: if the user's own score cannot be imported.
    """
    quality = config.quality
    if quality.own:
        return _own_measure(quality.own, config)
    return _MEASURES[quality.measure](quality)


def get_admission_measure(config: AgentConfig) -> Measure:
    """The measure by which a teacher shows that it knows anything: the named one, but the log loss.

    A teacher with overconfident answers can have a poor log loss and still know much that a student can learn.
    """
    measure = get_measure(config)
    return decision_measure(len(config.actions)) if measure.name == "log_loss" else measure


def decision_measure(actions: int) -> Measure:
    """The AUC for two actions, and the accuracy for more: what counts however confident a model is.

    :param actions: number of actions K.
    """
    return AUC if actions == 2 else ACCURACY


def measure_title(name: str) -> str:
    """The name of a measure for people.

    >>> measure_title("log_loss"), measure_title("cost of a call")
    ('log loss', 'cost of a call')
    """
    return _TITLES.get(name, name)


def clipped_log_loss(probs: Array, labels: Array, clip: float) -> Array:
    """``−ln max(p(outcome), clip)`` of each row, float ``[n]`` in 0…−ln ``clip`` (nats).

    A proper score is unbounded, and one row could decide a comparison; with the clip a bound on its mean exists. An
    action that the model does not know gets the probability ``clip``.

    >>> clipped_log_loss(np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([0, 1]), clip=0.01).round(3).tolist()
    [0.0, 4.605]

    :param probs: ``[n, K]``.
    :param labels: action indices ``[n]``.
    """
    probs = _with_unknown_actions(probs, labels)
    losses: Array = -np.log(np.clip(probs[np.arange(len(labels)), labels], clip, 1.0))
    return np.abs(losses)  # no −0


# --------------------------------------------------------------------------- kinds of measures


def _accuracy_rows(probs: Array, labels: Array, rows: pd.DataFrame | None) -> Array:
    scores: Array = (probs.argmax(axis=1) == labels).astype(np.float64)
    return scores


ACCURACY = Measure("accuracy", "", 0.0, 1.0, "higher", _accuracy_rows)
"""The share of right decisions."""

AGREEMENT = replace(ACCURACY, name="agreement")
"""The same where the labels are answers of the teacher."""

AUC = Measure("auc", "", 0.0, 1.0, "higher", None)
"""The area under the ROC curve of the second of two actions."""


def _log_loss_measure(quality: QualitySettings) -> Measure:
    low, high, unit, better = quality.range
    return Measure(
        "log_loss", unit, low, high, better, lambda probs, labels, rows: clipped_log_loss(probs, labels, quality.clip)
    )


_MEASURES: Mapping[str, Callable[[QualitySettings], Measure]] = {
    "log_loss": _log_loss_measure,
    "accuracy": lambda quality: ACCURACY,
    "agreement": lambda quality: AGREEMENT,
    "auc": lambda quality: AUC,
}


def _own_measure(own: OwnScore, config: AgentConfig) -> Measure:
    """The user's own score, whose results are checked."""
    where = f"{config.file}: quality.own.target"
    function = resolve(own.target, where=where, folder=config.folder)

    def score(probs: Array, labels: Array, rows: pd.DataFrame | None) -> Array:
        try:
            result = np.asarray(function(probs, labels, rows), dtype=np.float64)
        except Exception as error:
            raise PartError(f"{where}: {own.target!r} failed with {type(error).__name__}: {error}") from error
        if result.shape != (len(labels),):
            raise PartError(
                f"{where}: {own.target!r} must return a number per row, [{len(labels)}]; it returned "
                f"{list(result.shape)}"
            )
        if not np.isfinite(result).all():
            raise PartError(f"{where}: {own.target!r} returned a value that is no finite number")
        slack = 1e-9 * (own.high - own.low)
        if len(result) and (result.min() < own.low - slack or result.max() > own.high + slack):
            raise PartError(
                f"{where}: {own.target!r} returned values from {result.min():g} to {result.max():g}, and "
                f"`quality.own` says `low: {own.low:g}` and `high: {own.high:g}`: correct the function or the range"
            )
        return np.clip(result, own.low, own.high)

    return Measure(own.name, own.unit, own.low, own.high, own.better, score)


def _with_unknown_actions(probs: Array, labels: Array) -> Array:
    """Probabilities with a column of zeros for each label that the model does not know."""
    probs = np.asarray(probs, dtype=np.float64)
    unknown = max(0, int(np.max(labels, initial=0)) + 1 - probs.shape[1])
    return np.pad(probs, ((0, 0), (0, unknown))) if unknown else probs
