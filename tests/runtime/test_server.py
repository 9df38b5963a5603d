"""The application in process: every documented answer, and nothing acknowledged that is not in the spool."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import json
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from stillhouse import config
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.events import Decided, Outcomes, decode
from stillhouse.knowledge.spool import SpoolFile, spool_folder
from stillhouse.runtime.agent import Agent
from stillhouse.runtime.archive import pack
from stillhouse.runtime.champions import Champions, Pointer
from stillhouse.runtime.http import Guard, RequestLimits
from stillhouse.runtime.metrics import Counts, Metrics
from stillhouse.runtime.server import ARROW, Server
from stillhouse.variant import Variant
from stillhouse.verifying import digests, read_files
from tests.registry.conftest import AGENT_FILE, signed_folder, variant_folder

ROW = {"wind": 3.0, "hour": 7, "origin": "EWR"}
DECISIONS = "/v1/agents/flights/decisions"
OUTCOMES = "/v1/agents/flights/outcomes"
KNOWLEDGE = "/v1/agents/flights/knowledge"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("STILLHOUSE_AGENTS", str(tmp_path / "agents"))
    (tmp_path / "agents").mkdir()
    write_agent(tmp_path, "flights")
    put_champion("flights", 1)
    return tmp_path / "home"


def write_agent(folder: Path, name: str, more: str = "") -> None:
    text = AGENT_FILE.replace("agent: flights", f"agent: {name}") + more
    (folder / "agents" / f"{name}.yaml").write_text(text, encoding="utf-8")


def put_champion(agent: str, version: int) -> Path:
    """The copy that lies on a machine's disk once a champion was fetched."""
    settings = config.load(agent)
    champions = Champions(settings)
    folder = variant_folder(champions.folder / f"variant-{version}-test", "fp32", seed=version)
    signature, release = signed_folder(folder, agent, version)
    pointer = Pointer(
        version=f"{agent}@{version}",
        uri=f"models:/m-{version}",
        run_id=None,
        folder=folder.name,
        signature=signature,
        release=release,
        release_number=version,
        promoted_at=None,
        knowledge_base=KnowledgeBase(settings).tables.identity(),
    )
    champions.file.write_text(pointer.model_dump_json(), encoding="utf-8")
    return folder


@contextlib.asynccontextmanager
async def serving(*agents: str, base_url: str = "http://127.0.0.1:8000", **options: Any) -> AsyncIterator[Any]:
    """A client of a server in this process."""
    made = [Agent(name, follow=False, flush=False) for name in agents or ("flights",)]
    server = Server(made, **options)
    inbox, outbox = asyncio.Queue[Any](), asyncio.Queue[Any]()
    await inbox.put({"type": "lifespan.startup"})
    life = asyncio.create_task(server({"type": "lifespan", "asgi": {}, "state": {}}, inbox.get, outbox.put))
    assert (await outbox.get())["type"] == "lifespan.startup.complete"
    try:
        transport = httpx.ASGITransport(server, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
            client.server, client.agents = server, made  # type: ignore[attr-defined]
            yield client
    finally:
        await inbox.put({"type": "lifespan.shutdown"})
        await life
        for agent in made:
            agent.close()


def served(test: Callable[[Any], Awaitable[None]], *agents: str, **options: Any) -> None:
    async def run() -> None:
        async with serving(*agents, **options) as client:
            await test(client)

    asyncio.run(run())


def recorded(agent: str = "flights") -> list[Any]:
    """The events of all spools."""
    return [
        decode(entry.body) for path in spool_folder(agent).glob("*.sqlite") for entry in SpoolFile(path).read(0, 10**6)
    ]


def error_of(response: httpx.Response) -> tuple[int, str]:
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"code", "message"} and body["error"]["message"]
    return response.status_code, body["error"]["code"]


# --------------------------------------------------------------------------- decisions


def test_a_decision_is_the_champions_and_recorded_when_it_is_answered() -> None:
    async def test(client: Any) -> None:
        response = await client.post(DECISIONS, json={"observation": ROW})
        assert response.status_code == 200
        decision = response.json()
        expected = Variant(put_champion("flights", 7)).actions
        assert decision["action"] in expected
        assert decision["version"] == "flights@1" and decision["decider"] == "student"
        assert "probabilities" not in decision
        (event,) = recorded()
        assert isinstance(event, Decided)
        assert event.decision_ids == [decision["decision_id"]]
        assert event.values == [[3.0, 7.0, "EWR"]]

    served(test)


