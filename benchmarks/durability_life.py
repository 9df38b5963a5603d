"""The life that ``benchmarks/durability.py`` kills and counts: writers, flushers, a maintainer."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from filelock import FileLock

from stillhouse.config import AgentConfig, Upkeep
from stillhouse.errors import RuntimeStateError
from stillhouse.knowledge import KnowledgeBase, upkeep
from stillhouse.knowledge.events import Decided, Event, Observed, Outcomes, TeacherAnswered
from stillhouse.knowledge.flush import flush
from stillhouse.knowledge.spool import Spool
from stillhouse.records import Window

START, MONTHS = datetime(2013, 1, 1, tzinfo=UTC), 6
TABLES: dict[str, tuple[tuple[str, str], ...]] = {
    "observed": (("observations", "observation_id"),),
    "decided": (("observations", "observation_id"), ("decisions", "observation_id")),
    "taught": (("knowledge", "teacher"), ("spending", "version")),
    "outcomes": (("outcomes", "observation_id"),),
}
"""By the kind of an event: the tables that have one row of each, and the column that has its name."""


@dataclass(frozen=True)
class Place:
    """Where one run keeps its things."""

    folder: Path

    @property
    def spools(self) -> Path:
        return self.folder / "spool"

    @property
    def names(self) -> Path:
        return self.folder / "names"

    @property
    def windows(self) -> Path:
        return self.folder / "windows"

    def upkeep(self) -> FileLock:
        return FileLock(self.folder / "upkeep.lock")

    def base(self) -> KnowledgeBase:
        return KnowledgeBase(agent(), self.folder / "knowledge")

    def pinned(self) -> dict[str, tuple[Window, ...]]:
        found = sorted(self.windows.glob("*.json"))
        return {path.stem: (Window.model_validate_json(path.read_text(encoding="utf-8")),) for path in found}


@dataclass
class Found:
    """What a run came to."""

    kills: Counter[str] = field(default_factory=Counter)
    acknowledged: int = 0
    unacknowledged: int = 0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    windows: int = 0
    windows_changed: list[str] = field(default_factory=list)
    rows: Mapping[str, int] = field(default_factory=dict)
    commits: Mapping[str, int] = field(default_factory=dict)
    seconds: float = 0.0


def lived(place: Place, kills: int, seed: int) -> Found:
    """Start everybody, kill at random, restart, and count at the end."""
    began, rng, found = time.perf_counter(), random.Random(seed), Found()
    for folder in (place.spools, place.names, place.windows):
        folder.mkdir(parents=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.durability_life"])
    parts = [writer] * 3 + [flusher] * 2 + [maintainer]
    alive = [(part, started(context, part, place)) for part in parts]
    try:
        while found.kills.total() < kills - len(parts):
            time.sleep(rng.uniform(0.05, 1.0))
            role = rng.choice([writer, flusher, maintainer])
            number = rng.choice([at for at, (part, _) in enumerate(alive) if part is role])
            part, process = alive[number]
            killed(process, found, part)
            alive[number] = part, started(context, part, place)
            if found.kills.total() % 10 == 5:
                pin(place, rng, found)
        time.sleep(1.0)
    finally:
        for part, process in alive:
            killed(process, found, part)
    base = place.base()
    last = flush(base, place.spools)
    assert not last.problems and not last.dead and not list(place.spools.glob("*.dead")), last
    compare(place, base, found)
    found.seconds = time.perf_counter() - began
    return found


def started(context: ForkServerContext, part: Callable[[Place], None], place: Place) -> BaseProcess:
    """A process that is at work by now."""
    process = context.Process(target=begun, args=(part, place, ready := context.Event()), daemon=True)
    process.start()
    if not ready.wait(120):
        raise RuntimeError(f"a {part.__name__} did not start")
    return process


def begun(part: Callable[[Place], None], place: Place, ready: threading.Event) -> None:
    ready.set()
    part(place)


def killed(process: BaseProcess, found: Found, part: Callable[[Place], None]) -> None:
    """One that has ended by itself is a mistake."""
    if process.exitcode is not None:
        raise RuntimeError(f"a {part.__name__} ended by itself ({process.exitcode})")
    process.kill()
    process.join()
    found.kills[part.__name__] += 1


# --------------------------------------------------------------------------- those who are killed


def writer(place: Place) -> None:
    """Put events, and write down the name of each that was acknowledged."""
    spool = Spool(place.spools)
    names = os.open(place.names / uuid.uuid4().hex, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def work() -> None:
        rng = random.Random()
        while True:
            kind = rng.choice(list(TABLES))
            made = [f"{kind}:{uuid.uuid4().hex}" for _ in range(1 if kind == "taught" else rng.randint(1, 4))]
            spool.put(event(kind, made, rng))
            os.write(names, "".join(f"{name}\n" for name in made).encode())
            time.sleep(rng.uniform(0, 0.05))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def flusher(place: Place) -> None:
    """Flush without end, in chunks of any size."""
    base, rng = place.base(), random.Random()
    while True:
        with contextlib.suppress(RuntimeStateError):  # the maintainer took a file away that was being read: once more
            flush(base, place.spools, max_rows=rng.choice([1, 20, 500, 50_000]))
        time.sleep(rng.uniform(0, 0.05))


def maintainer(place: Place) -> None:
    """Compact and free without end and without grace."""
    base, rng = place.base(), random.Random()
    while True:
        with place.upkeep():
            upkeep.compact(base.tables, Upkeep(min_files=2))
            upkeep.vacuum(base.tables, timedelta(), place.pinned())
        time.sleep(rng.uniform(0, 0.1))


def event(kind: str, names: list[str], rng: random.Random) -> Event:
    """An event whose rows bear these names."""
    times = [int(START.timestamp() * 1e6) + rng.randrange(MONTHS * 30 * 86_400_000_000) for _ in names]
    columns, values = ["x", "said"], [[rng.random(), rng.choice(["a", "b", None])] for _ in names]
    match kind:
        case "observed":
            return Observed(observation_ids=names, observed_at=times, columns=columns, values=values)
        case "decided":
            n = len(names)
            return Decided(
                observation_ids=names,
                observed_at=times,
                columns=columns,
                values=values,
                decision_ids=[f"{name}.d" for name in names],
                decided_at=times,
                actions=["go"] * n,
                probabilities=[[0.25, 0.75]] * n,
                deciders=["student"] * n,
                versions=["durable@1"] * n,
            )
        case "taught":
            (name,) = names
            return TeacherAnswered(
                teacher=name,
                observed_at=times,
                asked_at=times[0],
                columns=columns,
                values=values,
                probabilities=[[0.5, 0.5]],
                spending={"llm": {"calls": 1}},
            )
        case _:
            return Outcomes(observation_ids=names, observed_at=times, known_at=times, actions=["go"] * len(names))


def agent() -> AgentConfig:
    """One number, one category, two actions."""
    return AgentConfig.model_validate(
        {
            "agent": "durable",
            "actions": ["wait", "go"],
            "observations": {
                "source": "durable:rows",
                "since": START.isoformat(),
                "columns": {"x": {"type": "number"}, "said": {"type": "category"}},
            },
            "outcomes": {"source": "durable:outcomes", "delay": "1d"},
            "teachers": [{"kind": "python", "name": "t", "target": "durable:Teacher"}],
            "student": {"kind": "tabular"},
            "windows": {"train": "8w", "test": "1w", "current": "7d"},
            "watch": {"thresholds": {"psi": 0.25}},
        }
    )


# --------------------------------------------------------------------------- counting


def pin(place: Place, rng: random.Random, found: Found) -> None:
    """Pin a window as a registered model would: between two rounds of upkeep, where in life there is a grace."""
    start = START + timedelta(days=rng.randrange(30 * MONTHS - 20))
    with place.upkeep():
        window = place.base().window(f"model-{found.kills.total()}", start, start + timedelta(days=20))
        path = place.windows / f"{window.name}.json"
        path.write_text(window.model_dump_json(), encoding="utf-8")
        path.with_suffix(".rows").write_text(digest(place, window), encoding="utf-8")


def digest(place: Place, window: Window) -> str:
    """The window's rows as text, the same for the same rows."""
    base = place.base()
    observations = base.read_observations(window).to_csv(index=False)
    return observations + base.read_labelled(window, START + timedelta(days=1000)).to_csv(index=False)


