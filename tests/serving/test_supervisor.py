"""``stillhouse serve`` as a process: workers, signals, a new champion, a killed worker."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from stillhouse import config
from stillhouse.errors import ConfigError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import TeacherRef
from stillhouse.serving.http import RequestLimits
from stillhouse.serving.supervisor import Settings, parse_tokens, serve
from stillhouse.teachers import ensemble
from tests.registry.conftest import Life, window
from tests.runtime.conftest import Installation, register_version
from tests.teachers.http_server import chat_completion
from tests.teachers.http_server import serving as language_model

NO_OUTCOMES = pd.DataFrame({"outcome": []})
ROW = {"wind": 3.0, "hour": 7, "origin": "EWR"}
ROOT = Path(__file__).parents[2]
COMMAND = "from stillhouse.cli import main; main()"


@contextlib.contextmanager
def start_server(*options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Start the server; yields its process and its address."""
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, "serve", "flights", "--port", "0", *options],
        env=os.environ | environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            output = ""
            for line in process.stdout:
                output += line
                if match := re.search(r"http://\S+", line):
                    break
            else:
                raise AssertionError(f"it ended: {output}")
            threading.Thread(target=process.stdout.read, daemon=True).start()  # a full pipe would block it
            yield process, match[0]
        finally:
            if process.poll() is None:
                process.kill()


def wait_until(condition: Any, seconds: float = 240.0) -> None:
    """Wait until the condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.1)


def terminate(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(120)


def read_column(table: str, column: str) -> list[str]:
    return KnowledgeBase(config.load("flights")).read(table, columns=[column])[column].tolist()  # type: ignore[arg-type]


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the workers."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    lines = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    return [child for child, line in lines.items() if b"spawn_main" in line]


def test_all_decisions_and_outcomes_are_in_the_knowledge_base_once(promoted: Installation) -> None:
    decision_ids, outcomes = [], 0
    with start_server("--workers", "2") as (process, address), httpx.Client(base_url=address, timeout=60) as client:
        wait_until(lambda: client.get("/healthz").status_code == 200)
        versions = set()
        for _ in range(20):
            decision = client.post("/v1/agents/flights/decisions", json={"observation": ROW}).json()
            decision_ids.append(decision["decision_id"])
            versions.add(decision["version"])
            body = {"decision_id": decision["decision_id"], "action": "late"}
            outcomes += client.post("/v1/agents/flights/outcomes", json=body).json()["recorded"]
        assert versions == {"flights@1"}
        promoted.registry.promote("2")

        def decided_by_version_2() -> bool:
            answer = client.post("/v1/agents/flights/decisions", json={"observation": ROW})
            assert answer.status_code == 200
            decision_ids.append(answer.json()["decision_id"])
            return bool(answer.json()["version"] == "flights@2")

        wait_until(decided_by_version_2)
        model = client.get("/v1/agents/flights/model")
        assert model.headers["stillhouse-version"] == "flights@2"
        text = client.get("/metrics").text
        assert 'stillhouse_champion_info{agent="flights",version="flights@2"} 1.0' in text
        assert 'stillhouse_problem{agent="flights",side="registry"} 0.0' in text
        assert terminate(process) == 0
    assert sorted(read_column("decisions", "decision_id")) == sorted(decision_ids)
    assert len(read_column("observations", "observation_id")) == len(decision_ids)
    assert len(read_column("outcomes", "observation_id")) == outcomes == 20


class _EndpointLife(Life):
    """Makes versions with the agent file's teacher: a model behind an endpoint."""

    def teacher(self, version: str) -> TeacherRef:
        return ensemble.fit(config.load("flights"), NO_OUTCOMES, window("fitted"), self.folder / f"t-{version}")


