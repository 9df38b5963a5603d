"""Log a refresh to MLflow: its models, their metrics, the proof and the verdict; and move the alias."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
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
from stillhouse.records import Baseline, Frontier, ModelRef, Proof, Refresh, Scorecard, StudentRef, TeacherRef, Verdict
from stillhouse.refreshing import final_fit
from stillhouse.refreshing.modes import get_mode
from stillhouse.refreshing.modes.update import read_update_metrics
from stillhouse.refreshing.proving import estimate_loss_baselines, profile_training_window
from stillhouse.refreshing.same_rows import (
    compare_on_test_window,
    continue_quality_curves,
    gate_metrics,
    plain_metrics,
)
from stillhouse.refreshing.session import Session, close_session, get_session
from stillhouse.refreshing.students import read_columns, read_history
from stillhouse.refreshing.why import publish_why
from stillhouse.registry import Lineage, NewVariant, RefusedVariant, names
from stillhouse.registry.runs import days_since_1970
from stillhouse.shown import escape_line
from stillhouse.variant import Variant, encode

__all__ = ["closing_on_failure", "judge_challenger", "log_models", "read_challenger_name", "settle_refresh"]

log = logging.getLogger(__name__)


def log_models(session: Session, teacher: TeacherRef, student: StudentRef, frontier: Frontier, proof: Proof) -> None:
    """Log the models of the refresh, each with a nested run, and the baseline for later watches.

    The teacher, the student and the chosen variant are registered. All other candidates stay logged models of their
    runs, with their metrics.
    """
    job, registry = session.job, session.registry
    test = session.data.read_labelled(job.test)
    registry.runs.log_window(job.run_id, job.test, test, "test")
    teacher_version = registry.register(
        registry.models.log_teacher(job.run_id, teacher, proof.teacher, _describe_sources(session.settings)),
        f"{job.agent}-teacher",
    )
    drift = job.cause if job.trigger == "drift" else None
    lineage = Lineage(teacher=teacher_version, knowledge=job.train.versions, drift=drift)
    lineage = lineage.model_copy(update={"student": _log_student(session, student, proof, lineage, test)})
    challenger = _log_candidates(session, frontier, proof, lineage, test)
    final_fit.keep_inputs(session, teacher, student, frontier, teacher_version)
    chosen = Variant(frontier.named(frontier.chosen).folder)
    profile, calibration = profile_training_window(session, chosen)
    baseline = Baseline(
        as_of=job.as_of,
        train=get_mode(job).find_training_window(session),
        test=job.test,
        screens=calibration,
        losses=estimate_loss_baselines(session, teacher, chosen),
        disagreement=proof.disagreement,
        quality=proof.certificate.challenger.test,
        teacher=teacher_version,
    )
    same_rows = compare_on_test_window(session, proof, challenger)
    registry.runs.log(
        job.run_id,
        files={
            names.MODEL_STATE: (Path(job.folder) / "compression" / FLOAT32_GRAPH_FILE).read_bytes(),
            names.PROFILE: profile.to_bytes(),
            names.BASELINE: baseline,
            names.TRADEOFF_FIGURE: figures.plot_tradeoff(proof),
            names.PROOF: proof,
            names.SAME_ROWS: same_rows,
        },
        metrics=plain_metrics(proof, same_rows),
    )
    continue_quality_curves(session, same_rows)


def judge_challenger(session: Session, proof: Proof) -> Verdict:
    """The gate's verdict, stored before any alias moves; what it compared also stands in the version's run."""
    job, registry, metrics = session.job, session.registry, gate_metrics(proof.certificate)
    verdict = gate.judge(proof.certificate)
    challenger = registry.version(job.agent, registry.version_of(job.refresh_id, proof.chosen))
    if challenger is not None and metrics:
        registry.log_gate(challenger, metrics)
    name = job.run_name(verdict.result)
    registry.runs.log_verdict(job.run_id, proof.certificate, verdict, name=name, metrics=metrics)
    return verdict


def settle_refresh(session: Session, verdict: Verdict) -> None:
    """Carry out the verdict, record it, and close the run. Can be repeated if it is killed at any point."""
    job, registry = session.job, session.registry
    version = _find_version(session, verdict)
    if version is not None and verdict.result == "promoted":
        registry.promote(version)
        log.info("%s@%s is champion", job.agent, version)
    elif version is not None and verdict.result == "awaiting_approval":
        registry.propose(version)
        log.info("%s@%s waits for a person: approve or reject it", job.agent, version)
    publish_why(session, verdict, registry.version(job.agent, version) if version is not None else None)
    session.base.journal.append_verdict(verdict)
    registry.runs.close_refresh(job.run_id)
    shutil.rmtree(Path(job.folder).parent, ignore_errors=True)  # also files of killed refreshes
    close_session(job.refresh_id)


@contextmanager
def closing_on_failure(job: Refresh) -> Iterator[None]:
    """If the refresh raises, end its MLflow run with the reason, so that no run stays open.

    An error marks it as FAILED, with the message; a cancellation, Ctrl-C or another signal as KILLED, saying so.
    """
    try:
        yield
    except Exception as error:
        _close_run(job, failed=f"{type(error).__name__}: {error}")
        raise
    except BaseException as signal:  # Ctrl-C, the exit of the process, or a cancellation in Prefect
        by = "Ctrl-C" if isinstance(signal, KeyboardInterrupt) else "a cancellation, or a signal to its process"
        _close_run(job, killed=f"stopped by {by}, before its verdict was carried out; the same request continues it")
        raise


def read_challenger_name(verdict: Verdict) -> str:
    """The name of the challenger in a verdict of the gate."""
    certificate: Any = verdict.evidence["certificate"]
    return str(certificate["challenger"]["model"])


# --------------------------------------------------------------------------- inside


def _close_run(job: Refresh, *, failed: str | None = None, killed: str | None = None) -> None:
    log.info("%s: %s; MLflow run %s", job.agent, escape_line(failed or killed), job.run_id)
    get_session(job).registry.runs.close_refresh(job.run_id, failed=failed, killed=killed)
    close_session(job.refresh_id)


def _find_version(session: Session, verdict: Verdict) -> str | None:
    """The version that the verdict is about: the final fit where that decides; None if the teacher was refused."""
    if "certificate" not in verdict.evidence:
        return None
    final_version = final_fit.find_deciding_version(session) if verdict.result == "promoted" else None
    return final_version or session.registry.version_of(session.job.refresh_id, read_challenger_name(verdict))


def _describe_own_quality(card: Scorecard, job: Refresh) -> dict[str, object]:
    """Tags of a new version: its quality on a window of its own carries the window's dates."""
    quality = f"{card.test.measure} {card.test.score:.4f} on its own test window, {job.test.dates}"
    return {"quality": quality, "result": "not judged yet"}


