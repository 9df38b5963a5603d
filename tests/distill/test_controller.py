"""The controller against the formula it states, and against chance."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stillhouse.distill.controller import Controller, calibration


def probed(controller: Controller, bias: object, nearer: object, times: int = 24, design: float = 1.0) -> Controller:
    for step in range(times):
        controller.probe(step, bias(), nearer(), design)
    return controller


def test_the_weight_is_that_of_the_formula_where_there_is_no_doubt() -> None:
    """β = 0.2 and a 1/50 of the rows a batch: 0.2 / (0.2 + 0.8 / 50)."""
    made = probed(Controller(2.0, 0.3, 1 / 50), lambda: [0.2] * 8, lambda: [0.0] * 8)
    assert made.outcome_weight == pytest.approx(0.2 / (0.2 + 0.8 / 50))
    assert made.temperature == 2.0
    grouped = probed(Controller(2.0, 0.3, 1 / 50), lambda: [0.2] * 8, lambda: [0.0] * 8, design=10.0)
    assert 0.3 < grouped.outcome_weight < made.outcome_weight
    assert probed(Controller(2.0, 0.3, 1 / 50), lambda: [0.0] * 8, lambda: [0.0] * 8).outcome_weight == 0


def test_noise_moves_nothing() -> None:
    """Held-out groups that contradict one another leave the settings where they are, in 48 of 50 trainings."""
    rng, moved = np.random.default_rng(0), 0
    for _ in range(50):
        fixed = rng.normal(0.02, 3.0, 12)  # what chance did to a group, it did for all probes
        told = probed(
            Controller(2.0, 0.5, 1 / 50),
            lambda f=fixed: (f + rng.normal(0, 1, 12)).tolist(),
            lambda: rng.normal(0, 1, 12).tolist(),
        )
        moved += told.outcome_weight != 0.5
    assert moved <= 2


@pytest.mark.parametrize(("best", "end"), [(0.5, 0.5926), (9.0, 10.125)])
def test_the_temperature_walks_to_where_knowledge_is_nearest(best: float, end: float) -> None:
    made = Controller(2.0, 0.3, 0.1)
    rng = np.random.default_rng(0)
    for step in range(100):
        gain = abs(np.log(made.temperature / best)) - abs(np.log(made.neighbour() / best))
        made.probe(step, [0.0] * 9, (gain + rng.normal(0, 0.01, 9)).tolist())
    assert made.temperature == pytest.approx(end, rel=0.25)
    assert {change.setting for change in made.changes} == {"temperature", "outcome_weight"}
    assert all(change.reason for change in made.changes)


def test_it_goes_on_where_it_was() -> None:
    rng = np.random.default_rng(0)
    made = probed(
        Controller(2.0, 0.3, 0.1), lambda: rng.normal(0.3, 0.1, 9).tolist(), lambda: rng.normal(1, 1, 9).tolist()
    )
    other = Controller(1.0, 0.0, 0.5)
    other.restore(json.loads(json.dumps(made.state())))
    assert vars(other) == vars(made)


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_the_power_that_calibrates_is_found_and_an_honest_teacher_left_alone(true: float) -> None:
    generator = torch.Generator().manual_seed(0)
    honest = torch.softmax(2 * torch.randn(4000, 4, generator=generator), dim=1)
    outcomes = torch.multinomial(honest, 1, generator=generator)[:, 0]
    said = torch.softmax(torch.log(honest) * true, dim=1)
    power, reason = calibration(said, outcomes, torch.arange(4000))
    assert power == pytest.approx(true, rel=0.15)
    assert "4000 held-out rows" in reason
    assert power == 1.0 or true != 1.0
    assert calibration(said, outcomes, torch.arange(4000) % 3)[0] == 1.0  # three groups say nothing
