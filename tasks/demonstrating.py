"""The Prefect task that only ``flows/demo.py`` uses."""

from __future__ import annotations

from collections.abc import Sequence

from stillhouse import demonstrating
from stillhouse.demonstrating import DemoResult, Week
from tasks.common import engine_task

__all__ = ["describe", "summarize"]


@engine_task("sum up")
def summarize(agent: str, weeks: Sequence[Week]) -> DemoResult:
    """Write the summary, table and figure of all weeks."""
    return demonstrating.summarize(agent, weeks)


def describe(result: DemoResult) -> str:
    """The demo in one sentence."""
    summary = result.summary
    return (
        f"{summary.weeks} weeks, {summary.refreshes} refreshes: {summary.promotions} promoted, {summary.refused} "
        f"refused by the gate, {summary.inconclusive} inconclusive"
    )
