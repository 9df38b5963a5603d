"""The pool: the models that are scored on every block of outcomes, and the evidence about them.

Scoring happens offline and is seen by nobody. A member is scored only on rows observed after everything that shaped it;
a block's rows are those whose outcome was known ``outcomes.delay`` after its end, so all members, whenever they are
scored, are scored on the same rows. Scores of complete blocks are stored once; those of younger blocks inform
forecasts, prove nothing, and are not stored.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stillhouse.actions import align_actions
from stillhouse.champion import load_version
from stillhouse.errors import StillhouseError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.payoff.champion_choice import choose_champion, member_shares, reign_error
from stillhouse.payoff.evidence import compare_members, estimate_autocorrelation, shrink_gains
from stillhouse.payoff.scores import score_block, scoring_rule
from stillhouse.quality import Measure, Policy, get_measure
from stillhouse.records import (
    BlockScore,
    ChampionChoice,
    PoolEvidence,
    PoolMember,
    PoolState,
    Verdict,
    VerdictResult,
    short_id,
)
from stillhouse.registry import PoolVersion
from stillhouse.stats import replace_non_finite
from stillhouse.variant import InputError, Variant
from stillhouse.watching.window import WatchedWindow

__all__ = [
    "EPOCH",
    "HISTORY",
    "ScoredPool",
    "Switch",
    "align_probs",
    "block_loss",
    "choose_member",
    "count_scores",
    "list_members",
    "list_switches",
    "list_switches_of",
    "loss_to_value",
    "make_policy",
    "mean_loss",
    "read_pool_state",
    "score_pool",
]

Array = np.ndarray[Any, Any]

log = logging.getLogger(__name__)

HISTORY = timedelta(weeks=26)
"""How far back members are scored; evidence begins anew after as long."""

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class ScoredPool:
    """The pool at one moment.

    :ivar scores: of each member, by time; younger blocks are not complete.
    :ivar skipped: why a member could not be scored, by model.
    :ivar new: scores of complete blocks that were stored just now.
    """

    as_of: datetime
    members: tuple[PoolMember, ...]
    scores: Mapping[str, tuple[BlockScore, ...]]
    skipped: Mapping[str, str] = field(default_factory=dict)
    new: tuple[BlockScore, ...] = ()

    @property
    def stored(self) -> int:
        """How many scores of complete blocks were new."""
        return len(self.new)

    def member(self, model: str) -> PoolMember | None:
        """The member of that name; None: it is not in the pool."""
        return next((member for member in self.members if member.model == model), None)


class Switch(NamedTuple):
    """A change of the champion, as the journal records it."""

    as_of: datetime
    champion: str
    replaced: str | None
    by_gate: bool
    verdict_id: str


# --------------------------------------------------------------------------- members


def list_members(watched: WatchedWindow, as_of: datetime) -> tuple[PoolMember, ...]:
    """Champion, previous champion, the first one, and the newest versions that refreshes chose, oldest first.

    Members made after ``as_of`` are left out, and so are versions that a person rejected, unless they are one of the
    first three.
    """
    versions = watched.versions
    results = watched.base.journal.results("gate")
    first = next((version for version in versions if version.released), None)
    essential = [version for version in versions if {"champion", "previous"} & {*version.aliases} or version is first]
    judged = [
        version
        for version in versions
        if version not in essential
        and not version.rejected
        and ("shaped_until" in version.tags or _gate_result(watched.agent, version, results) is not None)
    ]
    size = max(watched.settings.watch.payoff.pool - len(essential), 1)
    members = []
    for version in [*essential, *judged[-size:]]:
        try:
            member = _describe_member(watched, version, _role(watched.agent, version, version is first, results))
        except (StillhouseError, OSError) as error:
            log.warning("%s is not in the pool: %s", version.model, error)
            continue
        if member.made_at <= as_of:
            members.append(member)
    return tuple(sorted(members, key=lambda member: (member.made_at, _number(member.model))))


def _role(
    agent: str, version: PoolVersion, is_first: bool, results: Mapping[str, tuple[VerdictResult, datetime]]
) -> Any:
    if "champion" in version.aliases:
        return "champion"
    if "previous" in version.aliases:
        return "previous"
    if is_first:
        return "never_refreshed"
    if "shaped_until" in version.tags:
        return "final_fit"
    return "refused" if _gate_result(agent, version, results) == "refused" else "challenger"


def _gate_result(
    agent: str, version: PoolVersion, results: Mapping[str, tuple[VerdictResult, datetime]]
) -> VerdictResult | None:
    found = results.get(short_id(agent, "gate", version.tags.get("refresh_id", "")))
    return None if found is None else found[0]


def _describe_member(watched: WatchedWindow, version: PoolVersion, role: Any) -> PoolMember:
    baseline = watched.registry.baseline(version.model)
    tagged = version.tags.get("shaped_until")
    why_not = _find_obstacle(watched, version)
    return PoolMember(
        model=str(version.model),
        role=role,
        made_at=baseline.as_of,
        shaped_until=datetime.fromisoformat(tagged) if tagged else baseline.test.start,
        mode="final_fit" if tagged else watched.registry.refresh_mode(version.model),
        promotable=not why_not,
        why_not=why_not,
    )


def _find_obstacle(watched: WatchedWindow, version: PoolVersion) -> str:
    """Why the version may not become champion; empty if it may."""
    settings, budgets = watched.settings, watched.settings.budgets
    if version.refused:
        return version.refused
    if version.rejected:
        return "a person rejected it"
    card = watched.registry.models.scorecard(version.model)
    if budgets.max_bytes is not None and card.bytes > budgets.max_bytes:
        return f"it has {card.bytes:,} bytes, above the budget of {budgets.max_bytes:,}"
    latency = card.latency.p95_ms if card.latency else None
    if budgets.max_p95_ms is not None and (latency is None or latency > budgets.max_p95_ms):
        measured = "was not measured" if latency is None else f"is {latency:.3g} ms"
        return f"its latency (p95) {measured}, and the budget is {budgets.max_p95_ms:g} ms"
    variant = load_version(watched.agent, version.model).variant
    if tuple(variant.actions) != settings.actions:
        return (
            f"it knows the actions {', '.join(variant.actions)}, and the agent file has {', '.join(settings.actions)}"
        )
    if absent := [name for name in _column_names(variant) if name not in settings.observations.columns]:
        return f"it reads the column {absent[0]!r}, which the agent file has no more"
    return ""


def _column_names(variant: Variant) -> list[str]:
    return [str(column["name"]) for column in variant.columns]


def _number(model: str) -> int:
    return int(model.rpartition("@")[2])


# --------------------------------------------------------------------------- scoring


def score_pool(watched: WatchedWindow, as_of: datetime) -> ScoredPool:
    """Score the members on all complete blocks that are new to them and not yet scored, and store these scores.

    The rows are read once for all members. A member that cannot be loaded or cannot read the rows is skipped, with the
    reason in ``skipped``.
    """
    members, block, delay = list_members(watched, as_of), watched.settings.watch.block, watched.settings.block_delay
    rule, journal = scoring_rule(watched.settings), watched.base.journal
    measure = get_measure(watched.settings)
    since = _block_start(as_of - HISTORY, block)
    stored: dict[str, list[BlockScore]] = {member.model: [] for member in members}
    for score in journal.scores(rule, since=since, with_rows=measure.is_pooled):
        if score.member in stored and score.end + delay <= as_of:
            stored[score.member].append(score)
    starts = {
        member.model: max(
            _first_block(member.shaped_until, block),
            since,
            stored[member.model][-1].end if stored[member.model] else since,
        )
        for member in members
    }
    rows = _read_blocks(watched.base, min(starts.values(), default=as_of), as_of, block, delay)
    new, skipped = dict[str, list[BlockScore]](), dict[str, str]()
    for member in members:
        try:
            new[member.model] = list(_score_member(watched, member, rows, starts[member.model], as_of, measure))
        except (StillhouseError, InputError, OSError) as error:
            new[member.model], skipped[member.model] = [], f"{type(error).__name__}: {error}"
            log.warning("%s is not scored: %s", member.model, error)
    complete = tuple(score for scores in new.values() for score in scores if score.complete)
    journal.append_scores(complete, rule)
    scores = {model: (*stored[model], *new[model]) for model in stored}
    log.info("pool: %s models, %s new scores of blocks", len(members), len(complete))
    scored = ScoredPool(as_of, members, scores, skipped, complete)
    watched.pool = scored
    return scored


def align_probs(variant: Variant, rows: pd.DataFrame, actions: Sequence[str]) -> Array:
    """The variant's probabilities for the actions of the agent file, float64 ``[n, K]``."""
    return align_actions(np.asarray(variant.predict_proba(rows), dtype=np.float64), variant.actions, actions)


