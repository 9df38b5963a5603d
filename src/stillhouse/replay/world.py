"""The models that could have been made at each step of a history: each trained once and scored on all later steps.

So every policy that trains from scratch is arithmetic on one table, ``loss[k, t]``: the loss in step ``t`` of the model
that was trained just before step ``k``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np

from stillhouse.interrupts import end_silently_on_interrupt
from stillhouse.quality import Measure, get_row_measure
from stillhouse.replay.history import History
from stillhouse.replay.training import TrainedModel, train_student
from stillhouse.stats import Correction, fit_correction, measure_auc

__all__ = ["Made", "World"]

Array = np.ndarray[Any, Any]
TrainFunction = Callable[[Any, Any, Any], TrainedModel]


class Made(NamedTuple):
    """A model that could be made: by a training before step ``trained``, perhaps recalibrated before a later one.

    :ivar recalibrated: step before which its confidence and thresholds were fitted; None: never.
    """

    trained: int
    recalibrated: int | None = None

    @property
    def made(self) -> int:
        """The step before which it was made."""
        return self.trained if self.recalibrated is None else self.recalibrated


@dataclass
class World:
    """All models of a history, made on demand and kept.

    :ivar train: how a student is trained; by default as a refresh does.
    :ivar clip: smallest probability that the log loss counts.
    :ivar measure: name of the measure that policies look at and are judged by.
    """

    history: History
    train: TrainFunction = train_student
    clip: float = 0.01
    measure: str = "log_loss"
    _log_probs: dict[Made, Array] = field(default_factory=dict)
    _scores: dict[Made, dict[str, Array]] = field(default_factory=dict)
    _known: dict[tuple[Made, int], dict[str, float]] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """Number of steps T."""
        return self.history.steps

    # ----------------------------------------------------------------- models

    def prepare(
        self,
        steps: Iterable[int] | None = None,
        *,
        processes: int | None = None,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        """Train the models of some steps, in parallel; those that exist already are kept.

        :param steps: None: all.
        :param processes: None: one a core.
        :param progress: called with the number of trained models and that of all models to train.
        """
        wanted = range(self.steps) if steps is None else steps
        missing = [step for step in wanted if Made(step) not in self._log_probs]
        progress(0, len(missing))
        workers = min(processes or os.cpu_count() or 1, len(missing))
        if workers <= 1:
            for done, step in enumerate(missing, start=1):
                self.log_probs(Made(step))
                progress(done, len(missing))
            return
        with ProcessPoolExecutor(workers, get_context("forkserver"), _start_worker, (self.history, self.train)) as pool:
            results = zip(missing, pool.map(_train_in_worker, missing), strict=True)
            for done, (step, log_probs) in enumerate(results, start=1):
                self._log_probs[Made(step)] = log_probs
                progress(done, len(missing))

    def log_probs(self, made: Made) -> Array:
        """Logarithms of the model's probabilities on the rows from the step of its training on, float32 ``[m, K]``."""
        if made not in self._log_probs:
            if made.recalibrated is None:
                self._log_probs[made] = _train(self.history, self.train, made.trained)
            else:
                base = self.log_probs(made._replace(recalibrated=None))
                return self.correction(made).apply(base)
        return self._log_probs[made]

    def correction(self, made: Made) -> Correction:
        """The recalibration of a model before step ``made.recalibrated``, on the newest rows new to the model."""
        assert made.recalibrated is not None
        base = self.log_probs(made._replace(recalibrated=None))
        rows = self.rows_known(made.trained, made.recalibrated)
        return fit_correction(base[rows - self._first_row(made)], self.history.labels[rows])

    def rows_known(self, trained: int, decision: int, weeks: float = 4.0) -> Array:
        """Rows of at most the last ``weeks``, new to a model trained before step ``trained``, with known outcomes."""
        back = max(1, round(timedelta(weeks=weeks) / self.history.step))
        offsets = self.history.offsets
        rows = slice(int(offsets[max(trained, decision - back)]), int(offsets[decision]))
        return rows.start + np.flatnonzero(self.history.known_mask(rows, decision))

    def _first_row(self, made: Made) -> int:
        return int(self.history.offsets[made.trained])

    # ----------------------------------------------------------------- scores

    @cached_property
    def own_measure(self) -> Measure | None:
        """The user's own score; None: the agent file names one that every agent has."""
        measure = get_row_measure(self.history.settings)
        return None if measure.name in ("log_loss", "accuracy", "agreement", "auc") else measure

    def scores(self, made: Made) -> dict[str, Array]:
        """Mean scores of the model in each step by measure, float ``[T]``; NaN before it was made, or without rows."""
        if made not in self._scores:
            first, log_probs = self._first_row(made), self.log_probs(made)
            own = self.own_measure
            names = ("log_loss", "accuracy", "agreement", "auc", *((own.name,) if own else ()))
            table = {name: np.full(self.steps, np.nan) for name in names}
            for step in range(made.made, self.steps):
                rows = self.history.rows_of_step(step)
                if rows.start < rows.stop:
                    block = log_probs[rows.start - first : rows.stop - first]
                    for name, value in self._score(block, np.arange(rows.start, rows.stop)).items():
                        table[name][step] = value
            self._scores[made] = table
        return self._scores[made]

    def loss(self, made: Made) -> Array:
        """Mean losses in :attr:`measure` in each step, less is better, float ``[T]``; NaN as in :meth:`scores`."""
        losses: Array = self._orient(self.scores(made)[self.measure])
        return losses

    def known_loss(self, made: Made, decision: int) -> float:
        """Loss on the rows of the last step before ``decision`` whose outcomes are known then; NaN: none."""
        key = made, decision
        if key not in self._known:
            rows = self.history.rows_of_step(decision - 1)
            known = rows.start + np.flatnonzero(self.history.known_mask(rows, decision))
            block = self.log_probs(made)[known - self._first_row(made)]
            self._known[key] = self._score(block, known) if len(known) else {}
        return float(self._orient(self._known[key].get(self.measure, math.nan)))

    def _score(self, log_probs: Array, rows: Array) -> dict[str, float]:
        """Every measure of log probabilities ``[m, K]`` of the rows with these indices ``[m]``."""
        labels, own = self.history.labels[rows], self.own_measure
        scores = score(log_probs, labels, self.clip)
        if own is not None:
            scores[own.name] = own.value(np.exp(log_probs), labels, self.history.rows.iloc[rows])
        return scores

    def _orient(self, value: Any) -> Any:
        """A value of the measure as a loss, as the pool of a live agent does."""
        match self.measure:
            case "log_loss":
                return value
            case "accuracy" | "agreement" | "auc":
                return 1.0 - value
            case _:
                return -get_row_measure(self.history.settings).sign * value


