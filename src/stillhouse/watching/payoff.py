"""Which response pays now: the situation as the pool shows it, the reckoning, and what earlier responses gained."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from stillhouse.champion import Champion, load_version, open_registry
from stillhouse.errors import RegistryError, StillhouseError
from stillhouse.evaluate.comparing import compare_models, lower_bound, upper_bound
from stillhouse.evaluate.gate import first_look_confidence
from stillhouse.knowledge import KnowledgeBase
from stillhouse.payoff.champion_choice import newest_block_veto
from stillhouse.payoff.decide import choose_response
from stillhouse.payoff.scores import scoring_rule
from stillhouse.payoff.situation import Curve, Situation, Training
from stillhouse.quality import Measure, Policy, get_measure
from stillhouse.records import (
    REFRESH_MODES,
    BlockScore,
    ChampionChoice,
    Comparison,
    PoolState,
    RealisedGain,
    Reason,
    Reckoning,
    Response,
)
from stillhouse.registry import names
from stillhouse.stats import Correction, cluster_ids, fit_correction, replace_non_finite
from stillhouse.watching.evidence import read_evidence_states
from stillhouse.watching.pool import (
    EPOCH,
    HISTORY,
    ScoredPool,
    Switch,
    align_probs,
    block_loss,
    choose_member,
    count_scores,
    list_switches,
    list_switches_of,
    make_policy,
    mean_loss,
    read_pool_state,
    score_pool,
)
from stillhouse.watching.window import WatchedWindow

__all__ = ["build_situation", "compare_for_reuse", "realised_gains", "reckon"]

log = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]

WEEK = timedelta(weeks=1)

_TRAINED: tuple[Response, ...] = ("update", "redistil_warm", "redistil", "renew")
_MIN_BLOCK_ROWS = 100  # labelled rows of a block at the median: with fewer a block says little
_LONGEST_BLOCK = timedelta(days=7)
_CORRECTED_BLOCKS = 6
_CORRECTION_WINDOW = timedelta(weeks=4)
_MAX_CORRECTION_ROWS = 4000  # a temperature and a bias per action need no more
_MIN_PROBABILITY = 1e-7


def reckon(watched: WatchedWindow, as_of: datetime) -> tuple[PoolState | None, ChampionChoice | None, Reckoning | None]:
    """What the pool shows, who should be champion, and, under the policy ``payoff``, which response pays.

    A response ``reuse`` is proven first, as the gate proves a challenger; if it is, the choice says so, and otherwise
    the reckoning says why not and holds.

    :returns: None for what cannot be told: without a champion, or before a block of outcomes is new to it.
    """
    pool = watched.pool if watched.pool is not None and watched.pool.as_of == as_of else score_pool(watched, as_of)
    switches = list_switches(watched)
    state = read_pool_state(watched, pool, switches)
    if state is None:
        return None, None, None
    predictions = _read_predictions(watched.base, [s for s in switches if as_of - HISTORY <= s.as_of <= as_of])
    gains = _measure_gains(pool.scores, switches, predictions, get_measure(watched.settings), as_of)
    state = state.model_copy(update={"realised": tuple(gains)})
    choice = _veto_slice_harm(watched, as_of, choose_member(watched, state))
    if watched.settings.watch.resolved_policy != "payoff":
        return state, choice, None
    situation = build_situation(watched, as_of, state, pool, predictions)
    if situation is None:
        return state, choice, None
    reckoning = choose_response(situation)
    if reckoning.chosen == "reuse" and choice.action == "keep":
        choice, reckoning = _prove_reuse(watched, as_of, state, choice, reckoning)
    for one in reckoning.responses:
        log.info("%s %s: %+.4f at a price of %.4f", one.response, one.model or "", one.gain, one.price)
    return state, choice, reckoning


def _veto_slice_harm(watched: WatchedWindow, as_of: datetime, choice: ChampionChoice) -> ChampionChoice:
    """The choice; the champion stays where its successor is proven worse on a slice. Going back is not vetoed."""
    if choice.action != "promote":
        return choice
    harm = _find_slice_harm(watched, choice.member, choice.champion, as_of)
    if harm is None:
        return choice
    text = f"{choice.champion} stays champion: {harm.text}"
    return choice.model_copy(
        update={"action": "keep", "member": choice.champion, "text": text, "reasons": (harm, *choice.reasons)}
    )


# --------------------------------------------------------------------------- the situation


def build_situation(
    watched: WatchedWindow,
    as_of: datetime,
    state: PoolState,
    pool: ScoredPool,
    predictions: Mapping[Switch, Prediction] | None = None,
) -> Situation | None:
    """What :func:`~stillhouse.payoff.decide.choose_response` looks at, from the scores of the pool.

    The blocks of its curves are counted back from ``as_of``. Their length: the time between two watches, or as many of
    the pool's blocks as have 100 outcomes at the median, at most a week.

    :param predictions: what earlier responses were predicted to gain, see :func:`realised_gains`.
    :returns: None if no block is new to the champion.
    """
    settings, measure, champion = watched.settings, get_measure(watched.settings), state.champion
    step = _time_between_watches(watched, as_of)
    block = _choose_block(step, settings.watch.block, pool.scores)
    curves = {
        member.model: _curve(pool.scores[member.model], member.shaped_until, as_of, block, measure)
        for member in state.members
        if member.model == champion or pool.scores.get(member.model)
    }
    if not len(curves[champion].known().times):
        return None
    payoff = settings.watch.payoff
    own = pool.member(champion)
    assert own is not None
    return Situation(
        now=_weeks(as_of),
        step=step / WEEK,
        block=block / WEEK,
        champion=champion,
        curves=curves,
        corrected=_corrected_curve(watched, own.shaped_until, as_of, block, measure),
        exchange_rate=payoff.exchange_rate * measure.span,
        prices=payoff.prices,
        history=min(settings.windows.train / WEEK, (as_of - watched.base.observed_since(as_of)) / WEEK),
        trainings=_list_trainings(predictions or {}),
        impossible=dict(_list_impossible(watched, as_of, state)),
        explore=payoff.explore,
        measure=measure.name,
        unit=measure.unit or "points",
    )


def _time_between_watches(watched: WatchedWindow, as_of: datetime) -> timedelta:
    """The median of the last three times, at least ``watch.every``."""
    results = watched.base.journal.results("watch", since=as_of - HISTORY)
    times = sorted({time for _, time in results.values() if time <= as_of} | {as_of})[-4:]
    between = sorted(later - earlier for earlier, later in pairwise(times))
    return max([*between[len(between) // 2 :][:1], watched.settings.watch.every])


def _choose_block(step: timedelta, pool_block: timedelta, scores: Mapping[str, Sequence[BlockScore]]) -> timedelta:
    rows = [score.rows for of_member in scores.values() for score in of_member if score.complete]
    needed = math.ceil(_MIN_BLOCK_ROWS / float(np.median(rows))) if rows else 1
    return max(min(max(step, needed * pool_block), _LONGEST_BLOCK), pool_block)


def _curve(
    scores: Sequence[BlockScore], shaped: datetime, as_of: datetime, block: timedelta, measure: Measure
) -> Curve:
    """The losses of a member in blocks counted back from ``as_of``."""
    count = math.ceil(HISTORY / block)
    by_block: dict[int, list[BlockScore]] = {}
    for score in scores:
        middle = score.start + (min(score.end, as_of) - score.start) / 2
        by_block.setdefault(int((as_of - middle) / block), []).append(score)
    losses = [mean_loss(by_block[index], measure) if index in by_block else math.nan for index in range(count)]
    return Curve(_weeks(shaped), _block_middles(as_of, block, count), np.array(losses[::-1]))


def _block_middles(as_of: datetime, block: timedelta, count: int) -> Array:
    middles: Array = _weeks(as_of) - (np.arange(count)[::-1] + 0.5) * (block / WEEK)
    return middles


def _weeks(moment: datetime) -> float:
    """Weeks since 1970."""
    return (moment - EPOCH) / WEEK


def _corrected_curve(
    watched: WatchedWindow, shaped: datetime, as_of: datetime, block: timedelta, measure: Measure
) -> Curve | None:
    """The champion recalibrated before each of the last blocks, on what was known then; None if it cannot be told."""
    champion = watched.champion
    start = max(shaped, as_of - _CORRECTED_BLOCKS * block - _CORRECTION_WINDOW)
    if champion is None or champion.actions != watched.settings.actions or start >= as_of:
        return None
    base = watched.base
    rows = base.read_labelled(base.window("recalibration", start, as_of), as_of)
    rows = base.join_known_at(rows, as_of)
    if rows.empty:
        return None
    labels = rows["outcome"].to_numpy()
    probs = replace_non_finite(align_probs(champion.variant, rows, watched.settings.actions), labels)
    log_probs = np.log(np.maximum(probs, _MIN_PROBABILITY))
    count = math.ceil(HISTORY / block)
    losses = np.full(count, np.nan)
    for index in range(_CORRECTED_BLOCKS):
        begin = as_of - (index + 1) * block
        known = (rows["observed_at"] < begin) & (rows["known_at"] <= begin)
        fit = np.flatnonzero(known & (rows["observed_at"] >= begin - _CORRECTION_WINDOW))[-_MAX_CORRECTION_ROWS:]
        scored = np.flatnonzero((rows["observed_at"] >= begin) & (rows["observed_at"] < begin + block))
        if begin < shaped or not len(fit) or not len(scored) or index >= count:
            break
        correction = fit_correction(log_probs[fit], labels[fit])
        corrected = np.exp(correction.apply(log_probs[scored]))
        policy = _correct(make_policy(champion.variant, watched.settings.actions), correction)
        losses[count - 1 - index] = _rows_loss(corrected, labels[scored], rows.iloc[scored], measure, policy)
    if np.isnan(losses).all():
        return None
    return Curve(_weeks(shaped), _block_middles(as_of, block, count), losses)


def _correct(policy: Policy, correction: Correction) -> Policy:
    """The model with its probabilities corrected."""

    def predict(rows: pd.DataFrame) -> Array:
        corrected: Array = np.exp(correction.apply(np.log(np.maximum(policy(rows), _MIN_PROBABILITY))))
        return corrected

    return predict


def _rows_loss(probs: Array, labels: Array, rows: pd.DataFrame, measure: Measure, policy: Policy) -> float:
    """The loss on rows, or in the episodes of ``policy``, oriented as :func:`~stillhouse.watching.pool.block_loss`."""
    if measure.is_pooled and len(np.unique(labels)) < 2:
        return math.nan
    oriented = measure.sign * measure.value(probs.astype(np.float64), labels, rows, measure.play(policy, rows))
    return 1.0 - oriented if measure.name in ("accuracy", "agreement", "auc") else -oriented


# --------------------------------------------------------------------------- what cannot be done now


def _list_impossible(watched: WatchedWindow, as_of: datetime, state: PoolState) -> Iterator[tuple[str, str]]:
    """By response, or by model for ``reuse``, why it cannot be made now."""
    settings, champion = watched.settings, watched.champion
    assert champion is not None
    yield from ((member.model, member.why_not) for member in state.members if not member.promotable)
    if settings.labels_depend_on_decision:
        yield "reuse", "decisions change which outcomes are seen (`outcomes.depend_on_decision`)"
    if not settings.student.can_be_updated:
        reason = f"a student of kind {settings.student.kind!r} is always trained from scratch"
        yield from (("update", reason), ("redistil_warm", reason))
    elif reason := _explain_few_new_rows(watched, champion, as_of):
        yield from (("update", reason), ("redistil_warm", reason))
    if reason := _explain_no_graph(watched, champion):
        yield "recalibrate", reason
    states = read_evidence_states(watched.base, champion, as_of) if settings.watch.false_alarms else []
    if not any(step.alarm for step in states if step.process == "teacher_outcomes"):
        reason = "the outcomes do not show that the teacher is failing"
        yield "renew", reason if settings.outcomes else "its own answers cannot show that the teacher is failing"
    if reason := _explain_no_training(watched, as_of):
        yield from ((response, reason) for response in _TRAINED)


def _explain_few_new_rows(watched: WatchedWindow, champion: Champion, as_of: datetime) -> str:
    base, since = watched.base, champion.baseline.train.end
    needed = watched.settings.update.min_rows
    if since >= as_of:
        return "no row is newer than the champion's training window"
    columns = ["observation_id", "known_at"]
    outcomes = base.read("outcomes", base.window("new", since, as_of), columns)
    rows = outcomes.loc[outcomes["known_at"] <= as_of, "observation_id"].nunique()
    return "" if rows >= needed else f"{rows} rows with outcomes are new, and `update.min_rows` is {needed}"


def _explain_no_graph(watched: WatchedWindow, champion: Champion) -> str:
    """Why the champion cannot be recalibrated; empty if it can."""
    if champion.actions != watched.settings.actions:
        return "the agent file has other actions than the champion"
    registry = watched.registry
    try:
        run_id = registry.models.tags(champion.model).get("refresh_run", "")
        registry.runs.read_file(registry.runs.tags(run_id).get("recalibrates", run_id), names.MODEL_STATE)
    except RegistryError:
        return "the champion's float32 graph was not stored"
    return ""


def _explain_no_training(watched: WatchedWindow, as_of: datetime) -> str:
    """Why nothing may be trained now; empty if something may."""
    payoff = watched.settings.watch.payoff
    if waiting := watched.registry.challenger():
        return f"{waiting} waits for approval"
    for limit, period, key in (
        (payoff.max_trainings_per_day, timedelta(days=1), "max_trainings_per_day"),
        (payoff.max_trainings_per_month, timedelta(days=30), "max_trainings_per_month"),
    ):
        if limit is None:
            continue
        gates = watched.base.journal.results("gate", since=as_of - period)
        times = {time for _, time in gates.values() if as_of - period < time <= as_of}
        made = sum(_is_training(watched.base, time) for time in times)
        if made >= limit:
            return f"{made} trainings within {period.days} days, and `watch.payoff.{key}` is {limit}"
    return ""


def _is_training(base: KnowledgeBase, refreshed_at: datetime) -> bool:
    watch = base.journal.verdict_at("watch", refreshed_at)
    return watch is None or watch.response != "recalibrate"


# --------------------------------------------------------------------------- reuse


def compare_for_reuse(watched: WatchedWindow, member: str, champion: str, as_of: datetime) -> Comparison | None:
    """The member against the champion on the complete blocks of the newest test window that are new to both.

    :param member: name@version; ``champion`` likewise.
    :returns: None if there are too few rows.
    """
    answered = _answer_common_rows(watched, member, champion, as_of)
    return None if answered is None else answered.compare(watched, "test", watched.settings.margins.test)


def _find_slice_harm(watched: WatchedWindow, member: str, champion: str, as_of: datetime) -> Reason | None:
    """The reason why the member is proven worse on a slice by more than its margin; None: it is not."""
    promotion, margin = watched.settings.promotion, watched.settings.margins.slice
    answered = _answer_common_rows(watched, member, champion, as_of) if promotion.slices else None
    if answered is None:
        return None
    confidence = first_look_confidence(promotion.confidence)
    for column in promotion.slices:
        for value in sorted(answered.rows[column].dropna().unique()):
            mask = (answered.rows[column] == value).to_numpy()
            if mask.sum() < promotion.min_slice_rows:
                continue
            comparison = answered.select(mask).compare(watched, f"{column}={value}", margin)
            if comparison is not None and (high := upper_bound(comparison, confidence)) < -comparison.margin:
                text = (
                    f"{member} is worse than {champion} on {column}={value} ({comparison.rows} rows): "
                    f"{comparison.measure} {comparison.challenger:.4f} against {comparison.champion:.4f}, upper "
                    f"{confidence:.4g} bound of the gain {high:+.4f}, below -{comparison.margin:.4g}"
                )
                measure = f"{comparison.measure}:{column}={value}"
                return Reason(measure=measure, value=high, threshold=-comparison.margin, failed=True, text=text)
    return None


@dataclass(frozen=True)
class _AnsweredRows:
    """Labelled rows that are new to two models.

    :ivar probs: of the member and of the champion, each ``[n, K]``.
    :ivar episodes: scores of the episodes that each has played ``[m]``; None: the measure is one of rows.
    """

    rows: pd.DataFrame
    probs: tuple[Array, Array]
    episodes: tuple[Array | None, Array | None] = (None, None)

    def select(self, mask: Array) -> _AnsweredRows:
        """The rows where ``mask`` is True; episodes are those of all rows."""
        return _AnsweredRows(self.rows[mask].reset_index(drop=True), (self.probs[0][mask], self.probs[1][mask]))

    def compare(self, watched: WatchedWindow, name: str, margin: float) -> Comparison | None:
        """The member against the champion, as the gate compares; None if there are too few rows."""
        return compare_models(
            name,
            self.rows["outcome"].to_numpy(),
            *self.probs,
            margin,
            cluster_ids(self.rows["observed_at"], watched.settings.promotion.cluster),
            measure=get_measure(watched.settings),
            rows=self.rows,
            episodes=self.episodes,
        )


def _answer_common_rows(watched: WatchedWindow, member: str, champion: str, as_of: datetime) -> _AnsweredRows | None:
    """The rows of the newest test window's complete blocks that are new to both; None: there are none."""
    settings = watched.settings
    opened = [_open_member(watched, model) for model in (member, champion)]
    length = settings.windows.test or (opened[1].baseline.test.end - opened[1].baseline.test.start)
    block, delay = settings.watch.block, settings.block_delay
    end = EPOCH + (as_of - delay - EPOCH) // block * block
    start = max(end - length, *(_shaped_until(watched, one) for one in opened))
    if start >= end:
        return None
    window = watched.base.window("test", start, as_of)
    rows = watched.base.read_labelled_blocks(window, block, delay)
    rows = rows[(rows["block_start"] >= start) & (rows["block_start"] < end)].reset_index(drop=True)
    if rows.empty:
        return None
    predicts = [make_policy(one.variant, settings.actions) for one in opened]
    of_member, of_champion = (predict(rows) for predict in predicts)
    member_episodes, champion_episodes = (get_measure(settings).play(predict, rows) for predict in predicts)
    return _AnsweredRows(rows, (of_member, of_champion), (member_episodes, champion_episodes))


