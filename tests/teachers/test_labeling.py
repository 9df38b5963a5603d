"""Labeling: no question is asked twice, every call is recorded, the budget is kept, and answers are stored at once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import AgentConfig
from stillhouse.errors import LeakageError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.parts import resolve
from stillhouse.records import Spending, Window
from stillhouse.teachers import ensemble, labeling
from stillhouse.teachers.answers import Allowance, Answers, wrap_predict
from tests.teachers.test_ensemble import MEMORY, constant_teacher, make_config

START = datetime(2013, 1, 1, tzinfo=UTC)
TRAIN = Window(name="train", start=START, end=START + timedelta(hours=40))
ACTIONS = ("stay", "move")


class Oracle:
    """Gives the second action probability temp/1000; is not fitted, records its questions, and fails on request."""

    def __init__(self, price: float = 0.0, is_unusable: Callable[[float], bool] = lambda temp: False) -> None:
        self.asked_temps: list[float] = []
        self.price = price
        self.is_unusable = is_unusable
        self.broken_after: int | None = None

    def answer(self, rows: pd.DataFrame, allowance: Allowance) -> Answers:
        probs, refused, spending, stop_reason = np.full((len(rows), 2), np.nan), dict[int, str](), Spending(), None
        for index, temp in enumerate(rows["temp"]):
            if self.broken_after is not None and len(self.asked_temps) >= self.broken_after:
                stop_reason = "the server is down"
                break
            if not allowance.take(self.price):
                stop_reason = "the budget is reached"
                break
            self.asked_temps.append(temp)
            spending += Spending(calls=1, rows=1, input_tokens=10, money=self.price)
            if self.is_unusable(temp):
                refused[index] = "garbage"
            else:
                probs[index] = [1 - temp / 1000, temp / 1000]
        return Answers(probs, spending, refused, stop_reason)


@pytest.fixture
def base(tmp_path: Path) -> KnowledgeBase:
    return KnowledgeBase(make_config(MEMORY), tmp_path / "kb")


def store_observations(base: KnowledgeBase, count: int, start: datetime = START) -> pd.DataFrame:
    """Labelled rows of different contents, as the knowledge base returns them."""
    rows = pd.DataFrame(
        {
            "observation_id": [f"{start:%m%d}-{i}" for i in range(count)],
            "observed_at": pd.to_datetime([start + timedelta(hours=i) for i in range(count)], utc=True),
            "temp": np.arange(float(count)),
        }
    )
    base.append_observations(rows, batch=f"{start}")
    window = Window(name="all", start=start, end=start + timedelta(hours=count))
    return base.read_observations(window).assign(outcome=np.arange(count) % 2)


def ensemble_of(oracle: Oracle, base: KnowledgeBase, chunk: int = 4) -> ensemble.Ensemble:
    member = ensemble.Member("oracle", 1.0, oracle.answer, "o1", chunk)
    return ensemble.Ensemble(base.config, [member], None, "o1")


def refresh_budget(base: KnowledgeBase, job: str = "r1", **budgets: Any) -> labeling.LabelingBudget:
    budget = base.config.budgets.model_copy(update=budgets)
    base.config = base.config.model_copy(update={"budgets": budget})
    return labeling.open_refresh_budget(base, job, START)


# --------------------------------------------------------------------------- memory


def test_each_content_is_asked_about_once(base: KnowledgeBase) -> None:
    oracle, rows = Oracle(), store_observations(base, 10)
    repeated = pd.concat([rows, rows], ignore_index=True)
    probs = labeling.ask(ensemble_of(oracle, base), repeated, refresh_budget(base))
    np.testing.assert_allclose(probs[:, 1], repeated["temp"] / 1000)
    labeling.ask(ensemble_of(oracle, base), rows[::-1], refresh_budget(base))
    assert sorted(oracle.asked_temps) == list(range(10))


def test_ask_ignores_the_index_of_the_rows(base: KnowledgeBase) -> None:
    rows = store_observations(base, 6)
    repeated = pd.concat([rows.iloc[3:], rows.iloc[:4]])
    probs = labeling.ask(ensemble_of(Oracle(), base), repeated, refresh_budget(base))
    np.testing.assert_allclose(probs[:, 1], repeated["temp"] / 1000)


def test_answers_before_an_interruption_are_stored(base: KnowledgeBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies while the third chunk of four rows is asked about: eight answers are stored."""
    oracle, rows, answer = Oracle(), store_observations(base, 20), Oracle.answer

    def dies(self: Oracle, chunk: pd.DataFrame, allowance: Allowance) -> Answers:
        if len(self.asked_temps) >= 8:
            raise KeyboardInterrupt
        return answer(self, chunk, allowance)

    with monkeypatch.context() as patch:
        patch.setattr(Oracle, "answer", dies)
        with pytest.raises(KeyboardInterrupt):
            labeling.ask(ensemble_of(oracle, base), rows, refresh_budget(base))
    assert base.answers.spending(job="r1")["oracle"].calls == 8
    probs = labeling.ask(ensemble_of(oracle, base), rows, refresh_budget(base))
    assert np.isfinite(probs).all()
    assert sorted(oracle.asked_temps) == list(range(20))
    assert base.answers.spending(job="r1")["oracle"].calls == 20


