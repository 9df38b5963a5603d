"""Small modules use one thread; afterwards the number of threads is as before."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from stillhouse.threads import limit_threads


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
@pytest.mark.parametrize(
    ("module", "threads"),
    [(nn.Linear(10, 2), 1), (nn.Linear(1000, 1000), 2), (None, 2)],
    ids=["small", "large", "none"],
)
def test_a_small_module_uses_one_thread_inside_the_block(module: nn.Module | None, threads: int) -> None:
    with pytest.raises(ValueError, match="over"), limit_threads(module):
        assert torch.get_num_threads() == threads
        raise ValueError("over")
    assert torch.get_num_threads() == 2
