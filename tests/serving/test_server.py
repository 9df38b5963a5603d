"""The ASGI application in process: every documented response, and acknowledged events are in the spool."""

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
import yaml

from stillhouse import config
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.events import Decided, Offered, Outcomes, decode
from stillhouse.knowledge.spool import SpoolFile, spool_folder
from stillhouse.runtime.agent import Agent
from stillhouse.runtime.champions import Champions, Pointer
from stillhouse.serving.archive import pack
from stillhouse.serving.http import AccessGuard, RequestLimits
from stillhouse.serving.metrics import Counts, Metrics
from stillhouse.serving.server import ARROW, Server
from stillhouse.variant import Variant
from stillhouse.verifying import digests, read_files
from tests.agents import SMALL_AGENT, agent_sections
from tests.registry.conftest import AGENT_FILE, signed_folder, variant_folder

ROW = {"wind": 3.0, "hour": 7, "origin": "EWR"}
DECISIONS = "/v1/agents/flights/decisions"
RANKINGS = "/v1/agents/flights/rankings"
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
    """Write a local copy as if this champion had been fetched."""
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
async def running_server(*agents: str, base_url: str = "http://127.0.0.1:8000", **options: Any) -> AsyncIterator[Any]:
    """A client of a server in this process."""
    made_agents = [Agent(name, follow=False, flush=False) for name in agents or ("flights",)]
    server = Server(made_agents, **options)
    inbox, outbox = asyncio.Queue[Any](), asyncio.Queue[Any]()
    await inbox.put({"type": "lifespan.startup"})
    lifespan = asyncio.create_task(server({"type": "lifespan", "asgi": {}, "state": {}}, inbox.get, outbox.put))
    assert (await outbox.get())["type"] == "lifespan.startup.complete"
    try:
        transport = httpx.ASGITransport(server, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url=base_url) as client:
            client.server, client.agents = server, made_agents  # type: ignore[attr-defined]
            yield client
    finally:
        await inbox.put({"type": "lifespan.shutdown"})
        await lifespan
        for agent in made_agents:
            agent.close()


def run_with_server(test: Callable[[Any], Awaitable[None]], *agents: str, **options: Any) -> None:
    async def run() -> None:
        async with running_server(*agents, **options) as client:
            await test(client)

    asyncio.run(run())


def spool_events(agent: str = "flights") -> list[Any]:
    """The events in all spools of the agent."""
    return [
        decode(entry.body) for path in spool_folder(agent).glob("*.sqlite") for entry in SpoolFile(path).read(0, 10**6)
    ]


def error_of(response: httpx.Response) -> tuple[int, str]:
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"code", "message"} and body["error"]["message"]
    return response.status_code, body["error"]["code"]


# --------------------------------------------------------------------------- decisions


def test_a_decision_is_recorded_before_it_is_answered() -> None:
    async def test(client: Any) -> None:
        response = await client.post(DECISIONS, json={"observation": ROW})
        assert response.status_code == 200
        decision = response.json()
        actions = Variant(put_champion("flights", 7)).actions
        assert decision["action"] in actions
        assert decision["version"] == "flights@1" and decision["decider"] == "student"
        assert "probabilities" not in decision
        (event,) = spool_events()
        assert isinstance(event, Decided)
        assert event.decision_ids == [decision["decision_id"]]
        assert event.values == [[3.0, 7.0, "EWR"]]

    run_with_server(test)


def test_several_observations_are_decided_in_order() -> None:
    rows = [{**ROW, "wind": float(i)} for i in range(5)] + [{"wind": None, "hour": None, "origin": None}]
    folder = Champions(config.load("flights")).folder / "variant-1-test"
    frame = pd.DataFrame(rows).astype({"wind": float, "hour": float})
    expected = Variant(folder).predict_proba(frame)

    async def test(client: Any) -> None:
        response = await client.post(f"{DECISIONS}?probabilities=true", json={"observations": rows})
        decisions = response.json()["decisions"]
        probs = [[decision["probabilities"][action] for action in ("on_time", "late")] for decision in decisions]
        assert np.allclose(probs, expected, atol=1e-7)
        assert [decision["confidence"] for decision in decisions] == pytest.approx(expected.max(axis=1).tolist())
        assert len({decision["decision_id"] for decision in decisions}) == 6

    run_with_server(test)


