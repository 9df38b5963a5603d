"""The share of worse challengers that gate and pool promote: a simulation in which each window is drawn anew.

``python -m benchmarks.gate`` draws 1,000 windows of each kind; ``--quick`` draws 50, and writes nothing. Every verdict
is computed by the gate's code, from probabilities to :func:`stillhouse.evaluate.gate.judge`'s reasons. Kinds of
windows:

- ``rows``: 20 to 6,000 independent rows, 5 and 77 actions; the two models disagree only where one is worse, or on 5 %
  more rows.
- ``clusters``: 10 to 300 clusters of 20 rows that are lost or gained as a whole, or a tenth of their rows together.
- ``log_loss`` and ``cost`` (a score of the user's own, 0 to 10, lower is better): independent rows, or clusters of 20
  rows with a random effect, whose scores all differ a little; or rows of which a few are lost completely.
- ``auc``: two actions, one row in five positive; normal scores with correlation .95, alone or in 12 to 100 clusters of
  20 rows with a random effect; or the champion's scores, of which some positives fall to the bottom.

The margin is .02 (of a ``cost`` .05) and ``promotion.confidence`` 95 % throughout, of whose error the gate's first look
may spend 4 %. A challenger is worse by the margin, by twice the margin, as good, or better by the margin.

Then :mod:`benchmarks.gate_pool` simulates the pool over fifty reigns, as often.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterator
from math import log
from statistics import NormalDist
from typing import Any

import numpy as np
from scipy.stats import beta, binom

from benchmarks import report
from benchmarks.gate_pool import measure_pool
from stillhouse.evaluate.comparing import compare_models
from stillhouse.evaluate.gate import _judge_comparison, first_look_confidence
from stillhouse.quality import Measure, clipped_log_loss
from stillhouse.records import Comparison

CLAIM = "a challenger that is worse by the margin is promoted no more often than the gate's stated error"
MARGIN, CONFIDENCE, SEED = 0.02, 0.95, 20_261_130
TRUTHS = {"worse by the margin": -MARGIN, "worse by twice": -2 * MARGIN, "as good": 0.0, "better": MARGIN}
FIRST_LOOK = first_look_confidence(CONFIDENCE)
NORMAL = NormalDist()
LOG_LOSS = Measure(
    "log_loss", "nats", 0.0, -log(0.01), "lower", lambda probs, labels, rows: clipped_log_loss(probs, labels, 0.01)
)
COST = Measure(
    "cost", "", 0.0, 10.0, "lower", lambda probs, labels, rows: 10 * (1 - probs[np.arange(len(labels)), labels])
)

Array = np.ndarray[Any, Any]
JudgeWindow = Callable[[np.random.Generator, float], bool]


def main() -> None:
    """Simulate, print and write ``results/gate.json``."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="50 windows of each kind, no file written")
    parser.add_argument("--windows", type=int, default=1_000, help="number of windows of each kind")
    options = parser.parse_args()
    run = report.begin("gate", writes_result=not options.quick)
    seeds = 50 if options.quick else options.windows
    cells = []
    for index, (kind, judge_window) in enumerate(window_kinds()):
        for truth, difference in TRUTHS.items():
            rng = np.random.default_rng((SEED, index, round(1000 * difference) + 1000))
            count = sum(judge_window(rng, difference) for _ in range(seeds))
            low, high = interval(count, seeds)
            cells.append({"kind": kind, "challenger": truth, "promoted": count / seeds, "low": low, "high": high})
            print(f"{kind:58}{truth:22}{count / seeds:8.4f}", flush=True)
    pool_goals, pool = measure_pool(seeds)
    goals = [*goals_of(cells, seeds), *pool_goals]
    if options.quick:
        report.print_goals(CLAIM, goals)
        return
    run.write(
        CLAIM,
        goals,
        {
            "margin": MARGIN,
            "confidence": CONFIDENCE,
            "first_look_confidence": FIRST_LOOK,
            "windows_of_each_kind": seeds,
            "kinds": cells,
            "pool": pool,
        },
        ["numpy", "scipy"],
    )


def goals_of(cells: list[dict[str, Any]], seeds: int) -> list[report.Goal]:
    """Two goals on the error, which may exceed the stated one by the simulation's noise only, and two on the power."""
    goals = []
    for name, truth in (("promoted_at_the_margin", "worse by the margin"), ("promoted_at_twice", "worse by twice")):
        worst = max((cell for cell in cells if cell["challenger"] == truth), key=lambda cell: float(cell["promoted"]))
        limit = float(binom.ppf(0.975, seeds, 1 - FIRST_LOOK)) / seeds
        goals.append(report.Goal(name, limit, "lower", worst["promoted"], worst["low"], worst["high"]))
    power = "rows: 1,000, 5 actions, 5% disagree"
    for name, truth, target in (("as_good_promoted", "as good", 0.75), ("better_promoted", "better", 0.95)):
        (cell,) = [cell for cell in cells if (cell["kind"], cell["challenger"]) == (power, truth)]
        goals.append(report.Goal(name, target, "higher", cell["promoted"], cell["low"], cell["high"]))
    return goals


