"""Three trained students to compress: a text encoder, the flights agent's student, and a small convolutional network.

Everywhere the teacher was fitted on other rows than those that it labels. ``validation`` is what a search chooses on;
``test`` is only reported on and is seen by no choice. A student is trained once and kept in a cache folder under its
name and a hash of all that it comes from. ``python -m benchmarks.compression_data`` makes all three.
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

from benchmarks.distillation_data import CACHE, Array, agent, embedded, kernels
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
Rows = dict[str, Any]  # by split: a data frame of raw rows, or an array of them


@dataclass(frozen=True)
class World:
    """A trained student with the rows that it learned from and those that it is judged on.

    :param student: float32, in evaluation mode: encoded rows float32 ``[n, D]`` to logits ``[n, K]``.
    :param columns: what :func:`stillhouse.variant.encode` makes rows with; None: the raw rows are arrays already.
    :param rows: raw, by split.
    :param outcomes: int64 ``[n]``, by split.
    :param knowledge: of the teacher about ``learned``, probabilities ``[n, K]``.
    :param settings: by which the student learned, and a compressed one recovers.
    :param seconds: that the training took, teacher included, when it was done.
    """

    name: str
    config: AgentConfig | None
    student: nn.Module
    columns: list[dict[str, Any]] | None
    rows: Rows
    outcomes: dict[str, Array]
    knowledge: Array
    settings: Distillation
    seconds: float

    def encoded(self, split: str, columns: Columns | None = None) -> Array:
        """The rows of a split as the student reads them, float32 ``[n, D]``, or as a form with other columns does."""
        return _encoded(self.rows[split], columns or self.columns)

    def lesson(self, columns: Columns | None = None) -> TrainingSet:
        """What there is to learn: the rows of ``learned`` with knowledge and outcomes."""
        return _lesson(self.rows, self.outcomes, self.knowledge, columns or self.columns)


def quality(world: World, probabilities: Array, split: str) -> float:
    """AUC for two actions, accuracy for more, of probabilities ``[n, K]`` for the rows of a split."""
    return scorecard.quality(probabilities, world.outcomes[split]).score


def _encoded(rows: Any, columns: Columns | None) -> Array:
    return np.ascontiguousarray(rows if columns is None else encode(rows, columns), dtype=np.float32)


def _lesson(rows: Rows, outcomes: Mapping[str, Array], knowledge: Array, columns: Columns | None) -> TrainingSet:
    x, sizes = _encoded(rows["learned"], columns), None if columns is None else input_widths(columns)
    numbers, tokens = (None, 0) if sizes is None else (sizes.numbers, sizes.tokens)
    return TrainingSet(x, knowledge, outcomes["learned"], numbers, tokens=tokens)


def _world(
    name: str,
    config: AgentConfig | None,
    student: nn.Module,
    columns: list[dict[str, Any]] | None,
    rows: Rows,
    outcomes: dict[str, Array],
    teach: Callable[[], Array],
    settings: Distillation,
    learn: Callable[[nn.Module, TrainingSet, Distillation], object] = distil,
) -> World:
    """The world with its student trained, or read back where it has been trained before.

    :param student: as it begins; what it is made of is part of what it is kept under.
    :param teach: what the teacher says about ``learned``.
    :param learn: trains the student in place.
    """
    folder = CACHE / "compression" / f"{name}-{_hash(student, columns, rows, outcomes, settings, learn)}"
    if not (folder / "world.json").exists():
        begun, knowledge = time.perf_counter(), np.asarray(teach(), dtype=np.float32)
        lesson = _lesson(rows, outcomes, knowledge, columns)
        learn(student, lesson, settings)
        _keep(folder, student, knowledge, time.perf_counter() - begun)
    student.load_state_dict(load_file(folder / "student.safetensors"))
    knowledge = load_file(folder / "knowledge.safetensors")["knowledge"].numpy()
    seconds = json.loads((folder / "world.json").read_text(encoding="utf-8"))["seconds"]
    return World(name, config, student.eval(), columns, rows, outcomes, knowledge, settings, seconds)


def _keep(folder: Path, student: nn.Module, knowledge: Array, seconds: float) -> None:
    """Write all that the training has given; ``world.json``, which says that it is whole, comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous() for key, value in student.state_dict().items()}, folder / "student.safetensors")
    save_file({"knowledge": torch.from_numpy(knowledge)}, folder / "knowledge.safetensors")
    (folder / "world.json").write_text(json.dumps({"seconds": round(seconds, 1)}), encoding="utf-8")


