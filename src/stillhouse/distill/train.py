"""A student learns from knowledge and outcomes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from copy import copy
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from stillhouse.config import Distillation
from stillhouse.distill import checkpoint as checkpoint_file
from stillhouse.distill.balance import Balance, share
from stillhouse.distill.controller import Change, Controller, Course, calibration
from stillhouse.distill.losses import Signals, knowledge_loss, outcome_loss, soften, term
from stillhouse.distill.students import columns_of, new_student
from stillhouse.errors import DataError
from stillhouse.threads import limit_threads
from stillhouse.variant import PADDING, UNKNOWN

__all__ = [
    "Lesson",
    "columns_of",
    "distil",
    "held_out_loss",
    "held_out_units",
    "new_student",
    "outcomes_part",
    "student_probabilities",
    "validation_days",
]

Progress = Callable[[int, Mapping[str, float]], None]

_PARTS = ("knowledge_loss", "outcome_loss")
_PROBES = 16  # per training: what the controller costs
_DAMPING = 1e-2  # of the optimiser's metric, as a share of its mean
_STEP = 1e-3  # along a direction, as a share of the weights' norm
_TINY = 1e-12
_AT_ONCE = 8192  # rows of one pass without gradients


class Lesson:
    """What a student learns from: encoded rows in order of time, what the teacher said, and what turned out to be true.

    :param x: float32 ``[n, F + C + ΣL]``, see :func:`stillhouse.variant.encode`.
    :param knowledge: probabilities ``[n, K]``; a row of NaN: the teacher has not been asked.
    :param outcomes: action indices ``[n]``; −1: not known (yet).
    :param numbers: F, how many of the values are numbers; None: all but the tokens.
    :param tokens: ΣL, how many of the values, the last ones, are token ids.
    :param features: of the teacher, ``[n, D]``, where it has any.
    :param groups: integers ``[n]``; rows of one group (a day, say) share what chance did to them. None: each its own.
    :raises DataError: if a row has neither knowledge nor outcome, half a row of knowledge, or an unknown action.
    """

    def __init__(
        self,
        x: np.ndarray[Any, Any],
        knowledge: np.ndarray[Any, Any],
        outcomes: np.ndarray[Any, Any],
        numbers: int | None = None,
        features: np.ndarray[Any, Any] | None = None,
        groups: np.ndarray[Any, Any] | None = None,
        tokens: int = 0,
    ) -> None:
        self.numbers = x.shape[1] - tokens if numbers is None else numbers
        self.tokens = tokens
        self.made_up = 0  # how many of the rows, the last ones, nobody has observed
        self.x = torch.from_numpy(np.array(x, dtype=np.float32))
        self.knowledge = torch.from_numpy(np.array(knowledge, dtype=np.float32))
        self.outcomes = torch.from_numpy(np.array(outcomes, dtype=np.int64))
        self.features = None if features is None else torch.from_numpy(np.array(features, dtype=np.float32))
        self.groups = None if groups is None else torch.from_numpy(np.array(groups, dtype=np.int64))
        self._check()

    def __len__(self) -> int:
        return len(self.x)

    def observed(self) -> Lesson:
        """All rows but those that were made up."""
        return self.take(torch.arange(len(self) - self.made_up))

    def plus(self, other: Lesson) -> Lesson:
        """These rows and then those of ``other``, which were made up, with features where both have; in no groups."""
        together = copy(self)
        together.made_up = self.made_up + len(other)
        for name in ("x", "knowledge", "outcomes"):
            setattr(together, name, torch.cat([getattr(self, name), getattr(other, name)]))
        both = self.features is not None and other.features is not None
        together.features = torch.cat([self.features, other.features]) if both else None  # type: ignore[list-item]
        together.groups = None
        return together

    @property
    def taught(self) -> Tensor:
        """Which rows the teacher has spoken about, bool ``[n]``."""
        return ~self.knowledge[:, 0].isnan()

    @property
    def lived(self) -> Tensor:
        """Of which rows the outcome is known, bool ``[n]``."""
        return self.outcomes >= 0

    def _check(self) -> None:
        rows, actions = self.knowledge.shape
        if len(self.x) != rows or len(self.outcomes) != rows:
            raise DataError(f"a lesson has {len(self.x)} rows, {rows} of knowledge and {len(self.outcomes)} outcomes")
        missing = self.knowledge.isnan()
        if halves := int((missing.any(dim=1) & ~missing.all(dim=1)).sum()):
            raise DataError(
                f"{halves} of {rows} rows of a lesson have knowledge of some actions alone: a row is NaN as a whole "
                f"(not asked) or not at all"
            )
        if empty := int((~self.taught & ~self.lived).sum()):
            raise DataError(
                f"{empty} of {rows} rows of a lesson have neither knowledge nor outcome, so nothing can be learned "
                f"from them: leave them out"
            )
        if rows and not -1 <= int(self.outcomes.min()) <= int(self.outcomes.max()) < actions:
            raise DataError(f"outcomes of a lesson are to lie in 0 … {actions - 1}, or be −1 where they are not known")

    def take(self, rows: Tensor) -> Lesson:
        """Some rows, by their numbers; which of them were made up is forgotten."""
        taken = copy(self)
        taken.made_up = 0
        for name in ("x", "knowledge", "outcomes", "features", "groups"):
            whole = getattr(self, name)
            setattr(taken, name, None if whole is None else whole[rows])
        return taken

    def to(self, device: torch.device) -> Lesson:
        """The same rows on another device."""
        moved = copy(self)
        moved.x, moved.knowledge, moved.outcomes = (t.to(device) for t in (self.x, self.knowledge, self.outcomes))
        moved.features = None if self.features is None else self.features.to(device)
        moved.groups = None if self.groups is None else self.groups.to(device)
        return moved


def distil(
    student: nn.Module,
    lesson: Lesson,
    settings: Distillation,
    *,
    held_out: Lesson | None = None,
    epochs: int | None = None,
    checkpoint: Path | None = None,
    progress: Progress = lambda epoch, losses: None,
) -> Course:
    """Train ``student`` in place; returns how it went.

    The loss is ``(1 − w) · knowledge + w · CE(outcomes)``, where knowledge is the weighted mean of ``settings.losses``,
    each brought to the gradient norm of ``KL(teacher ‖ student)`` (:mod:`stillhouse.distill.balance`), so that ``w``
    means the same whatever the losses. Each of the two parts is a mean over those rows of a batch that have it; where
    not all have both, ``w`` begins lower or higher (:func:`outcomes_part`). AdamW under a one-cycle learning rate. With
    held-out rows and the adaptive controller, ``w`` and the temperature are set while it learns
    (:mod:`stillhouse.distill.controller`). The student ends as the exponential moving average of its weights (Polyak
    and Juditsky 1992; Tarvainen and Valpola 2017, §2), which steadies a small model; where the training stops early, as
    it was in its best epoch. A share ``unknown_rate`` of the category codes and tokens is hidden at each step, so that
    code 0 and token 1 learn to stand for the unknown. The same seed, the same student. It learns on a GPU where there
    is one, under bfloat16 autocast.

    :param held_out: rows that nobody learns from, with features where ``lesson`` has them; None: settings stay fixed
        and nothing stops early.
    :param epochs: instead of the settings' (a short recovery).
    :param checkpoint: a file to go on from, written after every epoch; a killed training then ends as it would have.
    """
    epochs = settings.epochs if epochs is None else epochs
    if epochs == 0:
        return Course(history=(), changes=(), steps=0, stopped=False)
    home = next(student.parameters()).device
    device = torch.device("cuda") if torch.cuda.is_available() else home
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), limit_threads(student):
        torch.manual_seed(settings.seed)  # dropout
        training = _Training(student.to(device), lesson, settings, held_out, epochs)
        if checkpoint is not None:
            training.resume(checkpoint)
        while not training.over:
            progress(training.epoch + 1, training.run_epoch())
            if checkpoint is not None:
                training.save(checkpoint)
        course = training.finish()
    student.to(home)
    return course


class _Training:
    """One training under way; :meth:`save` and :meth:`resume` leave no trace in what comes out."""

    def __init__(
        self, student: nn.Module, lesson: Lesson, settings: Distillation, held_out: Lesson | None, epochs: int
    ) -> None:
        device = next(student.parameters()).device
        self.student, self.settings, self.epochs, self.device = student, settings, epochs, device
        self.lesson, self.held_out = lesson.to(device), held_out.to(device) if held_out else None
        self.generator = torch.Generator().manual_seed(settings.seed)
        self.prober = torch.Generator().manual_seed(settings.seed)  # its own: probes that change nothing leave no trace
        steps = -(-len(lesson) // settings.batch_size)
        self.average = AveragedModel(student, avg_fn=_moving_average(settings.averaging))
        self.last_layer = _LastLayer(student, lesson, settings)
        trained = [*student.parameters(), *self.last_layer.parameters()]
        self.optimiser = torch.optim.AdamW(
            trained, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, max_lr=settings.learning_rate, total_steps=epochs * steps, pct_start=0.15
        )
        self.taught, self.lived = self.lesson.taught, self.lesson.lived
        self.both = (self.taught & self.lived).nonzero().squeeze(1)
        self.judged = None if self.held_out is None else _with_both(self.held_out)
        self.controller = Controller(
            settings.temperature,
            outcomes_part(lesson, settings.outcome_weight),
            min(1.0, settings.batch_size / max(1, len(self.both))),
        )
        self.every = max(2, epochs * steps // _PROBES) if self._adaptive else 0
        if self.judged is not None:
            self.groups, self.group_rows = _groups(self.judged)
        self.balance = Balance(len(settings.losses))
        self.shares = share([loss.weight for loss in settings.losses])
        self.power = self._calibrate()
        self.lesson = _softened(self.lesson, self.power)
        self.held_out = self.held_out and _softened(self.held_out, self.power)
        self.judged = self.judged and _softened(self.judged, self.power)
        self.step = self.epoch = self.best_epoch = 0
        self.best_loss = math.inf
        self.best: dict[str, Tensor] = {}
        self.history: list[dict[str, float]] = []

    @property
    def _adaptive(self) -> bool:
        comparable = self.judged is not None and len(self.judged) > 0 and len(self.both) > 0
        return self.settings.controller == "adaptive" and comparable

    @property
    def stopped(self) -> bool:
        """Whether the held-out loss has not fallen for so long that the training ends early."""
        patience = self.settings.patience
        return self.held_out is not None and patience is not None and self.epoch - self.best_epoch >= patience

    @property
    def over(self) -> bool:
        return self.epoch >= self.epochs or self.stopped

    def run_epoch(self) -> dict[str, float]:
        """One pass over the rows; its mean losses, the settings at its end, and the losses on held-out rows."""
        self.student.train()
        totals, rows = torch.zeros(2), torch.zeros(2)
        order = torch.randperm(len(self.lesson), generator=self.generator).to(self.device)
        for batch in order.split(self.settings.batch_size):
            parts, counts = self._step(batch)
            totals, rows = totals + parts * counts, rows + counts
        self.epoch += 1
        means = (totals / rows).tolist()
        losses = {name: mean for name, mean in zip(_PARTS, means, strict=True) if not math.isnan(mean)}
        losses |= {"temperature": self.controller.temperature, "outcome_weight": self.controller.outcome_weight}
        self.history.append(losses | self._watch_held_out())
        return self.history[-1]

    def _step(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """One step of the optimiser.

        :return: KL to the teacher at temperature 1 and cross-entropy with outcomes, ``[2]``, and the rows of each.
        """
        settings, controller = self.settings, self.controller
        rows = _hide(self.lesson.x[batch], self.lesson, settings.unknown_rate, self.generator)
        if self.every and self.step % self.every == self.every - 1:
            self._probe()
        signals = self._signals(self.lesson, batch, rows)
        told, known = signals.of(self.taught[batch]), signals.of(self.lived[batch])
        reference = taught = lived = signals.logits.sum() * 0
        if len(told):
            reference = knowledge_loss(told.logits, told.knowledge, 1.0)
            taught = self._pull(told, reference, controller.temperature, self.balance, self.last_layer.shared(signals))
        if len(known):
            lived = outcome_loss(known.logits, known.outcomes)
        self.optimiser.zero_grad(set_to_none=True)
        ((1 - controller.outcome_weight) * taught + controller.outcome_weight * lived).backward()
        self.optimiser.step()
        self.schedule.step()
        self.average.update_parameters(self.student)
        self.step += 1
        return torch.stack([reference.detach(), lived.detach()]).cpu(), torch.tensor([len(told), len(known)])

    def _signals(self, lesson: Lesson, batch: Tensor, rows: Tensor) -> Signals:
        """What the losses need of one batch of ``lesson``, whose ``rows`` the student sees."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            logits = self.student(rows)
        features = None if lesson.features is None else lesson.features[batch]
        return self.last_layer.signals(logits.float(), lesson.knowledge[batch], lesson.outcomes[batch], features)

    def _pull(
        self, signals: Signals, reference: Tensor, temperature: float, balance: Balance, shared: Tensor
    ) -> Tensor:
        """Knowledge's part of the loss, in the unit of ``reference``; both depend on ``shared``."""
        terms = [term(loss, signals, temperature) for loss in self.settings.losses]
        scales = self.shares * balance.scales(terms, reference, shared)
        return torch.stack(terms) @ scales.to(self.device)

    def _probe(self) -> None:
        """Let the controller compare where outcomes and knowledge pull, on training rows and on held-out ones."""
        self.student.eval()
        bias, design = self._bias()
        self.controller.probe(self.step, bias, self._nearer(), design)
        self.student.train()

    def _bias(self) -> tuple[list[float], float]:
        """By group, what part of the difference of outcomes' and knowledge's pull is there on held-out rows too.

        The training rows come from the older half: what they teach must hold on held-out rows that are newer.
        """
        older = torch.randint(max(1, len(self.both) // 2), (self.settings.batch_size,), generator=self.prober)
        rows = self.both[older.to(self.device)]
        logits = self.student(self.lesson.x[rows]).float()
        apart = self._gradient(_apart(logits, self.lesson.knowledge[rows], self.lesson.outcomes[rows]).mean())
        direction = self._metric() * apart
        slopes = self._slopes(direction, _apart)
        bias = self._by_group(slopes) / (apart @ direction).clamp(min=_TINY)
        return bias.tolist(), self._design_effect(slopes)

    def _nearer(self) -> list[float]:
        """By group, how much nearer to the held-out outcomes' pull knowledge's is at the neighbour temperature."""
        assert self.judged is not None
        rows = torch.randint(len(self.judged), (self.settings.batch_size,), generator=self.prober).to(self.device)
        signals = self._signals(self.judged, rows, self.judged.x[rows])
        reference, shared = knowledge_loss(signals.logits, signals.knowledge, 1.0), self.last_layer.shared(signals)
        now, beside = (
            self._gradient(self._pull(signals, reference, temperature, Balance(len(self.shares)), shared))
            for temperature in (self.controller.temperature, self.controller.neighbour())
        )
        metric = self._metric()
        length = (now @ (metric * now)).clamp(min=_TINY)
        slopes = self._by_group(self._slopes(metric * (beside - now), _outcomes_alone))
        nearer: list[float] = ((2 * slopes - beside @ (metric * beside) + length) / length).tolist()
        return nearer

    def _gradient(self, loss: Tensor) -> Tensor:
        """Of the student's parameters, flat ``[P]``."""
        parameters = list(self.student.parameters())
        found = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        pairs = zip(parameters, found, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])

    def _metric(self) -> Tensor:
        """What the optimiser multiplies a gradient by, up to a factor, ``[P]``."""
        moments = [self.optimiser.state[p]["exp_avg_sq"].flatten() for p in self.student.parameters()]
        root = torch.cat(moments).sqrt()
        metric: Tensor = root.mean() / (root + _DAMPING * root.mean() + _TINY)
        return metric

    def _slopes(self, direction: Tensor, loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:
        """Derivative of ``loss`` on held-out rows with both along ``direction`` ``[P]``, by row ``[n]``."""
        assert self.judged is not None
        length = direction.norm()
        if length == 0:
            return torch.zeros(len(self.judged), device=self.device)
        parameters = list(self.student.parameters())
        parts = direction.split([parameter.numel() for parameter in parameters])
        losses: list[Tensor] = []
        with torch.no_grad():
            before = [parameter.clone() for parameter in parameters]
            step = _STEP * torch.cat([weights.flatten() for weights in before]).norm() / length
            for sign in (1, -1):
                for parameter, weights, part in zip(parameters, before, parts, strict=True):
                    parameter.copy_(weights + sign * step * part.view_as(weights))
                logits = self.student(self.judged.x).float()
                losses.append(loss(logits, self.judged.knowledge, self.judged.outcomes))
            for parameter, weights in zip(parameters, before, strict=True):
                parameter.copy_(weights)
        slopes: Tensor = (losses[0] - losses[1]) / (2 * step)
        return slopes

    def _by_group(self, slopes: Tensor) -> Tensor:
        """Means by group, ``[G]``."""
        return torch.zeros_like(self.group_rows).index_add_(0, self.groups, slopes) / self.group_rows

    def _design_effect(self, slopes: Tensor) -> float:
        """Variance of the mean with rows in groups, over that with rows alone; at least 1 (Kish 1965, §5.4)."""
        rows, groups = len(slopes), len(self.group_rows)
        if groups in (1, rows):
            return 1.0
        centred = slopes - slopes.mean()
        sums = torch.zeros_like(self.group_rows).index_add_(0, self.groups, centred)
        together = sums.square().sum() * groups / (groups - 1)
        return max(1.0, float(together / centred.square().sum().clamp(min=_TINY)))

    def _calibrate(self) -> float:
        if not self._adaptive or self.judged is None:
            return 1.0
        judged = self.judged.to(torch.device("cpu"))
        power, reason = calibration(judged.knowledge, judged.outcomes, self.groups.cpu())
        self.controller.changes.append(Change(step=0, setting="calibration", value=power, reason=reason))
        return power

    def _watch_held_out(self) -> dict[str, float]:
        """Losses of the averaged student on held-out rows; remembers the best epoch."""
        if self.held_out is None:
            return {}
        module = self.average.module.eval()
        loss, losses = held_out_loss(module, self.held_out, self.settings.outcome_weight)
        if loss < self.best_loss:
            self.best_loss, self.best_epoch = loss, self.epoch
            self.best = {name: value.clone() for name, value in module.state_dict().items()}
        return losses

    def finish(self) -> Course:
        self.last_layer.close()
        self.student.load_state_dict(self.best if self.stopped else self.average.module.state_dict())
        self.student.eval()
        return Course(
            history=tuple(self.history), changes=tuple(self.controller.changes), steps=self.step, stopped=self.stopped
        )

    # ----------------------------------------------------------------- to disk and back

    @cached_property
    def key(self) -> str:
        """What must be the same for a checkpoint to be this training's."""
        parts = [self.lesson] + ([self.held_out] if self.held_out else [])
        digest = hashlib.sha256(f"{self.settings.model_dump_json()} {self.epochs}".encode())
        for part in parts:
            for tensor in (part.x, part.knowledge, part.outcomes):
                digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        moments, groups = checkpoint_file.optimiser_state(self.optimiser)
        tensors = {
            **checkpoint_file.prefixed("student", self.student),
            **checkpoint_file.prefixed("average", self.average),
            **checkpoint_file.prefixed("last_layer", self.last_layer),
            **{f"best.{name}": tensor for name, tensor in self.best.items()},
            **moments,
            "balance": self.balance.squared,
            "generator": self.generator.get_state(),
            "prober": self.prober.get_state(),
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
        """Go on from ``path`` if it is a checkpoint of this very training."""
        found = checkpoint_file.read(path, self.key)
        if found is None:
            return
        tensors, state = found
        for name, module in (("student", self.student), ("average", self.average), ("last_layer", self.last_layer)):
            module.load_state_dict(checkpoint_file.below(name, tensors))
        self.best = {name: value.to(self.device) for name, value in checkpoint_file.below("best", tensors).items()}
        checkpoint_file.load_optimiser(self.optimiser, tensors, state["groups"])
        self.schedule.load_state_dict(state["schedule"])
        self.balance.squared = tensors["balance"]
        self.generator.set_state(tensors["generator"])
        self.prober.set_state(tensors["prober"])
        torch.set_rng_state(tensors["dropout"])
        self.controller.restore(state["controller"])
        self.step, self.epoch, self.best_epoch = state["step"], state["epoch"], state["best_epoch"]
        self.best_loss, self.history = state["best_loss"], state["history"]


class _LastLayer(nn.Module):
    """The student's last hidden layer, listened to where a loss asks for it, and its way to the teacher's features."""

    def __init__(self, student: nn.Module, lesson: Lesson, settings: Distillation) -> None:
        super().__init__()
        self.hidden: Tensor | None = None
        self.hints = any(loss.needs_features for loss in settings.losses)
        self.projection: nn.Linear | None = None
        self.hook: Any = None
        if lesson.features is None:
            return
        last = [module for module in student.modules() if isinstance(module, nn.Linear)][-1]
        self.hook = last.register_forward_pre_hook(self._listen)
        if self.hints:
            width = lesson.features.shape[1]
            self.projection = nn.Linear(last.in_features, width, device=last.weight.device)

    def _listen(self, layer: nn.Module, given: tuple[Tensor, ...]) -> None:
        self.hidden = given[0]

    def signals(self, logits: Tensor, knowledge: Tensor, outcomes: Tensor, features: Tensor | None) -> Signals:
        hidden = None if self.hidden is None else self.hidden.float()
        projected = None if self.projection is None or hidden is None else self.projection(hidden)
        return Signals(logits, knowledge, outcomes, hidden, projected, features)

    def shared(self, signals: Signals) -> Tensor:
        """What all terms depend on: the hidden layer where features are matched, else the logits."""
        return signals.logits if self.hidden is None else self.hidden

    def close(self) -> None:
        if self.hook is not None:
            self.hook.remove()


def _apart(logits: Tensor, knowledge: Tensor, outcomes: Tensor) -> Tensor:
    """Cross-entropy with outcomes minus that with knowledge, by row ``[n]``: its gradient is where the two part.

    What the student itself has learned or memorised cancels out at the logits: ``(q − y) − (q − p) = p − y``.
    """
    said = torch.log_softmax(logits, dim=1)
    return (knowledge * said).sum(dim=1) + functional.nll_loss(said, outcomes, reduction="none")


def _outcomes_alone(logits: Tensor, knowledge: Tensor, outcomes: Tensor) -> Tensor:
    return functional.cross_entropy(logits, outcomes, reduction="none")


def held_out_loss(student: nn.Module, rows: Lesson, weight: float) -> tuple[float, dict[str, float]]:
    """``(1 − w) KL to the teacher + w cross-entropy with outcomes`` on rows that nobody learned from, and the two.

    Each is a mean over the rows that have it; where none has, it is left out.
    """
    taught, lived, losses, loss = rows.taught, rows.lived, {}, 0.0
    with torch.no_grad():
        logits = torch.cat([student(part).float() for part in rows.x.split(_AT_ONCE)])
        if taught.any():
            found = float(knowledge_loss(logits[taught], rows.knowledge[taught], 1.0))
            losses["held_out_knowledge_loss"], loss = found, loss + (1 - weight) * found
        if lived.any():
            found = float(outcome_loss(logits[lived], rows.outcomes[lived]))
            losses["held_out_outcome_loss"], loss = found, loss + weight * found
    return loss, losses


def outcomes_part(lesson: Lesson, weight: float) -> float:
    """What part of the pull outcomes get, in 0 … 1, where a row's outcome weighs ``weight`` and its knowledge the rest.

    ``weight`` itself where every row has both; the fewer rows have an outcome, the less. Few outcomes at full weight
    would be learned by heart.
    """
    lived, taught = weight * int(lesson.lived.sum()), (1 - weight) * int(lesson.taught.sum())
    return lived / (lived + taught) if lived + taught else weight


def _with_both(lesson: Lesson) -> Lesson:
    """Its rows with knowledge and outcome: all that can tell how far the two are from each other."""
    return lesson.take((lesson.taught & lesson.lived).nonzero().squeeze(1))


def _softened(lesson: Lesson, power: float) -> Lesson:
    """The same rows with their knowledge to the power ``1 / power``."""
    softened = copy(lesson)
    softened.knowledge = soften(lesson.knowledge, power)
    return softened


def _groups(held_out: Lesson) -> tuple[Tensor, Tensor]:
    """Group number of each held-out row, ``[n]``, and rows by group, float ``[G]``."""
    if held_out.groups is None:
        each = torch.arange(len(held_out), device=held_out.x.device)
        return each, torch.ones_like(each, dtype=torch.float32)
    _, numbers, counts = held_out.groups.unique(return_inverse=True, return_counts=True)
    return numbers, counts.to(torch.float32)


def _moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Exponential moving average whose decay grows to ``decay``, so that a short training is not held at its start."""

    def average(slow: Tensor, fast: Tensor, updates: Tensor | int) -> Tensor:
        return slow.lerp(fast, 1 - min(decay, (int(updates) + 1) / (int(updates) + 11)))

    return average


def _hide(rows: Tensor, lesson: Lesson, rate: float, generator: torch.Generator) -> Tensor:
    """``rows`` (a copy already) with a share ``rate`` of category codes and tokens made unknown; padding stays."""
    if rate > 0 and lesson.numbers < rows.shape[1]:
        codes = rows[:, lesson.numbers :]
        hidden = (torch.rand(codes.shape, generator=generator) < rate).to(rows.device)
        unknown = torch.zeros(codes.shape[1], device=rows.device)
        if lesson.tokens:
            hidden[:, -lesson.tokens :] &= codes[:, -lesson.tokens :] != PADDING
            unknown[-lesson.tokens :] = UNKNOWN
        rows[:, lesson.numbers :] = torch.where(hidden, unknown, codes)
    return rows


def student_probabilities(student: nn.Module, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Encoded rows to float64 ``[n, K]``."""
    with torch.no_grad(), limit_threads(student):
        logits = torch.cat([student(part) for part in torch.from_numpy(x).split(_AT_ONCE)])
        probabilities: np.ndarray[Any, Any] = torch.softmax(logits.double(), dim=1).numpy()
    return probabilities


def validation_days(times: pd.Series, every: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows are kept to choose among variants: those of every ``every``-th day (UTC), the same days always."""
    days = times.dt.tz_convert("UTC").dt.as_unit("s").astype("int64") // 86_400
    chosen: np.ndarray[Any, np.dtype[np.bool_]] = (days % every == 0).to_numpy()
    return chosen


def held_out_units(
    times: pd.Series, cluster: timedelta
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, np.dtype[np.bool_]]]:
    """Groups of rows kept back from the student, and which of them the controller may see: the newer half.

    The older half is for comparing students. A group is a day (UTC), or, with fewer than eight days, a stretch of
    ``cluster``.

    :param times: when the rows kept back were observed.
    :return: group numbers int64 ``[n]``, and bool ``[n]``.
    """
    seconds = times.dt.tz_convert("UTC").dt.as_unit("s").astype("int64").to_numpy()
    groups = seconds // 86_400
    if len(np.unique(groups)) < 8:
        groups = seconds // max(1, int(cluster.total_seconds()))
    found, numbers = np.unique(groups, return_inverse=True)
    return numbers.astype(np.int64), numbers >= len(found) // 2
