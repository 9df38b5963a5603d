"""From an agent file and its training rows to an untrained student, and to disk and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from stillhouse.config import AgentConfig, CategoryColumn
from stillhouse.distill.students.columns import StudentModule
from stillhouse.distill.students.kinds import make, read_back, text_columns
from stillhouse.distill.students.tabular import TabularStudent
from stillhouse.distill.students.text import TextStudent
from stillhouse.parts import TextEncoderState

__all__ = ["AnyStudent", "Student", "columns_of", "load", "new_student", "save"]

Student = TabularStudent | TextStudent
"""Ours, whose parts are known: they can grow and be updated."""

AnyStudent = StudentModule


def columns_of(
    config: AgentConfig, rows: pd.DataFrame, initial: TextEncoderState | None = None
) -> list[dict[str, Any]]:
    """The student's input as :func:`stillhouse.variant.encode` wants it: numbers, categories, then texts.

    A category's values are those of the contract, or, where it allows any, those that ``rows`` have. A text's tokens
    are grown from ``rows``, or cut from the vocabulary of ``initial`` by what is frequent in them. The same rows give
    the same columns.

    :raises ConfigError: if the student is to begin like a teacher, and there is no ``initial``.
    """
    columns: list[dict[str, Any]] = [{"name": name, "type": "number"} for name in config.observations.numbers]
    for name in config.observations.categories:
        column = config.observations.columns[name]
        assert isinstance(column, CategoryColumn)  # `categories` selects by type
        values = column.values if column.values is not None else sorted(rows[name].dropna().unique())
        columns.append({"name": name, "type": "category", "values": list(values)})
    if config.student.reads_text:
        columns += text_columns(config.student, config, rows, initial)
    return columns


def new_student(
    config: AgentConfig, columns: list[dict[str, Any]], x: np.ndarray[Any, Any], initial: TextEncoderState | None = None
) -> StudentModule:
    """An untrained student for encoded training rows ``x``, the same for the same seed.

    :param initial: a teacher's text encoder to begin like; used where ``student.initialise`` is ``teacher``.
    :raises ConfigError: if the student is to begin like a teacher, and there is no ``initial``.
    :raises PartError: if a student of the user's own cannot be made.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.distillation.seed)
        return make(config.student, config, columns, x, initial)


def save(student: StudentModule, folder: Path) -> None:
    """Write ``student.safetensors`` and ``student.json`` (no pickle)."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in student.state_dict().items()}, folder / "student.safetensors"
    )
    (folder / "student.json").write_text(json.dumps(student.spec, indent=1), encoding="utf-8")


def load(folder: Path, config: AgentConfig | None = None) -> StudentModule:
    """Read what :func:`save` wrote, with ``columns.json`` beside it for a student of the user's own.

    :param config: of the agent, whose file alone says what Python makes such a student.
    :raises PartError: if it is of the user's own, and the agent file describes another student now.
    """
    student = read_back(json.loads((folder / "student.json").read_text(encoding="utf-8")), folder, config)
    student.load_state_dict(load_file(folder / "student.safetensors"))
    return student.eval()
