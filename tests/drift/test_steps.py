"""Steps of evidence: each row is counted once, whenever watches run; rows of refused windows are not counted."""

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


def make_rows(days: int = 2, per_day: int = 240) -> pd.DataFrame:
    n = days * per_day
    return pd.DataFrame(
        {
            "observation_id": [f"o{i}" for i in range(n)],
            "observed_at": pd.DatetimeIndex([BEGIN]).as_unit("us")[0] + pd.to_timedelta(np.arange(n) * DAY / per_day),
            "p": np.random.default_rng(0).uniform(0, 1, n),
        }
    )


def state(process: str = "disagreement", null_mean: float = 0.3):
    return evidence.start(process, "toy@1", since=BEGIN, null_mean=null_mean, average_run_length=100)


def teacher(rows: pd.DataFrame) -> np.ndarray:
    return np.column_stack([rows["p"], 1 - rows["p"]])


def student(rows: pd.DataFrame) -> np.ndarray:
    return np.full((len(rows), 2), 0.5)


def audited(observed: pd.DataFrame, start, spans) -> list:
    planned = steps.plan_audit(observed, np.ones(len(observed)), spans, WATCH, HOUR, "key")
    return steps.count_audit(start, planned, steps.measure_audit_losses(planned, student, teacher))


def test_an_unknown_action_counts_as_an_error():
    assert half_brier(np.array([[0.9, 0.1], [1.0, 0.0]]), np.array([2, 0])) == pytest.approx([0.91, 0.0])


def test_only_whole_steps_that_have_ended_count():
    spans = steps.list_complete_steps(BEGIN, BEGIN + timedelta(hours=17), WATCH.every)
    assert spans == [(BEGIN, BEGIN + 6 * HOUR), (BEGIN + 6 * HOUR, BEGIN + 12 * HOUR)]
    assert steps.list_complete_steps(BEGIN, BEGIN + timedelta(hours=5), WATCH.every) == []
    assert steps.list_complete_steps(BEGIN, BEGIN - DAY, WATCH.every) == []


def test_a_late_watch_counts_what_timely_ones_would_have_counted():
    spans = steps.list_complete_steps(BEGIN, BEGIN + 2 * DAY, WATCH.every)
    late = audited(make_rows(), state(), spans)
    timely, current = [], state()
    for span in spans:  # each watch has its own window
        observed = make_rows()[lambda frame, end=span[1]: frame["observed_at"] < end]
        timely += audited(observed, current, [span])
        current = timely[-1].step
    assert timely == late
    assert late[-1].step.looks == 8 and late[-1].step.end == BEGIN + 2 * DAY


def test_counted_rows_are_logged_with_their_probability():
    (counted,) = audited(make_rows(), state(), [(BEGIN, BEGIN + 6 * HOUR)])
    drawn = make_rows().set_index("observation_id").loc[list(counted.observation_ids)]
    assert counted.step.step_rows == len(set(counted.observation_ids)) == 10
    assert (drawn["observed_at"] < BEGIN + 6 * HOUR).all()
    assert np.allclose(counted.losses, np.abs(drawn["p"] - 0.5))
    assert (
        all(0 < p <= 1 for p in counted.probabilities)
        and max(counted.sampling_weights) <= 1 / WATCH.audit.uniform_share
    )
    assert set(counted.cluster_ids) == set(range(counted.step.clusters)) and counted.step.clusters == 6  # hours


def test_the_teacher_is_called_once_for_all_steps():
    calls = []
    planned = steps.plan_audit(
        make_rows(), np.ones(480), steps.list_complete_steps(BEGIN, BEGIN + DAY, WATCH.every), WATCH, HOUR, "key"
    )
    steps.measure_audit_losses(planned, student, lambda rows: calls.append(len(rows)) or teacher(rows))
    assert calls == [40]


def test_a_step_without_rows_is_not_counted():
    empty = make_rows()[lambda frame: frame["observed_at"] >= BEGIN + DAY]
    first, second = audited(empty, state(), [(BEGIN, BEGIN + DAY), (BEGIN + DAY, BEGIN + 2 * DAY)])
    assert (first.step.looks, first.step.mean, first.step.log_bets) == (0, None, state().log_bets)
    assert second.step.looks == 1


def test_skipped_steps_advance_only_the_time():
    (skipped,) = steps.skip_steps(state(), steps.list_complete_steps(BEGIN, BEGIN + DAY, WATCH.every))
    assert skipped.step.end == BEGIN + DAY and skipped.step.looks == 0 and skipped.step.log_bets == state().log_bets
    assert steps.skip_steps(state(), []) == []


