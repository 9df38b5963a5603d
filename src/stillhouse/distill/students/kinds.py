"""What each kind of student does: the dispatchers on its section.

The file ``students/<kind>.py`` registers its section here. All of them are imported at the end of this module, so that
nothing depends on who imports what first.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig, AnyStudent
from stillhouse.distill.students.columns import StudentModule
from stillhouse.errors import PartError
from stillhouse.parts import TextEncoderState, import_kinds

__all__ = ["InputColumns", "make", "read_back", "reads", "text_columns"]

InputColumns = list[dict[str, Any]]
"""The student's input as :func:`stillhouse.variant.encode` wants it."""


@singledispatch
def make(
    section: object,
    config: AgentConfig,
    columns: InputColumns,
    x: np.ndarray[Any, Any],
    initial: TextEncoderState | None,
) -> StudentModule:
    """An untrained student for encoded training rows ``x``, ``[n, D]``. The caller has seeded torch.

    :param initial: a teacher's text encoder to begin like, for kinds that can.
    """
    raise _unknown(section)


@singledispatch
def text_columns(
    section: object, config: AgentConfig, rows: pd.DataFrame, initial: TextEncoderState | None
) -> InputColumns:
    """How the text columns are encoded; registered by kinds whose ``reads_text`` may be true."""
    raise _unknown(section)


Reader = Callable[[dict[str, Any], Path, AgentConfig | None], StudentModule]
"""``spec``, the folder that it lies in, the agent file → a module of the same shape, whose weights are read later."""

_READERS: dict[str, Reader] = {}


def reads(kind: str) -> Callable[[Reader], Reader]:
    """Register how a stored student of this kind is made again."""

    def register(reader: Reader) -> Reader:
        _READERS[kind] = reader
        return reader

    return register


def read_back(spec: dict[str, Any], folder: Path, config: AgentConfig | None) -> StudentModule:
    """A module of the shape that ``spec`` describes.

    :raises PartError: if this version knows no such kind, or as its reader.
    """
    kind = spec["kind"]
    if kind not in _READERS:
        raise PartError(f"{folder} holds a student of kind {kind!r}; this version reads {', '.join(sorted(_READERS))}")
    return _READERS[kind](spec, folder, config)


def _unknown(section: object) -> TypeError:
    kind = type(section).__name__
    return TypeError(f"no student of kind {getattr(section, 'kind', '?')!r}: {kind} is not registered in its file")


import_kinds("stillhouse.distill.students", AnyStudent)
