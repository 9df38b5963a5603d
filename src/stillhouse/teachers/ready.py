"""A Python object that is asked as it is: rules, or a model that is ready once it is made (``learns: false``)."""

from __future__ import annotations

import hashlib
import inspect
import sys
from pathlib import Path
from typing import Any

from stillhouse.errors import PartError
from stillhouse.parts import ReadyTeacher
from stillhouse.teachers.calling import call

__all__ = ["content_hash", "fingerprint", "keep", "read"]


def keep(teacher: ReadyTeacher, folder: Path, where: str) -> bool:
    """Let ``teacher`` write itself to ``folder``, where it can be saved at all."""
    save = getattr(teacher, "save", None)
    if save is None:
        return False
    folder.mkdir(parents=True)
    call(f"{where}: saving it", None, save, folder)
    return True


def read(kind: Any, folder: Path, where: str) -> ReadyTeacher:
    """The teacher of class ``kind`` that was saved to ``folder``.

    :raises PartError: if the class cannot read it.
    """
    teacher: ReadyTeacher = call(f"{where}: loading it from {folder}", None, kind.load, folder)
    return teacher


def fingerprint(teacher: ReadyTeacher, folder: Path | None, where: str) -> str:
    """What stands for all that ``teacher`` knows beyond its settings.

    Its own ``fingerprint()`` where it has one; else the content of the files that it has saved to ``folder``; else the
    source of the module that defines it, for the knowledge of rules is their code.

    :raises PartError: if its own is no text.
    """
    own = getattr(teacher, "fingerprint", None)
    if own is not None:
        said = call(f"{where}: fingerprint()", None, own)
        if not isinstance(said, str) or not said:
            raise PartError(f"{where}: fingerprint() gives {said!r}; it must be a text that changes with what it says")
        return said
    if folder is not None:
        return content_hash(folder)
    try:
        return content_hash(None, inspect.getsource(sys.modules[type(teacher).__module__]))
    except (KeyError, OSError, TypeError) as error:
        raise PartError(
            f"{where}: {type(teacher).__name__} has neither `fingerprint` nor `save`, and its source cannot be read "
            f"({error}): give it a method `fingerprint() -> str` that changes with what it says"
        ) from error


def content_hash(folder: Path | None, *said: str) -> str:
    """Twelve hexadecimal characters that depend on ``said`` and on every file in ``folder``."""
    digest = hashlib.sha256(b"\0".join(text.encode() for text in said))
    if folder is not None:
        for file in sorted(each for each in folder.rglob("*") if each.is_file()):
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]