def test_outcomes_count_in_the_step_in_which_they_became_known():
    labelled = make_rows().assign(loss=1.0)
    labelled["known_at"] = labelled["observed_at"] + timedelta(hours=7)
    spans = steps.list_complete_steps(BEGIN, BEGIN + 2 * DAY, WATCH.every)
    counted = steps.count_outcomes(state("student_outcomes"), steps.assign_clusters(labelled, HOUR), spans)
    assert [step.step.step_rows for step in counted[:3]] == [0, 50, 60]
    assert sum(step.step.step_rows for step in counted) == (labelled["known_at"] < BEGIN + 2 * DAY).sum()
    assert [step.step.clusters for step in counted[:3]] == [0, 5, 6]  # hours
    assert counted[-1].step.alarm


def test_audited_outcomes_keep_their_weights():
    audited_steps = audited(make_rows(), state(), steps.list_complete_steps(BEGIN, BEGIN + DAY, WATCH.every))
    labelled = make_rows().assign(known_at=make_rows()["observed_at"] + HOUR, loss=0.5)
    arrived = steps.join_outcomes(audited_steps, labelled)
    assert len(arrived) == sum(len(step.observation_ids) for step in audited_steps)
    logged = {
        name: weight
        for step in audited_steps
        for name, weight in zip(step.observation_ids, step.sampling_weights, strict=True)
    }
    assert arrived.set_index("observation_id")["weight"].to_dict() == logged
    assert arrived["cluster_id"].nunique() == sum(step.step.clusters for step in audited_steps)
    assert steps.join_outcomes([], labelled).empty
    counted = steps.count_outcomes(state("teacher_outcomes"), arrived, [(BEGIN, BEGIN + 2 * DAY)])
    assert counted[0].step.step_rows == len(arrived)


def test_losses_lie_between_0_and_1():
    p = np.array([[1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    assert half_brier(p, np.array([0, 2])).tolist() == pytest.approx([0.0, 0.19])
    assert half_brier(p, np.array([1, 2]))[0] == 1.0
    assert total_variation(p, p[::-1]).tolist() == pytest.approx([0.8, 0.8])
    assert total_variation(np.eye(2), 1 - np.eye(2)).tolist() == [1.0, 1.0]


def test_draws_without_a_teacher_answer_are_not_counted() -> None:
    """The mean of a cluster is that of its other draws; a cluster without any is dropped."""
    observed = make_rows(1).assign(content_key=lambda frame: frame["observation_id"])
    (plan,) = steps.plan_audit(observed, np.ones(len(observed)), [(BEGIN, BEGIN + 6 * HOUR)], WATCH, 2 * HOUR, "key")
    ids = plan.draws.cluster_ids
    answered = plan.drawn["content_key"][(ids != 1) & (np.arange(len(ids)) != 0)]
    remaining = plan.select_contents(answered)
    assert remaining.drawn["content_key"].tolist() == answered.tolist()
    assert sorted(set(remaining.draws.cluster_ids.tolist())) == [0, 1]
    assert (remaining.draws.cluster_ids == np.where(ids[np.isin(plan.drawn["content_key"], answered)] == 2, 1, 0)).all()
    (counted,) = steps.count_audit(state(), [remaining], [np.full(len(answered), 0.5)])
    assert counted.step.clusters == 2 and counted.step.step_rows == len(answered)
    (nothing,) = steps.count_audit(state(), [plan.select_contents(answered.iloc[:0])], [np.empty(0)])
    assert nothing.step.clusters == 0 and nothing.step.mean is None


def test_the_uniform_part_of_an_audit_has_each_row_of_a_cell_equally_often_whatever_the_scores():
    rows = make_rows(days=1, per_day=40)
    scores = np.where(np.arange(40) < 10, 1.0, 0.01)  # the first rows are drawn far more often
    drawn, uniform = np.zeros(40), np.zeros(40)
    for number in range(3000):
        (plan,) = steps.plan_audit(rows, scores, [(BEGIN, BEGIN + DAY)], WATCH, timedelta(0), f"key {number}")
        drawn[plan.draws.rows] += 1
        uniform[plan.draws.rows[plan.is_uniform(WATCH, f"key {number}")]] += 1
    expected = 3000 * 10 / 40 * WATCH.audit.uniform_share  # 10 draws from cells of four rows
    assert drawn[:10].mean() > 1.5 * drawn[10:].mean()
    assert uniform == pytest.approx(expected, abs=5 * np.sqrt(expected))
    assert uniform[:10].mean() == pytest.approx(uniform[10:].mean(), rel=0.1)


def test_the_uniform_part_is_the_same_each_time_and_has_every_row_that_is_a_cell_by_itself():
    rows = make_rows(days=1, per_day=8)
    (plan,) = steps.plan_audit(rows, np.arange(8.0), [(BEGIN, BEGIN + DAY)], WATCH, timedelta(0), "key")
    assert plan.is_uniform(WATCH, "key").all() and len(plan.draws.rows) == 8
    rows = make_rows(days=1)
    (plan,) = steps.plan_audit(rows, np.ones(240), [(BEGIN, BEGIN + DAY)], WATCH, timedelta(0), "key")
    assert (plan.is_uniform(WATCH, "key") == plan.is_uniform(WATCH, "key")).all()
