"""Taking in new knowledge: it is learned, and replay keeps what was known."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import pytest
import torch

from stillhouse.config import Distillation
from stillhouse.distill.losses import knowledge_loss, outcome_loss
from stillhouse.distill.online import distill_step, forgetting, novelty, probe, remember, update
from stillhouse.distill.students import TabularStudent
from stillhouse.distill.train import Lesson, distil

SETTINGS = Distillation(epochs=6, batch_size=64, learning_rate=0.02, controller="fixed", unknown_rate=0)


def world(rows: int, seed: int, centre: float = 0.0, sign: float = 1.0) -> Lesson:
    """Left of 2 the law is x₀ > 0; what lies to the right turns it over where ``sign`` is −1."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 2)).astype(np.float32) + np.array([0, centre], dtype=np.float32)
    go = 1 / (1 + np.exp(-4 * sign * x[:, 0]))
    return Lesson(x, np.column_stack([1 - go, go]), (rng.random(rows) < go).astype(np.int64))


@pytest.fixture(scope="module")
def champion() -> TabularStudent:
    torch.manual_seed(0)
    made = TabularStudent(torch.linspace(-3, 8, 9).repeat(2, 1), (), 2, (24,))
    distil(made, world(2000, 0), SETTINGS)
    return made


def test_one_step_is_the_mean_of_new_and_old_by_their_share(champion: TabularStudent) -> None:
    new, old = world(32, 1, 5.0, -1.0), remember(champion, world(16, 2))

    def moved(**given: object) -> torch.Tensor:
        student = deepcopy(champion)
        distill_step(student, torch.optim.SGD(student.parameters(), lr=1.0), new, SETTINGS, **given)
        return torch.nn.utils.parameters_to_vector(student.parameters()).detach()

    start = torch.nn.utils.parameters_to_vector(champion.parameters()).detach()
    only_new = moved() - start
    only_old = moved(replayed=old, old_share=1.0) - start
    mixed = moved(replayed=old, old_share=0.3) - start
    torch.testing.assert_close(mixed, 0.7 * only_new + 0.3 * only_old, rtol=1e-3, atol=1e-5)


def test_what_is_remembered_is_what_the_student_said(champion: TabularStudent) -> None:
    rows = world(50, 3)
    kept = remember(champion, rows)
    torch.testing.assert_close(kept.knowledge, torch.softmax(champion(rows.x), dim=1))
    assert kept.outcomes is rows.outcomes and not torch.equal(kept.knowledge, rows.knowledge)


def test_an_update_learns_the_new_and_replay_keeps_the_old(champion: TabularStudent) -> None:
    new, past, test = world(600, 4, 5.0, -1.0), world(1000, 5), world(1000, 6, 5.0, -1.0)
    told = {}
    for name, replay in (("tuned", world(0, 0)), ("replayed", remember(champion, world(600, 7)))):
        student = deepcopy(champion)
        told[name] = update(student, new, replay, SETTINGS, steps=300, past={"before": past})
        with torch.no_grad():
            assert knowledge_loss(student(test.x), test.knowledge, 1.0) < 0.3 * knowledge_loss(
                champion(test.x), test.knowledge, 1.0
            )
    assert told["tuned"].old_share == 0 and 0.2 <= told["replayed"].old_share < 0.5
    assert told["replayed"].forgotten["before"] < 0.5 * told["tuned"].forgotten["before"]


def test_the_same_seed_the_same_update(champion: TabularStudent) -> None:
    found = []
    for _ in range(2):
        student = deepcopy(champion)
        update(student, world(100, 4, 5.0), remember(champion, world(100, 7)), SETTINGS, steps=10)
        found.append(torch.nn.utils.parameters_to_vector(student.parameters()))
    assert torch.equal(*found)


def test_old_rows_count_by_how_little_they_are_like_the_new() -> None:
    same = novelty(world(2000, 0).x, world(2000, 1).x)
    assert same.mean().item() == pytest.approx(1, abs=1e-5) and same.std() < 0.2
    old = world(2000, 0)
    old.x[:1000, 1] += 5
    weights = novelty(old.x, world(2000, 1, 5.0).x)
    assert weights[1000:].mean() > 3 * weights[:1000].mean()


def test_what_the_memory_stands_for_decides_its_share(champion: TabularStudent) -> None:
    new, replay = world(300, 4), remember(champion, world(100, 7))
    shares = [
        update(deepcopy(champion), new, replay, SETTINGS, steps=1, stands_for=count).old_share
        for count in (None, 300, 2700)
    ]
    assert shares == pytest.approx([0.25, 0.5, 0.9], abs=0.03)


def test_a_probe_says_whether_a_watch_would_still_see_harm(champion: TabularStudent) -> None:
    rows, other = world(500, 9), deepcopy(champion)
    with torch.no_grad():
        other.layers[-1].weight.mul_(-1)
    mended, spoiled = probe(other, champion, rows, 0.1), probe(champion, other, rows, 0.1)
    assert mended.repaid and mended.before > 0.3 > mended.after
    assert not spoiled.repaid and "0.100 is no harm" in str(spoiled)
    assert probe(champion, other, world(10, 9), 0.1).repaid  # too few rows to tell
    assert probe(champion, other, world(0, 9), 0.1).rows == 0


def test_forgetting_is_the_rise_of_the_loss(champion: TabularStudent) -> None:
    rows = world(300, 8)
    other = deepcopy(champion)
    with torch.no_grad():
        other.layers[-1].weight.mul_(-1)
        expected = outcome_loss(other(rows.x), rows.outcomes) - outcome_loss(champion(rows.x), rows.outcomes)
    assert forgetting(champion, other, {"past": rows}) == {"past": pytest.approx(expected.item(), rel=1e-5)}
    assert forgetting(champion, champion, {"past": rows}) == {"past": 0.0}


def test_where_old_and_new_contradict_each_other_the_new_is_believed(champion: TabularStudent) -> None:
    """The law around 5 turns over, the one around 0 stays, and the memory speaks of both as they were."""
    old = world(2000, 0)
    old.x[:1000, 1] += 5
    student = deepcopy(champion)
    distil(student, old, SETTINGS)
    memory, new = remember(student, old.take(torch.arange(800, 1200))), world(1500, 1, 5.0, -1.0)
    wrong = {}
    for weighted in (True, False):
        updated = deepcopy(student)
        update(updated, new, memory, SETTINGS, stands_for=4000, weighted=weighted)
        with torch.no_grad():
            wrong[weighted] = [
                float(knowledge_loss(updated(rows.x), rows.knowledge, 1.0))
                for rows in (new, old.take(torch.arange(1000, 2000)))
            ]
    assert wrong[True][0] < 0.7 * wrong[False][0]
    assert wrong[True][1] < 0.1
