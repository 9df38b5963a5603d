"""The gate: statistics, promotions and refusals, and replay of certificates."""

from __future__ import annotations

import json
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError
from scipy.stats import beta, binom
from sklearn.metrics import roc_auc_score

from stillhouse.errors import RegistryError
from stillhouse.evaluate.comparing import compare_models, lower_bound
from stillhouse.evaluate.gate import certify, first_look_confidence, judge, next_anchor, replay
from stillhouse.quality import get_measure
from stillhouse.records import Certificate, Verdict
from stillhouse.stats import clustered_error, delong
from tests.agents import agent_config

Array = np.ndarray[Any, Any]


def binormal(rng: np.random.Generator, count: int, *shifts: float, noise: float = 1.0) -> tuple[Array, Array]:
    """Half the outcomes 1, and a score for each of ``shifts``, correlated ½ where ``noise`` is 1."""
    labels = np.arange(count) % 2
    common = rng.normal(size=count)
    scores = [(common + noise * rng.normal(size=count)) / math.hypot(1, noise) + s * labels for s in shifts]
    return labels, np.stack(scores)


def two_columns(scores: Array) -> Array:
    p = 1 / (1 + np.exp(-scores))
    return np.column_stack([1 - p, p])


# --------------------------------------------------------------------------- the statistic


def test_delong_by_hand() -> None:
    """Positives (3, 1) and (2, 3), negatives (2, 0) and (1, 0).

    AUC ¾ and 1; placements of the positives (1, ½) and (1, 1), of the negatives (½, 1) and (1, 1): paired differences
    0 and −½ around −¼, and −½ and 0 around −¼, each divided by two.
    """
    labels = np.array([1, 1, 0, 0])
    aucs, influence = delong(labels, np.array([[3.0, 1, 2, 0], [2, 3, 1, 0]]))
    assert aucs == [0.75, 1.0]
    assert influence == pytest.approx([1 / 8, -1 / 8, -1 / 8, 1 / 8])
    assert clustered_error(influence, np.arange(4), small_sample=True) == pytest.approx(math.sqrt(4 / 64 * 4 / 3))
    assert clustered_error(influence, np.array([0, 0, 1, 1]), small_sample=True) == 0


def test_duplicated_rows_do_not_reduce_the_error() -> None:
    labels, scores = binormal(np.random.default_rng(3), 400, 1.0, 0.8)
    once = compare_models("test", labels, two_columns(scores[0]), two_columns(scores[1]), 0.01, np.arange(400))
    twice = np.repeat(np.arange(400), 2)
    doubled = [labels[twice], two_columns(scores[0])[twice], two_columns(scores[1])[twice]]
    assert compare_models("test", *doubled, 0.01, twice).standard_error == pytest.approx(once.standard_error, rel=1e-6)
    assert compare_models("test", *doubled, 0.01).standard_error == pytest.approx(
        once.standard_error / math.sqrt(2), rel=0.01
    )
    assert (
        compare_models("test", labels, two_columns(scores[0]), two_columns(scores[1]), 0.01, np.arange(400) // 50)
        is None
    )


def test_delong_counts_ties_half() -> None:
    labels = np.array([1, 1, 0, 0])
    aucs, _ = delong(labels, np.array([[2.0, 1, 1, 0], [1, 1, 1, 1]]))
    assert aucs == [0.875, 0.5]


def test_aucs_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 300)
    scores = np.round(rng.normal(size=(2, 300)) + labels, 1)
    aucs, _ = delong(labels, scores)
    assert aucs == pytest.approx([roc_auc_score(labels, row) for row in scores], rel=1e-12)


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_delong_agrees_with_a_bootstrap(noise: float) -> None:
    rng = np.random.default_rng(1)
    labels, scores = binormal(rng, 600, 1.2, 0.9, noise=noise)
    _, influence = delong(labels, scores)
    error = clustered_error(influence, np.arange(600), small_sample=True)
    drawn = []
    for _ in range(600):
        rows = rng.integers(0, 600, 600)
        aucs, _ = delong(labels[rows], scores[:, rows])
        drawn.append(aucs[0] - aucs[1])
    assert error == pytest.approx(np.std(drawn), rel=0.15)


