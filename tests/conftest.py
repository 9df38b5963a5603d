"""Environment variables, set before any test imports torch, Prefect or MLflow, and fixtures that all tests share."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if "PYTEST_XDIST_WORKER" in os.environ or "STILLHOUSE_HOME" not in os.environ:  # each xdist worker has its own home
    os.environ["STILLHOUSE_HOME"] = tempfile.mkdtemp(prefix="stillhouse-tests-")

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from stillhouse import config

if TYPE_CHECKING:
    from stillhouse.knowledge import KnowledgeBase
    from tests.command import Command

# All tests use one key, because stores are copied from one STILLHOUSE_HOME to another.
_SIGNING_KEY = Ed25519PrivateKey.from_private_bytes(b"the tests' own key, no secret: .")
os.environ["STILLHOUSE_SIGNING_KEY"] = _SIGNING_KEY.private_bytes(
    Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
).decode()
os.environ["STILLHOUSE_TRUSTED_KEYS"] = (
    _SIGNING_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
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
    """Send each file to one worker, and all files with flows to the same one, so that one Prefect server starts."""
    from xdist.scheduler import LoadFileScheduling

    class OneServer(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = str(super()._split_scope(nodeid))
            return "flows" if "prefect_server" in (config.rootpath / file).read_text(encoding="utf-8") else file

    return OneServer(config, log)


@pytest.fixture(scope="session")
def clinc150() -> Path:
    """The folder of CLINC150: in STILLHOUSE_DATA, else in shared/data beside the clone. Tests download nothing."""
    default_folder = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(os.environ.setdefault("STILLHOUSE_DATA", str(default_folder))) / "clinc150"
    if not (folder / "data_full.json").exists():
        pytest.skip(f"CLINC150 is not in {folder}; set STILLHOUSE_DATA to a folder that contains clinc150/")
    return folder


# --------------------------------------------------------------------------- the toy agent of tests/flows/toy.py


@pytest.fixture(scope="session")
def prefect_server() -> Iterator[None]:
    """One temporary Prefect server for all flow tests of this process."""
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=180):
        yield


@pytest.fixture(scope="session")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs. Creating its schema takes seconds; copying it is fast."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    folder = tmp_path_factory.mktemp("mlflow")
    SqlAlchemyStore(f"sqlite:///{folder / 'mlflow.db'}", str(folder)).engine.dispose()
    return folder / "mlflow.db"


@pytest.fixture
def agents(tmp_path: Path, empty_mlflow: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the toy's agent file, and an empty STILLHOUSE_HOME beside it."""
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
    """Add two compression recipes to the toy's agent file."""
    file, more = agents / "toy.yaml", "    - {method: int8_static}\n    - {method: prune_units, ratio: 0.5}\n  search:"
    file.write_text(file.read_text().replace("  search:", more))


@pytest.fixture
def day(agents: Path) -> Callable[[int], datetime]:
    """A function that returns the time ``n`` days after the start of the toy's history."""
    from tests.flows.toy import BEGIN

    return lambda n: (BEGIN + timedelta(days=n)).to_pydatetime()


class HomeCache:
    """STILLHOUSE_HOME folders of toys with a champion; the engine makes each once per process, then it is copied."""

    def __init__(self, folder: Path, empty_mlflow: Path) -> None:
        self._folder, self._empty_mlflow, self._source = folder, empty_mlflow, _toy_source()
        self._folders: dict[tuple[str, int, int], Path] = {}

    def copy(self, to: Path, text: str, first: int, until: int) -> None:
        """Replace ``to`` by a home with agent file ``text``, first champion on day ``first``, and data to ``until``."""
        assert _toy_source() == self._source, "a test has changed the toy's source: it must live and refresh by itself"
        shutil.rmtree(to)
        shutil.copytree(self._home(text, first, until), to)

    def _home(self, text: str, first: int, until: int) -> Path:
        key = (text, first, until)
        if key not in self._folders:
            home = self._folder / f"{len(self._folders)}-day{until}"
            if until > first:
                shutil.copytree(self._home(text, first, first), home)
            else:
                (home / "mlflow").mkdir(parents=True)
                shutil.copy(self._empty_mlflow, home / "mlflow")
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("STILLHOUSE_HOME", str(home))
                _live_and_promote(first, until)
            self._folders[key] = home
        return self._folders[key]


def _toy_source() -> tuple[object, ...]:
    from tests.flows import toy

    return id(toy.HISTORY), toy.observations, toy.outcomes


def _live_and_promote(first: int, until: int) -> None:
    """Add the data to day ``first`` and promote the first champion; if ``until`` is later, only add the data to it."""
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
def homes(tmp_path_factory: pytest.TempPathFactory, empty_mlflow: Path) -> HomeCache:
    return HomeCache(tmp_path_factory.mktemp("homes"), empty_mlflow)


@pytest.fixture
def final_fit(agents: Path) -> None:
    """Lets a refresh of the toy register a final fit, too: a second version."""
    file = agents / "toy.yaml"
    file.write_text(file.read_text().replace(", final_fit: never", ""))


@pytest.fixture
def toy_base(agents: Path, homes: HomeCache) -> Callable[..., KnowledgeBase]:
    """``toy_base(24)``: the toy's knowledge base on day 24, with its first champion of day 20.

    The home is a copy of one that the engine made once for the same agent file and days.
    """
    from stillhouse.knowledge import KnowledgeBase

    def make_base(until: int = 20, *, first: int = 20) -> KnowledgeBase:
        homes.copy(config.home(), (agents / "toy.yaml").read_text(), first, until)
        return KnowledgeBase(config.load("toy"))

    return make_base


@pytest.fixture
def command_on_toy(
    tmp_path: Path,
    agents: Path,
    final_fit: None,
    toy_base: Callable[..., KnowledgeBase],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Callable[..., Command]:
    """``command_on_toy(24)``: the command line on the toy on day 24, which has a champion and its final fit."""
    from tests.command import command

    def run_until(until: int = 20) -> Command:
        toy_base(until)
        return command(tmp_path / "home", agents, monkeypatch, capsys)

    return run_until
