"""Weights of the teachers in their mean, learned online from outcomes: over all rows and by slice.

The weighted mean of M teachers predicts each outcome; its loss is −ln of the probability that it gave the outcome
(nats). Outcomes are processed in the order in which they arrive. Three nested mixtures are learned by the same rule:

1. Over *constant mixtures of the teachers*: once over all rows, and once in every slice (value of a slice column). The
   mixtures are the points of a grid on the simplex (Cover 1991, "Universal portfolios", with a Dirichlet prior whose
   mean is the start weights) and the start weights themselves, which have half of the prior.
2. In every slice: over the slice's own mixture and the mixture over all rows, with equal prior.
3. Over all rows and the slice columns; all rows have half of the prior.

So a slice has weights of its own only if its outcomes support them. The rule is fixed share (Herbster & Warmuth 1998,
"Tracking the best expert", §5): a Bayes update, which on the log loss is the exponentially weighted average at learning
rate 1; then a share ``α_t = 1/(t + 1)`` of the posterior returns to the prior (Adamskiy, Koolen, Chernov & Vovk 2012,
"A closer look at adaptive regret", §4: a rate without a parameter to tune).

Outcomes of one time block (``promotion.cluster``) count as one observation: the update uses the mean of their losses.
Rows near in time are dependent, and weights that took each row as independent evidence would follow noise. The mean of
log losses is 1-exp-concave in the weights, as each log loss is (a geometric mean is concave), so the regret bound holds
with time blocks in place of outcomes.

**Regret bound**, for any outcomes: over T time blocks the mean losses of the weighted mean sum to at most
``ln 1/p₀ + ln T + Σ ln T/pᵢ`` nats more than those of any sequence of grid points with the priors ``p₀, p₁, …``, one
switch for each further term; ``ln 2 + ln T`` more if there are slice columns. For the start weights ``p₀`` is at least
½. (The tests check the bound.)

Delayed outcomes are processed as they arrive: the bound compares each time block with the weights just before it
arrived. Probabilities are kept away from 0 by mixing in :data:`UNIFORM_SHARE` of the uniform distribution: one
confident error costs at most ``ln(K / UNIFORM_SHARE)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import combinations, pairwise
from math import comb, lgamma
from typing import Any, Literal

import numpy as np
import pandas as pd

from stillhouse.records import SliceWeights, TeacherWeights, WeightChange

__all__ = [
    "MIN_RECORDED_CHANGE",
    "UNIFORM_SHARE",
    "WeightTrajectory",
    "estimate_by_agreement",
    "find_changes",
    "learn",
    "mixture_grid",
    "row_shares",
    "slice_shares",
    "start_weights",
]

Array = np.ndarray[Any, np.dtype[np.float64]]
Indices = np.ndarray[Any, np.dtype[np.int64]]

UNIFORM_SHARE = 1e-3
"""Share of the uniform distribution mixed into a teacher's probabilities, for learning its weight only."""

MIN_RECORDED_CHANGE = 0.01
"""Smaller changes of a share are not recorded. Shares are compared with the last record, so small changes add up."""

_MAX_GRID_POINTS = 100
_MAX_GRID_STEPS = 10  # from one teacher to another
_MAX_CURVE_POINTS = 200


@dataclass(frozen=True)
class WeightTrajectory:
    """The weights while T outcomes were processed.

    :param mixture: after the last outcome.
    :param losses: float64 ``[T]``, −ln probability of each outcome under the weights just before it (nats).
    :param indices: the outcomes after which ``shares`` are given, int ``[P]``.
    :param shares: share of each teacher over all rows, float64 ``[P, M]``.
    """

    mixture: TeacherWeights
    losses: Array
    indices: Indices
    shares: Array


def start_weights(
    teachers: Sequence[str],
    start: Sequence[float],
    columns: Sequence[str],
    as_of: datetime,
    by: Literal["file", "agreement"] = "file",
) -> TeacherWeights:
    """Weights before the first outcome.

    >>> from datetime import UTC
    >>> mixture = start_weights(["rules", "model"], [0.25, 0.75], [], datetime(2024, 1, 1, tzinfo=UTC))
    >>> slice_shares(mixture).round(3)
    array([0.25, 0.75])

    :param start: shares ``[M]`` that sum to 1, from the agent file or from :func:`estimate_by_agreement`.
    :param columns: category columns whose values may get weights of their own.
    """
    positive = np.maximum(np.asarray(start, dtype=np.float64), 1e-6)
    start = tuple((positive / positive.sum()).tolist())
    _, prior = mixture_grid(start)
    return TeacherWeights(
        by=by,
        as_of=as_of,
        teachers=tuple(teachers),
        start=start,
        columns=tuple(columns),
        column_shares=tuple(_column_prior(len(columns)).tolist()),
        everywhere=SliceWeights(outcomes=0, time_blocks=0, own=1.0, posterior=tuple(prior.tolist())),
        slices={},
        losses=dict.fromkeys(["", *teachers, "start"], 0.0),
    )


