"""Compression by search on real bytes and measured milliseconds, compared with quantisers of other projects.

``python -m benchmarks.compression`` takes about an hour and a half on two cores, and the first time some minutes more
for the students and the peers' environments. ``--quick`` takes under a minute: a small encoder, ONNX Runtime's
quantiser alone, no file written. A killed search resumes; the result of a finished student is cached, and measured
again with ``--again``.

There are three students (:mod:`benchmarks.compression_data`): MiniLM fine-tuned on CLINC150, the student of the flights
agent, and a convolutional network for small images. The peers (:mod:`benchmarks.compression_peers`) quantise each at
their defaults and at the best setting that they document, with calibration rows from the same training rows. Our side
is :func:`stillhouse.compress.search.greedy.search` with a budget of an eighth of the bytes. It chooses on validation
rows, which the peers' accuracy-aware modes get too. All models are scored on test rows that no choice used.

Bytes are those of the model file, on both sides. Latencies are for one row on one thread; all models of a student take
turns in one process, several times. torch's int8 models run only in torch: they are measured in a separate process
together with the float32 student, and stated as a multiple of it.

A peer's point is dominated if one point of our frontier is at least as good in test quality, bytes and median latency
at once. The hypervolume is the share of a cube that a set of points dominates
(:func:`stillhouse.compress.search.pareto.normalized_scores`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.compression_data import WORLDS, World, quality, quick_encoder
from benchmarks.compression_peers import PEERS, points, write_world
from benchmarks.compression_peers.saturating import quantize_all, saturates
from benchmarks.distillation_data import CACHE, Array
from benchmarks.report import Goal, begin
from stillhouse.compress.build import BuiltModel
from stillhouse.compress.export import export_onnx, run_onnx
from stillhouse.compress.saturation import find_saturating_layers
from stillhouse.compress.search.candidates import single_row_call
from stillhouse.compress.search.greedy import search
from stillhouse.compress.search.pareto import choose_candidate, hypervolume, normalized_scores
from stillhouse.compress.statistics import sample_evenly
from stillhouse.compress.target import Columns, CompressionTarget, Feed, ModelState
from stillhouse.config import Compression, Search
from stillhouse.distill.train import distil
from stillhouse.evaluate import scorecard
from stillhouse.latency import measure_latency
from stillhouse.records import CompressionCandidate, Frontier, Latency, SizeLimits

CLAIM = (
    "a search over structure and number formats, with recovery by distillation, reaches better trade-offs of quality, "
    "size and latency than quantisers alone, and equals or beats nearly all of their models"
)
ROUNDS = 5  # of latency measurements; the result has their range
CALIBRATION_ROWS = 256  # the peers get twice as many
GOAL_MAX_LOSS = 0.01  # allowed loss of test quality
# Allowed losses of validation quality, with a reserve: the best of many models looks too good on few rows. The search
# continues from models within half a point; of all models the smallest within six tenths of a point is chosen.
STEP_MAX_LOSS, CHOICE_MAX_LOSS = 0.5 * GOAL_MAX_LOSS, 0.6 * GOAL_MAX_LOSS
SEARCHES = {
    "encoder": Search(time="60m", candidates=60, patience=None, recover_epochs=1),
    "flights": Search(time="4m", candidates=60, patience=None, recover_epochs=2),
    "digits": Search(time="4m", candidates=60, patience=None, recover_epochs=10),
    "quick_encoder": Search(time="20s", candidates=12, patience=None, recover_epochs=2),
}


@dataclass(frozen=True)
class Point:
    """One model of one student, scored on test rows.

    :param p50_ms: median latency of each round.
    """

    name: str
    side: str  # "ours", "float32", or the peer's name
    quality: float
    bytes: int
    p50_ms: tuple[float, ...]
    p95_ms: tuple[float, ...]
    setting: str = ""
    error: str = ""

    @property
    def p50(self) -> float:
        return statistics.median(self.p50_ms)


def main() -> None:
    """Search, run the peers, measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small encoder and one peer, no file written")
    parser.add_argument("--worlds", nargs="+", choices=list(WORLDS), default=list(WORLDS), help="only these students")
    parser.add_argument("--again", action="store_true", help="measure students again that have a cached result")
    options = parser.parse_args()
    writes_result = not options.quick and set(options.worlds) == set(WORLDS)
    run = begin("compression", writes_result=writes_result)
    if options.quick:
        with tempfile.TemporaryDirectory() as folder:
            results = {"quick_encoder": play(quick_encoder(), Path(folder), ["onnxruntime"])}
    else:
        results = {name: cached_result(name, options.again) for name in options.worlds}
    for name, result in results.items():
        print_points(name, result)
    goals = goals_of(results)
    if not writes_result:
        print(json.dumps({goal.name: goal.measured for goal in goals}))
    else:
        run.write(CLAIM, goals, {"worlds": results}, ("torch", "onnxruntime", "onnx", "torch-pruning"))


