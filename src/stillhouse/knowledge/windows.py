"""The window that a watch looks at: by time, by number of rows, or since a promotion; complete or sampled.

Rows stream by in Arrow batches: memory is bounded by the result, not by the table.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from stillhouse.config import NewestRows, SincePromotion
from stillhouse.errors import WindowError
from stillhouse.knowledge.base import KnowledgeBase
from stillhouse.knowledge.sampling import keyed_hash
from stillhouse.records import Window, short_id

__all__ = ["current_window", "newest_window", "promoted_at", "sample_window"]

_BEGINNING = datetime(1, 1, 1, tzinfo=UTC)


def current_window(base: KnowledgeBase, as_of: datetime, champion: str | None, proved_at: datetime | None) -> Window:
    """The current window of a watch as ``windows.current`` and ``windows.sample`` define it, at the tables of now.

    :param champion: ``name@version`` of the model that is watched; None if there is none yet.
    :param proved_at: ``as_of`` of the refresh that made the champion.
    :raises WindowError: if the window has no length or, by number of rows, no rows; if the time of the champion's
        promotion is not known.
    """
    match base.config.windows.current:
        case NewestRows(rows=rows):
            window = newest_window(base, "current", rows, as_of)
        case SincePromotion(at_most=at_most):
            window = _window_since_promotion(base, as_of, champion, proved_at, at_most)
        case length:
            window = base.window("current", as_of - length, as_of)
    sample_size = base.config.windows.sample
    return window if sample_size is None else sample_window(window, sample_size, base.config.agent)


def sample_window(window: Window, rows: int, agent: str) -> Window:
    """The window with a sample of at most ``rows`` observations; the seed is derived from the agent and the window.

    >>> window = Window(name="w", start=datetime(2013, 1, 1, tzinfo=UTC), end=datetime(2013, 1, 8, tzinfo=UTC))
    >>> sample_window(window, 1000, "flights").sample
    1000
    """
    times = (time.astimezone(UTC).isoformat() for time in (window.start, window.end))
    return window.model_copy(update={"sample": rows, "seed": int(short_id(agent, window.name, *times), 16) % 2**64})


def newest_window(base: KnowledgeBase, name: str, rows: int, before: datetime) -> Window:
    """The window with the newest ``rows`` observations outside quarantine, and others of the same time as the oldest.

    The search goes back over a time range that doubles until it contains enough rows; older rows are not read.

    :raises WindowError: if there is no observation before ``before``.
    """
    all_time = base.window(name, _BEGINNING, before)
    length, start = timedelta(hours=1), before
    while start > _BEGINNING:
        start = before - length if before - _BEGINNING > length else _BEGINNING
        times = _observation_times(base, all_time.model_copy(update={"start": start}))
        if len(times) >= rows or not _has_rows(base, all_time.model_copy(update={"end": start})):
            break
        length *= 2
    if not len(times):
        raise WindowError(
            f"agent {base.config.agent!r} has no observations before {before:%Y-%m-%d %H:%M}, and its current window "
            f"is the newest {rows:,} of them; fill the knowledge base (`stillhouse import`, `python -m flows live`)"
        )
    nth = max(0, len(times) - rows)
    start = pd.Timestamp(np.partition(times, nth)[nth], unit="us", tz="UTC").to_pydatetime()
    return all_time.model_copy(update={"start": start, "chosen": f"the newest {rows:,} rows"})


def promoted_at(base: KnowledgeBase, champion: str, proved_at: datetime | None) -> datetime | None:
    """When ``champion`` was promoted, by its gate or later by a person or the pool; None if no verdict records it.

    :param proved_at: ``as_of`` of the refresh that made the champion.
    """
    by_gate = (
        [] if proved_at is None else [v for v in base.journal.verdicts("gate", proved_at) if v.result == "promoted"]
    )
    later = [
        verdict
        for verdict in base.journal.verdicts("promotion")
        if verdict.result in ("promoted", "rolled_back") and verdict.evidence.get("champion") == champion
    ]
    return max((verdict.as_of for verdict in (*by_gate, *later)), default=None)


def _window_since_promotion(
    base: KnowledgeBase, as_of: datetime, champion: str | None, proved_at: datetime | None, at_most: timedelta | None
) -> Window:
    agent = base.config.agent
    since = promoted_at(base, champion, proved_at) if champion else None
    if champion is None or since is None:
        reason = f"no verdict says when {champion} was promoted" if champion else "there is no champion yet"
        raise WindowError(
            f"the current window of agent {agent!r} begins when its champion was promoted, and {reason}: promote one "
            f"with `python -m flows refresh` or `promote`, or write a length as `windows.current`"
        )
    if since >= as_of:
        raise WindowError(
            f"the current window of agent {agent!r} begins when {champion} was promoted, {since:%Y-%m-%d %H:%M}, and "
            f"so is empty at {as_of:%Y-%m-%d %H:%M}: watch later, or write a length as `windows.current`"
        )
    start = max(since, as_of - at_most) if at_most else since
    chosen = f"since {champion} was promoted"
    if start > since:
        chosen += f" on {since:%Y-%m-%d %H:%M}, no longer than the file allows"
    return base.window("current", start, as_of).model_copy(update={"chosen": chosen})


def _has_rows(base: KnowledgeBase, window: Window) -> bool:
    return any(batch.num_rows for batch in base.stream("observations", window, ["observed_at"]))


def _observation_times(base: KnowledgeBase, window: Window) -> np.ndarray[Any, np.dtype[np.int64]]:
    """``observed_at`` of the window's observations outside quarantine, microseconds since 1970, int64 ``[n]``."""
    id_hashes, times = list[Any](), list[Any]()
    for batch in base.stream("observations", window, ["observation_id", "observed_at"]):
        id_hashes.append(keyed_hash(batch["observation_id"].to_numpy(zero_copy_only=False), 0))
        times.append(batch["observed_at"].cast(pa.int64()).to_numpy())
    if not id_hashes:
        return np.empty(0, dtype=np.int64)
    frame = pd.DataFrame({"id": np.concatenate(id_hashes), "time": np.concatenate(times)})
    quarantined = base.read("quarantine", window, ["observation_id"])["observation_id"].dropna()
    frame = frame[~frame["id"].isin(keyed_hash(quarantined.to_numpy(), 0))]
    earliest: np.ndarray[Any, np.dtype[np.int64]] = frame.groupby("id")["time"].min().to_numpy()
    return earliest
