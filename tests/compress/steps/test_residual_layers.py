"""Pruning of residual layers: the least important layers are removed, the others do not change."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillhouse.compress.export import export_onnx, run_onnx, run_torch
from stillhouse.compress.steps.residual_layers import prunable_stacks, prune_layers
from stillhouse.compress.target import ModelState
from stillhouse.config import PruneLayers
from stillhouse.distill.students.encoders import TransformerLayer
from stillhouse.errors import ExportError
from stillhouse.variant import encode
from tests.compress.models_for_tests import ENCODERS, TEXT_COLUMNS, feed, sentences, tabular, text_student

X = {"x": encode(sentences(200), TEXT_COLUMNS)}
OTHERS = {"x": encode(sentences(80, 5), TEXT_COLUMNS)}
LAYERS = ["encoders.0.layers.0", "encoders.0.layers.1"]


def layers(ratio: float) -> PruneLayers:
    return PruneLayers(method="prune_layers", ratio=ratio)


def transformer(**changes: Any) -> ModelState:
    """Four heads of eight values in each of two layers, unless ``changes`` say otherwise."""
    return ModelState(text_student(ENCODERS["transformer"].model_copy(update=changes)), TEXT_COLUMNS)


def answers(state: ModelState, x: dict[str, Any] = OTHERS) -> np.ndarray:
    return run_torch(state.module, x, softmax=False)


def quiet(layer: Any) -> None:
    """Let a layer add nothing: what it takes is normalised already."""
    with torch.no_grad():
        for part in (layer.out, layer.down):
            part.weight.zero_()
            part.bias.zero_()


def test_stacks_are_lists_of_layers_that_keep_the_shape() -> None:
    assert prunable_stacks(transformer(layers=3), X) == ["encoders.0.layers"]
    assert prunable_stacks(transformer(layers=1), X) == []
    assert prunable_stacks(ModelState(tabular()), feed(9)) == []  # its `layers` have parts of several types
    assert prunable_stacks(ModelState(text_student(ENCODERS["convolution"]), TEXT_COLUMNS), X) == []


@pytest.mark.parametrize(
    ("count", "ratio", "left"), [(4, 0.5, 2), (4, 0.1, 3), (4, 0.99, 1), (2, 0.5, 1), (3, 0.34, 2)]
)
def test_the_ratio_of_layers_is_removed_and_one_stays(count: int, ratio: float, left: int) -> None:
    state = transformer(layers=count, width=16, feedforward=16)
    pruned = prune_layers(layers(ratio), state, X)
    assert len(pruned.module.encoders[0].layers) == left and len(state.module.encoders[0].layers) == count
    np.testing.assert_allclose(
        run_onnx(export_onnx(pruned.module, X), OTHERS), run_torch(pruned.module, OTHERS), atol=1e-5
    )


@pytest.mark.parametrize("index", range(4))
def test_a_layer_without_effect_is_removed(index: int) -> None:
    state = transformer(layers=4, width=16, feedforward=16)
    quiet(state.module.encoders[0].layers[index])
    pruned = prune_layers(layers(0.25), state, X)
    np.testing.assert_allclose(answers(pruned), answers(state), atol=1e-4)
    left = [layer for number, layer in enumerate(state.module.encoders[0].layers) if number != index]
    for first, second in zip(pruned.module.encoders[0].layers, left, strict=True):
        assert isinstance(first, TransformerLayer) and torch.equal(first.up.weight, second.up.weight)


def test_layers_are_removed_one_at_a_time_by_their_effect() -> None:
    state = transformer(layers=4, width=16, feedforward=16)
    for index in (1, 2):
        quiet(state.module.encoders[0].layers[index])
    pruned = prune_layers(layers(0.5), state, X)
    np.testing.assert_allclose(answers(pruned), answers(state), atol=1e-4)


class Block(nn.Module):
    def __init__(self, size: int, scale: float) -> None:
        super().__init__()
        self.inside, self.scale = nn.Linear(size, size), scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.tanh(self.inside(x))


def test_a_sequence_of_residual_blocks_is_a_stack_too() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Sequential(*(Block(6, scale) for scale in (1.0, 0.001, 2.0))), nn.Linear(6, 2)).eval()
    x = {"x": np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)}
    state = ModelState(module)
    assert prunable_stacks(state, x) == ["0"]
    pruned = prune_layers(layers(0.3), state, x)
    assert [block.scale for block in pruned.module[0]] == [1.0, 2.0]
    uneven = nn.Sequential(
        nn.Sequential(nn.Sequential(nn.Linear(6, 5)), nn.Sequential(nn.Linear(5, 6))), nn.Linear(6, 2)
    )
    with pytest.raises(ExportError, match="prune_layers: Sequential has no list of layers whose output has the shape"):
        prune_layers(layers(0.5), ModelState(uneven.eval()), x)


def test_equal_arguments_give_an_equal_state() -> None:
    state = transformer()
    first, second = (prune_layers(layers(0.5), state, X).module.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first) and list(first) == list(second)
