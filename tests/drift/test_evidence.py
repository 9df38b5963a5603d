"""The e-detector: examples by hand, its guarantee under the null, the rises that it detects, and restarts."""

import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from stillhouse.drift import audit, evidence
from stillhouse.records import EvidenceStep, LossBaseline

SINCE = datetime(2013, 6, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def begin(null_mean: float = 0.1, average_run_length: float = 2160) -> EvidenceStep:
    return evidence.start(
        "disagreement", "toy@1", since=SINCE, null_mean=null_mean, average_run_length=average_run_length
    )


def next_step(state: EvidenceStep, losses: np.ndarray) -> EvidenceStep:
    return evidence.advance(state, losses, start=state.end, end=state.end + HOUR, rows=len(losses))


def run_length(draw: Callable[[], np.ndarray], null_mean: float, average_run_length: float, max_steps: int) -> int:
    """Steps until the alarm, ``max_steps`` if there was none."""
    state = begin(null_mean, average_run_length)
    while not state.alarm and state.looks < max_steps:
        state = next_step(state, draw())
    return state.looks


def test_two_steps_computed_by_hand():
    state = next_step(next_step(begin(null_mean=0.2), np.array([1.0, 0.0])), np.array([0.5]))
    statistics = []
    for bet in evidence.bet_sizes(0.2):
        first = (1 + 0) * (1 + bet * 0.8) * (1 - bet * 0.2)
        statistics.append((1 + first) * (1 + bet * 0.3))
    assert np.exp(state.log_bets) == pytest.approx(np.array(statistics), rel=1e-12)
    assert state.log_evidence == pytest.approx(math.log(np.mean(statistics)), rel=1e-12)
    assert (state.looks, state.rows, state.step_rows, state.clusters, state.mean) == (2, 3, 1, 1, 0.5)
    assert state.log_threshold == pytest.approx(math.log(2160))


def test_bet_sizes_are_valid():
    for null_mean in (0.001, 0.02, 0.5, 0.99):
        bets = evidence.bet_sizes(null_mean)
        assert (bets > 0).all() and (bets * null_mean < 1).all() and (np.diff(bets) > 0).all()


def test_the_first_state_has_no_evidence():
    state = begin()
    assert not state.alarm and state.looks == state.rows == 0
    assert state.start == state.end == state.since == SINCE
    assert not begin(average_run_length=1).alarm


@pytest.mark.parametrize(
    "wrong", [{"null_mean": 0.0}, {"null_mean": 1.0}, {"null_mean": math.nan}, {"average_run_length": 0.5}]
)
def test_start_refuses(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        begin(**wrong)


@pytest.mark.parametrize("losses", [[0.1, -0.1], [math.nan], [math.inf]])
def test_advance_refuses_invalid_losses(losses):
    with pytest.raises(ValueError, match="finite and not negative"):
        next_step(begin(), np.array(losses))


def test_advance_refuses_to_count_twice():
    state = next_step(begin(), np.array([0.3]))
    with pytest.raises(ValueError, match="counted twice"):
        evidence.advance(state, np.array([0.3]), start=SINCE, end=SINCE + HOUR, rows=1)
    with pytest.raises(ValueError, match="have a length"):
        evidence.advance(state, np.array([0.3]), start=state.end, end=state.end, rows=1)


def test_a_step_without_losses_is_not_counted():
    before = next_step(begin(), np.array([0.3, 0.0]))
    after = next_step(before, np.array([]))
    assert (after.log_bets, after.looks, after.rows) == (before.log_bets, before.looks, before.rows)
    assert after.log_evidence == pytest.approx(before.log_evidence, rel=1e-15)
    assert (after.clusters, after.step_rows, after.mean) == (0, 0, None)
    assert after.end == before.end + HOUR


@pytest.mark.parametrize("seed", range(5))
def test_a_restart_from_json_changes_nothing(seed):
    generator = np.random.default_rng(seed)
    null_mean = generator.uniform(0.001, 0.9)
    steps = [generator.random(generator.integers(0, 60)) * generator.integers(1, 3) for _ in range(40)]
    through = restarted = begin(null_mean)
    for losses in steps:
        through = next_step(through, losses)
        restarted = EvidenceStep.model_validate_json(next_step(restarted, losses).model_dump_json())
        assert restarted == through
    replayed = begin(null_mean)
    for losses in steps:
        replayed = next_step(replayed, losses)
    assert replayed == through


def test_the_order_within_a_step_does_not_matter_and_higher_losses_give_more_evidence():
    generator = np.random.default_rng(3)
    state = next_step(begin(), generator.random(20))
    losses = generator.random(30)
    forwards, backwards = next_step(state, losses), next_step(state, losses[::-1])
    assert forwards.log_bets == pytest.approx(backwards.log_bets, rel=1e-12)
    assert next_step(state, losses + 0.01).log_evidence > forwards.log_evidence


@pytest.mark.parametrize("null_mean", [0.001, 0.1, 0.9])
def test_extreme_losses_stay_finite(null_mean):
    state = begin(null_mean)
    for losses in (np.zeros(50_000), np.full(50_000, 2.0), np.full(50_000, 2.0)):
        state = next_step(state, losses)
    assert state.alarm and math.isfinite(state.log_evidence)


def bernoulli(generator: np.random.Generator, mean: float, clusters: int) -> Callable[[], np.ndarray]:
    return lambda: (generator.random(clusters) < mean).astype(float)


def audited(
    generator: np.random.Generator, mean: float, clusters: int, uniform_share: float
) -> Callable[[], np.ndarray]:
    """Audits of 60 rows whose error probability is proportional to their score, ``mean`` on average."""

    def draw() -> np.ndarray:
        scores = generator.random(60)
        losses = generator.random(60) < 2 * mean * scores
        draws = audit.draw_rows(scores, None, clusters, uniform_share, seed=int(generator.integers(2**32)))
        return audit.cluster_means(draws, losses[draws.rows])

    return draw


@pytest.mark.parametrize("null_mean", [0.02, 0.3])
@pytest.mark.parametrize("kind", ["one", "many", "uniform", "by score"])
def test_average_run_length_at_the_boundary(null_mean, kind):
    """A loss of mean exactly m₀: at least the guaranteed 20 steps. Truncated at 200, which lowers the average."""
    generator = np.random.default_rng(11)
    draw = {
        "one": bernoulli(generator, null_mean, 1),
        "many": bernoulli(generator, null_mean, 30),
        "uniform": audited(generator, null_mean, 40, 1.0),
        "by score": audited(generator, null_mean, 40, 0.5),
    }[kind]
    lengths = [run_length(draw, null_mean, 20, max_steps=200) for _ in range(60)]
    assert np.mean(lengths) >= 20


@pytest.mark.parametrize(
    ("null_mean", "mean", "clusters", "within"), [(0.001, 0.02, 50, 15), (0.1, 0.15, 50, 30), (0.5, 0.7, 50, 8)]
)
def test_a_rise_is_detected(null_mean, mean, clusters, within):
    generator = np.random.default_rng(5)
    lengths = [run_length(bernoulli(generator, mean, clusters), null_mean, 2160, max_steps=200) for _ in range(20)]
    assert np.median(lengths) <= within


def test_a_rise_is_detected_after_a_long_calm():
    generator = np.random.default_rng(6)
    state = begin()
    for _ in range(300):
        state = next_step(state, bernoulli(generator, 0.07, 50)())
    for _ in range(40):
        state = next_step(state, bernoulli(generator, 0.15, 50)())
    assert state.alarm


def shared(process: str, evidence_: float, share: float = 1 / 3, run_length: float = 100) -> EvidenceStep:
    state = evidence.start(process, "toy@1", since=SINCE, null_mean=0.1, average_run_length=run_length, share=share)
    return state.model_copy(update={"log_evidence": math.log(evidence_)})


def test_processes_share_one_budget():
    """99 + 150 + 51 is 300, a mean of 100: the budget, which no process has reached alone."""
    steps = [shared("disagreement", 99), shared("student_outcomes", 150), shared("teacher_outcomes", 51)]
    together, threshold = evidence.joint_evidence(steps)
    assert (math.exp(together), math.exp(threshold)) == pytest.approx((100, 100))
    assert not any(step.alarm for step in steps)
    assert shared("disagreement", 301).alarm  # enough to raise the mean to 100 with no evidence of the others
    assert evidence.joint_evidence([]) is None
    assert evidence.joint_evidence([step.model_copy(update={"share": None}) for step in steps]) is None


def test_excess_of_the_next_step():
    """Half of the previous excess, plus the autocorrelation times what the step had beyond it."""
    state = begin(null_mean=0.1).model_copy(update={"autocorrelation": 0.5})
    first = next_step(state, np.array([0.3]))
    assert first.excess == pytest.approx(0.5 * 0.2)
    second = next_step(first, np.array([0.2]))  # not above the expectation
    assert second.excess == pytest.approx(0.05)
    assert next_step(second, np.array([])).excess == pytest.approx(0.025)
    less = next_step(first.model_copy(update={"autocorrelation": 0.1}), np.array([0.5]))
    assert less.excess == pytest.approx(0.05 + 0.1 * (0.4 - 0.1))
    assert next_step(begin(), np.array([0.9])).excess == 0
    sizes = evidence.bet_sizes(0.2)  # the null of the second step
    expected = np.log1p(np.exp(first.log_bets)) + np.log1p(sizes * (0.2 - 0.2))
    assert second.log_bets == pytest.approx(expected)


def test_losses_that_share_a_deviation():
    """Twelve losses in three groups; the growth of each bet is divided by the bound for a shared deviation."""
    losses = np.random.default_rng(4).random(12)
    deviation = math.sqrt(0.1 / 2.5)
    state = begin().model_copy(update={"step_deviation": deviation})
    assert evidence.count_bets(12, 0.1, deviation) == 3
    sizes = evidence.bet_sizes(0.1)
    growth = np.log1p(sizes[:, None] * (losses.reshape(3, 4).mean(axis=1) - 0.1)).sum(axis=1)
    assert next_step(state, losses).log_bets == pytest.approx(growth - 0.5 * (3 * deviation * sizes) ** 2)
    alone = next_step(begin().model_copy(update={"step_deviation": None}), losses)
    assert alone.log_bets == pytest.approx(np.log1p(sizes * (losses.mean() - 0.1)))
    assert (alone.clusters, evidence.count_bets(12, 0.1, 0.0)) == (12, 12)


def test_a_closed_alarm_restarts_and_keeps_the_expected_excess():
    last = next_step(begin().model_copy(update={"autocorrelation": 0.5}), np.array([1.0]))
    fresh = begin().model_copy(update={"autocorrelation": 0.5})
    assert evidence.continue_or_restart(last, fresh, None) == last == evidence.continue_or_restart(last, fresh, SINCE)
    restarted = evidence.continue_or_restart(last, fresh, SINCE + HOUR)
    assert restarted == fresh.model_copy(update={"excess": last.excess}) and last.excess == pytest.approx(0.45)
    assert evidence.continue_or_restart(None, fresh, None) == fresh
    for name, value in {"champion": "toy@2", "null_mean": 0.2, "share": 0.5, "step_deviation": None}.items():
        other = fresh.model_copy(update={name: value})
        assert evidence.continue_or_restart(last, other, None).looks == 0


def test_steps_stored_without_a_share_are_read():
    stored = next_step(begin(), np.array([0.3, 0.1])).model_dump(mode="json")
    for name in ("share", "autocorrelation", "step_deviation", "excess"):
        stored.pop(name)
    old = EvidenceStep.model_validate(stored)
    assert old.share is None
    assert (
        next_step(old, np.array([0.4])).log_bets
        == next_step(next_step(begin(), np.array([0.3, 0.1])), np.array([0.4])).log_bets
    )


def baseline(mean: float, standard_error: float, usual: float) -> LossBaseline:
    return LossBaseline(mean=mean, standard_error=standard_error, rows=1000, clusters=50, usual=usual)


def test_null_mean():
    assert evidence.estimate_null_mean(baseline(0.1, 0.01, 0.11), 0.02) == pytest.approx(0.14)
    assert evidence.estimate_null_mean(baseline(0.1, 0.01, 0.15), 0.02) == pytest.approx(0.17)
    assert evidence.estimate_null_mean(baseline(0.0, 0.0, 0.0), 0.0) == pytest.approx(0.001)
    assert evidence.estimate_null_mean(baseline(0.9, 0.1, 0.9), 0.02) == pytest.approx(0.99)
    begin(evidence.estimate_null_mean(baseline(1.5, 0.1, 1.0), 0.5))
