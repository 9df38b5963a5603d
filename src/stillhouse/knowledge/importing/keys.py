"""Keys that identify a row of a table, and compact sets of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from stillhouse.knowledge.schemas import Table

__all__ = ["KEY_COLUMNS", "KeySet", "row_keys"]

KEY_COLUMNS: dict[Table, list[str]] = {
    "observations": ["observation_id"],
    "quarantine": ["observation_id"],
    "decisions": ["decision_id"],
    "outcomes": ["observation_id", "known_at", "action"],
}

Hashes = np.ndarray[Any, np.dtype[np.uint64]]


def row_keys(rows: pd.DataFrame, table: Table) -> pd.Series[str]:
    """One string per row that identifies it in the table."""
    if table != "outcomes":
        ids: pd.Series[str] = rows[KEY_COLUMNS[table][0]]
        return ids
    microseconds = rows["known_at"].dt.as_unit("us").astype("int64").astype(str)
    keys: pd.Series[str] = rows["observation_id"] + ":" + microseconds + ":" + rows["action"]
    return keys


class KeySet:
    """A growing set of strings that stores 16 bytes per string: a 128-bit hash.

    >>> keys = KeySet()
    >>> keys.add(pd.Series(["a", "b", "a"])).tolist(), keys.add(pd.Series(["b", "c"])).tolist()
    ([True, True, False], [False, True])
    """

    def __init__(self) -> None:
        self._runs: list[tuple[Hashes, Hashes]] = []  # sorted by the first hash; sizes fall by half at least

    def add(self, texts: pd.Series[str]) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Add ``texts`` and return a mask of those that are new, bool ``[n]``; of equal ones only the first is new."""
        values = texts.to_numpy(dtype=object)
        hashes = pd.util.hash_array(values, categorize=False)
        second_hashes = pd.util.hash_array(values, hash_key=f"{1:016x}", categorize=False)
        is_new = ~pd.DataFrame({0: hashes, 1: second_hashes}).duplicated().to_numpy()
        for run in self._runs:
            is_new &= ~_is_in(hashes, second_hashes, run)
        order = np.argsort(hashes[is_new], kind="stable")
        self._runs.append((hashes[is_new][order], second_hashes[is_new][order]))
        while len(self._runs) > 1 and len(self._runs[-1][0]) * 2 > len(self._runs[-2][0]):
            self._runs[-2:] = [_merge(self._runs[-2], self._runs[-1])]
        return is_new


def _is_in(hashes: Hashes, second_hashes: Hashes, run: tuple[Hashes, Hashes]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    run_hashes, run_second_hashes = run
    start, end = (np.searchsorted(run_hashes, hashes, side) for side in ("left", "right"))
    mask = np.zeros(len(hashes), dtype=bool)
    for step in range(int((end - start).max(initial=0))):
        inside = start + step < end
        mask[inside] |= run_second_hashes[start[inside] + step] == second_hashes[inside]
    return mask


def _merge(run: tuple[Hashes, Hashes], newer_run: tuple[Hashes, Hashes]) -> tuple[Hashes, Hashes]:
    hashes, second_hashes = (np.concatenate(parts) for parts in zip(run, newer_run, strict=True))
    order = np.argsort(hashes, kind="stable")
    return hashes[order], second_hashes[order]
