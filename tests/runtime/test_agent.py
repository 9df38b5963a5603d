"""The agent in process: it decides during outages, swaps champions under load, and loses no decision."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import load
from stillhouse.errors import NoChampionError, RegistryError, RuntimeStateError, SchemaError, UnknownDecisionError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.runtime import Agent
from stillhouse.variant import Variant
from tests.registry import conftest as registry_conftest
from tests.runtime.conftest import Installation, register_version

ROOT = Path(__file__).parents[2]
ROW = {"wind": 12.5, "hour": 3, "origin": "EWR"}


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until the condition is true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not become true"
        time.sleep(0.01)


def read_table(name: str) -> pd.DataFrame:
    return KnowledgeBase(load("flights")).read(name)


# --------------------------------------------------------------------------- deciding and recording


def test_a_decision_has_the_champions_probabilities_and_is_recorded(promoted: Installation) -> None:
    with Agent("flights") as agent:
        single = agent.decide(ROW)
        several = agent.decide([ROW, {"wind": None, "hour": 1.0, "origin": "nowhere"}])
        from_frame = agent.decide(pd.DataFrame([ROW, ROW]).assign(observation_id=["a", "b"]))
    variant = Variant(next(promoted.folder.glob("variant-1-*")))
    probs = variant.predict_proba(pd.DataFrame([ROW]))[0]
    assert list(single.probabilities.values()) == probs.tolist() and single.confidence == max(probs)
    assert single.action == variant.actions[probs.argmax()]
    assert (single.decider, single.version) == ("student", "flights@1")
    assert [decision.observation_id for decision in from_frame] == ["a", "b"]
    decisions, observations = read_table("decisions"), read_table("observations")
    decided = [single, *several, *from_frame]
    assert sorted(decisions["decision_id"]) == sorted(decision.decision_id for decision in decided)
    assert set(observations["observation_id"]) == set(decisions["observation_id"]) and len(observations) == 5
    assert observations["content_key"].nunique() == 2


def test_an_empty_input_gives_no_decisions(promoted: Installation) -> None:
    with Agent("flights") as agent:
        assert agent.decide([]) == [] and agent.observe([]) == []
        assert agent.decide(pd.DataFrame([ROW]).iloc[:0]) == []
        assert agent.status().spool_rows == 0


def test_outcomes_are_recorded_with_their_observation(promoted: Installation) -> None:
    with Agent("flights") as agent:
        decision = agent.decide(ROW)
        agent.outcome(decision.decision_id, "late")
        agent.outcomes([(decision.decision_id, "on_time"), (decision.decision_id, "on_time")])
    outcomes, decisions = read_table("outcomes").sort_values("known_at"), read_table("decisions")
    assert outcomes["action"].tolist() == ["late", "on_time", "on_time"]
    assert set(outcomes["observation_id"]) == {decision.observation_id}
    assert set(outcomes["observed_at"]) == set(decisions["observed_at"])


def test_one_invalid_outcome_rejects_all_of_the_call(promoted: Installation) -> None:
    with Agent("flights", flush=False) as agent:
        valid = agent.decide(ROW).decision_id
        rows_before = agent.status().spool_rows
        for invalid in ("nonsense", valid[:-1] + ("A" if valid[-1] != "A" else "B"), "\ud800." + valid[-24:], ""):
            with pytest.raises(UnknownDecisionError, match="outcome 1"):
                agent.outcomes([(valid, "late"), (invalid, "late")])
        with pytest.raises(SchemaError, match="no action 'early'"):
            agent.outcomes([(valid, "late"), (valid, "early")])
        with pytest.raises(SchemaError, match="an hour ahead"):
            agent.outcome(valid, "late", pd.Timestamp.now("UTC").to_pydatetime() + pd.Timedelta(hours=2))
        with pytest.raises(SchemaError, match="no time zone"):
            agent.outcome(valid, "late", pd.Timestamp("2024-01-01").to_pydatetime())
        assert agent.status().spool_rows == rows_before


def test_outcomes_by_observation_id(promoted: Installation) -> None:
    rows = pd.DataFrame([ROW]).assign(observation_id="x", observed_at=pd.Timestamp("2024-05-01T00:00:00.123456Z"))
    outcomes = rows[["observation_id", "observed_at"]].assign(known_at=pd.Timestamp("2024-05-02T00:00Z"), action="late")
    with Agent("flights") as agent:
        agent.decide(rows)
        agent.learn(outcomes)
        agent.learn(outcomes.iloc[:0])
        with pytest.raises(SchemaError, match="lack the columns"):
            agent.learn(outcomes.drop(columns="known_at"))
        with pytest.raises(SchemaError, match="no action"):
            agent.learn(outcomes.assign(action="early"))
        with pytest.raises(SchemaError, match="no Unicode"):
            agent.learn(outcomes.assign(observation_id=pd.Series(["\ud800"], dtype="object")))
        with pytest.raises(SchemaError, match="time zone"):
            agent.learn(outcomes.assign(known_at=pd.Timestamp("2024-05-02")))
    stored = read_table("outcomes")
    assert len(stored) == 1
    assert stored["observed_at"][0] == read_table("observations")["observed_at"][0] == rows["observed_at"][0]


def test_an_agent_serves_asyncio_and_many_threads(promoted: Installation) -> None:
    with Agent("flights") as agent:

        async def decide_and_learn() -> list[str]:
            decisions = await asyncio.gather(*(agent.decide_async(ROW | {"wind": float(i)}) for i in range(20)))
            await asyncio.gather(*(agent.outcome_async(decision.decision_id, "late") for decision in decisions))
            return [decision.decision_id for decision in decisions]

        decision_ids = asyncio.run(decide_and_learn())
        threads = [
            threading.Thread(target=lambda: [decision_ids.append(agent.decide(ROW).decision_id) for _ in range(25)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert agent.status().decisions == {"student": 120}
    assert sorted(read_table("decisions")["decision_id"]) == sorted(decision_ids) and len(read_table("outcomes")) == 20


def test_recorded_decisions_survive_a_killed_process(promoted: Installation) -> None:
    command = [sys.executable, "-m", "tests.runtime.parts_for_tests"]
    process = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    assert process.returncode == -9
    decision_ids = process.stdout.split()
    assert len(decision_ids) == 40
    with Agent("flights", follow=False) as agent:
        agent.outcome(decision_ids[0], "late")
    assert sorted(read_table("decisions")["decision_id"]) == sorted(decision_ids) and len(read_table("outcomes")) == 1


def test_a_closed_agent_can_be_closed_again_but_not_used(promoted: Installation) -> None:
    agent = Agent("flights")
    agent.close()
    agent.close()
    for use in (lambda: agent.decide(ROW), lambda: agent.observe(ROW)):
        with pytest.raises(RuntimeStateError, match="was closed"):
            use()


def test_a_forked_process_gets_an_error(promoted: Installation) -> None:
    with Agent("flights", flush=False) as agent:
        agent.decide(ROW)
        read, write = os.pipe()
        if (child := os.fork()) == 0:
            try:
                agent.decide(ROW)
                os.write(write, b"decided")
            except RuntimeStateError as error:
                os.write(write, str(error).encode())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        assert b"forked" in os.read(read, 10_000)
        agent.decide(ROW)
        agent.flush()
    assert len(read_table("decisions")) == 2


# --------------------------------------------------------------------------- champions


def test_without_a_champion_the_agent_records_observations(installation: Installation) -> None:
    with Agent("flights") as agent:
        with pytest.raises(NoChampionError, match="no champion"):
            agent.decide(ROW)
        ids = agent.observe([ROW, ROW])
        status = agent.status()
        assert status.champion is None and not status.open_problems
        installation.registry.promote("2")
        wait_until(lambda: agent.champion)
        assert agent.decide(ROW).version == "flights@2"
    assert set(ids) < set(read_table("observations")["observation_id"]) and len(read_table("decisions")) == 1


@pytest.mark.slow
def test_ten_swaps_under_load_neither_fail_nor_lose_a_decision(promoted: Installation) -> None:
    decided, errors, stop = list[tuple[str, str]](), list[BaseException](), threading.Event()

    def decide(agent: Agent) -> None:
        while not stop.is_set():
            try:
                decision = agent.decide(ROW)
                decided.append((decision.decision_id, decision.version))
                time.sleep(0.002)  # leaves time for the disk
            except BaseException as error:
                errors.append(error)

    with Agent("flights") as agent:
        threads = [threading.Thread(target=decide, args=(agent,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for swap in range(10):
            number = str(swap % 3 + 1)
            promoted.registry.promote(number)
            wait_until(lambda version=f"flights@{number}": agent.champion.version == version)
        stop.set()
        for thread in threads:
            thread.join()
        agent.flush()
    assert not errors
    decisions = read_table("decisions")
    assert sorted(zip(decisions["decision_id"], decisions["version"], strict=True)) == sorted(decided)
    assert {version for _, version in decided} == {"flights@1", "flights@2", "flights@3"}
    folders = {path.name.split("-")[1] for path in promoted.folder.glob("variant-*")}
    assert folders == {"3", "1"}  # the present champion and the previous one


def test_an_agent_that_does_not_follow_uses_what_another_process_fetched(
    promoted: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Agent("flights", flush=False) as first:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the other cannot reach it
        with Agent("flights", follow=False, flush=False) as other:
            assert other.decide(ROW).version == "flights@1"
            promoted.registry.promote("3")
            first.follow(promoted.registry)
            wait_until(lambda: other.champion.version == "flights@3")
            assert not other.status().open_problems
            assert first.spool.name != other.spool.name


def test_during_an_outage_it_starts_from_the_local_copy_and_reports_problems(
    promoted: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    Agent("flights").close()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    tables = promoted.home / "knowledge" / "flights"
    tables.rename(tables.with_name("away"))
    tables.write_text("not a folder")
    agent = Agent("flights")
    decision = agent.decide(ROW)
    agent.outcome(decision.decision_id, "late")
    assert decision.version == "flights@1"
    wait_until(lambda: {"registry", "knowledge_base"} <= set(agent.status().open_problems))
    status = agent.status()
    assert "127.0.0.1:9" in status.problems["registry"].text and status.spool_rows == 2
    assert status.champion == "flights@1" and status.promoted_at is not None

    tables.unlink()
    tables.with_name("away").rename(tables)
    wait_until(lambda: "knowledge_base" not in agent.status().open_problems)
    assert agent.status().problems["knowledge_base"].over_at is not None
    agent.close()
    assert (
        read_table("decisions")["decision_id"].tolist() == [decision.decision_id] and len(read_table("outcomes")) == 1
    )


def test_without_a_copy_and_without_mlflow_the_error_has_the_reason(
    promoted: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with Agent("flights") as agent:
        with pytest.raises(NoChampionError, match=r"127\.0\.0\.1:9"):
            agent.decide(ROW)
        with pytest.raises(RegistryError):
            agent.follow()
        agent.observe(ROW)
    assert len(read_table("observations")) == 1


def test_a_damaged_copy_is_detected_and_fetched_again(promoted: Installation) -> None:
    Agent("flights").close()
    model = next(promoted.folder.glob("variant-1-*/model.onnx"))
    intact = model.read_bytes()
    model.write_bytes(intact[:-1] + b"?")
    with Agent("flights", follow=False) as without_registry:
        with pytest.raises(NoChampionError, match="damaged"):
            without_registry.decide(ROW)
        assert "other checksums" in without_registry.status().open_problems["champion"].text
    with Agent("flights") as agent:
        assert agent.decide(ROW).version == "flights@1"
    assert model.read_bytes() == intact


def test_a_copy_that_is_damaged_while_in_use_is_fetched_again(promoted: Installation) -> None:
    with Agent("flights") as agent:
        model = next(promoted.folder.glob("variant-1-*/model.onnx"))
        intact = model.read_bytes()
        model.write_bytes(b"nothing")
        assert agent.decide(ROW).version == "flights@1"
        wait_until(lambda: model.exists() and model.read_bytes() == intact)


def test_a_champion_with_unknown_columns_is_rejected_and_the_previous_one_stays(
    promoted: Installation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    promoted.write(runtime={"poll": "1h", "flush": "1h"})
    columns = [
        dict(column, name="tail") if column["name"] == "hour" else column for column in registry_conftest.COLUMNS
    ]
    monkeypatch.setattr(registry_conftest, "COLUMNS", columns)
    register_version(registry_conftest.Life(promoted.registry, tmp_path / "work"), 4)
    with Agent("flights") as agent:
        promoted.registry.promote("4")
        for _ in range(2):
            with pytest.raises(
                SchemaError, match=r"flights@4 does not fit.*tail \(number, in the agent file not at all\)"
            ):
                agent.follow(promoted.registry)
        assert agent.decide(ROW).version == "flights@1"
    with Agent("flights", follow=False) as later:
        assert later.decide(ROW).version == "flights@1"


def test_a_champion_whose_output_is_no_probabilities_is_rejected(
    promoted: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    promoted.write(runtime={"poll": "1h", "flush": "1h"})
    with Agent("flights") as agent:
        promoted.registry.promote("2")
        monkeypatch.setattr(Variant, "probabilities", lambda self, matrix: np.full((len(matrix), 2), np.nan))
        with pytest.raises(NoChampionError, match="no probabilities"):
            agent.follow(promoted.registry)
        monkeypatch.undo()


def test_the_agent_follows_a_rollback(promoted: Installation) -> None:
    with Agent("flights") as agent:
        promoted.registry.promote("2")
        assert agent.follow() == "flights@2"
        promoted.registry.rollback()
        assert agent.follow() == "flights@1"
        assert agent.decide(ROW).version == "flights@1"


def test_deciding_from_a_copy_imports_neither_mlflow_nor_torch(promoted: Installation) -> None:
    Agent("flights").close()
    script = (
        "import sys; from stillhouse.runtime import Agent; agent = Agent('flights', follow=False); "
        "agent.decide({'wind': 1.0, 'hour': 2.0, 'origin': None}); agent.close(); "
        "print([name for name in ('mlflow', 'torch', 'sklearn') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_recorded_and_returned_probabilities_are_equal(promoted: Installation) -> None:
    with Agent("flights") as agent:
        decisions = agent.decide([ROW | {"wind": float(i)} for i in range(50)])
    stored = read_table("decisions").set_index("decision_id").loc[[decision.decision_id for decision in decisions]]
    returned = [list(decision.probabilities.values()) for decision in decisions]
    assert np.array_equal(np.stack(stored["probabilities"]), returned)
    assert stored["action"].tolist() == [decision.action for decision in decisions]
