"""The allowed range of ``observed_at``: from 1700 until now, with an hour of tolerance for clocks that are ahead.

A time outside the range comes from a wrong unit, from a default such as the year 1, or from a clock that had jumped. A
future time would stay "now" for an agent whose clock is its newest observation.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pandas as pd

__all__ = ["CLOCK_TOLERANCE", "EARLIEST", "is_out_of_range", "latest_allowed"]

EARLIEST = datetime(1700, 1, 1, tzinfo=UTC)
CLOCK_TOLERANCE = timedelta(hours=1)


def latest_allowed() -> datetime:
    """The latest allowed time at this moment."""
    return datetime.now(UTC) + CLOCK_TOLERANCE


def is_out_of_range(times: pd.Series[pd.Timestamp]) -> pd.Series[bool]:
    """Mask of the times (UTC) outside the allowed range, bool ``[n]``; False for a missing time.

    >>> import pandas as pd
    >>> is_out_of_range(pd.to_datetime(pd.Series(["1066-10-14", "2013-06-01"]), utc=True)).tolist()
    [True, False]
    """
    return (times < pd.Timestamp(EARLIEST).as_unit("us")) | (times > pd.Timestamp(latest_allowed()).as_unit("us"))
