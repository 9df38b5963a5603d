"""On a real Prefect server: automations match states of runs, a paused schedule stays paused, forms are filled in."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

from tests.flows.test_notifications import webhook
from tests.flows.test_prefect_server import ROOT, Server

__all__ = ["webhook"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RUN = """
import os, time
from prefect import flow
from prefect.events.worker import EventsWorker
from tasks.endings import conclude_verdict, name_run
from tests.flows.test_notifications import verdict

@flow(name="promote", flow_run_name=name_run)
def promote(agent: str, dies: bool):
    if dies:
        time.sleep(5)  # a thread of its own emits the heartbeat that every run begins with
        EventsWorker.instance().drain()
        os._exit(0)  # as if killed: nothing tells the server
    return conclude_verdict("promote", verdict("awaiting_approval"))

promote("flights", {dies})
EventsWorker.instance().drain()
"""


def test_what_a_person_finds_on_the_server(tmp_path: Path, webhook: tuple[str, list[dict[str, str]]]) -> None:
    server = Server(tmp_path)
    server.environment["STILLHOUSE_AGENTS"] = str(ROOT / "agents")
    with server.started():
        _create_automations(server, *webhook)
        server.python(RUN.replace("{dies}", "False"))
        server.python(RUN.replace("{dies}", "True"))
        began = time.monotonic()
        check_that_a_paused_schedule_stays_paused(server)
        check_the_form(server)
        check_automations(server, webhook[1], began)


def check_that_a_paused_schedule_stays_paused(server: Server) -> None:
    server.prefect("work-pool", "create", "stillhouse", "--type", "process")
    server.prefect("deploy", "--all")
    (schedule,) = _schedules(server, "watch/flights")
    assert schedule["active"]
    server.prefect("deployment", "schedule", "pause", "watch/flights", schedule["id"])
    server.prefect("deploy", "--all")
    assert [(one["id"], one["active"]) for one in _schedules(server, "watch/flights")] == [(schedule["id"], False)]
    assert [one["active"] for one in _schedules(server, "maintain/flights")] == [True]


def check_the_form(server: Server) -> None:
    url = server.python("from tasks.forms import format_approval; print(format_approval('flights', '7'))")
    link = url.partition("**[Approve flights@7](")[2].partition(")")[0]
    deployment = _deployment(server, "promote/flights")
    assert link.startswith(f"{server.url}/deployments/deployment/{deployment['id']}/run?")
    (filled_in,) = parse_qs(urlsplit(link).query)["parameters"]
    assert json.loads(unquote(filled_in)) == {"agent": "flights", "action": "approve", "version": 7}
    assert set(json.loads(unquote(filled_in))) <= set(deployment["parameter_openapi_schema"]["properties"])


def check_automations(server: Server, messages: list[dict[str, str]], began: float) -> None:
    """The run that died is marked as crashed; the one that ended in a state with a name of its own is not."""
    while not any(run["state"]["type"] == "CRASHED" for run in server.runs("promote")):
        assert time.monotonic() - began < 180, (server.runs("promote"), server.logs_of("server"))
        time.sleep(1)
    states = {run["parameters"]["dies"]: run for run in server.runs("promote")}
    assert "No heartbeat for three minutes" in states[True]["state"]["message"]
    ended = states[False]
    assert (ended["state"]["type"], ended["state"]["name"]) == ("COMPLETED", "Awaiting approval")
    assert ended["name"] == "promote flights 2024-01-01 00:00: awaiting approval"
    assert [message["title"] for message in messages] == ["promote flights 2024-01-01 00:00: awaiting approval"]


def _create_automations(server: Server, url: str, messages: list[dict[str, str]]) -> None:
    """The automation for zombie runs, with a shorter time, and one that matches the name of a state."""
    zombies = yaml.safe_load((ROOT / "automations" / "zombies.yaml").read_text())
    zombies["trigger"]["within"] = 15
    _create(server, zombies)
    block = (
        "from prefect.blocks.notifications import CustomWebhookNotificationBlock as Block;"
        f"print(Block(name='n', url={url!r}, json_data={{'title': '{{{{subject}}}}'}}).save('stillhouse'))"
    )
    by_state = {
        "name": "waits",
        "trigger": {
            "type": "event",
            "posture": "Reactive",
            "threshold": 1,
            "within": 0,
            "match": {"prefect.resource.id": "prefect.flow-run.*"},
            "expect": ["prefect.flow-run.Awaiting approval"],
        },
        "actions": [
            {
                "type": "send-notification",
                "block_document_id": server.python(block).split()[-1],
                "subject": "{{ flow_run.name }}",
                "body": "-",
            }
        ],
    }
    _create(server, by_state)


def _create(server: Server, automation: dict[str, Any]) -> None:
    file = server.folder / "automation.yaml"
    file.write_text(yaml.safe_dump(automation))
    assert "Created automation" in server.prefect("automation", "create", "--from-file", str(file))


def _deployment(server: Server, name: str) -> dict[str, Any]:
    return next(
        one for one in server.ask("deployments/filter") if one["entrypoint"].endswith(f":{name.partition('/')[0]}")
    )


def _schedules(server: Server, name: str) -> list[dict[str, Any]]:
    schedules: list[dict[str, Any]] = _deployment(server, name)["schedules"]
    return schedules
