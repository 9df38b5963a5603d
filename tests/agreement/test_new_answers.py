"""New answers are found with examples and a name, and usual disagreements are not reported as such."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stillhouse.agreement.new_answers import find_new_answers

ACTIONS = ["hotel", "taxi", "visa", "oos"]


def test_an_option_that_nobody_was_taught_is_reported_with_examples() -> None:
    texts = [f"does {country} want a visa" for country in ("peru", "laos", "chad", "oman", "fiji", "mali")]
    probs = np.tile([0.5, 0.4, 0.05, 0.05], (6, 1))
    found = find_new_answers(texts, probs, np.full(6, 2), ACTIONS, {"hotel": 100, "taxi": 90, "visa": 2})
    (untaught,) = found.untaught
    assert (untaught.action, untaught.rows, untaught.taught) == ("visa", 6, 2)
    assert untaught.examples == tuple(texts[-3:])
    assert find_new_answers(texts, probs, np.full(6, 2), ACTIONS, {"visa": 50}).untaught == ()
    assert find_new_answers(texts[:4], probs[:4], np.full(4, 2), ACTIONS, {}).untaught == ()


def test_out_of_scope_has_its_own_error_rates() -> None:
    student, teacher = np.array([3, 3, 0, 0, 1]), np.array([3, 0, 3, 3, 1])
    found = find_new_answers([""] * 5, np.eye(4)[student], teacher, ACTIONS, {}, out_of_scope="oos")
    assert found.missed_out_of_scope == pytest.approx(2 / 3) and found.false_out_of_scope == 0.5
    assert find_new_answers([], np.empty((0, 4)), np.empty(0, int), ACTIONS, {}, out_of_scope="oos").rows == 0


@pytest.mark.slow
def test_a_domain_of_clinc150_that_arrives_is_found_as_clusters_named_after_it(clinc150: Path) -> None:
    """The student knows banking; questions about travel arrive, of which it is unsure."""
    data = json.loads((clinc150 / "data_full.json").read_text())
    domains = json.loads((clinc150 / "domains.json").read_text())
    new, actions = set(domains["travel"][:3]), sorted(domains["banking"]) + sorted(domains["travel"][:3])
    rows = [(text, actions.index(intent)) for text, intent in data["test"] if intent in actions]
    rng = np.random.default_rng(0)
    rng.shuffle(rows)
    texts, teacher = [text for text, _ in rows], np.array([int(action) for _, action in rows])
    is_new = np.array([actions[action] in new for action in teacher])
    probs = np.full((len(rows), len(actions)), 0.01)
    probs[np.arange(len(rows)), np.where(is_new, rng.integers(0, len(domains["banking"]), len(rows)), teacher)] = 0.5
    found = find_new_answers(texts, probs, teacher, actions, dict.fromkeys(domains["banking"], 100), threshold=0.9)
    assert {answer.action for answer in found.untaught} == new
    assert found.clusters and {cluster.action for cluster in found.clusters} == new
    assert sum(cluster.rows for cluster in found.clusters) > 0.4 * is_new.sum()
    for cluster in found.clusters:
        assert cluster.share > 0.7 and any(
            word in " ".join(cluster.examples).lower() for word in cluster.name.split("_")
        )
