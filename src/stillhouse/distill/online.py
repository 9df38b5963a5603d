"""A student that is there already takes in new knowledge in seconds, and remembers what it knew."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
from stillhouse.stats import total_variation

__all__ = ["Probe", "Updated", "distill_step", "forgetting", "hidden", "novelty", "probe", "remember", "update"]

_PROBED = 30  # rows kept back, fewer of which tell nothing
_COMPARED = 1000  # rows, at most, that old and new ones are told apart by
_FLATTENED = 0.5  # power of the density ratio: between every old row alike (0) and full importance weights (1)


class Updated(Record):
    """How an update went."""

    steps: int = Field(ge=1)
    old_share: float = Field(ge=0, le=1, description="of the pull that went to what was known before")
    knowledge_loss: float | None = Field(
        description="mean over the last quarter of the steps, on new rows; null: the teacher has spoken about none"
    )
    history: tuple[dict[str, float], ...] = Field(default=(), description="mean losses of each tenth of the steps")
    forgotten: dict[str, float] = Field(
        description="by past window: rise of the log loss on its outcomes (nats); below 0: the student got better at it"
    )


class Probe(Record):
    """Whether an update has repaid its cost, on new rows kept back from it."""

    rows: int = Field(ge=0)
    before: float = Field(ge=0, le=1, description="mean total variation between teacher and student before the update")
    after: float = Field(ge=0, le=1, description="the same after it")
    harmless: float = Field(ge=0, le=1, description="up to which a watch sees no harm")

    @property
    def repaid(self) -> bool:
        """Whether a watch would see no harm any more; too few rows contradict nothing: the gate decides."""
        return self.rows < _PROBED or self.after <= self.harmless

    def __str__(self) -> str:
        return (
            f"on {self.rows} new rows kept back the student differs from its teacher by {self.after:.3f}, "
            f"{self.before:.3f} before the update; up to {self.harmless:.3f} is no harm"
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
    stands_for: int | None = None,
    least_old_share: float = 0.2,
    weighted: bool = True,
) -> Updated:
    """Take in ``new`` rows in place, replaying old ones: a one-cycle learning rate up to half of a training's.

    Old rows count by how little they resemble the new ones (:func:`novelty`): where the new ones are, the new ones
    speak; where none is, nothing but the memory does. All of them together count by the number of rows that they stand
    for against the number of new ones, scaled by their effective share ``(Σw)² / (m Σw²)`` (Kish 1965).

    :param replay: old rows as :func:`remember` kept them; without any, the student is only fine-tuned.
    :param steps: of the optimiser, each with a batch of new and one of old rows.
    :param past: windows on which forgetting is measured.
    :param stands_for: how many rows ``replay`` is a sample of; None: of itself.
    :param least_old_share: what the past counts at least, 0 … 1.
    :param weighted: False: old rows count all alike.
    """
    before = deepcopy(student)
    generator = torch.Generator().manual_seed(settings.seed)
    peak = settings.learning_rate / 2
    optimiser = torch.optim.AdamW(student.parameters(), lr=peak, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, max_lr=peak, total_steps=steps + 1, pct_start=0.15)
    weights, share = torch.ones(len(replay)), 0.0
    if len(replay):
        if weighted:
            weights = novelty(hidden(student, replay), hidden(student, new))
        effective = float(weights.sum() ** 2 / weights.square().sum()) / len(replay)
        old = effective * max(len(replay), stands_for or 0)
        share = max(least_old_share, old / (old + len(new)))
    told = []
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)  # dropout
        for _ in range(steps):
            chosen, again = (
                torch.randint(max(1, len(part)), (min(settings.batch_size, len(part)),), generator=generator)
                for part in (new, replay)
            )
            told.append(
                distill_step(
                    student,
                    optimiser,
                    new.take(chosen),
                    settings,
                    replayed=replay.take(again),
                    weights=weights[again],
                    old_share=share,
                )
            )
            schedule.step()
    student.eval()
    lately = np.array([each.get("knowledge_loss", np.nan) for each in told[-max(1, steps // 4) :]])
    return Updated(
        steps=steps,
        old_share=share,
        knowledge_loss=None if np.isnan(lately).all() else float(np.nanmean(lately)),
        history=tuple(_means(told, max(1, -(-steps // 10)))),
        forgotten=forgetting(before, student, past or {}),
    )


def probe(before: nn.Module, after: nn.Module, kept_back: Lesson, harmless: float) -> Probe:
    """How far two students, ``before`` an update and ``after`` it, are from the teacher on rows that neither has seen.

    :param harmless: mean total variation that is no harm, 0 … 1.
    """
    if not len(kept_back):
        return Probe(rows=0, before=0.0, after=0.0, harmless=harmless)
    apart = []
    for module in (before, after):
        with torch.no_grad():
            said = torch.softmax(module.eval()(kept_back.x), dim=1)
        apart.append(float(total_variation(said.cpu().numpy(), kept_back.knowledge.cpu().numpy()).mean()))
    return Probe(rows=len(kept_back), before=apart[0], after=apart[1], harmless=harmless)


def hidden(student: nn.Module, rows: Lesson) -> Tensor:
    """How ``student`` sees rows: its last hidden layer, float ``[n, D]``."""
    last = [module for module in student.modules() if isinstance(module, nn.Linear)][-1]
    seen: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda layer, given: seen.append(given[0].detach()))
    training = student.training
    try:
        with torch.no_grad():
            student.eval()(rows.x)
    finally:
        hook.remove()
        student.train(training)
    return seen[0]


def novelty(old: Tensor, new: Tensor) -> Tensor:
    """How little each of ``old`` ``[m, D]`` is like the ``new`` ones ``[n, D]``, float ``[m]``, mean 1.

    The density ratio of old to new, as a logistic regression that tells them apart gives it (Bickel, Brückner and
    Scheffer 2009, "Discriminative Learning Under Covariate Shift", §4), to the power ½ (Shimodaira 2000, §4: the full
    ratio has too much variance). Where nothing has moved all weights are nearly 1.
    """
    some_old, some_new = (rows[:: -(-len(rows) // _COMPARED)] for rows in (old, new))
    rows, is_new = torch.cat([some_old, some_new]).numpy(), np.repeat([0, 1], [len(some_old), len(some_new)])
    telling = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=100))
    probability = telling.fit(rows, is_new).predict_proba(old.numpy())[:, 1].clip(0.01, 0.99)
    ratio = ((1 - probability) / probability) ** _FLATTENED
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


def _means(told: list[dict[str, float]], size: int) -> Iterator[dict[str, float]]:
    """Means of each ``size`` steps in turn; of the steps that had such rows."""
    for start in range(0, len(told), size):
        part = told[start : start + size]
        names = dict.fromkeys(name for each in part for name in each)
        yield {name: float(np.mean([each[name] for each in part if name in each])) for name in names}
