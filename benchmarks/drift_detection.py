"""The delay until harmful drift is detected, compared with detectors at equal false-alarm rates and label counts.

``python -m benchmarks.drift_detection`` takes about twenty-five minutes on two busy cores; ``--quick`` takes a minute
and writes no file.

Each *world* has rows, a boosted teacher, and a small student distilled from it. A *look* is an hour with 200 new rows,
of which 50 are audited: the teacher is queried about them, or their outcomes become known. From a known look on, a
share of the rows changes:

covariate
    rows come only from the region with the student's highest error (a leaf of a tree fitted on other rows). In the
    digits, whose student makes hardly any errors, the images move by a pixel; the teacher was fitted on such images
    too.
label
    the class with the student's highest error becomes three times as frequent; the teacher is fitted on this frequency.
concept
    other labels for the same inputs; the teacher is fitted on them, as a large model that is kept up to date.
concept, teacher frozen
    the same, with the teacher fitted before the change: only outcomes reveal it.
benign
    two columns that the label does not depend on move by 1.5 standard deviations.

*Ours*: :mod:`stillhouse.drift.audit` and :mod:`stillhouse.drift.evidence` with the defaults of ``config.Watch``. Rows
and steps count as independent, as they do for all peers, and each process has the whole budget;
:mod:`benchmarks.false_alarms` measures the cost of a shared budget and of dependent steps. The peers get their
documented input, the student's 0/1 errors on 50 labelled rows per look, and, as a stronger comparison, the same losses
that we accumulate, from uniformly sampled rows. Each runs with its defaults, and calibrated on separate runs to alarm
in at most 1 % of null runs of 10,000 looks.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np

from benchmarks.peers import peer
from benchmarks.report import Goal, begin
from stillhouse.config import Watch
from stillhouse.drift import audit, evidence
from stillhouse.drift.calibrate import estimate_loss_baseline
from stillhouse.stats import half_brier, total_variation

CLAIM = (
    "harmful drift is detected under a false-alarm budget without calibration: as soon as by the fastest calibrated "
    "detector where the error rises much, and later where it rises little"
)

WATCH = Watch()
RUN_LENGTH = WATCH.average_run_length or math.inf
RIVER, FROUROS = ("river==0.26.1",), ("frouros==0.9.0",)
EVIDENTLY = ("evidently==0.7.23", "pandas<3")
SCRIPTS = Path(__file__).parent / "detection_peers"

PER_LOOK = 200
KINDS = ("covariate", "label", "concept", "concept, teacher frozen")
SHARES = (0.3, 1.0)
SCENARIOS = [(kind, share) for kind in KINDS for share in SHARES]
MIN_ERROR_RISE = 0.02
HOUR_NS = 3600 * 10**9

Array = np.ndarray[Any, Any]
Process = Literal["disagreement", "brier"]


@dataclass(frozen=True)
class Size:
    """Size of the measurement; the field names are keys of the result."""

    rows: int = 20_000
    runs: int = 200
    null_runs: int = 40
    null_looks: int = 10_000
    calibration_runs: int = 100
    peer_null_runs: int = 20
    warm_looks: int = 200
    horizon: int = 300
    column_looks: int = 100


QUICK = Size(
    rows=3000,
    runs=10,
    null_runs=5,
    null_looks=300,
    calibration_runs=5,
    peer_null_runs=5,
    warm_looks=50,
    horizon=60,
    column_looks=5,
)


def main() -> None:
    """Make the worlds, measure our methods and the peers, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two worlds, few and short runs, no file written")
    parser.add_argument("--seeds", type=int, default=Size.runs, help="runs of each scenario")
    options = parser.parse_args()
    run = begin("drift_detection", writes_result=not options.quick)
    size = QUICK if options.quick else Size(runs=options.seeds)
    with tempfile.TemporaryDirectory(prefix="stillhouse-detection-") as folder:
        worlds = list(make_worlds(Path(folder), size, names=("sea", "digits") if options.quick else None))
        peer_processes = start_peers(Path(folder), worlds, size)
        ours = [result for world in worlds for result in measure_ours(world, size)]
        by_columns = measure_label_free(Path(folder), worlds, size)
        peers = [
            result for name, process in peer_processes.items() for result in wait_for_peer(Path(folder), name, process)
        ]
    goals, detail = make_goals(worlds, ours, peers, by_columns, size)
    if options.quick:
        print(json.dumps([{goal.name: round(goal.measured, 4)} for goal in goals], indent=1))
    else:
        run.write(CLAIM, goals, detail, ("numpy", "scikit-learn"))


