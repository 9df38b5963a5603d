"""Fixtures: an agent with three registered versions, in an MLflow store and a home folder of its own for each test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from stillhouse.records import Baseline, Disagreement, DriftCalibration
from stillhouse.registry import Registry
from tests.agents import agent_sections
from tests.registry.conftest import FLIGHTS, START, Life, empty_store, quality, window
from tests.runtime import parts_for_tests as parts

__all__ = ["empty_store"]

AGENT = agent_sections(
    **FLIGHTS,
    teachers=[{"kind": "python", "name": "rule", "target": "tests.runtime.parts_for_tests:Rule"}],
    runtime={"poll": "0.1s", "flush": "0.1s"},
)


@dataclass
class Installation:
    """An agent on one machine: its home folder, its agent file, its registry."""

    home: Path
    agents: Path
    registry: Registry

    def write(self, **sections: object) -> None:
        """Write the agent file with these sections replaced; it is JSON, which is YAML."""
        (self.agents / "flights.yaml").write_text(json.dumps(AGENT | sections))

    def write_cascade(self, **settings: object) -> None:
        """Write the agent file with a cascade for every decision, or with these settings."""
        self.write(runtime={"poll": "0.1s", "flush": "0.1s", "cascade": {"below": 1.0, "timeout": "5s"} | settings})

    @property
    def folder(self) -> Path:
        """The folder with the local copies of champions."""
        return self.home / "runtime" / "flights"


@pytest.fixture(scope="session")
def three_versions(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with versions 1 to 3 of all models and their baselines, none of them promoted."""
    folder = tmp_path_factory.mktemp("versions")
    file = Path(shutil.copyfile(empty_store, folder / "mlflow.db"))
    registry = Registry("flights", f"sqlite:///{file}")
    life = Life(registry, folder / "work")
    for number in (1, 2, 3):
        register_version(life, number)
    return file


def register_version(life: Life, number: int) -> None:
    """Register one more version of all models, and its baseline."""
    models = life.refresh(f"r{number}", seed=number)
    baseline = Baseline(
        train=window("train"),
        test=window("test"),
        as_of=START,
        losses={},
        quality=quality(),
        screens=DriftCalibration(block_length=timedelta(days=1), time_blocks=0, columns={}, joint=()),
        disagreement=Disagreement(rows=9, rate=0.1, total_variation=0.1),
        teacher=models["teacher"],
    )
    life.registry.runs.log_record(life.registry.models.tags(models["fp32"])["refresh_run"], baseline, "baseline.json")


@pytest.fixture
def installation(tmp_path: Path, three_versions: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Installation]:
    """The agent without a champion."""
    home, agents = tmp_path / "home", tmp_path / "agents"
    (home / "mlflow").mkdir(parents=True)
    agents.mkdir()
    shutil.copyfile(three_versions, home / "mlflow" / "mlflow.db")
    monkeypatch.setenv("STILLHOUSE_HOME", str(home))
    monkeypatch.setenv("STILLHOUSE_AGENTS", str(agents))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "set to be unset")
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    parts.question_sizes.clear()
    parts.behaviour.update(delay=0.0, fails=False)
    installation = Installation(home, agents, Registry("flights"))
    installation.write()
    yield installation
    parts.behaviour.update(delay=0.0, fails=False)


@pytest.fixture
def promoted(installation: Installation) -> Installation:
    """The agent with version 1 as champion."""
    installation.registry.promote("1")
    return installation
