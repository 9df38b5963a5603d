"""Responses that pay: our policy beside fixed calendars chosen in hindsight, on fifteen streams and at six prices.

``python -m benchmarks.streams`` trains one model a week and stream with our student and one with a plain script's
(:mod:`stillhouse.replay.script`), scores each on all later weeks, and then plays every policy on these scores. Training
takes most of the time: some ten minutes of one core for a river stream under one seed, an hour for flights. The models
are kept (``--cache``), so a run that was killed goes on where it was. ``--only-train`` plays nothing, ``--cached``
plays what is trained already, ``--stream NAME`` selects streams and writes no result; ``--quick`` takes under a minute:
one short stream for development, nothing is written.

A policy's total is the mean log loss of each week (natural logarithm; probabilities count as at least 0.01) summed over
the weeks, plus exchange rate × what it spent. The price of a training is 1; of a recalibration and a reuse as in
:class:`stillhouse.config.Prices`. A calendar trains every so many weeks, with our student or with the plain script's.
The best is chosen for each stream and exchange rate by its mean over the seeds. The oracle is the best schedule of
trainings of our student in hindsight.

No constant of the policy was chosen on these streams but flights and the router.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.report import Goal, begin, print_goals
from benchmarks.stream_files import cache_path
from benchmarks.streams_data import WEEK, rotating
from benchmarks.streams_worlds import STREAMS, STUDENTS, StoredWorld, history_of
from stillhouse.payoff.decide import Rules
from stillhouse.replay.policies import Act, Played, play_calendar, play_oracle, play_payoff
from stillhouse.replay.world import Made, World

CLAIM = (
    "the payoff policy costs at most 3 % more than the best calendar in hindsight on every stream at every exchange "
    "rate, and less than each calendar over all of them"
)
RATES = (0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
"""Prices of a training: nats of the log loss for one week."""
INTERVALS: tuple[int | None, ...] = (None, 1, 2, 3, 4, 6, 8, 13, 26)
"""Weeks between two trainings of a calendar; None: never."""
TERMS = tuple(field.name for field in fields(Rules) if field.type == "bool")
"""The terms of the policy that the ablation leaves out, one at a time."""
FIGURE = Path(__file__).parent.parent / "docs" / "images" / "streams.png"
RESAMPLES = 2000

Array = np.ndarray[Any, Any]
Record = Mapping[str, Any]
"""What :func:`play_policies` returns for one stream under one seed."""


def main() -> None:
    """Train, play, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stream", action="append", choices=tuple(STREAMS), help="only this one (repeatable)")
    parser.add_argument("--seeds", type=int, default=5, help="of streams and trainings")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--cache", type=Path, default=cache_path("streams"), help="folder of the trained models")
    parser.add_argument("--only-train", action="store_true", help="train what is missing; play nothing")
    parser.add_argument("--cached", action="store_true", help="train nothing; play what is complete")
    parser.add_argument("--quick", action="store_true", help="one short stream; writes nothing")
    options = parser.parse_args()
    run = begin("streams", writes_result=not (options.quick or options.only_train or options.stream))
    if options.quick:
        print_goals(CLAIM, goals_of(play_quickly()))
        return
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    chosen = [(name, seed) for seed in seeds for name in options.stream or STREAMS]
    if not options.cached:
        train_worlds(chosen, options.cache, options.processes)
    if options.only_train:
        return
    records = list(play_worlds(chosen, options.cache, options.processes))
    if not records:
        raise SystemExit(f"no world in {options.cache} is complete: train first, without --cached")
    goals, detail = goals_of(records), summarize(records)
    show(detail)
    if options.stream:
        print_goals(CLAIM, goals)
        return
    run.write(CLAIM, goals, detail, ("torch", "lightgbm", "scikit-learn"))
    draw_figure(detail, FIGURE)


