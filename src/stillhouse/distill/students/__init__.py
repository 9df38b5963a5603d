"""Students of every kind: made for an agent, written to disk and read back."""

from stillhouse.distill.students.columns import InputWidths, input_widths, quantile_edges
from stillhouse.distill.students.factory import AnyStudent, Student, columns_of, load, new_student, save
from stillhouse.distill.students.module import CustomStudent
from stillhouse.distill.students.tabular import TabularStudent
from stillhouse.distill.students.text import TextStudent

__all__ = [
    "AnyStudent",
    "CustomStudent",
    "InputWidths",
    "Student",
    "TabularStudent",
    "TextStudent",
    "columns_of",
    "input_widths",
    "load",
    "new_student",
    "quantile_edges",
    "save",
]
