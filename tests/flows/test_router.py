"""The router agent in the flows: a new domain is detected, and a refresh learns it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from examples import router
from flows.refresh import refresh
from flows.watch import watch
from stillhouse.champion import open_registry
from stillhouse.config import load
from stillhouse.demonstrating import list_week_ends
from stillhouse.errors import WindowError
from stillhouse.knowledge import KnowledgeBase
from tasks.ingesting import live

AGENT = Path(__file__).parents[2] / "agents" / "router.yaml"


@pytest.fixture
def small(agents: Path, clinc150: Path) -> Path:
    """The router's agent file with a tiny encoder for the teacher."""
    text = AGENT.read_text(encoding="utf-8")
    text = text.replace("examples.router:MiniLM", "tests.examples.small_encoder:Words")
    text = text.replace("initialise: teacher", "initialise: none").replace("batch_size: 128", "batch_size: 256")
    (agents / "router.yaml").write_text(text, encoding="utf-8")
    return agents


def week(number: float):
    return (router.FIRST_DAY + timedelta(weeks=number)).to_pydatetime()


def accuracy(base: KnowledgeBase, start: float, end: float) -> float:
    """Return the accuracy of the decisions in those weeks."""
    window = base.window("lived", week(start), week(end))
    rows = base.read_labelled(window, known_by=week(end + 1))
    decided = base.read("decisions", window).set_index("observation_id").loc[rows["observation_id"]]
    probs = np.stack(decided["probabilities"].to_numpy())
    return float((probs.argmax(axis=1) == rows["outcome"].to_numpy()).mean())


@pytest.mark.slow  # tests/flows/test_texts.py is similar, with fewer sentences
@pytest.mark.usefixtures("prefect_server")
def test_new_domain_is_detected_and_learned(small: Path) -> None:
    live.fn("router", week(0), week(8))
    first = refresh(agent="router", as_of=week(8), trigger="bootstrap", cause="first")
    assert first.result == "promoted", first.summary
    live.fn("router", week(8), week(9))
    assert watch(agent="router", as_of=week(9)).response == "hold"

    live.fn("router", week(9), week(10))  # the domain travel begins
    early = watch(agent="router", as_of=week(10))
    assert (early.result, early.response) == ("not_enough_evidence", "hold"), early.summary  # within its budget
    file = small / "router.yaml"
    file.write_text(file.read_text().replace("  false_alarms:", "  thresholds: {accuracy_drop: 0.15}\n  false_alarms:"))
    verdict = watch(agent="router", as_of=week(10), on_drift="refresh")
    base = KnowledgeBase(load("router"))
    assert verdict.result == "drift", verdict.summary
    gate = base.journal.verdicts()[-1]
    assert (gate.kind, gate.result) == ("gate", "promoted"), gate.summary
    assert "accuracy" in " ".join(reason.text for reason in gate.reasons)

    live.fn("router", week(10), week(11))
    live.fn("router", week(11), week(11.2))  # outcomes of the last day arrive with later data
    before, arrived, after = accuracy(base, 8, 9), accuracy(base, 9, 10), accuracy(base, 10, 11)
    assert arrived < before - 0.1 and after > arrived + 0.05

    metrics = open_registry("router").client.get_run(open_registry("router").champion().run_id).data.metrics
    assert "test/accuracy" in metrics and len(metrics) < 100  # no metric per action, of which there are 150


@pytest.mark.usefixtures("small")
def test_demo_replays_the_weeks_of_the_source() -> None:
    ends = list_week_ends("router", 8, None)
    assert (ends[0], ends[-1], len(ends)) == (week(9), week(24), 16)
    assert list_week_ends("router", 8, 3) == ends[:3]
    with pytest.raises(WindowError, match="no week after"):
        list_week_ends("router", 24, None)
