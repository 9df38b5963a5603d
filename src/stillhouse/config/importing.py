"""The section ``importing``: which columns of the files of ``stillhouse import`` hold which values."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import BeforeValidator, Field, field_validator

from stillhouse.config.base import Action, Section
from stillhouse.values import text_of

__all__ = ["ImportedDecision", "ImportedOutcome", "ImportedTime", "Importing"]


_EXAMPLE_TIME = datetime(2013, 6, 15, 13, 45, 30, 123456, UTC)


class ImportedTime(Section):
    """A column of times."""

    column: str
    format: str = Field(
        default="iso", description="iso; s, ms or us since 1970; or a pattern of Python's strptime: '%d.%m.%Y %H:%M'"
    )
    timezone: str | None = Field(
        default=None,
        description="time zone of times without one, such as America/New_York; null: all times have a zone",
    )

    @field_validator("format")
    @classmethod
    def _check_format(cls, text: str) -> str:
        if text in ("iso", "s", "ms", "us"):
            return text
        if reason := _pattern_error(text):
            raise ValueError(f"{text!r} must be iso, s, ms, us, or a pattern such as '%d.%m.%Y %H:%M': {reason}")
        return text

    @field_validator("timezone")
    @classmethod
    def _check_timezone(cls, name: str | None) -> str | None:
        try:
            return name if name is None else ZoneInfo(name).key
        except (ValueError, OSError, LookupError):
            raise ValueError(f"{name!r} is not a time zone: write one such as UTC or America/New_York") from None


_YEAR_DIRECTIVES = ("%Y", "%y", "%G", "%c", "%x")


def _pattern_error(pattern: str) -> str:
    """Why times cannot be read with this pattern of strptime; empty if they can."""
    directives = re.findall(r"%.", pattern)
    if not directives:
        return "it has no directive"
    if "%Z" in directives:
        return "%Z cannot be read, since names of time zones are ambiguous: name the zone in `timezone`"
    if not any(year in directives for year in _YEAR_DIRECTIVES):
        return "it has no year"
    if "%I" in directives and "%p" not in directives:
        return "hours of %I need %p"
    import pandas as pd  # takes a second to import, and few agent files need it

    try:  # parse an example in the same way as the import does
        pd.to_datetime(pd.Series([_EXAMPLE_TIME.strftime(pattern)]), format=pattern)
    except (ValueError, re.error, NotImplementedError, TypeError) as error:
        return f"it cannot be read ({error})"
    return ""


def _to_section(value: Any) -> Any:
    return {"column": value} if isinstance(value, str) else value


Time = Annotated[ImportedTime, BeforeValidator(_to_section)]


class ImportedDecision(Section):
    """Columns of decisions that another system made."""

    action: str = Field(description="column of the decided action; without a value there was no decision")
    probabilities: dict[Action, str] | None = Field(
        default=None, description="for each action, the column of its probability"
    )
    decided_at: Time | None = Field(
        default=None, description="when the decision was made: a column, or a time section; absent: observed_at"
    )
    decider: str | None = Field(default=None, description="column of who decided; absent: elsewhere")
    version: str | None = Field(default=None, description="column of the version that decided; absent: elsewhere")


class ImportedOutcome(Section):
    """Columns of outcomes, the true actions."""

    action: str = Field(description="column of the true action; without a value the outcome is not known")
    known_at: Time | None = Field(
        default=None,
        description="when the outcome became known: a column, or a time section; absent: observed_at plus "
        "`outcomes.delay`",
    )


def _keys_to_text(actions: Any) -> Any:
    """Keys such as 1 and true as text, in the form in which the tables hold them."""
    return {text_of(word): action for word, action in actions.items()} if isinstance(actions, dict) else actions


class Importing(Section):
    """How `stillhouse import` reads CSV, JSON lines and Parquet."""

    observation_id: str | None = Field(
        default=None, description="column of the ids; absent: ids are made as `made_of` says"
    )
    made_of: Literal["content", "line"] = Field(
        default="content",
        description="what an id is made of; content: features and time; line: the file's content and the line number",
    )
    observed_at: Time = Field(
        description="when the row was observed: a column, or a section with `column`, `format`, `timezone`"
    )
    columns: dict[str, str] = Field(
        default_factory=dict, description="column of a feature, where the file uses another name"
    )
    actions: Annotated[dict[str, Action], BeforeValidator(_keys_to_text)] = Field(
        default_factory=dict, description="for each word for an action in the file, the action"
    )
    decision: ImportedDecision | None = None
    outcome: ImportedOutcome | None = None
    delimiter: str = Field(default=",", min_length=1, max_length=1, description="delimiter of CSV files")
    missing: tuple[str, ...] = Field(default=("",), description="texts that stand for a missing value")
