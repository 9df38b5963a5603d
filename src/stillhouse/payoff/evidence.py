"""Sequential evidence about one member of the pool against the champion: one bet a block, and inspected at any time.

**Pairs.** Only blocks count that are complete, have equal rows for both members, and begin after everything that shaped
either of them. The difference of a block is the member's mean score minus the champion's, oriented so that more is
better and divided by the length of the score's range, so it lies in −1…1.

**Bets.** A null hypothesis says that the mean difference given the past is at most ``m``. Let ``y`` be the difference
of a block minus ``m``. A bet of size ``λ`` multiplies its stake by

    1 + clip(λ y, −0.99, 0.7) ,

and the e-value is the mean of the stakes of thirteen bets, ``λ`` = ½, 1, 2, … 2048, each with a stake of 1 at the
beginning (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting", §4, without the
clip). By Ville's inequality it ever exceeds ``1/α`` with probability at most ``α``. The mean of a factor given the past
is at most 1 under **either** of two conditions:

- ``y ≥ −0.99/λ``: then the factor is at most ``1 + λ y``. The smallest bets meet this for every bounded score, the
  larger ones where no block can be that bad;
- the distribution of ``y`` given the past is symmetric about its mean: the factor is at most 1 plus an odd increasing
  function of ``λ y``, like the factor of a sign test.

Without the second condition no test of bounded scores is of use here: as long as one block in a thousand may be the
worst possible one, a margin of .01 on a log loss in 0…4.6 needs some 2,000 blocks. Mean differences of two models are
skewed, however: on a few bad days one of them is much worse. Therefore a bet loses nearly all of its stake where its
first condition is broken, and wins are cut earlier than losses. So skewed blocks keep to the error, too, unless a
member is good nearly always, and disastrous so rarely that few blocks show it (in simulations: if the margin is worth
less than half a row of the worst score per block). The price: one block multiplies the e-value at most by 1.7, so a
proof takes about a dozen blocks at least.

**Weights.** A block with fewer rows than the earlier ones have on average bets in proportion to its rows, because the
best bet on a mean is inverse to its variance. The number of rows is known before the outcomes, so the bets stay valid.

**Dependent blocks.** If differences are autoregressive with a coefficient ``φ``, then ``y_t − φ y_{t−1}`` has a mean
given the past of ``(1 − φ)(μ − m) ≤ 0``, and is what is bet on. As ``φ`` is not known, the e-value is the smallest of
three: with 0, half of, and all of ``autocorrelation``, an upper bound of ``φ``: one for each possible null hypothesis,
and the smallest for their union (up to the gaps between the three). Fluctuations that are observed with noise have
smaller autocorrelations, which fall as fast. ``autocorrelation`` comes from :func:`estimate_autocorrelation` and is at
most ½, as for the drift evidence. Under ½ a proof needs up to five times the blocks. Not covered: a larger coefficient.

**AUC.** The AUC of a block is no mean over its rows. It is compared by DeLong's clustered test on the first 1, 2, 4, 8,
… blocks; look ``j`` spends the share ``6/(π² j²)`` of the error. The clusters are the blocks, or, with fewer than 10 of
them, at least twenty runs of neighbouring rows. The standard error is multiplied by ``√((1 + φ)/(1 − φ))``, with ``φ =
autocorrelation``, and the quantile is Student's. Between two looks the last one counts. The logarithms are ``−ln(p /
share of the look)``: they reach the threshold when the bound at the spent error does.

**Forgetting.** Old evidence must not keep a verdict alive. With a ``horizon`` the evidence begins anew at fixed times,
``since + k · horizon``, and forgets all earlier blocks. As each beginning is a new chance of an error, the ``k``-th
restart has the share ``6/(π² (k+1)²)`` of the member's share, so all of them together have no more than it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import t as student_t

from stillhouse.records import BlockScore, PoolEvidence
from stillhouse.stats import LARGEST_AUTOCORRELATION, NORMAL_QUANTILE_95, clustered_error, delong

__all__ = [
    "BET_SIZES",
    "accumulate_bets",
    "compare_members",
    "estimate_autocorrelation",
    "relative_sizes",
    "shrink_gains",
    "shrunken",
    "spent_share",
]

Array = np.ndarray[Any, Any]

BET_SIZES = 2.0 ** np.arange(-1, 12)
"""λ, for differences in −1…1."""

LARGEST_LOSS, LARGEST_WIN = 0.99, 0.7  # of a stake by one block, as a share of it
LARGEST_LOG = 690.0  # of a stake, in either direction: floating-point numbers end at 709
MIN_BLOCKS_FOR_AUTOCORRELATION = 30
MIN_BLOCKS_FOR_DEVIATION = 3  # with fewer the range of the score bounds the standard error
MIN_OUTCOMES_FOR_AUC, MIN_BLOCK_CLUSTERS, ROW_CLUSTERS = 10, 10, 20
PRIOR_MEMBERS = 2  # as many members with a gain of ± the margin count in the estimate of τ²
MAX_FORECAST_BLOCKS = 5_000


class _Pair(NamedTuple):
    """The scores of two members on the same block."""

    member: BlockScore
    champion: BlockScore


class _Tests(NamedTuple):
    """Logarithms of the e-values against the three null hypotheses."""

    not_worse: float
    better: float
    worse: float


class _Gain(NamedTuple):
    """Mean gain with its standard error, and the same on the newest block (None: not known)."""

    mean: float
    error: float
    newest: float | None
    newest_error: float | None


def compare_members(
    member: Sequence[BlockScore],
    champion: Sequence[BlockScore],
    *,
    measure: str,
    span: float,
    margin: float,
    since: datetime,
    error: float,
    share: float = 1.0,
    autocorrelation: float = LARGEST_AUTOCORRELATION,
    horizon: timedelta | None = None,
    episodes: int | None = None,
) -> PoolEvidence | None:
    """The evidence about ``member`` against ``champion``. It depends on the arguments only.

    Its shrunken gain is that of a pool with this member alone; :func:`shrink_gains` considers all members.

    >>> from datetime import UTC
    >>> begin, day = datetime(2026, 1, 5, tzinfo=UTC), timedelta(days=1)
    >>> def score(member, day_number, accuracy):
    ...     start = begin + day_number * day
    ...     return BlockScore(member=member, start=start, end=start + day, complete=True, rows=500, rows_key="k",
    ...                       log_loss=0.5, half_brier=0.2, accuracy=accuracy)
    >>> better = [score("toy@2", number, 0.80 + 0.002 * (number % 3)) for number in range(24)]
    >>> usual = [score("toy@1", number, 0.75) for number in range(24)]
    >>> found = compare_members(better, usual, measure="accuracy", span=1, margin=0.01, since=begin, error=0.01)
    >>> found.blocks, round(found.gain, 3), found.log_not_worse >= found.log_threshold
    (24, 0.052, True)
    >>> found.log_worse < 0
    True

    :param member: scores of its blocks, in any order.
    :param champion: scores of the champion's blocks; blocks that only one of them has do not count.
    :param measure: ``log_loss`` (clipped), ``accuracy``, ``auc``, or the name of the user's own score.
    :param span: length of the range of a row's score: ``ln(1/clip)`` for the log loss, 1 for accuracy and AUC.
    :param margin: ≥ 0, in the unit of the measure: how much worse a member may be.
    :param since: the latest of the times until which the two were shaped and the begin of the reign. Blocks that begin
        earlier do not count.
    :param error: error budget of the reign, in 0…1; see :func:`stillhouse.payoff.champion_choice.reign_error`.
    :param share: share of the member in it, fixed on entry.
    :param autocorrelation: upper bound of the coefficient ``φ`` of neighbouring blocks, 0…½.
    :param horizon: time after which the evidence begins anew; None: never.
    :param episodes: that a member plays per block, for a score of episodes; None: the score is one of rows.
    :returns: None if there is no block to compare.
    :raises ValueError: if a parameter is outside its range, two blocks overlap, or the scores lack the measure.
    """
    _check_parameters(span, margin, error, share, autocorrelation, horizon)
    pairs = _pair_blocks(member, champion, since)
    if not pairs:
        return None
    pairs, restart = _forget(pairs, since, horizon)
    share_of_now = share * spent_share(restart + 1) if horizon else share
    log_threshold = -math.log(error * share_of_now)
    sizes = _count_scores(pairs, episodes)
    compare = _compare_auc if measure == "auc" else _compare_means
    gain, tests = compare(pairs, sizes, measure, span, margin, autocorrelation)
    return PoolEvidence(
        member=pairs[0].member.member,
        champion=pairs[0].champion.member,
        measure=measure,
        since=pairs[0].member.start,
        until=pairs[-1].member.end,
        blocks=len(pairs),
        rows=int(sizes.sum()),
        on="episodes" if episodes else "rows",
        gain=gain.mean,
        shrunken_gain=float(shrunken(np.array([gain.mean]), np.array([gain.error]), margin)[0]),
        standard_error=gain.error,
        share=share_of_now,
        log_not_worse=tests.not_worse,
        log_better=tests.better,
        log_worse=tests.worse,
        log_threshold=log_threshold,
        newest_gain=gain.newest,
        newest_error=gain.newest_error,
        labels_needed=_forecast_labels(sizes, gain, margin, log_threshold - tests.not_worse, autocorrelation),
    )


def spent_share(number: int) -> float:
    """``6 / (π² j²)``, the share of an error budget for the ``number``-th of arbitrarily many chances; they sum to 1.

    >>> [round(spent_share(number), 3) for number in (1, 2, 3)]
    [0.608, 0.152, 0.068]

    :param number: j, from 1.
    """
    if number < 1:
        raise ValueError(f"shares are numbered from 1; this one is {number}")
    return 6.0 / (math.pi * number) ** 2


# --------------------------------------------------------------------------- bets


def accumulate_bets(
    differences: Array, null: float, autocorrelation: Array | float = 0.0, weights: Array | float = 1.0
) -> Array:
    """Logarithm of the e-value after each block against "the mean difference is at most ``null``", ``[…, n]``.

    >>> always_better = np.full(12, 0.1)
    >>> accumulate_bets(always_better, null=0.0)[[0, 5, 11]].round(2).tolist()
    [0.43, 2.88, 6.01]

    :param differences: mean differences of the blocks in −1…1, in the order of time, ``[…, n]``; leading axes are
        parallel series.
    :param null: −1…1.
    :param autocorrelation: upper bound of the coefficient of neighbouring blocks, 0…½, ``[…]`` or a number.
    :param weights: relative size of each bet, 0…1, ``[n]`` or a number; known before the block's outcomes.
    """
    above = np.asarray(differences, dtype=np.float64) - null
    before = np.concatenate([np.zeros_like(above[..., :1]), above[..., :-1]], axis=-1)
    bound = np.asarray(autocorrelation, dtype=np.float64)[..., None]
    shares = (0.0, 0.5, 1.0) if bound.any() else (0.0,)
    result: Array = np.minimum.reduce([_mix_bets((above - share * bound * before) * weights) for share in shares])
    return result


def _mix_bets(bet_on: Array) -> Array:
    """Logarithm of the mean stake of all bets after each block, ``[…, n]``, within ± :data:`LARGEST_LOG`."""
    total, stakes = np.full(bet_on.shape, math.exp(-LARGEST_LOG)), np.empty(bet_on.shape)
    for size in BET_SIZES:  # in one buffer: the benchmark of the gate has many series
        np.clip(np.multiply(bet_on, size, out=stakes), -LARGEST_LOSS, LARGEST_WIN, out=stakes)
        np.cumsum(np.log1p(stakes, out=stakes), axis=-1, out=stakes)
        total += np.exp(np.minimum(stakes, LARGEST_LOG, out=stakes), out=stakes)
    result: Array = np.log(total / len(BET_SIZES))
    return result


def relative_sizes(rows: Array) -> Array:
    """Weight of each block's bet, ``[n]`` in 0…1: its rows divided by the mean rows of the earlier blocks, at most 1.

    >>> relative_sizes(np.array([100, 50, 75, 300])).tolist()
    [1.0, 0.5, 1.0, 1.0]

    :param rows: rows of each block ``[n]`` ≥ 1.
    """
    rows = np.asarray(rows, dtype=np.float64)
    earlier = np.cumsum(rows)[:-1] / np.arange(1, len(rows))
    weights: Array = np.minimum(1.0, np.concatenate([[1.0], rows[1:] / earlier]))
    return weights


def estimate_autocorrelation(series: Sequence[Array]) -> float:
    """An upper bound (95 %, one-sided) of the autocorrelation of neighbouring blocks' differences, 0…½.

    The estimate is pooled over pairs of models, each with its own mean. It is corrected for the bias ``−(1 + 3r)/n``
    (Marriott and Pope 1954, "Bias in the estimation of autocorrelations"), and its standard error ``1/√n`` counts
    the blocks of the longest series only, as the pairs share their rows. With fewer than thirty blocks it is
    ½, and never above.

    >>> rng = np.random.default_rng(0)
    >>> round(estimate_autocorrelation([rng.normal(size=400)]), 2), estimate_autocorrelation([rng.normal(size=20)])
    (0.08, 0.5)

    :param series: differences of each pair, in the order of time, ``[n]``; n may differ.
    """
    centred = [np.asarray(values, dtype=np.float64) - np.mean(values) for values in series if len(values) > 1]
    longest = max((len(values) for values in centred), default=0)
    total = sum(float(values @ values) for values in centred)
    if longest < MIN_BLOCKS_FOR_AUTOCORRELATION or total <= 0:
        return LARGEST_AUTOCORRELATION
    raw = sum(float(values[1:] @ values[:-1]) for values in centred) / total
    bound = raw + (1 + 3 * raw) / longest + NORMAL_QUANTILE_95 / math.sqrt(longest)
    return min(max(bound, 0.0), LARGEST_AUTOCORRELATION)


# --------------------------------------------------------------------------- gains


def shrunken(gains: Array, errors: Array, margin: float) -> Array:
    """Gains shrunk towards 0, ``[…, K]``: the posterior mean under the prior ``N(0, τ²)`` of all members' true gains.

    A posterior mean needs no further correction for looking at the best of K (Efron 2011, "Tweedie's formula and
    selection bias", §1): the more members are noise, the smaller is ``τ²``, and the more the best of them shrinks.
    ``τ²`` is estimated from the members (Morris 1983, "Parametric empirical Bayes inference", §1), with two more whose
    gain is the margin, so that it is positive and not wild with few members. No gain grows, and none changes its sign.

    >>> shrunken(np.array([0.02, -0.01, 0.01]), np.array([0.02, 0.02, 0.02]), margin=0.01).round(4).tolist()
    [0.0018, -0.0009, 0.0009]

    :param gains: of the members, ``[…, K]``.
    :param errors: their standard errors ``[…, K]``.
    :param margin: in the same unit.
    """
    excess = np.maximum(0.0, (np.square(gains) - np.square(errors)).sum(axis=-1, keepdims=True))
    variance = (PRIOR_MEMBERS * margin**2 + excess) / (PRIOR_MEMBERS + gains.shape[-1])
    total = variance + np.square(errors)
    result: Array = gains * np.divide(variance, total, out=np.zeros_like(total), where=total > 0)
    return result


def shrink_gains(evidence: Sequence[PoolEvidence], margin: float) -> tuple[PoolEvidence, ...]:
    """The evidence about all members of a pool with gains shrunk together, see :func:`shrunken`."""
    if not evidence:
        return ()
    gains = shrunken(
        np.array([one.gain for one in evidence]), np.array([one.standard_error for one in evidence]), margin
    )
    return tuple(
        one.model_copy(update={"shrunken_gain": gain}) for one, gain in zip(evidence, gains.tolist(), strict=True)
    )


def _forecast_labels(sizes: Array, gain: _Gain, margin: float, missing: float, autocorrelation: float) -> int | None:
    """About how many more labels prove that the member is not worse; 0: it is proven; None: not foreseeable.

    A Gaussian difference with mean ``z`` standard deviations above the null lets the best bet grow by about
    ``z² / (2 (1 + z²))`` a block.
    """
    if missing <= 0:
        return 0
    deviation = gain.error * math.sqrt(len(sizes))
    above = gain.mean + margin
    if above <= 0 or deviation <= 0:
        return None
    signal = (above * (1 - autocorrelation) / deviation) ** 2 / (1 + autocorrelation**2)
    blocks = missing * 2 * (1 + signal) / signal
    return math.ceil(blocks * float(sizes.mean())) if blocks <= MAX_FORECAST_BLOCKS else None


# --------------------------------------------------------------------------- scores that are means


def _compare_means(
    pairs: Sequence[_Pair], sizes: Array, measure: str, span: float, margin: float, autocorrelation: float
) -> tuple[_Gain, _Tests]:
    differences = _differences(pairs, measure)
    scaled, null = np.clip(differences / span, -1.0, 1.0), margin / span
    weights = relative_sizes(sizes)

    def newest(values: Array, null: float) -> float:
        return float(accumulate_bets(values, null, autocorrelation, weights)[-1])

    return _mean_gain(sizes, differences, span), _Tests(
        newest(scaled, -null), newest(scaled, 0.0), newest(-scaled, 0.0)
    )


def _differences(pairs: Sequence[_Pair], measure: str) -> Array:
    """Member − champion on each block, oriented so that more is better, ``[n]``."""
    scores = [(_oriented(pair.member, measure), _oriented(pair.champion, measure)) for pair in pairs]
    values: Array = np.array([of_member - of_champion for of_member, of_champion in scores])
    return values


_BUILT_IN: Mapping[str, tuple[str, float]] = {
    "log_loss": ("log_loss", -1.0),
    "accuracy": ("accuracy", 1.0),
    "agreement": ("accuracy", 1.0),
}
"""Field and sign of the measures that every block has."""


def _oriented(block: BlockScore, measure: str) -> float:
    field, sign = _BUILT_IN.get(measure, ("score", 1.0))
    value = getattr(block, field)
    if value is None:
        raise ValueError(
            f"{block.member}: the block from {block.start:%Y-%m-%d %H:%M} has no score {measure!r}: score it again"
        )
    return sign * float(value)


def _mean_gain(sizes: Array, differences: Array, span: float) -> _Gain:
    """All blocks have the same weight; the spread of the blocks gives the standard errors.

    Of few blocks the spread is not known; there a block's error is at most its range divided by the root of its rows.
    """
    count, rows = len(sizes), int(sizes.sum())
    if count < MIN_BLOCKS_FOR_DEVIATION:
        return _Gain(float(differences.mean()), span / math.sqrt(rows), float(differences[-1]), None)
    deviation = float(differences.std(ddof=1))
    newest_error = float(differences[:-1].std(ddof=1)) * math.sqrt(max(1.0, rows / count / int(sizes[-1])))
    return _Gain(float(differences.mean()), deviation / math.sqrt(count), float(differences[-1]), newest_error)


# --------------------------------------------------------------------------- AUC


def _compare_auc(
    pairs: Sequence[_Pair], sizes: Array, measure: str, span: float, margin: float, autocorrelation: float
) -> tuple[_Gain, _Tests]:
    look = len(pairs).bit_length()
    factor = math.sqrt((1 + autocorrelation) / (1 - autocorrelation))
    at_look = _auc_difference(pairs[: 2 ** (look - 1)], factor)
    tests = _Tests(*(_log_spent(at_look, null, sign, look) for null, sign in ((-margin, 1), (0.0, 1), (0.0, -1))))
    over_all, newest = _auc_difference(pairs, factor), _auc_difference(pairs[-1:], 1.0)
    mean, error, _ = over_all or (0.0, span / math.sqrt(int(sizes.sum())), 0)
    return _Gain(mean, error, newest[0] if newest else None, newest[1] if newest else None), tests


def _auc_difference(pairs: Sequence[_Pair], factor: float) -> tuple[float, float, int] | None:
    """Difference of the AUCs, its standard error times ``factor``, and the number of clusters.

    :returns: None with fewer than ten rows of either outcome: the variance is not meaningful.
    """
    labels = np.concatenate([_labels(pair) for pair in pairs])
    if min(int(labels.sum()), int(len(labels) - labels.sum())) < MIN_OUTCOMES_FOR_AUC:
        return None
    scores = np.stack([np.concatenate([np.array(pair[index].probs) for pair in pairs]) for index in (0, 1)])
    runs = 1 if len(pairs) >= MIN_BLOCK_CLUSTERS else math.ceil(ROW_CLUSTERS / len(pairs))
    clusters = np.concatenate(
        [number * runs + np.arange(pair.member.rows) * runs // pair.member.rows for number, pair in enumerate(pairs)]
    )
    aucs, influence = delong(labels, scores)
    error = factor * clustered_error(influence, clusters, small_sample=True)
    return aucs[0] - aucs[1], error, len(np.unique(clusters))


def _labels(pair: _Pair) -> Array:
    if not pair.member.labels or len(pair.champion.probs) != len(pair.member.probs):
        raise ValueError(
            f"{pair.member.member}: the block from {pair.member.start:%Y-%m-%d %H:%M} has no probabilities of a second "
            f"action: the AUC is a measure of two actions; name another in `quality.measure`"
        )
    return np.array(pair.member.labels)


def _log_spent(difference: tuple[float, float, int] | None, null: float, sign: int, look: int) -> float:
    """``−ln(p / share of the look)`` of the one-sided test against "the difference, times ``sign``, is ≤ ``null``"."""
    if difference is None:
        return math.log(spent_share(look))
    value, error, clusters = difference
    above = sign * value - null
    if error <= 0:
        return math.log(spent_share(look))
    return math.log(spent_share(look)) - float(student_t.logsf(above / error, clusters - 1))


# --------------------------------------------------------------------------- blocks


def _pair_blocks(member: Sequence[BlockScore], champion: Sequence[BlockScore], since: datetime) -> list[_Pair]:
    """The complete blocks from ``since`` on with equal rows for both, in the order of time."""
    of_champion = {(block.start, block.end): block for block in champion}
    pairs = []
    for block in sorted(member, key=lambda block: block.start):
        rival = of_champion.get((block.start, block.end))
        if rival and block.complete and rival.complete and block.rows_key == rival.rows_key and block.start >= since:
            pairs.append(_Pair(block, rival))
    for first, second in pairwise(pairs):
        if second.member.start < first.member.end:
            raise ValueError(
                f"{second.member.member}: the blocks from {first.member.start} and from {second.member.start} overlap: "
                f"no rows may be counted twice"
            )
    return pairs


def _forget(pairs: list[_Pair], since: datetime, horizon: timedelta | None) -> tuple[list[_Pair], int]:
    """The blocks since the last restart, and the number of restarts."""
    if horizon is None:
        return pairs, 0
    restart = (pairs[-1].member.start - since) // horizon
    begin = since + restart * horizon
    return [pair for pair in pairs if pair.member.start >= begin], restart


def _count_scores(pairs: Sequence[_Pair], episodes: int | None) -> Array:
    """How many rows, or episodes, each block is scored on, ``[n]``."""
    return np.array([episodes or pair.member.rows for pair in pairs])


def _check_parameters(
    span: float, margin: float, error: float, share: float, autocorrelation: float, horizon: timedelta | None
) -> None:
    if not (span > 0 and 0 <= margin <= span):
        raise ValueError(f"margin: must lie within 0…{span:g}, the range of the measure; it is {margin:g}")
    if not (0 < error < 1 and 0 < share <= 1):
        raise ValueError(f"error and share must lie within 0…1; they are {error:g} and {share:g}")
    if not 0 <= autocorrelation <= LARGEST_AUTOCORRELATION:
        raise ValueError(f"autocorrelation: must lie within 0…{LARGEST_AUTOCORRELATION}; it is {autocorrelation:g}")
    if horizon is not None and horizon <= timedelta(0):
        raise ValueError(f"horizon: must be a positive time, or None; it is {horizon}")