def test_the_best_candidates_are_shown_and_all_of_them_recorded() -> None:
    rows = [{**ROW, "wind": float(i), "observation_id": f"c{i}"} for i in range(30)]
    probs = Variant(Champions(config.load("flights")).folder / "variant-1-test").predict_proba(pd.DataFrame(rows))
    order = np.argsort(-probs[:, 1], kind="stable")[:4]

    async def test(client: Any) -> None:
        ranking = (await client.post(RANKINGS, json={"candidates": rows, "top": 4})).json()
        assert [one["observation_id"] for one in ranking["decisions"]] == [f"c{index}" for index in order]
        assert [one["probability"] for one in ranking["decisions"]] == pytest.approx(probs[order, 1].tolist())
        assert (ranking["action"], ranking["offered"]) == ("late", 30) and "probabilities" not in ranking["decisions"][
            0
        ]
        decided, offered = spool_events()
        assert isinstance(decided, Decided) and isinstance(offered, Offered)
        assert decided.decision_ids == [one["decision_id"] for one in ranking["decisions"]]
        assert offered.ranking_id == ranking["ranking_id"] and offered.rows == 30
        assert [offered.positions[index] for index in order] == [1, 2, 3, 4]
        metrics = (await client.get("/metrics")).text
        for line in ('rankings_total{agent="flights"} 1.0', 'offered_total{agent="flights"} 30.0'):
            assert f"stillhouse_{line}" in metrics
        assert 'endpoint="rankings",status="200"' in metrics
        body = {"candidates": [{**ROW, "origin": 4}], "action": "on_time"}
        other = (await client.post(f"{RANKINGS}?probabilities=true", json=body)).json()
        assert other["action"] == "on_time" and set(other["decisions"][0]["probabilities"]) == {"on_time", "late"}
        outcome = {"decision_id": ranking["decisions"][0]["decision_id"], "action": "late"}
        assert (await client.post(OUTCOMES, json=outcome)).json() == {"recorded": 1}

    run_with_server(test)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"candidates": []}, "empty"),
        ({"candidates": ROW}, "$.candidates"),
        ({"observations": [ROW]}, "observations"),
        ({"candidates": [ROW, {**ROW, "wind": "3"}]}, "$.candidates[1].wind"),
        ({"candidates": [ROW], "top": 0}, "$.top"),
        ({"candidates": [ROW], "top": 1.5}, "$.top"),
        ({"candidates": [ROW], "action": "early"}, "no action 'early'"),
        ({"candidates": [{**ROW, "observation_id": "x"}] * 2}, "candidates 0 and 1 have the same observation_id 'x'"),
        ({}, "candidates"),
    ],
)
def test_an_invalid_ranking_is_an_error_with_its_place(body: Any, message: str) -> None:
    async def test(client: Any) -> None:
        response = await client.post(RANKINGS, json=body)
        assert error_of(response) == (422, "invalid")
        assert message in response.json()["error"]["message"]
        assert spool_events() == []
        assert error_of(await client.post("/v1/agents/trains/rankings", json=body)) == (404, "unknown_agent")

    run_with_server(test)


def test_concurrent_requests_share_commits() -> None:
    async def test(client: Any) -> None:
        commits = 0
        put = client.agents[0].spool.put

        def put_and_count(*events: Any) -> None:
            nonlocal commits
            commits += 1
            put(*events)

        client.agents[0].spool.put = put_and_count
        requests = [client.post(DECISIONS, json={"observation": {**ROW, "observation_id": f"o{i}"}}) for i in range(40)]
        answers = [response.json() for response in await asyncio.gather(*requests)]
        assert [answer["observation_id"] for answer in answers] == [f"o{i}" for i in range(40)]
        assert commits < 40
        recorded = {decision_id for event in spool_events() for decision_id in event.decision_ids}
        assert recorded == {answer["decision_id"] for answer in answers}

    run_with_server(test)