def learn(
    mixture: TeacherWeights, probs: Array, labels: Any, rows: pd.DataFrame, as_of: datetime, time_blocks: Any = None
) -> WeightTrajectory:
    """Update the weights with T outcomes, in the order in which they arrived.

    >>> from datetime import UTC
    >>> mixture = start_weights(["good", "bad"], [0.5, 0.5], [], datetime(2024, 1, 1, tzinfo=UTC))
    >>> probs = np.tile([[[0.1, 0.9], [0.9, 0.1]]], (30, 1, 1))
    >>> rows = pd.DataFrame(index=range(30))
    >>> trajectory = learn(mixture, probs, [1] * 30, rows, datetime(2024, 1, 2, tzinfo=UTC))
    >>> slice_shares(trajectory.mixture).round(2)
    array([0.96, 0.04])

    :param probs: of each teacher for each row, float64 ``[T, M, K]``.
    :param labels: action indices ``[T]``.
    :param rows: the values of the slice columns, T rows.
    :param time_blocks: ``[T]``; neighbouring rows of one time block count as one observation. None: each row does.
    """
    grid, prior = mixture_grid(mixture.start)
    outcome_probs = _outcome_probs(probs, np.asarray(labels, dtype=np.int64))
    names, contexts = _assign_contexts(mixture, rows)
    state = _State.of(mixture, names, prior)
    blocks = _block_bounds(np.arange(len(outcome_probs)) if time_blocks is None else np.asarray(time_blocks))
    stops = set(np.unique(np.linspace(0, len(blocks) - 1, min(_MAX_CURVE_POINTS, len(blocks))).astype(int)).tolist())
    log_probs, losses = np.log(outcome_probs @ grid.T), np.empty(len(outcome_probs))
    indices, shares = [], []
    for number, (first, last) in enumerate(blocks):
        losses[first:last] = state.update(contexts[first:last], log_probs[first:last])
        if number in stops:
            indices.append(last - 1)
            shares.append(state.posteriors[0] @ grid)
    all_losses = np.column_stack([losses, -np.log(outcome_probs @ np.asarray(mixture.start)), -np.log(outcome_probs)])
    sums = sum((all_losses[first:last].mean(axis=0) for first, last in blocks), np.zeros(all_losses.shape[1])).tolist()
    learned = mixture.model_copy(
        update={
            "by": "outcomes" if len(outcome_probs) and mixture.by == "file" else mixture.by,
            "as_of": as_of,
            "column_shares": tuple(state.column_shares.tolist()),
            "everywhere": state.slice_weights(0),
            "slices": {name: state.slice_weights(context) for context, name in enumerate(names) if context},
            "losses": {
                name: mixture.losses[name] + loss
                for name, loss in zip(["", "start", *mixture.teachers], sums, strict=True)
            },
        }
    )
    return WeightTrajectory(
        learned,
        losses,
        np.array(indices, dtype=np.int64),
        np.array(shares).reshape(len(shares), len(mixture.teachers)),
    )


def row_shares(mixture: TeacherWeights, rows: pd.DataFrame) -> Array:
    """Share of each teacher in the mean of each row, float64 ``[n, M]``; rows sum to 1.

    :param rows: with the slice columns.
    """
    grid, _ = mixture_grid(mixture.start)
    everywhere = np.asarray(mixture.everywhere.posterior) @ grid
    shares = np.tile(mixture.column_shares[0] * everywhere, (len(rows), 1))
    for column_share, column in zip(mixture.column_shares[1:], mixture.columns, strict=True):
        codes, values = pd.factorize(rows[column], use_na_sentinel=False)
        table = np.array([_slice_mixture(mixture, _slice_name(column, value), everywhere) for value in values])
        shares += column_share * table.reshape(-1, len(everywhere))[codes]
    normalised: Array = shares / shares.sum(axis=1, keepdims=True)
    return normalised


def slice_shares(mixture: TeacherWeights, name: str = "") -> Array:
    """Share of each teacher ``[M]`` over all rows, or in one slice.

    :param name: ``'column=value'``; '': over all rows. Other slice columns are taken as unknown.
    """
    grid, _ = mixture_grid(mixture.start)
    everywhere: Array = np.asarray(mixture.everywhere.posterior) @ grid
    if not name:
        return everywhere
    column_share = _column_share(mixture, name)
    shares: Array = (1 - column_share) * everywhere + column_share * _slice_mixture(mixture, name, everywhere)
    return shares


