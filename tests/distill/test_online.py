"""Updates: new rows are learned, and replay prevents forgetting."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from stillhouse.config import Distillation
from stillhouse.distill.losses import hinton_loss, label_loss
from stillhouse.distill.online import distill_step, measure_forgetting, novelty_weights, probe_update, update
from stillhouse.distill.students import TabularStudent
from stillhouse.distill.train import distil
from stillhouse.distill.training_set import TrainingSet
from tests.distill.replay import with_student_probs

SETTINGS = Distillation(epochs=6, batch_size=64, learning_rate=0.02, controller="fixed", unknown_rate=0)


def world(rows: int, seed: int, centre: float = 0.0, sign: float = 1.0) -> TrainingSet:
    """Labels follow x₀ > 0 around ``centre``, or x₀ < 0 where ``sign`` is −1."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 2)).astype(np.float32) + np.array([0, centre], dtype=np.float32)
    go = 1 / (1 + np.exp(-4 * sign * x[:, 0]))
    return TrainingSet(x, np.column_stack([1 - go, go]), (rng.random(rows) < go).astype(np.int64))


@pytest.fixture(scope="module")
def champion() -> TabularStudent:
    torch.manual_seed(0)
    student = TabularStudent(torch.linspace(-3, 8, 9).repeat(2, 1), (), 2, (24,))
    distil(student, world(2000, 0), SETTINGS)
    return student


def test_one_step_is_the_weighted_mean_of_new_and_old_rows(champion: TabularStudent) -> None:
    new, old = world(32, 1, 5.0, -1.0), with_student_probs(champion, world(16, 2))

    def parameters_after_step(**arguments: object) -> torch.Tensor:
        student = deepcopy(champion)
        distill_step(student, torch.optim.SGD(student.parameters(), lr=1.0), new, SETTINGS, **arguments)
        return torch.nn.utils.parameters_to_vector(student.parameters()).detach()

    start = torch.nn.utils.parameters_to_vector(champion.parameters()).detach()
    only_new = parameters_after_step() - start
    only_old = parameters_after_step(replayed=old, old_share=1.0) - start
    mixed = parameters_after_step(replayed=old, old_share=0.3) - start
    torch.testing.assert_close(mixed, 0.7 * only_new + 0.3 * only_old, rtol=1e-3, atol=1e-5)


def test_update_learns_new_rows_and_replay_prevents_forgetting(champion: TabularStudent) -> None:
    new, past, test = world(600, 4, 5.0, -1.0), world(1000, 5), world(1000, 6, 5.0, -1.0)
    results = {}
    for name, replay in (("tuned", world(0, 0)), ("replayed", with_student_probs(champion, world(600, 7)))):
        student = deepcopy(champion)
        results[name] = update(student, new, replay, SETTINGS, steps=300, past={"before": past})
        with torch.no_grad():
            assert hinton_loss(student(test.x), test.teacher_probs, 1.0) < 0.3 * hinton_loss(
                champion(test.x), test.teacher_probs, 1.0
            )
    assert results["tuned"].old_share == 0 and 0.2 <= results["replayed"].old_share < 0.5
    assert results["replayed"].forgotten["before"] < 0.5 * results["tuned"].forgotten["before"]


def test_same_seed_gives_the_same_update(champion: TabularStudent) -> None:
    parameters = []
    for _ in range(2):
        student = deepcopy(champion)
        update(student, world(100, 4, 5.0), with_student_probs(champion, world(100, 7)), SETTINGS, steps=10)
        parameters.append(torch.nn.utils.parameters_to_vector(student.parameters()))
    assert torch.equal(*parameters)


def test_novelty_weights_are_larger_for_old_rows_unlike_new_ones() -> None:
    same = novelty_weights(world(2000, 0).x, world(2000, 1).x)
    assert same.mean().item() == pytest.approx(1, abs=1e-5) and same.std() < 0.2
    old = world(2000, 0)
    old.x[:1000, 1] += 5
    weights = novelty_weights(old.x, world(2000, 1, 5.0).x)
    assert weights[1000:].mean() > 3 * weights[:1000].mean()


def test_weight_of_old_rows_follows_the_size_of_their_population(champion: TabularStudent) -> None:
    new, replay = world(300, 4), with_student_probs(champion, world(100, 7))
    shares = [
        update(deepcopy(champion), new, replay, SETTINGS, steps=1, stands_for=count).old_share
        for count in (None, 300, 2700)
    ]
    assert shares == pytest.approx([0.25, 0.5, 0.9], abs=0.03)


def test_probe_passes_where_a_watch_would_see_no_drift(champion: TabularStudent) -> None:
    rows, other = world(500, 9), deepcopy(champion)
    with torch.no_grad():
        other.layers[-1].weight.mul_(-1)
    improved, worsened = probe_update(other, champion, rows, 0.1), probe_update(champion, other, rows, 0.1)
    assert improved.passed and improved.before > 0.3 > improved.after
    assert not worsened.passed and "0.100 is acceptable" in str(worsened)
    assert probe_update(champion, other, world(10, 9), 0.1).passed  # too few rows to tell
    assert probe_update(champion, other, world(0, 9), 0.1).rows == 0


def test_forgetting_is_the_rise_of_the_log_loss(champion: TabularStudent) -> None:
    rows = world(300, 8)
    other = deepcopy(champion)
    with torch.no_grad():
        other.layers[-1].weight.mul_(-1)
        expected = label_loss(other(rows.x), rows.labels) - label_loss(champion(rows.x), rows.labels)
    assert measure_forgetting(champion, other, {"past": rows}) == {"past": pytest.approx(expected.item(), rel=1e-5)}
    assert measure_forgetting(champion, champion, {"past": rows}) == {"past": 0.0}


@pytest.mark.slow
def test_new_rows_override_old_ones_in_the_same_region(champion: TabularStudent) -> None:
    """Labels around 5 are inverted, those around 0 stay, and the memory holds the old ones of both."""
    old = world(2000, 0)
    old.x[:1000, 1] += 5
    student = deepcopy(champion)
    distil(student, old, SETTINGS)
    memory, new = with_student_probs(student, old.take(torch.arange(800, 1200))), world(1500, 1, 5.0, -1.0)
    losses = {}
    for weighted in (True, False):
        updated = deepcopy(student)
        update(updated, new, memory, SETTINGS, stands_for=4000, weighted=weighted)
        with torch.no_grad():
            losses[weighted] = [
                float(hinton_loss(updated(rows.x), rows.teacher_probs, 1.0))
                for rows in (new, old.take(torch.arange(1000, 2000)))
            ]
    assert losses[True][0] < 0.7 * losses[False][0]
    assert losses[True][1] < 0.1
