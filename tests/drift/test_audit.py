"""Audits: the drawn rows give unbiased means for all rows, whatever the scores are."""

import numpy as np
import pytest

from stillhouse.drift import audit

HOUR_NS = 3600 * 10**9


def make_rows(seed: int, rows: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores, losses that rise with the scores, and strata of very different sizes."""
    generator = np.random.default_rng(seed)
    scores = generator.gamma(0.5, size=rows)
    losses = np.clip(0.3 * scores + 0.1 * generator.random(rows), 0, 1)
    strata = np.sort(generator.geometric(0.3, rows)) * 7 - 20
    return scores, losses, strata


@pytest.mark.parametrize("seed", range(20))
def test_draws_have_the_documented_properties(seed):
    generator = np.random.default_rng(seed)
    rows, draws = int(generator.integers(1, 300)), int(generator.integers(1, 80))
    share = float(generator.uniform(0.05, 1))
    scores, _, strata = make_rows(seed, rows)
    for strata_or_none in (None, strata):
        drawn = audit.draw_rows(scores, strata_or_none, draws, share, seed)
        assert len(drawn.rows) == len(set(drawn.rows.tolist())) == min(rows, draws)
        assert (drawn.weight <= 1 / share + 1e-12).all() and (drawn.weight > 0).all()
        assert ((drawn.probability > 0) & (drawn.probability <= 1 + 1e-12)).all()
        assert np.array_equal(np.unique(drawn.cluster_ids), np.arange(drawn.cluster_ids.max() + 1))
        again = audit.draw_rows(scores, strata_or_none, draws, share, seed)
        assert all(np.array_equal(getattr(drawn, k), getattr(again, k)) for k in vars(drawn))


def test_another_seed_draws_other_rows():
    scores, _, _ = make_rows(0, 500)
    rows = [set(audit.draw_rows(scores, None, 20, 0.5, seed).rows.tolist()) for seed in range(2)]
    assert rows[0] != rows[1]


@pytest.mark.parametrize("uniform_share", [0.2, 1.0])
@pytest.mark.parametrize("draws", [7, 40, 90])
def test_cluster_means_are_unbiased(uniform_share, draws):
    """Compared with the true mean of each stratum and of all rows; the tolerance is four standard errors."""
    scores, losses, strata = make_rows(1, 100)
    truth = np.array([losses[strata == stratum].mean() for stratum in np.unique(strata)])
    plans = [audit.draw_rows(scores, None, draws, uniform_share, seed) for seed in range(1500)]
    means = np.array([audit.cluster_means(plan, losses[plan.rows]).mean() for plan in plans])
    assert abs(means.mean() - losses.mean()) <= 4 * means.std() / len(means) ** 0.5
    if draws < len(truth):
        return
    plans = [audit.draw_rows(scores, strata, draws, uniform_share, seed) for seed in range(1500)]
    means_by_seed = np.array([audit.cluster_means(plan, losses[plan.rows]) for plan in plans])
    error = np.abs(means_by_seed.mean(axis=0) - truth)
    assert (error <= 4 * means_by_seed.std(axis=0) / len(means_by_seed) ** 0.5 + 1e-9).all()


def test_each_draw_alone_is_unbiased():
    """Each cluster is one bet, so each mean, and not only the mean of all of them, must be unbiased."""
    scores, losses, _ = make_rows(2, 53)
    plans = [audit.draw_rows(scores, None, 20, 0.5, seed) for seed in range(4000)]
    means = np.array([audit.cluster_means(plan, losses[plan.rows]) for plan in plans])
    assert (np.abs(means.mean(axis=0) - losses.mean()) <= 4.5 * means.std(axis=0) / len(means) ** 0.5).all()


@pytest.mark.parametrize("uniform_share", [0.3, 1.0])
def test_independent_rows_give_independent_clusters(uniform_share):
    """The variance of the sum is the sum of the variances; with replacement it would be half as much again."""
    generator = np.random.default_rng(8)
    means = []
    for seed in range(3000):
        scores, losses = generator.random(60), (generator.random(60) < 0.3).astype(float)
        drawn = audit.draw_rows(scores, None, 40, uniform_share, seed)
        means.append(audit.cluster_means(drawn, losses[drawn.rows]))
    variance = np.array(means).sum(axis=1).var()
    assert variance / np.array(means).var(axis=0).sum() == pytest.approx(1, abs=0.12)


def test_draws_are_allocated_evenly_to_strata():
    strata = np.repeat([3, 5, 9], [4, 100, 100])
    drawn = audit.draw_rows(np.ones(len(strata)), strata, 50, 0.5, 0)
    assert np.array_equal(np.bincount(drawn.cluster_ids), [4, 23, 23])
    assert [set(strata[drawn.rows[drawn.cluster_ids == cluster]]) for cluster in range(3)] == [{3}, {5}, {9}]


def test_neighbouring_strata_are_merged():
    strata = np.repeat(np.arange(100), 3)[::-1].copy()
    drawn = audit.draw_rows(np.ones(len(strata)), strata, 10, 0.5, 0)
    assert np.array_equal(np.bincount(drawn.cluster_ids), np.ones(10))
    assert np.array_equal(strata[drawn.rows] // 10, np.arange(10))


def test_scores_of_zero_draw_uniformly():
    drawn = audit.draw_rows(np.zeros(40), None, 4, 0.1, 0)
    assert drawn.probability == pytest.approx(np.full(4, 0.1))
    assert drawn.weight == pytest.approx(np.ones(4))
    taken = np.bincount(np.concatenate([audit.draw_rows(np.zeros(40), None, 4, 0.1, s).rows for s in range(4000)]))
    assert (np.abs(taken / 4000 - 0.1) <= 0.025).all()


def test_rows_with_a_higher_score_are_drawn_more_often():
    scores = np.repeat([0.1, 0.9], 50)
    rows = np.concatenate([audit.draw_rows(scores, None, 10, 0.5, seed).rows for seed in range(300)])
    assert 0.65 <= (rows >= 50).mean() <= 0.75  # half uniform, half nine to one: 0.7


def test_no_rows_no_draws():
    drawn = audit.draw_rows(np.empty(0), None, 10, 0.5, 0)
    assert not len(drawn.rows) and not len(audit.cluster_means(drawn, np.empty(0)))
    assert not len(audit.draw_rows(np.empty(0), np.empty(0, dtype=np.int64), 10, 0.5, 0).rows)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": np.array([1.0, -1.0])}, "scores"),
        ({"scores": np.array([1.0, np.nan])}, "scores"),
        ({"draws": 0}, "draws"),
        ({"uniform_share": 0.0}, "uniform_share"),
        ({"uniform_share": 1.1}, "uniform_share"),
    ],
)
def test_draw_rows_refuses(change, message):
    arguments = {"scores": np.ones(2), "strata": None, "draws": 1, "uniform_share": 0.5, "seed": 0} | change
    with pytest.raises(ValueError, match=message):
        audit.draw_rows(**arguments)


def test_huge_scores_do_not_overflow():
    drawn = audit.draw_rows(np.full(30, 1e308), None, 3, 0.5, 0)
    assert drawn.weight == pytest.approx(np.ones(3))


def test_scores_of_margin_and_shift():
    probabilities = np.array([[0.5, 0.5], [0.9, 0.1], [0.9, 0.1], [0.9, 0.1]])
    assert audit.audit_scores(probabilities) == pytest.approx(np.array([1.0, 0.2, 0.2, 0.2]))
    shift = np.array([0.0, 0.0, 0.5, 3.0])
    assert audit.audit_scores(probabilities, shift) == pytest.approx(np.array([1.0, 0.2, 0.6, 1.0]))
    assert audit.audit_scores(np.array([[0.2, 0.5, 0.3]])) == pytest.approx(np.array([0.8]))
