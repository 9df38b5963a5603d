"""Weights from the knowledge base: by arrival, from what every member has said, and nothing is asked for twice."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import AgentConfig
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import Window
from stillhouse.teachers import asking, ensemble, following, weighing
from stillhouse.teachers.answers import in_process
from tests.teachers.test_ensemble import constant, make_config

START = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
ACTIONS = ("stay", "move")


def config_of(*names: str, **weights: Any) -> AgentConfig:
    config = make_config(*(constant(name, 0.5) for name in names))
    return config.model_copy(update={"weights": config.weights.model_copy(update=weights)})


def base_of(tmp_path: Path, config: AgentConfig, count: int = 300) -> KnowledgeBase:
    """An observation an hour whose outcome, `move` from temp 0.5 on, is known a day later."""
    base = KnowledgeBase(config, tmp_path / "kb")
    rng = np.random.default_rng(3)
    rows = pd.DataFrame(
        {
            "observation_id": [f"o{i}" for i in range(count)],
            "observed_at": pd.to_datetime([START + i * HOUR for i in range(count)], utc=True),
            "temp": rng.random(count),
        }
    )
    base.append_observations(rows, batch="o")
    said = rows[["observation_id", "observed_at"]].assign(
        known_at=rows["observed_at"] + timedelta(days=1), action=np.where(rows["temp"] > 0.5, "move", "stay")
    )
    base.tables.append("outcomes", said, batch="y")
    return base


def labelled(base: KnowledgeBase, first: int = 0, last: int = 300) -> pd.DataFrame:
    window = Window(name="w", start=START + first * HOUR, end=START + last * HOUR)
    return base.read_labelled(window, known_by=START + timedelta(days=365))


class Says:
    """Right with probability .9 until an hour of the agent's life, then wrong with .9; counts what it is asked."""

    def __init__(self, until: int) -> None:
        self.until = START + until * HOUR
        self.asked = 0

    def __call__(self, rows: pd.DataFrame) -> np.ndarray:
        self.asked += len(rows)
        move = (rows["temp"] > 0.5).to_numpy()
        right = (rows["observed_at"] < self.until).to_numpy()
        p = np.where(move == right, 0.9, 0.1)
        return np.column_stack([1 - p, p])


def of(base: KnowledgeBase, **says: Says) -> ensemble.Ensemble:
    members = [
        ensemble.Member(name, 1 / len(says), in_process(name, ACTIONS, said), f"{name}-v")
        for name, said in says.items()
    ]
    return ensemble.Ensemble(base.config, members, None, "all")


def asked(base: KnowledgeBase, teacher: ensemble.Ensemble, rows: pd.DataFrame, **budgets: Any) -> asking.Account:
    base.config = base.config.model_copy(update={"budgets": base.config.budgets.model_copy(update=budgets)})
    account = asking.for_refresh(base, "r", START)
    following.ready_to_weigh(base, teacher, rows, account, fit=False)
    return account


NOW = START + timedelta(days=60)


def test_outcomes_count_in_the_order_in_which_they_became_known(tmp_path: Path) -> None:
    """The teacher that is right about the newest rows wins, though the rows come in any order."""
    base = base_of(tmp_path, config_of("old", "new"))
    teacher = of(base, old=Says(until=150), new=Says(until=300))
    rows = labelled(base).sample(300, random_state=1)
    asked(base, teacher, rows)
    found = following.weigh(base, teacher, NOW, rows)
    assert found is not None
    assert (found.weights.by, found.weights.everywhere.outcomes) == ("outcomes", 300)
    assert weighing.share_in(found.weights)[1] > 0.9
    assert list(found.times) == sorted(found.times) and found.steps[-1] == 300
    assert found.times[-1] == START + 299 * HOUR + timedelta(days=1)
    when, step, shares = found.points("weight/")[0]
    assert (when, step) == (START + timedelta(days=1), 1) and set(shares) == {"weight/old", "weight/new"}


def test_a_sample_is_asked_and_what_is_known_is_not_asked_again(tmp_path: Path) -> None:
    base = base_of(tmp_path, config_of("a", "b", rows=50))
    one, other = Says(300), Says(100)
    teacher, rows = of(base, a=one, b=other), labelled(base)
    asked(base, teacher, rows)
    assert (one.asked, other.asked) == (50, 50)
    asked(base, teacher, rows)
    assert (one.asked, other.asked) == (50, 50)
    found = following.weigh(base, teacher, NOW, rows)
    assert found is not None and found.weights.everywhere.outcomes == 50
    asking.remember_mean(base, teacher, rows)
    assert (~np.isnan(base.answers.probs(rows, "all")[:, 0])).sum() == 50
    asking.ask(teacher, rows, asking.for_refresh(base, "r", START))
    assert (one.asked, other.asked) == (300, 300)


def test_weighing_leaves_half_of_the_budget(tmp_path: Path) -> None:
    base = base_of(tmp_path, config_of("a", "b"))
    one, other = Says(300), Says(300)
    account = asked(base, of(base, a=one, b=other), labelled(base), max_teacher_calls=100)
    assert one.asked + other.asked == 50 and account.stopped
    assert asking.for_refresh(base, "r", START).allowance.calls == 50


