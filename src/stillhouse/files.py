"""Atomic replacement of files and folders, and digests of their content."""

from __future__ import annotations

import hashlib
import os
import shutil
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["atomic_file", "atomic_folder", "file_digest", "sync", "tree_digest", "write_atomic"]


def write_atomic(path: Path, content: bytes | str, *, durable: bool = False, mode: int = 0o666) -> None:
    """Write ``content`` to a temporary file and rename it: a reader sees the old file or the new one, never a part.

    :param content: text is written as UTF-8.
    :param durable: sync the file to the disk, so that it survives a power failure.
    :param mode: permissions before the umask, from the first byte on.
    :raises OSError: if the disk cannot be written; the file at ``path`` is unchanged.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     write_atomic(Path(folder) / "a.txt", "text")
    ...     file_digest(Path(folder) / "a.txt")[:8]
    '982d9e3e'
    """
    temporary = _temporary_path(path)
    temporary.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(content.encode("utf-8") if isinstance(content, str) else content)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync(path.parent)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A temporary path next to ``path``, which replaces it when the block ends without an error."""
    temporary = _temporary_path(path)
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """An empty folder next to ``folder``, which replaces it when the block ends without an error.

    If the process is killed, ``<folder>.partial`` remains; the next call empties it.
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
    """Hexadecimal digest of a file's content, read in blocks."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def tree_digest(folder: Path, exclude: Collection[str] = ()) -> str:
    """SHA-256, in hexadecimal, of the names and contents of all files below ``folder``.

    It is the digest of the lines ``<path>\\0<SHA-256 of the content>\\n``, sorted by path (POSIX,
    relative to ``folder``).

    :param exclude: relative paths that are left out.
    """
    digest = hashlib.sha256()
    files = {file.relative_to(folder).as_posix(): file for file in folder.rglob("*") if file.is_file()}
    for name in sorted(files.keys() - set(exclude)):
        digest.update(f"{name}\0{file_digest(files[name])}\n".encode())
    return digest.hexdigest()


def _temporary_path(path: Path) -> Path:
    """A path of this thread in this process, so that concurrent writers of a file do not collide."""
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.partial")


def sync(path: Path) -> None:
    """Sync a file, or the entries of a folder, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
