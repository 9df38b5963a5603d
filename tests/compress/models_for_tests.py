"""Small students, their rows, and compression targets, importable by worker processes."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import torch
from torch import nn

from stillhouse.compress.build import BuiltModel
from stillhouse.compress.export import run_torch
from stillhouse.compress.processor import Processor
from stillhouse.compress.target import CompressionTarget, ModelState
from stillhouse.compress.variants import target_from_student
from stillhouse.config import BagEncoder, ConvolutionEncoder, TransformerEncoder
from stillhouse.distill.students import TabularStudent, TextStudent, quantile_edges
from stillhouse.distill.vocabulary import grow_vocabulary
from stillhouse.variant import encode

Array = np.ndarray[Any, Any]

CARDINALITIES = (16, 3, 105)
WITHOUT_VNNI = Processor(name="a processor without VNNI", flags=("avx2",))
WITH_VNNI = Processor(name="a processor with VNNI", flags=("avx2", "avx512f", "avx512_vnni"))

ENCODERS = {
    "bag": BagEncoder(type="bag", width=48, bigrams=300),
    "convolution": ConvolutionEncoder(type="convolution", width=24, filters=24),
    "transformer": TransformerEncoder(type="transformer", width=32, layers=2, heads=4, feedforward=64),
}
ACTIONS = ("greet", "book", "cancel")


def encoded(count: int, seed: int = 0) -> Array:
    """Rows as `stillhouse.variant.encode` makes them: 20 numbers (some missing) and 3 category codes."""
    random = np.random.default_rng(seed)
    numbers = random.normal(scale=np.logspace(-1, 3, 20), size=(count, 20))
    numbers[random.random(numbers.shape) < 0.05] = np.nan
    codes = [random.integers(0, values + 1, (count, 1)) for values in CARDINALITIES]
    return np.hstack([numbers, *codes]).astype(np.float32)


def feed(count: int, seed: int = 0) -> dict[str, Array]:
    return {"x": encoded(count, seed)}


def tabular(widths: tuple[int, ...] = (64, 32), dropout: float = 0.0) -> TabularStudent:
    """A student whose probabilities spread over (0, 1), as a trained one's do."""
    torch.manual_seed(0)
    edges = quantile_edges(encoded(2000)[:, :20], 12)
    student = TabularStudent(edges, CARDINALITIES, 2, widths, dropout=dropout).eval()
    with torch.no_grad():
        linears(student)[-1].weight.mul_(10)
    return student


def linears(module: nn.Module) -> list[nn.Linear]:
    return [part for part in module.modules() if isinstance(part, nn.Linear)]


# --------------------------------------------------------------------------- texts


@cache
def sentences(count: int, seed: int = 0) -> pd.DataFrame:
    """Sentences of made-up words beside an hour and a place; one value in twenty is missing."""
    random = np.random.default_rng(seed)
    words = np.array([f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in "lmnrst"])
    texts = [" ".join(random.choice(words, random.integers(0, 9))) for _ in range(count)]
    frame = pd.DataFrame(
        {"said": texts, "hour": random.uniform(0, 24, count), "place": random.choice(["x", "y"], count)}
    )
    return frame.mask(random.random(frame.shape) < 0.05)


TEXT_COLUMNS: list[dict[str, Any]] = [
    {"name": "hour", "type": "number"},
    {"name": "place", "type": "category", "values": ["x"]},
    {"name": "said", "type": "text", "length": 10, "tokens": grow_vocabulary(sentences(500)["said"].dropna(), 400)},
]


def text_student(encoder: Any, widths: tuple[int, ...] = (32,)) -> TextStudent:
    torch.manual_seed(0)
    edges = quantile_edges(encode(sentences(500), TEXT_COLUMNS)[:, :1], 4)
    student = TextStudent(edges, (1,), [(len(TEXT_COLUMNS[2]["tokens"]), 10)], encoder, 3, widths, embedding=2)
    for table in student.encoders:
        torch.nn.init.normal_(table.embedding.weight)  # type: ignore[union-attr,arg-type]  # far from even
    return student.eval()


