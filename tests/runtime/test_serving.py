"""``stillhouse serve`` as it is run: a process with workers, signals, a new champion, a worker that is killed."""

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
from stillhouse.runtime.http import SizeLimits
from stillhouse.runtime.serving import Settings, serve, tokens_of
from stillhouse.teachers import ensemble
from tests.registry.conftest import Life, window
from tests.runtime.conftest import World, refreshed
from tests.teachers.http_server import chat_completion
from tests.teachers.http_server import serving as language_model

NOTHING = pd.DataFrame({"outcome": []})
ROW = {"wind": 3.0, "hour": 7, "origin": "EWR"}
ROOT = Path(__file__).parents[2]
START = "from stillhouse.cli import main; main()"


@contextlib.contextmanager
def running(*options: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The server's process and its address."""
    with subprocess.Popen(
        [sys.executable, "-c", START, "serve", "flights", "--port", "0", *options],
        env=os.environ | environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            said = ""
            for line in process.stdout:
                said += line
                if found := re.search(r"http://\S+", line):
                    break
            else:
                raise AssertionError(f"it ended: {said}")
            threading.Thread(target=process.stdout.read, daemon=True).start()  # nothing of it may block
            yield process, found[0]
        finally:
            if process.poll() is None:
                process.kill()


def wait_until(true: Any, seconds: float = 240.0) -> None:
    """The condition comes true before a very long time is over."""
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.1)


def end(process: subprocess.Popen[str]) -> int:
    process.send_signal(signal.SIGTERM)
    return process.wait(120)


def in_delta(table: str, column: str) -> list[str]:
    return KnowledgeBase(config.load("flights")).read(table, columns=[column])[column].tolist()  # type: ignore[arg-type]


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Process ids of the supervisor's children that serve."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    lines = {int(child): Path(f"/proc/{child}/cmdline").read_bytes() for child in children}
    return [child for child, line in lines.items() if b"spawn_main" in line]


def test_it_serves_learns_swaps_and_ends_with_everything_in_the_knowledge_base_once(champion: Any) -> None:
    decided, outcomes = [], 0
    with running("--workers", "2") as (process, address), httpx.Client(base_url=address, timeout=60) as client:
        wait_until(lambda: client.get("/healthz").status_code == 200)
        versions = set()
        for _ in range(20):
            decision = client.post("/v1/agents/flights/decisions", json={"observation": ROW}).json()
            decided.append(decision["decision_id"])
            versions.add(decision["version"])
            body = {"decision_id": decision["decision_id"], "action": "late"}
            outcomes += client.post("/v1/agents/flights/outcomes", json=body).json()["recorded"]
        assert versions == {"flights@1"}
        champion.registry.promote("2")

        def swapped() -> bool:
            answer = client.post("/v1/agents/flights/decisions", json={"observation": ROW})
            assert answer.status_code == 200
            decided.append(answer.json()["decision_id"])
            return bool(answer.json()["version"] == "flights@2")

        wait_until(swapped)
        model = client.get("/v1/agents/flights/model")
        assert model.headers["stillhouse-version"] == "flights@2"
        text = client.get("/metrics").text
        assert 'stillhouse_champion_info{agent="flights",version="flights@2"} 1.0' in text
        assert 'stillhouse_problem{agent="flights",side="registry"} 0.0' in text
        assert end(process) == 0
    assert sorted(in_delta("decisions", "decision_id")) == sorted(decided)
    assert len(in_delta("observations", "observation_id")) == len(decided)
    assert len(in_delta("outcomes", "observation_id")) == outcomes == 20


class _Paid(Life):
    """Makes versions whose teacher is what the agent file says: a model behind an endpoint."""

    def teacher(self, version: str) -> TeacherRef:
        return ensemble.fit(config.load("flights"), NOTHING, window("fitted"), self.folder / f"t-{version}")


def test_a_priced_endpoint_answers_where_the_student_is_unsure_until_the_day_has_cost_enough(
    world: World, tmp_path: Path
) -> None:
    with language_model(lambda _asked, _number: chat_completion("late", usage=(20, 1))) as model:
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
        world.write(teachers=[llm], runtime={"poll": "0.1s", "flush": "0.1s", "cascade": cascade})
        refreshed(_Paid(world.registry, tmp_path / "paid"), 4)
        world.registry.promote("4")
        decided: list[dict[str, Any]] = []
        with running("--workers", "2") as (process, address), httpx.Client(base_url=address, timeout=60) as client:

            def decide(wind: float) -> dict[str, Any]:
                answer = client.post("/v1/agents/flights/decisions", json={"observation": ROW | {"wind": wind}})
                assert answer.status_code == 200, answer.text
                decided.append(answer.json())
                return decided[-1]

            wait_until(lambda: client.get("/healthz").status_code == 200)
            wait_until(lambda: decide(0.0)["decider"] == "teacher")  # each worker loads it when it has a champion
            for wind in range(1, 30):
                decide(float(wind))
            paid = len(model.requests)
            assert 1 <= paid <= 0.3 / 0.021 and decided[-1]["decider"] == "student"
            counted = re.search(r'stillhouse_teacher_cost_total\{[^}]*"llm"\} (\S+)', client.get("/metrics").text)
            assert counted is not None and float(counted[1]) == pytest.approx(0.021 * paid)
            assert end(process) == 0
    deciders = [each["decider"] for each in decided]
    assert sorted(in_delta("decisions", "decider")) == sorted(deciders)
    assert {each["action"] for each in decided if each["decider"] == "teacher"} == {"late"}
    said = in_delta("knowledge", "content_key")
    assert 1 <= len(set(said)) <= paid
    assert sum(in_delta("spending", "money")) == pytest.approx(0.021 * paid)


def test_a_killed_worker_loses_nothing_that_was_acknowledged_and_is_replaced(champion: Any) -> None:
    acknowledged: list[str] = []
    stop = threading.Event()

    def ask(address: str) -> None:
        """Decisions one after another; a connection that breaks is made anew."""
        while not stop.is_set():
            with contextlib.suppress(httpx.TransportError), httpx.Client(base_url=address, timeout=30) as client:
                while not stop.is_set():
                    answer = client.post("/v1/agents/flights/decisions", json={"observation": ROW})
                    if answer.status_code == 200:
                        acknowledged.append(answer.json()["decision_id"])

    with running() as (process, address):
        wait_until(lambda: httpx.get(f"{address}/healthz").status_code == 200)
        threads = [threading.Thread(target=ask, args=(address,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        wait_until(lambda: len(acknowledged) > 100)
        (victim,) = workers_of(process)
        os.kill(victim, signal.SIGKILL)
        before = len(acknowledged)
        wait_until(lambda: len(acknowledged) > before + 100)
        assert workers_of(process) != [victim]
        stop.set()
        for thread in threads:
            thread.join()
        assert end(process) == 0
    there = in_delta("decisions", "decision_id")
    assert len(there) == len(set(there))
    assert set(acknowledged) <= set(there)


def test_workers_end_when_the_supervisor_is_killed(champion: Any) -> None:
    with running() as (process, address):
        wait_until(lambda: httpx.get(f"{address}/healthz").status_code == 200)
        (worker,) = workers_of(process)
        answer = httpx.post(f"{address}/v1/agents/flights/decisions", json={"observation": ROW})
        process.kill()
        process.wait()
        wait_until(
            lambda: not Path(f"/proc/{worker}/cmdline").exists() or not Path(f"/proc/{worker}/cmdline").read_bytes()
        )
    with running() as (process, _):
        assert end(process) == 0
    assert in_delta("decisions", "decision_id") == [answer.json()["decision_id"]]


def test_it_listens_elsewhere_only_with_a_token(champion: Any) -> None:
    for host in ("0.0.0.0", "192.0.2.1", "::"):
        with pytest.raises(ConfigError, match="STILLHOUSE_TOKENS"):
            serve(Settings(("flights",), host=host), print)
    assert Settings(("flights",), host="0.0.0.0", tokens=("secret",)).require_safe() is None
    assert "secret" not in repr(Settings(("flights",), tokens=("secret",)))
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        assert Settings(("flights",), host=host).loopback
    assert tokens_of(" a, b,,") == ("a", "b")


def test_a_mistake_of_the_user_is_one_sentence(champion: Any) -> None:
    for options, said in (
        (["serve", "trains"], "trains"),
        (["serve", "flights", "flights"], "more than once"),
        (["serve", "flights", "--host", "0.0.0.0"], "STILLHOUSE_TOKENS"),
        (["serve", "flights", "--host", "192.0.2.1"], "STILLHOUSE_TOKENS"),
        (["serve", "flights", "--max-body", "3 apples"], "apples"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", START, *options], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode != 0
        assert said in done.stderr and "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_told(champion: Any) -> None:
    with running() as (process, address):
        port = int(address.rpartition(":")[2])
        with pytest.raises(ConfigError, match="cannot listen"):
            serve(Settings(("flights",), port=port, limits=SizeLimits()), print)
        assert end(process) == 0
