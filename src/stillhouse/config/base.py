"""Building blocks of the agent file's sections: durations, names, and a frozen base model that refuses unknown keys."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

__all__ = [
    "TAGS",
    "Action",
    "Duration",
    "Name",
    "PositiveDuration",
    "Section",
    "Target",
    "format_duration",
    "parse_duration",
    "tagged",
]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _to_timedelta(value: Any) -> Any:
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", value.strip())):
        try:
            return timedelta(**{_UNITS[match[2]]: float(match[1])})
        except OverflowError:
            raise ValueError(f"{value!r} is longer than any calendar") from None
    if isinstance(value, timedelta):
        return value
    raise ValueError(f"{value!r} is not a duration: write a number and s, m, h, d or w, such as '12h' or '7d'")


def parse_duration(text: str | timedelta) -> timedelta:
    """Parse a duration longer than zero: a number and one of the units s, m, h, d and w.

    >>> parse_duration("36h")
    datetime.timedelta(days=1, seconds=43200)

    :raises ValueError: if the text is not such a duration.
    """
    return _require_positive(_to_timedelta(text))


def _require_positive(value: timedelta) -> timedelta:
    if not value:
        raise ValueError("must be longer than zero")
    return value


def format_duration(value: timedelta) -> str:
    """A duration as the agent file writes it.

    >>> format_duration(timedelta(days=3)), format_duration(timedelta(hours=36)), format_duration(timedelta(seconds=90))
    ('3d', '36h', '90s')
    """
    for unit, length in (("d", 86_400), ("h", 3600), ("m", 60)):
        if value and value % timedelta(seconds=length) == timedelta(0):
            return f"{value // timedelta(seconds=length)}{unit}"
    return f"{value.total_seconds():g}s"


def _require_visible_text(value: str) -> str:
    if not value.strip():
        raise ValueError("must have at least one visible character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{value!r} contains half of a surrogate pair, which is not valid Unicode text") from None
    return value


Duration = Annotated[timedelta, BeforeValidator(_to_timedelta)]
PositiveDuration = Annotated[Duration, AfterValidator(_require_positive)]
NAME_PATTERN = r"^[a-z][a-z0-9_-]{0,62}$"
"""Of an agent and of a teacher: a lower-case letter, then lower-case letters, digits, _ or -."""

Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Action = Annotated[str, AfterValidator(_require_visible_text)]
"""Any text. No file and no metric is named after an action; tables, JSON and ``p_<action>`` hold it unchanged."""
Target = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]


class Section(BaseModel):
    """Base of every section: frozen, unknown keys are refused, numbers are finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


TAGS = ("type", "method", "kind")
"""Keys whose value says which member of a union a section is."""


def tagged(union: object) -> dict[str, type[Section]]:
    """The sections of a tagged union by tag (the value of ``kind``, ``type`` or ``method``), in the union's order.

    >>> from stillhouse.config import AnyStudent
    >>> list(tagged(AnyStudent))
    ['tabular', 'text', 'module']

    :raises TypeError: if a member has none of these keys with one fixed value.
    """
    if get_origin(union) is Annotated:
        union = get_args(union)[0]
    return {_tag_of(section): section for section in get_args(union)}


def _tag_of(section: type[Section]) -> str:
    for key in TAGS:
        field = section.model_fields.get(key)
        if field is not None and get_origin(field.annotation) is Literal:
            return str(get_args(field.annotation)[0])
    raise TypeError(f"{section.__name__} has no key `kind`, `type` or `method` with one fixed value")
