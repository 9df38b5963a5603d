"""What ``flows/refresh.py`` does, one task per station."""

from __future__ import annotations

import functools
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import TypeAdapter

from stillhouse import config
from stillhouse.actions import aligned
from stillhouse.compress import arrivals
from stillhouse.compress.figures import measured
from stillhouse.compress.processor import processor
from stillhouse.compress.search import FORM as FORM_FILE
from stillhouse.compress.search import search
from stillhouse.compress.subject import Form, Subject
from stillhouse.compress.variants import student_subject, variant_pack
from stillhouse.compressing import FRONTIER, log_frontier
from stillhouse.config import AgentConfig, Recipe
from stillhouse.distill import students
from stillhouse.distill.augment import made_up_rows
from stillhouse.distill.control import distil_with_control
from stillhouse.distill.controller import Course
from stillhouse.distill.grow import Columns, extended
from stillhouse.distill.memory import remembered
from stillhouse.distill.students import columns_of, new_student
from stillhouse.distill.train import Lesson, distil, held_out_units, student_probabilities, validation_days
from stillhouse.drift import texts
from stillhouse.drift.calibrate import loss_baseline
from stillhouse.drift.figures import drift_figure
from stillhouse.drift.measure import reference_of, usual_length
from stillhouse.drift.profile import Profile
from stillhouse.drift.steps import brier, total_variation
from stillhouse.errors import DataError, PartError, RegistryError, WindowError
from stillhouse.evaluate import admission, figures, gate
from stillhouse.evaluate import proof as proving
from stillhouse.evaluate.scorecard import quality
from stillhouse.knowledge import KnowledgeBase
from stillhouse.parts import TextInitial
from stillhouse.records import (
    Baseline,
    Certificate,
    DataReport,
    Frontier,
    Limits,
    LossBaseline,
    Mode,
    ModelRef,
    Process,
    Proof,
    Questions,
    Refresh,
    Screens,
    StudentRef,
    TeacherRef,
    Verdict,
    Window,
    drift_report,
    short_id,
)
from stillhouse.registry import Lineage, Registry
from stillhouse.registry.foreign import ForeignModels
from stillhouse.teachers import asking, ensemble, following, weighing
from stillhouse.teachers.contradictions import contradictions
from stillhouse.teachers.made_up import ask_made_up
from stillhouse.variant import Variant, encode
from tasks import choosing, recalibrating, updating
from tasks.common import DATA_DOCS, FORM, QUESTIONS, engine_task, knowledge_base, labelled, registry, training_rows

__all__ = [
    "closing_run_on_failure",
    "compare_teachers",
    "compress",
    "distil_student",
    "examine_teacher",
    "gather_knowledge",
    "judge",
    "log_models",
    "open_refresh",
    "prepare_teacher",
    "prove",
    "require_rows",
    "settle",
    "span",
    "weigh_teachers",
]


def span(agent: str, as_of: datetime) -> Window:
    """The training and the test window together: all that a refresh of this moment may look at."""
    settings = config.load(agent)
    end = as_of - settings.outcomes.delay
    return knowledge_base(agent).window("refresh", end - settings.windows.test - settings.windows.train, end)


def require_rows(
    agent: str, as_of: datetime, trigger: Literal["bootstrap", "drift", "manual"], cause: str,
    teacher: Literal["fit", "keep"], mode: Mode, window: Window,
) -> None:  # fmt: skip
    """Refuse a moment that comes too early, before any work; what the data check sets aside is not known yet.

    A refresh that has its verdict already is not refused, whatever has been removed since.

    :raises WindowError: if too few rows with known outcomes, or no validation days, lie in the windows.
    """
    base = knowledge_base(agent)
    train, test = _train_and_test(base.config, window)
    try:
        _require_learnable(base, train, test, as_of)
    except WindowError:
        refresh_id = _refresh_id(base.config, as_of, trigger, cause, teacher, mode)
        if registry(agent).finished_refresh(refresh_id) is None:
            raise


@engine_task(task_run_name="open refresh")
def open_refresh(
    agent: str, as_of: datetime, trigger: Literal["bootstrap", "drift", "manual"], cause: str,
    teacher: Literal["fit", "keep"], mode: Mode, data: DataReport,
) -> Refresh:  # fmt: skip
    """Open the MLflow run of this refresh, or find what an earlier run of the same request left.

    :raises DataError: if the windows break the data contract.
    :raises WindowError: if there are too few rows to learn from.
    """
    base, models = knowledge_base(agent), registry(agent)
    settings = base.config
    refresh_id = _refresh_id(settings, as_of, trigger, cause, teacher, mode)
    train, test = _train_and_test(settings, data.window)
    common = {
        "refresh_id": refresh_id, "agent": agent, "as_of": as_of, "trigger": trigger, "cause": cause, "train": train,
        "test": test, "teacher": teacher, "mode": mode, "folder": str(config.home() / "refreshes" / agent / refresh_id),
    }  # fmt: skip
    if finished := models.finished_refresh(refresh_id):
        return Refresh(**common, run_id="", verdict=finished, finished=True)
    if data.broken:
        raise DataError(
            f"{data.window} breaks the data contract: " + "; ".join(f.text for f in data.failures if f.fatal)
        )
    _require_learnable(base, train, test, as_of)
    run_id, verdict = models.open_refresh(
        refresh_id,
        tags={"trigger": trigger, "cause": cause, "as_of": as_of.isoformat(), "mode": mode},
        params=_settings(settings),
        name=f"refresh {as_of:%Y-%m-%d} ({trigger})",
    )
    _log_cause(agent, cause, run_id)
    if data.docs:
        models.log_file(run_id, Path(data.docs).read_bytes(), DATA_DOCS)
    return Refresh(**common, run_id=run_id, verdict=verdict)


