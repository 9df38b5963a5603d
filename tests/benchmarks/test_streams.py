"""Totals, ratios and goals of `benchmarks.streams` on figures computed by hand, and its store of models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import streams, streams_worlds
from benchmarks.streams import RATES, TERMS, play_fixed, play_policies, play_sketch
from benchmarks.streams_data import rotating
from benchmarks.streams_worlds import StoredWorld, history_of
from stillhouse.replay.training import TrainedModel
from stillhouse.replay.world import Made, World

TRAININGS = []


def train_on_frequencies(settings: Any, rows: pd.DataFrame, ready: Any) -> TrainedModel:
    """A model that knows the outcomes' frequency of the last 60 rows and nothing of the inputs."""
    TRAININGS.append(len(rows))
    share = rows["outcome"].iloc[-60:].mean()
    return TrainedModel(lambda later: np.tile([1 - share, share], (len(later), 1)), len(rows))


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoredWorld:
    """Six weeks after the first champion."""
    TRAININGS.clear()
    monkeypatch.setitem(streams_worlds.STUDENTS, "ours", train_on_frequencies)
    history = history_of(rotating(0, weeks=14, per_week=50), 3, tmp_path)
    return StoredWorld.of(history, "rotating", 0, "ours", tmp_path)


# --------------------------------------------------------------------------- worlds


def test_a_history_begins_after_the_first_weeks_and_trains_once(world: StoredWorld) -> None:
    history = world.history
    assert history.steps == 6 and history.offsets[0] == 400 and history.ready is None
    assert history.settings.distillation.seed == 3 and not history.settings.distillation.control
    assert history.settings.distillation.augment.copies == 0


def test_models_are_trained_once_and_a_run_that_was_killed_goes_on(world: StoredWorld) -> None:
    assert world.missing == list(range(6))
    world.train_model(2)
    assert world.missing == [0, 1, 3, 4, 5]
    assert list(world.train(processes=1)) == [2, 3, 4, 5, 6]
    assert world.missing == [] and len(TRAININGS) == 6


def test_stored_models_and_losses_are_those_of_a_world_in_memory(world: StoredWorld) -> None:
    list(world.train(processes=1))
    expected = World(world.history, train_on_frequencies).scores(Made(2, recalibrated=4))
    for _ in range(2):  # the second time from the stored losses
        losses = world.play(lambda stored: stored.scores(Made(2, recalibrated=4)))
        np.testing.assert_allclose(losses["log_loss"], expected["log_loss"], atol=2e-3)
    assert len(TRAININGS) == 7


def test_other_settings_have_other_models(world: StoredWorld, tmp_path: Path) -> None:
    other = history_of(rotating(0, weeks=14, per_week=50), 4, tmp_path)
    assert StoredWorld.of(other, "rotating", 0, "ours", tmp_path).folder != world.folder


def test_recorded_answers_replace_the_fitted_teacher(tmp_path: Path) -> None:
    stream = rotating(0, weeks=12, per_week=50)
    answers = np.tile([0.2, 0.8], (len(stream.rows), 1))
    history = history_of(replace(stream, teacher_probs=answers), 0, tmp_path)
    assert history.ready is not None and np.array_equal(history.ready, answers)
    assert not any(teacher.is_fitted for teacher in history.settings.teachers)


# --------------------------------------------------------------------------- policies


def world_of(losses: list[list[float]]) -> Any:
    """A stand-in for a world with these losses: model by week."""

    return SimpleNamespace(steps=len(losses), loss=lambda made: np.array(losses[made.trained], dtype=np.float64))


def aging_losses(weeks: int, per_week: float) -> list[list[float]]:
    return [[0.5 + per_week * max(week - step, 0) for week in range(weeks)] for step in range(weeks)]


def test_the_sketch_trains_about_as_often_as_age_costs() -> None:
    played = play_sketch(world_of(aging_losses(60, 0.02)), rate=0.25)  # √(2 · 0.25 / 0.02) is 5 weeks
    ages = np.diff([act.step for act in played.acts])
    assert 5 <= ages[-5:].mean() <= 7 and played.price == len(played.acts)
    assert len(play_sketch(world_of(aging_losses(60, 0.0)), rate=0.25).acts) <= 3


