"""The named measure: its values by hand, a score of the user's own, and the agent file that names it."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from stillhouse.errors import PartError
from stillhouse.evaluate.comparing import bound_quality, compare_models, lower_bound
from stillhouse.evaluate.scorecard import measure_quality
from stillhouse.quality import ACCURACY, AUC, draw_episodes, get_admission_measure, get_measure, get_row_measure
from stillhouse.records import Comparison, Quality
from tests.agents import agent_config

PROBS = np.array([[0.9, 0.1], [0.2, 0.8], [1.0, 0.0], [0.5, 0.5]])
LABELS = np.array([0, 1, 1, 0])
ROWS = pd.DataFrame({"temp": [1.0, 2.0, 3.0, 4.0]})
OWN = {"target": "own_scores:cost", "name": "cost", "low": 0, "high": 10, "unit": "€", "better": "lower"}

SCORES = """
import numpy as np

def cost(probs, labels, rows):
    return np.where(probs.argmax(axis=1) == labels, 0.0, 2.0 * rows["temp"].to_numpy())

def short(probs, labels, rows):
    return np.zeros(1)

def silent(probs, labels, rows):
    return np.full(len(labels), np.nan)

def large(probs, labels, rows):
    return np.full(len(labels), 11.0)

def broken(probs, labels, rows):
    raise KeyError("temperature")
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The measure of an agent whose own score is ``own_scores:<name>``."""
    (tmp_path / "own_scores.py").write_text(SCORES)
    monkeypatch.syspath_prepend(tmp_path)

    def get(function: str = "cost") -> Any:
        return get_measure(agent_config(quality={"own": OWN | {"target": f"own_scores:{function}"}}))

    return get


def test_the_log_loss_by_hand() -> None:
    """−ln .9, −ln .8, −ln .01 instead of −ln 0, −ln .5."""
    measure = get_measure(agent_config())
    losses = -np.log([0.9, 0.8, 0.01, 0.5])
    assert measure.scores(PROBS, LABELS) == pytest.approx(-losses)
    assert measure.value(PROBS, LABELS) == pytest.approx(losses.mean())
    assert (measure.title, measure.unit, measure.better) == ("log loss", "nats", "lower")
    assert measure.span == pytest.approx(math.log(100))
    assert measure.points(PROBS, LABELS) == pytest.approx(1 - losses.mean() / math.log(100))


def test_an_action_that_the_model_does_not_know_gets_the_clip_probability() -> None:
    measure = get_measure(agent_config(quality={"clip": 0.05}))
    assert measure.scores(PROBS[:1], np.array([4])) == pytest.approx([math.log(0.05)])
    assert ACCURACY.scores(PROBS[:1], np.array([4])).tolist() == [0.0]


def test_accuracy_and_auc() -> None:
    assert ACCURACY.value(PROBS, LABELS) == 0.75
    assert AUC.scores(PROBS, LABELS) is None
    assert AUC.value(PROBS, LABELS) == AUC.points(PROBS, LABELS) == roc_auc_score(LABELS, PROBS[:, 1])
    assert AUC.for_labels(np.array([1, 1])) is ACCURACY and AUC.for_labels(LABELS, actions=3) is ACCURACY
    assert ACCURACY.for_labels(np.array([1, 1])) is ACCURACY


def test_a_score_of_the_users_own_is_oriented_and_has_its_unit(own: Any) -> None:
    measure = own()
    assert measure.scores(PROBS, LABELS, ROWS).tolist() == [0.0, 0.0, -6.0, 0.0]
    assert measure.value(PROBS, LABELS, ROWS) == 1.5
    assert measure.points(PROBS, LABELS, ROWS) == pytest.approx(0.85)
    assert (measure.name, measure.title, measure.unit, measure.sign) == ("cost", "cost", "€", -1.0)
    quality = measure_quality(PROBS, LABELS, measure, ROWS)
    assert (quality.measure, quality.score, quality.judged.points) == ("cost", 1.5, 0.85)
    assert Quality.model_validate_json(quality.model_dump_json()) == quality


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("short", r"'own_scores:short' must return a number per row, \[4\]; it returned \[1\]"),
        ("silent", "'own_scores:silent' returned a value that is no finite number"),
        ("large", "returned values from 11 to 11, and `quality.own` says `low: 0` and `high: 10`"),
        ("broken", "'own_scores:broken' failed with KeyError: 'temperature'"),
    ],
)
def test_a_wrong_score_is_named_with_file_and_key(own: Any, function: str, message: str) -> None:
    with pytest.raises(PartError, match=message) as raised:
        own(function).scores(PROBS, LABELS, ROWS)
    assert str(raised.value).startswith("agents/toy.yaml: quality.own.target: ")


def test_a_score_that_does_not_exist_is_named(own: Any) -> None:
    with pytest.raises(PartError, match=r"quality\.own\.target: 'own_scores' has no 'gain'; it has: cost, short"):
        own("gain")


@pytest.mark.parametrize(
    ("quality", "margins"),
    [
        ({"measure": "auc"}, (0.005, 0.01, 0.02)),
        ({"measure": "accuracy"}, (0.005, 0.01, 0.02)),
        ({}, (0.02, 0.04, 0.08)),
        ({"own": OWN}, (0.05, 0.1, 0.2)),
    ],
)
def test_the_default_margins_fit_the_measure(quality: dict[str, Any], margins: tuple[float, ...]) -> None:
    assert agent_config(quality=quality).margins == pytest.approx(margins)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"actions": ["a", "b", "c"], "quality": {"measure": "auc"}}, "quality.measure: 'auc' needs two actions"),
        ({"promotion": {"slice_margin": 5}}, r"promotion.slice_margin: is 5, and all values of log_loss .* of 4\.605"),
        (
            {"promotion": {"total_margin": 0.01}},
            r"promotion.total_margin: is 0\.01, but one promotion alone may lose 0\.02, the default for log_loss",
        ),
        ({"quality": {"own": OWN | {"name": "auc"}}}, "'auc' is a measure of stillhouse"),
        ({"quality": {"own": OWN | {"high": 0}}}, "high: must be more than `low`, 0"),
        ({"promotion": {"remember": {"slices": ["temp"]}}}, r"promotion.remember.slices: 'temp' is not a category"),
        (
            {
                "promotion": {
                    "remember": {"windows": [{"name": "w", "start": "2013-02-01T00:00Z", "end": "2013-01-01T00:00Z"}]}
                }
            },
            "must be later than `start`",
        ),
    ],
)
def test_an_agent_file_that_names_a_measure_wrongly(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        agent_config(**sections)


# --------------------------------------------------------------------------- episodes

PLAYED = {"target": "own_scores:steps", "name": "return", "low": 0, "high": 8, "unit": "steps", "on": "episodes"}

WORLD = """
import numpy as np
import pandas as pd

