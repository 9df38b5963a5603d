"""Events about verdicts, and the automation of ``automations/notify.yaml`` on a real Prefect server."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

import tasks.events
from stillhouse import promoting
from stillhouse.records import Verdict, VerdictResult
from tasks.events import ANNOUNCED_RESULTS, announce_verdict
from tests.flows.test_prefect_server import ROOT, Server

FILE = ROOT / "automations" / "notify.yaml"


def verdict(result: str) -> Verdict:
    return Verdict.model_validate(
        {
            "verdict_id": "v1",
            "kind": "promotion",
            "agent": "flights",
            "as_of": datetime(2024, 1, 1, tzinfo=UTC),
            "result": result,
            "summary": "flights@3 refused on place=<!channel>{{ 7 * 7 }}\n\x1b[31m",
        }
    )


def test_the_event_has_the_champion_and_the_summary_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[dict[str, Any]] = []
    monkeypatch.setattr(tasks.events, "emit_event", lambda **event: events.append(event))
    monkeypatch.setattr(promoting, "current_champion", lambda agent: f"{agent}@2")
    for result in ("refused", "refused", "rejected", "no_drift"):
        announce_verdict.fn(verdict(result))
    first, again, rejected = events
    assert first == again and first["id"] != rejected["id"] and rejected["event"] == "stillhouse.rejected"
    assert first["event"] == "stillhouse.refused"
    assert first["resource"] == {"prefect.resource.id": "stillhouse.agent.flights", "stillhouse.agent": "flights"}
    assert first["payload"] == {
        "agent": "flights",
        "result": "refused",
        "kind": "promotion",
        "champion": "flights@2",
        "verdict_id": "v1",
        "as_of": "2024-01-01T00:00:00+00:00",
        "summary": "flights@3 refused on place=<!channel>{{ 7 * 7 }}\\n\\x1b[31m",
        "form": "",
    }


def test_the_automation_expects_each_event() -> None:
    automation = yaml.safe_load(FILE.read_text())
    assert {event.removeprefix("stillhouse.") for event in automation["trigger"]["expect"]} == ANNOUNCED_RESULTS
    assert set(get_args(VerdictResult)) >= ANNOUNCED_RESULTS - {"inconclusive"}


class Receiver(http.server.BaseHTTPRequestHandler):
    """Collects what a webhook posts."""

    messages: list[dict[str, str]]

    def do_POST(self) -> None:
        self.messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def webhook() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """The address of a webhook on loopback, and the messages that it gets."""
    Receiver.messages = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Receiver) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/", Receiver.messages
        server.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_automation_sends_a_message_per_event(tmp_path: Path, webhook: tuple[str, list[dict[str, str]]]) -> None:
    url, messages = webhook
    server = Server(tmp_path)
    with server.started():
        block = (
            "from prefect.blocks.notifications import CustomWebhookNotificationBlock as Block;"
            f"print(Block(name='n', url={url!r}, json_data={{'title': '{{{{subject}}}}', 'text': '{{{{body}}}}'}})"
            ".save('stillhouse'))"
        )
        block_id = server.python(block).split()[-1]
        file = tmp_path / "notify.yaml"
        file.write_text(FILE.read_text().replace("00000000-0000-0000-0000-000000000000", block_id))
        assert "Created automation" in server.prefect("automation", "create", "--from-file", str(file))

        emit = (
            "from tests.flows.test_notifications import verdict, announce_verdict;"
            "from prefect.events.worker import EventsWorker;"
            "[announce_verdict.fn(verdict(r)) for r in ('refused', 'no_drift', 'awaiting_approval')];"
            "EventsWorker.instance().drain()"
        )
        deadline = time.monotonic() + 120
        server.python(emit)
        while len(messages) < 2:
            assert time.monotonic() < deadline, (messages, server.logs_of("server"))
            time.sleep(1)
    titles = sorted(message["title"] for message in messages)
    assert titles == ["stillhouse: flights, awaiting approval", "stillhouse: flights, refused"]
    assert messages[0]["text"].splitlines() == [
        "flights@3 refused on place=&lt;!channel&gt;{{ 7 * 7 }}\\n\\x1b[31m",
        "champion: None",
        "verdict: v1, as of 2024-01-01T00:00:00+00:00",
    ]