# --------------------------------------------------------------------------- a target that learns quickly

COLUMNS: list[dict[str, Any]] = [
    *({"name": name, "type": "number"} for name in "abcdef"),
    {"name": "origin", "type": "category", "values": [str(i) for i in range(80)]},
]


@cache
def raw(count: int, seed: int = 0) -> pd.DataFrame:
    """Six numbers, of which two matter, and a category."""
    random = np.random.default_rng(seed)
    rows = pd.DataFrame(random.normal(size=(count, 6)), columns=list("abcdef"))
    rows["origin"] = random.integers(0, 90, count).astype(str)
    return rows


def train(module: nn.Module, x: Array, logits: Array, epochs: int) -> nn.Module:
    """Some epochs of distillation towards logits, the same each time."""
    module.train()
    optimiser = torch.optim.Adam(module.parameters(), lr=0.01)
    inputs, targets = torch.from_numpy(x), torch.from_numpy(logits)
    for _ in range(epochs):
        optimiser.zero_grad()
        loss = torch.nn.functional.mse_loss(module(inputs), targets)
        loss.backward()
        optimiser.step()
    return module.eval()


def make_target(
    student: nn.Module,
    columns: list[dict[str, Any]],
    actions: tuple[str, ...],
    rows: pd.DataFrame,
    validation: pd.DataFrame,
    **changes: Any,
) -> CompressionTarget:
    """Quality is the share of validation rows on which a state chooses as the student does."""
    decisions = run_torch(student, {"x": encode(validation, columns)}).argmax(axis=1)
    logits = run_torch(student, {"x": encode(rows, columns)}, softmax=False)

    def recover(state: ModelState, epochs: int) -> ModelState:
        assert state.columns is not None
        return ModelState(train(state.module, encode(rows, state.columns), logits, epochs), state.columns)

    settings: dict[str, Any] = {
        "calibration": lambda columns: encode(rows, columns),
        "validation": lambda columns: encode(validation, columns),
        "quality": lambda p: float((p.argmax(axis=1) == decisions).mean()),
        "recover": recover,
        "content_hash": "rows of the test",
    }
    return target_from_student(student, columns, actions, **settings | changes)


def make_tabular_target(**changes: Any) -> CompressionTarget:
    """Of a student with two hidden layers that has learnt a rule from two of its six numbers."""
    rows = raw(400)
    torch.manual_seed(0)
    x = encode(rows, COLUMNS)
    student = TabularStudent(quantile_edges(x[:, :6], 6), (80,), 2, (48, 24), embedding=8)
    rule = (4 * rows["a"] + 3 * rows["b"] * rows["a"]).to_numpy(np.float32)
    train(student, x, np.column_stack([-rule, rule]), 40)
    return make_target(student, COLUMNS, ("no", "yes"), rows, raw(600, 1), **changes)


def make_text_target(**changes: Any) -> CompressionTarget:
    """Of a small transformer."""
    encoder = TransformerEncoder(type="transformer", width=16, layers=2, heads=2, feedforward=32)
    return make_target(
        text_student(encoder, (16,)), TEXT_COLUMNS, ACTIONS, sentences(300), sentences(300, 1), **changes
    )


def make_graph_target() -> CompressionTarget:
    """Of an ONNX graph alone."""
    target = make_tabular_target()
    calibration, validation = target.calibration(COLUMNS), target.validation(COLUMNS)
    return CompressionTarget(
        model=target.model,
        calibration=lambda columns: calibration,
        validation=lambda columns: validation,
        quality=target.quality,
    )


def write_model(folder: Path, model: onnx.ModelProto, built: BuiltModel) -> None:
    """The artifact is the model alone."""
    (folder / "model.onnx").write_bytes(model.SerializeToString())
