"""Fine-tunes an existing student on new rows in seconds, with a replay buffer against forgetting."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import deepcopy

import numpy as np
import torch
from pydantic import AliasChoices, Field
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional

from stillhouse.config import Distillation, FittedDistillation, fit_defaults
from stillhouse.distill.losses import hinton_loss, label_loss, soften
from stillhouse.distill.objective import last_linear
from stillhouse.distill.training_set import TrainingSet
from stillhouse.records import Record
from stillhouse.stats import total_variation

__all__ = [
    "UpdateProbe",
    "UpdateResult",
    "distill_step",
    "measure_forgetting",
    "novelty_weights",
    "probe_update",
    "update",
]

MIN_PROBE_ROWS = 30
MAX_CLASSIFIER_ROWS = 1000  # old rows, and as many new ones, that the density ratio is estimated from
DENSITY_RATIO_POWER = 0.5  # between equal weights (0) and full importance weights (1)


class UpdateResult(Record):
    """How an update went."""

    steps: int = Field(ge=1)
    old_share: float = Field(ge=0, le=1, description="weight of the replayed rows in the loss")
    knowledge_loss: float | None = Field(
        description="KL to the teacher on new rows, mean over the last quarter of the steps; null: none was answered"
    )
    history: tuple[dict[str, float], ...] = Field(default=(), description="mean losses of each tenth of the steps")
    forgotten: dict[str, float] = Field(
        description="by past window: rise of the log loss on its labels (nats); below 0: the student improved"
    )


class UpdateProbe(Record):
    """Whether an update was good enough, measured on new validation rows.

    >>> UpdateProbe(rows=200, before=0.20, after=0.05, null_mean=0.08).passed
    True
    """

    rows: int = Field(ge=0)
    before: float = Field(ge=0, le=1, description="mean total variation between teacher and student before the update")
    after: float = Field(ge=0, le=1, description="the same after it")
    null_mean: float = Field(
        ge=0,
        le=1,
        validation_alias=AliasChoices("null_mean", "harmless"),
        description="the largest mean total variation at which a watch sees no drift",
    )

    @property
    def passed(self) -> bool:
        """Whether a watch would see no drift any more. Too few rows are no evidence against it: the gate decides."""
        return self.rows < MIN_PROBE_ROWS or self.after <= self.null_mean

    def __str__(self) -> str:
        return (
            f"on {self.rows} new validation rows the total variation between student and teacher is {self.after:.3f}, "
            f"{self.before:.3f} before the update; up to {self.null_mean:.3f} is acceptable"
        )


def distill_step(
    student: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: TrainingSet,
    settings: Distillation,
    *,
    replayed: TrainingSet | None = None,
    replay_weights: Tensor | None = None,
    old_share: float = 0.0,
) -> dict[str, float]:
    """One step on a batch of new rows and a batch of replayed ones.

    The loss is ``(1 − s) · L(new) + s · L(old)``, where L is ``(1 − w) T² KL + w CE(labels)`` (on replayed rows DER++
    of Buzzega et al. 2020, eq. 6, with the KL in place of squared logits), each part a mean over the rows that have it.

    :param replayed: rows whose teacher probabilities are those of the student when it was trained on them; None: only
        new rows.
    :param replay_weights: importance weights of the replayed rows, ``[n]``, mean 1; None: all 1.
    :param old_share: s, 0 … 1.
    :return: ``knowledge_loss`` (KL at temperature 1 on new rows) where any has teacher probabilities, and
        ``replay_loss`` where rows are replayed.
    """
    fitted = fit_defaults(settings, len(batch))
    student.train()
    logits = student(batch.x)
    losses, has_probs = dict[str, float](), batch.has_teacher_probs
    if has_probs.any():
        losses["knowledge_loss"] = float(hinton_loss(logits.detach()[has_probs], batch.teacher_probs[has_probs], 1.0))
    loss = _weighted_loss(logits, batch, fitted)
    if replayed is not None and len(replayed):
        replay_loss = _weighted_loss(student(replayed.x), replayed, fitted, replay_weights)
        losses["replay_loss"] = float(replay_loss.detach())
        loss = (1 - old_share) * loss + old_share * replay_loss
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return losses


def update(
    student: nn.Module,
    new: TrainingSet,
    replay: TrainingSet,
    settings: Distillation,
    *,
    steps: int = 200,
    past: Mapping[str, TrainingSet] | None = None,
    stands_for: int | None = None,
    least_old_share: float = 0.2,
    weighted: bool = True,
) -> UpdateResult:
    """Fine-tune ``student`` in place on ``new`` rows with replay of old ones.

    The learning rate is one-cycle, up to half of a training's. Old rows are weighted by how little they resemble the
    new ones (:func:`novelty_weights`): in regions with new rows, the new ones decide; elsewhere only the memory does.
    The weight of all old rows together is the number of rows that they represent, times their effective share
    ``(Σw)² / (m Σw²)`` (Kish 1965), relative to the number of new rows.

    :param replay: old rows with the student's probabilities as stored in its memory; empty: no replay.
    :param steps: of the optimiser, each with a batch of new and one of old rows.
    :param past: windows on which forgetting is measured.
    :param stands_for: size of the population that ``replay`` is a sample of; None: its own size.
    :param least_old_share: lower bound of the weight of old rows, 0 … 1.
    :param weighted: False: all old rows have the same weight.
    """
    before = deepcopy(student)
    generator = torch.Generator().manual_seed(settings.seed)
    settings = fit_defaults(settings, len(new) + len(replay))
    peak = settings.learning_rate / 2
    optimiser = torch.optim.AdamW(student.parameters(), lr=peak, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=peak, total_steps=steps + 1, pct_start=0.15)
    replay_weights, old_share = torch.ones(len(replay)), 0.0
    if len(replay):
        if weighted:
            replay_weights = novelty_weights(_last_hidden(student, replay), _last_hidden(student, new))
        effective = float(replay_weights.sum() ** 2 / replay_weights.square().sum()) / len(replay)
        old = effective * max(len(replay), stands_for or 0)
        old_share = max(least_old_share, old / (old + len(new)))
    losses = []
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)  # dropout
        for _ in range(steps):
            new_index, old_index = (
                torch.randint(max(1, len(part)), (min(settings.batch_size, len(part)),), generator=generator)
                for part in (new, replay)
            )
            losses.append(
                distill_step(
                    student,
                    optimiser,
                    new.take(new_index),
                    settings,
                    replayed=replay.take(old_index),
                    replay_weights=replay_weights[old_index],
                    old_share=old_share,
                )
            )
            schedule.step()
    student.eval()
    last_losses = np.array([step.get("knowledge_loss", np.nan) for step in losses[-max(1, steps // 4) :]])
    return UpdateResult(
        steps=steps,
        old_share=old_share,
        knowledge_loss=None if np.isnan(last_losses).all() else float(np.nanmean(last_losses)),
        history=tuple(_means_by_span(losses, max(1, -(-steps // 10)))),
        forgotten=measure_forgetting(before, student, past or {}),
    )


def probe_update(before: nn.Module, after: nn.Module, validation: TrainingSet, null_mean: float) -> UpdateProbe:
    """Mean total variation from the teacher, ``before`` an update and ``after`` it, on rows that it did not use.

    :param null_mean: the largest mean total variation at which a watch sees no drift, 0 … 1.
    """
    if not len(validation):
        return UpdateProbe(rows=0, before=0.0, after=0.0, null_mean=null_mean)
    distances = []
    for module in (before, after):
        with torch.no_grad():
            probs = torch.softmax(module.eval()(validation.x), dim=1)
        distances.append(float(total_variation(probs.cpu().numpy(), validation.teacher_probs.cpu().numpy()).mean()))
    return UpdateProbe(rows=len(validation), before=distances[0], after=distances[1], null_mean=null_mean)


def novelty_weights(old: Tensor, new: Tensor) -> Tensor:
    """Weights of ``old`` points ``[m, D]``, float ``[m]``, mean 1: the larger, the less like ``new`` ones ``[n, D]``.

    The density ratio of old to new, estimated by a logistic regression that tells them apart (Bickel, Brückner and
    Scheffer 2009, "Discriminative Learning Under Covariate Shift", §4), to the power ½ (Shimodaira 2000, §4: the full
    ratio has too much variance). Without a shift all weights are close to 1.
    """
    old_sample, new_sample = (points[:: -(-len(points) // MAX_CLASSIFIER_ROWS)] for points in (old, new))
    points = torch.cat([old_sample, new_sample]).numpy()
    is_new = np.repeat([0, 1], [len(old_sample), len(new_sample)])
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=100))
    probability = classifier.fit(points, is_new).predict_proba(old.numpy())[:, 1].clip(0.01, 0.99)
    ratio = ((1 - probability) / probability) ** DENSITY_RATIO_POWER
    return torch.from_numpy((ratio / ratio.mean()).astype(np.float32))


def measure_forgetting(before: nn.Module, after: nn.Module, past: Mapping[str, TrainingSet]) -> dict[str, float]:
    """Rise of the log loss (nats) on the labels of each past window, from one student to another.

    Windows without labels are left out.
    """
    rises = {}
    for name, rows in past.items():
        has_label = rows.has_label
        if has_label.any():
            with torch.no_grad():
                old_loss, new_loss = (
                    label_loss(module.eval()(rows.x[has_label]), rows.labels[has_label]) for module in (before, after)
                )
            rises[name] = float(new_loss - old_loss)
    return rises


def _last_hidden(student: nn.Module, rows: TrainingSet) -> Tensor:
    """The student's last hidden layer, float ``[n, D]``."""
    captured: list[Tensor] = []
    hook = last_linear(student).register_forward_pre_hook(lambda layer, inputs: captured.append(inputs[0].detach()))
    training = student.training
    try:
        with torch.no_grad():
            student.eval()(rows.x)
    finally:
        hook.remove()
        student.train(training)
    return captured[0]