def _open_member(watched: WatchedWindow, model: str) -> Champion:
    version = watched.registry.version(watched.agent, model.rpartition("@")[2])
    if version is None:
        raise RegistryError(f"{model} was deleted in MLflow")
    return load_version(watched.agent, version)


def _shaped_until(watched: WatchedWindow, member: Champion) -> datetime:
    tagged = watched.registry.models.tags(member.model).get("shaped_until")
    return datetime.fromisoformat(tagged) if tagged else member.baseline.test.start


def _prove_reuse(
    watched: WatchedWindow, as_of: datetime, state: PoolState, choice: ChampionChoice, reckoning: Reckoning
) -> tuple[ChampionChoice, Reckoning]:
    """The member becomes champion if it is proven no worse, as the gate proves it; otherwise nothing happens now."""
    member = str(reckoning.model)
    reason = _judge_reuse(watched, as_of, state, member)
    if not reason.failed:
        text = f"{member} becomes champion in place of {state.champion}: {reckoning.text}"
        return ChampionChoice(
            action="promote", champion=state.champion, member=member, text=text, reasons=(reason, *choice.reasons)
        ), reckoning
    responses = tuple(
        prediction.model_copy(update={"possible": False, "text": reason.text})
        if prediction.response == "reuse" and prediction.model == member
        else prediction
        for prediction in reckoning.responses
    )
    text = f"nothing now, though {member} is predicted to gain: {reason.text}"
    held = reckoning.model_copy(update={"chosen": "hold", "model": None, "responses": responses, "text": text})
    return choice.model_copy(update={"reasons": (reason, *choice.reasons)}), held


