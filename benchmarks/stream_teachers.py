"""Teachers of the streams of `benchmarks.streams`: common libraries with their default settings.

All of them implement :class:`stillhouse.parts.Teacher` and are named in the settings of a stream.
"""

from __future__ import annotations

from typing import Any

from examples.router import MiniLM
from stillhouse.replay.script_teachers import Boosting, Words
from stillhouse.teachers.heads import Head, fit_head

__all__ = ["Boosting", "SentenceEncoder", "Words"]


class SentenceEncoder(MiniLM):
    """The router's teacher for other actions: a linear head on MiniLM's vectors, fitted on the outcomes.

    :param actions: number of actions (≥ 2).
    :param strength: inverse strength of the head's L2 penalty (> 0).
    :param threads: maximum number of threads of the encoder (≥ 1).
    :param folds: folds for the estimate of the temperature (≥ 2).
    """

    def __init__(self, *, actions: int, strength: float = 30.0, threads: int = 2, folds: int = 3) -> None:
        super().__init__(strength=strength, threads=threads, folds=folds)
        self.settings["actions"] = actions

    def _require_head(self) -> Head:
        if self._head is None:
            raise RuntimeError("This SentenceEncoder has not been fitted: call fit(rows, labels) or load(folder).")
        return self._head

    def _fit_head(self, embeddings: Any, outcomes: Any) -> Head:
        return fit_head(
            embeddings, outcomes, self.settings["actions"], self.settings["strength"], self.settings["folds"]
        )