def train_worlds(chosen: Iterable[tuple[str, int]], cache: Path, processes: int) -> None:
    """Train the models that are missing, stream by stream."""
    begun = time.monotonic()
    for name, seed in chosen:
        for world in open_worlds(name, seed, cache).values():
            for count in world.train(processes):
                if count % 10 == 0 or count == world.history.steps:
                    minutes = (time.monotonic() - begun) / 60
                    print(
                        f"{minutes:6.1f} min  {name} {seed} {world.student}: {count}/{world.history.steps}", flush=True
                    )


def open_worlds(name: str, seed: int, cache: Path) -> dict[str, StoredWorld]:
    """The worlds of a stream, one for each kind of student."""
    history = history_of(STREAMS[name](seed), seed, cache)
    return {student: StoredWorld.of(history, name, seed, student, cache) for student in STUDENTS}


def play_worlds(chosen: Sequence[tuple[str, int]], cache: Path, processes: int) -> Iterator[Record]:
    """The records of all chosen streams and seeds whose worlds are complete, in parallel."""
    jobs = [(name, seed, cache) for name, seed in chosen]
    with ProcessPoolExecutor(processes, get_context("forkserver")) as pool:
        for (name, seed, _), record in zip(jobs, pool.map(play_stored, jobs), strict=True):
            if record is None:
                print(f"{name} {seed}: not complete, left out", flush=True)
            else:
                print(f"{name} {seed}: played", flush=True)
                yield record


def play_stored(job: tuple[str, int, Path]) -> Record | None:
    """The record of one stream under one seed; None: models are missing."""
    name, seed, cache = job
    worlds = open_worlds(name, seed, cache)
    if any(world.missing for world in worlds.values()):
        return None
    plain = worlds["plain"].play(play_fixed)
    return worlds["ours"].play(lambda world: play_policies(name, seed, world, plain))


def play_quickly() -> list[Record]:
    """The record of a short stream for development, with every part of the benchmark."""
    stream = rotating(seed=0, weeks=14, per_week=100)
    with TemporaryDirectory() as folder:
        history = history_of(stream, 0, Path(folder))
        worlds = {student: StoredWorld.of(history, "quick", 0, student, Path(folder)) for student in STUDENTS}
        for world in worlds.values():
            for _ in world.train(processes=1):
                pass
        plain = worlds["plain"].play(play_fixed)
        record = worlds["ours"].play(lambda world: play_policies("quick", 0, world, plain))
    show(summarize([record]))
    return [record]


# --------------------------------------------------------------------------- policies on one world


def play_policies(name: str, seed: int, world: World, plain: Mapping[str, Mapping[str, float]]) -> Record:
    """Every policy on one stream: fixed ones by name, and by exchange rate those that look at it.

    :param plain: what :func:`play_fixed` returned for the world of the plain script's student.
    """
    fixed = {f"ours, {policy}": figures for policy, figures in play_fixed(world).items()}
    fixed |= {f"plain script, {policy}": figures for policy, figures in plain.items()}
    by_rate = {}
    for rate in RATES:
        played = {"payoff": play_payoff(world, rate), "sketch": play_sketch(world, rate)}
        played["oracle"] = play_oracle(world, rate)
        for term in TERMS:
            played[f"without {term}"] = play_payoff(world, rate, rules=Rules(**{term: False}))
        by_rate[rate] = {policy: figures_of(world, game) for policy, game in played.items()}
    return {"stream": name, "seed": seed, "weeks": world.steps, "fixed": fixed, "rates": by_rate}


def play_fixed(world: World) -> dict[str, dict[str, Any]]:
    """Figures of each calendar."""
    if world.history.step != WEEK:
        raise ValueError(f"a calendar counts weeks, and this world has steps of {world.history.step}")
    return {interval_name(every): figures_of(world, play_calendar(world, every)) for every in INTERVALS}


def interval_name(every: int | None) -> str:
    """A calendar's name.

    >>> interval_name(None), interval_name(1), interval_name(4)
    ('never', 'every week', 'every 4 weeks')
    """
    return "never" if every is None else "every week" if every == 1 else f"every {every} weeks"