def score(log_probs: Array, labels: Array, clip: float) -> dict[str, float]:
    """Clipped log loss, accuracy and, for two actions, the AUC (NaN with one outcome) of one block of rows."""
    rows = np.arange(len(labels))
    auc = math.nan
    if log_probs.shape[1] == 2 and 0 < labels.sum() < len(labels):
        auc = measure_auc(labels, log_probs[:, 1] - log_probs[:, 0])
    accuracy = float((log_probs.argmax(axis=1) == labels).mean())
    return {
        "log_loss": float(-np.maximum(log_probs[rows, labels], math.log(clip)).mean()),
        "accuracy": accuracy,
        "agreement": accuracy,
        "auc": auc,
    }


# --------------------------------------------------------------------------- training


def _train(history: History, train: TrainFunction, step: int) -> Array:
    """Log probabilities on all rows from ``step`` on, float32 ``[m, K]``."""
    index = history.training_index(step)
    ready = None if history.ready is None else history.ready[index]
    model = train(history.settings, history.rows.iloc[index].reset_index(drop=True), ready)
    later = history.rows.iloc[int(history.offsets[step]) : int(history.offsets[-1])]
    probs = np.clip(model.predict(later), 1e-7, 1.0)
    log_probs: Array = np.log(probs / probs.sum(axis=1, keepdims=True)).astype(np.float32)
    return log_probs


_WORKER: dict[str, Any] = {}


def _start_worker(history: History, train: TrainFunction) -> None:
    import torch

    end_silently_on_interrupt()
    torch.set_num_threads(1)
    _WORKER.update(history=history, train=train)


def _train_in_worker(step: int) -> Array:
    return _train(_WORKER["history"], _WORKER["train"], step)
