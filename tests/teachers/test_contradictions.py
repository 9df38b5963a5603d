"""Where teachers contradict each other, counted by hand; who is right is said only beyond chance."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import AgentConfig
from stillhouse.records import Contradictions, Window
from stillhouse.teachers.contradictions import contradictions

START = datetime(2024, 1, 1, tzinfo=UTC)
WINDOW = Window(name="train", start=START, end=START + timedelta(days=60))


def config(min_slice_rows: int = 20, cluster: str = "0s") -> AgentConfig:
    return AgentConfig.model_validate(
        {
            "agent": "toy",
            "actions": ["stay", "move"],
            "observations": {
                "source": "toy:rows",
                "since": "2024-01-01T00:00:00Z",
                "columns": {"place": {"type": "category"}},
            },
            "outcomes": {"source": "toy:outcomes", "delay": "1d"},
            "teachers": [{"kind": "python", "name": "a", "target": "toy:A"}],
            "student": {"kind": "tabular"},
            "windows": {"train": "8w", "test": "1w", "current": "7d"},
            "watch": {},
            "promotion": {"slices": ["place"], "min_slice_rows": min_slice_rows, "cluster": cluster},
        }
    )


def found(count: int, a: Any, b: Any, outcomes: Any, place: Any, **settings: Any) -> Contradictions:
    times = pd.to_datetime([START + timedelta(minutes=20 * i) for i in range(count)], utc=True)
    rows = pd.DataFrame({"observed_at": times, "place": place})
    said = {name: np.column_stack([1 - p, p]) for name, p in (("a", np.asarray(a)), ("b", np.asarray(b)))}
    return contradictions(config(**settings), WINDOW, rows, said, np.asarray(outcomes))


def test_counted_by_hand() -> None:
    """In the south 30 of 40 differ in the action, and `a` is right in all of them; in the north none does."""
    south = np.arange(80) < 40
    a, b = np.where(south, 0.8, 0.7), np.where(np.arange(80) < 30, 0.2, 0.9)
    result = found(80, a, b, np.ones(80, dtype=int), np.where(south, "south", "north"))
    whole, worst, calm = result.found
    assert (whole.slice, whole.rows, whole.contradicting, whole.first_right, whole.second_right) == ("", 80, 30, 30, 0)
    assert (worst.slice, worst.share, worst.known, worst.better) == ("place=south", 0.75, 30, "a")
    assert worst.low == pytest.approx(0.598, abs=0.002) and worst.high == pytest.approx(0.858, abs=0.002)  # Wilson
    assert (calm.slice, calm.contradicting, calm.better) == ("place=north", 0, None) and calm.low == 0 < calm.high


def test_far_apart_counts_though_the_action_is_the_same() -> None:
    result = found(2, [0.999, 0.999], [0.6, 0.499], [1, -1], ["x", "x"])
    assert result.found[0].contradicting == 1  # 0.399 apart is not enough
    three = np.array([[0.34, 0.33, 0.33]]), np.array([[0.9, 0.05, 0.05]])
    settings = config().model_copy(update={"actions": ("a", "b", "c")})
    rows = pd.DataFrame({"observed_at": [pd.Timestamp(START)], "place": ["x"]})
    said = dict(zip(("p", "q"), three, strict=True))
    (one,) = contradictions(settings, WINDOW, rows, said, np.array([0])).found
    assert (one.contradicting, one.first_right, one.second_right) == (1, 0, 0)  # both chose the outcome


def test_small_slices_are_left_out_and_unknown_outcomes_count_for_nobody() -> None:
    place = np.where(np.arange(60) < 10, "small", "large")
    result = found(60, np.full(60, 0.9), np.full(60, 0.1), np.full(60, -1), place)
    assert [each.slice for each in result.found] == ["", "place=large"]
    assert {(each.known, each.first_right, each.better) for each in result.found} == {(0, 0, None)}
    assert Contradictions.model_validate_json(result.model_dump_json()) == result


def test_rows_that_a_teacher_has_not_spoken_about_are_left_out() -> None:
    a = np.where(np.arange(50) < 25, np.nan, 0.9)
    assert found(50, a, np.full(50, 0.1), np.ones(50, dtype=int), ["x"] * 50).found[0].rows == 25


def test_rows_of_one_hour_are_one_piece_of_evidence() -> None:
    apart = np.arange(600) // 3 % 2 == 0  # whole hours of three rows
    a, b = np.full(600, 0.9), np.where(apart, 0.1, 0.9)
    widths = []
    for cluster in ("0s", "1h"):
        whole = found(600, a, b, np.ones(600, dtype=int), ["x"] * 600, cluster=cluster).found[0]
        widths.append(whole.high - whole.low)
    assert widths[1] == pytest.approx(widths[0] * np.sqrt(3), rel=0.02)


def test_who_is_right_is_not_said_by_chance() -> None:
    rng = np.random.default_rng(4)
    a = rng.random(400)
    assert found(400, a, 1 - a, rng.integers(0, 2, 400), ["x"] * 400).found[0].better is None
