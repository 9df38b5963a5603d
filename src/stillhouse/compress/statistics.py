"""What a module's layers see on rows as they occur."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from stillhouse.compress.subject import Feed

__all__ = ["Moments", "batches", "input_moments", "operations"]

_ROWS = 1024  # are enough; evenly spaced over the feed
_BATCH = 128


@dataclass
class Moments:
    """Of a layer's inputs, over rows and places; channels C.

    :param mean: ``[C]``.
    :param second: ``E[x xᵀ]``, ``[C, C]``; empty where it was not asked for.
    :param variance: ``[C]``.
    """

    mean: Tensor
    variance: Tensor
    second: Tensor


class _Sums:
    def __init__(self, together: bool) -> None:
        self.together = together
        self.count, self.first, self.squares, self.second = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())

    def add(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0].detach()
        channels_last = x if isinstance(layer, nn.Linear) else x.transpose(1, -1)
        flat = channels_last.reshape(-1, channels_last.shape[-1]).to(torch.float64)
        self.count += len(flat)
        self.first = self.first + flat.sum(dim=0)
        self.squares = self.squares + flat.pow(2).sum(dim=0)
        if self.together:
            self.second = self.second + flat.T @ flat

    def moments(self) -> Moments:
        count = max(1, self.count)
        mean = self.first / count
        variance = (self.squares / count - mean.pow(2)).clamp(min=0)
        return Moments(mean.float(), variance.float(), (self.second / count).float())


def input_moments(
    module: nn.Module, feed: Feed, names: Collection[str], *, together: bool = False
) -> dict[str, Moments]:
    """Moments of the inputs of the named layers (linear layers, convolutions) while the module reads the feed.

    :param together: whether ``second`` is wanted.
    """
    layers = {name: part for name, part in module.named_modules() if name in names}
    sums = {name: _Sums(together) for name in layers}

    def watch(name: str) -> Any:
        return lambda layer, inputs: sums[name].add(layer, inputs)

    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers.items()]
    try:
        for batch in batches(feed):
            with torch.no_grad():
                module(*batch)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: found.moments() for name, found in sums.items()}


def operations(module: nn.Module, feed: Feed) -> int:
    """Multiplications and additions that the module takes for one row of the feed, at least 1."""
    from torch.utils.flop_counter import FlopCounterMode

    one = tuple(torch.from_numpy(array[:1]) for array in feed.values())
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(*one)
    return max(1, int(counter.get_total_flops()))


def batches(feed: Feed) -> list[tuple[Tensor, ...]]:
    """Some of the feed's rows, evenly spaced, a few at a time."""
    rows = len(next(iter(feed.values())))
    chosen = torch.linspace(0, rows - 1, min(rows, _ROWS)).long()
    return [tuple(torch.from_numpy(array[part.numpy()]) for array in feed.values()) for part in chosen.split(_BATCH)]
