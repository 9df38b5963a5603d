"""The e-detector: worked by hand, its promise under the null, what it finds, and that a restart changes nothing."""

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


def look(state: EvidenceStep, units: np.ndarray) -> EvidenceStep:
    return evidence.advance(state, units, start=state.end, end=state.end + HOUR, rows=len(units))


def run_length(draw: Callable[[], np.ndarray], null_mean: float, average_run_length: float, longest: int) -> int:
    """Looks until the alarm, ``longest`` if there was none."""
    state = begin(null_mean, average_run_length)
    while not state.alarm and state.looks < longest:
        state = look(state, draw())
    return state.looks


def test_two_looks_worked_by_hand():
    state = look(look(begin(null_mean=0.2), np.array([1.0, 0.0])), np.array([0.5]))
    statistics = []
    for bet in evidence.bet_sizes(0.2):
        first = (1 + 0) * (1 + bet * 0.8) * (1 - bet * 0.2)
        statistics.append((1 + first) * (1 + bet * 0.3))
    assert np.exp(state.log_bets) == pytest.approx(np.array(statistics), rel=1e-12)
    assert state.log_evidence == pytest.approx(math.log(np.mean(statistics)), rel=1e-12)
    assert (state.looks, state.rows, state.step_rows, state.units, state.mean) == (2, 3, 1, 1, 0.5)
    assert state.log_threshold == pytest.approx(math.log(2160))


def test_bets_are_allowed_ones():
    for null_mean in (0.001, 0.02, 0.5, 0.99):
        bets = evidence.bet_sizes(null_mean)
        assert (bets > 0).all() and (bets * null_mean < 1).all() and (np.diff(bets) > 0).all()


def test_start_knows_nothing():
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


@pytest.mark.parametrize("units", [[0.1, -0.1], [math.nan], [math.inf]])
def test_advance_refuses_what_is_no_loss(units):
    with pytest.raises(ValueError, match="finite and not negative"):
        look(begin(), np.array(units))


def test_advance_refuses_to_count_twice():
    state = look(begin(), np.array([0.3]))
    with pytest.raises(ValueError, match="not counted again"):
        evidence.advance(state, np.array([0.3]), start=SINCE, end=SINCE + HOUR, rows=1)
    with pytest.raises(ValueError, match="have a length"):
        evidence.advance(state, np.array([0.3]), start=state.end, end=state.end, rows=1)


def test_a_step_without_units_is_no_look():
    before = look(begin(), np.array([0.3, 0.0]))
    after = look(before, np.array([]))
    assert (after.log_bets, after.looks, after.rows) == (before.log_bets, before.looks, before.rows)
    assert after.log_evidence == pytest.approx(before.log_evidence, rel=1e-15)
    assert (after.units, after.step_rows, after.mean) == (0, 0, None)
    assert after.end == before.end + HOUR


@pytest.mark.parametrize("seed", range(5))
def test_a_restart_from_json_changes_nothing(seed):
    generator = np.random.default_rng(seed)
    null_mean = generator.uniform(0.001, 0.9)
    steps = [generator.random(generator.integers(0, 60)) * generator.integers(1, 3) for _ in range(40)]
    through = restarted = begin(null_mean)
    for units in steps:
        through = look(through, units)
        restarted = EvidenceStep.model_validate_json(look(restarted, units).model_dump_json())
        assert restarted == through
    replayed = begin(null_mean)
    for units in steps:
        replayed = look(replayed, units)
    assert replayed == through


def test_order_within_a_look_does_not_matter_and_more_loss_is_more_evidence():
    generator = np.random.default_rng(3)
    state = look(begin(), generator.random(20))
    units = generator.random(30)
    there, back = look(state, units), look(state, units[::-1])
    assert there.log_bets == pytest.approx(back.log_bets, rel=1e-12)
    assert look(state, units + 0.01).log_evidence > there.log_evidence