def test_many_observations_give_as_many_decisions_in_their_order() -> None:
    rows = [{**ROW, "wind": float(i)} for i in range(5)] + [{"wind": None, "hour": None, "origin": None}]
    folder = Champions(config.load("flights")).folder / "variant-1-test"
    frame = pd.DataFrame(rows).astype({"wind": float, "hour": float})
    expected = Variant(folder).predict_proba(frame)

    async def test(client: Any) -> None:
        response = await client.post(f"{DECISIONS}?probabilities=true", json={"observations": rows})
        given = response.json()["decisions"]
        found = [[each["probabilities"][action] for action in ("on_time", "late")] for each in given]
        assert np.allclose(found, expected, atol=1e-7)
        assert [each["confidence"] for each in given] == pytest.approx(expected.max(axis=1).tolist())
        assert len({each["decision_id"] for each in given}) == 6

    served(test)


def test_requests_at_once_share_a_commit_and_each_gets_its_own() -> None:
    async def test(client: Any) -> None:
        commits = 0
        put = client.agents[0].spool.put

        def counting(*events: Any) -> None:
            nonlocal commits
            commits += 1
            put(*events)

        client.agents[0].spool.put = counting
        asked = [client.post(DECISIONS, json={"observation": {**ROW, "observation_id": f"o{i}"}}) for i in range(40)]
        answers = [response.json() for response in await asyncio.gather(*asked)]
        assert [answer["observation_id"] for answer in answers] == [f"o{i}" for i in range(40)]
        assert commits < 40
        there = {decision_id for event in recorded() for decision_id in event.decision_ids}
        assert there == {answer["decision_id"] for answer in answers}

    served(test)


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ({"observation": {**ROW, "wind": "3"}}, "$.observation.wind"),
        ({"observation": {**ROW, "wind": [1]}}, "the list [1] is no number - at `$.observation.wind`"),
        ({"observation": {"wind": 1.0, "hour": 1}}, "origin"),
        ({"observation": {**ROW, "winds": 1}}, "winds"),
        ({"observations": [ROW, {**ROW, "origin": {"a": 4}}]}, " - at `$.observations[1].origin`"),
        ({"observation": {**ROW, "origin": 2.0**60}}, "from 2^53 on"),
        ({"observation": {**ROW, "origin": 4, "observed_at": "soon"}}, "$.observation.observed_at"),
        ({"observation": {**ROW, "observation_id": ""}}, "$.observation.observation_id"),
        ({"observation": {**ROW, "observation_id": "x" * 201}}, "$.observation.observation_id"),
        ({"observation": {**ROW, "observed_at": "2026-01-01T00:00:00"}}, "$.observation.observed_at"),
        ({"observation": {**ROW, "observed_at": "2999-01-01T00:00:00Z"}}, "more than an hour"),
        ({"observation": {**ROW, "wind": 1e39}}, "infinite"),
        ({"observations": []}, "empty"),
        ({"observation": ROW, "observations": [ROW]}, "either"),
        ({}, "either"),
        ([ROW], "object"),
    ],
)
def test_what_breaks_the_contract_is_refused_with_its_place(body: Any, place: str) -> None:
    async def test(client: Any) -> None:
        response = await client.post(DECISIONS, json=body)
        assert error_of(response) == (422, "invalid")
        assert place in response.json()["error"]["message"]
        assert recorded() == []

    served(test)


def test_numbers_and_truth_values_are_written_as_everywhere() -> None:
    async def test(client: Any) -> None:
        given = [(4, 5), (4.0, 2**60 + 1), (True, True), ("4.0", "007")]
        rows = [{**ROW, "wind": True, "origin": origin, "observation_id": name} for origin, name in given]
        found = (await client.post(DECISIONS, json={"observations": rows})).json()["decisions"]
        one = (await client.post(DECISIONS, json={"observation": rows[0]})).json()
        assert [each["observation_id"] for each in found] == ["5", str(2**60 + 1), "true", "007"]
        several, single = recorded()
        assert [row[2] for row in several.values] == ["4", "4", "true", "4.0"] and several.values[0][0] == 1.0
        assert single.values == several.values[:1] and one["observation_id"] == "5"
        wrong = await client.post(OUTCOMES, json={"decision_id": one["decision_id"], "action": 1})
        assert error_of(wrong) == (422, "invalid") and "no action '1'" in wrong.json()["error"]["message"]

    served(test)


