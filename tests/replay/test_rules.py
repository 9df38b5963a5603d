"""The names of policies, and when the policies by a test train."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from stillhouse.config import Prices
from stillhouse.errors import ConfigError
from stillhouse.replay.detectors import PageHinkley
from stillhouse.replay.history import History
from stillhouse.replay.rules import Terms, parse_policy, play_detector, play_psi
from stillhouse.replay.world import Made, World
from tests.replay.conftest import STEP, train_regression

TERMS = Terms(0.02, Prices(), 6)
DRIFT_STEP = 1  # the world turns over as the second step begins


@pytest.mark.parametrize("name", ["never", "every:4d", "every:8d", "psi:0.25", "adwin", "page-hinkley", "always"])
def test_every_policy_plays_each_step_and_pays_for_its_trainings(name: str, world: World) -> None:
    policy = parse_policy(name, STEP)
    played = policy.play(world, TERMS)
    assert len(played.champions) == world.steps and played.price == len(played.acts)
    for act in played.acts:
        assert played.champions[act.step] == act.new == Made(act.step)
        assert played.champions[act.step - 1] == act.replaced
    assert len(played.realised(world)) == len(played.acts)


def test_calendars_train_as_often_as_they_say(world: World) -> None:
    numbers = {name: len(parse_policy(name, STEP).play(world, TERMS).acts) for name in ("never", "every:8d", "always")}
    assert numbers == {"never": 0, "every:8d": 4, "always": 9}
    assert list(parse_policy("every:8d", STEP).trainings(world)) == [0, 2, 4, 6, 8]


def test_payoff_and_oracle_are_played_at_the_exchange_rate(world: World) -> None:
    oracle = parse_policy("oracle", STEP)
    cheap, dear = (oracle.play(world, Terms(rate, Prices(), 6)) for rate in (1e-6, 10.0))
    assert cheap.acts and not dear.acts
    totals = {
        name: parse_policy(name, STEP).play(world, TERMS).total(world, TERMS.exchange_rate)
        for name in ("never", "every:4d", "every:8d", "psi:0.25", "page-hinkley", "oracle", "payoff")
    }
    assert all(totals["oracle"] <= totals[name] + 1e-9 for name in totals if name != "payoff")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("weekly", "there is no policy 'weekly'; there are: never, always, every:4w"),
        ("every", "there is no policy 'every'"),
        ("never:4w", "there is no policy 'never:4w'"),
        ("every:5d", "5d must be a whole number of steps of 4d"),
        ("every:soon", "policy 'every:soon'"),
        ("psi:-1", "must be a number above 0, such as psi:0.25"),
        ("psi:much", "must be a number above 0"),
        ("never@other", "after the @ only 'script' is possible"),
        ("never@", "after the @ only 'script' is possible"),
    ],
)
def test_an_unknown_name_is_answered_with_the_names_there_are(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        parse_policy(name, STEP)


def test_a_shifted_column_triggers_a_training_a_step_after_it_was_seen(world: World) -> None:
    acts = play_psi(world, 0.25).acts
    assert acts[0].step == DRIFT_STEP + 1
    assert not play_psi(world, 1e6).acts


def test_errors_are_read_in_the_order_in_which_they_became_known(history: History) -> None:
    seen: list[float] = []

    class Recorder:
        def update(self, value: float) -> bool:
            seen.append(value)
            return False

    world = World(history, train_regression)
    assert not play_detector(world, Recorder).acts
    known = history.known_at <= history.known_at.max()
    last = history.bounds[world.steps - 1].tz_localize(None).to_datetime64()
    rows = np.arange(history.offsets[0], history.offsets[world.steps - 1])
    rows = rows[(history.known_at[rows] <= last) & known[rows]]
    rows = rows[np.argsort(history.known_at[rows], kind="stable")]
    wrong = world.log_probs(Made(0))[rows - history.offsets[0]].argmax(axis=1) != history.labels[rows]
    assert seen == wrong.astype(float).tolist()


def test_a_detector_sees_the_errors_of_its_own_champion_only(world: World) -> None:
    acts = play_detector(world, PageHinkley).acts
    assert next(act.step for act in acts) in (DRIFT_STEP + 1, DRIFT_STEP + 2)
    assert len(acts) < world.steps - 1


def test_a_step_of_a_week_reads_calendars_in_weeks() -> None:
    assert parse_policy("every:4w", timedelta(weeks=1)).name == "every:4w"
