"""The section ``importing``: where logs that exist already have what the knowledge base keeps."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, field_validator

from stillhouse.config.base import Name, Section
from stillhouse.values import text_of

__all__ = ["ImportedDecision", "ImportedOutcome", "ImportedTime", "Importing"]


_SOME_MOMENT = datetime(2013, 6, 15, 13, 45, 30, 123456, UTC)


class ImportedTime(Section):
    """A column of moments."""

    column: str
    format: str = Field(
        default="iso", description="iso; s, ms or us since 1970; or a pattern of Python's strptime: '%d.%m.%Y %H:%M'"
    )
    timezone: str | None = Field(
        default=None, description="of moments that do not say theirs, such as America/New_York; null: all of them do"
    )

    @field_validator("format")
    @classmethod
    def _known(cls, text: str) -> str:
        if text in ("iso", "s", "ms", "us"):
            return text
        if why := _unreadable(text):
            raise ValueError(f"{text!r} must be iso, s, ms, us, or a pattern such as '%d.%m.%Y %H:%M': {why}")
        return text

    @field_validator("timezone")
    @classmethod
    def _there(cls, name: str | None) -> str | None:
        try:
            return name if name is None else ZoneInfo(name).key
        except (ValueError, OSError, LookupError):
            raise ValueError(f"{name!r} is no time zone: write one such as UTC or America/New_York") from None


_YEARS = ("%Y", "%y", "%G", "%c", "%x")


def _unreadable(pattern: str) -> str:
    """Why moments of this pattern of strptime cannot be read; empty if they can."""
    directives = re.findall(r"%.", pattern)
    if not directives:
        return "it has no directive"
    if "%Z" in directives:
        return "%Z cannot be read, since names of time zones are ambiguous: name the zone in `timezone`"
    if not any(year in directives for year in _YEARS):
        return "it has no year"
    if "%I" in directives and "%p" not in directives:
        return "hours of %I need %p"
    import pandas as pd  # takes a second, and hardly any agent file asks for it

    try:  # as it will be read
        pd.to_datetime(pd.Series([_SOME_MOMENT.strftime(pattern)]), format=pattern)
    except (ValueError, re.error, NotImplementedError, TypeError) as error:
        return f"it cannot be read ({error})"
    return ""


def _named(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


Time = Annotated[ImportedTime, BeforeValidator(_named)]


class ImportedDecision(Section):
    """What somebody else decided."""

    action: str = Field(description="column; without a value there was no decision")
    probabilities: dict[Name, str] | None = Field(default=None, description="column by action, all of them")
    decided_at: Time | None = Field(default=None, description="a column, or a section; absent: observed_at")
    decider: str | None = Field(default=None, description="column that says who; absent: elsewhere")
    version: str | None = Field(default=None, description="column that says which version; absent: elsewhere")


class ImportedOutcome(Section):
    """What turned out to be true."""

    action: str = Field(description="column; without a value the outcome is not known")
    known_at: Time | None = Field(
        default=None, description="a column, or a section; absent: observed_at and `outcomes.delay`"
    )


def _written(words: Any) -> Any:
    """Words as files have them: 1 and true are written as everywhere."""
    return {text_of(word): action for word, action in words.items()} if isinstance(words, dict) else words


class Importing(Section):
    """How `stillhouse import` reads CSV, JSON lines and Parquet."""

    observation_id: str | None = Field(default=None, description="column; absent: made as `made_of` says")
    made_of: Literal["content", "line"] = Field(
        default="content", description="an id: of features and time, or of the file's content and the line"
    )
    observed_at: Time = Field(description="a column, or a section with `column`, `format`, `timezone`")
    columns: dict[str, str] = Field(default_factory=dict, description="the file's name of a feature, where it differs")
    actions: Annotated[dict[str, Name], BeforeValidator(_written)] = Field(
        default_factory=dict, description="an action by the file's word for it"
    )
    decision: ImportedDecision | None = None
    outcome: ImportedOutcome | None = None
    delimiter: str = Field(default=",", min_length=1, max_length=1, description="of CSV")
    missing: tuple[str, ...] = Field(default=("",), description="texts that stand for no value")
