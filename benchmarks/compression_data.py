"""Three trained students to compress: a text encoder, the flights agent's student, and a small convolutional network.

The teacher is always fitted on other rows than those that it labels. A search chooses on ``validation``; ``test`` is
used for reports only. A student is trained once and cached in a folder named by its name and a hash of its inputs.
``python -m benchmarks.compression_data`` trains all three.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.distillation_data import CACHE, Array, agent, embed, make_kernels
from stillhouse.compress.export import run_torch
from stillhouse.config import AgentConfig, Distillation
from stillhouse.distill.students import TextStudent, columns_of, input_widths, new_student
from stillhouse.distill.train import distil
from stillhouse.distill.training_set import TrainingSet
from stillhouse.evaluate import scorecard
from stillhouse.variant import encode

__all__ = ["SPLITS", "WORLDS", "World", "quality"]

SPLITS = ("learned", "validation", "test")

Columns = Sequence[Mapping[str, Any]]
Rows = dict[str, Any]  # by split: raw rows as a data frame or an array


@dataclass(frozen=True)
class World:
    """A trained student with its training, validation and test rows.

    :param student: float32, in evaluation mode: encoded rows float32 ``[n, D]`` to logits ``[n, K]``.
    :param columns: columns for :func:`stillhouse.variant.encode`; None: the raw rows are arrays already.
    :param rows: raw rows by split.
    :param labels: int64 ``[n]``, by split.
    :param teacher_probs: probabilities ``[n, K]`` of the teacher for the rows of ``learned``.
    :param settings: settings of the training, and of the recovery of a compressed student.
    :param seconds: time of the training, including the teacher.
    """

    name: str
    config: AgentConfig | None
    student: nn.Module
    columns: list[dict[str, Any]] | None
    rows: Rows
    labels: dict[str, Array]
    teacher_probs: Array
    settings: Distillation
    seconds: float

    def encode(self, split: str, columns: Columns | None = None) -> Array:
        """Encode the rows of a split, float32 ``[n, D]``, with the student's columns or the given ones."""
        return _encode(self.rows[split], columns or self.columns)

    def training_set(self, columns: Columns | None = None) -> TrainingSet:
        """The rows of ``learned`` with teacher probabilities and labels."""
        return _training_set(self.rows, self.labels, self.teacher_probs, columns or self.columns)


def quality(world: World, probabilities: Array, split: str) -> float:
    """AUC for two actions, accuracy for more, of probabilities ``[n, K]`` for the rows of a split."""
    return scorecard.measure_quality(probabilities, world.labels[split]).score


def _encode(rows: Any, columns: Columns | None) -> Array:
    return np.ascontiguousarray(rows if columns is None else encode(rows, columns), dtype=np.float32)


def _training_set(
    rows: Rows, labels: Mapping[str, Array], teacher_probs: Array, columns: Columns | None
) -> TrainingSet:
    x, sizes = _encode(rows["learned"], columns), None if columns is None else input_widths(columns)
    numbers, tokens = (None, 0) if sizes is None else (sizes.numbers, sizes.tokens)
    return TrainingSet(x, teacher_probs, labels["learned"], numbers, tokens=tokens)


def _trained_world(
    name: str,
    config: AgentConfig | None,
    student: nn.Module,
    columns: list[dict[str, Any]] | None,
    rows: Rows,
    labels: dict[str, Array],
    label_rows: Callable[[], Array],
    settings: Distillation,
    train: Callable[[nn.Module, TrainingSet, Distillation], object] = distil,
) -> World:
    """The world with its trained student, read from the cache if it is there.

    :param student: the untrained student; its structure and weights are part of the cache key.
    :param label_rows: returns the teacher's probabilities ``[n, K]`` for ``learned``.
    :param train: trains the student in place; its source is part of the cache key.
    """
    folder = CACHE / "compression" / f"{name}-{_hash(student, columns, rows, labels, settings, train)}"
    if not (folder / "world.json").exists():
        start, teacher_probs = time.perf_counter(), np.asarray(label_rows(), dtype=np.float32)
        training_set = _training_set(rows, labels, teacher_probs, columns)
        train(student, training_set, settings)
        _save(folder, student, teacher_probs, time.perf_counter() - start)
    student.load_state_dict(load_file(folder / "student.safetensors"))
    teacher_probs = load_file(folder / "knowledge.safetensors")["knowledge"].numpy()
    seconds = json.loads((folder / "world.json").read_text(encoding="utf-8"))["seconds"]
    return World(name, config, student.eval(), columns, rows, labels, teacher_probs, settings, seconds)


