"""A teacher must know more than the base rate, with confidence, before it may teach."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import AgentConfig, QualitySettings
from stillhouse.evaluate import admission
from stillhouse.records import Examination, Verdict
from tests.teachers.test_ensemble import MEMORY, make_config

NOW = datetime(2013, 3, 1, tzinfo=UTC)
RATE = np.array([0.7, 0.3])
OWN = {"target": "tests.evaluate.test_admission:hits", "name": "hit", "low": 0, "high": 4}


def make(n: int = 600, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows, one an hour, and the true probability of the second action for each."""
    rng = np.random.default_rng(seed)
    truth = 1 / (1 + np.exp(-2 * rng.normal(size=n)))
    times = pd.to_datetime([NOW + timedelta(hours=i) for i in range(n)])
    return pd.DataFrame({"observed_at": times, "outcome": (rng.random(n) < truth).astype(int)}), truth


def examine(rows: pd.DataFrame, second: np.ndarray, config: AgentConfig | None = None, **others) -> Examination:
    probs = np.stack([1 - second, second], axis=1)
    return admission.examine(config or make_config(MEMORY), "r", NOW, "v1", rows, probs, RATE, **others)


def failed_measures(verdict: Verdict) -> list[str]:
    return [reason.measure for reason in verdict.reasons if reason.failed]


def test_a_teacher_better_than_the_base_rate_is_admitted() -> None:
    rows, truth = make()
    verdict = admission.judge(examine(rows, truth))
    assert (verdict.result, verdict.kind, failed_measures(verdict)) == ("admitted", "gate", [])
    assert "600 rows that it has not seen" in verdict.summary
    assert admission.replay(verdict) == verdict
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_the_bound_by_hand() -> None:
    """AUC of the ranks minus ½, less 1.645 standard errors, and about one row of the rarer outcome."""
    rows, truth = make()
    examination = examine(rows, truth)
    positive, negative = truth[rows["outcome"] == 1], truth[rows["outcome"] == 0]
    auc = (positive[:, None] > negative).mean()
    assert examination.comparison.challenger == pytest.approx(auc)
    assert examination.comparison.champion == 0.5
    low = auc - 0.5 - NormalDist().inv_cdf(0.95) * examination.comparison.standard_error
    row = (auc + 0.5) / rows["outcome"].value_counts().min()
    assert low - 3 * row < admission.judge(examination).reasons[-1].value < low


def test_an_examination_under_rule_1_keeps_its_verdict() -> None:
    """Rule 1: a normal bound; the stored examination has no rule."""
    rows, truth = make()
    old = examine(rows, truth).model_dump(mode="json", exclude={"rule", "agreement_evidence"})
    old["comparison"] = {k: v for k, v in old["comparison"].items() if k not in ("rule", "evidence", "rarer")}
    examination = Examination.model_validate(old)
    assert examination.rule == 1
    low = examination.comparison.difference - NormalDist().inv_cdf(0.95) * examination.comparison.standard_error
    assert admission.judge(examination).reasons[-1].value == pytest.approx(low)


def test_a_guessing_teacher_is_admitted_at_most_at_the_error_rate() -> None:
    """Of 200 guessing teachers, one in twenty would be admitted by chance without the margin, fewer with it."""
    passed = 0
    for seed in range(200):
        rows, _ = make(200, seed)
        guesses = np.random.default_rng(1000 + seed).random(200)
        passed += admission.judge(examine(rows, guesses)).result == "admitted"
    assert passed <= 18


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_constant_teacher_is_refused(share: float) -> None:
    rows, _ = make()
    verdict = admission.judge(examine(rows, np.full(len(rows), share)))
    assert verdict.result == "refused"
    assert failed_measures(verdict) == ["constant", "auc"]
    assert "its answer is the same for every row" in verdict.summary


def test_a_teacher_with_swapped_actions_is_refused() -> None:
    rows, truth = make()
    assert failed_measures(admission.judge(examine(rows, 1 - truth))) == ["auc"]


def test_a_harmful_champion_may_be_replaced_by_a_guessing_teacher() -> None:
    rows, truth = make()
    guesses = np.random.default_rng(3).random(600)
    harmful, helpful = np.stack([truth, 1 - truth], axis=1), np.stack([1 - truth, truth], axis=1)
    verdict = admission.judge(examine(rows, guesses, champion=harmful))
    assert verdict.result == "admitted" and "the champion's" in verdict.summary
    assert failed_measures(admission.judge(examine(rows, guesses, champion=helpful))) == ["auc"]
    assert failed_measures(admission.judge(examine(rows, np.full(600, 0.3), champion=harmful))) == ["constant"]


