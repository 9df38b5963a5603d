"""Save and load a student in the folder of its refresh."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from stillhouse.distill import students
from stillhouse.distill.grow import Columns
from stillhouse.distill.history import TrainingHistory
from stillhouse.distill.memory import Memory
from stillhouse.records import Refresh, StudentRef

__all__ = ["read_columns", "read_history", "save_student"]

log = logging.getLogger(__name__)


def save_student(
    job: Refresh,
    student: students.AnyStudent,
    columns: Columns,
    memory: Memory,
    history: TrainingHistory,
    rows: int,
    *,
    folder: str = "",
) -> StudentRef:
    """Save a student with everything that a later update needs.

    :param rows: number of rows that it was trained on.
    :param folder: below the folder of the refresh, for a student beside the challenger's.
    """
    target = Path(job.folder) / folder / "student"
    students.save(student, target)
    (target / "columns.json").write_text(json.dumps(columns), encoding="utf-8")
    (target / "course.json").write_text(history.model_dump_json(), encoding="utf-8")
    memory.save(target)
    size = (target / "student.safetensors").stat().st_size
    log.info("student: trained on %s rows in %s steps; %s bytes", f"{rows:,}", f"{history.steps:,}", f"{size:,}")
    return StudentRef(folder=str(target), bytes=size, rows=rows, history=history.history)


def read_columns(student: StudentRef) -> Columns:
    """The input columns of a saved student."""
    columns: Columns = json.loads((Path(student.folder) / "columns.json").read_text(encoding="utf-8"))
    return columns


def read_history(student: StudentRef) -> TrainingHistory:
    """The training history of a saved student."""
    return TrainingHistory.model_validate_json((Path(student.folder) / "course.json").read_text(encoding="utf-8"))
