"""The loop on a real Prefect server with a process worker: runs by schedule, event and hand, one refresh at a time."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


class Server:
    """A Prefect server and a process worker on loopback, with the requests of a person and of a test."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, f"http://127.0.0.1:{_free_port()}"
        inherited = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "STILLHOUSE_"))}
        self.environment = inherited | {
            "PREFECT_HOME": str(folder / "prefect"),
            "PREFECT_API_URL": f"{self.url}/api",
            "PREFECT_SERVER_UI_API_URL": f"{self.url}/api",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "5",  # a minute otherwise
            "PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": "5",  # half a minute otherwise
            "STILLHOUSE_HOME": str(folder / "home"),
            "STILLHOUSE_AGENTS": str(folder / "agents"),
        }

    def prefect(self, *arguments: str, wait: float = 300) -> str:
        """Run ``prefect <arguments>`` without a terminal; return its output."""
        return self._call([str(BIN / "prefect"), "--no-prompt", *arguments], wait)

    def by_hand(self, *arguments: str) -> str:
        """Run ``python -m flows <arguments>`` with this server."""
        return self._call([sys.executable, "-m", "flows", *arguments], 300)

    def ask(self, path: str, **body: Any) -> Any:
        answer = httpx.post(f"{self.url}/api/{path}", json=body, timeout=30)
        answer.raise_for_status()
        return answer.json()

    def runs(self, flow: str, **parameters: str) -> list[dict[str, Any]]:
        """Runs of ``flow`` with these parameters, oldest first."""
        runs = self.ask("flow_runs/filter", flows={"name": {"any_": [flow]}}, sort="EXPECTED_START_TIME_ASC")
        return [run for run in runs if parameters.items() <= run["parameters"].items()]

    def states(self, run: dict[str, Any]) -> list[str]:
        answer = httpx.get(f"{self.url}/api/flow_run_states/", params={"flow_run_id": run["id"]}, timeout=30)
        return [state["name"] for state in answer.json()]

    def artifact(self, key: str, run: dict[str, Any]) -> str:
        """Return the Markdown artifact ``key`` of a run."""
        artifacts = self.ask(
            "artifacts/filter", artifacts={"key": {"any_": [key]}, "flow_run_id": {"any_": [run["id"]]}}
        )
        (artifact,) = artifacts
        assert artifact["type"] == "markdown"
        return str(artifact["data"])

    def finished(self, find: Callable[[], list[dict[str, Any]]], seconds: float = 180) -> dict[str, Any]:
        """Wait for the first run that ``find`` returns, and return it once it has ended."""
        deadline = time.monotonic() + seconds
        while not (runs := find()) or runs[0]["state"]["type"] not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            assert time.monotonic() < deadline, (runs, self.logs())
            time.sleep(1)
        assert runs[0]["state"]["type"] == "COMPLETED", (runs[0]["state"]["message"], self.logs())
        return runs[0]

    def logs(self) -> str:
        return "\n".join(map(self.logs_of, ("server", "worker")))

    def logs_of(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()[-3000:]

    @contextmanager
    def running(self, name: str, *arguments: str, program: str = "prefect") -> Iterator[None]:
        """Run ``prefect <arguments>`` in its own process group, which is ended with all its processes."""
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(BIN / program), *arguments],
                env=self.environment,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield
        finally:
            for how, patience in ((signal.SIGTERM, 15), (signal.SIGKILL, 5)):
                try:
                    os.killpg(process.pid, how)
                    process.wait(patience)
                except (ProcessLookupError, subprocess.TimeoutExpired):
                    continue

    @contextmanager
    def started(self) -> Iterator[None]:
        """Run the server alone, until it answers and then as long as needed."""
        (self.folder / "prefect").mkdir()
        port = self.url.rpartition(":")[2]
        with self.running("server", "server", "start", "--host", "127.0.0.1", "--port", port):
            self._wait_for(f"{self.url}/api/health", "server")
            yield

    @contextmanager
    def mlflow(self) -> Iterator[str]:
        """Run MLflow's server on the store of the home, and name it to all that is run; yields its address."""
        store, port = self.folder / "home" / "mlflow", _free_port()
        store.mkdir(parents=True, exist_ok=True)
        self.environment |= {
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        }
        at = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        kept = ["--backend-store-uri", f"sqlite:///{store}/mlflow.db", "--artifacts-destination", f"{store}/artifacts"]
        with self.running("mlflow", "server", *at, *kept, program="mlflow"):
            self._wait_for(f"http://127.0.0.1:{port}/health", "mlflow")
            yield f"http://127.0.0.1:{port}"

    def _wait_for(self, url: str, name: str) -> None:
        deadline = time.monotonic() + 180
        while not _answers(url):
            assert time.monotonic() < deadline, self.logs_of(name)
            time.sleep(0.5)

    def python(self, code: str) -> str:
        """Run Python code that uses this server."""
        return self._call([sys.executable, "-c", code], 300)

    def _call(self, command: list[str], wait: float) -> str:
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=wait,
            check=False,
        )
        assert done.returncode == 0, (command, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A running server with a work pool and a worker."""
    server = Server(tmp_path)
    with server.started():
        server.prefect("work-pool", "create", "stillhouse", "--type", "process")
        with server.running("worker", "worker", "start", "--pool", "stillhouse"):
            yield server


def test_the_loop_on_a_server_with_a_worker(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_sensitive_agent(server.folder / "agents")
    deployed = server.prefect("deploy", "--all")
    assert all(f"{flow}/flights" in deployed for flow in ("watch", "refresh", "promote", "maintain"))

    # the command line requests the first champion
    server.by_hand("live", "2013-02-19T05:00:00")
    server.prefect("deployment", "run", "refresh/flights", "-p", "trigger=bootstrap", "--watch")
    bootstrap = server.finished(lambda: server.runs("refresh", trigger="bootstrap"))
    server.by_hand("live", "2013-02-26T05:00:00")
    before = _aliases(server, monkeypatch)
    assert before["previous"] is None

    # a schedule starts the watch, and its event a refresh; a second refresh, requested by hand, must wait
    soon = (datetime.now(UTC) + timedelta(seconds=25)).replace(microsecond=0)
    server.prefect(
        "deployment", "schedule", "create", "watch/flights", "--interval", "86400", "--anchor-date", soon.isoformat()
    )
    watch = server.finished(lambda: [r for r in server.runs("watch") if _at(r["expected_start_time"]) == soon])
    assert watch["auto_scheduled"]
    asked = server.prefect("deployment", "run", "refresh/flights", "-p", "cause=a second one at the same time")
    drift = server.finished(lambda: server.runs("refresh", trigger="drift"))
    assert "MLflow" not in asked and _at(drift["created"]) - _at(watch["end_time"]) < timedelta(seconds=30)
    manual = server.finished(lambda: server.runs("refresh", cause="a second one at the same time"))
    first, second = sorted((drift, manual), key=lambda run: _at(run["start_time"]))
    assert _at(first["end_time"]) <= _at(second["start_time"])
    assert "AwaitingConcurrencySlot" in server.states(second)

    watched = server.artifact("watch-flights", watch)
    assert (
        watched.startswith("# flights: drift")
        and "**failed** `psi`" in watched
        and "| column | PSI | usual up to |" in watched
    )
    assert drift["parameters"]["cause"] in watched  # the verdict that the event named
    for run, trigger in ((bootstrap, "bootstrap"), (drift, "drift"), (manual, "manual")):
        text = server.artifact("refresh-flights", run)
        assert text.startswith("# flights: promoted") and f"Started by **{trigger}**" in text
        assert "| int8_dynamic (variant) |" in text

    # a person rolls back
    after = _aliases(server, monkeypatch)
    assert after["champion"] not in (None, before["champion"]) and after["previous"] is not None
    server.prefect("deployment", "run", "promote/flights", "-p", "action=rollback", "-p", "reason=a test", "--watch")
    promoted = server.finished(lambda: server.runs("promote"))
    assert _aliases(server, monkeypatch)["champion"] == after["previous"]
    assert "a test" in server.artifact("promotion-flights", promoted)

    # an invalid parameter starts no run
    with pytest.raises(AssertionError, match="is not one of"):
        server.prefect("deployment", "run", "refresh/flights", "-p", "teacher=guess")


def _write_sensitive_agent(folder: Path) -> None:
    """Write an agent file for flights that detects drift every week, trains quickly, and promotes easily.

    Each drift leads to a refresh: the policy weighs no gains, and the pool has no final fit to offer instead.
    """
    settings = yaml.safe_load((ROOT / "agents" / "flights.yaml").read_text(encoding="utf-8"))
    settings["windows"] |= {"train": "4w"}
    settings["watch"] |= {"policy": "alarms", "thresholds": {"psi": 0.01}, "cooldown": "0d"}
    settings["distillation"] |= {"epochs": 4, "folds": 2}
    settings["compression"] = {"recipes": [{"method": "fp32"}, {"method": "int8_dynamic"}], "search": None}
    settings["promotion"] = {"non_inferiority_margin": 0.5, "slice_margin": 0.5, "final_fit": "never"}
    folder.mkdir()
    (folder / "flights.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")


def _aliases(server: Server, monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """Return the versions that MLflow's aliases name."""
    from stillhouse.registry import Registry

    with monkeypatch.context() as patch:
        patch.setenv("STILLHOUSE_HOME", server.environment["STILLHOUSE_HOME"])
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        registry = Registry("flights")
        named = {"champion": registry.champion(), "previous": registry.previous()}
    return {alias: ref.version if ref else None for alias, ref in named.items()}


def _at(moment: str) -> datetime:
    return datetime.fromisoformat(moment.replace("Z", "+00:00"))


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2).is_success
    except httpx.HTTPError:
        return False


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
