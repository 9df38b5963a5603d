"""The small agents: is each champion better than the student that was never refreshed, and does it hold when it should?

``python -m benchmarks.agents`` plays the demo of every agent but flights and the router, which have benchmarks of their
own, once per seed, each in a process and a store of its own (up to two minutes each). The seed is that of the synthetic
stream (``STILLHOUSE_EXAMPLE_SEED``) and of the training (``distillation.seed`` in a copy of the agent file). A replay
on the same store then says in which weeks the oracle, the best schedule of trainings in hindsight, trains.

What was played is kept by agent, seed and commit (``--cache``), so a run that was killed goes on where it was.
``--agent NAME`` selects agents and writes no result; ``--quick`` plays one agent under one seed and writes nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from itertools import groupby, pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from scipy import stats

from benchmarks.report import Goal, begin, print_goals
from benchmarks.stream_files import cache_path
from stillhouse import config
from stillhouse.config.bounded_yaml import read_yaml
from stillhouse.new_agent import list_examples
from stillhouse.quality import get_measure

CLAIM = (
    "five kinds of agents run through the same flows: the champion of each is better than its never-refreshed student "
    "beyond noise, each holds where the best schedule in hindsight holds, and each demo takes at most two minutes"
)
OTHERS = ("flights", "router")
"""Agents with benchmarks of their own."""
SEEDS = (1, 2, 3)
"""Settings of two examples were changed after a run under seed 0."""
MIN_GAIN = 0.001
"""As a share of the measure's range: above 0, so that a champion that never changed does not pass."""
HELD_WEEKS = 3
"""Weeks in a row, before which nothing was done, that count as a stretch."""
MAX_SECONDS = 120

ROOT = Path(__file__).parent.parent
Played = Mapping[str, Any]
"""What :func:`play` returns: ``agent``, ``seed``, ``seconds``, ``cpu_seconds``, ``range`` and ``better`` of
the measure, ``summary``, ``weeks``, ``oracle``."""


def main() -> None:
    """Play, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    agents = [name for name in list_examples() if name not in OTHERS]
    parser.add_argument("--agent", action="append", choices=agents, help="only this one (repeatable)")
    parser.add_argument("--cache", type=Path, default=cache_path("agents"), help="folder of what was played")
    parser.add_argument("--quick", action="store_true", help="one agent, one seed; writes nothing")
    options = parser.parse_args()
    if not agents:
        raise SystemExit("there is no small agent in agents/ yet")
    run = begin("agents", writes_result=not (options.quick or options.agent))
    chosen = (options.agent or agents)[: 1 if options.quick else None]
    cache = None if options.quick else options.cache / run.commit
    played = [play_once(agent, seed, cache) for agent in chosen for seed in SEEDS[: 1 if options.quick else None]]
    goals = goals_of(played)
    if options.quick or options.agent:
        print_goals(CLAIM, goals)
        return
    libraries = ("torch", "onnxruntime", "mlflow", "prefect", "great-expectations", "deltalake")
    run.write(CLAIM, goals, {"played": played}, libraries)


# --------------------------------------------------------------------------- playing


def play_once(agent: str, seed: int, cache: Path | None) -> Played:
    """The demo and the replay of one agent under one seed, from the cache if they were played at this commit."""
    file = cache / f"{agent}-{seed}.json" if cache else None
    if file is not None and file.exists():
        stored: Played = json.loads(file.read_text(encoding="utf-8"))
        return stored
    print(f"{agent}, seed {seed} …", flush=True)
    with TemporaryDirectory(prefix="stillhouse-agents-") as folder:
        played = play(agent, seed, Path(folder))
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(played), encoding="utf-8")
        partial.replace(file)
    return played


def play(agent: str, seed: int, home: Path) -> Played:
    """The demo of one agent in a store of its own, then a replay of the oracle on what the demo has stored."""
    agents = home / "agents"
    agents.mkdir()
    (agents / f"{agent}.yaml").write_text(with_seed(ROOT / "agents" / f"{agent}.yaml", seed), encoding="utf-8")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))}
    environment = inherited | {
        "STILLHOUSE_HOME": str(home),
        "STILLHOUSE_AGENTS": str(agents),
        "STILLHOUSE_EXAMPLE_SEED": str(seed),
    }
    began, cpu_before = time.monotonic(), _child_cpu()
    _run([sys.executable, "-m", "flows", "demo", "--agent", agent, *demo_options(agent)], environment, home)
    seconds, cpu_seconds = time.monotonic() - began, _child_cpu() - cpu_before
    results = home / "demo" / agent
    summary = json.loads((results / "summary.json").read_text(encoding="utf-8"))
    weeks = json.loads((results / "weeks.json").read_text(encoding="utf-8"))
    measure = get_measure(config.load_file(ROOT / "agents" / f"{agent}.yaml"))
    span = ["--first-weeks", str(count_first_weeks(agents / f"{agent}.yaml", weeks)), "--weeks", str(len(weeks))]
    command = [str(Path(sys.executable).with_name("stillhouse")), "replay", agent, "--policy", "oracle"]
    _run([*command, *span, "--out", str(home / "replayed")], environment, home)
    replayed = json.loads((home / "replayed" / "replay.json").read_text(encoding="utf-8"))
    (oracle,) = replayed["policies"]
    return {
        "agent": agent,
        "seed": seed,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "range": measure.span,
        "better": measure.better,
        "summary": summary,
        "weeks": weeks,
        "oracle": {
            "trains_before": [act["step"] for act in oracle["acts"]],
            "quality": oracle["quality_by_step"],
            "exchange_rate": replayed["exchange_rate"],
        },
    }


def with_seed(file: Path, seed: int) -> str:
    """The agent file with another ``distillation.seed``, as YAML without its comments."""
    _, content = read_yaml(file.read_text(encoding="utf-8"))
    sections: dict[str, Any] = dict(content)
    sections["distillation"] = {**(sections.get("distillation") or {}), "seed": seed}
    return yaml.safe_dump(sections, sort_keys=False, allow_unicode=True)


def demo_options(agent: str) -> list[str]:
    """What ``make demo AGENT=…`` gives to the demo of this agent: the variable ``DEMO_<agent>`` of the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    line = re.search(rf"^DEMO_{re.escape(agent)} *:?= *(.*)$", text, re.MULTILINE)
    return line[1].split() if line else []


