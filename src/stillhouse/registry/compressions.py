"""Models compressed outside the loop: one parent run per model, and a nested run for each candidate."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.records import CompressionCandidate, Frontier, ModelRef
from stillhouse.registry import packaging
from stillhouse.registry.experiment import open_experiment
from stillhouse.registry.models import ModelRun, Models
from stillhouse.registry.runs import Runs
from stillhouse.shown import escape_markdown

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Compressions"]


class Compressions:
    """The experiment that records the compressions of one model.

    :param name: of the experiment, by default ``compress-<model>``.
    :param tracking_uri: as of :class:`~stillhouse.registry.Registry`.
    """

    def __init__(self, name: str, tracking_uri: str | None = None) -> None:
        experiment = open_experiment(name, tracking_uri)
        self.runs = Runs(experiment)
        self._models = Models(experiment, self.runs)

    @contextmanager
    def open_compression(self, source: str, frontier: Frontier, params: Mapping[str, object]) -> Iterator[str]:
        """Open a parent run with the decision while the candidates are logged; an exception marks it as FAILED.

        :param source: address of the model.
        """
        tags = {
            "role": "compression",
            "source": source,
            "verdict": "fits" if frontier.fits else "nothing_fits",
            "chosen": frontier.chosen,
            "why": frontier.why,
            "mlflow.note.content": escape_markdown(frontier.why),
        }
        run_id = self.runs.create_parent(f"compress {source}", tags, params)
        try:
            yield run_id
        except BaseException as error:
            self.runs.close_refresh(run_id, failed=f"{type(error).__name__}: {error}")
            raise
        self.runs.close_refresh(run_id)

    def log_candidate(
        self,
        run_id: str,
        source: str,
        candidate: CompressionCandidate,
        metrics: Mapping[str, float],
        example: Mapping[str, np.ndarray[Any, Any]],
        chosen: bool,
    ) -> ModelRef | None:
        """Log a nested run: with a model in the ONNX flavour if the candidate can serve, otherwise with the reason.

        :param example: rows by input; a few of them are stored with the model.
        :returns: the logged model; None if the candidate cannot serve.
        """
        recipe = {"recipe": json.dumps(candidate.recipe)}
        if candidate.refused is not None:
            self._models.log_refused(run_id, candidate.name, candidate.refused, recipe)
            return None

        def write(target: Path, model: Any) -> None:
            packaging.save_onnx(Path(candidate.folder), example, target, model)

        tags = {
            "role": "compressed",
            "variant": candidate.name,
            "lineage.source": source,
            "chosen": chosen,
            "bytes": candidate.bytes,
            "candidate_id": candidate.candidate_id,
        }
        return self._models.log_unsigned(
            run_id, ModelRun(candidate.name, "compressed", write, recipe, tags=tags, metrics=metrics)
        )
