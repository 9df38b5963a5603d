"""Every event is flushed once: with kills between any two steps, concurrent writers and damaged bytes."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import random
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from stillhouse.config import AgentConfig
from stillhouse.errors import RuntimeStateError
from stillhouse.knowledge import KnowledgeBase, tables
from stillhouse.knowledge import flush as flush_module
from stillhouse.knowledge.events import Decided, Event, Observed, Offered, Outcomes, TeacherAnswered, decode
from stillhouse.knowledge.flush import flush
from stillhouse.knowledge.spool import Spool, SpoolFile
from stillhouse.knowledge.spool_erasing import WaitingRows, erase_events, read_waiting
from stillhouse.knowledge.tables import Tables
from stillhouse.records import Spending
from tests.knowledge.parts_for_tests import SPAWN, START, flush_and_die, make_config, make_rows

CONFIG = make_config()
HOUR = timedelta(hours=1)
COLUMNS = ["temp", "wind", "origin"]


@pytest.fixture
def kb(tmp_path: Path) -> KnowledgeBase:
    return KnowledgeBase(CONFIG, tmp_path / "kb")


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def micros(first: int, count: int) -> list[int]:
    return [int((START + number * HOUR).timestamp() * 1e6) for number in range(first, first + count)]


def observed(first: int, count: int = 1, columns: list[str] = COLUMNS) -> dict[str, Any]:
    rows = make_rows(first, count)
    return {
        "observation_ids": rows["observation_id"].tolist(),
        "observed_at": micros(first, count),
        "columns": columns,
        "values": rows[columns].to_numpy(dtype=object).tolist(),
    }


def decided(first: int, count: int = 1, columns: list[str] = COLUMNS) -> Decided:
    seen = observed(first, count, columns)
    return Decided(
        **seen,
        decision_ids=[f"{name}.d" for name in seen["observation_ids"]],
        decided_at=[time + 5 for time in seen["observed_at"]],
        actions=["move"] * count,
        probabilities=[[0.25, 0.75]] * count,
        deciders=["student"] * count,
        versions=["toy@1"] * count,
    )


def offered(first: int, count: int = 1) -> Offered:
    seen = observed(first, count)
    return Offered(
        ranking_id=f"r{first}",
        observation_ids=seen["observation_ids"],
        observed_at=seen["observed_at"],
        ranked_at=max(seen["observed_at"]),
        action="move",
        probabilities=[0.75] * count,
        positions=[1] + [None] * (count - 1),
        version="toy@1",
    )


def outcomes(first: int, count: int = 1) -> Outcomes:
    seen = observed(first, count)
    return Outcomes(
        observation_ids=seen["observation_ids"],
        observed_at=seen["observed_at"],
        known_at=[time + 3_600_000_000 for time in seen["observed_at"]],
        actions=["stay"] * count,
    )


def teacher_answered(
    first: int, count: int = 1, probability: float = 0.5, teacher: str = "t@1", **spending: Any
) -> TeacherAnswered:
    seen = observed(first, count)
    del seen["observation_ids"]
    return TeacherAnswered(
        **seen,
        teacher=teacher,
        asked_at=micros(first, 1)[0],
        probabilities=[[probability, 1 - probability]] * count,
        **spending,
    )


def ids(kb: KnowledgeBase, table: Any, column: str = "observation_id") -> list[str]:
    return sorted(kb.read(table)[column])


# --------------------------------------------------------------------------- rows


def test_decisions_are_flushed_with_their_observations(kb: KnowledgeBase, spool: Spool, tmp_path: Path) -> None:
    spool.put(decided(0, 3), Observed(**observed(3, 2)))
    spool.put(outcomes(0, 2))
    result = flush(kb, tmp_path / "spool")
    assert (result.events, result.spools, result.dead, result.problems) == (3, 1, 0, ())
    assert result.rows == {"observations": 5, "decisions": 3, "outcomes": 2}
    expected = KnowledgeBase(CONFIG, tmp_path / "expected")
    expected.append_observations(make_rows(0, 5), batch="b")
    pd.testing.assert_frame_equal(kb.read("observations"), expected.read("observations"))
    decisions = kb.read("decisions")
    assert decisions["decision_id"].tolist() == ["o0000.d", "o0001.d", "o0002.d"]
    assert (decisions["decided_at"] - decisions["observed_at"]).eq(timedelta(microseconds=5)).all()
    assert decisions["probabilities"].map(list).tolist() == [[0.25, 0.75]] * 3
    assert set(decisions["action"]) == {"move"} and set(decisions["version"]) == {"toy@1"}
    labelled = kb.read_labelled(kb.window("w", START, START + 10 * HOUR), START + 10 * HOUR)
    assert labelled["outcome"].tolist() == [0, 0]
    assert flush(kb, tmp_path / "spool").events == 0
    assert spool._file.depth() == 0


def test_candidates_of_rankings_become_rows(kb: KnowledgeBase, spool: Spool, tmp_path: Path) -> None:
    spool.put(decided(0), offered(0, 3))
    spool.put(offered(3, 2))
    assert flush(kb, tmp_path / "spool").rows == {"observations": 1, "decisions": 1, "rankings": 5}
    rows = kb.read("rankings").sort_values("observation_id")
    assert rows["ranking_id"].tolist() == ["r0"] * 3 + ["r3"] * 2
    assert rows["position"].fillna(0).tolist() == [1, 0, 0, 1, 0]
    assert rows["probability"].tolist() == [0.75] * 5 and set(rows["version"]) == {"toy@1"}


def test_a_candidate_of_a_ranking_is_dropped_from_a_spool(spool: Spool, tmp_path: Path) -> None:
    spool.put(offered(0, 3))
    spool.close()

    def drop(waiting: WaitingRows) -> list[bool]:
        return [name == "o0001" for name in waiting.rows["observation_id"]]

    assert erase_events(tmp_path / "spool", drop, lambda _: False) == (1, [])
    ((event, rows),) = read_waiting(tmp_path / "spool")
    assert isinstance(event, Offered) and event.positions == [1, None] and event.probabilities == [0.75] * 2
    assert rows["observation_id"].tolist() == ["o0000", "o0002"]


def test_missing_values_and_columns_are_null_and_unknown_columns_are_ignored(
    kb: KnowledgeBase, spool: Spool, tmp_path: Path
) -> None:
    """An event from before the contract got ``wind`` and lost ``rain``."""
    old = Observed(
        observation_ids=["old"],
        observed_at=micros(0, 1),
        columns=["origin", "rain", "temp"],
        values=[["EWR", 3.0, None]],
    )
    spool.put(Observed(**observed(1)), old, decided(2))
    assert flush(kb, tmp_path / "spool").rows["observations"] == 3
    rows = kb.read("observations")
    assert rows["observation_id"].tolist() == ["old", "o0001", "o0002"]
    assert rows["origin"].tolist() == ["EWR", "EWR", "JFK"]
    assert np.isnan(rows.loc[0, ["temp", "wind"]].astype(float)).all()
    assert "rain" not in rows


def test_an_event_is_never_split_between_commits(kb: KnowledgeBase, spool: Spool, tmp_path: Path) -> None:
    for first in range(0, 40, 8):
        spool.put(decided(first, 8))
    assert flush(kb, tmp_path / "spool", max_rows=10).rows == {"observations": 40, "decisions": 40}
    delta = kb.tables.open("decisions")
    assert delta is not None and delta.version() == 5
    assert ids(kb, "decisions") == [f"o{number:04d}" for number in range(40)]


# --------------------------------------------------------------------------- knowledge


def test_the_first_answer_of_a_teacher_is_kept(kb: KnowledgeBase, spool: Spool, tmp_path: Path) -> None:
    spool.put(teacher_answered(0, 2, 0.3), teacher_answered(0, 1, 0.9), teacher_answered(0, 1, 0.8, teacher="t@2"))
    assert flush(kb, tmp_path / "spool").rows == {"knowledge": 3}
    spool.put(teacher_answered(0, 3, 0.6))
    assert flush(kb, tmp_path / "spool").rows == {"knowledge": 1}
    kb.append_observations(make_rows(0, 3), batch="b")
    rows = kb.read("observations")
    assert kb.answers.probs(rows, "t@1")[:, 0].tolist() == [0.3, 0.3, 0.6]
    np.testing.assert_array_equal(kb.answers.probs(rows, "t@2")[:, 0], [0.8, np.nan, np.nan])
    assert kb.answers.append(rows, np.full((3, 2), 0.5), teacher="t@1") == 0  # nor is it asked again


def test_an_answer_for_fewer_actions_is_another_answer(kb: KnowledgeBase, spool: Spool, tmp_path: Path) -> None:
    spool.put(teacher_answered(0))
    flush(kb, tmp_path / "spool")
    spool.put(msgspec.structs.replace(teacher_answered(0), probabilities=[[0.2, 0.3, 0.5]]))
    assert flush(kb, tmp_path / "spool").rows == {"knowledge": 1}


def test_costs_of_teachers_are_summed(kb: KnowledgeBase, spool: Spool, tmp_path: Path) -> None:
    spent = {"llm": {"calls": 2, "rows": 3, "money": 0.5}, "other": {"calls": 1}}
    spool.put(teacher_answered(0, 3, spending=spent), teacher_answered(9, 0, spending={"llm": {"calls": 1}}))
    flush(kb, tmp_path / "spool")
    assert kb.answers.spending(purpose="runtime") == {
        "llm": Spending(calls=3, rows=3, money=0.5),
        "other": Spending(calls=1),
    }
    assert kb.answers.spending(after=START + 5 * HOUR) == {"llm": Spending(calls=1)}
    assert kb.tables.count_rows()["knowledge"] == 3


# --------------------------------------------------------------------------- kills

STEPS = ["observations", "decisions", "rankings", "knowledge", "outcomes", "forget"]


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_the_next_flush_completes_a_killed_one(
    kb: KnowledgeBase, spool: Spool, tmp_path: Path, step: str, moment: str
) -> None:
    spool.put(decided(0, 3), offered(0, 3), teacher_answered(0, 2), outcomes(0, 3))
    process = SPAWN.Process(target=flush_and_die, args=(kb.root, tmp_path / "spool", step, moment))
    process.start()
    process.join(300)
    assert process.exitcode == 9
    spool.put(decided(3, 2), teacher_answered(0, 3), outcomes(3, 2))  # new events make the next chunk differ
    flush(kb, tmp_path / "spool")
    rows = {"observations": 5, "decisions": 5, "rankings": 3, "knowledge": 3, "outcomes": 5}
    assert kb.tables.count_rows() == rows
    for table in ("observations", "decisions", "outcomes"):
        assert ids(kb, table) == [f"o{number:04d}" for number in range(5)]
    assert spool._file.depth() == 0


class Killed(BaseException):
    """A simulated kill; no code catches it."""


@pytest.mark.parametrize("seed", range(6))
def test_every_event_is_stored_once_under_random_interruptions(
    kb: KnowledgeBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Changing writers, flushes killed at any step, compaction and batches, in random order."""
    rng, folder = random.Random(seed), tmp_path / "spool"
    fuse: list[int] = []  # steps until the flush is killed; empty: never

    def burning(step: Callable[..., Any]) -> Callable[..., Any]:
        def burn() -> None:
            if fuse:
                fuse[0] -= 1
                if fuse[0] < 0:
                    raise Killed

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            burn()
            result = step(*args, **kwargs)
            burn()
            return result

        return wrapped

    for owner, name in (
        (Tables, "commit"),
        (Tables, "sync_commit"),
        (SpoolFile, "forget"),
        (SpoolFile, "read"),
    ):
        monkeypatch.setattr(owner, name, burning(getattr(owner, name)))
    live = [Spool(folder), Spool(folder)]
    put = dict.fromkeys(("decided", "outcomes", "observed"), 0)
    expected_ids: dict[str, list[str]] = {name: [] for name in put}
    batches = 0
    for _ in range(60):
        match rng.choice(
            ["decided", "outcomes", "observed", "flush", "killed", "killed", "change", "compact", "batch"]
        ):
            case "flush":
                flush(kb, folder, max_rows=rng.choice([1, 5, 1000]))
            case "killed":
                fuse[:] = [rng.randint(0, 12)]
                with contextlib.suppress(Killed):
                    flush(kb, folder, max_rows=rng.choice([1, 5, 1000]))
                fuse.clear()
            case "change":
                live.pop(rng.randrange(2)).close()
                live.append(Spool(folder))
            case "compact":
                for table in kb.tables.count_rows():
                    kb.tables.open(table).optimize.compact()  # type: ignore[union-attr, arg-type]
            case "batch":
                kb.append_observations(make_rows(9000 + batches, 1), batch=f"{batches}")
                batches += 1
            case kind:
                count = rng.randint(1, 4)
                first = {"decided": 0, "outcomes": 0, "observed": 5000}[kind] + put[kind]
                event: Event = {
                    "decided": lambda f=first, c=count: decided(f, c),
                    "outcomes": lambda f=first, c=count: outcomes(f, c),
                    "observed": lambda f=first, c=count: Observed(**observed(f, c)),
                }[kind]()
                rng.choice(live).put(event)
                expected_ids[kind] += [f"o{number:04d}" for number in range(first, first + count)]
                put[kind] += count
    flush(kb, folder)
    assert ids(kb, "decisions") == sorted(expected_ids["decided"]) if expected_ids["decided"] else True
    assert ids(kb, "outcomes") == sorted(expected_ids["outcomes"])
    batched = [f"o{9000 + number:04d}" for number in range(batches)]
    assert ids(kb, "observations") == sorted(expected_ids["decided"] + expected_ids["observed"] + batched)


