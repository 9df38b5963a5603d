"""Weights of teachers that follow evidence: what each is worth in their mean, everywhere and by slice.

The mean of M teachers is a bet on what will turn out. Each outcome, in the order in which outcomes become known, is
such a bet's end: its loss is −ln of the probability that the mean gave it (nats). Three mixtures are learned, one
inside the other, each by the same rule:

1. *everywhere*, and in every value of a slice column for itself: over constant mixtures of the teachers. These are the
   points of a grid on the simplex (Cover 1991, "Universal portfolios", with a Dirichlet prior whose mean is where the
   weights start), and the start itself with half of the prior;
2. in every value of a slice column: the slice's own mixture against the one of everywhere, even odds at first;
3. between everywhere and the slice columns: half of it is for everywhere at first.

So a slice has weights of its own only where they have earned it. The rule is fixed share (Herbster & Warmuth 1998,
"Tracking the best expert", §5): Bayes' rule, which on the log loss is the exponentially weighted average at learning
rate 1, then a share ``α_t = 1/(t + 1)`` of what was learned goes back to the prior (Adamskiy, Koolen, Chernov & Vovk
2012, "A closer look at adaptive regret", §4: a rate that need not be tuned).

Outcomes of one stretch of time (``promotion.cluster``) are one piece of evidence: what they teach is taken from the
mean of their losses. Neighbours in time share their weather, and weights that took each of them for news would chase
it. The mean of log losses is 1-exp-concave in the weights as each of them is (a geometric mean is concave), so the
promise is the same, in stretches.

**What is promised** (:func:`regret_bound`), whatever the outcomes: over T stretches the mean losses of the weighted
mean sum up to at most ``ln 1/p₀ + ln T + Σ ln T/pᵢ`` nats more than those of any sequence of grid points with the
priors ``p₀, p₁, …``, one switch for each further term; ``ln 2 + ln T`` more where there are slice columns. For the
start, ``p₀`` is ½ or more.

Delayed outcomes are taken as they arrive: the promise is about each stretch against the weights of the moment before
it arrived. Probabilities are kept from 0 by mixing in :data:`FLOOR` of the uniform distribution: one confident error
costs at most ``ln(K / FLOOR)``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import combinations, pairwise
from math import comb, lgamma, log
from typing import Any, Literal

import numpy as np
import pandas as pd

from stillhouse.records import SliceWeights, TeacherWeights, WeightChange

__all__ = [
    "FLOOR",
    "NOTEWORTHY",
    "Course",
    "begin",
    "by_agreement",
    "changes",
    "learn",
    "regret_bound",
    "share_in",
    "shares",
    "vertex_prior",
]

Array = np.ndarray[Any, np.dtype[np.float64]]

FLOOR = 1e-3
"""Share of the uniform distribution that is mixed into what a teacher says, for its weight only."""

NOTEWORTHY = 0.01
"""A share that moved by less is not recorded as changed; small moves add up, for they are held against the record."""

_MOST_POINTS = 100  # of the grid
_FINEST = 10  # steps of the grid from one teacher to another
_TRAIL = 200  # points of a curve


@dataclass(frozen=True)
class Course:
    """How the weights went over some outcomes.

    :param weights: at the end.
    :param losses: float64 ``[T]``, −ln probability of each outcome under the weights of the moment before it (nats).
    :param places: which of the outcomes the trail stops at, int ``[P]``.
    :param trail: share of each teacher everywhere after those, float64 ``[P, M]``.
    """

    weights: TeacherWeights
    losses: Array
    places: np.ndarray[Any, np.dtype[np.int64]]
    trail: Array


def begin(
    teachers: Sequence[str],
    start: Sequence[float],
    columns: Sequence[str],
    as_of: datetime,
    by: Literal["file", "agreement"] = "file",
) -> TeacherWeights:
    """Weights before the first outcome.

    :param start: shares ``[M]`` that sum to 1, by the agent file or by agreement.
    :param columns: category columns each value of which may earn weights of its own.
    """
    known = np.maximum(np.asarray(start, dtype=np.float64), 1e-6)
    start = tuple((known / known.sum()).tolist())
    _, prior = _points(start)
    return TeacherWeights(
        by=by,
        as_of=as_of,
        teachers=tuple(teachers),
        start=start,
        columns=tuple(columns),
        column_shares=tuple(_between(len(columns)).tolist()),
        everywhere=SliceWeights(outcomes=0, stretches=0, own=1.0, posterior=tuple(prior.tolist())),
        slices={},
        losses=dict.fromkeys(["", *teachers, "start"], 0.0),
    )


def learn(
    weights: TeacherWeights, said: Array, outcomes: Any, rows: pd.DataFrame, as_of: datetime, stretches: Any = None
) -> Course:
    """Take in outcomes one after the other.

    :param said: float64 ``[T, M, K]``, what each teacher said about each row, in the order in which the outcomes became
        known.
    :param outcomes: action indices ``[T]``.
    :param rows: the slice columns' values, T rows.
    :param stretches: of which stretch of time each row is ``[T]``; neighbours of one are one piece of evidence. None:
        each row is.
    """
    grid, prior = _points(weights.start)
    told = _of_outcome(said, np.asarray(outcomes, dtype=np.int64))
    names, index = _contexts(weights, rows)
    state = _State.of(weights, names, prior)
    runs = _runs(np.arange(len(told)) if stretches is None else np.asarray(stretches))
    stops = set(np.unique(np.linspace(0, len(runs) - 1, min(_TRAIL, len(runs))).astype(int)).tolist())
    logs, losses, places, trail = np.log(told @ grid.T), np.empty(len(told)), [], []
    for number, (first, last) in enumerate(runs):
        losses[first:last] = state.take(index[first:last], logs[first:last])
        if number in stops:
            places.append(last - 1)
            trail.append(state.posteriors[0] @ grid)
    lost = np.column_stack([losses, -np.log(told @ np.asarray(weights.start)), -np.log(told)])
    sums = sum((lost[first:last].mean(axis=0) for first, last in runs), np.zeros(lost.shape[1])).tolist()
    learned = weights.model_copy(
        update={
            "by": "outcomes" if len(told) and weights.by == "file" else weights.by,
            "as_of": as_of,
            "column_shares": tuple(state.between.tolist()),
            "everywhere": state.slice(0),
            "slices": {name: state.slice(place) for place, name in enumerate(names) if place},
            "losses": {
                name: weights.losses[name] + more
                for name, more in zip(["", "start", *weights.teachers], sums, strict=True)
            },
        }
    )
    return Course(
        learned, losses, np.array(places, dtype=np.int64), np.array(trail).reshape(len(trail), len(weights.teachers))
    )


def shares(weights: TeacherWeights, rows: pd.DataFrame) -> Array:
    """Share of each teacher in the mean about each of ``rows``, float64 ``[n, M]``, rows sum to 1."""
    grid, _ = _points(weights.start)
    everywhere = np.asarray(weights.everywhere.posterior) @ grid
    found = np.tile(weights.column_shares[0] * everywhere, (len(rows), 1))
    for share, column in zip(weights.column_shares[1:], weights.columns, strict=True):
        codes, values = pd.factorize(rows[column], use_na_sentinel=False)
        table = np.array([_within(weights, _name(column, value), everywhere) for value in values])
        found += share * table.reshape(-1, len(everywhere))[codes]
    sums: Array = found / found.sum(axis=1, keepdims=True)
    return sums


def share_in(weights: TeacherWeights, name: str = "") -> Array:
    """Share of each teacher ``[M]`` everywhere (''), or in a slice (``'column=value'``), other columns unknown."""
    grid, _ = _points(weights.start)
    everywhere: Array = np.asarray(weights.everywhere.posterior) @ grid
    if not name:
        return everywhere
    own = _column_share(weights, name)
    inside: Array = (1 - own) * everywhere + own * _within(weights, name, everywhere)
    return inside


def by_agreement(said: Array, start: Sequence[float]) -> Array:
    """Shares ``[M]`` by how far the teachers agree, for want of outcomes: weaker, since teachers may err together.

    Each is taken to be right with a probability of its own and else to choose any other action, independently of the
    others: the model of Dawid & Skene (1979, "Maximum likelihood estimation of observer error-rates using the EM
    algorithm", §3) with one rate a teacher. Shares are those of the start times the rate beyond chance. Two teachers
    cannot tell who of them errs: the start stays.

    :param said: float64 ``[T, M, K]``.
    :param start: shares by the agent file ``[M]``.
    """
    known = np.asarray(start, dtype=np.float64)
    rows, members, actions = said.shape
    if members < 3 or not rows:
        kept: Array = known / known.sum()
        return kept
    chosen = said.argmax(axis=2)
    votes = np.eye(actions)[chosen]  # [T, M, K]
    truth = np.tensordot(votes, known / known.sum(), axes=(1, 0))
    for _ in range(50):
        right = (np.take_along_axis(truth, chosen, axis=1).sum(axis=0) + 1.0) / (rows + 2.0)
        right = np.clip(right, 1.0 / actions + 1e-3, 1.0 - 1e-3)
        odds = np.log(right * (actions - 1) / (1.0 - right))
        belief = np.log(truth.mean(axis=0) + 1e-9) + np.tensordot(votes, odds, axes=(1, 0))
        truth = np.exp(belief - belief.max(axis=1, keepdims=True))
        truth /= truth.sum(axis=1, keepdims=True)
    worth = known * (right - 1.0 / actions) / (1.0 - 1.0 / actions)
    earned: Array = worth / worth.sum()
    return earned


def regret_bound(stretches: int, *priors: float, columns: int = 0) -> float:
    """Most nats that the weighted mean may lose more than a sequence of constant mixtures over so many stretches.

    :param priors: of the first mixture, and of each one that is switched to (:func:`vertex_prior`, or ½ for the start).
    :param columns: number of slice columns.
    """
    if not stretches:
        return 0.0
    bound = log(1 / priors[0]) + log(stretches) + sum(log(stretches / prior) for prior in priors[1:])
    return bound + (log(2) + log(stretches) if columns else 0.0)


def vertex_prior(start: Sequence[float], teacher: int) -> float:
    """Prior of a single teacher, without the others."""
    grid, prior = _points(tuple(start))
    return float(prior[grid[:, teacher] == 1.0].sum())


def changes(
    weights: TeacherWeights, before: Mapping[tuple[str, str], float], *, version: str, job: str
) -> tuple[WeightChange, ...]:
    """What moved by :data:`NOTEWORTHY` or more since it was last recorded, everywhere first.

    :param before: share by (slice, teacher) as last recorded; what is absent stood as everywhere, or at the start.
    :param version: of the teacher whose members these are.
    """
    return tuple(_changes(weights, before, version, job))


# --------------------------------------------------------------------------- inside


def _changes(
    weights: TeacherWeights, before: Mapping[tuple[str, str], float], version: str, job: str
) -> Iterator[WeightChange]:
    start = dict(zip(weights.teachers, weights.start, strict=True))
    for name in ("", *sorted(weights.slices)):
        now = share_in(weights, name)
        for teacher, after in zip(weights.teachers, now.tolist(), strict=True):
            stood = before.get((name, teacher), before.get(("", teacher), start[teacher]))
            told = (name, teacher) in before or not name
            if not told and abs(after - float(share_in(weights)[weights.teachers.index(teacher)])) < NOTEWORTHY:
                continue  # a slice that is as everywhere
            if abs(after - stood) >= NOTEWORTHY:
                yield WeightChange(
                    teacher=teacher,
                    slice=name,
                    before=stood,
                    after=after,
                    by=weights.by,
                    as_of=weights.as_of,
                    version=version,
                    job=job,
                    reason=_reason(weights, teacher, name),
                )


def _reason(weights: TeacherWeights, teacher: str, name: str) -> str:
    count = weights.everywhere.outcomes
    if not count:
        return (
            "no outcome yet: by how far the teachers agree, which is weaker"
            if weights.by == "agreement"
            else ("no outcome yet: as the agent file says")
        )
    stretches = weights.everywhere.stretches
    mean = {key: loss / stretches for key, loss in weights.losses.items()}
    text = (
        f"over {count:,} outcomes in {stretches:,} stretches of time it lost {mean[teacher]:.3f} nats, "
        f"the mean of all {mean['']:.3f} "
        f"as weighted then, {mean['start']:.3f} as weighted at the start"
    )
    if name and name in weights.slices:
        text += f"; {weights.slices[name].outcomes:,} of them in this slice, whose own weights count for "
        text += f"{_column_share(weights, name) * weights.slices[name].own:.0%}"
    return text + ("; the start is by agreement, which is weaker" if weights.by == "agreement" else "")


@dataclass
class _State:
    """What is learned, as arrays: context 0 is everywhere, the others are slices."""

    prior: Array  # [N]
    posteriors: Array  # [V, N]
    own: Array  # [V], of a slice's own mixture against everywhere's
    outcomes: np.ndarray[Any, np.dtype[np.int64]]  # [V]
    stretches: np.ndarray[Any, np.dtype[np.int64]]  # [V]
    between: Array  # [1 + C]
    between_prior: Array

    @classmethod
    def of(cls, weights: TeacherWeights, names: Sequence[str], prior: Array) -> _State:
        kept = [weights.everywhere, *(weights.slices.get(name) for name in names[1:])]
        return cls(
            prior,
            np.array([each.posterior if each else prior for each in kept]),
            np.array([each.own if each else 0.5 for each in kept]),
            np.array([each.outcomes if each else 0 for each in kept], dtype=np.int64),
            np.array([each.stretches if each else 0 for each in kept], dtype=np.int64),
            np.array(weights.column_shares),
            _between(len(weights.columns)),
        )

    def take(self, at: np.ndarray[Any, np.dtype[np.int64]], logs: Array) -> Array:
        """One stretch of n outcomes: the loss of each ``[n]``, then what they teach together.

        :param at: the contexts of its rows ``[n, 1 + C]``, everywhere first.
        :param logs: logarithm of the probability that each point of the grid gave each outcome ``[n, N]``.
        """
        for fresh in np.unique(at[self.stretches[at] == 0]).tolist():
            self.posteriors[fresh] = self._goal() if fresh else self.prior
        given = np.exp(logs)
        local = np.column_stack([(self.posteriors[column] * given).sum(axis=1) for column in at.T])
        mixed = local[:, :1] + self.own[at] * (local - local[:, :1])
        losses: Array = -np.log(mixed @ self.between)

        self._learn_points(0, logs)
        for column in range(1, at.shape[1]):
            for place in np.unique(at[:, column]).tolist():
                inside = at[:, column] == place
                self._learn_points(place, logs[inside])
                self._learn_own(place, np.log(local[inside][:, [column, 0]]))
        together = self.between * _geometric_mean(np.log(mixed))
        self.between = _share(together / together.sum(), self.between_prior, self._back(0))
        return losses

    def _learn_points(self, place: int, logs: Array) -> None:
        """Bayes' rule over the grid's points, then fixed share."""
        self.outcomes[place] += len(logs)
        self.stretches[place] += 1
        learned = self.posteriors[place] * _geometric_mean(logs)
        goal = self._goal() if place else self.prior
        self.posteriors[place] = _share(learned / learned.sum(), goal, self._back(place))

    def _learn_own(self, place: int, logs: Array) -> None:
        """The same between a slice's own mixture and everywhere's, ``logs`` of both ``[n, 2]``."""
        learned = np.array([self.own[place], 1 - self.own[place]]) * _geometric_mean(logs)
        self.own[place] = _share(learned[0] / learned.sum(), 0.5, self._back(place))

    def _back(self, place: int) -> float:
        """What share of the learned returns after so many stretches."""
        return 1.0 / (float(self.stretches[place]) + 1.0)

    def _goal(self) -> Array:
        """What a slice begins with and returns to: half the prior, half what was learned everywhere."""
        goal: Array = 0.5 * (self.prior + self.posteriors[0])
        return goal

    def slice(self, place: int) -> SliceWeights:
        posterior = self.posteriors[place] / self.posteriors[place].sum()
        own = 1.0 if not place else float(np.clip(self.own[place], 0.0, 1.0))
        return SliceWeights(
            outcomes=int(self.outcomes[place]),
            stretches=int(self.stretches[place]),
            own=own,
            posterior=tuple(posterior.tolist()),
        )


def _share(posterior: Any, prior: Any, back: Any) -> Any:
    """Fixed share: ``back`` of what was learned returns to the prior."""
    return (1.0 - back) * posterior + back * prior


def _geometric_mean(logs: Array) -> Array:
    """Of the columns, up to a common factor."""
    mean = logs.mean(axis=0)
    found: Array = np.exp(mean - mean.max())
    return found


def _runs(stretches: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
    """First and last (excluded) place of each run of equal neighbours."""
    if not len(stretches):
        return []
    edges = np.flatnonzero(stretches[1:] != stretches[:-1]) + 1
    return list(pairwise([0, *edges.tolist(), len(stretches)]))


def _within(weights: TeacherWeights, name: str, everywhere: Array) -> Array:
    """Shares by one slice's column: its own mixture and everywhere's; a slice never seen is as everywhere."""
    kept = weights.slices.get(name)
    if kept is None:
        return everywhere
    grid, _ = _points(weights.start)
    inside: Array = everywhere + kept.own * (np.asarray(kept.posterior) @ grid - everywhere)
    return inside


def _column_share(weights: TeacherWeights, name: str) -> float:
    """How far the column of a slice counts."""
    for share, column in zip(weights.column_shares[1:], weights.columns, strict=True):
        if name.startswith(f"{column}=") or name == f"{column} missing":
            return share
    return 0.0


def _of_outcome(said: Array, outcomes: np.ndarray[Any, np.dtype[np.int64]]) -> Array:
    """Probability that each teacher gave each outcome ``[T, M]``, kept from 0."""
    actions = said.shape[2]
    told = np.take_along_axis(said, outcomes[:, None, None], axis=2)[:, :, 0]
    floored: Array = (1 - FLOOR) * np.clip(told, 0.0, 1.0) + FLOOR / actions
    return floored


def _contexts(weights: TeacherWeights, rows: pd.DataFrame) -> tuple[list[str], np.ndarray[Any, np.dtype[np.int64]]]:
    """Names of all contexts, everywhere ('') first, and those of each row as places among them ``[T, 1 + C]``."""
    names = ["", *weights.slices]
    places = {name: place for place, name in enumerate(names)}
    index = np.zeros((len(rows), 1 + len(weights.columns)), dtype=np.int64)
    for number, column in enumerate(weights.columns, start=1):
        codes, values = pd.factorize(rows[column], use_na_sentinel=False)
        table = []
        for value in values:
            name = _name(column, value)
            if name not in places:
                places[name] = len(names)
                names.append(name)
            table.append(places[name])
        index[:, number] = np.array(table, dtype=np.int64)[codes]
    return names, index


def _name(column: str, value: object) -> str:
    return f"{column} missing" if pd.isna(value) else f"{column}={value}"  # type: ignore[call-overload]


def _between(columns: int) -> Array:
    """Prior between everywhere and the slice columns."""
    return np.array([0.5, *[0.5 / columns] * columns]) if columns else np.ones(1)


@lru_cache(maxsize=64)
def _points(start: tuple[float, ...]) -> tuple[Array, Array]:
    """The mixtures that are learned among ``[N, M]``, the start first, and their prior ``[N]``, whose mean it is."""
    members = len(start)
    fits = (steps for steps in range(_FINEST, 1, -1) if comb(steps + members - 1, members - 1) <= _MOST_POINTS)
    steps = next(fits, 1)
    counts = np.array(
        [
            np.diff([-1, *bars, steps + members - 1]) - 1
            for bars in combinations(range(steps + members - 1), members - 1)
        ]
    )
    prior = np.array([_dirichlet_multinomial(count, np.asarray(start) * members) for count in counts])
    grid = np.vstack([start, counts / steps])
    return grid, np.concatenate([[0.5], 0.5 * prior / prior.sum()])


def _dirichlet_multinomial(count: Any, concentration: Array) -> float:
    """Probability of so many draws of each; uniform over all for equal shares."""
    total, drawn = float(concentration.sum()), int(count.sum())
    logarithm = lgamma(total) + lgamma(drawn + 1) - lgamma(drawn + total)
    for x, a in zip(count.tolist(), concentration.tolist(), strict=True):
        logarithm += lgamma(x + a) - lgamma(a) - lgamma(x + 1)
    return float(np.exp(logarithm))
