"""A refresh is killed with SIGKILL at each of its steps; the next run of the same request completes the work."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stillhouse.champion import open_registry
from stillhouse.config import home, load
from stillhouse.knowledge import KnowledgeBase
from tasks.ingesting import live

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server")]

ROOT = Path(__file__).parents[2]
STEPS = {
    "the teacher is being fitted": "refreshes/toy/*/teacher*",
    "the teacher is there": "refreshes/toy/*/teacher/teacher.json",
    "knowledge is being kept": "knowledge/toy/knowledge/_delta_log/*1.json",
    "the student is there": "refreshes/toy/*/student/student.json",
    "variants are being made": "refreshes/toy/*/variants/*",
    "models are being logged": "mlflow/artifacts/models/*",
    "the verdict is there": "mlflow/artifacts/*/artifacts/verdict.json",
}


def start(as_of: str) -> subprocess.Popen[bytes]:
    from prefect.settings import PREFECT_API_URL

    command = [sys.executable, "-m", "flows", "refresh", "--agent", "toy", "--trigger", "bootstrap", "--as-of", as_of]
    environment = os.environ | {"PREFECT_API_URL": PREFECT_API_URL.value()}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def list_written(pattern: str) -> set[tuple[str, int]]:
    """Return the paths that match the pattern, with their modification times, to ignore those of a killed run."""
    paths = set()
    for path in home().glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            paths.add((str(path), path.stat().st_mtime_ns))
    return paths


def test_refresh_killed_at_each_step_loses_and_repeats_nothing(day) -> None:
    live.fn("toy", day(0), day(20))
    as_of = f"{day(20):%Y-%m-%dT%H:%M:%S}"
    killed = []
    for step, pattern in STEPS.items():
        before = list_written(pattern)
        process = start(as_of)
        deadline = time.monotonic() + 120
        while process.poll() is None and list_written(pattern) <= before and time.monotonic() < deadline:
            time.sleep(0.005)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed.append(step)
        process.wait()
        if not killed or killed[-1] != step:
            break  # the run ended before it could be killed; the assertions below still apply
    assert len(killed) >= 4, killed

    assert start(as_of).wait(timeout=300) == 0
    base, registry = KnowledgeBase(load("toy")), open_registry("toy")
    knowledge = base.read("knowledge")
    assert not knowledge.duplicated(["content_key", "teacher"]).any()
    (verdict,) = base.journal.verdicts()
    assert verdict.result == "promoted"
    champion = registry.champion()
    assert (
        champion is not None
        and registry.models.tags(champion)["refresh_id"] == verdict.evidence["certificate"]["refresh_id"]
    )
    assert registry.previous() is None
    statuses = [run.info.status for run in registry.client.search_runs([registry.experiment_id])]
    assert "RUNNING" not in statuses
    assert not list((home() / "refreshes").glob("*/*"))

    versions = registry.versions()
    assert start(as_of).wait(timeout=300) == 0
    assert registry.versions() == versions and registry.champion() == champion and len(base.journal.verdicts()) == 1


def test_refresh_killed_while_labelling_asks_no_stored_answer_again(day, agents: Path) -> None:
    """The server counts the questions."""
    pytest.importorskip("openai")
    from tests.flows.test_teachers import correct_answer, llm, use_teachers
    from tests.teachers.http_server import serving

    def questions(requests: list[dict]) -> list[str]:
        return [request["messages"][-1]["content"] for request in requests]

    with serving(correct_answer) as server:
        use_teachers(agents, llm(server))
        live.fn("toy", day(0), day(14))
        as_of = f"{day(14):%Y-%m-%dT%H:%M:%S}"
        process, deadline = start(as_of), time.monotonic() + 240
        while len(server.requests) < 500 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert process.poll() is None, "it ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed_after = len(server.requests)
        stored = KnowledgeBase(load("toy")).tables.count_rows()["knowledge"]
        assert start(as_of).wait(timeout=400) == 0
        before, after = questions(server.requests[:killed_after]), questions(server.requests[killed_after:])

    base = KnowledgeBase(load("toy"))
    assert 0 <= killed_after - stored <= 2 * 64  # at most two chunks of 8 × 8 rows were in progress
    assert len(set(before) & set(after)) == killed_after - stored
    assert len(after) == len(set(after)) == 8 * 120 + 150 - stored
    assert base.tables.count_rows()["knowledge"] == 8 * 120 + 150
    assert base.journal.verdicts()[-1].result == "promoted"
    assert base.answers.spending()["llm"].calls <= len(server.requests)
