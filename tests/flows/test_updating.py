"""A champion's student takes in what is new, begins a new training, or learns another action."""

from __future__ import annotations

import pandas as pd
import pytest

from flows.refresh import refresh
from stillhouse.config import load
from stillhouse.distill import memory
from stillhouse.knowledge import KnowledgeBase
from tasks.common import registry
from tasks.living import live

pytestmark = pytest.mark.usefixtures("prefect_server")


def lived(day, until: int) -> KnowledgeBase:
    """Twenty days and the first champion, then the days until ``until``."""
    live.fn("toy", day(0), day(20))
    refresh(agent="toy", as_of=day(20), trigger="bootstrap", cause="first")
    live.fn("toy", day(20), day(until))
    return KnowledgeBase(load("toy"))


def run_of(verdict):
    models = registry("toy")
    wanted = f"tags.verdict = '{verdict.verdict_id}'"
    return models.client.search_runs([models.experiment_id], wanted)[0]


def test_an_update_learns_what_is_new_and_remembers_the_rest(day) -> None:
    base = lived(day, 24)
    models, first = registry("toy"), registry("toy").champion()
    asked = set(base.read("knowledge")["content_key"])
    verdict = refresh(agent="toy", as_of=day(24), mode="update", cause="four days more")
    assert verdict.outcome == "promoted", verdict.summary
    assert "update_not_made" not in run_of(verdict).data.tags

    champion = models.champion()
    assert champion != first and models.baseline(champion).teacher == models.baseline(first).teacher
    new = base.read("knowledge")
    new = new[~new["content_key"].isin(asked)]
    assert new["observed_at"].min() >= pd.Timestamp(day(19))  # what the teacher had said already is not asked again
    old, kept = (memory.read(models.student_files(each)) for each in (first, champion))
    assert old.rows["observation_id"].isin(kept.rows["observation_id"]).all()  # few enough to keep them all
    assert kept.seen > old.seen
    student = models.version("toy-student", "champion")
    figures = models.client.get_run(student.run_id).data.metrics
    forgotten = {name: value for name, value in figures.items() if name.startswith("forgotten/")}
    assert forgotten and max(forgotten.values()) < 0.05
    assert refresh(agent="toy", as_of=day(24), mode="update", cause="four days more") == verdict


def test_where_nothing_is_new_a_refresh_redistils_and_says_why(day) -> None:
    lived(day, 21)
    verdict = refresh(agent="toy", as_of=day(21), mode="update", cause="a day later")
    assert verdict.kind == "gate"
    assert "120 rows with outcomes are new" in run_of(verdict).data.tags["update_not_made"]


def test_a_world_that_the_update_cannot_follow_is_redistilled(day) -> None:
    """What the old teacher says of the turned world is soon learned, but hardly from so few steps."""
    agent = load("toy")
    lived(day, 32)
    assert agent.update.steps > 1


def test_a_warm_training_begins_at_the_champions_weights(day) -> None:
    lived(day, 24)
    verdict = refresh(agent="toy", as_of=day(24), mode="redistil_warm", teacher="keep", cause="warm")
    assert verdict.outcome == "promoted", verdict.summary
    assert "warm_start_not_made" not in run_of(verdict).data.tags
