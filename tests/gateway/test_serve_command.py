"""``stillhouse serve --upstream`` as a process: no agents, tasks listed, settings that are refused."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.errors import ConfigError
from stillhouse.gateway.door import DoorSettings
from stillhouse.gateway.settings import GatewaySettings
from stillhouse.gateway.upstream import UpstreamAddress
from stillhouse.serving.settings import Settings
from tests.gateway.test_recording import CANARY, chat
from tests.gateway.upstream import Upstream, chunked, completion, label_completion

ROOT = Path(__file__).parents[2]


@contextmanager
def serving(*options: str, log: Path) -> Iterator[str]:
    """Start the server; yields its address, and ends it by SIGTERM."""
    command = [sys.executable, "-c", "from stillhouse.cli import main; main()", "serve", "--port", "0", *options]
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, cwd=ROOT, env=dict(os.environ), stdout=subprocess.PIPE, stderr=errors, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            match = re.search(r" on (http://\S+)", process.stdout.readline())
            assert match is not None, log.read_text()
            yield match[1]
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            if process.poll() is None:
                process.kill()


def test_the_door_in_two_workers(behind: Upstream, tmp_path: Path, home: Path) -> None:
    behind.answer = label_completion('{"intent": "move"}')
    log = tmp_path / "log"
    with serving("--upstream", f"{behind.url}/v1", "--workers", "2", log=log) as address:
        for number in range(30):
            headers = {"authorization": f"Bearer {CANARY}", "x-stillhouse-task": "routing"}
            response = httpx.post(f"{address}/v1/chat/completions", json=chat(str(number)), headers=headers)
            assert response.json() == completion('{"intent": "move"}')
        behind.answer = chunked(b"data: 1\n\n", is_cut=True)
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.post(f"{address}/v1/chat/completions", json=chat(stream=True))
        assert httpx.get(f"{address}/healthz").json()["ready"] is True
    result = CliRunner().invoke(app, ["tasks", "--json"])
    report = json.loads(result.output)
    (summary,) = report["tasks"]
    assert summary["requests"] == 30 and summary["task"]["name"] == "routing"
    assert report["counts"]["captures:written"] == 30
    assert log.read_text() == "", "nothing of the traffic is logged, not even what was cut"
    assert not [file for file in home.rglob("*") if file.is_file() and CANARY.encode() in file.read_bytes()]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ((), "name an agent, or an upstream"),
        (("--abstain",), "--abstain needs --upstream"),
        (("--upstream", "https://user:secret@x.test"), "must have no user"),
        (("--upstream", "http://localhost:8000"), "is this server itself"),
    ],
)
def test_settings_that_are_refused(options: tuple[str, ...], text: str) -> None:
    result = CliRunner().invoke(app, ["serve", *options])
    assert isinstance(result.exception, ConfigError) and text in str(result.exception)
    assert "secret" not in str(result.exception)


def test_another_server_on_the_same_port_is_no_loop() -> None:
    door = DoorSettings(UpstreamAddress.parse("http://model.test:8000"), GatewaySettings())
    Settings((), door=door).require_safe()
