"""The rows that a keyed hash of their ids draws: the same rows, whatever their order and the files they lie in.

Everything here streams over Arrow batches: memory is bounded by what is kept, never by the table.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["keyed_hash", "smallest"]


def keyed_hash(ids: Any, seed: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """SipHash-2-4 of each id under the seed, mixed once more, uint64 ``[n]``: uniform whatever the ids look like."""
    hashed: np.ndarray[Any, np.dtype[np.uint64]] = pd.util.hash_array(
        np.asarray(ids, dtype=object), hash_key=f"{seed:016x}", categorize=False
    )
    return hashed


def smallest(rows: Iterable[pa.RecordBatch], size: int, seed: int, without: pa.Array) -> pa.Table:
    """Of all observations the ``size`` whose keyed hash is smallest, each once, in no order.

    :param rows: batches with ``observation_id``, ``observed_at`` and ``content_key``. Of an observation that comes more
        than once, the earliest counts: the result depends neither on the order of the rows nor on the files.
    :param without: ids that do not count.
    """
    kept: pa.Table | None = None
    most = np.uint64(2**64 - 1)
    for batch in rows:
        key = keyed_hash(batch["observation_id"].to_numpy(zero_copy_only=False), seed)
        chosen = key <= most
        if not chosen.any():
            continue
        new = pa.Table.from_batches([batch]).filter(pa.array(chosen))
        new = new.append_column("_key", pa.array(key[chosen]))
        new = new.filter(pc.invert(pc.is_in(new["observation_id"], without)))
        kept = new if kept is None else pa.concat_tables([kept, new])
        if kept.num_rows >= 2 * size:
            kept = _first(kept, size)
            if kept.num_rows == size:
                most = np.uint64(pc.max(kept["_key"]).as_py())
    if kept is None:
        return pa.table({})
    return _first(kept, size).drop_columns("_key")


def _first(kept: pa.Table, size: int) -> pa.Table:
    """The ``size`` of smallest key, each id once."""
    order = pc.sort_indices(
        kept, sort_keys=[(name, "ascending") for name in ("_key", "observation_id", "observed_at", "content_key")]
    )
    kept = kept.take(order)
    ids = kept["observation_id"].to_numpy()
    fresh = np.ones(len(ids), dtype=bool)
    fresh[1:] = ids[1:] != ids[:-1]
    return kept.take(np.flatnonzero(fresh)[:size]).combine_chunks()