def cached_result(name: str, again: bool) -> dict[str, Any]:
    """The result of one student, cached in a file."""
    folder = CACHE / "compression" / "search" / name
    file = folder / "result.json"
    if again or not file.exists():
        played = play(WORLDS[name](), folder, list(PEERS))
        file.write_text(json.dumps(played), encoding="utf-8")
    result: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return result


def play(world: World, folder: Path, peers: Sequence[str]) -> dict[str, Any]:
    """Search, run the peers and measure all models of one student."""
    world_folder = write_world(world, folder / "given")
    start = time.perf_counter()

    def print_candidate(candidate: CompressionCandidate) -> None:
        print(f"{world.name} {time.perf_counter() - start:6.0f} s  {candidate}", flush=True)

    frontier = search(
        partial(make_target, world),
        Compression(search=SEARCHES[world.name]),
        size_limits(world_folder, STEP_MAX_LOSS),
        write_model,
        folder / "ours",
        on_candidate=print_candidate,
    )
    chosen, is_within_limits, reason = choose_candidate(
        frontier.candidates, frontier.reference, size_limits(world_folder, CHOICE_MAX_LOSS)
    )
    frontier = frontier.model_copy(update={"chosen": chosen.name, "fits": is_within_limits, "why": reason})
    seconds = time.perf_counter() - start
    reference, ours, theirs = measure_points(world, frontier, points(world_folder, peers), world_folder)
    all_points = [reference, *ours, *theirs]
    return {
        "search": {
            "seconds": seconds,
            "candidates": len(frontier.candidates),
            "stopped": frontier.stopped,
            "chosen": frontier.chosen,
            "why": frontier.why,
            "refused": {candidate.name: candidate.refused for candidate in frontier.candidates if candidate.refused},
        },
        "points": [as_row(point, reference) for point in all_points],
        "chosen": as_row(next(point for point in ours if point.name == frontier.chosen), reference),
        "steps": step_contributions(world, frontier),
        "dominated": {point.name: is_dominated(point, ours) for point in theirs if not point.error},
        "hypervolume": {
            side: hypervolume_of([point for point in all_points if point.side == side and not point.error], reference)
            for side in dict.fromkeys(point.side for point in all_points)
        },
        "saturation": check_saturation(world, world_folder),
    }


# --------------------------------------------------------------------------- ours


def make_target(world: World) -> CompressionTarget:
    """The student as a compression target."""

    def feed(split: str) -> Callable[[Columns | None], Feed]:
        return lambda columns: {"x": world.encode(split, columns)}

    def recover(state: ModelState, epochs: int) -> ModelState:
        distil(state.module, world.training_set(state.columns), world.settings, epochs=epochs)
        return state

    return CompressionTarget(
        model=export_onnx(world.student, {"x": world.encode("learned")[:64]}),
        calibration=lambda columns: sample_evenly(feed("learned")(columns), CALIBRATION_ROWS),
        validation=feed("validation"),
        quality=lambda probs: quality(world, probs, "validation"),
        state=ModelState(world.student, world.columns),
        recover=recover,
        content_hash=world.settings.model_dump_json(),
    )