def interval(count: int, total: int) -> tuple[float, float]:
    """95 % interval of the share ``count / total`` (Clopper and Pearson 1934).

    >>> low, high = interval(5, 100)
    >>> f"{low:.3f} to {high:.3f}"
    '0.016 to 0.113'
    """
    low = float(beta.ppf(0.025, count, total - count + 1)) if count else 0.0
    high = float(beta.ppf(0.975, count + 1, total - count)) if count < total else 1.0
    return low, high


def window_kinds() -> Iterator[tuple[str, JudgeWindow]]:
    """Name of each kind of window, and the function that draws and judges one for a true difference."""
    for rows in (20, 100, 150, 300, 1000, 6000):
        yield f"rows: {rows:,}, 5 actions", functools.partial(judge_rows, rows, 5, 0.0)
        yield f"rows: {rows:,}, 5 actions, 5% disagree", functools.partial(judge_rows, rows, 5, 0.05)
    for rows in (20, 300, 1000):
        yield f"rows: {rows:,}, 77 actions", functools.partial(judge_rows, rows, 77, 0.0)
    for clusters in (10, 30, 100, 300):
        yield f"clusters: {clusters} × 20 rows, lost whole", functools.partial(judge_clusters, clusters, 20, 1.0)
        yield (
            f"clusters: {clusters} × 20 rows, 10% lost or gained",
            functools.partial(judge_clusters, clusters, 20, 0.1),
        )
    for name, measure, spread in (("log_loss", LOG_LOSS, 0.15), ("cost", COST, 0.4)):
        for rows in (20, 150, 1000, 6000):
            yield f"{name}: {rows:,} rows", functools.partial(judge_changes, measure, rows, 1, spread, 0.0)
            yield f"{name}: {rows:,} rows, few lost completely", functools.partial(judge_lost_rows, measure, rows, 1)
        for clusters in (10, 50, 300):
            kind = f"{name}: {clusters} × 20 rows"
            yield kind, functools.partial(judge_changes, measure, clusters, 20, spread, spread / 2)
            yield f"{kind}, few lost completely", functools.partial(judge_lost_rows, measure, clusters, 20)
    for rows in (60, 300, 1000, 6000):
        yield f"auc: {rows:,} rows", functools.partial(judge_scores, rows, 1, 0.0)
    for clusters in (12, 30, 100):
        yield f"auc: {clusters} × 20 rows", functools.partial(judge_scores, clusters, 20, 0.3)
    for rows in (300, 1000):
        yield f"auc: {rows:,} rows, positives lost", functools.partial(judge_lost_positives, rows)


# --------------------------------------------------------------------------- accuracy


def judge_rows(rows: int, actions: int, disagreement: float, rng: np.random.Generator, difference: float) -> bool:
    """Judge a window of independent rows."""
    lost, gained, equal = rng.multinomial(rows, shares(disagreement, difference)).tolist()
    return passes(((-1, lost), (0, equal), (1, gained)), 1, actions)


def shares(disagreement: float, difference: float) -> tuple[float, float, float]:
    """Shares of rows where only the champion is right, where only the challenger is right, and of all others."""
    lost, gained = disagreement / 2 + max(0.0, -difference), disagreement / 2 + max(0.0, difference)
    return lost, gained, 1 - lost - gained


def judge_clusters(count: int, size: int, share: float, rng: np.random.Generator, difference: float) -> bool:
    """Judge clusters of ``size`` rows, in which a ``share`` of the rows is lost or gained together."""
    lost, gained, equal = rng.multinomial(count, shares(0.2 * (share < 1), difference / share)).tolist()
    net = round(share * size)
    return passes(((-net, lost), (0, equal), (net, gained)), size, 5)


@functools.cache
def passes(clusters: tuple[tuple[int, int], ...], size: int, actions: int) -> bool:
    """The gate's verdict on pairs of a cluster's net gain in rows and the number of such clusters of ``size`` rows.

    The counts determine the verdict, so it is cached by them.
    """
    nets = np.repeat([net for net, _ in clusters], [count for _, count in clusters])
    change = np.sign(nets)[:, None] * (np.arange(size) < np.abs(nets)[:, None])
    change, rows = change.ravel(), size * len(nets)
    labels = np.arange(rows) % actions

    def make_probs(is_right: Array) -> Array:
        probs = np.zeros((rows, actions))
        probs[np.arange(rows), np.where(is_right, labels, (labels + 1) % actions)] = 1.0
        return probs

    comparison = compare_models(
        "test", labels, make_probs(change >= 0), make_probs(change <= 0), MARGIN, np.arange(rows) // size
    )
    return is_promoted(comparison)


