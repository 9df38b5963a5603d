"""The named measure of an agent: the one place that says what quality is, for scorecard, gate, pool, watch and pages.

A measure gives each row a score within a known range, or each episode that a model plays, or, for the AUC, all rows
together a value. Two models are compared by :meth:`Measure.scores`, where more is better whatever the measure; people
read :meth:`Measure.value`, in the measure's own unit and direction. Compression and the watch need one scale for all
measures: that is :meth:`Measure.points`, the share of the range, 0 to 1.

Rows are scored from probabilities. For episodes the model itself is needed: :meth:`Measure.play` lets it act, and the
scores of the episodes then stand beside its probabilities. Seeds and moments of the episodes follow from the rows of
the window (:func:`draw_episodes`), so two models play the same ones, and a verdict can be computed again. Where there
is no model to let act, or no time for it (compression, validation in training, slices), :attr:`Measure.stand_in` judges
the rows.
"""

from __future__ import annotations

import hashlib
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
    "Answers",
    "Episodes",
    "Measure",
    "Policy",
    "clipped_log_loss",
    "decision_measure",
    "draw_episodes",
    "get_admission_measure",
    "get_measure",
    "get_row_measure",
    "measure_title",
]

Array = np.ndarray[Any, Any]
RowScores = Callable[[Array, Array, pd.DataFrame | None], Array]
"""Scores of the rows, float ``[n]`` in the measure's own direction, from probabilities, labels and rows."""

Policy = Callable[[pd.DataFrame], Array]
"""A model: rows, also such as nobody observed, to probabilities ``[n, K]``."""

EpisodeScores = Callable[[Policy, Array, pd.DatetimeIndex], Array]
"""Scores of episodes, float ``[m]`` in the measure's own direction, from a model, seeds ``[m]`` and moments ``[m]``."""

_TITLES: Mapping[str, str] = {"auc": "AUC", "accuracy": "accuracy", "agreement": "agreement", "log_loss": "log loss"}


@dataclass(frozen=True)
class Episodes:
    """What a model plays where quality is a score of episodes.

    :param count: number of episodes m per window.
    :param scores: the user's function, whose results are checked.
    """

    count: int
    scores: EpisodeScores


@dataclass(frozen=True)
class Answers:
    """What a model answers on a window.

    :param probs: of the rows ``[n, K]``.
    :param episodes: scores of the episodes that it plays ``[m]``; None: the measure is one of rows, or it plays none.
    """

    probs: Array
    episodes: Array | None = None

    def select(self, mask: Array) -> Answers:
        """The answers to some rows; episodes are those of a whole window, so there are none."""
        return Answers(self.probs[mask])