def _hash(
    student: nn.Module,
    columns: Columns | None,
    rows: Rows,
    outcomes: Mapping[str, Array],
    settings: Distillation,
    learn: Callable[..., object],
) -> str:
    """Of the untrained student, the rows, the settings and the training's own lines, 12 digits."""
    told = [str(student), columns, settings.model_dump(mode="json"), inspect.getsource(learn)]
    digest = hashlib.sha256(json.dumps(told).encode())
    for tensor in student.state_dict().values():
        digest.update(tensor.contiguous().numpy().tobytes())
    for split in SPLITS:
        digest.update(_encoded(rows[split], columns).tobytes() + outcomes[split].tobytes())
    return digest.hexdigest()[:12]


# --------------------------------------------------------------------------- sentences

LENGTH = 24  # tokens: 99.9 % of the training sentences of CLINC150 are no longer
_SHORT = 14  # tokens: 91 % are no longer


def encoder() -> World:
    """150 intents of CLINC150: all-MiniLM-L6-v2 itself, fine-tuned, its vocabulary cut to the sentences."""
    shape = {"type": "transformer", "width": 384, "layers": 6, "heads": 12, "feedforward": 1536}
    student = {"encoder": shape, "vocabulary": 6000, "initialise": "teacher"}
    learning = {"epochs": 1, "batch_size": 32, "learning_rate": 2e-4, "averaging": 0.98}
    return _intents("encoder", 150, student, learning, _fine_tune)


def quick_encoder() -> World:
    """20 of the intents and a small transformer trained from scratch: seconds instead of minutes."""
    shape = {"type": "transformer", "width": 64, "layers": 2, "heads": 4, "feedforward": 256}
    student = {"encoder": shape, "vocabulary": 1000}
    return _intents("quick_encoder", 20, student, {"epochs": 12, "batch_size": 64, "learning_rate": 4e-3})


