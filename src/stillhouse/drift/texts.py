"""Texts as numbers, so that they are profiled, compared and calibrated as every other column is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from stillhouse.config import TEXT_MEASURES, Column, NumberColumn
from stillhouse.errors import SchemaError
from stillhouse.variant import basic_words

__all__ = ["measured", "measured_batches", "watched"]

Array = np.ndarray[Any, Any]

_KEPT_WORDS = 50_000


def watched(columns: Mapping[str, Column]) -> dict[str, Column]:
    """The columns with the numbers of :func:`measured` in the place of each text."""
    found: dict[str, Column] = {}
    for name, column in columns.items():
        if column.type == "text":
            number = NumberColumn(type="number", min=0.0, drift=column.drift)
            found |= {f"{name}: {measure}": number for measure in TEXT_MEASURES}
        else:
            found[name] = column
    return found


def measured(rows: pd.DataFrame, columns: Mapping[str, Column], known: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """``rows`` with three numbers beside each watched text; missing where nothing is written.

    ====================  ================================================================================
    column                value
    ====================  ================================================================================
    ``said: characters``  of the text, without what is white at its ends
    ``said: words``       words and punctuation marks
    ``said: new words``   share of the words that ``known`` does not have as a whole, 0…1
    ====================  ================================================================================

    :param known: the columns of the model that is watched, with the ``tokens`` of each text.
    :raises SchemaError: if ``known`` has no tokens of a watched text.
    """
    tokens = {column["name"]: column["tokens"] for column in known if column["type"] == "text"}
    texts = [name for name, column in columns.items() if column.type == "text" and column.drift]
    if absent := [name for name in texts if name not in tokens]:
        raise SchemaError(f"the model that is watched reads no text {absent[0]!r}; it reads {sorted(tokens)}")
    found: dict[str, Array] = {}
    for name in texts:
        values = _measure(rows[name], frozenset(tokens[name]))
        found |= {f"{name}: {measure}": values[:, i] for i, measure in enumerate(TEXT_MEASURES)}
    return rows.assign(**found)


def measured_batches(batches: Iterable[pa.RecordBatch], texts: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Arrow batches with ``name: characters`` and ``name: words`` (what stands between white) for each text.

    :raises SchemaError: if a text is not there, or is none.
    """
    for batch in batches:
        arrays = dict(zip(batch.schema.names, batch.columns, strict=True))
        for name in texts:
            if name not in arrays:
                raise SchemaError(f"no column {name!r}; there are {batch.schema.names}")
            try:
                values = pc.utf8_trim_whitespace(pc.cast(arrays.pop(name), pa.large_string()))
            except pa.ArrowException as error:
                raise SchemaError(f"column {name!r} is no text: {error}") from error
            values = pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.large_string()), values)
            arrays[f"{name}: characters"] = pc.utf8_length(values)
            arrays[f"{name}: words"] = pc.count_substring_regex(values, r"\S+")
        yield pa.RecordBatch.from_pydict(arrays)


def _measure(texts: pd.Series[Any], known: Set[str]) -> Array:
    """Characters, words and the share of new words of each text, float64 ``[n, 3]``."""
    counted = lru_cache(_KEPT_WORDS)(_counter(known))
    found = np.full((len(texts), len(TEXT_MEASURES)), np.nan)
    for row, text, absent in zip(found, texts, texts.isna(), strict=True):
        text = "" if absent else str(text).strip()
        if text:
            counts = [counted(part) for part in text.split(" ")]
            words = sum(count for count, _ in counts)
            row[:] = len(text), words, sum(new for _, new in counts) / max(words, 1)
    return found


def _counter(known: Set[str]) -> Callable[[str], tuple[int, int]]:
    def count(part: str) -> tuple[int, int]:
        """Words between two spaces, and those of them that are new."""
        words = basic_words(part)
        return len(words), sum(word not in known for word in words)

    return count
