"""Final fit: the judged challenger, trained on the newest rows too. It joins the pool; nothing has proved it yet."""

from __future__ import annotations

import functools
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import JsonValue, TypeAdapter

from stillhouse.actions import align_actions
from stillhouse.compress.processor import processor
from stillhouse.compress.search.figures import candidate_metrics
from stillhouse.config import Recipe
from stillhouse.distill import memory, students
from stillhouse.distill.grow import Columns
from stillhouse.distill.memory import sample_memory
from stillhouse.distill.train import distil, student_probabilities
from stillhouse.distill.training_set import TrainingSet
from stillhouse.errors import ExportError
from stillhouse.payoff.final_fits import (
    MIN_FINAL_FITS,
    FinalFitGain,
    estimate_final_fit_gain,
    has_final_fit_gained,
)
from stillhouse.payoff.scores import scoring_rule
from stillhouse.quality import get_measure
from stillhouse.records import (
    BlockScore,
    CompressionCandidate,
    FinalFit,
    Frontier,
    ModelRef,
    Reason,
    Record,
    Refresh,
    Scorecard,
    StudentRef,
    TeacherRef,
    Verdict,
    Window,
)
from stillhouse.refreshing.compressing import RecoverySetBuilder, compress_student
from stillhouse.refreshing.modes import get_mode
from stillhouse.refreshing.session import Session
from stillhouse.refreshing.students import read_columns, read_history, save_student
from stillhouse.registry import Lineage, NewVariant, names
from stillhouse.registry.registry import FINAL_FIT_OF
from stillhouse.shown import escape_line
from stillhouse.stats import total_variation
from stillhouse.variant import Variant, encode

__all__ = ["find_deciding_version", "keep_inputs", "make_final_fit"]

log = logging.getLogger(__name__)

_EPOCHS = 1  # passes over all rows from the challenger's weights; measured in docs/decisions/0961-final-fit.md
_PEAK_SHARE = 0.3  # of the peak learning rate of the training
_MAX_DISAGREEMENT = 0.05  # mean total variation to the challenger: a tenth of the range of most probabilities
_AGREEMENT_ROWS = 2000  # the newest ones
_MIN_AGREEMENT_ROWS = 50  # with fewer newer rows, the newest rows of the test window are compared
_INPUTS = "final_fit.json"
_FOLDER = "final_fit"


class FinalFitInputs(Record):
    """What a final fit is made of; kept beside the files of the refresh, so that a killed one can be resumed."""

    job: Refresh
    teacher: TeacherRef
    student: StudentRef
    variant: str
    recipe: tuple[dict[str, JsonValue], ...]
    challenger_folder: str
    teacher_model: ModelRef


def keep_inputs(
    session: Session, teacher: TeacherRef, student: StudentRef, frontier: Frontier, teacher_model: ModelRef
) -> None:
    """Store what a final fit needs, before the verdict: a run that has its verdict cannot make the models again."""
    chosen = frontier.named(frontier.chosen)
    inputs = FinalFitInputs(
        job=session.job,
        teacher=teacher,
        student=student,
        variant=chosen.name,
        recipe=chosen.recipe,
        challenger_folder=chosen.folder,
        teacher_model=teacher_model,
    )
    (Path(session.job.folder) / _INPUTS).write_text(inputs.model_dump_json(), encoding="utf-8")


def make_final_fit(session: Session, verdict: Verdict) -> FinalFit | None:
    """Train the judged challenger on the test rows too, compress, measure, sign and register it.

    It continues from the challenger's weights with the same settings, and is compressed by the challenger's recipe. No
    teacher is asked: the teacher's answers about the test rows are those of its examination. The validation days stay
    untrained. A resumed refresh makes no second one.

    :param verdict: of the gate.
    :returns: its certificate; None if the challenger was not promoted or inconclusive, nothing was trained,
        ``promotion.final_fit`` is ``never``, an agreement is promised (it rests on these rows),
        the recipe cannot be applied to it, or the files of the refresh are gone.
    """
    inputs = _read_inputs(session, verdict)
    if inputs is None:
        return None
    session.job = inputs.job
    registry = session.registry
    fit = registry.runs.read_record(inputs.job.run_id, names.FINAL_FIT, FinalFit)
    registered = registry.final_fits(inputs.job.refresh_id)
    if fit is not None and registered:
        return fit
    make_sets = functools.partial(_add_test_rows, get_mode(session.job).make_recovery_sets)
    student = _train(session, inputs, make_sets)
    try:
        candidate = _compress(session, inputs, student, make_sets)
    except ExportError as error:
        registry.runs.set_tags(inputs.job.run_id, final_fit_not_made=str(error))
        log.info("no final fit: %s", escape_line(error))
        return None
    fit = fit or _certify(session, inputs, verdict, student, candidate)
    log.info("final fit: %s", escape_line(fit.text))
    registry.runs.log_record(inputs.job.run_id, fit, names.FINAL_FIT)
    if not registered:
        _register(session, inputs, student, candidate, fit)
    return fit