@engine_task(task_run_name="teacher: {job.teacher}")
def prepare_teacher(job: Refresh) -> TeacherRef:
    """Fit the teachers that learn on the training window, or fetch the champion's."""
    base, models = knowledge_base(job.agent), registry(job.agent)
    if job.teacher == "fit":
        rows = training_rows(base, job.train, job.as_of)
        models.log_window(job.run_id, job.train, rows, "training")
        return ensemble.fit(base.config, rows, job.train, Path(job.folder) / "teacher", ForeignModels())
    champion = models.champion()
    if champion is None:
        raise RegistryError(
            f"agent {job.agent!r} has no champion whose teacher could be kept: refresh with teacher=fit"
        )
    knows = Variant(models.fetch(champion)).actions
    if knows != list(base.config.actions):
        raise PartError(
            f"the teacher of {champion} was made for the actions {', '.join(knows)}, and {base.config.file} has "
            f"{', '.join(base.config.actions)} now: refresh with teacher=fit"
        )
    kept = models.baseline(champion).teacher
    return ensemble.reference(models.fetch(kept), kept)


@engine_task(task_run_name="weigh teachers")
def weigh_teachers(job: Refresh, teacher: TeacherRef) -> TeacherRef:
    """The same teachers under the weights that the outcomes of the training window speak for; each change recorded."""
    base, models = knowledge_base(job.agent), registry(job.agent)
    rows, asked = training_rows(base, job.train, job.as_of), _teachers(job, teacher)
    following.ready_to_weigh(base, asked, rows, _account(job), fit=job.teacher == "fit")
    _log_spending(job)
    found = following.weigh(base, asked, job.as_of, rows)
    if found is None:
        return teacher
    weighted = ensemble.reweigh(teacher, found.weights, Path(job.folder) / "teacher")
    changes = weighing.changes(found.weights, _standing(job), version=weighted.version, job=job.refresh_id)
    base.append_weights(changes)
    asking.remember_mean(base, _teachers(job, weighted), rows)
    models.log_record(job.run_id, found.weights, "weights.json")
    models.log_curve(job.run_id, found.points("weight/"))
    models.log_figure(job.run_id, figures.weights_over_time(base.weight_changes()), "figures/weights.png")
    return teacher if weighted.version == teacher.version else weighted


@engine_task(task_run_name="compare teachers")
def compare_teachers(job: Refresh, teacher: TeacherRef) -> None:
    """Where the teachers contradict each other on the training window, by slice, and who was right."""
    base, asked = knowledge_base(job.agent), _teachers(job, teacher)
    if len(asked.members) > 1:
        rows = training_rows(base, job.train, job.as_of)
        said = asking.members_said(base, asked, rows)
        found = contradictions(base.config, job.train, rows, said, rows["outcome"].to_numpy())
        registry(job.agent).log_record(job.run_id, found, "contradictions.json")


@engine_task(task_run_name="examine teacher")
def examine_teacher(job: Refresh, teacher: TeacherRef) -> Verdict:
    """Whether the teacher may teach: asked about test rows, whose outcomes it has not seen.

    :raises WindowError: if the budget or the teacher's server allow too few questions to tell.
    """
    base, account = knowledge_base(job.agent), _account(job)
    rows, asked = labelled(base, job.test, job.as_of), _teachers(job, teacher)
    if not all(member.version is None for member in asked.members):
        rows = rows.sort_values("content_key").head(base.config.teaching.rows).sort_values("observed_at")
    said = asking.ask(asked, rows, account)
    _log_spending(job)
    known = ~pd.isna(said[:, 0])
    if account.stopped and known.sum() < base.config.teaching.min_answered * len(rows):
        raise WindowError(
            f"the teacher has answered {known.sum()} of {len(rows)} rows that it is to be examined on: "
            f"{account.stopped}. What it said is kept; allow it more, or lower `teaching.rows`"
        )
    train = training_rows(base, job.train, job.as_of)["outcome"]
    examination = admission.examine(
        base.config, job.refresh_id, job.as_of, teacher.version, rows, said,
        base_rate=np.bincount(train, minlength=len(base.config.actions)) / len(train),
        unanswered=_reasons(base, asked, rows[~known]), champion=_champion_says(job.agent, rows),
        trusted=_trusted(job, teacher, rows),
    )  # fmt: skip
    verdict = admission.judge(examination)
    if verdict.outcome == "refused":
        registry(job.agent).log_verdict(job.run_id, examination, verdict)
    else:
        registry(job.agent).log_record(job.run_id, examination, "examination.json")
    return verdict


