"""The evaluation of an agent's models on rows from files."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from stillhouse.records.base import Fraction, Record

__all__ = ["EvaluatedModel", "Evaluation", "IntervalEstimate"]


class IntervalEstimate(Record):
    """A value with its two-sided confidence interval."""

    value: float
    low: float | None = Field(default=None, description="None: there are too few rows or clusters for an interval")
    high: float | None = Field(default=None, description="None as for low")


class EvaluatedModel(Record):
    """One model on the rows that it was scored on."""

    role: Literal["champion", "previous", "version", "teacher"]
    name: str = Field(description="registered version such as flights@7; for the teacher, that of its MLflow model")
    rows: int = Field(ge=1, description="rows scored; a teacher may not have answered all")
    quality: IntervalEstimate = Field(description="the measure that the agent file names, in its unit and direction")
    accuracy: Fraction
    difference: IntervalEstimate | None = Field(
        default=None,
        description="to the champion on the same rows, in the unit of the measure and oriented so that more is better; "
        "None: it is the champion, or there are too few rows",
    )


class Evaluation(Record):
    """An agent's models on rows with outcomes that came from files."""

    agent: str
    files: tuple[str, ...] = Field(description="names of the files")
    measure: str = Field(description="name of the measure")
    unit: str = Field(default="", description="unit of the measure")
    better: Literal["higher", "lower"]
    confidence: float = Field(gt=0.5, lt=1, description="of the two-sided intervals")
    rows_read: int = Field(ge=0, description="non-empty lines of the files, without the header of a CSV")
    unusable: int = Field(ge=0, description="of these, lines that cannot be used")
    without_outcome: int = Field(ge=0, description="of these, rows without an outcome")
    duplicates: int = Field(ge=0, description="of these, repetitions of an earlier row")
    trained_on: int = Field(ge=0, description="of these, rows left out because a model was trained on their time")
    rows: int = Field(ge=1, description="rows that the models were scored on")
    models: tuple[EvaluatedModel, ...]
    problems: tuple[str, ...] = Field(default=(), description="the first unusable lines: file:line: reason")
    notes: tuple[str, ...] = Field(default=(), description="what to know about the figures")