def make_policy(variant: Variant, actions: Sequence[str]) -> Policy:
    """The variant as a model of the agent file's actions, see :func:`align_probs`."""
    return lambda rows: align_probs(variant, rows, actions)


def _read_blocks(
    base: KnowledgeBase, start: datetime, as_of: datetime, block: timedelta, delay: timedelta
) -> pd.DataFrame:
    window = base.window("pool", min(start, as_of), as_of)
    return base.read_labelled_blocks(window, block, delay)


def _score_member(
    watched: WatchedWindow, member: PoolMember, rows: pd.DataFrame, start: datetime, as_of: datetime, measure: Measure
) -> Iterator[BlockScore]:
    """The scores of the blocks from ``start`` on."""
    settings, block = watched.settings, watched.settings.watch.block
    rows = rows[rows["block_start"] >= start].reset_index(drop=True)
    if rows.empty:
        return
    version = member.model.rpartition("@")[2]
    model = watched.registry.version(watched.agent, version)
    if model is None:
        raise StillhouseError(f"{member.model} was deleted in MLflow")
    labels = rows["outcome"].to_numpy()
    policy = make_policy(load_version(watched.agent, model).variant, settings.actions)
    probs = policy(rows)

    def score_own(block: slice) -> float | None:
        """The mean of the user's own score on the rows of a block, or of the episodes that belong to them."""
        if not settings.quality.own:
            return None
        episodes = measure.play(policy, rows[block])
        finite = replace_non_finite(probs[block], labels[block])
        scores = measure.scores(finite, labels[block], rows[block], episodes)
        return None if scores is None else float(scores.mean())

    ids = rows["observation_id"].tolist()
    bounds = np.flatnonzero(np.r_[True, np.diff(rows["block_start"].astype("int64").to_numpy()) != 0, True])
    for first, last in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        begin = rows["block_start"].iloc[first].to_pydatetime()
        yield score_block(
            member.model,
            probs[first:last],
            labels[first:last],
            ids[first:last],
            begin,
            begin + block,
            complete=begin + block + settings.block_delay <= as_of,
            clip=settings.quality.clip,
            own=score_own(slice(first, last)),
        )