@engine_task(task_run_name="gather knowledge")
def gather_knowledge(job: Refresh, teacher: TeacherRef) -> int:
    """Teacher knowledge for the training window, cross-fitted where the teacher has seen the outcomes. Rows added.

    :raises WindowError: if the budget or the teacher's server allow too few questions to learn from.
    """
    base, account = knowledge_base(job.agent), _account(job)
    rows, asked = choosing.learning_rows(base, job.train, job.as_of), _teachers(job, teacher)
    before = ~pd.isna(base.knowledge(rows, teacher.version)[:, 0])
    able = np.ones(len(rows), dtype=bool) if job.teacher == "fit" else before | ~asked.seen(rows)
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[able], limited = choosing.questions(job, base, asked, rows[able], account)
    if job.teacher == "fit":
        asking.cross_fitted(asked, rows, account, chosen)
    else:
        asking.ask(asked, rows[chosen], account)
    if limited:
        account.stop(asked.members[0].name, "the budget is reached")
    labelled_rows = training_rows(base, job.train, job.as_of)
    ask_made_up(asked, _made_up(job), account, labelled_rows if job.teacher == "fit" else None)
    _log_spending(job)
    known = ~pd.isna(base.knowledge(rows, teacher.version)[:, 0])
    _log_questions(job, rows, before, chosen & ~before, known, limited)
    least = base.config.windows.min_train_rows // 2
    if account.stopped and known.sum() < least:
        raise WindowError(
            f"the teacher has spoken about {known.sum()} of the {len(rows)} training rows, and {least} are needed: "
            f"{account.stopped}. What it said is kept and not asked again; allow it about {least - known.sum()} rows "
            f"more, or lower `windows.min_train_rows`"
        )
    return int(known.sum() - before.sum())


@engine_task(task_run_name="distil student")
def distil_student(job: Refresh, teacher: TeacherRef) -> StudentRef:
    """A new student from the knowledge and the outcomes of the training window."""
    settings = config.load(job.agent)
    old, initial = updating.warm_from(job), _initial(job, teacher)

    def columns_for(rows: pd.DataFrame) -> Columns:
        """Those of the rows; where a student is gone on with, its own, which keep their codes, and what is new."""
        fresh = columns_of(settings, rows, initial)
        return extended(old.columns, fresh) if old else fresh

    rows, lesson, columns = _lesson(job, teacher, columns_for)
    held_out, compared = _kept_back(job, teacher, columns)
    student = new_student(settings, columns, lesson.x.numpy(), initial)
    if old is not None:
        student = updating.warm_start(old, student, columns, settings.actions, lesson.x.numpy())
    course = distil_with_control(
        student, lesson, settings.distillation, held_out=held_out, compared=compared,
        checkpoint=Path(job.folder) / "training.safetensors",
    )  # fmt: skip
    said = student_probabilities(student, lesson.x.numpy())
    kept = remembered(rows, said, settings.actions, settings.update.memory, older=old.memory if old else None)
    return updating.save_student(job, student, columns, kept, course, rows=len(rows))


@engine_task(task_run_name="compress")
def compress(job: Refresh, teacher: TeacherRef, student: StudentRef) -> Frontier:
    """The student in many smaller forms, made and measured here, and the one that fits the budgets best."""
    settings = config.load(job.agent)
    logger = logging.getLogger(__name__)
    return search(
        functools.partial(_subject, job, teacher, student),
        settings.compression,
        Limits(**settings.budgets.model_dump(include=set(Limits.model_fields))),
        variant_pack(job.agent, settings.actions, {"refresh": job.refresh_id, "teacher": teacher.version}),
        Path(job.folder) / "compression",
        warm=_standing_recipes(job),
        on_candidate=lambda candidate: logger.info("%s", candidate),
    )


