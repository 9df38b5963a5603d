"""What a refresh leaves in MLflow: its models, their figures, the proof, the verdict, and the alias."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd

from stillhouse import config
from stillhouse.compress.search.figures import candidate_metrics
from stillhouse.compress.search.greedy import FLOAT32_GRAPH_FILE
from stillhouse.compressing import log_frontier
from stillhouse.config import AgentConfig
from stillhouse.distill import students
from stillhouse.distill.history import TrainingHistory
from stillhouse.evaluate import figures, gate
from stillhouse.records import Baseline, Frontier, ModelRef, Proof, Refresh, StudentRef, TeacherRef, Verdict
from stillhouse.refreshing.modes import mode_of
from stillhouse.refreshing.modes.update import update_metrics
from stillhouse.refreshing.proving import loss_baselines, reference_profile
from stillhouse.refreshing.session import Session, close_session, session_of
from stillhouse.refreshing.students import course_of, student_columns
from stillhouse.registry import Lineage, NewVariant, RefusedVariant, names
from stillhouse.variant import Variant, encode

_SHOWN = timedelta(days=400)
"""How far the figure of quality over time looks back: a refresh costs the same however long the agent has lived."""

__all__ = ["challenger_name", "closing_on_failure", "judge_challenger", "log_models", "settle_refresh"]


def log_models(session: Session, teacher: TeacherRef, student: StudentRef, frontier: Frontier, proof: Proof) -> None:
    """Log teacher, student and every candidate, a nested run and a logged model each, and what watches will need.

    Versions are registered of the teacher, the student, and the candidates that nothing beats or that were asked for.
    """
    job, registry, base = session.job, session.registry, session.base
    test = session.data.labelled(job.test)
    registry.runs.log_window(job.run_id, job.test, test, "test")
    logged_teacher = registry.register(
        registry.models.log_teacher(job.run_id, teacher, proof.teacher, _sources(session.settings)),
        f"{job.agent}-teacher",
    )
    drift = job.cause if job.trigger == "drift" else None
    lineage = Lineage(teacher=logged_teacher, knowledge=job.train.versions, drift=drift)
    lineage = lineage.model_copy(update={"student": _logged_student(session, student, proof, lineage, test)})
    _log_candidates(session, frontier, proof, lineage, test)
    chosen = Variant(frontier.named(frontier.chosen).folder)
    profile, screens = reference_profile(session, chosen)
    baseline = Baseline(
        as_of=job.as_of,
        train=mode_of(job).learned_from(session),
        test=job.test,
        screens=screens,
        losses=loss_baselines(session, teacher, chosen),
        disagreement=proof.disagreement,
        quality=proof.certificate.challenger.test,
        teacher=logged_teacher,
    )
    registry.runs.log_files(
        job.run_id,
        {
            names.MODEL_STATE: (Path(job.folder) / "compression" / FLOAT32_GRAPH_FILE).read_bytes(),
            names.PROFILE: profile.to_bytes(),
            names.BASELINE: baseline,
            names.TRADEOFF_FIGURE: figures.plot_tradeoff(proof),
            names.QUALITY_FIGURE: figures.plot_quality(base.journal.verdicts(since=job.as_of - _SHOWN)),
            names.PROOF: proof,
        },
    )


def judge_challenger(session: Session, proof: Proof) -> Verdict:
    """The gate's verdict, stored before any alias moves."""
    verdict = gate.judge(proof.certificate)
    session.registry.runs.log_verdict(session.job.run_id, proof.certificate, verdict)
    return verdict


def settle_refresh(session: Session, verdict: Verdict) -> None:
    """Do what the verdict says, record it, close the run. Can be repeated after a kill at any point."""
    job, registry = session.job, session.registry
    if verdict.result == "promoted":
        registry.promote(registry.version_of(job.refresh_id, challenger_name(verdict)))
    elif verdict.result == "awaiting_approval":
        registry.propose(registry.version_of(job.refresh_id, challenger_name(verdict)))
    session.base.journal.append_verdict(verdict)
    registry.runs.close_refresh(job.run_id)
    shutil.rmtree(Path(job.folder).parent, ignore_errors=True)  # what killed refreshes left, too
    close_session(job.refresh_id)