def test_one_model_against_itself(make: Any) -> None:
    """No difference was seen, which 200 rows prove as far as the rule of three: 3 / 100 rows of either outcome."""
    labels, scores = binormal(np.random.default_rng(0), 200, 1.0)
    same = compare_models("test", labels, two_columns(scores[0]), two_columns(scores[0]), margin=0.02)
    assert (same.difference, same.standard_error, same.rows, same.measure) == (0, 0, 200, "auc")
    assert lower_bound(same, 0.95) == pytest.approx(-3 / 100, rel=0.02)
    verdict = judge(make.certificate(same, rule=2))
    assert verdict.result == "refused"
    assert verdict.summary.endswith(
        "; at least 151 rows of the rarer outcome are needed to prove a margin of 0.02 at 95%; the window has 100"
    )
    assert judge(make.certificate(same.model_copy(update={"margin": 0.04}), rule=2)).result == "promoted"


def test_accuracy_is_compared_for_more_than_two_actions() -> None:
    """Right on 15 and on 10 of 20 rows, 10 of them in common: differences five 1 and fifteen 0."""
    comparison = compare_accuracy(20, gained=5, base=10)
    assert comparison.measure == "accuracy"
    assert (comparison.challenger, comparison.champion, comparison.difference) == (0.75, 0.5, 0.25)
    assert (comparison.gained, comparison.lost) == (5, 0)
    assert comparison.standard_error == pytest.approx(math.sqrt((20 * (5 / 20) * (15 / 20)) / 19 / 20))
    assert np.array(comparison.evidence.scores) == pytest.approx(np.array([(-0.0125, 15), (0.0375, 5)]))
    assert (comparison.evidence.worst, comparison.evidence.clusters) == (pytest.approx(1.25 / 20), 20)
    assert compare_models("test", np.empty(0, int), np.empty((0, 3)), np.empty((0, 3)), margin=0.01) is None


def compare_accuracy(
    rows: int, lost: int = 0, gained: int = 0, base: int = 0, margin: float = 0.02, **others: Any
) -> Any:
    """Three actions: ``base`` rows on which both are right, the first ones; the rest, but ``lost``, both wrong."""
    right, wrong = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.3, 0.5])
    challenger = np.array([right] * (base + gained) + [wrong] * (rows - base - gained))
    champion = np.array([right] * base + [wrong] * (rows - base))
    champion[base + gained : base + gained + lost] = right
    return compare_models("test", np.zeros(rows, int), challenger, champion, margin, **others)


@pytest.mark.parametrize(
    ("rows", "lost", "promoted"), [(150, 0, False), (151, 0, True), (232, 1, False), (240, 1, True)]
)
def test_with_few_losses_the_bound_is_clopper_and_pearsons(make: Any, rows: int, lost: int, promoted: bool) -> None:
    """The least rows for which their upper bound of the lost share is .02: 149, and 236 with one lost."""
    comparison = compare_accuracy(rows, lost, base=rows - 10)
    assert -lower_bound(comparison, 0.95) == pytest.approx(beta.ppf(0.95, lost + 1, rows - lost), rel=0.02)
    verdict = judge(make.certificate(comparison, rule=2))
    assert (verdict.result == "promoted") is promoted, verdict.summary


