"""Worker processes that recover model states in advance; they store the weights where the search reads them."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from stillhouse.compress.build import ArtifactWriter
from stillhouse.compress.search.candidates import CandidateBuilder
from stillhouse.compress.target import CompressionTarget
from stillhouse.config import StructuralStep
from stillhouse.errors import ExportError
from stillhouse.interrupts import end_silently_on_interrupt

__all__ = ["recover_state", "start_workers"]

_builder: CandidateBuilder | None = None  # of this worker process


def start_workers(
    count: int,
    make_target: Callable[[], CompressionTarget],
    write_artifact: ArtifactWriter,
    folder: Path,
    tolerance: float,
) -> ProcessPoolExecutor:
    """A pool of ``count`` processes, each with a :class:`CandidateBuilder` of these arguments.

    :param make_target: picklable.
    """
    arguments = (make_target, write_artifact, folder, tolerance)
    return ProcessPoolExecutor(count, get_context("spawn"), _initialize, arguments)


def _initialize(
    make_target: Callable[[], CompressionTarget], write_artifact: ArtifactWriter, folder: Path, tolerance: float
) -> None:
    global _builder
    end_silently_on_interrupt()
    torch.set_num_threads(1)
    _builder = CandidateBuilder(make_target(), write_artifact, folder, tolerance)


def recover_state(steps: tuple[StructuralStep, ...]) -> None:
    """Recover the state after these steps, in a worker process; the builder stores its weights."""
    assert _builder is not None
    try:
        _builder.state(steps)
    except ExportError:
        return  # the search gets the same error, and records it
