"""A refresh asks about a share of its rows; the others teach by their outcomes, and rows without one by knowledge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stillhouse import refresh
from stillhouse.champion import open_registry
from stillhouse.config import load
from stillhouse.ingesting import ingest
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import Questions
from stillhouse.refreshing.data import RefreshData
from stillhouse.refreshing.session import Session
from stillhouse.refreshing.teaching import select_rows_to_ask
from stillhouse.registry.names import QUESTIONS
from stillhouse.teachers.ensemble import Ensemble
from stillhouse.teachers.labeling import open_refresh_budget
from tests.flows import toy

HIDDEN = 30
"""Rows whose outcome never becomes known."""


@pytest.fixture
def half(agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy, whose teacher is asked about half of the rows, and some outcomes of which are never known."""
    text = (agents / "toy.yaml").read_text()
    (agents / "toy.yaml").write_text(text + "asking: {share: 0.5}\n")
    whole = toy.outcomes

    def gaps(start, end):
        found = whole(start, end)
        return found[~found["observation_id"].isin([f"toy-{i:05d}" for i in range(0, 10 * HIDDEN, 10)])]

    monkeypatch.setattr(toy, "outcomes", gaps)


def test_rows_without_an_outcome_belong_to_the_learning_rows(half: None, day) -> None:
    ingest("toy", day(0), day(14))
    base = KnowledgeBase(load("toy"))
    window = base.window("train", day(0), day(8))
    learning = RefreshData(base, window, day(14)).read_training_rows(window)
    labelled, rows = learning.labelled, learning.frame
    assert len(rows) == 8 * toy.PER_DAY and len(rows) - len(labelled) == HIDDEN
    assert (rows["outcome"] == -1).sum() == HIDDEN
    assert rows["observed_at"].is_monotonic_increasing
    asking = base.config.asking.model_copy(update={"without_outcomes": False})
    base.config = base.config.model_copy(update={"asking": asking})
    assert RefreshData(base, window, day(14)).read_training_rows(window).frame.equals(labelled)


def test_half_of_the_rows_are_asked_about_and_the_same_half_by_a_run_that_goes_on(
    half: None, day, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest("toy", day(0), day(20))
    first = refresh(agent="toy", as_of=day(20), trigger="bootstrap", cause="first")
    assert first.result == "promoted", first.summary

    base, registry = KnowledgeBase(load("toy")), open_registry("toy")
    run = registry.client.search_runs([registry.experiment_id], "tags.role = 'refresh'")[0]
    told = registry.runs.read_record(run.info.run_id, QUESTIONS, Questions)
    assert told is not None and told.known == 0 and not told.limited and told.without_outcome > 0
    assert told.asked == told.answered == round(told.rows / 2) == told.rows - told.skipped
    assert run.data.metrics["asking/asked"] == told.asked
    kept = base.read("questions")
    assert len(kept) == told.asked and not kept["known"].any()
    assert np.allclose(kept["probability"], 0.5, atol=0.01)  # no champion: evenly, spread over what is alike

    ingest("toy", day(20), day(22))
    second = refresh(agent="toy", as_of=day(22), cause="later")
    assert second.kind == "gate"
    both = base.read("questions")
    later = both[both["job"] != kept["job"].iloc[0]]
    assert later["probability"].std() > 0.01  # by the champion's margin
    job, version = later["job"].iloc[0], later["teacher"].iloc[0]
    again = base.answers.questions(job, version)
    assert again is not None and set(again["observation_id"]) == set(later["observation_id"])

    monkeypatch.setattr("stillhouse.distill.select.plan_questions", None)  # what was selected is not selected again
    window = base.window("train", day(3), day(17))
    rows = base.read_observations(window).assign(outcome=0)
    teacher = Ensemble(base.config, [], None, version)
    resumed = Session("toy", job, day(22), window)
    chosen, limited = select_rows_to_ask(resumed, teacher, rows, open_refresh_budget(base, job, day(22)))
    assert set(rows["observation_id"][chosen]) == set(later["observation_id"]) and not limited
