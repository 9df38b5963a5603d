"""A student of kind ``module`` goes through the whole loop and is always trained from random weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse import refresh
from stillhouse.champion import open_registry
from stillhouse.ingesting import ingest
from stillhouse.variant import Variant

STUDENT = "student: {kind: module, target: tests.flows.toy:Network, settings: {width: 12}}"


@pytest.mark.slow
def test_custom_student_is_distilled_compressed_and_promoted(day, agents: Path) -> None:
    text = (Path(__file__).parent / "toy.yaml").read_text()
    old = next(line for line in text.splitlines() if line.startswith("student:"))
    (agents / "toy.yaml").write_text(text.replace(old, STUDENT))
    ingest("toy", day(0), day(20))
    first = refresh(agent="toy", as_of=day(20), trigger="bootstrap", cause="first")
    assert first.result == "promoted", first.summary
    registry = open_registry("toy")
    champion = registry.champion()
    assert champion is not None and registry.models.scorecard(champion).test.auc > 0.8
    ingest("toy", day(20), day(24))
    again = refresh(agent="toy", as_of=day(24), cause="by hand", mode="update")
    assert again.result in ("promoted", "refused")  # judged: the update became a new distillation
    runs = registry.client.search_runs([registry.experiment_id], filter_string="tags.update_not_made LIKE '%'")
    (reason,) = {run.data.tags["update_not_made"] for run in runs}
    assert "'module' is always trained from scratch" in reason
    assert Variant(registry.models.fetch(champion)).manifest["columns"][-1]["name"] == "place"
