"""The tabular student: shapes, encoding of numbers by hand, and a round trip to disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from stillhouse.distill.students import TabularStudent, load, quantile_edges, save

NAN = float("nan")
EDGES = torch.tensor([[0.0, 1.0, 3.0, 7.0], [-1.0, 0.0, 0.0, 0.0]])


def make_student(cardinalities: tuple[int, ...] = (5, 2), actions: int = 3, dropout: float = 0.0) -> TabularStudent:
    torch.manual_seed(0)
    return TabularStudent(EDGES, cardinalities, actions, (8, 4), embedding=4, dropout=dropout).eval()


def test_shapes() -> None:
    student = make_student()
    assert student(torch.zeros(7, 4)).shape == (7, 3)
    assert student(torch.zeros(0, 4)).shape == (0, 3)
    assert [tuple(table.weight.shape) for table in student.embeddings] == [(6, 3), (3, 1)]
    assert student.layers[0].in_features == 2 * 4 + 3 + 1


def test_no_numbers_or_no_categories() -> None:
    assert TabularStudent(torch.zeros(0, 4), (5,), 2, (8,))(torch.ones(3, 1)).shape == (3, 2)
    assert TabularStudent(EDGES, (), 2, (8,))(torch.ones(3, 2)).shape == (3, 2)


def encoded(*rows: tuple[float, float]) -> list[list[float]]:
    return make_student()._piecewise_linear(torch.tensor(rows)).tolist()


def test_piecewise_linear_by_hand() -> None:
    """Bins [0, 1], [1, 3], [3, 7]; then [−1, 0] and two empty bins at 0; the last of four flags a missing value."""
    assert encoded((0.0, -1.0), (0.5, -0.25), (2.0, 0.0), (4.0, 0.5)) == [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0.5, 0, 0, 0, 0.75, 0, 0, 0],
        [1, 0.5, 0, 0, 1, 0, 0, 0],
        [1, 1, 0.25, 0, 1, 1, 1, 0],
    ]


def test_values_outside_the_edges_are_clipped() -> None:
    assert encoded((-9.0, -9.0), (99.0, 99.0)) == [[0] * 8, [1, 1, 1, 0, 1, 1, 1, 0]]


def test_missing_values_have_a_flag() -> None:
    assert encoded((NAN, NAN), (NAN, 0.0)) == [[0, 0, 0, 1, 0, 0, 0, 1], [0, 0, 0, 1, 1, 0, 0, 0]]
    student = make_student()
    missing, lowest = student(torch.tensor([[NAN, 0, 1, 1], [0.0, 0, 1, 1]]))
    assert torch.isfinite(missing).all()
    assert not torch.equal(missing, lowest)


def test_unknown_code_has_an_embedding() -> None:
    student = make_student()
    rows = torch.tensor([[1.0, 0, code, 1] for code in range(6)])
    assert len({tuple(row) for row in student(rows).tolist()}) == 6
    with pytest.raises(IndexError):
        student(torch.tensor([[1.0, 0, 6, 1]]))


def test_quantiles_ignore_missing_values() -> None:
    numbers = np.column_stack([np.arange(101.0), np.full(101, 5.0), np.full(101, NAN)]).astype(np.float32)
    numbers[::2, 1] = NAN
    edges = quantile_edges(numbers, 4)
    assert edges.dtype == torch.float32
    assert edges.tolist() == [[0, 25, 50, 75, 100], [5] * 5, [0] * 5]


def test_edges_are_quantiles_of_columns_without_ties() -> None:
    numbers = np.random.default_rng(0).gamma(2.0, size=(999, 3)).astype(np.float32)
    expected = np.quantile(numbers.astype(np.float64), np.linspace(0, 1, 13), axis=0).T
    np.testing.assert_allclose(quantile_edges(numbers, 12).numpy(), expected, rtol=1e-6)


def test_rare_tail_of_a_mostly_zero_column_keeps_bins() -> None:
    rain = np.zeros((1000, 1), dtype=np.float32)
    rain[:50, 0] = np.linspace(0.1, 5, 50)
    edges = quantile_edges(rain, 8)[0]
    assert (edges.diff() >= 0).all()
    assert (edges[0].item(), edges[-1].item()) == (0.0, 5.0)
    assert len(edges.unique()) >= 8


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_saved_and_loaded_student_has_the_same_outputs(tmp_path: Path, dropout: float) -> None:
    student = make_student(dropout=dropout)
    save(student, tmp_path / "deep" / "folder")
    assert sorted(path.name for path in (tmp_path / "deep" / "folder").iterdir()) == [
        "student.json",
        "student.safetensors",
    ]
    loaded = load(tmp_path / "deep" / "folder")
    rows = torch.tensor([[0.3, NAN, 2, 0], [5.0, -0.5, 0, 2]])
    torch.testing.assert_close(loaded(rows), student(rows), rtol=0, atol=0)
    assert loaded.spec == student.spec == json.loads((tmp_path / "deep" / "folder" / "student.json").read_text())
    assert not loaded.training
