"""Erase rows from every version of a Delta table: afterwards no data file, log entry or checkpoint holds any of them.

A Delta table never forgets by itself: a deletion makes a new version, and the files of the old ones stay. Here each
data file that holds such a row, whichever version it belongs to, is written again without it under a new name; the
entries of the log and of the checkpoints that name the old file then name the new one, with the new file's statistics.
The numbers of the versions stay, so a window that was pinned to a version reads the same rows as before, less the
erased ones.

The log is changed in three steps, and each file of it as a whole, so that a reader sees a consistent table at any time
and a killed run can be repeated: first removals name the old and the new file, then additions name the new file, then
the old name disappears. The old files are removed last. Writers wait
(:meth:`~stillhouse.knowledge.tables.Tables.writing`), and readers that hold the table open read its log again, because
its newest entry is another file.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from deltalake import WriterProperties, write_deltalake

from stillhouse.errors import StoreError
from stillhouse.files import atomic_file, sync, write_atomic
from stillhouse.knowledge.commits import list_commits
from stillhouse.knowledge.schemas import FIELDS, Table
from stillhouse.knowledge.tables import Tables

__all__ = ["Change", "data_files", "drop_rows", "edit_rows", "erase", "matching_rows", "plain"]

Change = Callable[[pq.ParquetFile], pa.Table | None]
"""What the rows of a data file become; None: the file stays as it is."""

_SCRATCH = ".erasing"
"""Folder beside the log of a table, in which files are written before they get their name."""

_ROW_GROUP_ROWS = 131_072
_ONE_FILE_BYTES = 2**40

Action = dict[str, Any]


class _Replacement(NamedTuple):
    """The file that takes the place of another; no name: all its rows were erased."""

    name: str
    size: int
    stats: str


def data_files(tables: Tables, table: Table) -> list[Path]:
    """Every data file on the disk, of whatever version of the table, also those that no version names."""
    folder = tables.root / table
    found = (path for path in folder.rglob("*.parquet") if not {"_delta_log", _SCRATCH} & set(path.parts))
    return sorted(found) if folder.is_dir() else []


def matching_rows(
    tables: Tables, table: Table, columns: Iterable[str], matches: Callable[[pa.Table], pa.Array]
) -> Iterator[pa.Table]:
    """The rows of every data file on the disk that match; the same row may be in several files.

    :param columns: those that are read, where the file has them.
    :param matches: gives a mask of the rows of a table with these columns.
    """
    wanted = list(dict.fromkeys(columns))
    for path in data_files(tables, table):
        with pq.ParquetFile(path) as file:
            names = [name for name in wanted if name in file.schema_arrow.names]
            for batch in file.iter_batches(columns=names):
                rows = plain(pa.Table.from_batches([batch]))
                if (found := rows.filter(matches(rows))).num_rows:
                    yield found


def drop_rows(columns: Iterable[str], matches: Callable[[pa.Table], pa.Array]) -> Change:
    """A change that drops the rows that match; parameters as of :func:`matching_rows`."""
    wanted = list(dict.fromkeys(columns))

    def change(file: pq.ParquetFile) -> pa.Table | None:
        names = [name for name in wanted if name in file.schema_arrow.names]
        dropped = pc.fill_null(matches(plain(file.read(columns=names))), False)
        return plain(file.read()).filter(pc.invert(dropped)) if pc.any(dropped).as_py() else None

    return change


def edit_rows(column: str, edit: Callable[[Any], Any]) -> Change:
    """A change that replaces values of one column.

    :param edit: the new value; the same value where nothing changes.
    """

    def change(file: pq.ParquetFile) -> pa.Table | None:
        if column not in file.schema_arrow.names:
            return None
        before = plain(file.read(columns=[column]))[column]
        values = before.to_pylist()
        edited = [edit(value) for value in values]
        if edited == values:
            return None
        rows = plain(file.read())
        index = rows.schema.get_field_index(column)
        return rows.set_column(index, rows.schema.field(index), pa.chunked_array([pa.array(edited, before.type)]))

    return change


def erase(tables: Tables, table: Table, change: Change) -> int:
    """Change the data files of all versions of a table, and its log; returns the number of files that held something.

    Can be killed at any time and repeated.

    :raises StoreError: if the log is damaged.
    :raises OSError: if a file cannot be read or written.
    """
    folder = tables.root / table
    if table not in FIELDS or not (folder / "_delta_log").is_dir():
        return 0
    with tables.writing():
        shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
        replaced = dict[Path, _Replacement]()
        for path in data_files(tables, table):
            with pq.ParquetFile(path) as file:
                rows = change(file)
            if rows is not None:
                replaced[path] = _write_replacement(folder, path, rows)
        shutil.rmtree(folder / _SCRATCH, ignore_errors=True)
        _rewrite_log(folder, {path.relative_to(folder).as_posix(): new for path, new in replaced.items()})
        for path in replaced:
            path.unlink(missing_ok=True)
            sync(path.parent)
    return len(replaced)


def plain(rows: pa.Table) -> pa.Table:
    """The rows with plain types of texts: Delta's compaction writes views, for which Arrow lacks functions."""
    return rows.cast(pa.schema([field.with_type(_plain(field.type)) for field in rows.schema]))


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind) or pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(kind.value_field.with_type(_plain(kind.value_type)))
    return kind