@pytest.mark.parametrize(
    ("body", "message"),
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
def test_an_invalid_observation_is_an_error_with_its_place(body: Any, message: str) -> None:
    async def test(client: Any) -> None:
        response = await client.post(DECISIONS, json=body)
        assert error_of(response) == (422, "invalid")
        assert message in response.json()["error"]["message"]
        assert spool_events() == []

    run_with_server(test)


def test_numbers_and_truth_values_are_converted_to_text() -> None:
    async def test(client: Any) -> None:
        pairs = [(4, 5), (4.0, 2**60 + 1), (True, True), ("4.0", "007")]
        rows = [{**ROW, "wind": True, "origin": origin, "observation_id": name} for origin, name in pairs]
        decisions = (await client.post(DECISIONS, json={"observations": rows})).json()["decisions"]
        decision = (await client.post(DECISIONS, json={"observation": rows[0]})).json()
        assert [row["observation_id"] for row in decisions] == ["5", str(2**60 + 1), "true", "007"]
        several, single = spool_events()
        assert [row[2] for row in several.values] == ["4", "4", "true", "4.0"] and several.values[0][0] == 1.0
        assert single.values == several.values[:1] and decision["observation_id"] == "5"
        wrong = await client.post(OUTCOMES, json={"decision_id": decision["decision_id"], "action": 1})
        assert error_of(wrong) == (422, "invalid") and "no action '1'" in wrong.json()["error"]["message"]

    run_with_server(test)


def test_the_error_for_nan_names_it() -> None:
    async def test(client: Any) -> None:
        response = await client.post(DECISIONS, content=b'{"observation": {"wind": NaN}}', headers=JSON)
        assert error_of(response) == (400, "malformed_json")
        assert "holds NaN, which is no JSON: write null" in response.json()["error"]["message"]

    run_with_server(test)


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
def test_a_body_that_is_no_json_is_an_error(body: bytes) -> None:
    async def test(client: Any) -> None:
        response = await client.post(DECISIONS, content=body, headers={"content-type": "application/json"})
        assert error_of(response)[0] in (400, 422)
        assert spool_events() == []

    run_with_server(test)


def test_requests_above_the_limits_are_errors() -> None:
    async def test(client: Any) -> None:
        huge = json.dumps({"observation": {**ROW, "origin": "x" * 5000}}).encode()
        assert error_of(await client.post(DECISIONS, content=huge, headers=JSON)) == (413, "body_too_large")

        async def chunks() -> AsyncIterator[bytes]:
            for i in range(0, len(huge), 100):
                yield huge[i : i + 100]

        assert error_of(await client.post(DECISIONS, content=chunks(), headers=JSON)) == (413, "body_too_large")
        answer = await client.post(DECISIONS, json={"observations": [ROW] * 4})
        assert error_of(answer) == (413, "too_many_rows")
        assert spool_events() == []

    run_with_server(test, limits=RequestLimits(max_body=2000, max_rows=3))


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
def test_other_media_types_are_errors(headers: dict[str, str]) -> None:
    async def test(client: Any) -> None:
        response = await client.post(DECISIONS, content=json.dumps({"observation": ROW}), headers=headers)
        assert error_of(response) == (415, "unsupported_media_type")

    run_with_server(test)


def test_wrong_paths_and_methods_are_errors() -> None:
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

    run_with_server(test)


def test_without_a_champion_the_error_says_when_to_retry(tmp_path: Path) -> None:
    write_agent(tmp_path, "new")

    async def test(client: Any) -> None:
        response = await client.post("/v1/agents/new/decisions", json={"observation": ROW})
        assert error_of(response) == (503, "no_champion") and int(response.headers["retry-after"]) >= 1
        assert error_of(await client.get("/v1/agents/new/model")) == (503, "no_champion")
        health = await client.get("/healthz")
        assert (health.status_code, health.json()["alive"], health.json()["agents"]) == (503, True, {"new": False})
        assert (await client.get("/ping")).status_code == 404

    run_with_server(test, "new")


def test_a_full_spool_is_an_error_and_no_event_is_dropped(tmp_path: Path) -> None:
    write_agent(tmp_path, "flights", "runtime: {max_spool_rows: 1000}\n")

    async def test(client: Any) -> None:
        fill = await client.post(DECISIONS, json={"observations": [ROW] * 1000})
        assert fill.status_code == 200
        response = await client.post(DECISIONS, json={"observation": ROW})
        assert error_of(response) == (503, "spool_full") and int(response.headers["retry-after"]) >= 1
        assert sum(event.rows for event in spool_events()) == 1000

    run_with_server(test)


def test_too_many_concurrent_requests_are_rejected() -> None:
    async def test(client: Any) -> None:
        requests = [client.post(DECISIONS, json={"observation": ROW}) for _ in range(20)]
        answers = await asyncio.gather(*requests)
        rejected = [answer for answer in answers if answer.status_code != 200]
        assert rejected
        assert all(error_of(answer) == (503, "busy") and answer.headers["retry-after"] for answer in rejected)
        assert sum(event.rows for event in spool_events()) == len(answers) - len(rejected)

    run_with_server(test, limits=RequestLimits(max_waiting=4))


def test_a_new_champion_is_loaded_while_serving() -> None:
    async def test(client: Any) -> None:
        first = (await client.post(DECISIONS, json={"observation": ROW})).json()
        put_champion("flights", 2)
        for _ in range(100):
            latest = (await client.post(DECISIONS, json={"observation": ROW})).json()
            if latest["version"] != first["version"]:
                break
            await asyncio.sleep(0.1)
        assert latest["version"] == "flights@2"

    run_with_server(test)


def test_warnings_are_returned_and_counted() -> None:
    bad = {**ROW, "wind": None}

    async def test(client: Any) -> None:
        single = (await client.post(DECISIONS, json={"observation": bad})).json()
        assert single["warnings"] == ["wind is missing"] and single["action"] in ("on_time", "late")
        several = (await client.post(DECISIONS, json={"observations": [ROW, bad]})).json()["decisions"]
        assert "warnings" not in several[0] and several[1]["warnings"] == ["wind is missing"]
        body = {"dataframe_records": [ROW, bad]}
        without = await client.post("/invocations", json=body)
        assert set(without.json()) == {"predictions"} and without.headers["stillhouse-warnings"] == "1"
        with_warnings = await client.post("/invocations?warnings=true", json=body)
        assert with_warnings.json()["warnings"] == [[], ["wind is missing"]]
        assert "stillhouse-warnings" not in (await client.post("/invocations", json={"inputs": ROW})).headers
        text = (await client.get("/metrics")).text
        assert 'stillhouse_outside_contract_total{agent="flights",column="wind",rule="missing"} 4.0' in text
        assert (await client.get("/v1/agents/flights")).json()["outside_contract"] == {"wind": 4}
        agent = client.agents[0]
        decision = agent.decide(bad)
        assert decision.warnings == ("wind is missing",) and agent.decide(ROW).warnings == ()
        frame = pd.DataFrame([ROW, bad]).assign(
            observation_id=["a", "b"], observed_at=pd.Timestamp("2024-01-01", tz="UTC")
        )
        assert [decision.warnings for decision in agent.decide(frame)] == [(), ("wind is missing",)]
        assert agent.status().outside_contract == {"wind": 6}
        assert np.isfinite(decision.confidence)

    run_with_server(test)


# --------------------------------------------------------------------------- outcomes


def test_late_and_repeated_outcomes_are_recorded() -> None:
    async def test(client: Any) -> None:
        decision = (await client.post(DECISIONS, json={"observation": ROW})).json()["decision_id"]
        known_at = "2026-01-01T00:00:00Z"
        first = await client.post(OUTCOMES, json={"decision_id": decision, "action": "late", "known_at": known_at})
        assert (first.status_code, first.json()) == (200, {"recorded": 1})
        again = {"decision_id": decision, "action": "on_time"}
        second = await client.post(OUTCOMES, json={"outcomes": [again, again]})
        assert second.json() == {"recorded": 2}
        outcomes = [event for event in spool_events() if isinstance(event, Outcomes)]
        assert [event.actions for event in outcomes] == [["late"], ["on_time", "on_time"]]
        assert outcomes[0].known_at == [int(datetime(2026, 1, 1, tzinfo=UTC).timestamp() * 1e6)]

    run_with_server(test)


def test_one_invalid_outcome_rejects_all_of_the_request() -> None:
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
        assert not any(isinstance(event, Outcomes) for event in spool_events())

    run_with_server(test)


def test_no_client_sends_outcomes_to_an_agent_that_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = agent_sections(teachers=[{**SMALL_AGENT["teachers"][0], "learns": False}])
    del sections["outcomes"]
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(sections), encoding="utf-8")
    monkeypatch.setenv("STILLHOUSE_AGENTS", str(tmp_path))

    async def test(client: Any) -> None:
        outcome = {"decision_id": "o1.token", "action": "stay"}
        assert error_of(await client.post("/v1/agents/toy/outcomes", json=outcome)) == (403, "no_outcomes")

    run_with_server(test, "toy")


