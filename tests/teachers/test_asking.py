"""Nothing is asked twice, every question is accounted for, asking stops at the budget, and what was learned is kept."""

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
from stillhouse.teachers import asking, ensemble
from stillhouse.teachers.answers import Allowance, Answers, in_process
from tests.teachers.test_ensemble import MEMORY, constant, make_config

START = datetime(2013, 1, 1, tzinfo=UTC)
TRAIN = Window(name="train", start=START, end=START + timedelta(hours=40))
ACTIONS = ("stay", "move")


class Oracle:
    """Says 1 − temp/1000; cannot be fitted, remembers what it was asked, and fails as it is told to."""

    def __init__(self, price: float = 0.0, useless: Callable[[float], bool] = lambda temp: False) -> None:
        self.asked: list[float] = []
        self.price = price
        self.useless = useless
        self.broken_after: int | None = None

    def answer(self, rows: pd.DataFrame, allowance: Allowance) -> Answers:
        said, refused, cost, stopped = np.full((len(rows), 2), np.nan), dict[int, str](), Spending(), None
        for place, temp in enumerate(rows["temp"]):
            if self.broken_after is not None and len(self.asked) >= self.broken_after:
                stopped = "the server is down"
                break
            if not allowance.take(self.price):
                stopped = "the budget is reached"
                break
            self.asked.append(temp)
            cost += Spending(calls=1, rows=1, input_tokens=10, money=self.price)
            if self.useless(temp):
                refused[place] = "garbage"
            else:
                said[place] = [1 - temp / 1000, temp / 1000]
        return Answers(said, cost, refused, stopped)


@pytest.fixture
def base(tmp_path: Path) -> KnowledgeBase:
    return KnowledgeBase(make_config(MEMORY), tmp_path / "kb")


def observed(base: KnowledgeBase, count: int, start: datetime = START) -> pd.DataFrame:
    """Rows with a content of their own each, as the knowledge base keeps them, with outcomes."""
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


def of(oracle: Oracle, base: KnowledgeBase, chunk: int = 4) -> ensemble.Ensemble:
    member = ensemble.Member("oracle", 1.0, oracle.answer, "o1", chunk)
    return ensemble.Ensemble(base.config, [member], None, "o1")


def account(base: KnowledgeBase, job: str = "r1", **budgets: Any) -> asking.Account:
    budget = base.config.budgets.model_copy(update=budgets)
    base.config = base.config.model_copy(update={"budgets": budget})
    return asking.for_refresh(base, job, START)


# --------------------------------------------------------------------------- memory


def test_nothing_is_asked_twice(base: KnowledgeBase) -> None:
    oracle, rows = Oracle(), observed(base, 10)
    doubled = pd.concat([rows, rows], ignore_index=True)
    said = asking.ask(of(oracle, base), doubled, account(base))
    np.testing.assert_allclose(said[:, 1], doubled["temp"] / 1000)
    asking.ask(of(oracle, base), rows[::-1], account(base))
    assert sorted(oracle.asked) == list(range(10))


def test_rows_may_bear_any_index(base: KnowledgeBase) -> None:
    rows = observed(base, 6)
    twice = pd.concat([rows.iloc[3:], rows.iloc[:4]])
    said = asking.ask(of(Oracle(), base), twice, account(base))
    np.testing.assert_allclose(said[:, 1], twice["temp"] / 1000)