@pytest.mark.parametrize("null_mean", [0.001, 0.1, 0.9])
def test_extreme_losses_stay_finite(null_mean):
    state = begin(null_mean)
    for units in (np.zeros(50_000), np.full(50_000, 2.0), np.full(50_000, 2.0)):
        state = look(state, units)
    assert state.alarm and math.isfinite(state.log_evidence)


def bernoulli(generator: np.random.Generator, mean: float, units: int) -> Callable[[], np.ndarray]:
    return lambda: (generator.random(units) < mean).astype(float)


def steered(generator: np.random.Generator, mean: float, units: int, uniform_share: float) -> Callable[[], np.ndarray]:
    """Audits of 60 rows that err with a probability that goes with their score, ``mean`` on average."""

    def draw() -> np.ndarray:
        scores = generator.random(60)
        losses = generator.random(60) < 2 * mean * scores
        draws = audit.draw_rows(scores, None, units, uniform_share, seed=int(generator.integers(2**32)))
        return audit.cluster_means(draws, losses[draws.rows])

    return draw


@pytest.mark.parametrize("null_mean", [0.02, 0.3])
@pytest.mark.parametrize("kind", ["one", "many", "uniform", "steered"])
def test_average_run_length_at_the_boundary(null_mean, kind):
    """A loss of mean exactly m₀: at least the promised 20 looks. Cut off at 200, so the average is a lower bound."""
    generator = np.random.default_rng(11)
    draw = {
        "one": bernoulli(generator, null_mean, 1),
        "many": bernoulli(generator, null_mean, 30),
        "uniform": steered(generator, null_mean, 40, 1.0),
        "steered": steered(generator, null_mean, 40, 0.5),
    }[kind]
    lengths = [run_length(draw, null_mean, 20, longest=200) for _ in range(60)]
    assert np.mean(lengths) >= 20


@pytest.mark.parametrize(
    ("null_mean", "mean", "units", "within"), [(0.001, 0.02, 50, 15), (0.1, 0.15, 50, 30), (0.5, 0.7, 50, 8)]
)
def test_a_rise_is_found(null_mean, mean, units, within):
    generator = np.random.default_rng(5)
    lengths = [run_length(bernoulli(generator, mean, units), null_mean, 2160, longest=200) for _ in range(20)]
    assert np.median(lengths) <= within


def test_a_rise_is_found_after_a_long_calm():
    generator = np.random.default_rng(6)
    state = begin()
    for _ in range(300):
        state = look(state, bernoulli(generator, 0.07, 50)())
    for _ in range(40):
        state = look(state, bernoulli(generator, 0.15, 50)())
    assert state.alarm


def shared(process: str, evidence_: float, share: float = 1 / 3, run_length: float = 100) -> EvidenceStep:
    state = evidence.start(process, "toy@1", since=SINCE, null_mean=0.1, average_run_length=run_length, share=share)
    return state.model_copy(update={"log_evidence": math.log(evidence_)})


def test_processes_share_one_budget():
    """99 + 150 + 51 is 300, a mean of 100: the budget, which none of them has reached alone."""
    steps = [shared("disagreement", 99), shared("student_outcomes", 150), shared("teacher_outcomes", 51)]
    together, threshold = evidence.joint_evidence(steps)
    assert (math.exp(together), math.exp(threshold)) == pytest.approx((100, 100))
    assert not any(step.alarm for step in steps)
    assert shared("disagreement", 301).alarm  # it would take the mean there with the others at nothing
    assert evidence.joint_evidence([]) is None
    assert evidence.joint_evidence([step.model_copy(update={"share": None}) for step in steps]) is None