# --------------------------------------------------------------------------- data files


def _write_replacement(folder: Path, path: Path, rows: pa.Table) -> _Replacement:
    """Write the rows beside the file, by Delta's own writer, which counts their statistics.

    The new name follows from the old one, so that a repetition after a kill writes the same file.
    """
    if not rows.num_rows:
        return _Replacement("", 0, "")
    name = f"part-{hashlib.sha256(path.name.encode()).hexdigest()[:32]}-c000.zstd.parquet"
    scratch = folder / _SCRATCH / path.stem
    write_deltalake(
        str(scratch),
        rows.replace_schema_metadata(None),
        target_file_size=_ONE_FILE_BYTES,
        writer_properties=WriterProperties(compression="ZSTD", max_row_group_size=_ROW_GROUP_ROWS),
    )
    lines = (scratch / "_delta_log" / f"{0:020d}.json").read_text(encoding="utf-8").splitlines()
    (added,) = [action["add"] for line in lines if "add" in (action := json.loads(line))]
    written = scratch / unquote(added["path"])
    sync(written)
    written.replace(path.with_name(name))
    sync(path.parent)
    return _Replacement(name, added["size"], added["stats"])


# --------------------------------------------------------------------------- the log


def _rewrite_log(folder: Path, replaced: Mapping[str, _Replacement]) -> None:
    """Let the log name the new files; also drop the statistics of files that are gone, which nobody can check."""
    log = folder / "_delta_log"
    known = dict(replaced)
    for path, new in replaced.items():  # a killed run may have left the new name in a part of the log
        if new.name:
            known[_renamed(path, new.name)] = new
    gone = _Gone(folder)
    steps: list[Callable[[list[Action]], list[Action]]] = [
        lambda actions: _add_removals(actions, replaced),
        lambda actions: _rename_additions(actions, known, gone),
        lambda actions: _drop_removals(actions, replaced),
    ]
    first: Path | None = None
    for step in steps:
        for commit in list_commits(log):
            before = _read_commit(commit)
            after = step([dict(action) for action in before])
            if after != before:
                first = min(first or commit, commit)
                _write_commit(commit, after)
        for checkpoint in sorted(log.glob("*.checkpoint*.parquet")):
            _rewrite_checkpoint(checkpoint, step)
    for commit in list_commits(log) if first else ():  # other files, so that open tables are opened again
        if first is not None and commit >= first:
            write_atomic(commit, commit.read_bytes(), durable=True)
    for checksum in log.glob("*.crc"):  # of other writers; it is optional
        checksum.unlink(missing_ok=True)


