"""A cart that balances a pole: gymnasium's cart-pole (Barto, Sutton and Anderson 1983), whose physics change twice.

The agent pushes the cart left or right, 50 times a second. Its quality is the return of an episode: the steps until the
pole falls or the cart leaves its track, at most 200. Each day it plays six episodes, decided by the champion, or by
`NOMINAL` before there is one, and some pairs of neighbouring states are recorded: states that the student visits itself
(DAgger: Ross, Gordon and Bagnell 2011). The teacher is an LQR of a linear model fitted to the transitions of two days.
The outcome of a state is what the LQR of its day would do, known a day later. No column shows the physics.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from scipy.linalg import solve_discrete_are

from stillhouse import KnowledgeBase, load_config
from stillhouse.champion import load_champion

FIRST_DAY, WEEKS, STEPS = pd.Timestamp("2026-01-05T00:00:00Z"), 18, 200
EPISODES, PAIRS, EARLY = 6, 6, 60  # a day; recorded pairs of an episode, all of its first steps
PHYSICS = {  # from this week on; lengths are half the pole's, in m; kg; N
    0: {"length": 0.5, "masspole": 0.1, "masscart": 1.0, "force_mag": 10.0},  # gymnasium's own
    10: {"length": 1.5, "masspole": 0.3, "masscart": 1.0, "force_mag": 10.0},  # a longer, heavier pole
    14: {"length": 2.5, "masspole": 0.5, "masscart": 1.5, "force_mag": 12.0},  # and a heavier cart with another motor
}
STATE, START = pd.Index(["x", "v", "theta", "omega"]), np.array([0.5, 0.5, 0.1, 0.5])  # m, m/s, rad, rad/s
SEED = int(os.environ.get("STILLHOUSE_EXAMPLE_SEED", "0"))
NOMINAL = np.array([-0.86, -1.08, -7.17, -1.74])  # the LQR of gymnasium's own cart
DAY = pd.Timedelta(days=1)

Array = np.ndarray[Any, Any]
Decide = Callable[[Array], Array]  # states [n, 4] to pushes [n]: 0 left, 1 right


def physics(moment: pd.Timestamp) -> dict[str, float]:
    """Return the physics of that moment."""
    return PHYSICS[max(week for week in PHYSICS if week * 7 * DAY <= max(moment - FIRST_DAY, 0 * DAY))]


def play(decide: Decide, seeds: Array, moments: pd.DatetimeIndex) -> tuple[Array, Array, Array]:
    """Play an episode per seed: states `[STEPS + 1, m, 4]`, pushes `[STEPS, m]` and returns `[m]`."""
    env = CartPoleVectorEnv(num_envs=len(seeds), max_episode_steps=STEPS + 1)
    for name in PHYSICS[0]:
        setattr(env, name, np.array([physics(moment)[name] for moment in moments]))
    env.total_mass, env.polemass_length = env.masscart + env.masspole, env.masspole * env.length
    env.reset(seed=0)
    env.state = np.stack([np.random.default_rng([SEED, seed]).uniform(-START, START) for seed in seeds], axis=1)
    states, pushes = np.empty((STEPS + 1, len(seeds), 4)), np.zeros((STEPS, len(seeds)), dtype=np.int64)
    states[0], alive, returns = env.state.T, np.ones(len(seeds), dtype=bool), np.zeros(len(seeds))
    for step in range(STEPS):
        if alive.any():
            pushes[step, alive] = decide(states[step, alive])
            fell = env.step(pushes[step])[2]
            env.prev_done[:] = False  # an episode that has ended is not begun anew
            alive &= ~fell
            returns += alive
        states[step + 1] = env.state.T
    return states, pushes, returns


def episode_return(policy: Callable[[pd.DataFrame], Array], seeds: Array, moments: pd.DatetimeIndex) -> Array:
    """Return the steps that a model keeps the pole up, `[m]`: the score that `quality.own` names."""
    return play(_greedy(policy), seeds, moments)[2]


def _greedy(policy: Callable[[pd.DataFrame], Array]) -> Decide:
    return lambda states: policy(pd.DataFrame(states, columns=STATE)).argmax(axis=1)


def _linear(gain: Array) -> Decide:
    return lambda states: (states @ gain < 0).astype(np.int64)


def states(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Return the recorded states of `[start, end)`, visited by the champion of now, or by `NOMINAL`."""
    first, last = max(pd.Timestamp(start), FIRST_DAY), min(pd.Timestamp(end), FIRST_DAY + WEEKS * 7 * DAY)
    begins = pd.DatetimeIndex(pd.date_range(first.normalize(), last, freq=DAY / EPISODES, inclusive="left"))
    decide = _greedy(champion.variant.predict_proba) if (champion := load_champion("cartpole")) else _linear(NOMINAL)
    visited, _, returns = play(decide, begins.as_unit("s").asi8, begins)
    records = []
    for episode, begin in enumerate(begins):
        length = min(max(int(returns[episode]), 1), EARLY)
        chosen = np.random.default_rng([SEED, begin.dayofyear, begin.hour]).permutation(length)[:PAIRS]
        for step in sorted({int(step) for first in chosen for step in (first, first + 1)}):
            name = f"{begin:%m%d-%H}-{step:03d}"
            records.append((name, begin + step * pd.Timedelta(milliseconds=20), *visited[step, episode]))
    rows = pd.DataFrame(records, columns=["observation_id", "observed_at", *STATE])
    return rows[(rows["observed_at"] >= start) & (rows["observed_at"] < end)].reset_index(drop=True)


