"""Weights follow evidence: the promised bound holds on any outcomes, and slices count only where they earn."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from math import log
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.records import TeacherWeights
from stillhouse.teachers import weighing

NOW = datetime(2024, 1, 1, tzinfo=UTC)


def rows_of(count: int, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns, index=range(count))


def sure(right: Any, outcomes: Any, p: float = 0.9) -> np.ndarray:
    """Two actions: ``p`` for the outcome where right, else 1 − p."""
    told = np.where(right, p, 1 - p)
    said = np.empty((len(outcomes), 2))
    said[np.arange(len(outcomes)), outcomes] = told
    said[np.arange(len(outcomes)), 1 - np.asarray(outcomes)] = 1 - told
    return said


def begun(members: int, *columns: str, start: list[float] | None = None, by: Any = "file") -> TeacherWeights:
    return weighing.begin([f"t{i}" for i in range(members)], start or [1 / members] * members, columns, NOW, by)


def loss_of(said: np.ndarray, outcomes: Any) -> np.ndarray:
    """−ln probability of the outcome under each teacher ``[T, M]``, kept from zero as the weights see it."""
    told = said[np.arange(len(said)), :, outcomes]
    return -np.log((1 - weighing.FLOOR) * told + weighing.FLOOR / said.shape[2])


# --------------------------------------------------------------------------- where it starts


@pytest.mark.parametrize("start", [[0.5, 0.5], [0.75, 0.25], [0.2, 0.5, 0.3], [1 / 7] * 7, [0.05] * 20])
def test_before_any_outcome_the_weights_are_those_of_the_start(start: list[float]) -> None:
    weights = begun(len(start), "place", start=start)
    np.testing.assert_allclose(weighing.share_in(weights), start, atol=1e-12)
    np.testing.assert_allclose(weighing.shares(weights, rows_of(3, place=["a", "b", None])), [start] * 3, atol=1e-12)
    assert sum(weights.everywhere.posterior) == pytest.approx(1)
    assert 0 < weighing.vertex_prior(weights.start, 0) < 0.5


def test_one_outcome_by_hand() -> None:
    """A single Bayes step over the twelve mixtures, then half of it goes back to the prior."""
    told = np.array([0.9, 0.2])
    grid = np.vstack([[0.5, 0.5], np.column_stack([np.arange(11) / 10, 1 - np.arange(11) / 10])])
    prior = np.array([0.5, *[0.5 / 11] * 11])
    given = grid @ ((1 - weighing.FLOOR) * told + weighing.FLOOR / 2)
    posterior = 0.5 * prior * given / (prior @ given) + 0.5 * prior
    course = weighing.learn(begun(2), np.array([[[0.1, 0.9], [0.8, 0.2]]]), [1], rows_of(1), NOW)
    np.testing.assert_allclose(course.losses, [-log(prior @ given)])
    np.testing.assert_allclose(weighing.share_in(course.weights), posterior @ grid)
    assert (course.weights.by, course.weights.everywhere.outcomes) == ("outcomes", 1)


# --------------------------------------------------------------------------- the promise


def adversarial(kind: str, count: int, members: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    outcomes = rng.integers(0, 3, count)
    said = rng.dirichlet(np.full(3, 0.3), (count, members))
    if kind == "leader fails":  # whoever has lost least so far is wrong next
        lost = np.zeros(members)
        for t in range(count):
            said[t] = [0.2, 0.4, 0.4]
            said[t, lost.argmin()] = 0.5
            said[t, lost.argmin(), outcomes[t]] = 0.0
            lost -= np.log(np.maximum(said[t, :, outcomes[t]], 1e-4))
    elif kind == "alternating":
        for t in range(count):
            said[t] = 1 / 3
            said[t, t % members] = np.eye(3)[outcomes[t]]
    return said, outcomes


@pytest.mark.parametrize("kind", ["random", "leader fails", "alternating"])
@pytest.mark.parametrize("members", [2, 3, 5])
@pytest.mark.parametrize("columns", [0, 2])
def test_the_bound_holds_whatever_the_outcomes(kind: str, members: int, columns: int) -> None:
    rng = np.random.default_rng([members, columns, len(kind)])
    for count in (1, 7, 400):
        said, outcomes = adversarial(kind, count, members, rng)
        names = [f"c{i}" for i in range(columns)]
        rows = rows_of(count, **{name: rng.choice(["x", "y", None], count) for name in names})
        weights = begun(members, *names)
        lost = weighing.learn(weights, said, outcomes, rows, NOW).losses.sum()
        each = loss_of(said, outcomes)
        for i in range(members):
            prior = weighing.vertex_prior(weights.start, i)
            assert lost <= each[:, i].sum() + weighing.regret_bound(count, prior, columns=columns) + 1e-9
        mean = -np.log(np.exp(-each).mean(axis=1)).sum()
        assert lost <= mean + weighing.regret_bound(count, 0.5, columns=columns) + 1e-9


@pytest.mark.parametrize("switches", [1, 3])
def test_the_bound_holds_against_the_best_sequence_of_teachers(switches: int) -> None:
    rng = np.random.default_rng(switches)
    count = 600
    outcomes = rng.integers(0, 2, count)
    turns = np.arange(count) * (switches + 1) // count % 2
    said = np.stack([sure((turns == i) | (rng.random(count) < 0.3), outcomes, 0.95) for i in (0, 1)], axis=1)
    weights = begun(2)
    course = weighing.learn(weights, said, outcomes, rows_of(count), NOW)
    best = loss_of(said, outcomes)[np.arange(count), turns].sum()
    priors = [weighing.vertex_prior(weights.start, i % 2) for i in range(switches + 1)]
    assert course.losses.sum() <= best + weighing.regret_bound(count, *priors)
    assert weighing.share_in(course.weights)[turns[-1]] > 0.9


def test_a_good_teacher_wins_and_one_that_turns_bad_loses_its_weight() -> None:
    rng = np.random.default_rng(5)
    outcomes = rng.integers(0, 2, 400)
    steady = sure(rng.random(400) < 0.8, outcomes, 0.8)
    before_turn = np.where(np.arange(400) < 200, rng.random(400) < 0.95, rng.random(400) < 0.2)
    turning = sure(before_turn, outcomes, 0.9)
    said = np.stack([steady, turning], axis=1)
    course = weighing.learn(begun(2), said, outcomes, rows_of(400), NOW)
    share = dict(zip(course.places.tolist(), course.trail[:, 1], strict=True))
    assert max(share[p] for p in course.places if 150 < p < 200) > 0.75
    assert max(share[p] for p in course.places if p > 260) < 0.2


def test_two_teachers_that_are_better_together_stay_together() -> None:
    """Each is sure and wrong at times of its own: the best constant mixture beats both, and is found."""
    rng = np.random.default_rng(6)
    outcomes = rng.integers(0, 2, 2000)
    said = np.stack([sure(rng.random(2000) < 0.8, outcomes, 0.99) for _ in range(2)], axis=1)
    course = weighing.learn(begun(2, start=[0.9, 0.1]), said, outcomes, rows_of(2000), NOW)
    assert 0.3 < weighing.share_in(course.weights)[0] < 0.7
    assert course.weights.losses[""] < min(course.weights.losses[name] for name in ("t0", "t1", "start"))


def test_certainty_that_is_wrong_costs_no_more_than_the_floor() -> None:
    said = np.tile(np.array([[[1.0, 0.0], [1.0, 0.0]]]), (3, 1, 1))
    course = weighing.learn(begun(2), said, [1, 1, 1], rows_of(3), NOW)
    np.testing.assert_allclose(course.losses, log(2 / weighing.FLOOR))
    assert np.isfinite(weighing.share_in(course.weights)).all()


def test_outcomes_of_one_stretch_are_one_piece_of_evidence() -> None:
    said, outcomes, rows = specialised(40, np.random.default_rng(15))
    once = weighing.learn(begun(2, "place"), said, outcomes, rows, NOW).weights
    many = np.repeat(np.arange(40), 5)
    times = weighing.learn(begun(2, "place"), said[many], outcomes[many], rows.iloc[many], NOW, stretches=many).weights
    np.testing.assert_allclose(weighing.shares(times, rows), weighing.shares(once, rows))
    assert times.losses == pytest.approx(once.losses)
    assert (times.everywhere.outcomes, times.everywhere.stretches) == (200, 40)
    each = weighing.learn(begun(2, "place"), said[many], outcomes[many], rows.iloc[many], NOW).weights
    assert each.everywhere.stretches == 200


@pytest.mark.parametrize("columns", [0, 2])
@pytest.mark.parametrize("kind", ["random", "leader fails", "alternating"])
def test_the_bound_holds_by_stretches(kind: str, columns: int) -> None:
    rng = np.random.default_rng(16)
    said, outcomes = adversarial(kind, 500, 3, rng)
    stretches = np.sort(rng.integers(0, 60, 500))
    names = [f"c{i}" for i in range(columns)]
    rows = rows_of(500, **{name: rng.choice(["x", "y", None], 500) for name in names})
    weights = begun(3, *names)
    course = weighing.learn(weights, said, outcomes, rows, NOW, stretches)
    means = pd.DataFrame(np.column_stack([course.losses, loss_of(said, outcomes)])).groupby(stretches).mean()
    lost, *each = means.sum()
    count = len(means)
    for i in range(3):
        prior = weighing.vertex_prior(weights.start, i)
        assert lost <= each[i] + weighing.regret_bound(count, prior, columns=columns) + 1e-9
    assert course.weights.losses[""] == pytest.approx(lost)


# --------------------------------------------------------------------------- slices


def specialised(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Teacher 0 knows the north, teacher 1 the south; the colour says nothing."""
    place = rng.choice(["north", "south"], count)
    outcomes = rng.integers(0, 2, count)
    said = np.stack(
        [sure(rng.random(count) < np.where(place == home, 0.95, 0.4), outcomes, 0.9) for home in ("north", "south")],
        axis=1,
    )
    return said, outcomes, rows_of(count, place=place, colour=rng.choice(["red", "blue", "green"], count))


