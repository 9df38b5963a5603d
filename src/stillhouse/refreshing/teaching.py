"""The teachers of a refresh: fit or keep, weigh, examine and compare them, and gather their probabilities."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd

from stillhouse.actions import align_actions
from stillhouse.distill import select
from stillhouse.distill.split import mask_validation_rows
from stillhouse.errors import PartError, RegistryError, WindowError
from stillhouse.evaluate import admission, figures
from stillhouse.records import Examination, Frontier, Questions, TeacherRef, Verdict, short_id
from stillhouse.refreshing.data import Array, Mask, TrainingRows
from stillhouse.refreshing.session import Session
from stillhouse.registry import names
from stillhouse.registry.runs import Content
from stillhouse.shown import escape_line
from stillhouse.teachers import ensemble, labeling, mixture_weights, weight_updates
from stillhouse.teachers.contradictions import find_contradictions
from stillhouse.teachers.ensemble import Ensemble
from stillhouse.teachers.labeling import LabelingBudget
from stillhouse.teachers.synthetic import ask_about_synthetic
from stillhouse.variant import Variant

__all__ = [
    "compare_teachers",
    "compare_with_student",
    "examine_teacher",
    "gather_knowledge",
    "prepare_teacher",
    "select_rows_to_ask",
    "weigh_teachers",
]

log = logging.getLogger(__name__)


def prepare_teacher(session: Session) -> TeacherRef:
    """Fit the teachers on the training window, or fetch the champion's teachers.

    :raises RegistryError: if the champion's teachers are to be kept, and there is no champion.
    :raises PartError: if they were made for other actions than the agent file has now.
    """
    teacher = _fit_or_keep(session)
    _adopt_recorded_answers(session, teacher)
    return teacher


def _fit_or_keep(session: Session) -> TeacherRef:
    job, settings = session.job, session.settings
    if job.teacher == "fit":
        rows = session.training_rows.labelled
        session.registry.runs.log_window(job.run_id, job.train, rows, "training")
        log.info("teachers: fitted on %s rows of %s", f"{len(rows):,}", job.train)
        folder = Path(job.folder) / "teacher"
        return ensemble.fit(settings, rows, job.train, folder, session.foreign_models, now=job.as_of)
    champion = session.champion
    if champion is None:
        raise RegistryError(
            f"agent {job.agent!r} has no champion whose teacher could be kept: refresh with teacher=fit"
        )
    if champion.actions != settings.actions:
        raise PartError(
            f"the teacher of {champion.model} was made for the actions {', '.join(champion.actions)}, and "
            f"{settings.file} has {', '.join(settings.actions)} now: refresh with teacher=fit"
        )
    log.info("teachers: those of %s are kept", champion.model)
    return ensemble.read_reference(champion.teacher_folder(), champion.baseline.teacher)


def _adopt_recorded_answers(session: Session, teacher: TeacherRef) -> None:
    """Without outcomes: the recorded answers of both windows as what this teacher knows, so nothing is asked twice."""
    if session.settings.labels_are == "outcomes":
        return
    job = session.job
    labelled = [session.training_rows.labelled, session.data.read_labelled(job.test)]
    rows = pd.concat(labelled, ignore_index=True)
    adopted = labeling.adopt_recorded_answers(session.base, teacher.version, rows)
    log.info("teachers: %s recorded answers need not be asked for again", f"{adopted:,}")
    session.training_rows.forget_teacher_probs()


def weigh_teachers(session: Session, teacher: TeacherRef) -> TeacherRef:
    """Learn the teachers' weights from the labels of the training window, and record each change.

    :returns: the same teachers with the learned weights.
    """
    job, base, registry = session.job, session.base, session.registry
    rows, members = session.training_rows.labelled, session.load_teacher(teacher)
    weight_updates.label_for_weighting(base, members, rows, session.budget, fit=job.teacher == "fit")
    log_spending(session)
    trajectory = weight_updates.learn_weights(base, members, job.as_of, rows)
    if trajectory is None:
        return teacher
    weighted = ensemble.reweigh(teacher, trajectory.mixture, Path(job.folder) / "teacher")
    base.journal.append_weight_changes(
        mixture_weights.find_changes(
            trajectory.mixture, _read_last_weights(session), version=weighted.version, job=job.refresh_id
        )
    )
    labeling.store_mean_probs(base, session.reweigh(teacher, weighted, trajectory.mixture), rows)
    files: dict[str, Content] = {
        names.WEIGHTS: trajectory.mixture,
        names.WEIGHTS_FIGURE: figures.plot_teacher_weights(base.journal.weight_changes()),
    }
    registry.runs.log(job.run_id, files=files, points=trajectory.points("weight/"))
    return teacher if weighted.version == teacher.version else weighted


def compare_teachers(session: Session, teacher: TeacherRef) -> None:
    """Log how often the teachers contradict each other on the training window, by slice, and which one is right."""
    members = session.load_teacher(teacher)
    if len(members.members) < 2:
        return
    rows = session.training_rows.labelled
    answers = labeling.member_probs(session.base, members, rows)
    contradictions = find_contradictions(session.settings, session.job.train, rows, answers, rows["outcome"].to_numpy())
    session.registry.runs.log_record(session.job.run_id, contradictions, names.CONTRADICTIONS)


def compare_with_student(session: Session, teacher: TeacherRef, frontier: Frontier) -> None:
    """Log where the challenger and its teachers contradict each other on the test window, by slice and place.

    The record has no rows: `stillhouse teachers --contradictions` shows some.
    """
    job, members = session.job, session.load_teacher(teacher)
    rows = session.data.read_labelled(job.test)
    variant = Variant(frontier.named(frontier.chosen).folder)
    probs = {frontier.chosen: align_actions(variant.predict_proba(rows), variant.actions, session.settings.actions)}
    probs |= labeling.member_probs(session.base, members, rows)
    labels = rows["outcome"].to_numpy()
    contradictions = find_contradictions(session.settings, job.test, rows, probs, labels, places=True)
    with_student = tuple(c for c in contradictions.contradictions if c.first == frontier.chosen)
    contradictions = contradictions.model_copy(update={"contradictions": with_student})
    session.registry.runs.log_record(job.run_id, contradictions, names.STUDENT_CONTRADICTIONS)


def examine_teacher(session: Session, teacher: TeacherRef) -> Verdict:
    """Admit the teacher or refuse it, by its answers to test rows, whose labels it has not seen.

    :raises WindowError: if the budget or the teacher's server allows too few questions for an examination.
    """
    job, settings = session.job, session.settings
    budget, members = session.budget, session.load_teacher(teacher)
    rows = session.data.read_labelled(job.test)
    if not all(member.version is None for member in members.members):
        rows = rows.sort_values("content_key").head(settings.teaching.rows).sort_values("observed_at")
    probs = labeling.ask(members, rows, budget)
    log_spending(session)
    answered = ~np.isnan(probs[:, 0])
    if budget.stop_reason and answered.sum() < settings.teaching.min_answered * len(rows):
        raise WindowError(
            f"the teacher has answered {answered.sum()} of {len(rows)} rows that it is to be examined on: "
            f"{budget.stop_reason}. Its answers are kept; allow it more, or lower `teaching.rows`"
        )
    examination = _examine(session, teacher, rows, probs, rows[~answered])
    verdict = admission.judge(examination)
    log.info("teachers: examined on %s new rows: %s", f"{len(rows):,}", escape_line(verdict.summary))
    if verdict.result == "refused":
        session.registry.runs.log_verdict(job.run_id, examination, verdict, name=job.run_name(verdict.result))
    else:
        session.registry.runs.log_record(job.run_id, examination, names.EXAMINATION)
    return verdict


def gather_knowledge(session: Session, rows: TrainingRows, teacher: TeacherRef) -> int:
    """Ask the teachers about rows to train on, cross-fitted where a teacher was fitted on the labels.

    :returns: the number of rows with new teacher probabilities.
    :raises WindowError: if the budget or the teacher's server allows too few questions for a training.
    """
    job, budget, members = session.job, session.budget, session.load_teacher(teacher)
    rows.forget_teacher_probs()
    answered_before = rows.has_teacher_probs(teacher.version)
    may_answer = (
        np.ones(len(rows), dtype=bool) if job.teacher == "fit" else answered_before | ~members.in_fit_window(rows.frame)
    )
    if not session.settings.asking.without_outcomes:
        may_answer &= rows.has_label | answered_before
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[may_answer], limited = select_rows_to_ask(session, members, rows.frame[may_answer], budget)
    if job.teacher == "fit":
        labeling.ask_cross_fitted(members, rows.frame, budget, chosen, cross_fits=rows.cross_fit)
    else:
        labeling.ask(members, rows.frame[chosen], budget)
    if limited:
        budget.stop(members.members[0].name, "the budget is reached")
    cross_fit = rows.cross_fit if job.teacher == "fit" else None
    ask_about_synthetic(members, rows.synthetic_rows, budget, rows.labelled if cross_fit else None, cross_fit)
    log_spending(session)
    rows.forget_teacher_probs()
    answered = rows.has_teacher_probs(teacher.version)
    _log_questions(session, rows, answered_before, chosen & ~answered_before, answered, limited)
    min_answered = session.settings.min_train_rows // 2
    if budget.stop_reason and answered.sum() < min_answered:
        raise WindowError(
            f"the teacher has answered {answered.sum()} of the {len(rows)} training rows, and {min_answered} are "
            f"needed: {budget.stop_reason}. Its answers are kept and not asked for again; allow it about "
            f"{min_answered - answered.sum()} rows more, or lower `windows.min_train_rows`"
        )
    return int(answered.sum() - answered_before.sum())


def select_rows_to_ask(
    session: Session, teacher: Ensemble, rows: pd.DataFrame, budget: LabelingBudget
) -> tuple[Mask, bool]:
    """Select the rows to ask the teachers about.

    The selection is stored before any question is asked, so a resumed run asks about the same rows.

    :returns: bool ``[n]``, true for answered rows too; and whether the budget allows fewer rows than `asking.share`.
    """
    base, settings = session.base, session.settings.asking
    answered = ~np.isnan(base.answers.probs(rows, teacher.version)[:, 0])
    target_rows = round(settings.share * len(rows))
    selected = base.answers.questions(session.refresh_id, teacher.version)
    if selected is not None:
        return rows["observation_id"].isin(selected["observation_id"]).to_numpy(), len(selected) < target_rows
    size = int(answered.sum()) + budget.affordable_rows(teacher, max(0, target_rows - int(answered.sum())))
    if size >= len(rows):
        return np.ones(len(rows), dtype=bool), False
    plan = _plan_questions(session, rows, answered, size, seed=int(short_id(session.refresh_id, teacher.version), 16))
    base.answers.append_questions(
        rows.iloc[plan.rows],
        plan.probability[plan.rows],
        answered[plan.rows],
        job=session.refresh_id,
        teacher=teacher.version,
    )
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[plan.rows] = True
    return chosen, size < target_rows


def log_spending(session: Session) -> None:
    """Log the cost of the teachers in this refresh so far, as metrics of its run."""
    spending = session.base.answers.spending(job=session.refresh_id)
    metrics = {f"teacher/{name}/{field}": value for name, cost in spending.items() for field, value in cost}
    if metrics:
        session.registry.runs.log(session.job.run_id, metrics=metrics)


# --------------------------------------------------------------------------- inside


def _plan_questions(session: Session, rows: pd.DataFrame, answered: Mask, size: int, seed: int) -> select.Selection:
    """Sample ``size`` rows by uncertainty and diversity, with the inclusion probability of each."""
    settings = session.settings
    probs = _predict_with_snapshots(session, rows)
    numbers = rows[list(settings.observations.numbers)].to_numpy(dtype=np.float64)
    by_diversity = "diversity" in settings.asking.by
    return select.plan_questions(
        size,
        has_teacher_probs=answered,
        is_validation=mask_validation_rows(rows["observed_at"], session.distillation),
        scores=select.question_scores(settings.asking.by, probs),
        coordinates=select.row_coordinates(numbers, probs[0] if probs else None) if by_diversity else None,
        uniform_share=settings.asking.uniform_share,
        seed=seed,
    )


def _predict_with_snapshots(session: Session, rows: pd.DataFrame) -> list[Array]:
    """The probabilities of the champion and of the previous champion for ``rows``, as far as they exist."""
    champion, previous = session.champion, session.previous
    return [model.variant.predict_proba(rows) for model in (champion, previous) if model is not None]


def _examine(
    session: Session, teacher: TeacherRef, rows: pd.DataFrame, probs: Array, unanswered: pd.DataFrame
) -> Examination:
    labels = session.training_rows.labelled["outcome"]
    return admission.examine(
        session.settings,
        session.refresh_id,
        session.as_of,
        teacher.version,
        rows,
        probs,
        base_rate=np.bincount(labels, minlength=len(session.settings.actions)) / len(labels),
        unanswered=_read_unanswered_reasons(session, session.load_teacher(teacher), unanswered),
        champion=_champion_probs(session, rows),
        trusted=_read_trusted_answers(session, teacher, rows),
    )


def _champion_probs(session: Session, rows: pd.DataFrame) -> Array | None:
    if session.champion is None or rows.empty:
        return None
    variant = session.champion.variant
    return align_actions(variant.predict_proba(rows), variant.actions, session.settings.actions)


def _read_trusted_answers(session: Session, teacher: TeacherRef, rows: pd.DataFrame) -> tuple[str, Array] | None:
    """The version of the champion's teacher, which was admitted before, and its stored probabilities of ``rows``."""
    champion = session.champion
    version = session.registry.models.tags(champion.baseline.teacher).get("teacher_version") if champion else None
    return (version, session.base.answers.probs(rows, version)) if version and version != teacher.version else None