def test_rows_of_one_cluster_count_once(make: Any) -> None:
    """400 rows without a disagreement in 100 clusters: a whole cluster could be lost."""
    comparison = compare_accuracy(400, base=300, cluster_ids=np.arange(400) // 4)
    assert (comparison.evidence.clusters, comparison.evidence.effective) == (100, pytest.approx(100))
    assert lower_bound(comparison, 0.95) == pytest.approx(-3 / 100, rel=0.01)
    assert judge(make.certificate(comparison, rule=2)).summary.endswith(
        "; at least 151 clusters of rows are needed to prove a margin of 0.02 at 95%; the window has 100"
    )
    uneven = compare_accuracy(400, base=300, cluster_ids=np.minimum(np.arange(400), 300))
    assert uneven.evidence.effective == pytest.approx(400**2 / (300 + 100**2))


def test_a_challenger_proven_worse_is_refused_within_the_margin(make: Any) -> None:
    comparison = compare_accuracy(3000, lost=40, gained=10, base=2500)
    verdict = judge(make.certificate(comparison, rule=2))
    assert verdict.result == "refused"
    reason = verdict.reasons[-1]
    assert reason.failed and reason.threshold == 0.0 and -0.01 < reason.value < 0
    assert "the challenger is worse, though not by more than 0.02" in verdict.summary
    assert "only the challenger is right on 10 rows, only the champion on 40" in verdict.summary
    heavy = make.card("toy@3", size=3000, role="champion")
    assert judge(make.certificate(comparison, rule=2, champion=heavy)).result == "promoted"  # the champion must go
    slice_of_it = comparison.model_copy(update={"window": "origin=JFK"})
    even = compare_accuracy(3000, lost=20, gained=20, base=2500)
    assert judge(make.certificate(even, slice_of_it, rule=2)).result == "promoted"


@pytest.mark.parametrize("actions", [2, 5])
@pytest.mark.parametrize("strange", [np.nan, np.inf])
def test_a_row_without_a_finite_answer_counts_as_wrong(actions: int, strange: float) -> None:
    """Not one on which `argmax`, which takes the first NaN, is right about the first action."""
    labels = np.arange(600) % actions
    right = np.eye(actions)[labels] * 0.5 + 0.5 / actions
    silent = np.where((np.arange(600) % 10 == 0)[:, None], strange, right)
    for challenger, champion, sign in ((silent, right, -1), (right, silent, 1)):
        comparison = compare_models("test", labels, challenger, champion, 0.02)
        assert comparison is not None and comparison.difference * sign > 0.05
        assert (lower_bound(comparison, 0.95) < -0.02) == (sign < 0)


@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_constant_scores_prove_nothing(make: Any, probability: float) -> None:
    labels = np.arange(200) % 2
    flat = np.column_stack([np.full(200, 1 - probability), np.full(200, probability)])
    for clusters in (None, np.arange(200) // 10):
        comparison = compare_models("test", labels, flat, flat, 0.02, clusters)
        assert judge(make.certificate(comparison, rule=2)).result == "refused"


def test_with_few_clusters_the_auc_bound_uses_students_t(make: Any) -> None:
    """The same scores in 12 and in 300 clusters: Student's t and the worst cluster, or nearly normal."""
    labels, scores = binormal(np.random.default_rng(5), 1200, 1.0, 0.9)
    pair = labels, two_columns(scores[0]), two_columns(scores[1])
    few, many = (compare_models("test", *pair, 0.02, np.arange(1200) % count) for count in (12, 300))
    assert few.difference - lower_bound(few, 0.95) > 1.8 * few.standard_error
    assert 1.65 < (many.difference - lower_bound(many, 0.95)) / many.standard_error < 2.1
    lopsided = compare_models("test", *pair, 0.02, np.where(np.arange(1200) < 900, 0, np.arange(1200)))
    assert lopsided.evidence.clusters == 301 and lopsided.evidence.effective < 2
    assert lower_bound(lopsided, 0.95) < few.difference - 0.05


def test_one_large_cluster_does_not_prove_more_than_the_confidence_allows(make: Any) -> None:
    """One cluster as large as half of the other 150 together, each with its own random effect; on average the
    challenger is worse by the margin. If the effect of the large cluster is good, it alone could carry the challenger.
    """
    clusters = np.concatenate([np.zeros(375, dtype=int), np.repeat(np.arange(1, 151), 5)])
    rows, promoted, normal = len(clusters), 0, NormalDist()
    for seed in range(60):
        rng = np.random.default_rng([41, seed])
        labels, common = (rng.random(rows) < 0.25).astype(int), rng.normal(size=rows)
        scores = 0.97 * common + 0.22 * rng.normal(size=(2, rows))
        worse = normal.inv_cdf(0.72) * math.sqrt(3) + rng.normal(size=151)[clusters]  # of positives that vary by 1
        challenger, champion = scores + labels * np.stack([worse, np.full(rows, normal.inv_cdf(0.75) * math.sqrt(2))])
        comparison = compare_models("test", labels, two_columns(challenger), two_columns(champion), 0.03, clusters)
        promoted += comparison is not None and lower_bound(comparison, 0.95) >= -0.03
    assert promoted <= binom.ppf(0.99, 60, 0.05)


def test_a_challenger_better_in_every_cluster_passes(make: Any) -> None:
    """If none of 50 clusters lost anything, the worst case must not assume that the next one loses everything."""
    labels, scores = binormal(np.random.default_rng(7), 2000, 1.5, 1.0, noise=0.1)
    comparison = compare_models(
        "test", labels, two_columns(scores[0]), two_columns(scores[1]), 0.01, np.arange(2000) % 50
    )
    assert comparison.difference > 0.05
    assert judge(make.certificate(comparison, rule=2)).result == "promoted"


def test_many_scores_are_binned(make: Any) -> None:
    labels, scores = binormal(np.random.default_rng(6), 6000, 1.0, 0.98)
    comparison = compare_models("test", labels, two_columns(scores[0]), two_columns(scores[1]), 0.02)
    binned, counts = np.array(comparison.evidence.scores).T
    assert len(binned) <= 500 and counts.sum() == 6000
    assert binned @ counts == pytest.approx(0, abs=1e-12)
    assert math.sqrt(binned**2 @ counts) == pytest.approx(comparison.standard_error, rel=1e-3)


@pytest.mark.parametrize(("ones", "zeros", "is_evidence"), [(10, 10, True), (9, 50, False), (50, 9, False)])
def test_too_few_of_either_outcome_are_no_evidence(ones: int, zeros: int, is_evidence: bool) -> None:
    labels = np.array([1] * ones + [0] * zeros)
    p = two_columns(np.random.default_rng(0).normal(size=ones + zeros))
    assert (compare_models("test", labels, p, p, margin=0.01) is not None) is is_evidence


def test_a_challenger_that_is_worse_by_the_margin_passes_in_one_of_twenty(make: Any) -> None:
    """AUC of a binormal score is Φ(shift / √2); 150 tests of 300 rows, at most 5 % and two standard errors."""
    normal = NormalDist()
    challenger, champion = (math.sqrt(2) * normal.inv_cdf(auc) for auc in (0.75, 0.80))
    rng = np.random.default_rng(2)
    passed = 0
    for _ in range(150):
        labels, scores = binormal(rng, 300, challenger, champion)
        comparison = compare_models("test", labels, two_columns(scores[0]), two_columns(scores[1]), margin=0.05)
        passed += judge(make.certificate(comparison)).result == "promoted"
    assert 0 < passed <= 12


def error_rate(rows: int, margin: float, disagreement: float) -> float:
    """The probability that a challenger worse by exactly ``margin`` passes: an exact sum over all counts."""
    passed, tolerable, total = 0.0, 0, margin + 2 * disagreement
    for decided in range(rows + 1):  # rows on which exactly one is right; of those, how many may be lost
        share = binom.pmf(decided, rows, total)
        if share < 1e-9:
            continue

        def passes(lost: int, decided: int = decided) -> bool:
            comparison = compare_accuracy(rows, lost, decided - lost, margin=margin)
            return bool(lower_bound(comparison, 0.95) >= -margin)

        tolerable = max(0, tolerable - 1)
        while tolerable < decided and passes(tolerable + 1):
            tolerable += 1
        if passes(tolerable):
            passed += share * binom.cdf(tolerable, decided, (margin + disagreement) / total)
    return passed


@pytest.mark.parametrize(("rows", "margin"), [(20, 0.2), (60, 0.05), (150, 0.05), (200, 0.02)])
@pytest.mark.parametrize("disagreement", [0.0, 0.005, 0.05])
def test_the_error_rate_is_at_most_the_stated_one(rows: int, margin: float, disagreement: float) -> None:
    assert error_rate(rows, margin, disagreement) <= 0.05


# --------------------------------------------------------------------------- the verdict


def test_no_worse_within_the_budgets(make: Any) -> None:
    verdict = judge(make.certificate(make.comparison("test", -0.001, 0.001), make.comparison("past", 0.01, 0.001)))
    assert (verdict.result, verdict.kind, verdict.agent, verdict.as_of) == ("promoted", "gate", "toy", make.now)
    assert verdict.summary == "fp32 promoted: no worse than the champion, within the budgets"
    assert [reason.measure for reason in verdict.reasons] == ["bytes", "p95_ms", "auc:test", "auc:past"]
    assert not any(reason.failed for reason in verdict.reasons)


def test_the_bound_by_hand(make: Any) -> None:
    """−.002 − 1.6449 · .001 = −.0036449, above −.005; at 99 % 2.3263 · .001 more, and still so; at .002 no more."""
    verdict = judge(make.certificate(make.comparison("test", -0.002, 0.001)))
    assert verdict.reasons[-1].value == pytest.approx(-0.0036449, abs=1e-7)
    assert verdict.reasons[-1].threshold == -0.005
    assert judge(make.certificate(make.comparison("test", -0.002, 0.001), confidence=0.99)).result == "promoted"
    assert judge(make.certificate(make.comparison("test", -0.002, 0.002))).result == "refused"


def test_a_clearly_worse_challenger_is_refused_by_name(make: Any) -> None:
    labels, scores = binormal(np.random.default_rng(0), 2000, 0.4, 1.2)
    verdict = judge(
        make.certificate(compare_models("test", labels, two_columns(scores[0]), two_columns(scores[1]), margin=0.01))
    )
    assert verdict.result == "refused"
    (failed,) = [reason for reason in verdict.reasons if reason.failed]
    assert failed.measure == "auc:test"
    assert verdict.summary == f"fp32 refused: {failed.text}"
    assert "on test (2000 rows) the challenger may be worse by more than 0.01: auc 0." in failed.text
    assert "lower 95% bound of the difference -0." in failed.text


def test_without_margin_equal_quality_of_a_few_rows_is_not_proven(make: Any) -> None:
    labels, scores = binormal(np.random.default_rng(3), 60, 1.0, 1.0)
    comparison = compare_models("test", labels, two_columns(scores[0]), two_columns(scores[1]), margin=0.0)
    assert abs(comparison.difference) < comparison.standard_error
    assert judge(make.certificate(comparison)).result == "refused"


def test_a_slice_and_the_past_are_judged_too(make: Any) -> None:
    for window in ("origin=JFK", "past"):
        verdict = judge(make.certificate(make.comparison(), make.comparison(window, -0.1, 0.01, margin=0.02)))
        assert verdict.result == "refused"
        assert [reason.measure for reason in verdict.reasons if reason.failed] == [f"auc:{window}"]


@pytest.mark.parametrize(
    ("fields", "measure", "text"),
    [
        ({"max_bytes": 999}, "bytes", "fp32 has 1000 bytes, above the budget of 999"),
        ({"max_p95_ms": 0.09}, "p95_ms", r"fp32 has 0\.1 ms \(p95\), above the budget of 0\.09"),
    ],
)
def test_a_budget_that_is_broken(make: Any, fields: dict[str, Any], measure: str, text: str) -> None:
    verdict = judge(make.certificate(**fields))
    assert verdict.result == "refused"
    (failed,) = [reason for reason in verdict.reasons if reason.failed]
    assert failed.measure == measure
    assert text.replace("\\", "") == failed.text


def test_a_budget_that_is_met_exactly_or_not_set(make: Any) -> None:
    assert judge(make.certificate(max_bytes=1000, max_p95_ms=0.1)).result == "promoted"
    verdict = judge(make.certificate(max_bytes=None, max_p95_ms=None))
    assert (verdict.result, len(verdict.reasons)) == ("promoted", 1)


def test_a_latency_that_was_not_measured_is_not_within_a_budget(make: Any) -> None:
    verdict = judge(make.certificate(challenger=make.card(p95=None)))
    assert verdict.result == "refused"
    assert "fp32 was not measured against the budget of 0.5 ms (p95)" in verdict.summary
    assert judge(make.certificate(challenger=make.card(p95=None), max_p95_ms=None)).result == "promoted"


def test_the_first_champion_needs_no_comparison(make: Any) -> None:
    verdict = judge(make.certificate(champion=None, comparisons=()))
    assert verdict.result == "promoted"
    assert verdict.summary == "fp32 promoted: no champion yet, within the budgets"


@pytest.mark.parametrize("auc", [0.5, 0.49, None])
def test_the_first_champion_must_beat_chance(make: Any, auc: float | None) -> None:
    verdict = judge(make.certificate(champion=None, comparisons=(), challenger=make.card(test=auc)))
    assert verdict.result == "refused"
    assert [reason.measure for reason in verdict.reasons if reason.failed] == ["auc"]


def test_a_challenger_that_could_not_be_compared_is_not_promoted_over_a_champion(make: Any) -> None:
    for comparisons in ((), (make.comparison("past"),)):
        verdict = judge(make.certificate().model_copy(update={"comparisons": comparisons}))
        assert verdict.result == "refused"
        assert "the test window (900 rows) has too few outcomes of each action" in verdict.summary


def test_a_person_may_have_to_approve(make: Any) -> None:
    verdict = judge(make.certificate(approval="manual"))
    assert verdict.result == "awaiting_approval"
    assert verdict.summary == "fp32 passed; a person must promote it"
    assert judge(make.certificate(approval="manual", max_bytes=1)).result == "refused"


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"champion": None, "comparisons": ()},
        {"max_bytes": 1, "max_p95_ms": None},
        {"approval": "manual"},
        {"nothing_fits": "nothing fits: it would take more"},
    ],
)
def test_judged_again_it_is_the_same(make: Any, fields: dict[str, Any]) -> None:
    third = make.comparison("test", 1 / 3, 0.1 + 0.2)
    certificate = make.certificate(third, **fields) if "comparisons" not in fields else make.certificate(**fields)
    verdict = judge(certificate)
    assert judge(certificate) == verdict
    back = Verdict.model_validate_json(verdict.model_dump_json())
    assert replay(back) == back == verdict
    assert Certificate.model_validate(back.evidence["certificate"]) == certificate