def find_deciding_version(session: Session) -> str | None:
    """The version of this refresh's final fit if it becomes champion instead of the challenger, else None."""
    job, registry = session.job, session.registry
    fit = registry.runs.read_record(job.run_id, names.FINAL_FIT, FinalFit)
    if fit is None or not fit.decides:
        return None
    return next((name.rpartition("@")[2] for name in registry.final_fits(job.refresh_id)), None)


# --------------------------------------------------------------------------- making


def _read_inputs(session: Session, verdict: Verdict) -> FinalFitInputs | None:
    """The stored inputs, where this refresh makes a final fit."""
    judged = verdict.kind == "gate" and verdict.result in ("promoted", "awaiting_approval", "inconclusive")
    file = Path(session.job.folder) / _INPUTS
    cascade = session.settings.runtime.cascade
    has_promise = cascade is not None and cascade.promise is not None  # the test window must stay unlearned
    if not judged or has_promise or session.settings.promotion.final_fit == "never" or not file.exists():
        return None
    inputs = FinalFitInputs.model_validate_json(file.read_bytes())
    return inputs if get_mode(inputs.job).trains else None


def _train(session: Session, inputs: FinalFitInputs, make_sets: RecoverySetBuilder) -> StudentRef:
    """The challenger's student after a short training on all rows."""
    columns, distillation = read_columns(inputs.student), session.distillation
    module = students.load(Path(inputs.student.folder), session.settings)
    training_set, _ = make_sets(session, inputs.teacher, inputs.student, columns)
    settings = distillation.model_copy(update={"learning_rate": _PEAK_SHARE * distillation.learning_rate})
    history = distil(module, training_set, settings, epochs=_EPOCHS)
    rows = session.data.read_training_rows(session.job.test)
    probs = student_probabilities(module, rows.encode_rows(columns)[rows.has_label])
    older = memory.read(Path(inputs.student.folder))
    replay = sample_memory(rows.labelled, probs, session.settings.actions, session.settings.update.memory, older=older)
    return save_student(session.job, module, columns, replay, history, rows=len(training_set), folder=_FOLDER)


def _add_test_rows(
    make_sets: RecoverySetBuilder, session: Session, teacher: TeacherRef, student: StudentRef, columns: Columns
) -> tuple[TrainingSet, TrainingSet | None]:
    """The labelled test rows followed by the training set of the challenger, and its validation rows."""
    training_set, validation = make_sets(session, teacher, student, columns)
    rows = session.data.read_training_rows(session.job.test)
    return training_set.extend(rows.select_training_set(rows.has_label, teacher, columns)), validation


def _compress(
    session: Session, inputs: FinalFitInputs, student: StudentRef, make_sets: RecoverySetBuilder
) -> CompressionCandidate:
    """The student, compressed by the challenger's recipe and measured.

    :raises ExportError: if the recipe cannot be applied.
    """
    recipe = TypeAdapter(Recipe).validate_python(inputs.recipe)
    frontier = compress_student(
        session, inputs.teacher, student, make_sets, recipe=recipe, folder=f"{_FOLDER}/compression"
    )
    candidate = frontier.named(inputs.variant)
    if candidate.refused is not None:
        raise ExportError(f"{inputs.variant}: {candidate.refused}")
    return candidate


# --------------------------------------------------------------------------- the certificate


def _certify(
    session: Session,
    inputs: FinalFitInputs,
    verdict: Verdict,
    student: StudentRef,
    candidate: CompressionCandidate,
) -> FinalFit:
    job, gain = session.job, _estimate_gain(session)
    reasons = (*_check_budgets(session, candidate), _check_agreement(session, inputs, candidate), _check_gain(gain))
    decides = verdict.result == "promoted" and not any(reason.failed for reason in reasons)
    failed = next((reason.text for reason in reasons if reason.failed), "")
    role = "becomes champion instead of it" if decides else "joins the pool"
    return FinalFit(
        agent=job.agent,
        refresh_id=job.refresh_id,
        as_of=job.as_of,
        challenger=f"{job.agent}@{session.registry.version_of(job.refresh_id, inputs.variant)}",
        variant=inputs.variant,
        shaped_until=job.test.end,
        train_rows=student.rows,
        new_rows=len(session.data.read_labelled(job.test)),
        bytes=candidate.bytes,
        p95_ms=candidate.latency.p95_ms if candidate.latency else None,
        earlier=gain.number,
        reasons=reasons,
        decides=decides,
        text=f"not yet proved: the challenger, trained on its test rows too, {role}"
        + (f": {failed}" if failed else ""),
    )


def _check_budgets(session: Session, candidate: CompressionCandidate) -> Iterator[Reason]:
    budgets = session.settings.budgets
    latency = candidate.latency.p95_ms if candidate.latency else None
    for measure, value, limit, unit in (
        ("bytes", float(candidate.bytes), budgets.max_bytes, "bytes"),
        ("p95_ms", latency, budgets.max_p95_ms, "ms"),
    ):
        if limit is not None and value is not None:
            text = f"{value:,.4g} {unit}, and the budget is {limit:,.4g}"
            yield Reason(measure=measure, value=value, threshold=float(limit), failed=value > limit, text=text)


