"""Evidence under a false alarm budget, and the distinction of benign and harmful drift; one test runs the flows."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from prefect.client.orchestration import get_client

import flows.refresh
import flows.watch
from stillhouse import refresh, watch
from stillhouse.champion import open_registry
from stillhouse.drift.decide import decide_from_evidence
from stillhouse.ingesting import ingest
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import evidence_steps
from tests.flows import toy

HOUR = timedelta(hours=1)


@pytest.fixture
def budget(agents: Path, more_recipes: None) -> None:
    """The toy agent with a false alarm budget instead of thresholds."""
    lines = (agents / "toy.yaml").read_text().splitlines()
    budget = "  policy: alarms\n  every: 12h\n  audit: {rows: 20}"
    lines = [budget if line.startswith("  thresholds:") else line for line in lines]
    text = "\n".join(lines).replace("train: 14d, test: 4d, current: 4d", "train: 14d, test: 4d, current: 2d")
    (agents / "toy.yaml").write_text(text)


@pytest.fixture
def base(budget: None, toy_base) -> KnowledgeBase:
    """The knowledge base after twenty days, with the first champion."""
    return toy_base()


def watch_daily(day, first: int, last: int, watch=watch):
    """Add and watch the data of each day; return the verdicts."""
    verdicts = []
    for number in range(first, last + 1):
        ingest("toy", day(number - 1), day(number))
        verdicts.append(watch(agent="toy", as_of=day(number)))
    return verdicts


@pytest.mark.slow
def test_failing_teacher_is_detected_and_renewed(day, base: KnowledgeBase) -> None:
    calm = watch_daily(day, 21, 24)
    assert {verdict.response for verdict in calm} == {"hold"}
    last = evidence_steps(calm[-1])
    assert {step.process for step in last} == {"disagreement", "student_outcomes", "teacher_outcomes"}
    assert all(step.end == day(24) and step.since == day(20) and not step.alarm for step in last)
    assert calm[-1].cost is not None and calm[-1].cost.teacher_calls_since == 8 * 20

    turned = watch_daily(day, 25, 28)[-1]
    assert (turned.result, turned.response) == ("teacher_failing", "renew"), turned.summary
    assert decide_from_evidence(turned.evidence) == turned
    ingest("toy", day(28), day(33))
    gate = refresh(agent="toy", as_of=day(33), trigger="drift", cause=turned.verdict_id)
    assert gate.result == "promoted", gate.summary
    first, renewed = (open_registry("toy").version("toy-teacher", each) for each in ("1", "champion"))
    assert renewed is not None and renewed.version == "2"  # a new fit is logged as a new version
    assert (
        open_registry("toy").models.tags(renewed)["teacher_version"]
        != open_registry("toy").models.tags(first)["teacher_version"]
    )

    begun = watch_daily(day, 34, 34)[0]
    steps = evidence_steps(begun)
    assert {step.since for step in steps} == {day(33)} and {step.champion for step in steps} == {
        str(open_registry("toy").champion())
    }
    assert not any(step.alarm for step in steps)


def test_repeated_watch_counts_no_row_twice(day, base: KnowledgeBase) -> None:
    ingest("toy", day(20), day(23))
    first = watch(agent="toy", as_of=day(22))
    counted = base.journal.evidence("toy@" + open_registry("toy").champion().version, day(20))
    answers = base.tables.count_rows()["knowledge"]
    again = watch(agent="toy", as_of=day(22))
    assert base.journal.evidence("toy@" + open_registry("toy").champion().version, day(20)) == counted
    assert base.tables.count_rows()["knowledge"] == answers
    assert evidence_steps(again) == evidence_steps(first)
    assert again.cost is not None and again.cost.teacher_calls == 0
    assert [verdict.verdict_id for verdict in base.journal.verdicts() if verdict.kind == "watch"] == [first.verdict_id]

    early = watch(agent="toy", as_of=day(22) + 11 * HOUR)  # no step has ended since
    assert [step.end for step in evidence_steps(early)] == [day(22)] * 3
    audited = [evidence for evidence in counted if evidence.step.process == "disagreement"]
    rows = base.read_observations(base.window("w", day(20), day(22))).set_index("observation_id")
    for evidence in audited:  # each sampled row lies in its step and has its sampling probability
        times = rows.loc[list(evidence.observation_ids), "observed_at"]
        assert times.between(evidence.step.start, evidence.step.end, inclusive="left").all()
        assert len(evidence.probabilities) == len(evidence.losses) == evidence.step.step_rows == 20


@pytest.mark.slow
def test_drift_of_an_irrelevant_column_is_benign(day, base, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = toy.observations
    monkeypatch.setattr(
        toy,
        "observations",
        lambda start, end: sound(start, end).assign(
            c=lambda rows: np.where(rows["c"].isna(), np.nan, 9 + rows["c"] / 10)
        ),
    )
    verdict = watch_daily(day, 21, 23)[-1]
    assert (verdict.result, verdict.response) == ("benign_shift", "hold"), verdict.summary
    assert "c" in verdict.summary and "null mean" in verdict.summary


def test_refused_window_adds_no_evidence(day, base, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = toy.observations
    with monkeypatch.context() as patch:
        patch.setattr(toy, "observations", lambda start, end: sound(start, end).assign(place="moon"))
        broken = watch_daily(day, 21, 21)[0]
    assert broken.result == "data_broken"
    assert {(step.end, step.looks) for step in base.journal.latest_evidence()} == {(day(21), 0)}
    after = watch_daily(day, 22, 24)[-1]
    assert after.response == "hold"
    disagreement = next(step for step in evidence_steps(after) if step.process == "disagreement")
    assert disagreement.end == day(24) and disagreement.looks < 6


@pytest.mark.usefixtures("prefect_server", "budget")
def test_watch_is_published_in_mlflow_and_prefect(day, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest("toy", day(0), day(20))
    flows.refresh.refresh.fn(agent="toy", as_of=day(20), trigger="bootstrap", cause="first")
    watch_daily(day, 21, 22, flows.watch.watch.fn)
    registry = open_registry("toy")
    sound = toy.observations
    (run,) = registry.client.search_runs([registry.experiment_id], "tags.role = 'watch'")
    assert run.data.tags["result"] and run.info.status == "FINISHED"
    history = registry.client.get_metric_history(run.info.run_id, "mean_loss.disagreement")
    assert [point.timestamp for point in history] == [
        int((day(20) + n * 12 * HOUR).timestamp() * 1000) for n in (1, 2, 3, 4)
    ]
    files = {
        file.path
        for folder in ("", "figures", "data_docs")
        for file in registry.client.list_artifacts(run.info.run_id, folder or None)
    }
    assert files == {"verdict.json"}  # no drift and no quarantined row, so there is no page
    with get_client(sync_client=True) as client:
        artifacts = sorted(client.read_artifacts(), key=lambda artifact: artifact.created)
    shown = {artifact.key: artifact.data for artifact in artifacts}["watch-toy"]
    assert "teacher was asked about 40 rows" in shown and run.info.run_id in shown
    assert "data_docs" not in shown and "data:image" not in shown

    moved = {"c": lambda rows: np.where(rows["c"].isna(), np.nan, np.where(rows.index < 3, 99, 9 + rows["c"] / 10))}
    monkeypatch.setattr(toy, "observations", lambda start, end: sound(start, end).assign(**moved))
    assert watch_daily(day, 23, 24, flows.watch.watch.fn)[-1].result == "benign_shift"
    files = {
        file.path
        for folder in ("", "figures", "data_docs")
        for file in registry.client.list_artifacts(run.info.run_id, folder or None)
    }
    assert {"figures/drift_by_column.png", "figures/evidence.png", "verdict.json"} <= files
    assert any(path.startswith("data_docs/") and path.endswith(".html") for path in files)
    with get_client(sync_client=True) as client:
        artifacts = sorted(client.read_artifacts(), key=lambda artifact: artifact.created)
    shown = {artifact.key: artifact.data for artifact in artifacts}["watch-toy"]
    assert "Evidence" in shown and "data_docs" in shown and "data:image/png" in shown
    (first,) = registry.client.search_runs([registry.experiment_id], "tags.role = 'refresh'")
    assert [file.path for file in registry.client.list_artifacts(first.info.run_id, "data_docs")]


def test_audited_rows_with_outcomes_add_evidence_on_the_teacher(day, base: KnowledgeBase) -> None:
    ingest("toy", day(20), day(22))
    steps = {step.process: step for step in evidence_steps(watch(agent="toy", as_of=day(22)))}
    # outcomes are known a day later, so only the first two of four audited steps have them
    assert steps["disagreement"].rows == 80 and steps["teacher_outcomes"].rows == 40
    assert steps["student_outcomes"].rows == toy.PER_DAY


def test_changed_budget_or_tolerance_restarts_the_evidence(day, base: KnowledgeBase, agents: Path) -> None:
    before = {step.process: step for step in evidence_steps(watch_daily(day, 21, 21)[0])}
    text = (agents / "toy.yaml").read_text()
    (agents / "toy.yaml").write_text(text.replace("  every: 12h", "  every: 12h\n  tolerance: 0.1"))
    after = {step.process: step for step in evidence_steps(watch_daily(day, 22, 22)[0])}
    for process, step in after.items():
        assert step.since == day(21) and step.end == day(22)  # no row is counted twice or left out
        assert step.null_mean == pytest.approx(before[process].null_mean + 0.08)