@pytest.mark.slow
def test_a_priced_endpoint_answers_until_the_days_budget_is_spent(installation: Installation, tmp_path: Path) -> None:
    with language_model(lambda _question, _number: chat_completion("late", usage=(20, 1))) as model:
        llm = {
            "kind": "endpoint",
            "name": "llm",
            "base_url": model.url,
            "model": "m",
            "prompt": "{wind}? {actions}",
            "probabilities": "votes",
            "votes": 1,
            "structured": False,
            "max_output_tokens": 10,
            "price_per_million_input": 1000,
            "price_per_million_output": 1000,
        }
        cascade = {"below": 1.0, "timeout": "20s", "cost_per_day": 0.3}  # a question costs .021
        installation.write(teachers=[llm], runtime={"poll": "0.1s", "flush": "0.1s", "cascade": cascade})
        register_version(_EndpointLife(installation.registry, tmp_path / "paid"), 4)
        installation.registry.promote("4")
        decisions: list[dict[str, Any]] = []
        with start_server("--workers", "2") as (process, address), httpx.Client(base_url=address, timeout=60) as client:

            def decide(wind: float) -> dict[str, Any]:
                answer = client.post("/v1/agents/flights/decisions", json={"observation": ROW | {"wind": wind}})
                assert answer.status_code == 200, answer.text
                decisions.append(answer.json())
                return decisions[-1]

            wait_until(lambda: client.get("/healthz").status_code == 200)
            wait_until(lambda: decide(0.0)["decider"] == "teacher")  # each worker loads it after its champion
            for wind in range(1, 30):
                decide(float(wind))
            calls = len(model.requests)
            assert 1 <= calls <= 0.3 / 0.021 and decisions[-1]["decider"] == "student"
            match = re.search(r'stillhouse_teacher_cost_total\{[^}]*"llm"\} (\S+)', client.get("/metrics").text)
            assert match is not None and float(match[1]) == pytest.approx(0.021 * calls)
            assert terminate(process) == 0
    deciders = [decision["decider"] for decision in decisions]
    assert sorted(read_column("decisions", "decider")) == sorted(deciders)
    assert {decision["action"] for decision in decisions if decision["decider"] == "teacher"} == {"late"}
    keys = read_column("knowledge", "content_key")
    assert 1 <= len(set(keys)) <= calls
    assert sum(read_column("spending", "money")) == pytest.approx(0.021 * calls)


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_no_acknowledged_decision_is_lost(promoted: Installation) -> None:
    acknowledged: list[str] = []
    stop = threading.Event()

    def decide(address: str) -> None:
        """Request decisions one after another; reconnect if the connection breaks."""
        while not stop.is_set():
            with contextlib.suppress(httpx.TransportError), httpx.Client(base_url=address, timeout=30) as client:
                while not stop.is_set():
                    answer = client.post("/v1/agents/flights/decisions", json={"observation": ROW})
                    if answer.status_code == 200:
                        acknowledged.append(answer.json()["decision_id"])

    with start_server() as (process, address):
        wait_until(lambda: httpx.get(f"{address}/healthz").status_code == 200)
        threads = [threading.Thread(target=decide, args=(address,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(acknowledged) > 100)
        (victim,) = workers_of(process)
        os.kill(victim, signal.SIGKILL)
        count = len(acknowledged)
        wait_until(lambda: len(acknowledged) > count + 100)
        assert workers_of(process) != [victim]
        stop.set()
        for thread in threads:
            thread.join()
        assert terminate(process) == 0
    stored = read_column("decisions", "decision_id")
    assert len(stored) == len(set(stored))
    assert set(acknowledged) <= set(stored)


@pytest.mark.slow
def test_workers_end_when_the_supervisor_is_killed(promoted: Installation) -> None:
    with start_server() as (process, address):
        wait_until(lambda: httpx.get(f"{address}/healthz").status_code == 200)
        (worker,) = workers_of(process)
        answer = httpx.post(f"{address}/v1/agents/flights/decisions", json={"observation": ROW})
        process.kill()
        process.wait()
        wait_until(
            lambda: not Path(f"/proc/{worker}/cmdline").exists() or not Path(f"/proc/{worker}/cmdline").read_bytes()
        )
    with start_server() as (process, _):
        assert terminate(process) == 0
    assert read_column("decisions", "decision_id") == [answer.json()["decision_id"]]


def test_other_addresses_than_loopback_need_a_token(promoted: Installation) -> None:
    for host in ("0.0.0.0", "192.0.2.1", "::"):
        with pytest.raises(ConfigError, match="STILLHOUSE_TOKENS"):
            serve(Settings(("flights",), host=host), print)
    assert Settings(("flights",), host="0.0.0.0", tokens=("secret",)).require_safe() is None
    assert "secret" not in repr(Settings(("flights",), tokens=("secret",)))
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        assert Settings(("flights",), host=host).loopback
    assert parse_tokens(" a, b,,") == ("a", "b")


@pytest.mark.slow
def test_invalid_options_are_reported_without_a_traceback(promoted: Installation) -> None:
    for options, message in (
        (["serve", "trains"], "trains"),
        (["serve", "flights", "flights"], "more than once"),
        (["serve", "flights", "--host", "0.0.0.0"], "STILLHOUSE_TOKENS"),
        (["serve", "flights", "--host", "192.0.2.1"], "STILLHOUSE_TOKENS"),
        (["serve", "flights", "--max-body", "3 apples"], "apples"),
    ):
        result = subprocess.run(
            [sys.executable, "-c", COMMAND, *options], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert result.returncode != 0
        assert message in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_port_in_use_is_an_error(promoted: Installation) -> None:
    with start_server() as (process, address):
        port = int(address.rpartition(":")[2])
        with pytest.raises(ConfigError, match="cannot listen"):
            serve(Settings(("flights",), port=port, limits=RequestLimits()), print)
        assert terminate(process) == 0