def figures_of(world: World, played: Played) -> dict[str, Any]:
    """Loss (nats × weeks), what was spent (price of a training: 1), means, and the responses with their gains."""
    gains = played.realised(world)
    return {
        "loss": played.total(world, 0.0),
        "spent": played.price,
        **{measure: played.mean(world, measure) for measure in ("accuracy", "auc") if has_measure(world, measure)},
        "responses": dict(Counter(act.response for act in played.acts)),
        "gains": [[act.response, act.step, gain] for act, gain in zip(played.acts, gains, strict=True)],
    }


def has_measure(world: World, measure: str) -> bool:
    return not np.isnan(world.scores(Made(0))[measure]).all()


def play_sketch(world: World, rate: float, members: int = 6) -> Played:
    """The simple policy to beat: a training at the age √(2 · rate / b), where b is what a week of age has cost.

    b is a ridge regression of how much more older members lost on how much older they are, newer weeks counting more
    (0.97 a week). A training comes sooner where the champion has lost 0.05 more in the last two weeks than in its
    first three, if that lasts for the interval and exceeds twice the price.
    """
    losses = np.array([world.loss(Made(step)) for step in range(world.steps)])
    played, champion, pool = Played(), 0, [0]
    products = squares = weights = 0.0
    pairs = 0
    for week in range(world.steps):
        ridge = 50 * weights / pairs if pairs else 0.0
        decay = products / (squares + ridge) if pairs >= 3 else 1e-3
        interval = math.sqrt(2 * rate / max(decay, 1e-5))
        age = week - champion
        if week and (age >= interval or _is_surprised(losses[champion, champion:week], rate / interval)):
            played.acts.append(Act(week, "redistil", Made(champion), Made(week)))
            champion, played.price, pool = week, played.price + 1, [*pool, week][-members:]
        played.champions.append(Made(champion))
        products, squares, weights = (0.97 * value for value in (products, squares, weights))
        for member in pool:
            gain = losses[member, week] - losses[champion, week]
            if member < champion and not math.isnan(gain):
                older = champion - member
                products, squares = products + older * gain, squares + older**2
                weights, pairs = weights + 1, pairs + 1
    return played


def _is_surprised(losses: Array, price_per_week: float) -> bool:
    """Whether the champion has become much worse than it was; ``losses`` since its training, a week each."""
    known = losses[~np.isnan(losses)]
    if len(known) < 2:
        return False
    rise = float(known[-2:].mean() - known[:3].mean())
    return rise > max(0.05, 2 * price_per_week)


# --------------------------------------------------------------------------- over streams, seeds and rates


def means_over_seeds(records: Sequence[Record]) -> dict[str, dict[float, dict[str, float]]]:
    """The total of each policy by stream and exchange rate, nats × weeks: the mean over the seeds."""
    means: dict[str, dict[float, dict[str, float]]] = {}
    for stream in dict.fromkeys(record["stream"] for record in records):
        seeds = [record for record in records if record["stream"] == stream]
        for rate in RATES:
            totals = [totals_of(record, rate) for record in seeds]
            means.setdefault(stream, {})[rate] = {
                policy: statistics.mean(total[policy] for total in totals) for policy in totals[0]
            }
    return means


def totals_of(record: Record, rate: float) -> dict[str, float]:
    """The total of each policy at one exchange rate, nats × weeks."""
    policies = {**record["fixed"], **record["rates"][rate]}
    return {policy: figures["loss"] + rate * figures["spent"] for policy, figures in policies.items()}


def is_fixed(policy: str) -> bool:
    """Whether a policy is a calendar."""
    return policy.startswith(("ours, ", "plain script, "))


def best_fixed(totals: Mapping[str, float]) -> str:
    """The calendar with the smallest total."""
    return min(filter(is_fixed, totals), key=totals.__getitem__)


def ratios(records: Sequence[Record], policy: str) -> dict[str, list[float]]:
    """The total of a policy / that of the best calendar, by stream, at each exchange rate."""
    means = means_over_seeds(records)
    return {
        stream: [totals[policy] / totals[best_fixed(totals)] for totals in by_rate.values()]
        for stream, by_rate in means.items()
    }


