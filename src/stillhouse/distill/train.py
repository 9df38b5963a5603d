"""The training loop of a student."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from stillhouse.config import Distillation, FittedDistillation, fit_defaults
from stillhouse.distill import checkpoint as checkpoint_file
from stillhouse.distill.balance import LossBalance
from stillhouse.distill.controller import Controller, fit_calibration
from stillhouse.distill.history import SettingChange, TrainingHistory
from stillhouse.distill.losses import hinton_loss, label_loss
from stillhouse.distill.objective import LastLayer, Objective
from stillhouse.distill.probes import GradientProbe, number_clusters
from stillhouse.distill.training_set import TrainingSet, effective_label_weight
from stillhouse.threads import limit_threads
from stillhouse.variant import PADDING, UNKNOWN

__all__ = ["distil", "student_probabilities", "validation_loss"]

Progress = Callable[[int, Mapping[str, float]], None]
"""Called after each epoch with its number, from 1, and its losses."""

LOSS_NAMES = ("knowledge_loss", "outcome_loss")  # stored keys and metrics: KL to the teacher, label loss
PROBES_PER_TRAINING = 16  # the cost of the controller
BATCH_WITHOUT_GRADIENTS = 8192  # rows


def distil(
    student: nn.Module,
    training_set: TrainingSet,
    settings: Distillation,
    *,
    validation: TrainingSet | None = None,
    epochs: int | None = None,
    checkpoint: Path | None = None,
    progress: Progress = lambda epoch, losses: None,
) -> TrainingHistory:
    """Train ``student`` in place.

    The loss is ``(1 − w) · distillation_loss + w · label_loss``. The distillation loss is the weighted mean of
    ``settings.losses``, each scaled to the gradient norm of ``KL(teacher ‖ student)``
    (:mod:`stillhouse.distill.balance`), so that ``w`` has the same effect whatever the losses. The label loss is the
    cross-entropy. Each of the two is a mean over the rows of a batch that have it; where not all rows have both, ``w``
    starts lower or higher (:func:`~stillhouse.distill.training_set.effective_label_weight`). With validation rows and
    the adaptive controller, ``w`` and the temperature are adjusted during the training
    (:mod:`stillhouse.distill.controller`).

    The optimiser is AdamW with a one-cycle learning rate. The student ends with the exponential moving average of its
    weights (Polyak and Juditsky 1992; Tarvainen and Valpola 2017, §2), which stabilises a small model; if the training
    stops early, with those of its best epoch. At each step a share ``unknown_rate`` of category codes and tokens is
    replaced by code 0 and token 1, so that the student learns embeddings for unknown values. The same seed gives the
    same student. The training runs on a GPU where there is one, with bfloat16 autocast.

    :param settings: what is null in them is chosen by the number of rows of ``training_set``.
    :param validation: rows not to train on, with features where ``training_set`` has them; None: the settings stay
        fixed and the training never stops early.
    :param epochs: overrides the settings (for a short recovery).
    :param checkpoint: file to resume from, written after every epoch; the result is that of an uninterrupted training.

    >>> student, x = nn.Linear(2, 2), np.random.default_rng(0).normal(size=(64, 2))
    >>> rows = TrainingSet(x, teacher_probs=np.column_stack([x[:, 0] < 0, x[:, 0] > 0]), labels=np.full(64, -1))
    >>> history = distil(student, rows, Distillation(epochs=5, batch_size=16, learning_rate=0.1))
    >>> history.steps, history.history[-1]["knowledge_loss"] < history.history[0]["knowledge_loss"]
    (20, True)
    """
    settings = fit_defaults(settings, len(training_set))
    epochs = settings.epochs if epochs is None else epochs
    if epochs == 0:
        return TrainingHistory(history=(), changes=(), steps=0, stopped=False)
    home = next(student.parameters()).device
    device = torch.device("cuda") if torch.cuda.is_available() else home
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), limit_threads(student):
        torch.manual_seed(settings.seed)  # dropout
        training = _Training(student.to(device), training_set, settings, validation, epochs)
        if checkpoint is not None:
            training.resume(checkpoint)
        while not training.finished:
            progress(training.epoch + 1, training.run_epoch())
            if checkpoint is not None:
                training.save(checkpoint)
        history = training.finish()
    student.to(home)
    return history


class _Training:
    """A training in progress; :meth:`save` and :meth:`resume` do not change its result."""

    def __init__(
        self,
        student: nn.Module,
        training_set: TrainingSet,
        settings: FittedDistillation,
        validation: TrainingSet | None,
        epochs: int,
    ) -> None:
        self.student, self.settings, self.epochs = student, settings, epochs
        self.device = next(student.parameters()).device
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.probe_generator = torch.Generator().manual_seed(settings.seed)
        steps = -(-len(training_set) // settings.batch_size)
        self.average = AveragedModel(student, avg_fn=_moving_average(settings.averaging))
        features = training_set.features
        self.last_layer = LastLayer(student, None if features is None else features.shape[1], settings)
        self.objective = Objective(student, self.last_layer, settings)
        self.balance = LossBalance(len(settings.losses))
        self.optimiser = torch.optim.AdamW(
            [*student.parameters(), *self.last_layer.parameters()],
            lr=settings.learning_rate,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, max_lr=settings.learning_rate, total_steps=epochs * steps, pct_start=0.15
        )
        self.training_set = training_set.to(self.device)
        self.validation = validation.to(self.device) if validation else None
        self.has_teacher_probs, self.has_label = self.training_set.has_teacher_probs, self.training_set.has_label
        count_with_both = int((self.has_teacher_probs & self.has_label).sum())
        self.controller = Controller(
            settings.temperature,
            effective_label_weight(training_set, settings.outcome_weight),
            min(1.0, settings.batch_size / max(1, count_with_both)),
        )
        self.probe: GradientProbe | None = None
        self.probe_interval = max(2, epochs * steps // PROBES_PER_TRAINING)  # steps
        self._prepare_controller(count_with_both)
        self.step = self.epoch = self.best_epoch = 0
        self.best_loss = math.inf
        self.best: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []

    def _prepare_controller(self, count_with_both: int) -> None:
        """Calibrate the teacher and set up the probe, if the controller adapts and has rows to compare.

        :param count_with_both: number of training rows with both teacher probabilities and a label.
        """
        adaptive = self.settings.controller == "adaptive" and count_with_both > 0
        compare_rows = self.validation.select_with_both() if adaptive and self.validation else None
        temperature = 1.0
        if compare_rows:
            temperature, reason = fit_calibration(
                compare_rows.teacher_probs.cpu(),
                compare_rows.labels.cpu(),
                number_clusters(compare_rows).cpu(),
            )
            self.controller.changes.append(
                SettingChange(step=0, setting="calibration", value=temperature, reason=reason)
            )
        self.training_set = self.training_set.soften(temperature)
        self.validation = self.validation and self.validation.soften(temperature)
        if compare_rows:
            self.probe = GradientProbe(
                self.objective,
                self.optimiser,
                self.training_set,
                compare_rows.soften(temperature),
                self.settings.batch_size,
                self.probe_generator,
            )

    @property
    def stopped(self) -> bool:
        """Whether the validation loss has not fallen for ``patience`` epochs, so the training ends early."""
        patience = self.settings.patience
        return self.validation is not None and patience is not None and self.epoch - self.best_epoch >= patience

    @property
    def finished(self) -> bool:
        return self.epoch >= self.epochs or self.stopped

    def run_epoch(self) -> dict[str, float]:
        """One pass over the rows: its mean losses, the settings at its end, and the validation losses."""
        self.student.train()
        totals, rows = torch.zeros(2), torch.zeros(2)
        order = torch.randperm(len(self.training_set), generator=self.generator).to(self.device)
        for index in order.split(self.settings.batch_size):
            losses, counts = self._step(index)
            totals, rows = totals + losses * counts, rows + counts
        self.epoch += 1
        means = (totals / rows).tolist()
        epoch = {name: mean for name, mean in zip(LOSS_NAMES, means, strict=True) if not math.isnan(mean)}
        epoch |= {"temperature": self.controller.temperature, "outcome_weight": self.controller.outcome_weight}
        self.history.append(epoch | self._validate())
        return self.history[-1]

    def _step(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the optimiser on the rows at ``index``.

        :return: KL to the teacher at temperature 1 and cross-entropy with the labels, ``[2]``, and the rows of each.
        """
        settings, controller = self.settings, self.controller
        x = _hide(self.training_set.x[index], self.training_set, settings.unknown_rate, self.generator)
        if self.probe and self.step % self.probe_interval == self.probe_interval - 1:
            self._run_probe(self.probe)
        inputs = self.objective.inputs(self.training_set, index, x)
        with_teacher, with_label = inputs.where(self.has_teacher_probs[index]), inputs.where(self.has_label[index])
        kl_divergence = distillation_loss = labels_loss = inputs.logits.sum() * 0
        if len(with_teacher):
            kl_divergence = hinton_loss(with_teacher.logits, with_teacher.teacher_probs, 1.0)
            distillation_loss = self.objective.distillation_loss(
                with_teacher, kl_divergence, controller.temperature, self.balance, self.objective.shared(inputs)
            )
        if len(with_label):
            labels_loss = label_loss(with_label.logits, with_label.labels)
        self.optimiser.zero_grad(set_to_none=True)
        ((1 - controller.outcome_weight) * distillation_loss + controller.outcome_weight * labels_loss).backward()
        self.optimiser.step()
        self.schedule.step()
        self.average.update_parameters(self.student)
        self.step += 1
        losses = torch.stack([kl_divergence.detach(), labels_loss.detach()]).cpu()
        return losses, torch.tensor([len(with_teacher), len(with_label)])

    def _run_probe(self, probe: GradientProbe) -> None:
        """Compare the gradients of labels and teacher, and let the controller adjust the settings."""
        self.student.eval()
        bias, design_effect = probe.bias()
        gain = probe.temperature_gain(self.controller.temperature, self.controller.neighbour())
        self.controller.record_probe(self.step, bias, gain, design_effect)
        self.student.train()

    def _validate(self) -> dict[str, float]:
        """Losses of the averaged student on the validation rows; keeps the weights of the best epoch."""
        if self.validation is None:
            return {}
        module = self.average.module.eval()
        loss, losses = validation_loss(module, self.validation, self.settings.outcome_weight)
        if loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, self.epoch
            self.best = {name: value.clone() for name, value in module.state_dict().items()}
        return losses

    def finish(self) -> TrainingHistory:
        """Give the student its final weights."""
        self.last_layer.close()
        self.student.load_state_dict(self.best if self.stopped else self.average.module.state_dict())
        self.student.eval()
        return TrainingHistory(
            history=tuple(self.history), changes=tuple(self.controller.changes), steps=self.step, stopped=self.stopped
        )

    # ----------------------------------------------------------------- checkpoints

    @cached_property
    def key(self) -> str:
        """A digest of rows and settings: a checkpoint is resumed only by the same training."""
        parts = [self.training_set] + ([self.validation] if self.validation else [])
        digest = hashlib.sha256(f"{self.settings.model_dump_json()} {self.epochs}".encode())
        for part in parts:
            for tensor in (part.x, part.teacher_probs, part.labels):
                digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the whole state to ``path``."""
        moments, groups = checkpoint_file.optimiser_state(self.optimiser)
        tensors = {
            **checkpoint_file.prefixed_state("student", self.student),
            **checkpoint_file.prefixed_state("average", self.average),
            **checkpoint_file.prefixed_state("last_layer", self.last_layer),
            **{f"best.{name}": tensor for name, tensor in self.best.items()},
            **moments,
            "balance": self.balance.squared_norms,
            "generator": self.generator.get_state(),
            "prober": self.probe_generator.get_state(),
            "dropout": torch.get_rng_state(),
        }
        state = {
            "groups": groups,
            "schedule": self.schedule.state_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "history": self.history,
            "controller": self.controller.state(),
        }
        checkpoint_file.write(path, self.key, tensors, state)

    def resume(self, path: Path) -> None:
        """Restore the state from ``path`` if it is a checkpoint of this training."""
        checkpoint = checkpoint_file.read(path, self.key)
        if checkpoint is None:
            return
        tensors, state = checkpoint
        for name, module in (("student", self.student), ("average", self.average), ("last_layer", self.last_layer)):
            module.load_state_dict(checkpoint_file.tensors_below(name, tensors))
        best = checkpoint_file.tensors_below("best", tensors)
        self.best = {name: value.to(self.device) for name, value in best.items()}
        checkpoint_file.load_optimiser(self.optimiser, tensors, state["groups"])
        self.schedule.load_state_dict(state["schedule"])
        self.balance.squared_norms = tensors["balance"]
        self.generator.set_state(tensors["generator"])
        self.probe_generator.set_state(tensors["prober"])
        torch.set_rng_state(tensors["dropout"])
        self.controller.restore(state["controller"])
        self.step, self.epoch, self.best_epoch = state["step"], state["epoch"], state["best_epoch"]
        self.best_loss, self.history = state["best_loss"], state["history"]


def validation_loss(student: nn.Module, rows: TrainingSet, weight: float) -> tuple[float, dict[str, float]]:
    """``(1 − w) KL to the teacher + w cross-entropy with the labels`` on validation rows, and the two by name.

    Each is a mean over the rows that have it; it is left out where none has.
    """
    has_teacher_probs, has_label, losses, loss = rows.has_teacher_probs, rows.has_label, dict[str, float](), 0.0
    with torch.no_grad():
        logits = torch.cat([student(part).float() for part in rows.x.split(BATCH_WITHOUT_GRADIENTS)])
        if has_teacher_probs.any():
            value = float(hinton_loss(logits[has_teacher_probs], rows.teacher_probs[has_teacher_probs], 1.0))
            losses["held_out_knowledge_loss"], loss = value, loss + (1 - weight) * value
        if has_label.any():
            value = float(label_loss(logits[has_label], rows.labels[has_label]))
            losses["held_out_outcome_loss"], loss = value, loss + weight * value
    return loss, losses


def student_probabilities(student: nn.Module, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Probabilities float64 ``[n, K]`` of ``student`` for encoded rows ``x``, float32 ``[n, D]``.

    >>> student_probabilities(nn.Linear(3, 2), np.zeros((4, 3), dtype=np.float32)).sum(axis=1).round(6).tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    with torch.no_grad(), limit_threads(student):
        logits = torch.cat([student(part) for part in torch.from_numpy(x).split(BATCH_WITHOUT_GRADIENTS)])
        probs: np.ndarray[Any, Any] = torch.softmax(logits.double(), dim=1).numpy()
    return probs


def _moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Exponential moving average whose decay grows to ``decay``: short trainings forget their initial weights too."""

    def average(slow: Tensor, fast: Tensor, updates: Tensor | int) -> Tensor:
        return slow.lerp(fast, 1 - min(decay, (int(updates) + 1) / (int(updates) + 11)))

    return average


def _hide(x: Tensor, rows: TrainingSet, rate: float, generator: torch.Generator) -> Tensor:
    """Replace a share ``rate`` of category codes and tokens in ``x``, in place, by those for unknown; padding stays."""
    if rate > 0 and rows.numbers < x.shape[1]:
        codes = x[:, rows.numbers :]
        hidden = (torch.rand(codes.shape, generator=generator) < rate).to(x.device)
        unknown = torch.zeros(codes.shape[1], device=x.device)
        if rows.tokens:
            hidden[:, -rows.tokens :] &= codes[:, -rows.tokens :] != PADDING
            unknown[-rows.tokens :] = UNKNOWN
        x[:, rows.numbers :] = torch.where(hidden, unknown, codes)
    return x
