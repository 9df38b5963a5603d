"""Recalibrate: estimate the champion's ranges, temperature and thresholds on current rows, without training."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import onnx
from pydantic import Field, TypeAdapter

from stillhouse.compress.recalibrate import apply_correction, fit_graph_correction
from stillhouse.compress.search.greedy import search
from stillhouse.compress.target import Columns
from stillhouse.compress.variants import target_from_graph, variant_writer
from stillhouse.config import Compression, Recipe, number_format
from stillhouse.errors import RegistryError
from stillhouse.quality import get_measure
from stillhouse.records import Frontier, Record, Refresh, SizeLimits, StudentRef, TeacherRef, Window
from stillhouse.refreshing.compressing import find_compression_run, read_last_frontier
from stillhouse.refreshing.data import TrainingRows
from stillhouse.refreshing.modes.mode import RefreshMode
from stillhouse.refreshing.session import Session
from stillhouse.registry import names
from stillhouse.stats import replace_non_finite

__all__ = ["Recalibrate", "Recalibration", "StoredGraph", "load_champion_graph"]


class StoredGraph(NamedTuple):
    """The float32 graph from which the champion was quantised, with its columns and recipe."""

    model: onnx.ModelProto
    columns: Columns
    recipe: Recipe


class Recalibration(Record):
    """The result of a recalibration."""

    temperature: float = Field(gt=0, description="the logits are divided by it; 1: unchanged")
    bias: tuple[float, ...] = Field(
        default=(), description="added to the divided logits, one per action; empty: none was fitted (older versions)"
    )
    rows: int = Field(ge=1, description="current rows with outcomes on which it was estimated")


class Recalibrate(RefreshMode):
    """Keep the champion's student; redistil if its float32 graph was not stored."""

    fallback = "redistil"
    compares_teachers = False
    trains = False

    def plan(self, session: Session) -> Refresh:
        """The refresh as a recalibration of the champion, with the champion's teacher.

        :raises RegistryError: if the graph was not stored, or the agent file has other actions than the champion.
        """
        load_champion_graph(session)
        champion = session.champion
        assert champion is not None  # otherwise there is no graph
        if champion.actions != session.settings.actions:
            actions = ", ".join(champion.actions)
            raise RegistryError(f"{champion.model} knows the actions {actions}, and the agent file has others")
        session.registry.runs.set_tags(session.job.run_id, recalibrates=find_compression_run(session))
        return session.job.model_copy(update={"teacher": "keep", "since": champion.baseline.train.end})

    def weighs_teachers(self, job: Refresh) -> bool:
        """Return False: the weights of the champion's teachers stay."""
        return False

    def select_rows_to_label(self, session: Session, teacher: TeacherRef) -> TrainingRows | None:
        """Return None: only labels are needed."""
        return None

    def make_student(self, session: Session, teacher: TeacherRef) -> StudentRef | None:
        """The champion's student as it was logged.

        :raises RegistryError: if it was logged without its weights.
        """
        champion = session.champion
        folder = session.registry.models.student_files(champion.model) if champion else None
        if folder is None:
            raise RegistryError(
                f"agent {session.agent!r} has no champion whose student was stored: refresh with mode=redistil"
            )
        size = sum(file.stat().st_size for file in folder.iterdir())
        return StudentRef(folder=str(folder), bytes=size, rows=0, history=())

    def compress(self, session: Session, teacher: TeacherRef, student: StudentRef) -> Frontier:
        """Set a new temperature in the champion's graph and quantise it with new ranges, both from current rows."""
        job, settings, registry, stored = session.job, session.settings, session.registry, load_champion_graph(session)
        rows = session.training_rows
        trained = rows.has_label & rows.may_learn
        current = trained & (rows.frame["observed_at"] >= job.new_window.start).to_numpy()
        fit_mask = current if current.sum() >= settings.update.min_rows else trained
        validation_mask = rows.has_label & rows.is_validation
        x = rows.encode_rows([dict(column) for column in stored.columns])
        correction = fit_graph_correction(stored.model, {"x": x[fit_mask]}, rows.labels[fit_mask])
        registry.runs.log(
            job.run_id,
            files={
                names.RECALIBRATION: Recalibration(
                    temperature=correction.temperature, bias=tuple(correction.bias.tolist()), rows=int(fit_mask.sum())
                )
            },
            metrics={
                "recalibration/temperature": correction.temperature,
                "recalibration/largest_bias": float(abs(correction.bias).max()),
                "recalibration/rows": float(fit_mask.sum()),
            },
        )
        labels, labelled = rows.labels[validation_mask], rows.frame[validation_mask]
        measure = get_measure(settings).for_labels(labels, len(settings.actions))
        target = target_from_graph(
            apply_correction(stored.model, correction),
            stored.columns,
            calibration=x[fit_mask],
            validation=x[validation_mask],
            quality=lambda probs: measure.points(replace_non_finite(probs, labels), labels, labelled),
            quality_name=measure.points_title,
            content_hash=f"{job.refresh_id} recalibrate",
        )
        return search(
            lambda: target,
            Compression(
                recipes=((number_format(stored.recipe),),), search=None, tolerance=settings.compression.tolerance
            ),
            SizeLimits(**settings.budgets.model_dump(include=set(SizeLimits.model_fields))),
            variant_writer(job.agent, settings.actions, {"refresh": job.refresh_id, "teacher": teacher.version}),
            Path(job.folder) / "compression",
        )

    def find_training_window(self, session: Session) -> Window:
        """The training window of the champion, whose student is kept."""
        assert session.champion is not None  # as checked by plan()
        return session.champion.baseline.train


def load_champion_graph(session: Session) -> StoredGraph:
    """The champion's float32 graph.

    :raises RegistryError: if there is no champion, or its graph was not stored.
    """
    run_id, frontier = find_compression_run(session), read_last_frontier(session)
    if session.champion is None or frontier is None or run_id is None:
        raise RegistryError(
            f"agent {session.agent!r} has no champion whose graph was stored: refresh with mode=redistil"
        )
    recipe: Recipe = TypeAdapter(Recipe).validate_python(frontier.named(frontier.chosen).recipe)
    model = onnx.load_model_from_string(session.registry.runs.read_file(run_id, names.MODEL_STATE))
    return StoredGraph(model, session.champion.variant.columns, recipe)