def estimate_by_agreement(probs: Array, start: Sequence[float]) -> Array:
    """Shares ``[M]`` by how well the teachers agree, if outcomes are missing; weaker, as teachers may err together.

    The model: each teacher is right with a probability of its own, independently of the others, and else chooses any
    other action with equal probability (Dawid & Skene 1979, "Maximum likelihood estimation of observer error-rates
    using the EM algorithm", §3, with one rate per teacher). The shares are the start shares times the rate above
    chance. Two teachers do not identify which of them errs: their start shares are returned.

    :param probs: float64 ``[T, M, K]``.
    :param start: shares by the agent file ``[M]``.
    """
    prior = np.asarray(start, dtype=np.float64)
    rows, members, actions = probs.shape
    if members < 3 or not rows:
        unchanged: Array = prior / prior.sum()
        return unchanged
    chosen = probs.argmax(axis=2)
    votes = np.eye(actions)[chosen]  # [T, M, K]
    truth = np.tensordot(votes, prior / prior.sum(), axes=(1, 0))
    for _ in range(50):
        rate = (np.take_along_axis(truth, chosen, axis=1).sum(axis=0) + 1.0) / (rows + 2.0)
        rate = np.clip(rate, 1.0 / actions + 1e-3, 1.0 - 1e-3)
        log_odds = np.log(rate * (actions - 1) / (1.0 - rate))
        log_truth = np.log(truth.mean(axis=0) + 1e-9) + np.tensordot(votes, log_odds, axes=(1, 0))
        truth = np.exp(log_truth - log_truth.max(axis=1, keepdims=True))
        truth /= truth.sum(axis=1, keepdims=True)
    shares = prior * (rate - 1.0 / actions) / (1.0 - 1.0 / actions)
    normalised: Array = shares / shares.sum()
    return normalised


def find_changes(
    mixture: TeacherWeights, before: Mapping[tuple[str, str], float], *, version: str, job: str
) -> tuple[WeightChange, ...]:
    """The shares that changed by :data:`MIN_RECORDED_CHANGE` or more since they were last recorded.

    :param before: share by (slice, teacher) as last recorded. A missing slice counts with its teacher's share over all
        rows; a teacher that is missing there counts with its start share.
    :param version: of the teachers, without their weights.
    :returns: changes over all rows first, then by slice.
    """
    return tuple(_iterate_changes(mixture, before, version, job))


@lru_cache(maxsize=64)
def mixture_grid(start: tuple[float, ...]) -> tuple[Array, Array]:
    """The N constant mixtures that are learned over, float64 ``[N, M]``, and their prior ``[N]``.

    The first mixture is ``start`` itself. The mean of the mixtures under the prior is ``start``.
    """
    members = len(start)
    fitting_steps = (
        steps for steps in range(_MAX_GRID_STEPS, 1, -1) if comb(steps + members - 1, members - 1) <= _MAX_GRID_POINTS
    )
    steps = next(fitting_steps, 1)
    counts = np.array(
        [
            np.diff([-1, *bars, steps + members - 1]) - 1
            for bars in combinations(range(steps + members - 1), members - 1)
        ]
    )
    prior = np.array([_dirichlet_multinomial(count, np.asarray(start) * members) for count in counts])
    grid = np.vstack([start, counts / steps])
    return grid, np.concatenate([[0.5], 0.5 * prior / prior.sum()])


# --------------------------------------------------------------------------- inside


def _iterate_changes(
    mixture: TeacherWeights, before: Mapping[tuple[str, str], float], version: str, job: str
) -> Iterator[WeightChange]:
    start = dict(zip(mixture.teachers, mixture.start, strict=True))
    for name in ("", *sorted(mixture.slices)):
        shares = slice_shares(mixture, name)
        for teacher, after in zip(mixture.teachers, shares.tolist(), strict=True):
            last_recorded = before.get((name, teacher), before.get(("", teacher), start[teacher]))
            is_recorded = (name, teacher) in before or not name
            everywhere = float(slice_shares(mixture)[mixture.teachers.index(teacher)])
            if not is_recorded and abs(after - everywhere) < MIN_RECORDED_CHANGE:
                continue  # the slice has no weights of its own yet
            if abs(after - last_recorded) >= MIN_RECORDED_CHANGE:
                yield WeightChange(
                    teacher=teacher,
                    slice=name,
                    before=last_recorded,
                    after=after,
                    by=mixture.by,
                    as_of=mixture.as_of,
                    version=version,
                    job=job,
                    reason=_describe_change(mixture, teacher, name),
                )


