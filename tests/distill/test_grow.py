"""An extended student keeps its predictions and has outputs and embeddings for what is new."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from stillhouse.config import BagEncoder
from stillhouse.distill.grow import extend_columns, grow_student, transfer_weights
from stillhouse.distill.students import TabularStudent, TextStudent, load, save
from stillhouse.errors import SchemaError

COLUMNS = [
    {"name": "a", "type": "number"},
    {"name": "place", "type": "category", "values": ["north", "south"]},
]
ROWS = np.array([[0.3, 1], [np.nan, 2], [-1.0, 0]], dtype=np.float32)


@pytest.fixture
def student() -> TabularStudent:
    torch.manual_seed(0)
    return TabularStudent(torch.linspace(-2, 2, 5).repeat(1, 1), (2,), 2, (6,)).eval()


def predict(student: TabularStudent, rows: np.ndarray = ROWS) -> torch.Tensor:
    with torch.no_grad():
        return torch.softmax(student(torch.from_numpy(rows)), dim=1)


def test_new_values_are_appended_in_any_order_of_the_file() -> None:
    fresh = [COLUMNS[0], COLUMNS[1] | {"values": ["east", "south", "west"]}]
    assert extend_columns(COLUMNS, fresh)[1]["values"] == ["north", "south", "east", "west"]
    assert COLUMNS[1]["values"] == ["north", "south"]


@pytest.mark.parametrize(
    "fresh", [COLUMNS[:1], COLUMNS[::-1], [COLUMNS[0] | {"name": "b"}, COLUMNS[1]], [COLUMNS[1], COLUMNS[1]]]
)
def test_other_columns_are_refused(fresh) -> None:
    with pytest.raises(SchemaError, match="agent file has"):
        extend_columns(COLUMNS, fresh)


def test_new_value_starts_with_the_unknown_embedding(student: TabularStudent, tmp_path: Path) -> None:
    after = extend_columns(COLUMNS, [COLUMNS[0], COLUMNS[1] | {"values": ["south", "west", "east", "up"]}])
    larger = grow_student(student, COLUMNS, after, ["no", "yes"], ["no", "yes"], ROWS, np.array([0.5, 0.5]))
    assert torch.equal(predict(larger), predict(student))
    new, unknown = np.array([[0.3, 5]], np.float32), np.array([[0.3, 0]], np.float32)
    assert torch.equal(predict(larger, new), predict(student, unknown))
    save(larger, tmp_path)
    assert torch.equal(predict(load(tmp_path), new), predict(larger, new))
    assert student.spec["cardinalities"] == [2]


def test_new_actions_start_with_their_share_and_old_odds_stay(student: TabularStudent, tmp_path: Path) -> None:
    new_actions = ["no", "perhaps", "yes"]
    larger = grow_student(student, COLUMNS, COLUMNS, ["no", "yes"], new_actions, ROWS, np.array([0.5, 0.1, 0.4]))
    before, after = predict(student), predict(larger)
    torch.testing.assert_close(after[:, 0] / after[:, 2], before[:, 0] / before[:, 1])
    assert after[:, 1].mean().item() == pytest.approx(0.1, abs=0.03)
    save(larger, tmp_path)
    assert torch.equal(predict(load(tmp_path)), after)


def test_removed_action_loses_its_output(student: TabularStudent) -> None:
    larger = grow_student(student, COLUMNS, COLUMNS, ["no", "yes"], ["yes", "later"], ROWS, np.array([0.9, 0.1]))
    assert torch.equal(larger.layers[-1].weight[0], student.layers[-1].weight[1]) and predict(larger).shape == (3, 2)


def test_weights_are_transferred_where_shapes_match(student: TabularStudent) -> None:
    torch.manual_seed(1)
    wider = transfer_weights(TabularStudent(student.edges + 1, (2,), 3, (6,)), student)
    assert torch.equal(wider.edges, student.edges)
    assert torch.equal(wider.layers[0].weight, student.layers[0].weight)
    assert wider.layers[-1].weight.shape == (3, 6)
    other = TabularStudent(torch.zeros(1, 5) + 1, (2,), 2, (7,))
    edges = other.edges.clone()
    transfer_weights(other, student)
    assert torch.equal(other.edges, edges) and torch.equal(other.embeddings[0].weight, student.embeddings[0].weight)


def test_new_token_starts_with_the_unknown_embedding_and_old_words_keep_theirs(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = ["[PAD]", "[UNK]", "a", "b", "##a", "##b"]
    before = [{"name": "said", "type": "text", "tokens": tokens, "length": 4}]
    after = extend_columns(before, [before[0] | {"tokens": ["[PAD]", "[UNK]", "ab", "##c", "c", "cab", "a"]}])
    assert after[0]["tokens"] == [*tokens, "##c", "c", "cab"]
    student = TextStudent(torch.zeros(0, 5), (), [(6, 4)], BagEncoder(type="bag", width=6), 2, (5,)).eval()
    larger = grow_student(
        student, before, after, ["no", "yes"], ["no", "yes"], np.zeros((1, 4), np.float32), np.ones(2) / 2
    )
    old_rows, new_rows = np.array([[2, 5, 3, 0]], np.float32), np.array([[2, 8, 0, 0]], np.float32)
    assert torch.equal(predict(larger, old_rows), predict(student, old_rows))
    assert torch.equal(predict(larger, new_rows), predict(student, np.array([[2, 1, 0, 0]], np.float32)))
    save(larger, tmp_path)
    assert torch.equal(predict(load(tmp_path), new_rows), predict(larger, new_rows))
