"""Small teachers that an agent file can name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from stillhouse.parts import TextEncoderState


class Constant:
    """Gives the second action probability ``prob`` in every row; its fit does nothing."""

    def __init__(self, prob: float = 0.5) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"{prob} is no probability")
        self.prob = prob

    def fit(self, rows: pd.DataFrame, labels: np.ndarray[Any, Any]) -> None:
        pass

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        return np.tile([1 - self.prob, self.prob], (len(rows), 1))

    def save(self, folder: Path) -> None:
        (folder / "prob.json").write_text(json.dumps(self.prob))

    @classmethod
    def load(cls, folder: Path) -> Constant:
        return cls(json.loads((folder / "prob.json").read_text()))


class AlwaysSecond(Constant):
    """Reads the files of :class:`Constant` and is certain of the second action."""

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        return np.tile([0.0, 1.0], (len(rows), 1))


class Memory:
    """Memorises the labels it was fitted on (probability 1), and gives ½ for any other row."""

    fit_ids: ClassVar[list[set[str]]] = []

    def __init__(self) -> None:
        self.labels_by_id: dict[str, int] = {}

    def fit(self, rows: pd.DataFrame, labels: np.ndarray[Any, Any]) -> None:
        self.labels_by_id = dict(zip(rows["observation_id"], labels.tolist(), strict=True))
        self.fit_ids.append(set(self.labels_by_id))

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        return np.array(
            [np.eye(2)[self.labels_by_id[i]] if i in self.labels_by_id else [0.5, 0.5] for i in rows["observation_id"]]
        )

    def save(self, folder: Path) -> None:
        (folder / "labels.json").write_text(json.dumps(self.labels_by_id, sort_keys=True))

    @classmethod
    def load(cls, folder: Path) -> Memory:
        memory = cls()
        memory.labels_by_id = json.loads((folder / "labels.json").read_text())
        return memory


class FixedAnswer(Constant):
    """Answers in the form that its setting names."""

    def __init__(self, answer: str = "") -> None:
        super().__init__()
        self.answer = answer

    def predict_proba(self, rows: pd.DataFrame) -> Any:
        count = len(rows)
        return {
            "one column": np.ones((count, 1)),
            "one row": np.full((1, 2), 0.5),
            "a vector": np.full(count, 0.5),
            "logits": np.tile([2.0, -1.0], (count, 1)),
            "negative": np.tile([1.5, -0.5], (count, 1)),
            "not normalised": np.full((count, 2), 0.4),
            "nan": np.full((count, 2), np.nan),
            "a list": [[0.25, 0.75]] * count,
            "a frame": pd.DataFrame(np.tile([0.25, 0.75], (count, 1))),
            "float32": np.tile(np.array([0.25, 0.75], dtype=np.float32), (count, 1)),
        }[self.answer]


class WithoutPredict:
    """A teacher without ``predict_proba``."""

    def fit(self, rows: pd.DataFrame, labels: np.ndarray[Any, Any]) -> None:
        pass

    def save(self, folder: Path) -> None:
        pass


class WithTextEncoder(Constant):
    """Offers a text encoder of one token with vector ``prob``; fails for ``prob`` 1, gives another type for 0."""

    def text_encoder(self) -> Any:
        if self.prob == 1:
            raise OSError("no such weights")
        return TextEncoderState(["taxi"], np.full((1, 2), self.prob)) if self.prob else {"taxi": [0.0]}


def make_module_with_encoder() -> Any:
    """A torch module that offers a text encoder."""
    import torch

    class Module(torch.nn.Linear):
        def text_encoder(self) -> TextEncoderState:
            return TextEncoderState(["bus"], np.ones((1, 3)))

    return Module(1, 2)


not_a_class = 3
