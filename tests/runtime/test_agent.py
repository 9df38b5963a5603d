"""The agent in process: it decides whatever is down, swaps under load, and loses nothing."""

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
from tests.registry import conftest as made_here
from tests.runtime.conftest import World, refreshed

ROOT = Path(__file__).parents[2]
ROW = {"wind": 12.5, "hour": 3, "origin": "EWR"}


def until(true: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait for something that another thread does."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def table(name: str) -> pd.DataFrame:
    return KnowledgeBase(load("flights")).read(name)


# --------------------------------------------------------------------------- deciding and recording


def test_a_decision_is_the_champions_and_is_recorded(champion: World) -> None:
    with Agent("flights") as agent:
        one = agent.decide(ROW)
        many = agent.decide([ROW, {"wind": None, "hour": 1.0, "origin": "nowhere"}])
        frame = agent.decide(pd.DataFrame([ROW, ROW]).assign(observation_id=["a", "b"]))
    variant = Variant(next(champion.folder.glob("variant-1-*")))
    said = variant.predict_proba(pd.DataFrame([ROW]))[0]
    assert list(one.probabilities.values()) == said.tolist() and one.confidence == max(said)
    assert one.action == variant.actions[said.argmax()]
    assert (one.decider, one.version) == ("student", "flights@1")
    assert [each.observation_id for each in frame] == ["a", "b"]
    decided, observed = table("decisions"), table("observations")
    assert sorted(decided["decision_id"]) == sorted(each.decision_id for each in [one, *many, *frame])
    assert set(observed["observation_id"]) == set(decided["observation_id"]) and len(observed) == 5
    assert observed["content_key"].nunique() == 2


def test_no_rows_are_no_decisions(champion: World) -> None:
    with Agent("flights") as agent:
        assert agent.decide([]) == [] and agent.observe([]) == []
        assert agent.decide(pd.DataFrame([ROW]).iloc[:0]) == []
        assert agent.status().spool_rows == 0


def test_outcomes_find_their_observation_and_the_last_known_counts(champion: World) -> None:
    with Agent("flights") as agent:
        decision = agent.decide(ROW)
        agent.outcome(decision.decision_id, "late")
        agent.outcomes([(decision.decision_id, "on_time"), (decision.decision_id, "on_time")])
    outcomes, decided = table("outcomes").sort_values("known_at"), table("decisions")
    assert outcomes["action"].tolist() == ["late", "on_time", "on_time"]
    assert set(outcomes["observation_id"]) == {decision.observation_id}
    assert set(outcomes["observed_at"]) == set(decided["observed_at"])


def test_bad_outcomes_are_refused_together(champion: World) -> None:
    with Agent("flights", flush=False) as agent:
        known = agent.decide(ROW).decision_id
        before = agent.status().spool_rows
        for strange in ("nonsense", known[:-1] + ("A" if known[-1] != "A" else "B"), "\ud800." + known[-24:], ""):
            with pytest.raises(UnknownDecisionError, match="outcome 1"):
                agent.outcomes([(known, "late"), (strange, "late")])
        with pytest.raises(SchemaError, match="no action 'early'"):
            agent.outcomes([(known, "late"), (known, "early")])
        with pytest.raises(SchemaError, match="an hour ahead"):
            agent.outcome(known, "late", pd.Timestamp.now("UTC").to_pydatetime() + pd.Timedelta(hours=2))
        with pytest.raises(SchemaError, match="no time zone"):
            agent.outcome(known, "late", pd.Timestamp("2024-01-01").to_pydatetime())
        assert agent.status().spool_rows == before


def test_learning_by_observation(champion: World) -> None:
    rows = pd.DataFrame([ROW]).assign(observation_id="x", observed_at=pd.Timestamp("2024-05-01T00:00:00.123456Z"))
    known = rows[["observation_id", "observed_at"]].assign(known_at=pd.Timestamp("2024-05-02T00:00Z"), action="late")
    with Agent("flights") as agent:
        agent.decide(rows)
        agent.learn(known)
        agent.learn(known.iloc[:0])
        with pytest.raises(SchemaError, match="lack the columns"):
            agent.learn(known.drop(columns="known_at"))
        with pytest.raises(SchemaError, match="no action"):
            agent.learn(known.assign(action="early"))
        with pytest.raises(SchemaError, match="no Unicode"):
            agent.learn(known.assign(observation_id=pd.Series(["\ud800"], dtype="object")))
        with pytest.raises(SchemaError, match="time zone"):
            agent.learn(known.assign(known_at=pd.Timestamp("2024-05-02")))
    kept = table("outcomes")
    assert (
        len(kept) == 1 and kept["observed_at"][0] == table("observations")["observed_at"][0] == rows["observed_at"][0]
    )


def test_from_asyncio_and_from_many_threads(champion: World) -> None:
    with Agent("flights") as agent:

        async def live() -> list[str]:
            made = await asyncio.gather(*(agent.decide_async(ROW | {"wind": float(i)}) for i in range(20)))
            await asyncio.gather(*(agent.outcome_async(each.decision_id, "late") for each in made))
            return [each.decision_id for each in made]

        made = asyncio.run(live())
        threads = [
            threading.Thread(target=lambda: [made.append(agent.decide(ROW).decision_id) for _ in range(25)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert agent.status().decisions == {"student": 120}
    assert sorted(table("decisions")["decision_id"]) == sorted(made) and len(table("outcomes")) == 20


def test_what_is_recorded_survives_a_kill(champion: World) -> None:
    command = [sys.executable, "-m", "tests.runtime.parts_for_tests"]
    died = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    assert died.returncode == -9
    given = died.stdout.split()
    assert len(given) == 40
    with Agent("flights", follow=False) as agent:
        agent.outcome(given[0], "late")
    assert sorted(table("decisions")["decision_id"]) == sorted(given) and len(table("outcomes")) == 1


def test_closed_twice_and_used_afterwards(champion: World) -> None:
    agent = Agent("flights")
    agent.close()
    agent.close()
    for use in (lambda: agent.decide(ROW), lambda: agent.observe(ROW)):
        with pytest.raises(RuntimeStateError, match="was closed"):
            use()


def test_a_forked_process_is_told_so(champion: World) -> None:
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
    assert len(table("decisions")) == 2


# --------------------------------------------------------------------------- champions


def test_before_there_is_a_champion_the_agent_observes(world: World) -> None:
    with Agent("flights") as agent:
        with pytest.raises(NoChampionError, match="no champion"):
            agent.decide(ROW)
        ids = agent.observe([ROW, ROW])
        status = agent.status()
        assert status.champion is None and not status.troubled
        world.registry.promote("2")
        until(lambda: agent.champion)
        assert agent.decide(ROW).version == "flights@2"
    assert set(ids) < set(table("observations")["observation_id"]) and len(table("decisions")) == 1


def test_swapped_ten_times_under_load_nothing_fails_and_all_is_recorded(champion: World) -> None:
    made, failed, stop = list[tuple[str, str]](), list[BaseException](), threading.Event()

    def decide(agent: Agent) -> None:
        while not stop.is_set():
            try:
                decision = agent.decide(ROW)
                made.append((decision.decision_id, decision.version))
                time.sleep(0.002)  # the disk is slow enough
            except BaseException as error:
                failed.append(error)

    with Agent("flights") as agent:
        threads = [threading.Thread(target=decide, args=(agent,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for swap in range(10):
            version = str(swap % 3 + 1)
            world_version = f"flights@{version}"
            champion.registry.promote(version)
            until(lambda wanted=world_version: agent.champion.version == wanted)
        stop.set()
        for thread in threads:
            thread.join()
        agent.flush()
    assert not failed
    decided = table("decisions")
    assert sorted(zip(decided["decision_id"], decided["version"], strict=True)) == sorted(made)
    assert {version for _, version in made} == {"flights@1", "flights@2", "flights@3"}
    folders = {path.name.split("-")[1] for path in champion.folder.glob("variant-*")}
    assert folders == {"3", "1"}  # the one in use, and the one before it


def test_another_process_on_this_machine_heeds_the_pointer_alone(
    champion: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Agent("flights", flush=False) as first:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # the other cannot ask
        with Agent("flights", follow=False, flush=False) as other:
            assert other.decide(ROW).version == "flights@1"
            champion.registry.promote("3")
            first.follow(champion.registry)
            until(lambda: other.champion.version == "flights@3")
            assert not other.status().troubled
            assert first.spool.name != other.spool.name


def test_with_everything_down_it_starts_from_the_copy_and_says_so(
    champion: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    Agent("flights").close()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    tables = champion.home / "knowledge" / "flights"
    tables.rename(tables.with_name("away"))
    tables.write_text("not a folder")
    agent = Agent("flights")
    decision = agent.decide(ROW)
    agent.outcome(decision.decision_id, "late")
    assert decision.version == "flights@1"
    until(lambda: {"registry", "knowledge_base"} <= set(agent.status().troubled))
    status = agent.status()
    assert "127.0.0.1:9" in status.problems["registry"].text and status.spool_rows == 2
    assert status.champion == "flights@1" and status.promoted_at is not None

    tables.unlink()
    tables.with_name("away").rename(tables)
    until(lambda: "knowledge_base" not in agent.status().troubled)
    assert agent.status().problems["knowledge_base"].over_at is not None
    agent.close()
    assert table("decisions")["decision_id"].tolist() == [decision.decision_id] and len(table("outcomes")) == 1


def test_without_a_copy_and_without_mlflow_there_is_no_champion_and_a_reason(
    champion: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with Agent("flights") as agent:
        with pytest.raises(NoChampionError, match=r"127\.0\.0\.1:9"):
            agent.decide(ROW)
        with pytest.raises(RegistryError):
            agent.follow()
        agent.observe(ROW)
    assert len(table("observations")) == 1


def test_a_damaged_copy_is_noticed_and_fetched_again(champion: World) -> None:
    Agent("flights").close()
    model = next(champion.folder.glob("variant-1-*/model.onnx"))
    sound = model.read_bytes()
    model.write_bytes(sound[:-1] + b"?")
    with Agent("flights", follow=False) as blind:
        with pytest.raises(NoChampionError, match="damaged"):
            blind.decide(ROW)
        assert "other checksums" in blind.status().troubled["champion"].text
    with Agent("flights") as agent:
        assert agent.decide(ROW).version == "flights@1"
    assert model.read_bytes() == sound


def test_a_copy_damaged_while_it_decides_is_fetched_again(champion: World) -> None:
    with Agent("flights") as agent:
        model = next(champion.folder.glob("variant-1-*/model.onnx"))
        sound = model.read_bytes()
        model.write_bytes(b"nothing")
        assert agent.decide(ROW).version == "flights@1"
        until(lambda: model.exists() and model.read_bytes() == sound)


def test_a_champion_that_does_not_fit_is_refused_and_the_old_one_stays(
    champion: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    champion.write(runtime={"poll": "1h", "flush": "1h"})
    columns = [dict(each, name="tail") if each["name"] == "hour" else each for each in made_here.COLUMNS]
    monkeypatch.setattr(made_here, "COLUMNS", columns)
    refreshed(made_here.Life(champion.registry, tmp_path / "work"), 4)
    with Agent("flights") as agent:
        champion.registry.promote("4")
        for _ in range(2):
            with pytest.raises(
                SchemaError, match=r"flights@4 does not fit.*tail \(number, in the agent file not at all\)"
            ):
                agent.follow(champion.registry)
        assert agent.decide(ROW).version == "flights@1"
    with Agent("flights", follow=False) as later:
        assert later.decide(ROW).version == "flights@1"


def test_a_champion_that_says_no_probabilities_is_refused(champion: World, monkeypatch: pytest.MonkeyPatch) -> None:
    champion.write(runtime={"poll": "1h", "flush": "1h"})
    with Agent("flights") as agent:
        champion.registry.promote("2")
        monkeypatch.setattr(Variant, "probabilities", lambda self, matrix: np.full((len(matrix), 2), np.nan))
        with pytest.raises(NoChampionError, match="no probabilities"):
            agent.follow(champion.registry)
        monkeypatch.undo()


def test_the_registry_may_be_rolled_back(champion: World) -> None:
    with Agent("flights") as agent:
        champion.registry.promote("2")
        assert agent.follow() == "flights@2"
        champion.registry.rollback()
        assert agent.follow() == "flights@1"
        assert agent.decide(ROW).version == "flights@1"


def test_importing_the_runtime_and_deciding_from_a_copy_need_no_mlflow(champion: World) -> None:
    Agent("flights").close()
    script = (
        "import sys; from stillhouse.runtime import Agent; agent = Agent('flights', follow=False); "
        "agent.decide({'wind': 1.0, 'hour': 2.0, 'origin': None}); agent.close(); "
        "print([name for name in ('mlflow', 'torch', 'sklearn') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_the_probabilities_recorded_are_those_given_out(champion: World) -> None:
    with Agent("flights") as agent:
        made = agent.decide([ROW | {"wind": float(i)} for i in range(50)])
    kept = table("decisions").set_index("decision_id").loc[[each.decision_id for each in made]]
    assert np.array_equal(np.stack(kept["probabilities"]), [list(each.probabilities.values()) for each in made])
    assert kept["action"].tolist() == [each.action for each in made]
