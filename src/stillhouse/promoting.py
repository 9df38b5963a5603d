"""Promotion outside of a refresh: by a person, by the pool, and of a champion that was moved in MLflow by hand.

A person promotes a version, approves or rejects the waiting challenger, or goes back to the previous champion. The pool
promotes one of its members, or undoes a promotion. Each call records a verdict of kind ``promotion``. If a call is
killed at any time, the same call again completes it, with one verdict. The caller holds
:func:`stillhouse.locks.refresh_lock`, except for :func:`record_unrecorded_champion`, which takes it itself.
"""

from __future__ import annotations

import getpass
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from filelock import Timeout
from pydantic import JsonValue

from stillhouse import config
from stillhouse.champion import open_registry
from stillhouse.errors import RegistryError, SignatureError, WindowError
from stillhouse.explaining import escape_description, explain_change
from stillhouse.knowledge import KnowledgeBase
from stillhouse.locks import refresh_lock
from stillhouse.records import ModelRef, Reason, Verdict, VerdictResult, short_id
from stillhouse.registry import Registry, Rollback, UnrecordedChampion
from stillhouse.shown import escape_line

__all__ = [
    "approve",
    "current_champion",
    "describe_unrecorded_champion",
    "promote_member",
    "promote_version",
    "record_unrecorded_champion",
    "reject",
    "roll_back",
    "undo_promotion",
]

DEFAULT_REASON = "asked for by hand"
MOVED_BY_HAND = "moved in MLflow by hand"
_MAX_LISTED_VERSIONS = 10


# --------------------------------------------------------------------------- by a person


def promote_version(agent: str, version: int | None, reason: str = "", by: str = "") -> Verdict:
    """Make ``version`` the champion, or without a version the challenger that waits for approval.

    :param reason: why; by default "asked for by hand".
    :param by: who; by default the user of the operating system.
    :raises RegistryError: if there is no such version, or none is given and none waits.
    """
    if version is None:
        return approve(agent, reason, by)
    registry = open_registry(agent)
    registry.promote(str(version))
    return _record_promotion(registry, str(version), _request_reasons(reason or DEFAULT_REASON, by), by=_name_user(by))


def approve(agent: str, reason: str = "", by: str = "", version: int | None = None) -> Verdict:
    """Make the challenger that waits for approval the champion.

    :param reason: why; by default "asked for by hand".
    :param by: who approves; by default the user of the operating system.
    :param version: the version that was looked at; None: whichever waits.
    :raises RegistryError: if no version waits, or another one than ``version``; the message lists the versions.
    """
    registry = open_registry(agent)
    challenger = _require_challenger(registry, version)
    number = str(challenger.version)
    registry.promote(number, keep_challenger=True)  # after a kill the next call finds the challenger again
    reasons = _request_reasons(reason or DEFAULT_REASON, by, "approved")
    verdict = _record_promotion(registry, number, reasons, by=_name_user(by))
    registry.withdraw(number)
    return verdict


def reject(agent: str, reason: str, by: str = "", version: int | None = None) -> Verdict:
    """Refuse the challenger that waits for approval: no refresh and no pool proposes it again; a person may promote it.

    :param reason: why; required.
    :param by: who rejects; by default the user of the operating system.
    :param version: the version that was looked at; None: whichever waits.
    :raises RegistryError: without a reason; if no version waits, or another one than ``version``.
    """
    registry = open_registry(agent)
    challenger, champion = _require_challenger(registry, version), registry.champion()
    if not reason.strip():
        raise RegistryError(f"why is {challenger} rejected? Give a `reason`: it is recorded with the verdict")
    if challenger == champion:
        raise RegistryError(
            f"{challenger} is champion already, so it cannot be rejected; go back with "
            f"`python -m flows promote --agent {agent} --rollback`"
        )
    user, proposed_at = _name_user(by), registry.models.tags(challenger).get("proposed_at", "")
    verdict = _record(
        agent,
        "rejected",
        f"{challenger} was rejected by {user}: {reason}",
        _request_reasons(reason, by, "rejected"),
        key=(challenger, champion, proposed_at),
        evidence={"challenger": str(challenger), "before": str(champion) if champion else None, "by": user},
    )
    registry.describe_version(str(challenger.version), escape_description(verdict.summary), result="rejected")
    registry.reject(str(challenger.version))  # last: after a kill the next call finds the challenger again
    return verdict


