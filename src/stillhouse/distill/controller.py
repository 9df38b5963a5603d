"""Temperature and the weight of outcomes, set while the student learns, from what held-out outcomes say.

Both sources that a student learns from are estimates of one thing, the gradient of its true loss. That of the
outcomes is right on average and noisy; that of the teacher's knowledge has little noise and is off by the teacher's
mistakes. Held-out rows tell how far off: with ``d`` the difference of the outcomes' and knowledge's gradients on a
batch of training rows, and ``d'`` that on held-out rows, whose noise is another, the share of ``‖d‖²`` that is the
teacher's bias, and not noise, is

    ``β = E⟨d', d⟩ / E‖d‖²``,

and the weight of least expected squared error, with the noise that is left once all batches are seen,

    ``outcome_weight = β / (β + (1 − β) · batch · design / rows)``

(Green and Strawderman 1991, "A James–Stein Type Estimator for Combining Unbiased and Possibly Biased Estimators",
JASA 86, §2). ``design`` is the design effect (Kish 1965, §5.4): how much noisier a mean is because rows come in
groups (days, say) that share what chance did to them. ``d'`` is needed along ``d`` only, so two forward passes
give it row by row, and its error comes from whole groups of held-out rows. The setting is moved only as far as an
interval of 99 % (Student's t over the groups; it is looked at many times) demands: where held-out rows say nothing,
it stays.

The temperature is the one at which knowledge's gradient ``k_T`` on held-out rows lies nearest to that of their
outcomes, ``h``, by the same reckoning: ``‖h − k_T‖²`` is ``‖k_T‖² − 2 ⟨h, k_T⟩`` up to a constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from scipy.stats import t as student_t
from torch import Tensor

from stillhouse.distill.losses import log_knowledge
from stillhouse.records import Record
from stillhouse.stats import clustered_error, fit_temperature

__all__ = ["Change", "Controller", "Course", "Setting", "calibration"]

Setting = Literal["temperature", "outcome_weight", "calibration", "made_up_rows"]

_DECAY = 0.9  # of the running means, per probe
_FACTOR = 1.5  # from one temperature to the next
_TEMPERATURES = (0.5, 20.0)
_SURE = 0.995  # quantile of Student's t
_LEAST_PROBES = 4
_LEAST_GROUPS = 4
_WORTH_TELLING = 0.02
_POWERS = np.exp(np.linspace(-np.log(4), np.log(4), 57))


class Change(Record):
    """One setting, changed at one step, and why."""

    step: int = Field(ge=0, description="optimiser steps taken before it")
    setting: Setting
    value: float
    reason: str


class Control(Record):
    """What adapting has earned: both students on rows that neither they nor the controller have seen."""

    rows: int = Field(ge=1)
    log_loss: float = Field(description="of the student, mean −log p(outcome) (nats)")
    log_loss_fixed: float = Field(description="of the same student at the fixed settings")
    gain: float = Field(description="log_loss_fixed − log_loss")
    standard_error: float = Field(ge=0.0, description="of the gain, rows paired, groups of rows counted as one")

    @property
    def moved(self) -> bool:
        """Whether adapting has helped or harmed by more than two standard errors."""
        return abs(self.gain) > 2 * self.standard_error


class Course(Record):
    """How a training went."""

    history: tuple[dict[str, float], ...] = Field(description="each epoch's mean losses and the settings at its end")
    changes: tuple[Change, ...] = Field(description="of settings, in order")
    steps: int = Field(ge=0, description="of the optimiser")
    stopped: bool = Field(description="before all epochs, because the held-out loss no longer fell")
    control: Control | None = Field(default=None, description="the same training at the fixed settings beside it")
    rows: int = Field(
        default=0, ge=0, description="to learn from, made-up ones too, when it was last compared with another"
    )
    uncontrolled: int = Field(
        default=0, ge=0, description="refreshes in a row, up to this one, without a training at the fixed settings"
    )
    uncontrolled_why: str = Field(default="", description="why it was left out though settings were changed")
    untried: int = Field(
        default=0, ge=0, description="refreshes in a row, up to this one, that took over what made-up rows were worth"
    )

    @property
    def adapted(self) -> bool:
        """Whether the controller has changed anything: calibration by 1 is none, and made-up rows are not its own."""
        return any(
            change.setting != "made_up_rows" and (change.setting != "calibration" or change.value != 1.0)
            for change in self.changes
        )

    @property
    def made_up_rows_helped(self) -> bool:
        """Whether held-out rows spoke for the student that has learned from made-up rows too."""
        return any(change.setting == "made_up_rows" and change.value > 0 for change in self.changes)


class Controller:
    """Temperature and outcome weight of a running training.

    :param temperature: where it begins.
    :param outcome_weight: where it begins, and where it stays while held-out rows do not contradict it.
    :param batch_share: batch size / training rows, 0 … 1.
    """

    def __init__(self, temperature: float, outcome_weight: float, batch_share: float) -> None:
        self.temperature = temperature
        self.outcome_weight = outcome_weight
        self.start = self.told = outcome_weight
        self.batch_share = batch_share
        self.probes = 0
        self.design = 1.0
        self.bias: list[float] = []  # running mean of β by group
        self.nearer: dict[str, list[float]] = {}  # sum by group, for the colder and the hotter neighbour
        self.tried: dict[str, int] = {}
        self.changes: list[Change] = []

    def neighbour(self) -> float:
        """The temperature to try beside the present one at the next probe: colder and hotter in turn."""
        return self._moved(self._side())

    def probe(self, step: int, bias: Sequence[float], nearer: Sequence[float], design: float = 1.0) -> None:
        """Take in one probe and set what it says.

        :param step: optimiser steps taken so far.
        :param bias: ``⟨d', d⟩ / ‖d‖²`` with each group's ``d'``.
        :param nearer: ``(‖h − k‖² − ‖h − k'‖²) / ‖k‖²`` with each group's ``h``, ``k'`` at :meth:`neighbour`.
        :param design: design effect of the training rows' groups.
        """
        keep = min(_DECAY, self.probes / (self.probes + 1))
        before = self.bias or [0.0] * len(bias)
        self.bias = [keep * old + (1 - keep) * new for old, new in zip(before, bias, strict=True)]
        self.design = keep * self.design + (1 - keep) * design
        side = self._side()
        sums = self.nearer.get(side, [0.0] * len(nearer))
        self.nearer[side] = [old + new for old, new in zip(sums, nearer, strict=True)]
        self.tried[side] = self.tried.get(side, 0) + 1
        self.probes += 1
        if self.probes >= _LEAST_PROBES and len(bias) >= _LEAST_GROUPS:
            self._set_weight(step)
            self._set_temperature(step, side)

    def _set_weight(self, step: int) -> None:
        mean, error = _interval(self.bias)
        low, high = self._best_weight(mean - error), self._best_weight(mean + error)
        self.outcome_weight = min(max(self.start, low), high)
        if abs(self.outcome_weight - self.told) >= _WORTH_TELLING:
            self.told = self.outcome_weight
            reason = (
                f"of what parts outcomes from knowledge, {mean:.1%} ± {error:.1%} is the teacher's bias: the best "
                f"weight lies in {low:.2f} to {high:.2f}"
            )
            self._record(step, "outcome_weight", self.told, reason)

    def _best_weight(self, bias: float) -> float:
        bias = min(max(bias, 0.0), 1.0)
        return bias / (bias + (1 - bias) * min(1.0, self.batch_share * self.design))

    def _set_temperature(self, step: int, side: str) -> None:
        value = self._moved(side)
        if self.tried[side] < _LEAST_PROBES or value == self.temperature:
            return
        mean, error = _interval(self.nearer[side])
        if mean > error:
            before, self.temperature = self.temperature, value
            reason = (
                f"in {self.tried[side]} probes knowledge at {value:.3g} lay nearer to the held-out gradient than at "
                f"{before:.3g}: summed {mean:.1%} ± {error:.1%} of its squared length"
            )
            self._record(step, "temperature", value, reason)
            self.nearer, self.tried = {}, {}

    def _side(self) -> str:
        return "colder" if self.probes % 2 == 0 else "hotter"

    def _moved(self, side: str) -> float:
        factor = 1 / _FACTOR if side == "colder" else _FACTOR
        return float(np.clip(self.temperature * factor, *_TEMPERATURES))

    def _record(self, step: int, setting: Setting, value: float, reason: str) -> None:
        self.changes.append(Change(step=step, setting=setting, value=value, reason=reason))

    def state(self) -> dict[str, Any]:
        """All that a later process needs to go on, as JSON."""
        return vars(self) | {"changes": [change.model_dump() for change in self.changes]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take :meth:`state` back."""
        vars(self).update(state)
        self.changes = [Change.model_validate(change) for change in self.changes]


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean over groups and half its 99 % interval."""
    error = clustered_error((np.asarray(values) - np.mean(values)) / len(values), small_sample=True)
    return float(np.mean(values)), float(student_t.ppf(_SURE, len(values) - 1)) * error


def calibration(knowledge: Tensor, outcomes: Tensor, groups: Tensor) -> tuple[float, str]:
    """The power that calibrates held-out knowledge, ``p^(1/τ)`` normalised, and the reason for it.

    Temperature scaling (Guo, Pleiss, Sun and Weinberger 2017, "On Calibration of Modern Neural Networks", §4.2): τ of
    least log loss on the outcomes. 1 (as the teacher said) where the gain could be chance, by a 99 % interval over
    groups.

    :param knowledge: probabilities ``[n, K]``.
    :param outcomes: action indices int64 ``[n]``.
    :param groups: of each row, int64 ``[n]``, numbered from 0.
    """
    logits, rows = log_knowledge(knowledge.double()), torch.arange(len(outcomes))

    def losses(value: float) -> Tensor:
        return -torch.log_softmax(logits / value, dim=1)[rows, outcomes]

    best = fit_temperature(logits.numpy(), outcomes.numpy(), among=_POWERS.tolist())
    confidence = float(knowledge.max(dim=1).values.mean())
    right = float((knowledge.argmax(dim=1) == outcomes).double().mean())
    said = f"on {len(outcomes)} held-out rows the teacher is {confidence:.1%} sure on average and right on {right:.1%}"
    counts = torch.bincount(groups)
    if len(counts) >= _LEAST_GROUPS:
        by_group = torch.bincount(groups, losses(1.0) - losses(best)) * len(counts) / len(outcomes)
        gain, error = _interval(by_group.tolist())
        if gain > error:
            return best, f"{said}; p^(1/{best:.3g}) lowers its log loss by {gain:.3g} ± {error:.2g}"
    return 1.0, f"{said}; no power lowers its log loss beyond chance"
