"""Acknowledged events are in the spool, whatever happens to its process or disk."""

from __future__ import annotations

import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from stillhouse.errors import SpoolError, SpoolFullError
from stillhouse.knowledge.events import Outcomes, decode
from stillhouse.knowledge.spool import Spool, SpoolFile

SRC = Path(__file__).parents[2] / "src"


def event(*names: str) -> Outcomes:
    n = len(names)
    return Outcomes(observation_ids=list(names), observed_at=[0] * n, known_at=[1] * n, actions=["go"] * n)


def names(path: Path) -> list[str]:
    """Ids of all observations in the spool's file, in order."""
    file = SpoolFile(path)
    actual = [name for entry in file.read(0, 10**9) for name in decode(entry.body).observation_ids]
    file.close()
    return actual


def path_of(spool: Spool) -> Path:
    return spool._file.path


# --------------------------------------------------------------------------- putting and forgetting


def test_events_come_back_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.put(event("a"), event("b", "c"))
    spool.put(event("d"))
    file = SpoolFile(path_of(spool))
    entries = file.read(0, 100)
    assert [(entry.seq, entry.rows) for entry in entries] == [(1, 1), (2, 2), (3, 1)]
    assert names(path_of(spool)) == ["a", "b", "c", "d"]
    assert [entry.seq for entry in file.read(1, 100)] == [2, 3]
    assert [entry.seq for entry in file.read(0, 3)] == [1, 2]
    assert [entry.seq for entry in file.read(1, 1)] == [2]  # an event is never split
    assert file.depth() == 4


def test_event_numbers_are_never_reused(tmp_path: Path) -> None:
    for _ in range(3):
        spool = Spool(tmp_path)
        spool.put(event("a"), event("b"))
        file = SpoolFile(path_of(spool))
        file.forget(file.last())
        file.close()
        spool.close()
    spool = Spool(tmp_path)
    spool.put(event("c"))
    file = SpoolFile(path_of(spool))
    assert [entry.seq for entry in file.read(0, 10)] == [7] and file.last() == 7
    assert len(list(tmp_path.glob("*.sqlite"))) == 1


