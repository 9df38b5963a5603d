"""Adaptive distillation with synthetic rows, compared with published losses with tuned settings.

``python -m benchmarks.distillation`` takes about fifteen minutes on two cores, and the first time some minutes more for
MiniLM's vectors and the peers' environments. ``--quick`` takes under one: two data sets, two seeds, no file written.

There are five real data sets of different kinds (:mod:`benchmarks.distillation_data`), each with a large teacher fitted
on other rows and a small student. Teacher probabilities are known for all rows, labels for a few. All students of a
seed start from the same weights and take the same number of steps (within half a pass) with the same optimiser,
schedule, batch size and averaged weights, on the same rows with the same teacher probabilities and labels. Only the
methods that say so also query the teacher about synthetic rows; ``asked`` in the result counts its answers.

hard
    labels only.
kd, dkd, standardised
    as published (:mod:`benchmarks.distillation_peers`), with the best of six settings each (temperature, weight of the
    labels): the one with the lowest log loss on validation rows under a seed of its own. ``kd`` and ``standardised``
    are checked against torchdistill's implementations, which has no decoupled distillation.
ours
    :func:`stillhouse.distill.comparisons.distil_with_best_rows` with controller and loss balancing, trained with and
    without the synthetic rows; it keeps the student with the lower validation loss. It starts from the best of six
    settings too, chosen in the same way, without controller and synthetic rows.
ours, made-up rows untried
    always with the synthetic rows.
ours, observed rows / ours, fixed / ours, two losses
    the same without synthetic rows; without the controller; with relational knowledge distillation beside Hinton's
    loss. The difference is the gain of the omitted part.
kd, made-up rows
    the tuned peer on our synthetic rows: the gain that any method gets from them.
ours, half the knowledge
    without synthetic rows, and with teacher probabilities of half of the rows without a label: a random half, or the
    rows where a student that learned from the labels is least sure (margin). The difference is the gain of the
    selection.

The score is the gate's: AUC for two actions, accuracy for more; log losses are given beside it. Intervals are of paired
differences over seeds (Student's t, 95 %). Replay buffers are measured by ``benchmarks.forgetting``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import nn

from benchmarks.distillation_data import WORLDS, Array, World
from benchmarks.distillation_peers import losses as published
from benchmarks.distillation_peers.training import train
from benchmarks.peers import peer
from benchmarks.report import Goal, begin
from stillhouse.distill.comparisons import distil_with_best_rows
from stillhouse.distill.train import distil, student_probabilities
from stillhouse.distill.training_set import TrainingSet
from stillhouse.evaluate.scorecard import measure_quality

CLAIM = (
    "on CLINC150 adaptive distillation closes most of the gap between training on labels alone and the teacher, and "
    "tuned plain distillation closes as much; on no data set is it worse beyond noise"
)
TEMPERATURES, WEIGHTS = (1.0, 2.0, 4.0), (0.1, 0.3)
OUR_WEIGHTS = (0.3, 0.6)  # of a row's label; our loss averages over all rows, so few labels need a larger weight
PEERS = ("kd", "dkd", "standardised")
TUNING_SEED = 1000
TORCHDISTILL = ("torchdistill==1.1.5", "torch==2.13.*")
SCRIPTS = Path(__file__).parent / "distillation_peers"

TrainMethod = Callable[[nn.Module], Any]


def main() -> None:
    """Train all students, measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two data sets, two seeds, no file written")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="number of parallel processes, one thread each")
    options = parser.parse_args()
    run = begin("distillation", writes_result=not options.quick)
    names = ["image_segments", "breast_cancer"] if options.quick else list(WORLDS)
    seeds = range(2 if options.quick else options.seeds)
    with get_context("spawn").Pool(options.processes) as pool:
        tuning = {name: pool.apply_async(tune, (name,)) for name in names}
        tuned, playing = {}, {}
        for name in reversed(names):  # CLINC150 takes longest and is tuned meanwhile
            tuned[name] = tuning[name].get()
            playing[name] = [pool.apply_async(run_methods, (name, seed, tuned[name])) for seed in seeds]
        results = {name: summarize(tuned[name], [job.get() for job in playing[name]]) for name in names}
    for name, result in results.items():
        show(name, result)
    goals = goals_of(results)
    if options.quick:
        print(json.dumps({goal.name: goal.measured for goal in goals}))
    else:
        detail = {"worlds": results, "torchdistill": measure_agreement()}
        run.write(CLAIM, goals, detail, ("torch", "scikit-learn", "lightgbm", "sentence-transformers"))