def test_a_certificate_names_its_rule_and_keeps_its_verdict_under_it(make: Any) -> None:
    """What rule 1 promoted on 20 rows stays promoted when it is judged again; a new one of the same rows is not."""
    new = make.certificate(compare_accuracy(20, base=15), rule=2)
    verdict = judge(new)
    assert verdict.result == "refused"
    assert verdict.evidence["certificate"]["rule"] == 2
    assert verdict.evidence["certificate"]["comparisons"][0]["evidence"]["scores"] == [[0.0, 20]]
    assert replay(Verdict.model_validate_json(verdict.model_dump_json())) == verdict
    old = new.model_dump(mode="json", exclude={"rule", "anchor"})
    for added in ("rule", "lost", "gained", "rarer", "evidence"):
        del old["comparisons"][0][added]
    assert judge(Certificate.model_validate(old)).result == "promoted"


def test_a_rule_of_a_later_version_is_not_guessed(make: Any) -> None:
    with pytest.raises(RegistryError, match="made by rule 4 of the gate, and this version of stillhouse knows rules 1"):
        judge(make.certificate(rule=4))
    with pytest.raises(RegistryError, match="rule 4"):
        lower_bound(make.comparison().model_copy(update={"rule": 4}), 0.95)


def test_promotions_in_a_row_may_lose_no_less_than_one(make: Any) -> None:
    with pytest.raises(ValidationError, match=r"total_margin: is 0\.01, but one promotion alone may lose .* 0\.02"):
        make.config(non_inferiority_margin=0.02, total_margin=0.01)
    assert make.config(non_inferiority_margin=0.02, total_margin=0.02).margins.total == 0.02
    assert make.config(non_inferiority_margin=0.02).margins.total == 0.04