class _Gone:
    """Whether the file of an addition is not on the disk."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, path: str) -> bool:
        return not (self._folder / path).exists()


def _renamed(path: str, name: str) -> str:
    """``path`` with another last part; the partition before it stays as it is written."""
    return f"{path.rpartition('/')[0]}/{name}".lstrip("/")


def _add_removals(actions: list[Action], replaced: Mapping[str, _Replacement]) -> list[Action]:
    """Beside the removal of an old file, also that of the new one."""
    removed = {unquote(action["remove"]["path"]) for action in actions if action.get("remove")}
    added = list[Action]()
    for action in actions:
        added.append(action)
        remove = action.get("remove")
        new = replaced.get(unquote(remove["path"])) if remove else None
        if remove and new and new.name:
            path = _renamed(remove["path"], new.name)
            if unquote(path) not in removed:
                added.append(action | {"remove": remove | {"path": path, "size": new.size}})
    return added


def _rename_additions(actions: list[Action], known: Mapping[str, _Replacement], gone: _Gone) -> list[Action]:
    """Let additions name the new file, and drop those of files without a row left."""
    kept = list[Action]()
    for action in actions:
        add = action.get("add")
        new = known.get(unquote(add["path"])) if add else None
        if add and new is None and gone(unquote(add["path"])):
            action = action | {"add": _with_stats(add, _count_only(add.get("stats")), add["path"], add["size"])}
        elif add and new is not None:
            if not new.name:
                continue
            action = action | {"add": _with_stats(add, new.stats, _renamed(add["path"], new.name), new.size)}
        kept.append(action)
    return kept


def _drop_removals(actions: list[Action], replaced: Mapping[str, _Replacement]) -> list[Action]:
    return [
        action for action in actions if not action.get("remove") or unquote(action["remove"]["path"]) not in replaced
    ]


def _with_stats(add: Action, stats: str | None, path: str, size: int) -> Action:
    changed = add | {"path": path, "size": size, "stats": stats}
    if changed.get("stats_parsed") is not None:
        changed["stats_parsed"] = None
    return changed


def _count_only(stats: str | None) -> str | None:
    """The statistics of a file without the smallest and largest values."""
    if not stats:
        return stats
    counted = json.loads(stats)
    return stats if set(counted) <= {"numRecords"} else json.dumps({"numRecords": counted.get("numRecords", 0)})


def _read_commit(commit: Path) -> list[Action]:
    """:raises StoreError: if it is damaged."""
    try:
        return [json.loads(line) for line in commit.read_text(encoding="utf-8").splitlines() if line.strip()]
    except ValueError as error:
        raise StoreError(
            f"{commit} is damaged, so rows cannot be erased from its table: restore the table from a backup"
        ) from error


def _write_commit(commit: Path, actions: list[Action]) -> None:
    text = "\n".join(json.dumps(action, separators=(",", ":"), ensure_ascii=False) for action in actions)
    write_atomic(commit, f"{text}\n", durable=True)


def _rewrite_checkpoint(checkpoint: Path, step: Callable[[list[Action]], list[Action]]) -> None:
    """Change the actions of a checkpoint as those of a commit."""
    rows = pq.read_table(checkpoint)
    before = rows.to_pylist(maps_as_pydicts=None)
    after = step(before)
    if after == before:
        return
    with atomic_file(checkpoint) as written:
        pq.write_table(pa.Table.from_pylist(after, schema=rows.schema), written)
        sync(written)
    pointer = checkpoint.parent / "_last_checkpoint"
    if pointer.exists() and (last := json.loads(pointer.read_text(encoding="utf-8")))["version"] == _version(
        checkpoint
    ):
        kept = {"version": last["version"], "size": len(after)} | (
            {"parts": last["parts"]} if last.get("parts") else {}
        )
        write_atomic(pointer, json.dumps(kept), durable=True)


def _version(checkpoint: Path) -> int:
    return int(checkpoint.name.partition(".")[0])
