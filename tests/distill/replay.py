"""Replayed rows as a memory holds them, for the tests of updates."""

from __future__ import annotations

from copy import copy

import torch
from torch import nn

from stillhouse.distill.training_set import TrainingSet

__all__ = ["with_student_probs"]


def with_student_probs(student: nn.Module, rows: TrainingSet) -> TrainingSet:
    """``rows`` with the probabilities of ``student`` in place of the teacher's."""
    replayed, training = copy(rows), student.training
    with torch.no_grad():
        replayed.teacher_probs = torch.softmax(student.eval()(rows.x), dim=1)
    student.train(training)
    return replayed