def ratios_to_oracle(records: Sequence[Record], policy: str = "payoff") -> list[float]:
    """The total of a policy / that of the oracle, of each stream and exchange rate."""
    means = means_over_seeds(records)
    return [totals[policy] / totals["oracle"] for by_rate in means.values() for totals in by_rate.values()]


def differences_to_fixed(records: Sequence[Record]) -> dict[str, dict[str, float]]:
    """Total of our policy − that of each calendar, a week: mean over streams and exchange rates, with 95 % interval.

    The interval resamples streams, with all of their exchange rates (cluster bootstrap, percentiles).
    """
    means = means_over_seeds(records)
    weeks = {record["stream"]: record["weeks"] for record in records}
    rng = np.random.default_rng(0)
    resampled = rng.integers(len(means), size=(RESAMPLES, len(means)))
    policies = filter(is_fixed, next(iter(means.values()))[RATES[0]])
    intervals = {}
    for policy in policies:
        by_stream = np.array(
            [
                np.mean([totals["payoff"] - totals[policy] for totals in by_rate.values()]) / weeks[stream]
                for stream, by_rate in means.items()
            ]
        )
        low, high = np.quantile(by_stream[resampled].mean(axis=1), (0.025, 0.975))
        intervals[policy] = {"mean": float(by_stream.mean()), "low": float(low), "high": float(high)}
    return intervals


def useless_share(records: Iterable[Record], policy: str = "payoff") -> float:
    """The share of the policy's responses, over all exchange rates and seeds, that gained nothing; 0 without any."""
    gains = [
        gain for record in records for by_policy in record["rates"].values() for *_, gain in by_policy[policy]["gains"]
    ]
    return sum(gain <= 0 for gain in gains) / len(gains) if gains else 0.0


def goals_of(records: Sequence[Record]) -> list[Goal]:
    """The goals over all streams and exchange rates; of the ablation, each term by what leaving it out costs."""
    ours = [ratio for by_rate in ratios(records, "payoff").values() for ratio in by_rate]
    to_oracle = ratios_to_oracle(records)
    hardest = max(differences_to_fixed(records).values(), key=lambda interval: interval["high"])
    streams = dict.fromkeys(record["stream"] for record in records)
    shares = [useless_share(r for r in records if r["stream"] == stream) for stream in streams]
    useless = useless_share(records)
    goals = [
        Goal("ratio_to_best_calendar", 1.03, "lower", max(ours), min(ours), max(ours)),
        Goal("ratio_to_oracle", 1.12, "lower", statistics.median(to_oracle), min(to_oracle), max(to_oracle)),
        Goal("nats_above_hardest_calendar", 0.0, "lower", hardest["high"], hardest["low"], hardest["high"]),
        Goal("responses_without_gain", 0.10, "lower", useless, min(shares), max(shares)),
    ]
    for term in TERMS:
        costs = ablation_costs(records, term)
        goals.append(Goal(f"cost_without_{term}", 0.0, "higher", statistics.mean(costs), min(costs), max(costs)))
    return goals


def ablation_costs(records: Sequence[Record], term: str) -> list[float]:
    """By stream: mean ratio to the best calendar without a term − with it."""
    with_term, without = ratios(records, "payoff"), ratios(records, f"without {term}")
    return [statistics.mean(without[stream]) - statistics.mean(with_term[stream]) for stream in with_term]


def summarize(records: Sequence[Record]) -> dict[str, Any]:
    """Everything that the result file keeps: totals, ratios, responses and the ablation."""
    means = means_over_seeds(records)
    streams = {}
    for stream, by_rate in means.items():
        seeds = [record for record in records if record["stream"] == stream]
        streams[stream] = {
            "seeds": [record["seed"] for record in seeds],
            "weeks": seeds[0]["weeks"],
            "rates": {f"{rate:g}": _summarize_rate(seeds, rate, totals) for rate, totals in by_rate.items()},
        }
    policies = ("payoff", *(f"without {term}" for term in TERMS), "sketch", "oracle")
    return {
        "rates": RATES,
        "streams": streams,
        "differences_to_calendars": differences_to_fixed(records),
        "policies": {policy: _summarize_policy(records, policy) for policy in policies},
    }


