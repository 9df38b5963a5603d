"""In headless Chromium, as a person: a refresh by a form, an approval, two versions compared, a champion explained."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.flows.test_prefect_server import ROOT, Server

BROWSER_PYTHON = ROOT / ".venv-screens" / "bin" / "python"
CHROMIUM = os.environ.get("CHROMIUM", "/usr/bin/chromium")
MISSING = [str(path) for path in (BROWSER_PYTHON, CHROMIUM) if shutil.which(path) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(MISSING), reason=f"not there: {MISSING} (make test-slow; apt install chromium)"),
]

# Day 24 turns the toy's world over: the refresh of day 30 learns from before it, that of day 37 from both, the next one
# from after it. So each champion is better than the one before.
LIFE = """
from datetime import timedelta
from flows.live import live
from flows.refresh import refresh
from flows.watch import watch
from tests.flows.toy import BEGIN

def day(n):
    return (BEGIN + timedelta(days=n)).to_pydatetime()

live("toy", day(20))
refresh("toy", day(20), trigger="bootstrap", cause="the first champion")
for n in (23, 30, 37):
    live("toy", day(n))
    watch("toy", day(n), on_drift="refresh")
live("toy", day(46))
"""


class Interfaces(NamedTuple):
    """Both servers with the toy's life, and a browser that is driven by another interpreter."""

    server: Server
    mlflow: str
    folder: Path

    def browse(self, name: str, **arguments: Any) -> Any:
        """Run one function of ``browser.py``; what it has read, and its screenshots are in the folder."""
        environment = self.server.environment | {
            "PREFECT_URL": self.server.url,
            "MLFLOW_URL": self.mlflow,
            "AGENT": "toy",
            "IMAGES": str(self.folder),
        }
        done = subprocess.run(
            [str(BROWSER_PYTHON), str(ROOT / "tests" / "flows" / "browser.py"), name, json.dumps(arguments)],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, (name, done.stderr[-3000:], self.server.logs())
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def interfaces(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interfaces]:
    server = Server(tmp_path_factory.mktemp("browser"))
    _write_files(server.folder)
    with server.started(), server.mlflow() as mlflow:
        server.python(LIFE)
        file = server.folder / "agents" / "toy.yaml"  # from now on a person decides
        file.write_text(file.read_text().replace("promotion: {", "promotion: {approval: manual, "))
        server.prefect("work-pool", "create", "stillhouse", "--type", "process")
        server.prefect("deploy", "--all", "--prefect-file", str(server.folder / "prefect.yaml"))
        with server.running("worker", "worker", "start", "--pool", "stillhouse"):
            yield Interfaces(server, mlflow, server.folder)


def _write_files(folder: Path) -> None:
    """The toy's agent file, and its deployments as docs/how-to/schedule.md says: those of flights with another name."""
    (folder / "agents").mkdir()
    shutil.copy(ROOT / "tests" / "flows" / "toy.yaml", folder / "agents")
    deployments = (ROOT / "prefect.yaml").read_text(encoding="utf-8").replace("flights", "toy")
    (folder / "prefect.yaml").write_text(deployments, encoding="utf-8")


def test_of_two_compared_versions_the_better_one_is_shown_as_better(interfaces: Interfaces) -> None:
    rows = interfaces.browse("compare")
    assert rows["Model Version:"] == ["1", "2"]
    worse, better = map(float, rows["quality"])  # on the same rows; each version's own window tells the opposite
    assert better > worse + 0.1 and float(rows["own_test/quality"][0]) > float(rows["own_test/quality"][1])


def test_from_the_champion_to_its_teacher_its_data_and_its_drift_by_clicks(interfaces: Interfaces) -> None:
    seen = interfaces.browse("explain")
    for page in ("model", "version"):  # the questions of a new user, each with its answer or a link to it
        assert "toy@2 is champion since 2024-02-07 00:00 UTC: AUC " in seen[page]
        questions = ("Why?", "What changed?", "Is it still good?", "How to go back?")
        assert all(question in seen[page] for question in questions) and "--rollback" in seen[page]
    assert "Why toy@2 is champion" in seen["why"] and "What the gate compared" in seen["why"]
    assert "figures/drift.png" in seen["drift"] and "No Artifacts" not in seen["drift"]
    assert "toy-teacher" in seen["teacher"] and "train (" in seen["data"]


def test_a_form_starts_a_refresh_and_another_one_approves_what_it_made(interfaces: Interfaces) -> None:
    before = interfaces.browse("read_champion")
    assert "toy@2 is champion since 2024-02-07" in before["text"] and "Is it still good?" in before["text"]
    assert "roll back" not in before["text"], "the page is older than the deployments"
    waiting = interfaces.browse("fill_form", cause="a person looks")
    assert "refresh toy 2024-02-15 23:48: awaiting approval" in waiting["text"]
    approved = interfaces.browse("approve", by="ada", reason="looked at the north")
    assert approved["link"] == "Approve toy@3" and "approve toy 2024-02-15 23:48: promoted" in approved["text"]
    after = interfaces.browse("read_champion")
    assert "toy@3 is champion instead of toy@2: approved by ada: looked at the north" in after["text"]
    assert "roll back" in after["text"]


def test_the_timeline_is_shown_as_a_picture(interfaces: Interfaces) -> None:
    seen = interfaces.browse("see_timeline")
    assert seen["width"] > 600 and seen["shown"]