@engine_task(task_run_name="prove")
def prove(job: Refresh, teacher: TeacherRef, student: StudentRef, frontier: Frontier) -> Proof:
    """Scorecards for all models on the validation days, the test window and the champion's own test window."""
    base, models = knowledge_base(job.agent), registry(job.agent)
    settings = base.config
    asked = _teachers(job, teacher)
    module = students.load(Path(student.folder), settings)
    columns = _columns(student)
    champion = models.champion()

    train = training_rows(base, job.train, job.as_of)
    windows = {
        "validation": train[validation_days(train["observed_at"], settings.distillation.validation_every)],
        "test": labelled(base, job.test, job.as_of),
    }
    if champion and len(past := labelled(base, models.baseline(champion).test, job.as_of)):
        windows["past"] = past
    one = windows["test"].iloc[[0]]

    def deployed(name: str, role: Literal["variant", "champion"], folder: Path, size: int) -> proving.Candidate:
        variant = Variant(folder)
        row = encode(one, variant.columns)
        return proving.Candidate(
            name, role, lambda rows: aligned(variant.predict_proba(rows), variant.actions, settings.actions), size,
            lambda: variant.probabilities(row),
        )  # fmt: skip

    return proving.prove(
        settings,
        job,
        windows,
        teacher=proving.Candidate(
            "teacher",
            "teacher",
            lambda rows: base.knowledge(rows, teacher.version),
            teacher.bytes,
            (lambda: asked.ask(one)) if asked.local else None,
        ),
        student=proving.Candidate(
            "student", "student", lambda rows: student_probabilities(module, encode(rows, columns)), student.bytes
        ),
        variants=[deployed(each.name, "variant", Path(each.folder), each.bytes) for each in frontier.able],
        chosen=frontier.chosen,
        why=frontier.why,
        fits=frontier.fits,
        champion=deployed(str(champion), "champion", models.fetch(champion), models.scorecard(champion).bytes)
        if champion
        else None,
        anchor=_anchor(job.agent, champion, deployed) if champion else None,
        cpu=processor().name,
    )


@engine_task(task_run_name="log to MLflow")
def log_models(job: Refresh, teacher: TeacherRef, student: StudentRef, frontier: Frontier, proof: Proof) -> None:
    """Teacher, student and every candidate: a nested run and a logged model each.

    Versions are registered of the teacher, the student, and the candidates that nothing beats or that were asked for.
    """
    base, models = knowledge_base(job.agent), registry(job.agent)
    settings = base.config
    test = labelled(base, job.test, job.as_of)
    models.log_window(job.run_id, job.test, test, "test")

    drift = job.cause if job.trigger == "drift" else None
    logged_teacher = models.register(
        models.log_teacher(job.run_id, teacher, proof.teacher, _sources(settings)),
        f"{job.agent}-teacher",
    )
    lineage = Lineage(teacher=logged_teacher, knowledge=job.train.versions, drift=drift)
    if job.mode == "recalibrate":
        logged_student = models.version(f"{job.agent}-student", "champion")
    else:
        logged_student = _log_student(job, models, student, proof, lineage, test)
    lineage = lineage.model_copy(update={"student": logged_student})
    _log_candidates(job, models, frontier, proof, lineage, test)
    chosen = Variant(frontier.named(frontier.chosen).folder)
    profile, screens = _reference(job, chosen)
    baseline = Baseline(
        as_of=job.as_of,
        train=_learned_from(job),
        test=job.test,
        screens=screens,
        losses=_losses(job, teacher, chosen),
        disagreement=proof.disagreement,
        quality=proof.certificate.challenger.test,
        teacher=logged_teacher,
    )
    models.log_file(job.run_id, profile.to_bytes(), "profile.arrow")
    models.log_record(job.run_id, baseline, "baseline.json")
    models.log_figure(job.run_id, figures.tradeoff(proof), "figures/size_latency_quality.png")
    models.log_figure(job.run_id, figures.quality_over_time(base.verdicts()), "figures/quality_over_time.png")
    models.log_record(job.run_id, proof, "proof.json")


@engine_task(task_run_name="judge")
def judge(job: Refresh, proof: Proof) -> Verdict:
    """The gate's verdict, stored before any alias moves."""
    verdict = gate.judge(proof.certificate)
    registry(job.agent).log_verdict(job.run_id, proof.certificate, verdict)
    return verdict


@engine_task(task_run_name="settle: {verdict.outcome}")
def settle(job: Refresh, verdict: Verdict) -> None:
    """Do what the verdict says, record it, close the run. Can be repeated after a kill at any point."""
    models = registry(job.agent)
    if verdict.outcome == "promoted":
        models.promote(models.version_of(job.refresh_id, challenger_name(verdict)))
    elif verdict.outcome == "awaiting_approval":
        models.propose(models.version_of(job.refresh_id, challenger_name(verdict)))
    knowledge_base(job.agent).record(verdict)
    models.close_refresh(job.run_id)
    shutil.rmtree(Path(job.folder).parent, ignore_errors=True)  # what killed refreshes left, too


@contextmanager
def closing_run_on_failure(job: Refresh) -> Iterator[None]:
    """Mark the MLflow run failed when the refresh cannot be finished, so that none is left running."""
    try:
        yield
    except BaseException as error:  # a cancellation too
        registry(job.agent).close_refresh(job.run_id, failed=f"{type(error).__name__}: {error}")
        raise


# --------------------------------------------------------------------------- wiring


def _teachers(job: Refresh, teacher: TeacherRef) -> ensemble.Ensemble:
    return ensemble.load(Path(teacher.folder), config.load(job.agent), ForeignModels())


def _account(job: Refresh) -> asking.Account:
    """What this refresh may still spend on its teachers."""
    return asking.for_refresh(knowledge_base(job.agent), job.refresh_id, job.as_of)


