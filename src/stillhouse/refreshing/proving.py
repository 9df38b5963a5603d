"""Prove a challenger: measure every model on every window, and compute the baselines for later watches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from stillhouse.actions import align_actions
from stillhouse.champion import Champion, load_version
from stillhouse.compress.processor import processor
from stillhouse.distill import students
from stillhouse.distill.train import student_probabilities
from stillhouse.drift import texts
from stillhouse.drift.calibrate import estimate_loss_baseline
from stillhouse.drift.measure import profile_reference, typical_length
from stillhouse.drift.profile import Profile
from stillhouse.evaluate import gate
from stillhouse.evaluate import proof as proofs
from stillhouse.evaluate.proof import Contender, Predict, Yardsticks
from stillhouse.evaluate.sources import describe_answers, describe_model, describe_settings, describe_window
from stillhouse.quality import measure_title
from stillhouse.records import (
    Certificate,
    DriftCalibration,
    Frontier,
    LossBaseline,
    Process,
    Proof,
    Scorecard,
    Sources,
    StudentRef,
    TeacherRef,
    Window,
)
from stillhouse.refreshing.data import Array, RefreshData
from stillhouse.refreshing.promising import write_promise
from stillhouse.refreshing.session import Session
from stillhouse.refreshing.students import read_columns
from stillhouse.registry import names
from stillhouse.stats import half_brier, total_variation
from stillhouse.variant import Variant, encode

__all__ = [
    "PROOF_SECTIONS",
    "estimate_loss_baselines",
    "load_earlier",
    "load_yardsticks",
    "make_predict",
    "profile_training_window",
    "prove_challenger",
    "read_proof_windows",
    "read_windows",
]

log = logging.getLogger(__name__)

PROOF_SECTIONS = ("actions", "observations", "quality", "promotion", "budgets", "windows", "distillation", "asking")
"""Sections of the agent file that the figures of a certificate depend on."""


def prove_challenger(session: Session, teacher: TeacherRef, student: StudentRef, frontier: Frontier) -> Proof:
    """Measure all models on the validation days, the test window and what a challenger should not forget."""
    frontier = write_promise(session, teacher, frontier)
    champion = session.champion
    windows = read_proof_windows(session)
    yardsticks = load_yardsticks(session)
    log.info("proof on %s", ", ".join(f"{name} ({len(rows):,} rows)" for name, rows in windows.items()))
    latency_row = windows["test"].iloc[[0]]
    proof = proofs.prove(
        session.settings,
        session.job,
        windows,
        teacher=_make_teacher_contender(session, teacher, latency_row),
        student=_make_student_contender(session, student),
        variants=[
            _make_deployed_contender(
                session, candidate.name, "variant", Variant(candidate.folder), candidate.bytes, latency_row
            )
            for candidate in frontier.servable
        ],
        chosen=frontier.chosen,
        why=frontier.why,
        fits=frontier.fits,
        champion=_make_champion_contender(session, champion, latency_row) if champion else None,
        yardsticks=yardsticks,
        cpu=processor().name,
    )
    certificate = proof.certificate.model_copy(
        update={
            "contract_skipped": session.job.contract_skipped,
            "sources": _describe_sources(session, teacher, frontier, windows, yardsticks),
        }
    )
    for card in (proof.teacher, proof.student, certificate.challenger, *filter(None, [proof.champion])):
        log.info("%s %s: %s %.4f on the test window", card.role, card.model, *_describe_quality(card))
    return proof.model_copy(update={"certificate": certificate})


def read_proof_windows(session: Session) -> dict[str, pd.DataFrame]:
    """Labelled rows by window: ``validation``, ``test``, and with a champion ``past`` and the windows to remember.

    ``past`` is the champion's own test window. Windows without rows are left out, but ``validation`` and ``test``.
    """
    windows = _list_proof_windows(session)
    return read_windows(
        session.data, windows["validation"], [windows[name] for name in windows if name != "validation"]
    )


def _describe_quality(card: Scorecard) -> tuple[str, float]:
    """The named measure and its value on the test window."""
    return measure_title(card.test.measure), card.test.score


def read_windows(data: RefreshData, train: Window, others: Sequence[Window]) -> dict[str, pd.DataFrame]:
    """Labelled rows by window name: ``validation`` of the training window, ``test``, and others that have rows."""
    rows = {"validation": data.read_training_rows(train).labelled_validation}
    labelled = {window.name: data.read_labelled(window) for window in others}
    return rows | {name: labelled[name] for name in labelled if name == "test" or len(labelled[name])}


def _list_proof_windows(session: Session) -> dict[str, Window]:
    """The windows by name; that of ``validation`` is the whole training window."""
    windows = {"validation": session.job.train, "test": session.job.test}
    if session.champion is None:
        return windows
    windows["past"] = session.champion.baseline.test.model_copy(update={"name": "past"})
    return windows | {
        window.name: Window(name=window.name, start=window.start, end=window.end, versions=session.job.test.versions)
        for window in session.settings.promotion.remember.windows
    }


def _describe_sources(
    session: Session,
    teacher: TeacherRef,
    frontier: Frontier,
    windows: dict[str, pd.DataFrame],
    yardsticks: Yardsticks,
) -> Sources:
    """What the figures of the certificate are computed from."""
    champion, spans, test = session.champion, _list_proof_windows(session), windows["test"]
    models = [describe_model("challenger", frontier.chosen, frontier.named(frontier.chosen).folder)]
    if champion is not None:
        models.append(describe_model("champion", str(champion.model), champion.folder))
    return Sources(
        windows=tuple(
            describe_window(spans[name].model_copy(update={"name": name}), rows) for name, rows in windows.items()
        ),
        models=(*models, *yardsticks.describe()),
        answers=(describe_answers(teacher.version, "test", test, session.base.answers.probs(test, teacher.version)),),
        settings=describe_settings(session.settings, PROOF_SECTIONS),
    )


def load_yardsticks(session: Session) -> Yardsticks:
    """The earlier champions that the challenger is compared with on current rows: anchor, first, and the newest others.

    The pool's size (``watch.payoff.pool``) limits how many are loaded.
    """
    if session.champion is None:
        return Yardsticks()
    skipped = {str(session.champion.model)}

    def make_contender(name: str | None) -> Contender | None:
        earlier = load_earlier(session, name) if name is not None and name not in skipped else None
        if earlier is None:
            return None
        skipped.add(str(earlier.model))
        predict = make_predict(earlier.variant, session.settings.actions)
        return Contender(str(earlier.model), "champion", predict, 0, folder=earlier.folder, policy=predict)

    champions = session.registry.champions()
    anchor = make_contender(_find_anchor(session))
    first = make_contender(str(champions[0]) if champions else None)
    newest = champions[: -session.settings.watch.payoff.pool - 1 : -1]
    others = tuple(contender for model in newest if (contender := make_contender(str(model))) is not None)
    return Yardsticks(anchor, first, others)


def _find_anchor(session: Session) -> str | None:
    """The earlier champion from which the losses of several promotions are added up; None: the champion, or unknown."""
    registry, champion = session.registry, session.champion
    assert champion is not None  # as checked by the caller
    certificate = registry.runs.read_record(
        registry.models.tags(champion.model)["refresh_run"], names.CERTIFICATE, Certificate
    )
    return gate.next_anchor(certificate) if certificate is not None else None


def load_earlier(session: Session, name: str) -> Champion | None:
    """An earlier champion; None if it was deleted or reads columns that the agent file no longer has."""
    model = session.registry.version(session.agent, name.rpartition("@")[2])
    if model is None:
        return None
    earlier = load_version(session.agent, model)
    missing = {column["name"] for column in earlier.variant.columns} - set(session.settings.observations.columns)
    return None if missing else earlier


def profile_training_window(session: Session, chosen: Variant) -> tuple[Profile, DriftCalibration]:
    """The profile of the training window and of the variant's output on it, and the calibrated drift limits."""
    columns = session.settings.observations.columns
    rows = texts.add_text_measures(session.data.read_observations(session.job.train), columns, chosen.columns)
    return profile_reference(rows, chosen.predict_proba(rows), session.settings)