def run_methods(name: str, seed: int, tuned: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Train and score every method on one data set under one seed."""
    torch.set_num_threads(1)
    world = WORLDS[name](seed)
    scores = {"teacher": score(world.test.teacher_probs.double().numpy(), world.test)}
    result: dict[str, Any] = {"scores": scores, "log_losses": {}, "cpu_seconds": {}, "changes": []}
    for method, train_method in train_methods(world, seed, tuned):
        student, start = world.student(seed), time.process_time()
        history = train_method(student)
        result["cpu_seconds"][method] = time.process_time() - start
        probs = student_probabilities(student.eval(), world.test.x.numpy())
        scores[method] = score(probs, world.test)
        result["log_losses"][method] = measure_quality(probs, world.test.labels.numpy()).log_loss
        if method == "ours":
            result["changes"] = [change.model_dump() for change in history.changes]
    result["rows"] = {
        "learned_from": len(world.training_set),
        "outcomes_known": int(world.training_set.has_label.sum()),
        "held_out": len(world.validation),
        "judged_on": len(world.test),
        "steps": world.steps,
        "parameters": sum(parameter.numel() for parameter in world.student(0).parameters()),
    }
    result["asked"] = {
        "observed_rows": len(world.training_set) + len(world.validation),
        "made_up_rows": len(world.synthetic_rows),
    }
    return result


def summarize(tuned: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Summarize one data set over the seeds."""
    scores, log_losses, seconds = (
        {method: [result[what][method] for result in results] for method in results[0][what]}
        for what in ("scores", "log_losses", "cpu_seconds")
    )
    ours, ours_log = scores["ours"], log_losses["ours"]
    return {
        "rows": results[0]["rows"],
        "asked": results[0]["asked"],
        "scores": scores,
        "log_losses": log_losses,
        "ours_minus": {method: interval(np.subtract(ours, other)) for method, other in scores.items()},
        "ours_minus_in_log_loss": {
            method: interval(np.subtract(ours_log, other)) for method, other in log_losses.items()
        },
        "earned": {
            part: interval(np.subtract(scores[with_part], scores[without_part]))
            for part, (with_part, without_part) in PARTS.items()
        },
        "gap_closed": [
            (ours_score - hard) / (teacher - hard)
            for ours_score, hard, teacher in zip(ours, scores["hard"], scores["teacher"], strict=True)
        ],
        "cpu_seconds": {method: statistics.median(method_seconds) for method, method_seconds in seconds.items()},
        "tuned": tuned,
        "changes": [result["changes"] for result in results],
    }


PARTS = {
    "made_up_rows": ("ours", "ours, observed rows"),
    "trying_made_up_rows": ("ours", "ours, made-up rows untried"),
    "made_up_rows_for_kd": ("kd, made-up rows", "kd"),
    "controller": ("ours", "ours, fixed"),
    "second_loss": ("ours, two losses", "ours"),
    "selection": ("ours, half the knowledge, by margin", "ours, half the knowledge"),
}
"""By part of the method: the method with the part and the one without it; their difference is the gain."""


def train_methods(world: World, seed: int, tuned: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, TrainMethod]]:
    """Name and training function of each method."""
    observed, with_synthetic = world.training_set, world.training_set.append(world.synthetic_rows)

    def published_loss(loss: str, rows: TrainingSet, temperature: float, weight: float) -> TrainMethod:
        settings = world.settings(seed, rows)
        return lambda student: train(
            student, rows, settings, published.PUBLISHED[loss], temperature, weight, world.steps
        )

    temperature, weight = tuned["ours"]

    def ours(rows: TrainingSet, **changes: Any) -> TrainMethod:
        settings = world.settings(seed, rows, temperature=temperature, outcome_weight=weight, **changes)
        return lambda student: distil_with_best_rows(student, rows, settings, validation=world.validation)[0]

    yield "hard", published_loss("kd", observed.take(observed.has_label.nonzero()[:, 0]), 1.0, 1.0)
    for name in PEERS:
        yield name, published_loss(name, observed, *tuned[name])
    yield "kd, made-up rows", published_loss("kd", with_synthetic, *tuned["kd"])
    yield "ours", ours(with_synthetic)
    yield "ours, observed rows", ours(observed)
    yield (
        "ours, made-up rows untried",
        lambda student: distil(
            student,
            with_synthetic,
            world.settings(seed, with_synthetic, temperature=temperature, outcome_weight=weight),
            validation=world.validation,
        ),
    )
    yield "ours, fixed", ours(with_synthetic, controller="fixed")
    yield "ours, two losses", ours(with_synthetic, losses=[{"type": "hinton"}, {"type": "relational", "weight": 0.3}])
    for name, rows in half_training_sets(world, seed).items():
        yield name, ours(rows)


