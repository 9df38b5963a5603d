"""Refreshes from the champion's student: update, warm redistillation, and a new action."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import flows.refresh
from stillhouse import refresh, watch
from stillhouse.champion import open_registry
from stillhouse.distill import memory
from stillhouse.errors import PartError
from stillhouse.ingesting import ingest
from stillhouse.variant import Variant
from tests.flows import toy

pytestmark = pytest.mark.usefixtures("prefect_server", "more_recipes")


def run_of(verdict):
    registry = open_registry("toy")
    return registry.client.search_runs([registry.experiment_id], f"tags.verdict = '{verdict.verdict_id}'")[0]


def test_update_learns_new_rows_without_forgetting(toy_base, day) -> None:
    base = toy_base(24)
    registry, first = open_registry("toy"), open_registry("toy").champion()
    labelled_before = set(base.read("knowledge")["content_key"])
    verdict = flows.refresh.refresh(agent="toy", as_of=day(24), mode="update", cause="four days more")
    assert verdict.result == "promoted", verdict.summary
    assert "update_not_made" not in run_of(verdict).data.tags

    champion = registry.champion()
    assert champion != first and registry.baseline(champion).teacher == registry.baseline(first).teacher
    new = base.read("knowledge")
    new = new[~new["content_key"].isin(labelled_before)]
    assert new["observed_at"].min() >= pd.Timestamp(
        day(19)
    )  # the teacher is not asked about rows that it labelled before
    old, current = (memory.read(registry.models.student_files(ref)) for ref in (first, champion))
    assert old.rows["observation_id"].isin(current.rows["observation_id"]).all()  # so few rows that all are kept
    assert current.seen > old.seen
    student = registry.version("toy-student", "champion")
    figures = registry.client.get_run(student.run_id).data.metrics
    forgotten = {name: value for name, value in figures.items() if name.startswith("forgotten/")}
    assert forgotten and max(forgotten.values()) < 0.05
    assert flows.refresh.refresh(agent="toy", as_of=day(24), mode="update", cause="four days more") == verdict


@pytest.mark.slow
def test_refresh_without_new_rows_redistils(toy_base, day) -> None:
    toy_base(21)
    verdict = flows.refresh.refresh(agent="toy", as_of=day(21), mode="update", cause="a day later")
    assert verdict.kind == "gate"
    assert "120 rows with outcomes are new" in run_of(verdict).data.tags["update_not_made"]


@pytest.mark.slow
def test_warm_redistillation_starts_from_the_champions_weights(toy_base, day) -> None:
    toy_base(24)
    verdict = flows.refresh.refresh(agent="toy", as_of=day(24), mode="redistil_warm", teacher="keep", cause="warm")
    assert verdict.result == "promoted", verdict.summary
    assert "warm_start_not_made" not in run_of(verdict).data.tags


@pytest.fixture
def new_action(monkeypatch: pytest.MonkeyPatch) -> None:
    """A history without drift, but with a new place from day 20 on, where a new action is right."""
    calm = toy.HISTORY[toy.HISTORY["observed_at"] < toy.DRIFT_START]
    rows = pd.concat(
        [calm, calm.assign(observed_at=calm["observed_at"] + (toy.DRIFT_START - toy.BEGIN))], ignore_index=True
    )
    rows["observation_id"] = [f"new_action-{i:05d}" for i in range(len(rows))]
    late = rows["observed_at"] >= toy.BEGIN + pd.Timedelta(days=20)
    west = late & (rows["c"] > 7)
    rows.loc[west, "place"] = "west"
    rows.loc[west & (rows["b"] > -1), "action"] = "turn"
    monkeypatch.setattr(toy, "HISTORY", rows)


@pytest.mark.slow
def test_a_new_action_is_learned_and_the_others_are_kept(day, agents: Path, new_action: None) -> None:
    ingest("toy", day(0), day(20))
    refresh(agent="toy", as_of=day(20), trigger="bootstrap", cause="first")
    file = agents / "toy.yaml"
    grown = file.read_text().replace("actions: [wait, go]", "actions: [wait, turn, go]")
    grown = (
        grown.replace("[north, south]", "[north, west, south]")
        .replace("auc_drop", "accuracy_drop")
        .replace("measure: auc", "measure: accuracy")
    )
    # a logistic teacher fits this history worse than the one before
    file.write_text(grown.replace("watch:\n", "watch:\n  tolerance: 0.15\n"))

    ingest("toy", day(20), day(26))
    seen = watch(agent="toy", as_of=day(26))  # the champion does not know the new action: it errs, but raises no error
    assert seen.result != "data_broken" and seen.response != "hold", seen.summary
    with pytest.raises(PartError, match=r"made for the actions wait, go.*teacher=fit"):
        refresh(agent="toy", as_of=day(26), teacher="keep")

    ingest("toy", day(26), day(36))
    champion = open_registry("toy").champion()
    before = Variant(open_registry("toy").models.fetch(champion))
    verdict = refresh(agent="toy", as_of=day(36), mode="update", cause="another action")
    assert verdict.result == "promoted", verdict.summary
    assert "update_not_made" not in run_of(verdict).data.tags
    after = Variant(open_registry("toy").models.fetch(open_registry("toy").champion()))
    assert (before.actions, after.actions) == (["wait", "go"], ["wait", "turn", "go"])

    rows = toy.HISTORY[toy.HISTORY["observed_at"] >= day(36)]
    right = rows["action"].to_numpy()
    turns = right == "turn"
    old, new = (variant.predict(rows)["action"].to_numpy() == right for variant in (before, after))
    assert new[turns].mean() > 0.6 and new[~turns].mean() > old[~turns].mean() - 0.05
    calm = toy.HISTORY[toy.HISTORY["observed_at"] < day(15)]  # before the new action existed, the probabilities stay
    odds = [np.log(p[:, -1] / p[:, 0]) for p in (before.predict_proba(calm), after.predict_proba(calm))]
    assert np.corrcoef(*odds)[0, 1] > 0.9
    assert watch(agent="toy", as_of=day(36)).kind == "watch"
