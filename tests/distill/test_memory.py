"""The replay memory: a uniform sample of all training rows, with the student's probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stillhouse.distill.memory import read, sample_memory

START = pd.Timestamp("2024-01-01T00:00:00Z")


def trained_rows(first: int, count: int, value: float) -> tuple[pd.DataFrame, np.ndarray]:
    numbers = np.arange(first, first + count)
    rows = pd.DataFrame(
        {"observation_id": [f"r{i}" for i in numbers], "observed_at": START + pd.to_timedelta(numbers, unit="h")}
    )
    return rows, np.tile([value, 1 - value], (count, 1))


def test_every_training_row_has_the_same_inclusion_probability() -> None:
    memory = sample_memory(*trained_rows(0, 3000, 0.9), ["a", "b"], 400)
    memory = sample_memory(*trained_rows(3000, 1000, 0.2), ["a", "b"], 400, older=memory)
    old = memory.probabilities[:, 0] > 0.5
    assert len(memory) == 400 and memory.seen == 4000
    assert 270 <= old.sum() <= 330  # three quarters: 300 ± 3.4 standard deviations
    assert memory.rows["observed_at"].is_monotonic_increasing


def test_all_rows_are_stored_while_they_fit_and_keep_their_first_probabilities() -> None:
    memory = sample_memory(*trained_rows(0, 10, 0.9), ["a", "b"], 400)
    memory = sample_memory(*trained_rows(5, 10, 0.2), ["a", "b"], 400, older=memory)
    assert len(memory) == memory.seen == 15
    probs = memory.probs_of(pd.Series(["r7", "r14"]), ["a", "b"])
    assert probs[:, 0].tolist() == pytest.approx([0.9, 0.2])


def test_memory_survives_new_actions_and_a_round_trip(tmp_path: Path) -> None:
    memory = sample_memory(*trained_rows(0, 20, 0.25), ["a", "b"], 10)
    newer, probs = trained_rows(20, 20, 0.5)
    memory = sample_memory(newer, np.column_stack([probs / 2, np.full(20, 0.5)]), ["a", "b", "c"], 10, older=memory)
    memory.save(tmp_path)
    loaded = read(tmp_path)
    assert loaded is not None and loaded.seen == 40 and loaded.actions == ("a", "b", "c")
    pd.testing.assert_frame_equal(loaded.rows, memory.rows, check_dtype=False)
    np.testing.assert_array_equal(loaded.probabilities, memory.probabilities)
    assert set(loaded.probabilities[:, 2]) == {0.0, 0.5}
    assert (
        loaded.probs_of(loaded.rows["observation_id"], ["c", "a", "b"])[:, 0].tolist()
        == loaded.probabilities[:, 2].tolist()
    )
    with pytest.raises(KeyError):
        loaded.probs_of(pd.Series(["never"]), ["a", "b"])
    assert read(tmp_path / "elsewhere") is None