def test_what_was_said_before_an_interruption_is_kept(base: KnowledgeBase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process dies while the third chunk of four rows is asked about: eight answers are there."""
    oracle, rows, answer = Oracle(), observed(base, 20), Oracle.answer

    def dies(self: Oracle, chunk: pd.DataFrame, allowance: Allowance) -> Answers:
        if len(self.asked) >= 8:
            raise KeyboardInterrupt
        return answer(self, chunk, allowance)

    with monkeypatch.context() as patch:
        patch.setattr(Oracle, "answer", dies)
        with pytest.raises(KeyboardInterrupt):
            asking.ask(of(oracle, base), rows, account(base))
    assert base.answers.spending(job="r1")["oracle"].calls == 8
    said = asking.ask(of(oracle, base), rows, account(base))
    assert np.isfinite(said).all()
    assert sorted(oracle.asked) == list(range(20))
    assert base.answers.spending(job="r1")["oracle"].calls == 20


def test_an_answer_of_no_use_is_kept_with_its_reason_and_asked_for_once_more(base: KnowledgeBase) -> None:
    """The first time it may be a passing fault; twice it is the row's own."""
    oracle, rows = Oracle(useless=lambda temp: temp == 3), observed(base, 6)
    for round_ in range(4):
        said = asking.ask(of(oracle, base), rows, account(base))
        assert np.isnan(said[:, 0]).tolist() == (rows["temp"] == 3).tolist()
        assert len(oracle.asked) == 6 + min(round_, 1)
    kept, key = base.answers.unanswered("o1"), rows.loc[rows["temp"] == 3, "content_key"].item()
    assert kept["reason"].tolist() == ["garbage"] * 2 and set(kept["content_key"]) == {
        key
    } == base.answers.unanswerable_keys("o1")
    assert base.answers.unanswered("another").empty and not base.answers.unanswerable_keys("another")


def test_an_answer_that_was_of_no_use_once_is_had_the_next_time(base: KnowledgeBase) -> None:
    oracle, rows = Oracle(useless=lambda temp: temp == 3), observed(base, 6)
    asking.ask(of(oracle, base), rows, account(base))
    oracle.useless = lambda temp: False
    assert np.isfinite(asking.ask(of(oracle, base), rows, account(base))).all()
    assert not base.answers.unanswerable_keys("o1")


def test_a_server_that_is_down_is_asked_about_those_rows_another_time(base: KnowledgeBase) -> None:
    oracle, rows = Oracle(), observed(base, 10)
    oracle.broken_after = 6
    first = account(base)
    said = asking.ask(of(oracle, base), rows, first)
    assert np.isfinite(said[:, 0]).sum() == 6
    assert first.stopped == "teacher 'oracle': the server is down"
    oracle.broken_after = None
    assert np.isfinite(asking.ask(of(oracle, base), rows, account(base))).all()
    assert len(oracle.asked) == 10


# --------------------------------------------------------------------------- budget


def test_asking_stops_at_the_budget_of_calls_and_a_repeated_run_has_no_new_one(base: KnowledgeBase) -> None:
    oracle, rows = Oracle(), observed(base, 20)
    first = account(base, max_teacher_calls=7)
    said = asking.ask(of(oracle, base), rows, first)
    assert np.isfinite(said[:, 0]).sum() == len(oracle.asked) == 7
    assert first.stopped == "the budget is reached (budgets.max_teacher_calls: 7)"
    asking.ask(of(oracle, base), rows, account(base, max_teacher_calls=7))
    assert len(oracle.asked) == 7
    asking.ask(of(oracle, base), rows, account(base, job="r2", max_teacher_calls=7))
    assert len(oracle.asked) == 14


def test_asking_stops_at_the_budget_of_money(base: KnowledgeBase) -> None:
    oracle = Oracle(price=0.3)
    asking.ask(of(oracle, base), observed(base, 20), account(base, max_teacher_cost=2.0))
    assert len(oracle.asked) == 6
    assert base.answers.spending(job="r1")["oracle"].money == pytest.approx(1.8)


def test_what_a_budget_pays_for_is_no_stretch_of_time(base: KnowledgeBase) -> None:
    oracle = Oracle()
    asking.ask(of(oracle, base), observed(base, 400), account(base, max_teacher_calls=100))
    assert 150 < np.mean(oracle.asked) < 250
    assert min(oracle.asked) < 40 and max(oracle.asked) > 360


def test_a_watch_has_a_budget_for_each_day_of_the_agents_life(base: KnowledgeBase) -> None:
    budget = base.config.budgets.model_copy(update={"max_watch_calls": 5})
    base.config = base.config.model_copy(update={"budgets": budget})
    oracle, rows = Oracle(), observed(base, 40)
    for hours, asked in ((0, 5), (12, 5), (23, 5), (24, 10), (30, 10)):
        asking.ask(of(oracle, base), rows, asking.for_watch(base, START + timedelta(hours=hours)))
        assert len(oracle.asked) == asked, hours
    asking.ask(of(oracle, base), rows, account(base))  # a refresh has its own
    assert len(oracle.asked) == 40


def test_each_teacher_is_accounted_for_by_its_name(base: KnowledgeBase) -> None:
    dear, cheap = Oracle(price=0.5, useless=lambda temp: temp < 2), Oracle()
    members = [ensemble.Member("dear", 0.5, dear.answer, "d1", 4), ensemble.Member("cheap", 0.5, cheap.answer, "c1", 4)]
    both = ensemble.Ensemble(base.config, members, None, "both")
    asking.ask(both, observed(base, 6), account(base))
    spent = base.answers.spending()
    assert spent["dear"] == Spending(calls=6, rows=6, input_tokens=60, money=3.0)
    assert spent["cheap"] == Spending(calls=4, rows=4, input_tokens=40)  # half a mean is of no use
    assert base.answers.spending(job="r2") == {}
    assert base.answers.spending(purpose="watch") == {}


# --------------------------------------------------------------------------- teachers that learn, and mixtures


def mixed(base: KnowledgeBase, tmp_path: Path, oracle: Oracle) -> ensemble.Ensemble:
    """The memory, fitted on all, and an oracle that cannot be fitted; one part each."""
    fitted = ensemble.load(
        Path(ensemble.fit(base.config, observed(base, 40), TRAIN, tmp_path / "t").folder), base.config
    )
    members = [
        ensemble.Member("memory", 0.5, fitted.members[0].answer),
        ensemble.Member("oracle", 0.5, oracle.answer, "o1"),
    ]
    return ensemble.Ensemble(base.config, members, TRAIN, "mix")


def test_a_mixture_is_cross_fitted_where_it_can_be_and_asked_where_not(base: KnowledgeBase, tmp_path: Path) -> None:
    """The memory knows nothing about rows that were kept from it (½); the oracle says temp/1000."""
    oracle = Oracle()
    teacher, rows = mixed(base, tmp_path, oracle), observed(base, 40)
    said = asking.cross_fitted(teacher, rows, account(base))
    np.testing.assert_allclose(said[:, 1], 0.25 + rows["temp"] / 2000)
    np.testing.assert_allclose(base.answers.probs(rows, "o1")[:, 1], rows["temp"] / 1000)
    assert {name: spent.rows for name, spent in base.answers.spending(job="r1").items()} == {"memory": 40, "oracle": 40}


def test_a_renewed_mixture_pays_only_for_what_is_new(base: KnowledgeBase, tmp_path: Path) -> None:
    oracle = Oracle()
    teacher, rows = mixed(base, tmp_path, oracle), observed(base, 40)
    asking.cross_fitted(teacher, rows, account(base))
    teacher.version = "mix2"
    assert np.isfinite(asking.cross_fitted(teacher, rows, account(base))).all()
    assert len(oracle.asked) == 40


def test_a_mixture_is_not_asked_about_what_its_fitted_part_has_seen(base: KnowledgeBase, tmp_path: Path) -> None:
    oracle = Oracle()
    teacher = mixed(base, tmp_path, oracle)
    with pytest.raises(LeakageError):
        asking.ask(teacher, observed(base, 40), account(base))
    assert not oracle.asked


def test_the_budget_limits_cross_fitting_too(base: KnowledgeBase, tmp_path: Path) -> None:
    rows = observed(base, 40)
    folder = Path(ensemble.fit(base.config, rows, TRAIN, tmp_path / "t").folder)
    limited = account(base, max_teacher_calls=12)
    said = asking.cross_fitted(ensemble.load(folder, base.config), rows, limited)
    assert np.isfinite(said[:, 0]).sum() == 12
    assert "budgets.max_teacher_calls: 12" in str(limited.stopped)


def test_a_teacher_in_this_process_stops_at_the_budget(base: KnowledgeBase) -> None:
    member = ensemble.Member("c", 1.0, in_process("c", ACTIONS, lambda rows: np.tile([0.3, 0.7], (len(rows), 1))), "c1")
    limited = account(base, max_teacher_calls=5)
    said = asking.ask(ensemble.Ensemble(base.config, [member], None, "c1"), observed(base, 9), limited)
    assert np.isfinite(said[:, 0]).sum() == 5
    assert base.answers.spending()["c"].calls == 5
    assert limited.stopped


def test_the_same_batch_of_spending_is_counted_once(base: KnowledgeBase) -> None:
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


def test_a_config_without_budgets_sets_no_limit() -> None:
    config: AgentConfig = make_config(constant("a", 0.5))
    budgets = config.budgets
    assert (budgets.max_teacher_calls, budgets.max_teacher_cost) == (None, None)
    assert (budgets.max_watch_calls, budgets.max_watch_cost) == (None, None)


# --------------------------------------------------------------------------- some of the rows


def test_only_wanted_rows_are_asked_about_and_nothing_is_fitted_on_rows_without_outcome(
    base: KnowledgeBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = observed(base, 40)
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
    wanted = np.arange(40) % 3 == 0
    said = asking.cross_fitted(teacher, rows, account(base), wanted)
    assert (~np.isnan(said[:, 0]) == wanted).all()
    assert base.tables.count_rows()["knowledge"] == wanted.sum() and teacher.version == reference.version
    assert all(-1 not in outcomes for outcomes in fitted) and len(fitted) == 1 + base.config.distillation.folds


def test_what_the_calls_that_are_left_will_do_for(base: KnowledgeBase) -> None:
    teacher = of(Oracle(), base)
    assert account(base).affordable(teacher, 50) == 50
    assert account(base, max_teacher_calls=7).affordable(teacher, 50) == 7
    two = ensemble.Ensemble(base.config, teacher.members * 2, None, "o2")
    assert account(base, max_teacher_calls=7).affordable(two, 50) == 3
