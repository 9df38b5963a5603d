"""An agent that states neither its distillation nor its test window bootstraps on few rows, and says what it chose."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import pytest

import stillhouse
from stillhouse import config
from stillhouse.champion import load_champion, open_registry
from stillhouse.ingesting import ingest
from stillhouse.rehearsal import rehearse


@pytest.fixture
def open_toy(agents: Path) -> Path:
    """The toy's agent file, which leaves the distillation and the test window open."""
    file = agents / "toy.yaml"
    text = re.sub(r"(?m)^distillation: .*$", "distillation: {augment: {copies: 0}}", file.read_text())
    file.write_text(text.replace("windows: {train: 14d, test: 4d, current: 4d, min_train_rows: 500}", WINDOWS))
    assert WINDOWS in file.read_text()
    return file


WINDOWS = "windows: {train: 14d, current: 4d}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("days", "test", "block", "batch"),
    [(4, timedelta(hours=22), "1:00:00", "16"), (20, timedelta(hours=84), "6:00:00", "64")],
)
def test_a_bootstrap_on_few_rows_chooses_its_settings_and_logs_them(
    open_toy: Path, day, days: int, test: timedelta, block: str, batch: str
) -> None:
    ingest("toy", day(0), day(days))
    verdict = stillhouse.refresh("toy", as_of=day(days), trigger="bootstrap", cause="first")
    assert verdict.result == "promoted", verdict.summary
    champion = load_champion("toy")
    assert champion is not None and champion.baseline.test.end - champion.baseline.test.start == test
    experiment = open_registry("toy").runs.experiment
    runs = experiment.client.search_runs([experiment.experiment_id], "params.`windows.train` != ''")
    params = runs[0].data.params
    assert len(runs) == 1 and params["distillation.validation_block"] == block
    assert params["distillation.batch_size"] == batch and params["distillation.folds"] == "8"
    assert params["windows.test"] == str(test) and params["windows.min_train_rows"] == "200"


def test_check_says_what_it_would_choose(open_toy: Path) -> None:
    lines = [line for line, _ in zip(rehearse(config.load("toy")), range(5), strict=False)]
    assert lines[4] == (
        "distillation: for 1,681 rows: batches of 64, 23 epochs, 8 folds, outcome_weight 0.6; every 5th block of 6h "
        "validates; chosen test window 83h"
    )