def _summarize_rate(seeds: Sequence[Record], rate: float, totals: Mapping[str, float]) -> dict[str, Any]:
    best = best_fixed(totals)
    responses: Counter[str] = Counter()
    useless: Counter[str] = Counter()
    for record in seeds:
        for response, _, gain in record["rates"][rate]["payoff"]["gains"]:
            responses[response] += 1
            useless[response] += gain <= 0
    measures = {
        measure: {
            "payoff": statistics.mean(record["rates"][rate]["payoff"][measure] for record in seeds),
            "best calendar": statistics.mean(record["fixed"][best][measure] for record in seeds),
        }
        for measure in ("accuracy", "auc")
        if measure in seeds[0]["fixed"][best]
    }
    return {
        "best_calendar": best,
        "ratio": totals["payoff"] / totals[best],
        "ratio_to_oracle": totals["payoff"] / totals["oracle"],
        "totals": {policy: round(total, 4) for policy, total in totals.items()},
        "responses": {
            response: {"per_seed": count / len(seeds), "without_gain": useless[response] / count}
            for response, count in sorted(responses.items())
        },
        "means": measures,
    }


def _summarize_policy(records: Sequence[Record], policy: str) -> dict[str, float]:
    every = [ratio for by_rate in ratios(records, policy).values() for ratio in by_rate]
    return {
        "mean_ratio": statistics.mean(every),
        "median_ratio": statistics.median(every),
        "largest_ratio": max(every),
        "share_within_3_percent": sum(ratio <= 1.03 for ratio in every) / len(every),
        "median_ratio_to_oracle": statistics.median(ratios_to_oracle(records, policy)),
        "responses_without_gain": useless_share(records, policy),
    }


# --------------------------------------------------------------------------- what people see


def show(detail: Mapping[str, Any]) -> None:
    """Print a line for each stream and exchange rate, and one for each policy."""
    for stream, result in detail["streams"].items():
        for rate, figures in result["rates"].items():
            responses = ", ".join(
                f"{response} {counts['per_seed']:.1f} ({counts['without_gain']:.0%} useless)"
                for response, counts in figures["responses"].items()
            )
            sketch = figures["totals"]["sketch"] / figures["totals"][figures["best_calendar"]]
            print(
                f"{stream:21} {len(result['seeds'])} seeds, rate {rate:>4}: {figures['ratio']:.3f} of "
                f"{figures['best_calendar']} (sketch {sketch:.3f}), {figures['ratio_to_oracle']:.3f} of the oracle; "
                f"{responses or 'no response'}"
            )
    for policy, figures in detail["policies"].items():
        print(f"{policy:16}", "  ".join(f"{name} {value:.3f}" for name, value in figures.items()))


def draw_figure(detail: Mapping[str, Any], file: Path) -> None:
    """Draw our total over that of the best calendar by exchange rate, one line for each stream."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.4), dpi=110, layout="constrained")
    axis = figure.subplots()
    colours = colormaps["tab20"].colors
    for index, (stream, result) in enumerate(detail["streams"].items()):
        values = [rate["ratio"] for rate in result["rates"].values()]
        axis.plot(detail["rates"], values, "o-", color=colours[index % 20], markersize=3, linewidth=1.2, label=stream)
    axis.axhline(1.0, color="black", linewidth=0.8)
    axis.axhline(1.03, color="black", linewidth=0.8, linestyle=":")
    axis.set_xscale("log")
    axis.set_xticks(detail["rates"], [f"{rate:g}" for rate in detail["rates"]])
    axis.minorticks_off()
    axis.set(xlabel="price of a training (nats for one week)", ylabel="our total / best calendar in hindsight")
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file)


if __name__ == "__main__":
    main()