def test_nan_is_named_as_what_it_is() -> None:
    async def test(client: Any) -> None:
        response = await client.post(DECISIONS, content=b'{"observation": {"wind": NaN}}', headers=JSON)
        assert error_of(response) == (400, "malformed_json")
        assert "holds NaN, which is no JSON: write null" in response.json()["error"]["message"]

    served(test)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"observation": {"wind": NaN}}',
        b'{"observation": {"wind": Infinity}}',
        b"\xff\xfe",
        b"[" * 9999,
        b'{"observation":{"origin":"\\ud800","wind":1,"hour":1}}',
    ],
)
def test_what_is_no_json_is_refused(body: bytes) -> None:
    async def test(client: Any) -> None:
        response = await client.post(DECISIONS, content=body, headers={"content-type": "application/json"})
        assert error_of(response)[0] in (400, 422)
        assert recorded() == []

    served(test)


def test_limits_of_a_request() -> None:
    async def test(client: Any) -> None:
        huge = json.dumps({"observation": {**ROW, "origin": "x" * 5000}}).encode()
        assert error_of(await client.post(DECISIONS, content=huge, headers=JSON)) == (413, "body_too_large")

        async def drops() -> AsyncIterator[bytes]:
            for i in range(0, len(huge), 100):
                yield huge[i : i + 100]

        assert error_of(await client.post(DECISIONS, content=drops(), headers=JSON)) == (413, "body_too_large")
        many = await client.post(DECISIONS, json={"observations": [ROW] * 4})
        assert error_of(many) == (413, "too_many_rows")
        assert recorded() == []

    served(test, limits=RequestLimits(max_body=2000, max_rows=3))


JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "headers",
    [
        {"content-type": "text/plain"},
        {"content-type": "application/json; charset=latin-1"},
        {"content-type": ""},
        {**JSON, "content-encoding": "gzip"},
    ],
)
def test_other_media_types_are_refused(headers: dict[str, str]) -> None:
    async def test(client: Any) -> None:
        response = await client.post(DECISIONS, content=json.dumps({"observation": ROW}), headers=headers)
        assert error_of(response) == (415, "unsupported_media_type")

    served(test)


def test_wrong_addresses_and_methods() -> None:
    async def test(client: Any) -> None:
        unknown = await client.post("/v1/agents/trains/decisions", json={"observation": ROW})
        assert error_of(unknown) == (404, "unknown_agent") and "flights" in unknown.text
        wrong = await client.get(DECISIONS)
        assert error_of(wrong) == (405, "method_not_allowed") and wrong.headers["allow"] == "POST"
        assert error_of(await client.get("/nothing/here")) == (404, "not_found")
        assert error_of(await client.post(f"{DECISIONS}?probabilities=2", json={"observation": ROW})) == (
            422,
            "invalid",
        )
        twice = await client.post(f"{DECISIONS}?probabilities=true&probabilities=false", json={"observation": ROW})
        assert error_of(twice) == (400, "malformed_query")

    served(test)


def test_without_a_champion_it_says_when_to_come_again(tmp_path: Path) -> None:
    write_agent(tmp_path, "young")

    async def test(client: Any) -> None:
        response = await client.post("/v1/agents/young/decisions", json={"observation": ROW})
        assert error_of(response) == (503, "no_champion") and int(response.headers["retry-after"]) >= 1
        assert error_of(await client.get("/v1/agents/young/model")) == (503, "no_champion")
        health = await client.get("/healthz")
        assert (health.status_code, health.json()["alive"], health.json()["agents"]) == (503, True, {"young": False})
        assert (await client.get("/ping")).status_code == 404

    served(test, "young")


def test_a_full_spool_is_told_and_nothing_is_dropped_silently(tmp_path: Path) -> None:
    write_agent(tmp_path, "flights", "runtime: {max_spool_rows: 1000}\n")

    async def test(client: Any) -> None:
        fill = await client.post(DECISIONS, json={"observations": [ROW] * 1000})
        assert fill.status_code == 200
        response = await client.post(DECISIONS, json={"observation": ROW})
        assert error_of(response) == (503, "spool_full") and int(response.headers["retry-after"]) >= 1
        assert sum(event.rows for event in recorded()) == 1000

    served(test)


