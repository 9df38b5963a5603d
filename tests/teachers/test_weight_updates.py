"""Weights from the knowledge base: by arrival, from rows that every member answered, without repeated questions."""

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
from stillhouse.teachers import ensemble, labeling, mixture_weights, weight_updates
from stillhouse.teachers.answers import wrap_predict
from tests.teachers.test_ensemble import constant_teacher, make_config

START = datetime(2013, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
ACTIONS = ("stay", "move")


def make_config_of(*names: str, **weights: Any) -> AgentConfig:
    config = make_config(*(constant_teacher(name, 0.5) for name in names))
    return config.model_copy(update={"weights": config.weights.model_copy(update=weights)})


def make_base(tmp_path: Path, config: AgentConfig, count: int = 300) -> KnowledgeBase:
    """One observation per hour; its outcome, `move` above temp 0.5, arrives a day later."""
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
    outcomes = rows[["observation_id", "observed_at"]].assign(
        known_at=rows["observed_at"] + timedelta(days=1), action=np.where(rows["temp"] > 0.5, "move", "stay")
    )
    base.tables.append("outcomes", outcomes, batch="y")
    return base


def labelled(base: KnowledgeBase, first: int = 0, last: int = 300) -> pd.DataFrame:
    window = Window(name="w", start=START + first * HOUR, end=START + last * HOUR)
    return base.read_labelled(window, known_by=START + timedelta(days=365))


class ToyAnswers:
    """Right with probability 0.9 until an hour, then wrong with 0.9; counts the rows it answers."""

    def __init__(self, until: int) -> None:
        self.until = START + until * HOUR
        self.calls = 0

    def __call__(self, rows: pd.DataFrame) -> np.ndarray:
        self.calls += len(rows)
        move = (rows["temp"] > 0.5).to_numpy()
        right = (rows["observed_at"] < self.until).to_numpy()
        p = np.where(move == right, 0.9, 0.1)
        return np.column_stack([1 - p, p])


def ensemble_of(base: KnowledgeBase, **answers: ToyAnswers) -> ensemble.Ensemble:
    members = [
        ensemble.Member(name, 1 / len(answers), wrap_predict(name, ACTIONS, predict), f"{name}-v")
        for name, predict in answers.items()
    ]
    return ensemble.Ensemble(base.config, members, None, "all")


def label_and_open_budget(
    base: KnowledgeBase, teacher: ensemble.Ensemble, rows: pd.DataFrame, **budgets: Any
) -> labeling.LabelingBudget:
    base.config = base.config.model_copy(update={"budgets": base.config.budgets.model_copy(update=budgets)})
    budget = labeling.open_refresh_budget(base, "r", START)
    weight_updates.label_for_weighting(base, teacher, rows, budget, fit=False)
    return budget


NOW = START + timedelta(days=60)


def test_outcomes_are_processed_by_arrival(tmp_path: Path) -> None:
    """The teacher that is right about the newest rows wins, though the rows come in any order."""
    base = make_base(tmp_path, make_config_of("old", "new"))
    teacher = ensemble_of(base, old=ToyAnswers(until=150), new=ToyAnswers(until=300))
    rows = labelled(base).sample(300, random_state=1)
    label_and_open_budget(base, teacher, rows)
    update = weight_updates.learn_weights(base, teacher, NOW, rows)
    assert update is not None
    assert (update.mixture.by, update.mixture.everywhere.outcomes) == ("outcomes", 300)
    assert mixture_weights.slice_shares(update.mixture)[1] > 0.9
    assert list(update.times) == sorted(update.times) and update.steps[-1] == 300
    assert update.times[-1] == START + 299 * HOUR + timedelta(days=1)
    when, step, shares = update.points("weight/")[0]
    assert (when, step) == (START + timedelta(days=1), 1) and set(shares) == {"weight/old", "weight/new"}


def test_sample_is_labelled_once_for_weighting(tmp_path: Path) -> None:
    base = make_base(tmp_path, make_config_of("a", "b", rows=50))
    first, second = ToyAnswers(300), ToyAnswers(100)
    teacher, rows = ensemble_of(base, a=first, b=second), labelled(base)
    label_and_open_budget(base, teacher, rows)
    assert (first.calls, second.calls) == (50, 50)
    label_and_open_budget(base, teacher, rows)
    assert (first.calls, second.calls) == (50, 50)
    update = weight_updates.learn_weights(base, teacher, NOW, rows)
    assert update is not None and update.mixture.everywhere.outcomes == 50
    labeling.store_mean_probs(base, teacher, rows)
    assert (~np.isnan(base.answers.probs(rows, "all")[:, 0])).sum() == 50
    labeling.ask(teacher, rows, labeling.open_refresh_budget(base, "r", START))
    assert (first.calls, second.calls) == (300, 300)


def test_label_for_weighting_spends_half_of_the_budget(tmp_path: Path) -> None:
    base = make_base(tmp_path, make_config_of("a", "b"))
    first, second = ToyAnswers(300), ToyAnswers(300)
    budget = label_and_open_budget(base, ensemble_of(base, a=first, b=second), labelled(base), max_teacher_calls=100)
    assert first.calls + second.calls == 50 and budget.stop_reason
    assert labeling.open_refresh_budget(base, "r", START).allowance.calls == 50


def test_mean_under_new_weights_is_computed_from_stored_answers(tmp_path: Path) -> None:
    base = make_base(tmp_path, make_config_of("a", "b"))
    first, second = ToyAnswers(300), ToyAnswers(0)
    teacher, rows = ensemble_of(base, a=first, b=second), labelled(base)
    labeling.ask(teacher, rows, labeling.open_refresh_budget(base, "r", START))
    update = weight_updates.learn_weights(base, teacher, NOW, rows)
    assert update is not None
    again = ensemble.Ensemble(
        base.config, teacher.members, None, "weighted", mixture=update.mixture, unweighted_version="all"
    )
    labeling.store_mean_probs(base, again, rows)
    assert (first.calls, second.calls) == (300, 300)
    share = mixture_weights.slice_shares(update.mixture)
    right = np.where(rows["outcome"] == 1, 0.9, 0.1)
    np.testing.assert_allclose(base.answers.probs(rows, "weighted")[:, 1], share[0] * right + share[1] * (1 - right))
    np.testing.assert_allclose(base.answers.probs(rows, "all")[:, 1], 0.5)


def test_no_weights_for_one_teacher_or_fixed_weights(tmp_path: Path) -> None:
    base = make_base(tmp_path, make_config_of("a"))
    first = ToyAnswers(300)
    label_and_open_budget(base, ensemble_of(base, a=first), labelled(base))
    assert (
        first.calls == 0 and weight_updates.learn_weights(base, ensemble_of(base, a=first), NOW, labelled(base)) is None
    )
    fixed = make_base(tmp_path / "fixed", make_config_of("a", "b", follow="fixed"))
    assert (
        weight_updates.learn_weights(fixed, ensemble_of(fixed, a=first, b=ToyAnswers(0)), NOW, labelled(fixed)) is None
    )


def test_three_teachers_start_by_agreement_with_few_outcomes(tmp_path: Path) -> None:
    base = make_base(tmp_path, make_config_of("a", "b", "c", min_outcomes=40), count=120)
    teacher = ensemble_of(base, a=ToyAnswers(300), b=ToyAnswers(300), c=ToyAnswers(0))
    few_rows, enough_rows = labelled(base, 0, 20), labelled(base, 0, 40)
    for rows in (few_rows, enough_rows):
        label_and_open_budget(base, teacher, rows)
    by_few, by_enough = (weight_updates.learn_weights(base, teacher, NOW, rows) for rows in (few_rows, enough_rows))
    assert by_few is not None and by_enough is not None
    assert (by_few.mixture.by, by_enough.mixture.by) == ("agreement", "outcomes")
    assert by_few.mixture.start[2] < 0.05 and by_enough.mixture.start == pytest.approx([1 / 3] * 3)

    weighted = ensemble.Ensemble(
        base.config, teacher.members, None, "w", mixture=by_few.mixture, unweighted_version="all"
    )
    label_and_open_budget(base, teacher, labelled(base, 0, 120))
    since, observed = START + 21 * HOUR + timedelta(days=1), Window(name="t", start=START, end=NOW)
    early_update = weight_updates.update_weights(base, weighted, since, observed, since + 20 * HOUR)
    late_update = weight_updates.update_weights(base, weighted, since, observed, since + 60 * HOUR)
    assert (early_update.mixture.by, early_update.mixture.everywhere.outcomes) == ("agreement", 40)
    assert (late_update.mixture.by, late_update.mixture.everywhere.outcomes) == ("outcomes", 60)
    assert late_update.mixture.start == pytest.approx([1 / 3] * 3)
    assert weight_updates.learn_weights(base, weighted, NOW, few_rows) is None  # what it has tells more


def test_watch_continues_from_the_weights_of_the_refresh(tmp_path: Path) -> None:
    base = make_base(tmp_path, make_config_of("a", "b"))
    teacher = ensemble_of(base, a=ToyAnswers(200), b=ToyAnswers(300))
    label_and_open_budget(base, teacher, labelled(base))
    refresh_update = weight_updates.learn_weights(base, teacher, NOW, labelled(base, 0, 150))
    full_update = weight_updates.learn_weights(base, teacher, NOW, labelled(base))
    assert refresh_update is not None and full_update is not None
    weighted = ensemble.Ensemble(
        base.config, teacher.members, None, "w", mixture=refresh_update.mixture, unweighted_version="all"
    )
    since, observed = START + 150 * HOUR + timedelta(days=1), Window(name="t", start=START, end=NOW)
    no_update = weight_updates.update_weights(base, weighted, since, observed, since)
    assert no_update.mixture == refresh_update.mixture and no_update.points("") == []
    weights_now = weight_updates.update_weights(base, weighted, since, observed, NOW).mixture
    np.testing.assert_allclose(
        mixture_weights.slice_shares(weights_now), mixture_weights.slice_shares(full_update.mixture)
    )

    before = weight_updates.current_weights(refresh_update.mixture, [])
    changes = mixture_weights.find_changes(weights_now, before, version="w", job="watch")
    assert {(change.teacher, change.slice) for change in changes} == {("a", ""), ("b", "")}
    base.journal.append_weight_changes(changes)
    base.journal.append_weight_changes(changes)
    assert base.journal.weight_changes("w") == list(changes) and base.journal.weight_changes("second") == []
    second = [change.model_copy(update={"version": "w2", "after": 0.5}) for change in changes]
    base.journal.append_weight_changes(second)  # the same job again, with more knowledge
    assert base.journal.weight_changes() == second
    recorded = weight_updates.current_weights(refresh_update.mixture, changes)
    assert mixture_weights.find_changes(weights_now, recorded, version="w", job="watch") == ()
    assert recorded["", "a"] == pytest.approx(mixture_weights.slice_shares(weights_now)[0])


@pytest.mark.parametrize(("share", "count"), [(1.0, 300), (0.5, 60)])
def test_fitted_members_answer_all_rows_that_training_will_need(tmp_path: Path, share: float, count: int) -> None:
    config = make_config_of("a", "b", rows=60)
    config = config.model_copy(update={"asking": config.asking.model_copy(update={"share": share})})
    base = make_base(tmp_path, config)
    rows = labelled(base)
    window = Window(name="train", start=START, end=START + 300 * HOUR)
    ensemble.fit(config, rows, window, tmp_path / "t")
    teacher = ensemble.load(tmp_path / "t", config)
    weight_updates.label_for_weighting(base, teacher, rows, labeling.open_refresh_budget(base, "r", START), fit=True)
    probs = labeling.member_probs(base, teacher, rows)
    assert [int((~np.isnan(member[:, 0])).sum()) for member in probs.values()] == [count, count]
    update = weight_updates.learn_weights(base, teacher, NOW, rows)
    assert update is not None and update.mixture.everywhere.outcomes == count
