"""A memory is a uniform sample of all that was learned, with what was said then."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stillhouse.distill.memory import read, remembered

START = pd.Timestamp("2024-01-01T00:00:00Z")


def learned(first: int, count: int, value: float) -> tuple[pd.DataFrame, np.ndarray]:
    numbers = np.arange(first, first + count)
    rows = pd.DataFrame(
        {"observation_id": [f"r{i}" for i in numbers], "observed_at": START + pd.to_timedelta(numbers, unit="h")}
    )
    return rows, np.tile([value, 1 - value], (count, 1))


def test_every_row_ever_learned_has_the_same_chance() -> None:
    memory = remembered(*learned(0, 3000, 0.9), ["a", "b"], 400)
    memory = remembered(*learned(3000, 1000, 0.2), ["a", "b"], 400, older=memory)
    old = memory.probabilities[:, 0] > 0.5
    assert len(memory) == 400 and memory.seen == 4000
    assert 270 <= old.sum() <= 330  # three quarters: 300 ± 3.4 standard deviations
    assert memory.rows["observed_at"].is_monotonic_increasing


def test_few_rows_are_all_kept_and_what_was_said_first_stays() -> None:
    memory = remembered(*learned(0, 10, 0.9), ["a", "b"], 400)
    memory = remembered(*learned(5, 10, 0.2), ["a", "b"], 400, older=memory)
    assert len(memory) == memory.seen == 15
    said = memory.among(pd.Series(["r7", "r14"]), ["a", "b"])
    assert said[:, 0].tolist() == pytest.approx([0.9, 0.2])


def test_it_survives_new_actions_and_the_disk(tmp_path: Path) -> None:
    memory = remembered(*learned(0, 20, 0.25), ["a", "b"], 10)
    newer, said = learned(20, 20, 0.5)
    memory = remembered(newer, np.column_stack([said / 2, np.full(20, 0.5)]), ["a", "b", "c"], 10, older=memory)
    memory.save(tmp_path)
    kept = read(tmp_path)
    assert kept is not None and kept.seen == 40 and kept.actions == ("a", "b", "c")
    pd.testing.assert_frame_equal(kept.rows, memory.rows, check_dtype=False)
    np.testing.assert_array_equal(kept.probabilities, memory.probabilities)
    assert set(kept.probabilities[:, 2]) == {0.0, 0.5}
    assert kept.among(kept.rows["observation_id"], ["c", "a", "b"])[:, 0].tolist() == kept.probabilities[:, 2].tolist()
    with pytest.raises(KeyError):
        kept.among(pd.Series(["never"]), ["a", "b"])
    assert read(tmp_path / "elsewhere") is None
