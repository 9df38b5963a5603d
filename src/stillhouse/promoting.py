"""A person moves the champion: forwards to a named version, or back to the previous one."""

from __future__ import annotations

from datetime import UTC, datetime

from stillhouse import config
from stillhouse.champion import open_registry
from stillhouse.errors import RegistryError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import ModelRef, Reason, Verdict, short_id

__all__ = ["promote_version", "roll_back"]


def promote_version(agent: str, version: int | None, reason: str) -> Verdict:
    """Make ``version`` the champion.

    :raises RegistryError: if no version is given, or there is no such version.
    """
    registry = open_registry(agent)
    if version is None:
        raise RegistryError(f"which version of {agent!r}? `stillhouse status {agent}` lists them; give `version`")
    registry.promote(str(version))
    before, since = registry.promotion(str(version))
    champion = registry.version(agent, str(version))
    assert champion is not None  # it has just been promoted
    return _recorded(agent, "promoted", champion, before, reason, since)


def roll_back(agent: str, reason: str) -> Verdict:
    """Make the previous champion the champion again. Killed at any moment, the same call again does this once.

    :raises RegistryError: if there is no previous one.
    """
    verdicts: list[Verdict] = []
    open_registry(agent).rollback(
        lambda done: verdicts.append(_recorded(agent, "rolled_back", done.champion, done.before, reason, done.began_at))
    )
    return verdicts[0]


def _recorded(
    agent: str, outcome: str, champion: ModelRef, before: ModelRef | None, reason: str, since: str
) -> Verdict:
    """The verdict of a promotion that began at ``since`` (ISO 8601), recorded once however often it is repeated."""
    base, identity = KnowledgeBase(config.load(agent)), short_id(agent, "promotion", outcome, champion, before, since)
    if recorded := base.journal.verdict(identity):
        return recorded
    verdict = Verdict.model_validate(
        {
            "verdict_id": identity,
            "kind": "promotion",
            "agent": agent,
            "as_of": since or datetime.now(UTC),
            "result": outcome,
            "summary": f"{champion} is champion instead of {before or 'none'}: {reason}",
            "reasons": [Reason(measure="request", failed=True, text=reason)],
            "evidence": {"champion": str(champion), "before": str(before) if before else None},
        }
    )
    base.journal.append_verdict(verdict)
    return verdict
