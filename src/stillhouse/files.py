"""Files and folders that a reader meets whole or not at all, and what stands for their content."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["file_digest", "sync", "tree_digest", "whole_file", "whole_folder", "write_whole"]


def write_whole(path: Path, content: bytes | str, *, durable: bool = False, mode: int = 0o666) -> None:
    """Write ``content`` aside and rename it: a reader meets the old file or the new one, never half of one.

    :param content: text is written as UTF-8.
    :param durable: wait until the disk has it, so that it also survives a loss of power.
    :param mode: permissions, before the umask; the file has them from its first byte on.
    :raises OSError: if the disk refuses; what lies at ``path`` stays as it was.
    """
    aside = _aside(path)
    aside.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)
    if durable:
        sync(path.parent)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside ``path`` for a library to write to; it takes the place of ``path`` when the block ends well."""
    aside = _aside(path)
    try:
        yield aside
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """An empty folder beside ``folder``, which takes its place, with what was there removed, when the block ends well.

    Killed in between it leaves ``<folder>.partial``, which the next call empties.
    """
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's content, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def tree_digest(folder: Path, leave_out: Collection[str] = ()) -> str:
    """SHA-256, in hexadecimal, of the names and contents of all files below ``folder``.

    It is that of the lines ``<path>\\0<SHA-256 of the content>\\n``, sorted by path (POSIX, relative to ``folder``).

    :param leave_out: paths that do not count.
    """
    digest = hashlib.sha256()
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    for name in sorted(files.keys() - set(leave_out)):
        digest.update(f"{name}\0{file_digest(files[name])}\n".encode())
    return digest.hexdigest()


def _aside(path: Path) -> Path:
    """One for each thread of each process: writers of the same file do not meet."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")


def sync(path: Path) -> None:
    """Wait until the disk has a file, or the entries of a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
