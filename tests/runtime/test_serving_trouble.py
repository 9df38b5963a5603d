"""``stillhouse serve`` in trouble: it decides on, says what does not work, and does it as soon as it can again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from stillhouse.errors import ConfigError
from stillhouse.knowledge.spool import spool_folder
from stillhouse.runtime.background import Repeating
from stillhouse.runtime.keeping import Keeper
from stillhouse.runtime.reports import Report, ServerFolder, keeper_report, write_report
from stillhouse.runtime.serving import Settings, serve, tokens_of
from stillhouse.runtime.status import Problem, Troubles, merged
from tests.runtime.conftest import World
from tests.runtime.test_serving import ROOT, ROW, START, end, in_delta, running, wait_until, workers_of

DECISIONS = "/v1/agents/flights/decisions"


class Client:
    """Decides through a server and remembers what was acknowledged."""

    def __init__(self, address: str) -> None:
        self.http = httpx.Client(base_url=address, timeout=60)
        self.acknowledged = list[str]()

    def decide(self, times: int = 1) -> None:
        for _ in range(times):
            answer = self.http.post(DECISIONS, json={"observation": ROW})
            assert answer.status_code == 200, answer.text
            self.acknowledged.append(answer.json()["decision_id"])

    def decides(self) -> bool:
        """Whether it does by now; a connection that breaks is made anew."""
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
        """What is told, by side; it is the same everywhere."""
        status, body = self.health()
        assert status == 200 and body["ready"]
        found: dict[str, str] = body["reasons"].get("flights", {})
        assert body["degraded"] == bool(found)
        return found

    def well(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return self.health("/readyz")[0] == 200
        return False


def test_swept_folders_damaged_spools_and_a_lost_registry_are_told_and_outlived(
    champion: World, capsys: pytest.CaptureFixture[str]
) -> None:
    with running() as (process, address):
        client = Client(address)
        wait_until(client.well)
        client.decide(3)

        # the folder in which the processes tell each other how they stand, and the copy of the champion
        shutil.rmtree(champion.home / "serve")
        shutil.rmtree(champion.home / "runtime")
        client.decide(3)
        champion.registry.promote("2")
        wait_until(lambda: client.http.get("/v1/agents/flights").json()["champion"] == "flights@2")

        # a spool of nobody's that is damaged, and the worker's own
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
        wait_until(lambda: len(in_delta("decisions", "decision_id")) == len(client.acknowledged))

        # the registry's database
        database = champion.home / "mlflow" / "mlflow.db"
        database.rename(champion.home / "away.db")
        wait_until(lambda: "registry" in client.reasons())
        client.decide(3)
        (champion.home / "away.db").rename(database)
        for path in spool_folder("flights").glob("*.damaged*"):
            path.unlink()
        wait_until(client.well, 120)
        client.decide(1)
        assert end(process) == 0
    there = in_delta("decisions", "decision_id")
    assert sorted(there) == sorted(client.acknowledged)


@pytest.mark.slow  # MLflow waits 20 s for a lock; the test above takes the registry away
def test_a_locked_registry_is_told_and_outlived(champion: World) -> None:
    with running() as (process, address):
        client = Client(address)
        wait_until(client.well)
        database = champion.home / "mlflow" / "mlflow.db"
        with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
            other.execute("begin exclusive")
            wait_until(lambda: "registry" in client.reasons(), 120)
            client.decide(3)
            other.execute("rollback")
        wait_until(client.well, 120)
        client.decide(1)
        assert end(process) == 0
    assert sorted(in_delta("decisions", "decision_id")) == sorted(client.acknowledged)


def test_status_tells_of_damaged_spools(champion: World) -> None:
    folder = spool_folder("flights")
    folder.mkdir(parents=True)
    (folder / "a.damaged").write_bytes(b"")
    (folder / "b.sqlite").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", START, "status", "flights"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert f"problem: spool: {folder / 'a.damaged'} is a damaged spool" in done.stdout
    assert f"problem: spool: {folder / 'b.sqlite'} is not a file" in done.stdout


@pytest.mark.slow
def test_a_worker_that_dies_often_is_started_again_and_again(champion: World) -> None:
    with running() as (process, address):
        client = Client(address)
        wait_until(client.well)
        for deaths in range(1, 9):
            wait_until(lambda: client.decides() and workers_of(process))
            for worker in workers_of(process):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(worker, signal.SIGKILL)
            if deaths == 8:
                wait_until(client.decides)
                wait_until(lambda: "ended by itself" in client.reasons().get("supervisor", ""))
        wait_until(client.well)
        assert end(process) == 0
    assert set(client.acknowledged) <= set(in_delta("decisions", "decision_id"))


def test_tokens_that_are_none_are_refused(champion: World) -> None:
    for value in ("", " ", ",", " , ,\n", "\u00a0"):
        with pytest.raises(ConfigError, match="STILLHOUSE_TOKENS is set and holds no token"):
            tokens_of(value)
    for value, strange in (
        ("good,se cret", "U+0020"),
        ("sécret", "U+00E9"),
        ("se\ncret", "U+000A"),
        ("a\x00", "U+0000"),
    ):
        with pytest.raises(ConfigError, match="STILLHOUSE_TOKENS") as refused:
            tokens_of(value)
        assert strange in str(refused.value) and "cret" not in str(refused.value)
    assert tokens_of(None) == () and tokens_of(" a, b,,\n") == ("a", "b")
    done = subprocess.run(
        [sys.executable, "-c", START, "serve", "flights"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"STILLHOUSE_TOKENS": " , "},
    )
    assert done.returncode == 1 and "holds no token" in done.stderr and "Traceback" not in done.stderr


def test_who_may_ask_is_said_in_words() -> None:
    assert Settings(("flights",)).access.startswith("open")
    access = Settings(("flights",), tokens=("secret", "other")).access
    assert access.startswith("a bearer token is needed: 2") and "secret" not in access


def test_a_home_that_cannot_be_written_is_told_at_once(champion: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (champion.home / "file").write_text("")
    monkeypatch.setenv("STILLHOUSE_HOME", str(champion.home / "file"))
    with pytest.raises(ConfigError, match=r"STILLHOUSE_HOME names .* is a file: name a folder"):
        serve(Settings(("flights",), port=0), print)


def test_a_keeper_whose_agent_cannot_be_made_says_so_and_tries_again(world: World, tmp_path: Path) -> None:
    spools, told = spool_folder("flights"), tmp_path / "told"
    spools.parent.mkdir(parents=True)
    spools.write_text("in the way")
    keeper = Keeper("flights", told, Troubles("server"))
    try:
        wait_until(lambda: "neither followed nor flushed" in told_by_keeper(told).get("supervisor", ""))
        spools.unlink()
        shutil.rmtree(told)
        wait_until(lambda: told.exists() and "supervisor" not in told_by_keeper(told), 120)
    finally:
        assert keeper.ended(60)


def told_by_keeper(folder: Path) -> dict[str, str]:
    problems = keeper_report(folder, "flights", time.time()).problems
    return {side: problem.text for side, problem in problems.items() if problem.over_at is None}


def test_a_supervisor_that_tells_nothing_is_a_problem(tmp_path: Path) -> None:
    now = time.time()
    assert keeper_report(tmp_path, "flights", now).problems == {}
    assert "told nothing" in keeper_report(tmp_path, "flights", now - 60).problems["supervisor"].text
    write_report(tmp_path, "keeper", "flights", Report(problems={}))
    assert keeper_report(tmp_path, "flights", now - 60).problems == {}
    file = tmp_path / "flights.keeper.report"
    file.write_text("{")
    assert keeper_report(tmp_path, "flights", now).problems == {}  # not yet: the next one comes in a second
    assert "told nothing" in keeper_report(tmp_path, "flights", now - 60).problems["supervisor"].text
    write_report(tmp_path, "keeper", "flights", Report(problems={}))
    os.utime(file, (now - 60, now - 60))
    assert "supervisor" in keeper_report(tmp_path, "flights", now - 60).problems


def test_of_two_problems_with_one_side_that_which_is_not_over_is_told() -> None:
    now = datetime.now(UTC)
    over = Problem(since=now, at=now, text="over", over_at=now)
    old = Problem(since=now, at=now - timedelta(hours=1), text="old")
    assert merged({"spool": over}, {"spool": old, "registry": over}) == {"spool": old, "registry": over}
    assert merged({"spool": old}, {"spool": over}) == {"spool": old} and merged() == {}


def test_work_that_fails_is_done_again() -> None:
    done = list[int]()

    def work() -> None:
        done.append(1)
        raise ValueError("a defect")

    repeating = Repeating("test works", work, 0.001)
    wait_until(lambda: len(done) > 3)
    assert repeating.once.is_set() and repeating.stop(10)


def test_folders_of_servers_that_were_killed_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path))
    (tmp_path / "serve" / "killed").mkdir(parents=True)
    first, second = ServerFolder(), ServerFolder()
    assert {path.name for path in (tmp_path / "serve").iterdir()} == {first.path.name, second.path.name}
    for each in (first, second):
        each.remove()
    assert list((tmp_path / "serve").iterdir()) == []