def _describe_sources(settings: AgentConfig) -> dict[str, str]:
    """The source of each teacher by name: its target, its address in MLflow, or its model at an endpoint."""
    sources = {}
    for leaf in config.leaves(settings.teachers):
        source = leaf.teacher.model_dump(include={"target", "uri", "base_url", "model"})
        sources[leaf.name] = " ".join(source.values())
    return sources


def _log_student(
    session: Session, student: StudentRef, proof: Proof, lineage: Lineage, test: pd.DataFrame
) -> ModelRef | None:
    """Log and register the student with its training history; after a recalibration, the champion's student."""
    job, registry, settings = session.job, session.registry, session.settings
    if not get_mode(job).trains:
        return registry.version(f"{job.agent}-student", "champion")
    module, example = (
        students.load(Path(student.folder), settings),
        encode(session.example_rows(test), read_columns(student)),
    )
    params, history = dict(session.distillation) | {"mode": job.mode}, read_history(student)
    logged = registry.models.log_student(
        job.run_id,
        module,
        example,
        proof.student,
        params,
        lineage,
        Path(student.folder),
        metrics=_control_metrics(history) | read_update_metrics(student),
        history=student.history,
        files={names.TRAINING_HISTORY: history},
    )
    return registry.register(logged, f"{job.agent}-student")


def _control_metrics(history: TrainingHistory) -> dict[str, float]:
    """The gain of the controller over fixed settings; empty if it was not measured."""
    if (control := history.control) is None:
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


def _log_candidates(
    session: Session, frontier: Frontier, proof: Proof, lineage: Lineage, test: pd.DataFrame
) -> ModelRef:
    """Log every candidate in a nested run, usable ones with a model, and the frontier as table and figure.

    :returns: the version of the chosen one.
    """
    job, registry = session.job, session.registry
    cards = {card.model: card for card in proof.variants}
    variants: list[NewVariant | RefusedVariant] = []
    for candidate in frontier.candidates:
        params = {"recipe": json.dumps(candidate.recipe), "own_test_window": job.test.dates}
        if candidate.refused is not None:
            variants.append(RefusedVariant(candidate.name, candidate.refused, params))
            continue
        card, is_chosen = cards[candidate.name], candidate.name == frontier.chosen
        shown = _describe_own_quality(card, job) if is_chosen else None
        points = [(job.test.end, days_since_1970(job.test.end), {"quality": card.test.score})]
        metrics = candidate_metrics(candidate)
        tags = {"chosen": is_chosen}
        variants.append(NewVariant(Path(candidate.folder), card, params, metrics, shown, points, tags))
    refs = registry.publish_variants(job.run_id, variants, lineage, session.example_rows(test))
    log_frontier(registry.runs, job.run_id, frontier)
    return refs[frontier.chosen]