def test_the_anchor_stays_until_it_is_beaten(make: Any) -> None:
    first = make.certificate(champion=None, comparisons=(), rule=2)
    assert next_anchor(first) is None
    equal = make.certificate(make.comparison("test", 0.001, 0.001), rule=2, anchor="toy@3")
    assert next_anchor(equal) == "toy@3"
    assert next_anchor(make.certificate(make.comparison("test", 0.003, 0.001), rule=2, anchor="toy@3")) is None
    better, same = make.comparison("test", 0.01, 0.001), make.comparison("anchor", 0.001, 0.001)
    assert next_anchor(make.certificate(better, same, rule=2, anchor="toy@1")) == "toy@1"
    assert next_anchor(make.certificate(same, make.comparison("anchor", 0.01, 0.001), rule=2, anchor="toy@1")) is None
    assert next_anchor(make.certificate(better)) is None  # rule 1 knew no anchor
    lost = make.certificate(better, make.comparison("anchor", -0.02, 0.001, margin=0.01), rule=2, anchor="toy@1")
    assert "against the champion that cumulative losses are measured from (900 rows)" in judge(lost).summary


def test_the_verdict_of_another_refresh_is_another(make: Any) -> None:
    ids = {judge(make.certificate(refresh_id=name)).verdict_id for name in ("r1", "r2")}
    assert len(ids) == 2


