"""Embeddings of texts, kept on disk by content: an encoder reads each text once."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Embeddings", "Encode", "embed_with_cache"]

Embeddings = np.ndarray[Any, np.dtype[np.float32]]
Encode = Callable[[list[str]], Embeddings]
"""Texts ``[m]`` → float32 ``[m, D]``."""

_ENCODED_TEXTS = 1024  # written to the cache at once
_QUERIED_KEYS = 500  # of one query; SQLite limits its parameters


def embed_with_cache(texts: Sequence[str], encode: Encode, cache: Path, width: int) -> Embeddings:
    """The embeddings of ``texts``, float32 ``[n, width]``, from the file ``cache``; missing ones are encoded and added.

    The cache is a SQLite table keyed by the text's SHA-256. Several processes may read and write it at the same time,
    and a killed process loses at most its current batch.

    >>> from tempfile import TemporaryDirectory
    >>> def lengths(texts):
    ...     return np.array([[len(text)] for text in texts], dtype=np.float32)
    >>> with TemporaryDirectory() as folder:
    ...     embed_with_cache(["a", "bb"], lengths, Path(folder) / "lengths.sqlite", width=1)
    array([[1.],
           [2.]], dtype=float32)

    :param cache: belongs to one encoder with one set of options; its folder is made.
    """
    keys = [hashlib.sha256(text.encode()).digest() for text in texts]
    cache.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(cache, timeout=60)) as table:
        table.execute("CREATE TABLE IF NOT EXISTS embeddings (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
        vectors_by_key = _read(table, keys)
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in vectors_by_key}
        for batch in _batches(sorted(new, key=lambda key: len(new[key])), _ENCODED_TEXTS):
            vectors = encode([new[key] for key in batch])
            vectors_by_key.update(zip(batch, vectors, strict=True))
            with table:
                table.executemany(
                    "INSERT OR IGNORE INTO embeddings VALUES (?, ?)",
                    [(key, vector.tobytes()) for key, vector in zip(batch, vectors, strict=True)],
                )
    return np.stack([vectors_by_key[key] for key in keys]) if keys else np.empty((0, width), dtype=np.float32)


def _read(table: sqlite3.Connection, keys: list[bytes]) -> dict[bytes, Embeddings]:
    vectors_by_key: dict[bytes, Embeddings] = {}
    for batch in _batches(keys, _QUERIED_KEYS):
        placeholders = ",".join("?" * len(batch))
        rows = table.execute(f"SELECT key, vector FROM embeddings WHERE key IN ({placeholders})", batch)
        vectors_by_key.update((key, np.frombuffer(vector, dtype=np.float32)) for key, vector in rows)
    return vectors_by_key


def _batches(keys: list[bytes], size: int) -> Iterator[list[bytes]]:
    for start in range(0, len(keys), size):
        yield keys[start : start + size]
