"""The commit files in the log of a Delta table."""

from __future__ import annotations

import json
from pathlib import Path

__all__ = ["damaged_commits", "list_commits"]


def damaged_commits(folder: Path) -> list[Path]:
    """Commit files of a table that are not JSON lines, by version; reads those that Delta reads to open the table."""
    log = folder / "_delta_log"
    try:
        checkpoint = int(json.loads((log / "_last_checkpoint").read_text(encoding="utf-8"))["version"])
    except (OSError, ValueError, KeyError, TypeError):
        checkpoint = -1
    return [file for file in list_commits(log) if int(file.stem) > checkpoint and not _is_readable(file)]


def list_commits(log: Path) -> list[Path]:
    """Commit files by version; empty if there is no log."""
    return sorted(file for file in log.glob("*.json") if file.stem.isdigit()) if log.is_dir() else []


def _is_readable(file: Path) -> bool:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return bool(lines) and all(isinstance(json.loads(line), dict) for line in lines)
    except (OSError, ValueError):
        return False
