"""``stillhouse serve`` during failures: it goes on deciding, reports problems, and recovers."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from stillhouse.errors import ConfigError
from stillhouse.knowledge.spool import spool_folder
from stillhouse.runtime.status import ProblemLog
from stillhouse.serving.housekeeping import Housekeeper
from stillhouse.serving.reports import Report, ServerFolder, read_housekeeper_report, write_report
from stillhouse.serving.supervisor import Settings, parse_tokens, serve
from tests.runtime.conftest import Installation
from tests.serving.test_supervisor import (
    COMMAND,
    ROOT,
    ROW,
    read_column,
    start_server,
    terminate,
    wait_until,
    workers_of,
)

DECISIONS = "/v1/agents/flights/decisions"


class Client:
    """Requests decisions from a server and keeps the acknowledged ids."""

    def __init__(self, address: str) -> None:
        self.http = httpx.Client(base_url=address, timeout=60)
        self.acknowledged = list[str]()

    def decide(self, times: int = 1) -> None:
        for _ in range(times):
            answer = self.http.post(DECISIONS, json={"observation": ROW})
            assert answer.status_code == 200, answer.text
            self.acknowledged.append(answer.json()["decision_id"])

    def can_decide(self) -> bool:
        """Whether a decision is answered; reconnects if the connection breaks."""
        with contextlib.suppress(httpx.TransportError):
            answer = self.http.post(DECISIONS, json={"observation": ROW})
            if answer.status_code == 200:
                self.acknowledged.append(answer.json()["decision_id"])
                return True
        return False

    def health(self, path: str = "/healthz") -> tuple[int, dict[str, Any]]:
        answer = self.http.get(path)
        return answer.status_code, answer.json()

    def reasons(self) -> dict[str, str]:
        """The reported problems by component."""
        status, body = self.health()
        assert status == 200 and body["ready"]
        reasons: dict[str, str] = body["reasons"].get("flights", {})
        assert body["degraded"] == bool(reasons)
        return reasons

    def is_healthy(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.health("/readyz")[0] == 200
        return False


@pytest.mark.slow
def test_removed_folders_damaged_spools_and_a_lost_registry_are_reported_and_survived(
    promoted: Installation, capsys: pytest.CaptureFixture[str]
) -> None:
    with start_server() as (process, address):
        client = Client(address)
        wait_until(client.is_healthy)
        client.decide(3)

        # remove the folders with the processes' reports and with the local copy of the champion
        shutil.rmtree(promoted.home / "serve")
        shutil.rmtree(promoted.home / "runtime")
        client.decide(3)
        promoted.registry.promote("2")
        wait_until(lambda: client.http.get("/v1/agents/flights").json()["champion"] == "flights@2")

        # damage a spool without a process, and the worker's own
        (spool_folder("flights") / "0123.sqlite").write_bytes(b"something else" * 1000)
        own = max(spool_folder("flights").glob("*.sqlite-wal"), key=lambda path: path.stat().st_size)
        own.with_name(own.name.removesuffix("-wal")).write_bytes(b"something else")
        client.decide(3)
        wait_until(lambda: "0123.damaged" in client.reasons().get("spool", ""))
        assert client.health("/readyz")[0] == 503
        client.decide(3)
        assert "0123.damaged" in client.http.get("/v1/agents/flights").json()["problems"]["spool"]["text"]
        text = client.http.get("/metrics").text
        assert 'stillhouse_problem{agent="flights",side="spool"} 1.0' in text
        assert 'stillhouse_degraded{agent="flights"} 1.0' in text
        wait_until(lambda: len(read_column("decisions", "decision_id")) == len(client.acknowledged))

        # remove the registry's database
        database = promoted.home / "mlflow" / "mlflow.db"
        database.rename(promoted.home / "away.db")
        wait_until(lambda: "registry" in client.reasons())
        client.decide(3)
        (promoted.home / "away.db").rename(database)
        for path in spool_folder("flights").glob("*.damaged*"):
            path.unlink()
        wait_until(client.is_healthy, 120)
        client.decide(1)
        assert terminate(process) == 0
    stored = read_column("decisions", "decision_id")
    assert sorted(stored) == sorted(client.acknowledged)


@pytest.mark.slow  # MLflow waits 20 s for a lock; the test above removes the registry
def test_a_locked_registry_is_reported_and_survived(promoted: Installation) -> None:
    with start_server() as (process, address):
        client = Client(address)
        wait_until(client.is_healthy)
        database = promoted.home / "mlflow" / "mlflow.db"
        with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("begin exclusive")
            wait_until(lambda: "registry" in client.reasons(), 120)
            client.decide(3)
            other.execute("rollback")
        wait_until(client.is_healthy, 120)
        client.decide(1)
        assert terminate(process) == 0
    assert sorted(read_column("decisions", "decision_id")) == sorted(client.acknowledged)


@pytest.mark.slow
def test_the_status_command_reports_damaged_spools(promoted: Installation) -> None:
    folder = spool_folder("flights")
    folder.mkdir(parents=True)
    (folder / "a.damaged").write_bytes(b"")
    (folder / "b.sqlite").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", COMMAND, "status", "flights"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"problem: spool: {folder / 'a.damaged'} is a damaged spool" in result.stdout
    assert f"problem: spool: {folder / 'b.sqlite'} is not a file" in result.stdout


@pytest.mark.slow
def test_a_worker_that_dies_often_is_always_restarted(promoted: Installation) -> None:
    with start_server() as (process, address):
        client = Client(address)
        wait_until(client.is_healthy)
        for deaths in range(1, 9):
            wait_until(lambda: client.can_decide() and workers_of(process))
            for worker in workers_of(process):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
            if deaths == 8:
                wait_until(client.can_decide)
                wait_until(lambda: "exited unexpectedly" in client.reasons().get("supervisor", ""))
        wait_until(client.is_healthy)
        assert terminate(process) == 0
    assert set(client.acknowledged) <= set(read_column("decisions", "decision_id"))


def test_invalid_tokens_are_errors(promoted: Installation) -> None:
    for value in ("", " ", ",", " , ,\n", "\u00a0"):
        with pytest.raises(ConfigError, match="STILLHOUSE_TOKENS is set and holds no token"):
            parse_tokens(value)
    for value, character in (
        ("good,se cret", "U+0020"),
        ("sécret", "U+00E9"),
        ("se\ncret", "U+000A"),
        ("a\x00", "U+0000"),
    ):
        with pytest.raises(ConfigError, match="STILLHOUSE_TOKENS") as error:
            parse_tokens(value)
        assert character in str(error.value) and "cret" not in str(error.value)
    assert parse_tokens(None) == () and parse_tokens(" a, b,,\n") == ("a", "b")
    result = subprocess.run(
        [sys.executable, "-c", COMMAND, "serve", "flights"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"STILLHOUSE_TOKENS": " , "},
    )
    assert result.returncode == 1 and "holds no token" in result.stderr and "Traceback" not in result.stderr


def test_access_is_described_in_words() -> None:
    assert Settings(("flights",)).access.startswith("open")
    access = Settings(("flights",), tokens=("secret", "other")).access
    assert access.startswith("a bearer token is needed: 2") and "secret" not in access


def test_an_unwritable_home_is_an_error_at_the_start(promoted: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    (promoted.home / "file").write_text("")
    monkeypatch.setenv("STILLHOUSE_HOME", str(promoted.home / "file"))
    with pytest.raises(ConfigError, match=r"STILLHOUSE_HOME is .* is a file: name a folder"):
        serve(Settings(("flights",), port=0), print)


def test_a_housekeeper_reports_a_failing_agent_and_tries_again(installation: Installation, tmp_path: Path) -> None:
    spools, reports = spool_folder("flights"), tmp_path / "reports"
    spools.parent.mkdir(parents=True)
    spools.write_text("in the way")
    housekeeper = Housekeeper("flights", reports, ProblemLog("server"))
    try:
        wait_until(lambda: "neither follows nor flushes" in housekeeper_problems(reports).get("supervisor", ""))
        spools.unlink()
        shutil.rmtree(reports)
        wait_until(lambda: reports.exists() and "supervisor" not in housekeeper_problems(reports), 120)
    finally:
        assert housekeeper.stop(60)


def housekeeper_problems(folder: Path) -> dict[str, str]:
    problems = read_housekeeper_report(folder, "flights", time.time()).problems
    return {component: problem.text for component, problem in problems.items() if problem.over_at is None}


def test_a_missing_or_stale_report_is_a_problem(tmp_path: Path) -> None:
    now = time.time()
    assert read_housekeeper_report(tmp_path, "flights", now).problems == {}
    assert "written no report" in read_housekeeper_report(tmp_path, "flights", now - 60).problems["supervisor"].text
    write_report(tmp_path, "keeper", "flights", Report(problems={}))
    assert read_housekeeper_report(tmp_path, "flights", now - 60).problems == {}
    file = tmp_path / "flights.keeper.report"
    file.write_text("{")
    assert read_housekeeper_report(tmp_path, "flights", now).problems == {}  # the next report comes soon
    assert "written no report" in read_housekeeper_report(tmp_path, "flights", now - 60).problems["supervisor"].text
    write_report(tmp_path, "keeper", "flights", Report(problems={}))
    os.utime(file, (now - 60, now - 60))
    assert "supervisor" in read_housekeeper_report(tmp_path, "flights", now - 60).problems


def test_folders_of_killed_servers_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path))
    (tmp_path / "serve" / "killed").mkdir(parents=True)
    first, second = ServerFolder(), ServerFolder()
    assert {path.name for path in (tmp_path / "serve").iterdir()} == {first.path.name, second.path.name}
    for folder in (first, second):
        folder.remove()
    assert list((tmp_path / "serve").iterdir()) == []
