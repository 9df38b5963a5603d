"""The replay memory: a sample of the rows that a student was trained on, with its probabilities, stored beside it.

It holds the ids of rows, not their features, which the knowledge base has already. The student's probabilities when it
was trained on them are stored nowhere else (dark experience replay; Buzzega et al. 2020).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.actions import align_actions

__all__ = ["MEMORY_FILE", "Memory", "read", "sample_memory"]

MEMORY_FILE = "memory.parquet"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Memory:
    """A uniform sample of the rows that a student was trained on.

    :param rows: ``observation_id, observed_at`` of each, ordered by time.
    :param probabilities: those of the student when it was trained on the row, float32 ``[m, K]``.
    :param actions: names of the K actions.
    :param seen: size of the population that the sample is drawn from, at least m.
    """

    rows: pd.DataFrame
    probabilities: Array
    actions: tuple[str, ...]
    seen: int

    def __len__(self) -> int:
        return len(self.rows)

    def probs_of(self, observation_ids: pd.Series, actions: Sequence[str]) -> Array:
        """Stored probabilities of these rows, ``[n, K]``, with columns for ``actions`` matched by name.

        :raises KeyError: if a row is not in the memory.
        """
        index = pd.Index(self.rows["observation_id"]).get_indexer(pd.Index(observation_ids))
        if (index < 0).any():
            raise KeyError(f"{int((index < 0).sum())} rows are not in the memory")
        return align_actions(self.probabilities[index], self.actions, actions)

    def save(self, folder: Path) -> None:
        """Write ``memory.parquet`` (no pickle)."""
        table = pa.table(
            {
                "observation_id": pa.array(self.rows["observation_id"], pa.string()),
                "observed_at": pa.array(self.rows["observed_at"], pa.timestamp("us", tz="UTC")),
                "probabilities": pa.array(list(self.probabilities.astype(np.float32)), pa.list_(pa.float32())),
            }
        )
        metadata = {"actions": list(self.actions), "seen": self.seen}
        pq.write_table(table.replace_schema_metadata({"stillhouse": json.dumps(metadata)}), folder / MEMORY_FILE)


def read(folder: Path) -> Memory | None:
    """The memory that :meth:`Memory.save` wrote; None if there is none."""
    if not (folder / MEMORY_FILE).exists():
        return None
    table = pq.read_table(folder / MEMORY_FILE)
    metadata = json.loads(table.schema.metadata[b"stillhouse"])
    values = table["probabilities"].to_pylist()
    probs = np.array(values, dtype=np.float32).reshape(len(values), len(metadata["actions"]))
    rows = table.select(["observation_id", "observed_at"]).to_pandas()
    return Memory(rows, probs, tuple(metadata["actions"]), metadata["seen"])


def sample_memory(
    rows: pd.DataFrame,
    probs: Array,
    actions: Sequence[str],
    max_rows: int,
    *,
    older: Memory | None = None,
    seed: int = 0,
) -> Memory:
    """At most ``max_rows`` rows: a uniform sample of ``rows``, used now, and of the population of ``older``.

    Reservoir sampling by batches (Vitter 1985): every row ever used is in the sample with the same probability, however
    many updates ago it was used. A row that is in ``older`` keeps the probabilities stored there.

    :param rows: ``observation_id, observed_at`` of the rows that the student was trained on now.
    :param probs: its probabilities for them, ``[n, K]``.

    >>> rows = pd.DataFrame({"observation_id": ["a", "b", "c"], "observed_at": pd.date_range("2024-01-01", periods=3)})
    >>> memory = sample_memory(rows, np.full((3, 2), 0.5), ("stay", "move"), max_rows=2)
    >>> len(memory), memory.seen
    (2, 3)
    """
    rng = np.random.default_rng([seed, len(rows), older.seen if older else 0])
    columns = ["observation_id", "observed_at"]
    if older is not None:
        stored = rows["observation_id"].isin(older.rows["observation_id"]).to_numpy()
        rows, probs = rows[~stored], probs[~stored]
    seen = len(rows) + (older.seen if older else 0)
    if older is not None and seen > max_rows:
        new_count = _draw_new_count(len(rows), seen, max_rows, rng)
    else:
        new_count = min(len(rows), max_rows)
    old_count = 0 if older is None else min(len(older), max(0, min(max_rows, seen) - new_count))
    new = np.sort(rng.choice(len(rows), new_count, replace=False)) if new_count else np.empty(0, dtype=np.int64)
    row_parts, prob_parts = [rows[columns].iloc[new]], [probs[new].astype(np.float32)]
    if older is not None and old_count:
        old = np.sort(rng.choice(len(older), old_count, replace=False))
        row_parts.insert(0, older.rows.iloc[old])
        prob_parts.insert(0, align_actions(older.probabilities[old], older.actions, actions))
    sampled = pd.concat(row_parts, ignore_index=True)
    order = np.argsort(sampled["observed_at"].to_numpy(), kind="stable")
    return Memory(
        sampled.iloc[order].reset_index(drop=True),
        np.concatenate(prob_parts)[order],
        tuple(actions),
        max(seen, len(sampled)),
    )


def _draw_new_count(new: int, seen: int, size: int, rng: np.random.Generator) -> int:
    """How many rows of a uniform sample of ``size`` out of ``seen`` belong to the ``new`` ones."""
    return int(rng.hypergeometric(new, seen - new, size)) if new < seen else min(new, size)