def roll_back(agent: str, reason: str = "", by: str = "") -> Verdict:
    """Make the previous champion the champion again, also if the alias was moved in MLflow by hand.

    :param reason: why; by default "asked for by hand".
    :param by: who; by default the user of the operating system.
    :raises RegistryError: if there is no previous champion.
    """
    reasons = _request_reasons(reason or DEFAULT_REASON, by)
    return _roll_back(open_registry(agent), reasons, evidence={"by": _name_user(by)})


# --------------------------------------------------------------------------- by the pool


def promote_member(
    agent: str,
    version: str | int,
    evidence: Mapping[str, JsonValue],
    reasons: Sequence[Reason],
    as_of: datetime | None = None,
) -> Verdict:
    """Make a member of the pool the champion; under ``promotion.approval: manual`` it becomes the challenger instead.

    :param version: of the agent's variants.
    :param evidence: what the pool decided on, as JSON; stored as ``pool`` in the verdict's evidence.
    :param reasons: the measurements that decided; the first one is named in the summary.
    :param as_of: time of the watch; None: now, by the clock that the agent file names.
    :returns: the verdict: ``promoted``, ``awaiting_approval``, or the person's verdict ``rejected`` if a person has
        rejected this version.
    :raises RegistryError: if there is no such version.
    :raises SignatureError: if no trusted key has signed it.
    """
    registry, number = open_registry(agent), str(version)
    if config.load(agent).promotion.approval == "automatic":
        registry.promote(number)
        return _record_promotion(registry, number, reasons, as_of=as_of, pool=dict(evidence))
    proposed_at = registry.propose(number)
    member, champion = registry.version(agent, number), registry.champion()
    if not proposed_at and (rejection := _last_rejection(agent, member)):
        return rejection
    verdict = _record(
        agent,
        "awaiting_approval",
        f"{member} should be champion instead of {champion or 'none'}, and a person must approve it: "
        f"{_first_text(reasons)}",
        reasons,
        key=(member, champion, proposed_at),
        evidence={
            "challenger": str(member),
            "before": str(champion) if champion else None,
            "pool": dict(evidence),
        },
        as_of=as_of,
    )
    registry.describe_version(number, escape_line(verdict.summary), result="awaiting approval")
    return verdict


def undo_promotion(
    agent: str,
    champion: str,
    evidence: Mapping[str, JsonValue],
    reasons: Sequence[Reason],
    as_of: datetime | None = None,
) -> Verdict:
    """Go back from ``champion`` to the champion before it, because the pool has shown that it is worse.

    Needs no approval, because it restores what was approved before. The same call again returns the same verdict.

    :param champion: name of the champion that is undone, ``flights@7``.
    :param evidence: what the pool decided on, as JSON; stored as ``pool`` in the verdict's evidence.
    :param reasons: the measurements that decided; the first one is named in the summary.
    :param as_of: time of the watch; None: now, by the clock that the agent file names.
    :raises RegistryError: if ``champion`` is not champion and was never undone, or there is no champion before it.
    """
    registry, number = open_registry(agent), champion.rpartition("@")[2]
    current = registry.champion()
    if str(current) == champion or registry.is_rolling_back(number):
        return _roll_back(registry, reasons, evidence={"pool": dict(evidence)}, as_of=as_of)
    done = registry.undone(number)
    base = KnowledgeBase(config.load(agent))
    if done and (verdict := base.journal.verdict(_rollback_id(agent, done))):
        return verdict
    raise RegistryError(f"the promotion of {champion} cannot be undone: the champion of {agent!r} is {current}")


# --------------------------------------------------------------------------- moved in MLflow by hand


