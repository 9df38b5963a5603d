"""Rows are erased from every version of a table: no file holds them any more, and all others are read as before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from stillhouse.config import Upkeep
from stillhouse.errors import StoreError
from stillhouse.knowledge import KnowledgeBase, erasing, upkeep
from stillhouse.knowledge.erasing import drop_rows, edit_rows, erase
from tests.knowledge.parts_for_tests import START, make_config, make_rows
from tests.knowledge.test_upkeep import DAY, NOW, window

GONE = ["o0003", "o0100", "o0503"]


@pytest.fixture
def base(tmp_path: Path) -> KnowledgeBase:
    """Twenty-five small batches with a canary, compacted, old rows deleted, a part of the old files removed."""
    kept = KnowledgeBase(make_config(), tmp_path / "kb")
    for first in range(0, 25 * 24, 24):
        rows = make_rows(first, 24)
        rows.loc[rows["observation_id"].isin(GONE), "origin"] = "zz canary"  # the largest value in the statistics
        kept.append_observations(rows, batch=f"{first}")
    upkeep.compact(kept.tables, Upkeep(min_files=2))
    kept.append_observations(make_rows(25 * 24, 24), batch="after")
    upkeep.delete_old_rows(kept.tables, START + 2 * DAY, {})
    return kept


def are_gone(rows: pa.Table) -> pa.Array:
    return pc.is_in(rows["observation_id"], pa.array(GONE))


FORGET = drop_rows(["observation_id"], are_gone)


def read_versions(base: KnowledgeBase) -> list[list[str]]:
    """The ids of every version of the observations that can be read, in order."""
    newest = KnowledgeBase(make_config(), base.root).tables.open("observations")
    assert newest is not None
    versions = []
    for version in range(newest.version() + 1):
        delta = base.tables.open("observations", version)
        assert delta is not None
        versions.append(
            sorted(delta.to_pyarrow_dataset().to_table(columns=["observation_id"])["observation_id"].to_pylist())
        )
    return versions


def files_with(folder: Path, *needles: str) -> list[Path]:
    """Files that contain a needle as bytes, or in Parquet decompressed."""
    found = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += str(pq.ParquetFile(path).read().to_pylist()).encode()
        found += [path] * any(needle.encode() in content for needle in needles)
    return found


def without(versions: list[list[str]]) -> list[list[str]]:
    return [[name for name in ids if name not in GONE] for ids in versions]


def test_every_version_reads_as_before_without_the_rows(base: KnowledgeBase) -> None:
    before, pinned = read_versions(base), window(base, 0, 30)
    opened = base.read("observations")
    assert files_with(base.root, *GONE, "canary")
    # three small files, the compacted one, and that of the deletion
    assert erase(base.tables, "observations", FORGET) == 5
    assert read_versions(base) == without(before)
    assert not files_with(base.root, *GONE, "canary")
    assert len(base.read("observations", pinned)) == len(opened) - 2 == len(base.read("observations"))
    assert erase(base.tables, "observations", FORGET) == 0


def test_a_table_can_be_appended_compacted_and_vacuumed_afterwards(base: KnowledgeBase) -> None:
    expected = without(read_versions(base))[-1]
    erase(base.tables, "observations", FORGET)
    base.append_observations(make_rows(1000, 24), batch="later")
    upkeep.compact(base.tables, Upkeep(min_files=2))
    upkeep.vacuum(base.tables, NOW, {})
    fresh = KnowledgeBase(make_config(), base.root)
    later = make_rows(1000, 24)["observation_id"].tolist()
    for reader in (base, fresh):
        assert sorted(reader.read("observations")["observation_id"]) == sorted([*expected, *later])


def test_statistics_of_files_that_upkeep_removed_go_too(base: KnowledgeBase) -> None:
    upkeep.vacuum(base.tables, NOW, {})
    assert any("_delta_log" in path.parts for path in files_with(base.root, "canary"))
    erase(base.tables, "observations", FORGET)
    assert not files_with(base.root, *GONE, "canary")
    assert not set(GONE) & set(base.read("observations")["observation_id"])


def test_a_file_without_a_row_left_disappears(tmp_path: Path) -> None:
    base = KnowledgeBase(make_config(), tmp_path / "kb")
    base.append_observations(make_rows(3, 1), batch="only")
    base.append_observations(make_rows(7, 2), batch="others")
    erase(base.tables, "observations", FORGET)
    assert read_versions(base) == [[], [], ["o0007", "o0008"]]
    assert base.append_observations(make_rows(3, 1), batch="only") == 0  # the batch is still known


def test_another_process_with_an_open_table_reads_the_new_files(base: KnowledgeBase) -> None:
    other = KnowledgeBase(make_config(), base.root)
    before = len(other.read("observations"))
    erase(base.tables, "observations", FORGET)
    assert len(other.read("observations")) == before - 2
    other.append_observations(make_rows(2000, 1), batch="other")
    assert len(base.read("observations")) == before - 1


def test_values_of_a_column_are_edited(base: KnowledgeBase) -> None:
    erase(base.tables, "observations", edit_rows("origin", lambda text: "blot" if text == "zz canary" else text))
    assert not files_with(base.root, "canary")
    assert (base.read("observations")["origin"] == "blot").sum() == 2


@pytest.mark.slow
@pytest.mark.parametrize("is_vacuumed", [False, True])
def test_killed_at_any_write_the_table_stays_whole_and_the_next_run_completes(
    base: KnowledgeBase, monkeypatch: pytest.MonkeyPatch, is_vacuumed: bool
) -> None:
    if is_vacuumed:
        upkeep.vacuum(base.tables, NOW, {})
    full = sorted(base.read("observations")["observation_id"])
    cleaned = without([full])[0]
    writes = 0
    for kill_at in range(1, 200):
        with monkeypatch.context() as patch:
            kill = _Killer(kill_at)
            patch.setattr(erasing, "write_atomic", kill.before(erasing.write_atomic))
            patch.setattr(erasing.pq, "write_table", kill.before(pq.write_table))
            patch.setattr(Path, "unlink", kill.before(Path.unlink))
            try:
                erase(base.tables, "observations", FORGET)
                break
            except KeyboardInterrupt:
                writes += 1
        ids = sorted(KnowledgeBase(make_config(), base.root).read("observations")["observation_id"])
        assert len(ids) == len(set(ids)), f"doubled rows after write {kill_at}"
        assert set(cleaned) <= set(ids) <= set(full)
    assert writes > 5
    assert sorted(base.read("observations")["observation_id"]) == cleaned
    assert not files_with(base.root, *GONE, "canary")


class _Killer:
    """Raises before the n-th call of the functions that it wraps."""

    def __init__(self, at: int) -> None:
        self._left = at

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return call


def test_a_damaged_log_is_refused(base: KnowledgeBase) -> None:
    commit = next(_commits(base))
    commit.write_text('{"commitInfo":')
    with pytest.raises(StoreError, match="is damaged, so rows cannot be erased"):
        erase(base.tables, "observations", FORGET)


def _commits(base: KnowledgeBase) -> Iterator[Path]:
    return iter(sorted((base.root / "observations" / "_delta_log").glob("0*.json")))
