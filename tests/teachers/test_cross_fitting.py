"""Cross-fitting: each time block is answered by teachers fitted on the other blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.teachers.cross_fitting import cross_fit
from tests.teachers.test_ensemble import MEMORY, make_config, make_rows
from tests.teachers.toy_teachers import Constant, Memory


@pytest.fixture
def fit_ids() -> list[set[str]]:
    """Observation ids of the rows that each fit of :class:`Memory` in this test has seen."""
    Memory.fit_ids.clear()
    return Memory.fit_ids


def test_memorising_teacher_gains_nothing_in_cross_fitting(fit_ids: list[set[str]]) -> None:
    rows, progress = make_rows(24), list[str]()
    probs = cross_fit(make_config(MEMORY), rows, progress.append)["memory"]
    np.testing.assert_array_equal(probs, np.full((24, 2), 0.5))
    assert progress == [f"teacher, block {i} of 4" for i in (1, 2, 3, 4)]
    memory = Memory()
    memory.fit(rows, rows["outcome"].to_numpy())
    assert (memory.predict_proba(rows).max(axis=1) == 1).all()


def test_each_time_block_is_left_out_once(fit_ids: list[set[str]]) -> None:
    rows = make_rows(10)
    cross_fit(make_config(MEMORY, folds=3), rows.sample(10, random_state=1))
    in_time = rows["observation_id"].tolist()
    left_out = [set(in_time) - seen for seen in fit_ids]
    assert left_out == [set(in_time[:4]), set(in_time[4:7]), set(in_time[7:])]


def test_masked_rows_are_answered_and_other_blocks_are_not_fitted(fit_ids: list[set[str]]) -> None:
    rows = make_rows(12)
    mask = np.isin(np.arange(12), [0, 2, 11])
    probs = cross_fit(make_config(MEMORY, folds=3), rows, mask=mask)["memory"]
    assert (~np.isnan(probs[:, 0])).tolist() == mask.tolist()
    assert len(fit_ids) == 2


def test_cross_fit_answers_keep_the_order_of_the_rows(fit_ids: list[set[str]]) -> None:
    """Each answer is the base rate of the other block, so it identifies the block of its row."""
    config = make_config({"name": "rate", "target": f"{__name__}:BaseRate"}, folds=2)
    rows = make_rows(8).assign(outcome=[0, 0, 0, 0, 1, 1, 1, 0])
    shuffled = rows.sample(8, random_state=3)
    probs = pd.DataFrame(cross_fit(config, shuffled)["rate"], index=shuffled.index).sort_index()
    assert probs[1].tolist() == [0.75] * 4 + [0.0] * 4


class BaseRate(Constant):
    """The share of outcome 1 among what it was fitted on."""

    def fit(self, rows: pd.DataFrame, labels: np.ndarray[Any, Any]) -> None:
        self.prob = float(labels.mean())
