"""Two teachers through the flows, one of which goes bad: its weight falls, with the reason recorded, and the student
follows the other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from prefect.client.orchestration import get_client

import flows.refresh
from stillhouse import refresh, watch
from stillhouse.champion import load_champion, open_registry
from stillhouse.config import load
from stillhouse.ingesting import ingest
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import Contradictions, TeacherWeights
from stillhouse.teachers.ensemble import read_weights
from tests.flows import toy


class OldRules:
    """What holds in the toy's world before its turn, and will never know of it."""

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray:
        score = 2 * rows["a"] + rows["b"] + np.where(rows["place"] == "north", 0.7, -0.7)
        go = 1 / (1 + np.exp(-score.to_numpy(dtype=float)))
        return np.column_stack([1 - go, go])


def settle_on(agents: Path) -> None:
    text = (agents / "toy.yaml").read_text()
    text = text.replace(
        "  - {kind: python, name: logistic",
        f"  - {{kind: python, name: rules, target: '{__name__}:OldRules', learns: false}}\n"
        "  - {kind: python, name: logistic",
    )
    text = text.replace("  cooldown: 3d", "  cooldown: 3d\n  every: 12h\n  audit: {rows: 40}")
    text = text.replace("slice_margin: 0.1", "slice_margin: 0.9")  # the world of before is gone, and may be forgotten
    (agents / "toy.yaml").write_text(text)


def runs_of(role: str) -> list[Any]:
    registry = open_registry("toy")
    return list(registry.client.search_runs([registry.experiment_id], f"tags.role = '{role}'"))


def share(base: KnowledgeBase, name: str, job: str | None = None) -> list[float]:
    return [
        each.after
        for each in base.journal.weight_changes()
        if (each.teacher, each.slice) == (name, "") and job in (None, each.job)
    ]


@pytest.mark.usefixtures("prefect_server")
def test_a_teacher_that_goes_bad_loses_its_weight_and_the_student_follows(
    day: Callable[[int], Any], agents: Path
) -> None:
    settle_on(agents)
    base = KnowledgeBase(load("toy"))
    ingest("toy", day(0), day(20))
    first = flows.refresh.refresh.fn(agent="toy", as_of=day(20), trigger="bootstrap", cause="first")
    assert first.result == "promoted"
    parts = load_champion("toy")
    assert parts.teacher.weights is not None and parts.teacher.weights.everywhere.outcomes == 1000
    assert parts.teacher.weights.teachers == ("rules", "logistic")

    shown_after_the_first_refresh()

    ingest("toy", day(20), day(28))
    for number in (23, 28):
        watch(agent="toy", as_of=day(number))
    changes = base.journal.weight_changes()
    followed = [each for each in changes if each.job == "watch" and each.teacher == "rules" and not each.slice]
    assert followed and followed[-1].as_of == day(28)
    assert followed[-1].after < followed[-1].before - 0.1
    assert "it lost" in followed[-1].reason and followed[-1].by == "outcomes"
    watch(agent="toy", as_of=day(28))
    assert base.journal.weight_changes() == changes  # a repeated watch records nothing twice
    (run,) = runs_of("watch")
    curve = open_registry("toy").client.get_metric_history(run.info.run_id, "weight/rules")
    assert [point.timestamp for point in curve][:2] == [int(day(n).timestamp() * 1000) for n in (23, 28)]
    assert curve[-1].value < curve[0].value

    ingest("toy", day(28), day(44))
    verdict = refresh(agent="toy", as_of=day(44), trigger="drift", cause="the rules fail")
    assert verdict.result == "promoted", verdict.summary
    last = [each for each in base.journal.weight_changes() if each.as_of == day(44) and not each.slice]
    fallen = next(each for each in last if each.teacher == "rules")
    assert fallen.before == pytest.approx(share(base, "rules", "watch")[-1]) and fallen.after < 0.1
    renewed = load_champion("toy")
    assert renewed.teacher.version != parts.teacher.version
    versions = {
        each: open_registry("toy").models.tags(open_registry("toy").version("toy-teacher", each))
        for each in ("champion", "1")
    }
    assert versions["champion"]["teacher_version"] == renewed.teacher.version
    assert versions["1"]["teacher_version"] == parts.teacher.version

    window = base.window("w", day(40), day(43))
    rows = base.read_labelled(window, known_by=day(44))
    right = {
        name: (predict(rows).argmax(axis=1) == rows["outcome"]).mean()
        for name, predict in (
            ("student", renewed.variant.predict_proba),
            ("teachers", renewed.teacher.ask),
            ("rules", OldRules().predict_proba),
        )
    }
    assert min(right["student"], right["teachers"]) > 0.75 and right["rules"] < 0.5


def shown_after_the_first_refresh() -> None:
    """Record, curve and figure in MLflow, and two tables in Prefect."""
    registry = open_registry("toy")
    (run,) = runs_of("refresh")
    weights = registry.runs.read_record(run.info.run_id, "weights.json", TeacherWeights)
    assert weights is not None and weights == read_weights(
        registry.models.fetch(registry.baseline(registry.champion()).teacher)
    )
    files = {file.path for file in registry.client.list_artifacts(run.info.run_id, "figures")}
    assert "figures/weights.png" in files
    curve = registry.client.get_metric_history(run.info.run_id, "weight/rules")
    assert len(curve) == 200 and curve[-1].step == 1000
    assert [point.timestamp for point in curve] == sorted(point.timestamp for point in curve)

    found = registry.runs.read_record(run.info.run_id, "contradictions.json", Contradictions)
    assert found is not None and {each.slice for each in found.contradictions} == {"", "place=north", "place=south"}
    whole = found.contradictions[0]
    assert (whole.first, whole.second, whole.rows) == ("rules", "logistic", 14 * toy.PER_DAY)
    command = [sys.executable, "-c", "from stillhouse.cli import main; main()", "teachers", "toy"]
    told = subprocess.run(command, text=True, capture_output=True, timeout=300, check=False)
    assert told.returncode == 0, told.stderr
    assert "by the agent file" in told.stdout and "logistic" in told.stdout
    assert 0 < whole.low < whole.share < whole.high < 0.3
    with get_client(sync_client=True) as client:
        page = json.loads(json.dumps([artifact.data for artifact in client.read_artifacts()]))
    assert any("## Weights of the teachers" in str(text) and "contradict each other" in str(text) for text in page)


def test_a_kept_teacher_is_weighed_anew_and_asked_nothing_twice(
    lived: Callable[..., KnowledgeBase], day: Callable[[int], Any], agents: Path
) -> None:
    settle_on(agents)
    base = lived()
    before = open_registry("toy").baseline(open_registry("toy").champion()).teacher
    ingest("toy", day(20), day(22))
    verdict = refresh(agent="toy", as_of=day(22), teacher="keep", cause="two days later")
    assert verdict.kind == "gate" and verdict.result != "refused", verdict.summary
    after = open_registry("toy").baseline(open_registry("toy").champion()).teacher
    assert after.version != before.version
    counts = base.read("knowledge").groupby("teacher")["content_key"]
    assert (counts.nunique() == counts.size()).all()
    teacher = load_champion("toy").teacher
    assert {name: spent.rows for name, spent in base.answers.spending().items()} == {
        member.name: counts.size()[teacher.member_version(member)] for member in teacher.members
    }
