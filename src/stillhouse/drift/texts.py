"""Text columns as numbers, which are profiled, compared and calibrated like every other column."""

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

__all__ = ["add_text_measures", "measure_text_batches", "replace_text_columns"]

Array = np.ndarray[Any, Any]

_WORD_CACHE_SIZE = 50_000


def replace_text_columns(columns: Mapping[str, Column]) -> dict[str, Column]:
    """The columns with each text column replaced by the number columns of :func:`add_text_measures`."""
    replaced: dict[str, Column] = {}
    for name, column in columns.items():
        if column.type == "text":
            number = NumberColumn(type="number", min=0.0, drift=column.drift)
            replaced |= {f"{name}: {measure}": number for measure in TEXT_MEASURES}
        else:
            replaced[name] = column
    return replaced


def add_text_measures(
    rows: pd.DataFrame, columns: Mapping[str, Column], model_columns: Sequence[Mapping[str, Any]]
) -> pd.DataFrame:
    """``rows`` with three number columns for each watched text; missing where the text is empty.

    For a text column ``note`` they are

    ====================  ================================================================================
    column                value
    ====================  ================================================================================
    ``note: characters``  length of the text without white space at its ends
    ``note: words``       words and punctuation marks
    ``note: new words``   share of the words that are not whole tokens of the model, 0…1
    ====================  ================================================================================

    :param model_columns: the columns of the watched model, with the ``tokens`` of each text.
    :raises SchemaError: if ``model_columns`` has no tokens of a watched text.
    """
    tokens = {column["name"]: column["tokens"] for column in model_columns if column["type"] == "text"}
    texts = [name for name, column in columns.items() if column.type == "text" and column.drift]
    if absent := [name for name in texts if name not in tokens]:
        raise SchemaError(f"the watched model reads no text {absent[0]!r}; it reads {sorted(tokens)}")
    measures: dict[str, Array] = {}
    for name in texts:
        values = _measure_texts(rows[name], frozenset(tokens[name]))
        measures |= {f"{name}: {measure}": values[:, i] for i, measure in enumerate(TEXT_MEASURES)}
    return rows.assign(**measures)


def measure_text_batches(batches: Iterable[pa.RecordBatch], texts: Sequence[str]) -> Iterator[pa.RecordBatch]:
    """Arrow batches in which each text is replaced by ``name: characters`` and ``name: words`` (split at white space).

    :raises SchemaError: if a text column is absent, or is not text.
    """
    for batch in batches:
        arrays = dict(zip(batch.schema.names, batch.columns, strict=True))
        for name in texts:
            if name not in arrays:
                raise SchemaError(f"no column {name!r}; there are {batch.schema.names}")
            try:
                values = pc.utf8_trim_whitespace(pc.cast(arrays.pop(name), pa.large_string()))
            except pa.ArrowException as error:
                raise SchemaError(f"column {name!r} is not text: {error}") from error
            values = pc.if_else(pc.equal(values, ""), pa.scalar(None, pa.large_string()), values)
            arrays[f"{name}: characters"] = pc.utf8_length(values)
            arrays[f"{name}: words"] = pc.count_substring_regex(values, r"\S+")
        yield pa.RecordBatch.from_pydict(arrays)


def _measure_texts(texts: pd.Series[Any], tokens: Set[str]) -> Array:
    """Characters, words and the share of new words of each text, float64 ``[n, 3]``; NaN for an empty text."""
    count_words = lru_cache(_WORD_CACHE_SIZE)(_make_word_counter(tokens))
    measures = np.full((len(texts), len(TEXT_MEASURES)), np.nan)
    for row, text, is_missing in zip(measures, texts, texts.isna(), strict=True):
        text = "" if is_missing else str(text).strip()
        if text:
            counts = [count_words(part) for part in text.split(" ")]
            words = sum(count for count, _ in counts)
            row[:] = len(text), words, sum(new for _, new in counts) / max(words, 1)
    return measures


def _make_word_counter(tokens: Set[str]) -> Callable[[str], tuple[int, int]]:
    def count_words(part: str) -> tuple[int, int]:
        """The number of words in a part without spaces, and how many of them are new."""
        words = basic_words(part)
        return len(words), sum(word not in tokens for word in words)

    return count_words
