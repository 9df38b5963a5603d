"""The controller against its formula, and against noise."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from stillhouse.distill.controller import Controller, fit_calibration


def run_probes(controller: Controller, bias: object, gain: object, times: int = 24, design: float = 1.0) -> Controller:
    for step in range(times):
        controller.record_probe(step, bias(), gain(), design)
    return controller


def test_weight_is_that_of_the_formula_without_noise() -> None:
    """β = 0.2 and a batch of 1/50 of the rows: 0.2 / (0.2 + 0.8 / 50)."""
    controller = run_probes(Controller(2.0, 0.3, 1 / 50), lambda: [0.2] * 8, lambda: [0.0] * 8)
    assert controller.outcome_weight == pytest.approx(0.2 / (0.2 + 0.8 / 50))
    assert controller.temperature == 2.0
    clustered = run_probes(Controller(2.0, 0.3, 1 / 50), lambda: [0.2] * 8, lambda: [0.0] * 8, design=10.0)
    assert 0.3 < clustered.outcome_weight < controller.outcome_weight
    assert run_probes(Controller(2.0, 0.3, 1 / 50), lambda: [0.0] * 8, lambda: [0.0] * 8).outcome_weight == 0


def test_noise_changes_no_setting() -> None:
    """Clusters that contradict one another leave the settings unchanged in 48 of 50 trainings."""
    rng, moved = np.random.default_rng(0), 0
    for _ in range(50):
        fixed = rng.normal(0.02, 3.0, 12)  # noise of a cluster, the same in all probes
        controller = run_probes(
            Controller(2.0, 0.5, 1 / 50),
            lambda f=fixed: (f + rng.normal(0, 1, 12)).tolist(),
            lambda: rng.normal(0, 1, 12).tolist(),
        )
        moved += controller.outcome_weight != 0.5
    assert moved <= 2


@pytest.mark.parametrize(("best", "end"), [(0.5, 0.5926), (9.0, 10.125)])
def test_temperature_moves_to_the_nearest_teacher_gradient(best: float, end: float) -> None:
    controller = Controller(2.0, 0.3, 0.1)
    rng = np.random.default_rng(0)
    for step in range(100):
        gain = abs(np.log(controller.temperature / best)) - abs(np.log(controller.neighbour() / best))
        controller.record_probe(step, [0.0] * 9, (gain + rng.normal(0, 0.01, 9)).tolist())
    assert controller.temperature == pytest.approx(end, rel=0.25)
    assert {change.setting for change in controller.changes} == {"temperature", "outcome_weight"}
    assert all(change.reason for change in controller.changes)


def test_controller_state_is_restored() -> None:
    rng = np.random.default_rng(0)
    controller = run_probes(
        Controller(2.0, 0.3, 0.1), lambda: rng.normal(0.3, 0.1, 9).tolist(), lambda: rng.normal(1, 1, 9).tolist()
    )
    restored = Controller(1.0, 0.0, 0.5)
    restored.restore(json.loads(json.dumps(controller.state())))
    assert vars(restored) == vars(controller)


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_calibration_is_found_and_a_calibrated_teacher_is_unchanged(true: float) -> None:
    generator = torch.Generator().manual_seed(0)
    calibrated = torch.softmax(2 * torch.randn(4000, 4, generator=generator), dim=1)
    labels = torch.multinomial(calibrated, 1, generator=generator)[:, 0]
    teacher_probs = torch.softmax(torch.log(calibrated) * true, dim=1)
    temperature, reason = fit_calibration(teacher_probs, labels, torch.arange(4000))
    assert temperature == pytest.approx(true, rel=0.15)
    assert "4000 validation rows" in reason
    assert temperature == 1.0 or true != 1.0
    assert fit_calibration(teacher_probs, labels, torch.arange(4000) % 3)[0] == 1.0  # three clusters are no evidence
