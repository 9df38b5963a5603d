"""The processes that ``benchmarks/durability.py`` kills, and the comparison of the tables at the end."""

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
    "answered": (("knowledge", "teacher"), ("spending", "version")),
    "outcomes": (("outcomes", "observation_id"),),
}
"""By kind of event: the tables that get one row per event, and the column that holds the event's name."""


@dataclass(frozen=True)
class RunFolders:
    """The folders of one run."""

    root: Path

    @property
    def spools(self) -> Path:
        return self.root / "spool"

    @property
    def names(self) -> Path:
        return self.root / "names"

    @property
    def windows(self) -> Path:
        return self.root / "windows"

    def upkeep(self) -> FileLock:
        return FileLock(self.root / "upkeep.lock")

    def base(self) -> KnowledgeBase:
        return KnowledgeBase(agent_config(), self.root / "knowledge")

    def pinned(self) -> dict[str, tuple[Window, ...]]:
        paths = sorted(self.windows.glob("*.json"))
        return {path.stem: (Window.model_validate_json(path.read_text(encoding="utf-8")),) for path in paths}


@dataclass
class RunResult:
    """Counts of one run."""

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


def run_and_kill(folders: RunFolders, kills: int, seed: int) -> RunResult:
    """Start all processes, kill and restart random ones, and compare the tables at the end."""
    start, rng, result = time.perf_counter(), random.Random(seed), RunResult()
    for folder in (folders.spools, folders.names, folders.windows):
        folder.mkdir(parents=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.durability_run"])
    workers = [writer] * 3 + [flusher] * 2 + [maintainer]
    processes = [(worker, start_process(context, worker, folders)) for worker in workers]
    try:
        while result.kills.total() < kills - len(workers):
            time.sleep(rng.uniform(0.05, 1.0))
            role = rng.choice([writer, flusher, maintainer])
            index = rng.choice([index for index, (worker, _) in enumerate(processes) if worker is role])
            worker, process = processes[index]
            kill_process(process, result, worker)
            processes[index] = worker, start_process(context, worker, folders)
            if result.kills.total() % 10 == 5:
                pin(folders, rng, result)
        time.sleep(1.0)
    finally:
        for worker, process in processes:
            kill_process(process, result, worker)
    base = folders.base()
    final_flush = flush(base, folders.spools)
    assert not final_flush.problems and not final_flush.dead and not list(folders.spools.glob("*.dead")), final_flush
    compare(folders, base, result)
    result.seconds = time.perf_counter() - start
    return result


def start_process(context: ForkServerContext, worker: Callable[[RunFolders], None], folders: RunFolders) -> BaseProcess:
    """Start a worker process and wait until it runs."""
    process = context.Process(target=signal_and_run, args=(worker, folders, ready := context.Event()), daemon=True)
    process.start()
    if not ready.wait(120):
        raise RuntimeError(f"a {worker.__name__} did not start")
    return process


def signal_and_run(worker: Callable[[RunFolders], None], folders: RunFolders, ready: threading.Event) -> None:
    ready.set()
    worker(folders)


def kill_process(process: BaseProcess, result: RunResult, worker: Callable[[RunFolders], None]) -> None:
    """Kill a process; raise if it has already ended by itself."""
    if process.exitcode is not None:
        raise RuntimeError(f"a {worker.__name__} ended by itself ({process.exitcode})")
    process.kill()
    process.join()
    result.kills[worker.__name__] += 1


# --------------------------------------------------------------------------- workers


def writer(folders: RunFolders) -> None:
    """Put events into a spool and append the names of the acknowledged ones to a file."""
    spool = Spool(folders.spools)
    names_file = os.open(folders.names / uuid.uuid4().hex, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def work() -> None:
        rng = random.Random()
        while True:
            kind = rng.choice(list(TABLES))
            event_names = [f"{kind}:{uuid.uuid4().hex}" for _ in range(1 if kind == "answered" else rng.randint(1, 4))]
            spool.put(event(kind, event_names, rng))
            os.write(names_file, "".join(f"{name}\n" for name in event_names).encode())
            time.sleep(rng.uniform(0, 0.05))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def flusher(folders: RunFolders) -> None:
    """Flush in a loop, in chunks of random size."""
    base, rng = folders.base(), random.Random()
    while True:
        with contextlib.suppress(RuntimeStateError):  # the maintainer deleted a file during the read: retry
            flush(base, folders.spools, max_rows=rng.choice([1, 20, 500, 50_000]))
        time.sleep(rng.uniform(0, 0.05))


def maintainer(folders: RunFolders) -> None:
    """Compact and vacuum in a loop, without a grace period."""
    base, rng = folders.base(), random.Random()
    while True:
        with folders.upkeep():
            upkeep.compact(base.tables, Upkeep(min_files=2))
            upkeep.vacuum(base.tables, timedelta(), folders.pinned())
        time.sleep(rng.uniform(0, 0.1))


def event(kind: str, names: list[str], rng: random.Random) -> Event:
    """An event of the given kind whose rows have these names."""
    times = [int(START.timestamp() * 1e6) + rng.randrange(MONTHS * 30 * 86_400_000_000) for _ in names]
    columns, values = ["x", "word"], [[rng.random(), rng.choice(["a", "b", None])] for _ in names]
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
        case "answered":
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


def agent_config() -> AgentConfig:
    """An agent with one number, one category and two actions."""
    return AgentConfig.model_validate(
        {
            "agent": "durable",
            "actions": ["wait", "go"],
            "observations": {
                "source": "durable:rows",
                "since": START.isoformat(),
                "columns": {"x": {"type": "number"}, "word": {"type": "category"}},
            },
            "outcomes": {"source": "durable:outcomes", "delay": "1d"},
            "teachers": [{"kind": "python", "name": "t", "target": "durable:Teacher"}],
            "student": {"kind": "tabular"},
            "windows": {"train": "8w", "test": "1w", "current": "7d"},
            "watch": {"thresholds": {"psi": 0.25}},
        }
    )


# --------------------------------------------------------------------------- counting


def pin(folders: RunFolders, rng: random.Random, result: RunResult) -> None:
    """Pin a window as a registered model does; the lock replaces the grace period that upkeep has in production."""
    start = START + timedelta(days=rng.randrange(30 * MONTHS - 20))
    with folders.upkeep():
        window = folders.base().window(f"model-{result.kills.total()}", start, start + timedelta(days=20))
        path = folders.windows / f"{window.name}.json"
        path.write_text(window.model_dump_json(), encoding="utf-8")
        path.with_suffix(".rows").write_text(digest(folders, window), encoding="utf-8")


def digest(folders: RunFolders, window: Window) -> str:
    """The window's rows as text; equal rows give equal text."""
    base = folders.base()
    observations = base.read_observations(window).to_csv(index=False)
    return observations + base.read_labelled(window, START + timedelta(days=1000)).to_csv(index=False)


def compare(folders: RunFolders, base: KnowledgeBase, result: RunResult) -> None:
    """Compare the acknowledged names with the names in the tables, and count into ``result``."""
    acknowledged = set[str]()
    for file in folders.names.iterdir():
        acknowledged |= set(file.read_text(encoding="utf-8").splitlines())
    counts = {
        (kind, table): Counter(name for name in base.read(table, columns=[column])[column] if name.startswith(kind))  # type: ignore[arg-type]
        for kind, columns in TABLES.items()
        for table, column in columns
    }
    stored = set[str]().union(*counts.values())
    for (kind, table), rows in counts.items():
        expected = {name for name in acknowledged if name.startswith(kind)}
        result.lost += [f"{name} in {table}" for name in expected - set(rows)]
        result.doubled += [f"{name} in {table}" for name, count in rows.items() if count > 1]
    result.acknowledged, result.unacknowledged = len(acknowledged), len(stored - acknowledged)
    result.rows = base.tables.count_rows()
    result.commits = {table: base.tables.open(table).version() for table in result.rows}  # type: ignore[union-attr, arg-type]
    for path in sorted(folders.windows.glob("*.rows")):
        result.windows += 1
        window = Window.model_validate_json(path.with_suffix(".json").read_text(encoding="utf-8"))
        if digest(folders, window) != path.read_text(encoding="utf-8"):
            result.windows_changed.append(path.stem)
