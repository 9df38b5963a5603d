"""A Python class as a teacher: fitted on labels, or used as it is (``learns: false``)."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stillhouse.config import AgentConfig, PythonTeacher
from stillhouse.errors import PartError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.parts import ReadyTeacher, Teacher, resolve
from stillhouse.teachers.answers import wrap_predict
from stillhouse.teachers.kinds import (
    Member,
    MemberContext,
    answer_version,
    current_version,
    describe,
    new_teacher,
    open_member,
    require_version,
)
from stillhouse.teachers.persistence import fingerprint, load_teacher, save_teacher
from stillhouse.teachers.user_code import call_user_code


@new_teacher.register
def _(section: PythonTeacher, where: str, config: AgentConfig) -> Teacher:
    teacher: Teacher = _make_object(section, where, config, "fit", "predict_proba", "save", "load")
    return teacher


@describe.register
def _(section: PythonTeacher, context: MemberContext) -> dict[str, Any]:
    name = context.leaf.name
    teacher = _make_ready_teacher(section, context)
    folder = context.folder / name if save_teacher(teacher, context.folder / name, context.where) else None
    entry: dict[str, Any] = {}
    if bytes_elsewhere := int(getattr(teacher, "bytes_elsewhere", 0)):
        entry["bytes_elsewhere"] = bytes_elsewhere
    if folder is not None:
        entry["folder"] = name
    return entry | {"version": answer_version(context, fingerprint(teacher, folder, context.where))}


@current_version.register
def _(section: PythonTeacher, context: MemberContext) -> str | None:
    teacher, where = _make_ready_teacher(section, context), context.where
    with TemporaryDirectory() as fresh:
        folder = Path(fresh) / context.leaf.name
        needs_files = not hasattr(teacher, "fingerprint") and save_teacher(teacher, folder, where)
        return answer_version(context, fingerprint(teacher, folder if needs_files else None, where))


@open_member.register
def _(section: PythonTeacher, context: MemberContext, entry: dict[str, Any]) -> Member:
    leaf, config, where = context.leaf, context.config, context.where
    teacher: Any
    cls = resolve(section.target, where=f"{config.file}: teachers", folder=config.folder)
    if section.is_fitted:
        teacher = load_teacher(cls, context.folder / entry["folder"], where)
        answer = wrap_predict(leaf.name, config.actions, teacher.predict_proba, timeout=section.call_timeout)
        return Member(leaf.name, leaf.share, answer, user_object=lambda: teacher)
    folder = context.folder / entry["folder"] if "folder" in entry else None
    if folder is not None:
        teacher = load_teacher(cls, folder, where)
        _offer_knowledge_base(teacher, context)
    else:
        teacher = _make_ready_teacher(section, context)
    require_version(context, entry, answer_version(context, fingerprint(teacher, folder, where)))
    features = getattr(teacher, "features", None) if section.features else None
    return Member(
        leaf.name,
        leaf.share,
        wrap_predict(leaf.name, config.actions, teacher.predict_proba, features, section.call_timeout),
        entry["version"],
        user_object=lambda: teacher,
        has_features=section.features,
    )


def _make_object(section: PythonTeacher, where: str, config: AgentConfig, *methods: str) -> Any:
    """An object of the section's class.

    :raises PartError: if its constructor fails, or it lacks one of ``methods``.
    """
    cls = resolve(section.target, where=where, folder=config.folder)
    try:
        instance = cls(**section.settings)
    except Exception as error:
        raise PartError(
            f"{where}: {section.target} cannot be made with settings {section.settings}: "
            f"{type(error).__name__}: {error}"
        ) from error
    if missing := [name for name in methods if not callable(getattr(instance, name, None))]:
        protocol = "Teacher" if section.learns else "ReadyTeacher"
        raise PartError(f"{where}: {section.target} lacks the methods {missing} of stillhouse.parts.{protocol}")
    return instance


def _make_ready_teacher(section: PythonTeacher, context: MemberContext) -> ReadyTeacher:
    """A teacher that is not fitted, as it is at the moment of the context.

    :raises PartError: as :func:`_make_object`, or if it has ``save`` without ``load``.
    """
    where, moment = context.where, context.moment
    methods = ["predict_proba", *(["features"] if section.features else [])]
    teacher: ReadyTeacher = _make_object(section, where, context.config, *methods)
    if hasattr(teacher, "save") and not callable(getattr(teacher, "load", None)):
        raise PartError(f"{where}: {section.target} has `save` but no `load`: give it both, or neither")
    at = getattr(teacher, "at", None)
    if at is not None and moment is not None:
        teacher = call_user_code(f"{where}: at()", section.call_timeout, at, moment.now, moment.training_end)
        if not isinstance(teacher, ReadyTeacher):
            raise PartError(f"{where}: at() gives a {type(teacher).__name__}, not a teacher with `predict_proba`")
    _offer_knowledge_base(teacher, context)
    return teacher


def _offer_knowledge_base(teacher: ReadyTeacher, context: MemberContext) -> None:
    """Give the agent's own knowledge base to a teacher that uses it."""
    if use := getattr(teacher, "use_knowledge_base", None):
        what = f"{context.where}: use_knowledge_base()"
        call_user_code(what, context.leaf.teacher.call_timeout, use, KnowledgeBase(context.config))
