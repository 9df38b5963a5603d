"""The named measure: its values by hand, a score of the user's own, and the agent file that names it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from sklearn.metrics import roc_auc_score

from stillhouse.errors import PartError
from stillhouse.evaluate.scorecard import measure_quality
from stillhouse.quality import ACCURACY, AUC, get_measure
from stillhouse.records import Quality
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
