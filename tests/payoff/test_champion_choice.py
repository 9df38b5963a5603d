"""The choice of the champion: proofs, hysteresis, vetoes, undo, and the shares of the error budget."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from stillhouse.payoff.champion_choice import (
    choose_champion,
    member_share,
    member_shares,
    newest_block_veto,
    reign_error,
)
from stillhouse.records import PoolEvidence, PoolMember, PoolState

NOW = datetime(2026, 3, 2, tzinfo=UTC)
DAY = timedelta(days=1)


def member(number: int, role: str = "challenger", **more: Any) -> PoolMember:
    """The member that was made on day ``number``; the champion is toy@3."""
    fields = {
        "model": f"toy@{number}",
        "role": role,
        "made_at": NOW + number * DAY,
        "shaped_until": NOW,
        "mode": "redistil",
        "promotable": True,
    }
    return PoolMember.model_validate(fields | more)


def proof(number: int, **more: Any) -> PoolEvidence:
    """Evidence that proves a newer member not worse, and no older one better."""
    fields = {
        "member": f"toy@{number}",
        "champion": "toy@3",
        "measure": "log_loss",
        "since": NOW,
        "until": NOW + 20 * DAY,
        "blocks": 20,
        "rows": 9_000,
        "gain": 0.02,
        "shrunken_gain": 0.01,
        "standard_error": 0.004,
        "share": 0.3,
        "log_not_worse": 9.0,
        "log_better": 4.0,
        "log_worse": -5.0,
        "log_threshold": 6.0,
        "newest_gain": 0.01,
        "newest_error": 0.02,
    }
    return PoolEvidence.model_validate(fields | more)


CHAMPION = member(3, "champion")


def choose(members: list[PoolMember], *evidence: PoolEvidence, allow_promotion: bool = True) -> Any:
    state = PoolState(
        champion="toy@3", as_of=NOW, reign=2, reign_began=NOW, members=(CHAMPION, *members), evidence=evidence
    )
    return choose_champion(state, allow_promotion=allow_promotion)


def test_a_newer_member_that_is_not_worse_and_gains_is_promoted() -> None:
    choice = choose([member(4)], proof(4))
    assert (choice.action, choice.member, choice.champion) == ("promote", "toy@4", "toy@3")
    assert "proven not worse than toy@3 by the margin" in choice.reasons[0].text and not choice.reasons[0].failed


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"log_not_worse": 5.9, "labels_needed": 800}, "not yet proven .* about 800 more labels"),
        ({"shrunken_gain": 0.0}, "not above 0"),
        ({"shrunken_gain": -0.01}, "not above 0"),
        ({"newest_gain": -0.04}, "worse than toy@3 on the newest complete block"),
    ],
)
def test_a_member_must_wait(change: dict[str, Any], why: str) -> None:
    choice = choose([member(4)], proof(4, **change))
    assert (choice.action, choice.member) == ("keep", "toy@3")
    (reason,) = choice.reasons
    assert reason.failed
    assert re.search(why, reason.text)


def test_a_member_that_may_not_become_champion_says_why() -> None:
    choice = choose([member(4, promotable=False, why_not="812 bytes, above the budget of 500")], proof(4))
    assert choice.action == "keep" and "812 bytes" in choice.reasons[0].text


def test_an_older_member_must_be_proven_better() -> None:
    """So two equal models do not take turns."""
    for role in ("previous", "refused", "never_refreshed"):
        assert choose([member(1, role)], proof(1)).action == "keep"
        better = choose([member(1, role)], proof(1, log_better=6.5))
        assert better.action == ("undo" if role == "previous" else "promote")


def test_a_previous_champion_that_was_made_later_must_be_proven_better_too() -> None:
    assert choose([member(4, "previous")], proof(4)).action == "keep"


def test_an_older_member_with_a_larger_gain_stops_a_slow_decline() -> None:
    first = proof(1, shrunken_gain=0.012, log_better=5.0)
    for promotable in (True, False):
        choice = choose([member(4), member(1, "never_refreshed", promotable=promotable)], proof(4), first)
        assert choice.action == "keep" and "another member gains more" in choice.reasons[0].text
    other = choose([member(4), member(1, "refused", promotable=False)], proof(4), first)
    assert other.member == "toy@4"
    proven = choose([member(4), member(1, "never_refreshed")], proof(4, log_better=6.5), first)
    assert proven.member == "toy@4"


def test_the_largest_shrunken_gain_is_chosen() -> None:
    choice = choose([member(4), member(1, "previous")], proof(4), proof(1, shrunken_gain=0.02, log_better=7.0))
    assert (choice.action, choice.member) == ("undo", "toy@1")


def test_where_decisions_change_outcomes_nobody_is_promoted() -> None:
    choice = choose([member(4)], proof(4), allow_promotion=False)
    assert choice.action == "keep" and "depend_on_decision" in choice.reasons[0].text


def test_evidence_against_another_champion_or_about_strangers_is_ignored() -> None:
    choice = choose([member(4)], proof(4, champion="toy@2"), proof(9), proof(3))
    assert (choice.action, choice.reasons) == ("keep", ())


def test_the_veto_of_the_newest_block() -> None:
    assert newest_block_veto(proof(4)) is None
    assert newest_block_veto(proof(4, newest_gain=None, newest_error=None)) is None
    assert newest_block_veto(proof(4, newest_gain=-0.032)) is None
    veto = newest_block_veto(proof(4, newest_gain=-0.034))
    assert veto is not None and veto.failed and veto.threshold == pytest.approx(-0.0329)


def test_the_budget_of_all_reigns_is_finite() -> None:
    total = [reign_error(number, 0.95) for number in range(1, 1_001)]
    assert sum(total[:50]) == pytest.approx(0.5) and sum(total) < 1.0
    with pytest.raises(ValueError, match="numbered from 1"):
        reign_error(0, 0.95)


def test_shares_are_fixed_on_entry_and_never_exceed_the_budget() -> None:
    older = [member(1, "never_refreshed"), member(2, "previous"), member(0, "refused")]
    shares = member_shares([CHAMPION, *older, member(5), member(4)], "toy@3")
    assert shares == {
        "toy@2": 0.25,
        "toy@0": 0.125,
        "toy@1": 0.125,
        "toy@4": member_share(1),
        "toy@5": member_share(2),
    }
    many = member_shares([CHAMPION, *older, *(member(number) for number in range(4, 400))], "toy@3")
    assert sum(many.values()) < 1
    assert shares.items() <= many.items()
    with pytest.raises(ValueError, match="numbered from 1"):
        member_share(0)
