"""What a student used to say: soft labels of a few rows of all that it has learned, kept beside its weights.

Rows are kept by their ids, not by their features: those are in the knowledge base already, once. What the student
said when it learned them is nowhere else (dark experience; Buzzega et al. 2020).
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

__all__ = ["FILE", "Memory", "read", "remembered"]

FILE = "memory.parquet"

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, eq=False)
class Memory:
    """A uniform sample of the rows that a student has learned.

    :param rows: ``observation_id, observed_at`` of each, ordered by time.
    :param probabilities: what the student said about them when they were learned, float32 ``[m, K]``.
    :param actions: the K actions, by name.
    :param seen: how many rows the sample stands for, at least m.
    """

    rows: pd.DataFrame
    probabilities: Array
    actions: tuple[str, ...]
    seen: int

    def __len__(self) -> int:
        return len(self.rows)

    def among(self, observation_ids: pd.Series, actions: Sequence[str]) -> Array:
        """What is remembered about each of these rows, for ``actions`` matched by name, ``[n, K]``.

        :raises KeyError: if nothing is remembered about one of them.
        """
        found = pd.Index(self.rows["observation_id"]).get_indexer(pd.Index(observation_ids))
        if (found < 0).any():
            raise KeyError(f"{int((found < 0).sum())} rows are not in the memory")
        return align_actions(self.probabilities[found], self.actions, actions)

    def save(self, folder: Path) -> None:
        """Write ``memory.parquet`` (no pickle)."""
        table = pa.table(
            {
                "observation_id": pa.array(self.rows["observation_id"], pa.string()),
                "observed_at": pa.array(self.rows["observed_at"], pa.timestamp("us", tz="UTC")),
                "probabilities": pa.array(list(self.probabilities.astype(np.float32)), pa.list_(pa.float32())),
            }
        )
        told = {"actions": list(self.actions), "seen": self.seen}
        pq.write_table(table.replace_schema_metadata({"stillhouse": json.dumps(told)}), folder / FILE)


def read(folder: Path) -> Memory | None:
    """What :meth:`Memory.save` wrote; None if there is nothing."""
    if not (folder / FILE).exists():
        return None
    table = pq.read_table(folder / FILE)
    told = json.loads(table.schema.metadata[b"stillhouse"])
    said = table["probabilities"].to_pylist()
    probabilities = np.array(said, dtype=np.float32).reshape(len(said), len(told["actions"]))
    return Memory(
        table.select(["observation_id", "observed_at"]).to_pandas(), probabilities, tuple(told["actions"]), told["seen"]
    )


def remembered(
    rows: pd.DataFrame,
    probabilities: Array,
    actions: Sequence[str],
    most: int,
    *,
    older: Memory | None = None,
    seed: int = 0,
) -> Memory:
    """At most ``most`` rows: a uniform sample of ``rows``, learned now, and of all that ``older`` stands for.

    Reservoir sampling by whole batches (Vitter 1985): each row ever learned is in it with the same probability, so that
    a rare past weighs as much as it was lived, however many updates ago.

    :param rows: ``observation_id, observed_at`` of what was learned now; ``probabilities`` ``[n, K]``: what the student
        says about it.
    """
    rng = np.random.default_rng([seed, len(rows), older.seen if older else 0])
    mine = ["observation_id", "observed_at"]
    if older is not None:  # learned again: what was said first is what is kept
        again = rows["observation_id"].isin(older.rows["observation_id"]).to_numpy()
        rows, probabilities = rows[~again], probabilities[~again]
    seen = len(rows) + (older.seen if older else 0)
    new = _share(len(rows), seen, most, rng) if older is not None and seen > most else min(len(rows), most)
    old = 0 if older is None else min(len(older), max(0, min(most, seen) - new))
    picked = np.sort(rng.choice(len(rows), new, replace=False)) if new else np.empty(0, dtype=np.int64)
    parts, said = [rows[mine].iloc[picked]], [probabilities[picked].astype(np.float32)]
    if older is not None and old:
        kept = np.sort(rng.choice(len(older), old, replace=False))
        parts.insert(0, older.rows.iloc[kept])
        said.insert(0, align_actions(older.probabilities[kept], older.actions, actions))
    together = pd.concat(parts, ignore_index=True)
    order = np.argsort(together["observed_at"].to_numpy(), kind="stable")
    return Memory(
        together.iloc[order].reset_index(drop=True),
        np.concatenate(said)[order],
        tuple(actions),
        max(seen, len(together)),
    )


def _share(new: int, seen: int, most: int, rng: np.random.Generator) -> int:
    """How many of a uniform sample of ``most`` of ``seen`` rows are among the ``new`` ones."""
    return int(rng.hypergeometric(new, seen - new, most)) if new < seen else min(new, most)
