"""Files that appear under their name when they are complete, and are what they should be."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import mkdtemp

from stillhouse.errors import SignatureError
from stillhouse.verifying import FilesDiffer, check_files

__all__ = ["bring", "bring_signed"]


def bring(download: Callable[[str], Path], target: Path) -> None:
    """Let ``target`` be what ``download`` puts into a folder of its own; another process may be faster."""
    _bring(download, target, lambda found: None)


def bring_signed(download: Callable[[str], Path], target: Path, files: Mapping[str, str], what: str) -> None:
    """:func:`bring`, unless ``target`` holds the files already, whole; what lies there otherwise is replaced.

    :param files: SHA-256 by path, as they were signed.
    :param what: names it in an error.
    :raises SignatureError: if what arrived is not what was signed; it is not kept, and the next call asks again.
    """

    def check(found: Path) -> None:
        try:
            check_files(found, files)
        except FilesDiffer as error:
            raise SignatureError(f"{what} arrived damaged, or was altered where it is kept: {error}") from error

    if _is_whole(target, files):
        return
    _bring(download, target, check)


def _is_whole(target: Path, files: Mapping[str, str]) -> bool:
    try:
        check_files(target, files)
    except (FilesDiffer, OSError):
        return False
    return True


def _bring(download: Callable[[str], Path], target: Path, check: Callable[[Path], None]) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = mkdtemp(prefix=f".{target.name}-", dir=target.parent)
    try:
        found = download(partial)
        check(found)
        _put(found, target, Path(partial, "replaced"))
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _put(found: Path, target: Path, aside: Path) -> None:
    """Move ``found`` into place at once; what lies there goes aside first."""
    with suppress(FileNotFoundError):
        target.replace(aside)
    try:
        found.replace(target)
    except OSError:  # another process was faster
        if not target.exists():
            raise