def _block_start(moment: datetime, block: timedelta) -> datetime:
    """Start of the block that ``moment`` lies in."""
    return EPOCH + (moment - EPOCH) // block * block


def _first_block(moment: datetime, block: timedelta) -> datetime:
    """Start of the first block that begins at ``moment`` or later."""
    start = _block_start(moment, block)
    return start if start == moment else start + block


def block_loss(score: BlockScore, measure: Measure) -> float:
    """The loss of a block in the named measure, oriented so that less is better; NaN if it has none.

    The mean log loss; 1 − accuracy, or agreement; 1 − AUC; the negative of the user's own score.

    >>> from stillhouse.quality import ACCURACY
    >>> day = datetime(2026, 1, 5, tzinfo=UTC)
    >>> score = BlockScore(member="toy@1", start=day, end=day + timedelta(days=1), complete=True, rows=10, rows_key="k",
    ...                    log_loss=0.5, half_brier=0.2, accuracy=0.75)
    >>> block_loss(score, ACCURACY)
    0.25
    """
    if measure.is_pooled:
        labels = np.array(score.labels)
        if len(labels) == 0 or labels.min() == labels.max():
            return float("nan")
        probs = np.array(score.probs)
        return 1.0 - measure.value(np.column_stack([1 - probs, probs]), labels)
    match measure.name:
        case "log_loss":
            return score.log_loss
        case "accuracy" | "agreement":
            return 1.0 - score.accuracy
        case _:
            return float("nan") if score.score is None else -score.score


def mean_loss(scores: Sequence[BlockScore], measure: Measure) -> float:
    """The loss of one member on the rows of several blocks; see :func:`block_loss`."""
    if not measure.is_pooled:
        sizes = [count_scores(score, measure) for score in scores]
        return float(np.average([block_loss(score, measure) for score in scores], weights=sizes))
    probs = tuple(p for score in scores for p in score.probs)
    labels = tuple(label for score in scores for label in score.labels)
    return block_loss(scores[0].model_copy(update={"probs": probs, "labels": labels}), measure)


def count_scores(score: BlockScore, measure: Measure) -> int:
    """How many rows, or episodes, a block is scored on."""
    return score.rows if measure.episodes is None else measure.episodes.count


def loss_to_value(loss: float, measure: Measure) -> float:
    """The value of the measure, in its own unit and direction, that has this loss; see :func:`block_loss`.

    >>> from stillhouse.quality import ACCURACY
    >>> loss_to_value(0.25, ACCURACY)
    0.75
    """
    return measure.sign * (1.0 - loss if measure.name in ("accuracy", "agreement", "auc") else -loss)


# --------------------------------------------------------------------------- evidence


