"""Files that appear under their name when they are complete."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

__all__ = ["bring"]


def bring(download: Callable[[str], Path], target: Path) -> None:
    """Let ``target`` be what ``download`` puts into a folder of its own; another process may be faster."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = mkdtemp(prefix=f".{target.name}-", dir=target.parent)
    try:
        _put(download(partial), target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put(found: Path, target: Path) -> None:
    """Move ``found`` into place at once."""
    try:
        found.replace(target)
    except OSError:
        if not target.exists():
            raise
