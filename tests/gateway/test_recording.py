"""What is recorded of the traffic, what is not, and that no credential is in it."""

from __future__ import annotations

import gzip
import json
import logging
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from stillhouse.cli import app
from stillhouse.gateway import captures as captures_module
from stillhouse.gateway import store as store_module
from stillhouse.gateway.protocols import PROTOCOLS
from stillhouse.gateway.settings import GatewaySettings
from stillhouse.gateway.store import GatewayStore, store_path
from tests.gateway.conftest import Running, open_door
from tests.gateway.upstream import Upstream, chunked, completion, label_completion, stream_of, whole

CHAT = "/v1/chat/completions"
CANARY = "sk-canary-7f3d9a1b5c"
SCHEMA = {
    "type": "json_schema",
    "json_schema": {
        "name": "intent",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"intent": {"type": "string", "enum": ["stay", "move"]}},
            "required": ["intent"],
            "additionalProperties": False,
        },
    },
}


def chat(text: str = "Hello", system: str = "Route.", **more: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}, {"role": "user", "content": text}]
    return {"model": "m", "messages": messages, "response_format": SCHEMA, **more}


def send(running: Running, *bodies: dict[str, Any], key: str = "sk-one", path: str = CHAT, **headers: str) -> None:
    with httpx.Client(headers={"authorization": f"Bearer {key}"} | headers, timeout=10) as client:
        for body in bodies:
            client.post(running.url + path, json=body)


@pytest.fixture
def enum(running: Running) -> Running:
    running.upstream.answer = label_completion('{"intent": "move"}')
    return running


def test_a_question_is_recorded_from_its_second_time_on(enum: Running) -> None:
    send(enum, chat("first"), chat("second"), chat("third", stream=False, user="u-1", metadata={"a": "b"}))
    rows = enum.rows()
    assert [row["observation"] for row in rows] == ["second", "third"]
    row = rows[0]
    assert (row["action"], row["asked"], row["model"], row["fingerprint"]) == ("move", "first", "m-1", "fp_1")
    assert (row["input_tokens"], row["output_tokens"], row["answer_id"]) == (20, 3, "chatcmpl-upstream")
    assert row["ms"] >= row["first_byte_ms"] > 0 and row["local_action"] is None
    (summary,) = enum.wait_until_written().tasks()
    assert (summary.requests, summary.usable, summary.answers, summary.callers) == (2, 2, 1, 1)
    assert summary.task.actions == ("stay", "move") and summary.input_tokens == 40


def test_whatever_changes_an_answer_is_another_task(enum: Running) -> None:
    variants = [
        chat(),
        chat(system="Route well."),
        chat(temperature=0.5),
        chat(seed=1),
        chat() | {"model": "m2"},
        chat(invented=True),
    ]
    send(enum, *variants, *variants)
    send(enum, chat(), chat(), key="sk-two")
    assert len({row["task"] for row in enum.rows()}) == len(variants) + 1


def test_a_stream_is_recorded_when_it_is_complete(enum: Running) -> None:
    enum.upstream.answer = chunked(*stream_of('{"int', 'ent":"stay"}'))
    send(enum, *[chat(stream=True, stream_options={"include_usage": True})] * 2)
    (row,) = enum.rows()
    assert (row["action"], row["streamed"], row["input_tokens"]) == ("stay", 1, 20)
    enum.upstream.answer = chunked(*stream_of('{"intent":"stay"}')[:-1])  # it ends well, but without [DONE]
    send(enum, chat(stream=True))
    assert len(enum.rows()) == 1
    assert enum.counts()["captures", "unreadable"] == 1


def test_a_compressed_answer_is_read(enum: Running) -> None:
    content = gzip.compress(json.dumps(completion('{"intent": "stay"}')).encode())
    enum.upstream.answer = whole(content, headers=(("content-type", "application/json"), ("content-encoding", "gzip")))
    send(enum, chat(), chat())
    assert [row["action"] for row in enum.rows()] == ["stay"]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (completion('{"intent": "fly"}'), "none of the actions"),
        (completion("Sorry, I cannot."), "none of the actions"),
        (completion(None, refusal="no"), "refused"),
    ],
)
def test_an_answer_that_is_none_of_the_actions_teaches_nothing(enum: Running, answer: Any, reason: str) -> None:
    enum.upstream.answer = whole(answer)
    send(enum, chat(), chat())
    (row,) = enum.rows()
    assert row["action"] is None and row["reason"] == reason