def _read_last_weights(session: Session) -> dict[tuple[str, str], float]:
    """The weights of the champion's teachers after its last watch."""
    if session.champion is None:
        return {}
    folder = session.champion.teacher_folder()
    recorded = session.base.journal.weight_changes(ensemble.read_reference(folder).version)
    return weight_updates.current_weights(
        ensemble.read_weights(folder), [change for change in recorded if change.job == "watch"]
    )


def _read_unanswered_reasons(session: Session, teacher: Ensemble, rows: pd.DataFrame) -> list[str]:
    """The reasons why the teachers have no usable answer to ``rows``."""
    if rows.empty:
        return []
    unanswered = [
        session.base.answers.unanswered(member.version).drop_duplicates("content_key", keep="last")
        for member in teacher.members
        if member.version is not None
    ]
    return [
        reason for table in unanswered for reason in table.loc[table["content_key"].isin(rows["content_key"]), "reason"]
    ]


def _log_questions(
    session: Session, rows: TrainingRows, answered_before: Mask, asked: Mask, answered: Mask, limited: bool
) -> None:
    """Log how many rows were answered before, asked about, answered and skipped."""
    counts = Questions(
        rows=len(rows),
        without_outcome=int((~rows.has_label).sum()),
        known=int(answered_before.sum()),
        asked=int(asked.sum()),
        answered=int((asked & answered).sum()),
        limited=limited,
    )
    log.info("teachers: %s", counts)
    metrics = {f"asking/{name}": float(value) for name, value in counts if name != "limited"}
    metrics["asking/skipped"] = float(counts.skipped)
    session.registry.runs.log(session.job.run_id, files={names.QUESTIONS: counts}, metrics=metrics)