def test_a_certificate_holds_the_budgets_of_its_day(make: Any) -> None:
    config = make.config({"max_bytes": 5000, "max_p95_ms": 0.3}, confidence=0.9, approval="manual")
    certificate = certify(config, "r9", make.now, make.card(), None, [make.comparison()])
    assert (certificate.max_bytes, certificate.max_p95_ms, certificate.confidence, certificate.approval) == (
        5000,
        0.3,
        0.9,
        "manual",
    )
    assert (certificate.agent, certificate.refresh_id, certificate.as_of, certificate.champion) == (
        "toy",
        "r9",
        make.now,
        None,
    )
    assert certificate.comparisons == (make.comparison(),) and certificate.nothing_fits == ""
    assert certify(config, "r9", make.now, make.card(), None, [], "nothing fits").nothing_fits == "nothing fits"


def test_a_challenger_that_keeps_to_no_budget_is_refused_with_what_would_have_to_give(make: Any) -> None:
    """Even where the certificate's own budgets are met: latency is measured twice, and may differ."""
    why = "nothing fits: it would take a max_bytes of 1,000, not 900 (fp32)"
    verdict = judge(make.certificate(nothing_fits=why))
    assert verdict.result == "refused" and verdict.summary == f"fp32 refused: {why}"
    assert (verdict.reasons[0].measure, verdict.reasons[0].text) == ("compression", why)
    assert [reason.measure for reason in verdict.reasons if reason.failed] == ["compression"]
    broken = judge(make.certificate(nothing_fits=why, max_bytes=900))
    assert broken.summary == f"fp32 refused: {why}"
    assert [reason.measure for reason in broken.reasons if reason.failed] == ["compression", "bytes"]
    assert not any(reason.measure == "compression" for reason in judge(make.certificate()).reasons)


