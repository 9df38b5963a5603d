"""The dispatchers of the kinds of students: the type of the section ``student`` selects the functions.

The file ``students/<kind>.py`` registers its functions here. All these files are imported at the end of this module, so
the order of imports elsewhere does not matter.
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

__all__ = ["InputColumns", "build_from_spec", "make_student", "register_reader", "text_columns"]

InputColumns = list[dict[str, Any]]
"""The student's input columns, as :func:`stillhouse.variant.encode` takes them."""


@singledispatch
def make_student(
    section: object,
    config: AgentConfig,
    columns: InputColumns,
    x: np.ndarray[Any, Any],
    initial: TextEncoderState | None,
) -> StudentModule:
    """An untrained student for encoded training rows ``x``, ``[n, D]``. The caller seeds torch.

    :param initial: a teacher's text encoder to initialise from, for kinds that can.
    """
    raise _unknown(section)


@singledispatch
def text_columns(
    section: object, config: AgentConfig, rows: pd.DataFrame, initial: TextEncoderState | None
) -> InputColumns:
    """The text columns with their vocabularies; registered by kinds whose ``reads_text`` may be true."""
    raise _unknown(section)


Reader = Callable[[dict[str, Any], Path, AgentConfig | None], StudentModule]
"""``spec``, its folder, the agent file → a module of the same shape, whose weights are loaded later."""

_READERS: dict[str, Reader] = {}


def register_reader(kind: str) -> Callable[[Reader], Reader]:
    """Register the function that builds a stored student of this kind."""

    def register(reader: Reader) -> Reader:
        _READERS[kind] = reader
        return reader

    return register


def build_from_spec(spec: dict[str, Any], folder: Path, config: AgentConfig | None) -> StudentModule:
    """A module of the shape that ``spec`` describes.

    :raises PartError: if this version does not know the kind, or for a reason of its reader.
    """
    kind = spec["kind"]
    if kind not in _READERS:
        raise PartError(f"{folder} holds a student of kind {kind!r}; this version reads {', '.join(sorted(_READERS))}")
    return _READERS[kind](spec, folder, config)


def _unknown(section: object) -> TypeError:
    kind = type(section).__name__
    return TypeError(f"no student of kind {getattr(section, 'kind', '?')!r}: {kind} is not registered in its file")


import_kinds("stillhouse.distill.students", AnyStudent)