def test_concurrent_flushes_write_no_event_twice(kb: KnowledgeBase, tmp_path: Path) -> None:
    folder = tmp_path / "spool"
    spools = [Spool(folder) for _ in range(3)]
    result = list[int]()

    def write(number: int) -> None:
        for turn in range(20):
            spools[number].put(decided(100 * number + turn))

    def move() -> None:
        for _ in range(6):
            result.append(flush(kb, folder, max_rows=7).events)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    threads += [threading.Thread(target=move) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    result.append(flush(kb, folder).events)
    assert sum(result) == 60
    assert ids(kb, "decisions") == sorted(f"o{100 * number + turn:04d}" for number in range(3) for turn in range(20))
    assert kb.tables.count_rows() == {"observations": 60, "decisions": 60}


def test_a_busy_spool_does_not_block_the_flush_of_others(
    kb: KnowledgeBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer adds an event at every commit of the flush."""
    folder = tmp_path / "spool"
    busy, other = sorted((Spool(folder) for _ in range(2)), key=lambda spool: spool.name)
    busy.put(decided(0))
    other.put(decided(500))
    commit, more = Tables.commit, iter(range(1, 100))

    def writing(base: Tables, table: Any, *rest: Any) -> int | None:
        busy.put(decided(next(more)))
        return commit(base, table, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Tables, "commit", writing)
        flush(kb, folder, max_rows=1)
    assert "o0500" in ids(kb, "decisions") and busy._file.depth() > 0
    flush(kb, folder)
    assert busy._file.depth() == 0 and kb.tables.count_rows() == {"observations": 6, "decisions": 6}


def test_a_spool_locked_by_another_flush_is_skipped(kb: KnowledgeBase, spool: Spool, tmp_path: Path) -> None:
    spool.put(decided(0))
    with FileLock(tmp_path / "spool" / f"{spool.name}.flush"):
        result = flush(kb, tmp_path / "spool")
    assert (result.events, result.spools) == (0, 0)
    assert flush(kb, tmp_path / "spool").events == 1


def test_concurrent_commits_of_other_writers_are_no_conflict(
    kb: KnowledgeBase, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A concurrent commit changes the schema: Delta rejects the append, which is retried."""
    kb.append_observations(make_rows(100, 1), batch="before")
    spool.put(decided(0, 2))
    write, grown = tables.write_deltalake, list[int]()

    def interrupted(delta: Any, rows: Any, **settings: Any) -> None:
        if not grown:
            grown.append(1)
            columns = CONFIG.observations.model_dump() | {
                "columns": {**CONFIG.observations.columns, "more": {"type": "number"}}
            }
            wider = AgentConfig.model_validate({**CONFIG.model_dump(), "observations": columns})
            KnowledgeBase(wider, kb.root).append_observations(make_rows(200, 1).assign(more=1.0), batch="wider")
        write(delta, rows, **settings)

    monkeypatch.setattr(tables, "write_deltalake", interrupted)
    result = flush(kb, tmp_path / "spool")
    assert grown and result.rows == {"observations": 2, "decisions": 2}
    assert ids(kb, "observations") == ["o0000", "o0001", "o0100", "o0200"]


# --------------------------------------------------------------------------- what cannot be


def test_bytes_that_are_no_event_go_to_the_dead_letters(
    kb: KnowledgeBase, spool: Spool, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool.put(decided(0))
    spool._file.connection.execute("insert into events(rows, total, body) values (1, 2, x'C1C1')")
    spool.put(decided(1))
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(Tables, "commit", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            flush(kb, tmp_path / "spool")
    dead = tmp_path / "spool" / f"{spool.name}.dead"
    dead.write_bytes(dead.read_bytes() + b'\n{"seq": 7, "wh')  # as if a kill had truncated a line
    assert "event 2 of spool" in caplog.text and str(dead) in caplog.text
    result = flush(kb, tmp_path / "spool")
    assert (result.events, result.dead) == (2, 1)
    assert ids(kb, "decisions") == ["o0000", "o0001"]
    lines = [json.loads(line) for line in dead.read_text().splitlines() if line.endswith("}")]
    assert [line["seq"] for line in lines] == [2]
    assert base64.b64decode(lines[0]["body"]) == b"\xc1\xc1"
    assert flush(kb, tmp_path / "spool").dead == 0 and spool._file.depth() == 0


BROKEN = {
    "a text for a number": lambda: Observed(**observed(50) | {"values": [["warm", 1.0, "EWR"]]}),
    "too few values": lambda: Observed(**observed(50) | {"values": [[1.0, "EWR"]]}),
    "too few rows": lambda: Observed(**observed(50, 2) | {"values": [[1.0, 1.0, "EWR"]]}),
    "too few times": lambda: Observed(**observed(50, 2) | {"observed_at": micros(50, 1)}),
    "a column twice": lambda: Observed(**observed(50) | {"columns": ["temp", "temp", "origin"]}),
    "a time beyond all calendars": lambda: Observed(**observed(50) | {"observed_at": [2**63]}),
    "too few actions": lambda: msgspec.structs.replace(decided(50), actions=[]),
    "a strange field of spending": lambda: teacher_answered(50, spending={"llm": {"apples": 3}}),
    "too few probabilities": lambda: msgspec.structs.replace(teacher_answered(50, 2), probabilities=[[0.5, 0.5]]),
}


@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
def test_an_unusable_event_does_not_block_others(
    kb: KnowledgeBase, spool: Spool, tmp_path: Path, broken: Callable[[], Event]
) -> None:
    for number in range(4):
        spool.put(decided(number))
    spool.put(broken())
    spool.put(outcomes(0, 4))
    result = flush(kb, tmp_path / "spool")
    assert (result.events, result.dead) == (5, 1)
    assert ids(kb, "decisions") == ids(kb, "observations") == ids(kb, "outcomes") == [f"o{n:04d}" for n in range(4)]
    assert kb.tables.count_rows().get("knowledge", 0) == kb.tables.count_rows().get("spending", 0) == 0
    (line,) = filter(None, (tmp_path / "spool" / f"{spool.name}.dead").read_text().splitlines())
    assert json.loads(line)["seq"] == 5


def test_a_changed_column_type_blocks_and_loses_no_event(kb: KnowledgeBase, spool: Spool, tmp_path: Path) -> None:
    spool.put(decided(0))
    flush(kb, tmp_path / "spool")
    raw = CONFIG.model_dump(exclude_unset=True)
    raw["observations"]["columns"]["wind"] = {"type": "category"}
    changed = KnowledgeBase(AgentConfig.model_validate(raw), kb.root)
    new = Observed(**observed(1) | {"values": [[1.0, "strong", "EWR"]], "columns": ["temp", "wind", "origin"]})
    spool.put(new, *(decided(number) for number in range(2, 9)))
    spool.put(outcomes(0, 1))
    result = flush(changed, tmp_path / "spool")
    assert (result.events, result.dead, result.rows) == (1, 8, {"outcomes": 1})
    assert spool._file.depth() == 0 and ids(kb, "observations") == ["o0000"]
    lines = [json.loads(line) for line in (tmp_path / "spool" / f"{spool.name}.dead").read_text().splitlines() if line]
    assert [line["seq"] for line in lines] == list(range(2, 10)) and "'wind' as numbers" in lines[0]["why"]
    assert decode(base64.b64decode(lines[0]["body"])) == new


def test_an_unreadable_spool_does_not_block_others(kb: KnowledgeBase, spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "spool" / "0123.sqlite").write_bytes(b"not a database" * 100)
    spool.put(decided(0))
    result = flush(kb, tmp_path / "spool")
    assert result.events == 1 and "0123.sqlite" in result.problems[0]


def test_an_older_copy_of_a_spool_is_reported(kb: KnowledgeBase, spool: Spool, tmp_path: Path) -> None:
    path = tmp_path / "spool" / f"{spool.name}.sqlite"
    spool.put(decided(0))
    spool.close()
    copy = path.read_bytes()
    again = Spool(tmp_path / "spool")
    again.put(decided(1), decided(2))
    again.close()
    flush(kb, tmp_path / "spool")
    path.write_bytes(copy)
    restored = Spool(tmp_path / "spool")
    restored.put(decided(3))
    result = flush(kb, tmp_path / "spool")
    assert "an older copy was put in its place" in result.problems[0] and result.events == 0
    assert restored.depth() == 2  # all is still there


def test_events_stay_in_the_spool_if_the_tables_cannot_be_written(spool: Spool, tmp_path: Path) -> None:
    spool.put(decided(0))
    (tmp_path / "kb").write_text("in the way")
    with pytest.raises(RuntimeStateError, match=r"the events in .* could not be written .* they stay in the spool"):
        flush(KnowledgeBase(CONFIG, tmp_path / "kb"), tmp_path / "spool")
    (tmp_path / "kb").unlink()
    assert spool._file.depth() == 1
    assert flush(KnowledgeBase(CONFIG, tmp_path / "kb"), tmp_path / "spool").events == 1


def test_a_flush_without_spools(kb: KnowledgeBase, tmp_path: Path) -> None:
    assert flush_module.flush(kb, tmp_path / "absent").model_copy(update={"seconds": 0.0}) == flush_module.FlushResult()
    assert not (tmp_path / "absent").exists() and not kb.root.exists()


# --------------------------------------------------------------------------- handed in from elsewhere


def handed_in(first: int, count: int = 1) -> Decided:
    return msgspec.structs.replace(decided(first, count), handed_in=True)


def test_what_is_handed_in_again_is_written_once(kb: KnowledgeBase, tmp_path: Path) -> None:
    first, second = Spool(tmp_path / "spool"), Spool(tmp_path / "spool")
    first.put(handed_in(0, 3), handed_in(0, 3))  # twice in one chunk
    second.put(handed_in(1, 4), decided(9))  # and in another process's spool
    flush(kb, tmp_path / "spool")
    first.put(handed_in(0, 5))  # and when it has been there for long
    result = flush(kb, tmp_path / "spool")
    assert (result.events, result.rows, result.dead) == (1, {}, 0)
    assert len(ids(kb, "observations")) == 6
    assert ids(kb, "decisions", "decision_id") == sorted(decided(0, 5).decision_ids + decided(9).decision_ids)


def test_decisions_with_the_same_ids_that_were_not_handed_in_are_not_compared(
    kb: KnowledgeBase, spool: Spool, tmp_path: Path
) -> None:
    spool.put(decided(0), decided(0))
    assert flush(kb, tmp_path / "spool").rows == {"observations": 2, "decisions": 2}


@pytest.mark.parametrize("table", ["observations", "decisions"])
def test_a_flush_that_dies_between_two_tables_doubles_nothing_that_is_handed_in_again(
    kb: KnowledgeBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    first, commit = Spool(tmp_path / "spool"), Tables.commit

    def commit_and_die(self: Tables, name: Any, *arguments: Any) -> Any:
        version = commit(self, name, *arguments)
        if name == table:
            raise KeyboardInterrupt
        return version

    first.put(handed_in(0, 3))
    monkeypatch.setattr(Tables, "commit", commit_and_die)
    with pytest.raises(KeyboardInterrupt):
        flush(kb, tmp_path / "spool")
    monkeypatch.setattr(Tables, "commit", commit)
    again = Spool(tmp_path / "spool")
    again.put(handed_in(0, 3))
    flush(kb, tmp_path / "spool")
    assert len(ids(kb, "observations")) == len(ids(kb, "decisions")) == 3


def test_two_flushes_at_once_write_what_was_handed_in_to_both_once(kb: KnowledgeBase, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        Spool(folder).put(handed_in(0, 50))
    threads = [threading.Thread(target=flush, args=(KnowledgeBase(CONFIG, kb.root), folder)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ids(kb, "observations")) == len(ids(kb, "decisions")) == 50