def test_unusable_answer_is_stored_with_its_reason_and_retried_once(base: KnowledgeBase) -> None:
    """Once it may be a transient failure; twice it is due to the row."""
    oracle, rows = Oracle(is_unusable=lambda temp: temp == 3), store_observations(base, 6)
    for round_ in range(4):
        probs = labeling.ask(ensemble_of(oracle, base), rows, refresh_budget(base))
        assert np.isnan(probs[:, 0]).tolist() == (rows["temp"] == 3).tolist()
        assert len(oracle.asked_temps) == 6 + min(round_, 1)
    stored, key = base.answers.unanswered("o1"), rows.loc[rows["temp"] == 3, "content_key"].item()
    assert stored["reason"].tolist() == ["garbage"] * 2 and set(stored["content_key"]) == {
        key
    } == base.answers.unanswerable_keys("o1")
    assert base.answers.unanswered("another").empty and not base.answers.unanswerable_keys("another")


def test_row_with_one_unusable_answer_is_answered_on_retry(base: KnowledgeBase) -> None:
    oracle, rows = Oracle(is_unusable=lambda temp: temp == 3), store_observations(base, 6)
    labeling.ask(ensemble_of(oracle, base), rows, refresh_budget(base))
    oracle.is_unusable = lambda temp: False
    assert np.isfinite(labeling.ask(ensemble_of(oracle, base), rows, refresh_budget(base))).all()
    assert not base.answers.unanswerable_keys("o1")


def test_rows_missed_by_a_server_failure_are_asked_again(base: KnowledgeBase) -> None:
    oracle, rows = Oracle(), store_observations(base, 10)
    oracle.broken_after = 6
    budget = refresh_budget(base)
    probs = labeling.ask(ensemble_of(oracle, base), rows, budget)
    assert np.isfinite(probs[:, 0]).sum() == 6
    assert budget.stop_reason == "teacher 'oracle': the server is down"
    oracle.broken_after = None
    assert np.isfinite(labeling.ask(ensemble_of(oracle, base), rows, refresh_budget(base))).all()
    assert len(oracle.asked_temps) == 10


# --------------------------------------------------------------------------- budget


def test_call_budget_stops_labeling_and_is_shared_by_runs_of_one_job(base: KnowledgeBase) -> None:
    oracle, rows = Oracle(), store_observations(base, 20)
    budget = refresh_budget(base, max_teacher_calls=7)
    probs = labeling.ask(ensemble_of(oracle, base), rows, budget)
    assert np.isfinite(probs[:, 0]).sum() == len(oracle.asked_temps) == 7
    assert budget.stop_reason == "the budget is reached (budgets.max_teacher_calls: 7)"
    labeling.ask(ensemble_of(oracle, base), rows, refresh_budget(base, max_teacher_calls=7))
    assert len(oracle.asked_temps) == 7
    labeling.ask(ensemble_of(oracle, base), rows, refresh_budget(base, job="r2", max_teacher_calls=7))
    assert len(oracle.asked_temps) == 14


def test_money_budget_stops_labeling(base: KnowledgeBase) -> None:
    oracle = Oracle(price=0.3)
    labeling.ask(ensemble_of(oracle, base), store_observations(base, 20), refresh_budget(base, max_teacher_cost=2.0))
    assert len(oracle.asked_temps) == 6
    assert base.answers.spending(job="r1")["oracle"].money == pytest.approx(1.8)