def _judge_reuse(watched: WatchedWindow, as_of: datetime, state: PoolState, member: str) -> Reason:
    margin, confidence = (
        watched.settings.margins.test,
        first_look_confidence(watched.settings.promotion.confidence),
    )
    try:
        comparison = compare_for_reuse(watched, member, state.champion, as_of)
    except StillhouseError as error:
        return Reason(measure="reuse", failed=True, text=str(error))
    if comparison is None:
        text = f"too few outcomes are new to both {member} and {state.champion}"
        return Reason(measure="reuse", failed=True, text=text)
    evidence = next((one for one in state.evidence if one.member == member), None)
    if evidence is not None and (veto := newest_block_veto(evidence)):
        return veto
    if harm := _find_slice_harm(watched, member, state.champion, as_of):
        return harm
    low = lower_bound(comparison, confidence)
    failed = low < -margin
    text = (
        f"{member} is {'not ' if failed else ''}proven no worse than {state.champion} by {margin:.4g} on "
        f"{comparison.rows} rows that are new to both: {comparison.measure} {comparison.challenger:.4f} against "
        f"{comparison.champion:.4f}, lower {confidence:.4g} bound of the gain {low:+.4f}"
    )
    return Reason(measure=f"{comparison.measure}:test", value=low, threshold=-margin, failed=failed, text=text)