def test_errors_of_the_upstream_are_not_recorded(enum: Running) -> None:
    enum.upstream.answer = whole(b"{}", "401 Unauthorized")
    send(enum, *[chat()] * 3)
    assert enum.rows() == []


def test_what_is_no_task_is_counted_by_reason(enum: Running) -> None:
    history = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    send(
        enum,
        chat() | {"messages": history},
        chat() | {"messages": [*history[:2]]},
        chat(n=2),
        chat(logit_bias={"1": 2}),
        chat() | {"response_format": None},
        chat() | {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
    )
    assert enum.rows() == []
    counts = {reason: n for (what, reason), n in enum.counts().items() if what == "unrecognised"}
    assert counts == {
        "history": 1,
        "assistant prefill": 1,
        "n": 1,
        "logit_bias": 1,
        "free text": 1,
        "images or files": 1,
    }


def test_a_named_task_ignores_the_system_message_and_is_recorded_at_once(enum: Running) -> None:
    headers = {"x-stillhouse-task": "routing"}
    send(enum, chat("a", system="Today is Monday."), chat("b", system="Today is Tuesday."), **headers)
    send(enum, chat("c"), **{"x-stillhouse-task": "no valid name"})
    assert [row["observation"] for row in enum.rows()] == ["a", "b"]
    (summary,) = enum.wait_until_written().tasks()
    assert summary.task.name == "routing"
    assert all(request.header("x-stillhouse-task") is None for request in enum.upstream.requests)


def test_labels_are_recorded_and_a_task_that_is_not_closed_is_forgotten(running: Running) -> None:
    label = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 4}
    running.upstream.answer = whole(completion(" Refund\n"))
    send(running, label, label)
    assert [row["action"] for row in running.rows()] == ["Refund"]
    running.upstream.answer = whole(completion("A long story that is no label, " * 9))
    send(running, *[label] * 25)
    assert running.rows() == []
    (summary,) = running.wait_until_written().tasks()
    assert not summary.is_closed
    send(running, label)
    assert running.rows() == []


def test_tasks_are_limited_in_number(behind: Upstream) -> None:
    with open_door(behind, max_tasks=2, max_tasks_per_tenant=1) as running:
        for key in ("sk-one", "sk-two", "sk-three"):
            send(running, *[chat(system=system) for system in "ab" for _ in range(2)], key=key)
        store = running.wait_until_written()
        assert len(store.tasks()) == 2 and len({summary.task.tenant for summary in store.tasks()}) == 2
        assert running.counts()["unrecognised", "too many tasks"] == 4


def test_tenants_are_told_apart_as_configured(behind: Upstream) -> None:
    with open_door(behind, tenant="joined") as running:
        send(running, chat(), key="sk-one")
        send(running, chat(), key="sk-two")
        (summary,) = running.wait_until_written().tasks()
        assert summary.task.tenant == "all"
    store_path().unlink()
    with open_door(behind, tenant="header", tenant_header="X-Team") as running:
        send(running, *[chat()] * 2, **{"x-team": "blue"})
        send(running, *[chat()] * 2, **{"x-team": "red"})
        assert sorted(summary.task.tenant for summary in running.wait_until_written().tasks()) == ["blue", "red"]


def test_a_full_queue_drops_and_counts_and_no_caller_waits(behind: Upstream, monkeypatch: pytest.MonkeyPatch) -> None:
    blocked = threading.Event()
    real = GatewayStore.add

    def slow(self: GatewayStore, rows: Any) -> None:
        blocked.wait(20)
        real(self, rows)

    monkeypatch.setattr(store_module.GatewayStore, "add", slow)
    with open_door(behind, max_waiting=3) as running:
        began = time.monotonic()
        send(running, *[chat(str(number)) for number in range(20)])
        assert time.monotonic() - began < 10
        blocked.set()
        assert running.counts()["captures", "dropped"] >= 5
        assert running.wait_until_written().counts()["captures:dropped"] >= 5
        assert httpx.get(f"{running.url}/v1/door").json()["captures"]["dropped"] >= 5


def test_a_disk_that_cannot_be_written_fails_no_request(behind: Upstream, home: Path) -> None:
    home.mkdir()
    (home / "gateway").mkdir()
    (home / "gateway" / "captures.sqlite").mkdir()  # a folder in the place of the file
    with open_door(behind) as running:
        response = httpx.post(running.url + CHAT, json=chat())
        assert response.json() == completion()
        time.sleep(0.5)
        assert running.door.records.is_failing
        assert httpx.get(f"{running.url}/v1/door").json()["is_recording"] is False