def _weighted_loss(
    logits: Tensor, rows: TrainingSet, settings: FittedDistillation, row_weights: Tensor | None = None
) -> Tensor:
    """``(1 − w) T² KL + w CE``, each a mean over the rows that have it, weighted by ``row_weights`` ``[n]``."""
    row_weights = torch.ones(len(rows), device=logits.device) if row_weights is None else row_weights
    has_probs, has_label, temperature = rows.has_teacher_probs, rows.has_label, settings.temperature
    loss = logits.sum() * 0
    if has_probs.any():
        log_probs = torch.log_softmax(logits[has_probs] / temperature, dim=1)
        targets = soften(rows.teacher_probs[has_probs], temperature)
        kl_divergence = temperature**2 * functional.kl_div(log_probs, targets, reduction="none").sum(dim=1)
        loss = loss + (1 - settings.outcome_weight) * (row_weights[has_probs] * kl_divergence).mean()
    if has_label.any():
        cross_entropy = functional.cross_entropy(logits[has_label], rows.labels[has_label], reduction="none")
        loss = loss + settings.outcome_weight * (row_weights[has_label] * cross_entropy).mean()
    return loss


def _means_by_span(losses: list[dict[str, float]], size: int) -> Iterator[dict[str, float]]:
    """Mean losses of every ``size`` steps, each over the steps that have it."""
    for start in range(0, len(losses), size):
        span = losses[start : start + size]
        names = dict.fromkeys(name for step in span for name in step)
        yield {name: float(np.mean([step[name] for step in span if name in step])) for name in names}