def compare(place: Place, base: KnowledgeBase, found: Found) -> None:
    """Names that were acknowledged against names that the tables have."""
    acknowledged = set[str]()
    for file in place.names.iterdir():
        acknowledged |= set(file.read_text(encoding="utf-8").splitlines())
    there = {
        (kind, table): Counter(name for name in base.read(table, columns=[column])[column] if name.startswith(kind))  # type: ignore[arg-type]
        for kind, columns in TABLES.items()
        for table, column in columns
    }
    everywhere = set[str]().union(*there.values())
    for (kind, table), rows in there.items():
        mine = {name for name in acknowledged if name.startswith(kind)}
        found.lost += [f"{name} in {table}" for name in mine - set(rows)]
        found.doubled += [f"{name} in {table}" for name, count in rows.items() if count > 1]
    found.acknowledged, found.unacknowledged = len(acknowledged), len(everywhere - acknowledged)
    found.rows = base.tables.count_rows()
    found.commits = {table: base.tables.open(table).version() for table in found.rows}  # type: ignore[union-attr, arg-type]
    for path in sorted(place.windows.glob("*.rows")):
        found.windows += 1
        window = Window.model_validate_json(path.with_suffix(".json").read_text(encoding="utf-8"))
        if digest(place, window) != path.read_text(encoding="utf-8"):
            found.windows_changed.append(path.stem)
