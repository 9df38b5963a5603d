"""Which moments an observation can have: from 1700 on, and not later than now.

A clock may be a little wrong, so an hour ahead is let pass. What lies outside comes of a unit that was mistaken, of a
default such as the year 1, or of a clock that had jumped; it would otherwise be "now" for an agent whose clock is its
newest observation, for good.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pandas as pd

__all__ = ["AHEAD", "EARLIEST", "latest", "outside"]

EARLIEST = datetime(1700, 1, 1, tzinfo=UTC)
AHEAD = timedelta(hours=1)


def latest() -> datetime:
    """The latest moment that is possible now."""
    return datetime.now(UTC) + AHEAD


def outside(moments: pd.Series[pd.Timestamp]) -> pd.Series[bool]:
    """Which of these moments (UTC) are not possible, bool ``[n]``; a missing one is."""
    return (moments < pd.Timestamp(EARLIEST).as_unit("us")) | (moments > pd.Timestamp(latest()).as_unit("us"))
