"""The number of CPU threads that torch uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

__all__ = ["limit_threads"]

_SMALL_MODULE_PARAMETERS = 200_000  # up to this size an operation is too short to be shared among threads


@contextmanager
def limit_threads(module: nn.Module | None) -> Iterator[None]:
    """Use one torch thread inside the block if ``module`` is small; leave the setting alone if it is large or None.

    One step of a small module takes milliseconds, so more threads do not make it faster; and if other processes use
    the CPU too, threads that wait for each other at every operation make it ten times slower.

    >>> with limit_threads(nn.Linear(10, 2)):
    ...     torch.get_num_threads()
    1
    """
    before = torch.get_num_threads()
    if module is not None and sum(parameter.numel() for parameter in module.parameters()) <= _SMALL_MODULE_PARAMETERS:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
