"""A teacher that counts its questions and can be slow or fail; a process that is killed while it decides."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

question_sizes: list[int] = []
"""Number of rows of each question."""
behaviour: dict[str, Any] = {"delay": 0.0, "fails": False}


class Rule:
    def __init__(self, limit: float = 10.0) -> None:
        self.limit = limit

    def fit(self, rows: pd.DataFrame, labels: np.ndarray) -> None: ...

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray:
        question_sizes.append(len(rows))
        time.sleep(behaviour["delay"])
        if behaviour["fails"]:
            raise OSError("the teacher's house burns")
        late = np.where(rows["wind"].to_numpy() > self.limit, 0.9, 0.2)
        return np.column_stack([1 - late, late])

    def save(self, folder: Path) -> None:
        Path(folder, "limit.txt").write_text(str(self.limit))

    @classmethod
    def load(cls, folder: Path) -> Rule:
        return cls(float(Path(folder, "limit.txt").read_text()))


def decide_and_die() -> None:
    """Print the id of each of 40 decisions, then kill this process."""
    from stillhouse.runtime import Agent

    agent = Agent("flights")
    for number in range(40):
        decision = agent.decide({"wind": float(number), "hour": 1.0, "origin": "EWR"})
        sys.stdout.write(f"{decision.decision_id}\n")
        sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    decide_and_die()