def estimate_loss_baselines(session: Session, teacher: TeacherRef, chosen: Variant) -> dict[Process, LossBaseline]:
    """The losses of the chosen variant and its teacher against each other and the labels, on rows new to both.

    These are the validation days, on which the teacher was cross-fitted, and the rows of its examination.
    """
    settings = session.settings
    validation, test = session.training_rows.labelled_validation, session.data.read_labelled(session.job.test)
    rows = pd.concat([validation, test], ignore_index=True)
    teacher_probs = session.base.answers.probs(rows, teacher.version)
    answered = ~np.isnan(teacher_probs[:, 0])
    rows, teacher_probs = rows[answered], teacher_probs[answered]
    probs, labels = chosen.predict_proba(rows), rows["outcome"].to_numpy()
    losses: dict[Process, Array] = {
        "disagreement": total_variation(teacher_probs, probs),
        "student_outcomes": half_brier(probs, labels),
    }
    if settings.outcomes is not None:  # otherwise the labels are the teacher's own answers
        losses["teacher_outcomes"] = half_brier(teacher_probs, labels)
    times, cluster = rows["observed_at"], settings.promotion.cluster
    block = typical_length(session.training_rows.labelled, settings)
    return {
        process: estimate_loss_baseline(loss, times, cluster, block, settings.watch.every)
        for process, loss in losses.items()
    }


# --------------------------------------------------------------------------- contenders


def _make_teacher_contender(session: Session, teacher: TeacherRef, latency_row: pd.DataFrame) -> Contender:
    members = session.load_teacher(teacher)
    return Contender(
        "teacher",
        "teacher",
        lambda rows: session.base.answers.probs(rows, teacher.version),
        teacher.bytes,
        (lambda: members.ask(latency_row)) if members.local else None,
        policy=members.ask if members.local else None,
    )


def _make_student_contender(session: Session, student: StudentRef) -> Contender:
    module, columns = students.load(Path(student.folder), session.settings), read_columns(student)

    def predict(rows: pd.DataFrame) -> Array:
        return student_probabilities(module, encode(rows, columns))

    return Contender("student", "student", predict, student.bytes, policy=predict)


def _make_champion_contender(session: Session, champion: Champion, latency_row: pd.DataFrame) -> Contender:
    size = session.registry.models.scorecard(champion.model).bytes
    return _make_deployed_contender(session, str(champion.model), "champion", champion.variant, size, latency_row)


def _make_deployed_contender(
    session: Session,
    name: str,
    role: Literal["variant", "champion"],
    variant: Variant,
    size: int,
    latency_row: pd.DataFrame,
) -> Contender:
    row, predict = encode(latency_row, variant.columns), make_predict(variant, session.settings.actions)
    return Contender(name, role, predict, size, lambda: variant.probabilities(row), policy=predict)


def make_predict(variant: Variant, actions: Sequence[str]) -> Predict:
    """Probabilities of ``actions``, those of the agent file."""

    def predict(rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        return align_actions(variant.predict_proba(rows), variant.actions, actions)

    return predict
