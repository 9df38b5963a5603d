"""The pool on the real path: which models are members, and how they are scored."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pandas as pd
import pytest

from stillhouse import config
from stillhouse.ingesting import ingest
from stillhouse.knowledge import KnowledgeBase
from stillhouse.payoff.scores import scoring_rule
from stillhouse.watching import pool
from stillhouse.watching.window import WatchedWindow, get_window, open_window

Day = Callable[[int], datetime]
Base = Callable[..., KnowledgeBase]
ONE_DAY = timedelta(days=1)
CHAMPION = "toy@1"  # of the first refresh


def _open(as_of: datetime) -> WatchedWindow:
    _, window = open_window("toy", as_of)
    return get_window("toy", window)


def test_members_are_scored_once_on_complete_blocks_new_to_them(toy_base: Base, day: Day) -> None:
    base = toy_base(24)
    watched = _open(day(24))
    scored = pool.score_pool(watched, day(24))
    (member,) = scored.members
    assert (member.model, member.role, member.mode, member.promotable) == (
        str(watched.champion.model),
        "champion",
        "redistil",
        True,
    )
    assert member.shaped_until == day(15) and member.made_at == day(20)
    scores = scored.scores[CHAMPION]
    assert [score.start for score in scores] == [day(n) for n in range(15, 23)]
    assert all(score.complete for score in scores)  # outcomes are known a day later
    assert {score.rows for score in scores[:8]} == {120} and scored.stored == 8
    again = pool.score_pool(_open(day(24)), day(24))
    assert again.stored == 0 and again.scores == scored.scores
    stored = base.journal.scores(scoring_rule(config.load("toy")))
    assert stored == list(scores[:8])
    ingest("toy", day(24), day(26))
    later = pool.score_pool(_open(day(26)), day(26))
    assert later.stored == 2


def test_a_block_has_the_same_rows_whoever_scores_it_later(toy_base: Base, day: Day) -> None:
    base = toy_base(24)
    early = pool.score_pool(_open(day(24)), day(24))
    late = pd.DataFrame(
        {"observation_id": ["toy-01805"], "observed_at": [day(15)], "known_at": [day(23)], "action": ["go"]}
    )
    base.tables.append("outcomes", late, batch="a correction that came late")
    rows = base.read_labelled_blocks(base.window("w", day(15), day(24)), ONE_DAY, ONE_DAY)
    first = rows[rows["block_start"] == day(15)]
    assert tuple(first["outcome"]) == early.scores[CHAMPION][0].labels
    short = base.read_labelled_blocks(base.window("w", day(15), day(16)), ONE_DAY, ONE_DAY)
    assert len(short) < 120  # at the end of the block only some are known


def test_a_change_of_the_block_length_scores_again(toy_base: Base, agents, day: Day) -> None:
    base = toy_base(24)
    assert pool.score_pool(_open(day(24)), day(24)).stored == 8
    file = agents / "toy.yaml"
    file.write_text(file.read_text().replace("  clock:", "  payoff: {block: 2d}\n  clock:"))
    scored = pool.score_pool(_open(day(24)), day(24))
    complete = [score for score in scored.scores[CHAMPION] if score.complete]
    assert scored.stored == len(complete) >= 3 and {score.rows for score in complete} == {240}
    assert len(base.journal.scores(scoring_rule(config.load("toy")))) == len(complete)


def test_a_member_that_cannot_be_loaded_is_skipped(toy_base: Base, day: Day, monkeypatch: pytest.MonkeyPatch) -> None:
    toy_base(24)

    def fail(*args: object) -> object:
        raise OSError("disk full")

    watched = _open(day(24))
    monkeypatch.setattr(pool, "align_probs", fail)
    scored = pool.score_pool(watched, day(24))
    assert scored.stored == 0 and "disk full" in scored.skipped[CHAMPION]
    state = pool.read_pool_state(watched, scored)
    assert state is not None and state.evidence == ()