def half_training_sets(world: World, seed: int) -> dict[str, TrainingSet]:
    """Training sets of the labelled rows and half of the others: random, or with the smallest margins."""
    settings, student = world.settings(seed, world.training_set), world.student(seed)
    has_label = world.training_set.has_label
    unlabelled = (~has_label).nonzero()[:, 0]
    train(
        student,
        world.training_set.take(has_label.nonzero()[:, 0]),
        settings,
        published.PUBLISHED["kd"],
        1.0,
        1.0,
        world.steps,
    )
    with torch.no_grad():
        top_probs = torch.softmax(student(world.training_set.x[unlabelled]), dim=1).topk(2, dim=1).values
    random_order = torch.randperm(len(unlabelled), generator=torch.Generator().manual_seed(seed))
    training_sets = {}
    for name, order in (("", random_order), (", by margin", (top_probs[:, 0] - top_probs[:, 1]).argsort())):
        mask = has_label.clone()
        mask[unlabelled[order[: len(unlabelled) // 2]]] = True
        training_sets["ours, half the knowledge" + name] = world.training_set.take(mask.nonzero()[:, 0])
    return training_sets


def tune(name: str, names: Sequence[str] = (*PEERS, "ours")) -> dict[str, list[float]]:
    """Temperature and label weight of each method that give the lowest log loss on validation rows."""
    torch.set_num_threads(1)
    world = WORLDS[name](TUNING_SEED)
    best, settings, labels = {}, world.settings(TUNING_SEED, world.training_set), world.validation.labels.numpy()
    for name in names:
        log_losses = {}
        for pair in product(TEMPERATURES, OUR_WEIGHTS if name == "ours" else WEIGHTS):
            student = world.student(TUNING_SEED)
            if name == "ours":
                changes = {"temperature": pair[0], "outcome_weight": pair[1], "controller": "fixed"}
                distil(student, world.training_set, world.settings(TUNING_SEED, world.training_set, **changes))
            else:
                train(student, world.training_set, settings, published.PUBLISHED[name], *pair, world.steps)
            probs = student_probabilities(student.eval(), world.validation.x.numpy())
            log_losses[pair] = measure_quality(probs, labels).log_loss
        best[name] = list(min(log_losses, key=lambda pair: log_losses[pair]))
    return best


def score(probabilities: Array, rows: TrainingSet) -> float:
    """AUC for two actions, accuracy for more, as in the gate."""
    result = measure_quality(probabilities, rows.labels.numpy())
    return float(result.auc if probabilities.shape[1] == 2 and result.auc is not None else result.accuracy)


def interval(differences: Array) -> dict[str, float]:
    """Mean of paired differences and its 95 % interval."""
    mean, count = float(np.mean(differences)), len(differences)
    half = float(student_t.ppf(0.975, count - 1) * np.std(differences, ddof=1) / np.sqrt(count))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def measure_agreement() -> dict[str, float]:
    """Largest relative difference between our code of the published losses and torchdistill's, on random logits."""
    generator = np.random.default_rng(0)
    logits, teacher = (generator.normal(size=(256, 10)).astype(np.float32) * 3 for _ in range(2))
    labels = generator.integers(0, 10, 256)
    worst: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        arrays, out = Path(folder) / "in.npz", Path(folder) / "out.json"
        for temperature, weight in product(TEMPERATURES, WEIGHTS):
            np.savez(arrays, logits=logits, teacher=teacher, outcomes=labels, temperature=temperature, weight=weight)
            script = SCRIPTS / "with_torchdistill.py"
            subprocess.run([peer("torchdistill", TORCHDISTILL), script, arrays, out], check=True, capture_output=True)
            for name, peer_loss in json.loads(out.read_text(encoding="utf-8")).items():
                tensors = (torch.from_numpy(array) for array in (logits, teacher, labels))
                our_loss = float(published.PUBLISHED[name](*tensors, temperature, weight))
                worst[name] = max(worst.get(name, 0.0), abs(our_loss / peer_loss - 1))
    return worst


def show(name: str, result: Mapping[str, Any]) -> None:
    print(f"\n{name}: {result['rows']}, asked {result['asked']}, tuned {result['tuned']}")
    for method, scores in result["scores"].items():
        log_loss = format_interval(result["ours_minus_in_log_loss"][method]) if method != "teacher" else ""
        print(
            f"  {method:36} {statistics.mean(scores):.4f}   ours − it: {format_interval(result['ours_minus'][method])}"
            f"   log loss: {log_loss}"
        )
    print(f"  earned: { ({part: format_interval(gain) for part, gain in result['earned'].items()}) }")


def format_interval(difference: Mapping[str, float]) -> str:
    return f"{difference['mean']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})"


def goals_of(results: Mapping[str, Mapping[str, Any]]) -> list[Goal]:
    """The goals: two counts over the data sets, and the closed gap on CLINC150 over the seeds."""
    wins = sum(all(result["ours_minus"][peer]["mean"] > 0 for peer in PEERS) for result in results.values())
    wins_low = sum(all(result["ours_minus"][peer]["low"] > 0 for peer in PEERS) for result in results.values())
    wins_high = sum(all(result["ours_minus"][peer]["high"] > 0 for peer in PEERS) for result in results.values())
    losses_to_kd = sum(result["ours_minus"]["kd"]["high"] < 0 for result in results.values())
    goals = [
        Goal("wins_over_kd_dkd_std", 4, "higher", wins, wins_low, wins_high),
        Goal("data_sets_below_plain_kd", 0, "lower", losses_to_kd, losses_to_kd, losses_to_kd),
    ]
    if "clinc150" in results:
        closed = results["clinc150"]["gap_closed"]
        goals.append(Goal("gap_closed_text", 0.8, "higher", statistics.median(closed), min(closed), max(closed)))
    return goals


if __name__ == "__main__":
    main()
