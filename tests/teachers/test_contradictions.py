"""Contradictions between teachers match a hand count; one is called better only if the difference is significant."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import AgentConfig
from stillhouse.records import Contradictions, Window
from stillhouse.teachers.contradictions import find_contradictions
from tests.agents import agent_config

START = datetime(2024, 1, 1, tzinfo=UTC)
WINDOW = Window(name="train", start=START, end=START + timedelta(days=60))


def config(min_slice_rows: int = 20, cluster: str = "0s") -> AgentConfig:
    return agent_config(
        observations={"columns": {"place": {"type": "category"}}},
        promotion={"slices": ["place"], "min_slice_rows": min_slice_rows, "cluster": cluster},
    )


def compare(count: int, a: Any, b: Any, outcomes: Any, place: Any, **settings: Any) -> Contradictions:
    times = pd.to_datetime([START + timedelta(minutes=20 * i) for i in range(count)], utc=True)
    rows = pd.DataFrame({"observed_at": times, "place": place})
    teacher_probs = {name: np.column_stack([1 - p, p]) for name, p in (("a", np.asarray(a)), ("b", np.asarray(b)))}
    return find_contradictions(config(**settings), WINDOW, rows, teacher_probs, np.asarray(outcomes))


def test_contradictions_match_hand_count() -> None:
    """In the south 30 of 40 differ in the action, and `a` is right in all of them; in the north none does."""
    south = np.arange(80) < 40
    a, b = np.where(south, 0.8, 0.7), np.where(np.arange(80) < 30, 0.2, 0.9)
    result = compare(80, a, b, np.ones(80, dtype=int), np.where(south, "south", "north"))
    all_rows, south_slice, north_slice = result.contradictions
    assert (all_rows.slice, all_rows.rows, all_rows.contradicting, all_rows.first_right, all_rows.second_right) == (
        "",
        80,
        30,
        30,
        0,
    )
    assert (south_slice.slice, south_slice.share, south_slice.known, south_slice.better) == (
        "place=south",
        0.75,
        30,
        "a",
    )
    assert south_slice.low == pytest.approx(0.598, abs=0.002) and south_slice.high == pytest.approx(
        0.858, abs=0.002
    )  # Wilson
    assert (north_slice.slice, north_slice.contradicting, north_slice.better) == (
        "place=north",
        0,
        None,
    ) and north_slice.low == 0 < north_slice.high


def test_large_total_variation_counts_with_equal_actions() -> None:
    result = compare(2, [0.999, 0.999], [0.6, 0.499], [1, -1], ["x", "x"])
    assert result.contradictions[0].contradicting == 1  # 0.399 apart is not enough
    probs = np.array([[0.34, 0.33, 0.33]]), np.array([[0.9, 0.05, 0.05]])
    settings = config().model_copy(update={"actions": ("a", "b", "c")})
    rows = pd.DataFrame({"observed_at": [pd.Timestamp(START)], "place": ["x"]})
    teacher_probs = dict(zip(("p", "q"), probs, strict=True))
    (contradiction,) = find_contradictions(settings, WINDOW, rows, teacher_probs, np.array([0])).contradictions
    assert (contradiction.contradicting, contradiction.first_right, contradiction.second_right) == (
        1,
        0,
        0,
    )  # both chose the outcome


def test_small_slices_and_unknown_labels_are_left_out() -> None:
    place = np.where(np.arange(60) < 10, "small", "large")
    result = compare(60, np.full(60, 0.9), np.full(60, 0.1), np.full(60, -1), place)
    assert [contradiction.slice for contradiction in result.contradictions] == ["", "place=large"]
    assert {
        (contradiction.known, contradiction.first_right, contradiction.better)
        for contradiction in result.contradictions
    } == {(0, 0, None)}
    assert Contradictions.model_validate_json(result.model_dump_json()) == result


def test_rows_without_an_answer_of_both_are_left_out() -> None:
    a = np.where(np.arange(50) < 25, np.nan, 0.9)
    assert compare(50, a, np.full(50, 0.1), np.ones(50, dtype=int), ["x"] * 50).contradictions[0].rows == 25


def test_rows_of_one_cluster_count_as_one() -> None:
    contradicts = np.arange(600) // 3 % 2 == 0  # whole hours of three rows
    a, b = np.full(600, 0.9), np.where(contradicts, 0.1, 0.9)
    widths = []
    for cluster in ("0s", "1h"):
        all_rows = compare(600, a, b, np.ones(600, dtype=int), ["x"] * 600, cluster=cluster).contradictions[0]
        widths.append(all_rows.high - all_rows.low)
    assert widths[1] == pytest.approx(widths[0] * np.sqrt(3), rel=0.02)


def test_better_teacher_needs_significance() -> None:
    rng = np.random.default_rng(4)
    a = rng.random(400)
    assert compare(400, a, 1 - a, rng.integers(0, 2, 400), ["x"] * 400).contradictions[0].better is None


def test_places_are_counted_on_other_rows_than_those_that_found_them() -> None:
    """The student learned an exception from outcomes: above 12 earlier orders nothing is reviewed."""
    rng = np.random.default_rng(1)
    orders, place = rng.integers(0, 30, 800), rng.choice(["near", "far"], 800)
    rule = np.where(place == "far", 0.9, 0.1)
    student = np.where(orders > 12, 0.1, rule)
    labels = (student > 0.5).astype(int)
    rows = pd.DataFrame(
        {
            "observation_id": [f"o{i}" for i in range(800)],
            "observed_at": pd.to_datetime([START + timedelta(minutes=i) for i in range(800)], utc=True),
            "place": place,
            "orders": orders.astype(float),
        }
    )
    settings = agent_config(
        observations={"columns": {"orders": {"type": "number"}, "place": {"type": "category"}}},
        promotion={"cluster": "0s"},
    )
    probs = {"toy@1": np.column_stack([1 - student, student]), "rules": np.column_stack([1 - rule, rule])}
    found = find_contradictions(settings, WINDOW, rows, probs, labels, places=True, examples=2)
    overall, exception = found.contradictions
    assert overall.contradicting == int(((orders > 12) & (place == "far")).sum()) and len(overall.examples) == 2
    assert "orders > 12.5" in exception.slice and ("place=far" in exception.slice or "place≠near" in exception.slice)
    assert exception.contradicting == exception.rows == exception.first_right < overall.contradicting
    assert exception.better == "toy@1"
    example = exception.examples[0]
    assert (example.first, example.second, example.outcome) == ("stay", "move", "stay")
    assert example.values["place"] == "far" and float(example.values["orders"]) > 12


def test_no_place_is_claimed_where_nothing_contradicts() -> None:
    a = np.full(400, 0.8)
    rows = pd.DataFrame({"observed_at": pd.to_datetime([START] * 400, utc=True), "place": ["x"] * 400})
    probs = {"a": np.column_stack([1 - a, a]), "b": np.column_stack([1 - a, a])}
    found = find_contradictions(config(1000), WINDOW, rows, probs, np.ones(400, dtype=int), places=True, examples=3)
    assert [(c.slice, c.contradicting, c.examples) for c in found.contradictions] == [("", 0, ())]
