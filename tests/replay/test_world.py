"""The table of models: what each was trained on, and that it does not depend on how it was made."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import AgentConfig, QualitySettings
from stillhouse.replay.history import History
from stillhouse.replay.rules import Terms, parse_policy
from stillhouse.replay.script import train_script_student
from stillhouse.replay.training import TrainedModel, train_student
from stillhouse.replay.world import Made, World
from tests.replay.conftest import STEP, train_regression


@pytest.mark.slow
@pytest.mark.parametrize("train", [train_student, train_script_student])
def test_models_are_equal_whether_trained_at_once_or_when_needed(history: History, train) -> None:
    short = History.of(history.settings, history.rows, history.start, timedelta(days=8), 3)
    eager, lazy = World(short, train), World(short, train)
    done: list[tuple[int, int]] = []
    eager.prepare([0, 2], processes=2, progress=lambda number, total: done.append((number, total)))
    assert done == [(0, 2), (1, 2), (2, 2)] and set(eager._log_probs) == {Made(0), Made(2)}
    for step in (2, 0):
        np.testing.assert_array_equal(eager.log_probs(Made(step)), lazy.log_probs(Made(step)))


def test_no_model_sees_a_row_whose_outcome_was_not_known(history: History) -> None:
    """Of the rows of the last day before a decision, whose delay is a day, none is trained on."""
    seen: list[pd.DataFrame] = []

    def train(settings: AgentConfig, rows: pd.DataFrame, ready: object) -> TrainedModel:
        seen.append(rows)
        return train_regression(settings, rows, ready)

    world = World(history, train)
    for step in (0, 3, 9):
        world.log_probs(Made(step))
        assert (seen[-1]["known_at"] <= history.bounds[step]).all()
        assert seen[-1]["observed_at"].max() <= history.bounds[step] - timedelta(days=1)
        assert seen[-1]["observed_at"].min() >= history.bounds[step] - history.settings.windows.train


@pytest.mark.parametrize("name", ["payoff", "psi:0.25", "page-hinkley", "adwin"])
def test_outcomes_that_are_not_known_yet_change_no_decision(history: History, name: str) -> None:
    """With every later outcome turned over, the responses up to a moment stay as they were."""
    decision = 5
    unknown = history.rows["known_at"] > history.bounds[decision]
    other = history.rows.assign(outcome=np.where(unknown, 1 - history.labels, history.labels))
    turned = History.of(history.settings, other, history.start, history.step, history.steps)
    policy, terms = parse_policy(name, STEP), Terms(0.02, history.settings.watch.payoff.prices, 6)
    first, second = (
        [act[:4] for act in _acts_until(policy.play(World(past, train_regression), terms).acts, decision)]
        for past in (history, turned)
    )
    assert first == second and (first or name == "adwin")


def _acts_until(acts, decision: int) -> Iterator[tuple[object, ...]]:
    for act in acts:
        if act.step <= decision:
            yield act.step, act.response, act.replaced, act.new


def test_a_score_of_the_users_own_is_measured_beside_the_others(history: History) -> None:
    own = {"target": "tests.replay.test_world:half_right", "name": "half", "low": 0.0, "high": 0.5}
    settings = history.settings.model_copy(update={"quality": QualitySettings.model_validate({"own": own})})
    past = History.of(settings, history.rows, history.start, history.step, history.steps)
    losses = World(past, train_regression).scores(Made(0))
    np.testing.assert_allclose(losses["half"], losses["accuracy"] / 2)


def half_right(probs: np.ndarray, labels: np.ndarray, rows: pd.DataFrame) -> np.ndarray:
    assert len(rows) == len(labels)
    return (probs.argmax(axis=1) == labels) / 2
