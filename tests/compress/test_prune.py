"""Whole units go, the least important first, and what remains is an ordinary student."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from stillhouse.compress.prune import importance, prune_hidden_units
from stillhouse.distill.students import TabularStudent, load, save
from stillhouse.errors import ExportError


def make_student(*widths: int) -> TabularStudent:
    torch.manual_seed(0)
    edges = torch.linspace(-1, 1, 13).repeat(20, 1)
    return TabularStudent(edges, (16, 3, 105), 2, widths, dropout=0.1).eval()


def rows(count: int = 50) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.cat([torch.randn(count, 20), torch.randint(0, 4, (count, 3)).float()], dim=1)


def linears(student: nn.Module) -> list[nn.Linear]:
    return [module for module in student.modules() if isinstance(module, nn.Linear)]


@pytest.mark.parametrize(
    ("ratio", "widths"), [(0.5, [32, 16]), (0.25, [48, 24]), (0.9, [6, 3]), (0.99, [2, 2]), (0.001, [64, 32])]
)
def test_shapes(ratio: float, widths: list[int]) -> None:
    student = make_student(64, 32)
    pruned = prune_hidden_units(student, ratio)
    assert pruned.spec["widths"] == widths
    assert [linear.weight.shape for linear in linears(pruned)] == [
        (widths[0], 278), (widths[1], widths[0]), (2, widths[1])
    ]  # fmt: skip
    assert [(linear.out_features, linear.in_features) for linear in linears(pruned)] == [
        tuple(linear.weight.shape) for linear in linears(pruned)
    ]
    assert pruned(rows()).shape == (50, 2)
    assert student.spec["widths"] == [64, 32]
    assert [linear.out_features for linear in linears(student)] == [64, 32, 2]


def test_layers_of_two_units_stay() -> None:
    student = make_student(2, 2)
    pruned = prune_hidden_units(student, 0.9)
    torch.testing.assert_close(pruned(rows()), student(rows()), rtol=0, atol=0)


@pytest.mark.parametrize("side", ["outgoing", "incoming"])
def test_units_that_do_nothing_go_first_and_change_nothing(side: str) -> None:
    student = make_student(64, 32)
    first, second, _ = linears(student)
    idle = torch.randperm(64)[:32]
    with torch.no_grad():
        if side == "outgoing":
            second.weight[:, idle] = 0
        else:
            first.weight[idle] = 0
            first.bias[idle] = 0
        linears(student)[2].weight[:, ::2] = 0
    pruned = prune_hidden_units(student, 0.5)
    torch.testing.assert_close(pruned(rows()), student(rows()), rtol=1e-5, atol=1e-6)
    kept = [unit for unit in range(64) if unit not in idle.tolist()]
    torch.testing.assert_close(linears(pruned)[0].weight, first.weight[kept], rtol=0, atol=0)


def test_importance_by_hand() -> None:
    incoming, outgoing = nn.Linear(2, 2), nn.Linear(2, 2)
    with torch.no_grad():
        incoming.weight.copy_(torch.tensor([[2.0, 1.0], [0.0, 0.0]]))
        incoming.bias.copy_(torch.tensor([2.0, 5.0]))
        outgoing.weight.copy_(torch.tensor([[3.0, 0.0], [4.0, 1.0]]))
    torch.testing.assert_close(importance(incoming, outgoing), torch.tensor([3.0 * 5.0, 5.0 * 1.0]))


def test_rescaling_that_leaves_the_function_alone_leaves_the_choice_alone() -> None:
    student, scaled = make_student(64), make_student(64)
    factor = torch.logspace(-2, 2, 64)
    hidden, final = linears(scaled)
    with torch.no_grad():
        hidden.weight.mul_(factor[:, None])
        hidden.bias.mul_(factor)
        final.weight.div_(factor)
    torch.testing.assert_close(scaled(rows()), student(rows()), rtol=1e-4, atol=1e-5)
    one, other = prune_hidden_units(student, 0.5), prune_hidden_units(scaled, 0.5)
    torch.testing.assert_close(one(rows()), other(rows()), rtol=1e-4, atol=1e-5)


def test_a_pruned_student_is_saved_loaded_and_trained_like_any_other(tmp_path: Path) -> None:
    pruned = prune_hidden_units(make_student(64, 32), 0.5)
    save(pruned, tmp_path)
    torch.testing.assert_close(load(tmp_path)(rows()), pruned(rows()), rtol=0, atol=0)
    pruned(rows()).sum().backward()
    assert all(parameter.grad is not None for parameter in linears(pruned)[0].parameters())


def test_no_random_number_is_drawn() -> None:
    student = make_student(64, 32)
    before = torch.get_rng_state()
    prune_hidden_units(student, 0.5)
    assert torch.equal(before, torch.get_rng_state())


def chain(*modules: nn.Module) -> nn.Module:
    student = nn.Module()
    student.layers = nn.Sequential(*modules)
    return student


@pytest.mark.parametrize(
    ("student", "message"),
    [
        (nn.Linear(3, 2), "no nn.Sequential named `layers`"),
        (chain(nn.Linear(3, 2)), "no hidden layer"),
        (chain(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)), "BatchNorm1d"),
        (chain(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), "no dict `spec`"),
    ],
)
def test_what_has_no_such_chain_is_refused(student: nn.Module, message: str) -> None:
    with pytest.raises(ExportError, match=message):
        prune_hidden_units(student, 0.5)


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, float("nan")])
def test_impossible_ratios_are_refused(ratio: float) -> None:
    with pytest.raises(ExportError, match="between 0 and 1"):
        prune_hidden_units(make_student(8), ratio)
