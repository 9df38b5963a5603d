"""Keeps a promised agreement: which rows the student may answer, by what audits have shown so far.

**An epoch** begins with the fit and with each alarm. Its blind rows are counted by level of confidence, and thresholds
are tested on them (:mod:`stillhouse.agreement.thresholds`) when there are enough, and again whenever there are a fifth
more. Each test replaces the threshold before it, so at any moment the threshold in force is the result of one test at
the full confidence; tests are not added up, and no threshold stays because an earlier test was luckier.

**Alarms** come from the two monitors (:mod:`stillhouse.agreement.monitor`). If the audited rows of the present level
disagree too often, the threshold falls back to the loosest stricter level of the same test that is not suspicious
itself, and to none if there is no such level. If the unsure rows disagree more than usual, it falls to none. In both
cases a new epoch begins: rows from before the alarm prove nothing any more, and coverage is earned again from those
after it.

**Blind rows** are those that the teacher was asked about without regard to the student's answer: the random audit, and
all rows while nothing is answered. Rows that were deferred because the student was unsure are not blind: they feed the
monitor of unsure rows, and prove nothing about any threshold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from stillhouse.agreement.monitor import (
    BETS,
    NO_EVIDENCE,
    UNSURE_BETS,
    advance,
    alternatives,
    mean_evidence,
    unsure_alternatives,
)
from stillhouse.agreement.thresholds import (
    LEVELS,
    level_of,
    levels_of,
    loosest_level,
    lower_bound,
    rows_lacking,
    rows_needed,
)
from stillhouse.records.agreement import Promise, PromiseAlarm, PromiseState

__all__ = ["PromiseKeeper"]

Array = np.ndarray[Any, Any]

_GROWTH = 1.2  # of the number of blind rows, between two tests
_RUN_LENGTH, _UNSURE_RUN_LENGTH = 20.0, 50.0  # rows between false alarms, in units of 1 / (1 − confidence)
_CLOSER_AUDIT, _SUSPICION = 4.0, -math.log(20)  # that many times the share, at 1/20 of the evidence of an alarm
_CURVE_ROWS = 50  # at least, behind a usual share of disagreements
_CURVE_CONFIDENCE = 0.95
_LARGEST_USUAL = 0.95
_DECIMALS = 6  # of the evidence in a state


class PromiseKeeper:
    """Says which rows the student may answer so that a promise is kept, and learns from audited rows.

    Not thread-safe. NumPy only, except where thresholds are tested.

    >>> import numpy as np
    >>> keeper = PromiseKeeper(Promise(agreement=0.98, confidence=0.95))
    >>> keeper.may_answer(0.99), keeper.rows_lacking
    (False, 149)
    >>> for _ in range(149):
    ...     keeper.observe(0.97, agrees=True)
    >>> keeper.may_answer(0.99), keeper.may_answer(0.99, novelty=1.0), keeper.rows_lacking
    (True, True, 0)
    >>> for _ in range(6):
    ...     keeper.observe(0.97, agrees=False)
    >>> keeper.may_answer(0.99), keeper.state.alarm
    (False, 'agreement')

    :param promise: what is promised.
    :param state: a state to go on from; None: nothing is known yet. Its promise must be the same.
    :param novelty_limit: the teacher answers rows that are more novel (:class:`NoveltyGuard`); None: that of ``state``.
    :raises ValueError: if the state is that of another promise, or of other levels.
    """

    def __init__(
        self, promise: Promise, state: PromiseState | None = None, *, novelty_limit: float | None = None
    ) -> None:
        self.promise = promise
        self._null = 1 - promise.agreement
        self._bets = alternatives(self._null)
        error = 1 - promise.confidence
        self._log_threshold, self._log_unsure = math.log(_RUN_LENGTH / error), math.log(_UNSURE_RUN_LENGTH / error)
        self.novelty_limit = novelty_limit
        self._forget()
        if state is not None:
            self._restore(state)

    @classmethod
    def begin(cls, promise: Promise, fitted: PromiseState, *, novelty_limit: float | None = None) -> Self:
        """A keeper that begins with the blind rows of a fitted state, whose promise may be another."""
        if fitted.promise == promise:
            return cls(promise, fitted, novelty_limit=novelty_limit)
        keeper = cls(fitted.promise, fitted, novelty_limit=novelty_limit)
        counts = keeper._rows, keeper._disagreements, keeper._doubt, keeper._total
        keeper = cls(promise, novelty_limit=keeper.novelty_limit)
        keeper._rows, keeper._disagreements, keeper._doubt, keeper._total = counts
        keeper._test()
        return keeper

    # ----------------------------------------------------------------- deciding

    def may_answer(self, confidence: float, novelty: float = 0.0) -> bool:
        """Whether the student may answer a row alone; if not, the teacher must be asked.

        :param confidence: the student's largest probability, 0…1.
        :param novelty: of the row, by the guard that the limit belongs to; 0: not known.
        """
        return confidence >= self._threshold and (self.novelty_limit is None or novelty <= self.novelty_limit)

    @property
    def asks_all(self) -> bool:
        """Whether nothing is answered at present: then every row is blind."""
        return self._level is None

    def audit_share(self, share: float) -> float:
        """The share of rows to audit now: all while nothing is answered, more than ``share`` on a first suspicion.

        It depends on earlier rows only, so the audit stays blind.

        :param share: to be audited in quiet times, 0…1.
        """
        if self._level is None:
            return 1.0
        suspicion = mean_evidence(self._evidence[self._level]) - self._log_threshold
        return min(1.0, _CLOSER_AUDIT * share) if suspicion >= _SUSPICION else share

    # ----------------------------------------------------------------- learning

    def fit(
        self,
        confidences: Sequence[float] | Array,
        agrees: Sequence[bool] | Array,
        novelties: Sequence[float] | Array | None = None,
    ) -> Self:
        """Forget everything and begin with blind rows of the champion that it was not trained on.

        :param confidences: the student's largest probabilities ``[n]``, 0…1; n may be 0.
        :param agrees: whether the teacher's answer was the student's, ``[n]``.
        :param novelties: of the rows; those above the limit are never answered, and are left out.
        :raises ValueError: if the lengths differ, or a confidence is not within 0…1.
        """
        confidences, agrees = np.asarray(confidences, dtype=np.float64), np.asarray(agrees, dtype=bool)
        if confidences.shape != agrees.shape or confidences.ndim != 1:
            raise ValueError(f"confidences {confidences.shape} and agrees {agrees.shape} must be vectors of one length")
        _require_confidences(confidences)
        self._forget()
        if novelties is not None and self.novelty_limit is not None:
            is_known = np.asarray(novelties, dtype=np.float64) <= self.novelty_limit
            confidences, agrees = confidences[is_known], agrees[is_known]
        levels, size = levels_of(confidences), len(LEVELS)
        self._rows = np.bincount(levels, minlength=size)
        self._disagreements = np.bincount(levels[~agrees], minlength=size)
        self._doubt = np.bincount(levels, weights=1 - confidences, minlength=size)
        self._total = len(levels)
        self._test()
        return self

    def observe(self, confidence: float, agrees: bool, *, novelty: float = 0.0, blind: bool = True) -> None:
        """Learn from one row that the teacher has answered.

        :param confidence: the student's largest probability, 0…1.
        :param agrees: whether the teacher's answer was the student's.
        :param novelty: of the row, as :meth:`may_answer` was given it.
        :param blind: whether the teacher was asked without regard to the student's answer: drawn for the audit, or
            asked while :attr:`asks_all`. False: deferred because the student was unsure.
        :raises ValueError: if the confidence is not within 0…1.
        """
        if not 0 <= confidence <= 1:
            raise ValueError(f"a confidence must be a probability within 0…1, not {confidence}")
        is_novel = self.novelty_limit is not None and novelty > self.novelty_limit
        answered = self.may_answer(confidence, novelty)
        if blind:
            self._audited += 1
            self._novel += is_novel
            self._answered += answered
            self._agreed += answered and agrees
        if is_novel:
            return
        level = level_of(confidence)
        if blind:
            self._rows[level] += 1
            self._disagreements[level] += not agrees
            self._doubt[level] += 1 - confidence
            self._total += 1
        if self._level is not None:
            self._watch(level, agrees, answered and blind)
        if self._total >= self._next_test:
            self._test()

    def _watch(self, level: int, agrees: bool, audited: bool) -> None:
        """Raise an alarm if there is enough evidence; ``level`` of the newest row."""
        assert self._level is not None and self._begin is not None
        if level <= self._level:
            if not audited:
                return
            watched = slice(max(level, self._begin), self._level + 1)
            self._evidence[watched] = advance(self._evidence[watched], not agrees, self._null, self._bets)
            if not agrees and mean_evidence(self._evidence[self._level]) >= self._log_threshold:
                self._raise_alarm("agreement", self._fallback_level())
        elif self._usual is not None:
            null = float(self._usual[level])
            self._unsure = advance(self._unsure, not agrees, null, unsure_alternatives(null))
            if not agrees and mean_evidence(self._unsure) >= self._log_unsure:
                self._raise_alarm("unsure_rows", None)

    def _fallback_level(self) -> int | None:
        """The loosest level of the last test, stricter than the present one, with less than half of the evidence."""
        assert self._level is not None and self._begin is not None
        quiet = mean_evidence(self._evidence[self._begin : self._level]) < self._log_threshold / 2
        return self._begin + int(np.flatnonzero(quiet)[-1]) if quiet.any() else None

    def _raise_alarm(self, alarm: PromiseAlarm, fallback: int | None) -> None:
        audits = self._answered, self._agreed, self._audited, self._novel
        epoch, usual, begin = self._epoch + 1, self._usual, self._begin
        self._forget()
        self._answered, self._agreed, self._audited, self._novel = audits
        self._epoch, self._alarm, self._fallback = epoch, alarm, fallback
        self._set_level(fallback)
        if fallback is not None:
            self._usual, self._begin = usual, begin

    def _test(self) -> None:
        """Test the thresholds on the blind rows of this epoch, and learn what is usual there."""
        rows = self._total
        self._tested_at, self._next_test = rows, max(rows + 1, math.ceil(_GROWTH * rows), rows_needed(self.promise))
        found = loosest_level(self.promise, self._rows, self._disagreements, self._doubt)
        level, begin = (None, None) if found is None else found
        if self._fallback is not None and (level is None or level <= self._fallback):
            level, begin = self._fallback, self._begin
        self._begin = begin
        if level != self._level:
            self._unsure = np.full(UNSURE_BETS, NO_EVIDENCE)
        self._set_level(level)
        if rows >= _CURVE_ROWS and (self._fallback is None or level != self._fallback):
            self._usual = _usual_disagreement(self._rows, self._disagreements)

    def _set_level(self, level: int | None) -> None:
        self._level = level
        self._threshold = math.inf if level is None else float(LEVELS[level])

    def _forget(self) -> None:
        size = len(LEVELS)
        self._rows, self._disagreements = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self._doubt = np.zeros(size)
        self._evidence, self._unsure = np.full((size, BETS), NO_EVIDENCE), np.full(UNSURE_BETS, NO_EVIDENCE)
        self._usual: Array | None = None
        self._begin: int | None = None
        self._fallback: int | None = None
        self._total = self._tested_at = 0
        self._next_test = rows_needed(self.promise)
        self._epoch = self._answered = self._agreed = self._audited = self._novel = 0
        self._alarm: PromiseAlarm | None = None
        self._set_level(None)

    # ----------------------------------------------------------------- state

    @property
    def coverage(self) -> float | None:
        """Share of this epoch's blind rows (those that are not too novel) at the present threshold or above it."""
        rows = self._total
        return None if not rows else 0.0 if self._level is None else float(self._rows[: self._level + 1].sum()) / rows

    @property
    def measured(self) -> tuple[int, int, float]:
        """This epoch's blind rows at the threshold and above: how many, how many agree, and the bound of that share."""
        if self._level is None:
            return 0, 0, 0.0
        rows = int(self._rows[: self._level + 1].sum())
        disagreements = int(self._disagreements[: self._level + 1].sum())
        return rows, rows - disagreements, lower_bound(rows, disagreements, self.promise.confidence)

    @property
    def rows_lacking(self) -> int:
        """Audited rows without a disagreement that are lacking for a threshold, at the least; 0: there is one."""
        return 0 if self._level is not None else rows_lacking(self.promise, self._rows, self._disagreements)

    @property
    def state(self) -> PromiseState:
        """All that the next row needs, as one frozen record; ``PromiseKeeper(promise, state)`` goes on from it."""
        return PromiseState(
            promise=self.promise,
            threshold=None if self._level is None else self._threshold,
            novelty_limit=self.novelty_limit,
            rows=self._rows.tolist(),
            disagreements=self._disagreements.tolist(),
            doubt=self._doubt.round(_DECIMALS).tolist(),
            tested_at=self._tested_at,
            next_test=self._next_test,
            begin=None if self._begin is None else float(LEVELS[self._begin]),
            fallback=None if self._fallback is None else float(LEVELS[self._fallback]),
            usual=None if self._usual is None else self._usual.tolist(),
            evidence=self._evidence.round(_DECIMALS).tolist(),
            unsure_evidence=self._unsure.round(_DECIMALS).tolist(),
            epoch=self._epoch,
            alarm=self._alarm,
            answered=self._answered,
            agreed=self._agreed,
            audited=self._audited,
            novel=self._novel,
        )

    def _restore(self, state: PromiseState) -> None:
        if state.promise != self.promise:
            raise ValueError(f"the state is that of another promise: {state.promise}, not {self.promise}")
        if not len(state.rows) == len(state.disagreements) == len(state.doubt) == len(state.evidence) == len(LEVELS):
            raise ValueError(f"the state must have {len(LEVELS)} levels")
        self._rows, self._disagreements = np.array(state.rows), np.array(state.disagreements)
        self._total = int(self._rows.sum())
        self._doubt, self._evidence = np.array(state.doubt), np.array(state.evidence)
        self._unsure = np.array(state.unsure_evidence)
        self._usual = None if state.usual is None else np.array(state.usual)
        self._tested_at, self._next_test = state.tested_at, state.next_test
        self._begin, self._fallback = _level_at(state.begin), _level_at(state.fallback)
        self._epoch, self._alarm = state.epoch, state.alarm
        self._answered, self._agreed = state.answered, state.agreed
        self._audited, self._novel = state.audited, state.novel
        if self.novelty_limit is None:
            self.novelty_limit = state.novelty_limit
        self._set_level(_level_at(state.threshold))


def _level_at(threshold: float | None) -> int | None:
    return None if threshold is None else level_of(threshold)


def _usual_disagreement(rows: Array, disagreements: Array) -> Array:
    """Upper bound of the share of disagreements at each level ``[J]``, over neighbours with enough rows together."""
    from scipy.special import betaincinv

    usual = np.full(len(rows), np.nan)
    begin, seen, differing, largest = 0, 0, 0, 0.0
    left = int(rows.sum())
    for level, (n, k) in enumerate(zip(rows.tolist(), disagreements.tolist(), strict=True)):
        seen, differing, left = seen + n, differing + k, left - n
        if seen >= _CURVE_ROWS and (left >= _CURVE_ROWS or level == len(rows) - 1):
            bound = 1.0 if differing >= seen else float(betaincinv(differing + 1, seen - differing, _CURVE_CONFIDENCE))
            largest = max(largest, min(bound, _LARGEST_USUAL))
            usual[begin : level + 1] = largest
            begin, seen, differing = level + 1, 0, 0
    usual[begin:] = largest or _LARGEST_USUAL
    return usual


def _require_confidences(confidences: Array) -> None:
    if not np.all((confidences >= 0) & (confidences <= 1)):
        raise ValueError("confidences must be probabilities within 0…1")