def size_limits(world_folder: Path, loss: float) -> SizeLimits:
    """Limits: an eighth of the float32 bytes, and a loss on validation rows."""
    return SizeLimits(max_bytes=(world_folder / "model.onnx").stat().st_size // 8, max_quality_loss=loss)


def write_model(folder: Path, model: onnx.ModelProto, built: BuiltModel) -> None:
    """Write only the model file, as for the peers."""
    (folder / "model.onnx").write_bytes(model.SerializeToString())


# --------------------------------------------------------------------------- measuring


def measure_points(
    world: World, frontier: Frontier, peer_points: Sequence[Mapping[str, Any]], world_folder: Path
) -> tuple[Point, list[Point], list[Point]]:
    """Measure float32, our models and the peers' on the same rows, in turn."""
    our_candidates = [frontier.named(name) for name in dict.fromkeys([*frontier.best, frontier.chosen])]
    models = {("float32", "float32"): world_folder / "model.onnx"}
    models |= {("ours", candidate.name): Path(candidate.folder) / "model.onnx" for candidate in our_candidates}
    models |= {
        (str(candidate["peer"]), str(candidate["point"])): Path(candidate["file"])
        for candidate in peer_points
        if "file" in candidate
    }
    columns = {candidate.name: read_columns(candidate) for candidate in our_candidates}
    feeds = {key: {"x": world.encode("test", columns.get(key[1]))} for key in models}
    calls = {key: single_row_call(onnx.load(path), feeds[key]) for key, path in models.items()}
    rounds = [measure_latency({str(key): call for key, call in calls.items()}, calls=100) for _ in range(ROUNDS)]
    settings = {str(candidate["point"]): str(candidate["setting"]) for candidate in peer_points}
    points_by_key = {
        key: Point(
            key[1],
            key[0],
            quality(world, run_onnx(path.read_bytes(), feeds[key]), "test"),
            path.stat().st_size,
            *latencies_of([candidate[str(key)] for candidate in rounds]),
            setting=settings.get(key[1], ""),
        )
        for key, path in models.items()
    }
    reference = points_by_key.pop(("float32", "float32"))
    ours = [point for key, point in points_by_key.items() if key[0] == "ours"]
    theirs = [point for key, point in points_by_key.items() if key[0] != "ours"]
    float32_probs = run_onnx((world_folder / "model.onnx").read_bytes(), {"x": world.encode("test")})
    theirs += [
        point_from_peer(world, candidate, reference, float32_probs)
        for candidate in peer_points
        if "file" not in candidate
    ]
    return reference, ours, theirs


def read_columns(candidate: CompressionCandidate) -> Columns | None:
    """The columns that a candidate reads, from the search's folder."""
    columns: Columns | None = json.loads((Path(candidate.folder).parent / "columns.json").read_text(encoding="utf-8"))
    return columns


def latencies_of(rounds: Sequence[Latency]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(latency.p50_ms for latency in rounds), tuple(latency.p95_ms for latency in rounds)


def point_from_peer(world: World, point: Mapping[str, Any], reference: Point, float32_probs: Array) -> Point:
    """A point that a peer measured in its own process, relative to float32 there; or a failed one.

    Some are scored on a part of the test rows: their loss against float32 (``float32_probs``) on that part counts.
    """
    shared = {"name": str(point["point"]), "side": str(point["peer"]), "setting": str(point["setting"])}
    if "error" in point:
        return Point(**shared, quality=0.0, bytes=0, p50_ms=(), p95_ms=(), error=str(point["error"])[-300:])
    with np.load(point["probabilities"]) as stored:
        probs, rows = stored["test"], stored["rows"]
    labels = world.labels["test"][rows]
    loss = scorecard.measure_quality(float32_probs[rows], labels).score - scorecard.measure_quality(probs, labels).score
    slowdown = point["p50_ms"] / point["fp32_p50_ms"], point["p95_ms"] / point["fp32_p95_ms"]
    return Point(
        **shared,
        quality=reference.quality - loss,
        bytes=int(point["bytes"]),
        p50_ms=(slowdown[0] * reference.p50,),
        p95_ms=(slowdown[1] * statistics.median(reference.p95_ms),),
    )


def is_dominated(point: Point, ours: Sequence[Point]) -> bool:
    """Whether one of our points is at least as good in all three figures and better in one."""
    return any(
        our_point.quality >= point.quality
        and our_point.bytes <= point.bytes
        and our_point.p50 <= point.p50
        and (our_point.quality, -our_point.bytes, -our_point.p50) != (point.quality, -point.bytes, -point.p50)
        for our_point in ours
    )


def hypervolume_of(some_points: Sequence[Point], reference: Point) -> float:
    """Hypervolume that the points dominate, relative to ``reference``."""
    reference_candidate = as_candidate(reference)
    return hypervolume(normalized_scores(as_candidate(point), reference_candidate) for point in some_points)


def as_candidate(point: Point) -> CompressionCandidate:
    latency = Latency(p50_ms=point.p50, p95_ms=statistics.median(point.p95_ms), calls=1)
    return CompressionCandidate(
        candidate_id="", name=point.name, recipe=(), bytes=point.bytes, quality=point.quality, latency=latency
    )


def as_row(point: Point, reference: Point) -> dict[str, Any]:
    """A point as in the result file, with its ratios to float32."""
    row: dict[str, Any] = {"point": point.name, "side": point.side, "setting": point.setting}
    if point.error:
        return row | {"error": point.error}
    ratios = [reference_ms / own_ms for reference_ms, own_ms in zip(reference.p50_ms, point.p50_ms, strict=False)]
    if len(point.p50_ms) == 1:
        ratios = [reference.p50 / point.p50]
    return row | {
        "quality": point.quality,
        "loss": reference.quality - point.quality,
        "bytes": point.bytes,
        "p50_ms": point.p50,
        "p95_ms": statistics.median(point.p95_ms),
        "bytes_ratio": reference.bytes / point.bytes,
        "p50_ratio": statistics.median(ratios),
        "p50_ratio_low": min(ratios),
        "p50_ratio_high": max(ratios),
    }


def step_contributions(world: World, frontier: Frontier) -> list[dict[str, Any]]:
    """Figures after each step of the chosen recipe, in order, on validation and test rows."""
    recipe = frontier.named(frontier.chosen).recipe
    by_recipe = {json.dumps(candidate.recipe): candidate for candidate in frontier.candidates}
    fp32_step = frontier.reference.recipe[0]
    prefixes = [recipe[:count] for count in range(len(recipe))]
    candidates = [
        frontier.named(frontier.chosen),
        *(by_recipe.get(json.dumps((*prefix, fp32_step))) for prefix in reversed(prefixes)),
    ]
    rows = []
    for candidate in reversed([candidate for candidate in candidates if candidate is not None and candidate.latency]):
        feed = {"x": world.encode("test", read_columns(candidate))}
        test = quality(world, run_onnx((Path(candidate.folder) / "model.onnx").read_bytes(), feed), "test")
        rows.append(
            {
                "candidate": candidate.name,
                "validation": candidate.quality,
                "test": test,
                "bytes": candidate.bytes,
                "p50_ms": candidate.latency.p50_ms if candidate.latency else None,
                "cpu_ms": candidate.cpu_ms,
            }
        )
    return rows


def check_saturation(world: World, world_folder: Path) -> dict[str, Any]:
    """ONNX Runtime's int8 configurations that compute wrongly here, and those that stillhouse reports."""
    model, rows = onnx.load(world_folder / "model.onnx"), np.load(world_folder / "calibration.npy")
    sample = rows[:64]
    wrong, reported, quantized_models = [], [], quantize_all(model, sample)
    for name, quantized in quantized_models.items():
        if saturates(quantized, sample):
            wrong.append(name)
        if find_saturating_layers(quantized, {"x": sample}):
            reported.append(name)
    return {"configurations": len(quantized_models), "wrong": wrong, "named": reported}


# --------------------------------------------------------------------------- goals


def goals_of(results: Mapping[str, Mapping[str, Any]]) -> list[Goal]:
    """The goals of the search."""
    dominated_flags = [configuration for result in results.values() for configuration in result["dominated"].values()]
    wrong = [
        (name, configuration) for name, result in results.items() for configuration in result["saturation"]["wrong"]
    ]
    reported = [
        (name, configuration) for name, result in results.items() for configuration in result["saturation"]["named"]
    ]
    share = statistics.fmean(dominated_flags)
    caught_share = len(set(wrong) & set(reported)) / len(wrong) if wrong else 1.0
    goals = [
        exact_goal("peer_points_dominated", 1.0, share),
        exact_goal("saturating_configurations_caught", 1.0, caught_share),
    ]
    if "encoder" in results:
        chosen = results["encoder"]["chosen"]
        ratio = (chosen["p50_ratio"], chosen["p50_ratio_low"], chosen["p50_ratio_high"])
        goals += [
            exact_goal("encoder_bytes_ratio", 8.0, chosen["bytes_ratio"]),
            Goal("encoder_p50_ratio", 5.0, "higher", *ratio),
            Goal("encoder_test_loss", GOAL_MAX_LOSS, "lower", *[chosen["loss"]] * 3),
        ]
    for name, result in results.items():
        ours = result["hypervolume"]["ours"]
        best = max(hypervolume_of for side, hypervolume_of in result["hypervolume"].items() if side != "ours")
        goals.append(exact_goal(f"{name}_hypervolume_ratio", 1.0, ours / best))
    return goals


def exact_goal(name: str, goal: float, measured: float) -> Goal:
    return Goal(name, goal, "higher", measured, measured, measured)


def print_points(name: str, result: Mapping[str, Any]) -> None:
    """Print the points of one student."""
    table = Table("point", "side", "quality", "loss", "bytes", "ratio", "p50 (ms)", "ratio", "", title=name)
    for row in result["points"]:
        if "error" in row:
            table.add_row(row["point"], row["side"], *[""] * 6, f"[red]{row['error'][:60]}[/red]")
            continue
        mark = "chosen" if row["point"] == result["search"]["chosen"] else ""
        if row["point"] in result["dominated"]:
            mark = "dominated" if result["dominated"][row["point"]] else "[yellow]not dominated[/yellow]"
        table.add_row(
            row["point"],
            row["side"],
            f"{row['quality']:.4f}",
            f"{row['loss']:+.4f}",
            f"{row['bytes']:,}",
            f"{row['bytes_ratio']:.1f}",
            f"{row['p50_ms']:.3f}",
            f"{row['p50_ratio']:.2f}",
            mark,
        )
    console = Console(width=170)
    console.print(table)
    console.print(f"{result['search']['why']} ({result['search']['seconds']:.0f} s, {result['search']['stopped']})")
    steps = Table("after", "validation", "test", "bytes", "p50 (ms)", title="what each step contributes")
    for row in result["steps"]:
        steps.add_row(
            row["candidate"],
            f"{row['validation']:.4f}",
            f"{row['test']:.4f}",
            f"{row['bytes']:,}",
            f"{row['p50_ms']:.3f}",
        )
    console.print(steps)
    volumes = ", ".join(f"{side} {value:.3f}" for side, value in result["hypervolume"].items())
    console.print(f"hypervolume: {volumes}")
    wrong, reported = result["saturation"]["wrong"], result["saturation"]["named"]
    console.print(
        f"{len(wrong)} of {result['saturation']['configurations']} int8 configurations compute wrongly here; "
        f"{len(set(wrong) & set(reported))} of them were named"
    )


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
