"""How a refresh goes on from the champion's student: what that has learned, what is new since, and what it forgets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from copy import deepcopy
from datetime import datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig, ModuleStudent
from stillhouse.distill import memory, online, students
from stillhouse.distill.controller import Course
from stillhouse.distill.grow import Columns, extended, grown, require_alike, transplanted
from stillhouse.distill.memory import Memory, remembered
from stillhouse.distill.online import Probe, Updated
from stillhouse.distill.students import columns_of, new_student
from stillhouse.distill.train import Lesson, held_out_units, student_probabilities, validation_days
from stillhouse.drift.evidence import null_mean
from stillhouse.errors import DataError, RegistryError, StillhouseError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import Baseline, Record, Refresh, StudentRef, TeacherRef, Window
from stillhouse.registry import Registry
from stillhouse.variant import encode
from tasks import choosing
from tasks.common import engine_task, knowledge_base, labelled, registry, training_rows

__all__ = [
    "Predecessor",
    "asked_about",
    "log_update",
    "news_and_memory",
    "plan_update",
    "predecessor",
    "save_student",
    "update_student",
    "warm_from",
    "warm_start",
]

_SPANS = 4  # of the time that is remembered: forgetting is measured on each
_SPAN_ROWS = 1000  # at most, of each


class Predecessor(NamedTuple):
    """The champion's student, with all that is needed to go on from it."""

    student: students.Student
    columns: Columns
    actions: tuple[str, ...]
    memory: Memory
    baseline: Baseline


class UpdateReport(Record):
    """How an update went, and whether it has repaid its cost."""

    since: datetime
    new_rows: int
    replayed_rows: int
    updated: Updated
    probe: Probe


def predecessor(job: Refresh) -> Predecessor:
    """The champion's student.

    :raises RegistryError: if there is no champion, or its student was logged without its weights.
    """
    models = registry(job.agent)
    if isinstance(knowledge_base(job.agent).config.student, ModuleStudent):
        raise RegistryError("a student of kind 'module' is always trained from the beginning")
    champion = models.champion()
    if champion is None:
        raise RegistryError(f"agent {job.agent!r} has no champion to go on from")
    folder = models.student_files(champion)
    kept = memory.read(folder) if folder else None
    if folder is None or kept is None:
        raise RegistryError(f"{champion} was logged without the weights and the memory of its student")
    columns = json.loads((folder / "columns.json").read_text(encoding="utf-8"))
    return Predecessor(students.load(folder), columns, kept.actions, kept, models.baseline(champion))


@engine_task(task_run_name="plan update")
def plan_update(job: Refresh) -> Refresh | None:
    """The job as an update on what is new since the champion learned; None, with the reason logged, if it cannot be.

    The teacher is kept, unless the agent file has other actions by now: then only a new one knows them.
    """
    base = knowledge_base(job.agent)
    try:
        old = predecessor(job)
        since = old.baseline.train.end
        teacher = "keep" if old.actions == base.config.actions else "fit"
        planned = job.model_copy(update={"teacher": teacher, "since": since})
        rows = training_rows(base, planned.news, job.as_of)
        if len(rows) < base.config.update.min_rows:
            raise DataError(
                f"{len(rows)} rows with outcomes are new since {since:%Y-%m-%d %H:%M}, before the test window, and "
                f"`update.min_rows` is {base.config.update.min_rows}"
            )
        settings = _unaided(base.config)
        fresh = columns_of(settings, rows)
        extended(old.columns, fresh)
        require_alike(old.student, new_student(settings, fresh, encode(rows.head(1), fresh)))
    except StillhouseError as error:
        registry(job.agent).tag(job.run_id, update_not_made=str(error))
        return None
    registry(job.agent).log_window(job.run_id, planned.news, rows, "new since the champion")
    return planned


