"""Small data: our first student under the agent file's defaults, beside a plain script's.

``python -m benchmarks.small_data`` takes about twelve minutes of one core; ``--quick`` takes under one: one seed, 800
rows, no file written.

Both begin with the same labelled rows and LightGBM at its defaults. The plain script fits LightGBM on all rows and
scikit-learn's ``MLPClassifier`` (hidden layers of 64 and 32 units) on its decisions; two more scripts are measured and
not compared by a goal: the same with the teacher's probabilities as soft labels, and with ``early_stopping``. Ours is
trained as a refresh trains it, with a section ``distillation`` that states nothing: the teacher's cross-fitted
answers, synthetic rows, validation blocks, controller. Float32 students are scored on later rows by log loss (natural
logarithm; probabilities of at least 1e-4) and AUC (for five actions, the mean over each against the others).

The streams are synthetic, without drift; ``terrain`` and ``orders`` have categories. No default was chosen on a seed
that is used here.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from lightgbm import LGBMClassifier
from sklearn.compose import make_column_transformer
from sklearn.datasets import make_classification, make_gaussian_quantiles
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.neural_network import MLPClassifier
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from benchmarks.report import Goal, begin, print_goals
from stillhouse.config import AgentConfig, fit_defaults
from stillhouse.distill.augment import make_synthetic_rows
from stillhouse.distill.comparisons import distil_with_control
from stillhouse.distill.split import mask_validation_rows, seconds_since_1970, split_validation
from stillhouse.distill.students import columns_of, new_student
from stillhouse.distill.train import student_probabilities
from stillhouse.refreshing.data import build_training_set
from stillhouse.teachers.cross_fitting import assign_time_blocks
from stillhouse.variant import encode

CLAIM = (
    "on 800 to 5,000 rows the student of an agent file without a section `distillation` is at least as good as that of "
    "a plain script"
)
SIZES = (800, 2000, 5000)
TEST_ROWS = 3000
FIRST_SEED = 100
WIDTHS = (64, 32)
METHODS = ("ours", "plain", "soft", "early", "teacher")
START = pd.Timestamp("2024-01-01", tz="UTC")

Array = np.ndarray[Any, Any]
Stream = Callable[[int, int], tuple[pd.DataFrame, Array]]


def main() -> None:
    """Train, score, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=2, help="how often each stream is drawn")
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED, help="of the streams and the students")
    parser.add_argument("--quick", action="store_true", help="one seed, 800 rows, no file written")
    options = parser.parse_args()
    run = begin("small_data", writes_result=not options.quick)
    warnings.filterwarnings("ignore", module="sklearn")
    sizes, seeds = (SIZES[:1], 1) if options.quick else (SIZES, options.seeds)
    results: list[dict[str, Any]] = []
    for size, number, name in itertools.product(sizes, range(seeds), STREAMS):
        scores = measure(name, size, options.first_seed + number)
        results.append({"stream": name, "rows": size, "seed": options.first_seed + number, "scores": scores})
        shown = "  ".join(f"{method} {s['log_loss']:.3f} {s['auc']:.4f}" for method, s in scores.items())
        print(f"{name:9} {size:5} {shown}", flush=True)
    goals = goals_of(results)
    if options.quick:
        print_goals(CLAIM, goals)
    else:
        detail = {"results": results, "test_rows": TEST_ROWS, "widths": WIDTHS}
        run.write(CLAIM, goals, detail, ("torch", "scikit-learn", "lightgbm"))


def goals_of(results: Sequence[Mapping[str, Any]]) -> list[Goal]:
    """By number of rows: ours less the plain script's, mean over streams and seeds; the range is over seeds."""
    goals = []
    for size, (measure_name, sign) in itertools.product(SIZES, (("auc", 1), ("log_loss", -1))):
        by_seed: dict[int, list[float]] = {}
        for result in (result for result in results if result["rows"] == size):
            ours, plain = (result["scores"][method][measure_name] for method in ("ours", "plain"))
            by_seed.setdefault(result["seed"], []).append(sign * (ours - plain))
        if by_seed:
            means = [statistics.mean(gains) for gains in by_seed.values()]
            name = f"{measure_name}_gain_{size}_rows"
            goals.append(Goal(name, 0.0, "higher", statistics.mean(means), min(means), max(means)))
    return goals