@contextmanager
def closing_on_failure(job: Refresh) -> Iterator[None]:
    """Mark the MLflow run failed when the refresh cannot be finished, so that none is left running."""
    try:
        yield
    except BaseException as error:  # a cancellation too
        session_of(job).registry.runs.close_refresh(job.run_id, failed=f"{type(error).__name__}: {error}")
        close_session(job.refresh_id)
        raise


def challenger_name(verdict: Verdict) -> str:
    """Name of the variant that a gate's verdict is about."""
    certificate: Any = verdict.evidence["certificate"]
    return str(certificate["challenger"]["model"])


# --------------------------------------------------------------------------- inside


def _sources(settings: AgentConfig) -> dict[str, str]:
    """Where each teacher comes from: its target, its address in MLflow, or its model at an endpoint."""
    named = {}
    for leaf in config.leaves(settings.teachers):
        source = leaf.teacher.model_dump(include={"target", "uri", "base_url", "model"})
        named[leaf.name] = " ".join(source.values())
    return named


def _logged_student(
    session: Session, student: StudentRef, proof: Proof, lineage: Lineage, test: pd.DataFrame
) -> ModelRef | None:
    """The student with how its training went; a recalibrated one is the champion's."""
    job, registry, settings = session.job, session.registry, session.settings
    if not mode_of(job).trains:
        return registry.version(f"{job.agent}-student", "champion")
    module, example = students.load(Path(student.folder), settings), encode(test.head(4), student_columns(student))
    params, course = dict(settings.distillation) | {"mode": job.mode}, course_of(student)
    logged = registry.models.log_student(
        job.run_id,
        module,
        example,
        proof.student,
        params,
        lineage,
        Path(student.folder),
        metrics=_control_metrics(course) | update_metrics(student),
        history=student.history,
        files={names.TRAINING_HISTORY: course},
    )
    return registry.register(logged, f"{job.agent}-student")


def _control_metrics(course: TrainingHistory) -> dict[str, float]:
    """What the controller's changes have earned against the fixed settings, where that was compared."""
    if (control := course.control) is None:
        return {}
    half = 1.96 * control.standard_error
    return {
        "control.gain": control.gain,
        "control.gain_low": control.gain - half,
        "control.gain_high": control.gain + half,
        "control.log_loss": control.log_loss_fixed,
        "control.log_loss_adaptive": control.log_loss,
        "control.rows": float(control.rows),
    }


def _log_candidates(session: Session, frontier: Frontier, proof: Proof, lineage: Lineage, test: pd.DataFrame) -> None:
    """Every candidate in a nested run, those that can serve as a logged model; the frontier as table and figure."""
    job, registry = session.job, session.registry
    cards = {card.model: card for card in proof.variants}
    asked_for = {config.recipe_name(recipe) for recipe in session.settings.compression.recipes}
    registered = {*frontier.best, *asked_for, frontier.chosen}
    variants: list[NewVariant | RefusedVariant] = []
    for candidate in frontier.candidates:
        params = {"recipe": json.dumps(candidate.recipe)}
        if candidate.refused is not None:
            variants.append(RefusedVariant(candidate.name, candidate.refused, params))
            continue
        tags = {"chosen": candidate.name == frontier.chosen} if candidate.name in registered else None
        card = cards[candidate.name]
        variants.append(NewVariant(Path(candidate.folder), card, params, candidate_metrics(candidate), tags))
    registry.publish_variants(job.run_id, variants, lineage, test.head(4))
    log_frontier(registry.runs, job.run_id, frontier)
