"""Students of every kind: made for an agent, written to disk and read back."""

from stillhouse.distill.students.columns import Blocks, blocks, quantile_edges
from stillhouse.distill.students.making import AnyStudent, Student, columns_of, load, new_student, save
from stillhouse.distill.students.module import OwnStudent
from stillhouse.distill.students.tabular import TabularStudent
from stillhouse.distill.students.text import TextStudent

__all__ = [
    "AnyStudent",
    "Blocks",
    "OwnStudent",
    "Student",
    "TabularStudent",
    "TextStudent",
    "blocks",
    "columns_of",
    "load",
    "new_student",
    "quantile_edges",
    "save",
]