def is_promoted(comparison: Comparison | None) -> bool:
    """Whether the gate's first look proves that the challenger is no worse."""
    if comparison is None:
        return False
    reason = _judge_comparison(comparison, FIRST_LOOK)
    return not reason.failed and not reason.undecided


# --------------------------------------------------------------------------- scores of rows


def judge_changes(
    measure: Measure,
    count: int,
    size: int,
    spread: float,
    effect: float,
    rng: np.random.Generator,
    difference: float,
) -> bool:
    """Judge ``count`` clusters of ``size`` rows whose losses all change, by a normal amount.

    :param spread: standard deviation of the change of a row; ``effect``: of what the rows of a cluster share.
    """
    change = -scale_of(measure) * difference + rng.normal(scale=spread, size=count * size)
    change += np.repeat(rng.normal(scale=effect, size=count), size) if effect else 0.0
    return passes_changes(measure, change, size)


def judge_lost_rows(measure: Measure, count: int, size: int, rng: np.random.Generator, difference: float) -> bool:
    """Judge clusters that are lost or gained as a whole, and as seldom as their size allows; all others are equal."""
    gain = scale_of(measure) * difference
    most = worst_loss(measure) if gain < 0 else champion_loss(measure)
    changed = np.repeat(rng.random(count) < abs(gain) / most, size)
    return passes_changes(measure, np.where(changed, -np.sign(gain) * most, 0.0), size)


def scale_of(measure: Measure) -> float:
    """How many units of the measure are one unit of the truths above: a ``cost`` has a margin of .05, not .02."""
    return 0.05 / MARGIN if measure is COST else 1.0


def champion_loss(measure: Measure) -> float:
    """The loss of a row by the champion, whose probability of each outcome is ½."""
    return 5.0 if measure is COST else log(2)


def worst_loss(measure: Measure) -> float:
    """By how much the challenger's loss of a row can be larger."""
    return measure.span - champion_loss(measure)


def passes_changes(measure: Measure, change: Array, size: int) -> bool:
    """The gate's verdict on the changes of the rows' losses against the champion's; ``size`` rows form a cluster."""
    loss = np.clip(champion_loss(measure) + change, 0.0, measure.span)
    right = 1 - loss / 10 if measure is COST else np.exp(-loss)
    labels = np.arange(len(loss)) % 2
    challenger = np.where(
        (labels == 1)[:, None], np.column_stack([1 - right, right]), np.column_stack([right, 1 - right])
    )
    margin = scale_of(measure) * MARGIN
    champion = np.full_like(challenger, 0.5)
    clusters = np.arange(len(loss)) // size
    return is_promoted(compare_models("test", labels, challenger, champion, margin, clusters, measure=measure))


# --------------------------------------------------------------------------- AUC of two actions


def judge_scores(count: int, size: int, effect: float, rng: np.random.Generator, difference: float) -> bool:
    """Judge normal scores with correlation .95; each cluster has a random effect on the challenger's positives.

    The AUC of positives N(μ, 1 + τ²) against negatives N(0, 1) is Φ(μ / √(2 + τ²)).
    """
    rows = count * size
    positive, clusters = rng.random(rows) < 0.2, np.repeat(np.arange(count), size)
    common, noise = rng.normal(size=rows), rng.normal(size=(2, rows))
    auc = 0.75
    shift = NORMAL.inv_cdf(auc + difference) * (2 + effect**2) ** 0.5 + effect * rng.normal(size=count)[clusters]
    challenger, champion = 0.95**0.5 * common + 0.05**0.5 * noise
    return passes_scores(
        positive, challenger + positive * shift, champion + positive * NORMAL.inv_cdf(auc) * 2**0.5, clusters
    )


def judge_lost_positives(rows: int, rng: np.random.Generator, difference: float) -> bool:
    """Judge scores that rank nearly all rows correctly; one model has a share of the positives at the bottom."""
    positive = rng.random(rows) < 0.2
    scores, lost = rng.normal(size=rows) + 6.0 * positive, positive & (rng.random(rows) < abs(difference))
    fallen = np.where(lost, scores - 30.0, scores)
    challenger, champion = (scores, fallen) if difference > 0 else (fallen, scores)
    return passes_scores(positive, challenger, champion, np.arange(rows))


def passes_scores(positive: Array, challenger: Array, champion: Array, clusters: Array) -> bool:
    """The gate's verdict on two scores; larger scores mean the second action."""
    pair = [np.column_stack([-score, score]) for score in (challenger, champion)]
    comparison = compare_models("test", positive.astype(int), *pair, MARGIN, clusters)
    return is_promoted(comparison)


if __name__ == "__main__":
    main()
