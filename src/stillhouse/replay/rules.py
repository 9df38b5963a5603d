"""The policies of a replay by name: ``never``, ``every:4w``, ``psi:0.25``, ``adwin``, ``payoff``, ``oracle``, ….

A name may end in ``@script``: then the policy is played with the student of a plain script.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np

from stillhouse.config import Prices
from stillhouse.config.base import format_duration, parse_duration
from stillhouse.drift.distances import compare_profiles
from stillhouse.drift.profile import Profile
from stillhouse.drift.scan import profile_frame
from stillhouse.errors import ConfigError
from stillhouse.replay.detectors import Adwin, Detector, PageHinkley
from stillhouse.replay.policies import Act, Played, play_calendar, play_oracle, play_payoff
from stillhouse.replay.world import Made, World

__all__ = ["POLICY_NAMES", "Policy", "Terms", "parse_policy", "play_detector", "play_psi"]

Array = np.ndarray[Any, Any]

POLICY_NAMES = (
    "never, always, every:4w (any whole number of steps), psi:0.25 (any threshold), adwin, page-hinkley, payoff and "
    "oracle; each also with @script, such as every:4w@script"
)
"""The names of all policies, for help and messages."""


@dataclass(frozen=True)
class Terms:
    """What a policy may know beside the world.

    :ivar exchange_rate: price of a redistillation, in the unit of the world's measure for one week.
    :ivar prices: of each response, as ratios to a redistillation.
    :ivar pool: models that the payoff policy may reuse.
    """

    exchange_rate: float
    prices: Prices
    pool: int


@dataclass(frozen=True)
class Policy:
    """A policy that can be played on any world.

    :ivar name: as the user wrote it.
    :ivar play: plays it.
    :ivar trainings: the steps at which it trains, if they are known before, so that they are trained at once.
    :ivar script: whether it is played with the student of a plain script.
    """

    name: str
    play: Callable[[World, Terms], Played]
    trainings: Callable[[World], range]
    script: bool


def parse_policy(name: str, step: timedelta) -> Policy:
    """The policy of that name.

    >>> policy = parse_policy("every:4w@script", timedelta(weeks=1))
    >>> policy.name, policy.script
    ('every:4w@script', True)

    :param step: time between two decisions.
    :raises ConfigError: if there is no such policy, or its number is wrong.
    """
    rule, has_student, student = name.partition("@")
    kind, has_value, value = rule.partition(":")
    if has_student and student != "script":
        raise ConfigError(f"policy {name!r}: after the @ only 'script' is possible, a plain script's own student")
    if has_value and kind in _WITH_VALUE:
        play, trainings = _WITH_VALUE[kind](name, value, step)
    elif not has_value and kind in _PLAIN:
        play, trainings = _PLAIN[kind]
    else:
        raise ConfigError(f"there is no policy {name!r}; there are: {POLICY_NAMES}")
    return Policy(name, play, trainings, bool(has_student))


# --------------------------------------------------------------------------- policies by a test


def play_psi(world: World, threshold: float) -> Played:
    """A training when a column's largest PSI exceeds ``threshold``: the champion's training rows against the last step.

    Outcomes play no part, and columns with ``drift: false`` are not measured.
    """
    history = world.history
    columns = {name: column for name, column in history.settings.observations.columns.items() if column.drift}
    profiles: dict[int, Profile] = {}

    def exceeds(champion: Made, step: int) -> bool:
        if champion.trained not in profiles:
            rows = history.rows.iloc[history.training_index(champion.trained)]
            profiles[champion.trained] = profile_frame(rows, columns)
        current = history.rows.iloc[history.rows_of_step(step - 1)]
        if not len(current):
            return False
        reference = profiles[champion.trained]
        drifts = compare_profiles(reference, profile_frame(current, columns, like=reference))
        return max((drift.psi for drift in drifts), default=0.0) > threshold

    return _play_trigger(world, exceeds)


def play_detector(world: World, new_detector: Callable[[], Detector]) -> Played:
    """A training when a detector finds a change in the champion's errors, 0 or 1, in the order of ``known_at``.

    Each champion has a detector of its own, and it sees the errors of that champion only.
    """
    detectors: dict[Made, Detector] = {}

    def detects(champion: Made, step: int) -> bool:
        detector = detectors.setdefault(champion, new_detector())
        changes = [detector.update(error) for error in _new_errors(world, champion, step)]
        return any(changes)

    return _play_trigger(world, detects)


def _play_trigger(world: World, trigger: Callable[[Made, int], bool]) -> Played:
    """A training before each step at whose start the trigger fires."""
    played, champion = Played(), Made(0)
    for step in range(world.steps):
        if step and trigger(champion, step):
            played.acts.append(Act(step, "redistil", champion, Made(step)))
            champion, played.price = Made(step), played.price + 1
        played.champions.append(champion)
    return played


def _new_errors(world: World, champion: Made, step: int) -> Array:
    """Errors of the champion on rows it decided, with outcomes that became known in the step before, float ``[m]``."""
    history = world.history
    first, end = int(history.offsets[champion.trained]), int(history.offsets[step])
    rows = slice(first, end)
    new = history.known_mask(rows, step) & ~history.known_mask(rows, step - 1)
    index = first + np.flatnonzero(new)
    index = index[np.argsort(history.known_at[index], kind="stable")]
    wrong: Array = world.log_probs(champion)[index - first].argmax(axis=1) != history.labels[index]
    return wrong.astype(np.float64)


# --------------------------------------------------------------------------- names

_Play = tuple[Callable[[World, Terms], Played], Callable[[World], range]]


def _all_steps(world: World) -> range:
    return range(world.steps)


def _first_only(world: World) -> range:
    return range(1)


_PLAIN: Mapping[str, _Play] = {
    "never": (lambda world, terms: play_calendar(world, None), _first_only),
    "always": (lambda world, terms: play_calendar(world, 1), _all_steps),
    "adwin": (lambda world, terms: play_detector(world, Adwin), _first_only),
    "page-hinkley": (lambda world, terms: play_detector(world, PageHinkley), _first_only),
    "payoff": (
        lambda world, terms: play_payoff(world, terms.exchange_rate, terms.prices, pool=terms.pool),
        _all_steps,
    ),
    "oracle": (lambda world, terms: play_oracle(world, terms.exchange_rate), _all_steps),
}


def _parse_calendar(name: str, value: str, step: timedelta) -> _Play:
    try:
        every = parse_duration(value)
    except ValueError as error:
        raise ConfigError(f"policy {name!r}: {error}") from error
    if every % step:
        raise ConfigError(
            f"policy {name!r}: {value} must be a whole number of steps of {format_duration(step)}: choose another "
            f"calendar, or another --step"
        )
    count = every // step
    return lambda world, terms: play_calendar(world, count), lambda world: range(0, world.steps, count)


def _parse_psi(name: str, value: str, step: timedelta) -> _Play:
    try:
        threshold = float(value)
    except ValueError:
        threshold = -1.0
    if not 0 < threshold < np.inf:
        raise ConfigError(f"policy {name!r}: {value!r} must be a number above 0, such as psi:0.25")
    return lambda world, terms: play_psi(world, threshold), _first_only


_WITH_VALUE: Mapping[str, Callable[[str, str, timedelta], _Play]] = {"every": _parse_calendar, "psi": _parse_psi}
