"""A home that was moved or copied works at its new location."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from stillhouse.registry import Registry
from stillhouse.variant import Variant
from tests.registry.conftest import Life


@pytest.fixture
def old_home(home: Path) -> Path:
    """A home with a champion."""
    registry = Registry("flights")
    Life(registry, home.parent / "work").refresh("r1", seed=1)
    registry.promote("1")
    return home


def test_a_moved_home_reads_and_writes_at_its_new_location(
    old_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = old_home.rename(tmp_path / "elsewhere, #1")
    monkeypatch.setenv("STILLHOUSE_HOME", str(moved))
    registry = Registry("flights")
    champion = registry.champion()
    assert champion is not None and Variant(registry.models.fetch(champion)).actions
    Life(registry, tmp_path / "more work").refresh("r2", seed=2)
    assert not old_home.exists(), "something was written to the old location"
    assert Variant(registry.models.fetch(registry.version("flights", "2"))).actions


def test_a_copy_leaves_the_original_alone(old_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = Path(shutil.copytree(old_home, tmp_path / "copy"))
    before = sorted(path for path in old_home.rglob("*") if "artifacts" in path.parts)
    monkeypatch.setenv("STILLHOUSE_HOME", str(copy))
    Life(Registry("flights"), tmp_path / "more work").refresh("r2", seed=2)
    assert sorted(path for path in old_home.rglob("*") if "artifacts" in path.parts) == before