def _save(folder: Path, student: nn.Module, teacher_probs: Array, seconds: float) -> None:
    """Write the trained student; ``world.json`` comes last and marks the folder as complete."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in student.state_dict().items()}, folder / "student.safetensors")
    save_file({"knowledge": torch.from_numpy(teacher_probs)}, folder / "knowledge.safetensors")
    (folder / "world.json").write_text(json.dumps({"seconds": round(seconds, 1)}), encoding="utf-8")


def _hash(
    student: nn.Module,
    columns: Columns | None,
    rows: Rows,
    labels: Mapping[str, Array],
    settings: Distillation,
    train: Callable[..., object],
) -> str:
    """Hash of the untrained student, the rows, the settings and the source of ``train``, 12 hex digits."""
    settings_text = [str(student), columns, settings.model_dump(mode="json"), inspect.getsource(train)]
    digest = hashlib.sha256(json.dumps(settings_text).encode())
    for tensor in student.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    for split in SPLITS:
        digest.update(_encode(rows[split], columns).tobytes() + labels[split].tobytes())
    return digest.hexdigest()[:12]


# --------------------------------------------------------------------------- sentences

LENGTH = 24  # tokens: 99.9 % of the training sentences of CLINC150 are no longer
_SHORT = 14  # tokens: 91 % are no longer


def encoder() -> World:
    """150 intents of CLINC150: all-MiniLM-L6-v2, fine-tuned, with a vocabulary reduced to the sentences."""
    shape = {"type": "transformer", "width": 384, "layers": 6, "heads": 12, "feedforward": 1536}
    student = {"encoder": shape, "vocabulary": 6000, "initialise": "teacher"}
    settings = {"epochs": 1, "batch_size": 32, "learning_rate": 2e-4, "averaging": 0.98}
    return _intents("encoder", 150, student, settings, _fine_tune)


def quick_encoder() -> World:
    """20 of the intents and a small transformer trained from scratch: seconds instead of minutes."""
    shape = {"type": "transformer", "width": 64, "layers": 2, "heads": 4, "feedforward": 256}
    student = {"encoder": shape, "vocabulary": 1000}
    return _intents("quick_encoder", 20, student, {"epochs": 12, "batch_size": 64, "learning_rate": 4e-3})


def _intents(
    name: str,
    count: int,
    student: Mapping[str, Any],
    settings: Mapping[str, Any],
    train: Callable[[nn.Module, TrainingSet, Distillation], object] = distil,
) -> World:
    """The first ``count`` intents; a tenth of the training sentences is held out as ``validation``.

    The teacher is MiniLM with a linear head; each half of the training rows is labelled by a head fitted on the other
    half and on the data set's own validation split.
    """
    from examples.router import MiniLM

    splits = _clinc150()
    names = sorted({intent for _, intent in splits["train"]})[:count]
    texts, labels_by_part = {}, {}
    for part in ("train", "val", "test"):
        examples = [(text, names.index(intent)) for text, intent in splits[part] if intent in names]
        texts[part] = np.array([text for text, _ in examples], dtype=object)
        labels_by_part[part] = np.array([action for _, action in examples], dtype=np.int64)
    order = np.random.default_rng(0).permutation(len(texts["train"]))
    row_indices = {"validation": np.sort(order[: len(order) // 10]), "learned": np.sort(order[len(order) // 10 :])}
    rows = {split: pd.DataFrame({"text": texts["train"][indices]}) for split, indices in row_indices.items()}
    labels = {split: labels_by_part["train"][indices] for split, indices in row_indices.items()}
    rows["test"], labels["test"] = pd.DataFrame({"text": texts["test"]}), labels_by_part["test"]
    student_settings = {"kind": "text", "widths": [], "length": LENGTH, "dropout": 0.1} | dict(student)
    initial = MiniLM().text_encoder() if student_settings.get("initialise") == "teacher" else None
    config = agent({"text": {"type": "text"}}, count, student_settings, **settings)
    columns = columns_of(config, rows["learned"], initial)
    return _trained_world(
        name,
        config,
        new_student(config, columns, _encode(rows["learned"], columns), initial),
        columns,
        rows,
        labels,
        lambda: _cross_label(
            list(rows["learned"]["text"]), labels["learned"], list(texts["val"]), labels_by_part["val"]
        ),
        config.distillation,
        train,
    )


def _clinc150() -> dict[str, list[tuple[str, str]]]:
    """``(sentence, intent)`` by the data set's own splits."""
    from examples.router import fetch_file

    splits: dict[str, list[tuple[str, str]]] = json.loads(fetch_file("data_full.json").read_text(encoding="utf-8"))
    return splits


