"""Set before any test imports torch, Prefect or MLflow: see stillhouse.config.embedded_environment."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ or "STILLHOUSE_HOME" not in os.environ:  # each worker has its own
    os.environ["STILLHOUSE_HOME"] = tempfile.mkdtemp(prefix="stillhouse-tests-")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from stillhouse import config

if TYPE_CHECKING:
    from stillhouse.knowledge import KnowledgeBase

# One key for all tests, whatever STILLHOUSE_HOME they have: stores are copied from one to another.
_KEY = Ed25519PrivateKey.from_private_bytes(b"the tests' own key, no secret: .")
os.environ["STILLHOUSE_SIGNING_KEY"] = _KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
os.environ["STILLHOUSE_TRUSTED_KEYS"] = (
    _KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
)

for _name in (
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "DO_NOT_TRACK",
    "PREFECT_SERVER_ANALYTICS_ENABLED",
    "MLFLOW_DISABLE_TELEMETRY",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION",
    "GX_ANALYTICS_ENABLED",
):
    os.environ.setdefault(_name, config.embedded_environment()[_name])


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A file goes to one worker, and all files with flows go to the same one: a Prefect server is not started twice."""
    from xdist.scheduler import LoadFileScheduling

    class OneServer(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return "flows" if "prefect_server" in (config.rootpath / file).read_text(encoding="utf-8") else file

    return OneServer(config, log)


@pytest.fixture(scope="session")
def clinc150() -> Path:
    """The folder of CLINC150: where STILLHOUSE_DATA names one, else beside the clone. Tests download nothing."""
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.setdefault("STILLHOUSE_DATA", str(beside))) / "clinc150"
    if not (folder / "data_full.json").exists():
        pytest.skip(f"CLINC150 is not in {folder}; STILLHOUSE_DATA names the folder that has it as clinc150/")
    return folder


# --------------------------------------------------------------------------- the toy agent and what it lives with


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One temporary Prefect server for all flow tests of this process."""
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
    shutil.copy(Path(__file__).parent / "flows" / "toy.yaml", folder)
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
def day(agents: Path) -> Callable[[int], datetime]:
    """The moment ``n`` days after the toy's beginning."""
    from tests.flows.toy import BEGIN

    return lambda n: (BEGIN + timedelta(days=n)).to_pydatetime()


class Homes:
    """Homes of toys that have a champion, each made once per process by the engine and then copied."""

    def __init__(self, folder: Path, empty_mlflow: Path) -> None:
        self._folder, self._empty_mlflow, self._world = folder, empty_mlflow, _world()
        self._made: dict[tuple[str, int, int], Path] = {}

    def copy(self, to: Path, text: str, first: int, until: int) -> None:
        """Make ``to`` the home of a toy with the agent file ``text``, promoted on day ``first``, lived to ``until``."""
        assert _world() == self._world, "a test has changed the toy's source: let it live and refresh by itself"
        shutil.rmtree(to)
        shutil.copytree(self._home(text, first, until), to)

    def _home(self, text: str, first: int, until: int) -> Path:
        key = (text, first, until)
        if key not in self._made:
            home = self._folder / f"{len(self._made)}-day{until}"
            if until > first:
                shutil.copytree(self._home(text, first, first), home)
            else:
                (home / "mlflow").mkdir(parents=True)
                shutil.copy(self._empty_mlflow, home / "mlflow")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("STILLHOUSE_HOME", str(home))
                _live_and_promote(first, until)
            self._made[key] = home
        return self._made[key]


def _world() -> tuple[object, ...]:
    from tests.flows import toy

    return id(toy.HISTORY), toy.observations, toy.outcomes


def _live_and_promote(first: int, until: int) -> None:
    """The toy's days up to ``first`` and its first champion; where it has that already, the days up to ``until``."""
    import stillhouse
    from stillhouse.ingesting import ingest
    from tests.flows import toy

    begin, promoted, end = ((toy.BEGIN + timedelta(days=n)).to_pydatetime() for n in (0, first, until))
    if end > promoted:
        ingest("toy", promoted, end)
        return
    ingest("toy", begin, promoted)
    verdict = stillhouse.refresh("toy", as_of=promoted, trigger="bootstrap", cause="first")
    assert verdict.result == "promoted", verdict.summary


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> Homes:
    return Homes(tmp_path_factory.mktemp("homes"), empty_mlflow)


@pytest.fixture
def lived(agents: Path, homes: Homes) -> Callable[..., KnowledgeBase]:
    """``lived(24)``: twenty days of the toy and its first champion, then the days until the 24th.

    The home is a copy of what the engine made once for the same agent file and days.
    """
    from stillhouse.knowledge import KnowledgeBase

    def lived(until: int = 20, *, first: int = 20) -> KnowledgeBase:
        homes.copy(config.home(), (agents / "toy.yaml").read_text(), first, until)
        return KnowledgeBase(config.load("toy"))

    return lived
