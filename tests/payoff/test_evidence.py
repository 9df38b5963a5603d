"""Evidence of two members: by hand, its error under the null, its power, pairs that count, restarts, and the AUC."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from scipy.signal import lfilter

from stillhouse.payoff import evidence
from stillhouse.payoff.evidence import accumulate_bets, compare_members, shrink_gains, shrunken, spent_share
from stillhouse.payoff.scores import score_block
from stillhouse.records import BlockScore, PoolEvidence
from stillhouse.stats import delong

BEGIN = datetime(2026, 1, 5, tzinfo=UTC)
DAY = timedelta(days=1)
Array = np.ndarray[Any, Any]


def blocks(member: str, accuracies: Array | list[float], rows: int = 500, **more: Any) -> list[BlockScore]:
    """A block of one day for each accuracy; the log loss is 1 − accuracy."""
    return [
        BlockScore.model_validate(
            {
                "member": member,
                "start": BEGIN + number * DAY,
                "end": BEGIN + (number + 1) * DAY,
                "complete": True,
                "rows": rows,
                "rows_key": "k",
                "log_loss": 1.0 - accuracy,
                "half_brier": 0.2,
                "accuracy": accuracy,
                **more,
            }
        )
        for number, accuracy in enumerate(accuracies)
    ]


def compare(member: list[BlockScore], champion: list[BlockScore], **more: Any) -> PoolEvidence | None:
    settings = {
        "measure": "accuracy",
        "span": 1.0,
        "margin": 0.01,
        "since": BEGIN,
        "error": 0.01,
        "autocorrelation": 0.0,
    }
    return compare_members(member, champion, **(settings | more))


def gains(values: Array | list[float], **more: Any) -> PoolEvidence:
    """Evidence about a member with these gains of accuracy."""
    found = compare(blocks("toy@2", 0.7 + np.asarray(values)), blocks("toy@1", [0.7] * len(values)), **more)
    assert found is not None
    return found


def ar1(rng: np.random.Generator, shape: tuple[int, int], coefficient: float) -> Array:
    noise = rng.normal(size=shape)
    noise[:, 1:] *= math.sqrt(1 - coefficient**2)
    return np.asarray(lfilter([1.0], [1.0, -coefficient], noise, axis=-1))


# --------------------------------------------------------------------------- bets


def test_three_blocks_by_hand() -> None:
    differences, null, bound = np.array([0.1, -0.3, 0.02]), -0.01, 0.5
    of_coefficient = []
    for phi in (0.0, 0.25, 0.5):
        above = [0.11, -0.29 - phi * 0.11, 0.03 + phi * 0.29]
        stakes = [
            math.prod(1 + min(max(size * value, -0.99), 0.7) for value in above) for size in evidence.BET_SIZES.tolist()
        ]
        of_coefficient.append(np.mean(stakes))
    log_e = accumulate_bets(differences, null, bound)
    assert log_e[-1] == pytest.approx(math.log(min(of_coefficient)), rel=1e-12)


def test_the_smallest_bet_is_valid_for_every_bounded_score() -> None:
    """One difference at −1 in twenty makes the mean 0; a bet of ½ never reaches its clip."""
    size = evidence.BET_SIZES[0]
    assert size * (1 + 0.5) * 1.3 < evidence.LARGEST_LOSS
    values, weights = np.array([-1.0, 1 / 19]), np.array([0.05, 0.95])
    factor = 1 + np.clip(size * values, -evidence.LARGEST_LOSS, evidence.LARGEST_WIN)
    assert weights @ factor == pytest.approx(1.0)


@pytest.mark.parametrize("centre", [0.0, -0.2, -3.0])
@pytest.mark.parametrize("half_width", [0.01, 0.4, 2.0, 50.0])
def test_every_bet_is_valid_for_symmetric_differences(centre: float, half_width: float) -> None:
    pair = np.array([centre - half_width, centre + half_width])
    factors = 1 + np.clip(evidence.BET_SIZES[:, None] * pair, -evidence.LARGEST_LOSS, evidence.LARGEST_WIN)
    assert (factors.mean(axis=1) <= 1 + 1e-2).all()
    assert (factors.mean(axis=1)[evidence.BET_SIZES * abs(pair).max() < evidence.LARGEST_LOSS] <= 1 + 1e-12).all()


@pytest.mark.parametrize(("coefficient", "bound"), [(0.0, 0.0), (0.0, 0.5), (0.25, 0.5), (0.5, 0.5)])
def test_the_error_under_the_null_is_kept(coefficient: float, bound: float) -> None:
    """At any time in 100 blocks: with α = .05 and 2,000 series at most 5 %."""
    rng = np.random.default_rng(7)
    log_e = accumulate_bets(0.01 * ar1(rng, (2_000, 100), coefficient), 0.0, bound)
    assert (log_e.max(axis=1) >= math.log(20)).mean() <= 0.05


def test_the_error_is_broken_without_the_correction() -> None:
    rng = np.random.default_rng(7)
    log_e = accumulate_bets(0.01 * ar1(rng, (2_000, 100), 0.5), 0.0, 0.0)
    assert (log_e.max(axis=1) >= math.log(20)).mean() > 0.08


def test_the_error_is_kept_for_block_means_with_rare_large_losses() -> None:
    """A block loses 1/500 of the range at the rate .5, and gains the expectation: a margin of half a row."""
    rng = np.random.default_rng(8)
    differences = (0.5 - rng.poisson(0.5, size=(2_000, 100))) / 500
    log_e = accumulate_bets(differences, 0.0, 0.0)
    assert (log_e.max(axis=1) >= math.log(20)).mean() <= 0.05


@pytest.mark.parametrize(("bound", "within"), [(0.0, 40), (0.5, 120)])
def test_a_gain_of_one_standard_deviation_is_proven(bound: float, within: int) -> None:
    rng = np.random.default_rng(9)
    log_e = accumulate_bets(0.01 * (1 + rng.normal(size=(500, within))), 0.0, bound)
    assert (log_e.max(axis=1) >= math.log(1000)).mean() > 0.7


def test_parallel_series_equal_single_ones() -> None:
    rng = np.random.default_rng(1)
    series, bounds = rng.normal(size=(4, 30)) / 50, np.array([0.0, 0.2, 0.5, 0.1])
    together = accumulate_bets(series, -0.01, bounds)
    alone = [accumulate_bets(one, -0.01, bound) for one, bound in zip(series, bounds.tolist(), strict=True)]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-12)


def test_very_long_series_stay_finite() -> None:
    for value in (0.5, -0.5):
        assert np.isfinite(accumulate_bets(np.full(3_000, value), 0.0, 0.5)).all()


def test_small_blocks_bet_less() -> None:
    assert evidence.relative_sizes(np.array([100, 10, 400])).tolist() == [1.0, 0.1, 1.0]
    even = accumulate_bets(np.array([0.1, 0.1, -0.2]), 0.0)
    uneven = accumulate_bets(np.array([0.1, 0.1, -0.2]), 0.0, weights=np.array([1.0, 1.0, 0.01]))
    assert uneven[-1] > even[-1]


def test_autocorrelation_bound() -> None:
    rng = np.random.default_rng(2)
    dependent = [evidence.estimate_autocorrelation([series]) for series in ar1(rng, (200, 120), 0.3)]
    assert np.mean(np.array(dependent) >= 0.3) > 0.9
    assert evidence.estimate_autocorrelation([]) == 0.5
    assert evidence.estimate_autocorrelation([np.zeros(100)]) == 0.5
    assert evidence.estimate_autocorrelation([np.tile([1.0, -1.0], 100)]) == 0.0


# --------------------------------------------------------------------------- two members


def test_the_three_processes_agree_with_the_bets() -> None:
    rng = np.random.default_rng(3)
    values = 0.01 * rng.normal(size=25)
    found = gains(values, autocorrelation=0.3)
    assert found.log_not_worse == pytest.approx(accumulate_bets(values, -0.01, 0.3)[-1])
    assert found.log_better == pytest.approx(accumulate_bets(values, 0.0, 0.3)[-1])
    assert found.log_worse == pytest.approx(accumulate_bets(-values, 0.0, 0.3)[-1])
    assert found.log_better <= found.log_not_worse
    assert found.gain == pytest.approx(values.mean())
    assert found.standard_error == pytest.approx(values.std(ddof=1) / 5)
    assert (found.newest_gain, found.blocks, found.rows) == (pytest.approx(values[-1]), 25, 12_500)
    assert gains(values, autocorrelation=0.3) == found


def test_log_loss_and_an_own_score_are_oriented_and_scaled() -> None:
    low = compare(blocks("toy@2", [0.8] * 4), blocks("toy@1", [0.7] * 4), measure="log_loss", span=4.6)
    assert low is not None and low.gain == pytest.approx(0.1)
    own = compare(
        blocks("toy@2", [0.8] * 4, score=30.0), blocks("toy@1", [0.7] * 4, score=20.0), measure="profit", span=100.0
    )
    assert own is not None and own.gain == pytest.approx(10.0) and own.measure == "profit"
    assert own.log_better == pytest.approx(accumulate_bets(np.full(4, 0.1), 0.0)[-1])


def test_only_complete_common_new_blocks_with_equal_rows_count() -> None:
    member, champion = blocks("toy@2", [0.8] * 6), blocks("toy@1", [0.7] * 6)
    member[0] = member[0].model_copy(update={"complete": False})
    champion[1] = champion[1].model_copy(update={"rows_key": "other"})
    found = compare(member[::-1], champion[:5], since=BEGIN + timedelta(hours=1))
    assert found is not None and (found.blocks, found.since, found.until) == (3, BEGIN + 2 * DAY, BEGIN + 5 * DAY)
    assert compare(member[:2], champion) is None
    assert compare([], champion) is None


def test_few_blocks_have_the_error_of_the_range_and_no_veto() -> None:
    found = gains([0.05, 0.05])
    assert (found.standard_error, found.newest_error) == (pytest.approx(1 / math.sqrt(1000)), None)
    assert found.shrunken_gain < 0.05 / 2


def test_the_threshold_is_the_members_share() -> None:
    found = gains([0.05] * 3, error=0.01, share=0.25)
    assert found.log_threshold == pytest.approx(-math.log(0.0025))


def test_evidence_forgets_at_fixed_times_and_pays_for_it() -> None:
    values = [0.05] * 14 + [-0.05] * 3
    kept, fresh = gains(values), gains(values, horizon=timedelta(days=14))
    assert (kept.blocks, fresh.blocks, fresh.since) == (17, 3, BEGIN + 14 * DAY)
    assert fresh.log_not_worse < 0 < kept.log_not_worse
    assert fresh.log_threshold == pytest.approx(-math.log(0.01 * spent_share(2)))
    before = gains(values[:14], horizon=timedelta(days=14))
    assert before.log_threshold == pytest.approx(-math.log(0.01 * spent_share(1)))
    assert sum(spent_share(number) for number in range(1, 10_000)) < 1


def test_the_forecast_of_labels() -> None:
    rng = np.random.default_rng(4)
    values = 0.02 * rng.normal(size=200) + 0.01
    early, late = gains(values[:15]), gains(values)
    assert early.labels_needed is not None and 0 < early.labels_needed < 200 * 500
    assert late.labels_needed == 0
    assert gains(-0.05 + values).labels_needed is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"margin": -0.1}, "margin"),
        ({"error": 0.0}, "error and share"),
        ({"share": 1.5}, "error and share"),
        ({"autocorrelation": 0.7}, "autocorrelation"),
        ({"horizon": timedelta(0)}, "horizon"),
        ({"measure": "profit"}, "has no score 'profit'"),
        ({"measure": "auc"}, "measure of two actions"),
    ],
)
def test_wrong_parameters_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gains([0.1, 0.1], **wrong)


def test_overlapping_blocks_are_refused() -> None:
    member, champion = blocks("toy@2", [0.8] * 2), blocks("toy@1", [0.7] * 2)
    member[0], champion[0] = (one[0].model_copy(update={"end": BEGIN + 1.5 * DAY}) for one in (member, champion))
    with pytest.raises(ValueError, match="overlap"):
        compare(member, champion)


# --------------------------------------------------------------------------- shrunken gains


def test_shrinking_by_hand() -> None:
    variance = (2 * 0.01**2 + (0.03**2 + 0.01**2 - 2 * 0.01**2)) / 4
    factor = variance / (variance + 0.01**2)
    assert shrunken(np.array([0.03, -0.01]), np.full(2, 0.01), 0.01) == pytest.approx([0.03 * factor, -0.01 * factor])


def test_gains_never_grow_and_keep_their_sign() -> None:
    rng = np.random.default_rng(5)
    raw, errors = rng.normal(size=(500, 6)), rng.gamma(1.0, size=(500, 6))
    after = shrunken(raw, errors, 0.3)
    assert (np.abs(after) <= np.abs(raw)).all() and (after * raw >= 0).all()
    assert shrunken(np.array([0.2]), np.zeros(1), 0.0).tolist() == [0.2]
    assert shrunken(np.zeros(1), np.zeros(1), 0.0).tolist() == [0.0]


def test_the_best_of_many_equal_members_is_not_believed() -> None:
    """The raw gain of the best of six equal members is above one standard error; shrunken it is near 0."""
    rng = np.random.default_rng(6)
    raw = 0.03 * rng.normal(size=(2_000, 6))
    best = raw.argmax(axis=1)[:, None]
    after = np.take_along_axis(shrunken(raw, np.full(raw.shape, 0.03), 0.01), best, axis=1)
    assert np.take_along_axis(raw, best, axis=1).mean() > 0.03
    assert after.mean() < 0.01


def test_the_pool_shrinks_together() -> None:
    strong, weak = gains([0.05, 0.06, 0.04, 0.05]), gains([0.01, -0.01, 0.02, 0.0])
    together = shrink_gains([strong, weak], 0.01)
    expected = shrunken(
        np.array([strong.gain, weak.gain]), np.array([strong.standard_error, weak.standard_error]), 0.01
    )
    assert [one.shrunken_gain for one in together] == pytest.approx(expected)
    assert shrink_gains([], 0.01) == ()


# --------------------------------------------------------------------------- AUC


def auc_blocks(rng: np.random.Generator, count: int, shift: float, rows: int = 400) -> tuple[list[BlockScore], ...]:
    """Blocks of a member whose scores separate the outcomes by ``shift``, and of a champion by 1."""
    both: tuple[list[BlockScore], ...] = ([], [])
    for number in range(count):
        labels = (rng.random(rows) < 0.3).astype(int)
        common = rng.normal(size=rows)
        start = BEGIN + number * DAY
        for scores, member, separation in zip(both, ("toy@2", "toy@1"), (shift, 1.0), strict=True):
            p = 1 / (1 + np.exp(-(common + 0.3 * rng.normal(size=rows) + separation * labels)))
            probs = np.column_stack([1 - p, p])
            ids = [f"{number}.{row}" for row in range(rows)]
            scores.append(score_block(member, probs, labels, ids, start, start + DAY, complete=True, clip=0.01))
    return both


def test_the_auc_is_compared_at_doubling_numbers_of_blocks() -> None:
    member, champion = auc_blocks(np.random.default_rng(0), 9, shift=1.3)
    found = [compare(member[:count], champion[:count], measure="auc") for count in (8, 9)]
    assert found[0] is not None and found[1] is not None
    assert found[0].log_better == found[1].log_better and found[0].gain != found[1].gain
    labels = np.concatenate([block.labels for block in member])
    aucs, _ = delong(labels, np.stack([np.concatenate([b.probs for b in side]) for side in (member, champion)]))
    assert found[1].gain == pytest.approx(aucs[0] - aucs[1])
    assert found[1].log_better >= found[1].log_threshold
    assert found[1].newest_gain is not None and found[1].newest_error is not None


def test_the_auc_of_few_outcomes_proves_nothing() -> None:
    member, champion = auc_blocks(np.random.default_rng(0), 1, shift=3.0, rows=20)
    found = compare(member, champion, measure="auc")
    assert found is not None and found.log_better < 0 and found.newest_gain is None


def test_the_error_of_the_auc_is_kept() -> None:
    """Equal members, looked at after each of 16 blocks: "better" by chance in at most 5 % of 100 pools."""
    rng = np.random.default_rng(11)
    wrong = 0
    for _ in range(100):
        member, champion = auc_blocks(rng, 16, shift=1.0, rows=120)
        found = [compare(member[:count], champion[:count], measure="auc", error=0.05) for count in (1, 2, 4, 8, 16)]
        wrong += any(one is not None and one.log_better >= one.log_threshold for one in found)
    assert wrong <= 5


# --------------------------------------------------------------------------- episodes


def test_a_block_of_episodes_counts_its_episodes_and_not_its_rows() -> None:
    """Its rows differ from block to block; the episodes do not."""
    rows = [500, 20, 300]
    members = [
        [
            block.model_copy(update={"rows": count, "score": 5.0 + gain})
            for block, count in zip(blocks(name, [0.5] * 3), rows, strict=True)
        ]
        for name, gain in (("toy@2", 1.0), ("toy@1", 0.0))
    ]
    found = compare(*members, measure="return", span=10.0, margin=0.5, episodes=40)
    assert found is not None and (found.rows, found.on, found.blocks, found.gain) == (120, "episodes", 3, 1.0)
    assert found.log_better == pytest.approx(accumulate_bets(np.full(3, 0.1), 0.0)[-1])
    first = compare(*([block[0]] for block in members), measure="return", span=10.0, margin=0.5, episodes=40)
    assert first is not None and first.standard_error == pytest.approx(10 / math.sqrt(40))
    assert PoolEvidence.model_validate_json(found.model_dump_json()) == found
    assert "on" not in gains([0.1] * 3).model_dump()
