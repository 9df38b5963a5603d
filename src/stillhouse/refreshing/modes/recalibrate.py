"""Recalibrate: re-estimate the champion's ranges and confidence on current rows; nothing is trained."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import onnx
from pydantic import Field, TypeAdapter

from stillhouse.compress.recalibrate import apply_temperature, fit_graph_temperature
from stillhouse.compress.search.greedy import search
from stillhouse.compress.target import Columns
from stillhouse.compress.variants import target_from_graph, variant_writer
from stillhouse.config import Compression, Recipe, number_format
from stillhouse.errors import RegistryError
from stillhouse.evaluate.scorecard import quality
from stillhouse.records import Frontier, Record, Refresh, SizeLimits, StudentRef, TeacherRef, Window
from stillhouse.refreshing.compressing import compression_run, last_frontier
from stillhouse.refreshing.data import LearningRows
from stillhouse.refreshing.modes.mode import RefreshMode
from stillhouse.refreshing.session import Session
from stillhouse.registry import names

__all__ = ["KeptState", "Recalibrate", "Recalibration", "kept_state"]


class KeptState(NamedTuple):
    """The float32 graph that the champion was quantised from, and how."""

    model: onnx.ModelProto
    columns: Columns
    recipe: Recipe


class Recalibration(Record):
    """What a recalibration has changed."""

    temperature: float = Field(gt=0, description="that the logits are divided by; 1: as they were")
    rows: int = Field(ge=1, description="current rows with outcomes that it was found on")


class Recalibrate(RefreshMode):
    """Keep the champion's student; where its float32 graph was not kept, redistil."""

    falls_back_to = "redistil"
    compares_teachers = False
    trains = False

    def plan(self, session: Session) -> Refresh:
        """The refresh as a recalibration of the champion, with the teacher that it has."""
        kept_state(session)
        champion = session.champion
        assert champion is not None  # or nothing were kept
        if champion.actions != session.settings.actions:
            knows = ", ".join(champion.actions)
            raise RegistryError(f"{champion.model} knows the actions {knows}, and the agent file others")
        session.registry.runs.set_tags(session.job.run_id, recalibrates=compression_run(session))
        return session.job.model_copy(update={"teacher": "keep", "since": champion.baseline.train.end})

    def weighs_teachers(self, job: Refresh) -> bool:
        """They stay as they are."""
        return False

    def rows_to_teach(self, session: Session, teacher: TeacherRef) -> LearningRows | None:
        """Labels are enough."""
        return None

    def student(self, session: Session, teacher: TeacherRef) -> StudentRef | None:
        """The champion's, as it was logged.

        :raises RegistryError: if it was logged without its weights.
        """
        champion = session.champion
        folder = session.registry.models.student_files(champion.model) if champion else None
        if folder is None:
            raise RegistryError(
                f"agent {session.agent!r} has no champion whose student was kept: refresh with mode=redistil"
            )
        size = sum(file.stat().st_size for file in folder.iterdir())
        return StudentRef(folder=str(folder), bytes=size, rows=0, history=())

    def compress(self, session: Session, teacher: TeacherRef, student: StudentRef) -> Frontier:
        """The champion's graph with a new temperature, quantised with new ranges, both from rows of now."""
        job, settings, registry, kept = session.job, session.settings, session.registry, kept_state(session)
        data = session.training
        learned = data.has_label & ~data.validation
        current = learned & (data.frame["observed_at"] >= job.news.start).to_numpy()
        chosen = current if current.sum() >= settings.update.min_rows else learned
        judged = data.has_label & data.validation
        x = data.encoded([dict(column) for column in kept.columns])
        found = fit_graph_temperature(kept.model, {"x": x[chosen]}, data.labels[chosen])
        registry.runs.log(
            job.run_id,
            files={names.RECALIBRATION: Recalibration(temperature=found, rows=int(chosen.sum()))},
            metrics={"recalibration/temperature": found, "recalibration/rows": float(chosen.sum())},
        )
        labels = data.labels[judged]
        subject = target_from_graph(
            apply_temperature(kept.model, found),
            kept.columns,
            calibration=x[chosen],
            validation=x[judged],
            quality=lambda probs: quality(probs, labels).score,
            content_hash=f"{job.refresh_id} recalibrate",
        )
        return search(
            lambda: subject,
            Compression(
                recipes=((number_format(kept.recipe),),), search=None, tolerance=settings.compression.tolerance
            ),
            SizeLimits(**settings.budgets.model_dump(include=set(SizeLimits.model_fields))),
            variant_writer(job.agent, settings.actions, {"refresh": job.refresh_id, "teacher": teacher.version}),
            Path(job.folder) / "compression",
        )

    def learned_from(self, session: Session) -> Window:
        """A recalibrated student has learned from what the champion's had."""
        assert session.champion is not None  # it is recalibrated
        return session.champion.baseline.train


def kept_state(session: Session) -> KeptState:
    """The champion's float32 graph.

    :raises RegistryError: if there is no champion, or its graph was not kept.
    """
    run_id, frontier = compression_run(session), last_frontier(session)
    if session.champion is None or frontier is None or run_id is None:
        raise RegistryError(f"agent {session.agent!r} has no champion whose form was kept: refresh with mode=redistil")
    recipe: Recipe = TypeAdapter(Recipe).validate_python(frontier.named(frontier.chosen).recipe)
    model = onnx.load_model_from_string(session.registry.runs.read_file(run_id, names.MODEL_STATE))
    return KeptState(model, session.champion.variant.columns, recipe)
