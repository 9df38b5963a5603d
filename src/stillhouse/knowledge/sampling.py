"""Uniform samples of observations by a keyed hash of their ids: independent of the order of rows and of files.

The rows stream by in Arrow batches: memory is bounded by the size of the sample, not by the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["keyed_hash", "sample_by_hash"]


def keyed_hash(ids: Any, seed: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """SipHash-2-4 of each id under the seed, mixed once more, uint64 ``[n]``: uniform for any ids."""
    hashes: np.ndarray[Any, np.dtype[np.uint64]] = pd.util.hash_array(
        np.asarray(ids, dtype=object), hash_key=f"{seed:016x}", categorize=False
    )
    return hashes


def sample_by_hash(rows: Iterable[pa.RecordBatch], size: int, seed: int, exclude: pa.Array) -> pa.Table:
    """The ``size`` observations with the smallest keyed hash, one row per observation, in no order.

    :param rows: batches with ``observation_id``, ``observed_at`` and ``content_key``. Of an observation with several
        rows the earliest is used: the result depends neither on the order of rows nor on the files.
    :param exclude: ids that are left out.
    """
    sample: pa.Table | None = None
    largest = np.uint64(2**64 - 1)
    for batch in rows:
        hashes = keyed_hash(batch["observation_id"].to_numpy(zero_copy_only=False), seed)
        mask = hashes <= largest
        if not mask.any():
            continue
        new_rows = pa.Table.from_batches([batch]).filter(pa.array(mask))
        new_rows = new_rows.append_column("_key", pa.array(hashes[mask]))
        new_rows = new_rows.filter(pc.invert(pc.is_in(new_rows["observation_id"], exclude)))
        sample = new_rows if sample is None else pa.concat_tables([sample, new_rows])
        if sample.num_rows >= 2 * size:
            sample = _smallest(sample, size)
            if sample.num_rows == size:
                largest = np.uint64(pc.max(sample["_key"]).as_py())
    if sample is None:
        return pa.table({})
    return _smallest(sample, size).drop_columns("_key")


def _smallest(rows: pa.Table, size: int) -> pa.Table:
    """The ``size`` observations with the smallest key, one row each."""
    order = pc.sort_indices(
        rows, sort_keys=[(name, "ascending") for name in ("_key", "observation_id", "observed_at", "content_key")]
    )
    rows = rows.take(order)
    ids = rows["observation_id"].to_numpy()
    is_first = np.ones(len(ids), dtype=bool)
    is_first[1:] = ids[1:] != ids[:-1]
    return rows.take(np.flatnonzero(is_first)[:size]).combine_chunks()