def test_too_many_requests_at_once_are_sent_away() -> None:
    async def test(client: Any) -> None:
        asked = [client.post(DECISIONS, json={"observation": ROW}) for _ in range(20)]
        answers = await asyncio.gather(*asked)
        away = [answer for answer in answers if answer.status_code != 200]
        assert away and all(error_of(answer) == (503, "busy") and answer.headers["retry-after"] for answer in away)
        assert sum(event.rows for event in recorded()) == len(answers) - len(away)

    served(test, limits=RequestLimits(max_waiting=4))


def test_a_new_champion_is_taken_up_while_serving() -> None:
    async def test(client: Any) -> None:
        first = (await client.post(DECISIONS, json={"observation": ROW})).json()
        put_champion("flights", 2)
        for _ in range(100):
            now = (await client.post(DECISIONS, json={"observation": ROW})).json()
            if now["version"] != first["version"]:
                break
            await asyncio.sleep(0.1)
        assert now["version"] == "flights@2"

    served(test)


# --------------------------------------------------------------------------- outcomes


def test_outcomes_are_recorded_late_and_again() -> None:
    async def test(client: Any) -> None:
        decision = (await client.post(DECISIONS, json={"observation": ROW})).json()["decision_id"]
        known = "2026-01-01T00:00:00Z"
        one = await client.post(OUTCOMES, json={"decision_id": decision, "action": "late", "known_at": known})
        assert (one.status_code, one.json()) == (200, {"recorded": 1})
        again = {"decision_id": decision, "action": "on_time"}
        many = await client.post(OUTCOMES, json={"outcomes": [again, again]})
        assert many.json() == {"recorded": 2}
        outcomes = [event for event in recorded() if isinstance(event, Outcomes)]
        assert [event.actions for event in outcomes] == [["late"], ["on_time", "on_time"]]
        assert outcomes[0].known_at == [int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1e6)]

    served(test)


def test_outcomes_are_all_or_nothing() -> None:
    async def test(client: Any) -> None:
        decision = (await client.post(DECISIONS, json={"observation": ROW})).json()["decision_id"]
        good = {"decision_id": decision, "action": "late"}
        ahead = (datetime.now(UTC) + timedelta(days=1)).isoformat()
        for bad, status, code in (
            ({"decision_id": decision[:-1] + "~", "action": "late"}, 404, "unknown_decision"),
            ({"decision_id": "", "action": "late"}, 404, "unknown_decision"),
            ({"decision_id": decision, "action": "never"}, 422, "invalid"),
            ({"decision_id": decision, "action": "late", "known_at": ahead}, 422, "invalid"),
            ({"decision_id": decision, "action": "late", "known_at": "2026-01-01T00:00:00"}, 422, "invalid"),
            ({"decision_id": decision}, 422, "invalid"),
        ):
            response = await client.post(OUTCOMES, json={"outcomes": [good, bad]})
            assert error_of(response) == (status, code)
            assert "1" in response.json()["error"]["message"]
        both = await client.post(OUTCOMES, json={**good, "outcomes": [good]})
        assert error_of(both) == (422, "invalid")
        assert error_of(await client.post(OUTCOMES, json={"outcomes": []})) == (422, "invalid")
        assert not any(isinstance(event, Outcomes) for event in recorded())

    served(test)


# --------------------------------------------------------------------------- the model and the knowledge


def test_the_model_is_an_archive_that_a_device_need_not_pull_twice(tmp_path: Path) -> None:
    async def test(client: Any) -> None:
        address = "/v1/agents/flights/model"
        response = await client.get(address)
        digest = hashlib.sha256(response.content).digest()
        assert response.headers["etag"] == f'"{digest.hex()}"'
        assert response.headers["content-digest"] == f"sha-256=:{base64.b64encode(digest).decode()}:"
        with tarfile.open(fileobj=io.BytesIO(response.content)) as archive:
            assert archive.getnames() == ["manifest.json", "model.onnx", "signature.json", "values.py", "variant.py"]
            archive.extractall(tmp_path / "device", filter="data")
        frame = pd.DataFrame([ROW])
        here = Variant(Champions(config.load("flights")).folder / "variant-1-test").predict(frame)
        assert Variant(tmp_path / "device").predict(frame).equals(here)
        for tag in (response.headers["etag"], f"W/{response.headers['etag']}", f'"x", {response.headers["etag"]}', "*"):
            same = await client.get(address, headers={"if-none-match": tag})
            assert (same.status_code, same.content) == (304, b"") and same.headers["etag"]
        assert (await client.get(address, headers={"if-none-match": '"x"'})).status_code == 200
        assert (await client.get(f"{address}?version=1")).status_code == 200
        assert error_of(await client.get(f"{address}?version=3")) == (404, "unknown_version")
        head = await client.head(address)
        assert head.headers["etag"] == response.headers["etag"]

    served(test)