# --------------------------------------------------------------------------- what responses have gained


class Prediction(NamedTuple):
    """What a response was predicted to gain a week by the watch that chose it; None: by nobody."""

    response: Response
    per_week: float | None
    explored: bool = False


def realised_gains(base: KnowledgeBase, since: datetime | None = None) -> tuple[RealisedGain, ...]:
    """What each change of the champion has gained, beside what it was predicted to gain, the oldest first.

    The new champion against the replaced one, on complete blocks that begin after the switch and end before the next
    one. Changes without such a block are left out.

    :param since: only changes from then on.
    """
    measure = get_measure(base.config)
    switches = list_switches_of(base, open_registry(base.config.agent).pool_versions())
    wanted = [switch for switch in switches if since is None or switch.as_of >= since]
    scores: dict[str, list[BlockScore]] = {}
    stored = base.journal.scores(scoring_rule(base.config), since=since, with_rows=measure.is_pooled)
    for score in stored:
        scores.setdefault(score.member, []).append(score)
    return tuple(_measure_gains(scores, switches, _read_predictions(base, wanted), measure))


def _read_predictions(base: KnowledgeBase, switches: Sequence[Switch]) -> dict[Switch, Prediction]:
    """The prediction of the watch that asked for each change."""
    return {switch: _read_prediction(base, switch) for switch in switches}


