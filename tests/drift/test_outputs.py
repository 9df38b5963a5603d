"""The student's output as columns: their names and values, and a profile of them."""

import numpy as np
import pandas as pd
import pytest

from stillhouse.drift.outputs import output_columns, output_frame
from stillhouse.drift.scan import profile_frame
from stillhouse.errors import SchemaError


def random_probabilities(rows, actions, seed=0):
    return np.random.default_rng(seed).dirichlet(np.ones(actions), rows)


@pytest.mark.parametrize(
    ("actions", "expected"),
    [
        (["on_time", "late"], ["p(late)", "margin", "action"]),
        (["a", "b", "c"], ["p(a)", "p(b)", "p(c)", "margin", "action"]),
        (list("abcdefgh"), [*(f"p({a})" for a in "abcdefgh"), "margin", "action"]),
        (list("abcdefghi"), ["p(top)", "margin", "action"]),
    ],
)
def test_columns_by_number_of_actions(actions, expected):
    frame = output_frame(random_probabilities(20, len(actions)), actions)
    assert list(frame.columns) == expected == list(output_columns(actions))
    assert len(frame) == 20


def test_known_values():
    frame = output_frame(np.array([[0.7, 0.3], [0.5, 0.5], [0.1, 0.9]]), ["no", "yes"])
    np.testing.assert_allclose(frame["p(yes)"], [0.3, 0.5, 0.9])
    np.testing.assert_allclose(frame["margin"], [0.4, 0.0, 0.8])
    assert frame["action"].astype(str).tolist() == ["no", "no", "yes"]  # the first of equals


def test_margin_and_top_are_those_of_the_sorted_probabilities():
    probabilities = random_probabilities(200, 12, seed=3)
    frame = output_frame(probabilities, [f"a{k}" for k in range(12)])
    ordered = -np.sort(-probabilities, axis=1)
    np.testing.assert_allclose(frame["p(top)"], ordered[:, 0])
    np.testing.assert_allclose(frame["margin"], ordered[:, 0] - ordered[:, 1])
    assert (frame["action"].astype(str) == [f"a{k}" for k in probabilities.argmax(axis=1)]).all()


@pytest.mark.parametrize("actions", [2, 5, 20])
def test_outputs_can_be_profiled(actions):
    names = [f"a{k}" for k in range(actions)]
    profile = profile_frame(output_frame(random_probabilities(300, actions), names), output_columns(names))
    assert profile.rows == 300
    assert set(profile.columns["action"].counts) <= set(names)
    assert sum(profile.columns["action"].counts.values()) == 300


def test_no_rows():
    assert output_frame(np.empty((0, 3)), ["a", "b", "c"]).shape == (0, 5)


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 2, 1)])
def test_a_wrong_shape_is_refused(shape):
    with pytest.raises(SchemaError, match="2 actions"):
        output_frame(np.full(shape, 0.5), ["no", "yes"])


def test_outputs_can_be_joined_to_rows_of_any_index():
    rows = pd.DataFrame({"x": [1.0, 2.0]}, index=[7, 3])
    outputs = output_frame(np.array([[0.2, 0.8], [0.6, 0.4]]), ["no", "yes"]).set_index(rows.index)
    assert pd.concat([rows, outputs], axis=1)["p(yes)"].tolist() == [0.8, 0.4]
