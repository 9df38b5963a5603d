"""The cart-pole agent: its physics change at known steps, its teacher learns from transitions, the flows play it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from shutil import copy

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("gymnasium")

from gymnasium.envs.classic_control.cartpole import CartPoleEnv

from examples import cartpole
from flows.demo import demo
from stillhouse import KnowledgeBase, load_config
from stillhouse.certifying.run import verify

AGENT = Path(__file__).parents[2] / "agents" / "cartpole.yaml"
WEEK = pd.Timedelta(weeks=1)
SEEDS = np.arange(30)


@pytest.fixture
def agent(agents: Path) -> Path:
    """A home with the agent's file and nothing lived through."""
    return Path(copy(AGENT, agents))


def at(week: float) -> pd.DatetimeIndex:
    return pd.DatetimeIndex([cartpole.FIRST_DAY + week * WEEK] * len(SEEDS))


def mean_return(gain: np.ndarray, week: float) -> float:
    return float(cartpole.play(cartpole._linear(gain), SEEDS, at(week))[2].mean())


def test_an_episode_is_that_of_gymnasium() -> None:
    states, pushes, returns = cartpole.play(lambda s: (s[:, 2] > 0).astype(np.int64), SEEDS, at(10))
    env = CartPoleEnv()
    for name, value in cartpole.PHYSICS[10].items():
        setattr(env, name, value)
    env.total_mass, env.polemass_length = env.masscart + env.masspole, env.masspole * env.length
    env.reset(seed=0)
    env.state = tuple(states[0, 7])
    steps = 0
    for step in range(cartpole.STEPS):
        seen, _, fell, _, _ = env.step(int(pushes[step, 7]))
        assert seen == pytest.approx(states[step + 1, 7], abs=1e-5)
        if fell:
            break
        steps += 1
    assert returns[7] == steps and 0 < steps < cartpole.STEPS


def test_the_same_seed_is_the_same_episode_whoever_else_plays() -> None:
    decide = cartpole._linear(cartpole.NOMINAL)
    alone = [cartpole.play(decide, SEEDS[i : i + 1], at(10)[:1])[2][0] for i in (3, 4)]
    assert cartpole.play(decide, SEEDS, at(10))[2][3:5].tolist() == alone


@pytest.mark.usefixtures("agent")
def test_the_teacher_learns_from_recorded_transitions_and_forgets_nothing() -> None:
    assert mean_return(cartpole.NOMINAL, 0) == 200
    worlds = sorted(cartpole.PHYSICS)
    for before, week in pairwise(worlds):
        start = cartpole.FIRST_DAY + week * WEEK
        new = cartpole.fit_lqr(cartpole._read_transitions(start, start + 2 * cartpole.DAY))
        assert mean_return(cartpole.NOMINAL, week) < 40 < 150 < mean_return(new, week)
        assert mean_return(new, before) > 190


@pytest.mark.usefixtures("agent")
def test_sources_agree_and_give_the_same_rows_in_parts() -> None:
    start, middle, end = (cartpole.FIRST_DAY + days * cartpole.DAY for days in (0, 1.25, 2))
    rows = cartpole.states(start, end)
    parts = [cartpole.states(start, middle), cartpole.states(middle, end)]
    pd.testing.assert_frame_equal(rows, pd.concat(parts, ignore_index=True))
    assert rows["observation_id"].is_unique and rows["observed_at"].is_monotonic_increasing
    outcomes = cartpole.hindsight(start, end)
    assert outcomes["observation_id"].tolist() == rows["observation_id"].tolist()
    assert set(outcomes["action"]) == {"left", "right"}
    assert ((outcomes["known_at"] - outcomes["observed_at"]) == cartpole.DAY).all()


@pytest.mark.usefixtures("agent")
def test_a_stored_teacher_answers_as_before(tmp_path: Path) -> None:
    until = cartpole.FIRST_DAY + 9 * cartpole.DAY
    teacher = cartpole.Lqr().at(until + cartpole.DAY, until)
    assert teacher.gain == cartpole.Lqr().at(until + 7 * cartpole.DAY, until).gain != cartpole.Lqr().gain, "as taught"
    teacher.save(tmp_path)
    rows = pd.DataFrame(np.eye(4), columns=cartpole.STATE)
    loaded = cartpole.Lqr.load(tmp_path)
    assert loaded.predict_proba(rows).tolist() == teacher.predict_proba(rows).tolist()
    assert teacher.predict_proba(rows).sum(axis=1) == pytest.approx(np.ones(4))


@pytest.fixture
def short(agent: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A history of four weeks, whose last week has another cart."""
    monkeypatch.setattr(cartpole, "WEEKS", 5)
    monkeypatch.setattr(cartpole, "PHYSICS", {0: cartpole.PHYSICS[0], 3: cartpole.PHYSICS[10]})
    yield


@pytest.mark.slow  # a demo in Prefect: half a minute
@pytest.mark.usefixtures("prefect_server", "short")
def test_a_change_is_noticed_and_learned_and_judged_by_episodes() -> None:
    result = demo(agent="cartpole", bootstrap_weeks=2)
    calm, changed, after = result.weeks
    assert calm.quality_champion > 190 and calm.gate == "" and calm.response == "hold"
    assert changed.quality_champion < 180 and changed.gate == "promoted"
    assert after.quality_champion > 0.85 * after.quality_teacher > 150
    assert after.quality_champion > after.quality_static + 20
    journal = KnowledgeBase(load_config("cartpole")).journal
    gate = journal.verdicts("gate")[-1]
    certificate = gate.evidence["certificate"]
    test = next(one for one in certificate["comparisons"] if one["window"] == "test" and one["measure"] == "return")
    past = next(one for one in certificate["comparisons"] if one["window"] == "past")
    assert (test["on"], test["rows"], test["unit"]) == ("episodes", 120, "steps")
    assert past["challenger"] > 0.9 * past["champion"]  # the old physics, by the moments of its window
    assert any("(120 episodes)" in reason.text for reason in gate.reasons)
    for verdict in (gate, journal.verdicts("watch")[-1]):
        assert verify("cartpole", verdict.verdict_id).identical, verdict.verdict_id
    assert json.loads((Path(result.folder) / "summary.json").read_text())["measure"] == "return"
