"""The stations of ``flows/demo.py`` that are its own, as Prefect tasks."""

from __future__ import annotations

from collections.abc import Sequence

from stillhouse import demonstrating
from stillhouse.demonstrating import DemoResult, Week
from tasks.common import engine_task

__all__ = ["summarize"]


@engine_task("sum up")
def summarize(agent: str, weeks: Sequence[Week], seconds: float) -> DemoResult:
    """Write summary, table and figure of the weeks."""
    return demonstrating.summarize(agent, weeks, seconds)
