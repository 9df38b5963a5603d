"""The training of a replay: teachers that learn and offer a text encoder initialise the student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import AgentConfig
from stillhouse.errors import ConfigError
from stillhouse.parts import TextEncoderState
from stillhouse.replay.training import train_student

TOKENS = ["a", "flat", "taxi", "train", "##s"]


class Teacher:
    """Learns nothing, and answers with the first action."""

    def fit(self, rows: pd.DataFrame, labels: Any) -> Teacher:
        return self

    def predict_proba(self, rows: pd.DataFrame) -> Any:
        return np.tile([0.9, 0.1], (len(rows), 1))

    def save(self, folder: Path) -> None:
        """Nothing to save."""

    @classmethod
    def load(cls, folder: Path) -> Teacher:
        return cls()


class WithEncoder(Teacher):
    """Offers vectors of eight numbers for a few tokens."""

    def text_encoder(self) -> TextEncoderState:
        return TextEncoderState(TOKENS, np.random.default_rng(0).normal(size=(len(TOKENS), 8)))


def settings_with(teacher: str) -> AgentConfig:
    target = f"{__name__}:no_source"
    return AgentConfig.model_validate(
        {
            "agent": "words",
            "actions": ["home", "ride"],
            "observations": {
                "source": target,
                "since": "2024-01-01T00:00:00Z",
                "columns": {"text": {"type": "text", "max_length": 40}},
            },
            "outcomes": {"source": target, "delay": "1d"},
            "teachers": [{"kind": "python", "name": "teacher", "target": f"{__name__}:{teacher}"}],
            "student": {
                "kind": "text",
                "encoder": {"type": "bag", "width": 8},
                "length": 8,
                "widths": [],
                "initialise": "teacher",
            },
            "distillation": {"epochs": 1, "augment": {"copies": 0}},
            "windows": {"train": "4w", "test": "7d", "current": "7d"},
            "watch": {},
        }
    )


def no_source(start: Any, end: Any) -> pd.DataFrame:
    raise RuntimeError("no source")


def make_rows() -> pd.DataFrame:
    times = pd.Series(pd.date_range("2024-01-01", periods=120, freq="3h", tz="UTC"))
    return pd.DataFrame(
        {
            "observation_id": [str(index) for index in range(120)],
            "observed_at": times,
            "known_at": times + pd.Timedelta(days=1),
            "text": ["a flat", "taxi", "train"] * 40,
            "outcome": [0, 1, 1] * 40,
        }
    )


def test_a_teacher_that_learns_initialises_the_student() -> None:
    probs = train_student(settings_with("WithEncoder"), make_rows(), None).predict(make_rows().head(3))
    assert probs.shape == (3, 2) and np.isfinite(probs).all()


def test_a_teacher_without_an_encoder_is_named() -> None:
    with pytest.raises(ConfigError, match="none of the teachers offers its text encoder"):
        train_student(settings_with("Teacher"), make_rows(), None)