def test_the_archive_is_the_same_bytes_whenever_it_is_packed(tmp_path: Path) -> None:
    one = variant_folder(tmp_path / "one", "fp32", seed=1)
    two = variant_folder(tmp_path / "two", "fp32", seed=1)
    (two / "model.onnx").touch()
    packed = [pack(read_files(each, digests(each)), "flights@1").content for each in (one, two)]
    assert packed[0] == packed[1]


def teach(rows: int, teacher: str) -> list[str]:
    base = KnowledgeBase(config.load("flights"))
    keys = [hashlib.sha256(f"{teacher}{i}".encode()).hexdigest()[:32] for i in range(rows)]
    asked = pd.DataFrame({"content_key": keys, "observed_at": pd.Timestamp("2013-01-01", tz="UTC")})
    said = np.column_stack([np.linspace(0, 1, rows), np.linspace(1, 0, rows)])
    base.answers.append(asked, said, teacher=teacher)
    return keys


def test_knowledge_goes_out_page_by_page_each_answer_once() -> None:
    before = datetime.now(UTC)
    first = teach(7, "one")
    between = datetime.now(UTC)
    second = teach(5, "two")

    async def test(client: Any) -> None:
        found, address = [], f"{KNOWLEDGE}?limit=4&since={before.isoformat().replace('+', '%2B')}"
        while address:
            response = await client.get(address)
            assert response.headers["content-type"] == "application/x-ndjson"
            found += [json.loads(line) for line in response.text.splitlines()]
            address = response.links["next"]["url"] if "next" in response.links else ""
        assert [row["content_key"] for row in found] == sorted(first) + sorted(second)
        assert set(found[0]) == {"content_key", "observed_at", "teacher", "asked_at", "probabilities"}
        said = {row["content_key"]: row["probabilities"] for row in found}
        assert said[first[0]] == {"on_time": 0.0, "late": 1.0}
        later = await client.get(KNOWLEDGE, params={"since": between.isoformat()})
        assert {json.loads(line)["teacher"] for line in later.text.splitlines()} == {"two"}
        arrow = await client.get(KNOWLEDGE, headers={"accept": ARROW})
        table = pa.ipc.open_stream(arrow.content).read_all()
        assert table.to_pylist()[0]["probabilities"] == said[sorted(first)[0]]
        assert table.num_rows == 12

    served(test)


def test_knowledge_is_empty_where_nobody_was_asked_and_mistakes_are_told() -> None:
    async def test(client: Any) -> None:
        assert (await client.get(KNOWLEDGE)).text == ""
        for query in ("since=yesterday", "since=2026-01-01T00:00:00", "limit=0", "limit=x", "limit=99999999"):
            assert error_of(await client.get(f"{KNOWLEDGE}?{query}")) == (422, "invalid")
        for cursor in ("", "!", "MTIz", "é"):
            assert error_of(await client.get(KNOWLEDGE, params={"after": cursor})) == (404, "unknown_page")

    served(test)


# --------------------------------------------------------------------------- MLflow's protocol


ROWS = [ROW, {"wind": None, "hour": 23, "origin": "LGA"}]


