"""A Python class as a teacher: fitted on outcomes, or asked as it is (``learns: false``)."""

from __future__ import annotations

from typing import Any

from stillhouse.config import PythonTeacher
from stillhouse.errors import PartError
from stillhouse.parts import ReadyTeacher, Teacher, resolve
from stillhouse.teachers import ready
from stillhouse.teachers.answers import in_process
from stillhouse.teachers.kinds import (
    Member,
    MemberContext,
    answer_version,
    describe,
    new_teacher,
    open_member,
    require_version,
)


@new_teacher.register
def _(section: PythonTeacher, where: str) -> Teacher:
    made: Teacher = _made(section, where, "fit", "predict_proba", "save", "load")
    return made


@describe.register
def _(section: PythonTeacher, context: MemberContext) -> dict[str, Any]:
    name = context.leaf.name
    made = _made_ready(section, context.where)
    stored = context.folder / name if ready.keep(made, context.folder / name, context.where) else None
    part: dict[str, Any] = {}
    if elsewhere := int(getattr(made, "bytes_elsewhere", 0)):
        part["bytes_elsewhere"] = elsewhere
    if stored is not None:
        part["folder"] = name
    return part | {"version": answer_version(context, ready.fingerprint(made, stored, context.where))}


@open_member.register
def _(section: PythonTeacher, context: MemberContext, part: dict[str, Any]) -> Member:
    leaf, actions, where = context.leaf, context.config.actions, context.where
    made: Any
    kind = resolve(section.target, where=f"{context.config.file}: teachers")
    if section.is_fitted:
        made = ready.read(kind, context.folder / part["folder"], where)
        answer = in_process(leaf.name, actions, made.predict_proba, timeout=section.call_timeout)
        return Member(leaf.name, leaf.share, answer, part=lambda: made)
    stored = context.folder / part["folder"] if "folder" in part else None
    made = ready.read(kind, stored, where) if stored else _made_ready(section, where)
    require_version(context, part, answer_version(context, ready.fingerprint(made, stored, where)))
    features = getattr(made, "features", None) if section.features else None
    answer = in_process(leaf.name, actions, made.predict_proba, features, section.call_timeout)
    return Member(leaf.name, leaf.share, answer, part["version"], part=lambda: made, features=section.features)


def _made(section: PythonTeacher, where: str, *methods: str) -> Any:
    """An object of the class, with these methods."""
    kind = resolve(section.target, where=where)
    try:
        made = kind(**section.settings)
    except Exception as error:
        raise PartError(
            f"{where}: {section.target} cannot be made with settings {section.settings}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if lacking := [name for name in methods if not callable(getattr(made, name, None))]:
        protocol = "Teacher" if section.learns else "ReadyTeacher"
        raise PartError(f"{where}: {section.target} lacks the methods {lacking} of stillhouse.parts.{protocol}")
    return made


def _made_ready(section: PythonTeacher, where: str) -> ReadyTeacher:
    """A teacher that does not learn; what is saved must be readable, too."""
    made: ReadyTeacher = _made(section, where, "predict_proba", *(["features"] if section.features else []))
    if hasattr(made, "save") and not callable(getattr(made, "load", None)):
        raise PartError(f"{where}: {section.target} has `save` but no `load`: give it both, or neither")
    return made
