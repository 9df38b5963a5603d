"""The peers' losses follow their papers, rows without a label add nothing, and the goals are counted as described."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.distillation import goals_of, interval
from benchmarks.distillation_data import agent, make_world
from benchmarks.distillation_peers import losses as published
from stillhouse.distill.losses import decoupled_loss, hinton_loss, standardised_loss


def logits(rows: int = 40, actions: int = 5) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (2 * torch.randn(rows, actions, generator=generator) for _ in range(2))
    return student, torch.log_softmax(teacher, dim=1), torch.randint(actions, (rows,), generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_peers_equal_the_unbalanced_losses_of_the_engine(temperature: float) -> None:
    student, teacher, labels = logits()
    teacher_probs = teacher.exp()
    for name, our_loss in (
        ("kd", hinton_loss(student, teacher_probs, temperature)),
        ("dkd", decoupled_loss(student, teacher_probs, labels, temperature, 8.0)),
    ):
        peer_loss = published.PUBLISHED[name](student, teacher, labels, temperature, 0.0)
        assert peer_loss.item() == pytest.approx(our_loss.item(), rel=1e-4)
    bessel = (4 / 5) ** 0.5  # theirs divides by the sample deviation
    peer_loss = published.PUBLISHED["standardised"](student, teacher, labels, temperature * bessel, 0.0)
    assert peer_loss.item() == pytest.approx(
        bessel**2 * standardised_loss(student, teacher_probs, temperature).item(), rel=1e-4
    )


@pytest.mark.parametrize("name", list(published.PUBLISHED))
def test_rows_without_a_label_are_left_out(name: str) -> None:
    student, teacher, labels = logits()
    partial_labels = labels.clone()
    partial_labels[10:] = -1
    label_loss = torch.nn.functional.cross_entropy(student[:10], labels[:10])
    assert published.PUBLISHED[name](student, teacher, partial_labels, 2.0, 1.0).item() == pytest.approx(
        label_loss.item()
    )
    assert published.label_loss(student, torch.full_like(labels, -1)) == 0


def test_a_world_is_cut_without_overlap() -> None:
    import pandas as pd

    rows = pd.DataFrame({"x": np.arange(200.0), "outcome": np.arange(200) % 2}).assign(
        observed_at=pd.date_range("2013-01-01", periods=200, freq="h", tz="UTC")
    )
    config = agent({"x": {"type": "number"}}, 2, {"kind": "tabular"}, augment={"copies": 1})
    days = np.arange(200) // 10
    world = make_world(config, lambda part: np.full((len(part), 2), 0.5), rows, rows, 0.6, 10, 3, days)
    training_x, validation_x = set(world.training_set.x[:, 0].tolist()), set(world.validation.x[:, 0].tolist())
    assert training_x | validation_x == set(range(200)) and not training_x & validation_x
    assert (
        len(validation_x) == 40
        and int(world.training_set.has_label.sum()) == 80
        and not world.synthetic_rows.has_label.any()
    )
    assert set(np.unique(np.array(sorted(validation_x)) // 10 * 10)) <= validation_x  # whole days
    labelled_x = world.training_set.x[world.training_set.has_label, 0].numpy()
    assert (np.bincount((labelled_x // 10).astype(int), minlength=20) % 10 == 0).all()


def test_an_interval_by_hand() -> None:
    """Mean 2, deviation 1, three seeds: 2 ± 4.303 / √3."""
    result = interval(np.array([1.0, 2.0, 3.0]))
    assert result["mean"] == 2 and result["high"] - 2 == pytest.approx(4.3027 / 3**0.5, rel=1e-4)


def interval_of(low: float, mean: float, high: float) -> dict[str, Any]:
    return {"low": low, "mean": mean, "high": high}


def test_goals_are_counted_over_data_sets() -> None:
    win, lost, unsure = interval_of(0.01, 0.02, 0.03), interval_of(-0.03, -0.02, -0.01), interval_of(-0.01, 0.01, 0.03)
    results = {
        "a": {"ours_minus": dict.fromkeys(("kd", "dkd", "standardised"), win)},
        "b": {"ours_minus": {"kd": unsure, "dkd": win, "standardised": win}},
        "c": {"ours_minus": {"kd": lost, "dkd": win, "standardised": win}},
        "clinc150": {"ours_minus": {"kd": win, "dkd": win, "standardised": lost}, "gap_closed": [0.7, 0.9, 0.8]},
    }
    goals = {goal.name: goal for goal in goals_of(results)}
    wins = goals["wins_over_kd_dkd_std"]
    assert (wins.measured, wins.low, wins.high) == (2, 1, 2) and not wins.met
    assert goals["data_sets_below_plain_kd"].measured == 1
    assert (goals["gap_closed_text"].measured, goals["gap_closed_text"].low) == (0.8, 0.7)
