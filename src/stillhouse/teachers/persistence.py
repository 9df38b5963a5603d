"""Save, load and fingerprint a teacher object that is not fitted (``learns: false``)."""

from __future__ import annotations

import hashlib
import inspect
import sys
from pathlib import Path
from typing import Any

from stillhouse.errors import PartError
from stillhouse.parts import ReadyTeacher
from stillhouse.teachers.user_code import call_user_code

__all__ = ["content_hash", "fingerprint", "load_teacher", "save_teacher"]


def save_teacher(teacher: ReadyTeacher, folder: Path, where: str) -> bool:
    """Let the teacher write itself to ``folder``; False if it has no method ``save``.

    :param where: the teacher as an error names it.
    """
    save = getattr(teacher, "save", None)
    if save is None:
        return False
    folder.mkdir(parents=True)
    call_user_code(f"{where}: saving it", None, save, folder)
    return True


def load_teacher(cls: Any, folder: Path, where: str) -> ReadyTeacher:
    """The teacher of class ``cls`` that was saved to ``folder``.

    :raises PartError: if the class cannot read it.
    """
    teacher: ReadyTeacher = call_user_code(f"{where}: loading it from {folder}", None, cls.load, folder)
    return teacher


def fingerprint(teacher: ReadyTeacher, folder: Path | None, where: str) -> str:
    """A text that changes whenever the teacher's answers may change for another reason than its settings.

    It is what the teacher's own ``fingerprint()`` returns, if there is one; else the hash of the files saved to
    ``folder``; else the hash of the source of the module that defines the class, as the code of rules decides their
    answers.

    :raises PartError: if ``fingerprint()`` returns no text, or there is neither a fingerprint, a folder nor a source.
    """
    own = getattr(teacher, "fingerprint", None)
    if own is not None:
        text = call_user_code(f"{where}: fingerprint()", None, own)
        if not isinstance(text, str) or not text:
            raise PartError(
                f"{where}: fingerprint() gives {text!r}; it must be a text that changes with the teacher's answers"
            )
        return text
    if folder is not None:
        return content_hash(folder)
    try:
        return content_hash(None, inspect.getsource(sys.modules[type(teacher).__module__]))
    except (KeyError, OSError, TypeError) as error:
        raise PartError(
            f"{where}: {type(teacher).__name__} has neither `fingerprint` nor `save`, and its source cannot be read "
            f"({error}): give it a method `fingerprint() -> str` that changes with its answers"
        ) from error


def content_hash(folder: Path | None, *texts: str) -> str:
    """Twelve hexadecimal characters of the SHA-256 of ``texts`` and of every file in ``folder``.

    >>> content_hash(None, "some source")
    'a211a4917c72'
    """
    digest = hashlib.sha256(b"\0".join(text.encode() for text in texts))
    if folder is not None:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]