def _champion_says(agent: str, rows: pd.DataFrame) -> np.ndarray | None:
    champion = registry(agent).champion()
    if champion is None or rows.empty:
        return None
    variant = Variant(registry(agent).fetch(champion))
    return aligned(variant.predict_proba(rows), variant.actions, config.load(agent).actions)


def _anchor(
    agent: str,
    champion: ModelRef,
    deployed: Callable[[str, Literal["variant", "champion"], Path, int], proving.Candidate],
) -> proving.Candidate | None:
    """The earlier champion that the losses of promotions are added up from; None: the champion is its own.

    It is so for one whose certificate is not known, and where the anchor has been deleted or reads other columns.
    """
    models = registry(agent)
    certificate = models.read_record(models.tags(champion)["refresh_run"], "certificate.json", Certificate)
    name = gate.anchor_after(certificate) if certificate is not None else None
    found = models.version(agent, name.rpartition("@")[2]) if name is not None else None
    if found is None:
        return None
    folder = models.fetch(found)
    lacking = {c["name"] for c in Variant(folder).columns} - set(config.load(agent).observations.columns)
    return None if lacking else deployed(str(found), "champion", folder, 0)


def _trusted(job: Refresh, teacher: TeacherRef, rows: pd.DataFrame) -> tuple[str, np.ndarray] | None:
    """The champion's teacher, which has been admitted before, and what it has said about ``rows``, unasked."""
    base, models = knowledge_base(job.agent), registry(job.agent)
    champion = models.champion()
    version = models.tags(models.baseline(champion).teacher).get("teacher_version") if champion else None
    return (version, base.knowledge(rows, version)) if version and version != teacher.version else None


def _standing(job: Refresh) -> dict[tuple[str, str], float]:
    """The weights of the champion's teachers, as its watches last knew them."""
    models = registry(job.agent)
    champion = models.champion()
    if champion is None:
        return {}
    folder = models.fetch(models.baseline(champion).teacher)
    recorded = knowledge_base(job.agent).weight_changes(ensemble.reference(folder).version)
    return following.standing(ensemble.kept_weights(folder), [each for each in recorded if each.job == "watch"])


def _reasons(base: KnowledgeBase, asked: ensemble.Ensemble, rows: pd.DataFrame) -> list[str]:
    """Why the teachers have no usable answer to ``rows``."""
    found = [
        base.unanswered(member.version).drop_duplicates("content_key", keep="last")
        for member in asked.members
        if member.version is not None
    ]
    return [reason for each in found for reason in each.loc[each["content_key"].isin(rows["content_key"]), "reason"]]


def _sources(settings: AgentConfig) -> dict[str, str]:
    """Where each teacher comes from: its target, its address in MLflow, or its model at an endpoint."""
    named = {}
    for leaf in config.leaves(settings.teachers):
        source = leaf.teacher.model_dump(include={"target", "uri", "base_url", "model"})
        named[leaf.name] = " ".join(source.values())
    return named


def _log_spending(job: Refresh) -> None:
    """What the teachers have cost this refresh so far, as metrics of its run."""
    spent = knowledge_base(job.agent).spending(job=job.refresh_id)
    metrics = {f"teacher/{name}/{what}": value for name, cost in spent.items() for what, value in cost}
    if metrics:
        registry(job.agent).log_metrics(job.run_id, metrics)


def _log_questions(
    job: Refresh, rows: pd.DataFrame, before: np.ndarray, asked: np.ndarray, known: np.ndarray, limited: bool
) -> None:
    """Of how many rows the teachers knew, were asked about, and were spared."""
    found = Questions(
        rows=len(rows), without_outcome=int((rows["outcome"] < 0).sum()), known=int(before.sum()),
        asked=int(asked.sum()), answered=int((asked & known).sum()), limited=limited,
    )  # fmt: skip
    models = registry(job.agent)
    models.log_record(job.run_id, found, QUESTIONS)
    counts = {f"asking/{name}": float(value) for name, value in found if name != "limited"}
    models.log_metrics(job.run_id, counts | {"asking/skipped": float(found.skipped)})


def challenger_name(verdict: Verdict) -> str:
    """Name of the variant that a gate's verdict is about."""
    certificate: Any = verdict.evidence["certificate"]
    return str(certificate["challenger"]["model"])


def _reference(job: Refresh, chosen: Variant) -> tuple[Profile, Screens]:
    """What the whole training window looked like, in the features and in the chosen variant's answers."""
    base = knowledge_base(job.agent)
    rows = texts.measured(base.observations(job.train), base.config.observations.columns, chosen.columns)
    return reference_of(rows, chosen.predict_proba(rows), base.config)