def test_slices_count_where_they_earn() -> None:
    said, outcomes, rows = specialised(1500, np.random.default_rng(8))
    weights = weighing.learn(begun(2, "colour", "place"), said, outcomes, rows, NOW).weights
    assert weights.column_shares[2] > 0.95  # everywhere, colour, place
    assert weighing.share_in(weights, "place=north")[0] > 0.85
    assert weighing.share_in(weights, "place=south")[0] < 0.15
    shares = weighing.shares(weights, rows.head(50))
    north = (rows["place"].head(50) == "north").to_numpy()
    assert shares[north, 0].min() > 0.8 and shares[~north, 0].max() < 0.2
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    plain = weighing.learn(begun(2), said, outcomes, rows, NOW).weights
    assert weights.losses[""] < plain.losses[""] - 100


def test_slices_that_say_nothing_cost_no_more_than_they_may() -> None:
    rng = np.random.default_rng(9)
    outcomes = rng.integers(0, 2, 1500)
    said = np.stack([sure(rng.random(1500) < p, outcomes, 0.8) for p in (0.8, 0.5)], axis=1)
    rows = rows_of(1500, place=rng.choice(list("abcdefghij"), 1500), colour=rng.choice(list("xyz"), 1500))
    plain = weighing.learn(begun(2), said, outcomes, rows, NOW).weights
    sliced = weighing.learn(begun(2, "place", "colour"), said, outcomes, rows, NOW).weights
    assert sliced.losses[""] <= plain.losses[""] + log(2) + log(1500)
    assert weighing.share_in(sliced)[0] > 0.9
    assert weighing.shares(sliced, rows)[:, 0].min() > 0.8


