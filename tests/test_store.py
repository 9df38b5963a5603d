"""A store records its version: older stores are upgraded, unreadable ones are refused with a message."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from stillhouse.config import home, store
from stillhouse.config.store import open_store
from stillhouse.errors import ConfigError, StoreError


def test_an_empty_home_is_marked_with_the_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    assert home() == tmp_path / "home"
    assert json.loads((tmp_path / "home" / "store.json").read_text()) == {"version": store.VERSION}
    assert home() == tmp_path / "home"


def test_a_home_from_before_versions_is_refused_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "knowledge" / "flights" / "observations").mkdir(parents=True)
    with pytest.raises(
        StoreError, match=r"was made before .* Move it away, or let STILLHOUSE_HOME name an empty folder"
    ):
        open_store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["knowledge"]


def test_a_command_refuses_it_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "home" / "spool" / "flights").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-c", "from stillhouse.cli import main; main()", "status", "flights"],
        env={"STILLHOUSE_HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
    )
    assert (
        done.returncode == 1 and "was made before" in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr
    )


def test_a_home_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text('{"version": 99}')
    with pytest.raises(StoreError, match=r"version 99, made by a newer stillhouse; this one reads up to version 2"):
        open_store(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", '{"version": "1"}', '{"version": 0}'])
def test_a_damaged_version_file_is_reported(tmp_path: Path, content: str) -> None:
    (tmp_path / "store.json").write_text(content)
    with pytest.raises(StoreError, match=r"store\.json"):
        open_store(tmp_path)


def test_migrations_run_in_order_and_a_killed_one_runs_again(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text('{"version": 1}')
    done, killed = [], [True]

    def rename_a_column(_: Path) -> None:
        done.append("column")

    def move_a_table(_: Path) -> None:
        if killed:
            killed.clear()
            raise KeyboardInterrupt
        done.append("table")

    with pytest.raises(KeyboardInterrupt):
        open_store(tmp_path, 3, {1: rename_a_column, 2: move_a_table})
    open_store(tmp_path, 3, {1: rename_a_column, 2: move_a_table})
    assert done == ["column", "table"]
    assert json.loads((tmp_path / "store.json").read_text()) == {"version": 3}


def test_a_version_without_a_migration_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.json").write_text('{"version": 1}')
    with pytest.raises(StoreError, match="no migration leads from there to version 2"):
        open_store(tmp_path, 2, {})


def test_a_home_that_is_a_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("not a folder")
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))
    with pytest.raises(ConfigError, match="is a file: name a folder"):
        home()
