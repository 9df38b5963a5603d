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

from benchmarks.router_peers.models import Array, Lesson, Probabilistic, fit_head, token_vectors
from stillhouse.config import AgentConfig
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
    "encoder": {"type": "convolution", "width": 128, "filters": 192, "sizes": [1, 2, 3]},
    "initialise": "teacher",
    "freeze": True,
    "vocabulary": 12_000,
    "length": 20,
    "widths": [384],
    "dropout": 0.1,
}
DISTILLATION = {
    "losses": [{"type": "hinton"}, {"type": "hints", "weight": 3.0}],
    "temperature": 1.0,
    "outcome_weight": 0.3,
    "epochs": 12,
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
    answered locally, whose text is all that is known. Its vectors are hints for the hidden layer. Nothing of it is
    needed to decide.
    """

    def __init__(self, lesson: Lesson) -> None:
        probs = np.vstack([cross_fitted(lesson), head_probabilities(lesson)])
        labels = np.concatenate([lesson.answers, np.full(len(lesson.other_texts), -1)])
        rows = pd.DataFrame({"text": [*lesson.texts, *lesson.other_texts]})
        config = agent_file(lesson.actions, lesson.seed)
        is_validation = np.zeros(len(rows), dtype=bool)
        draws = np.random.default_rng(lesson.seed).random(len(lesson.texts))
        is_validation[: len(lesson.texts)] = draws < VALIDATION_SHARE
        learned = rows[~is_validation]
        columns = columns_of(config, learned, initial())
        x = encode(learned, columns)
        student = new_student(config, columns, x, initial())
        features = np.vstack([lesson.vectors, lesson.other_vectors]) * np.float32(np.sqrt(lesson.vectors.shape[1]))
        training_set = TrainingSet(
            x, probs[~is_validation], labels[~is_validation], 0, features[~is_validation], tokens=x.shape[1]
        )
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


def agent_file(actions: int, seed: int) -> AgentConfig:
    """The agent that the student belongs to."""
    teacher = {"kind": "python", "name": "minilm", "target": "x:y", "learns": False, "features": True}
    return AgentConfig.model_validate(
        {
            "agent": "router",
            "actions": [f"a{number}" for number in range(actions)],
            "observations": {"source": "x:y", "since": "2026-01-01T00:00:00Z", "columns": {"text": {"type": "text"}}},
            "outcomes": {"source": "x:y", "delay": "1d"},
            "teachers": [teacher],
            "student": STUDENT,
            "distillation": {**DISTILLATION, "seed": seed},
            "watch": {},
            "windows": {"train": "8w", "test": "1w", "current": "7d"},
        }
    )


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
    """MiniLM's tokens with its vector of each token alone, from which the student's embeddings are made."""
    from examples.router import MiniLM

    state: Any = MiniLM().text_encoder()
    assert isinstance(state, TextEncoderState)
    known = token_vectors()
    vectors = np.zeros((len(state.tokens), known.vectors.shape[1]), dtype=np.float32)
    index = {token: number for number, token in enumerate(state.tokens)}
    for token, vector in zip(known.tokens, known.vectors, strict=True):
        if token in index:
            vectors[index[token]] = vector
    return TextEncoderState(state.tokens, vectors)
