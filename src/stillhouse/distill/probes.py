"""Measures gradients on training and validation rows for the controller (:mod:`stillhouse.distill.controller`)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from stillhouse.distill.balance import LossBalance
from stillhouse.distill.losses import hinton_loss
from stillhouse.distill.objective import Objective
from stillhouse.distill.training_set import TrainingSet

__all__ = ["GradientProbe", "number_clusters"]

RowLoss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Logits ``[n, K]``, teacher probabilities ``[n, K]``, labels ``[n]`` → loss of each row ``[n]``."""

_DAMPING = 1e-2  # of the optimiser's preconditioner, as a share of its mean
_STEP_SIZE = 1e-3  # of finite differences, as a share of the norm of the parameters
_EPSILON = 1e-12


class GradientProbe:
    """Compares label and teacher gradients on training rows with those on validation rows.

    Inner products use the optimiser's preconditioner as metric. A probe draws from a generator of its own and restores
    the student, so probes that change no setting do not change the training.

    :param validation: rows with both teacher probabilities and a label, at least one.
    :param batch_size: training rows, and validation rows for the temperature, drawn per probe.
    """

    def __init__(
        self,
        objective: Objective,
        optimiser: torch.optim.Optimizer,
        training_set: TrainingSet,
        validation: TrainingSet,
        batch_size: int,
        generator: torch.Generator,
    ) -> None:
        self.objective, self.student = objective, objective.student
        self.optimiser = optimiser
        self.training_set = training_set
        self.validation = validation
        self.cluster_ids = number_clusters(validation)
        self.rows_by_cluster = torch.bincount(self.cluster_ids).to(torch.float32)
        self.batch_size = batch_size
        self.generator = generator
        self.candidates = (training_set.has_teacher_probs & training_set.has_label).nonzero().squeeze(1)
        self.device = objective.device

    def bias(self) -> tuple[list[float], float]:
        """The teacher's bias ``⟨d', d⟩ / ‖d‖²`` by validation cluster, and the design effect of the clusters.

        The training rows come from the older half of the window: their gradient must predict that of newer rows.
        """
        older = torch.randint(max(1, len(self.candidates) // 2), (self.batch_size,), generator=self.generator)
        index = self.candidates[older.to(self.device)]
        logits = self.student(self.training_set.x[index]).float()
        teacher_probs, labels = self.training_set.teacher_probs[index], self.training_set.labels[index]
        difference = self._gradient(_loss_differences(logits, teacher_probs, labels).mean())
        direction = self._preconditioner() * difference
        slopes = self._slopes(direction, _loss_differences)
        bias = self._cluster_means(slopes) / (difference @ direction).clamp(min=_EPSILON)
        return bias.tolist(), self._design_effect(slopes)

    def temperature_gain(self, temperature: float, neighbour: float) -> list[float]:
        """By validation cluster, how much nearer to the label gradient the teacher gradient is at ``neighbour``.

        :return: ``(‖h − k‖² − ‖h − k'‖²) / ‖k‖²`` with the teacher gradient ``k`` at ``temperature``, ``k'`` at
            ``neighbour``, and the label gradient ``h`` of each cluster.
        """
        rows = self.validation
        index = torch.randint(len(rows), (self.batch_size,), generator=self.generator).to(self.device)
        inputs = self.objective.inputs(rows, index, rows.x[index])
        reference, shared = hinton_loss(inputs.logits, inputs.teacher_probs, 1.0), self.objective.shared(inputs)
        current, other = (
            self._gradient(
                self.objective.distillation_loss(
                    inputs, reference, value, LossBalance(len(self.objective.losses)), shared
                )
            )
            for value in (temperature, neighbour)
        )
        metric = self._preconditioner()
        squared_norm = (current @ (metric * current)).clamp(min=_EPSILON)
        slopes = self._cluster_means(self._slopes(metric * (other - current), _label_losses))
        gain: list[float] = ((2 * slopes - other @ (metric * other) + squared_norm) / squared_norm).tolist()
        return gain

    def _parameters(self) -> list[nn.Parameter]:
        """The student's parameters that are trained."""
        return [parameter for parameter in self.student.parameters() if parameter.requires_grad]

    def _gradient(self, loss: Tensor) -> Tensor:
        """Gradient by the student's parameters, flat ``[P]``."""
        parameters = self._parameters()
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(parameters, gradients, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])

    def _preconditioner(self) -> Tensor:
        """What AdamW multiplies a gradient by, up to a constant factor, ``[P]``."""
        moments = [self.optimiser.state[p]["exp_avg_sq"].flatten() for p in self._parameters()]
        root = torch.cat(moments).sqrt()
        preconditioner: Tensor = root.mean() / (root + _DAMPING * root.mean() + _EPSILON)
        return preconditioner

    def _slopes(self, direction: Tensor, row_loss: RowLoss) -> Tensor:
        """Derivatives of the validation rows' losses along ``direction`` ``[P]``, ``[n]``, by central differences."""
        norm = direction.norm()
        if norm == 0:
            return torch.zeros(len(self.validation), device=self.device)
        parameters = self._parameters()
        parts = direction.split([parameter.numel() for parameter in parameters])
        losses: list[Tensor] = []
        with torch.no_grad():
            before = [parameter.clone() for parameter in parameters]
            step = _STEP_SIZE * torch.cat([values.flatten() for values in before]).norm() / norm
            for sign in (1, -1):
                for parameter, values, part in zip(parameters, before, parts, strict=True):
                    parameter.copy_(values + sign * step * part.view_as(values))
                logits = self.student(self.validation.x).float()
                losses.append(row_loss(logits, self.validation.teacher_probs, self.validation.labels))
            for parameter, values in zip(parameters, before, strict=True):
                parameter.copy_(values)
        slopes: Tensor = (losses[0] - losses[1]) / (2 * step)
        return slopes

    def _cluster_sums(self, values: Tensor) -> Tensor:
        """Sums by cluster, ``[G]``, of ``[n]``."""
        return torch.zeros_like(self.rows_by_cluster).index_add_(0, self.cluster_ids, values)

    def _cluster_means(self, values: Tensor) -> Tensor:
        """Means by cluster, ``[G]``, of ``[n]``."""
        return self._cluster_sums(values) / self.rows_by_cluster

    def _design_effect(self, values: Tensor) -> float:
        """Variance of the mean with rows in clusters, over that with independent rows; at least 1 (Kish 1965, §5.4)."""
        rows, clusters = len(values), len(self.rows_by_cluster)
        if clusters in (1, rows):
            return 1.0
        centred = values - values.mean()
        variance = self._cluster_sums(centred).square().sum() * clusters / (clusters - 1)
        return max(1.0, float(variance / centred.square().sum().clamp(min=_EPSILON)))


def number_clusters(rows: TrainingSet) -> Tensor:
    """Cluster ids of ``rows``, int64 ``[n]``, numbered from 0; without clusters each row is its own."""
    if rows.cluster_ids is None:
        return torch.arange(len(rows), device=rows.x.device)
    cluster_ids: Tensor = rows.cluster_ids.unique(return_inverse=True)[1]
    return cluster_ids


def _loss_differences(logits: Tensor, teacher_probs: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy with the labels minus that with the teacher, ``[n]``: its gradient is the difference of the two.

    At the logits the student's own prediction cancels out: ``(q − y) − (q − p) = p − y``.
    """
    log_probs = torch.log_softmax(logits, dim=1)
    return (teacher_probs * log_probs).sum(dim=1) + functional.nll_loss(log_probs, labels, reduction="none")


def _label_losses(logits: Tensor, teacher_probs: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, reduction="none")
