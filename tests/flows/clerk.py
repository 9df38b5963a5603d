"""A small agent with texts (one category, four actions) and drift of the vocabulary on a known day."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd

from stillhouse.parts import TextEncoderState
from stillhouse.variant import basic_words

BEGIN = pd.Timestamp("2024-01-01T00:00:00Z")
DRIFT_START = BEGIN + pd.Timedelta(days=24)  # from here on, other words have the same meaning
PER_DAY = 120
ACTIONS = ["greet", "book", "cancel", "complain"]
WORDS = {
    "before": [
        ["hello", "hi", "morning"],
        ["book", "reserve", "order"],
        ["cancel", "drop", "stop"],
        ["late", "dirty", "rude"],
    ],
    "after": [
        ["howdy", "yo", "evening"],
        ["grab", "fetch", "call"],
        ["scrap", "undo", "forget"],
        ["slow", "grubby", "gruff"],
    ],
}
FILLING = ["please", "the", "a", "my", "taxi", "driver", "now", "to", "town", "was", "and", "well"]


def _history() -> pd.DataFrame:
    rng = np.random.default_rng(11)
    n = 60 * PER_DAY
    observed = BEGIN + pd.to_timedelta(np.arange(n) * (86_400 // PER_DAY), unit="s")
    outcomes = rng.integers(0, len(ACTIONS), n)
    sentences = []
    for moment, outcome in zip(observed, outcomes, strict=True):
        words = list(rng.choice(FILLING, rng.integers(2, 6)))
        meaning = outcome if rng.random() < 0.95 else rng.integers(0, len(ACTIONS))
        if rng.random() < 0.97:
            words.insert(
                rng.integers(0, len(words)), rng.choice(WORDS["after" if moment >= DRIFT_START else "before"][meaning])
            )
        sentences.append(" ".join(words).capitalize() + rng.choice([".", "!", ""]))
    return pd.DataFrame(
        {
            "observation_id": [f"clerk-{i:05d}" for i in range(n)],
            "observed_at": observed,
            "said": np.where(rng.random(n) < 0.01, "", sentences),
            "place": rng.choice(["phone", "desk"], n),
            "action": np.array(ACTIONS)[outcomes],
        }
    )


HISTORY = _history()


def observations(start: datetime, end: datetime) -> pd.DataFrame:
    return _between(start, end).drop(columns="action")


def outcomes(start: datetime, end: datetime) -> pd.DataFrame:
    rows = _between(start, end)[["observation_id", "observed_at", "action"]]
    return rows.assign(known_at=rows["observed_at"] + pd.Timedelta(days=1))


def _between(start: datetime, end: datetime) -> pd.DataFrame:
    return HISTORY[(HISTORY["observed_at"] >= start) & (HISTORY["observed_at"] < end)].reset_index(drop=True)


class WordCounts:
    """Naive Bayes on words, saved as JSON; a word's embedding is its log-odds per action."""

    def fit(self, rows: pd.DataFrame, labels: np.ndarray) -> None:
        counts = [Counter[str]() for _ in ACTIONS]
        for text, outcome in zip(rows["said"], labels, strict=True):
            counts[outcome].update(self._words(text))
        self.words = sorted(set().union(*counts))
        table = np.array([[count[word] + 0.5 for count in counts] for word in self.words])
        self.table = np.log(table / table.sum(axis=0))

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray:
        indices = {word: i for i, word in enumerate(self.words)}
        scores = np.zeros((len(rows), len(ACTIONS)))
        for score, text in zip(scores, rows["said"], strict=True):
            for word in self._words(text):
                if word in indices:
                    score += self.table[indices[word]]
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return 0.98 * scores / scores.sum(axis=1, keepdims=True) + 0.02 / len(ACTIONS)

    def text_encoder(self) -> TextEncoderState:
        return TextEncoderState(self.words, (self.table - self.table.mean(axis=1, keepdims=True)).astype(np.float32))

    def save(self, folder: Path) -> None:
        (folder / "words.json").write_text(json.dumps({"words": self.words, "table": self.table.tolist()}))

    @classmethod
    def load(cls, folder: Path) -> WordCounts:
        stored = json.loads((folder / "words.json").read_text())
        loaded = cls()
        loaded.words, loaded.table = stored["words"], np.array(stored["table"])
        return loaded

    def _words(self, text: object) -> list[str]:
        return basic_words(text) if isinstance(text, str) else []
