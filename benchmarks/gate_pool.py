"""The pool over fifty reigns: wrong promotions, the sum of true losses, waiting times, and undone promotions.

Part of ``python -m benchmarks.gate``. Every series of block differences is drawn anew; the bets, the shares of the
error budget, the shrunken gains and the veto of the newest block are the pool's own code, for many reigns at once.

A block has 500 labelled rows. The difference of two models on it has a standard deviation of one margin, about that of
the accuracy of models that disagree on 5 % of the rows. In each reign five challengers enter, beside the first model
and the previous champion; all share the champion's noise. Kinds of blocks:

- ``independent``: normal differences;
- ``autocorrelated``: AR(1) with coefficient ½, the largest that the evidence covers;
- ``skewed``: the same with lognormal innovations to the bad side (skewness −1.5): a member is often a bit better, and
  sometimes much worse.

The bound of the autocorrelation is estimated from a history of 200 blocks, drawn for each seed. In the chain of fifty
reigns every challenger is worse than its champion by the same part of the margin.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.signal import lfilter

from benchmarks import report
from stillhouse.payoff.champion_choice import SHARE_OF_OLDER, SHARE_OF_PREVIOUS, member_share, reign_error
from stillhouse.payoff.evidence import accumulate_bets, estimate_autocorrelation, shrunken
from stillhouse.stats import NORMAL_QUANTILE_95

__all__ = ["KINDS", "choose_members", "draw_noise", "measure_pool"]

MARGIN, CONFIDENCE, ROWS = 0.01, 0.95, 500
REIGNS, MEMBERS, HISTORY, SEED = 50, 5, 200, 20_261_208
OLDER = ("first", "previous")
BLOCKS = 60
"""Blocks of a reign in which nobody is promoted."""

KINDS = ("independent", "autocorrelated", "skewed")
COEFFICIENT, SKEWED_SIGMA = 0.5, 0.55

STATED_LOSS = 2.0
"""Margins, as in ``promotion.total_margin``: the sum of true losses after 50 reigns, mean over the seeds."""
STATED_UNDO = 20_000
"""Outcomes within which a promotion that is worse by three margins is undone in 95 of 100 cases."""
STATED_WAITS = {0.0: 150, 1.0: 60, 3.0: 30}
"""Median blocks until one of five members is promoted, by its gain in margins."""

Array = np.ndarray[Any, Any]


def measure_pool(seeds: int) -> tuple[list[report.Goal], dict[str, Any]]:
    """Goals and details of the pool.

    :param seeds: series of fifty reigns of each kind.
    """
    wrong = [_measure_losses(kind, loss, seeds) for kind in KINDS for loss in (0.25, 1.0)]
    waits = [_measure_wait(kind, gain, seeds) for kind in KINDS for gain in STATED_WAITS]
    undone = [_measure_undo(kind, gain, seeds) for kind in KINDS for gain in (-3.0, 0.0, 1.0)]
    detail = {
        "margin": MARGIN,
        "confidence": CONFIDENCE,
        "rows_of_a_block": ROWS,
        "reigns": REIGNS,
        "challengers_of_a_reign": MEMBERS,
        "blocks_of_a_reign": BLOCKS,
        "sum_of_losses": wrong,
        "waiting": waits,
        "undone": undone,
    }
    return [*_error_goals(wrong), *_wait_goals(waits), *_undo_goals(undone)], detail


# --------------------------------------------------------------------------- measurements


def _measure_losses(kind: str, loss: float, seeds: int) -> dict[str, Any]:
    """A chain of fifty reigns a seed, in which every challenger is worse than its champion by ``loss`` margins."""
    rng = np.random.default_rng((SEED, KINDS.index(kind), round(100 * loss)))
    bounds = draw_bounds(rng, kind, seeds)
    quality, before = np.zeros(seeds), np.zeros(seeds)  # of champion and previous, in margins; of the first model: 0
    wrong, lowest = np.zeros(seeds), np.zeros(seeds)
    for _ in range(REIGNS):
        gains = np.stack([-quality, before - quality, *[np.full(seeds, -loss)] * MEMBERS], axis=1)
        member, _ = choose_members(_draw_members(rng, kind, gains, BLOCKS), bounds, *_roles())
        chosen = member >= 0
        wrong += member >= len(OLDER)
        after = quality + np.where(chosen, gains[np.arange(seeds), member], 0.0)
        before, quality = np.where(chosen, quality, before), after
        lowest = np.minimum(lowest, quality)
    share = wrong / REIGNS
    return {
        "kind": kind,
        "loss_in_margins": loss,
        "reigns_with_a_worse_champion": float(share.mean()),
        **_interval(share),
        "sum_of_losses": float(-quality.mean()),
        "sum_of_losses_95": float(-np.quantile(quality, 0.05)),
        "largest_loss_on_the_way_95": float(-np.quantile(lowest, 0.05)),
        "mean_promotions": float(wrong.mean()),
    }


def _measure_wait(kind: str, gain: float, seeds: int) -> dict[str, Any]:
    """Blocks until one of five challengers that all gain ``gain`` margins becomes champion."""
    rng = np.random.default_rng((SEED, KINDS.index(kind), 1_000 + round(100 * gain)))
    limit = 2 * STATED_WAITS[gain]
    gains = np.tile([0.0] * len(OLDER) + [gain] * MEMBERS, (seeds, 1))
    member, block = choose_members(_draw_members(rng, kind, gains, limit), draw_bounds(rng, kind, seeds), *_roles())
    member = np.where(member >= len(OLDER), member, -1)
    waited = np.where(member >= 0, block, np.inf)
    return {
        "kind": kind,
        "gain_in_margins": gain,
        "median_blocks": float(min(np.median(waited), limit)),
        "low": float(min(np.quantile(waited, 0.25), limit)),
        "high": float(min(np.quantile(waited, 0.75), limit)),
        "promoted_within": limit,
        "promoted": float((member >= 0).mean()),
    }


def _measure_undo(kind: str, gain: float, seeds: int) -> dict[str, Any]:
    """Blocks until the replaced champion is proven better than a champion that gains ``gain`` margins on it."""
    rng = np.random.default_rng((SEED, KINDS.index(kind), 2_000 + round(100 * gain)))
    blocks = 4 * BLOCKS
    differences = -gain * MARGIN + MARGIN * draw_noise(rng, kind, (seeds, blocks))
    evidence = accumulate_bets(differences, 0.0, draw_bounds(rng, kind, seeds))
    proven = evidence >= -math.log(reign_error(1, CONFIDENCE) * SHARE_OF_PREVIOUS)
    first = np.where(proven.any(axis=1), proven.argmax(axis=1) + 1.0, np.inf)
    within = np.quantile(first, 0.95, method="higher")
    return {
        "kind": kind,
        "gain_in_margins": gain,
        "undone": float(proven.any(axis=1).mean()),
        "blocks": blocks,
        "median_blocks": float(min(np.median(first), blocks)),
        "blocks_of_95_percent": float(min(within, blocks)),
    }


def _error_goals(wrong: list[dict[str, Any]]) -> list[report.Goal]:
    """No more reigns with a member that is worse by the margin than stated, and no larger sum of losses."""
    at_margin = max(
        (row for row in wrong if row["loss_in_margins"] == 1.0),
        key=lambda row: float(row["reigns_with_a_worse_champion"]),
    )
    largest = max(wrong, key=lambda row: float(row["sum_of_losses"]))
    sums = [row["sum_of_losses"] for row in wrong]
    return [
        report.Goal(
            "pool_reigns_with_a_member_worse_by_the_margin",
            reign_error(1, CONFIDENCE),
            "lower",
            at_margin["reigns_with_a_worse_champion"],
            at_margin["low"],
            at_margin["high"],
        ),
        report.Goal(
            "pool_sum_of_losses_in_50_reigns_in_margins",
            STATED_LOSS,
            "lower",
            largest["sum_of_losses"],
            min(sums),
            largest["sum_of_losses_95"],
        ),
    ]


def _wait_goals(waits: list[dict[str, Any]]) -> list[report.Goal]:
    """Medians for independent blocks; the other kinds stand in the details."""
    return [
        report.Goal(
            f"pool_blocks_until_a_gain_of_{row['gain_in_margins']:g}_margins_is_promoted",
            STATED_WAITS[row["gain_in_margins"]],
            "lower",
            row["median_blocks"],
            row["low"],
            row["high"],
        )
        for row in waits
        if row["kind"] == "independent"
    ]


def _undo_goals(undone: list[dict[str, Any]]) -> list[report.Goal]:
    bad = [row for row in undone if row["gain_in_margins"] < 0]
    good = [row["undone"] for row in undone if row["gain_in_margins"] >= 0]
    slowest = max(ROWS * row["blocks_of_95_percent"] for row in bad)
    medians = [ROWS * row["median_blocks"] for row in bad]
    return [
        report.Goal(
            "pool_outcomes_until_95_percent_of_bad_promotions_are_undone",
            STATED_UNDO,
            "lower",
            slowest,
            min(medians),
            slowest,
        ),
        report.Goal(
            "pool_good_promotions_undone",
            reign_error(1, CONFIDENCE),
            "lower",
            max(good),
            min(good),
            max(good),
        ),
    ]


def _interval(share: Array) -> dict[str, float]:
    """95 % interval of the mean over the seeds."""
    error = 1.96 * float(share.std(ddof=1)) / math.sqrt(len(share)) if len(share) > 1 else 0.0
    return {"low": max(0.0, float(share.mean()) - error), "high": float(share.mean()) + error}


# --------------------------------------------------------------------------- reigns


def choose_members(differences: Array, bounds: Array, shares: Array, is_newer: Array) -> tuple[Array, Array]:
    """The rule of :func:`stillhouse.payoff.champion_choice.choose_champion` after each block, for many reigns.

    :param differences: of the members to the champion, ``[reigns, members, blocks]``.
    :param bounds: bound of the autocorrelation, ``[reigns]``.
    :param shares: of each member in the error budget, ``[members]``.
    :param is_newer: whether a member was made after the champion, ``[members]``.
    :returns: the member that becomes champion (−1: none), and after how many blocks, both ``[reigns]``.
    """
    threshold = -np.log(reign_error(1, CONFIDENCE) * shares)[:, None]
    better = accumulate_bets(differences, 0.0, bounds[:, None]) >= threshold
    not_worse = np.zeros_like(better)
    not_worse[:, is_newer] = accumulate_bets(differences[:, is_newer], -MARGIN, bounds[:, None]) >= threshold[is_newer]
    reign, block = np.nonzero((better | not_worse).any(axis=1))
    means, deviations, newest_errors = _running_moments(differences, reign, block)
    gains = shrunken(means, deviations / np.sqrt(block + 1.0)[:, None], MARGIN)
    largest = gains >= gains.max(axis=1, keepdims=True)
    ready = (better[reign, :, block] | (not_worse[reign, :, block] & largest)) & (gains > 0)
    ready &= differences[reign, :, block] >= -NORMAL_QUANTILE_95 * newest_errors
    best = np.where(ready, gains, -np.inf)
    choice, waited = np.full(len(differences), -1), np.full(len(differences), differences.shape[2])
    moments = np.flatnonzero(ready.any(axis=1))[::-1]  # the first block of a reign is written last
    choice[reign[moments]], waited[reign[moments]] = best[moments].argmax(axis=1), block[moments] + 1
    return choice, waited


def _roles() -> tuple[Array, Array]:
    """Shares in the error budget, and whether each is newer: the first model, the previous one, the challengers."""
    newer = [member_share(number) for number in range(1, MEMBERS + 1)]
    return np.array([SHARE_OF_OLDER, SHARE_OF_PREVIOUS, *newer]), np.array([False] * len(OLDER) + [True] * MEMBERS)


def _running_moments(differences: Array, reign: Array, block: Array) -> tuple[Array, Array, Array]:
    """Mean and deviation until a block, and the deviation before it, at the given reigns and blocks, ``[n, members]``.

    With fewer than three blocks the pool bounds the error by the range; nobody is proven there.
    """
    sums, squares = np.cumsum(differences, axis=-1), np.cumsum(np.square(differences), axis=-1)

    def deviation(last: Array) -> Array:
        count = (last + 1.0)[:, None]
        variance = squares[reign, :, last] - np.square(sums[reign, :, last]) / count
        root: Array = np.sqrt(np.maximum(variance, 0.0) / np.maximum(count - 1, 1))
        return root

    return sums[reign, :, block] / (block + 1.0)[:, None], deviation(block), deviation(np.maximum(block - 1, 0))


def draw_bounds(rng: np.random.Generator, kind: str, seeds: int) -> Array:
    """The bound of the autocorrelation that a history of each seed gives, ``[seeds]``."""
    return np.array([estimate_autocorrelation([series]) for series in draw_noise(rng, kind, (seeds, HISTORY))])


def _draw_members(rng: np.random.Generator, kind: str, gains: Array, blocks: int) -> Array:
    """Differences to the champion, half of whose variance all members share, ``[reigns, members, blocks]``.

    :param gains: true gain of each member, in margins, ``[reigns, members]``.
    """
    noise = draw_noise(rng, kind, (len(gains), gains.shape[1] + 1, blocks))
    differences: Array = MARGIN * (gains[..., None] + (noise[:, 1:] + noise[:, :1]) / math.sqrt(2))
    return differences


def draw_noise(rng: np.random.Generator, kind: str, shape: tuple[int, ...]) -> Array:
    """Series with mean 0 and variance 1 along the last axis."""
    innovations = rng.normal(size=shape)
    if kind == "independent":
        return innovations
    if kind == "skewed":
        sigma2 = SKEWED_SIGMA**2
        innovations = math.exp(sigma2 / 2) - np.exp(SKEWED_SIGMA * innovations)
        innovations /= math.sqrt(math.expm1(sigma2) * math.exp(sigma2))
    innovations[..., 1:] *= math.sqrt(1 - COEFFICIENT**2)
    series: Array = lfilter([1.0], [1.0, -COEFFICIENT], innovations, axis=-1)
    return series