def _cross_label(texts: list[str], labels: Array, other_texts: list[str], other_labels: Array) -> Array:
    """Probabilities for each half of ``texts``, from a head fitted on the other half and on ``other_texts``."""
    vectors, other_vectors = embed(texts), embed(other_texts)
    folds = np.random.default_rng(1).permutation(len(texts)) % 2
    probabilities = np.empty((len(texts), int(other_labels.max()) + 1))
    for fold in (0, 1):
        head = _regression(30).fit(
            np.concatenate([vectors[folds != fold], other_vectors]),
            np.concatenate([labels[folds != fold], other_labels]),
        )
        probabilities[folds == fold] = head.predict_proba(vectors[folds == fold])
    return probabilities


def _fine_tune(student: nn.Module, training_set: TrainingSet, settings: Distillation) -> None:
    """Fit the last layer as a regression on the encoder's vectors, then train all layers, on short sentences.

    In this order, since a random last layer would distort good vectors (Kumar et al. 2022, "Fine-Tuning can Distort
    Pretrained Features and Underperform Out-of-Distribution", §3.4). Sentences of more than ``_SHORT`` tokens
    are left out, since padding all others to their length would nearly double the time.
    """
    assert isinstance(student, TextStudent)
    short_student = copy.deepcopy(student)
    text: Any = short_student.encoders[0]
    short_student.lengths, text.places = [_SHORT], nn.Parameter(text.places[: _SHORT + 1].detach().clone())
    short_rows = training_set.take((training_set.x[:, _SHORT:] == 0).all(dim=1).nonzero().squeeze(1))
    short_rows.x, short_rows.tokens = short_rows.x[:, :_SHORT].contiguous(), _SHORT
    _initialise_last_layer(short_student, short_rows.take(torch.arange(0, len(short_rows), 2)))
    distil(short_student, short_rows, settings)
    state, positions_key = short_student.state_dict(), "encoders.0.places"
    state[positions_key] = torch.cat([state[positions_key], student.state_dict()[positions_key][_SHORT + 1 :]])
    student.load_state_dict(state)


def _initialise_last_layer(student: TextStudent, training_set: TrainingSet) -> None:
    """Set the last layer to a logistic regression of the labels on its input vectors."""
    (text,), last_layer = student.encoders, student.layers[-1]
    student.eval()
    with torch.no_grad():
        vectors = torch.cat([text(part.to(torch.int64)) for part in training_set.x.split(64)]).numpy()
    scale = float(np.linalg.norm(vectors, axis=1).mean())
    head = _regression(30).fit(vectors / scale, training_set.labels.numpy())
    with torch.no_grad():
        last_layer.weight.copy_(torch.from_numpy(head.coef_ / scale))
        last_layer.bias.copy_(torch.from_numpy(head.intercept_))


