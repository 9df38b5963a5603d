"""Pruning of attention heads: the least important heads are removed, the others do not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stillhouse.compress.export import export_onnx, run_onnx, run_torch
from stillhouse.compress.steps.heads import prunable_attentions, prune_heads
from stillhouse.compress.target import ModelState
from stillhouse.config import PruneHeads
from stillhouse.errors import ExportError
from stillhouse.variant import encode
from tests.compress.models_for_tests import ENCODERS, TEXT_COLUMNS, feed, sentences, tabular, text_student

X = {"x": encode(sentences(200), TEXT_COLUMNS)}
OTHERS = {"x": encode(sentences(80, 5), TEXT_COLUMNS)}
LAYERS = ["encoders.0.layers.0", "encoders.0.layers.1"]


def heads(**settings: Any) -> PruneHeads:
    return PruneHeads.model_validate({"method": "prune_heads", **settings})


def transformer(**changes: Any) -> ModelState:
    """Four heads of eight values in each of two layers, unless ``changes`` say otherwise."""
    return ModelState(text_student(ENCODERS["transformer"].model_copy(update=changes)), TEXT_COLUMNS)


def answers(state: ModelState, x: dict[str, Any] = OTHERS) -> np.ndarray:
    return run_torch(state.module, x, softmax=False)


def test_attentions_are_found_by_their_parts() -> None:
    assert prunable_attentions(transformer()) == LAYERS
    assert prunable_attentions(transformer(heads=1)) == [] == prunable_attentions(ModelState(tabular()))


@pytest.mark.parametrize(("ratio", "left"), [(0.5, 2), (0.25, 3), (0.99, 1), (0.1, 4)])
def test_shapes(ratio: float, left: int) -> None:
    state = transformer()
    before = {name: value.clone() for name, value in state.module.state_dict().items()}
    pruned = prune_heads(heads(ratio=ratio), state, X)
    for name in LAYERS:
        part: Any = pruned.module.get_submodule(name)
        assert (part.heads, part.size) == (left, 8)
        for projection in (part.query, part.key, part.value):
            assert projection.weight.shape == (8 * left, 32) and projection.bias.shape == (
                projection.out_features,
            ) == (8 * left,)
        assert part.out.weight.shape == (32, 8 * left) and part.out.in_features == 8 * left
        assert part.up.weight.shape == (64, 32)
    assert answers(pruned).shape == (80, 3)
    assert all(torch.equal(value, before[name]) for name, value in state.module.state_dict().items())
    np.testing.assert_allclose(
        run_onnx(export_onnx(pruned.module, X), OTHERS), run_torch(pruned.module, OTHERS), atol=1e-5
    )


def test_each_attention_may_have_a_ratio_of_its_own() -> None:
    pruned = prune_heads(heads(ratio=0.5, ratios={LAYERS[0]: 0.0}), transformer(), X)
    assert [pruned.module.get_submodule(name).heads for name in LAYERS] == [4, 2]


def test_unused_heads_are_removed_without_any_change() -> None:
    state = transformer()
    part: Any = state.module.get_submodule(LAYERS[0])
    with torch.no_grad():
        part.out.weight[:, 8:16] = 0
        part.out.weight[:, 24:] = 0
    pruned = prune_heads(heads(ratio=0.5, ratios={LAYERS[1]: 0.0}), state, X)
    np.testing.assert_allclose(answers(pruned), answers(state), atol=1e-4)
    attention: Any = pruned.module.get_submodule(LAYERS[0])
    assert torch.equal(attention.value.weight, torch.cat([part.value.weight[:8], part.value.weight[16:24]]))


def test_constant_heads_are_folded_into_the_bias() -> None:
    state = transformer()
    part: Any = state.module.get_submodule(LAYERS[1])
    with torch.no_grad():
        part.value.weight[:16] = 0
        part.value.bias[:16] = torch.linspace(-5, 5, 16)
    pruned = prune_heads(heads(ratio=0.5, ratios={LAYERS[0]: 0.0}), state, X)
    np.testing.assert_allclose(answers(pruned), answers(state), atol=1e-4)
    assert torch.equal(pruned.module.get_submodule(LAYERS[1]).query.weight, part.query.weight[16:])


@pytest.mark.parametrize("seed", range(5))
def test_the_head_of_least_energy_is_removed(seed: int) -> None:
    """Heads whose output weights are scaled by .01 … 10, in any order."""
    state, order = transformer(), np.random.default_rng(seed).permutation(4)
    part: Any = state.module.get_submodule(LAYERS[0])
    with torch.no_grad():
        for head, power in enumerate(order):
            part.out.weight[:, 8 * head : 8 * head + 8] *= 10.0 ** (int(power) - 2)
    pruned = prune_heads(heads(ratio=0.75, ratios={LAYERS[1]: 0.0}), state, X)
    loudest = int(order.argmax())
    assert torch.equal(
        pruned.module.get_submodule(LAYERS[0]).key.weight, part.key.weight[8 * loudest : 8 * loudest + 8]
    )


def test_a_module_without_heads_is_refused() -> None:
    with pytest.raises(ExportError, match="prune_heads: TabularStudent has no attention with query, key, value, out"):
        prune_heads(heads(), ModelState(tabular()), feed(9))
    with pytest.raises(ExportError, match=r"no attention is called x; those are: encoders.0.layers.0, encoders.0"):
        prune_heads(heads(ratios={"x": 0.5}), transformer(), X)


def test_equal_arguments_give_an_equal_state() -> None:
    state = transformer()
    first, second = (prune_heads(heads(), state, X).module.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first) and list(first) == list(second)
