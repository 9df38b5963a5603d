"""A person moves the champion: to a named version, or back to the previous champion."""

from __future__ import annotations

from datetime import UTC, datetime

from stillhouse import config
from stillhouse.champion import open_registry
from stillhouse.errors import RegistryError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import ModelRef, Reason, Verdict, short_id

__all__ = ["promote_version", "roll_back"]


def promote_version(agent: str, version: int | None, reason: str) -> Verdict:
    """Make ``version`` the champion, and record the verdict.

    :raises RegistryError: if no version is given, or there is no such version.
    """
    registry = open_registry(agent)
    if version is None:
        raise RegistryError(f"which version of {agent!r}? `stillhouse status {agent}` lists them; give `version`")
    registry.promote(str(version))
    replaced, since = registry.promotion(str(version))
    champion = registry.version(agent, str(version))
    assert champion is not None  # it has just been promoted
    return _record_promotion(agent, "promoted", champion, replaced, reason, since)


def roll_back(agent: str, reason: str) -> Verdict:
    """Make the previous champion the champion again. If a call is killed, the next call completes it, once.

    :raises RegistryError: if there is no previous champion.
    """
    verdicts: list[Verdict] = []
    open_registry(agent).rollback(
        lambda done: verdicts.append(
            _record_promotion(agent, "rolled_back", done.champion, done.before, reason, done.began_at)
        )
    )
    return verdicts[0]


def _record_promotion(
    agent: str, result: str, champion: ModelRef, replaced: ModelRef | None, reason: str, since: str
) -> Verdict:
    """The verdict of a promotion that began at ``since`` (ISO 8601); recorded once, however often this is called."""
    base = KnowledgeBase(config.load(agent))
    verdict_id = short_id(agent, "promotion", result, champion, replaced, since)
    if recorded := base.journal.verdict(verdict_id):
        return recorded
    verdict = Verdict.model_validate(
        {
            "verdict_id": verdict_id,
            "kind": "promotion",
            "agent": agent,
            "as_of": since or datetime.now(UTC),
            "result": result,
            "summary": f"{champion} is champion instead of {replaced or 'none'}: {reason}",
            "reasons": [Reason(measure="request", failed=True, text=reason)],
            "evidence": {"champion": str(champion), "before": str(replaced) if replaced else None},
        }
    )
    base.journal.append_verdict(verdict)
    return verdict
