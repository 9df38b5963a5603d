"""An agent with texts in the loop: first champion, no drift, new words, next champion."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

import stillhouse
from flows.refresh import refresh
from flows.watch import watch
from stillhouse.champion import open_registry
from stillhouse.config import load
from stillhouse.ingesting import ingest
from stillhouse.knowledge import KnowledgeBase
from stillhouse.variant import Variant
from tests.flows import clerk

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.mark.slow
def test_new_words_are_detected_and_learned(agents: Path, day) -> None:
    shutil.copy(Path(__file__).with_name("clerk.yaml"), agents)
    ingest("clerk", day(0), day(24))
    stillhouse.refresh(agent="clerk", as_of=day(20), trigger="bootstrap", cause="first")
    registry, base = open_registry("clerk"), KnowledgeBase(load("clerk"))
    first = Variant(registry.models.fetch(registry.champion()))
    assert registry.baseline(registry.champion()).quality.accuracy > 0.85
    assert set(clerk.WORDS["before"][1]) <= set(first.columns[1]["tokens"])
    calm = watch(agent="clerk", as_of=day(24))
    assert (calm.result, calm.response) == ("no_drift", "hold")

    ingest("clerk", day(24), day(42))
    verdict = watch(agent="clerk", as_of=day(29))
    failed = {reason.measure: reason.text for reason in verdict.reasons if reason.failed}
    assert verdict.result != "no_drift" and "said: new words" in failed["psi"]

    refresh(agent="clerk", as_of=day(42), trigger="drift", cause=verdict.verdict_id)
    gate = base.journal.verdicts()[-1]
    assert gate.kind == "gate" and gate.result == "promoted", gate.summary
    second = Variant(registry.models.fetch(registry.champion()))
    assert set(clerk.WORDS["after"][1]) <= set(second.columns[1]["tokens"])
    rows = pd.DataFrame({"said": ["Forget the taxi!", "howdy", None], "place": ["desk", "phone", "desk"]})
    assert second.predict(rows)["action"].tolist()[:2] == ["cancel", "greet"]
