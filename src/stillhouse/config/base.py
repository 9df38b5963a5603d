"""What every section of the agent file is made of: lengths of time, names, and a frozen base that knows its keys."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

__all__ = ["TAGS", "Action", "Duration", "Length", "Name", "Section", "Target", "parse_duration", "tagged"]

_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def _duration(value: Any) -> Any:
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", value.strip())):
        try:
            return timedelta(**{_UNITS[match[2]]: float(match[1])})
        except OverflowError:
            raise ValueError(f"{value!r} is longer than any calendar") from None
    if isinstance(value, timedelta):
        return value
    raise ValueError(f"{value!r} is not a duration: write a number and s, m, h, d or w, such as '12h' or '7d'")


def parse_duration(text: str | timedelta) -> timedelta:
    """``"7d"`` as a length of time: a number and s, m, h, d or w, more than nothing.

    :raises ValueError: on anything else.
    """
    return _not_zero(_duration(text))


def _not_zero(value: timedelta) -> timedelta:
    if not value:
        raise ValueError("must be longer than nothing")
    return value


def _speakable(value: str) -> str:
    if not value.strip():
        raise ValueError("must have at least one visible character")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{value!r} holds half a surrogate pair, which is no Unicode text") from None
    return value


Duration = Annotated[timedelta, BeforeValidator(_duration)]
Length = Annotated[Duration, AfterValidator(_not_zero)]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
Action = Annotated[str, AfterValidator(_speakable)]
"""Any text: actions name no files and no metrics, and stand as they are in tables, JSON and ``p_<action>``."""
Target = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_][\w.]*$")]


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, numbers finite."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


TAGS = ("type", "method", "kind")
"""Keys that say which member of a union a section is."""


def tagged(union: object) -> dict[str, type[Section]]:
    """The sections of a tagged union by their tags, the values of ``kind``, ``type`` or ``method``, in their order.

    :raises TypeError: if a member has none of these keys with one fixed value.
    """
    if get_origin(union) is Annotated:
        union = get_args(union)[0]
    return {_tag(section): section for section in get_args(union)}


def _tag(section: type[Section]) -> str:
    for key in TAGS:
        field = section.model_fields.get(key)
        if field is not None and get_origin(field.annotation) is Literal:
            return str(get_args(field.annotation)[0])
    raise TypeError(f"{section.__name__} has no key `kind`, `type` or `method` with one fixed value")