# --------------------------------------------------------------------------- worlds


@dataclass(frozen=True)
class Pool:
    """Rows of one situation: losses by stream ``[n]``, audit scores ``[n]``, inputs ``[n, C]``; runs draw from them."""

    streams: Mapping[str, Array]
    scores: Array
    inputs: Array


@dataclass(frozen=True)
class World:
    """A data set: a pool of rows for each situation."""

    name: str
    pools: Mapping[str, Pool]


@dataclass(frozen=True)
class Table:
    """Inputs ``[n, C]`` and labels ``[n]``, before and after a change of concept.

    :param moved: inputs after a covariate shift that keeps the labels; None: the shift takes a part of the rows.
    """

    inputs: Array
    labels: Array
    inputs_after: Array
    labels_after: Array
    moved: Array | None = None


def make_worlds(folder: Path, size: Size, names: Sequence[str] | None = None) -> Iterator[World]:
    """Worlds from river's generators and two real tables."""
    out = folder / "streams.npz"
    subprocess.run([peer("river", RIVER), SCRIPTS / "streams.py", str(size.rows), out], check=True)
    arrays = np.load(out)
    for name in names or ("sea", "rbf", "agrawal", "digits", "flights"):
        if name == "digits":
            table = digits()
        elif name == "flights":
            table = flights(size.rows)
        else:
            keys = ("inputs|before", "labels|before", "inputs|after", "labels|after")
            table = Table(*(arrays[f"{name}|{key}"] for key in keys))
        yield make_world(name, table)


def digits() -> Table:
    """scikit-learn's handwritten digits, ten actions; the labels 3 and 8 are swapped, or the images move by a pixel."""
    from sklearn.datasets import load_digits

    inputs, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(41).permutation(len(labels))
    inputs, labels = inputs[order], labels[order]
    swapped = np.where(labels == 3, 8, np.where(labels == 8, 3, labels))
    moved = np.roll(inputs.reshape(-1, 8, 8), 1, axis=2)
    moved[:, :, 0] = 0.0
    return Table(inputs, labels, inputs, swapped, moved.reshape(len(moved), -1))


def flights(row_count: int) -> Table:
    """Departures of 30 weeks in 2013; for the concept change, late and on time are swapped for Newark."""
    from examples import flights as source

    span = source.week_start(0), source.week_start(30)
    departures = source.departures(*span).merge(
        source.lateness(*span)[["observation_id", "action"]], on="observation_id"
    )
    departures = departures.sample(n=row_count, random_state=51)
    codes = departures[list(source.CATEGORIES)].apply(lambda column: column.astype("category").cat.codes)
    inputs = np.column_stack([departures[list(source.NUMBERS)].to_numpy(np.float64), codes.to_numpy(np.float64)])
    inputs = np.where(np.isnan(inputs), np.nanmedian(inputs, axis=0), inputs)
    labels = (departures["action"] == "late").to_numpy(np.int64)
    return Table(inputs, labels, inputs, np.where(departures["origin"] == "EWR", 1 - labels, labels))