@pytest.mark.parametrize(
    "body",
    [
        {"dataframe_split": {"columns": ["hour", "wind", "origin"], "data": [[7, 3.0, "EWR"], [23, None, "LGA"]]}},
        {
            "dataframe_split": {
                "index": [5, 6],
                "columns": ["tail", "hour", "wind", "origin"],
                "data": [["N1", 7, 3.0, "EWR"], ["N2", 23, None, "LGA"]],
            }
        },
        {"dataframe_records": ROWS},
        {"dataframe_records": [{**ROW, "wind": "3"}, {"hour": 23, "origin": "LGA"}]},
        {"instances": ROWS},
        {"inputs": {"wind": [3.0, None], "hour": [7, 23], "origin": ["EWR", "LGA"]}, "params": {}},
    ],
)
def test_invocations_answer_as_the_model_behind_mlflow_does(body: Any) -> None:
    folder = Champions(config.load("flights")).folder / "variant-1-test"
    expected = json.loads(Variant(folder).predict(pd.DataFrame(ROWS)).to_json(orient="records", double_precision=15))

    async def test(client: Any) -> None:
        response = await client.post("/invocations?decision_ids=true", json=body)
        found = response.json()
        assert set(found) == {"predictions", "decision_ids"}
        for given, wanted in zip(found["predictions"], expected, strict=True):
            assert given == pytest.approx(wanted, abs=1e-6)
        assert [event.decision_ids for event in recorded()] == [found["decision_ids"]]
        assert set((await client.post("/invocations", json=body)).json()) == {"predictions"}

    served(test)


def test_invocations_take_csv_as_pandas_writes_it() -> None:
    async def test(client: Any) -> None:
        text = pd.DataFrame(ROWS).to_csv(index=False)
        response = await client.post("/invocations", content=text, headers={"content-type": "text/csv; charset=utf-8"})
        assert len(response.json()["predictions"]) == 2
        (event,) = recorded()
        assert event.values == [[3.0, 7.0, "EWR"], [None, 23.0, "LGA"]]

    served(test)


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"{", "application/json"),
        (b"{}", "application/json"),
        (b'{"dataframe_records": []}', "application/json"),
        (b'{"dataframe_records": [{"wind": "x", "hour": 1, "origin": "EWR"}]}', "application/json"),
        (b'{"dataframe_records": [{"hour": 1}]}', "application/json"),
        (b'{"dataframe_split": {"columns": ["wind"], "data": [[1, 2]]}}', "application/json"),
        (b'{"inputs": {"wind": [1], "hour": [1, 2], "origin": ["EWR"]}}', "application/json"),
        (b'{"instances": [], "inputs": []}', "application/json"),
        (b'{"instances": [1]}', "application/json"),
        (b'{"dataframe_records": [{"wind": [1], "hour": 1, "origin": "EWR"}]}', "application/json"),
        (b'{"dataframe_records": [{"wind": 1, "hour": 1, "origin": "E", "observed_at": "soon"}]}', "application/json"),
        (b"", "text/csv"),
        (b"wind\n1\n", "text/csv"),
        (b"\xff\xfe\n1", "text/csv"),
        (b"wind,hour,origin\n", "text/csv"),
        (b'{"dataframe_records": [{"wind": 1e999, "hour": 1, "origin": "E"}]}', "application/json"),
    ],
)
def test_invocations_that_cannot_be_read_are_a_bad_request(body: bytes, kind: str) -> None:
    async def test(client: Any) -> None:
        response = await client.post("/invocations", content=body, headers={"content-type": kind})
        assert error_of(response)[0] == 400
        assert recorded() == []

    served(test)


def test_with_several_agents_invocations_say_which(tmp_path: Path) -> None:
    write_agent(tmp_path, "trains")
    put_champion("trains", 4)

    async def test(client: Any) -> None:
        body = {"dataframe_records": ROWS}
        unclear = await client.post("/invocations", json=body)
        assert error_of(unclear) == (400, "which_agent") and "trains" in unclear.text
        assert (await client.post("/invocations?agent=trains", json=body)).status_code == 200
        assert (await client.post("/invocations", json=body, headers={"stillhouse-agent": "trains"})).status_code == 200
        assert error_of(await client.post("/invocations?agent=x", json=body)) == (404, "unknown_agent")
        assert len(recorded("trains")) == 2 and recorded("flights") == []
        assert (await client.get("/v1/agents")).json() == {"agents": ["flights", "trains"]}

    served(test, "flights", "trains")


# --------------------------------------------------------------------------- who may ask