def _describe_change(mixture: TeacherWeights, teacher: str, name: str) -> str:
    outcomes, blocks = mixture.everywhere.outcomes, mixture.everywhere.time_blocks
    if not outcomes:
        return (
            "no outcome yet: by the teachers' agreement, which is weaker"
            if mixture.by == "agreement"
            else "no outcome yet: as the agent file says"
        )
    mean_losses = {key: loss / blocks for key, loss in mixture.losses.items()}
    text = (
        f"over {outcomes:,} outcomes in {blocks:,} time blocks it lost {mean_losses[teacher]:.3f} nats; the mean of "
        f"all lost {mean_losses['']:.3f} with the weights of each moment and {mean_losses['start']:.3f} with the start "
        "weights"
    )
    if name and name in mixture.slices:
        text += f"; {mixture.slices[name].outcomes:,} of them in this slice, whose own weights count for "
        text += f"{_column_share(mixture, name) * mixture.slices[name].own:.0%}"
    return text + ("; the start weights are by agreement, which is weaker" if mixture.by == "agreement" else "")


@dataclass
class _State:
    """All that is learned, for V contexts, N mixtures and C slice columns. Context 0 is all rows, the others slices."""

    prior: Array  # over the mixtures [N]
    posteriors: Array  # over the mixtures, in each context [V, N]
    own_shares: Array  # of a slice's own mixture against the one over all rows [V]
    outcome_counts: Indices  # [V]
    block_counts: Indices  # [V]
    column_shares: Array  # of all rows, then of each slice column [1 + C]
    column_prior: Array  # [1 + C]

    @classmethod
    def of(cls, mixture: TeacherWeights, names: Sequence[str], prior: Array) -> _State:
        stored = [mixture.everywhere, *(mixture.slices.get(name) for name in names[1:])]
        return cls(
            prior,
            np.array([context.posterior if context else prior for context in stored]),
            np.array([context.own if context else 0.5 for context in stored]),
            np.array([context.outcomes if context else 0 for context in stored], dtype=np.int64),
            np.array([context.time_blocks if context else 0 for context in stored], dtype=np.int64),
            np.array(mixture.column_shares),
            _column_prior(len(mixture.columns)),
        )

    def update(self, contexts: Indices, log_probs: Array) -> Array:
        """Process one time block of n outcomes; return the loss of each under the weights before it ``[n]``.

        :param contexts: of each row ``[n, 1 + C]``, all rows first.
        :param log_probs: log of the probability of each outcome under each mixture ``[n, N]``.
        """
        for new_context in np.unique(contexts[self.block_counts[contexts] == 0]).tolist():
            self.posteriors[new_context] = self._slice_prior() if new_context else self.prior
        mixture_probs = np.exp(log_probs)
        context_probs = np.column_stack(
            [(self.posteriors[column] * mixture_probs).sum(axis=1) for column in contexts.T]
        )
        column_probs = context_probs[:, :1] + self.own_shares[contexts] * (context_probs - context_probs[:, :1])
        losses: Array = -np.log(column_probs @ self.column_shares)

        self._update_posterior(0, log_probs)
        for column in range(1, contexts.shape[1]):
            for context in np.unique(contexts[:, column]).tolist():
                in_context = contexts[:, column] == context
                self._update_posterior(context, log_probs[in_context])
                self._update_own_share(context, np.log(context_probs[in_context][:, [column, 0]]))
        posterior = self.column_shares * _geometric_mean(np.log(column_probs))
        self.column_shares = _fixed_share(posterior / posterior.sum(), self.column_prior, self._switch_rate(0))
        return losses

    def _update_posterior(self, context: int, log_probs: Array) -> None:
        """Bayes' rule over the mixtures, then fixed share."""
        self.outcome_counts[context] += len(log_probs)
        self.block_counts[context] += 1
        posterior = self.posteriors[context] * _geometric_mean(log_probs)
        prior = self._slice_prior() if context else self.prior
        self.posteriors[context] = _fixed_share(posterior / posterior.sum(), prior, self._switch_rate(context))

    def _update_own_share(self, context: int, log_probs: Array) -> None:
        """The same over a slice's own mixture and the one over all rows; ``log_probs`` of both ``[n, 2]``."""
        posterior = np.array([self.own_shares[context], 1 - self.own_shares[context]]) * _geometric_mean(log_probs)
        self.own_shares[context] = _fixed_share(posterior[0] / posterior.sum(), 0.5, self._switch_rate(context))

    def _switch_rate(self, context: int) -> float:
        """``α_t = 1/(t + 1)`` after t time blocks."""
        return 1.0 / (float(self.block_counts[context]) + 1.0)

    def _slice_prior(self) -> Array:
        """Prior over the mixtures in a slice: half the prior, half the posterior over all rows."""
        prior: Array = 0.5 * (self.prior + self.posteriors[0])
        return prior

    def slice_weights(self, context: int) -> SliceWeights:
        posterior = self.posteriors[context] / self.posteriors[context].sum()
        own = 1.0 if not context else float(np.clip(self.own_shares[context], 0.0, 1.0))
        return SliceWeights(
            outcomes=int(self.outcome_counts[context]),
            time_blocks=int(self.block_counts[context]),
            own=own,
            posterior=tuple(posterior.tolist()),
        )