def make_world(name: str, table: Table) -> World:
    """Fit teacher and student on 40 % of the rows, find the student's errors on 10 %; runs draw from the rest."""
    rows = len(table.labels)
    fit, probe, stream = np.split(np.arange(rows), [int(0.4 * rows), int(0.5 * rows)])
    noise = np.random.default_rng(61).normal(size=(rows, 2))
    x, x_after, benign = (
        np.column_stack(pair)
        for pair in ((table.inputs, noise), (table.inputs_after, noise), (table.inputs, noise + 1.5))
    )
    y, y_after = table.labels, table.labels_after

    if table.moved is None:
        teacher = fit_teacher(x[fit], y[fit])
    else:  # the teacher is fitted on more than the student
        moved = np.column_stack([table.moved, noise])
        teacher = fit_teacher(np.concatenate([x[fit], moved[fit]]), np.tile(y[fit], 2))
    student = fit_student(x[fit], teacher)
    is_error = student(x[probe]).argmax(axis=1) != y[probe]
    if table.moved is None:
        hard = stream[hard_region(x[probe], is_error)(x[stream])]
        covariate = make_pool(x[hard], y[hard], teacher, student)
    else:
        covariate = make_pool(moved[stream], y[stream], teacher, student)
    worst = max(np.unique(y[probe]), key=lambda label: is_error[y[probe] == label].mean())
    tripled, refit = (np.concatenate([indices, *2 * [indices[y[indices] == worst]]]) for indices in (stream, fit))
    updated_teacher = fit_teacher(x_after[fit], y_after[fit])
    return World(
        name,
        {
            "before": make_pool(x[stream], y[stream], teacher, student),
            "covariate": covariate,
            "label": make_pool(x[tripled], y[tripled], fit_teacher(x[refit], y[refit]), student),
            "concept": make_pool(x_after[stream], y_after[stream], updated_teacher, student),
            "concept, teacher frozen": make_pool(x_after[stream], y_after[stream], teacher, student),
            "benign": make_pool(benign[stream], y[stream], teacher, student),
        },
    )