def count_first_weeks(file: Path, weeks: Sequence[Mapping[str, Any]]) -> int:
    """The weeks before the first one that the demo scored."""
    since = config.load_file(file).observations.since
    assert since is not None  # or there is no demo
    return round((datetime.fromisoformat(weeks[0]["ending"]) - since) / timedelta(weeks=1)) - 1


def _run(command: Sequence[str], environment: Mapping[str, str], home: Path) -> None:
    """Run a command quietly; its last words are shown if it fails."""
    with (home / "output").open("ab") as output:
        ended = subprocess.run(command, env=environment, stdout=output, stderr=output, cwd=ROOT, check=False)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{(home / 'output').read_text(errors='replace')[-3000:]}")


def _child_cpu() -> float:
    """CPU seconds of all processes that this one has started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


# --------------------------------------------------------------------------- comparing


def goals_of(played: Iterable[Played]) -> list[Goal]:
    """Three goals an agent: its gain, the stretch in which it held, and the time of its demo."""
    goals = []
    for agent, group in groupby(played, key=lambda record: str(record["agent"])):
        records = list(group)
        gains = [gain(record) for record in records]
        held = [float(longest_hold(record)) for record in records]
        seconds = [float(record["seconds"]) for record in records]
        goals += [
            Goal(f"{agent}_gain", MIN_GAIN, "higher", lower_end(gains), min(*gains, lower_end(gains)), max(gains)),
            Goal(f"{agent}_held_weeks", HELD_WEEKS, "higher", statistics.median(held), min(held), max(held)),
            Goal(f"{agent}_seconds", MAX_SECONDS, "lower", statistics.median(seconds), min(seconds), max(seconds)),
        ]
    return goals


def gain(record: Played) -> float:
    """Mean over the weeks of the champion's quality less the never-refreshed student's, as a share of the range.

    >>> weeks = [{"quality_champion": 0.7, "quality_static": 0.6}, {"quality_champion": 0.7, "quality_static": None}]
    >>> round(gain({"weeks": weeks, "range": 1.0, "better": "higher"}), 6)
    0.1
    """
    pairs = [(week["quality_champion"], week["quality_static"]) for week in record["weeks"]]
    differences = [champion - static for champion, static in pairs if champion is not None and static is not None]
    sign = 1 if record["better"] == "higher" else -1
    return sign * statistics.fmean(differences) / float(record["range"])


def lower_end(values: Sequence[float]) -> float:
    """Lower end of the 95 % interval of the mean, Student's t; of a single value that value.

    >>> round(lower_end([0.1, 0.2, 0.3]), 4)
    -0.0484
    """
    if len(values) < 2:
        return values[0]
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values) - float(half)


def longest_hold(record: Played) -> int:
    """The most weeks in a row before which neither the policy nor the oracle responded.

    The policy responds before a week if the week before it ended with another response than to hold, had a gate, or had
    another champion.

    >>> calm = {"response": "hold", "gates": [], "champion": "a@1"}
    >>> busy = {"response": "redistil", "gates": ["promoted"], "champion": "a@1"}
    >>> later = calm | {"champion": "a@2"}
    >>> weeks = [calm, calm, calm, busy, later, later, later]
    >>> longest_hold({"weeks": weeks, "oracle": {"trains_before": [4]}})
    3
    >>> longest_hold({"weeks": weeks, "oracle": {"trains_before": [2]}})
    2
    """
    weeks, oracle = record["weeks"], set(record["oracle"]["trains_before"])
    held = [
        before["response"] == "hold"
        and not before["gates"]
        and before["champion"] == week["champion"]
        and number not in oracle
        for number, (before, week) in enumerate(pairwise(weeks), start=1)
    ]
    return max((len(list(run)) for is_held, run in groupby(held) if is_held), default=0)


if __name__ == "__main__":
    config.use_embedded_defaults()
    main()
