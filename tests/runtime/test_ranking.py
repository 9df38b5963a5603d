"""Rankings: the candidates with the largest probability are shown, and all that were offered are recorded."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import load
from stillhouse.errors import NoChampionError, RuntimeStateError, SchemaError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.flush import flush
from stillhouse.runtime import Agent
from stillhouse.runtime.ranking import ranked_action
from stillhouse.variant import Variant
from tests.agents import agent_config
from tests.runtime.conftest import Installation

ROWS: list[dict[str, Any]] = [
    {"wind": float(number), "hour": number % 24, "origin": "EWR", "observation_id": f"c{number}"}
    for number in range(40)
]


def late_probs(installation: Installation, rows: list[dict[str, Any]]) -> np.ndarray:
    variant = Variant(next(installation.folder.glob("variant-1-*")))
    return variant.predict_proba(pd.DataFrame(rows))[:, variant.actions.index("late")]


def test_the_best_are_shown_in_order_and_everything_offered_is_recorded(promoted: Installation) -> None:
    with Agent("flights") as agent:
        ranking = agent.rank(ROWS, top=3)
        agent.outcome(ranking.decisions[0].decision_id, "late")
        assert agent.status().decisions == {"student": 3}
    probs = late_probs(promoted, ROWS)
    order = np.argsort(-probs, kind="stable")
    assert [decision.observation_id for decision in ranking.decisions] == [f"c{index}" for index in order[:3]]
    assert (ranking.action, ranking.offered) == ("late", 40)
    shown = [decision.probabilities["late"] for decision in ranking.decisions]
    np.testing.assert_allclose(shown, probs[order[:3]], atol=1e-7)

    base = KnowledgeBase(load("flights"))
    assert set(base.read("decisions")["decision_id"]) == {decision.decision_id for decision in ranking.decisions}
    assert set(base.read("observations")["observation_id"]) == {f"c{index}" for index in order[:3]}
    assert base.read("outcomes")["observation_id"].tolist() == [f"c{order[0]}"]
    offered = base.read("rankings").set_index("observation_id").loc[[row["observation_id"] for row in ROWS]]
    assert set(offered["ranking_id"]) == {ranking.ranking_id} and set(offered["version"]) == {"flights@1"}
    np.testing.assert_allclose(offered["probability"], probs, atol=1e-7)
    assert offered["position"].dropna().sort_values().index.tolist() == [f"c{index}" for index in order[:3]]
    assert offered["position"].dropna().sort_values().tolist() == [1, 2, 3]


def test_dictionaries_a_frame_and_asyncio_give_the_same_order(promoted: Installation) -> None:
    with Agent("flights", flush=False) as agent:
        rankings = [
            agent.rank(ROWS),
            agent.rank(pd.DataFrame(ROWS)),
            asyncio.run(agent.rank_async(ROWS, top=10)),
            agent.rank([{**row, "observation_id": None} for row in ROWS]),
        ]
        least = agent.rank(ROWS, top=100, action="on_time")
    orders = [[decision.probabilities["late"] for decision in ranking.decisions] for ranking in rankings]
    assert orders[0] == orders[1] == orders[2] == orders[3] and len(orders[0]) == 10
    assert len(least.decisions) == 40 and least.action == "on_time"
    assert [one.observation_id for one in rankings[0].decisions] == [
        one.observation_id for one in rankings[1].decisions
    ]


def test_equal_candidates_keep_the_order_in_which_they_were_offered(promoted: Installation) -> None:
    same = [{"wind": 1.0, "hour": 3, "origin": "JFK", "observation_id": name} for name in "zyxw"]
    with Agent("flights", flush=False) as agent:
        assert [decision.observation_id for decision in agent.rank(same, top=3).decisions] == ["z", "y", "x"]


def test_no_candidates_are_no_ranking(promoted: Installation) -> None:
    with Agent("flights", flush=False) as agent:
        for nothing in ([], pd.DataFrame(ROWS).iloc[:0]):
            ranking = agent.rank(nothing)
            assert (ranking.offered, ranking.decisions) == (0, ())
        assert agent.status().spool_rows == 0


@pytest.mark.parametrize(
    ("candidates", "options", "message"),
    [
        (ROWS[0], {}, "a list of observations or a frame, not one observation"),
        (ROWS, {"top": 0}, "top is how many candidates are shown, a whole number from 1, not 0"),
        (ROWS, {"top": True}, "not True"),
        (ROWS, {"top": 2.5}, r"not 2\.5"),
        (ROWS, {"action": "early"}, "no action 'early' to rank by; it has: on_time, late"),
        ([ROWS[0], ROWS[1], ROWS[0]], {}, "candidates 0 and 2 have the same observation_id 'c0'"),
        ([ROWS[0], {"wind": 1.0}], {}, r"missing required field .* at `\$\[1\]`"),
        ([ROWS[0], {**ROWS[1], "wind": float("inf")}], {}, r"infinite - at `\$\[1\]\.wind`"),
        (pd.DataFrame(ROWS).drop(columns="wind"), {}, "wind"),
        (["c0"], {}, "observations of agent 'flights'"),
    ],
)
def test_a_bad_ranking_is_refused_and_nothing_is_recorded(
    promoted: Installation, candidates: Any, options: dict[str, Any], message: str
) -> None:
    with Agent("flights", flush=False) as agent:
        with pytest.raises(SchemaError, match=message):
            agent.rank(candidates, **options)
        assert agent.status().spool_rows == 0


def test_more_than_two_actions_need_the_one_to_rank_by() -> None:
    config = agent_config(actions=["a", "b", "c"])
    with pytest.raises(SchemaError, match=r"agent 'toy' has 3: name it, action=…, one of: a, b, c"):
        ranked_action(config, None, ["a", "b", "c"], "toy@1")
    assert ranked_action(config, "c", ["a", "b", "c"], "toy@1") == 2
    with pytest.raises(SchemaError, match="toy@1 does not know the action 'c' yet"):
        ranked_action(config, "c", ["a", "b"], "toy@1")


def test_a_ranking_needs_a_champion_and_asks_no_teacher(installation: Installation) -> None:
    with Agent("flights", follow=False, flush=False) as agent, pytest.raises(NoChampionError, match="no champion"):
        agent.rank(ROWS)
    installation.registry.promote("1")
    installation.write_cascade()
    with Agent("flights", flush=False) as agent:
        assert {decision.decider for decision in agent.rank(ROWS).decisions} == {"student"}
        assert agent.status().cascade == {}
    installation.write(runtime={"poll": "0.1s", "cascade": {"agreement": 0.98}})
    with Agent("flights", flush=False) as agent, pytest.raises(RuntimeStateError, match="promises an agreement"):
        agent.rank(ROWS)


def test_a_replayed_history_is_ranked_at_its_own_time(promoted: Installation) -> None:
    promoted.write(watch={"thresholds": {"psi": 0.25}, "clock": "newest_observation"})
    at = datetime(2013, 1, 5, 12, tzinfo=UTC)
    with Agent("flights", flush=False) as agent:
        agent.rank([{**row, "observed_at": at} for row in ROWS[:5]], top=2)
        flush(base := KnowledgeBase(load("flights")))
    assert set(base.read("rankings")["ranked_at"]) == {pd.Timestamp(at)} == set(base.read("decisions")["decided_at"])
