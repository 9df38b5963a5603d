"""Low-rank factors are optimal for their rank on a layer's inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillhouse.compress.export import run_torch
from stillhouse.compress.steps.low_rank import factorizable_layers, factorize_layers, low_rank_factors, rank_for_ratio
from stillhouse.compress.target import ModelState
from stillhouse.config import LowRank
from stillhouse.errors import ExportError
from tests.compress.models_for_tests import feed, linears, tabular


def step(**settings: object) -> LowRank:
    return LowRank.model_validate({"method": "low_rank", **settings})


def numbers(module: nn.Module) -> int:
    return sum(layer.weight.numel() for layer in linears(module))


@pytest.mark.parametrize(
    ("outputs", "inputs", "ratio", "rank"),
    [(64, 64, 0.5, 16), (64, 278, 0.5, 26), (100, 100, 0.9, 5), (64, 64, 0.99, 1), (10, 10, 0.01, 4)],
)
def test_rank_for_ratio(outputs: int, inputs: int, ratio: float, rank: int) -> None:
    assert rank_for_ratio(outputs, inputs, ratio) == rank


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_largest_rank_that_fits(seed: int) -> None:
    random = np.random.default_rng(seed)
    outputs, inputs, ratio = (
        int(random.integers(2, 300)),
        int(random.integers(2, 300)),
        float(random.uniform(0.01, 0.99)),
    )
    rank, room = rank_for_ratio(outputs, inputs, ratio), (1 - ratio) * outputs * inputs
    assert rank == 1 or rank * (outputs + inputs) <= room
    assert (rank + 1) * (outputs + inputs) > room - 1e-6


def correlated(seed: int, inputs: int, rows: int = 4000) -> Tensor:
    """Inputs of which some directions are far louder than others."""
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(inputs, inputs)) * np.geomspace(1, 0.01, inputs)
    return torch.from_numpy(random.normal(size=(rows, inputs)) @ mixing.T)


@pytest.mark.parametrize("seed", range(6))
def test_factors_of_full_rank_reconstruct_the_matrix(seed: int) -> None:
    random = np.random.default_rng(seed)
    outputs, inputs = (int(size) for size in random.integers(2, 24, 2))
    weight = torch.from_numpy(random.normal(size=(outputs, inputs))).float()
    x = correlated(seed, inputs)
    for second in (None, x.T @ x / len(x)):
        up, down = low_rank_factors(weight, min(outputs, inputs), second)
        assert up.shape == (outputs, min(outputs, inputs)) and down.shape == (min(outputs, inputs), inputs)
        torch.testing.assert_close(up @ down, weight, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("rank", [1, 3, 7])
def test_the_error_is_the_tail_of_the_singular_values(seed: int, rank: int) -> None:
    """``E‖(W − UV) x‖²`` is the sum of the squared singular values of ``W S`` beyond the rank (Eckart–Young)."""
    random = np.random.default_rng(seed)
    weight = torch.from_numpy(random.normal(size=(12, 16)))
    x = correlated(seed + 50, 16)
    second = x.T @ x / len(x)
    up, down = (factor.double() for factor in low_rank_factors(weight, rank, second))
    lost = float(((weight - up @ down) @ x.T).pow(2).sum(dim=0).mean())
    tail = float(torch.linalg.svdvals(weight @ torch.linalg.cholesky(second))[rank:].pow(2).sum())
    assert lost == pytest.approx(tail, rel=0.02)
    plain_up, plain_down = (factor.double() for factor in low_rank_factors(weight, rank))
    plain = float(((weight - plain_up @ plain_down) @ x.T).pow(2).sum(dim=0).mean())
    assert lost < 0.9 * plain
    alone = torch.linalg.svdvals(weight)[rank:].pow(2).sum()
    assert float((weight - plain_up @ plain_down).pow(2).sum()) == pytest.approx(float(alone), rel=1e-4)


def test_inputs_that_are_always_zero() -> None:
    torch.manual_seed(0)
    x = torch.randn(100, 8).double()
    x[:, 3:] = 0
    weight = torch.randn(6, 8)
    up, down = low_rank_factors(weight, 3, x.T @ x / len(x))
    assert torch.isfinite(up).all() and torch.isfinite(down).all()
    torch.testing.assert_close((up @ down)[:, :3], weight[:, :3], rtol=0.05, atol=0.05)
    up, down = low_rank_factors(weight, 6, torch.zeros(8, 8))
    torch.testing.assert_close(up @ down, weight, rtol=1e-3, atol=1e-3)


def test_a_layer_is_replaced_by_two() -> None:
    state = ModelState(tabular())
    assert factorizable_layers(state) == ["layers.0", "layers.3"]  # the last has 64 numbers
    before = {name: value.clone() for name, value in state.module.state_dict().items()}
    factorized = factorize_layers(step(ratio=0.5, ratios={"layers.3": 0.25}), state, feed(300))
    assert [tuple(layer.weight.shape) for layer in linears(factorized.module)] == [
        (26, 278),
        (64, 26),
        (16, 64),
        (32, 16),
        (2, 32),
    ]
    assert isinstance(factorized.module.layers[0], nn.Sequential) and factorized.module.layers[0][0].bias is None
    x = torch.from_numpy(feed(50, seed=3)["x"])
    assert factorized.module(x).shape == (50, 2)
    assert all(torch.equal(value, before[name]) for name, value in state.module.state_dict().items())
    assert not factorizable_layers(ModelState(nn.Sequential(nn.Linear(10, 10), nn.Linear(1, 2000))))


@pytest.mark.parametrize("seed", range(6))
def test_no_more_numbers_than_the_share_leaves(seed: int) -> None:
    random = np.random.default_rng(seed)
    ratio, shape = float(random.uniform(0.1, 0.9)), [int(size) for size in random.integers(34, 90, 3)]
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(shape[0], shape[1]), nn.ReLU(), nn.Linear(shape[1], shape[2], bias=False))
    x = {"x": random.normal(size=(100, shape[0])).astype(np.float32)}
    factorized = factorize_layers(step(ratio=ratio), ModelState(module), x).module
    assert numbers(factorized) <= (1 - ratio) * numbers(module)
    assert numbers(factorized) > (1 - ratio) * numbers(module) - (sum(shape) + shape[1])
    assert factorized(torch.from_numpy(x["x"])).shape == (100, shape[2])


def test_the_error_grows_with_the_ratio() -> None:
    state, rows, x = ModelState(tabular()), feed(500), feed(200, seed=2)
    expected = run_torch(state.module, x, softmax=False)
    modules = [factorize_layers(step(ratio=ratio), state, rows).module for ratio in (0.3, 0.6, 0.95)]
    lost = [np.abs(run_torch(module, x, softmax=False) - expected).mean() for module in modules]
    assert lost[0] < lost[1] < lost[2]


def test_a_ratio_of_zero_changes_nothing_and_the_step_is_deterministic() -> None:
    state = ModelState(tabular())
    first, second_module = (
        factorize_layers(step(ratio=0.5, ratios={"layers.0": 0.0}), state, feed(200)).module for _ in range(2)
    )
    assert torch.equal(first.layers[0].weight, state.module.layers[0].weight)
    assert isinstance(first.layers[3], nn.Sequential)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second_module.parameters(), strict=True))


def test_what_does_not_apply_is_an_error() -> None:
    with pytest.raises(ExportError, match="low_rank: Linear has no linear layer of 1024 weights or more"):
        factorize_layers(step(), ModelState(nn.Linear(3, 3)), {"x": np.zeros((4, 3), np.float32)})
    with pytest.raises(ExportError, match=r"no layer is called layers\.6, x; those are: layers.0, layers.3"):
        factorize_layers(step(ratios={"x": 0.5, "layers.6": 0.5}), ModelState(tabular()), feed(10))
