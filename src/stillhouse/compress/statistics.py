"""Statistics of the inputs of a module's layers on calibration rows, and samples of these rows."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stillhouse.compress.target import Feed

__all__ = ["Moments", "batches", "input_moments", "operations", "sample_evenly"]

_MAX_ROWS = 1024  # rows that moments are computed on, evenly spaced over the feed
_BATCH_ROWS = 128


def sample_evenly(feed: Feed, count: int) -> Feed:
    """At most ``count`` rows, evenly spaced: rows in order of time then cover the whole window.

    Example:
        >>> import numpy as np
        >>> sample_evenly({"x": np.arange(10)}, 4)["x"].tolist()
        [0, 3, 6, 9]
    """
    rows = len(next(iter(feed.values())))
    if rows <= count:
        return feed
    index = np.linspace(0, rows - 1, count).astype(int)
    return {name: array[index] for name, array in feed.items()}


@dataclass
class Moments:
    """Moments of a layer's inputs, over rows and positions; C channels.

    :param mean: ``[C]``.
    :param variance: ``[C]``.
    :param second: ``E[x xᵀ]``, ``[C, C]``; empty unless requested.
    """

    mean: Tensor
    variance: Tensor
    second: Tensor


class _Sums:
    """Running sums over batches, in float64."""

    def __init__(self, second_moment: bool) -> None:
        self.second_moment = second_moment
        self.count, self.first, self.squares, self.second = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())

    def add(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].detach()
        channels_last = x if isinstance(layer, nn.Linear) else x.transpose(1, -1)
        flat = channels_last.reshape(-1, channels_last.shape[-1]).to(torch.float64)
        self.count += len(flat)
        self.first = self.first + flat.sum(dim=0)
        self.squares = self.squares + flat.pow(2).sum(dim=0)
        if self.second_moment:
            self.second = self.second + flat.T @ flat

    def moments(self) -> Moments:
        count = max(1, self.count)
        mean = self.first / count
        variance = (self.squares / count - mean.pow(2)).clamp(min=0)
        return Moments(mean.float(), variance.float(), (self.second / count).float())


def input_moments(
    module: nn.Module, feed: Feed, names: Collection[str], *, second_moment: bool = False
) -> dict[str, Moments]:
    """Moments of the inputs of the named layers (linear layers, convolutions) while the module reads the feed.

    :param second_moment: whether :attr:`Moments.second` is computed.
    """
    layers = {name: part for name, part in module.named_modules() if name in names}
    sums = {name: _Sums(second_moment) for name in layers}

    def make_hook(name: str) -> Any:
        return lambda layer, inputs: sums[name].add(layer, inputs)

    hooks = [layer.register_forward_pre_hook(make_hook(name)) for name, layer in layers.items()]
    try:
        for batch in batches(feed):
            with torch.no_grad():
                module(*batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: layer_sums.moments() for name, layer_sums in sums.items()}


def operations(module: nn.Module, feed: Feed) -> int:
    """Number of multiplications and additions of the module for one row of the feed, at least 1."""
    from torch.utils.flop_counter import FlopCounterMode

    row = tuple(torch.from_numpy(array[:1]) for array in feed.values())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*row)
    return max(1, int(counter.get_total_flops()))


def batches(feed: Feed) -> list[tuple[Tensor, ...]]:
    """Up to 1,024 rows of the feed, evenly spaced, in batches of 128."""
    rows = len(next(iter(feed.values())))
    index = torch.linspace(0, rows - 1, min(rows, _MAX_ROWS)).long()
    return [
        tuple(torch.from_numpy(array[batch.numpy()]) for array in feed.values()) for batch in index.split(_BATCH_ROWS)
    ]
