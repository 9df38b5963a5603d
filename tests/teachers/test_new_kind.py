"""A new kind of teacher needs its section and its file only; a kind without a file raises an error."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import Leaf, LeafTeacher, TeacherSection, leaves
from stillhouse.config.base import tagged
from stillhouse.errors import PartError
from stillhouse.teachers import ensemble
from stillhouse.teachers.answers import wrap_predict
from stillhouse.teachers.cross_fitting import cross_fit
from stillhouse.teachers.kinds import (
    Member,
    MemberContext,
    answer_version,
    describe,
    new_teacher,
    open_member,
    require_version,
)
from tests.teachers.test_ensemble import WINDOW, constant_teacher, make_config, make_rows

# --------------------------------------------------------------------------- a kind that is never fitted


class ThresholdTeacher(TeacherSection):
    """Certain on either side of a number."""

    kind: Literal["threshold"] = "threshold"
    column: str
    above: float

    @property
    def call_timeout(self) -> timedelta:
        return timedelta(seconds=30)


@describe.register
def _(section: ThresholdTeacher, context: MemberContext) -> dict[str, Any]:
    return {"version": answer_version(context)}


@open_member.register
def _(section: ThresholdTeacher, context: MemberContext, part: dict[str, Any]) -> Member:
    require_version(context, part, answer_version(context))

    def predict(rows: pd.DataFrame) -> Any:
        above = rows[section.column].to_numpy() > section.above
        return np.column_stack([~above, above]).astype(np.float64)

    leaf = context.leaf
    answer = wrap_predict(leaf.name, context.config.actions, predict, timeout=section.call_timeout)
    return Member(leaf.name, leaf.share, answer, part["version"])


# --------------------------------------------------------------------------- a kind that is fitted


class RateTeacher(TeacherSection):
    """The base rate of the outcomes."""

    kind: Literal["rate"] = "rate"

    @property
    def is_fitted(self) -> bool:
        return True

    @property
    def call_timeout(self) -> timedelta:
        return timedelta(seconds=30)


class RateModel:
    rate = np.nan

    def fit(self, rows: pd.DataFrame, labels: np.ndarray) -> None:
        self.rate = float(labels.mean())

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray:
        return np.tile([1 - self.rate, self.rate], (len(rows), 1))

    def save(self, folder: Path) -> None:
        (folder / "rate.txt").write_text(str(self.rate))

    @classmethod
    def load(cls, folder: Path) -> RateModel:
        rate_teacher = cls()
        rate_teacher.rate = float((folder / "rate.txt").read_text())
        return rate_teacher


@new_teacher.register
def _(section: RateTeacher, where: str, config: Any) -> RateModel:
    return RateModel()


@open_member.register
def _(section: RateTeacher, context: MemberContext, part: dict[str, Any]) -> Member:
    leaf, rate_teacher = context.leaf, RateModel.load(context.folder / part["folder"])
    return Member(leaf.name, leaf.share, wrap_predict(leaf.name, context.config.actions, rate_teacher.predict_proba))


def with_teachers(*teachers: TeacherSection) -> Any:
    return make_config(constant_teacher("a", 0.2)).model_copy(update={"teachers": teachers})


def test_new_kind_is_fitted_stored_and_loaded(tmp_path: Path) -> None:
    rows = make_rows(24)
    config = with_teachers(ThresholdTeacher(name="cold", column="temp", above=2, weight=3), RateTeacher(name="base"))
    reference = ensemble.fit(config, rows, WINDOW, tmp_path / "t")
    assert reference.fitted is not None  # the rate has seen the outcomes
    loaded = ensemble.load(tmp_path / "t", config)
    assert loaded.version == reference.version and loaded.local
    expected = [[(3 + 0.5) / 4, 0.5 / 4]] * 3 + [[0.5 / 4, (3 + 0.5) / 4]] * 2
    np.testing.assert_allclose(loaded.predict_proba(rows.head(5)), expected)
    np.testing.assert_allclose(loaded.ask(make_rows(1, WINDOW.end)), [[(3 + 0.5) / 4, 0.5 / 4]])
    cross_fit_probs = cross_fit(config, rows.assign(outcome=[1] * 6 + [0] * 18))
    assert list(cross_fit_probs) == ["base"]
    np.testing.assert_allclose(cross_fit_probs["base"][:6, 1], 0.0)  # fitted on the other blocks, where all are 0


def test_changed_section_of_a_new_kind_is_rejected(tmp_path: Path) -> None:
    config = with_teachers(ThresholdTeacher(name="cold", column="temp", above=2))
    ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t")
    renamed = with_teachers(ThresholdTeacher(name="cold", column="temp", above=2, weight=9))
    assert ensemble.load(tmp_path / "t", renamed).version  # a weight is no part of the answer
    with pytest.raises(PartError, match="the section or the model has changed"):
        ensemble.load(tmp_path / "t", with_teachers(ThresholdTeacher(name="cold", column="temp", above=3)))


# --------------------------------------------------------------------------- no kind without a file


class UnregisteredTeacher(TeacherSection):
    kind: Literal["unregistered"] = "unregistered"


def test_kind_without_a_file_raises(tmp_path: Path) -> None:
    section = UnregisteredTeacher(name="x")
    config = with_teachers(section)
    context = MemberContext(config, Leaf("x", 1.0, section), tmp_path)  # type: ignore[arg-type]
    for call in (
        lambda: new_teacher(section, "here", config),
        lambda: describe(section, context),
        lambda: open_member(section, context, {"version": "v"}),
        lambda: ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t"),
    ):
        with pytest.raises(TypeError, match="no teacher of kind 'unregistered': UnregisteredTeacher is not registered"):
            call()
    with pytest.raises(NotImplementedError, match="UnregisteredTeacher does not define `call_timeout`"):
        _ = section.call_timeout
    assert leaves(config.teachers)[0].teacher is section


@pytest.mark.parametrize(("kind", "section"), tagged(LeafTeacher).items())
def test_every_kind_is_registered(kind: str, section: type[TeacherSection]) -> None:
    for dispatcher in (describe, open_member):
        assert section in dispatcher.registry
    may_be_fitted = section.is_fitted is not TeacherSection.is_fitted
    assert (section in new_teacher.registry) == may_be_fitted
    assert section.call_timeout is not TeacherSection.call_timeout
