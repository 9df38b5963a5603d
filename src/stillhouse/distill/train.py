"""A student learns from knowledge and outcomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from stillhouse.config import AgentConfig, CategoryColumn, Distillation
from stillhouse.distill.losses import knowledge_loss, outcome_loss
from stillhouse.distill.student import Student, quantile_edges

__all__ = ["Lesson", "columns_of", "distil", "new_student", "student_probabilities", "validation_days"]

Progress = Callable[[int, Mapping[str, float]], None]


class Lesson:
    """What a student learns from: encoded rows, what the teacher said, and what turned out to be true.

    :param x: float32 ``[n, F + C]``, see :func:`stillhouse.variant.encode`.
    :param knowledge: probabilities ``[n, K]``.
    :param outcomes: action indices ``[n]``.
    :param numbers: F, how many of the columns are numbers; None: all of them.
    """

    def __init__(
        self,
        x: np.ndarray[Any, Any],
        knowledge: np.ndarray[Any, Any],
        outcomes: np.ndarray[Any, Any],
        numbers: int | None = None,
    ) -> None:
        self.numbers = x.shape[1] if numbers is None else numbers
        self.x = torch.from_numpy(np.array(x, dtype=np.float32))
        self.knowledge = torch.from_numpy(np.array(knowledge, dtype=np.float32))
        self.outcomes = torch.from_numpy(np.array(outcomes, dtype=np.int64))

    def __len__(self) -> int:
        return len(self.x)


def columns_of(config: AgentConfig, rows: pd.DataFrame) -> list[dict[str, Any]]:
    """The student's input as :func:`stillhouse.variant.encode` wants it: numbers, then categories with values.

    A category's values are those of the contract, or, where it allows any, those that ``rows`` have.
    """
    columns: list[dict[str, Any]] = [{"name": name, "type": "number"} for name in config.observations.numbers]
    for name in config.observations.categories:
        column = config.observations.columns[name]
        assert isinstance(column, CategoryColumn)  # `categories` selects by type
        values = column.values if column.values is not None else sorted(rows[name].dropna().unique())
        columns.append({"name": name, "type": "category", "values": list(values)})
    return columns


def new_student(config: AgentConfig, columns: list[dict[str, Any]], x: np.ndarray[Any, Any]) -> Student:
    """An untrained student for encoded training rows ``x``, the same for the same seed."""
    numbers = len(config.observations.numbers)
    with torch.random.fork_rng():
        torch.manual_seed(config.distillation.seed)
        return Student(
            quantile_edges(x[:, :numbers], config.student.bins),
            [len(column["values"]) for column in columns[numbers:]],
            actions=len(config.actions),
            widths=config.student.widths,
            embedding=config.student.embedding,
            dropout=config.student.dropout,
        )


def distil(
    student: nn.Module,
    lesson: Lesson,
    settings: Distillation,
    *,
    epochs: int | None = None,
    progress: Progress = lambda epoch, losses: None,
) -> list[dict[str, float]]:
    """Train ``student`` in place; returns each epoch's mean losses.

    The loss is ``(1 − w) T² KL(teacher ‖ student) + w CE(outcomes)`` with ``w = outcome_weight``; AdamW under a
    one-cycle learning rate. The student ends as the exponential moving average of its weights (Polyak and Juditsky
    1992; Tarvainen and Valpola 2017, §2), which steadies a small model. A share ``unknown_rate`` of the category
    codes is hidden at each step, so that code 0 learns to stand for the unknown. The same seed, the same student.

    :param epochs: instead of the settings' (a short recovery).
    """
    epochs = settings.epochs if epochs is None else epochs
    if epochs == 0:
        return []
    device = next(student.parameters()).device
    x, knowledge, outcomes = (t.to(device) for t in (lesson.x, lesson.knowledge, lesson.outcomes))
    generator = torch.Generator().manual_seed(settings.seed)
    steps = -(-len(lesson) // settings.batch_size)
    optimiser = torch.optim.AdamW(student.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=settings.learning_rate, total_steps=epochs * steps, pct_start=0.15
    )
    average = AveragedModel(student, avg_fn=_moving_average(settings.averaging))
    history = []
    student.train()
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)  # dropout
        for epoch in range(1, epochs + 1):
            totals = torch.zeros(2)
            for batch in torch.randperm(len(lesson), generator=generator).to(device).split(settings.batch_size):
                rows = _hide_categories(x[batch], lesson.numbers, settings.unknown_rate, generator)
                logits = student(rows)
                taught = knowledge_loss(logits, knowledge[batch], settings.temperature)
                lived = outcome_loss(logits, outcomes[batch])
                optimiser.zero_grad(set_to_none=True)
                ((1 - settings.outcome_weight) * taught + settings.outcome_weight * lived).backward()
                optimiser.step()
                schedule.step()
                average.update_parameters(student)
                totals += torch.stack([taught.detach(), lived.detach()]).cpu() * len(batch)
            means = (totals / len(lesson)).tolist()
            history.append({"knowledge_loss": means[0], "outcome_loss": means[1]})
            progress(epoch, history[-1])
    student.load_state_dict(average.module.state_dict())
    student.eval()
    return history


def _moving_average(decay: float) -> Callable[[Tensor, Tensor, Tensor | int], Tensor]:
    """Exponential moving average whose decay grows to ``decay``, so that a short training is not held at its start."""

    def average(slow: Tensor, fast: Tensor, updates: Tensor | int) -> Tensor:
        return slow.lerp(fast, 1 - min(decay, (int(updates) + 1) / (int(updates) + 11)))

    return average


def _hide_categories(rows: Tensor, numbers: int, rate: float, generator: torch.Generator) -> Tensor:
    """``rows`` (a copy already) with a share ``rate`` of the category codes set to 0, the unknown."""
    if rate > 0 and numbers < rows.shape[1]:
        codes = rows[:, numbers:]
        codes[(torch.rand(codes.shape, generator=generator) < rate).to(rows.device)] = 0.0
    return rows


def student_probabilities(student: nn.Module, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Encoded rows to float64 ``[n, K]``."""
    with torch.no_grad():
        probabilities: np.ndarray[Any, Any] = torch.softmax(student(torch.from_numpy(x)).double(), dim=1).numpy()
    return probabilities


def validation_days(times: pd.Series, every: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows are kept to choose among variants: those of every ``every``-th day (UTC), the same days always."""
    days = times.dt.tz_convert("UTC").dt.as_unit("s").astype("int64") // 86_400
    chosen: np.ndarray[Any, np.dtype[np.bool_]] = (days % every == 0).to_numpy()
    return chosen