def test_the_depth_is_the_number_of_waiting_rows(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for number in range(6):
        spool.put(event(*"abc"[: 1 + number % 3]))
    file = SpoolFile(path_of(spool))
    assert spool.depth() == file.depth() == 12
    file.forget(3)
    assert file.depth() == 6
    file.forget(6)
    assert file.depth() == 0
    spool.close()
    assert Spool(tmp_path).depth() == 0


def test_events_are_deleted_in_small_steps_and_the_log_is_checkpointed(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    for number in range(100):
        spool.put(event(f"{number}"))
    file = SpoolFile(path_of(spool))
    statements = list[str]()
    file.connection.set_trace_callback(statements.append)
    file.forget(70)
    file.connection.set_trace_callback(None)
    removed = [int(statement.rsplit(" ", 1)[1]) for statement in statements if statement.startswith("delete")]
    assert removed == [16, 32, 48, 64, 70]
    assert names(path_of(spool)) == [f"{number}" for number in range(70, 100)]
    spool.put(event("100"))  # the log restarts, with little more than this event
    assert file.connection.execute("pragma wal_checkpoint(passive)").fetchone()[1] < 10
    file.forget(71)
    file.forget(71)
    assert file.depth() == 30


def test_concurrent_puts_share_a_commit(tmp_path: Path) -> None:
    spool, statements = Spool(tmp_path), list[str]()
    spool._file.connection.set_trace_callback(statements.append)
    threads = [threading.Thread(target=spool.put, args=(event(f"{n}"),)) for n in range(8)]
    with spool._write_lock:  # as while another commit is under way
        for thread in threads:
            thread.start()
        while len(spool._queue) < 8:
            time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert sum(statement == "commit" for statement in statements) == 1
    assert sorted(names(path_of(spool))) == [f"{n}" for n in range(8)]


def test_many_threads_write_every_event_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path)

    def work(number: int) -> None:
        for turn in range(25):
            spool.put(event(f"{number}:{turn}"), event(f"{number}:{turn}+"))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    actual = names(path_of(spool))
    assert len(actual) == len(set(actual)) == 8 * 25 * 2
    for number in range(8):  # events of one thread stay in order
        own_names = [name for name in actual if name.startswith(f"{number}:")]
        assert own_names == [f"{number}:{turn}{more}" for turn in range(25) for more in ("", "+")]


# --------------------------------------------------------------------------- no room


def test_events_without_room_are_refused_together(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_rows=3)
    spool.put(event("a", "b"))
    with pytest.raises(SpoolFullError, match=r"2 rows wait .* which may hold 3 .*max_spool_rows"):
        spool.put(event("c"), event("d"))
    spool.put(event("e"))
    assert names(path_of(spool)) == ["a", "b", "e"]
    file = SpoolFile(path_of(spool))
    file.forget(1)
    spool.put(event("f", "g"))
    assert names(path_of(spool)) == ["e", "f", "g"]


def test_a_too_large_request_does_not_fail_others(tmp_path: Path) -> None:
    spool, refused = Spool(tmp_path, max_rows=3), list[str]()

    def put(*rows: str) -> None:
        try:
            spool.put(event(*rows))
        except SpoolFullError:
            refused.extend(rows)

    threads = [threading.Thread(target=put, args=rows) for rows in (("a",), ("b", "c", "d", "e"), ("f",))]
    with spool._write_lock:
        for number, thread in enumerate(threads):
            thread.start()
            while len(spool._queue) <= number:
                time.sleep(0.001)
    for thread in threads:
        thread.join()
    assert names(path_of(spool)) == ["a", "f"] and refused == ["b", "c", "d", "e"]


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from stillhouse.errors import SpoolError
from stillhouse.knowledge.events import Outcomes
from stillhouse.knowledge.spool import Spool

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spool = Spool(Path(sys.argv[1]))
def put(number):
    spool.put(Outcomes(observation_ids=[f"{number}" + "x" * 3000], observed_at=[0], known_at=[1], actions=["go"]))
    print(number, flush=True)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
number, refused = 0, 0
while refused < 5:
    number += 1
    try:
        put(number)
    except SpoolError as error:
        refused += 1
        print("refused", error, file=sys.stderr)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
for more in range(10):
    put(number + 1 + more)
"""


def test_a_full_disk_keeps_acknowledged_events(tmp_path: Path) -> None:
    """A file size limit acts like a full disk, and is lifted later."""
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path)], env=environment(), capture_output=True, text=True, check=True
    )
    acknowledged = [int(line) for line in done.stdout.split()]
    (path,) = tmp_path.glob("*.sqlite")
    actual = [int(name.rstrip("x")) for name in names(path)]
    assert "not full" in done.stderr and len(acknowledged) > 10
    assert actual == acknowledged


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(SRC)}


# --------------------------------------------------------------------------- whose it is


def test_a_spool_has_one_owner(tmp_path: Path) -> None:
    first, second = Spool(tmp_path), Spool(tmp_path)
    assert first.name != second.name
    first.put(event("a"))
    first.close()
    third = Spool(tmp_path)
    assert third.name == first.name and third.depth() == 1
    third.put(event("b"))
    assert names(path_of(third)) == ["a", "b"]


def test_a_damaged_spool_is_left_unchanged_and_blocks_no_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    damaged = tmp_path / "0123.sqlite"
    damaged.write_bytes(b"SQLite format 3\0 and then nothing that makes sense" * 40)
    before = damaged.read_bytes()
    with caplog.at_level(logging.ERROR):
        spool = Spool(tmp_path)
    assert spool.name != "0123" and damaged.read_bytes() == before
    assert "0123.sqlite" in caplog.text and "another spool is taken" in caplog.text
    spool.put(event("a"))
    assert names(path_of(spool)) == ["a"]


def test_a_folder_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SpoolError, match=r"the spool's folder .* cannot be written"):
        Spool(tmp_path / "file" / "spool")
    with pytest.raises(SpoolError, match="cannot be found"):
        SpoolFile(tmp_path / "absent.sqlite")
    assert not (tmp_path / "absent.sqlite").exists()


FORKED = """
import os, sys
from pathlib import Path
from stillhouse.errors import SpoolError
from stillhouse.knowledge.events import Outcomes
from stillhouse.knowledge.spool import Spool

spool = Spool(Path(sys.argv[1]))
child = os.fork()
if child == 0:
    try:
        spool.put(Outcomes(observation_ids=["child"], observed_at=[0], known_at=[1], actions=["go"]))
    except SpoolError:
        os._exit(7)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
spool.put(Outcomes(observation_ids=["parent"], observed_at=[0], known_at=[1], actions=["go"]))
"""


def test_a_forked_child_does_not_write_through_its_parents_spool(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", FORKED, str(tmp_path)], env=environment(), check=True)
    (path,) = tmp_path.glob("*.sqlite")
    assert names(path) == ["parent"]


# --------------------------------------------------------------------------- crashes

WRITER = """
import os, sys, threading
from pathlib import Path
from stillhouse.knowledge.events import Outcomes
from stillhouse.knowledge.spool import Spool

spool = Spool(Path(sys.argv[1]))
def work(thread):
    for number in range(10**9):
        name = f"{sys.argv[2]}:{thread}:{number}"
        spool.put(Outcomes(observation_ids=[name], observed_at=[0], known_at=[1], actions=["go"]))
        os.write(1, name.encode() + bytes([10]))  # one write call per line, so that lines of threads do not mix
for thread in range(3):
    threading.Thread(target=work, args=(thread,)).start()
"""


@pytest.mark.slow
def test_acknowledged_events_survive_a_kill(tmp_path: Path) -> None:
    acknowledged, rng = list[str](), random.Random(3)
    for life in range(4):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), f"{life}"],
            env=environment(),
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        acknowledged += [process.stdout.readline().strip() for _ in range(30)]
        time.sleep(rng.random() / 10)
        process.send_signal(signal.SIGKILL)
        acknowledged += process.stdout.read().split()
        process.wait()
    (path,) = tmp_path.glob("*.sqlite")  # every process took over the spool of the one before
    actual = names(path)
    assert len(actual) == len(set(actual))
    assert set(acknowledged) <= set(actual)
    assert len(actual) <= len(acknowledged) + 4 * 3


@pytest.mark.parametrize("seed", range(3))
def test_a_truncated_log_has_complete_commits(tmp_path: Path, seed: int) -> None:
    """After a lost sync: no partial event, and no event without those before it."""
    spool, rng = Spool(tmp_path / "live"), random.Random(seed)
    for number in range(40):
        spool.put(event(*(f"{number}:{row}" for row in range(rng.randint(1, 40)))))
    all_names = names(path_of(spool))
    for _ in range(15):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(tmp_path / "live", copy)
        (log,) = copy.glob("*.sqlite-wal")
        os.truncate(log, rng.randint(0, log.stat().st_size))
        for index in copy.glob("*.sqlite-shm"):
            index.unlink()
        taken = Spool(copy)
        actual = names(path_of(taken))
        assert actual == all_names[: len(actual)]
        behind = all_names[len(actual) :]  # a commit is complete or absent
        assert not actual or not behind or actual[-1].split(":")[0] != behind[0].split(":")[0]
        taken.put(event("after"))
        assert names(path_of(taken)) == [*actual, "after"]
        taken.close()


def test_readers_and_the_writer_wait_briefly(tmp_path: Path) -> None:
    """A writer writes during a read, and a reader sees complete commits only."""
    spool = Spool(tmp_path)
    spool.put(*(event(f"{n}") for n in range(10)))
    file = SpoolFile(path_of(spool))
    reading: Any = file.connection.execute("select seq from events order by seq")
    assert next(reading) == (1,)
    spool.put(event("more"))
    assert [seq for (seq,) in reading] == list(range(2, 11))
    assert len(file.read(0, 100)) == 11