# --------------------------------------------------------------------------- the model and the knowledge


def test_the_model_is_an_archive_with_an_etag(tmp_path: Path) -> None:
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
        expected = Variant(Champions(config.load("flights")).folder / "variant-1-test").predict(frame)
        assert Variant(tmp_path / "device").predict(frame).equals(expected)
        for tag in (response.headers["etag"], f"W/{response.headers['etag']}", f'"x", {response.headers["etag"]}', "*"):
            unchanged = await client.get(address, headers={"if-none-match": tag})
            assert (unchanged.status_code, unchanged.content) == (304, b"") and unchanged.headers["etag"]
        assert (await client.get(address, headers={"if-none-match": '"x"'})).status_code == 200
        assert (await client.get(f"{address}?version=1")).status_code == 200
        assert error_of(await client.get(f"{address}?version=3")) == (404, "unknown_version")
        head = await client.head(address)
        assert head.headers["etag"] == response.headers["etag"]

    run_with_server(test)


def test_packing_the_same_model_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first = variant_folder(tmp_path / "one", "fp32", seed=1)
    second = variant_folder(tmp_path / "two", "fp32", seed=1)
    (second / "model.onnx").touch()
    packed = [pack(read_files(folder, digests(folder)), "flights@1").content for folder in (first, second)]
    assert packed[0] == packed[1]


