"""The keeper of a promise: coverage is earned, lost at an alarm, and earned again."""

from __future__ import annotations

import numpy as np
import pytest

from stillhouse.agreement import Promise, PromiseKeeper, PromiseState
from stillhouse.agreement.describe import describe_promise
from stillhouse.agreement.thresholds import LEVELS

PROMISE = Promise(agreement=0.98, confidence=0.95)


def draw(rng: np.random.Generator, rows: int, *, wrong: float = 0.0, new: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Confidences, and whether the teacher agrees.

    :param wrong: share of all rows on which the teacher answers otherwise by now.
    :param new: share of rows that the student knows nothing about; it is unsure of most of them.
    """
    u = rng.random(rows)
    agreement = np.clip(1 - 0.005 - 0.66 * u**5, 0, 1)
    agrees = (rng.random(rows) < agreement) & (rng.random(rows) >= wrong)
    is_new = rng.random(rows) < new
    confidences = np.where(is_new, 0.3 + 0.6 * rng.random(rows), agreement)
    return confidences, agrees & ~is_new


def play(
    keeper: PromiseKeeper, confidences: np.ndarray, agrees: np.ndarray, rng: np.random.Generator
) -> dict[str, int]:
    """Decide rows as an application does, with an audit of 5 %."""
    counts = {"answered": 0, "agreed": 0, "first_alarm": -1}
    epoch = keeper.state.epoch
    for index, (confidence, agree) in enumerate(zip(confidences.tolist(), agrees.tolist(), strict=True)):
        blind = rng.random() < keeper.audit_share(0.05)
        may = keeper.may_answer(confidence)
        if may and not blind:
            counts["answered"] += 1
            counts["agreed"] += agree
        else:
            keeper.observe(confidence, agree, blind=blind)
            if counts["first_alarm"] < 0 and keeper.state.epoch > epoch:
                counts["first_alarm"] = index
    return counts


def test_it_begins_with_nothing_and_earns_coverage_from_audited_rows() -> None:
    rng, keeper = np.random.default_rng(0), PromiseKeeper(PROMISE)
    assert keeper.asks_all and keeper.audit_share(0.05) == 1.0 and not keeper.may_answer(1.0)
    play(keeper, *draw(rng, 3000), rng)
    assert not keeper.asks_all and keeper.coverage > 0.2 and keeper.audit_share(0.05) == 0.05
    rows, agreed, bound = keeper.measured
    assert bound >= 0.98 and agreed / rows >= bound


def test_deferred_rows_prove_nothing() -> None:
    keeper = PromiseKeeper(PROMISE)
    for _ in range(400):
        keeper.observe(0.99, True, blind=False)
    assert keeper.asks_all and keeper.rows_lacking == 149 and keeper.state.audited == 0


def test_novel_rows_are_never_answered_and_prove_nothing() -> None:
    keeper = PromiseKeeper(PROMISE, novelty_limit=0.5)
    for _ in range(200):
        keeper.observe(0.99, True, novelty=0.6)
    assert keeper.asks_all and keeper.state.novel == 200
    keeper.fit([0.99] * 200, [True] * 200, novelties=[0.1] * 200)
    assert keeper.may_answer(0.99, novelty=0.5) and not keeper.may_answer(0.99, novelty=0.51)
    keeper.fit([0.99] * 200, [True] * 200, novelties=[0.6] * 200)
    assert keeper.asks_all


@pytest.mark.slow
def test_in_quiet_times_there_is_hardly_an_alarm() -> None:
    alarms = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        keeper = PromiseKeeper(PROMISE).fit(*draw(rng, 1500))
        play(keeper, *draw(rng, 3000), rng)
        alarms += keeper.state.epoch
    assert alarms <= 2


def test_a_fall_below_the_promise_is_noticed_and_fewer_rows_are_answered() -> None:
    rng = np.random.default_rng(1)
    keeper = PromiseKeeper(PROMISE).fit(*draw(rng, 1500))
    counts = play(keeper, *draw(rng, 3000, wrong=0.15), rng)
    assert 0 <= counts["first_alarm"] < 1500 and keeper.state.alarm is not None
    assert keeper.asks_all and counts["answered"] < 1000


def test_new_answers_are_noticed_in_the_unsure_rows_long_before_the_audit_could() -> None:
    firsts = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        keeper = PromiseKeeper(PROMISE).fit(*draw(rng, 1500))
        firsts.append(play(keeper, *draw(rng, 2000, new=0.3), rng)["first_alarm"])
        assert keeper.state.epoch >= 1
    assert 0 < np.median(firsts) < 200


@pytest.mark.slow
def test_after_an_alarm_coverage_is_earned_again_when_the_change_is_over() -> None:
    rng = np.random.default_rng(3)
    keeper = PromiseKeeper(PROMISE).fit(*draw(rng, 1500))
    play(keeper, *draw(rng, 1500, wrong=0.3), rng)
    assert keeper.asks_all
    play(keeper, *draw(rng, 6000), rng)  # rows from the bad time still count, and there are ever more good ones
    counts = play(keeper.fit(*draw(rng, 1500)), *draw(rng, 1000), rng)  # a refresh begins anew at once
    assert counts["answered"] > 200 and counts["agreed"] / counts["answered"] > 0.98


def test_the_threshold_falls_back_to_a_stricter_level_that_is_still_good() -> None:
    """Only answers of medium confidence have become wrong."""
    rng = np.random.default_rng(4)
    confidences = np.where(rng.random(4000) < 0.5, 0.999, 0.9)
    keeper = PromiseKeeper(PROMISE).fit(confidences, np.ones(4000, dtype=bool))
    loose = keeper.state.threshold
    keeper = PromiseKeeper(PROMISE, keeper.state.model_copy(update={"begin": float(LEVELS[45])}))
    for confidence in np.where(rng.random(400) < 0.5, 0.999, 0.9).tolist():
        keeper.observe(confidence, confidence > 0.95)
        if keeper.state.epoch:
            break
    state = keeper.state
    assert state.alarm == "agreement" and state.fallback == state.threshold and loose < 0.9 < state.threshold < 0.999
    assert keeper.may_answer(0.999) and not keeper.may_answer(0.9)
    assert "fell back" in describe_promise(keeper, "toy@1").why


def test_a_state_goes_through_json_and_the_next_rows_give_the_same() -> None:
    rng = np.random.default_rng(5)
    keeper = PromiseKeeper(PROMISE, novelty_limit=0.4).fit(*draw(rng, 1500))
    play(keeper, *draw(rng, 500, wrong=0.1), rng)
    restored = PromiseKeeper(PROMISE, PromiseState.model_validate_json(keeper.state.model_dump_json()))
    for confidence, agrees in zip(*draw(rng, 300, wrong=0.1), strict=True):
        assert restored.may_answer(confidence) == keeper.may_answer(confidence)
        for each in (restored, keeper):
            each.observe(float(confidence), bool(agrees))
        assert (restored.state.threshold, restored.state.epoch) == (keeper.state.threshold, keeper.state.epoch)
    assert restored.novelty_limit == 0.4


def test_another_promise_begins_with_the_same_rows() -> None:
    fitted = PromiseKeeper(PROMISE).fit(*draw(np.random.default_rng(6), 3000)).state
    lower = PromiseKeeper.begin(Promise(agreement=0.9), fitted)
    assert lower.state.threshold < fitted.threshold and lower.state.rows == fitted.rows
    with pytest.raises(ValueError, match="another promise"):
        PromiseKeeper(Promise(agreement=0.9), fitted)


@pytest.mark.parametrize("confidence", [-0.1, 1.1, float("nan")])
def test_what_is_no_probability_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="within 0…1"):
        PromiseKeeper(PROMISE).observe(confidence, True)
    with pytest.raises(ValueError, match="within 0…1"):
        PromiseKeeper(PROMISE).fit([confidence], [True])
    with pytest.raises(ValueError, match="one length"):
        PromiseKeeper(PROMISE).fit([0.5], [True, False])


def test_the_status_says_why_and_what_is_lacking() -> None:
    keeper = PromiseKeeper(PROMISE)
    assert "149 without a disagreement are needed for 98 %" in describe_promise(keeper, "toy@1").why
    for _ in range(100):
        keeper.observe(0.9, True)
    status = describe_promise(keeper, "toy@1")
    assert (status.rows_lacking, status.threshold, status.coverage) == (49, None, 0.0)
    assert "at least 49 more" in status.why
    status = describe_promise(keeper.fit(*draw(np.random.default_rng(0), 3000)), "toy@1")
    assert status.rows_lacking == 0 and status.agreement_bound >= 0.98 and "prove at least 98" in status.why
    never = describe_promise(keeper.fit(np.full(1000, 0.9), np.arange(1000) % 4 > 0), "toy@1")
    assert "do not prove 98 % at any confidence" in never.why or "more without" in never.why