def read_pool_state(
    watched: WatchedWindow, pool: ScoredPool, switches: Sequence[Switch] | None = None
) -> PoolState | None:
    """Members, and the evidence of each against the champion; None if there is no champion.

    :param switches: all changes of the champion, if they were read already.
    """
    champion = watched.champion and pool.member(str(watched.champion.model))
    if not champion:
        return None
    settings, measure = watched.settings, get_measure(watched.settings)
    known = list_switches(watched) if switches is None else switches
    switches = [switch for switch in known if switch.as_of <= pool.as_of]
    last = next((switch for switch in reversed(switches) if switch.champion == champion.model), None)
    reign, began = max(1, len(switches)), champion.made_at if last is None else last.as_of
    shares = member_shares(_everyone(watched, pool.members, champion), champion.model)
    margin, of_champion = settings.margins.test, pool.scores.get(champion.model, ())
    autocorrelation = _estimate_autocorrelation(pool, champion.model, measure)
    found = list[PoolEvidence]()
    for member in pool.members:
        if member.model == champion.model:
            continue
        evidence = compare_members(
            pool.scores.get(member.model, ()),
            of_champion,
            measure=measure.name,
            span=measure.span,
            margin=margin,
            since=max(member.shaped_until, champion.shaped_until, began),
            error=reign_error(reign, settings.promotion.confidence),
            share=shares[member.model],
            autocorrelation=autocorrelation,
            horizon=HISTORY,
            episodes=measure.episodes.count if measure.episodes else None,
        )
        found += [] if evidence is None else [evidence]
    return PoolState(
        champion=champion.model,
        as_of=pool.as_of,
        reign=reign,
        reign_began=began,
        members=pool.members,
        evidence=shrink_gains(found, margin),
    )


def choose_member(watched: WatchedWindow, state: PoolState) -> ChampionChoice:
    """Which member should be champion; where decisions change which outcomes are seen, the pool promotes nobody."""
    return choose_champion(state, allow_promotion=not watched.settings.labels_depend_on_decision)


def list_switches(watched: WatchedWindow) -> list[Switch]:
    """All changes of the champion, the oldest first, by gate, person or pool."""
    return list_switches_of(watched.base, watched.versions)


def list_switches_of(base: KnowledgeBase, versions: Sequence[PoolVersion]) -> list[Switch]:
    """:func:`list_switches` of an agent's knowledge base and the versions that may be members of its pool."""
    by_refresh: dict[tuple[str | None, str | None], list[PoolVersion]] = {}
    for version in versions:
        by_refresh.setdefault((version.tags.get("refresh_id"), version.tags.get("variant")), []).append(version)
    switches = list[Switch]()
    for verdict in reversed(base.journal.verdicts(results=("promoted", "rolled_back"))):
        switch = None if verdict.kind == "watch" else _switch(verdict, by_refresh, switches[-1] if switches else None)
        switches += [] if switch is None else [switch]
    return switches[::-1]


def _switch(
    verdict: Verdict, by_refresh: Mapping[tuple[str | None, str | None], Sequence[PoolVersion]], after: Switch | None
) -> Switch | None:
    """The change of the champion that a verdict made; ``after`` is the next one."""
    evidence: Any = verdict.evidence
    if verdict.kind == "promotion":
        champion = evidence.get("champion")
        return champion and Switch(verdict.as_of, champion, evidence.get("before"), False, verdict.verdict_id)
    certificate = evidence["certificate"]
    made = by_refresh.get((certificate["refresh_id"], certificate["challenger"]["model"]), ())
    champion = _find_promoted(made, after)
    before = certificate.get("champion")
    if champion is None:
        return None
    return Switch(verdict.as_of, champion, before["model"] if before else None, True, verdict.verdict_id)


def _find_promoted(made: Sequence[PoolVersion], after: Switch | None) -> str | None:
    """Which version a gate promoted: the challenger or its final fit. The next change replaced it, if there is one."""
    is_promoted: tuple[Callable[[PoolVersion], bool], ...] = (
        lambda version: after is not None and str(version.model) == after.replaced,
        lambda version: after is None and "champion" in version.aliases,
        lambda version: version.released,
        lambda version: True,
    )
    found = (version for test in is_promoted for version in made if test(version))
    return next((str(version.model) for version in found), None)


def _everyone(watched: WatchedWindow, members: Sequence[PoolMember], champion: PoolMember) -> list[PoolMember]:
    """The members, and those that were made during this reign and have left the pool: their shares are spent.

    They are older than all newer members that are still in it, as the pool keeps the newest.
    """
    present = {member.model for member in members}
    left = [
        version
        for version in watched.versions
        if str(version.model) not in present and int(str(version.model.version)) > _number(champion.model)
    ]
    gone = [
        champion.model_copy(
            update={
                "model": str(version.model),
                "role": "challenger",
                "made_at": champion.made_at + timedelta(microseconds=number),
            }
        )
        for number, version in enumerate(left, start=1)
    ]
    return [*members, *gone]


def _estimate_autocorrelation(pool: ScoredPool, champion: str, measure: Measure) -> float:
    """Of the differences of champion and other members on neighbouring complete blocks."""
    losses = {
        model: {score.start: block_loss(score, measure) for score in scores if score.complete}
        for model, scores in pool.scores.items()
    }
    own = losses.pop(champion, {})
    series = [
        np.array([own[start] - loss for start, loss in sorted(others.items()) if start in own])
        for others in losses.values()
    ]
    return estimate_autocorrelation([values[np.isfinite(values)] for values in series])
