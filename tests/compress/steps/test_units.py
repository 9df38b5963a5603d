"""Pruning of hidden units: the least important are removed first, with all weights that depend on them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillhouse.compress.export import run_torch
from stillhouse.compress.steps.units import MIN_UNITS, prunable_units, prune_units, units_to_remove
from stillhouse.compress.target import ModelState
from stillhouse.config import PruneUnits
from stillhouse.errors import ExportError
from stillhouse.variant import encode
from tests.compress.models_for_tests import ENCODERS, TEXT_COLUMNS, feed, linears, sentences, tabular, text_student


def step(**settings: object) -> PruneUnits:
    return PruneUnits.model_validate({"method": "prune_units", **settings})


def pruned(module: nn.Module, x: dict[str, np.ndarray], **settings: object) -> nn.Module:
    return prune_units(step(**settings), ModelState(module.eval()), x).module


def shapes(module: nn.Module) -> list[tuple[int, ...]]:
    return [
        tuple(part.weight.shape) for part in module.modules() if isinstance(part, nn.Linear | nn.Conv1d | nn.Conv2d)
    ]


def normal(count: int, *shape: int, seed: int = 0) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(count, *shape)).astype(np.float32)}


def same(a: nn.Module, b: nn.Module, x: dict[str, np.ndarray]) -> None:
    actual, expected = (run_torch(module, x, softmax=False) for module in (a, b))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("ratio", "widths"), [(0.5, [32, 16]), (0.25, [48, 24]), (0.9, [6, 3]), (0.99, [2, 2]), (0.001, [64, 32])]
)
def test_shapes(ratio: float, widths: list[int]) -> None:
    student = tabular()
    before = {name: value.clone() for name, value in student.state_dict().items()}
    smaller = pruned(student, feed(100), ratio=ratio)
    assert shapes(smaller) == [(widths[0], 278), (widths[1], widths[0]), (2, widths[1])]
    assert [(layer.out_features, layer.in_features) for layer in linears(smaller)] == shapes(smaller)
    assert smaller(torch.from_numpy(feed(50)["x"])).shape == (50, 2)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize("seed", range(8))
def test_random_chains_lose_the_requested_number_of_units(seed: int) -> None:
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    widths = [int(width) for width in random.integers(2, 30, random.integers(3, 6))]
    parts: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        parts += [nn.Linear(inputs, outputs), nn.ReLU()]
    module = nn.Sequential(*parts[:-1])
    ratio = float(random.uniform(0.05, 0.95))
    hidden = [width - units_to_remove(width, ratio) for width in widths[1:-1]]
    if all(width <= MIN_UNITS for width in widths[1:-1]):
        return
    smaller = pruned(module, normal(40, widths[0], seed=seed), ratio=ratio)
    expected = [widths[0], *hidden, widths[-1]]
    assert shapes(smaller) == [(outputs, inputs) for inputs, outputs in pairwise(expected)]


@pytest.mark.parametrize(
    ("units", "ratio", "n_removed"), [(64, 0.5, 32), (10, 0.99, 8), (3, 0.5, 1), (2, 0.9, 0), (1, 0.5, 0), (64, 0, 0)]
)
def test_two_units_stay(units: int, ratio: float, n_removed: int) -> None:
    assert units_to_remove(units, ratio) == n_removed


def test_each_layer_may_have_a_ratio_of_its_own() -> None:
    smaller = pruned(tabular(), feed(50), ratio=0.5, ratios={"layers.3": 0.0})
    assert shapes(smaller) == [(32, 278), (32, 32), (2, 32)]


@pytest.mark.parametrize("side", ["outgoing", "incoming"])
def test_unused_units_are_removed_first_without_any_change(side: str) -> None:
    student = tabular()
    first, second, last = linears(student)
    idle = torch.randperm(64)[:32]
    with torch.no_grad():
        if side == "outgoing":
            second.weight[:, idle] = 0
        else:
            first.weight[idle] = 0
            first.bias[idle] = 0
        last.weight[:, ::2] = 0
    smaller = pruned(student, feed(500), ratio=0.5)
    same(smaller, student, feed(50, seed=1))
    remaining = [unit for unit in range(64) if unit not in idle.tolist()]
    torch.testing.assert_close(linears(smaller)[0].weight, first.weight[remaining], rtol=0, atol=0)


def test_constant_units_are_folded_into_biases_without_any_change() -> None:
    """However loud they are: what varies is what counts."""
    student = tabular()
    first, second, _ = linears(student)
    with torch.no_grad():
        first.weight[:32] = 0
        first.bias[:32] = torch.linspace(1, 50, 32)
        second.weight[:16] = 0
        second.bias[:16] = 7
    smaller = pruned(student, feed(300), ratio=0.5)
    assert shapes(smaller) == [(32, 278), (16, 32), (2, 16)]
    same(smaller, student, feed(100, seed=1))
    torch.testing.assert_close(linears(smaller)[0].weight, first.weight[32:], rtol=0, atol=0)


def test_the_importance_by_hand() -> None:
    """Variances 4, 1, 9 and weights ‖w‖² of 1, 25, .01: importances 4, 25 and .09, so the third goes first."""
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    with torch.no_grad():
        module[0].weight.copy_(torch.eye(3))
        module[0].bias.zero_()
        module[1].weight.copy_(torch.tensor([[1.0, 3.0, 0.1], [0.0, 4.0, 0.0]]))
    unit = np.random.default_rng(0).normal(size=(500, 3))
    unit = (unit - unit.mean(axis=0)) / unit.std(axis=0)
    x = {"x": (unit * [2, 1, 3]).astype(np.float32)}
    torch.testing.assert_close(linears(pruned(module, x, ratio=0.34))[1].weight, module[1].weight[:, :2])
    four = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with torch.no_grad():
        four[0].weight.copy_(torch.eye(4)[:, :3])
        four[0].bias.copy_(torch.tensor([0.0, 0, 0, 99]))
        four[1].weight.copy_(torch.tensor([[1.0, 3.0, 0.1, 50], [0.0, 4.0, 0.0, 50]]))
    smaller = pruned(four, x, ratio=0.5)
    torch.testing.assert_close(linears(smaller)[1].weight, four[1].weight[:, :2])
    torch.testing.assert_close(linears(smaller)[1].bias, four[1].bias + 99 * 50, rtol=1e-5, atol=1e-2)


def test_the_importance_is_invariant_to_rescaling() -> None:
    student, scaled = tabular((64,)), tabular((64,))
    factor = torch.logspace(-2, 2, 64)
    hidden, final = linears(scaled)
    with torch.no_grad():
        hidden.weight.mul_(factor[:, None])
        hidden.bias.mul_(factor)
        final.weight.div_(factor)
    same(scaled, student, feed(50))
    same(pruned(student, feed(300), ratio=0.5), pruned(scaled, feed(300), ratio=0.5), feed(50))


def convolutions() -> nn.Module:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 6, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 16, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )
    with torch.no_grad():
        module(torch.randn(200, 2, 6, 6) * 2 + 1)  # the normalisation's means
    return module.eval()


def test_channels_are_removed_with_their_norm_and_flattened_readers() -> None:
    smaller = pruned(convolutions(), normal(60, 2, 6, 6), ratio=0.5)
    assert shapes(smaller) == [(4, 2, 3, 3), (3, 4, 3, 3), (3, 48), (3, 3)]  # of five units half are two
    assert smaller[1].num_features == 4 and smaller[1].running_mean.shape == (4,)
    assert run_torch(smaller, normal(9, 2, 6, 6)).shape == (9, 3)


def test_a_constant_channel_is_folded_into_its_readers_biases() -> None:
    """Through a linear layer that reads every place of it, and through a convolution without padding."""
    module = nn.Sequential(*[part for index, part in enumerate(convolutions()) if index not in (1, 2)]).eval()
    module[0].padding = (0, 0)
    module[4] = nn.Linear(6 * 4, 5)
    module = nn.Sequential(*list(module)[:4], module[4], nn.ReLU(), nn.Linear(5, 3)).eval()
    with torch.no_grad():
        module[0].weight[4:] = 0
        module[0].bias[4:] = 3
        module[1].weight[:3] = 0
        module[1].bias[:3] = 2
    smaller = pruned(module, normal(60, 2, 6, 6), ratio=0.5, ratios={"4": 0.0})
    assert shapes(smaller)[:2] == [(4, 2, 3, 3), (3, 4, 3, 3)]
    same(smaller, module, normal(40, 2, 6, 6, seed=5))


def test_the_residual_stream_and_attention_of_a_transformer_are_not_changed() -> None:
    student = text_student(ENCODERS["transformer"])
    x = {"x": encode(sentences(200), TEXT_COLUMNS)}
    state = ModelState(student, TEXT_COLUMNS)
    ups = [f"encoders.0.layers.{number}.up" for number in range(2)]
    assert prunable_units(state, x) == [*ups, "layers.0"]
    smaller = prune_units(step(ratio=0.5), state, x)
    assert smaller.columns == TEXT_COLUMNS
    before, after = dict(student.named_parameters()), dict(smaller.module.named_parameters())
    for layer in range(2):
        inside = f"encoders.0.layers.{layer}"
        assert after[f"{inside}.up.weight"].shape == (32, 32) and after[f"{inside}.down.weight"].shape == (32, 32)
    assert after["layers.0.weight"].shape[0] == 16
    touched = ("up", "down", "layers.0", "layers.3")
    for name, value in before.items():
        if not any(f".{part}." in f".{name}" for part in touched):
            assert torch.equal(after[name], value), name


def test_constant_units_before_a_gelu() -> None:
    student = text_student(ENCODERS["transformer"])
    with torch.no_grad():
        for layer in student.encoders[0].layers:
            layer.up.weight[:32] = 0
            layer.up.bias[:32] = 4
    x = {"x": encode(sentences(200), TEXT_COLUMNS)}
    smaller = pruned(student, x, ratio=0.5, ratios={"layers.0": 0.0})
    same(smaller, student, {"x": encode(sentences(60, 3), TEXT_COLUMNS)})


def test_a_pruned_student_can_be_trained() -> None:
    smaller = pruned(tabular(), feed(50), ratio=0.5)
    smaller(torch.from_numpy(feed(50)["x"])).sum().backward()
    assert all(parameter.grad is not None for parameter in linears(smaller)[0].parameters())


def test_no_random_number_is_drawn_and_the_step_is_deterministic() -> None:
    student = tabular()
    before = torch.get_rng_state()
    a, b = (pruned(student, feed(200), ratio=0.5) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_it_is_silent(capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder) -> None:
    x = {"x": encode(sentences(50), TEXT_COLUMNS)}
    pruned(text_student(ENCODERS["transformer"]), x, ratio=0.5)
    assert capfd.readouterr() == ("", "") and not recwarn.list


class Written(nn.Module):
    """Has the width of its hidden layer written down."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.out = nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.inside(x).reshape(-1, 2, 4).flatten(1))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inside, self.again, self.out = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.inside(x)
        return self.out(hidden + torch.relu(self.again(hidden)))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise ZeroDivisionError("no way through")


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (nn.Linear(3, 2), "prune_units: Linear has no layer whose units only other layers read: leave the step out"),
        (nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2)), "Sequential has no layer whose units"),
        (nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2)), "Sequential has no layer whose units"),
        (Written(), "Written has no layer whose units"),
        (Residual(), "Residual has no layer whose units"),
        (Branching(), "the dependencies in Branching cannot be traced: no way through"),
    ],
)
def test_a_module_without_prunable_units_is_refused(module: nn.Module, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        pruned(module, normal(9, 3), ratio=0.5)


def test_a_ratio_for_an_unknown_layer_is_refused() -> None:
    with pytest.raises(ExportError, match=r"no layer is called layers.9; those are: layers.0, layers.3"):
        pruned(tabular(), feed(9), ratios={"layers.9": 0.5})
