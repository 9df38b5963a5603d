"""Synthetic rows are answered once, by teachers that have not seen the labels of their time block, and are paid for."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from stillhouse.distill.augment import make_synthetic_rows
from stillhouse.knowledge import KnowledgeBase
from stillhouse.teachers import ensemble, labeling
from stillhouse.teachers.cross_fitting import CrossFit, assign_time_blocks, cross_fit
from stillhouse.teachers.synthetic import ask_about_synthetic
from tests.teachers.test_ensemble import MEMORY, make_config
from tests.teachers.test_labeling import (
    TRAIN,
    Oracle,
    ensemble_of,
    fit_memory_and_oracle,
    refresh_budget,
    store_observations,
)


@pytest.fixture
def base(tmp_path: Path) -> KnowledgeBase:
    return KnowledgeBase(make_config(MEMORY), tmp_path / "kb")


class RecordingTeacher:
    """Records which rows it was fitted on and which rows it answers."""

    calls: ClassVar[list[tuple[set[float], list[float]]]] = []

    def fit(self, rows: pd.DataFrame, labels: np.ndarray) -> None:
        self.fit_temps = set(rows["temp"])

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray:
        RecordingTeacher.calls.append((self.fit_temps, list(rows["temp"])))
        return np.tile([0.4, 0.6], (len(rows), 1))

    def save(self, folder: Path) -> None:
        (folder / "nothing").write_text("")

    @classmethod
    def load(cls, folder: Path) -> RecordingTeacher:
        teacher = cls()
        teacher.fit_temps = set()
        return teacher


def make_synthetic(base: KnowledgeBase, rows: pd.DataFrame) -> pd.DataFrame:
    return make_synthetic_rows(base.config, rows, assign_time_blocks(base.config, rows))


def test_synthetic_rows_are_answered_by_fits_without_their_block(tmp_path: Path) -> None:
    config = make_config({"name": "r", "target": f"{__name__}:RecordingTeacher"})
    base = KnowledgeBase(config, tmp_path / "kb")
    rows = store_observations(base, 40)
    rows["temp"] += 0.5  # no integers, so that synthetic values are not rounded
    teacher = ensemble.load(Path(ensemble.fit(config, rows, TRAIN, tmp_path / "t").folder), config)
    synthetic_rows, blocks = make_synthetic(base, rows), assign_time_blocks(config, rows)
    RecordingTeacher.calls.clear()
    ask_about_synthetic(teacher, synthetic_rows, refresh_budget(base), rows)
    assert np.isfinite(base.answers.probs(synthetic_rows, teacher.version)).all()
    assert sum(len(temps) for _, temps in RecordingTeacher.calls) == len(synthetic_rows)
    for fit_temps, temps in RecordingTeacher.calls:
        (block,) = {*synthetic_rows.loc[synthetic_rows["temp"].isin(temps), "block"]}
        assert fit_temps == set(rows.loc[blocks != block, "temp"])
    assert base.answers.spending()["r"].rows == len(synthetic_rows)
    RecordingTeacher.calls.clear()
    ask_about_synthetic(teacher, synthetic_rows, refresh_budget(base, "r2"), rows)
    assert RecordingTeacher.calls == []


class CountingTeacher(RecordingTeacher):
    """Counts its fits."""

    fits: ClassVar[int] = 0

    def fit(self, rows: pd.DataFrame, labels: np.ndarray) -> None:
        super().fit(rows, labels)
        CountingTeacher.fits += 1


def test_observed_and_synthetic_rows_share_the_cross_fits(tmp_path: Path) -> None:
    config = make_config({"name": "r", "target": f"{__name__}:CountingTeacher"})
    base = KnowledgeBase(config, tmp_path / "kb")
    rows = store_observations(base, 40)
    rows["temp"] += 0.5
    teacher = ensemble.load(Path(ensemble.fit(config, rows, TRAIN, tmp_path / "t").folder), config)
    cross_fits = CrossFit(config, rows)
    CountingTeacher.fits = 0
    separate = cross_fit(config, rows)["r"]
    assert CountingTeacher.fits == config.distillation.folds
    np.testing.assert_array_equal(cross_fit(config, rows, cross_fits=cross_fits)["r"], separate)
    RecordingTeacher.calls.clear()
    synthetic_rows = make_synthetic(base, rows)
    ask_about_synthetic(teacher, synthetic_rows, refresh_budget(base), rows, cross_fits)
    assert (
        CountingTeacher.fits == 2 * config.distillation.folds
        and np.isfinite(base.answers.probs(synthetic_rows, teacher.version)).all()
    )
    for fit_temps, temps in RecordingTeacher.calls:
        (block,) = {*synthetic_rows.loc[synthetic_rows["temp"].isin(temps), "block"]}
        assert fit_temps == set(rows.loc[cross_fits.time_blocks != block, "temp"])


def test_time_blocks_are_contiguous_and_equal(base: KnowledgeBase) -> None:
    rows = store_observations(base, 11).sample(frac=1, random_state=0)
    blocks = assign_time_blocks(base.config, rows)
    order = np.argsort(rows["observed_at"].to_numpy())
    assert blocks[order].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]


def test_ensemble_answers_synthetic_rows_by_cross_fit_and_oracle(base: KnowledgeBase, tmp_path: Path) -> None:
    oracle = Oracle()
    teacher, rows = fit_memory_and_oracle(base, tmp_path, oracle), store_observations(base, 40)
    synthetic_rows = make_synthetic(base, rows)
    synthetic_rows["temp"] = synthetic_rows["temp"].abs()
    ask_about_synthetic(teacher, synthetic_rows, refresh_budget(base), rows)
    probs = base.answers.probs(synthetic_rows, teacher.version)[:, 1]
    unseen = ~synthetic_rows["temp"].isin(rows["temp"])
    np.testing.assert_allclose(probs[unseen], 0.25 + synthetic_rows.loc[unseen, "temp"] / 2000)
    assert len(oracle.asked_temps) == len(synthetic_rows)


def test_synthetic_rows_stop_at_the_budget(base: KnowledgeBase) -> None:
    oracle = Oracle()
    rows, teacher = store_observations(base, 20), ensemble_of(oracle, base)
    config = base.config.distillation.augment.model_copy(update={"copies": 2.0})
    distillation = base.config.distillation.model_copy(update={"augment": config})
    base.config = base.config.model_copy(update={"distillation": distillation})
    budget = refresh_budget(base, max_teacher_calls=25)
    labeling.ask(teacher, rows, budget)
    synthetic_rows = make_synthetic(base, rows.assign(temp=rows["temp"] + 0.5))
    assert len(synthetic_rows) > 5
    ask_about_synthetic(teacher, synthetic_rows, budget)
    assert len(oracle.asked_temps) == 25 and budget.stop_reason
    ask_about_synthetic(teacher, synthetic_rows, budget)
    assert len(oracle.asked_temps) == 25