def _losses(job: Refresh, teacher: TeacherRef, chosen: Variant) -> dict[Process, LossBaseline]:
    """How far the chosen variant and its teacher are from each other and from the outcomes, on rows new to both.

    Those are the validation days, about which the teacher's folds were asked, and what it was examined on.
    """
    base = knowledge_base(job.agent)
    distillation = base.config.distillation
    train, test = training_rows(base, job.train, job.as_of), labelled(base, job.test, job.as_of)
    kept = train[validation_days(train["observed_at"], distillation.validation_every)]
    rows = pd.concat([kept, test], ignore_index=True)
    said = base.knowledge(rows, teacher.version)
    rows, said = rows[~pd.isna(said[:, 0])], said[~pd.isna(said[:, 0])]
    decided, outcomes = chosen.predict_proba(rows), rows["outcome"].to_numpy()
    losses: dict[Process, Any] = {
        "disagreement": total_variation(said, decided),
        "student_outcomes": brier(decided, outcomes),
        "teacher_outcomes": brier(said, outcomes),
    }
    times, cluster, block = rows["observed_at"], base.config.promotion.cluster, usual_length(train, base.config)
    every = base.config.watch.every
    return {process: loss_baseline(loss, times, cluster, block, every) for process, loss in losses.items()}


def _initial(job: Refresh, teacher: TeacherRef) -> TextInitial | None:
    """The teacher's text encoder, where the student begins with it."""
    return _teachers(job, teacher).text_encoder() if config.load(job.agent).begins_like_teacher else None