@dataclass(frozen=True)
class Measure:
    """A measure of quality.

    :param name: ``log_loss``, ``accuracy``, ``agreement``, ``auc``, or the name of the user's own score.
    :param low: smallest score of a row or episode, in the unit of the measure; ``high`` likewise.
    :param better: the direction that is better.
    :param row_scores: None: rows have no scores of their own (AUC, episodes).
    :param episodes: what a model plays; None: it is scored on rows.
    :param stand_in: for a score of episodes, the measure of rows where no episodes are played.
    """

    name: str
    unit: str
    low: float
    high: float
    better: Literal["higher", "lower"]
    row_scores: RowScores | None
    episodes: Episodes | None = None
    stand_in: Measure | None = None

    @property
    def is_pooled(self) -> bool:
        """Whether only all rows together have a value (AUC)."""
        return self.row_scores is None and self.episodes is None

    @property
    def of_rows(self) -> Measure:
        """The measure by which rows can be scored: this one, or its stand-in."""
        return self.stand_in or self

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
        """The largest minus the smallest score of a row or episode."""
        return self.high - self.low

    @property
    def sign(self) -> float:
        """1 if higher values are better, else −1."""
        return 1.0 if self.better == "higher" else -1.0

    def play(self, policy: Policy | None, rows: pd.DataFrame) -> Array | None:
        """Let a model act: the score of each episode, float ``[m]`` in the measure's own direction.

        >>> ACCURACY.play(lambda rows: np.full((len(rows), 2), 0.5), pd.DataFrame()) is None  # scored on rows
        True

        :param policy: the model; None: it cannot be asked about rows that nobody observed.
        :param rows: the rows of the window, with ``observation_id`` and ``observed_at``.
        :returns: None if the measure is one of rows, or there is no model or no row.
        :raises PartError: if the user's function fails, or returns something else than ``[m]`` numbers in its range.
        """
        if self.episodes is None or policy is None or rows.empty:
            return None
        seeds, moments = draw_episodes(rows, self.episodes.count)
        return self.episodes.scores(policy, seeds, moments)

    def scores(
        self, probs: Array, labels: Array, rows: pd.DataFrame | None = None, episodes: Array | None = None
    ) -> Array | None:
        """The scores of the rows, or of the episodes, oriented so that more is better.

        A label of K or more is an action that the model does not know; its probability is 0.

        >>> ACCURACY.scores(np.array([[0.9, 0.1], [0.9, 0.1]]), np.array([0, 1])).tolist()
        [1.0, 0.0]

        :param probs: float ``[n, K]``, finite.
        :param labels: action indices ``[n]`` ≥ 0.
        :param rows: the observations, for a score of the user's own.
        :param episodes: what :meth:`play` returned, for a score of episodes.
        :returns: float ``[n]``, or ``[m]`` of episodes, in a range of length :attr:`span`; None for the AUC.
        :raises PartError: if the user's own score fails, or returns something else than ``[n]`` numbers in its range.
        """
        if self.episodes is not None:
            if episodes is None:
                raise ValueError(f"{self.name}: no episodes were played; judge the rows by `of_rows`")
            return self.sign * episodes
        if self.row_scores is None:
            return None
        scores: Array = self.sign * self.row_scores(_with_unknown_actions(probs, labels), np.asarray(labels), rows)
        return scores

    def value(
        self, probs: Array, labels: Array, rows: pd.DataFrame | None = None, episodes: Array | None = None
    ) -> float:
        """The value on all rows, in the unit and the direction of the measure; parameters as in :meth:`scores`.

        :raises ValueError: for the AUC, if the labels contain fewer than two actions; see :meth:`for_labels`.
        """
        scores = self.scores(probs, labels, rows, episodes)
        if scores is None:
            return measure_auc(np.asarray(labels), probs[:, 1])
        return self.sign * float(scores.mean())

    def points(self, probs: Array, labels: Array, rows: pd.DataFrame | None = None) -> float:
        """The value on rows as a share of the range, 0 (worst) to 1 (best); parameters as in :meth:`scores`."""
        return self.to_points(self.value(probs, labels, rows))

    def to_points(self, value: float) -> float:
        """A value of the measure as a share of its range, 0 (worst) to 1 (best)."""
        return (value - self.low if self.better == "higher" else self.high - value) / self.span

    def for_labels(self, labels: Array, actions: int = 2, episodes: Array | None = None) -> Measure:
        """What can be judged by: the accuracy where there is no AUC, the stand-in where no episodes were played.

        >>> AUC.for_labels(np.array([0, 0])).name, AUC.for_labels(np.array([0, 1])).name
        ('accuracy', 'auc')

        :param actions: number of columns of the probabilities.
        :param episodes: what :meth:`play` returned.
        """
        if episodes is None and self.stand_in is not None:
            return self.stand_in
        if self.is_pooled and (actions != 2 or set(np.unique(labels)) != {0, 1}):
            return ACCURACY
        return self

    def describe(self, value: float) -> NamedQuality:
        """A value of this measure as a record."""
        return NamedQuality(
            measure=self.name,
            value=value,
            unit=self.unit,
            low=self.low,
            high=self.high,
            better=self.better,
            episodes=self.episodes.count if self.episodes else None,
        )


