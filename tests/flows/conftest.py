"""A Prefect server for the session, and a toy agent with a store of its own for each test."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database without a run: to bring one up to its newest schema takes seconds, to copy it nothing."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = tmp_path_factory.mktemp("mlflow")
    SqlAlchemyStore(f"sqlite:///{folder / 'mlflow.db'}", str(folder)).engine.dispose()
    return folder / "mlflow.db"


@pytest.fixture
def agents(tmp_path: Path, empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the toy's agent file, and a STILLHOUSE_HOME beside it in which nothing has happened."""

    folder = tmp_path / "agents"
    folder.mkdir()
    shutil.copy(HERE / "toy.yaml", folder)
    (tmp_path / "home" / "mlflow").mkdir(parents=True)
    shutil.copy(empty_mlflow, tmp_path / "home" / "mlflow")
    monkeypatch.setenv("STILLHOUSE_AGENTS", str(folder))
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return folder


@pytest.fixture
def more_recipes(agents: Path) -> None:
    """Let the toy's agent file ask for more variants than two."""
    file, more = agents / "toy.yaml", "    - {method: int8_static}\n    - {method: prune_units, ratio: 0.5}\n  search:"
    file.write_text(file.read_text().replace("  search:", more))


@pytest.fixture
def day(agents: Path):
    """The moment ``n`` days after the toy's beginning."""
    from tests.flows.toy import BEGIN

    return lambda n: (BEGIN + timedelta(days=n)).to_pydatetime()
