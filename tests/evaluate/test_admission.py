"""A teacher must know more than the base rate, with confidence, before it may teach."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import AgentConfig
from stillhouse.evaluate import admission
from stillhouse.records import Examination, Verdict
from tests.teachers.test_ensemble import MEMORY, make_config

NOW = datetime(2013, 3, 1, tzinfo=UTC)
RATE = np.array([0.7, 0.3])


def make(n: int = 600, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows, one an hour, and the true probability of the second action for each."""
    rng = np.random.default_rng(seed)
    truth = 1 / (1 + np.exp(-2 * rng.normal(size=n)))
    times = pd.to_datetime([NOW + timedelta(hours=i) for i in range(n)])
    return pd.DataFrame({"observed_at": times, "outcome": (rng.random(n) < truth).astype(int)}), truth


def examined(rows: pd.DataFrame, second: np.ndarray, config: AgentConfig | None = None, **others) -> Examination:
    said = np.stack([1 - second, second], axis=1)
    return admission.examine(config or make_config(MEMORY), "r", NOW, "v1", rows, said, RATE, **others)


def crossed(verdict: Verdict) -> list[str]:
    return [reason.measure for reason in verdict.reasons if reason.failed]


def test_a_teacher_that_knows_is_admitted() -> None:
    rows, truth = make()
    verdict = admission.judge(examined(rows, truth))
    assert (verdict.result, verdict.kind, crossed(verdict)) == ("admitted", "gate", [])
    assert "600 rows that it has not seen" in verdict.summary
    assert admission.replay(verdict) == verdict
    assert Verdict.model_validate_json(verdict.model_dump_json()) == verdict


def test_the_bound_by_hand() -> None:
    """AUC of the ranks minus ½, less 1.645 standard errors, and about one row of the rarer outcome."""
    rows, truth = make()
    examination = examined(rows, truth)
    one, other = truth[rows["outcome"] == 1], truth[rows["outcome"] == 0]
    auc = (one[:, None] > other).mean()
    assert examination.comparison.challenger == pytest.approx(auc)
    assert examination.comparison.champion == 0.5
    low = auc - 0.5 - NormalDist().inv_cdf(0.95) * examination.comparison.standard_error
    row = (auc + 0.5) / rows["outcome"].value_counts().min()
    assert low - 3 * row < admission.judge(examination).reasons[-1].value < low


def test_an_examination_from_before_keeps_its_verdict() -> None:
    """Rule 1: a normal bound; what it was decided on is stored without a rule."""
    rows, truth = make()
    old = examined(rows, truth).model_dump(mode="json", exclude={"rule", "agreement_evidence"})
    old["comparison"] = {k: v for k, v in old["comparison"].items() if k not in ("rule", "evidence", "rarer")}
    examination = Examination.model_validate(old)
    assert examination.rule == 1
    low = examination.comparison.difference - NormalDist().inv_cdf(0.95) * examination.comparison.standard_error
    assert admission.judge(examination).reasons[-1].value == pytest.approx(low)


def test_guessing_passes_at_most_as_often_as_the_confidence_says() -> None:
    """A teacher that guesses: of 200, one in twenty would pass by chance without the margin, fewer with it."""
    passed = 0
    for seed in range(200):
        rows, _ = make(200, seed)
        guesses = np.random.default_rng(1000 + seed).random(200)
        passed += admission.judge(examined(rows, guesses)).result == "admitted"
    assert passed <= 18


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_teacher_that_says_the_same_about_everything_is_refused(share: float) -> None:
    rows, _ = make()
    verdict = admission.judge(examined(rows, np.full(len(rows), share)))
    assert verdict.result == "refused"
    assert crossed(verdict) == ["constant", "auc"]
    assert "it says the same about every row" in verdict.summary


def test_a_teacher_that_is_wrong_way_round_is_refused() -> None:
    rows, truth = make()
    assert crossed(admission.judge(examined(rows, 1 - truth))) == ["auc"]


