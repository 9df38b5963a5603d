"""Adaptive distillation with synthetic rows, compared with published losses with tuned settings.

``python -m benchmarks.distillation`` takes about fifteen minutes on two cores, and the first time some minutes more
for MiniLM's vectors and the peers' environments. ``--quick`` takes under one: two data sets, two seeds, nothing
written.

There are five real data sets of different kinds (:mod:`benchmarks.distillation_data`), each with a large teacher
fitted on other rows and a small student. Teacher probabilities are known for all rows, labels for a few. All students
of a seed start from the same weights and take the same number of steps (within half a pass) with the same optimiser,
schedule, batch size and averaged weights, on the same rows with the same teacher probabilities and labels. Only the
methods that say so also query the teacher about synthetic rows; ``asked`` counts its answers.

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
    loss. The difference is the gain of that part.
kd, made-up rows
    the tuned peer on our synthetic rows: the part of our gain that any method gets from them.
ours, half the knowledge
    without synthetic rows, and with teacher probabilities of half of the rows without a label: a random half, or the
    rows where a student that learned from the labels is least sure (margin). The difference is the gain of the
    selection.

The score is the gate's: AUC for two actions, accuracy for more; log losses are given beside it. Intervals are of
paired differences over seeds (Student's t, 95 %). Replay buffers are not part of this: see ``benchmarks.forgetting``.
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
from stillhouse.evaluate.scorecard import quality

CLAIM = (
    "on CLINC150 adaptive distillation closes most of the gap between training on labels alone and the teacher, and "
    "tuned plain distillation closes as much; on no data set is it worse beyond noise"
)
TEMPERATURES, WEIGHTS = (1.0, 2.0, 4.0), (0.1, 0.3)
OUR_WEIGHTS = (0.3, 0.6)  # of a row's outcome: few outcomes pull less by as much
PEERS = ("kd", "dkd", "standardised")
TUNING_SEED = 1000
TORCHDISTILL = ("torchdistill==1.1.5", "torch==2.13.*")
SCRIPTS = Path(__file__).parent / "distillation_peers"

Learn = Callable[[nn.Module], Any]


def main() -> None:
    """Learn, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two data sets, two seeds, nothing written")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2, help="at a time, one thread each")
    asked = parser.parse_args()
    run = begin("distillation", recorded=not asked.quick)
    names = ["image_segments", "breast_cancer"] if asked.quick else list(WORLDS)
    seeds = range(2 if asked.quick else asked.seeds)
    with get_context("spawn").Pool(asked.processes) as pool:
        tuning = {name: pool.apply_async(tune, (name,)) for name in names}
        tuned, playing = {}, {}
        for name in reversed(names):  # sentences take longest: the others need not wait for them
            tuned[name] = tuning[name].get()
            playing[name] = [pool.apply_async(play, (name, seed, tuned[name])) for seed in seeds]
        found = {name: summary(tuned[name], [each.get() for each in playing[name]]) for name in names}
    for name, result in found.items():
        show(name, result)
    goals = goals_of(found)
    if asked.quick:
        print(json.dumps({goal.name: goal.measured for goal in goals}))
    else:
        detail = {"worlds": found, "torchdistill": agreement()}
        run.write(CLAIM, goals, detail, ("torch", "scikit-learn", "lightgbm", "sentence-transformers"))