def test_values_that_were_never_seen_and_values_that_are_missing() -> None:
    said, outcomes, rows = specialised(300, np.random.default_rng(10))
    rows.loc[::3, "place"] = None
    weights = weighing.learn(begun(2, "place"), said, outcomes, rows, NOW).weights
    assert set(weights.slices) == {"place=north", "place=south", "place missing"}
    assert weights.slices["place missing"].outcomes == 100
    shares = weighing.shares(weights, rows_of(2, place=[None, "moon"]))
    np.testing.assert_allclose(shares[0], weighing.share_in(weights, "place missing"))
    np.testing.assert_allclose(shares[1], weighing.share_in(weights))


# --------------------------------------------------------------------------- going on


def test_going_on_from_where_it_stood_is_the_same_as_one_go() -> None:
    said, outcomes, rows = specialised(200, np.random.default_rng(11))
    whole = weighing.learn(begun(2, "place", "colour"), said, outcomes, rows, NOW).weights
    weights = begun(2, "place", "colour")
    for first, last in pairwise([0, 1, 70, 70, 200]):
        kept = TeacherWeights.model_validate_json(weights.model_dump_json())
        weights = weighing.learn(kept, said[first:last], outcomes[first:last], rows.iloc[first:last], NOW).weights
    assert weights.everywhere.outcomes == 200 and set(weights.slices) == set(whole.slices)
    np.testing.assert_allclose(weighing.shares(weights, rows), weighing.shares(whole, rows), atol=1e-9)
    assert weights.losses == pytest.approx(whole.losses)