def hindsight(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Return what the LQR of its day would do in each recorded state of `[start, end)`, known a day later."""
    rows = _read_transitions(start, end)
    for day, of_day in rows.groupby(rows["observed_at"].dt.normalize()):
        decide = _linear(fit_lqr(_read_transitions(day, day + DAY)))
        rows.loc[of_day.index, "action"] = np.where(decide(of_day[STATE].to_numpy()), "right", "left")
    return rows.assign(known_at=rows["observed_at"] + DAY)[["observation_id", "observed_at", "known_at", "action"]]


def _read_transitions(start: pd.Timestamp, end: pd.Timestamp) -> pd.DataFrame:
    """Return the states of a period with the `push` in each, by time: what the knowledge base holds, or would hold."""
    base = KnowledgeBase(load_config("cartpole"))
    window = base.window("transitions", start, end)
    stored = base.read_observations(window)
    rows = stored if len(stored) else states(start, end)
    decided = base.read("decisions", window, ["observation_id", "action"]).set_index("observation_id")["action"]
    by_champion, nominal = rows["observation_id"].map(decided), _linear(NOMINAL)(rows[STATE].to_numpy())
    return rows.assign(push=np.where(by_champion.isna(), nominal, by_champion == "right"), action="")


def fit_lqr(rows: pd.DataFrame) -> Array:
    """Return the gain `[4]` of the LQR for the linear model that least squares fits to the rows' transitions."""
    episode, step = rows["observation_id"].str[:7], rows["observation_id"].str[8:].astype(int)
    pairs = np.flatnonzero((episode == episode.shift(-1)) & (step + 1 == step.shift(-1)))
    state, pushed = rows[STATE].to_numpy(), 2.0 * rows["push"].to_numpy(dtype=float) - 1
    model = np.linalg.lstsq(np.column_stack([state, pushed])[pairs], state[pairs + 1], rcond=None)[0]
    a, b = model[:4].T, model[4:].T  # the next state is A s + b u
    cost = solve_discrete_are(a, b, np.diag([1.0, 0.1, 10.0, 0.1]), np.eye(1))
    return np.asarray(np.linalg.solve(1 + b.T @ cost @ b, b.T @ cost @ a)[0])


class Lqr:
    """A teacher: the LQR with this `gain`, `[4]`; :meth:`at` fits it to what the agent has lived through."""

    def __init__(self, gain: list[float] | None = None) -> None:
        self.gain = gain or NOMINAL.tolist()

    def at(self, now: datetime, training_end: datetime) -> Self:
        """Return the LQR of the last two days of the training window: the same until another refresh."""
        return type(self)(fit_lqr(_read_transitions(training_end - 2 * DAY, training_end)).tolist())

    def predict_proba(self, rows: pd.DataFrame) -> Array:
        """Return the probabilities of left and right, `[n, 2]`: even where the LQR would hardly push."""
        right = 1 / (1 + np.exp(3 * np.clip(rows[STATE].to_numpy(dtype=float) @ np.array(self.gain), -9, 9)))
        return np.column_stack([1 - right, right])

    def save(self, folder: Path) -> None:
        (Path(folder) / "lqr.json").write_text(json.dumps(self.gain), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(json.loads((Path(folder) / "lqr.json").read_text(encoding="utf-8")))
