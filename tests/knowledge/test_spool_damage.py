"""Damaged, replaced or missing spools block no process, and their readable events are kept."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from stillhouse.errors import SpoolDamagedError, SpoolError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.flush import flush
from stillhouse.knowledge.spool import Spool, SpoolFile, survey
from tests.knowledge.test_flush import decided, ids, kb, spool

__all__ = ["kb", "spool"]


def names(count: int, start: int = 0) -> list[str]:
    return [f"o{number:04d}" for number in range(start, start + count)]


def path_of(spool: Spool) -> Path:
    return spool._file.path


def filled(folder: Path, count: int, start: int = 0) -> Path:
    """A spool of an ended process, with that many events of one decision."""
    spool = Spool(folder)
    for number in range(start, start + count):
        spool.put(decided(number))
    spool.close()
    return path_of(spool)


def corrupt(path: Path, at: float) -> None:
    """Overwrite one page of the file with random bytes."""
    content = bytearray(path.read_bytes())
    page = int(len(content) * at) // 4096 * 4096
    content[page : page + 4096] = b"\xa5" * 4096
    path.write_bytes(content)


# --------------------------------------------------------------------------- nobody's


def foreign(path: Path) -> None:
    with sqlite3.connect(path) as database:
        database.execute("create table events(seq integer primary key, name text)")
    database.close()


ODD: dict[str, Callable[[Path], object]] = {
    "no bytes": lambda path: path.write_bytes(b""),
    "other bytes": lambda path: path.write_bytes(b"not a database" * 1000),
    "only the head": lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(84)),
    "another database": foreign,
    "a folder": lambda path: path.mkdir(),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
    "a lock that is a folder": lambda path: path.with_suffix(".owner").mkdir() or foreign(path),
}


@pytest.mark.parametrize("make", ODD.values(), ids=ODD)
def test_a_foreign_file_blocks_no_writer_flush_or_survey(
    kb: KnowledgeBase, tmp_path: Path, make: Callable[[Path], object]
) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    make(folder / "0000.sqlite")
    before = (folder / "0000.sqlite").read_bytes() if (folder / "0000.sqlite").is_file() else None
    spool = Spool(folder)
    spool.put(decided(0))
    looked = survey(folder)
    assert looked.rows == 1 and len(looked.problems) == 1 and "0000.sqlite" in looked.problems[0]
    result = flush(kb, folder)
    assert result.events == 1 and "0000.sqlite" in result.problems[0]
    assert ids(kb, "decisions") == names(1)
    (problem,) = survey(folder).problems  # until it is removed
    assert "0000" in problem
    there = [path for path in (folder / "0000.sqlite", folder / "0000.damaged") if path.is_file()]
    assert [path.read_bytes() for path in there] == ([] if before is None else [before])


@pytest.mark.parametrize("at", [0.3, 0.6, 0.99])
def test_readable_events_of_a_damaged_spool_are_kept(kb: KnowledgeBase, tmp_path: Path, at: float) -> None:
    folder = tmp_path / "corrupt"
    path = filled(folder, 60)
    corrupt(path, at)
    damaged = path.read_bytes()
    living = Spool(folder)
    assert living.name != path.stem  # no process writes to a damaged spool
    living.put(decided(100))
    result = flush(kb, folder, max_rows=20)
    assert "damaged" in result.problems[0] and "set aside" in result.problems[0]
    there = ids(kb, "decisions")
    assert there == sorted(set(there)) and "o0100" in there and set(there) <= {*names(60), "o0100"}
    assert len(there) > 30
    aside = path.with_suffix(".damaged")
    assert not path.exists() and len(aside.read_bytes()) == len(damaged)
    assert flush(kb, folder).problems == () and ids(kb, "decisions") == there
    assert "set aside" in survey(folder).problems[0]


def test_a_second_damaged_spool_does_not_overwrite_the_first(kb: KnowledgeBase, tmp_path: Path) -> None:
    for content in (b"one", b"two"):
        (tmp_path / "a.sqlite").write_bytes(content)
        flush(kb, tmp_path)
    assert (tmp_path / "a.damaged").read_bytes() == b"one" and (tmp_path / "a.2.damaged").read_bytes() == b"two"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_reported(kb: KnowledgeBase, tmp_path: Path) -> None:
    path = filled(tmp_path, 2)
    path.chmod(0)
    assert str(path) in survey(tmp_path).problems[0] and str(path) in flush(kb, tmp_path).problems[0]
    path.chmod(0o600)
    assert flush(kb, tmp_path).events == 2


# --------------------------------------------------------------------------- one's own


def removed(path: Path) -> None:
    path.unlink()


def folder_removed(path: Path) -> None:
    shutil.rmtree(path.parent)


def replaced(path: Path) -> None:
    other = path.with_suffix(".other")
    other.write_bytes(b"something else" * 1000)
    other.replace(path)


def replaced_by_a_spool(path: Path) -> None:
    filled(path.parent / "else", 1, start=900).replace(path)


def overwritten(path: Path) -> None:
    path.write_bytes(b"something else")


def log_removed(path: Path) -> None:
    path.with_name(path.name + "-wal").unlink()


HARMS = (removed, folder_removed, replaced, replaced_by_a_spool, overwritten, log_removed)


@pytest.mark.parametrize("harm", HARMS)
def test_a_spool_damaged_while_in_use_loses_no_event(
    kb: KnowledgeBase, tmp_path: Path, harm: Callable[[Path], None]
) -> None:
    """Events acknowledged before and after the damage are stored once; no call fails."""
    folder = tmp_path / "own"
    spool = Spool(folder)
    for number in range(10):
        spool.put(decided(number))
    assert flush(kb, folder).events == 10
    for number in range(10, 20):
        spool.put(decided(number))
    harm(path_of(spool))
    spool.check()
    for number in range(20, 30):
        spool.put(decided(number))
    assert flush(kb, folder).problems == ()
    assert ids(kb, "decisions") == names(30)
    assert spool.depth() == 0 or SpoolFile(path_of(spool)).depth() == 0
    assert SpoolFile(path_of(spool)).last() == 30
    assert Spool(folder).name != spool.name  # it is still owned


@pytest.mark.parametrize("harm", [removed, folder_removed, replaced, log_removed])
def test_the_next_put_notices_without_a_check(kb: KnowledgeBase, tmp_path: Path, harm: Callable[[Path], None]) -> None:
    folder = tmp_path / "own"
    spool = Spool(folder)
    spool.put(decided(0), decided(1))
    harm(path_of(spool))
    spool.put(decided(2))
    spool.put(decided(3))
    flush(kb, folder)
    assert ids(kb, "decisions") == names(4) and kb.tables.count_rows()["decisions"] == 4


def test_a_full_disk_refuses_until_it_has_room(kb: KnowledgeBase, tmp_path: Path) -> None:
    import resource

    spool = Spool(tmp_path / "own")
    spool.put(decided(0))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(SpoolError, match="local disk that is writable and not full"):
            spool.put(decided(1))
        with pytest.raises(SpoolError):
            spool.check(write=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    spool.check(write=True)
    spool.put(decided(2))
    flush(kb, tmp_path / "own")
    assert ids(kb, "decisions") == ["o0000", "o0002"]


def test_a_spool_is_restored_once_that_is_possible(kb: KnowledgeBase, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    spool = Spool(folder)
    spool.put(decided(0))
    shutil.rmtree(folder)
    folder.write_text("in the way")
    with pytest.raises(SpoolError, match="cannot be restored"):
        spool.check()
    folder.unlink()
    spool.put(decided(1))
    flush(kb, folder)
    assert ids(kb, "decisions") == names(2)


def test_a_damaged_spool_raises_its_own_error(tmp_path: Path) -> None:
    path = filled(tmp_path, 60)
    corrupt(path, 0.6)
    file = SpoolFile(path)
    with pytest.raises(SpoolDamagedError):
        file.require_undamaged()
    assert 0 < len(list(file.salvage(0))) < 60