def test_a_teacher_with_mostly_unusable_answers_is_refused_with_examples() -> None:
    rows, truth = make()
    probs = np.where(np.arange(600) % 2, truth, np.nan)
    verdict = admission.judge(examine(rows, probs, unanswered=["answered 'maybe'"] * 200 + ["answered ''"] * 100))
    assert failed_measures(verdict) == ["answered"]
    assert "a usable answer to 300 of 600 rows (200 × answered 'maybe'; 100 × answered '')" in verdict.summary


def test_a_teacher_without_any_answer_is_refused() -> None:
    rows, _ = make()
    assert "answered" in failed_measures(admission.judge(examine(rows, np.full(600, np.nan))))
    assert admission.judge(examine(rows.iloc[:0], np.empty(0))).result == "refused"


def test_rows_of_one_hour_are_one_cluster() -> None:
    rows, truth = make(60)
    ten = rows.loc[rows.index.repeat(10)].reset_index(drop=True)
    once, tenfold = examine(rows, truth), examine(ten, truth.repeat(10))
    assert tenfold.comparison.standard_error == pytest.approx(once.comparison.standard_error, rel=1e-6)


def test_without_clusters_each_row_counts() -> None:
    rows, truth = make()
    config = make_config(MEMORY)
    alone = config.model_copy(update={"promotion": config.promotion.model_copy(update={"cluster": timedelta(0)})})
    together = rows.assign(observed_at=rows["observed_at"].iloc[0])
    assert examine(together, truth).comparison is None
    assert examine(together, truth, alone).comparison == examine(rows, truth).comparison


# --------------------------------------------------------------------------- without outcomes


def without_outcomes() -> tuple[pd.DataFrame, np.ndarray]:
    rows, truth = make()
    return rows.assign(outcome=0), truth


def test_with_too_few_outcomes_the_agreement_with_the_champions_teacher_decides() -> None:
    rows, truth = without_outcomes()
    always_wrong = np.stack([1 - truth, truth], axis=1)
    verdict = admission.judge(examine(rows, np.clip(truth + 0.05, 0, 1), trusted=("v0", always_wrong)))
    assert verdict.result == "admitted"
    assert verdict.reasons[-1].measure == "agreement" and "teacher v0" in verdict.summary
    assert admission.replay(verdict) == verdict
    verdict = admission.judge(examine(rows, 1 - truth, trusted=("v0", always_wrong)))
    assert failed_measures(verdict) == ["agreement"]


def test_outcomes_take_precedence_over_agreement() -> None:
    rows, truth = make()
    both = np.stack([truth, 1 - truth], axis=1)
    assert admission.judge(examine(rows, truth, trusted=("v0", both))).result == "admitted"


def test_without_outcomes_and_agreement_the_teacher_is_refused() -> None:
    rows, truth = without_outcomes()
    verdict = admission.judge(examine(rows, truth))
    assert failed_measures(verdict) == ["outcomes"]
    assert "too few outcomes of each action to judge it" in verdict.summary
    silent = np.full((600, 2), np.nan)
    assert failed_measures(admission.judge(examine(rows, truth, trusted=("v0", silent)))) == ["outcomes"]


@pytest.mark.parametrize(
    ("quality", "measure"),
    [({}, "auc"), ({"measure": "log_loss"}, "auc"), ({"measure": "accuracy"}, "accuracy"), ({"own": OWN}, "hit")],
)
def test_the_named_measure_admits_but_never_the_log_loss(quality: dict[str, object], measure: str) -> None:
    """An overconfident teacher has a poor log loss, and knows much all the same; the margin is a share of the range."""
    rows, truth = make()
    config = make_config(MEMORY)
    config = config.model_copy(update={"quality": QualitySettings.model_validate(quality)})
    examination = examine(rows, np.where(truth > 0.5, 0.999, 0.001), config)
    assert examination.comparison.measure == measure
    assert examination.comparison.margin == pytest.approx(0.04 if measure == "hit" else 0.01)
    verdict = admission.judge(examination)
    assert (verdict.result, admission.replay(verdict)) == ("admitted", verdict)


def hits(probs: np.ndarray, labels: np.ndarray, rows: pd.DataFrame) -> np.ndarray:
    """4 where the answer is right."""
    assert len(rows) == len(labels)
    return 4.0 * (probs.argmax(axis=1) == labels)