def test_a_mean_under_other_weights_is_recomputed_and_nobody_is_asked(tmp_path: Path) -> None:
    base = base_of(tmp_path, config_of("a", "b"))
    one, other = Says(300), Says(0)
    teacher, rows = of(base, a=one, b=other), labelled(base)
    asking.ask(teacher, rows, asking.for_refresh(base, "r", START))
    found = following.weigh(base, teacher, NOW, rows)
    assert found is not None
    again = ensemble.Ensemble(
        base.config, teacher.members, None, "weighted", weights=found.weights, before_weights="all"
    )
    asking.remember_mean(base, again, rows)
    assert (one.asked, other.asked) == (300, 300)
    share = weighing.share_in(found.weights)
    right = np.where(rows["outcome"] == 1, 0.9, 0.1)
    np.testing.assert_allclose(base.answers.probs(rows, "weighted")[:, 1], share[0] * right + share[1] * (1 - right))
    np.testing.assert_allclose(base.answers.probs(rows, "all")[:, 1], 0.5)


def test_one_teacher_and_fixed_weights_have_nothing_to_weigh(tmp_path: Path) -> None:
    base = base_of(tmp_path, config_of("a"))
    one = Says(300)
    asked(base, of(base, a=one), labelled(base))
    assert one.asked == 0 and following.weigh(base, of(base, a=one), NOW, labelled(base)) is None
    fixed = base_of(tmp_path / "fixed", config_of("a", "b", follow="fixed"))
    assert following.weigh(fixed, of(fixed, a=one, b=Says(0)), NOW, labelled(fixed)) is None


def test_with_few_outcomes_three_teachers_start_by_agreement(tmp_path: Path) -> None:
    base = base_of(tmp_path, config_of("a", "b", "c", min_outcomes=40), count=120)
    teacher = of(base, a=Says(300), b=Says(300), c=Says(0))
    few, enough = labelled(base, 0, 20), labelled(base, 0, 40)
    for rows in (few, enough):
        asked(base, teacher, rows)
    by_few, by_enough = (following.weigh(base, teacher, NOW, rows) for rows in (few, enough))
    assert by_few is not None and by_enough is not None
    assert (by_few.weights.by, by_enough.weights.by) == ("agreement", "outcomes")
    assert by_few.weights.start[2] < 0.05 and by_enough.weights.start == pytest.approx([1 / 3] * 3)

    weighted = ensemble.Ensemble(base.config, teacher.members, None, "w", weights=by_few.weights, before_weights="all")
    asked(base, teacher, labelled(base, 0, 120))
    since, observed = START + 21 * HOUR + timedelta(days=1), Window(name="t", start=START, end=NOW)
    soon = following.followed(base, weighted, since, observed, since + 20 * HOUR)
    later = following.followed(base, weighted, since, observed, since + 60 * HOUR)
    assert (soon.weights.by, soon.weights.everywhere.outcomes) == ("agreement", 40)
    assert (later.weights.by, later.weights.everywhere.outcomes) == ("outcomes", 60)
    assert later.weights.start == pytest.approx([1 / 3] * 3)
    assert following.weigh(base, weighted, NOW, few) is None  # what it has tells more


def test_a_watch_goes_on_where_the_refresh_left_off(tmp_path: Path) -> None:
    base = base_of(tmp_path, config_of("a", "b"))
    teacher = of(base, a=Says(200), b=Says(300))
    asked(base, teacher, labelled(base))
    made = following.weigh(base, teacher, NOW, labelled(base, 0, 150))
    whole = following.weigh(base, teacher, NOW, labelled(base))
    assert made is not None and whole is not None
    weighted = ensemble.Ensemble(base.config, teacher.members, None, "w", weights=made.weights, before_weights="all")
    since, observed = START + 150 * HOUR + timedelta(days=1), Window(name="t", start=START, end=NOW)
    none = following.followed(base, weighted, since, observed, since)
    assert none.weights == made.weights and none.points("") == []
    now = following.followed(base, weighted, since, observed, NOW).weights
    np.testing.assert_allclose(weighing.share_in(now), weighing.share_in(whole.weights))

    before = following.standing(made.weights, [])
    changes = weighing.changes(now, before, version="w", job="watch")
    assert {(each.teacher, each.slice) for each in changes} == {("a", ""), ("b", "")}
    base.journal.append_weight_changes(changes)
    base.journal.append_weight_changes(changes)
    assert base.journal.weight_changes("w") == list(changes) and base.journal.weight_changes("other") == []
    other = [each.model_copy(update={"version": "w2", "after": 0.5}) for each in changes]
    base.journal.append_weight_changes(other)  # the same job again, with more knowledge
    assert base.journal.weight_changes() == other
    stands = following.standing(made.weights, changes)
    assert weighing.changes(now, stands, version="w", job="watch") == ()
    assert stands["", "a"] == pytest.approx(weighing.share_in(now)[0])


@pytest.mark.parametrize(("share", "rows"), [(1.0, 300), (0.5, 60)])
def test_teachers_that_learn_are_weighed_on_all_that_the_lesson_will_ask_about(
    tmp_path: Path, share: float, rows: int
) -> None:
    config = config_of("a", "b", rows=60)
    config = config.model_copy(update={"asking": config.asking.model_copy(update={"share": share})})
    base = base_of(tmp_path, config)
    lived = labelled(base)
    window = Window(name="train", start=START, end=START + 300 * HOUR)
    ensemble.fit(config, lived, window, tmp_path / "t")
    teacher = ensemble.load(tmp_path / "t", config)
    following.ready_to_weigh(base, teacher, lived, asking.for_refresh(base, "r", START), fit=True)
    said = asking.members_said(base, teacher, lived)
    assert [int((~np.isnan(each[:, 0])).sum()) for each in said.values()] == [rows, rows]
    found = following.weigh(base, teacher, NOW, lived)
    assert found is not None and found.weights.everywhere.outcomes == rows
