"""References to models, teachers and students: where their files are."""

from __future__ import annotations

from pydantic import Field

from stillhouse.records.base import Record
from stillhouse.records.windows import Window

__all__ = ["ModelRef", "StudentRef", "TeacherRef"]


class ModelRef(Record):
    """A model in MLflow."""

    name: str = Field(description="registered or logged model name")
    version: str | None = Field(default=None, description="registry version; None: logged, not registered")
    uri: str
    run_id: str | None = None

    def __str__(self) -> str:
        return f"{self.name}@{self.version}" if self.version else self.name


class TeacherRef(Record):
    """The agent's teachers together: the folder of their files, and the outcomes that they were fitted on."""

    version: str = Field(description="content hash of everything that their answers depend on")
    folder: str
    fitted: Window | None = Field(
        description="window whose outcomes they were fitted on; None: none of them can be fitted"
    )
    features: str | None = Field(
        default=None, description="version of the teacher whose features are stored; None: none"
    )
    bytes: int = Field(ge=0)
    model: ModelRef | None = None


class StudentRef(Record):
    """A distilled student in the folder of its refresh: its weights, its input columns and its training history."""

    folder: str
    bytes: int = Field(ge=0)
    rows: int = Field(ge=0, description="training rows")
    history: tuple[dict[str, float], ...] = Field(description="mean losses by epoch")