def test_more_than_two_actions_are_judged_by_accuracy(make: Any) -> None:
    """The mean one-vs-rest AUC of 150 actions is near 1 for all."""
    many = make.quality(0.999, 0.5).model_copy(update={"actions": 150})
    assert (many.measure, many.score) == ("accuracy", 0.5)
    assert make.quality(0.7).measure == "auc" and make.quality(0.7).score == 0.7
    first = make.certificate(
        champion=None, comparisons=(), challenger=make.card().model_copy(update={"quality": {"test": many}})
    )
    (text,) = [reason.text for reason in judge(first).reasons if reason.measure == "auc"]
    assert text == "test AUC 0.9990 (mean over the actions, each against the others) against chance .5"
    assert make.quality(None, 0.6).measure == "accuracy" and make.quality(None, 0.6).score == 0.6


# --------------------------------------------------------------------------- rule 3: named measures, and three results


LOG_LOSS = get_measure(agent_config())


def compare_log_loss(change: Array, margin: float = 0.02, **others: Any) -> Any:
    """Rows with p(outcome) .5 by the champion, and a loss that differs by ``change`` (nats) by the challenger."""
    p = 0.5 * np.exp(-np.asarray(change, dtype=float))
    labels = np.arange(len(p)) % 2
    right = np.where(labels == 1, p, 1 - p)
    return compare_models(
        "test",
        labels,
        np.column_stack([1 - right, right]),
        np.full((len(p), 2), 0.5),
        margin,
        measure=LOG_LOSS,
        **others,
    )


@pytest.mark.parametrize("index", range(4))
def test_stored_verdicts_of_older_rules_stay_identical(index: int) -> None:
    """Written by the version before rule 3: refused for few rows, refused as worse, promoted twice; also as JSON."""
    stored = json.loads((Path(__file__).parent / "verdicts_of_rules_1_and_2.json").read_text())[index]
    verdict = Verdict.model_validate(stored)
    again = replay(verdict)
    assert again == verdict
    assert again.model_dump(mode="json")["evidence"] == stored["evidence"]
    assert again.result == ["refused", "refused", "promoted", "promoted"][index]


def test_the_log_loss_is_compared_by_its_bounded_rows() -> None:
    """One row in ten loses .1 nats; the worst new row could lose ln 100 and what was lost on average."""
    comparison = compare_log_loss(np.where(np.arange(200) % 10 == 0, 0.1, 0.0))
    assert (comparison.measure, comparison.unit, comparison.better) == ("log_loss", "nats", "lower")
    assert comparison.champion == pytest.approx(math.log(2))
    assert comparison.difference == pytest.approx(-0.01)
    assert (comparison.lost, comparison.gained) == (20, 0)
    assert comparison.evidence.worst == pytest.approx((math.log(100) - 0.01) / 200)
    same = compare_log_loss(np.zeros(1000))
    assert lower_bound(same, 0.95) == pytest.approx(-3 * math.log(100) / 1000, rel=0.01)


def test_the_first_look_spends_four_fifths_of_the_error(make: Any) -> None:
    assert first_look_confidence(0.95) == pytest.approx(0.96)
    comparison = compare_accuracy(160, base=150)
    assert lower_bound(comparison, 0.95) >= -0.02 > lower_bound(comparison, 0.96)
    assert judge(make.certificate(comparison, rule=2)).result == "promoted"
    verdict = judge(make.certificate(comparison, rule=3))
    assert verdict.result == "inconclusive"
    assert "lower 96% bound of the gain" in verdict.summary


def test_what_cannot_be_told_is_inconclusive_and_says_how_many_labels_would_decide(make: Any) -> None:
    """An equal challenger: n rows prove about ln(25) / n, so 150 rows must become 162."""
    card = make.card().model_copy(update={"quality": {"test": make.quality(0.7, rows=150)}})
    verdict = judge(make.certificate(compare_accuracy(150, base=150), rule=3, challenger=card))
    assert (verdict.result, verdict.response) == ("inconclusive", "hold")
    assert verdict.labels_needed == pytest.approx(162 - 150, abs=2)
    assert verdict.summary.startswith(f"fp32 inconclusive: about {verdict.labels_needed} more labels would decide: ")
    (reason,) = [reason for reason in verdict.reasons if reason.undecided]
    assert (reason.status, reason.failed, reason.measure) == ("undecided", False, "accuracy:test")
    assert "may be worse by more than 0.02" in reason.text
    more = 150 + verdict.labels_needed
    assert judge(make.certificate(compare_accuracy(more, base=more), rule=3)).result == "promoted"
    back = Verdict.model_validate_json(verdict.model_dump_json())
    assert replay(back) == back == verdict


