"""What the figures of a verdict were computed from: rows at table versions, model files, settings."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, JsonValue

from stillhouse.records.base import Record
from stillhouse.records.windows import Window

__all__ = ["AnswersSource", "ModelSource", "Sources", "WindowSource"]


class WindowSource(Record):
    """The rows of one window, as they were read for a verdict."""

    window: Window = Field(description="with the table versions that it was read at")
    rows: int = Field(ge=0, description="rows that were used")
    observations: str = Field(description="SHA-256 of their observation ids and content keys, in order")
    labels: str = Field(description="SHA-256 of their observation ids and labels, in order")


class ModelSource(Record):
    """The files of one model."""

    role: Literal["challenger", "champion", "anchor", "never_refreshed", "earlier"]
    name: str = Field(description="registered version such as flights@7; of a challenger the name of its variant")
    files: str = Field(description="SHA-256 of the paths and digests of its files, the ones that are signed")


class AnswersSource(Record):
    """The stored teacher probabilities of one window."""

    teacher: str = Field(description="version of the teacher")
    window: str = Field(description="name of the window")
    rows: int = Field(ge=0, description="rows with an answer")
    answers: str = Field(description="SHA-256 of their content keys and probabilities, in order")


class Sources(Record):
    """Everything that is needed to compute the figures of a verdict again."""

    windows: tuple[WindowSource, ...] = ()
    models: tuple[ModelSource, ...] = ()
    answers: tuple[AnswersSource, ...] = ()
    settings: dict[str, JsonValue] = Field(
        default_factory=dict, description="sections of the agent file that the figures depend on; defaults left out"
    )

    def window(self, name: str) -> WindowSource | None:
        """The source of the window ``name``; None if there is none."""
        return next((source for source in self.windows if source.window.name == name), None)

    def model(self, role: str) -> ModelSource | None:
        """The first model with that role; None if there is none."""
        return next((source for source in self.models if source.role == role), None)