def _lesson(
    job: Refresh, teacher: TeacherRef, columns_for: Callable[[pd.DataFrame], Columns]
) -> tuple[pd.DataFrame, Lesson, list[dict[str, Any]]]:
    """The rows that the student may learn from (validation days kept back), encoded, with knowledge, outcome, or both.

    A row that nobody was asked about has NaN for its knowledge, one whose outcome is not known −1 for that.

    :param columns_for: the columns that these rows are encoded with.
    """
    base = knowledge_base(job.agent)
    rows = choosing.learning_rows(base, job.train, job.as_of)
    kept_back = validation_days(rows["observed_at"], base.config.distillation.validation_every)
    spoken = ~pd.isna(base.knowledge(rows, teacher.version)[:, 0])
    rows = rows[(spoken | (rows["outcome"] >= 0)) & ~kept_back]
    _require_rows(rows, base.config.windows.min_train_rows // 2, job.train)
    columns = [dict(column) for column in columns_for(rows)]
    parts = students.blocks(columns)
    lesson = Lesson(
        encode(rows, columns),
        base.knowledge(rows, teacher.version),
        rows["outcome"].to_numpy(),
        numbers=parts.numbers,
        features=base.features(rows, teacher.features) if teacher.features else None,
        tokens=parts.tokens,
    )
    return rows, _with_made_up(job, teacher, lesson, columns), columns


def _made_up(job: Refresh) -> pd.DataFrame:
    """Rows made up near those of the training window, apart from its validation days, within the teacher's blocks."""
    base = knowledge_base(job.agent)
    rows = training_rows(base, job.train, job.as_of)
    learned = ~validation_days(rows["observed_at"], base.config.distillation.validation_every)
    return made_up_rows(base.config, rows[learned], ensemble.cross_fit_blocks(base.config, rows)[learned])


def _with_made_up(job: Refresh, teacher: TeacherRef, lesson: Lesson, columns: list[dict[str, Any]]) -> Lesson:
    """``lesson`` and the made-up rows that the teacher has spoken about; no outcome is made up."""
    base, made = knowledge_base(job.agent), _made_up(job)
    said = base.knowledge(made, teacher.version)
    made, said = made[~np.isnan(said[:, 0])], said[~np.isnan(said[:, 0])]
    if made.empty:
        return lesson
    features = base.features(made, teacher.features) if teacher.features else None
    nobody_knows = np.full(len(made), -1)
    return lesson.plus(
        Lesson(encode(made, columns), said, nobody_knows, lesson.numbers, features, tokens=lesson.tokens)
    )


def _kept_back(job: Refresh, teacher: TeacherRef, columns: list[dict[str, Any]]) -> tuple[Lesson | None, Lesson | None]:
    """The validation days with their knowledge: the newer half for the controller, the older to compare students on."""
    base = knowledge_base(job.agent)
    rows = training_rows(base, job.train, job.as_of)
    rows = rows[validation_days(rows["observed_at"], base.config.distillation.validation_every)]
    rows = rows[~pd.isna(base.knowledge(rows, teacher.version)[:, 0])]
    if len(rows) < 2:
        return None, None
    groups, newer = held_out_units(rows["observed_at"], base.config.promotion.cluster)
    x, said, outcomes = encode(rows, columns), base.knowledge(rows, teacher.version), rows["outcome"].to_numpy()
    parts = students.blocks(columns)
    features = base.features(rows, teacher.features) if teacher.features else None
    held_out, compared = (
        Lesson(x[chosen], said[chosen], outcomes[chosen], parts.numbers, None if features is None else features[chosen],
               groups[chosen], tokens=parts.tokens) if chosen.any() else None
        for chosen in (newer, ~newer)
    )  # fmt: skip
    return held_out, compared


def _subject(job: Refresh, teacher: TeacherRef, student: StudentRef) -> Subject:
    """The student as the subject of compression: recovered on what it learned from, judged on the validation days.

    What has just arrived must hold by itself: the newest of these days, and rows of actions that are new.
    """
    base = knowledge_base(job.agent)
    settings = base.config
    module, columns = students.load(Path(student.folder), settings), _columns(student)
    learned = choosing.learning_rows(base, job.train, job.as_of)
    kept_back = validation_days(learned["observed_at"], settings.distillation.validation_every)
    judged = training_rows(base, job.train, job.as_of)
    judged = judged[validation_days(judged["observed_at"], settings.distillation.validation_every)]
    learned = learned[~kept_back]
    arrived = _judged(job, teacher, learned, judged)
    rows = pd.concat([judged, learned.iloc[arrived.extra]], ignore_index=True)

    def score(said: np.ndarray, labels: np.ndarray) -> float:
        return quality(said, labels).score

    def recover(form: Form, epochs: int) -> Form:
        assert form.columns is not None  # a student has them
        lesson, held_out = _lessons(job, teacher, student, [dict(column) for column in form.columns])
        distil(form.module, lesson, settings.distillation, held_out=held_out, epochs=epochs)
        return form

    return student_subject(
        module, columns, settings.actions,
        calibration=lambda columns: encode(learned, columns), judged=lambda columns: encode(rows, columns),
        quality=arrived.quality(score), slices=arrived.slices(score), recover=recover,
        measure="AUC" if len(settings.actions) == 2 and judged["outcome"].nunique() > 1 else "share of right decisions",
        source=f"{job.refresh_id} {teacher.version}",
    )  # fmt: skip


def _judged(job: Refresh, teacher: TeacherRef, learned: pd.DataFrame, judged: pd.DataFrame) -> arrivals.Judged:
    """The validation days, and what is new since the champion's window; what no outcome tells, the teacher does."""
    base, models = knowledge_base(job.agent), registry(job.agent)
    actions, champion = base.config.actions, models.champion()
    since, unknown = None, set[int]()
    if champion is not None:
        knows = Variant(models.fetch(champion)).actions
        since = pd.Timestamp(models.baseline(champion).train.end)
        unknown = {place for place, action in enumerate(actions) if action not in knows}
    said, labels = base.knowledge(learned, teacher.version), learned["outcome"].to_numpy().copy()
    told = (labels < 0) & ~np.isnan(said[:, 0])
    labels[told] = said[told].argmax(axis=1)
    times, outcomes = judged["observed_at"], judged["outcome"].to_numpy()
    new = arrivals.new_actions(
        _moments(pd.concat([times, learned["observed_at"]])), np.concatenate([outcomes, labels]),
        None if since is None else _moments(pd.Series([since]))[0], unknown,
    )  # fmt: skip
    return arrivals.judged_rows(
        _moments(times), outcomes, _moments(learned["observed_at"]), labels, new, actions
    )  # fmt: skip


def _moments(times: pd.Series) -> np.ndarray:
    """Moments as datetime64 in UTC."""
    return pd.to_datetime(times, utc=True).dt.tz_localize(None).to_numpy().astype("datetime64[us]")


def _lessons(
    job: Refresh, teacher: TeacherRef, student: StudentRef, columns: list[dict[str, Any]]
) -> tuple[Lesson, Lesson | None]:
    """What the student has learned from, encoded with ``columns``, and the held-out part of it."""
    held_out: Lesson | None
    if job.mode == "update":
        lesson, held_out = updating.news_and_memory(job, teacher, columns)
    else:
        _, lesson, _ = _lesson(job, teacher, lambda _: columns)  # a form may read fewer columns, or tokens
        held_out, _ = _kept_back(job, teacher, columns)
    return lesson if _course(student).made_up_rows_helped else lesson.observed(), held_out


def _standing_recipes(job: Refresh) -> list[Recipe]:
    """Recipes that nothing beat when the champion was made, or that it was made by: where a search goes on."""
    models = registry(job.agent)
    run_id = recalibrating.compression_run(models)
    found = models.read_record(run_id, FRONTIER, Frontier) if run_id else None
    if found is None:
        return []
    names = dict.fromkeys([*found.best, found.chosen])
    return [TypeAdapter(Recipe).validate_python(found.named(name).recipe) for name in names]


def _log_student(
    job: Refresh, models: Registry, student: StudentRef, proof: Proof, lineage: Lineage, test: pd.DataFrame
) -> ModelRef:
    """The new student, with how its training went."""
    settings = config.load(job.agent)
    module, example = students.load(Path(student.folder), settings), encode(test.head(4), _columns(student))
    logged = models.register(
        models.log_student(
            job.run_id,
            module,
            example,
            proof.student,
            dict(settings.distillation) | {"mode": job.mode},
            lineage,
            Path(student.folder),
        ),
        f"{job.agent}-student",
    )
    for epoch, losses in enumerate(student.history, start=1):
        models.log_metrics(logged.run_id, losses, step=epoch)
    _log_course(models, logged.run_id, student)
    updating.log_update(job, models, logged.run_id, student)
    return logged


def _learned_from(job: Refresh) -> Window:
    """The window that the student has learned from: a recalibrated one is still the champion's."""
    if job.mode != "recalibrate":
        return job.train
    models = registry(job.agent)
    champion = models.champion()
    assert champion is not None  # it is recalibrated
    return models.baseline(champion).train


def _log_candidates(
    job: Refresh, models: Registry, frontier: Frontier, proof: Proof, lineage: Lineage, test: pd.DataFrame
) -> None:
    """Every candidate in a nested run, those that can serve as a logged model; the frontier as table and figure."""
    cards = {card.model: card for card in proof.variants}
    asked_for = {config.recipe_name(recipe) for recipe in config.load(job.agent).compression.recipes}
    for candidate in frontier.candidates:
        recipe = json.dumps(candidate.recipe)
        if candidate.refused is not None:
            models.log_refused(job.run_id, candidate.name, candidate.refused, {"recipe": recipe})
            continue
        logged = models.log_variant(
            job.run_id, Path(candidate.folder), cards[candidate.name], {"recipe": recipe}, lineage, test.head(4)
        )
        models.log_metrics(logged.run_id, measured(candidate))
        if candidate.name in {*frontier.best, *asked_for, frontier.chosen}:
            models.register(logged, job.agent, {"chosen": candidate.name == frontier.chosen})
    models.log_file(job.run_id, (Path(job.folder) / "compression" / FORM_FILE).read_bytes(), FORM)
    log_frontier(models, job.run_id, frontier)


def _course(student: StudentRef) -> Course:
    return Course.model_validate_json((Path(student.folder) / "course.json").read_text(encoding="utf-8"))


def _log_course(models: Registry, run_id: str, student: StudentRef) -> None:
    """What the controller changed and why, and what that has earned against the fixed settings."""
    course = _course(student)
    models.log_record(run_id, course, "distillation.json")
    if control := course.control:
        half = 1.96 * control.standard_error
        earned = {"control.gain": control.gain, "control.gain_low": control.gain - half,
                  "control.gain_high": control.gain + half, "control.log_loss": control.log_loss_fixed,
                  "control.log_loss_adaptive": control.log_loss, "control.rows": float(control.rows)}  # fmt: skip
        models.log_metrics(run_id, earned)


def _columns(student: StudentRef) -> list[dict[str, Any]]:
    columns: list[dict[str, Any]] = json.loads((Path(student.folder) / "columns.json").read_text(encoding="utf-8"))
    return columns


def _refresh_id(settings: AgentConfig, as_of: datetime, *request: str) -> str:
    """The same request, the same id."""
    return short_id(settings.agent, as_of.isoformat(), *request, settings.model_dump_json())


def _train_and_test(settings: AgentConfig, window: Window) -> tuple[Window, Window]:
    """The two parts of what a refresh may look at."""
    test_start = window.end - settings.windows.test
    return (
        window.model_copy(update={"name": "train", "end": test_start}),
        window.model_copy(update={"name": "test", "start": test_start}),
    )


def _require_learnable(base: KnowledgeBase, train: Window, test: Window, as_of: datetime) -> None:
    settings = base.config
    rows = training_rows(base, train, as_of)
    _require_rows(rows, settings.windows.min_train_rows, train)
    _require_rows(labelled(base, test, as_of), settings.observations.min_rows, test)
    if not validation_days(rows["observed_at"], settings.distillation.validation_every).any():
        raise WindowError(
            f"{train} holds none of the days kept to choose among variants (every "
            f"{settings.distillation.validation_every}th): wait for more, lengthen `windows.train`, "
            f"or lower `distillation.validation_every`"
        )


def _require_rows(rows: pd.DataFrame, least: int, window: Window) -> None:
    if len(rows) < least:
        raise WindowError(
            f"{window} has {len(rows)} rows with known outcomes, and {least} are needed: wait for more, "
            f"or lengthen `windows.{window.name}` in the agent file"
        )


def _settings(settings: AgentConfig) -> dict[str, str]:
    """The settings that a refresh depends on, as MLflow parameters."""
    sections = {"distillation": settings.distillation, "student": settings.student, "windows": settings.windows,
                "budgets": settings.budgets, "promotion": settings.promotion,
                "teaching": settings.teaching, "asking": settings.asking}  # fmt: skip
    return {
        f"{name}.{key}": str(value) for name, section in sections.items() for key, value in section if value is not None
    }


def _log_cause(agent: str, cause: str, run_id: str) -> None:
    """The drift report that asked for this refresh, if one did, as record and figure of its MLflow run."""
    verdict = knowledge_base(agent).verdict(cause)
    if verdict is None or verdict.kind != "watch":
        return
    registry(agent).log_record(run_id, verdict, "drift/verdict.json")
    if report := drift_report(verdict):
        registry(agent).log_figure(run_id, drift_figure(report), "figures/drift.png")
