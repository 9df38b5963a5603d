"""A student that is there already takes in new knowledge in seconds, and remembers what it knew."""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy, deepcopy

import numpy as np
import torch
from pydantic import Field
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.nn import functional

from stillhouse.config import Distillation
from stillhouse.distill.losses import knowledge_loss, outcome_loss, soften
from stillhouse.distill.train import Lesson
from stillhouse.records import Record

__all__ = ["Updated", "distill_step", "forgetting", "remember", "resemblance", "update"]

_FLATTENED = 0.5  # power of the density ratio: between every old row alike (0) and full importance weights (1)


class Updated(Record):
    """How an update went."""

    steps: int = Field(ge=1)
    old_share: float = Field(ge=0, le=1, description="of the pull that went to what was known before")
    knowledge_loss: float | None = Field(
        description="mean over the last quarter of the steps, on new rows; null: the teacher has spoken about none"
    )
    forgotten: dict[str, float] = Field(
        description="by past window: rise of the log loss on its outcomes (nats); below 0: the student got better at it"
    )


def remember(student: nn.Module, rows: Lesson) -> Lesson:
    """``rows`` with what ``student`` says about them now as their knowledge: soft labels to be replayed later.

    Rows that the teacher has not been asked about get the student's knowledge like all others.

    Dark experience (Buzzega, Boschini, Porrello, Abati and Calderara 2020, "Dark Experience for General Continual
    Learning", §3.1): a student keeps its own past answers, and not only the outcomes.
    """
    kept = copy(rows)
    training = student.training
    with torch.no_grad():
        kept.knowledge = torch.softmax(student.eval()(rows.x), dim=1)
    student.train(training)
    return kept


def distill_step(
    student: nn.Module,
    optimiser: torch.optim.Optimizer,
    batch: Lesson,
    settings: Distillation,
    *,
    replayed: Lesson | None = None,
    weights: Tensor | None = None,
    old_share: float = 0.0,
) -> dict[str, float]:
    """One step on a batch of new rows and a batch of replayed ones.

    The loss is ``(1 − s) · L(new) + s · L(old)``, where L is ``(1 − w) T² KL + w CE(outcomes)`` (on replayed rows
    DER++ of Buzzega et al. 2020, eq. 6, with the KL in place of squared logits), each part a mean over the rows that
    have it.

    :param replayed: rows from :func:`remember`; None: only new ones.
    :param weights: of the replayed rows, ``[n]``, mean 1; None: all alike.
    :param old_share: s, 0 … 1.
    :return: ``knowledge_loss`` (KL at temperature 1, new rows) where the teacher has spoken about any, and
        ``replay_loss`` where rows are replayed.
    """
    student.train()
    logits = student(batch.x)
    told, taught = {}, batch.taught
    if taught.any():
        told["knowledge_loss"] = float(knowledge_loss(logits.detach()[taught], batch.knowledge[taught], 1.0))
    loss = _pull(logits, batch, settings)
    if replayed is not None and len(replayed):
        old = _pull(student(replayed.x), replayed, settings, weights)
        told["replay_loss"] = float(old.detach())
        loss = (1 - old_share) * loss + old_share * old
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    optimiser.step()
    return told