def test_what_the_next_step_may_exceed():
    """Half of what was expected before, and the autocorrelation times what the step had beyond that."""
    state = begin(null_mean=0.1).model_copy(update={"autocorrelation": 0.5})
    first = look(state, np.array([0.3]))
    assert first.excess == pytest.approx(0.5 * 0.2)
    second = look(first, np.array([0.2]))  # no more than was expected
    assert second.excess == pytest.approx(0.05)
    assert look(second, np.array([])).excess == pytest.approx(0.025)
    less = look(first.model_copy(update={"autocorrelation": 0.1}), np.array([0.5]))
    assert less.excess == pytest.approx(0.05 + 0.1 * (0.4 - 0.1))
    assert look(begin(), np.array([0.9])).excess == 0
    stakes = evidence.bet_sizes(0.2)  # the null of the second step
    expected = np.log1p(np.exp(first.log_bets)) + np.log1p(stakes * (0.2 - 0.2))
    assert second.log_bets == pytest.approx(expected)


def test_units_that_have_something_in_common():
    """Twelve units in three groups, each bet's growth less what three losses of one deviation could make of it."""
    units = np.random.default_rng(4).random(12)
    deviation = math.sqrt(0.1 / 2.5)
    state = begin().model_copy(update={"step_deviation": deviation})
    assert evidence.count_groups(12, 0.1, deviation) == 3
    stakes = evidence.bet_sizes(0.1)
    growth = np.log1p(stakes[:, None] * (units.reshape(3, 4).mean(axis=1) - 0.1)).sum(axis=1)
    assert look(state, units).log_bets == pytest.approx(growth - 0.5 * (3 * deviation * stakes) ** 2)
    alone = look(begin().model_copy(update={"step_deviation": None}), units)
    assert alone.log_bets == pytest.approx(np.log1p(stakes * (units.mean() - 0.1)))
    assert (alone.units, evidence.count_groups(12, 0.1, 0.0)) == (12, 12)


def test_a_closed_alarm_begins_anew_and_remembers_what_may_follow():
    last = look(begin().model_copy(update={"autocorrelation": 0.5}), np.array([1.0]))
    begun = begin().model_copy(update={"autocorrelation": 0.5})
    assert evidence.continue_or_restart(last, begun, None) == last == evidence.continue_or_restart(last, begun, SINCE)
    anew = evidence.continue_or_restart(last, begun, SINCE + HOUR)
    assert anew == begun.model_copy(update={"excess": last.excess}) and last.excess == pytest.approx(0.45)
    assert evidence.continue_or_restart(None, begun, None) == begun
    for name, value in {"champion": "toy@2", "null_mean": 0.2, "share": 0.5, "step_deviation": None}.items():
        other = begun.model_copy(update={name: value})
        assert evidence.continue_or_restart(last, other, None).looks == 0


def test_steps_stored_before_processes_shared_a_budget_are_read():
    stored = look(begin(), np.array([0.3, 0.1])).model_dump(mode="json")
    for name in ("share", "autocorrelation", "step_deviation", "excess"):
        stored.pop(name)
    old = EvidenceStep.model_validate(stored)
    assert old.share is None
    assert look(old, np.array([0.4])).log_bets == look(look(begin(), np.array([0.3, 0.1])), np.array([0.4])).log_bets


def baseline(mean: float, standard_error: float, usual: float) -> LossBaseline:
    return LossBaseline(mean=mean, standard_error=standard_error, rows=1000, clusters=50, usual=usual)


def test_null_mean():
    assert evidence.estimate_null_mean(baseline(0.1, 0.01, 0.11), 0.02) == pytest.approx(0.14)
    assert evidence.estimate_null_mean(baseline(0.1, 0.01, 0.15), 0.02) == pytest.approx(0.17)
    assert evidence.estimate_null_mean(baseline(0.0, 0.0, 0.0), 0.0) == pytest.approx(0.001)
    assert evidence.estimate_null_mean(baseline(0.9, 0.1, 0.9), 0.02) == pytest.approx(0.99)
    begin(evidence.estimate_null_mean(baseline(1.5, 0.1, 1.0), 0.5))
