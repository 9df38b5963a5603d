"""Steps of evidence: each row counted once, whenever the watches come, and what nobody checked not at all."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import Watch
from stillhouse.drift import evidence, steps
from stillhouse.stats import half_brier, total_variation

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
WATCH = Watch.model_validate({"every": "6h", "audit": {"rows": 10, "uniform_share": 0.5}})


def rows(days: int = 2, per_day: int = 240) -> pd.DataFrame:
    n = days * per_day
    return pd.DataFrame(
        {
            "observation_id": [f"o{i}" for i in range(n)],
            "observed_at": pd.DatetimeIndex([BEGIN]).as_unit("us")[0] + pd.to_timedelta(np.arange(n) * DAY / per_day),
            "said": np.random.default_rng(0).uniform(0, 1, n),
        }
    )


def state(process: str = "disagreement", null_mean: float = 0.3):
    return evidence.start(process, "toy@1", since=BEGIN, null_mean=null_mean, average_run_length=100)


def teacher(asked: pd.DataFrame) -> np.ndarray:
    return np.column_stack([asked["said"], 1 - asked["said"]])


def student(asked: pd.DataFrame) -> np.ndarray:
    return np.full((len(asked), 2), 0.5)


def audited(observed: pd.DataFrame, start, spans) -> list:
    planned = steps.plan_audit(observed, np.ones(len(observed)), spans, WATCH, HOUR, "key")
    return steps.count_audit(start, planned, steps.measure_audit_losses(planned, student, teacher))


def test_an_action_that_the_model_does_not_know_is_an_error():
    assert half_brier(np.array([[0.9, 0.1], [1.0, 0.0]]), np.array([2, 0])) == pytest.approx([0.91, 0.0])


def test_only_whole_steps_that_have_ended_count():
    spans = steps.list_complete_steps(BEGIN, BEGIN + timedelta(hours=17), WATCH.every)
    assert spans == [(BEGIN, BEGIN + 6 * HOUR), (BEGIN + 6 * HOUR, BEGIN + 12 * HOUR)]
    assert steps.list_complete_steps(BEGIN, BEGIN + timedelta(hours=5), WATCH.every) == []
    assert steps.list_complete_steps(BEGIN, BEGIN - DAY, WATCH.every) == []


def test_a_late_watch_counts_what_timely_ones_would_have_counted():
    spans = steps.list_complete_steps(BEGIN, BEGIN + 2 * DAY, WATCH.every)
    late = audited(rows(), state(), spans)
    timely, current = [], state()
    for span in spans:  # each watch sees a window of its own
        seen = rows()[lambda frame, end=span[1]: frame["observed_at"] < end]
        timely += audited(seen, current, [span])
        current = timely[-1].step
    assert timely == late
    assert late[-1].step.looks == 8 and late[-1].step.end == BEGIN + 2 * DAY


def test_what_is_counted_is_logged_with_its_probability():
    (counted,) = audited(rows(), state(), [(BEGIN, BEGIN + 6 * HOUR)])
    drawn = rows().set_index("observation_id").loc[list(counted.observation_ids)]
    assert counted.step.step_rows == len(set(counted.observation_ids)) == 10
    assert (drawn["observed_at"] < BEGIN + 6 * HOUR).all()
    assert np.allclose(counted.losses, np.abs(drawn["said"] - 0.5))
    assert all(0 < p <= 1 for p in counted.probabilities) and max(counted.weights) <= 1 / WATCH.audit.uniform_share
    assert set(counted.units) == set(range(counted.step.units)) and counted.step.units == 6  # hours


def test_the_teacher_is_asked_once_for_all_steps():
    calls = []
    planned = steps.plan_audit(
        rows(), np.ones(480), steps.list_complete_steps(BEGIN, BEGIN + DAY, WATCH.every), WATCH, HOUR, "key"
    )
    steps.measure_audit_losses(planned, student, lambda asked: calls.append(len(asked)) or teacher(asked))
    assert calls == [40]


def test_a_step_without_rows_is_no_look():
    empty = rows()[lambda frame: frame["observed_at"] >= BEGIN + DAY]
    first, second = audited(empty, state(), [(BEGIN, BEGIN + DAY), (BEGIN + DAY, BEGIN + 2 * DAY)])
    assert (first.step.looks, first.step.mean, first.step.log_bets) == (0, None, state().log_bets)
    assert second.step.looks == 1


def test_what_is_passed_over_moves_the_clock_and_nothing_else():
    (passed,) = steps.skip_steps(state(), steps.list_complete_steps(BEGIN, BEGIN + DAY, WATCH.every))
    assert passed.step.end == BEGIN + DAY and passed.step.looks == 0 and passed.step.log_bets == state().log_bets
    assert steps.skip_steps(state(), []) == []


def test_outcomes_count_in_the_step_in_which_they_became_known():
    known = rows().assign(loss=1.0)
    known["known_at"] = known["observed_at"] + timedelta(hours=7)
    spans = steps.list_complete_steps(BEGIN, BEGIN + 2 * DAY, WATCH.every)
    counted = steps.count_outcomes(state("student_outcomes"), steps.assign_clusters(known, HOUR), spans)
    assert [each.step.step_rows for each in counted[:3]] == [0, 50, 60]
    assert sum(each.step.step_rows for each in counted) == (known["known_at"] < BEGIN + 2 * DAY).sum()
    assert [each.step.units for each in counted[:3]] == [0, 5, 6]  # hours
    assert counted[-1].step.alarm


def test_audited_outcomes_keep_their_weights():
    done = audited(rows(), state(), steps.list_complete_steps(BEGIN, BEGIN + DAY, WATCH.every))
    known = rows().assign(known_at=rows()["observed_at"] + HOUR, loss=0.5)
    arrived = steps.join_outcomes(done, known)
    assert len(arrived) == sum(len(each.observation_ids) for each in done)
    logged = {name: weight for each in done for name, weight in zip(each.observation_ids, each.weights, strict=True)}
    assert arrived.set_index("observation_id")["weight"].to_dict() == logged
    assert arrived["unit"].nunique() == sum(each.step.units for each in done)
    assert steps.join_outcomes([], known).empty
    counted = steps.count_outcomes(state("teacher_outcomes"), arrived, [(BEGIN, BEGIN + 2 * DAY)])
    assert counted[0].step.step_rows == len(arrived)


def test_losses_lie_between_0_and_1():
    p = np.array([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    assert half_brier(p, np.array([0, 2])).tolist() == pytest.approx([0.0, 0.19])
    assert half_brier(p, np.array([1, 2]))[0] == 1.0
    assert total_variation(p, p[::-1]).tolist() == pytest.approx([0.8, 0.8])
    assert total_variation(np.eye(2), 1 - np.eye(2)).tolist() == [1.0, 1.0]


def test_draws_that_the_teacher_gave_no_answer_to_do_not_count() -> None:
    """A unit's mean is that of its other draws; a unit without any is gone, and the others keep their order."""
    seen = rows(1).assign(content_key=lambda frame: frame["observation_id"])
    (plan,) = steps.plan_audit(seen, np.ones(len(seen)), [(BEGIN, BEGIN + 6 * HOUR)], WATCH, 2 * HOUR, "key")
    units = plan.draws.unit
    answered = plan.drawn["content_key"][(units != 1) & (np.arange(len(units)) != 0)]
    left = plan.select_contents(answered)
    assert left.drawn["content_key"].tolist() == answered.tolist()
    assert sorted(set(left.draws.unit.tolist())) == [0, 1]
    assert (left.draws.unit == np.where(units[np.isin(plan.drawn["content_key"], answered)] == 2, 1, 0)).all()
    (counted,) = steps.count_audit(state(), [left], [np.full(len(answered), 0.5)])
    assert counted.step.units == 2 and counted.step.step_rows == len(answered)
    (nothing,) = steps.count_audit(state(), [plan.select_contents(answered.iloc[:0])], [np.empty(0)])
    assert nothing.step.units == 0 and nothing.step.mean is None
