"""Which stretch of an agent's life is looked at: by time, by count, since a promotion; whole, or a sample of it.

Everything here streams over Arrow batches: memory is bounded by what is kept, never by the table.
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

__all__ = ["current", "newest", "promoted", "sampled"]

_EARLIEST = datetime(1, 1, 1, tzinfo=UTC)


def current(base: KnowledgeBase, as_of: datetime, champion: str | None, proved: datetime | None) -> Window:
    """The current window of a watch, as ``windows.current`` and ``windows.sample`` say, pinned to the tables of now.

    :param champion: ``name@version`` of the model that is watched; None: there is none yet.
    :param proved: the moment that the refresh spoke for which made it.
    :raises WindowError: if the window has no length or, by count, no rows; if the champion's promotion is not known.
    """
    match base.config.windows.current:
        case NewestRows(rows=rows):
            window = newest(base, "current", rows, as_of)
        case SincePromotion(at_most=at_most):
            window = _since_promotion(base, as_of, champion, proved, at_most)
        case length:
            window = base.window("current", as_of - length, as_of)
    most = base.config.windows.sample
    return window if most is None else sampled(window, most, base.config.agent)


def sampled(window: Window, rows: int, agent: str) -> Window:
    """At most ``rows`` of the window's observations, drawn by a seed that follows from the agent and the window."""
    moments = (moment.astimezone(UTC).isoformat() for moment in (window.start, window.end))
    return window.model_copy(update={"sample": rows, "seed": int(short_id(agent, window.name, *moments), 16) % 2**64})


def newest(base: KnowledgeBase, name: str, rows: int, before: datetime) -> Window:
    """The newest ``rows`` observations that are not in quarantine, as of now, and those of the oldest one's moment.

    It looks back over stretches that double until they hold enough: what lies further back is not read.

    :raises WindowError: if there is no observation before that moment.
    """
    everything = base.window(name, _EARLIEST, before)
    stretch, start = timedelta(hours=1), before
    while start > _EARLIEST:
        start = before - stretch if before - _EARLIEST > stretch else _EARLIEST
        times = _times(base, everything.model_copy(update={"start": start}))
        if len(times) >= rows or not _any(base, everything.model_copy(update={"end": start})):
            break
        stretch *= 2
    if not len(times):
        raise WindowError(
            f"agent {base.config.agent!r} has no observations before {before:%Y-%m-%d %H:%M}, and its current window "
            f"is the newest {rows:,} of them; fill the knowledge base (`stillhouse import`, `python -m flows live`)"
        )
    nth = max(0, len(times) - rows)
    start = pd.Timestamp(np.partition(times, nth)[nth], unit="us", tz="UTC").to_pydatetime()
    return everything.model_copy(update={"start": start, "chosen": f"the newest {rows:,} rows"})


def promoted(base: KnowledgeBase, champion: str, proved: datetime | None) -> datetime | None:
    """When ``champion`` was promoted, in the agent's life, by its gate or by a person since; None if none recorded it.

    :param proved: the moment that the refresh spoke for which made it.
    """
    by_gate = [] if proved is None else [each for each in base.verdicts("gate", proved) if each.result == "promoted"]
    by_hand = [each for each in base.verdicts("promotion") if each.evidence.get("champion") == champion]
    return max((each.as_of for each in (*by_gate, *by_hand)), default=None)


def _since_promotion(
    base: KnowledgeBase, as_of: datetime, champion: str | None, proved: datetime | None, at_most: timedelta | None
) -> Window:
    agent = base.config.agent
    since = promoted(base, champion, proved) if champion else None
    if champion is None or since is None:
        who = f"no verdict says when {champion} was promoted" if champion else "there is no champion yet"
        raise WindowError(
            f"the current window of agent {agent!r} begins when its champion was promoted, and {who}: promote one with "
            f"`python -m flows refresh` or `promote`, or write a length as `windows.current`"
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


# --------------------------------------------------------------------------- streaming


def _any(base: KnowledgeBase, window: Window) -> bool:
    return any(batch.num_rows for batch in base.stream("observations", window, ["observed_at"]))


def _times(base: KnowledgeBase, window: Window) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Microseconds since 1970 of the window's sound observations, each once, int64 ``[n]``."""
    ids, times = list[Any](), list[Any]()
    for batch in base.stream("observations", window, ["observation_id", "observed_at"]):
        ids.append(keyed_hash(batch["observation_id"].to_numpy(zero_copy_only=False), 0))
        times.append(batch["observed_at"].cast(pa.int64()).to_numpy())
    if not ids:
        return np.empty(0, dtype=np.int64)
    frame = pd.DataFrame({"id": np.concatenate(ids), "time": np.concatenate(times)})
    bad = base.read("quarantine", window, ["observation_id"])["observation_id"].dropna()
    frame = frame[~frame["id"].isin(keyed_hash(bad.to_numpy(), 0))]
    found: np.ndarray[Any, np.dtype[np.int64]] = frame.groupby("id")["time"].min().to_numpy()
    return found