def play(name: str, seed: int, tuned: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Every method on one data set under one seed."""
    torch.set_num_threads(1)
    world = WORLDS[name](seed)
    scores = {"teacher": score(world.test.teacher_probs.double().numpy(), world.test)}
    found: dict[str, Any] = {"scores": scores, "log_losses": {}, "cpu_seconds": {}, "changes": []}
    for method, learn in methods(world, seed, tuned):
        student, start = world.student(seed), time.process_time()
        course = learn(student)
        found["cpu_seconds"][method] = time.process_time() - start
        said = student_probabilities(student.eval(), world.test.x.numpy())
        scores[method] = score(said, world.test)
        found["log_losses"][method] = quality(said, world.test.labels.numpy()).log_loss
        if method == "ours":
            found["changes"] = [change.model_dump() for change in course.changes]
    found["rows"] = {
        "learned_from": len(world.lesson),
        "outcomes_known": int(world.lesson.has_label.sum()),
        "held_out": len(world.held_out),
        "judged_on": len(world.test),
        "steps": world.steps,
        "parameters": sum(parameter.numel() for parameter in world.student(0).parameters()),
    }
    found["asked"] = {"observed_rows": len(world.lesson) + len(world.held_out), "made_up_rows": len(world.made_up)}
    return found


def summary(tuned: Mapping[str, Any], played: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One data set over its seeds."""
    scores, log_losses, seconds = (
        {method: [result[what][method] for result in played] for method in played[0][what]}
        for what in ("scores", "log_losses", "cpu_seconds")
    )
    ours, ours_log = scores["ours"], log_losses["ours"]
    return {
        "rows": played[0]["rows"],
        "asked": played[0]["asked"],
        "scores": scores,
        "log_losses": log_losses,
        "ours_minus": {method: interval(np.subtract(ours, other)) for method, other in scores.items()},
        "ours_minus_in_log_loss": {
            method: interval(np.subtract(ours_log, other)) for method, other in log_losses.items()
        },
        "earned": {
            part: interval(np.subtract(scores[having], scores[lacking])) for part, (having, lacking) in PARTS.items()
        },
        "gap_closed": [
            (mine - hard) / (teacher - hard)
            for mine, hard, teacher in zip(ours, scores["hard"], scores["teacher"], strict=True)
        ],
        "cpu_seconds": {method: statistics.median(taken) for method, taken in seconds.items()},
        "tuned": tuned,
        "changes": [result["changes"] for result in played],
    }


PARTS = {
    "made_up_rows": ("ours", "ours, observed rows"),
    "trying_made_up_rows": ("ours", "ours, made-up rows untried"),
    "made_up_rows_for_kd": ("kd, made-up rows", "kd"),
    "controller": ("ours", "ours, fixed"),
    "second_loss": ("ours, two losses", "ours"),
    "selection": ("ours, half the knowledge, by margin", "ours, half the knowledge"),
}
"""What each part earns: the method that has it minus the one that lacks it."""


def methods(world: World, seed: int, tuned: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, Learn]]:
    """Name and training of each method."""
    observed, both = world.lesson, world.lesson.plus(world.made_up)

    def published_loss(loss: str, rows: TrainingSet, temperature: float, weight: float) -> Learn:
        settings = world.settings(seed, rows)
        return lambda student: train(
            student, rows, settings, published.PUBLISHED[loss], temperature, weight, world.steps
        )

    temperature, weight = tuned["ours"]

    def ours(rows: TrainingSet, **changed: Any) -> Learn:
        settings = world.settings(seed, rows, temperature=temperature, outcome_weight=weight, **changed)
        return lambda student: distil_with_best_rows(student, rows, settings, validation=world.held_out)[0]

    yield "hard", published_loss("kd", observed.take(observed.has_label.nonzero()[:, 0]), 1.0, 1.0)
    for name in PEERS:
        yield name, published_loss(name, observed, *tuned[name])
    yield "kd, made-up rows", published_loss("kd", both, *tuned["kd"])
    yield "ours", ours(both)
    yield "ours, observed rows", ours(observed)
    yield (
        "ours, made-up rows untried",
        lambda student: distil(
            student,
            both,
            world.settings(seed, both, temperature=temperature, outcome_weight=weight),
            validation=world.held_out,
        ),
    )
    yield "ours, fixed", ours(both, controller="fixed")
    yield "ours, two losses", ours(both, losses=[{"type": "hinton"}, {"type": "relational", "weight": 0.3}])
    for name, rows in halves(world, seed).items():
        yield name, ours(rows)


