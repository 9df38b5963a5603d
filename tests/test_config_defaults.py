"""The defaults of the distillation and of the windows that follow the rows there are."""

from __future__ import annotations

from datetime import timedelta

import numpy as np
import pytest

from stillhouse.config import Distillation, FittedDistillation, Windows, fit_defaults, load
from stillhouse.config.defaults import mask_validation_blocks

HOUR, DAY = timedelta(hours=1), timedelta(days=1)


def spread(rows: int, span: timedelta) -> np.ndarray:
    """Times of rows that come evenly, seconds since 1970, from 2024-01-01."""
    return (1_704_067_200 + np.arange(rows) * span.total_seconds() / rows).astype(np.int64)


def test_large_data_keep_the_values_that_they_had() -> None:
    fitted = fit_defaults(Distillation(), 100_000, timedelta(weeks=26))
    chosen = fitted.batch_size, fitted.epochs, fitted.learning_rate, fitted.outcome_weight, fitted.folds
    assert chosen == (1024, 8, 4e-3, 0.3, 4)
    assert (fitted.validation_every, fitted.validation_block) == (10, DAY)


@pytest.mark.parametrize("rows", [44_000, 64_000])
def test_the_flights_agent_trains_as_before(rows: int) -> None:
    fitted = fit_defaults(load("flights").distillation, rows, timedelta(weeks=8))
    assert (fitted.batch_size, fitted.epochs, fitted.learning_rate, fitted.folds) == (1024, 7, 4e-3, 3)
    assert (fitted.validation_every, fitted.validation_block, fitted.outcome_weight) == (10, DAY, 0.3)


@pytest.mark.parametrize("rows", [50, 300, 800, 2000, 5000, 20_000, 64_000])
def test_a_training_has_enough_steps_at_every_size(rows: int) -> None:
    fitted = fit_defaults(Distillation(), rows, timedelta(days=30))
    steps = fitted.epochs * -(-rows // fitted.batch_size)
    assert 200 <= steps <= 1500 and (rows < 400 or steps >= 600)


def test_what_is_set_stays_and_a_second_fit_changes_nothing() -> None:
    settings = Distillation(batch_size=48, epochs=5, learning_rate=0.1, folds=2, validation_every=3, outcome_weight=0)
    fitted = fit_defaults(settings, 2000, timedelta(days=9))
    assert all(getattr(fitted, name) == value for name, value in dict(settings).items() if value is not None)
    assert fitted.validation_block == DAY
    assert isinstance(fitted, FittedDistillation) and fit_defaults(fitted, 10**6, timedelta(days=900)) == fitted
    partly = fit_defaults(Distillation(batch_size=500), 2000)
    assert (partly.batch_size, partly.epochs) == (500, 60)


@pytest.mark.parametrize(
    ("span", "every", "block"),
    [
        (timedelta(weeks=26), 10, DAY),
        (timedelta(days=50), 5, DAY),
        (timedelta(days=14), 5, 6 * HOUR),
        (2 * DAY, 5, HOUR),
        (8 * HOUR, 5, HOUR / 6),
        (timedelta(seconds=90), 5, timedelta(seconds=1)),
    ],
)
def test_eight_validation_blocks_exist_in_windows_of_every_length(
    span: timedelta, every: int, block: timedelta
) -> None:
    times = spread(1000, span)
    fitted = fit_defaults(Distillation(), len(times), times=times)
    assert (fitted.validation_every, fitted.validation_block) == (every, block)
    mask = mask_validation_blocks(times, every, block)
    assert len(np.unique(times[mask] // int(block.total_seconds()))) >= 8 or span < timedelta(minutes=2)
    assert 0.05 < mask.mean() < 0.3
    assert fit_defaults(Distillation(), len(times), span).validation_every == every


def test_validation_blocks_take_turns_over_the_hours_of_the_day() -> None:
    times = spread(14 * 24, timedelta(days=14))
    mask = mask_validation_blocks(times, 5, 6 * HOUR)
    assert set(times[mask] % 86_400 // 3600) == set(range(24))


def test_without_rows_there_is_nothing_to_choose_from() -> None:
    fitted = fit_defaults(Distillation(), 0, times=np.array([], dtype=np.int64))
    assert (fitted.batch_size, fitted.epochs, fitted.validation_every) == (16, 60, 10)
    assert Windows(train="8w", current="7d").fit_test(0, timedelta(days=56), 100) > timedelta(0)


def test_rows_that_come_in_weekly_batches_are_not_all_validated() -> None:
    mondays = 1_704_067_200 + np.repeat(np.arange(26) * 7 * 86_400, 40)
    fitted = fit_defaults(Distillation(), len(mondays), times=mondays)
    share = mask_validation_blocks(mondays, fitted.validation_every, fitted.validation_block).mean()
    assert 0 < share < 0.3


@pytest.mark.parametrize(("rows", "span"), [(350, 3 * DAY), (2000, 30 * DAY), (5000, 60 * DAY), (60_000, 60 * DAY)])
def test_the_chosen_test_window_has_rows_to_judge_on_and_leaves_the_rest(rows: int, span: timedelta) -> None:
    windows = Windows(train="8w", current="7d")
    test = windows.fit_test(rows, span, min_rows=100)
    assert 100 <= rows * (test / span) <= 5200 and test <= span / 3 and test <= windows.longest_test
    assert Windows(train="8w", test="9d", current="7d").fit_test(rows, span, 100) == 9 * DAY
