"""The streams of `benchmarks.streams`: shapes and order in time, what is known when, and the readers on tiny data."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.streams_data import Stream, dev_streams


def check_stream(stream: Stream) -> None:
    rows = stream.rows
    assert {"observation_id", "observed_at", "outcome", "known_at"} <= set(rows)
    assert set(stream.settings.observations.columns) <= set(rows)
    assert rows["observation_id"].is_unique and rows["observed_at"].is_monotonic_increasing
    assert str(rows["observed_at"].dt.tz) == str(rows["known_at"].dt.tz) == "UTC"
    assert (rows["known_at"] >= rows["observed_at"]).all()
    assert rows["outcome"].dtype == np.int64
    assert rows["outcome"].between(-1, len(stream.settings.actions) - 1).all()
    assert 0 < stream.first_steps < stream.steps
    assert sum(len(stream.rows_of(step)) for step in range(stream.steps)) == len(rows)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_dev_streams_have_rows_in_every_step(index: int) -> None:
    stream = dev_streams(seed=1)[index]
    check_stream(stream)
    assert stream.steps == 80
    assert all(200 <= len(stream.rows_of(step)) <= 700 for step in range(80))


def test_dev_streams_depend_on_the_seed_alone() -> None:
    again, first, other = dev_streams(seed=1)[0], dev_streams(seed=1)[0], dev_streams(seed=2)[0]
    pd.testing.assert_frame_equal(again.rows, first.rows)
    assert not again.rows["x0"].equals(other.rows["x0"])
