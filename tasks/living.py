"""The station of ``flows/live.py`` as a Prefect task."""

from __future__ import annotations

from datetime import datetime

from stillhouse import ingesting
from stillhouse.ingesting import find_start
from tasks.common import engine_task

__all__ = ["find_start", "live"]


@engine_task("live until {end:%Y-%m-%d}")
def live(agent: str, start: datetime, end: datetime) -> int:
    """Observations arrive, the champion decides them, and outcomes come in; observations added."""
    return ingesting.ingest(agent, start, end)