def _fixed_share(posterior: Any, prior: Any, switch_rate: Any) -> Any:
    """A share ``switch_rate`` of the posterior returns to the prior."""
    return (1.0 - switch_rate) * posterior + switch_rate * prior


def _geometric_mean(log_values: Array) -> Array:
    """Geometric mean of each column, up to a common factor."""
    mean = log_values.mean(axis=0)
    scaled: Array = np.exp(mean - mean.max())
    return scaled


def _block_bounds(time_blocks: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
    """Start and end (excluded) of each run of equal neighbours."""
    if not len(time_blocks):
        return []
    edges = np.flatnonzero(time_blocks[1:] != time_blocks[:-1]) + 1
    return list(pairwise([0, *edges.tolist(), len(time_blocks)]))


def _slice_mixture(mixture: TeacherWeights, name: str, everywhere: Array) -> Array:
    """Shares by one slice's column ``[M]``: its own mixture and the one over all rows, which a new slice has alone."""
    stored = mixture.slices.get(name)
    if stored is None:
        return everywhere
    grid, _ = mixture_grid(mixture.start)
    shares: Array = everywhere + stored.own * (np.asarray(stored.posterior) @ grid - everywhere)
    return shares


def _column_share(mixture: TeacherWeights, name: str) -> float:
    """How much the column of a slice counts, in 0…1."""
    for share, column in zip(mixture.column_shares[1:], mixture.columns, strict=True):
        if name.startswith(f"{column}=") or name == f"{column} missing":
            return share
    return 0.0


def _outcome_probs(probs: Array, labels: Indices) -> Array:
    """Probability of each outcome by each teacher ``[T, M]``, kept away from 0."""
    actions = probs.shape[2]
    outcome_probs = np.take_along_axis(probs, labels[:, None, None], axis=2)[:, :, 0]
    smoothed: Array = (1 - UNIFORM_SHARE) * np.clip(outcome_probs, 0.0, 1.0) + UNIFORM_SHARE / actions
    return smoothed


def _assign_contexts(mixture: TeacherWeights, rows: pd.DataFrame) -> tuple[list[str], Indices]:
    """Names of all contexts, all rows ('') first, and the contexts of each row as indices ``[T, 1 + C]``."""
    names = ["", *mixture.slices]
    indices = {name: index for index, name in enumerate(names)}
    contexts = np.zeros((len(rows), 1 + len(mixture.columns)), dtype=np.int64)
    for number, column in enumerate(mixture.columns, start=1):
        codes, values = pd.factorize(rows[column], use_na_sentinel=False)
        table = []
        for value in values:
            name = _slice_name(column, value)
            if name not in indices:
                indices[name] = len(names)
                names.append(name)
            table.append(indices[name])
        contexts[:, number] = np.array(table, dtype=np.int64)[codes]
    return names, contexts


def _slice_name(column: str, value: object) -> str:
    return f"{column} missing" if pd.isna(value) else f"{column}={value}"  # type: ignore[call-overload]


def _column_prior(columns: int) -> Array:
    """Prior over all rows and the slice columns ``[1 + columns]``."""
    return np.array([0.5, *[0.5 / columns] * columns]) if columns else np.ones(1)


def _dirichlet_multinomial(count: Any, concentration: Array) -> float:
    """Probability of these counts; uniform over all counts if the concentrations are equal to 1."""
    total, drawn = float(concentration.sum()), int(count.sum())
    log_probability = lgamma(total) + lgamma(drawn + 1) - lgamma(drawn + total)
    for x, a in zip(count.tolist(), concentration.tolist(), strict=True):
        log_probability += lgamma(x + a) - lgamma(a) - lgamma(x + 1)
    return float(np.exp(log_probability))