@engine_task(task_run_name="update student")
def update_student(job: Refresh, teacher: TeacherRef) -> StudentRef | None:
    """The champion's student with the new knowledge; None, with the reason logged, if that does not repay its cost.

    Judged on new rows that were kept back, never on the test window: where a watch would still call the distance to the
    teacher harm, a new student is worth its price.
    """
    base, old = knowledge_base(job.agent), predecessor(job)
    settings = base.config
    models = registry(job.agent)
    rows, kept_back = _news(base, job, teacher)
    said = base.knowledge(rows, teacher.version)
    spoken = int((~np.isnan(said[:, 0])).sum())
    if spoken < (least := settings.update.min_rows // 2):
        few = f"the teacher has spoken about {spoken} new rows to learn from, and {least} are needed"
        models.tag(job.run_id, update_not_made=few)
        return None
    columns = extended(old.columns, columns_of(_unaided(settings), rows))
    new = _lesson(rows, said, columns)
    shares = new.knowledge[new.taught].mean(dim=0).numpy()
    student = grown(
        old.student, old.columns, columns, old.actions, settings.actions, new.x.numpy(), shares
    )  # fmt: skip
    before = deepcopy(student)
    _, replay = _replay(base, job, old, columns)
    updated = online.update(
        student, new, replay, settings.distillation,
        steps=settings.update.steps, least_old_share=settings.update.least_old_share,
        stands_for=old.memory.seen, past=_past(base, job, old, columns),
    )  # fmt: skip
    tried = _lesson(kept_back, base.knowledge(kept_back, teacher.version), columns)
    harmless = null_mean(old.baseline.losses["disagreement"], settings.watch.tolerance)
    report = UpdateReport(
        since=job.news.start, new_rows=len(new), replayed_rows=len(replay), updated=updated,
        probe=online.probe(before, student, tried, harmless),
    )  # fmt: skip
    models.log_record(job.run_id, report, "update.json")
    if not report.probe.repaid:
        models.tag(job.run_id, update_not_made=str(report.probe))
        return None
    course = Course(history=updated.history, changes=(), steps=updated.steps, stopped=False)
    kept = remembered(
        rows, student_probabilities(student, new.x.numpy()), settings.actions, settings.update.memory, older=old.memory
    )
    made = save_student(job, student, columns, kept, course, rows=len(rows))
    _write(job, report)
    return made


def asked_about(job: Refresh, teacher: TeacherRef) -> Refresh:
    """The job on what is new alone: all that its teacher need speak about.

    A teacher that is fitted anew has seen the outcomes of the whole training window, and is cross-fitted on it.
    """
    anew = job.teacher == "fit" and teacher.fitted is not None
    return job if anew else job.model_copy(update={"train": job.news})


def warm_from(job: Refresh) -> Predecessor | None:
    """What a warm training begins with; None where none was asked for or, with the reason logged, where none can be."""
    if job.mode != "redistil_warm":
        return None
    base = knowledge_base(job.agent)
    try:
        old = predecessor(job)
        extended(old.columns, columns_of(_unaided(base.config), training_rows(base, job.train, job.as_of)))
    except StillhouseError as error:
        registry(job.agent).tag(job.run_id, warm_start_not_made=str(error))
        return None
    return old


def warm_start(
    old: Predecessor, student: students.Student, columns: Columns, actions: Sequence[str], x: np.ndarray
) -> students.Student:
    """``student``, untrained, with the champion's weights where their shapes allow it."""
    alike = np.full(len(actions), 1 / len(actions))
    return transplanted(student, grown(old.student, old.columns, columns, old.actions, actions, x, alike))


def news_and_memory(job: Refresh, teacher: TeacherRef, columns: Columns) -> tuple[Lesson, Lesson | None]:
    """What an update has learned from, new rows and remembered ones together, and the new rows kept back, if any."""
    base, old = knowledge_base(job.agent), predecessor(job)
    rows, kept_back = _news(base, job, teacher)
    older, replay = _replay(base, job, old, columns)
    together = pd.concat([older, rows], ignore_index=True)
    said = np.concatenate([replay.knowledge.numpy(), base.knowledge(rows, teacher.version)])
    held_out = None
    if len(kept_back) >= 2:
        groups, _ = held_out_units(kept_back["observed_at"], base.config.promotion.cluster)
        held_out = _lesson(kept_back, base.knowledge(kept_back, teacher.version), columns, groups)
    return _lesson(together, said, columns), held_out


def save_student(
    job: Refresh, student: students.Student, columns: Columns, kept: Memory, course: Course, rows: int
) -> StudentRef:
    """Write a student with all that a later update goes on from."""
    folder = Path(job.folder) / "student"
    students.save(student, folder)
    (folder / "columns.json").write_text(json.dumps(columns), encoding="utf-8")
    (folder / "course.json").write_text(course.model_dump_json(), encoding="utf-8")
    kept.save(folder)
    size = (folder / "student.safetensors").stat().st_size
    return StudentRef(folder=str(folder), bytes=size, rows=rows, history=course.history)


def log_update(job: Refresh, models: Registry, run_id: str, student: StudentRef) -> None:
    """What an update has cost what was known before, as metrics of the student's run."""
    file = Path(student.folder) / "update.json"
    if job.mode == "update" and file.exists():
        report = UpdateReport.model_validate_json(file.read_bytes())
        figures = {f"forgotten/{name}": rise for name, rise in report.updated.forgotten.items()}
        figures |= {"probe/before": report.probe.before, "probe/after": report.probe.after}
        models.log_metrics(run_id, figures | {"old_share": report.updated.old_share})


# --------------------------------------------------------------------------- wiring


def _news(base: KnowledgeBase, job: Refresh, teacher: TeacherRef) -> tuple[pd.DataFrame, pd.DataFrame]:
    """New rows to learn from, with knowledge, an outcome (else −1), or both; and those of validation days with both."""
    rows = choosing.learning_rows(base, job.news, job.as_of)
    spoken, lived = ~np.isnan(base.knowledge(rows, teacher.version)[:, 0]), rows["outcome"] >= 0
    kept_back = validation_days(rows["observed_at"], base.config.distillation.validation_every)
    return rows[(spoken | lived) & ~kept_back], rows[spoken & lived & kept_back]


def _replay(base: KnowledgeBase, job: Refresh, old: Predecessor, columns: Columns) -> tuple[pd.DataFrame, Lesson]:
    """What the champion's student remembers, with what it said then."""
    rows = labelled(base, _remembered(job, old), job.as_of)
    rows = rows[rows["observation_id"].isin(old.memory.rows["observation_id"])]
    said = old.memory.among(rows["observation_id"], base.config.actions)
    return rows, _lesson(rows, said, columns)


def _past(base: KnowledgeBase, job: Refresh, old: Predecessor, columns: Columns) -> dict[str, Lesson]:
    """Days that no student has learned from, of the time that is remembered: by the day on which each span begins."""
    rows = labelled(base, _remembered(job, old), job.as_of)
    rows = rows[validation_days(rows["observed_at"], base.config.distillation.validation_every)]
    rows = rows[rows["observed_at"] < job.news.start]
    found = {}
    for part in np.array_split(np.arange(len(rows)), _SPANS):
        if len(part):
            span = base.sample(rows.iloc[part], _SPAN_ROWS)
            nobody = np.zeros((len(span), len(base.config.actions)))
            found[f"{span['observed_at'].iloc[0]:%Y-%m-%d}"] = _lesson(span, nobody, columns)
    return found


def _remembered(job: Refresh, old: Predecessor) -> Window:
    """From the oldest row that is remembered to the newest, at the versions of the tables that this refresh reads."""
    times = old.memory.rows["observed_at"]
    end = times.max() + timedelta(microseconds=1)
    return job.train.model_copy(update={"name": "remembered", "start": times.min(), "end": end})


def _lesson(rows: pd.DataFrame, said: np.ndarray, columns: Columns, groups: np.ndarray | None = None) -> Lesson:
    parts, outcomes = students.blocks(columns), rows["outcome"].to_numpy()
    return Lesson(encode(rows, columns), said, outcomes, parts.numbers, groups=groups, tokens=parts.tokens)


def _unaided(settings: AgentConfig) -> AgentConfig:
    """The agent whose student begins with no teacher's encoder: it begins with its predecessor's weights."""
    if not settings.begins_like_teacher:
        return settings
    return settings.model_copy(update={"student": settings.student.model_copy(update={"initialise": "none"})})


def _write(job: Refresh, report: UpdateReport) -> None:
    (Path(job.folder) / "student" / "update.json").write_text(report.model_dump_json(), encoding="utf-8")
