"""The teachers of a refresh: fit or keep them, weigh, examine and compare them, and gather what they answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from stillhouse.actions import align_actions
from stillhouse.distill import select
from stillhouse.distill.split import validation_days
from stillhouse.errors import PartError, RegistryError, WindowError
from stillhouse.evaluate import admission, figures
from stillhouse.records import Examination, Questions, TeacherRef, Verdict, short_id
from stillhouse.refreshing.data import Array, LearningRows, Mask
from stillhouse.refreshing.session import Session
from stillhouse.registry import names
from stillhouse.registry.runs import Content
from stillhouse.teachers import ensemble, labeling, mixture_weights, weight_updates
from stillhouse.teachers.contradictions import find_contradictions
from stillhouse.teachers.ensemble import Ensemble
from stillhouse.teachers.labeling import LabelingBudget
from stillhouse.teachers.synthetic import ask_about_synthetic

__all__ = [
    "compare_teachers",
    "examine_teacher",
    "gather_knowledge",
    "prepare_teacher",
    "rows_to_ask",
    "weigh_teachers",
]


def prepare_teacher(session: Session) -> TeacherRef:
    """Fit the teachers that learn on the training window, or fetch the champion's.

    :raises RegistryError: if the champion's is to be kept, and there is no champion.
    :raises PartError: if it was made for other actions than the agent file has now.
    """
    job, settings = session.job, session.settings
    if job.teacher == "fit":
        rows = session.training.labelled
        session.registry.runs.log_window(job.run_id, job.train, rows, "training")
        return ensemble.fit(settings, rows, job.train, Path(job.folder) / "teacher", session.foreign)
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
    return ensemble.read_reference(champion.teacher_folder(), champion.baseline.teacher)


def weigh_teachers(session: Session, teacher: TeacherRef) -> TeacherRef:
    """The same teachers under the weights that the labels of the training window speak for; each change recorded."""
    job, base, registry = session.job, session.base, session.registry
    rows, members = session.training.labelled, session.teacher(teacher)
    weight_updates.label_for_weighting(base, members, rows, session.account, fit=job.teacher == "fit")
    log_spending(session)
    learned = weight_updates.learn_weights(base, members, job.as_of, rows)
    if learned is None:
        return teacher
    weighted = ensemble.reweigh(teacher, learned.weights, Path(job.folder) / "teacher")
    base.journal.append_weight_changes(
        mixture_weights.find_changes(
            learned.weights, _last_weights(session), version=weighted.version, job=job.refresh_id
        )
    )
    labeling.store_mean_probs(base, session.reweighted(teacher, weighted, learned.weights), rows)
    files: dict[str, Content] = {
        names.WEIGHTS: learned.weights,
        names.WEIGHTS_FIGURE: figures.plot_teacher_weights(base.journal.weight_changes()),
    }
    registry.runs.log(job.run_id, files=files, points=learned.points("weight/"))
    return teacher if weighted.version == teacher.version else weighted


def compare_teachers(session: Session, teacher: TeacherRef) -> None:
    """Log where the teachers contradict each other on the training window, by slice, and who was right."""
    members = session.teacher(teacher)
    if len(members.members) < 2:
        return
    rows = session.training.labelled
    answers = labeling.member_probs(session.base, members, rows)
    found = find_contradictions(session.settings, session.job.train, rows, answers, rows["outcome"].to_numpy())
    session.registry.runs.log_record(session.job.run_id, found, names.CONTRADICTIONS)


def examine_teacher(session: Session, teacher: TeacherRef) -> Verdict:
    """Whether the teacher may teach: asked about test rows, whose labels it has not seen.

    :raises WindowError: if the budget or the teacher's server allow too few questions to tell.
    """
    job, settings = session.job, session.settings
    account, members = session.account, session.teacher(teacher)
    rows = session.data.labelled(job.test)
    if not all(member.version is None for member in members.members):
        rows = rows.sort_values("content_key").head(settings.teaching.rows).sort_values("observed_at")
    probs = labeling.ask(members, rows, account)
    log_spending(session)
    answered = ~np.isnan(probs[:, 0])
    if account.stop_reason and answered.sum() < settings.teaching.min_answered * len(rows):
        raise WindowError(
            f"the teacher has answered {answered.sum()} of {len(rows)} rows that it is to be examined on: "
            f"{account.stop_reason}. Its answers are kept; allow it more, or lower `teaching.rows`"
        )
    examination = _examination(session, teacher, rows, probs, rows[~answered])
    verdict = admission.judge(examination)
    if verdict.result == "refused":
        session.registry.runs.log_verdict(job.run_id, examination, verdict)
    else:
        session.registry.runs.log_record(job.run_id, examination, names.EXAMINATION)
    return verdict


def gather_knowledge(session: Session, rows: LearningRows, teacher: TeacherRef) -> int:
    """Teacher probabilities for rows to learn from, cross-fitted where the teacher has seen the labels; rows added.

    :raises WindowError: if the budget or the teacher's server allow too few questions to learn from.
    """
    job, account, members = session.job, session.account, session.teacher(teacher)
    rows.forget_teacher_probs()
    before = rows.has_teacher_probs(teacher.version)
    able = np.ones(len(rows), dtype=bool) if job.teacher == "fit" else before | ~members.in_fit_window(rows.frame)
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[able], limited = rows_to_ask(session, members, rows.frame[able], account)
    if job.teacher == "fit":
        labeling.ask_cross_fitted(members, rows.frame, account, chosen, cross_fits=rows.cross_fit)
    else:
        labeling.ask(members, rows.frame[chosen], account)
    if limited:
        account.stop(members.members[0].name, "the budget is reached")
    cross = rows.cross_fit if job.teacher == "fit" else None
    ask_about_synthetic(members, rows.synthetic, account, rows.labelled if cross else None, cross)
    log_spending(session)
    rows.forget_teacher_probs()
    answered = rows.has_teacher_probs(teacher.version)
    _log_questions(session, rows, before, chosen & ~before, answered, limited)
    least = session.settings.windows.min_train_rows // 2
    if account.stop_reason and answered.sum() < least:
        raise WindowError(
            f"the teacher has answered {answered.sum()} of the {len(rows)} training rows, and {least} are needed: "
            f"{account.stop_reason}. Its answers are kept and not asked for again; allow it about "
            f"{least - answered.sum()} rows more, or lower `windows.min_train_rows`"
        )
    return int(answered.sum() - before.sum())


def rows_to_ask(session: Session, teacher: Ensemble, rows: pd.DataFrame, account: LabelingBudget) -> tuple[Mask, bool]:
    """Which ``rows`` are to have answers, bool ``[n]``, and whether the budget allows fewer than were wanted.

    The selection is kept before anybody is asked: a run that goes on asks about the same rows.
    """
    base, settings = session.base, session.settings.asking
    answered = ~np.isnan(base.answers.probs(rows, teacher.version)[:, 0])
    wanted = round(settings.share * len(rows))
    selected = base.answers.questions(session.refresh_id, teacher.version)
    if selected is not None:
        return rows["observation_id"].isin(selected["observation_id"]).to_numpy(), len(selected) < wanted
    size = int(answered.sum()) + account.affordable_rows(teacher, max(0, wanted - int(answered.sum())))
    if size >= len(rows):
        return np.ones(len(rows), dtype=bool), False
    plan = _plan(session, rows, answered, size, seed=int(short_id(session.refresh_id, teacher.version), 16))
    base.answers.append_questions(
        rows.iloc[plan.rows],
        plan.probability[plan.rows],
        answered[plan.rows],
        job=session.refresh_id,
        teacher=teacher.version,
    )
    chosen = np.zeros(len(rows), dtype=bool)
    chosen[plan.rows] = True
    return chosen, size < wanted


def log_spending(session: Session) -> None:
    """What the teachers have cost this refresh so far, as metrics of its run."""
    spent = session.base.answers.spending(job=session.refresh_id)
    metrics = {f"teacher/{name}/{what}": value for name, cost in spent.items() for what, value in cost}
    if metrics:
        session.registry.runs.log(session.job.run_id, metrics=metrics)


# --------------------------------------------------------------------------- inside


def _plan(session: Session, rows: pd.DataFrame, answered: Mask, size: int, seed: int) -> select.Selection:
    """So many rows by uncertainty and diversity, with the probability of each."""
    settings = session.settings
    probs = _snapshots(session, rows)
    numbers = rows[list(settings.observations.numbers)].to_numpy(dtype=np.float64)
    by_diversity = "diversity" in settings.asking.by
    return select.plan_questions(
        size,
        has_teacher_probs=answered,
        is_validation=validation_days(rows["observed_at"], settings.distillation.validation_every),
        scores=select.question_scores(settings.asking.by, probs),
        coordinates=select.row_coordinates(numbers, probs[0] if probs else None) if by_diversity else None,
        uniform_share=settings.asking.uniform_share,
        seed=seed,
    )


def _snapshots(session: Session, rows: pd.DataFrame) -> list[Array]:
    """Probabilities of the champion and of its predecessor for ``rows``, as far as there are such."""
    champion, previous = session.champion, session.previous
    return [each.variant.predict_proba(rows) for each in (champion, previous) if each is not None]


def _examination(
    session: Session, teacher: TeacherRef, rows: pd.DataFrame, probs: Array, unanswered: pd.DataFrame
) -> Examination:
    labels = session.training.labelled["outcome"]
    return admission.examine(
        session.settings,
        session.refresh_id,
        session.as_of,
        teacher.version,
        rows,
        probs,
        base_rate=np.bincount(labels, minlength=len(session.settings.actions)) / len(labels),
        unanswered=_reasons(session, session.teacher(teacher), unanswered),
        champion=_champion_probs(session, rows),
        trusted=_trusted(session, teacher, rows),
    )


def _champion_probs(session: Session, rows: pd.DataFrame) -> Array | None:
    if session.champion is None or rows.empty:
        return None
    variant = session.champion.variant
    return align_actions(variant.predict_proba(rows), variant.actions, session.settings.actions)


def _trusted(session: Session, teacher: TeacherRef, rows: pd.DataFrame) -> tuple[str, Array] | None:
    """The champion's teacher, which has been admitted before, and its kept answers to ``rows``."""
    champion = session.champion
    version = session.registry.models.tags(champion.baseline.teacher).get("teacher_version") if champion else None
    return (version, session.base.answers.probs(rows, version)) if version and version != teacher.version else None