def measure(name: str, rows: int, seed: int) -> dict[str, dict[str, float]]:
    """Log loss and AUC of each method on the rows after the first ``rows``."""
    frame, labels = STREAMS[name](rows + TEST_ROWS, seed)
    train, test = frame.iloc[:rows].reset_index(drop=True), frame.iloc[rows:].reset_index(drop=True)
    probs = plain_scripts(train, labels[:rows], test, seed)
    probs["ours"] = our_student(train, labels[:rows], test, seed)
    return {method: score(probs[method], labels[rows:]) for method in METHODS}


def score(probs: Array, labels: Array) -> dict[str, float]:
    """Log loss and AUC of probabilities ``[n, K]``."""
    actions = probs.shape[1]
    clipped = np.clip(probs, 1e-4, None)
    clipped /= clipped.sum(axis=1, keepdims=True)
    positive = [1] if actions == 2 else range(actions)
    auc = statistics.mean(float(roc_auc_score(labels == action, clipped[:, action])) for action in positive)
    return {"log_loss": float(log_loss(labels, clipped, labels=range(actions))), "auc": auc}


# --------------------------------------------------------------------------- the plain scripts


class Boosting:
    """LightGBM at its defaults, on one thread."""

    def __init__(self, rows: pd.DataFrame, labels: Array, actions: int, seed: int) -> None:
        self.values = {name: sorted(rows[name].unique()) for name in category_names(rows)}
        self.actions = actions
        self.model = LGBMClassifier(verbose=-1, n_jobs=1, random_state=seed).fit(self._table(rows), labels)

    def predict_proba(self, rows: pd.DataFrame) -> Array:
        probs = np.zeros((len(rows), self.actions))
        probs[:, self.model.classes_] = self.model.predict_proba(self._table(rows))
        return probs

    def _table(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows.assign(**{name: pd.Categorical(rows[name], values) for name, values in self.values.items()})


def plain_scripts(train: pd.DataFrame, labels: Array, test: pd.DataFrame, seed: int) -> dict[str, Array]:
    """Probabilities of the teacher and of three students for ``test``."""
    actions = int(labels.max()) + 1
    teacher = Boosting(train, labels, actions, seed)
    categories = category_names(train)
    numbers = [name for name in train if name not in categories]
    prepared = make_column_transformer(
        (StandardScaler(), numbers), (OneHotEncoder(handle_unknown="ignore", sparse_output=False), categories)
    ).fit(train)
    x, later, probs = prepared.transform(train), prepared.transform(test), teacher.predict_proba(train)
    decisions, weights = probs.argmax(axis=1), probs.ravel()
    relevant = weights > 1e-3

    def student(**settings: Any) -> MLPClassifier:
        return MLPClassifier(WIDTHS, random_state=seed, **settings)

    soft = student().fit(
        np.repeat(x, actions, axis=0)[relevant],
        np.tile(np.arange(actions), len(x))[relevant],
        sample_weight=weights[relevant],
    )
    return {
        "teacher": teacher.predict_proba(test),
        "plain": student().fit(x, decisions).predict_proba(later),
        "soft": soft.predict_proba(later),
        "early": student(early_stopping=True).fit(x, decisions).predict_proba(later),
    }


def category_names(rows: pd.DataFrame) -> list[str]:
    return [name for name in rows if rows[name].dtype.kind != "f"]


# --------------------------------------------------------------------------- ours


def our_student(train: pd.DataFrame, labels: Array, test: pd.DataFrame, seed: int) -> Array:
    """Probabilities for ``test`` of a student that is trained as a refresh in mode ``redistil`` trains it."""
    actions = int(labels.max()) + 1
    frame = train.assign(
        observation_id=[f"{number}" for number in range(len(train))],
        observed_at=START + pd.to_timedelta(np.arange(len(train)), unit="h"),
        outcome=labels,
    )
    config = agent(train, actions, seed)
    times = seconds_since_1970(frame["observed_at"])
    settings = fit_defaults(config.distillation, len(frame), times=times)
    config = config.model_copy(update={"distillation": settings})

    blocks = assign_time_blocks(config, frame)
    teachers = [Boosting(train[blocks != b], labels[blocks != b], actions, seed) for b in range(settings.folds)]

    def ask(rows: pd.DataFrame, row_blocks: Array) -> Array:
        probs = np.zeros((len(rows), actions))
        for block in np.unique(row_blocks):
            chosen = row_blocks == block
            probs[chosen] = teachers[block].predict_proba(rows.loc[chosen, list(train)])
        return probs

    probs, is_validation = ask(frame, blocks), mask_validation_rows(frame["observed_at"], settings)
    learned = ~is_validation
    columns = columns_of(config, frame[learned])
    x = encode(frame, columns)
    training_set = build_training_set(x[learned], probs[learned], labels[learned], columns)
    synthetic = make_synthetic_rows(config, frame[learned], blocks[learned])
    answers = ask(synthetic, synthetic["block"].to_numpy())
    unlabelled = np.full(len(synthetic), -1)
    training_set = training_set.append(build_training_set(encode(synthetic, columns), answers, unlabelled, columns))
    cluster_ids, newer = split_validation(frame["observed_at"][is_validation], config.promotion.cluster)
    control, compare = (
        build_training_set(
            x[is_validation][half],
            probs[is_validation][half],
            labels[is_validation][half],
            columns,
            cluster_ids=cluster_ids[half],
        )
        for half in (newer, ~newer)
    )
    student = new_student(config, columns, training_set.x.numpy())
    distil_with_control(student, training_set, settings, validation_control=control, validation_compare=compare)
    return student_probabilities(student, encode(test, columns))


def agent(rows: pd.DataFrame, actions: int, seed: int) -> AgentConfig:
    """An agent file whose distillation states nothing but the seed."""
    categories = category_names(rows)
    columns = {name: {"type": "category" if name in categories else "number"} for name in rows}
    return AgentConfig.model_validate(
        {
            "agent": "small",
            "actions": [f"a{number}" for number in range(actions)],
            "observations": {"source": "x:y", "since": START.isoformat(), "columns": columns},
            "outcomes": {"source": "x:y", "delay": "0s"},
            "teachers": [{"kind": "python", "name": "boosting", "target": "x:y"}],
            "student": {"kind": "tabular"},
            "distillation": {"seed": seed},
            "windows": {"train": "26w", "current": "7d"},
            "watch": {},
        }
    )


# --------------------------------------------------------------------------- streams


def shells(rows: int, seed: int) -> tuple[pd.DataFrame, Array]:
    """Two actions: inside or outside a sphere in five of ten dimensions; a tenth of the labels is random."""
    rng = np.random.default_rng(seed)
    x, labels = make_gaussian_quantiles(n_samples=rows, n_features=5, n_classes=2, random_state=seed)
    order = rng.permutation(rows)
    labels = np.where(rng.random(rows) < 0.1, rng.integers(0, 2, rows), labels)
    return named(np.column_stack([x, rng.normal(size=(rows, 5))])[order]), labels[order]


def clusters(rows: int, seed: int) -> tuple[pd.DataFrame, Array]:
    """Five actions, three clusters each, in eight of sixteen dimensions; 8 % of the labels are random."""
    x, labels = make_classification(
        n_samples=rows,
        n_features=16,
        n_informative=8,
        n_redundant=2,
        n_classes=5,
        n_clusters_per_class=3,
        flip_y=0.08,
        random_state=seed,
    )
    return named(x), labels


def terrain(rows: int, seed: int, actions: int = 5) -> tuple[pd.DataFrame, Array]:
    """Like a forest's cover by height, slope, aspect, distance, soil and area, with interactions and noise."""
    rng = np.random.default_rng(seed)
    height, slope, aspect = rng.gamma(3, 300, rows), rng.exponential(15, rows), rng.uniform(0, 2 * np.pi, rows)
    distance, soil, area = rng.lognormal(5, 1, rows), rng.integers(0, 12, rows), rng.integers(0, 4, rows)
    scaled, steep = (height - 900) / 500, (height > 1000) & (slope > 15)
    terms = np.column_stack(
        [scaled, np.log1p(slope) - 2.5, np.cos(aspect), np.log(distance) - 5, steep, scaled * np.cos(aspect)]
    )
    scores = 1.6 * terms @ rng.normal(size=(6, actions))
    scores += rng.normal(size=(12, actions))[soil] + rng.normal(size=(4, actions))[area]
    labels = (scores - scores.mean(axis=0) + rng.gumbel(size=scores.shape)).argmax(axis=1)
    frame = named(np.column_stack([height, slope, aspect, distance, rng.normal(size=(rows, 3))]))
    return frame.assign(soil=[f"s{value}" for value in soil], area=[f"a{value}" for value in area]), labels


def orders(rows: int, seed: int) -> tuple[pd.DataFrame, Array]:
    """The terrain's rule with two actions."""
    return terrain(rows, seed, actions=2)


def named(x: Array) -> pd.DataFrame:
    return pd.DataFrame(x, columns=[f"x{number}" for number in range(x.shape[1])])


STREAMS: Mapping[str, Stream] = {"shells": shells, "clusters": clusters, "terrain": terrain, "orders": orders}


if __name__ == "__main__":
    main()
