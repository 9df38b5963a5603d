"""How many threads of the CPU torch works with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["threads_for"]

_SMALL = 200_000  # parameters up to which an operation is too short to be shared among threads


@contextmanager
def threads_for(module: nn.Module | None) -> Iterator[None]:
    """One thread while a small module learns or answers; as many as before for a large one, or none.

    A step of a small module takes milliseconds, which threads cannot share to advantage; and where other processes want
    the CPU too, threads that wait for one another at every operation take ten times as long.
    """
    before = torch.get_num_threads()
    if module is not None and sum(parameter.numel() for parameter in module.parameters()) <= _SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
