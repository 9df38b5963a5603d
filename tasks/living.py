"""The Prefect task of ``flows/live.py``."""

from __future__ import annotations

from datetime import datetime

from stillhouse import living
from stillhouse.living import beginning
from tasks.common import engine_task

__all__ = ["beginning", "live"]


@engine_task("live until {end:%Y-%m-%d}")
def live(agent: str, start: datetime, end: datetime) -> int:
    """Add the observations and outcomes of ``[start, end)``, with the champion's decisions; return the rows added."""
    return living.live(agent, start, end)
