"""Small teachers that an agent file can name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from stillhouse.parts import TextEncoderState


class Constant:
    """Says ``says`` whatever it is asked, and learns nothing."""

    def __init__(self, says: float = 0.5) -> None:
        if not 0 <= says <= 1:
            raise ValueError(f"{says} is no probability")
        self.says = says

    def fit(self, rows: pd.DataFrame, outcomes: np.ndarray[Any, Any]) -> None:
        pass

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        return np.tile([1 - self.says, self.says], (len(rows), 1))

    def save(self, folder: Path) -> None:
        (folder / "says.json").write_text(json.dumps(self.says))

    @classmethod
    def load(cls, folder: Path) -> Constant:
        return cls(json.loads((folder / "says.json").read_text()))


class Shouting(Constant):
    """The same files as :class:`Constant`, read in another way."""

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        return np.tile([0.0, 1.0], (len(rows), 1))


class Memory:
    """Knows by heart what it was fitted on (probability 1), and says ½ about anything else."""

    fitted: ClassVar[list[set[str]]] = []

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def fit(self, rows: pd.DataFrame, outcomes: np.ndarray[Any, Any]) -> None:
        self.seen = dict(zip(rows["observation_id"], outcomes.tolist(), strict=True))
        self.fitted.append(set(self.seen))

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        return np.array([np.eye(2)[self.seen[i]] if i in self.seen else [0.5, 0.5] for i in rows["observation_id"]])

    def save(self, folder: Path) -> None:
        (folder / "seen.json").write_text(json.dumps(self.seen, sort_keys=True))

    @classmethod
    def load(cls, folder: Path) -> Memory:
        memory = cls()
        memory.seen = json.loads((folder / "seen.json").read_text())
        return memory


class Careless(Constant):
    """Answers with whatever it is told to."""

    def __init__(self, answer: str = "") -> None:
        super().__init__()
        self.answer = answer

    def predict_proba(self, rows: pd.DataFrame) -> Any:
        n = len(rows)
        return {
            "one column": np.ones((n, 1)),
            "one row": np.full((1, 2), 0.5),
            "a vector": np.full(n, 0.5),
            "logits": np.tile([2.0, -1.0], (n, 1)),
            "negative": np.tile([1.5, -0.5], (n, 1)),
            "not normalised": np.full((n, 2), 0.4),
            "nan": np.full((n, 2), np.nan),
            "a list": [[0.25, 0.75]] * n,
            "a frame": pd.DataFrame(np.tile([0.25, 0.75], (n, 1))),
            "float32": np.tile(np.array([0.25, 0.75], dtype=np.float32), (n, 1)),
        }[self.answer]


class Mute:
    """A teacher that cannot be asked."""

    def fit(self, rows: pd.DataFrame, outcomes: np.ndarray[Any, Any]) -> None:
        pass

    def save(self, folder: Path) -> None:
        pass


class Reader(Constant):
    """Offers a text encoder of one token, whose vector is what the teacher says; wrongly where that is 0 or 1."""

    def text_encoder(self) -> Any:
        if self.says == 1:
            raise OSError("no such weights")
        return TextEncoderState(["taxi"], np.full((1, 2), self.says)) if self.says else {"taxi": [0.0]}


def reading_module() -> Any:
    """A torch module that offers one too."""
    import torch

    class Module(torch.nn.Linear):
        def text_encoder(self) -> TextEncoderState:
            return TextEncoderState(["bus"], np.ones((1, 3)))

    return Module(1, 2)


not_a_class = 3
