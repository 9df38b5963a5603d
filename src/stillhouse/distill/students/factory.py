"""Makes an untrained student from an agent file and training rows; writes students to disk and reads them."""

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
from stillhouse.distill.students.kinds import build_from_spec, make_student, text_columns
from stillhouse.distill.students.tabular import TabularStudent
from stillhouse.distill.students.text import TextStudent
from stillhouse.parts import TextEncoderState

__all__ = ["AnyStudent", "Student", "columns_of", "load", "new_student", "save"]

Student = TabularStudent | TextStudent
"""The built-in kinds that can be extended and updated."""

AnyStudent = StudentModule


def columns_of(
    config: AgentConfig, rows: pd.DataFrame, initial: TextEncoderState | None = None
) -> list[dict[str, Any]]:
    """The student's input columns, as :func:`stillhouse.variant.encode` takes them: numbers, categories, then texts.

    A category's values are those of the contract, or, where it allows any, those in ``rows``. A text's tokens are made
    from ``rows``, or are those tokens of ``initial`` that are frequent in them. The same rows give the same columns.

    :raises ConfigError: if the student is initialised from a teacher, and there is no ``initial``.
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
    """An untrained student for encoded training rows ``x``; the same seed gives the same weights.

    :param initial: a teacher's text encoder; used where ``student.initialise`` is ``teacher``.
    :raises ConfigError: if the student is initialised from a teacher, and there is no ``initial``.
    :raises PartError: if a custom student cannot be made.
    """
    with torch.random.fork_rng():
        torch.manual_seed(config.distillation.seed)
        return make_student(config.student, config, columns, x, initial)


def save(student: StudentModule, folder: Path) -> None:
    """Write ``student.safetensors`` and ``student.json`` (no pickle)."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.contiguous() for name, tensor in student.state_dict().items()}, folder / "student.safetensors"
    )
    (folder / "student.json").write_text(json.dumps(student.spec, indent=1), encoding="utf-8")


def load(folder: Path, config: AgentConfig | None = None) -> StudentModule:
    """Read the student that :func:`save` wrote; a custom one needs ``columns.json`` in the folder too.

    :param config: needed for a custom student: only the agent file says which Python code makes it.
    :raises PartError: if it is a custom student, and the agent file describes another one now.
    """
    student = build_from_spec(json.loads((folder / "student.json").read_text(encoding="utf-8")), folder, config)
    student.load_state_dict(load_file(folder / "student.safetensors"))
    return student.eval()
