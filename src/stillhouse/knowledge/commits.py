"""The commits in the log of a Delta table, as files."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["commits", "damaged_entries"]


def damaged_entries(folder: Path) -> list[Path]:
    """Commits in a table's log that are no JSON lines, by number; reads those that Delta would read to open it."""
    log = folder / "_delta_log"
    try:
        checkpoint = int(json.loads((log / "_last_checkpoint").read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError, TypeError):
        checkpoint = -1
    return [file for file in commits(log) if int(file.stem) > checkpoint and not _whole(file)]


def commits(log: Path) -> list[Path]:
    """By number; none where there is no log."""
    return sorted(file for file in log.glob("*.json") if file.stem.isdigit()) if log.is_dir() else []


def _whole(file: Path) -> bool:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return bool(lines) and all(isinstance(json.loads(line), dict) for line in lines)
    except (OSError, ValueError):
        return False
