"""A student in the folder of its refresh."""

from __future__ import annotations

import json
from pathlib import Path

from stillhouse.distill import students
from stillhouse.distill.grow import Columns
from stillhouse.distill.history import TrainingHistory
from stillhouse.distill.memory import Memory
from stillhouse.records import Refresh, StudentRef

__all__ = ["course_of", "save_student", "student_columns"]


def save_student(
    job: Refresh, student: students.AnyStudent, columns: Columns, memory: Memory, course: TrainingHistory, rows: int
) -> StudentRef:
    """Write a student with all that a later update goes on from.

    :param rows: that it has learned from.
    """
    folder = Path(job.folder) / "student"
    students.save(student, folder)
    (folder / "columns.json").write_text(json.dumps(columns), encoding="utf-8")
    (folder / "course.json").write_text(course.model_dump_json(), encoding="utf-8")
    memory.save(folder)
    size = (folder / "student.safetensors").stat().st_size
    return StudentRef(folder=str(folder), bytes=size, rows=rows, history=course.history)


def student_columns(student: StudentRef) -> Columns:
    """Its input columns."""
    columns: Columns = json.loads((Path(student.folder) / "columns.json").read_text(encoding="utf-8"))
    return columns


def course_of(student: StudentRef) -> TrainingHistory:
    """How its training went."""
    return TrainingHistory.model_validate_json((Path(student.folder) / "course.json").read_text(encoding="utf-8"))
