"""From the spools into the tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from stillhouse.knowledge.base import KnowledgeBase, content_keys, tidy
from stillhouse.knowledge.events import Decided, Observed, Outcomes, Taught, decode
from stillhouse.knowledge.spool import SpoolFile, spool_folder

__all__ = ["flush"]


def flush(base: KnowledgeBase, folder: Path | None = None, *, most_rows: int = 50_000) -> None:
    """Move what the spools of the agent hold into its tables."""
    folder = folder or spool_folder(base.config.agent)
    for path in sorted(folder.glob("*.sqlite")):
        try:
            with FileLock(path.with_suffix(".flush"), timeout=0):
                _one(base, path, most_rows)
        except Timeout:
            continue


def _times(values: list[int]) -> Any:
    return pd.to_datetime(values, unit="us", utc=True)


def _one(base: KnowledgeBase, path: Path, most_rows: int) -> None:
    file = SpoolFile(path)
    while entries := file.read(0, most_rows):
        for entry in entries:
            event, batch = decode(entry.body), f"spool:{file.name}:{entry.seq}"
            if isinstance(event, Observed | Decided):
                frame = pd.DataFrame(event.values, columns=event.columns)
                frame["observation_id"], frame["observed_at"] = event.observation_ids, _times(event.observed_at)
                base.append_observations(tidy(frame, base.config), batch=batch)
            if isinstance(event, Decided):
                frame = pd.DataFrame({
                    "decision_id": event.decision_ids, "observation_id": event.observation_ids,
                    "observed_at": _times(event.observed_at), "decided_at": _times(event.decided_at),
                    "action": event.actions, "probabilities": event.probabilities, "decider": event.deciders,
                    "version": event.versions,
                })  # fmt: skip
                base.append("decisions", frame, batch=batch)
            if isinstance(event, Outcomes):
                frame = pd.DataFrame({
                    "observation_id": event.observation_ids, "observed_at": _times(event.observed_at),
                    "known_at": _times(event.known_at), "action": event.actions,
                })  # fmt: skip
                base.append("outcomes", frame, batch=batch)
            if isinstance(event, Taught):
                if event.rows:
                    frame = pd.DataFrame(event.values, columns=event.columns)
                    frame["observation_id"], frame["observed_at"] = "", _times(event.observed_at)
                    rows = tidy(frame, base.config)
                    rows["content_key"] = content_keys(rows, base.config)
                    base.append_knowledge(rows, np.array(event.probabilities), teacher=event.teacher)
                from stillhouse.records import Spending

                for name, spent in event.spending.items():
                    base.spend(
                        Spending.model_validate(spent),
                        job="runtime",
                        purpose="runtime",
                        teacher=name,
                        version=event.teacher,
                        as_of=pd.Timestamp(event.asked_at, unit="us", tz="UTC"),
                        batch=f"{batch}:{name}",
                    )
        file.forget(entries[-1].seq)
    file.close()
