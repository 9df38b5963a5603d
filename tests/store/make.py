"""Creates the small home for the upgrade test: ``python -m tests.store.make`` writes ``version<n>.tar.gz``.

Run it once per store version, before the stored format changes again; afterwards the file is not changed.
"""

from __future__ import annotations

import gzip
import json
import os
import tarfile
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

FOLDER = Path(__file__).parent
START = datetime(2013, 1, 1, tzinfo=UTC)
ROWS = [
    {
        "observation_id": f"o{i}",
        "observed_at": START + timedelta(hours=i),
        "wind": float(i),
        "hour": i,
        "origin": "EWR" if i % 2 else "JFK",
    }
    for i in range(6)
]


def fill(top: Path) -> None:
    """A champion, four decisions in the tables, two in the spool, an outcome, teacher answers and a verdict."""
    import numpy as np

    from stillhouse.config import load
    from stillhouse.knowledge import KnowledgeBase
    from stillhouse.records import Verdict
    from stillhouse.registry import Registry
    from stillhouse.runtime import Agent
    from tests.registry.conftest import Life
    from tests.runtime.conftest import AGENT, register_version

    (top / "agents").mkdir()
    (top / "agents" / "flights.yaml").write_text(json.dumps(AGENT))
    registry = Registry("flights")
    register_version(Life(registry, top / "work"), 1)
    registry.promote("1")
    with Agent("flights", follow=False, flush=False) as agent:
        agent.follow(registry)
        decided = agent.decide(ROWS[:4])
        agent.outcome(decided[0].decision_id, "late")
        agent.flush()
        agent.decide(ROWS[4:])
    base = KnowledgeBase(load("flights"))
    rows = base.read("observations")
    base.answers.append(rows.head(2), np.full((2, 2), 0.5), teacher="rule@1")
    base.journal.append_verdict(
        Verdict(verdict_id="v1", kind="promotion", agent="flights", as_of=START, result="promoted", summary="the first")
    )


def main() -> None:
    """Write the archive of today's version."""
    import tests.conftest  # noqa: F401  # the tests' key
    from stillhouse.config.store import VERSION

    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        os.environ |= {"STILLHOUSE_HOME": str(top / "home"), "STILLHOUSE_AGENTS": str(top / "agents")}
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        fill(top)
        file = FOLDER / f"version{VERSION}.tar.gz"
        with file.open("wb") as raw, gzip.GzipFile("", "wb", 9, raw, mtime=0) as zipped, _archive(zipped) as archive:
            for name in ("home", "agents"):
                archive.add(top / name, name, filter=_plain)


def _archive(zipped: gzip.GzipFile) -> tarfile.TarFile:
    return tarfile.open(fileobj=zipped, mode="w")


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out locks and keys, and the owner of the files."""
    if (
        entry.name.endswith((".lock", ".owner", ".flush"))
        or "/keys" in entry.name
        or entry.name.startswith("home/models/")
    ):
        return None
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


if __name__ == "__main__":
    main()
