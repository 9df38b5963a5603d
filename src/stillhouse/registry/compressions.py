"""Models that were compressed outside the loop: one parent run, and a nested run for each candidate."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.records import CompressionCandidate, Frontier, ModelRef
from stillhouse.registry import packaging
from stillhouse.registry.models import Models
from stillhouse.registry.runs import texts
from stillhouse.shown import markdown

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Compressions"]


class Compressions(Models):
    """The experiment that one model's compressions are kept in, by default ``compress-<model>``."""

    @contextmanager
    def compression(self, source: str, frontier: Frontier, params: Mapping[str, object]) -> Iterator[str]:
        """A parent run with what was decided, open while its candidates are logged; FAILED if that fails.

        :param source: address of the model.
        """
        marks = {
            "role": "compression",
            "source": source,
            "verdict": "fits" if frontier.fits else "nothing_fits",
            "chosen": frontier.chosen,
            "why": frontier.why,
            "mlflow.note.content": markdown(frontier.why),
        }
        run_id = self.client.create_run(
            self.experiment_id, run_name=f"compress {source}", tags=texts(marks)
        ).info.run_id
        self._log_batch(run_id, params=params)
        try:
            yield run_id
        except BaseException as error:
            self.close_refresh(run_id, failed=f"{type(error).__name__}: {error}")
            raise
        self.close_refresh(run_id)

    def log_candidate(
        self,
        run_id: str,
        source: str,
        candidate: CompressionCandidate,
        metrics: Mapping[str, float],
        example: Mapping[str, np.ndarray[Any, Any]],
        chosen: bool,
    ) -> ModelRef | None:
        """A nested run and, where the candidate can serve, a LoggedModel in the ONNX flavour; else the reason.

        :param example: rows by input, of which some are kept.
        """
        recipe = {"recipe": json.dumps(candidate.recipe)}
        if candidate.refused is not None:
            self.log_refused(run_id, candidate.name, candidate.refused, recipe)
            return None

        def build(target: Path, model: Any) -> None:
            packaging.save_onnx(Path(candidate.folder), example, target, model)

        marks = {
            "role": "compressed",
            "variant": candidate.name,
            "lineage.source": source,
            "chosen": chosen,
            "bytes": candidate.bytes,
            "candidate_id": candidate.candidate_id,
        }
        return self._log_nested(run_id, candidate.name, "compressed", build, texts(marks), recipe, metrics)