def test_the_same_outcomes_give_the_same_weights() -> None:
    said, outcomes, rows = specialised(100, np.random.default_rng(12))
    one, other = (weighing.learn(begun(2, "place"), said, outcomes, rows, NOW).weights for _ in range(2))
    assert one == other


# --------------------------------------------------------------------------- agreement


def test_of_three_the_one_that_errs_on_its_own_loses() -> None:
    rng = np.random.default_rng(13)
    outcomes = rng.integers(0, 4, 500)
    said = np.full((500, 3, 4), 0.1)
    for member, rate in enumerate((0.85, 0.8, 0.35)):
        chosen = np.where(rng.random(500) < rate, outcomes, rng.integers(0, 4, 500))
        said[np.arange(500), member, chosen] = 0.7
    shares = weighing.by_agreement(said, [1 / 3] * 3)
    assert shares.sum() == pytest.approx(1)
    assert shares[0] > shares[1] > 0.35 > 0.25 > shares[2]
    np.testing.assert_allclose(weighing.by_agreement(said[:, :2], [0.7, 0.3]), [0.7, 0.3])
    np.testing.assert_allclose(weighing.by_agreement(said[:0], [0.2, 0.2, 0.6]), [0.2, 0.2, 0.6])


def test_agreement_is_said_to_be_weaker() -> None:
    weights = begun(3, start=[0.6, 0.3, 0.1], by="agreement")
    found = weighing.changes(weights, {("", "t0"): 1 / 3, ("", "t1"): 0.3, ("", "t2"): 0.1}, version="v", job="r")
    assert [(each.teacher, each.by) for each in found] == [("t0", "agreement")]
    assert "weaker" in found[0].reason


# --------------------------------------------------------------------------- changes


def test_every_change_has_its_numbers_and_small_ones_add_up() -> None:
    said, outcomes, rows = specialised(600, np.random.default_rng(14))
    weights = weighing.learn(begun(2, "place"), said, outcomes, rows, NOW).weights
    found = weighing.changes(weights, {}, version="v", job="r1")
    north = next(each for each in found if (each.teacher, each.slice) == ("t0", "place=north"))
    assert north.before == 0.5 and north.after > 0.85
    assert "over 600 outcomes in 600 stretches of time it lost" in north.reason
    assert "own weights count for" in north.reason
    recorded = {(each.slice, each.teacher): each.after for each in found}
    assert weighing.changes(weights, recorded, version="v", job="r1") == ()
    nearly = recorded | {("place=north", "t0"): north.after - 0.009}
    assert weighing.changes(weights, nearly, version="v", job="r1") == ()
    moved = recorded | {("place=north", "t0"): north.after - 0.011}
    assert len(weighing.changes(weights, moved, version="v", job="r1")) == 1
