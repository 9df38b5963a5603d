"""The agent `rules`: dated rules, their exceptions in the outcomes, and a refresh that follows an edit."""

from __future__ import annotations

import json
import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from examples import rules
from stillhouse.config import load_file
from stillhouse.errors import PartError
from stillhouse.knowledge import KnowledgeBase

AGENT = Path(__file__).parents[2] / "agents" / "rules.yaml"
EDIT = pd.Timestamp("2024-03-27T00:00:00Z")


def order(**values: object) -> pd.DataFrame:
    usual = {"amount": 100.0, "items": 2.0, "account_days": 400.0, "earlier_orders": 1.0, "hour": 12.0}
    return pd.DataFrame([{"region": "home", "express": "no", **usual, **values}])


def chosen(teacher: rules.Rules, rows: pd.DataFrame) -> str:
    return rules.ACTIONS[int(teacher.predict_proba(rows).argmax())]


def test_stream_and_agent_file_belong_together() -> None:
    settings = load_file(AGENT)
    assert settings.actions == rules.ACTIONS
    week = rules.orders(rules.FIRST_DAY, rules.FIRST_DAY + timedelta(weeks=1))
    assert set(settings.observations.columns) < set(week) and week["observed_at"].is_monotonic_increasing
    outcomes = rules.right_actions(rules.FIRST_DAY, rules.FIRST_DAY + timedelta(weeks=1))
    assert outcomes["observation_id"].tolist() == week["observation_id"].tolist()
    assert ((outcomes["known_at"] - outcomes["observed_at"]) == settings.label_delay).all()


def test_first_rule_that_applies_decides() -> None:
    old = rules.Rules().at((EDIT - timedelta(seconds=1)).to_pydatetime(), EDIT.to_pydatetime())
    assert chosen(old, order()) == "pass"
    assert chosen(old, order(amount=1000.0)) == "review"
    assert chosen(old, order(amount=2000.0, account_days=3.0)) == "reject"
    assert chosen(old, order(express="yes", account_days=20.0)) == "pass"
    new = rules.Rules().at(EDIT.to_pydatetime(), EDIT.to_pydatetime())
    assert chosen(new, order(express="yes", account_days=20.0)) == "reject"
    assert old.fingerprint() != new.fingerprint()
    np.testing.assert_allclose(new.predict_proba(order()), [[0.9, 0.05, 0.05]])


def test_without_a_moment_each_order_is_judged_by_the_rules_of_its_day() -> None:
    rows = pd.concat([order(express="yes", account_days=20.0)] * 2).assign(observed_at=[EDIT - timedelta(days=1), EDIT])
    assert rules.Rules().predict_proba(rows).argmax(axis=1).tolist() == [0, 2]
    now = rules.Rules().at(EDIT.to_pydatetime(), EDIT.to_pydatetime())
    assert now.predict_proba(rows).argmax(axis=1).tolist() == [2, 2]
    assert now.overrules(rows).tolist() == [True, False]  # the outcome of the first followed the rules of its day


def test_exceptions_are_in_the_outcomes_and_not_in_the_rules() -> None:
    rows, end = rules._stream(), EDIT - timedelta(days=1)
    rows = rows[(rows["observed_at"] < end) & (rows["earlier_orders"] >= 12)]
    said = rules.Rules().predict_proba(rows).argmax(axis=1) == 1
    decided = rows["action"][said & ((rows["hour"] >= 6) | (rows["amount"] <= 500)).to_numpy()]
    assert len(decided) > 100 and (decided == "pass").mean() > 0.9


def test_comments_do_not_change_the_fingerprint_and_edits_do(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    text = rules.FILE.read_text(encoding="utf-8")
    file.write_text("# another comment\n" + text, encoding="utf-8")
    assert rules.Rules(str(file)).fingerprint() == rules.Rules().fingerprint()
    file.write_text(text.replace("> 1300", "> 1200"), encoding="utf-8")
    assert rules.Rules(str(file)).fingerprint() != rules.Rules().fingerprint()
    saved = rules.Rules(str(file))
    saved.save(tmp_path)
    assert rules.Rules.load(tmp_path).fingerprint() == saved.fingerprint()


@pytest.mark.parametrize(("old", "new"), [("then: reject", "then: arrest"), ('"> 900"', '"above 900"')])
def test_a_mistake_in_the_rules_is_named(tmp_path: Path, old: str, new: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(rules.FILE.read_text(encoding="utf-8").replace(old, new), encoding="utf-8")
    with pytest.raises(PartError, match="must be"):
        rules.Rules(str(file))


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_demo_follows_an_edit_of_the_rules(agents: Path) -> None:
    from flows.demo import demo

    text = AGENT.read_text(encoding="utf-8").replace("since: 2024-01-01", "since: 2024-02-12")
    (agents / "rules.yaml").write_text(text, encoding="utf-8")
    result = demo(agent="rules", bootstrap_weeks=5, weeks=4)
    held, edit, *later = result.weeks
    assert held.response == "hold"
    assert (edit.drift, edit.response, edit.gate) == ("teacher_changed", "renew", "promoted")
    for week in later:
        assert week.quality_champion > week.quality_static + 0.05  # type: ignore[operator]
    base = KnowledgeBase(load_file(agents / "rules.yaml"))
    verdict = base.journal.verdict_at("watch", edit.ending)
    assert verdict is not None and "teacher rules is version" in verdict.summary
    assert len(json.dumps(verdict.evidence["changes"])) > 10
    shutil.rmtree(result.folder)
