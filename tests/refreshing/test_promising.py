"""The real path of a promise: a refresh fits it, signs it with the champion, and an agent decides by it."""

from __future__ import annotations

import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

import stillhouse
from stillhouse import Agent, config
from stillhouse.agreement import Promise, lower_bound
from stillhouse.agreement.audits import load_audit_draw
from stillhouse.agreement.novelty import NoveltyGuard
from stillhouse.certifying.run import verify
from stillhouse.champion import load_champion, open_registry
from stillhouse.ingesting import ingest
from stillhouse.new_answers import read_new_answers
from stillhouse.records import PromiseState
from stillhouse.refreshing.data import RefreshData
from tests.flows import clerk, toy

PROMISE = Promise(agreement=0.9, confidence=0.9)
AUDIT = 0.1


@pytest.fixture(autouse=True)
def promising(agents) -> None:
    """The toy and the clerk promise an agreement with their teachers."""
    shutil.copy(Path(__file__).parents[1] / "flows" / "clerk.yaml", agents)
    cascade = f"{{agreement: {PROMISE.agreement}, confidence: {PROMISE.confidence}, audit: {AUDIT}, timeout: 30s}}"
    for file in (agents / "toy.yaml", agents / "clerk.yaml"):
        text = file.read_text().replace("final_fit: never", "final_fit: auto")
        file.write_text(f"{text}runtime: {{cascade: {cascade}}}\n")


def test_a_refresh_fits_the_promise_on_rows_that_nobody_learned_from_and_the_agent_decides_by_it(toy_base, day) -> None:
    base = toy_base(22, first=20)
    champion = load_champion("toy", config.load("toy"))
    registry = open_registry("toy")
    assert champion is not None and not registry.final_fits()  # the test rows stay unlearned
    state = PromiseState.model_validate_json((champion.folder / "promise.json").read_bytes())
    assert state.promise == PROMISE and state.threshold is not None

    test, train = champion.baseline.test, champion.baseline.train
    rows = base.read_labelled(test, champion.baseline.as_of)
    answers = base.answers.probs(rows, champion.teacher.version)
    probs = champion.variant.predict_proba(rows)
    assert sum(state.rows) == len(rows) == 4 * toy.PER_DAY  # the examination asked about all of them
    answered = probs.max(axis=1) >= state.threshold
    agreed = (probs.argmax(axis=1) == answers.argmax(axis=1))[answered]
    assert lower_bound(len(agreed), int((~agreed).sum()), PROMISE.confidence) >= PROMISE.agreement

    training = RefreshData(base, train, champion.baseline.as_of).read_training_rows(train)
    learned = training.frame["observation_id"][training.may_learn & training.has_label].tolist()
    assert not any(load_audit_draw().mask(learned, AUDIT))  # the audited tenth is left out
    assert 0.85 < len(learned) / (~training.is_validation).sum() < 0.95

    new = toy.observations(day(20), day(21))
    with Agent("toy") as agent:  # it has decided about some rows before
        agent.follow()
        before = agent.status().promise
        assert before is not None and (before.champion, before.threshold) == ("toy@1", state.threshold)
        decisions = agent.decide(new)
        status = agent.status().promise
    deciders = np.array([decision.decider for decision in decisions])
    is_audited = np.array(load_audit_draw().mask(new["observation_id"].tolist(), AUDIT))
    confidences = champion.variant.predict_proba(new).max(axis=1)
    assert status is not None and status.audited - before.audited == is_audited.sum() > 0
    assert np.array_equal(deciders == "student", ~is_audited & (confidences >= state.threshold))
    assert (deciders == "student").mean() > 0.5


def test_the_verdict_of_a_promising_champion_is_computed_again(toy_base) -> None:
    base = toy_base(20)
    (verdict,) = base.journal.verdicts("gate")
    again = verify("toy", verdict.verdict_id)
    assert again.identical, again


@pytest.mark.slow
def test_texts_in_other_words_go_to_the_teacher_and_are_reported(day) -> None:
    """From day 24 on the clerk's customers use other words for the same things."""
    ingest("clerk", day(0), day(20))
    stillhouse.refresh("clerk", day(20), trigger="bootstrap", cause="first")
    champion, settings = load_champion("clerk", config.load("clerk")), config.load("clerk")
    state = PromiseState.model_validate_json((champion.folder / "promise.json").read_bytes())
    guard = NoveltyGuard.load(champion.folder / "novelty.bin")
    assert state.threshold is not None and state.novelty_limit == guard.limit
    usual, other = (clerk.observations(day(n), day(n + 1)) for n in (20, 25))
    is_novel = [np.mean([guard.score(text) > guard.limit for text in rows["said"]]) for rows in (usual, other)]
    assert is_novel[0] < 0.1 and is_novel[1] > 3 * is_novel[0]

    with Agent("clerk") as agent:
        agent.follow()
        shares = []
        for rows in (usual, other):
            decisions = agent.decide(rows)
            shares.append(np.mean([decision.decider == "teacher" for decision in decisions]))
        status = agent.status().promise
    assert shares[0] < shares[1] and status.audited > 0
    found = read_new_answers(settings, timedelta(days=1), min_rows=4)
    assert found.rows >= shares[1] * len(other) * 0.9 and found.untaught == ()  # all four answers were taught