def _intents(
    name: str,
    count: int,
    student: Mapping[str, Any],
    learning: Mapping[str, Any],
    learn: Callable[[nn.Module, TrainingSet, Distillation], object] = distil,
) -> World:
    """The first ``count`` intents; a tenth of the training sentences is held out as ``validation``.

    The teacher, MiniLM with a linear head, labels each half of what is learned by a head fitted on the other half and
    on the data set's own validation split.
    """
    from examples.router import MiniLM

    splits = _clinc150()
    names = sorted({intent for _, intent in splits["train"]})[:count]
    texts, outcomes = {}, {}
    for part in ("train", "val", "test"):
        kept = [(text, names.index(intent)) for text, intent in splits[part] if intent in names]
        texts[part] = np.array([text for text, _ in kept], dtype=object)
        outcomes[part] = np.array([action for _, action in kept], dtype=np.int64)
    order = np.random.default_rng(0).permutation(len(texts["train"]))
    places = {"validation": np.sort(order[: len(order) // 10]), "learned": np.sort(order[len(order) // 10 :])}
    rows = {split: pd.DataFrame({"text": texts["train"][place]}) for split, place in places.items()}
    truth = {split: outcomes["train"][place] for split, place in places.items()}
    rows["test"], truth["test"] = pd.DataFrame({"text": texts["test"]}), outcomes["test"]
    described = {"kind": "text", "widths": [], "length": LENGTH, "dropout": 0.1} | dict(student)
    initial = MiniLM().text_encoder() if described.get("initialise") == "teacher" else None
    config = agent({"text": {"type": "text"}}, count, described, **learning)
    columns = columns_of(config, rows["learned"], initial)
    return _world(
        name,
        config,
        new_student(config, columns, _encoded(rows["learned"], columns), initial),
        columns,
        rows,
        truth,
        lambda: _crossed(list(rows["learned"]["text"]), truth["learned"], list(texts["val"]), outcomes["val"]),
        config.distillation,
        learn,
    )


def _clinc150() -> dict[str, list[tuple[str, str]]]:
    """``(sentence, intent)`` by the data set's own splits."""
    from examples.router import fetch_file

    found: dict[str, list[tuple[str, str]]] = json.loads(fetch_file("data_full.json").read_text(encoding="utf-8"))
    return found


def _crossed(learned: list[str], outcomes: Array, others: list[str], known: Array) -> Array:
    """What heads say about each half of ``learned`` that were fitted on the other half and on ``others``."""
    vectors, beside = embedded(learned), embedded(others)
    half = np.random.default_rng(1).permutation(len(learned)) % 2
    probabilities = np.empty((len(learned), int(known.max()) + 1))
    for number in (0, 1):
        head = _regression(30).fit(
            np.concatenate([vectors[half != number], beside]), np.concatenate([outcomes[half != number], known])
        )
        probabilities[half == number] = head.predict_proba(vectors[half == number])
    return probabilities


def _fine_tune(student: nn.Module, lesson: TrainingSet, settings: Distillation) -> None:
    """First the last layer learns alone, as a regression on the encoder's vectors; then all of it, on short sentences.

    In this order because a random last layer would pull good vectors apart (Kumar et al. 2022, "Fine-Tuning can
    Distort Pretrained Features and Underperform Out-of-Distribution", §3.4). Sentences of more than ``_SHORT`` tokens
    are left out, since padding all others to their length would nearly double the time.
    """
    assert isinstance(student, TextStudent)
    brief = copy.deepcopy(student)
    text: Any = brief.encoders[0]
    brief.lengths, text.places = [_SHORT], nn.Parameter(text.places[: _SHORT + 1].detach().clone())
    chosen = lesson.take((lesson.x[:, _SHORT:] == 0).all(dim=1).nonzero().squeeze(1))
    chosen.x, chosen.tokens = chosen.x[:, :_SHORT].contiguous(), _SHORT
    _begin_last(brief, chosen.take(torch.arange(0, len(chosen), 2)))
    distil(brief, chosen, settings)
    learned, places = brief.state_dict(), "encoders.0.places"
    learned[places] = torch.cat([learned[places], student.state_dict()[places][_SHORT + 1 :]])
    student.load_state_dict(learned)


def _begin_last(student: TextStudent, lesson: TrainingSet) -> None:
    """Let the last layer be a regression of the outcomes on the vectors that it is given."""
    (text,), last = student.encoders, student.layers[-1]
    student.eval()
    with torch.no_grad():
        vectors = torch.cat([text(part.to(torch.int64)) for part in lesson.x.split(64)]).numpy()
    scale = float(np.linalg.norm(vectors, axis=1).mean())
    head = _regression(30).fit(vectors / scale, lesson.labels.numpy())
    with torch.no_grad():
        last.weight.copy_(torch.from_numpy(head.coef_ / scale))
        last.bias.copy_(torch.from_numpy(head.intercept_))


def _regression(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=100, tol=1e-3)


# --------------------------------------------------------------------------- flights


def flights() -> World:
    """Departures of 2013 and the student of ``agents/flights.yaml``: 8 weeks for the teacher, then 10, 2 and 2."""
    from examples.flights import Boosting, departures, lateness, week_start

    described = yaml.safe_load(Path("agents/flights.yaml").read_text(encoding="utf-8"))
    config = AgentConfig.model_validate(described)
    late = lateness(week_start(0), week_start(22))[["observation_id", "action"]]
    whole = departures(week_start(0), week_start(22)).merge(late, on="observation_id")
    before, *parts = (
        whole[(whole["observed_at"] >= week_start(begin)) & (whole["observed_at"] < week_start(end))]
        for begin, end in ((0, 8), (8, 18), (18, 20), (20, 22))
    )
    parts[0] = parts[0].sample(30_000, random_state=0).sort_values("observed_at")
    rows = {split: part.reset_index(drop=True) for split, part in zip(SPLITS, parts, strict=True)}
    outcomes = {split: _late(part) for split, part in rows.items()}
    columns = columns_of(config, rows["learned"])
    student = new_student(config, columns, _encoded(rows["learned"], columns))
    return _world(
        "flights",
        config,
        student,
        columns,
        rows,
        outcomes,
        lambda: Boosting(seed=0, threads=1).fit(before, _late(before)).predict_proba(rows["learned"]),
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
    before, *parts = np.split(order, [400, 1100, 1400])
    rows = {split: (x[place] / 16).astype(np.float32) for split, place in zip(SPLITS, parts, strict=True)}
    outcomes = {split: y[place].astype(np.int64) for split, place in zip(SPLITS, parts, strict=True)}
    settings = Distillation(epochs=40, batch_size=64, learning_rate=3e-3)
    return _world(
        "digits",
        None,
        _network(),
        None,
        rows,
        outcomes,
        lambda: kernels(0).fit(x[before] / 16, y[before]).predict_proba(rows["learned"]),
        settings,
    )


def _network() -> nn.Module:
    """Flat rows ``[n, 64]`` to logits ``[n, 10]``."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
        for inputs, outputs, pool in ((1, 32, 1), (32, 64, 2), (64, 64, 2)):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
            layers += [nn.MaxPool2d(pool)] if pool > 1 else []
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 192), nn.ReLU(), nn.Linear(192, 10))


WORLDS: dict[str, Callable[[], World]] = {"encoder": encoder, "flights": flights, "digits": digits}


def _answers(world: World, split: str) -> Array:
    x = world.encoded(split)
    return np.concatenate([run_torch(world.student, {"x": x[start : start + 256]}) for start in range(0, len(x), 256)])


def main() -> None:
    """Make all worlds; print the size and quality of each student, and how long it took to train."""
    table = Table("world", "parameters", "validation", "test", "seconds")
    for name, make in {**WORLDS, "quick_encoder": quick_encoder}.items():
        world = make()
        found = [f"{quality(world, _answers(world, split), split):.4f}" for split in ("validation", "test")]
        count = sum(parameter.numel() for parameter in world.student.parameters())
        table.add_row(name, f"{count:,}", *found, f"{world.seconds:.0f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