def test_a_champion_that_does_harm_may_be_replaced_by_a_teacher_that_does_none() -> None:
    rows, truth = make()
    guesses = np.random.default_rng(3).random(600)
    harmful, helpful = np.stack([truth, 1 - truth], axis=1), np.stack([1 - truth, truth], axis=1)
    verdict = admission.judge(examined(rows, guesses, champion=harmful))
    assert verdict.result == "admitted" and "the champion's" in verdict.summary
    assert crossed(admission.judge(examined(rows, guesses, champion=helpful))) == ["auc"]
    assert crossed(admission.judge(examined(rows, np.full(600, 0.3), champion=harmful))) == ["constant"]


def test_a_teacher_that_mostly_talks_garbage_is_refused_with_what_it_said() -> None:
    rows, truth = make()
    said = np.where(np.arange(600) % 2, truth, np.nan)
    verdict = admission.judge(examined(rows, said, unanswered=["answered 'maybe'"] * 200 + ["answered ''"] * 100))
    assert crossed(verdict) == ["answered"]
    assert "a usable answer to 300 of 600 rows (200 × answered 'maybe'; 100 × answered '')" in verdict.summary


def test_a_teacher_that_says_nothing_at_all() -> None:
    rows, _ = make()
    assert "answered" in crossed(admission.judge(examined(rows, np.full(600, np.nan))))
    assert admission.judge(examined(rows.iloc[:0], np.empty(0))).result == "refused"


def test_rows_of_one_hour_are_one_piece_of_evidence() -> None:
    rows, truth = make(60)
    ten = rows.loc[rows.index.repeat(10)].reset_index(drop=True)
    once, tenfold = examined(rows, truth), examined(ten, truth.repeat(10))
    assert tenfold.comparison.standard_error == pytest.approx(once.comparison.standard_error, rel=1e-6)


def test_rows_may_be_their_own_pieces_of_evidence() -> None:
    rows, truth = make()
    config = make_config(MEMORY)
    alone = config.model_copy(update={"promotion": config.promotion.model_copy(update={"cluster": timedelta(0)})})
    together = rows.assign(observed_at=rows["observed_at"].iloc[0])
    assert examined(together, truth).comparison is None
    assert examined(together, truth, alone).comparison == examined(rows, truth).comparison


# --------------------------------------------------------------------------- where there are no outcomes to judge by


def without_outcomes() -> tuple[pd.DataFrame, np.ndarray]:
    rows, truth = make()
    return rows.assign(outcome=0), truth


def test_where_outcomes_are_too_few_the_champions_teacher_vouches() -> None:
    rows, truth = without_outcomes()
    both = np.stack([1 - truth, truth], axis=1)
    verdict = admission.judge(examined(rows, np.clip(truth + 0.05, 0, 1), trusted=("v0", both)))
    assert verdict.result == "admitted"
    assert verdict.reasons[-1].measure == "agreement" and "teacher v0" in verdict.summary
    assert admission.replay(verdict) == verdict
    verdict = admission.judge(examined(rows, 1 - truth, trusted=("v0", both)))
    assert crossed(verdict) == ["agreement"]


def test_outcomes_come_before_the_word_of_another_teacher() -> None:
    rows, truth = make()
    both = np.stack([truth, 1 - truth], axis=1)
    assert admission.judge(examined(rows, truth, trusted=("v0", both))).result == "admitted"


def test_with_neither_it_may_not_teach() -> None:
    rows, truth = without_outcomes()
    verdict = admission.judge(examined(rows, truth))
    assert crossed(verdict) == ["outcomes"]
    assert "too few outcomes of each action to judge it by" in verdict.summary
    silent = np.full((600, 2), np.nan)
    assert crossed(admission.judge(examined(rows, truth, trusted=("v0", silent)))) == ["outcomes"]