def draw_episodes(rows: pd.DataFrame, count: int) -> tuple[Array, pd.DatetimeIndex]:
    """The seeds and the moments of the episodes that belong to a window: they depend on its rows alone.

    Each episode takes its moment and its seed from one row; the rows are evenly spaced in the order of time. So the
    moments lie where the agent has acted, and other rows give other seeds.

    >>> rows = pd.DataFrame({"observation_id": ["a", "b"], "observed_at": pd.to_datetime(["2026-01-05", "2026-01-06"])})
    >>> seeds, moments = draw_episodes(rows, 4)
    >>> moments.day.tolist(), len(set(seeds.tolist()))
    ([5, 5, 6, 6], 4)

    :param rows: with ``observation_id`` and ``observed_at``, at least one.
    :param count: m.
    :returns: int64 in 0…2³²−1 ``[m]``, and times ``[m]``.
    """
    ordered = rows[["observed_at", "observation_id"]].sort_values(["observed_at", "observation_id"])
    chosen = ordered.iloc[(2 * np.arange(count) + 1) * len(rows) // (2 * count)]
    keys = (f"{number}\x1f{name}" for number, name in enumerate(chosen["observation_id"]))
    seeds = [int.from_bytes(hashlib.sha256(key.encode()).digest()[:4]) for key in keys]
    return np.array(seeds, dtype=np.int64), pd.DatetimeIndex(chosen["observed_at"])


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
        measure = _OWN_MEASURES[quality.own.on](quality.own, config)
        return replace(measure, stand_in=_decision_share(config)) if measure.episodes else measure
    return _MEASURES[quality.measure](quality)


def get_row_measure(config: AgentConfig) -> Measure:
    """The measure by which rows are judged: the named one, or the stand-in of a score of episodes.

    >>> import stillhouse
    >>> get_row_measure(stillhouse.load_config("flights")).name
    'auc'
    """
    return get_measure(config).of_rows


def get_admission_measure(config: AgentConfig) -> Measure:
    """The measure by which a teacher shows that it knows anything: the named one, but no log loss and no episodes.

    A teacher with overconfident answers can have a poor log loss and still know much that a student can learn.
    """
    measure = get_measure(config)
    decides = measure.name == "log_loss" or measure.episodes is not None
    return decision_measure(len(config.actions)) if decides else measure


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


def _decision_share(config: AgentConfig) -> Measure:
    """The share of decisions that equal their label: accuracy, or agreement where the teacher gave the labels."""
    return ACCURACY if config.labels_are == "outcomes" else AGREEMENT


def _own_row_measure(own: OwnScore, config: AgentConfig) -> Measure:
    """The user's own score of rows."""
    call = _checked(own, config, "row")

    def score(probs: Array, labels: Array, rows: pd.DataFrame | None) -> Array:
        return call(len(labels), probs, labels, rows)

    return Measure(own.name, own.unit, own.low, own.high, own.better, score)


def _own_episode_measure(own: OwnScore, config: AgentConfig) -> Measure:
    """The user's own score of episodes."""
    call = _checked(own, config, "episode")

    def score(policy: Policy, seeds: Array, moments: pd.DatetimeIndex) -> Array:
        return call(len(seeds), lambda rows: _to_finite(policy(rows)), seeds, moments)

    assert own.episodes is not None  # as the agent file was checked for
    return Measure(own.name, own.unit, own.low, own.high, own.better, None, Episodes(own.episodes, score))


_OWN_MEASURES: Mapping[str, Callable[[OwnScore, AgentConfig], Measure]] = {
    "rows": _own_row_measure,
    "episodes": _own_episode_measure,
}


def _checked(own: OwnScore, config: AgentConfig, per: str) -> Callable[..., Array]:
    """The user's function; it is called with the number of scores that it must return before its own arguments."""
    where = f"{config.file}: quality.own.target"
    function = resolve(own.target, where=where, folder=config.folder)

    def call(count: int, *arguments: Any) -> Array:
        try:
            result = np.asarray(function(*arguments), dtype=np.float64)
        except Exception as error:
            raise PartError(f"{where}: {own.target!r} failed with {type(error).__name__}: {error}") from error
        if result.shape != (count,):
            raise PartError(
                f"{where}: {own.target!r} must return a number per {per}, [{count}]; it returned {list(result.shape)}"
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

    return call


def _to_finite(probs: Array) -> Array:
    """Probabilities in which a row that is not finite is all 0: no action is more probable than another."""
    probs = np.asarray(probs, dtype=np.float64)
    finite = np.isfinite(probs).all(axis=1, keepdims=True)
    return probs if finite.all() else np.where(finite, probs, 0.0)


def _with_unknown_actions(probs: Array, labels: Array) -> Array:
    """Probabilities with a column of zeros for each label that the model does not know."""
    probs = np.asarray(probs, dtype=np.float64)
    unknown = max(0, int(np.max(labels, initial=0)) + 1 - probs.shape[1])
    return np.pad(probs, ((0, 0), (0, unknown))) if unknown else probs
