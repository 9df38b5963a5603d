"""Carry out what a watch decided about the champion: promote a member of the pool, or undo a promotion.

The watch's verdict is recorded first, with all that the promotion needs. So a watch that is killed in between is
completed by the next one, with one promotion and one verdict about it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

from filelock import Timeout
from pydantic import JsonValue

from stillhouse import config
from stillhouse.knowledge import KnowledgeBase
from stillhouse.locks import refresh_lock
from stillhouse.promoting import current_champion, promote_member, undo_promotion
from stillhouse.records import ChampionChoice, Verdict
from stillhouse.watching.payoff import compare_for_reuse
from stillhouse.watching.window import WatchedWindow

__all__ = ["carry_out", "complete_promotion"]

log = logging.getLogger(__name__)


def carry_out(watched: WatchedWindow, verdict: Verdict) -> Verdict | None:
    """Make the member that the verdict of a watch names champion, and record why.

    :returns: the verdict about the promotion; None if the watch asks for none, or if a refresh or promotion is running
        or has made another champion meanwhile: then the next watch decides again.
    """
    found = verdict.evidence.get("choice")
    if verdict.response != "reuse" or not found:
        return None
    choice = ChampionChoice.model_validate(found)
    if choice.action == "keep":
        return None
    evidence = _collect_evidence(watched, verdict, choice)
    reasons = sorted(choice.reasons, key=lambda reason: (reason.failed, choice.member not in reason.text))
    try:
        with refresh_lock(verdict.agent).acquire(timeout=0):
            if current_champion(verdict.agent) not in (choice.champion, choice.member):
                return None
            if choice.action == "undo":
                return undo_promotion(verdict.agent, choice.champion, evidence, reasons, verdict.as_of)
            version = choice.member.rpartition("@")[2]
            return promote_member(verdict.agent, version, evidence, reasons, verdict.as_of)
    except Timeout:
        log.info("a refresh or promotion of %s is running: the next watch decides about its champion", verdict.agent)
        return None


def complete_promotion(agent: str) -> Verdict | None:
    """Carry out what the last watch decided about the champion, if it was killed before it did.

    :returns: the verdict about the promotion; None if nothing is left to do.
    """
    base = KnowledgeBase(config.load(agent))
    last = base.journal.last_verdict("watch")
    found = last.evidence.get("choice") if last and last.response == "reuse" else None
    if last is None or not found:
        return None
    member = ChampionChoice.model_validate(found).member
    recorded = base.journal.verdicts("promotion", since=last.as_of)
    if any(member in (verdict.evidence.get("champion"), verdict.evidence.get("challenger")) for verdict in recorded):
        return None
    return carry_out(WatchedWindow(agent, base.window("current", last.as_of, last.as_of), None), last)


def _collect_evidence(watched: WatchedWindow, verdict: Verdict, choice: ChampionChoice) -> Mapping[str, JsonValue]:
    """What the pool decided on: its evidence about the member, or the comparison that proved a reuse."""
    pool, reckoning = verdict.evidence.get("pool"), verdict.evidence.get("reckoning")
    about_member = pool.get("evidence", []) if isinstance(pool, dict) else []
    evidence: dict[str, JsonValue] = {
        "watch": verdict.verdict_id,
        "choice": choice.model_dump(mode="json"),
        "evidence": [one for one in about_member if isinstance(one, dict) and one.get("member") == choice.member],  # type: ignore[union-attr]
    }
    if isinstance(reckoning, dict) and reckoning.get("chosen") == "reuse" and reckoning.get("model") == choice.member:
        comparison = compare_for_reuse(watched, choice.member, choice.champion, verdict.as_of)
        evidence |= {
            "reckoning": reckoning,
            "comparison": comparison.model_dump(mode="json") if comparison else None,
        }
    return evidence