def record_unrecorded_champion(agent: str, as_of: datetime | None = None) -> Verdict | None:
    """Record a champion that somebody made by moving the alias in MLflow, as a promotion with all that belongs to it.

    Its verdict says "moved in MLflow by hand". The last recorded champion becomes previous, teacher and student follow,
    and a release is signed. A promotion that was killed half-way is completed, without a verdict of its own.

    :param as_of: time of the watch; None: now, by the clock that the agent file names.
    :returns: the verdict; None if the champion is as recorded, or a refresh or promotion is running: then the next
        watch records it.
    :raises SignatureError: if no trusted key has signed that version.
    """
    registry = open_registry(agent)
    if registry.unrecorded_champion() is None:
        return None
    try:
        with refresh_lock(agent).acquire(timeout=0):
            unrecorded = registry.unrecorded_champion()
            return None if unrecorded is None else _record_by_hand(registry, unrecorded, as_of)
    except Timeout:
        return None


def describe_unrecorded_champion(agent: str) -> str:
    """One sentence about a champion that stillhouse did not promote; empty if the champion is as recorded."""
    unrecorded = open_registry(agent).unrecorded_champion()
    if unrecorded is None:
        return ""
    if unrecorded.refused:
        return _describe_refused(agent, unrecorded)
    if not unrecorded.by_hand:
        return f"the promotion of {unrecorded.champion} was interrupted: repeat it, or the next watch completes it"
    return (
        f"{unrecorded.champion} was made champion in MLflow by hand, the last recorded champion is "
        f"{unrecorded.recorded or 'unknown'}: the next watch records it; `python -m flows promote --agent {agent} "
        f"--rollback` goes back"
    )


def _record_by_hand(registry: Registry, unrecorded: UnrecordedChampion, as_of: datetime | None) -> Verdict | None:
    """The verdict is recorded first: it states what has happened already."""
    champion, agent = unrecorded.champion, registry.agent
    if unrecorded.refused:
        raise SignatureError(_describe_refused(agent, unrecorded))
    verdict = None
    if unrecorded.by_hand:
        verdict = _record(
            agent,
            "promoted",
            f"{champion} is champion instead of {unrecorded.recorded or 'none'}: {MOVED_BY_HAND}",
            [Reason(measure="request", failed=True, text=MOVED_BY_HAND)],
            key=(champion, unrecorded.recorded, f"after release {unrecorded.release}"),
            evidence={
                "champion": str(champion),
                "before": str(unrecorded.recorded) if unrecorded.recorded else None,
                "by_hand": True,
            },
            as_of=as_of,
        )
    if verdict is not None:
        explain_change(registry, verdict, champion, unrecorded.recorded)
    registry.promote(str(champion.version))
    return verdict


def _describe_refused(agent: str, unrecorded: UnrecordedChampion) -> str:
    return (
        f"{unrecorded.champion} was made champion in MLflow by hand and is refused: {unrecorded.refused}. Go back to "
        f"{unrecorded.recorded or 'another version'} with `python -m flows promote --agent {agent} "
        f"{'--rollback' if unrecorded.recorded else '--version N'}`"
    )


# --------------------------------------------------------------------------- verdicts


def current_champion(agent: str) -> str | None:
    """The name of the champion, ``flights@7``; None if there is none."""
    champion = open_registry(agent).champion()
    return None if champion is None else str(champion)


def _record_promotion(
    registry: Registry, version: str, reasons: Sequence[Reason], as_of: datetime | None = None, **evidence: JsonValue
) -> Verdict:
    """The verdict of the last promotion of ``version``; recorded once, however often this is called."""
    agent, champion = registry.agent, registry.version(registry.agent, version)
    replaced, since = registry.promotion(version)
    verdict = _record(
        agent,
        "promoted",
        f"{champion} is champion instead of {replaced or 'none'}: {_first_text(reasons)}",
        reasons,
        key=(champion, replaced, since),
        evidence={"champion": str(champion), "before": str(replaced) if replaced else None, **evidence},
        as_of=as_of,
    )
    if champion is not None:
        explain_change(registry, verdict, champion, replaced)
    return verdict


