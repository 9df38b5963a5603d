"""The provable margin of a test window agrees with the gate's bound."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import beta

from stillhouse.evaluate.bounds import bound_shift, shift_without_losses
from stillhouse.evaluate.comparing import compare_models, lower_bound
from stillhouse.evaluate.power import describe_power, provable_margin, rows_needed


@pytest.mark.parametrize("confidence", [0.51, 0.6, 0.8, 0.95, 0.999])
def test_without_losses_the_bound_is_the_rule_of_three(confidence: float) -> None:
    assert shift_without_losses(confidence) == pytest.approx(math.log(1 / (1 - confidence)), rel=0.01)
    assert provable_margin(400, 100, confidence) == pytest.approx(math.log(1 / (1 - confidence)) / 100, rel=0.01)


@pytest.mark.parametrize("lost", [0, 1, 5, 40])
def test_the_bound_of_a_proportion_is_clopper_and_pearsons(lost: int) -> None:
    """A challenger that only loses rows: scores −1 and 0 around their mean."""
    rate = lost / 500
    shift = bound_shift(np.array([-1 + rate, rate]) / 500, np.array([lost, 500 - lost]), (1 - rate) / 500, 0.95)
    assert rate - shift == pytest.approx(beta.ppf(0.95, lost + 1, 500 - lost), rel=0.01)


@pytest.mark.parametrize("confidence", [0.55, 0.7, 0.95, 0.99])
def test_the_quantile_agrees_with_a_simulation(confidence: float) -> None:
    scores, counts = np.array([-0.5, 0.1, 0.3]), np.array([3.0, 12.0, 1.0])
    weights = np.random.default_rng(0).gamma(np.append(counts, 1)[:, None], size=(4, 400_000))
    drawn = np.quantile(np.append(scores, -0.8) @ weights, 1 - confidence)
    assert bound_shift(scores, counts, 0.8, confidence) == pytest.approx(drawn, rel=0.02)


def test_rows_needed_and_the_provable_margin_agree() -> None:
    needed = rows_needed(0.02)
    assert needed == 151
    assert provable_margin(needed, needed) <= 0.02 < provable_margin(needed - 1, needed - 1)
    assert rows_needed(0.02, rows_per_cluster=2) == 302
    assert rows_needed(0.0) is None


def test_disagreement_and_clusters_make_the_margin_larger() -> None:
    alone = provable_margin(3000, 3000)
    assert alone < provable_margin(3000, 3000, disagreement=0.1) < provable_margin(3000, 3000, disagreement=0.3)
    assert provable_margin(3000, 300) == pytest.approx(10 * alone)
    normal = 1.645 * math.sqrt(0.1 / 300_000)
    assert provable_margin(300_000, 300_000, disagreement=0.1) == pytest.approx(normal, rel=0.02)


def test_the_sentence() -> None:
    assert describe_power(336, 168) == (
        "with 336 rows in 168 clusters the gate can prove no margin below .018 (at 95%)"
    )
    assert describe_power(100, 100, on="episodes", span=200).startswith(
        "with 100 episodes the gate can prove no margin"
    )
    assert describe_power(336, 336, 0.99) == "with 336 rows the gate can prove no margin below .014 (at 99%)"
    assert describe_power(336, 168, rarer=50) == (
        "with 336 rows in 168 clusters, 50 of the rarer outcome, the gate can prove no margin below .061 (at 95%)"
    )
    assert (
        describe_power(2, 2)
        == describe_power(0, 0).replace("0 rows", "2 rows")
        == "with 2 rows the gate can prove nothing"
    )


@pytest.mark.parametrize(("rarer", "clusters"), [(9, 100), (50, 9)])
def test_too_few_for_an_auc_prove_nothing(rarer: int, clusters: int) -> None:
    assert provable_margin(400, clusters, rarer=rarer) == 1.0
    assert describe_power(400, clusters, rarer=rarer).endswith("the gate can prove nothing")


@pytest.mark.parametrize(("rows", "clusters"), [(400, 400), (400, 40), (400, 12)])
def test_the_provable_margin_of_an_auc_is_a_lower_bound(rows: int, clusters: int) -> None:
    outcomes, probs = np.arange(rows) % 4 // 3, np.full((rows, 2), 0.5)
    comparison = compare_models("test", outcomes, probs, probs, 0.02, np.arange(rows) * clusters // rows)
    assert comparison is not None
    margin = provable_margin(rows, clusters, rarer=rows // 4)
    assert 0 < margin <= -lower_bound(comparison, 0.95) * (1 + 1e-9)
    if rows == clusters:
        assert margin == pytest.approx(-lower_bound(comparison, 0.95), rel=0.01)
