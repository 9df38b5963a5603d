"""Plain training with stillhouse's steps, optimiser, schedule and averaging, and a loss with fixed settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from benchmarks.distillation_peers.losses import Loss
from stillhouse.config import Distillation
from stillhouse.distill.training_set import TrainingSet

__all__ = ["train"]


def train(
    student: nn.Module,
    training_set: TrainingSet,
    settings: Distillation,
    loss: Loss,
    temperature: float,
    weight: float,
    steps: int,
) -> None:
    """Train ``student`` in place for ``steps`` steps, which need not be whole passes."""
    generator = torch.Generator().manual_seed(settings.seed)
    teacher = training_set.teacher_probs.clamp(min=1e-6).log()
    optimiser = torch.optim.AdamW(student.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, settings.learning_rate, total_steps=steps, pct_start=0.15)
    average = AveragedModel(
        student, avg_fn=lambda slow, fast, n: slow.lerp(fast, 1 - min(settings.averaging, (int(n) + 1) / (int(n) + 11)))
    )
    student.train()
    for batch in itertools.islice(_batches(len(training_set), settings.batch_size, generator), steps):
        optimiser.zero_grad(set_to_none=True)
        loss(student(training_set.x[batch]), teacher[batch], training_set.labels[batch], temperature, weight).backward()
        optimiser.step()
        schedule.step()
        average.update_parameters(student)
    student.load_state_dict(average.module.state_dict())
    student.eval()


def _batches(rows: int, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Endless batches of row indices; each pass has its own order."""
    while True:
        yield from torch.randperm(rows, generator=generator).split(size)
