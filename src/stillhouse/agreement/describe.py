"""How far a promise is held, in numbers and as a sentence."""

from __future__ import annotations

import math
from collections.abc import Mapping

from stillhouse.agreement.keeper import PromiseKeeper
from stillhouse.records.agreement import PromiseAlarm, PromiseStatus

__all__ = ["describe_promise"]

_ALARMS: Mapping[PromiseAlarm, str] = {
    "agreement": "its answers agreed less often than promised",
    "unsure_rows": "the rows that it is unsure of disagree more often than usual",
}


def describe_promise(keeper: PromiseKeeper, champion: str) -> PromiseStatus:
    """The status of a promise.

    >>> from stillhouse.agreement import Promise
    >>> status = describe_promise(PromiseKeeper(Promise(agreement=0.98)), "flights@7")
    >>> print(status.why)
    the teacher answers all rows: no row was audited yet, and 149 without a disagreement are needed for 98 %

    :param champion: the version that the keeper is about.
    """
    state, (rows, agreed, bound) = keeper.state, keeper.measured
    return PromiseStatus(
        promise=keeper.promise,
        champion=champion,
        threshold=state.threshold,
        coverage=keeper.coverage,
        rows=rows,
        agreement=agreed / rows if rows else None,
        agreement_bound=bound if rows else None,
        blind_rows=sum(state.rows),
        rows_lacking=keeper.rows_lacking,
        audited=state.audited,
        answered=state.answered,
        agreed=state.agreed,
        alarms=state.epoch,
        why=_explain(keeper, rows, bound),
    )


def _explain(keeper: PromiseKeeper, rows: int, bound: float) -> str:
    state, promised = keeper.state, f"{100 * keeper.promise.agreement:g} %"
    blind, lacking = sum(state.rows), keeper.rows_lacking
    began = "" if state.alarm is None else f"{_ALARMS[state.alarm]}, so coverage is earned anew; "
    if state.threshold is not None:
        if state.threshold == state.fallback:
            proof = f"{_ALARMS[state.alarm or 'agreement']}, so the threshold fell back to a stricter one"
        else:
            proof = f"{rows} audited rows at {state.threshold:.3g} and above prove at least {_percent(bound)}"
        share = "some" if keeper.coverage is None else f"{keeper.coverage:.0%}"
        return f"the student answers {share} of the rows: {proof}; for the others {promised} is not proved"
    if not blind:
        reason = f"no row was audited yet, and {lacking} without a disagreement are needed for {promised}"
    elif lacking:
        reason = f"{blind} audited rows are too few; at least {lacking} more without a disagreement are needed"
    else:
        reason = (
            f"{blind} audited rows do not prove {promised} at any confidence; the next test is at {state.next_test}"
        )
    return f"the teacher answers all rows: {began}{reason}"


def _percent(share: float) -> str:
    return f"{math.floor(1000 * share) / 10:g} %"
