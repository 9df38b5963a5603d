"""Our contender: a small text student, distilled from the answers and compressed, by the engine's own functions."""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.distillation_data import agent
from benchmarks.router_peers.models import Array, Lesson, Probabilistic, fit_head
from stillhouse.distill.students import columns_of, new_student
from stillhouse.distill.train import distil
from stillhouse.distill.training_set import TrainingSet
from stillhouse.distilling import DistilledStudent
from stillhouse.parts import TextEncoderState
from stillhouse.variant import Variant, encode

__all__ = ["OurStudent"]

MAX_BYTES = 3_000_000
STUDENT = {
    "kind": "text",
    "encoder": {"type": "convolution", "width": 48, "filters": 128, "sizes": [1, 2, 3]},
    "initialise": "teacher",
    "vocabulary": 4000,
    "length": 24,
    "widths": [],
    "dropout": 0.2,
}
DISTILLATION = {
    "temperature": 1.0,
    "outcome_weight": 0.5,
    "epochs": 10,
    "batch_size": 128,
    "learning_rate": 0.005,
    "controller": "fixed",
    "augment": {"copies": 0},
}
STRENGTH, FOLDS = 10.0, 4
VALIDATION_SHARE = 0.05


class OurStudent(Probabilistic):
    """The student of ``STUDENT``, trained on the language model's answers and on those of a second teacher.

    The second teacher is MiniLM with logistic regression, fitted on the language model's answers. It gives
    probabilities: cross-fitted where the language model answered, and of the whole head for sentences that were
    answered locally, whose text is all that is known. Nothing of it is needed to decide.
    """

    def __init__(self, lesson: Lesson) -> None:
        probs = np.vstack([cross_fitted(lesson), head_probabilities(lesson)])
        labels = np.concatenate([lesson.answers, np.full(len(lesson.other_texts), -1)])
        rows = pd.DataFrame({"text": [*lesson.texts, *lesson.other_texts]})
        config = agent({"text": {"type": "text"}}, lesson.actions, STUDENT, seed=lesson.seed, **DISTILLATION)
        is_validation = np.zeros(len(rows), dtype=bool)
        draws = np.random.default_rng(lesson.seed).random(len(lesson.texts))
        is_validation[: len(lesson.texts)] = draws < VALIDATION_SHARE
        learned = rows[~is_validation]
        columns = columns_of(config, learned, initial())
        x = encode(learned, columns)
        student = new_student(config, columns, x, initial())
        training_set = TrainingSet(x, probs[~is_validation], labels[~is_validation], 0, tokens=x.shape[1])
        distil(student, training_set, config.distillation)
        distilled = DistilledStudent(student, tuple(columns), config, rows, probs, labels, is_validation)
        self.folder = Path(tempfile.mkdtemp(prefix="router-")) / "variant"
        self.variant = compress(distilled, self.folder)
        self.bytes = sum(file.stat().st_size for file in self.folder.rglob("*") if file.is_file())

    def close(self) -> None:
        shutil.rmtree(self.folder.parent, ignore_errors=True)

    def probabilities(self, texts: Sequence[str], vectors: Array) -> Array:
        return self.variant.predict_proba(pd.DataFrame({"text": texts})).astype(np.float64)

    def decide(self, text: str) -> None:
        self.variant.predict_proba({"text": text})


def compress(student: DistilledStudent, folder: Path) -> Variant:
    """The best of the default recipes within the limit of bytes."""
    return student.compress(folder, max_bytes=MAX_BYTES, max_quality_loss=0.02, search=None)


def cross_fitted(lesson: Lesson) -> Array:
    """Probabilities ``[n, K]`` of heads that were fitted on the other folds."""
    probs = np.zeros((len(lesson.answers), lesson.actions))
    fold = np.random.default_rng(lesson.seed).integers(FOLDS, size=len(lesson.answers))
    for number in range(FOLDS):
        chosen = fold == number
        head = fit_head(lesson.vectors[~chosen], lesson.answers[~chosen], STRENGTH)
        probs[np.ix_(chosen, head.classes_)] = head.predict_proba(lesson.vectors[chosen])
    return probs


def head_probabilities(lesson: Lesson) -> Array:
    """Probabilities ``[m, K]`` for the sentences that were answered locally."""
    probs = np.zeros((len(lesson.other_texts), lesson.actions))
    if len(probs):
        head = fit_head(lesson.vectors, lesson.answers, STRENGTH)
        probs[:, head.classes_] = head.predict_proba(lesson.other_vectors)
    return probs


@functools.cache
def initial() -> TextEncoderState:
    """MiniLM's tokens and embeddings, from which the student's are initialised."""
    from examples.router import MiniLM

    state: Any = MiniLM().text_encoder()
    assert isinstance(state, TextEncoderState)
    return state