def test_the_sketch_trains_after_a_sudden_rise_and_not_before() -> None:
    steps, weeks = np.arange(20)[:, None], np.arange(20)
    losses = np.where((weeks >= 8) & (steps < 8), 1.5, 0.5)
    assert play_sketch(world_of(losses.tolist()), rate=0.3).acts[0].step in (9, 10)
    assert not play_sketch(world_of(np.full((20, 20), 0.5).tolist()), rate=0.3).acts


def test_every_policy_is_played_at_every_exchange_rate(world: StoredWorld) -> None:
    list(world.train(processes=1))
    plain = world.play(play_fixed)
    record = world.play(lambda stored: play_policies("rotating", 0, stored, plain))
    assert set(record["rates"]) == set(RATES) and len(record["fixed"]) == 2 * len(streams.INTERVALS)
    assert set(record["rates"][0.1]) == {"payoff", "sketch", "oracle", *(f"without {term}" for term in TERMS)}
    totals = streams.totals_of(record, 0.1)
    own = {name: total for name, total in totals.items() if name.startswith("ours, ") or name == "sketch"}
    assert totals["oracle"] <= min(own.values()) + 1e-9
    assert totals["ours, every week"] == pytest.approx(record["fixed"]["ours, every week"]["loss"] + 0.5)
    assert streams.summarize([record])["streams"]["rotating"]["weeks"] == 6


def test_terms_are_those_of_the_policy() -> None:
    assert TERMS == ("decay", "change", "newest", "learn", "cheap")


# --------------------------------------------------------------------------- figures


def record_with(stream: str, ours: float, gains: tuple[float, ...] = ()) -> dict[str, Any]:
    """Totals of 10 weeks: two calendars that lose 10 and 12 nats, and an oracle that loses 8."""

    def figures(loss: float, gains: tuple[float, ...] = ()) -> dict[str, Any]:
        return {"loss": loss, "spent": 0.0, "gains": [["redistil", 1, gain] for gain in gains]}

    fixed = {"ours, never": figures(12.0), "plain script, every week": figures(10.0)}
    policies = {"payoff": figures(ours, gains), "sketch": figures(11.0), "oracle": figures(8.0)}
    policies |= {f"without {term}": figures(ours + 1.0) for term in TERMS}
    return {"stream": stream, "seed": 0, "weeks": 10, "fixed": fixed, "rates": dict.fromkeys(RATES, policies)}


def test_the_best_calendar_is_chosen_by_its_mean_over_the_seeds() -> None:
    first, second = record_with("sea", 9.0), record_with("sea", 11.0)
    second["fixed"]["plain script, every week"]["loss"] = 30.0
    totals = streams.means_over_seeds([first, second])["sea"][RATES[0]]
    assert streams.best_fixed(totals) == "ours, never"
    assert streams.ratios([first, second], "payoff")["sea"] == pytest.approx([10 / 12] * len(RATES))


def test_goals_are_of_the_worst_stream_and_the_hardest_calendar() -> None:
    records = [record_with("sea", 9.0, (1.0, -1.0, 0.5, 2.0)), record_with("spam", 10.4)]
    goals = {goal.name: goal for goal in streams.goals_of(records)}
    assert goals["ratio_to_best_calendar"].measured == pytest.approx(1.04)
    assert not goals["ratio_to_best_calendar"].met
    assert goals["ratio_to_oracle"].measured == pytest.approx((9 + 10.4) / 16)
    assert goals["responses_without_gain"].measured == pytest.approx(0.25)
    assert goals["cost_without_decay"].measured == pytest.approx(0.1)
    intervals = streams.differences_to_fixed(records)
    assert intervals["plain script, every week"]["mean"] == pytest.approx(-0.03)  # nats a week
    assert intervals["plain script, every week"]["low"] == pytest.approx(-0.1)
    assert goals["nats_above_hardest_calendar"].measured == pytest.approx(0.04)


def test_the_figure_has_a_line_for_each_stream(tmp_path: Path) -> None:
    detail = streams.summarize([record_with("sea", 9.0, (1.0,)), record_with("spam", 10.4)])
    streams.draw_figure(detail, tmp_path / "streams.png")
    assert (tmp_path / "streams.png").read_bytes().startswith(b"\x89PNG")
