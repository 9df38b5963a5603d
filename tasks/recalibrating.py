"""How a refresh re-estimates the champion's ranges and confidence on current rows, and trains nothing."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import onnx
import pandas as pd
from pydantic import Field, TypeAdapter

from stillhouse.compress.recalibrate import temperature, with_temperature
from stillhouse.compress.search import search
from stillhouse.compress.subject import Columns
from stillhouse.compress.variants import graph_subject, variant_pack
from stillhouse.compressing import FRONTIER
from stillhouse.config import Compression, Recipe, number_format
from stillhouse.distill.train import validation_days
from stillhouse.errors import RegistryError, StillhouseError
from stillhouse.evaluate.scorecard import quality
from stillhouse.records import Frontier, Limits, Record, Refresh, StudentRef, TeacherRef
from stillhouse.registry import Registry
from stillhouse.variant import Variant, encode
from tasks.common import FORM, engine_task, knowledge_base, registry, training_rows

__all__ = ["Kept", "champion_student", "compression_run", "kept_form", "plan_recalibration", "recalibrate"]


class Kept(NamedTuple):
    """The float32 form that the champion was quantised from, and how."""

    model: onnx.ModelProto
    columns: Columns
    recipe: Recipe


class Recalibration(Record):
    """What a recalibration has changed."""

    temperature: float = Field(gt=0, description="that the logits are divided by; 1: as they were")
    rows: int = Field(ge=1, description="current rows with outcomes that it was found on")


def compression_run(models: Registry) -> str | None:
    """The refresh run in which the champion's form was made; None without a champion."""
    champion = models.champion()
    if champion is None:
        return None
    run_id = models.tags(champion)["refresh_run"]
    return models.run_tags(run_id).get("recalibrates", run_id)


def kept_form(models: Registry) -> Kept:
    """The champion's form.

    :raises RegistryError: if there is no champion, or its form was not kept.
    """
    champion, run_id = models.champion(), compression_run(models)
    found = models.read_record(run_id, FRONTIER, Frontier) if run_id else None
    if champion is None or found is None or run_id is None:
        raise RegistryError(f"agent {models.agent!r} has no champion whose form was kept: refresh with mode=redistil")
    recipe: Recipe = TypeAdapter(Recipe).validate_python(found.named(found.chosen).recipe)
    form = onnx.load_model_from_string(models.read_file(run_id, FORM))
    return Kept(form, Variant(models.fetch(champion)).columns, recipe)


def champion_student(job: Refresh) -> StudentRef:
    """The champion's student, as it was logged.

    :raises RegistryError: if it was logged without its weights.
    """
    models = registry(job.agent)
    champion = models.champion()
    folder = models.student_files(champion) if champion else None
    if folder is None:
        raise RegistryError(f"agent {job.agent!r} has no champion whose student was kept: refresh with mode=redistil")
    size = sum(file.stat().st_size for file in folder.iterdir())
    return StudentRef(folder=str(folder), bytes=size, rows=0, history=())


@engine_task(task_run_name="plan recalibration")
def plan_recalibration(job: Refresh) -> Refresh | None:
    """The job as a recalibration of the champion; None, with the reason logged, if it cannot be."""
    base, models = knowledge_base(job.agent), registry(job.agent)
    try:
        kept_form(models)
        champion = models.champion()
        assert champion is not None  # or no form were kept
        if (knows := tuple(Variant(models.fetch(champion)).actions)) != base.config.actions:
            raise RegistryError(f"{champion} knows the actions {', '.join(knows)}, and the agent file others")
        baseline = models.baseline(champion)
    except StillhouseError as error:
        models.tag(job.run_id, recalibration_not_made=str(error))
        return None
    models.tag(job.run_id, recalibrates=compression_run(models))
    return job.model_copy(update={"teacher": "keep", "since": baseline.train.end})


@engine_task(task_run_name="recalibrate")
def recalibrate(job: Refresh, teacher: TeacherRef) -> Frontier:
    """The champion's form with a new temperature, quantised with new ranges, both from rows of now."""
    base, models = knowledge_base(job.agent), registry(job.agent)
    settings, kept = base.config, kept_form(models)
    train = training_rows(base, job.train, job.as_of)
    judged = validation_days(train["observed_at"], settings.distillation.validation_every)
    rows = _current(job, train[~judged], settings.update.min_rows)
    found = temperature(kept.model, {"x": encode(rows, kept.columns)}, rows["outcome"].to_numpy())
    models.log_record(job.run_id, Recalibration(temperature=found, rows=len(rows)), "recalibration.json")
    models.log_metrics(job.run_id, {"recalibration/temperature": found, "recalibration/rows": float(len(rows))})
    outcomes = train[judged]["outcome"].to_numpy()
    subject = graph_subject(
        with_temperature(kept.model, found), kept.columns,
        calibration=encode(rows, kept.columns), judged=encode(train[judged], kept.columns),
        quality=lambda said: quality(said, outcomes).score, source=f"{job.refresh_id} recalibrate",
    )  # fmt: skip
    return search(
        lambda: subject,
        Compression(recipes=((number_format(kept.recipe),),), search=None, tolerance=settings.compression.tolerance),
        Limits(**settings.budgets.model_dump(include=set(Limits.model_fields))),
        variant_pack(job.agent, settings.actions, {"refresh": job.refresh_id, "teacher": teacher.version}),
        Path(job.folder) / "compression",
    )


def _current(job: Refresh, rows: pd.DataFrame, least: int) -> pd.DataFrame:
    """The rows that are new since the champion learned; where those are few, all of the window."""
    new = rows[rows["observed_at"] >= job.news.start]
    return new if len(new) >= least else rows
