"""The flow plays policies, and publishes table, figure and MLflow runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.replay import replay
from stillhouse import config
from stillhouse.registry.experiment import open_experiment
from tests.flows.test_loop import artifacts

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.mark.slow
def test_the_flow_publishes_a_table_and_a_figure(agents: Path) -> None:
    report = replay(agent="toy", policies=["never", "every:1w"], first_weeks=3, weeks=2, from_sources=True)
    assert len(report.policies) == 2
    shown = artifacts()
    assert "| every:1w |" in shown["replay-toy"]
    assert shown["replay-toy-figure"].startswith("data:image/png;base64,")
    assert (config.home() / "replay" / "toy" / "replay.json").exists()
    experiment = open_experiment("toy-replay")
    assert len(experiment.client.search_runs([experiment.experiment_id])) == 3
