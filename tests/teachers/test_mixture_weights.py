"""Mixture weights: the regret bound holds for any outcomes, and slices count only if they are informative."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise
from math import log
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.records import TeacherWeights
from stillhouse.teachers import mixture_weights

NOW = datetime(2024, 1, 1, tzinfo=UTC)


def rows_of(count: int, **columns: Any) -> pd.DataFrame:
    return pd.DataFrame(columns, index=range(count))


def two_action_probs(right: Any, outcomes: Any, p: float = 0.9) -> np.ndarray:
    """Probabilities of two actions ``[T, 2]``: ``p`` for the outcome where ``right``, else 1 − p."""
    outcome_probs = np.where(right, p, 1 - p)
    probs = np.empty((len(outcomes), 2))
    probs[np.arange(len(outcomes)), outcomes] = outcome_probs
    probs[np.arange(len(outcomes)), 1 - np.asarray(outcomes)] = 1 - outcome_probs
    return probs


def make_start(members: int, *columns: str, start: list[float] | None = None, by: Any = "file") -> TeacherWeights:
    return mixture_weights.start_weights(
        [f"t{i}" for i in range(members)], start or [1 / members] * members, columns, NOW, by
    )


def regret_bound(time_blocks: int, *priors: float, columns: int = 0) -> float:
    """The most nats that the weighted mean may lose more than a sequence of constant mixtures.

    :param priors: of the first mixture, and of each mixture that is switched to.
    :param columns: number of slice columns.
    """
    if not time_blocks:
        return 0.0
    bound = log(1 / priors[0]) + log(time_blocks) + sum(log(time_blocks / prior) for prior in priors[1:])
    return bound + (log(2) + log(time_blocks) if columns else 0.0)


def vertex_prior(start: Sequence[float], teacher: int) -> float:
    """Prior of the mixture that consists of one teacher."""
    grid, prior = mixture_weights.mixture_grid(tuple(start))
    return float(prior[grid[:, teacher] == 1.0].sum())


def loss_of(probs: np.ndarray, outcomes: Any) -> np.ndarray:
    """−ln probability of the outcome under each teacher ``[T, M]``, smoothed as for learning the weights."""
    outcome_probs = probs[np.arange(len(probs)), :, outcomes]
    return -np.log((1 - mixture_weights.UNIFORM_SHARE) * outcome_probs + mixture_weights.UNIFORM_SHARE / probs.shape[2])


# --------------------------------------------------------------------------- start weights


@pytest.mark.parametrize("start", [[0.5, 0.5], [0.75, 0.25], [0.2, 0.5, 0.3], [1 / 7] * 7, [0.05] * 20])
def test_start_weights_give_the_start_shares(start: list[float]) -> None:
    mixture = make_start(len(start), "place", start=start)
    np.testing.assert_allclose(mixture_weights.slice_shares(mixture), start, atol=1e-12)
    np.testing.assert_allclose(
        mixture_weights.row_shares(mixture, rows_of(3, place=["a", "b", None])), [start] * 3, atol=1e-12
    )
    assert sum(mixture.everywhere.posterior) == pytest.approx(1)
    assert 0 < vertex_prior(mixture.start, 0) < 0.5


def test_one_outcome_matches_hand_computation() -> None:
    """A single Bayes step over the twelve mixtures, then half of it goes back to the prior."""
    outcome_probs = np.array([0.9, 0.2])
    grid = np.vstack([[0.5, 0.5], np.column_stack([np.arange(11) / 10, 1 - np.arange(11) / 10])])
    prior = np.array([0.5, *[0.5 / 11] * 11])
    mixture_probs = grid @ ((1 - mixture_weights.UNIFORM_SHARE) * outcome_probs + mixture_weights.UNIFORM_SHARE / 2)
    posterior = 0.5 * prior * mixture_probs / (prior @ mixture_probs) + 0.5 * prior
    trajectory = mixture_weights.learn(make_start(2), np.array([[[0.1, 0.9], [0.8, 0.2]]]), [1], rows_of(1), NOW)
    np.testing.assert_allclose(trajectory.losses, [-log(prior @ mixture_probs)])
    np.testing.assert_allclose(mixture_weights.slice_shares(trajectory.mixture), posterior @ grid)
    assert (trajectory.mixture.by, trajectory.mixture.everywhere.outcomes) == ("outcomes", 1)


# --------------------------------------------------------------------------- regret bound


def adversarial_outcomes(
    kind: str, count: int, members: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    outcomes = rng.integers(0, 3, count)
    probs = rng.dirichlet(np.full(3, 0.3), (count, members))
    if kind == "leader fails":  # the teacher with the least loss so far errs next
        loss = np.zeros(members)
        for t in range(count):
            probs[t] = [0.2, 0.4, 0.4]
            probs[t, loss.argmin()] = 0.5
            probs[t, loss.argmin(), outcomes[t]] = 0.0
            loss -= np.log(np.maximum(probs[t, :, outcomes[t]], 1e-4))
    elif kind == "alternating":
        for t in range(count):
            probs[t] = 1 / 3
            probs[t, t % members] = np.eye(3)[outcomes[t]]
    return probs, outcomes


@pytest.mark.parametrize("kind", ["random", "leader fails", "alternating"])
@pytest.mark.parametrize("members", [2, 3, 5])
@pytest.mark.parametrize("columns", [0, 2])
def test_regret_bound_holds_for_adversarial_outcomes(kind: str, members: int, columns: int) -> None:
    rng = np.random.default_rng([members, columns, len(kind)])
    for count in (1, 7, 400):
        probs, outcomes = adversarial_outcomes(kind, count, members, rng)
        names = [f"c{i}" for i in range(columns)]
        rows = rows_of(count, **{name: rng.choice(["x", "y", None], count) for name in names})
        mixture = make_start(members, *names)
        loss = mixture_weights.learn(mixture, probs, outcomes, rows, NOW).losses.sum()
        teacher_losses = loss_of(probs, outcomes)
        for i in range(members):
            prior = vertex_prior(mixture.start, i)
            assert loss <= teacher_losses[:, i].sum() + regret_bound(count, prior, columns=columns) + 1e-9
        mean = -np.log(np.exp(-teacher_losses).mean(axis=1)).sum()
        assert loss <= mean + regret_bound(count, 0.5, columns=columns) + 1e-9


@pytest.mark.parametrize("switches", [1, 3])
def test_regret_bound_holds_against_the_best_sequence_of_teachers(switches: int) -> None:
    rng = np.random.default_rng(switches)
    count = 600
    outcomes = rng.integers(0, 2, count)
    turns = np.arange(count) * (switches + 1) // count % 2
    probs = np.stack(
        [two_action_probs((turns == i) | (rng.random(count) < 0.3), outcomes, 0.95) for i in (0, 1)], axis=1
    )
    mixture = make_start(2)
    trajectory = mixture_weights.learn(mixture, probs, outcomes, rows_of(count), NOW)
    best = loss_of(probs, outcomes)[np.arange(count), turns].sum()
    priors = [vertex_prior(mixture.start, i % 2) for i in range(switches + 1)]
    assert trajectory.losses.sum() <= best + regret_bound(count, *priors)
    assert mixture_weights.slice_shares(trajectory.mixture)[turns[-1]] > 0.9


def test_teacher_that_degrades_loses_its_weight() -> None:
    rng = np.random.default_rng(5)
    outcomes = rng.integers(0, 2, 400)
    steady = two_action_probs(rng.random(400) < 0.8, outcomes, 0.8)
    before_turn = np.where(np.arange(400) < 200, rng.random(400) < 0.95, rng.random(400) < 0.2)
    turning = two_action_probs(before_turn, outcomes, 0.9)
    probs = np.stack([steady, turning], axis=1)
    trajectory = mixture_weights.learn(make_start(2), probs, outcomes, rows_of(400), NOW)
    share = dict(zip(trajectory.indices.tolist(), trajectory.shares[:, 1], strict=True))
    assert max(share[p] for p in trajectory.indices if 150 < p < 200) > 0.75
    assert max(share[p] for p in trajectory.indices if p > 260) < 0.2


def test_complementary_teachers_share_the_weight() -> None:
    """Each errs confidently in rows of its own: the best constant mixture beats both, and is learned."""
    rng = np.random.default_rng(6)
    outcomes = rng.integers(0, 2, 2000)
    probs = np.stack([two_action_probs(rng.random(2000) < 0.8, outcomes, 0.99) for _ in range(2)], axis=1)
    trajectory = mixture_weights.learn(make_start(2, start=[0.9, 0.1]), probs, outcomes, rows_of(2000), NOW)
    assert 0.3 < mixture_weights.slice_shares(trajectory.mixture)[0] < 0.7
    assert trajectory.mixture.losses[""] < min(trajectory.mixture.losses[name] for name in ("t0", "t1", "start"))


def test_loss_of_a_confident_error_is_bounded() -> None:
    probs = np.tile(np.array([[[1.0, 0.0], [1.0, 0.0]]]), (3, 1, 1))
    trajectory = mixture_weights.learn(make_start(2), probs, [1, 1, 1], rows_of(3), NOW)
    np.testing.assert_allclose(trajectory.losses, log(2 / mixture_weights.UNIFORM_SHARE))
    assert np.isfinite(mixture_weights.slice_shares(trajectory.mixture)).all()


def test_outcomes_of_one_time_block_count_as_one() -> None:
    probs, outcomes, rows = specialised_teachers(40, np.random.default_rng(15))
    single = mixture_weights.learn(make_start(2, "place"), probs, outcomes, rows, NOW).mixture
    repeats = np.repeat(np.arange(40), 5)
    repeated = mixture_weights.learn(
        make_start(2, "place"), probs[repeats], outcomes[repeats], rows.iloc[repeats], NOW, time_blocks=repeats
    ).mixture
    np.testing.assert_allclose(mixture_weights.row_shares(repeated, rows), mixture_weights.row_shares(single, rows))
    assert repeated.losses == pytest.approx(single.losses)
    assert (repeated.everywhere.outcomes, repeated.everywhere.time_blocks) == (200, 40)
    by_row = mixture_weights.learn(
        make_start(2, "place"), probs[repeats], outcomes[repeats], rows.iloc[repeats], NOW
    ).mixture
    assert by_row.everywhere.time_blocks == 200


@pytest.mark.parametrize("columns", [0, 2])
@pytest.mark.parametrize("kind", ["random", "leader fails", "alternating"])
def test_regret_bound_holds_by_time_blocks(kind: str, columns: int) -> None:
    rng = np.random.default_rng(16)
    probs, outcomes = adversarial_outcomes(kind, 500, 3, rng)
    time_blocks = np.sort(rng.integers(0, 60, 500))
    names = [f"c{i}" for i in range(columns)]
    rows = rows_of(500, **{name: rng.choice(["x", "y", None], 500) for name in names})
    mixture = make_start(3, *names)
    trajectory = mixture_weights.learn(mixture, probs, outcomes, rows, NOW, time_blocks)
    means = pd.DataFrame(np.column_stack([trajectory.losses, loss_of(probs, outcomes)])).groupby(time_blocks).mean()
    loss, *teacher_losses = means.sum()
    count = len(means)
    for i in range(3):
        prior = vertex_prior(mixture.start, i)
        assert loss <= teacher_losses[i] + regret_bound(count, prior, columns=columns) + 1e-9
    assert trajectory.mixture.losses[""] == pytest.approx(loss)


# --------------------------------------------------------------------------- slices


def specialised_teachers(count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, pd.DataFrame]:
    """Teacher 0 is right in the north, teacher 1 in the south; the colour is uninformative."""
    place = rng.choice(["north", "south"], count)
    outcomes = rng.integers(0, 2, count)
    probs = np.stack(
        [
            two_action_probs(rng.random(count) < np.where(place == home, 0.95, 0.4), outcomes, 0.9)
            for home in ("north", "south")
        ],
        axis=1,
    )
    return probs, outcomes, rows_of(count, place=place, colour=rng.choice(["red", "blue", "green"], count))


def test_informative_slice_gets_its_own_weights() -> None:
    probs, outcomes, rows = specialised_teachers(1500, np.random.default_rng(8))
    mixture = mixture_weights.learn(make_start(2, "colour", "place"), probs, outcomes, rows, NOW).mixture
    assert mixture.column_shares[2] > 0.95  # everywhere, colour, place
    assert mixture_weights.slice_shares(mixture, "place=north")[0] > 0.85
    assert mixture_weights.slice_shares(mixture, "place=south")[0] < 0.15
    shares = mixture_weights.row_shares(mixture, rows.head(50))
    north = (rows["place"].head(50) == "north").to_numpy()
    assert shares[north, 0].min() > 0.8 and shares[~north, 0].max() < 0.2
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    plain = mixture_weights.learn(make_start(2), probs, outcomes, rows, NOW).mixture
    assert mixture.losses[""] < plain.losses[""] - 100


def test_uninformative_slices_cost_no_more_than_the_bound() -> None:
    rng = np.random.default_rng(9)
    outcomes = rng.integers(0, 2, 1500)
    probs = np.stack([two_action_probs(rng.random(1500) < p, outcomes, 0.8) for p in (0.8, 0.5)], axis=1)
    rows = rows_of(1500, place=rng.choice(list("abcdefghij"), 1500), colour=rng.choice(list("xyz"), 1500))
    plain = mixture_weights.learn(make_start(2), probs, outcomes, rows, NOW).mixture
    sliced = mixture_weights.learn(make_start(2, "place", "colour"), probs, outcomes, rows, NOW).mixture
    assert sliced.losses[""] <= plain.losses[""] + log(2) + log(1500)
    assert mixture_weights.slice_shares(sliced)[0] > 0.9
    assert mixture_weights.row_shares(sliced, rows)[:, 0].min() > 0.8


def test_missing_and_unseen_slice_values() -> None:
    probs, outcomes, rows = specialised_teachers(300, np.random.default_rng(10))
    rows.loc[::3, "place"] = None
    mixture = mixture_weights.learn(make_start(2, "place"), probs, outcomes, rows, NOW).mixture
    assert set(mixture.slices) == {"place=north", "place=south", "place missing"}
    assert mixture.slices["place missing"].outcomes == 100
    shares = mixture_weights.row_shares(mixture, rows_of(2, place=[None, "moon"]))
    np.testing.assert_allclose(shares[0], mixture_weights.slice_shares(mixture, "place missing"))
    np.testing.assert_allclose(shares[1], mixture_weights.slice_shares(mixture))


# --------------------------------------------------------------------------- learning in parts


def test_learning_in_parts_equals_learning_at_once() -> None:
    probs, outcomes, rows = specialised_teachers(200, np.random.default_rng(11))
    at_once = mixture_weights.learn(make_start(2, "place", "colour"), probs, outcomes, rows, NOW).mixture
    mixture = make_start(2, "place", "colour")
    for first, last in pairwise([0, 1, 70, 70, 200]):
        stored = TeacherWeights.model_validate_json(mixture.model_dump_json())
        mixture = mixture_weights.learn(
            stored, probs[first:last], outcomes[first:last], rows.iloc[first:last], NOW
        ).mixture
    assert mixture.everywhere.outcomes == 200 and set(mixture.slices) == set(at_once.slices)
    np.testing.assert_allclose(
        mixture_weights.row_shares(mixture, rows), mixture_weights.row_shares(at_once, rows), atol=1e-9
    )
    assert mixture.losses == pytest.approx(at_once.losses)


def test_learning_is_deterministic() -> None:
    probs, outcomes, rows = specialised_teachers(100, np.random.default_rng(12))
    first, second = (
        mixture_weights.learn(make_start(2, "place"), probs, outcomes, rows, NOW).mixture for _ in range(2)
    )
    assert first == second


# --------------------------------------------------------------------------- agreement


def test_agreement_lowers_the_teacher_that_errs_alone() -> None:
    rng = np.random.default_rng(13)
    outcomes = rng.integers(0, 4, 500)
    probs = np.full((500, 3, 4), 0.1)
    for member, rate in enumerate((0.85, 0.8, 0.35)):
        chosen = np.where(rng.random(500) < rate, outcomes, rng.integers(0, 4, 500))
        probs[np.arange(500), member, chosen] = 0.7
    shares = mixture_weights.estimate_by_agreement(probs, [1 / 3] * 3)
    assert shares.sum() == pytest.approx(1)
    assert shares[0] > shares[1] > 0.35 > 0.25 > shares[2]
    np.testing.assert_allclose(mixture_weights.estimate_by_agreement(probs[:, :2], [0.7, 0.3]), [0.7, 0.3])
    np.testing.assert_allclose(mixture_weights.estimate_by_agreement(probs[:0], [0.2, 0.2, 0.6]), [0.2, 0.2, 0.6])


def test_change_reason_calls_agreement_weaker() -> None:
    mixture = make_start(3, start=[0.6, 0.3, 0.1], by="agreement")
    changes = mixture_weights.find_changes(
        mixture, {("", "t0"): 1 / 3, ("", "t1"): 0.3, ("", "t2"): 0.1}, version="v", job="r"
    )
    assert [(change.teacher, change.by) for change in changes] == [("t0", "agreement")]
    assert "weaker" in changes[0].reason


# --------------------------------------------------------------------------- changes


def test_changes_state_their_figures_and_small_changes_add_up() -> None:
    probs, outcomes, rows = specialised_teachers(600, np.random.default_rng(14))
    mixture = mixture_weights.learn(make_start(2, "place"), probs, outcomes, rows, NOW).mixture
    changes = mixture_weights.find_changes(mixture, {}, version="v", job="r1")
    north = next(change for change in changes if (change.teacher, change.slice) == ("t0", "place=north"))
    assert north.before == 0.5 and north.after > 0.85
    assert "over 600 outcomes in 600 time blocks it lost" in north.reason
    assert "own weights count for" in north.reason
    recorded = {(change.slice, change.teacher): change.after for change in changes}
    assert mixture_weights.find_changes(mixture, recorded, version="v", job="r1") == ()
    nearly = recorded | {("place=north", "t0"): north.after - 0.009}
    assert mixture_weights.find_changes(mixture, nearly, version="v", job="r1") == ()
    moved = recorded | {("place=north", "t0"): north.after - 0.011}
    assert len(mixture_weights.find_changes(mixture, moved, version="v", job="r1")) == 1
