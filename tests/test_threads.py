"""Small modules work on one thread, and whoever comes after finds the threads as they were."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from stillhouse.threads import threads_for


@pytest.fixture
def two() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize(
    ("module", "threads"),
    [(nn.Linear(10, 2), 1), (nn.Linear(1000, 1000), 2), (None, 2)],
    ids=["small", "large", "none"],
)
def test_a_small_module_has_one_thread_for_a_while(module: nn.Module | None, threads: int) -> None:
    with pytest.raises(ValueError, match="over"), threads_for(module):
        assert torch.get_num_threads() == threads
        raise ValueError("over")
    assert torch.get_num_threads() == 2
