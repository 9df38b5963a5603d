"""A student is distilled and compressed from a data frame, without an agent file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import stillhouse
from stillhouse.distilling import DistilledStudent
from stillhouse.errors import ConfigError, DataError, ExportError

ACTIONS = ("low", "high")


def patients(count: int = 600) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame({"age": rng.uniform(0, 90, count), "ward": rng.choice(["a", "b"], count)})
    p_high = 1 / (1 + np.exp(-(rows["age"].to_numpy() - 45) / 10 - np.where(rows["ward"] == "a", 1.0, -1.0)))
    return rows, np.column_stack([1 - p_high, p_high])


@pytest.fixture(scope="module")
def student() -> DistilledStudent:
    return stillhouse.distil(*patients(), actions=ACTIONS, epochs=20)


def test_the_variant_decides_like_the_teacher_on_new_rows(student: DistilledStudent, tmp_path: Path) -> None:
    variant = student.compress(tmp_path / "risk", max_bytes=60_000, search=None)
    rows, teacher_probs = patients(2000)
    assert (variant.predict_proba(rows[600:]).argmax(1) == teacher_probs[600:].argmax(1)).mean() > 0.9
    assert variant.actions == list(ACTIONS) and variant.decide({"age": 85, "ward": "a"}).action == "high"
    assert sum(file.stat().st_size for file in (tmp_path / "risk").iterdir()) <= 60_000
    assert stillhouse.Variant(tmp_path / "risk").decide({"age": 5, "ward": "b"}).action == "low"


@pytest.mark.slow
def test_a_search_makes_it_smaller(student: DistilledStudent, tmp_path: Path) -> None:
    plain = student.compress(tmp_path / "plain", search=None, max_quality_loss=0.0001)
    small = student.compress(tmp_path / "small", search="5s", max_quality_loss=0.05)
    sizes = [(tmp_path / name / "model.onnx").stat().st_size for name in ("plain", "small")]
    assert sizes[1] <= sizes[0] and plain.actions == small.actions


def test_what_cannot_fit_is_refused_and_nothing_is_written(student: DistilledStudent, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="nothing fits: it would take a max_bytes of"):
        student.compress(tmp_path / "tiny", max_bytes=1000, search=None)
    assert not (tmp_path / "tiny").exists()
    (tmp_path / "taken").mkdir()
    with pytest.raises(DataError, match="taken exists"):
        student.compress(tmp_path / "taken", search=None)


@pytest.mark.slow
def test_rows_without_teacher_probabilities_teach_by_their_labels(tmp_path: Path) -> None:
    rows, teacher_probs = patients()
    labels = teacher_probs.argmax(1)
    teacher_probs[::2] = np.nan
    labels[1::4] = -1
    variant = stillhouse.distil(rows, teacher_probs, labels, actions=ACTIONS, epochs=20).compress(
        tmp_path / "risk", search=None
    )
    assert variant.decide({"age": 85, "ward": "a"}).action == "high"


def test_a_student_of_texts(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    words = np.array(["please", "today", "thanks", "soon"])
    expected = rng.integers(2, size=400)
    texts = [f"{'cancel' if stop else 'book'} it {rng.choice(words)}" for stop in expected]
    student = stillhouse.distil(
        pd.DataFrame({"sentence": texts}),
        np.where(expected[:, None] == [0, 1], 0.95, 0.05),
        actions=["book", "cancel"],
        columns={"sentence": {"type": "text"}},
        student={"kind": "text", "length": 8},
        epochs=20,
        learning_rate=0.02,
    )
    variant = student.compress(tmp_path / "intent", search=None)
    assert variant.decide({"sentence": "cancel it now"}).action == "cancel"


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"actions": ["low", "mid", "high"]}, DataError, r"need teacher_probs \[600, 3\] and labels \[600\]"),
        ({"labels": np.zeros(3)}, DataError, r"they are \[600, 2\] and \[3\]"),
        ({"epochs": -1}, ConfigError, "distillation.epochs: "),
        ({"epoch": 3}, ConfigError, "distillation.epoch: "),
        ({"student": {"kind": "tree"}}, ConfigError, "student: "),
        ({"columns": {"age": {"type": "colour"}}}, ConfigError, "observations.columns.age: "),
    ],
)
def test_a_wrong_argument_is_named(change: dict[str, object], error: type[Exception], text: str) -> None:
    rows, teacher_probs = patients()
    arguments = {"rows": rows, "teacher_probs": teacher_probs, "actions": ACTIONS} | change
    with pytest.raises(error, match=text):
        stillhouse.distil(**arguments)


@pytest.mark.parametrize(
    ("limit", "text"),
    [({"max_bytes": -1}, "max_bytes: "), ({"max_p95_ms": 0}, "max_p95_ms: "), ({"search": "soon"}, "search.time: ")],
)
def test_a_wrong_limit_is_named_and_nothing_is_written(
    limit: dict[str, object], text: str, student: DistilledStudent, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=text):
        student.compress(tmp_path / "small", **limit)
    assert not (tmp_path / "small").exists()


def test_too_few_rows_are_refused() -> None:
    rows, teacher_probs = patients(40)
    with pytest.raises(DataError, match="40 rows are too few"):
        stillhouse.distil(rows, teacher_probs, actions=ACTIONS)
