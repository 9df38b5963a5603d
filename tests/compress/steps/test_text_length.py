"""Shorter texts: in the encoder, in the columns and in the variant's tokeniser."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from stillhouse.compress.export import export_onnx, run_onnx, run_torch
from stillhouse.compress.steps.text_length import shorten_texts, shortenable_texts
from stillhouse.compress.target import ModelState
from stillhouse.config import BagEncoder, ConvolutionEncoder, ShortTexts, TransformerEncoder
from stillhouse.distill.students import TabularStudent, TextStudent
from stillhouse.errors import ExportError
from stillhouse.variant import encode

WORDS = [
    "[PAD]",
    "[UNK]",
    *["the", "a", "flight", "late", "is", "on", "time", "not", "again", "to", "from", "go", "come", "stay"],
]
ENCODERS = {
    "bag": BagEncoder(type="bag", width=8, bigrams=16),
    "convolution": ConvolutionEncoder(type="convolution", width=8, filters=4, sizes=(2, 3)),
    "transformer": TransformerEncoder(type="transformer", width=8, layers=2, heads=2, feedforward=16),
}


def columns(length: int) -> list[dict[str, Any]]:
    return [{"name": "n", "type": "number"}, {"name": "said", "type": "text", "tokens": WORDS, "length": length}]


def state(kind: str, length: int = 12) -> ModelState:
    torch.manual_seed(0)
    edges = torch.tensor([[0.0, 0.5, 1.0]])
    student = TextStudent(edges, [], [(len(WORDS), length)], ENCODERS[kind], 3, [6])
    return ModelState(student.eval(), columns(length))


def rows(words: int, count: int = 20) -> pd.DataFrame:
    random = np.random.default_rng(words)
    texts = [" ".join(random.choice(WORDS[2:], words)) for _ in range(count)]
    return pd.DataFrame({"n": random.random(count), "said": texts})


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize(("ratio", "left"), [(0.25, 9), (0.5, 6), (0.9, 4)])
def test_tokens_beyond_the_length_are_not_read(kind: str, ratio: float, left: int) -> None:
    before = state(kind)
    after = shorten_texts(ShortTexts(method="length", ratio=ratio), before)
    assert after.columns is not None and after.columns[1]["length"] == left
    long, cut = rows(12), rows(12)
    cut["said"] = [" ".join(text.split()[:left]) for text in cut["said"]]
    read = {"x": encode(long, after.columns)}
    assert read["x"].shape[1] == 1 + left
    # a text cut by hand, padded, is the same to the long state as the whole text is to the short one
    np.testing.assert_allclose(
        run_torch(after.module, read), run_torch(before.module, {"x": encode(cut, columns(12))}), atol=1e-5
    )
    exported = export_onnx(after.module, read)
    np.testing.assert_allclose(run_onnx(exported, read), run_torch(after.module, read), atol=1e-5)
    assert before.columns is not None and before.columns[1]["length"] == 12  # itself it is left as it is


def test_short_texts_are_not_changed() -> None:
    assert shortenable_texts(state("bag")) == ["said"]
    short = state("bag", length=4)
    assert shortenable_texts(short) == []
    with pytest.raises(ExportError, match="TextStudent reads no text of which fewer tokens"):
        shorten_texts(ShortTexts(method="length"), short)


def test_a_module_without_texts_is_refused() -> None:
    tabular = ModelState(TabularStudent(torch.tensor([[0.0, 1.0]]), [], 2, [4]), [{"name": "n", "type": "number"}])
    with pytest.raises(ExportError, match="TabularStudent reads no text"):
        shorten_texts(ShortTexts(method="length"), tabular)