def test_a_token_is_needed_where_there_are_tokens() -> None:
    async def test(client: Any) -> None:
        for path in ("/healthz", "/ping"):
            assert (await client.get(path)).status_code == 200
        for headers in (
            {},
            {"authorization": "Bearer wrong"},
            {"authorization": "Basic c2VjcmV0"},
            {"authorization": "secret"},
        ):
            for path in ("/metrics", "/openapi.json", "/v1/agents/flights/model", "/version", "/v1/agents/nobody"):
                response = await client.get(path, headers=headers)
                assert error_of(response) == (401, "unauthorised")
                assert response.headers["www-authenticate"].startswith("Bearer")
            response = await client.post(DECISIONS, json={"observation": ROW}, headers=headers)
            assert error_of(response) == (401, "unauthorised")
        assert recorded() == []
        for token in ("secret", "other"):
            headers = {"authorization": f"Bearer {token}"}
            assert (await client.post(DECISIONS, json={"observation": ROW}, headers=headers)).status_code == 200

    served(test, guard=Guard(["secret", "other"]))


def test_another_host_name_is_refused_on_loopback() -> None:
    guard = Guard(hosts=["localhost", "127.0.0.1", "[::1]"])

    async def fine(client: Any) -> None:
        for host in ("127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "[::1]"):
            assert (await client.get("/healthz", headers={"host": host})).status_code == 200
        for host in ("evil.example", "127.0.0.1.evil.example:8000", ""):
            assert error_of(await client.get("/healthz", headers={"host": host})) == (400, "wrong_host")

    served(fine, guard=guard)


# --------------------------------------------------------------------------- status, metrics, description


def test_the_status_says_who_decides_and_what_waits() -> None:
    async def test(client: Any) -> None:
        await client.post(DECISIONS, json={"observations": [ROW] * 3})
        status = (await client.get("/v1/agents/flights")).json()
        assert (status["champion"], status["spool_rows"], status["decisions"]) == ("flights@1", 3, {"student": 3})

    served(test)


def test_metrics_count_all_workers_and_those_that_died(tmp_path: Path) -> None:
    (tmp_path / "counts").mkdir()
    other = Metrics(tmp_path / "counts", "1-1")
    other.counts.add("decisions", ("flights", "student", "flights@1"), 40)
    other.counts.observe("confidence", ("flights", "student"), [0.51, 1.0])
    other.save()

    async def test(client: Any) -> None:
        await client.post(DECISIONS, json={"observations": [ROW] * 2})
        await client.get(DECISIONS)
        response = await client.get("/metrics")
        lines = dict(line.rsplit(" ", 1) for line in response.text.splitlines() if not line.startswith("#"))
        assert lines['stillhouse_decisions_total{agent="flights",decider="student",version="flights@1"}'] == "42.0"
        assert lines['stillhouse_confidence_count{agent="flights",decider="student"}'] == "4.0"
        assert lines['stillhouse_confidence_bucket{agent="flights",decider="student",le="+Inf"}'] == "4.0"
        assert lines['stillhouse_requests_total{endpoint="decisions",status="200"}'] == "1.0"
        assert lines['stillhouse_requests_total{endpoint="decisions",status="405"}'] == "1.0"
        assert lines['stillhouse_spool_rows{agent="flights"}'] == "2.0"
        assert lines['stillhouse_champion_info{agent="flights",version="flights@1"}'] == "1.0"
        assert lines['stillhouse_ready{agent="flights"}'] == "1.0"

    served(test, metrics=Metrics(tmp_path / "counts", "0-1"))


def test_a_histogram_has_each_value_in_its_bucket() -> None:
    counts = Counts()
    counts.observe("request_seconds", ("x",), [0.0005, 0.0006, 99.0])
    kept = counts.histograms["request_seconds"][("x",)]
    assert kept[:3] == [1, 1, 0] and kept[-2] == 1 and kept[-1] == pytest.approx(99.0011)
    twice = Counts()
    twice.include(counts)
    twice.include(counts)
    assert twice.histograms["request_seconds"][("x",)] == [2 * value for value in kept]


def test_the_description_names_every_route_and_the_agents_columns() -> None:
    async def test(client: Any) -> None:
        described = (await client.get("/openapi.json")).json()
        assert described["openapi"].startswith("3.1")
        routes = {route.path.replace("{agent}", "flights") for route in client.server._slow.routes}
        assert set(described["paths"]) == routes
        row = described["components"]["schemas"]["flights.Observation"]
        assert row["required"] == ["wind", "hour", "origin"]
        assert row["properties"]["wind"]["type"] == ["number", "boolean", "null"]
        assert row["properties"]["origin"]["type"] == ["string", "number", "boolean", "null"]

    served(test)
