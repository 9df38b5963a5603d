"""A user's code hangs, fails or answers with something else: each is told in one sentence."""

from __future__ import annotations

import contextvars
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.errors import PartError, WindowError
from stillhouse.teachers import ensemble
from stillhouse.teachers.answers import checked
from stillhouse.teachers.calling import call
from tests.teachers.parts_for_tests import Constant
from tests.teachers.test_ensemble import WINDOW, make_config, make_rows

LIMITS = [None, timedelta(seconds=20)]
NAMED = contextvars.ContextVar("NAMED", default="nobody")


@pytest.mark.parametrize("limit", LIMITS)
def test_what_comes_back_and_what_is_raised(limit: timedelta | None) -> None:
    assert call("it", limit, divmod, 7, 2) == (3, 1)
    with pytest.raises(PartError, match=r"^it fails: ZeroDivisionError: .* \(test_calling.py, line \d+\)$") as caught:
        call("it", limit, lambda: 1 / 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(WindowError, match="a mistake with words of its own"):
        call("it", limit, fails, WindowError("a mistake with words of its own"))
    with pytest.raises(KeyboardInterrupt):
        call("it", limit, fails, KeyboardInterrupt())


def fails(error: BaseException) -> None:
    raise error


def test_it_runs_in_the_context_of_the_caller() -> None:
    token = NAMED.set("somebody")
    assert call("it", timedelta(seconds=20), NAMED.get) == "somebody"
    NAMED.reset(token)


def test_what_hangs_is_left_behind() -> None:
    release = threading.Event()
    with pytest.raises(PartError, match=r"^it is not done after 0.05 s: it hangs, or needs a longer `timeout`"):
        call("it", timedelta(seconds=0.05), release.wait)
    (left,) = [thread for thread in threading.enumerate() if thread.name == "it"]
    assert left.daemon  # it does not keep the process alive
    release.set()
    left.join(20)


class Hanging(Constant):
    """Waits for ever where it is told to."""

    release = threading.Event()

    def __init__(self, where: str = "") -> None:
        super().__init__()
        self.where = where

    def fit(self, rows: pd.DataFrame, outcomes: Any) -> None:
        if self.where == "fit":
            self.release.wait()

    def predict_proba(self, rows: pd.DataFrame) -> Any:
        if self.where == "predict_proba":
            self.release.wait()
        return super().predict_proba(rows)

    def save(self, folder: Path) -> None:
        pass

    @classmethod
    def load(cls, folder: Path) -> Hanging:
        return cls("predict_proba")


@pytest.fixture
def released() -> Any:
    yield
    Hanging.release.set()


@pytest.mark.usefixtures("released")
def test_a_teacher_that_hangs_in_every_place_where_it_is_called(tmp_path: Path) -> None:
    teacher = {"name": "slow", "target": f"{__name__}:Hanging", "timeout": "0.05s"}
    rows = make_rows(24)
    config = make_config(teacher | {"settings": {"where": "fit"}})
    with pytest.raises(PartError, match=r"fitting teacher 'slow' on 24 rows is not done after 0.05 s"):
        ensemble.fit(config, rows, WINDOW, tmp_path / "t")
    config = make_config(teacher | {"settings": {"where": "predict_proba"}})
    with pytest.raises(PartError, match="teacher 'slow' on 6 rows is not done"):
        ensemble.cross_fit(config, rows)
    ensemble.fit(config, rows, WINDOW, tmp_path / "t")
    with pytest.raises(PartError, match="teacher 'slow' on 3 rows is not done"):
        ensemble.load(tmp_path / "t", config).predict_proba(make_rows(3))


def test_the_time_out_is_no_part_of_what_it_knows(tmp_path: Path) -> None:
    teacher = {"name": "t", "target": "tests.teachers.parts_for_tests:Constant", "learns": False}
    versions = {
        ensemble.fit(make_config(teacher | more), make_rows(24), WINDOW, tmp_path / "t").version
        for more in ({}, {"timeout": "1h"})
    }
    assert len(versions) == 1


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ([[0.5, 0.5], [1.0]], "with a list that is no array"),
        ({"go": 0.5}, r"with shape \(\), not \(2, 2\)"),
        (None, r"with shape \(\), not \(2, 2\)"),
        (np.full((2, 2), 0.5 + 0j), "with complex128 values, not with numbers"),
        ([["a", "b"], ["c", "d"]], "with <U1 values, not with numbers"),
        (np.array([[None, 1.0], [0.5, 0.5]], dtype=object), "with values that are not probabilities"),
        ([[np.inf, 0.0], [0.5, 0.5]], "with values that are not probabilities"),
        ([[0.6, 0.6], [0.5, 0.5]], "with values that are not probabilities"),
    ],
)
def test_what_is_no_answer(said: object, message: str) -> None:
    with pytest.raises(PartError, match=f"teacher 't' answered {message}"):
        checked("t", said, 2, ("wait", "go"))


def test_whole_numbers_and_objects_that_are_numbers_will_do() -> None:
    for said in ([[1, 0], [0, 1]], np.array([[0.25, 0.75], [1, 0]], dtype=object), [[True, False], [False, True]]):
        assert checked("t", said, 2, ("wait", "go")).dtype == np.float64
