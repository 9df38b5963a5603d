"""The real path of a promise: a refresh fits it, signs it with the champion, and an agent decides by it."""

from __future__ import annotations

import numpy as np
import pytest

from stillhouse import Agent, config
from stillhouse.agreement import Promise, lower_bound
from stillhouse.agreement.audits import load_audit_draw
from stillhouse.certifying.run import verify
from stillhouse.champion import load_champion, open_registry
from stillhouse.records import PromiseState
from stillhouse.refreshing.data import RefreshData
from tests.flows import toy

PROMISE = Promise(agreement=0.9, confidence=0.9)
AUDIT = 0.1


@pytest.fixture(autouse=True)
def promising(agents) -> None:
    """The toy promises an agreement with its logistic regression."""
    file = agents / "toy.yaml"
    cascade = f"{{agreement: {PROMISE.agreement}, confidence: {PROMISE.confidence}, audit: {AUDIT}, timeout: 30s}}"
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
