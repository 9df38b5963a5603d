"""Moments of layers' inputs, against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stillhouse.compress.statistics import batches, input_moments, operations, sample_evenly


def rows(count: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(3, 2, size=(count, *shape)).astype(np.float32)


@pytest.mark.parametrize("count", [1, 7, 300, 1024])
def test_moments_of_a_linear_layers_inputs(count: int) -> None:
    x = rows(count, 5)
    moments = input_moments(nn.Sequential(nn.Linear(5, 2)), {"x": x}, {"0"}, second_moment=True)["0"]
    np.testing.assert_allclose(moments.mean, x.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(moments.variance, x.var(axis=0), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(moments.second, x.T.astype(np.float64) @ x / count, rtol=1e-4)


def test_the_second_moment_only_on_request() -> None:
    moments = input_moments(nn.Sequential(nn.Linear(5, 2)), {"x": rows(9, 5)}, {"0"})["0"]
    assert moments.second.ndim == 0 and moments.mean.shape == (5,)


def test_moments_of_a_hidden_layers_inputs() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3), nn.Linear(3, 1)).eval()
    x = rows(200, 4)
    moments = input_moments(module, {"x": x}, {"2"})
    assert list(moments) == ["2"]
    hidden = module[:2](torch.from_numpy(x)).detach().numpy()
    np.testing.assert_allclose(moments["2"].mean, hidden.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(moments["2"].variance, hidden.var(axis=0), rtol=1e-3, atol=1e-6)


def test_positions_count_as_rows() -> None:
    """A linear layer's channels come last, a convolution's second."""
    texts, images = rows(30, 7, 4), rows(30, 4, 5, 6)
    linear = input_moments(nn.Sequential(nn.Linear(4, 2)), {"x": texts}, {"0"}, second_moment=True)["0"]
    np.testing.assert_allclose(linear.mean, texts.reshape(-1, 4).mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(linear.second, np.einsum("nlc,nld->cd", texts, texts) / 210, rtol=1e-3)
    convolution = input_moments(nn.Sequential(nn.Conv2d(4, 2, 3)), {"x": images}, {"0"})["0"]
    np.testing.assert_allclose(convolution.mean, images.mean(axis=(0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(convolution.variance, images.var(axis=(0, 2, 3)), rtol=1e-3)


def test_large_means_do_not_drown_the_variance() -> None:
    x = (1e4 + np.random.default_rng(0).normal(size=(500, 3))).astype(np.float32)
    moments = input_moments(nn.Sequential(nn.Linear(3, 2)), {"x": x}, {"0"})["0"]
    np.testing.assert_allclose(moments.variance, x.astype(np.float64).var(axis=0), rtol=1e-3)


def test_many_rows_are_sampled_evenly() -> None:
    x = np.arange(10_000, dtype=np.float32)[:, None]
    moments = batches({"x": x})
    values = torch.cat([part for (part,) in moments]).ravel()
    assert len(values) == 1024 and values[0] == 0 and values[-1] == 9999
    assert max(len(part) for (part,) in moments) == 128


def test_several_inputs_stay_together_and_no_hook_stays_behind() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.out = nn.Linear(2, 1)

        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            return self.out(a - b)

    module, a = Two(), rows(50, 2)
    moments = input_moments(module, {"a": a, "b": a - 1}, {"out"})["out"]
    np.testing.assert_allclose(moments.mean, [1, 1], rtol=1e-5)
    assert not module.out._forward_pre_hooks
    with pytest.raises(TypeError):
        input_moments(module, {"a": a}, {"out"})
    assert not module.out._forward_pre_hooks


def test_operations_are_those_of_one_row() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
    rows = {"x": np.zeros((9, 5), np.float32)}
    assert operations(module, rows) == 2 * (5 * 7 + 7 * 3)
    assert operations(torch.nn.ReLU(), rows) == 1  # of what multiplies nothing


@pytest.mark.parametrize(("rows", "count"), [(1, 5), (5, 5), (1000, 7), (101, 100)])
def test_evenly_spaced_rows_begin_and_end_with_the_window(rows: int, count: int) -> None:
    actual = sample_evenly({"a": np.arange(rows), "b": np.arange(rows) * 2}, count)
    assert len(actual["a"]) == min(rows, count) and (actual["b"] == 2 * actual["a"]).all()
    assert actual["a"][0] == 0 and actual["a"][-1] == rows - 1
    steps = np.diff(actual["a"])
    assert rows == 1 or steps.max() - steps.min() <= 1
