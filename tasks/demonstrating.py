"""The Prefect task that only ``flows/demo.py`` uses."""

from __future__ import annotations

from collections.abc import Sequence

from stillhouse import demonstrating
from stillhouse.demonstrating import Week, Year
from tasks.common import engine_task

__all__ = ["sum_up"]


@engine_task("sum up")
def sum_up(agent: str, weeks: Sequence[Week], seconds: float) -> Year:
    """Write the summary, table and figure of all weeks."""
    return demonstrating.sum_up(agent, weeks, seconds)