def fit_teacher(inputs: Array, labels: Array) -> Any:
    """Fit a boosted teacher; return its function from inputs to probabilities."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(max_iter=80, random_state=0).fit(inputs, labels).predict_proba


def fit_student(inputs: Array, teacher: Any, labels_per_row: int = 5) -> Any:
    """Fit a student with sixteen hidden units; return its function from inputs to probabilities.

    It learns from ``labels_per_row`` labels per row, drawn from the teacher's probabilities: the expected loss is the
    cross-entropy to the teacher's probabilities.
    """
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    generator = np.random.default_rng(62)
    cumulated = np.cumsum(teacher(inputs), axis=1)
    labels = (generator.random((labels_per_row, len(inputs), 1)) * cumulated[:, -1:] > cumulated).sum(axis=2)
    network = MLPClassifier(hidden_layer_sizes=(16,), early_stopping=True, max_iter=60, random_state=0)
    student = make_pipeline(StandardScaler(), network).fit(np.tile(inputs, (labels_per_row, 1)), labels.ravel())
    return student.predict_proba


def hard_region(inputs: Array, is_error: Array) -> Any:
    """A function that selects the rows in the tree leaf with the highest error; a leaf has 10 % of the rows or more."""
    from sklearn.tree import DecisionTreeRegressor

    tree = DecisionTreeRegressor(min_samples_leaf=0.1, random_state=0).fit(inputs, is_error)
    worst = tree.predict(inputs).max()
    return lambda rows: tree.predict(rows) == worst


def make_pool(inputs: Array, labels: Array, teacher: Any, student: Any) -> Pool:
    """Disagreement of teacher and student and errors of the student, per row."""
    p, q = teacher(inputs), student(inputs)
    return Pool(
        streams={
            "disagreement": total_variation(p, q),
            "switched": (p.argmax(axis=1) != q.argmax(axis=1)).astype(np.float64),
            "error": (q.argmax(axis=1) != labels).astype(np.float64),
            "brier": half_brier(q, labels),
        },
        scores=audit.audit_scores(q),
        inputs=inputs,
    )


# --------------------------------------------------------------------------- ours


@dataclass(frozen=True)
class Method:
    """One configuration of our evidence process: loss, sampling of audited rows, and units per look."""

    name: str
    process: Process
    uniform_share: float = 1.0
    one_unit: bool = False
    run_share: float = 1.0
    """Share of the runs that are made."""
    tolerance: float = WATCH.tolerance


PROCESSES: tuple[Process, Process] = ("disagreement", "brier")
OURS = ("ours, disagreement", "ours, outcomes")


def names_with_tolerance(tolerance: float) -> tuple[str, str]:
    """Names of our two processes under a tolerance other than the default."""
    return (f"{OURS[0]}, tolerance {tolerance:g}", f"{OURS[1]}, tolerance {tolerance:g}")


METHODS: tuple[Method, ...] = (
    Method(OURS[0], "disagreement", WATCH.audit.uniform_share),
    Method(OURS[1], "brier"),
    Method("ours, disagreement, uniform audit", "disagreement", run_share=0.25),
    Method("ours, disagreement, a look is one unit", "disagreement", WATCH.audit.uniform_share, True, run_share=0.25),
    *(
        Method(name, process, share, run_share=0.5, tolerance=tolerance)
        for tolerance in (0.005, 0.01, 0.02)
        if tolerance != WATCH.tolerance
        for name, process, share in zip(
            names_with_tolerance(tolerance), PROCESSES, (WATCH.audit.uniform_share, 1.0), strict=True
        )
    ),
)


def measure_ours(world: World, size: Size) -> Iterator[dict[str, Any]]:
    """Null alarms and delays of each of our methods."""
    for number, method in enumerate(METHODS):
        nulls = null_means(world, method, math.ceil(method.run_share * size.runs), seed=[number, 1])
        warm, false = run_evidence(world, method, ("before", 0.0), nulls, size.warm_looks, seed=[number, 2])
        delays = {}
        for situation, share in (*SCENARIOS, ("benign", 1.0)):
            _, first = run_evidence(
                world, method, (situation, share), nulls, size.horizon, seed=[number, 3], state=warm
            )
            delays[f"{situation} {share:g}"] = np.where(false <= size.warm_looks, 0, first).tolist()
        runs = math.ceil(method.run_share * size.null_runs)
        nulls = null_means(world, method, runs, seed=[number, 4])
        _, first = run_evidence(world, method, ("before", 0.0), nulls, size.null_looks, seed=[number, 5])
        yield {
            "world": world.name,
            "method": method.name,
            "stream": method.process,
            "kind": "default",
            "setting": RUN_LENGTH,
            "null_runs": runs,
            "null_alarms": int((first <= size.null_looks).sum()),
            "delays": delays,
            "null_mean": float(np.median(nulls)),
        }


def null_means(world: World, method: Method, runs: int, seed: Sequence[int]) -> Array:
    """The null mean of each run, from a baseline of 5,000 held-out rows over seven weeks."""
    generator = np.random.default_rng([71, *seed])
    values = world.pools["before"].streams[method.process]
    observed_at = np.arange(5000) * (7 * 7 * 24 * HOUR_NS // 5000)
    nulls = []
    for _ in range(runs):
        losses = values[generator.integers(0, len(values), len(observed_at))]
        baseline = estimate_loss_baseline(losses, observed_at, timedelta(0), timedelta(days=7))
        nulls.append(evidence.estimate_null_mean(baseline, method.tolerance))
    return np.array(nulls)


def run_evidence(
    world: World,
    method: Method,
    scenario: tuple[str, float],
    nulls: Array,
    looks: int,
    seed: Sequence[int],
    state: Array | None = None,
    block: int = 25,
) -> tuple[Array, Array]:
    """Advance many runs at once, one per null mean.

    The same as :func:`stillhouse.drift.evidence.advance` for each run, but vectorised.

    :return: log bets ``[runs, B]`` after the last look, and the look of the first alarm, from 1; ``looks + 1``: none.
        The loop ends early once all runs have alarmed.
    """
    generator = np.random.default_rng([73, *seed])
    threshold = np.log(RUN_LENGTH)
    log_bets = np.full((len(nulls), evidence.BET_COUNT), evidence.LOG_OF_ZERO) if state is None else state
    first = np.full(len(nulls), looks + 1)
    for start in range(0, looks, block):
        units = draw_units(world, method, scenario, (len(nulls), min(block, looks - start)), generator)
        for number in range(units.shape[1]):
            log_bets = evidence.accumulate(log_bets, units[:, number], nulls)
            log_evidence = np.logaddexp.reduce(log_bets, axis=1) - np.log(evidence.BET_COUNT)
            first = np.where((log_evidence >= threshold) & (first > looks), start + number + 1, first)
        if (first <= looks).all():
            break
    return log_bets, first


def draw_units(
    world: World, method: Method, scenario: tuple[str, float], shape: tuple[int, int], generator: np.random.Generator
) -> Array:
    """Units of evidence ``[runs, looks, U]``: 200 rows per look are drawn from the pools, 50 of them are audited.

    The rows are in random order, so consecutive rows form random cells: one plan with a stratum per cell draws for all
    runs and looks at once, with the same distribution as one plan per look.
    """
    draws = WATCH.audit.rows
    if method.uniform_share == 1.0:  # any 50 of the rows, equally weighted
        units = draw_scenario_rows(world, method.process, scenario, (*shape, draws), generator)[0]
    else:
        losses, scores = draw_scenario_rows(world, method.process, scenario, (*shape, PER_LOOK), generator)
        cells = np.arange(losses.size) // (PER_LOOK // draws)
        plan = audit.draw_rows(
            scores.ravel(), cells, cells[-1] + 1, method.uniform_share, int(generator.integers(2**62))
        )
        units = audit.cluster_means(plan, losses.ravel()[plan.rows]).reshape(*shape, draws)
    return units.mean(axis=2, keepdims=True) if method.one_unit else units


def draw_scenario_rows(
    world: World, stream: str, scenario: tuple[str, float], shape: tuple[int, ...], generator: np.random.Generator
) -> tuple[Array, Array]:
    """Losses and audit scores of random rows: the scenario's share from its pool, the rest from the pool ``before``."""
    situation, share = scenario
    before, after = world.pools["before"], world.pools[situation]
    chosen = generator.integers(0, len(before.scores), shape)
    losses, scores = before.streams[stream][chosen], before.scores[chosen]
    if share:
        moved = generator.random(shape) < share
        chosen = generator.integers(0, len(after.scores), int(moved.sum()))
        losses[moved], scores[moved] = after.streams[stream][chosen], after.scores[chosen]
    return losses, scores