def test_rows_within_the_budget_are_a_uniform_sample(base: KnowledgeBase) -> None:
    oracle = Oracle()
    labeling.ask(ensemble_of(oracle, base), store_observations(base, 400), refresh_budget(base, max_teacher_calls=100))
    assert 150 < np.mean(oracle.asked_temps) < 250
    assert min(oracle.asked_temps) < 40 and max(oracle.asked_temps) > 360


def test_watch_budget_renews_each_day_of_the_agent_clock(base: KnowledgeBase) -> None:
    budget = base.config.budgets.model_copy(update={"max_watch_calls": 5})
    base.config = base.config.model_copy(update={"budgets": budget})
    oracle, rows = Oracle(), store_observations(base, 40)
    for hours, count in ((0, 5), (12, 5), (23, 5), (24, 10), (30, 10)):
        labeling.ask(ensemble_of(oracle, base), rows, labeling.open_watch_budget(base, START + timedelta(hours=hours)))
        assert len(oracle.asked_temps) == count, hours
    labeling.ask(ensemble_of(oracle, base), rows, refresh_budget(base))  # a refresh has its own
    assert len(oracle.asked_temps) == 40


def test_spending_is_recorded_by_teacher_name(base: KnowledgeBase) -> None:
    expensive, cheap = Oracle(price=0.5, is_unusable=lambda temp: temp < 2), Oracle()
    members = [
        ensemble.Member("expensive", 0.5, expensive.answer, "d1", 4),
        ensemble.Member("cheap", 0.5, cheap.answer, "c1", 4),
    ]
    both_members = ensemble.Ensemble(base.config, members, None, "both_members")
    labeling.ask(both_members, store_observations(base, 6), refresh_budget(base))
    spent = base.answers.spending()
    assert spent["expensive"] == Spending(calls=6, rows=6, input_tokens=60, money=3.0)
    assert spent["cheap"] == Spending(calls=4, rows=4, input_tokens=40)  # half a mean is of no use
    assert base.answers.spending(job="r2") == {}
    assert base.answers.spending(purpose="watch") == {}


# --------------------------------------------------------------------------- teachers that learn, and mixtures


def fit_memory_and_oracle(base: KnowledgeBase, tmp_path: Path, oracle: Oracle) -> ensemble.Ensemble:
    """Half a :class:`Memory` that is fitted on all rows, half an oracle that is not fitted."""
    fitted = ensemble.load(
        Path(ensemble.fit(base.config, store_observations(base, 40), TRAIN, tmp_path / "t").folder), base.config
    )
    members = [
        ensemble.Member("memory", 0.5, fitted.members[0].answer),
        ensemble.Member("oracle", 0.5, oracle.answer, "o1"),
    ]
    return ensemble.Ensemble(base.config, members, TRAIN, "mix")


def test_ensemble_cross_fits_fitted_members_and_asks_the_others(base: KnowledgeBase, tmp_path: Path) -> None:
    """The memory gives ½ for rows of the block it was not fitted on; the oracle gives temp/1000."""
    oracle = Oracle()
    teacher, rows = fit_memory_and_oracle(base, tmp_path, oracle), store_observations(base, 40)
    probs = labeling.ask_cross_fitted(teacher, rows, refresh_budget(base))
    np.testing.assert_allclose(probs[:, 1], 0.25 + rows["temp"] / 2000)
    np.testing.assert_allclose(base.answers.probs(rows, "o1")[:, 1], rows["temp"] / 1000)
    assert {name: spent.rows for name, spent in base.answers.spending(job="r1").items()} == {"memory": 40, "oracle": 40}


def test_new_ensemble_version_reuses_answers_of_unfitted_members(base: KnowledgeBase, tmp_path: Path) -> None:
    oracle = Oracle()
    teacher, rows = fit_memory_and_oracle(base, tmp_path, oracle), store_observations(base, 40)
    labeling.ask_cross_fitted(teacher, rows, refresh_budget(base))
    teacher.version = "mix2"
    assert np.isfinite(labeling.ask_cross_fitted(teacher, rows, refresh_budget(base))).all()
    assert len(oracle.asked_temps) == 40


