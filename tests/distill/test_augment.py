"""Synthetic rows: near observed ones, from one block, reproducible, and never a copy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import AgentConfig, Augment
from stillhouse.distill.augment import make_synthetic_rows, munge, nearest_neighbours, reword
from stillhouse.knowledge import content_keys
from tests.agents import SMALL_AGENT, agent_config

(TEACHER,) = SMALL_AGENT["teachers"]


def make_config(
    *, teacher: dict[str, Any] = TEACHER, budgets: dict[str, Any] | None = None, **augment: Any
) -> AgentConfig:
    return agent_config(
        observations={
            "columns": {
                "origin": {"type": "category"},
                "temp": {"type": "number", "min": 0, "max_missing": 1},
                "seats": {"type": "number"},
                "said": {"type": "text"},
            }
        },
        teachers=[teacher],
        student={"kind": "text"},
        distillation={"augment": augment},
        budgets=budgets or {},
    )


def make_rows(count: int, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray[Any, Any]]:
    """Two blocks that differ in everything: origin A, cool, and small words; origin B, hot, and capitals."""
    rng = np.random.default_rng(seed)
    blocks = (np.arange(count) >= count // 2).astype(np.int64)
    rows = pd.DataFrame(
        {
            "observed_at": pd.date_range("2013-01-01", periods=count, freq="h", tz="UTC"),
            "origin": np.where(blocks == 0, "A", "B"),
            "temp": rng.uniform(0, 10, count) + 100 * blocks,
            "seats": rng.integers(50, 60, count).astype(float),
            "said": [" ".join(rng.choice([*("abcde" if b == 0 else "VWXYZ")], 6)) for b in blocks],
        }
    )
    rows.loc[rng.random(count) < 0.1, "temp"] = np.nan
    return rows, blocks


def test_synthetic_rows_stay_within_their_block() -> None:
    config = make_config(copies=2)
    rows, blocks = make_rows(200)
    synthetic = make_synthetic_rows(config, rows, blocks)
    assert 340 < len(synthetic) <= 400
    for block, origin, letters, low in ((0, "A", "abcde ", 0), (1, "B", "VWXYZ ", 100)):
        part = synthetic[synthetic["block"] == block]
        assert set(part["origin"]) == {origin}
        assert part["temp"].dropna().between(low, low + 12).all()
        assert set("".join(part["said"])) <= set(letters)
        assert part["observed_at"].isin(rows.loc[blocks == block, "observed_at"]).all()


def test_synthetic_rows_are_new_and_keep_the_contract() -> None:
    config = make_config(copies=3)
    rows, blocks = make_rows(200)
    synthetic = make_synthetic_rows(config, rows, blocks)
    assert synthetic["content_key"].is_unique and list(synthetic["content_key"]) == content_keys(synthetic, config)
    assert not synthetic["content_key"].isin(content_keys(rows, config)).any()
    assert synthetic["temp"].min() >= 0 and (synthetic["seats"] == synthetic["seats"].round()).all()
    assert synthetic["seats"].between(50, 59).all() and synthetic["temp"].isna().any()
    assert synthetic["origin"].dtype == rows["origin"].dtype and synthetic["temp"].dtype == np.float64


def test_same_seed_gives_the_same_rows_whatever_the_other_blocks() -> None:
    config = make_config(copies=1)
    rows, blocks = make_rows(200)
    synthetic = make_synthetic_rows(config, rows, blocks)
    pd.testing.assert_frame_equal(synthetic, make_synthetic_rows(config, rows, blocks))
    alone = make_synthetic_rows(config, rows[blocks == 1], blocks[blocks == 1])
    pd.testing.assert_frame_equal(alone, synthetic[synthetic["block"] == 1].reset_index(drop=True))
    other = config.model_copy(update={"distillation": config.distillation.model_copy(update={"seed": 1})})
    assert not synthetic["content_key"].isin(make_synthetic_rows(other, rows, blocks)["content_key"]).all()


@pytest.mark.parametrize(
    ("augment", "count", "expected"),
    [
        ({"copies": 0}, 100, 0),
        ({"copies": 1, "fill_to": 100}, 100, 0),
        ({"copies": 5, "fill_to": 140}, 100, 40),
        ({"copies": 0.5}, 100, 50),
        ({"copies": 3}, 1, 0),
        ({"copies": 3}, 0, 0),
    ],
)
def test_number_of_synthetic_rows(augment: dict[str, Any], count: int, expected: int) -> None:
    rows, _ = make_rows(count)
    assert abs(len(make_synthetic_rows(make_config(**augment), rows)) - expected) <= expected * 0.2


@pytest.mark.parametrize(
    ("settings", "copies"),
    [
        ({}, 3.0),
        ({"copies": 1.5, "budgets": {"max_teacher_calls": 9}}, 1.5),
        ({"budgets": {"max_teacher_calls": 9}}, 0.0),
        ({"budgets": {"max_teacher_cost": 9}}, 0.0),
        ({"budgets": {"max_watch_calls": 9}}, 3.0),
        (
            {
                "teacher": {
                    "kind": "endpoint",
                    "name": "llm",
                    "base_url": "http://localhost:1/v1",
                    "model": "m",
                    "prompt": "{said}",
                }
            },
            0.0,
        ),
    ],
)
def test_no_synthetic_rows_by_default_where_answers_cost(settings: dict[str, Any], copies: float) -> None:
    assert make_config(**settings).synthetic_copies == copies


def test_munge_has_the_stated_mean_and_deviation() -> None:
    """At mix 1 a number has the other's as mean, and their difference / closeness as standard deviation."""
    settings = Augment(mix=1.0, closeness=2.0)
    numbers, other = np.tile([1.0, np.nan, 7.0], (40_000, 1)), np.tile([5.0, 3.0, 7.0], (40_000, 1))
    kinds, others = (
        np.tile(np.array(["a"], dtype=object), (40_000, 1)),
        np.tile(np.array(["b"], dtype=object), (40_000, 1)),
    )
    mixed, swapped = munge(numbers, kinds, other, others, settings, np.random.default_rng(0))
    assert mixed[:, 0].mean() == pytest.approx(5, abs=0.05) and mixed[:, 0].std() == pytest.approx(2, abs=0.05)
    assert (mixed[:, 1] == 3).all() and (mixed[:, 2] == 7).all() and (swapped == "b").all()
    half, half_swapped = munge(numbers, kinds, other, others, Augment(mix=0.25), np.random.default_rng(0))
    assert np.isclose((half[:, 0] == 1).mean(), 0.75, atol=0.01) and np.isclose(
        (half_swapped == "a").mean(), 0.75, atol=0.01
    )


def test_nearest_neighbour_is_another_row() -> None:
    points = np.array([[0.0], [0.0], [1.0], [10.0], [10.4]])
    assert nearest_neighbours(points, np.arange(5), np.random.default_rng(0)).tolist() == [1, 0, 0, 4, 3]
    many = np.random.default_rng(0).normal(size=(9000, 2)).astype(np.float32)
    neighbours = nearest_neighbours(many, np.arange(50), np.random.default_rng(0))
    assert (neighbours != np.arange(50)).all() and np.abs(many[neighbours] - many[:50]).max() < 1


def test_reworded_texts_consist_of_known_words() -> None:
    texts = ["turn the light off", "play some jazz", "", "what is the time"]
    synthetic = reword(texts, np.repeat(np.arange(4), 200), 0.3, np.random.default_rng(0))
    assert set(" ".join(synthetic).split()) <= set(" ".join(texts).split())
    assert len({*synthetic[:200]}) > 20 and synthetic[:200].count(texts[0]) < 100
    assert reword([""], np.zeros(3, dtype=np.int64), 0.3, np.random.default_rng(0)) == ["", "", ""]