# --------------------------------------------------------------------------- peers


def start_peers(folder: Path, worlds: Sequence[World], size: Size) -> dict[str, subprocess.Popen[bytes]]:
    """Start river's and frouros's detectors, each library in its own environment; they run beside our methods."""
    pools, job = folder / "pools.npz", folder / "job.json"
    np.savez(
        pools,
        **{
            f"{world.name}|{situation}|{stream}": values.astype(np.float32)
            for world in worlds
            for situation, pool in world.pools.items()
            for stream, values in pool.streams.items()
        },
    )
    job.write_text(
        json.dumps(
            {
                "worlds": [world.name for world in worlds],
                "scenarios": [*SCENARIOS, ("benign", 1.0)],
                "per_look": WATCH.audit.rows,
                "warm_looks": size.warm_looks,
                "horizon": size.horizon,
                "runs": size.runs,
                "null_looks": size.null_looks,
                "null_runs": size.peer_null_runs,
                "calibration_runs": size.calibration_runs,
                "seeds": {"calibrate": 81, "null": 82, "measure": 83},
            }
        )
    )
    processes = {}
    for name, requirements in (("river", RIVER), ("frouros", FROUROS)):
        out = folder / f"{name}.json"
        command = [
            str(argument) for argument in (peer(name, requirements), SCRIPTS / "detectors.py", name, pools, job, out)
        ]
        processes[name] = subprocess.Popen(command)
    return processes