def test_ask_rejects_rows_in_the_fit_window(base: KnowledgeBase, tmp_path: Path) -> None:
    oracle = Oracle()
    teacher = fit_memory_and_oracle(base, tmp_path, oracle)
    with pytest.raises(LeakageError):
        labeling.ask(teacher, store_observations(base, 40), refresh_budget(base))
    assert not oracle.asked_temps


def test_call_budget_limits_cross_fitting(base: KnowledgeBase, tmp_path: Path) -> None:
    rows = store_observations(base, 40)
    folder = Path(ensemble.fit(base.config, rows, TRAIN, tmp_path / "t").folder)
    limited_budget = refresh_budget(base, max_teacher_calls=12)
    probs = labeling.ask_cross_fitted(ensemble.load(folder, base.config), rows, limited_budget)
    assert np.isfinite(probs[:, 0]).sum() == 12
    assert "budgets.max_teacher_calls: 12" in str(limited_budget.stop_reason)


def test_call_budget_limits_in_process_teacher(base: KnowledgeBase) -> None:
    member = ensemble.Member(
        "c", 1.0, wrap_predict("c", ACTIONS, lambda rows: np.tile([0.3, 0.7], (len(rows), 1))), "c1"
    )
    limited_budget = refresh_budget(base, max_teacher_calls=5)
    probs = labeling.ask(
        ensemble.Ensemble(base.config, [member], None, "c1"), store_observations(base, 9), limited_budget
    )
    assert np.isfinite(probs[:, 0]).sum() == 5
    assert base.answers.spending()["c"].calls == 5
    assert limited_budget.stop_reason


def test_repeated_spending_batch_is_counted_once(base: KnowledgeBase) -> None:
    for _ in range(2):
        base.answers.append_spending(
            Spending(calls=3, rows=2, seconds=0.5, money=0.1),
            job="j",
            purpose="watch",
            teacher="t",
            version="v",
            as_of=START,
            batch="b",
        )
    assert base.answers.spending() == {"t": Spending(calls=3, rows=2, seconds=0.5, money=0.1)}
    assert base.answers.spending(after=START) == {}
    assert base.answers.spending(after=START - timedelta(seconds=1), until=START).keys() == {"t"}


def test_missing_budgets_set_no_limit() -> None:
    config: AgentConfig = make_config(constant_teacher("a", 0.5))
    budgets = config.budgets
    assert (budgets.max_teacher_calls, budgets.max_teacher_cost) == (None, None)
    assert (budgets.max_watch_calls, budgets.max_watch_cost) == (None, None)


# --------------------------------------------------------------------------- some of the rows


def test_cross_fitting_asks_masked_rows_and_fits_on_labelled_rows_only(
    base: KnowledgeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = store_observations(base, 40)
    rows.loc[::4, "outcome"] = -1
    fitted: list[set[float]] = []
    fit = resolve(MEMORY["target"], where="here").fit
    monkeypatch.setattr(
        resolve(MEMORY["target"], where="here"),
        "fit",
        lambda self, seen, outcomes: (fitted.append(set(outcomes)), fit(self, seen, outcomes))[1],
    )
    reference = ensemble.fit(base.config, rows[rows["outcome"] >= 0], TRAIN, base.root.parent / "teacher")
    teacher = ensemble.load(base.root.parent / "teacher", base.config)
    mask = np.arange(40) % 3 == 0
    probs = labeling.ask_cross_fitted(teacher, rows, refresh_budget(base), mask)
    assert (~np.isnan(probs[:, 0]) == mask).all()
    assert base.tables.count_rows()["knowledge"] == mask.sum() and teacher.version == reference.version
    assert all(-1 not in outcomes for outcomes in fitted) and len(fitted) == 1 + base.config.distillation.folds


def test_affordable_rows_by_calls_left(base: KnowledgeBase) -> None:
    teacher = ensemble_of(Oracle(), base)
    assert refresh_budget(base).affordable_rows(teacher, 50) == 50
    assert refresh_budget(base, max_teacher_calls=7).affordable_rows(teacher, 50) == 7
    two_members = ensemble.Ensemble(base.config, teacher.members * 2, None, "o2")
    assert refresh_budget(base, max_teacher_calls=7).affordable_rows(two_members, 50) == 3
