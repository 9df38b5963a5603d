"""The proof of a refresh: every model on every window, and what the challenger's later watches compare with."""

from __future__ import annotations

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
from stillhouse.evaluate.proof import Contender
from stillhouse.records import (
    Certificate,
    DriftCalibration,
    Frontier,
    LossBaseline,
    Process,
    Proof,
    StudentRef,
    TeacherRef,
)
from stillhouse.refreshing.data import Array
from stillhouse.refreshing.session import Session
from stillhouse.refreshing.students import student_columns
from stillhouse.registry import names
from stillhouse.stats import half_brier, total_variation
from stillhouse.variant import Variant, encode

__all__ = ["anchor_of", "loss_baselines", "prove_challenger", "reference_profile", "windows_to_prove"]


def prove_challenger(session: Session, teacher: TeacherRef, student: StudentRef, frontier: Frontier) -> Proof:
    """Scorecards for all models on the validation days, the test window and the champion's own test window."""
    champion = session.champion
    windows = windows_to_prove(session)
    one = windows["test"].iloc[[0]]
    anchor = anchor_of(session)
    proof = proofs.prove(
        session.settings,
        session.job,
        windows,
        teacher=_teacher(session, teacher, one),
        student=_student(session, student),
        variants=[
            _deployed(session, each.name, "variant", Variant(each.folder), each.bytes, one) for each in frontier.able
        ],
        chosen=frontier.chosen,
        why=frontier.why,
        fits=frontier.fits,
        champion=_champion(session, champion, one) if champion else None,
        anchor=_deployed(session, str(anchor.model), "champion", anchor.variant, 0, one) if anchor else None,
        cpu=processor().name,
    )
    certificate = proof.certificate.model_copy(update={"contract_skipped": session.job.contract_skipped})
    return proof.model_copy(update={"certificate": certificate})


def windows_to_prove(session: Session) -> dict[str, pd.DataFrame]:
    """Labelled rows by window: ``validation``, ``test`` and, where there is a champion, ``past``, its test window."""
    windows = {
        "validation": session.training.labelled_validation,
        "test": session.data.labelled(session.job.test),
    }
    if session.champion and len(past := session.data.labelled(session.champion.baseline.test)):
        windows["past"] = past
    return windows


def anchor_of(session: Session) -> Champion | None:
    """The earlier champion that the losses of promotions are added up from; None: the champion is its own.

    It is so for one whose certificate is not known, and where the anchor has been deleted or reads other columns.
    """
    registry, champion = session.registry, session.champion
    if champion is None:
        return None
    certificate = registry.runs.read_record(
        registry.models.tags(champion.model)["refresh_run"], names.CERTIFICATE, Certificate
    )
    name = gate.next_anchor(certificate) if certificate is not None else None
    model = registry.version(session.agent, name.rpartition("@")[2]) if name is not None else None
    if model is None:
        return None
    anchor = load_version(session.agent, model)
    lacking = {column["name"] for column in anchor.variant.columns} - set(session.settings.observations.columns)
    return None if lacking else anchor


def reference_profile(session: Session, chosen: Variant) -> tuple[Profile, DriftCalibration]:
    """The profile of the whole training window and of the variant's output on it, and which distances are usual."""
    columns = session.settings.observations.columns
    rows = texts.add_text_measures(session.data.observations(session.job.train), columns, chosen.columns)
    return profile_reference(rows, chosen.predict_proba(rows), session.settings)


def loss_baselines(session: Session, teacher: TeacherRef, chosen: Variant) -> dict[Process, LossBaseline]:
    """How far the chosen variant and its teacher are from each other and from the labels, on rows new to both.

    Those are the validation days, about which the teacher's folds were asked, and what it was examined on.
    """
    settings = session.settings
    validation, test = session.training.labelled_validation, session.data.labelled(session.job.test)
    rows = pd.concat([validation, test], ignore_index=True)
    teacher_probs = session.base.answers.probs(rows, teacher.version)
    answered = ~np.isnan(teacher_probs[:, 0])
    rows, teacher_probs = rows[answered], teacher_probs[answered]
    probs, labels = chosen.predict_proba(rows), rows["outcome"].to_numpy()
    losses: dict[Process, Array] = {
        "disagreement": total_variation(teacher_probs, probs),
        "student_outcomes": half_brier(probs, labels),
        "teacher_outcomes": half_brier(teacher_probs, labels),
    }
    times, cluster = rows["observed_at"], settings.promotion.cluster
    block = typical_length(session.training.labelled, settings)
    return {
        process: estimate_loss_baseline(loss, times, cluster, block, settings.watch.every)
        for process, loss in losses.items()
    }


# --------------------------------------------------------------------------- candidates


def _teacher(session: Session, teacher: TeacherRef, one: pd.DataFrame) -> Contender:
    members = session.teacher(teacher)
    return Contender(
        "teacher",
        "teacher",
        lambda rows: session.base.answers.probs(rows, teacher.version),
        teacher.bytes,
        (lambda: members.ask(one)) if members.local else None,
    )


def _student(session: Session, student: StudentRef) -> Contender:
    module, columns = students.load(Path(student.folder), session.settings), student_columns(student)
    return Contender(
        "student", "student", lambda rows: student_probabilities(module, encode(rows, columns)), student.bytes
    )


def _champion(session: Session, champion: Champion, one: pd.DataFrame) -> Contender:
    size = session.registry.models.scorecard(champion.model).bytes
    return _deployed(session, str(champion.model), "champion", champion.variant, size, one)


def _deployed(
    session: Session, name: str, role: Literal["variant", "champion"], variant: Variant, size: int, one: pd.DataFrame
) -> Contender:
    actions, row = session.settings.actions, encode(one, variant.columns)

    def predict(rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        return align_actions(variant.predict_proba(rows), variant.actions, actions)

    return Contender(name, role, predict, size, lambda: variant.probabilities(row))