def _roll_back(
    registry: Registry,
    reasons: Sequence[Reason],
    evidence: Mapping[str, JsonValue],
    as_of: datetime | None = None,
) -> Verdict:
    verdicts: list[Verdict] = []

    def record(done: Rollback) -> None:
        verdict = _record(
            registry.agent,
            "rolled_back",
            f"{done.champion} is champion instead of {done.before or 'none'}: {_first_text(reasons)}",
            reasons,
            key=(done.champion, done.before, done.began_at),
            evidence={
                "champion": str(done.champion),
                "before": str(done.before) if done.before else None,
                **evidence,
            },
            as_of=as_of,
        )
        verdicts.append(verdict)
        explain_change(registry, verdict, done.champion, done.before)

    registry.rollback(record)
    return verdicts[0]


def _record(
    agent: str,
    result: VerdictResult,
    summary: str,
    reasons: Sequence[Reason],
    key: tuple[object, ...],
    evidence: Mapping[str, JsonValue],
    as_of: datetime | None = None,
) -> Verdict:
    """Record the verdict of a promotion once: a verdict with the same result and key is returned as recorded."""
    base = KnowledgeBase(config.load(agent))
    verdict_id = _verdict_id(agent, result, *key)
    if recorded := base.journal.verdict(verdict_id):
        return recorded
    verdict = Verdict(
        verdict_id=verdict_id,
        kind="promotion",
        agent=agent,
        as_of=_resolve_time(base, as_of),
        result=result,
        summary=summary,
        reasons=tuple(reasons),
        evidence=dict(evidence),
    )
    base.journal.append_verdict(verdict)
    return verdict


def _verdict_id(agent: str, result: VerdictResult, *key: object) -> str:
    return short_id(agent, "promotion", result, *key)


def _rollback_id(agent: str, done: Rollback) -> str:
    return _verdict_id(agent, "rolled_back", done.champion, done.before, done.began_at)


def _resolve_time(base: KnowledgeBase, as_of: datetime | None) -> datetime:
    """``as_of``, or now by the clock of the agent file; by the wall clock if there are no observations yet."""
    try:
        return base.resolve_time(as_of)
    except WindowError:
        return datetime.now(UTC)


def _last_rejection(agent: str, member: ModelRef | None) -> Verdict | None:
    base = KnowledgeBase(config.load(agent))
    rejections = [
        verdict
        for verdict in base.journal.verdicts("promotion")
        if verdict.result == "rejected" and verdict.evidence.get("challenger") == str(member)
    ]
    return rejections[-1] if rejections else None


def _require_challenger(registry: Registry, version: int | None) -> ModelRef:
    """The challenger that waits for approval.

    :raises RegistryError: if none waits, or another one than ``version``.
    """
    challenger = registry.challenger()
    if challenger is None:
        raise RegistryError(
            f"no version of agent {registry.agent!r} waits for approval. Which version? {_list_promotable(registry)}"
        )
    if version is not None and str(version) != challenger.version:
        raise RegistryError(
            f"version {version} of agent {registry.agent!r} does not wait for approval: {challenger} does"
        )
    return challenger


def _list_promotable(registry: Registry) -> str:
    champion = registry.champion()
    others = [entry for entry in registry.versions() if champion is None or entry.version != champion.version]
    if not others:
        return "There is no other one: make one with `python -m flows refresh`"
    listed = [f"{entry.version} ({entry.variant})" for entry in others[:_MAX_LISTED_VERSIONS]]
    more = f" and {len(others) - len(listed)} older ones" if len(others) > len(listed) else ""
    return f"Give `version`: {', '.join(listed)}{more}"


def _request_reasons(reason: str, by: str, verb: str = "asked for") -> list[Reason]:
    """What a person asked for, and who."""
    text = f"{verb} by {_name_user(by)}: {reason}" if by or verb != "asked for" else reason
    return [Reason(measure="request", failed=True, text=text)]


def _first_text(reasons: Sequence[Reason]) -> str:
    return reasons[0].text if reasons else "no reason given"


def _name_user(by: str) -> str:
    """``by``, or the name of the operating system's user."""
    if by.strip():
        return by.strip()
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a user without a name
        return "unknown"