def _regression(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=100, tol=1e-3)


# --------------------------------------------------------------------------- flights


def flights() -> World:
    """Departures of 2013 and the student of ``agents/flights.yaml``: 8 weeks for the teacher, then 10, 2 and 2."""
    from examples.flights import Boosting, departures, lateness, week_start

    agent_file = yaml.safe_load(Path("agents/flights.yaml").read_text(encoding="utf-8"))
    config = AgentConfig.model_validate(agent_file)
    outcomes = lateness(week_start(0), week_start(22))[["observation_id", "action"]]
    all_rows = departures(week_start(0), week_start(22)).merge(outcomes, on="observation_id")
    teacher_rows, *parts = (
        all_rows[(all_rows["observed_at"] >= week_start(first_week)) & (all_rows["observed_at"] < week_start(end_week))]
        for first_week, end_week in ((0, 8), (8, 18), (18, 20), (20, 22))
    )
    parts[0] = parts[0].sample(30_000, random_state=0).sort_values("observed_at")
    rows = {split: part.reset_index(drop=True) for split, part in zip(SPLITS, parts, strict=True)}
    labels = {split: _late(part) for split, part in rows.items()}
    columns = columns_of(config, rows["learned"])
    student = new_student(config, columns, _encode(rows["learned"], columns))
    return _trained_world(
        "flights",
        config,
        student,
        columns,
        rows,
        labels,
        lambda: Boosting(seed=0, threads=1).fit(teacher_rows, _late(teacher_rows)).predict_proba(rows["learned"]),
        config.distillation,
    )


def _late(rows: pd.DataFrame) -> Array:
    return (rows["action"] == "late").to_numpy().astype(np.int64)


# --------------------------------------------------------------------------- digits


def digits() -> World:
    """Hand-written digits of 8 × 8 pixels (scikit-learn's): a small convolutional network, and an SVC as teacher."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    teacher_rows, *parts = np.split(order, [400, 1100, 1400])
    rows = {split: (x[indices] / 16).astype(np.float32) for split, indices in zip(SPLITS, parts, strict=True)}
    labels = {split: y[indices].astype(np.int64) for split, indices in zip(SPLITS, parts, strict=True)}
    settings = Distillation(epochs=40, batch_size=64, learning_rate=3e-3)
    return _trained_world(
        "digits",
        None,
        _network(),
        None,
        rows,
        labels,
        lambda: make_kernels(0).fit(x[teacher_rows] / 16, y[teacher_rows]).predict_proba(rows["learned"]),
        settings,
    )


def _network() -> nn.Module:
    """A small convolutional network: flat rows ``[n, 64]`` to logits ``[n, 10]``."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
        for inputs, outputs, pool in ((1, 32, 1), (32, 64, 2), (64, 64, 2)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            layers += [nn.MaxPool2d(pool)] if pool > 1 else []
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 192), nn.ReLU(), nn.Linear(192, 10))


WORLDS: dict[str, Callable[[], World]] = {"encoder": encoder, "flights": flights, "digits": digits}


def _predict(world: World, split: str) -> Array:
    x = world.encode(split)
    return np.concatenate([run_torch(world.student, {"x": x[start : start + 256]}) for start in range(0, len(x), 256)])


def main() -> None:
    """Train all students; print their size, quality and training time."""
    table = Table("world", "parameters", "validation", "test", "seconds")
    for name, make in {**WORLDS, "quick_encoder": quick_encoder}.items():
        world = make()
        scores = [f"{quality(world, _predict(world, split), split):.4f}" for split in ("validation", "test")]
        count = sum(parameter.numel() for parameter in world.student.parameters())
        table.add_row(name, f"{count:,}", *scores, f"{world.seconds:.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