def _check_agreement(session: Session, inputs: FinalFitInputs, candidate: CompressionCandidate) -> Reason:
    """Total variation to the challenger on rows whose outcomes nobody knows yet."""
    rows, where = _read_current_rows(session)
    models = (Variant(candidate.folder), Variant(inputs.challenger_folder))
    mine, proven = (
        align_actions(model.predict_proba(rows), model.actions, session.settings.actions) for model in models
    )
    distance = float(np.nanmean(total_variation(mine, proven)))
    return Reason(
        measure="agreement",
        value=distance,
        threshold=_MAX_DISAGREEMENT,
        failed=not distance <= _MAX_DISAGREEMENT,
        text=f"mean total variation {distance:.3f} to the proven challenger on {len(rows):,} {where}; at most "
        f"{_MAX_DISAGREEMENT:g}",
    )


def _read_current_rows(session: Session) -> tuple[pd.DataFrame, str]:
    """The newest rows after the test window, or those of the test window if there are too few later ones."""
    job = session.job
    current = Window(name="current", start=job.test.end, end=job.as_of, versions=job.test.versions)
    rows = session.base.read_observations(current) if current.end > current.start else None
    if rows is not None and len(rows) >= _MIN_AGREEMENT_ROWS:
        return rows.tail(_AGREEMENT_ROWS), "current rows without outcomes"
    return session.data.read_observations(job.test).tail(_AGREEMENT_ROWS), "rows of the test window"


def _check_gain(gain: FinalFitGain) -> Reason:
    gained = has_final_fit_gained(gain)
    return Reason(
        measure="earlier_final_fits",
        value=gain.lower_bound if gain.number >= MIN_FINAL_FITS else None,
        threshold=0.0,
        failed=not gained,
        text=f"{gain.number} earlier final fits gained {gain.mean:.2g} ± {gain.standard_deviation:.2g} over their "
        f"challengers on later rows"
        if gain.number >= MIN_FINAL_FITS
        else f"{gain.number} earlier final fits were scored beside their challengers, and {MIN_FINAL_FITS} are needed",
    )


def _estimate_gain(session: Session) -> FinalFitGain:
    """What earlier final fits of this agent gained over their challengers, by the scores of the pool."""
    settings, challengers = session.settings, session.registry.final_fits()
    measure, by_member = get_measure(settings), dict[str, list[BlockScore]]()
    with_rows = measure.is_pooled
    members = {*challengers, *challengers.values()}
    for score in session.base.journal.scores(scoring_rule(settings), with_rows=with_rows) if challengers else ():
        if score.member not in members:
            continue
        by_member.setdefault(score.member, []).append(score)
    return estimate_final_fit_gain(
        by_member,
        challengers,
        measure=measure.name,
        span=measure.span,
        margin=max(settings.margins.test, 1e-3 * measure.span),
    )


# --------------------------------------------------------------------------- registering


def _register(
    session: Session, inputs: FinalFitInputs, student: StudentRef, candidate: CompressionCandidate, fit: FinalFit
) -> None:
    """Log student and variant below the run of the refresh, and register both; the variant's version comes last."""
    job, registry, settings = session.job, session.registry, session.settings
    rows = session.example_rows(session.data.read_labelled(job.test))
    tags: dict[str, object] = {"role": "final_fit", "proved": False, "shaped_until": fit.shaped_until.isoformat()}
    lineage = Lineage(
        teacher=inputs.teacher_model,
        knowledge=job.train.versions,
        drift=job.cause if job.trigger == "drift" else None,
    )
    history = read_history(student)
    logged = registry.models.log_student(
        job.run_id,
        students.load(Path(student.folder), settings),
        encode(rows, read_columns(student)),
        Scorecard(model="student", role="student", quality={}, bytes=student.bytes),
        dict(session.distillation) | {"mode": "final_fit"},
        lineage,
        Path(student.folder),
        history=student.history,
        files={names.TRAINING_HISTORY: history},
        tags=tags,
    )
    lineage = lineage.model_copy(update={"student": registry.register(logged, f"{job.agent}-student")})
    card = Scorecard(
        model=candidate.name,
        role="variant",
        quality={},
        bytes=candidate.bytes,
        latency=candidate.latency,
        cpu=processor().name,
    )
    variant = NewVariant(
        Path(candidate.folder),
        card,
        {"recipe": json.dumps(candidate.recipe), "final_fit_of": fit.challenger},
        candidate_metrics(candidate),
        {"quality": "not proved yet: its test rows were trained on", "result": f"final fit of {fit.challenger}"},
        tags=tags | {"chosen": fit.decides, FINAL_FIT_OF: fit.challenger},
    )
    registry.publish_variants(job.run_id, [variant], lineage, rows)
    if fit.decides:
        registry.set_chosen(fit.challenger.rpartition("@")[2], False)