def wait_for_peer(folder: Path, name: str, process: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
    """Wait for a peer and read its results.

    :raises SystemExit: if it failed; its own error message is printed above.
    """
    if process.wait():
        raise SystemExit(f"the peer {name} failed")
    results: list[dict[str, Any]] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return results


def measure_label_free(folder: Path, worlds: Sequence[World], size: Size) -> list[dict[str, Any]]:
    """Run evidently's and frouros's tests of the inputs, which use no loss; return their alarms per look."""
    inputs, job = folder / "inputs.npz", folder / "columns.json"
    generator = np.random.default_rng(91)
    arrays = {}
    for world in worlds:
        before = world.pools["before"].inputs
        arrays[f"{world.name}|reference"] = before[generator.integers(0, len(before), 2000)]
        for situation, pool in world.pools.items():
            arrays[f"{world.name}|{situation}"] = pool.inputs
    np.savez(inputs, **arrays)
    scenarios = [("before", 0.0), ("benign", 1.0), *((kind, 1.0) for kind in ("covariate", "label", "concept"))]
    job.write_text(
        json.dumps(
            {
                "worlds": [world.name for world in worlds],
                "column_scenarios": scenarios,
                "rows_per_look": PER_LOOK,
                "column_looks": size.column_looks,
                "check": 2,
            }
        )
    )
    results = []
    for name, python in (("evidently", peer("evidently_detection", EVIDENTLY)), ("frouros", peer("frouros", FROUROS))):
        out = folder / f"{name}_columns.json"
        subprocess.run([python, "-W", "ignore", SCRIPTS / "columns.py", name, inputs, job, out], check=True)
        results += json.loads(out.read_text())
    return results


# --------------------------------------------------------------------------- goals


def make_goals(
    worlds: Sequence[World],
    ours: Sequence[Mapping[str, Any]],
    peers: Sequence[Mapping[str, Any]],
    by_columns: Sequence[Mapping[str, Any]],
    size: Size,
) -> tuple[list[Goal], dict[str, Any]]:
    """The goals and their detail."""
    scenarios, goals = compare_with_peers(worlds, ours, peers, size, OURS)
    counted = [result for result in scenarios if result["counted"]]
    detail = {
        "sizes": vars(size) | {"rows_per_look": PER_LOOK, "audited_per_look": WATCH.audit.rows},
        "peers": [*RIVER, *FROUROS, *EVIDENTLY],
        "notes": {
            "delays": "looks from the change to the first alarm, 1 is the best; horizon + 1: never; "
            "runs with an alarm before the change are left out of the quartiles and counted as `false`",
            "counted": f"the student's error rises by {MIN_ERROR_RISE} or more, and somebody finds it",
            "false_alarms_10k_looks, alarms_on_benign_shift": "of either process, disagreement or outcomes, "
            "on average over the worlds; lowest and highest of a world",
        },
        "scenarios": scenarios,
        "slower_than_the_best_peer": [describe(result) for result in counted if result["ratio"] > 1],
        "slower_than_the_best_peer_told_our_losses": [
            describe(result) for result in counted if result["ratio_same_losses"] > 1
        ],
        "methods": [summarize(result, size) for result in (*ours, *peers)],
        "other_tolerances": {
            f"{tolerance:g}": {
                goal.name: [goal.measured, goal.low, goal.high]
                for goal in compare_with_peers(worlds, ours, peers, size, names_with_tolerance(tolerance))[1]
            }
            for tolerance in sorted({method.tolerance for method in METHODS} - {WATCH.tolerance})
        },
        "inputs_only": list(by_columns),
    }
    return goals, detail


def compare_with_peers(
    worlds: Sequence[World],
    ours: Sequence[Mapping[str, Any]],
    peers: Sequence[Mapping[str, Any]],
    size: Size,
    names: tuple[str, str],
) -> tuple[list[dict[str, Any]], list[Goal]]:
    """Compare every scenario and compute the goals, for our two processes with these ``names``."""
    scenarios = [
        compare_scenario(world, situation, share, ours, peers, size, names)
        for world in worlds
        for situation, share in SCENARIOS
    ]
    counted = [result for result in scenarios if result["counted"]]
    both = [
        [result for result in ours if result["world"] == world.name and result["method"] in names] for world in worlds
    ]
    false = [sum(result["null_alarms"] / result["null_runs"] for result in pair) for pair in both]
    benign = [sum(detection_share(result["delays"]["benign 1"], size) for result in pair) for pair in both]
    return scenarios, [
        Goal("false_alarms_10k_looks", 0.01, "lower", statistics.mean(false), min(false), max(false)),
        ratio_goal("delay_vs_best_calibrated_peer", 0.5, [result["ratio"] for result in counted]),
        ratio_goal("delay_vs_best_peer_told_our_losses", 1.0, [result["ratio_same_losses"] for result in counted]),
        Goal("alarms_on_benign_shift", 0.02, "lower", statistics.mean(benign), min(benign), max(benign)),
    ]


def compare_scenario(
    world: World,
    situation: str,
    share: float,
    ours: Sequence[Mapping[str, Any]],
    peers: Sequence[Mapping[str, Any]],
    size: Size,
    names: tuple[str, str],
) -> dict[str, Any]:
    """Our median delay, and those of the fastest calibrated peers that get the errors or our losses."""
    scenario, frozen = f"{situation} {share:g}", situation == "concept, teacher frozen"
    process: Process = "brier" if frozen else "disagreement"
    method = names[frozen]
    before, after = world.pools["before"].streams, world.pools[situation].streams

    def fastest(stream: str) -> tuple[float, str]:
        return min(
            (median_delay(result["delays"][scenario], size), result["method"])
            for result in peers
            if result["world"] == world.name and result["kind"] == "calibrated" and result["stream"] == stream
        )

    our_result = next(result for result in ours if result["world"] == world.name and result["method"] == method)
    delay = median_delay(our_result["delays"][scenario], size)
    best_peer, best_peer_same_losses = fastest("error"), fastest(process)
    rise = {
        stream: round(share * float(after[stream].mean() - before[stream].mean()), 4) for stream in ("error", process)
    }
    return {
        "world": world.name,
        "scenario": scenario,
        "rise": rise,
        "method": method,
        "delay": delay,
        "best_peer": best_peer,
        "best_peer_told_our_losses": best_peer_same_losses,
        "ratio": delay / best_peer[0],
        "ratio_same_losses": delay / best_peer_same_losses[0],
        "counted": rise["error"] >= MIN_ERROR_RISE
        and min(delay, best_peer[0], best_peer_same_losses[0]) <= size.horizon,
    }


def ratio_goal(name: str, aim: float, ratios: Sequence[float]) -> Goal:
    """Median and range over the scenarios."""
    return Goal(name, aim, "lower", statistics.median(ratios), min(ratios), max(ratios))


def describe(scenario: Mapping[str, Any]) -> str:
    """A scenario in words, with both delays."""
    return (
        f"{scenario['world']}, {scenario['scenario']}: {scenario['delay']:g} looks; errors "
        f"{scenario['best_peer'][0]:g} ({scenario['best_peer'][1]}); our losses "
        f"{scenario['best_peer_told_our_losses'][0]:g} ({scenario['best_peer_told_our_losses'][1]})"
    )


def summarize(result: Mapping[str, Any], size: Size) -> dict[str, Any]:
    """One method in one world, with the delays summarized as quartiles and shares."""
    fields = {key: value for key, value in result.items() if key != "delays"}
    return fields | {
        "delays": {name: format_quartiles(quartiles(delays, size)) for name, delays in result["delays"].items()}
    }


def format_quartiles(summary: Mapping[str, float]) -> str:
    """Quartiles and shares on one line."""
    return "{q25:g} / {median:g} / {q75:g} looks, found {found:.3g}, false {false:.3g}".format(**summary)


def quartiles(delays: Sequence[int], size: Size) -> dict[str, float]:
    """Quartiles of the delay, share of runs that detect the change, and share of runs with an earlier alarm."""
    valid = [delay for delay in delays if delay] or [size.horizon + 1]
    low, middle, high = (float(q) for q in np.quantile(valid, [0.25, 0.5, 0.75]))
    false = 1 - sum(delay > 0 for delay in delays) / len(delays)
    return {"q25": low, "median": middle, "q75": high, "found": detection_share(valid, size), "false": round(false, 4)}


def median_delay(delays: Sequence[int], size: Size) -> float:
    """Median delay in looks; ``horizon + 1`` if most runs do not detect the change."""
    return quartiles(delays, size)["median"]


def detection_share(delays: Sequence[int], size: Size) -> float:
    """Share of runs with an alarm after the change and within the horizon."""
    return sum(0 < delay <= size.horizon for delay in delays) / len(delays)


if __name__ == "__main__":
    main()
