"""The Prefect task of ``flows/live.py``."""

from __future__ import annotations

from datetime import datetime

from stillhouse import ingesting
from stillhouse.ingesting import find_start
from tasks.common import engine_task

__all__ = ["find_start", "live"]


@engine_task("live: until {end:%Y-%m-%d}")
def live(agent: str, start: datetime, end: datetime) -> int:
    """Add the observations and outcomes of ``[start, end)``, with the champion's decisions; return the rows added."""
    return ingesting.ingest(agent, start, end)