def halves(world: World, seed: int) -> dict[str, TrainingSet]:
    """Lessons of the rows with outcomes, and of half of the others: drawn, or with the smallest margin."""
    settings, student = world.settings(seed, world.lesson), world.student(seed)
    lived = world.lesson.has_label
    others = (~lived).nonzero()[:, 0]
    train(student, world.lesson.take(lived.nonzero()[:, 0]), settings, published.PUBLISHED["kd"], 1.0, 1.0, world.steps)
    with torch.no_grad():
        best = torch.softmax(student(world.lesson.x[others]), dim=1).topk(2, dim=1).values
    drawn = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
    found = {}
    for name, order in (("", drawn), (", by margin", (best[:, 0] - best[:, 1]).argsort())):
        chosen = lived.clone()
        chosen[others[order[: len(others) // 2]]] = True
        found["ours, half the knowledge" + name] = world.lesson.take(chosen.nonzero()[:, 0])
    return found


def tune(name: str, whom: Sequence[str] = (*PEERS, "ours")) -> dict[str, list[float]]:
    """Temperature and outcome weight of each: of least log loss on held-out rows."""
    torch.set_num_threads(1)
    world = WORLDS[name](TUNING_SEED)
    best, settings, outcomes = {}, world.settings(TUNING_SEED, world.lesson), world.held_out.labels.numpy()
    for name in whom:
        found = {}
        for pair in product(TEMPERATURES, OUR_WEIGHTS if name == "ours" else WEIGHTS):
            student = world.student(TUNING_SEED)
            if name == "ours":
                given = {"temperature": pair[0], "outcome_weight": pair[1], "controller": "fixed"}
                distil(student, world.lesson, world.settings(TUNING_SEED, world.lesson, **given))
            else:
                train(student, world.lesson, settings, published.PUBLISHED[name], *pair, world.steps)
            said = student_probabilities(student.eval(), world.held_out.x.numpy())
            found[pair] = quality(said, outcomes).log_loss
        best[name] = list(min(found, key=lambda pair: found[pair]))
    return best


def score(probabilities: Array, rows: TrainingSet) -> float:
    """The gate's measure."""
    found = quality(probabilities, rows.labels.numpy())
    return float(found.auc if probabilities.shape[1] == 2 and found.auc is not None else found.accuracy)


def interval(differences: Array) -> dict[str, float]:
    """Mean of paired differences and its 95 % interval."""
    mean, count = float(np.mean(differences)), len(differences)
    half = float(student_t.ppf(0.975, count - 1) * np.std(differences, ddof=1) / np.sqrt(count))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def agreement() -> dict[str, float]:
    """Largest relative difference of our peers' losses from torchdistill's on random logits."""
    generator = np.random.default_rng(0)
    logits, teacher = (generator.normal(size=(256, 10)).astype(np.float32) * 3 for _ in range(2))
    outcomes = generator.integers(0, 10, 256)
    worst: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder) / "in.npz", Path(folder) / "out.json"
        for temperature, weight in product(TEMPERATURES, WEIGHTS):
            np.savez(given, logits=logits, teacher=teacher, outcomes=outcomes, temperature=temperature, weight=weight)
            script = SCRIPTS / "with_torchdistill.py"
            subprocess.run([peer("torchdistill", TORCHDISTILL), script, given, out], check=True, capture_output=True)
            for name, theirs in json.loads(out.read_text(encoding="utf-8")).items():
                tensors = (torch.from_numpy(each) for each in (logits, teacher, outcomes))
                ours = float(published.PUBLISHED[name](*tensors, temperature, weight))
                worst[name] = max(worst.get(name, 0.0), abs(ours / theirs - 1))
    return worst


def show(name: str, result: Mapping[str, Any]) -> None:
    print(f"\n{name}: {result['rows']}, asked {result['asked']}, tuned {result['tuned']}")
    for method, scores in result["scores"].items():
        log_loss = shown(result["ours_minus_in_log_loss"][method]) if method != "teacher" else ""
        print(
            f"  {method:36} {statistics.mean(scores):.4f}   ours − it: {shown(result['ours_minus'][method])}"
            f"   log loss: {log_loss}"
        )
    print(f"  earned: { ({part: shown(gain) for part, gain in result['earned'].items()}) }")


def shown(difference: Mapping[str, float]) -> str:
    return f"{difference['mean']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})"


def goals_of(found: Mapping[str, Mapping[str, Any]]) -> list[Goal]:
    """What was to be reached; over data sets for the counts, over seeds for the text."""
    wins = sum(all(result["ours_minus"][peer]["mean"] > 0 for peer in PEERS) for result in found.values())
    sure = sum(all(result["ours_minus"][peer]["low"] > 0 for peer in PEERS) for result in found.values())
    perhaps = sum(all(result["ours_minus"][peer]["high"] > 0 for peer in PEERS) for result in found.values())
    below = sum(result["ours_minus"]["kd"]["high"] < 0 for result in found.values())
    goals = [
        Goal("wins_over_kd_dkd_std", 4, "higher", wins, sure, perhaps),
        Goal("data_sets_below_plain_kd", 0, "lower", below, below, below),
    ]
    if "clinc150" in found:
        closed = found["clinc150"]["gap_closed"]
        goals.append(Goal("gap_closed_text", 0.8, "higher", statistics.median(closed), min(closed), max(closed)))
    return goals


if __name__ == "__main__":
    main()
