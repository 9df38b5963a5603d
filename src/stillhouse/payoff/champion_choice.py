"""Which member of the pool should be champion now: a pure function of the pool's evidence.

**Rules.** A member becomes champion if all of this holds:

1. it may become champion at all (budgets, signature, size);
2. it is proven: better than the champion; or, for a member that was made after the champion, not worse by the margin,
   with a shrunken gain that is positive and the largest of the pool, the first model (never refreshed) included. So two
   equal models do not take turns, and promotions that are each "not much worse" cannot follow each other: an older
   model that is better on current rows stands in their way, and comes back when it is proven better;
3. the newest complete block does not speak against it.

Of several such members the one with the largest shrunken gain is chosen. If it is the one that the champion replaced,
the choice is called undo. Where decisions change which outcomes are seen, the pool promotes nobody.

**Error budget.** The reign of a champion has the budget :func:`reign_error`: a fifth of ``1 − confidence``, because the
gate's first look spends the other four fifths. It is split on entry (:func:`member_shares`): a quarter for the previous
champion; a quarter for the other members that are older than the champion, in equal parts; and half for those that are
made later, of which the ``j``-th has the share ``6/(π² j²)`` of this half. So, given everything that happened before,
the probability that a member which is worse by the margin or more is chosen during a reign is at most the reign's
budget, however many members enter and however often the pool is looked at. The budgets of fifty reigns sum to
``10 (1 − confidence)``, of all reigns ever to twice that. The evidence of a reign begins with the reign: who becomes
champion is chosen by earlier blocks, so they prove nothing about the next choice.
"""

from __future__ import annotations

from collections.abc import Sequence

from stillhouse.payoff.evidence import spent_share
from stillhouse.records import ChampionChoice, PoolEvidence, PoolMember, PoolState, Reason
from stillhouse.stats import NORMAL_QUANTILE_95

__all__ = ["REIGNS", "choose_champion", "member_share", "member_shares", "newest_block_veto", "reign_error"]

REIGNS = 50
"""Reigns with the full budget; for each further fifty it is halved."""

SHARE_OF_POOL = 0.2  # of 1 − confidence; the gate's first look has the rest
SHARE_OF_PREVIOUS, SHARE_OF_OLDER, SHARE_OF_NEWER = 0.25, 0.25, 0.5


def choose_champion(state: PoolState, *, allow_promotion: bool) -> ChampionChoice:
    """Keep the champion, promote a member, or undo the last promotion.

    >>> from datetime import UTC, datetime
    >>> begin = datetime(2026, 1, 5, tzinfo=UTC)
    >>> champion, newer = (
    ...     PoolMember(model=f"toy@{number}", role=role, made_at=begin.replace(day=number), shaped_until=begin,
    ...                mode="redistil", promotable=True)
    ...     for number, role in ((1, "champion"), (2, "challenger"))
    ... )
    >>> proof = PoolEvidence(
    ...     member="toy@2", champion="toy@1", measure="log_loss", since=begin, until=begin.replace(month=2),
    ...     blocks=20, rows=9_000, gain=0.02, shrunken_gain=0.015, standard_error=0.004, share=0.3, log_not_worse=9.1,
    ...     log_better=4.0, log_worse=-6.0, log_threshold=5.8, newest_gain=0.01, newest_error=0.02)
    >>> state = PoolState(champion="toy@1", as_of=begin.replace(month=2), reign=1, reign_began=begin,
    ...                   members=(champion, newer), evidence=(proof,))
    >>> choice = choose_champion(state, allow_promotion=True)
    >>> choice.action, choice.member
    ('promote', 'toy@2')
    >>> choose_champion(state, allow_promotion=False).action
    'keep'

    :param state: members, and the evidence of each against the champion with gains shrunk together
        (:func:`stillhouse.payoff.evidence.shrink_gains`). Evidence against another champion is ignored.
    :param allow_promotion: False where decisions change which outcomes are seen: then the pool promotes nobody.
    """
    members = {member.model: member for member in state.members}
    champion = members.get(state.champion)
    compared = [
        (members[one.member], one)
        for one in state.evidence
        if one.member in members and one.champion == state.champion and one.member != state.champion
    ]
    best_gain = max((evidence.shrunken_gain for member, evidence in compared if _is_rival(member)), default=0.0)
    reasons, ready = [], []
    for member, evidence in compared:
        reason = _judge_member(member, evidence, champion, best_gain, allow_promotion)
        reasons.append(reason)
        if not reason.failed:
            ready.append(evidence)
    if not ready:
        text = f"{state.champion} stays champion: no other member of the pool is proven"
        return ChampionChoice(
            action="keep", champion=state.champion, member=state.champion, text=text, reasons=tuple(reasons)
        )
    best = max(ready, key=lambda evidence: (evidence.shrunken_gain, evidence.log_not_worse, evidence.member))
    undo = members[best.member].role == "previous"
    gain = f"{best.measure} {best.gain:+.4f} on {best.rows} {best.on}"
    return ChampionChoice(
        action="undo" if undo else "promote",
        champion=state.champion,
        member=best.member,
        text=f"back to {best.member}, which is proven better than {state.champion}: {gain}"
        if undo
        else f"{best.member} becomes champion in place of {state.champion}: {gain}",
        reasons=tuple(reasons),
    )