def append_answers(rows: int, teacher: str) -> list[str]:
    base = KnowledgeBase(config.load("flights"))
    keys = [hashlib.sha256(f"{teacher}{i}".encode()).hexdigest()[:32] for i in range(rows)]
    frame = pd.DataFrame({"content_key": keys, "observed_at": pd.Timestamp("2013-01-01", tz="UTC")})
    teacher_probs = np.column_stack([np.linspace(0, 1, rows), np.linspace(1, 0, rows)])
    base.answers.append(frame, teacher_probs, teacher=teacher)
    return keys


def test_knowledge_pages_contain_every_answer_once() -> None:
    before = datetime.now(UTC)
    first = append_answers(7, "one")
    between = datetime.now(UTC)
    second = append_answers(5, "two")

    async def test(client: Any) -> None:
        answers, address = [], f"{KNOWLEDGE}?limit=4&since={before.isoformat().replace('+', '%2B')}"
        while address:
            response = await client.get(address)
            assert response.headers["content-type"] == "application/x-ndjson"
            answers += [json.loads(line) for line in response.text.splitlines()]
            address = response.links["next"]["url"] if "next" in response.links else ""
        assert [answer["content_key"] for answer in answers] == sorted(first) + sorted(second)
        assert set(answers[0]) == {"content_key", "observed_at", "teacher", "asked_at", "probabilities"}
        probs = {answer["content_key"]: answer["probabilities"] for answer in answers}
        assert probs[first[0]] == {"on_time": 0.0, "late": 1.0}
        later = await client.get(KNOWLEDGE, params={"since": between.isoformat()})
        assert {json.loads(line)["teacher"] for line in later.text.splitlines()} == {"two"}
        arrow = await client.get(KNOWLEDGE, headers={"accept": ARROW})
        table = pa.ipc.open_stream(arrow.content).read_all()
        assert table.to_pylist()[0]["probabilities"] == probs[sorted(first)[0]]
        assert table.num_rows == 12

    run_with_server(test)


def test_knowledge_is_empty_without_answers_and_invalid_queries_are_errors() -> None:
    async def test(client: Any) -> None:
        assert (await client.get(KNOWLEDGE)).text == ""
        for query in ("since=yesterday", "since=2026-01-01T00:00:00", "limit=0", "limit=x", "limit=99999999"):
            assert error_of(await client.get(f"{KNOWLEDGE}?{query}")) == (422, "invalid")
        for cursor in ("", "!", "MTIz", "é"):
            assert error_of(await client.get(KNOWLEDGE, params={"after": cursor})) == (404, "unknown_page")

    run_with_server(test)


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
def test_invocations_give_the_predictions_of_the_mlflow_model(body: Any) -> None:
    folder = Champions(config.load("flights")).folder / "variant-1-test"
    expected = json.loads(Variant(folder).predict(pd.DataFrame(ROWS)).to_json(orient="records", double_precision=15))

    async def test(client: Any) -> None:
        response = await client.post("/invocations?decision_ids=true", json=body)
        result = response.json()
        assert set(result) == {"predictions", "decision_ids"}
        for prediction, expected_prediction in zip(result["predictions"], expected, strict=True):
            assert prediction == pytest.approx(expected_prediction, abs=1e-6)
        assert [event.decision_ids for event in spool_events()] == [result["decision_ids"]]
        assert set((await client.post("/invocations", json=body)).json()) == {"predictions"}

    run_with_server(test)


