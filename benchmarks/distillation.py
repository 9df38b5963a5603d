"""Distillation whose settings follow held-out outcomes, beside distillation with settings that were tuned.

``python -m benchmarks.distillation`` takes about ten minutes on two cores; ``--quick`` under one, two data sets and
two seeds, and writes nothing.

Five real data sets, on each a large teacher and a small student. All students of a seed start from the same weights,
take the same steps on the same rows with the same knowledge, optimiser, schedule and averaged weights; they differ in
the loss alone. Knowledge is cross-fitted, or from a teacher fitted on other rows. A sixth of the training rows is
held out: peers are tuned on it (temperature and weight of outcomes, by log loss, on a seed of their own), our
controller reads it.

hard
    outcomes only.
kd, dkd, standardised
    as published (:mod:`benchmarks.distillation_peers`), each tuned over the same twelve settings.
kd as ours fixed
    Hinton's loss at our default settings, unbalanced: what the balance earns is ours fixed minus this.
ours fixed, ours
    :func:`stillhouse.distill.train.distil` with the defaults, controller off and on.
ours, two losses
    the same with relational knowledge beside Hinton's.

The measure is the gate's: AUC for two actions, accuracy for more; log losses are given beside it. Intervals are of
paired differences over seeds (Student's t, 95 %).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student_t
from torch import nn

from benchmarks.distillation_peers import losses as published
from benchmarks.distillation_peers.training import train
from benchmarks.report import Goal, write
from stillhouse.config import Distillation
from stillhouse.distill.train import Lesson, distil, student_probabilities
from stillhouse.evaluate.scorecard import quality

CLAIM = "distillation that adapts beats tuned fixed distillation, decoupled knowledge and standardised logits"
CLINC150 = Path("../shared/data/clinc150/data_full.json")
TEMPERATURES, WEIGHTS = (1.0, 2.0, 4.0, 8.0), (0.1, 0.3, 0.6)
PEERS = ("kd", "dkd", "standardised")
TUNING_SEED = 1000

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class World:
    """A data set, cut once for one seed: what is learned from, what settings are chosen by, and what is judged on."""

    lesson: Lesson
    held_out: Lesson
    test: Lesson
    hidden: int
    epochs: int
    batch: int
    rate: float

    def student(self, seed: int) -> nn.Module:
        """The student before it has learned anything; the same for the same seed."""
        torch.manual_seed(seed)
        width, actions = self.lesson.x.shape[1], self.lesson.knowledge.shape[1]
        return nn.Sequential(nn.Linear(width, self.hidden), nn.ReLU(), nn.Linear(self.hidden, actions))

    def settings(self, seed: int, **changed: Any) -> Distillation:
        given = {"epochs": self.epochs, "batch_size": self.batch, "learning_rate": self.rate, "seed": seed}
        return Distillation.model_validate(given | {"unknown_rate": 0.0} | changed)


def main() -> None:
    """Learn, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two data sets, two seeds, nothing written")
    parser.add_argument("--seeds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    worlds = {name: WORLDS[name] for name in ("digits", "breast_cancer")} if asked.quick else WORLDS
    found = {name: measured(make, 2 if asked.quick else asked.seeds) for name, make in worlds.items()}
    for name, result in found.items():
        print(f"\n{name}: teacher {result['teacher']:.4f}")
        for method, scores in result["scores"].items():
            print(f"  {method:18} {statistics.mean(scores):.4f}   ours − it: {shown(result['ours_minus'][method])}"
                  f"   log loss: {shown(result['ours_minus_in_log_loss'][method])}")  # fmt: skip
    goals = goals_of(found)
    if asked.quick:
        print(json.dumps({goal.name: goal.measured for goal in goals}))
    else:
        write("distillation", CLAIM, goals, found, ("torch", "scikit-learn", "lightgbm"))


def measured(make: Callable[[int], World], seeds: int) -> dict[str, Any]:
    """Scores of every method under every seed on one data set."""
    tuned = tune(make(TUNING_SEED))
    scores: dict[str, list[float]] = {}
    log_losses: dict[str, list[float]] = {}
    seconds: dict[str, list[float]] = {}
    teacher, settings = [], []
    for seed in range(seeds):
        world = make(seed)
        teacher.append(score(world.test.knowledge.numpy(), world.test.outcomes.numpy()))
        for name, learn in methods(world, seed, tuned):
            student, start = world.student(seed), time.process_time()
            course = learn(student)
            seconds.setdefault(name, []).append(time.process_time() - start)
            said = student_probabilities(student.eval(), world.test.x.numpy())
            scores.setdefault(name, []).append(score(said, world.test.outcomes.numpy()))
            log_losses.setdefault(name, []).append(quality(said, world.test.outcomes.numpy()).log_loss)
            if name == "ours" and course is not None:
                settings.append([change.model_dump() for change in course.changes])
    differences = {name: interval(np.subtract(scores["ours"], other)) for name, other in scores.items()}
    return {
        "teacher": statistics.mean(teacher),
        "teacher_by_seed": teacher,
        "scores": scores,
        "log_losses": log_losses,
        "ours_minus_in_log_loss": {
            name: interval(np.subtract(log_losses["ours"], other)) for name, other in log_losses.items()
        },
        "cpu_seconds": {name: statistics.median(taken) for name, taken in seconds.items()},
        "ours_minus": differences,
        "balance_earns": interval(np.subtract(scores["ours fixed"], scores["kd as ours fixed"])),
        "controller_earns": differences["ours fixed"],
        "second_loss_earns": interval(np.subtract(scores["ours, two losses"], scores["ours"])),
        "tuned": tuned,
        "changes": settings,
    }


def methods(
    world: World, seed: int, tuned: Mapping[str, Sequence[float]]
) -> Iterator[tuple[str, Callable[[nn.Module], Any]]]:
    """Name and training of each method."""
    fixed = world.settings(seed, controller="fixed")
    adaptive = world.settings(seed)

    def peer(loss: str, temperature: float, weight: float) -> Callable[[nn.Module], Any]:
        return lambda student: train(student, world.lesson, fixed, published.PUBLISHED[loss], temperature, weight)

    yield "hard", peer("kd", 1.0, 1.0)
    for name in PEERS:
        yield name, peer(name, *tuned[name])
    yield "kd as ours fixed", peer("kd", fixed.temperature, fixed.outcome_weight)
    yield "ours fixed", lambda student: distil(student, world.lesson, fixed, held_out=world.held_out)
    yield "ours", lambda student: distil(student, world.lesson, adaptive, held_out=world.held_out)
    two = world.settings(seed, losses=[{"type": "hinton"}, {"type": "relational", "weight": 0.3}])
    yield "ours, two losses", lambda student: distil(student, world.lesson, two, held_out=world.held_out)


def tune(world: World) -> dict[str, list[float]]:
    """Temperature and outcome weight of each peer, by log loss on held-out rows."""
    settings, best = world.settings(TUNING_SEED), {}
    for name in PEERS:
        losses = {}
        for temperature, weight in product(TEMPERATURES, WEIGHTS):
            student = deepcopy(world.student(TUNING_SEED))
            train(student, world.lesson, settings, published.PUBLISHED[name], temperature, weight)
            said = student_probabilities(student, world.held_out.x.numpy())
            losses[temperature, weight] = quality(said, world.held_out.outcomes.numpy()).log_loss
        best[name] = list(min(losses, key=lambda pair: losses[pair]))
    return best


def score(probabilities: Array, outcomes: Array) -> float:
    """The gate's measure."""
    found = quality(probabilities, outcomes)
    return float(found.auc if probabilities.shape[1] == 2 and found.auc is not None else found.accuracy)


def interval(differences: Array) -> dict[str, float]:
    """Mean of paired differences and its 95 % interval."""
    mean, count = float(np.mean(differences)), len(differences)
    half = float(student_t.ppf(0.975, count - 1) * np.std(differences, ddof=1) / np.sqrt(count))
    return {"mean": mean, "low": mean - half, "high": mean + half}


def shown(difference: Mapping[str, float]) -> str:
    return f"{difference['mean']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f})"


def goals_of(found: Mapping[str, Mapping[str, Any]]) -> list[Goal]:
    """What was to be reached; over data sets for the counts, over seeds for the text."""
    wins = [all(result["ours_minus"][peer]["mean"] > 0 for peer in PEERS) for result in found.values()]
    sure = [all(result["ours_minus"][peer]["low"] > 0 for peer in PEERS) for result in found.values()]
    below = [result["ours_minus"]["kd"]["high"] < 0 for result in found.values()]
    goals = [
        Goal("wins_over_kd_dkd_std", 4, "higher", sum(wins), sum(sure), sum(wins)),
        Goal("data_sets_below_plain_kd", 0, "lower", sum(below), sum(below), sum(below)),
    ]
    if "clinc150" in found:
        text = found["clinc150"]
        closed = [
            (ours - hard) / (teacher - hard)
            for ours, hard, teacher in zip(
                text["scores"]["ours"], text["scores"]["hard"], text["teacher_by_seed"], strict=True
            )
        ]
        goals.append(Goal("gap_closed_text", 0.8, "higher", statistics.median(closed), min(closed), max(closed)))
    return goals


# --------------------------------------------------------------------------- data sets


def bundled(name: str, hidden: int, epochs: int) -> Callable[[int], World]:
    """A data set of scikit-learn's, cut at random by the seed; trees as teacher, cross-fitted in five folds."""

    def make(seed: int) -> World:
        from sklearn import datasets
        from sklearn.ensemble import ExtraTreesClassifier
        from sklearn.model_selection import StratifiedKFold, cross_val_predict, train_test_split
        from sklearn.preprocessing import StandardScaler

        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        if name == "diabetes":
            y = (y > np.median(y)).astype(np.int64)
        learned, judged, outcomes, truth = train_test_split(x, y, test_size=0.4, random_state=seed, stratify=y)
        teacher = ExtraTreesClassifier(300, min_samples_leaf=2, random_state=seed)
        folds = StratifiedKFold(5, shuffle=True, random_state=seed)
        said = cross_val_predict(teacher, learned, outcomes, cv=folds, method="predict_proba")
        test = teacher.fit(learned, outcomes).predict_proba(judged)
        scaler = StandardScaler().fit(learned)
        learned, judged = scaler.transform(learned), scaler.transform(judged)
        kept = len(learned) // 6
        return World(
            Lesson(learned[kept:], said[kept:], outcomes[kept:]), Lesson(learned[:kept], said[:kept], outcomes[:kept]),
            Lesson(judged, test, truth), hidden, epochs, batch=32, rate=0.01,
        )  # fmt: skip

    return make


def flights(seed: int) -> World:
    """Ten weeks of departures, boosted trees cross-fitted in three blocks, judged on the two weeks after."""
    from examples.flights import CATEGORIES, NUMBERS, Boosting, departures, lateness, week_start

    first = 10 + 6 * (seed % 5)
    start, end = week_start(first), week_start(first + 12)
    columns = [*CATEGORIES, *NUMBERS, "observed_at", "action"]
    late = lateness(start, end)[["observation_id", "action"]]
    rows = departures(start, end).merge(late, on="observation_id")[columns]
    rows["outcome"] = (rows["action"] == "late").astype(np.int64)
    past, future = (rows[(rows["observed_at"] < week_start(first + 10)) == old].reset_index(drop=True)
                    for old in (True, False))  # fmt: skip
    said = np.empty((len(past), 2))
    for block in np.array_split(np.arange(len(past)), 3):
        others = np.setdiff1d(np.arange(len(past)), block)
        teacher = Boosting(seed=seed, threads=1).fit(past.iloc[others], past["outcome"].to_numpy()[others])
        said[block] = teacher.predict_proba(past.iloc[block])
    told = Boosting(seed=seed, threads=1).fit(past, past["outcome"].to_numpy()).predict_proba(future)
    x, judged = (pd.get_dummies(part[[*NUMBERS, *CATEGORIES[:2]]]).astype(np.float32) for part in (past, future))
    judged = judged.reindex(columns=x.columns, fill_value=0.0)
    mean, spread = x.mean(), x.std() + 1e-6
    x, judged = (((part - mean) / spread).fillna(0.0).to_numpy() for part in (x, judged))
    days = (past["observed_at"].dt.as_unit("s").astype("int64") // 86_400).to_numpy()
    kept = days % 6 == 0
    outcomes = past["outcome"].to_numpy()
    return World(
        Lesson(x[~kept], said[~kept], outcomes[~kept]), Lesson(x[kept], said[kept], outcomes[kept], groups=days[kept]),
        Lesson(judged, told, future["outcome"].to_numpy()), hidden=16, epochs=6, batch=512, rate=0.004,
    )  # fmt: skip


def clinc150(seed: int) -> World:
    """150 intents of short sentences: 400 hashed words for the student, words and letters for a teacher.

    The teacher is fitted on half of the training sentences; the student learns from the other half.
    """
    from sklearn.feature_extraction.text import HashingVectorizer
    from sklearn.preprocessing import LabelEncoder

    content = json.loads(CLINC150.read_text(encoding="utf-8"))
    sentences, names = zip(*content["train"], strict=True)
    test, truth = zip(*content["test"], strict=True)
    encoder = LabelEncoder().fit(names)
    outcomes = encoder.transform(names)
    order = np.random.default_rng(0).permutation(len(sentences))
    taught, learned = order[: len(order) // 2], order[len(order) // 2 :]
    hashing = HashingVectorizer(n_features=400, ngram_range=(1, 1), norm="l2")
    x, judged = hashing.transform(sentences).toarray() * 10, hashing.transform(test).toarray() * 10
    said, told = _text_teacher(tuple(sentences), tuple(test), tuple(outcomes), tuple(taught))
    shuffled = np.random.default_rng(seed).permutation(learned)
    kept, rest = shuffled[: len(shuffled) // 6], shuffled[len(shuffled) // 6 :]
    return World(
        Lesson(x[rest], said[rest], outcomes[rest]), Lesson(x[kept], said[kept], outcomes[kept]),
        Lesson(judged, told, encoder.transform(truth)), hidden=64, epochs=12, batch=128, rate=0.01,
    )  # fmt: skip


_taught: dict[str, tuple[Array, Array]] = {}  # by nothing but the text: seeds share the teacher


def _text_teacher(
    sentences: Sequence[str], test: Sequence[str], outcomes: Sequence[int], fitted: Sequence[int]
) -> tuple[Array, Array]:
    """What it says about all sentences and about the test's; fitted once."""
    if "clinc150" not in _taught:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline, make_union

        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True, max_features=20_000)
        teacher = make_pipeline(make_union(words, letters), LogisticRegression(C=30, max_iter=60, tol=1e-3))
        teacher.fit([sentences[i] for i in fitted], [outcomes[i] for i in fitted])
        _taught["clinc150"] = teacher.predict_proba(sentences), teacher.predict_proba(test)
    return _taught["clinc150"]


WORLDS: dict[str, Callable[[int], World]] = {
    "clinc150": clinc150,
    "flights": flights,
    "digits": bundled("digits", hidden=16, epochs=40),
    "breast_cancer": bundled("breast_cancer", hidden=8, epochs=40),
    "diabetes": bundled("diabetes", hidden=8, epochs=40),
}

if __name__ == "__main__":
    main()
