"""Rows are made up, asked about and learned from; a budget is spent on observed rows first."""

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


def test_a_refresh_asks_about_made_up_rows(day, agents: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parent / "toy.yaml").read_text().replace("copies: 0", "copies: 1")
    (agents / "toy.yaml").write_text(text)
    learned: list[int] = []
    distilled = redistil.distil_with_control
    monkeypatch.setattr(
        redistil,
        "distil_with_control",
        lambda student, lesson, *given, **named: (
            learned.append(int((~lesson.has_label).sum())) or distilled(student, lesson, *given, **named)
        ),
    )
    ingest("toy", day(0), day(20))
    verdict = refresh(agent="toy", as_of=day(20), trigger="bootstrap", cause="first")
    assert verdict.result == "promoted", verdict.summary
    base = KnowledgeBase(load("toy"))
    observed = base.read("observations")["content_key"]
    made = base.read("knowledge").pipe(lambda said: said[~said["content_key"].isin(observed)])
    assert len(made) == learned[0] > 8 * toy.PER_DAY
    assert base.answers.spending()["logistic"].rows == len(base.read("knowledge"))
    assert json.loads(verdict.model_dump_json())["evidence"]["certificate"]
