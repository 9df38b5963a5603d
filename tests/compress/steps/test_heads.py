"""Heads and whole layers go, those that matter least, and the others stay what they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillhouse.compress.export import export_onnx, run_onnx, run_torch
from stillhouse.compress.steps.heads import prunable_attentions, prune_heads
from stillhouse.compress.steps.residual_layers import prunable_stacks, prune_layers
from stillhouse.compress.target import ModelState
from stillhouse.config import PruneHeads, PruneLayers
from stillhouse.distill.students.encoders import TransformerLayer
from stillhouse.errors import ExportError
from stillhouse.variant import encode
from tests.compress.models_for_tests import ENCODERS, TEXT_COLUMNS, feed, sentences, tabular, text_student

X = {"x": encode(sentences(200), TEXT_COLUMNS)}
OTHERS = {"x": encode(sentences(80, 5), TEXT_COLUMNS)}
LAYERS = ["encoders.0.layers.0", "encoders.0.layers.1"]


def heads(**settings: Any) -> PruneHeads:
    return PruneHeads.model_validate({"method": "prune_heads", **settings})


def layers(ratio: float) -> PruneLayers:
    return PruneLayers(method="prune_layers", ratio=ratio)


def transformer(**changes: Any) -> ModelState:
    """Four heads of eight values in each of two layers, unless ``changes`` say otherwise."""
    return ModelState(text_student(ENCODERS["transformer"].model_copy(update=changes)), TEXT_COLUMNS)


def answers(state: ModelState, x: dict[str, Any] = OTHERS) -> np.ndarray:
    return run_torch(state.module, x, softmax=False)


# --------------------------------------------------------------------------- heads


def test_attentions_are_found_by_their_parts() -> None:
    assert prunable_attentions(transformer()) == LAYERS
    assert prunable_attentions(transformer(heads=1)) == [] == prunable_attentions(ModelState(tabular()))


@pytest.mark.parametrize(("ratio", "left"), [(0.5, 2), (0.25, 3), (0.99, 1), (0.1, 4)])
def test_shapes(ratio: float, left: int) -> None:
    state = transformer()
    before = {name: value.clone() for name, value in state.module.state_dict().items()}
    made = prune_heads(heads(ratio=ratio), state, X)
    for name in LAYERS:
        part: Any = made.module.get_submodule(name)
        assert (part.heads, part.size) == (left, 8)
        for each in (part.query, part.key, part.value):
            assert each.weight.shape == (8 * left, 32) and each.bias.shape == (each.out_features,) == (8 * left,)
        assert part.out.weight.shape == (32, 8 * left) and part.out.in_features == 8 * left
        assert part.up.weight.shape == (64, 32)
    assert answers(made).shape == (80, 3)
    assert all(torch.equal(value, before[name]) for name, value in state.module.state_dict().items())
    np.testing.assert_allclose(run_onnx(export_onnx(made.module, X), OTHERS), run_torch(made.module, OTHERS), atol=1e-5)


def test_each_attention_may_have_a_ratio_of_its_own() -> None:
    made = prune_heads(heads(ratio=0.5, ratios={LAYERS[0]: 0.0}), transformer(), X)
    assert [made.module.get_submodule(name).heads for name in LAYERS] == [4, 2]


def test_heads_that_are_not_read_go_and_change_nothing() -> None:
    state = transformer()
    part: Any = state.module.get_submodule(LAYERS[0])
    with torch.no_grad():
        part.out.weight[:, 8:16] = 0
        part.out.weight[:, 24:] = 0
    made = prune_heads(heads(ratio=0.5, ratios={LAYERS[1]: 0.0}), state, X)
    np.testing.assert_allclose(answers(made), answers(state), atol=1e-4)
    kept: Any = made.module.get_submodule(LAYERS[0])
    assert torch.equal(kept.value.weight, torch.cat([part.value.weight[:8], part.value.weight[16:24]]))


def test_heads_that_say_the_same_to_all_go_into_the_bias() -> None:
    state = transformer()
    part: Any = state.module.get_submodule(LAYERS[1])
    with torch.no_grad():
        part.value.weight[:16] = 0
        part.value.bias[:16] = torch.linspace(-5, 5, 16)
    made = prune_heads(heads(ratio=0.5, ratios={LAYERS[0]: 0.0}), state, X)
    np.testing.assert_allclose(answers(made), answers(state), atol=1e-4)
    assert torch.equal(made.module.get_submodule(LAYERS[1]).query.weight, part.query.weight[16:])


@pytest.mark.parametrize("seed", range(5))
def test_the_head_of_least_energy_goes(seed: int) -> None:
    """Heads whose output weights are scaled by .01 … 10, in any order."""
    state, order = transformer(), np.random.default_rng(seed).permutation(4)
    part: Any = state.module.get_submodule(LAYERS[0])
    with torch.no_grad():
        for head, power in enumerate(order):
            part.out.weight[:, 8 * head : 8 * head + 8] *= 10.0 ** (int(power) - 2)
    made = prune_heads(heads(ratio=0.75, ratios={LAYERS[1]: 0.0}), state, X)
    loudest = int(order.argmax())
    assert torch.equal(made.module.get_submodule(LAYERS[0]).key.weight, part.key.weight[8 * loudest : 8 * loudest + 8])


def test_what_has_no_heads_is_refused() -> None:
    with pytest.raises(ExportError, match="prune_heads: TabularStudent has no attention with query, key, value, out"):
        prune_heads(heads(), ModelState(tabular()), feed(9))
    with pytest.raises(ExportError, match=r"no attention is called x; those are: encoders.0.layers.0, encoders.0"):
        prune_heads(heads(ratios={"x": 0.5}), transformer(), X)


# --------------------------------------------------------------------------- layers


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
def test_as_many_layers_as_the_share_says_and_one_at_least(count: int, ratio: float, left: int) -> None:
    state = transformer(layers=count, width=16, feedforward=16)
    made = prune_layers(layers(ratio), state, X)
    assert len(made.module.encoders[0].layers) == left and len(state.module.encoders[0].layers) == count
    np.testing.assert_allclose(run_onnx(export_onnx(made.module, X), OTHERS), run_torch(made.module, OTHERS), atol=1e-5)


@pytest.mark.parametrize("place", range(4))
def test_the_layer_that_adds_nothing_goes(place: int) -> None:
    state = transformer(layers=4, width=16, feedforward=16)
    quiet(state.module.encoders[0].layers[place])
    made = prune_layers(layers(0.25), state, X)
    np.testing.assert_allclose(answers(made), answers(state), atol=1e-4)
    left = [layer for number, layer in enumerate(state.module.encoders[0].layers) if number != place]
    for one, other in zip(made.module.encoders[0].layers, left, strict=True):
        assert isinstance(one, TransformerLayer) and torch.equal(one.up.weight, other.up.weight)


def test_layers_go_one_by_one_each_the_least_missed_of_those_left() -> None:
    state = transformer(layers=4, width=16, feedforward=16)
    for place in (1, 2):
        quiet(state.module.encoders[0].layers[place])
    made = prune_layers(layers(0.5), state, X)
    np.testing.assert_allclose(answers(made), answers(state), atol=1e-4)


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
    made = prune_layers(layers(0.3), state, x)
    assert [block.scale for block in made.module[0]] == [1.0, 2.0]
    uneven = nn.Sequential(
        nn.Sequential(nn.Sequential(nn.Linear(6, 5)), nn.Sequential(nn.Linear(5, 6))), nn.Linear(6, 2)
    )
    with pytest.raises(ExportError, match="prune_layers: Sequential has no list of layers whose output has the shape"):
        prune_layers(layers(0.5), ModelState(uneven.eval()), x)


def test_the_same_again_is_the_same() -> None:
    state = transformer()
    for prune, step in ((prune_heads, heads()), (prune_layers, layers(0.5))):
        one, other = (prune(step, state, X).module.state_dict() for _ in range(2))  # type: ignore[operator]
        assert all(torch.equal(one[name], other[name]) for name in one) and list(one) == list(other)
