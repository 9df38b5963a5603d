"""Sets the temperature and the weight of labels during a training, from gradients on validation rows.

Labels and teacher probabilities each give an estimate of the gradient of the student's true loss. The label gradient
is unbiased but noisy; the teacher gradient has low variance but is biased by the teacher's errors. Validation rows show
how large the bias is. Let ``d`` be the label gradient minus the teacher gradient on a batch of training rows, and
``d'`` the same on validation rows, with independent noise. The share of ``‖d‖²`` that is the teacher's bias is

    ``β = E⟨d', d⟩ / E‖d‖²``,

and the weight of least expected squared error, given the noise that remains after all batches, is

    ``outcome_weight = β / (β + (1 − β) · batch · design / rows)``

(Green and Strawderman 1991, "A James–Stein Type Estimator for Combining Unbiased and Possibly Biased Estimators",
JASA 86, §2). ``design`` is the design effect (Kish 1965, §5.4): the variance of a mean over rows in clusters (days,
say) with correlated errors, over that of a mean over independent rows. Only the component of ``d'`` along ``d`` is
needed; two forward passes give it for each row. Its standard error is computed over clusters of validation rows. The
weight moves only as far as its 99 % confidence interval requires (Student's t over clusters, wide because it is checked
many times): without evidence it stays where it started.

The temperature is the one whose teacher gradient ``k_T`` on validation rows is nearest to their label gradient ``h``:
``‖h − k_T‖²`` is ``‖k_T‖² − 2 ⟨h, k_T⟩`` up to a constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor

from stillhouse.distill.history import Setting, SettingChange
from stillhouse.distill.losses import logits_from_probs
from stillhouse.stats import clustered_error, fit_temperature

__all__ = ["Controller", "fit_calibration"]

Direction = Literal["colder", "hotter"]

CONFIDENCE_QUANTILE = 0.995  # of Student's t: a two-sided interval of 99 %
MEAN_DECAY = 0.9  # of the running means, per probe
TEMPERATURE_FACTOR = 1.5  # from one temperature to the next
TEMPERATURE_RANGE = (0.5, 20.0)
MIN_PROBES = 4
MIN_CLUSTERS = 4
MIN_LOGGED_CHANGE = 0.02  # of the weight
CALIBRATION_TEMPERATURES = np.exp(np.linspace(-np.log(4), np.log(4), 57))

_STORED_NAMES = {
    "temperature": "temperature",
    "outcome_weight": "outcome_weight",
    "start_weight": "start",
    "last_logged_weight": "told",
    "batch_share": "batch_share",
    "probes": "probes",
    "design_effect": "design",
    "bias_by_cluster": "bias",
    "gain_by_cluster": "nearer",
    "probes_by_direction": "tried",
}  # attribute → key in a checkpoint


class Controller:
    """Temperature and outcome weight of a running training.

    :param temperature: the start value.
    :param outcome_weight: the start value, kept as long as validation rows do not contradict it.
    :param batch_share: batch size / training rows, 0 … 1.

    >>> controller = Controller(temperature=2.0, outcome_weight=0.3, batch_share=0.02)
    >>> for step in range(10):
    ...     controller.record_probe(step, bias=[0.2] * 8, gain=[0.0] * 8)
    >>> controller.temperature, round(controller.outcome_weight, 2)
    (2.0, 0.93)
    """

    def __init__(self, temperature: float, outcome_weight: float, batch_share: float) -> None:
        self.temperature = temperature
        self.outcome_weight = outcome_weight
        self.start_weight = self.last_logged_weight = outcome_weight
        self.batch_share = batch_share
        self.probes = 0
        self.design_effect = 1.0
        self.bias_by_cluster: list[float] = []  # running means of β
        self.gain_by_cluster: dict[str, list[float]] = {}  # sums by direction of the neighbour temperature
        self.probes_by_direction: dict[str, int] = {}
        self.changes: list[SettingChange] = []

    def neighbour(self) -> float:
        """The temperature that the next probe compares with the current one: colder and hotter in turn."""
        return self._neighbour(self._direction())

    def record_probe(self, step: int, bias: Sequence[float], gain: Sequence[float], design_effect: float = 1.0) -> None:
        """Add one probe and update the settings.

        :param step: optimiser steps taken so far.
        :param bias: ``⟨d', d⟩ / ‖d‖²`` with the ``d'`` of each validation cluster.
        :param gain: ``(‖h − k‖² − ‖h − k'‖²) / ‖k‖²`` with the ``h`` of each cluster and ``k'`` at :meth:`neighbour`.
        :param design_effect: of the clusters.
        """
        decay = min(MEAN_DECAY, self.probes / (self.probes + 1))
        before = self.bias_by_cluster or [0.0] * len(bias)
        self.bias_by_cluster = [decay * old + (1 - decay) * new for old, new in zip(before, bias, strict=True)]
        self.design_effect = decay * self.design_effect + (1 - decay) * design_effect
        direction = self._direction()
        sums = self.gain_by_cluster.get(direction, [0.0] * len(gain))
        self.gain_by_cluster[direction] = [old + new for old, new in zip(sums, gain, strict=True)]
        self.probes_by_direction[direction] = self.probes_by_direction.get(direction, 0) + 1
        self.probes += 1
        if self.probes >= MIN_PROBES and len(bias) >= MIN_CLUSTERS:
            self._set_weight(step)
            self._set_temperature(step, direction)

    def _set_weight(self, step: int) -> None:
        mean, error = _confidence_interval(self.bias_by_cluster)
        low, high = self._best_weight(mean - error), self._best_weight(mean + error)
        self.outcome_weight = min(max(self.start_weight, low), high)
        if abs(self.outcome_weight - self.last_logged_weight) >= MIN_LOGGED_CHANGE:
            self.last_logged_weight = self.outcome_weight
            reason = (
                f"{mean:.1%} ± {error:.1%} of the difference between label and teacher gradients is the teacher's "
                f"bias: the best weight lies between {low:.2f} and {high:.2f}"
            )
            self._log(step, "outcome_weight", self.last_logged_weight, reason)

    def _best_weight(self, bias: float) -> float:
        bias = min(max(bias, 0.0), 1.0)
        return bias / (bias + (1 - bias) * min(1.0, self.batch_share * self.design_effect))

    def _set_temperature(self, step: int, direction: Direction) -> None:
        value, probes = self._neighbour(direction), self.probes_by_direction[direction]
        if probes < MIN_PROBES or value == self.temperature:
            return
        mean, error = _confidence_interval(self.gain_by_cluster[direction])
        if mean > error:
            before, self.temperature = self.temperature, value
            reason = (
                f"in {probes} probes the teacher gradient at temperature {value:.3g} was nearer to the label gradient "
                f"on validation rows than at {before:.3g}: by {mean:.1%} ± {error:.1%} of its squared norm in total"
            )
            self._log(step, "temperature", value, reason)
            self.gain_by_cluster, self.probes_by_direction = {}, {}

    def _direction(self) -> Direction:
        return "colder" if self.probes % 2 == 0 else "hotter"

    def _neighbour(self, direction: Direction) -> float:
        factor = 1 / TEMPERATURE_FACTOR if direction == "colder" else TEMPERATURE_FACTOR
        return float(np.clip(self.temperature * factor, *TEMPERATURE_RANGE))

    def _log(self, step: int, setting: Setting, value: float, reason: str) -> None:
        self.changes.append(SettingChange(step=step, setting=setting, value=value, reason=reason))

    def state(self) -> dict[str, Any]:
        """The state as JSON, for a checkpoint."""
        state = {key: getattr(self, name) for name, key in _STORED_NAMES.items()}
        return state | {"changes": [change.model_dump() for change in self.changes]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned."""
        for name, key in _STORED_NAMES.items():
            setattr(self, name, state[key])
        self.changes = [SettingChange.model_validate(change) for change in state["changes"]]


def fit_calibration(teacher_probs: Tensor, labels: Tensor, cluster_ids: Tensor) -> tuple[float, str]:
    """The temperature τ that calibrates teacher probabilities, ``p^(1/τ)`` normalised, and the reason for it.

    Temperature scaling (Guo, Pleiss, Sun and Weinberger 2017, "On Calibration of Modern Neural Networks", §4.2): τ of
    least log loss on the labels. It is 1 (no change) where a 99 % interval over clusters does not exclude a gain of 0.

    :param teacher_probs: ``[n, K]``, of validation rows.
    :param labels: action indices int64 ``[n]``.
    :param cluster_ids: int64 ``[n]``, numbered from 0.
    """
    logits, index = logits_from_probs(teacher_probs.double()), torch.arange(len(labels))

    def losses(temperature: float) -> Tensor:
        return -torch.log_softmax(logits / temperature, dim=1)[index, labels]

    best = fit_temperature(logits.numpy(), labels.numpy(), among=CALIBRATION_TEMPERATURES.tolist())
    confidence = float(teacher_probs.max(dim=1).values.mean())
    accuracy = float((teacher_probs.argmax(dim=1) == labels).double().mean())
    summary = (
        f"on {len(labels)} validation rows the teacher's mean confidence is {confidence:.1%} and its accuracy "
        f"{accuracy:.1%}"
    )
    counts = torch.bincount(cluster_ids)
    if len(counts) >= MIN_CLUSTERS:
        gains = torch.bincount(cluster_ids, losses(1.0) - losses(best)) * len(counts) / len(labels)
        gain, error = _confidence_interval(gains.tolist())
        if gain > error:
            return best, f"{summary}; p^(1/{best:.3g}) lowers its log loss by {gain:.3g} ± {error:.2g}"
    return 1.0, f"{summary}; no temperature lowers its log loss significantly"


def _confidence_interval(values: Sequence[float]) -> tuple[float, float]:
    """The mean over clusters, and half the width of its 99 % interval."""
    error = clustered_error((np.asarray(values) - np.mean(values)) / len(values), small_sample=True)
    return float(np.mean(values)), float(student_t.ppf(CONFIDENCE_QUANTILE, len(values) - 1)) * error
