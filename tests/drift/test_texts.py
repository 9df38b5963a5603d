"""Text measures: computed by hand, and as columns of a profile that move when the words change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from stillhouse.config import CategoryColumn, Column, NumberColumn, TextColumn
from stillhouse.drift.distances import compare_profiles
from stillhouse.drift.scan import profile_frame
from stillhouse.drift.texts import add_text_measures, measure_text_batches, replace_text_columns
from stillhouse.errors import SchemaError

NAN = float("nan")
COLUMNS: dict[str, Column] = {
    "said": TextColumn(type="text"),
    "hour": NumberColumn(type="number"),
    "note": TextColumn(type="text", drift=False),
    "place": CategoryColumn(type="category"),
}
MODEL_COLUMNS: list[dict[str, Any]] = [
    {"name": "hour", "type": "number"},
    {"name": "said", "type": "text", "tokens": ["[PAD]", "[UNK]", "a", "taxi", "!", "##s"], "length": 4},
]


def frame(*texts: Any) -> pd.DataFrame:
    return pd.DataFrame({"said": pd.Series(texts, dtype=object), "hour": 1.0, "note": "x", "place": "y"})


def test_by_hand() -> None:
    measured = add_text_measures(frame("A taxi!", "  two taxis to Zoë ", "", None, " "), COLUMNS, MODEL_COLUMNS)
    assert list(measured.columns)[4:] == ["said: characters", "said: words", "said: new words"]
    np.testing.assert_array_equal(measured.iloc[:, 4:], [[7, 3, 0], [16, 4, 1], [NAN] * 3, [NAN] * 3, [NAN] * 3])


def test_measures_replace_the_text_column() -> None:
    columns = replace_text_columns(COLUMNS)
    measures = [f"{name}: {measure}" for name in ("said", "note") for measure in ("characters", "words", "new words")]
    assert list(columns) == [*measures[:3], "hour", *measures[3:], "place"]
    assert [name for name, column in columns.items() if column.drift] == [*measures[:3], "hour", "place"]


def test_new_words_move_their_number_and_nothing_else() -> None:
    generator = np.random.default_rng(0)

    def profile(words: list[str], like: Any = None) -> Any:
        texts = [" ".join(generator.choice(words, 4)) for _ in range(2000)]
        return profile_frame(
            add_text_measures(frame(*texts), COLUMNS, MODEL_COLUMNS), replace_text_columns(COLUMNS), like
        )

    before = profile(["a", "taxi", "town"])
    drifts = {drift.column: drift.psi for drift in compare_profiles(before, profile(["a", "taxi", "gate"], before))}
    assert max(drifts.values()) < 0.02  # as many unknown words as before, of the same length
    drifts = {drift.column: drift.psi for drift in compare_profiles(before, profile(["a", "four", "gate"], before))}
    assert drifts["said: new words"] > 0.5 and drifts["said: words"] < 0.02 and drifts["said: characters"] < 0.02


def test_a_model_that_does_not_read_the_text() -> None:
    with pytest.raises(SchemaError, match="the watched model reads no text 'said'"):
        add_text_measures(frame("a"), COLUMNS, MODEL_COLUMNS[:1])


def test_arrow_batches() -> None:
    batch = pa.RecordBatch.from_pydict({"said": ["  two  taxis ", "", None, "é"], "n": [1, 2, 3, 4]})
    (measured,) = measure_text_batches([batch], ["said"])
    assert measured.to_pydict() == {
        "n": [1, 2, 3, 4],
        "said: characters": [10, None, None, 1],
        "said: words": [2, None, None, 1],
    }
    with pytest.raises(SchemaError, match="'list' is not text"):
        list(measure_text_batches([pa.RecordBatch.from_pydict({"list": [[1]]})], ["list"]))
