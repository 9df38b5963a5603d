"""What ``flows/promote.py`` does."""

from __future__ import annotations

from datetime import UTC, datetime

from stillhouse.errors import RegistryError
from stillhouse.records import ModelRef, Reason, Verdict, short_id
from tasks.common import engine_task, knowledge_base, registry

__all__ = ["promote_version", "roll_back"]


@engine_task(task_run_name="promote version {version}", retries=0)
def promote_version(agent: str, version: int | None, reason: str) -> Verdict:
    """Make ``version`` the champion.

    :raises RegistryError: if no version is given, or there is no such version.
    """
    models = registry(agent)
    if version is None:
        raise RegistryError(f"which version of {agent!r}? `stillhouse status {agent}` lists them; give `version`")
    before = models.champion()
    models.promote(str(version))
    chosen = models.version(agent, str(version))
    assert chosen is not None  # promote refuses a version that is not there
    return _recorded(agent, "promoted", chosen, before, reason)


@engine_task(task_run_name="roll back", retries=0)  # once more would go one version further back
def roll_back(agent: str, reason: str) -> Verdict:
    """Make the previous champion the champion again.

    :raises RegistryError: if there is no previous one.
    """
    models = registry(agent)
    before = models.champion()
    return _recorded(agent, "rolled_back", models.rollback(), before, reason)


def _recorded(agent: str, outcome: str, champion: ModelRef, before: ModelRef | None, reason: str) -> Verdict:
    now = datetime.now(UTC)
    verdict = Verdict.model_validate(
        {
            "verdict_id": short_id(agent, "promotion", outcome, champion, before, now.isoformat()),
            "kind": "promotion",
            "agent": agent,
            "as_of": now,
            "outcome": outcome,
            "summary": f"{champion} is champion instead of {before or 'none'}: {reason}",
            "reasons": [Reason(measure="request", crossed=True, text=reason)],
            "evidence": {"champion": str(champion), "before": str(before) if before else None},
        }
    )
    knowledge_base(agent).record(verdict)
    return verdict