def steps(policy, seeds, moments):
    assert moments.tz is not None and len(moments) == len(seeds)
    state = pd.DataFrame({"temp": (seeds % 100).astype(float)})
    return 4.0 + 4.0 * policy(state)[:, 1] - (moments.day == 9)

def short(policy, seeds, moments):
    return np.zeros(3)
"""


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The agent file whose own score is ``own_scores:<name>``, of 40 episodes."""
    (tmp_path / "own_scores.py").write_text(WORLD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_scores", raising=False)

    def get(function: str = "steps", **more: Any) -> Any:
        own = PLAYED | {"target": f"own_scores:{function}", "episodes": 40} | more
        return agent_config(quality={"own": own})

    return get


def rows_of(days: int) -> pd.DataFrame:
    times = pd.date_range("2026-01-05", periods=days, freq="D", tz="UTC")
    return pd.DataFrame({"observation_id": [f"r{n}" for n in range(days)], "observed_at": times, "temp": 1.0})


def constant(p: float) -> Any:
    return lambda rows: np.tile([1 - p, p], (len(rows), 1))


def test_episodes_of_a_window_follow_from_its_rows_alone() -> None:
    rows = rows_of(6)
    seeds, moments = draw_episodes(rows, 12)
    again = draw_episodes(rows.sample(frac=1, random_state=1), 12)
    assert seeds.tolist() == again[0].tolist() and moments.equals(again[1])
    assert moments.is_monotonic_increasing and moments.day.tolist() == [d for d in range(5, 11) for _ in (0, 1)]
    assert len(set(seeds.tolist())) == 12 and seeds.tolist() != draw_episodes(rows[1:], 12)[0].tolist()


def test_a_score_of_episodes_lets_the_model_act_and_has_a_stand_in_on_rows(played: Any) -> None:
    measure = get_measure(played())
    scores = measure.play(constant(0.5), rows_of(5))
    assert scores.tolist() == [6.0] * 32 + [5.0] * 8  # the fifth of the days is the ninth
    assert measure.value(PROBS, LABELS, ROWS, scores) == 5.8
    assert (measure.is_pooled, measure.of_rows, get_row_measure(played())) == (False, ACCURACY, ACCURACY)
    assert measure.for_labels(LABELS, 2, scores) is measure and measure.for_labels(LABELS, 2) is ACCURACY
    quality = measure_quality(PROBS, LABELS, measure, ROWS, scores)
    assert (quality.measure, quality.score, quality.judged.episodes, quality.accuracy) == ("return", 5.8, 40, 0.75)
    assert Quality.model_validate_json(quality.model_dump_json()) == quality
    assert measure_quality(PROBS, LABELS, measure, ROWS).measure == "accuracy"
    assert measure.play(None, rows_of(5)) is None and measure.play(constant(0.5), rows_of(0)) is None
    assert get_admission_measure(played()) is AUC


def test_an_agent_without_outcomes_has_agreement_as_stand_in(played: Any) -> None:
    config = played()
    assert get_row_measure(config.model_copy(update={"outcomes": None})).name == "agreement"


def test_models_are_compared_by_paired_episodes(played: Any) -> None:
    measure, rows, labels = get_measure(played()), rows_of(5), np.array([0, 1, 0, 1, 0])
    better, usual = (measure.play(constant(p), rows) for p in (0.75, 0.5))
    wrong, right = np.eye(2)[1 - labels], np.eye(2)[labels]
    comparison = compare_models("test", labels, wrong, right, 0.8, measure=measure, rows=rows, episodes=(better, usual))
    assert (comparison.rows, comparison.on, comparison.measure, comparison.unit) == (40, "episodes", "return", "steps")
    assert (comparison.difference, comparison.standard_error, comparison.margin) == (1.0, 0.0, 0.8)
    assert lower_bound(comparison, 0.96) == pytest.approx(1.0 - math.log(25) / 40 * 9, rel=0.05)  # one lost episode
    assert Comparison.model_validate_json(comparison.model_dump_json()) == comparison
    beside = compare_models("test", labels, wrong, right, 0.8, measure=measure, rows=rows)
    assert (beside.measure, beside.on, beside.rows, beside.margin) == ("accuracy", "rows", 5, 0.1)
    assert "on" not in beside.model_dump()


def test_the_interval_of_one_model_counts_its_episodes(played: Any) -> None:
    measure = get_measure(played())
    scores = measure.play(constant(0.5), rows_of(5))
    low, high = bound_quality(LABELS, PROBS, measure, 0.95, np.zeros(4), ROWS, scores)
    assert 5.0 < low < 5.8 < high < 6.2


def test_a_score_of_episodes_that_is_wrong_is_named(played: Any) -> None:
    with pytest.raises(
        PartError, match=r"'own_scores:short' must return a number per episode, \[40\]; it returned \[3"
    ):
        get_measure(played("short")).play(constant(0.5), rows_of(5))
    with pytest.raises(PartError, match="returned values from 4 to 5, and"):
        get_measure(played(high=4.5)).play(constant(0.25), rows_of(5))


def test_an_answer_that_is_not_finite_prefers_no_action(played: Any) -> None:
    assert get_measure(played()).play(lambda rows: np.full((len(rows), 2), np.nan), rows_of(1)).tolist() == [4.0] * 40


def test_default_margin_of_episodes_can_be_proven_by_a_hundred(played: Any) -> None:
    assert played().margins.test == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"on": "episodes"}, "episodes: is required with `on: episodes`"),
        ({"episodes": 40}, "episodes: is for a score of episodes"),
        ({"on": "episodes", "episodes": 3}, "greater than or equal to 10"),
    ],
)
def test_episodes_in_an_agent_file_that_make_no_sense(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        agent_config(quality={"own": OWN | own})
