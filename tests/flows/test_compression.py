"""A refresh searches for the best compression, logs all candidates, and can recalibrate the champion."""

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


def enable_search(agents: Path, **changes: str) -> None:
    """Enable the compression search in the toy's agent file."""
    file = agents / "toy.yaml"
    fewer = "    - {method: prune_columns, ratio: 0.3, recover_epochs: 1}\n"
    text = file.read_text().replace("    - {method: int8_dynamic}\n", fewer).replace("search: null", SEARCH)
    for old, new in changes.items():
        text = text.replace(old, new)
    file.write_text(text)


def run_of(verdict):
    registry = open_registry("toy")
    return registry.client.search_runs([registry.experiment_id], f"tags.verdict = '{verdict.verdict_id}'")[0]


def nested_runs(run) -> list:
    registry = open_registry("toy")
    query = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    return list(registry.client.search_runs([registry.experiment_id], query))


@pytest.mark.slow
def test_search_logs_all_candidates_and_the_next_search_starts_from_the_best(day, agents: Path) -> None:
    enable_search(agents)
    ingest("toy", day(0), day(20))
    verdict = refresh(agent="toy", as_of=day(20), trigger="bootstrap", cause="first")
    assert verdict.result == "promoted", verdict.summary
    registry, run = open_registry("toy"), run_of(verdict)
    frontier = registry.runs.read_record(run.info.run_id, FRONTIER, Frontier)
    assert frontier is not None and frontier.stopped == "9 candidates are made" and len(frontier.candidates) == 9
    assert frontier.fits and frontier.why.startswith(
        f"{frontier.chosen}: the smallest within 1 points and 100,000 bytes"
    )
    (fewer,) = (candidate for candidate in frontier.candidates if candidate.name.startswith("columns"))
    assert fewer.refused is None
    assert any("units" in candidate.name and "int8" in candidate.name for candidate in frontier.candidates)

    runs = {nested.info.run_name: nested for nested in nested_runs(run)}
    for candidate in frontier.candidates:
        logged = runs[candidate.name]
        assert json.loads(logged.data.params["recipe"]) == [dict(step) for step in candidate.recipe]
        if candidate.refused is None:
            assert logged.data.metrics["compression/quality"] == candidate.quality
            assert logged.data.metrics["compression/cpu_ms"] > 0 and logged.data.metrics["bytes"] == candidate.bytes
            assert logged.outputs.model_outputs  # a LoggedModel
        else:
            assert logged.data.tags["refused"] == candidate.refused
    table = json.loads(registry.runs.read_file(run.info.run_id, "compression/frontier.json"))
    assert len(table["data"]) == 9 and {"bytes", "p50_ms", "p95_ms", "quality", "cpu_ms"} <= set(table["columns"])
    assert registry.runs.read_file(run.info.run_id, "figures/frontier.png")[:4] == b"\x89PNG"
    assert registry.runs.read_file(run.info.run_id, "figures/frontier.html").startswith(b"<!doctype html>")
    assert {entry.variant for entry in registry.versions()} == {frontier.chosen}  # what can be chosen, nothing else
    chosen = {name for name, nested in runs.items() if nested.data.tags.get("chosen") == "True"}
    assert chosen == {frontier.chosen}

    ingest("toy", day(20), day(24))
    second = flows.refresh.refresh(agent="toy", as_of=day(24), cause="warm")
    later = registry.runs.read_record(run_of(second).info.run_id, FRONTIER, Frontier)
    assert later is not None
    first = {
        "fp32",
        fewer.name,
        frontier.chosen,
        *frontier.best,
    }  # the agent file's recipes, then the best of the last search
    assert {candidate.name for candidate in later.candidates[: len(first)]} == first, "the best were not made first"


def test_recalibration_does_not_train(day, agents: Path) -> None:
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
    assert not [r for r in nested_runs(run) if r.data.tags["role"] in ("student", "teacher")], "a model was trained"
    assert run.data.metrics["recalibration/rows"] > 0 and run.data.tags["prefect_run"]

    test = registry.models.scorecard(champion).test
    old = registry.models.scorecard(first).test
    assert test.log_loss < old.log_loss + 0.05
    source = run.data.tags["recalibrates"]
    assert source == registry.models.tags(first)["refresh_run"] and MODEL_STATE in {
        file.path for file in registry.client.list_artifacts(source, "compression")
    }
    # a second recalibration starts from the trained model, not from the recalibrated one
    ingest("toy", day(24), day(27))
    once_more = refresh(agent="toy", as_of=day(27), mode="recalibrate", cause="and second")
    assert run_of(once_more).data.tags["recalibrates"] == source
    rows = np.zeros((2, 4), np.float32)
    assert Variant(registry.models.fetch(registry.champion())).probabilities(rows).shape == (
        2,
        len(load("toy").actions),
    )


@pytest.mark.slow
def test_refresh_distils_if_it_cannot_recalibrate(day, agents: Path) -> None:
    ingest("toy", day(0), day(20))
    verdict = flows.refresh.refresh(
        agent="toy", as_of=day(20), trigger="bootstrap", mode="recalibrate", cause="there is no champion"
    )
    assert verdict.result == "promoted"
    assert "no champion whose graph was stored" in run_of(verdict).data.tags["recalibration_not_made"]