def test_the_labels_of_a_worse_challenger_would_show_that_it_is_worse(make: Any) -> None:
    comparison = compare_accuracy(300, lost=8, gained=3, base=200)
    card = make.card().model_copy(update={"quality": {"test": make.quality(0.7, rows=300)}})
    verdict = judge(make.certificate(comparison, rule=3, challenger=card))
    assert verdict.result == "inconclusive" and verdict.labels_needed > 0
    factor = (300 + verdict.labels_needed) / 300
    later = compare_accuracy(round(300 * factor), round(8 * factor), round(3 * factor), base=round(200 * factor))
    assert judge(make.certificate(later, rule=3)).result == "refused"


def test_too_few_outcomes_to_compare_are_inconclusive(make: Any) -> None:
    verdict = judge(make.certificate(rule=3).model_copy(update={"comparisons": ()}))
    assert (verdict.result, verdict.labels_needed) == ("inconclusive", None)
    assert "has too few outcomes of each action" in verdict.summary


def test_without_a_margin_no_number_of_rows_decides_for_an_equal_challenger(make: Any) -> None:
    verdict = judge(make.certificate(compare_accuracy(300, base=300, margin=0.0), rule=3))
    assert (verdict.result, verdict.labels_needed) == ("inconclusive", None)
    assert "no number of rows like these would decide" in verdict.summary


def test_proven_harm_and_budgets_refuse_also_where_something_else_is_undecided(make: Any) -> None:
    undecided = compare_accuracy(100, base=90).model_copy(update={"window": "origin=JFK"})
    worse = compare_accuracy(3000, lost=40, gained=10, base=2500)
    assert judge(make.certificate(worse, undecided, rule=3)).result == "refused"
    even = compare_accuracy(3000, lost=20, gained=20, base=2500)
    assert judge(make.certificate(even, undecided, rule=3)).result == "inconclusive"
    assert judge(make.certificate(even, undecided, rule=3, max_bytes=1)).result == "refused"
    assert judge(make.certificate(even, undecided, rule=3, approval="manual")).result == "inconclusive"
    heavy = make.card("toy@3", size=3000, role="champion")
    assert judge(make.certificate(worse, rule=3, champion=heavy)).result == "promoted"  # the champion must go


@pytest.mark.parametrize(("lost", "result"), [(60, "refused"), (10, "promoted")])
def test_proven_harm_in_accuracy_vetoes_a_better_log_loss(make: Any, lost: int, result: str) -> None:
    better = compare_log_loss(np.where(np.arange(3000) % 10, -0.1, -0.2))
    accuracy = compare_accuracy(3000, lost=lost, base=2500, margin=0.005).model_copy(update={"role": "no_harm"})
    verdict = judge(make.certificate(better, accuracy, rule=3))
    assert verdict.result == result
    reason = verdict.reasons[-1]
    assert reason.measure == "accuracy:test"
    assert f"the challenger is {'' if result == 'refused' else 'not proven '}worse by more than 0.005" in reason.text


def test_against_earlier_champions_a_proven_loss_within_the_margin_is_allowed(make: Any) -> None:
    anchor = compare_accuracy(20_000, lost=300, gained=100, base=15_000, margin=0.02).model_copy(
        update={"window": "anchor", "role": "cumulative"}
    )
    even = compare_accuracy(20_000, lost=100, gained=100, base=15_000)
    verdict = judge(make.certificate(even, anchor, rule=3))
    assert verdict.result == "promoted"
    assert "is worse, though not by more than 0.02" in verdict.reasons[-1].text
    assert judge(make.certificate(even, anchor.model_copy(update={"margin": 0.005}), rule=3)).result == "refused"
    assert judge(make.certificate(even, anchor.model_copy(update={"margin": 0.01}), rule=3)).result == "inconclusive"


@pytest.mark.parametrize(("rows", "clusters"), [(60, 60), (600, 600), (600, 60)])
def test_rare_complete_losses_of_log_loss_do_not_pass(make: Any, rows: int, clusters: int) -> None:
    """A worse challenger that is as good on most rows: .1 nats are ln 50 on one row in 39. At most 4 % pass."""
    passed, share = 0, 0.1 / math.log(50)
    for seed in range(150):
        rng = np.random.default_rng([17, rows, clusters, seed])
        lost = (rng.random(clusters) < share)[np.arange(rows) % clusters]
        noise = rng.normal(scale=0.02, size=rows)
        change = np.where(lost, math.log(50), noise)
        comparison = compare_log_loss(change, margin=0.1, cluster_ids=np.arange(rows) % clusters)
        passed += judge(make.certificate(comparison, rule=3)).result == "promoted"
    assert passed <= binom.ppf(0.99, 150, 0.04)