def newest_block_veto(evidence: PoolEvidence) -> Reason | None:
    """The reason why the newest complete block speaks against a member; None: it does not.

    A member that is significantly worse there (one-sided, 95 %) must wait, whatever earlier blocks have proven.
    """
    gain, error = evidence.newest_gain, evidence.newest_error
    if gain is None or error is None or gain >= -NORMAL_QUANTILE_95 * error:
        return None
    limit = -NORMAL_QUANTILE_95 * error
    text = (
        f"{evidence.member} is worse than {evidence.champion} on the newest complete block: {evidence.measure} "
        f"{gain:+.4f}, below {limit:+.4f}"
    )
    return Reason(measure=f"{evidence.measure}:newest_block", value=gain, threshold=limit, failed=True, text=text)


# --------------------------------------------------------------------------- the error budget


def reign_error(reign: int, confidence: float) -> float:
    """The pool's error budget during one reign: ``0.2 (1 − confidence)``, halved after each :data:`REIGNS` reigns.

    >>> round(reign_error(1, 0.95), 4), round(reign_error(51, 0.95), 4)
    (0.01, 0.005)
    >>> round(sum(reign_error(reign, 0.95) for reign in range(1, 51)), 4)
    0.5

    :param reign: number of the reign, from 1.
    :param confidence: one-sided, of the gate (``promotion.confidence``), ½…1.
    """
    if reign < 1 or not 0.5 < confidence < 1:
        raise ValueError(
            f"reigns are numbered from 1 and the confidence lies in ½…1; they are {reign} and {confidence}"
        )
    return SHARE_OF_POOL * (1 - confidence) * 0.5 ** ((reign - 1) // REIGNS)


def member_share(entry_number: int) -> float:
    """Share of the ``entry_number``-th member that is made during a reign in the reign's budget, fixed on entry.

    >>> [round(member_share(number), 3) for number in (1, 2, 3)]
    [0.304, 0.076, 0.034]

    :param entry_number: from 1; without end, for all of them together have half of the budget.
    """
    return SHARE_OF_NEWER * spent_share(entry_number)


def member_shares(members: Sequence[PoolMember], champion: str) -> dict[str, float]:
    """The share of each member but the champion in the error budget of the reign, by model.

    Members that leave the pool must be passed too, or the shares of later ones would not be those fixed on their entry.

    :param members: everyone who was in the pool during this reign.
    :param champion: the reigning champion; if it is not among them, all members count as older.
    """
    made = {member.model: member.made_at for member in members}
    others = sorted((member for member in members if member.model != champion), key=lambda m: (m.made_at, m.model))
    newer = [member for member in others if champion in made and member.made_at > made[champion]]
    older = [member for member in others if member not in newer and member.role != "previous"]
    shares = {member.model: SHARE_OF_PREVIOUS for member in others if member.role == "previous"}
    shares |= {member.model: SHARE_OF_OLDER / len(older) for member in older}
    return shares | {
        member.model: member_share(number)
        for number, member in enumerate((m for m in newer if m.role != "previous"), start=1)
    }


# --------------------------------------------------------------------------- reasons


def _is_rival(member: PoolMember) -> bool:
    """Whether a larger gain of this member stands in the way of another; the first model is always a yardstick."""
    return member.promotable or member.role == "never_refreshed"


def _judge_member(
    member: PoolMember, evidence: PoolEvidence, champion: PoolMember | None, best_gain: float, allow_promotion: bool
) -> Reason:
    """Why the member may not become champion now, or, not failed, what proves that it may."""
    if not member.promotable:
        text = f"{member.model} may not become champion: {member.why_not or 'it is only scored'}"
        return Reason(measure="promotable", failed=True, text=text)
    is_newer = member.role != "previous" and champion is not None and member.made_at > champion.made_at
    proof = _proof_of_not_worse(evidence, best_gain) if is_newer else _proof_of_better(evidence)
    if proof.failed and is_newer and evidence.log_better >= evidence.log_threshold:
        proof = _proof_of_better(evidence)
    if proof.failed:
        return proof
    if veto := newest_block_veto(evidence):
        return veto
    if not allow_promotion:
        text = (
            f"{proof.text}; it is not promoted, because decisions change which outcomes are seen "
            f"(`outcomes.depend_on_decision`): promote it by hand"
        )
        return Reason(measure="depend_on_decision", failed=True, text=text)
    return proof


def _proof_of_better(evidence: PoolEvidence) -> Reason:
    return _proof(evidence, evidence.log_better, "better", f"better than {evidence.champion}")


def _proof_of_not_worse(evidence: PoolEvidence, best_gain: float) -> Reason:
    proof = _proof(evidence, evidence.log_not_worse, "not_worse", f"not worse than {evidence.champion} by the margin")
    if proof.failed:
        labels = evidence.labels_needed
        return proof.model_copy(update={"text": f"{proof.text}; about {labels} more labels"}) if labels else proof
    gain = evidence.shrunken_gain
    if gain <= 0:
        return proof.model_copy(
            update={"failed": True, "text": f"{proof.text}; but its shrunken gain is {gain:+.4f}, not above 0"}
        )
    if gain < best_gain:
        return proof.model_copy(
            update={
                "failed": True,
                "text": f"{proof.text}; but another member gains more ({best_gain:+.4f} against {gain:+.4f}, shrunken)",
            }
        )
    return proof


def _proof(evidence: PoolEvidence, value: float, name: str, claim: str) -> Reason:
    proven = value >= evidence.log_threshold
    text = (
        f"{evidence.member} is {'' if proven else 'not yet '}proven {claim} on "
        f"{evidence.blocks} complete blocks ({evidence.rows} {evidence.on}): {evidence.measure} {evidence.gain:+.4f}, "
        f"evidence {value:.2f} of {evidence.log_threshold:.2f}"
    )
    return Reason(
        measure=f"{evidence.measure}:{name}",
        value=value,
        threshold=evidence.log_threshold,
        failed=not proven,
        text=text,
    )