def test_old_records_are_deleted(enum: Running) -> None:
    send(enum, *[chat()] * 2)
    assert len(enum.rows()) == 1
    store = enum.wait_until_written()
    with store.transaction():
        store.purge(time.time_ns() // 1000)
    assert store.tasks() == []
    store.close()
    assert GatewaySettings().retention.days == 30


@pytest.mark.parametrize(
    "where",
    [
        {"authorization": f"Bearer {CANARY}"},
        {"api-key": CANARY},
        {"x-api-key": CANARY},
        {"x-goog-api-key": CANARY},
        {"cookie": f"session={CANARY}; b=c"},
        {"openai-organization": CANARY},
        {"openai-project": CANARY},
        {"x-stillhouse-token": CANARY},
        {"?key": CANARY},
    ],
    ids=lambda where: next(iter(where)),
)
def test_a_canary_key_is_in_no_file_log_or_metric(
    behind: Upstream, home: Path, where: dict[str, str], caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    headers = {name: value for name, value in where.items() if not name.startswith("?")}
    query = {name[1:]: value for name, value in where.items() if name.startswith("?")}
    with open_door(behind, tokens=(CANARY,)) as running:
        with httpx.Client(headers=headers, params=query) as client:
            for body in (chat(), chat(), chat(f"my key is {CANARY}"), b"not json"):
                content = body if isinstance(body, bytes) else json.dumps(body).encode()
                client.post(running.url + CHAT, content=content)
            behind.answer = whole(completion(CANARY))  # an upstream that says it
            client.post(running.url + CHAT, json=chat() | {"response_format": None, "max_tokens": 9})
            client.post(running.url + CHAT, json=chat() | {"response_format": None, "max_tokens": 9})
            behind.answer = whole(json.dumps({"error": CANARY}).encode(), "401 No")
            client.post(running.url + CHAT, json=chat())
            client.get(f"{running.url}/v1/models")
        running.counts()
        pages = [httpx.get(running.url + path).text for path in ("/metrics", "/v1/door", "/healthz", "/openapi.json")]
        assert running.rows(), "something is recorded"
    pages.append(CliRunner().invoke(app, ["tasks", "--json"]).output)
    own = "\n".join(record.getMessage() for record in caplog.records if record.name.startswith("stillhouse"))
    files = [file for file in home.rglob("*") if file.is_file()]
    assert any(file.suffix == ".sqlite" for file in files)
    assert not [file for file in files if CANARY.encode() in file.read_bytes()]
    assert CANARY not in "".join(pages) + own + "".join(capfd.readouterr())
    assert (home / "gateway" / "captures.sqlite").stat().st_mode & 0o077 == 0
    assert (home / "gateway" / "secret.key").stat().st_mode & 0o077 == 0


def test_several_credentials_are_ambiguous_unless_one_is_configured(behind: Upstream) -> None:
    headers = {"x-api-key": "sk-another-kind"}
    with open_door(behind) as running:
        send(running, *[chat()] * 3, **headers)
        assert running.rows() == [] and running.counts()["unrecognised", "several credentials"] == 3
    with open_door(behind, credential="x-api-key") as running:
        send(running, *[chat()] * 2, key="one", **headers)
        send(running, *[chat()] * 2, key="two", **headers)
        assert len({row["caller"] for row in running.rows()}) == 1


def test_a_reference_to_an_answer_is_noted(running: Running) -> None:
    answer = {
        "id": "resp_upstream",
        "object": "response",
        "status": "completed",
        "model": "m-1",
        "output": [{"type": "message", "content": [{"type": "output_text", "text": "move"}]}],
        "usage": {"input_tokens": 9, "output_tokens": 1},
    }
    running.upstream.answer = whole(answer)
    body = {"model": "m", "input": "x", "max_output_tokens": 16}
    send(running, body, body, path="/v1/responses")
    (row,) = running.rows()
    assert (row["action"], row["answer_id"], row["input_tokens"]) == ("move", "resp_upstream", 9)
    assert running.door.records.referred == frozenset()
    send(running, body | {"previous_response_id": "resp_upstream"}, path="/v1/responses")
    running.rows()
    deadline = time.monotonic() + 5
    while not running.door.records.referred and time.monotonic() < deadline:
        time.sleep(0.05)
    assert running.door.records.referred == {row["task"]}


def test_the_command_lists_tasks(enum: Running, home: Path) -> None:
    runner = CliRunner()
    assert "no tasks yet" in runner.invoke(app, ["tasks"]).output
    (home / "gateway").mkdir(exist_ok=True)
    (home / "gateway" / "gateway.yaml").write_text("prices: {m: {per_million_input: 1000000}}\n")
    send(enum, *[chat(str(number)) for number in range(4)])
    assert len(enum.rows()) == 3
    result = runner.invoke(app, ["tasks", "--json"])
    (summary,) = json.loads(result.output)["tasks"]
    assert summary["requests"] == 3 and summary["money"] == 60 and summary["median_ms"] > 0
    shown = runner.invoke(app, ["tasks"], env={"COLUMNS": "200"}).output
    assert summary["task"]["key"] in shown and "1 first time" in shown
    (home / "gateway" / "gateway.yaml").write_text("retension: 3d\n")
    failed = runner.invoke(app, ["tasks"])
    assert failed.exit_code and "retension" in str(failed.exception)


def test_the_store_survives_a_removed_file(enum: Running) -> None:
    send(enum, *[chat()] * 2)
    enum.rows()
    with sqlite3.connect(store_path()) as connection:
        connection.execute("drop table captures")
    send(enum, *[chat()] * 3)
    time.sleep(1.5)
    assert httpx.post(enum.url + CHAT, json=chat()).status_code == 200


def test_a_request_that_two_readers_may_understand_differently_is_not_recorded(enum: Running) -> None:
    body = json.dumps(chat("what the upstream may read")).encode()
    twice = body[:-1] + b', "messages": ' + json.dumps(chat("what we read")["messages"]).encode() + b"}"
    for _ in range(3):
        httpx.post(enum.url + CHAT, content=twice, headers={"content-type": "application/json"})
    assert enum.rows() == [] and len(enum.upstream.requests) == 3


@pytest.mark.parametrize("field", ["api_key", "extra_headers", "azure_ad_token_auth", "aws_secret_access_key"])
def test_a_credential_in_the_body_is_not_recorded(enum: Running, home: Path, field: str) -> None:
    send(enum, *[chat(**{field: CANARY})] * 3)
    assert enum.rows() == []
    assert not any(CANARY.encode() in file.read_bytes() for file in home.rglob("*") if file.is_file())


def test_a_credential_that_is_written_with_escapes_is_found(enum: Running) -> None:
    key = "sk-part/one/two"
    body = json.dumps(chat(f"My key is {key}")).replace("/", "\\/").encode()
    assert key.encode() not in body
    headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
    for _ in range(3):
        httpx.post(enum.url + CHAT, content=body, headers=headers)
    assert enum.rows() == []


def test_an_answer_that_cannot_be_stored_takes_no_other_with_it(enum: Running) -> None:
    send(enum, chat("first"), chat("second"))
    usual = enum.upstream.answer
    enum.upstream.answer = whole(
        {
            "id": "x",
            "model": "m-1",
            "choices": [{"index": 0, "message": {"content": '{"intent": "move"}'}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 2**70, "completion_tokens": 1},
        }
    )
    send(enum, chat("third"))
    enum.upstream.answer = usual
    send(enum, chat("fourth"))
    assert [row["observation"] for row in enum.rows()] == ["second", "fourth"]


def test_made_up_references_are_not_kept(running: Running) -> None:
    for number in range(20):
        running.door.records.refer(f"resp_sh{number:016x}" + "0" * 24)
    running.door.records.refer("x" * 10_000)
    assert running.door.records.referred == frozenset() and not running.door.records.waiting


def test_labels_are_not_counted_again_at_every_record(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = []
    monkeypatch.setattr(GatewayStore, "label_counts", lambda *_: counted.append(0) or (2, 100, 100))
    running.upstream.answer = label_completion("move")
    body = chat() | {"max_tokens": 5}
    del body["response_format"]
    send(running, *[body] * 15)
    assert len(running.rows()) == 14 and len(counted) == 1


def test_records_that_are_lost_at_the_end_are_reported(
    behind: Upstream, home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (home / "gateway" / "captures.sqlite").mkdir(parents=True)
    monkeypatch.setattr(captures_module, "_BATCH", 1)
    monkeypatch.setattr(captures_module, "_GATHER_SECONDS", 0.0)
    with open_door(behind) as running:
        log = running.door.records
        time.sleep(0.2)
        with log._lock:  # the thread cannot take any before all are there
            body = json.dumps(chat()).encode()
            for number in range(5):
                caller = running.door._access.read([], b"")
                exchange = captures_module.Exchange(PROTOCOLS[CHAT], str(number), 1, caller, body)
                log._queue.append(exchange)
                log._size += exchange.bytes
        assert log.close(5)
    lost = [record.message for record in caplog.records if "are lost" in record.message]
    assert len(lost) == 1