def _last_weights(session: Session) -> dict[tuple[str, str], float]:
    """The weights of the champion's teachers, as its watches last knew them."""
    if session.champion is None:
        return {}
    folder = session.champion.teacher_folder()
    recorded = session.base.journal.weight_changes(ensemble.read_reference(folder).version)
    return weight_updates.current_weights(
        ensemble.read_weights(folder), [each for each in recorded if each.job == "watch"]
    )


def _reasons(session: Session, teacher: Ensemble, rows: pd.DataFrame) -> list[str]:
    """Why the teachers have no usable answer to ``rows``."""
    if rows.empty:
        return []
    found = [
        session.base.answers.unanswered(member.version).drop_duplicates("content_key", keep="last")
        for member in teacher.members
        if member.version is not None
    ]
    return [reason for each in found for reason in each.loc[each["content_key"].isin(rows["content_key"]), "reason"]]


def _log_questions(
    session: Session, rows: LearningRows, before: Mask, asked: Mask, answered: Mask, limited: bool
) -> None:
    """Of how many rows the teachers knew, were asked about, and were spared."""
    counts = Questions(
        rows=len(rows),
        without_outcome=int((~rows.has_label).sum()),
        known=int(before.sum()),
        asked=int(asked.sum()),
        answered=int((asked & answered).sum()),
        limited=limited,
    )
    metrics = {f"asking/{name}": float(value) for name, value in counts if name != "limited"}
    metrics["asking/skipped"] = float(counts.skipped)
    session.registry.runs.log(session.job.run_id, files={names.QUESTIONS: counts}, metrics=metrics)