def _read_prediction(base: KnowledgeBase, switch: Switch) -> Prediction:
    fallback: Response = "redistil" if switch.by_gate else "reuse"
    watch = base.journal.verdict_at("watch", switch.as_of)
    found = watch.evidence.get("reckoning") if watch else None
    if watch is None or not found:
        return Prediction(watch.response if watch and watch.response != "hold" else fallback, None)
    reckoning = Reckoning.model_validate(found)
    if reckoning.chosen == "hold" or (REFRESH_MODES[reckoning.chosen] is not None) != switch.by_gate:
        return Prediction(fallback, None)
    chosen = next(
        one for one in reckoning.responses if (one.response, one.model) == (reckoning.chosen, reckoning.model)
    )
    per_week = (
        reckoning.excess if reckoning.chosen in _TRAINED else chosen.gain / chosen.weeks if chosen.weeks else None
    )
    return Prediction(reckoning.chosen, per_week, reckoning.explored)


def _list_trainings(predictions: Mapping[Switch, Prediction]) -> list[Training]:
    return [
        Training(prediction.response, _weeks(switch.as_of), switch.champion, switch.replaced, prediction.per_week)
        for switch, prediction in predictions.items()
        if prediction.response in _TRAINED and prediction.per_week is not None and switch.replaced
    ]


