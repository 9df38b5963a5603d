"""A refresh searches for the form that fits the device, tells all that it tried, and can recalibrate the champion."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import flows.refresh
from stillhouse import refresh
from stillhouse.champion import open_registry
from stillhouse.config import load
from stillhouse.evaluate.gate import replay
from stillhouse.ingesting import ingest
from stillhouse.records import Frontier
from stillhouse.registry.names import FRONTIER, MODEL_STATE
from stillhouse.variant import Variant

pytestmark = pytest.mark.usefixtures("prefect_server")

SEARCH = "search: {time: 600s, candidates: 9, steps: [prune_units, low_rank, int8_dynamic], recover_epochs: 1}"


def searching(agents: Path, **changes: str) -> None:
    """Let the toy's agent file ask for a search."""
    file = agents / "toy.yaml"
    fewer = "    - {method: prune_columns, ratio: 0.3, recover_epochs: 1}\n"
    text = file.read_text().replace("    - {method: int8_dynamic}\n", fewer).replace("search: null", SEARCH)
    for old, new in changes.items():
        text = text.replace(old, new)
    file.write_text(text)


def run_of(verdict):
    registry = open_registry("toy")
    wanted = f"tags.verdict = '{verdict.verdict_id}'"
    return registry.client.search_runs([registry.experiment_id], wanted)[0]


def nested(run) -> list:
    registry = open_registry("toy")
    wanted = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    return list(registry.client.search_runs([registry.experiment_id], wanted))


def test_a_search_tells_all_that_it_tried_and_the_next_begins_where_it_ended(day, agents: Path) -> None:
    searching(agents)
    ingest("toy", day(0), day(20))
    verdict = refresh(agent="toy", as_of=day(20), trigger="bootstrap", cause="first")
    assert verdict.result == "promoted", verdict.summary
    registry, run = open_registry("toy"), run_of(verdict)
    found = registry.runs.read_record(run.info.run_id, FRONTIER, Frontier)
    assert found is not None and found.stopped == "9 candidates are made" and len(found.candidates) == 9
    assert found.fits and found.why.startswith(f"{found.chosen}: the smallest within 1 points and 100,000 bytes")
    (fewer,) = (each for each in found.candidates if each.name.startswith("columns"))
    assert fewer.refused is None
    assert any("units" in each.name and "int8" in each.name for each in found.candidates)

    runs = {each.info.run_name: each for each in nested(run)}
    for candidate in found.candidates:
        kept = runs[candidate.name]
        assert json.loads(kept.data.params["recipe"]) == [dict(step) for step in candidate.recipe]
        if candidate.refused is None:
            assert kept.data.metrics["compression/quality"] == candidate.quality
            assert kept.data.metrics["compression/cpu_ms"] > 0 and kept.data.metrics["bytes"] == candidate.bytes
            assert kept.outputs.model_outputs  # a LoggedModel
        else:
            assert kept.data.tags["refused"] == candidate.refused
    table = json.loads(registry.runs.read_file(run.info.run_id, "compression/frontier.json"))
    assert len(table["data"]) == 9 and {"bytes", "p50_ms", "p95_ms", "quality", "cpu_ms"} <= set(table["columns"])
    assert registry.runs.read_file(run.info.run_id, "figures/frontier.png")[:4] == b"\x89PNG"
    versions = {entry.variant for entry in registry.versions()}
    assert versions == {*found.best, "fp32", fewer.name, found.chosen}

    ingest("toy", day(20), day(24))
    again = flows.refresh.refresh(agent="toy", as_of=day(24), cause="warm")
    later = registry.runs.read_record(run_of(again).info.run_id, FRONTIER, Frontier)
    assert later is not None
    wanted = {"fp32", fewer.name, found.chosen, *found.best}  # what the agent file asks for, then what nothing beat
    assert {each.name for each in later.candidates[: len(wanted)]} == wanted, "what nothing beat was not made first"


def test_a_champion_is_recalibrated_without_training(day, agents: Path) -> None:
    file = agents / "toy.yaml"  # 480 rows cannot prove a margin of .02 for every form of the same student
    margins = file.read_text().replace("non_inferiority_margin: 0.02", "non_inferiority_margin: 0.4")
    file.write_text(margins.replace("slice_margin: 0.1", "slice_margin: 0.4"))
    ingest("toy", day(0), day(20))
    refresh(agent="toy", as_of=day(20), trigger="bootstrap", cause="first")
    registry, first = open_registry("toy"), open_registry("toy").champion()
    ingest("toy", day(20), day(24))
    verdict = flows.refresh.refresh(agent="toy", as_of=day(24), mode="recalibrate", cause="ranges of now")
    assert verdict.result == "promoted", verdict.summary
    assert replay(verdict) == verdict
    champion, run = registry.champion(), run_of(verdict)
    assert champion != first
    assert registry.models.tags(champion)["lineage.student"] == registry.models.tags(first)["lineage.student"]
    assert registry.baseline(champion).train == registry.baseline(first).train
    assert not [each for each in nested(run) if each.data.tags["role"] in ("student", "teacher")], "nothing is trained"
    assert run.data.metrics["recalibration/rows"] > 0

    test = registry.models.scorecard(champion).test
    old = registry.models.scorecard(first).test
    assert test.log_loss < old.log_loss + 0.05
    source = run.data.tags["recalibrates"]
    assert source == registry.models.tags(first)["refresh_run"] and MODEL_STATE in {
        file.path for file in registry.client.list_artifacts(source, "compression")
    }
    # once more: it goes back to the form that was trained, and not to what a recalibration made of it
    ingest("toy", day(24), day(27))
    once_more = refresh(agent="toy", as_of=day(27), mode="recalibrate", cause="and again")
    assert run_of(once_more).data.tags["recalibrates"] == source
    rows = np.zeros((2, 4), np.float32)
    assert Variant(registry.models.fetch(registry.champion())).probabilities(rows).shape == (
        2,
        len(load("toy").actions),
    )


def test_what_cannot_be_recalibrated_is_distilled(day, agents: Path) -> None:
    ingest("toy", day(0), day(20))
    verdict = flows.refresh.refresh(
        agent="toy", as_of=day(20), trigger="bootstrap", mode="recalibrate", cause="there is no champion"
    )
    assert verdict.result == "promoted"
    assert "no champion whose graph was stored" in run_of(verdict).data.tags["recalibration_not_made"]