def update(
    student: nn.Module,
    new: Lesson,
    replay: Lesson,
    settings: Distillation,
    *,
    steps: int = 200,
    past: Mapping[str, Lesson] | None = None,
    least_old_share: float = 0.2,
) -> Updated:
    """Take in ``new`` rows in place, replaying old ones; a warm start, at a tenth of the learning rate.

    Old rows count by how much they resemble the new ones (:func:`resemblance`), and all of them together by their
    effective number against the number of new rows, ``n_eff / (n_eff + n)`` with ``n_eff = (Σw)² / Σw²`` (Kish 1965):
    the further the inputs have moved, the less the past counts.

    :param replay: old rows as :func:`remember` kept them; without any, the student is only fine-tuned.
    :param steps: of the optimiser, each with a batch of new and one of old rows.
    :param past: windows on which forgetting is measured.
    :param least_old_share: what the past counts at least, 0 … 1.
    """
    before = deepcopy(student)
    generator = torch.Generator().manual_seed(settings.seed)
    optimiser = torch.optim.AdamW(
        student.parameters(), lr=settings.learning_rate / 10, weight_decay=settings.weight_decay
    )
    weights = resemblance(replay, new) if len(replay) else torch.zeros(0)
    share = 0.0
    if len(replay):
        effective = float(weights.sum() ** 2 / weights.square().sum())
        share = max(least_old_share, effective / (effective + len(new)))
    told = []
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)  # dropout
        for _ in range(steps):
            chosen, old = (
                torch.randint(max(1, len(part)), (min(settings.batch_size, len(part)),), generator=generator)
                for part in (new, replay)
            )
            told.append(
                distill_step(
                    student, optimiser, new.take(chosen), settings,
                    replayed=replay.take(old), weights=weights[old], old_share=share,
                ).get("knowledge_loss", np.nan)
            )  # fmt: skip
    student.eval()
    lately = np.array(told[-max(1, steps // 4) :])
    return Updated(
        steps=steps,
        old_share=share,
        knowledge_loss=None if np.isnan(lately).all() else float(np.nanmean(lately)),
        forgotten=forgetting(before, student, past or {}),
    )


def resemblance(old: Lesson, new: Lesson) -> Tensor:
    """How much each old row is like the new ones, float ``[n]``, mean 1.

    The density ratio of new to old, as a logistic regression that tells them apart gives it (Bickel, Brückner and
    Scheffer 2009, "Discriminative Learning Under Covariate Shift", §4), to the power ½ (Shimodaira 2000, §4: the full
    ratio has too much variance). Where nothing has moved all weights are nearly 1.
    """
    rows = torch.cat([old.x, new.x]).nan_to_num(0.0).numpy()
    is_new = np.repeat([0, 1], [len(old), len(new)])
    telling = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=300))
    probability = telling.fit(rows, is_new).predict_proba(rows[: len(old)])[:, 1].clip(0.01, 0.99)
    ratio = (probability / (1 - probability)) ** _FLATTENED
    return torch.from_numpy((ratio / ratio.mean()).astype(np.float32))


def forgetting(before: nn.Module, after: nn.Module, past: Mapping[str, Lesson]) -> dict[str, float]:
    """Rise of the log loss on the outcomes of each past window (nats), from one student to another.

    Of windows without a known outcome nothing is said.
    """
    found = {}
    for name, rows in past.items():
        lived = rows.lived
        if lived.any():
            with torch.no_grad():
                was, now = (outcome_loss(m.eval()(rows.x[lived]), rows.outcomes[lived]) for m in (before, after))
            found[name] = float(now - was)
    return found


def _pull(logits: Tensor, rows: Lesson, settings: Distillation, weights: Tensor | None = None) -> Tensor:
    """``(1 − w) T² KL + w CE``, each a mean over the rows that have it, weighted by ``weights`` ``[n]`` if given."""
    weights = torch.ones(len(rows), device=logits.device) if weights is None else weights
    taught, lived, temperature = rows.taught, rows.lived, settings.temperature
    loss = logits.sum() * 0
    if taught.any():
        said = torch.log_softmax(logits[taught] / temperature, dim=1)
        softened = soften(rows.knowledge[taught], temperature)
        apart = temperature**2 * functional.kl_div(said, softened, reduction="none").sum(dim=1)
        loss = loss + (1 - settings.outcome_weight) * (weights[taught] * apart).mean()
    if lived.any():
        missed = functional.cross_entropy(logits[lived], rows.outcomes[lived], reduction="none")
        loss = loss + settings.outcome_weight * (weights[lived] * missed).mean()
    return loss