def _measure_gains(
    scores: Mapping[str, Sequence[BlockScore]],
    switches: Sequence[Switch],
    predictions: Mapping[Switch, Prediction],
    measure: Measure,
    as_of: datetime | None = None,
) -> Iterator[RealisedGain]:
    for index, switch in enumerate(switches):
        if switch.replaced is None or switch not in predictions:
            continue
        end = min((later.as_of for later in switches[index + 1 : index + 2]), default=as_of)
        new, old = (
            {
                score.start: score
                for score in scores.get(model, ())
                if score.complete and score.start >= switch.as_of and (end is None or score.end <= end)
            }
            for model in (switch.champion, switch.replaced)
        )
        common = [start for start in sorted(new) if start in old and new[start].rows_key == old[start].rows_key]
        gains = [block_loss(old[start], measure) - block_loss(new[start], measure) for start in common]
        kept = [
            (gain, count_scores(new[start], measure))
            for gain, start in zip(gains, common, strict=True)
            if not math.isnan(gain)
        ]
        if not kept:
            continue
        values, rows = np.array([gain for gain, _ in kept]), np.array([count for _, count in kept])
        mean = float(np.average(values, weights=rows))
        error = math.sqrt(float((rows**2 * (values - mean) ** 2).sum())) / float(rows.sum())
        prediction = predictions[switch]
        yield RealisedGain(
            response=prediction.response,
            as_of=switch.as_of,
            champion=switch.champion,
            replaced=switch.replaced,
            predicted=prediction.per_week,
            realised=mean,
            standard_error=error,
            rows=int(rows.sum()),
            weeks=(new[common[-1]].end - switch.as_of) / WEEK,
            explored=prediction.explored,
        )
