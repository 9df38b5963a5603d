"""Made-up rows are put to teachers that have not seen the outcomes of what they were made of, once, and paid for."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from stillhouse.distill.augment import make_synthetic_rows
from stillhouse.knowledge import KnowledgeBase
from stillhouse.teachers import asking, ensemble
from stillhouse.teachers.made_up import ask_made_up
from tests.teachers.test_asking import TRAIN, Oracle, account, mixed, observed, of
from tests.teachers.test_ensemble import MEMORY, make_config


@pytest.fixture
def base(tmp_path: Path) -> KnowledgeBase:
    return KnowledgeBase(make_config(MEMORY), tmp_path / "kb")


class Recorder:
    """Knows which rows it was fitted on, and says so of those that it is asked about."""

    asked: ClassVar[list[tuple[set[float], list[float]]]] = []

    def fit(self, rows: pd.DataFrame, outcomes: np.ndarray) -> None:
        self.known = set(rows["temp"])

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray:
        Recorder.asked.append((self.known, list(rows["temp"])))
        return np.tile([0.4, 0.6], (len(rows), 1))

    def save(self, folder: Path) -> None:
        (folder / "nothing").write_text("")

    @classmethod
    def load(cls, folder: Path) -> Recorder:
        made = cls()
        made.known = set()
        return made


def made_of(base: KnowledgeBase, rows: pd.DataFrame) -> pd.DataFrame:
    return make_synthetic_rows(base.config, rows, ensemble.cross_fit_blocks(base.config, rows))


def test_whoever_is_asked_has_not_seen_the_block(tmp_path: Path) -> None:
    config = make_config({"name": "r", "target": f"{__name__}:Recorder"})
    base = KnowledgeBase(config, tmp_path / "kb")
    rows = observed(base, 40)
    rows["temp"] += 0.5  # no whole numbers: made-up ones are not rounded
    teacher = ensemble.load(Path(ensemble.fit(config, rows, TRAIN, tmp_path / "t").folder), config)
    made, blocks = made_of(base, rows), ensemble.cross_fit_blocks(config, rows)
    Recorder.asked.clear()
    ask_made_up(teacher, made, account(base), rows)
    assert np.isfinite(base.answers.probs(made, teacher.version)).all()
    assert sum(len(asked) for _, asked in Recorder.asked) == len(made)
    for known, asked in Recorder.asked:
        (block,) = {*made.loc[made["temp"].isin(asked), "block"]}
        assert known == set(rows.loc[blocks != block, "temp"])
    assert base.answers.spending()["r"].rows == len(made)
    Recorder.asked.clear()
    ask_made_up(teacher, made, account(base, "r2"), rows)
    assert Recorder.asked == []


class Counting(Recorder):
    """Counts its fits."""

    fits: ClassVar[int] = 0

    def fit(self, rows: pd.DataFrame, outcomes: np.ndarray) -> None:
        super().fit(rows, outcomes)
        Counting.fits += 1


def test_observed_and_made_up_rows_share_the_fits_of_the_blocks(tmp_path: Path) -> None:
    config = make_config({"name": "r", "target": f"{__name__}:Counting"})
    base = KnowledgeBase(config, tmp_path / "kb")
    rows = observed(base, 40)
    rows["temp"] += 0.5
    teacher = ensemble.load(Path(ensemble.fit(config, rows, TRAIN, tmp_path / "t").folder), config)
    cross = ensemble.CrossFit(config, rows)
    Counting.fits = 0
    alone = ensemble.cross_fit(config, rows)["r"]
    assert Counting.fits == config.distillation.folds
    np.testing.assert_array_equal(ensemble.cross_fit(config, rows, cross=cross)["r"], alone)
    Recorder.asked.clear()
    made = made_of(base, rows)
    ask_made_up(teacher, made, account(base), rows, cross)
    assert (
        Counting.fits == 2 * config.distillation.folds and np.isfinite(base.answers.probs(made, teacher.version)).all()
    )
    for known, asked in Recorder.asked:
        (block,) = {*made.loc[made["temp"].isin(asked), "block"]}
        assert known == set(rows.loc[cross.blocks != block, "temp"])


def test_blocks_are_those_of_the_cross_fitting(base: KnowledgeBase) -> None:
    rows = observed(base, 11).sample(frac=1, random_state=0)
    blocks = ensemble.cross_fit_blocks(base.config, rows)
    order = np.argsort(rows["observed_at"].to_numpy())
    assert blocks[order].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3]


def test_a_mixture_asks_each_its_way(base: KnowledgeBase, tmp_path: Path) -> None:
    oracle = Oracle()
    teacher, rows = mixed(base, tmp_path, oracle), observed(base, 40)
    made = made_of(base, rows)
    made["temp"] = made["temp"].abs()
    ask_made_up(teacher, made, account(base), rows)
    said = base.answers.probs(made, teacher.version)[:, 1]
    unseen = ~made["temp"].isin(rows["temp"])
    np.testing.assert_allclose(said[unseen], 0.25 + made.loc[unseen, "temp"] / 2000)
    assert len(oracle.asked) == len(made)


def test_what_is_left_of_a_budget_is_spent_and_no_more(base: KnowledgeBase) -> None:
    oracle = Oracle()
    rows, teacher = observed(base, 20), of(oracle, base)
    config = base.config.distillation.augment.model_copy(update={"copies": 2.0})
    distillation = base.config.distillation.model_copy(update={"augment": config})
    base.config = base.config.model_copy(update={"distillation": distillation})
    purse = account(base, max_teacher_calls=25)
    asking.ask(teacher, rows, purse)
    made = made_of(base, rows.assign(temp=rows["temp"] + 0.5))
    assert len(made) > 5
    ask_made_up(teacher, made, purse)
    assert len(oracle.asked) == 25 and purse.stopped
    ask_made_up(teacher, made, purse)
    assert len(oracle.asked) == 25
