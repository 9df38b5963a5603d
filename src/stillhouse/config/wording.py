"""How a mistake in the agent file is worded: values as their writer knows them, and what was probably meant."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable
from datetime import date
from typing import TypeVar

__all__ = ["as_written", "nearest", "repeated"]


_Value = TypeVar("_Value")


_MOST_SHOWN = 200  # characters


def as_written(value: object) -> str:
    """A value as its writer would recognise it."""
    match value:
        case None:
            return "nothing"
        case bool():
            return str(value).lower()
        case date():
            return str(value)
        case float() if value.is_integer():
            return f"{value:.0f}"
        case _:
            return text if len(text := repr(value)) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}…"


def nearest(word: object, known: Iterable[str], otherwise: str) -> str:
    known = list(known)
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"{otherwise}: {', '.join(known)}"


def repeated(values: Iterable[_Value]) -> list[_Value]:
    return [value for value, count in Counter(values).items() if count > 1]