def test_invocations_accept_csv_written_by_pandas() -> None:
    async def test(client: Any) -> None:
        text = pd.DataFrame(ROWS).to_csv(index=False)
        response = await client.post("/invocations", content=text, headers={"content-type": "text/csv; charset=utf-8"})
        assert len(response.json()["predictions"]) == 2
        (event,) = spool_events()
        assert event.values == [[3.0, 7.0, "EWR"], [None, 23.0, "LGA"]]

    run_with_server(test)


@pytest.mark.parametrize(
    ("body", "media_type"),
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
def test_invalid_invocations_are_bad_requests(body: bytes, media_type: str) -> None:
    async def test(client: Any) -> None:
        response = await client.post("/invocations", content=body, headers={"content-type": media_type})
        assert error_of(response)[0] == 400
        assert spool_events() == []

    run_with_server(test)


def test_invocations_name_the_agent_if_there_are_several(tmp_path: Path) -> None:
    write_agent(tmp_path, "trains")
    put_champion("trains", 4)

    async def test(client: Any) -> None:
        body = {"dataframe_records": ROWS}
        unnamed = await client.post("/invocations", json=body)
        assert error_of(unnamed) == (400, "which_agent") and "trains" in unnamed.text
        assert (await client.post("/invocations?agent=trains", json=body)).status_code == 200
        assert (await client.post("/invocations", json=body, headers={"stillhouse-agent": "trains"})).status_code == 200
        assert error_of(await client.post("/invocations?agent=x", json=body)) == (404, "unknown_agent")
        assert len(spool_events("trains")) == 2 and spool_events("flights") == []
        assert (await client.get("/v1/agents")).json() == {"agents": ["flights", "trains"]}

    run_with_server(test, "flights", "trains")


# --------------------------------------------------------------------------- access control


def test_requests_without_a_valid_token_are_rejected() -> None:
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
        assert spool_events() == []
        for token in ("secret", "other"):
            headers = {"authorization": f"Bearer {token}"}
            assert (await client.post(DECISIONS, json={"observation": ROW}, headers=headers)).status_code == 200

    run_with_server(test, guard=AccessGuard(["secret", "other"]))


def test_other_host_names_are_rejected_on_loopback() -> None:
    guard = AccessGuard(hosts=["localhost", "127.0.0.1", "[::1]"])

    async def test(client: Any) -> None:
        for host in ("127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "[::1]"):
            assert (await client.get("/healthz", headers={"host": host})).status_code == 200
        for host in ("evil.example", "127.0.0.1.evil.example:8000", ""):
            assert error_of(await client.get("/healthz", headers={"host": host})) == (400, "wrong_host")

    run_with_server(test, guard=guard)


# --------------------------------------------------------------------------- status, metrics, OpenAPI


def test_the_status_has_the_champion_and_the_spool_rows() -> None:
    async def test(client: Any) -> None:
        await client.post(DECISIONS, json={"observations": [ROW] * 3})
        status = (await client.get("/v1/agents/flights")).json()
        assert (status["champion"], status["spool_rows"], status["decisions"]) == ("flights@1", 3, {"student": 3})

    run_with_server(test)


def test_metrics_include_workers_that_died(tmp_path: Path) -> None:
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

    run_with_server(test, metrics=Metrics(tmp_path / "counts", "0-1"))


def test_a_histogram_counts_values_by_bucket() -> None:
    counts = Counts()
    counts.observe("request_seconds", ("x",), [0.0005, 0.0006, 99.0])
    buckets = counts.histograms["request_seconds"][("x",)]
    assert buckets[:3] == [1, 1, 0] and buckets[-2] == 1 and buckets[-1] == pytest.approx(99.0011)
    twice = Counts()
    twice.merge(counts)
    twice.merge(counts)
    assert twice.histograms["request_seconds"][("x",)] == [2 * value for value in buckets]


def test_the_openapi_description_has_every_route_and_column() -> None:
    async def test(client: Any) -> None:
        description = (await client.get("/openapi.json")).json()
        assert description["openapi"].startswith("3.1")
        routes = {route.path.replace("{agent}", "flights") for route in client.server._starlette.routes}
        assert set(description["paths"]) == routes
        row = description["components"]["schemas"]["flights.Observation"]
        assert row["required"] == ["wind", "hour", "origin"]
        assert row["properties"]["wind"]["type"] == ["number", "boolean", "null"]
        assert row["properties"]["origin"]["type"] == ["string", "number", "boolean", "null"]

    run_with_server(test)


# --------------------------------------------------------------------------- decisions made elsewhere

HANDED_IN = "/v1/agents/flights/handed-in"


def made_elsewhere(name: str = "d1", **changes: Any) -> dict[str, Any]:
    observation = ROW | {"observation_id": "o1", "observed_at": "2026-01-31T12:00:00Z"}
    made = {"decision_id": name, "observation": observation, "decided_at": "2026-01-31T12:00:01Z", "action": "late"}
    made |= {"probabilities": {"late": 0.75, "on_time": 0.25}, "version": "flights@7"}
    return {key: value for key, value in (made | changes).items() if value is not None}


def test_decisions_made_elsewhere_get_the_same_ids_again_and_outcomes() -> None:
    async def test(client: Any) -> None:
        body = {"decisions": [made_elsewhere(), made_elsewhere("d2")]}
        first, again = [(await client.post(HANDED_IN, json=body)).json() for _ in range(2)]
        assert first == again and first["recorded"] == 2 and len(set(first["decision_ids"])) == 2
        known = await client.post(OUTCOMES, json={"decision_id": first["decision_ids"][0], "action": "on_time"})
        assert known.status_code == 200
        metrics = (await client.get("/metrics")).text
        assert 'stillhouse_handed_in_total{agent="flights"} 4.0' in metrics and 'endpoint="handed-in"' in metrics

    run_with_server(test)
    *events, outcome = spool_events()
    event = events[0]
    assert isinstance(event, Decided) and event.handed_in and isinstance(outcome, Outcomes)
    assert (event.actions[0], event.probabilities[0], event.deciders[0]) == ("late", [0.25, 0.75], "student")
    assert (event.versions[0], event.decided_at[0] - event.observed_at[0]) == ("flights@7", 1_000_000)
    assert outcome.observation_ids == ["o1"]


def observation(**changes: Any) -> dict[str, Any]:
    return {"observation": made_elsewhere()["observation"] | changes}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (observation(observation_id=None), "observation_id is missing - at `$.decisions[1].observation`"),
        (observation(observed_at=None), "observed_at is missing"),
        (observation(wind="fast"), "$.decisions[1].observation.wind"),
        (observation(colour="red"), "colour"),
        (observation(observed_at="2826-01-31T12:00:00Z"), "more than an hour from now"),
        ({"decided_at": "2826-01-31T12:00:00Z"}, "decided_at lies more than an hour ahead"),
        ({"decided_at": "2026-01-31T12:00:00"}, "decided_at"),
        ({"action": "maybe"}, "no action 'maybe'"),
        ({"action": "on_time"}, "not the most probable"),
        ({"probabilities": {"late": 1.0}}, "given for the actions on_time, late"),
        ({"probabilities": {"late": 0.9, "on_time": 0.2}}, "no distribution"),
        ({"version": "router@7"}, "no champion's"),
        ({"decision_id": ""}, "decision_id"),
        ({"version": None}, "version"),
    ],
)
def test_what_is_no_decision_of_the_agent_is_refused_with_all_others(changes: dict[str, Any], message: str) -> None:
    async def test(client: Any) -> None:
        answer = await client.post(HANDED_IN, json={"decisions": [made_elsewhere(), made_elsewhere("d2", **changes)]})
        assert error_of(answer) == (422, "invalid") and message in answer.json()["error"]["message"]

    run_with_server(test)
    assert spool_events() == []
