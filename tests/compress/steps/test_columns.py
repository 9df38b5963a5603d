"""Pruning of columns: the least important columns are removed and no longer read."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from stillhouse.compress.export import export_onnx, run_onnx, run_torch
from stillhouse.compress.steps.columns import prunable_columns, prune_columns
from stillhouse.compress.target import ModelState
from stillhouse.config import PruneColumns
from stillhouse.distill.students import TabularStudent, quantile_edges
from stillhouse.errors import ExportError
from stillhouse.variant import encode, width
from tests.compress.models_for_tests import COLUMNS, ENCODERS, TEXT_COLUMNS, raw, sentences, text_student

ROWS = raw(400)
X = {"x": encode(ROWS, COLUMNS)}


def step(ratio: float) -> PruneColumns:
    return PruneColumns(method="prune_columns", ratio=ratio)


def student(*used: str, seed: int = 0) -> ModelState:
    """A student that looks at these columns alone."""
    torch.manual_seed(seed)
    module = TabularStudent(quantile_edges(X["x"][:, :6], 4), (80,), 2, (16,), embedding=3).eval()
    names = [column["name"] for column in COLUMNS]
    with torch.no_grad():
        nn.init.normal_(module.embeddings[0].weight)
        for index, name in enumerate(names):
            if name not in used:
                begin, end = (5 * index, 5 * index + 5) if index < 6 else (30, 33)
                module.layers[0].weight[:, begin:end] = 0
    return ModelState(module, COLUMNS)


def names(state: ModelState) -> list[str]:
    assert state.columns is not None
    return [column["name"] for column in state.columns]


@pytest.mark.parametrize(
    ("used", "ratio"),
    [("ab", 5 / 7), ("adf", 4 / 7), (("e", "origin"), 5 / 7), (("a", "b", "c", "d", "e", "f"), 1 / 7)],
)
def test_unused_columns_are_removed_without_any_change(used: Any, ratio: float) -> None:
    state = student(*used)
    pruned = prune_columns(step(ratio), state, X)
    assert names(pruned) == [name for name in names(state) if name in used]
    rows = raw(100, 4)
    actual = run_torch(pruned.module, {"x": encode(rows, pruned.columns or ())})
    np.testing.assert_allclose(actual, run_torch(state.module, {"x": encode(rows, COLUMNS)}), atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_any_ratio_gives_a_student_of_the_remaining_columns(seed: int) -> None:
    ratio = float(np.random.default_rng(seed).uniform(0.05, 0.99))
    state = student(*names(student()), seed=seed)
    pruned = prune_columns(step(ratio), state, X)
    left = names(pruned)
    assert len(left) == 7 - min(6, max(1, round(7 * ratio))) and [name for name in names(state) if name in left] == left
    module: Any = pruned.module
    assert module.numbers == len(module.edges) == len([name for name in left if name != "origin"])
    assert len(module.embeddings) == ("origin" in left)
    assert (
        module.layers[0].in_features == module.layers[0].weight.shape[1] == 5 * module.numbers + 3 * ("origin" in left)
    )
    rows = {"x": encode(ROWS, pruned.columns or ())}
    assert rows["x"].shape[1] == width(pruned.columns or ())
    np.testing.assert_allclose(run_onnx(export_onnx(module, rows), rows), run_torch(module, rows), atol=1e-5)
    assert names(state) == [column["name"] for column in COLUMNS] and state.module.numbers == 6


def test_a_removed_columns_mean_is_folded_into_the_bias() -> None:
    state = student("a", "b")
    pruned = prune_columns(step(6 / 7), state, X)
    (left,) = names(pruned)
    assert left in ("a", "b")
    removed = "ab".replace(left, "")
    index = "ab".index(removed)
    torch_x = torch.from_numpy(X["x"])
    mean = state.module._piecewise_linear(torch_x[:, :6])[:, 5 * index : 5 * index + 5].mean(dim=0)
    expected = state.module.layers[0].bias + state.module.layers[0].weight[:, 5 * index : 5 * index + 5] @ mean
    torch.testing.assert_close(pruned.module.layers[0].bias, expected, rtol=1e-4, atol=1e-4)


def test_a_texts_tokens_move_with_the_columns_before_it() -> None:
    state = ModelState(text_student(ENCODERS["bag"]), TEXT_COLUMNS)
    assert prunable_columns(state) == ["hour", "place"]
    pruned = prune_columns(step(0.5), state, {"x": encode(sentences(200), TEXT_COLUMNS)})
    assert len(names(pruned)) == 2 and names(pruned)[-1] == "said"
    assert pruned.module.first_token == 1
    rows = {"x": encode(sentences(50, 2), pruned.columns or ())}
    np.testing.assert_allclose(
        run_onnx(export_onnx(pruned.module, rows), rows), run_torch(pruned.module, rows), atol=1e-5
    )


def test_a_module_without_separate_columns_is_refused() -> None:
    own = ModelState(nn.Linear(7, 2), COLUMNS)
    assert prunable_columns(own) == [] == prunable_columns(ModelState(student("a").module, None))
    with pytest.raises(ExportError, match="prune_columns: Linear has no columns that can be removed one at a time"):
        prune_columns(step(0.5), own, X)
    single = TabularStudent(torch.zeros(1, 5), (), 2, (8,))
    with pytest.raises(ExportError, match="no columns that can be removed"):
        prune_columns(step(0.5), ModelState(single, COLUMNS[:1]), {"x": X["x"][:, :1]})
