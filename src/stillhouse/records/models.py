"""Where models are kept."""

from __future__ import annotations

from pydantic import Field

from stillhouse.records.base import Record
from stillhouse.records.windows import Window

__all__ = ["ModelRef", "StudentRef", "TeacherRef"]


class ModelRef(Record):
    """A model where MLflow keeps it."""

    name: str = Field(description="registered or logged model name")
    version: str | None = Field(default=None, description="registry version; None while only logged")
    uri: str
    run_id: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.version}" if self.version else self.name


class TeacherRef(Record):
    """The agent's teachers as one: where their files lie and which outcomes they have seen."""

    version: str = Field(description="content hash of all that decides what they say")
    folder: str
    fitted: Window | None = Field(description="whose outcomes they have seen; None: none of them can be fitted")
    features: str | None = Field(default=None, description="version of the one whose features are kept; None: none")
    bytes: int = Field(ge=0)
    model: ModelRef | None = None


class StudentRef(Record):
    """A distilled student where a refresh keeps it: weights, its input columns, and how the training went."""

    folder: str
    bytes: int = Field(ge=0)
    rows: int = Field(ge=0, description="training rows")
    history: tuple[dict[str, float], ...] = Field(description="mean losses of each epoch")
