"""The distillation part of the training loss, and the hidden layer that some losses need."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.config import Distillation
from stillhouse.distill.balance import LossBalance, normalise_weights
from stillhouse.distill.losses import LossInputs, loss_term
from stillhouse.distill.training_set import TrainingSet

__all__ = ["LastLayer", "Objective", "last_linear"]


def last_linear(student: nn.Module) -> nn.Linear:
    """The student's output layer, whose input is its last hidden layer."""
    return [module for module in student.modules() if isinstance(module, nn.Linear)][-1]


class LastLayer(nn.Module):
    """Captures the student's last hidden layer where the teacher has features, and projects it to their width.

    :ivar hidden: the last hidden layer of the latest forward pass, ``[n, H]``; None where it is not captured.
    """

    def __init__(self, student: nn.Module, feature_width: int | None, settings: Distillation) -> None:
        super().__init__()
        self.hidden: Tensor | None = None
        self.projection: nn.Linear | None = None
        self.hook: Any = None
        if feature_width is None:
            return
        output = last_linear(student)
        self.hook = output.register_forward_pre_hook(self._capture)
        if any(loss.needs_features for loss in settings.losses):
            self.projection = nn.Linear(output.in_features, feature_width, device=output.weight.device)

    def _capture(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.hidden = inputs[0]

    def projected(self) -> tuple[Tensor | None, Tensor | None]:
        """The hidden layer ``[n, H]`` and its projection ``[n, D]``, as float32; None where there is none."""
        hidden = None if self.hidden is None else self.hidden.float()
        return hidden, None if self.projection is None or hidden is None else self.projection(hidden)

    def close(self) -> None:
        """Remove the hook from the student."""
        if self.hook is not None:
            self.hook.remove()


class Objective:
    """The weighted losses of ``settings.losses`` on a student's outputs.

    :param last_layer: that of ``student``.
    """

    def __init__(self, student: nn.Module, last_layer: LastLayer, settings: Distillation) -> None:
        self.student = student
        self.last_layer = last_layer
        self.losses = settings.losses
        self.loss_weights = normalise_weights([loss.weight for loss in settings.losses])
        self.device = next(student.parameters()).device

    def inputs(self, rows: TrainingSet, index: Tensor, x: Tensor) -> LossInputs:
        """A forward pass over ``x`` (the rows at ``index``, perhaps with masked codes) and what the losses need."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.student(x)
        features = None if rows.features is None else rows.features[index]
        hidden, projected = self.last_layer.projected()
        return LossInputs(logits.float(), rows.teacher_probs[index], rows.labels[index], hidden, projected, features)

    def shared(self, inputs: LossInputs) -> Tensor:
        """The tensor that all losses depend on: the hidden layer where it is captured, else the logits."""
        return inputs.logits if self.last_layer.hidden is None else self.last_layer.hidden

    def distillation_loss(
        self, inputs: LossInputs, reference: Tensor, temperature: float, balance: LossBalance, shared: Tensor
    ) -> Tensor:
        """The weighted mean of the losses, each scaled to the gradient norm of ``reference`` at ``shared``."""
        terms = [loss_term(loss, inputs, temperature) for loss in self.losses]
        scales = self.loss_weights * balance.scales(terms, reference, shared)
        return torch.stack(terms) @ scales.to(self.device)
