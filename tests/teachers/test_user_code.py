"""User code that hangs, fails or gives an invalid answer raises an error of one sentence."""

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
from stillhouse.teachers.answers import check_probs
from stillhouse.teachers.cross_fitting import cross_fit
from stillhouse.teachers.user_code import call_user_code
from tests.teachers.test_ensemble import WINDOW, make_config, make_rows
from tests.teachers.toy_teachers import Constant

LIMITS = [None, timedelta(seconds=20)]
NAMED = contextvars.ContextVar("NAMED", default="default")


@pytest.mark.parametrize("limit", LIMITS)
def test_result_and_exceptions_of_user_code(limit: timedelta | None) -> None:
    assert call_user_code("it", limit, divmod, 7, 2) == (3, 1)
    with pytest.raises(PartError, match=r"^it fails: ZeroDivisionError: .* \(test_user_code.py, line \d+\)$") as caught:
        call_user_code("it", limit, lambda: 1 / 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    with pytest.raises(WindowError, match="its own message"):
        call_user_code("it", limit, raise_error, WindowError("its own message"))
    with pytest.raises(KeyboardInterrupt):
        call_user_code("it", limit, raise_error, KeyboardInterrupt())


def raise_error(error: BaseException) -> None:
    raise error


def test_user_code_runs_in_the_callers_context() -> None:
    token = NAMED.set("callers value")
    assert call_user_code("it", timedelta(seconds=20), NAMED.get) == "callers value"
    NAMED.reset(token)


def test_hanging_user_code_raises_after_the_timeout() -> None:
    release = threading.Event()
    with pytest.raises(PartError, match=r"^it is not done after 0.05 s: it hangs, or needs a longer `timeout`"):
        call_user_code("it", timedelta(seconds=0.05), release.wait)
    (left,) = [thread for thread in threading.enumerate() if thread.name == "it"]
    assert left.daemon  # it does not keep the process alive
    release.set()
    left.join(20)


class HangingTeacher(Constant):
    """Hangs in the method that its setting names."""

    release = threading.Event()

    def __init__(self, where: str = "") -> None:
        super().__init__()
        self.where = where

    def fit(self, rows: pd.DataFrame, labels: Any) -> None:
        if self.where == "fit":
            self.release.wait()

    def predict_proba(self, rows: pd.DataFrame) -> Any:
        if self.where == "predict_proba":
            self.release.wait()
        return super().predict_proba(rows)

    def save(self, folder: Path) -> None:
        pass

    @classmethod
    def load(cls, folder: Path) -> HangingTeacher:
        return cls("predict_proba")


@pytest.fixture
def release_at_end() -> Any:
    yield
    HangingTeacher.release.set()


@pytest.mark.usefixtures("release_at_end")
def test_timeout_of_fit_cross_fit_and_predict(tmp_path: Path) -> None:
    teacher = {"name": "slow", "target": f"{__name__}:HangingTeacher", "timeout": "0.05s"}
    rows = make_rows(24)
    config = make_config(teacher | {"settings": {"where": "fit"}})
    with pytest.raises(PartError, match=r"fitting teacher 'slow' on 24 rows is not done after 0.05 s"):
        ensemble.fit(config, rows, WINDOW, tmp_path / "t")
    config = make_config(teacher | {"settings": {"where": "predict_proba"}})
    with pytest.raises(PartError, match="teacher 'slow' on 6 rows is not done"):
        cross_fit(config, rows)
    ensemble.fit(config, rows, WINDOW, tmp_path / "t")
    with pytest.raises(PartError, match="teacher 'slow' on 3 rows is not done"):
        ensemble.load(tmp_path / "t", config).predict_proba(make_rows(3))


def test_timeout_does_not_change_the_version(tmp_path: Path) -> None:
    teacher = {"name": "t", "target": "tests.teachers.toy_teachers:Constant", "learns": False}
    versions = {
        ensemble.fit(make_config(teacher | more), make_rows(24), WINDOW, tmp_path / "t").version
        for more in ({}, {"timeout": "1h"})
    }
    assert len(versions) == 1


@pytest.mark.parametrize(
    ("answer", "message"),
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
def test_check_probs_rejects_invalid_answers(answer: object, message: str) -> None:
    with pytest.raises(PartError, match=f"teacher 't' answered {message}"):
        check_probs("t", answer, 2, ("wait", "go"))


def test_check_probs_accepts_integers_objects_and_booleans() -> None:
    for answer in ([[1, 0], [0, 1]], np.array([[0.25, 0.75], [1, 0]], dtype=object), [[True, False], [False, True]]):
        assert check_probs("t", answer, 2, ("wait", "go")).dtype == np.float64
