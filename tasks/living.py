"""The station of ``flows/live.py`` as a Prefect task."""

from __future__ import annotations

from datetime import datetime

from stillhouse import living
from stillhouse.living import beginning
from tasks.common import engine_task

__all__ = ["beginning", "live"]


@engine_task("live until {end:%Y-%m-%d}")
def live(agent: str, start: datetime, end: datetime) -> int:
    """Observations arrive, the champion decides them, and outcomes come in; observations added."""
    return living.live(agent, start, end)
