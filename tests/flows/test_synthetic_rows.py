"""Synthetic rows are labelled by the teacher and used for training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stillhouse import refresh
from stillhouse.config import load
from stillhouse.ingesting import ingest
from stillhouse.knowledge import KnowledgeBase
from stillhouse.refreshing.modes import redistil
from tests.flows import toy


@pytest.mark.slow
def test_refresh_labels_synthetic_rows(day, agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parent / "toy.yaml").read_text().replace("copies: 0", "copies: 1")
    (agents / "toy.yaml").write_text(text)
    unlabelled: list[int] = []
    distil_with_control = redistil.distil_with_control
    monkeypatch.setattr(
        redistil,
        "distil_with_control",
        lambda student, training_set, *args, **kwargs: (
            unlabelled.append(int((~training_set.has_label).sum()))
            or distil_with_control(student, training_set, *args, **kwargs)
        ),
    )
    ingest("toy", day(0), day(20))
    verdict = refresh(agent="toy", as_of=day(20), trigger="bootstrap", cause="first")
    assert verdict.result == "promoted", verdict.summary
    base = KnowledgeBase(load("toy"))
    observed = base.read("observations")["content_key"]
    synthetic = base.read("knowledge").pipe(lambda answers: answers[~answers["content_key"].isin(observed)])
    assert len(synthetic) == unlabelled[0] > 8 * toy.PER_DAY
    assert base.answers.spending()["logistic"].rows == len(base.read("knowledge"))
    assert json.loads(verdict.model_dump_json())["evidence"]["certificate"]
