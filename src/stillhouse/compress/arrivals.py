"""What has just arrived among an agent's rows, and whether a smaller form still knows it.

A word, a category or an action that is new is rare in the window that a student learns from, and may be absent from
its validation days: quality on all of these says little about it. So ``max_quality_loss`` must hold on the newest of
them as well, and on rows of actions that are new.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.compress.subject import Array

__all__ = ["Judged", "judged_rows", "new_actions"]

_FEWEST = 20  # rows of a slice; where the validation days have fewer of an action, rows that were learned from join
_MOST = 200  # rows of one action that join
_LEAST_BEFORE = 0.2  # of the rows: with fewer before a moment, what came first after it says little
_STRAY = 0.1  # of an action's rows: so many may be older, and wrongly labelled, than the action is
_NEWEST_SHARE, _NEWEST_ROWS = 0.25, 100  # of the validation rows: those are the newest, and no fewer


@dataclass(frozen=True)
class Judged:
    """Rows that smaller forms are judged on: those of the validation days, then others of new actions.

    :param extra: places of the rows that join, among those learned from.
    :param labels: of both, ``[n]``.
    :param parts: places by slice, among both.
    """

    validation: int
    extra: Array
    labels: Array
    parts: Mapping[str, Array]

    def quality(self, score: Callable[[Array, Array], float]) -> Callable[[Array], float]:
        """On the validation days alone, as models are compared everywhere else."""
        count = self.validation
        return lambda said: score(said[:count], self.labels[:count])

    def slices(self, score: Callable[[Array, Array], float]) -> Callable[[Array], dict[str, float]]:
        """By slice: ``score`` on the newest rows, the share of right decisions for new actions."""

        def scores(said: Array) -> dict[str, float]:
            return {
                name: score(said[places], self.labels[places])
                if name == _NEWEST
                else float((said[places].argmax(axis=1) == self.labels[places]).mean())
                for name, places in self.parts.items()
            }

        return scores


_NEWEST = "the newest rows"


def new_actions(times: Array, labels: Array, since: np.datetime64 | None, unknown: Collection[int] = ()) -> list[int]:
    """Actions that have just arrived.

    :param times: of the rows that a student may learn from, datetime64 ``[n]``.
    :param labels: their actions, −1 where nobody knows.
    :param since: when the champion's window ended, as ``times``: what comes only from then on is new, but for a tenth
        of its rows that may be labelled wrongly. None where there
        is no champion; then, and where hardly a row is older, what comes only in the newer half of the time, often
        enough that this is no chance.
    :param unknown: actions that the champion does not know at all.
    """
    found: list[int] = []
    if not len(times):
        return found
    halfway = since is None or float((times < since).mean()) < _LEAST_BEFORE
    border = times.min() + (times.max() - times.min()) / 2 if halfway else since
    for action in np.unique(labels[labels >= 0]):
        own = times[labels == action]
        late = len(own) >= _FEWEST // 2 and bool((own >= border).all()) if halfway else np.mean(own < border) <= _STRAY
        if late or int(action) in unknown:
            found.append(int(action))
    return found


def judged_rows(
    times: Array, labels: Array, learned_times: Array, learned_labels: Array, new: Collection[int], names: Sequence[str]
) -> Judged:
    """What smaller forms are judged on.

    :param times: of the validation rows, ``[v]``, with their actions ``labels``.
    :param learned_times: of the rows learned from, ``[m]``, with their actions ``learned_labels``, −1 where unknown.
    :param new: actions that have just arrived; ``names`` of all actions.
    """
    extra: list[int] = []
    for action in new:
        lacking = _FEWEST - int((labels == action).sum())
        if lacking > 0:
            places = np.flatnonzero(learned_labels == action)
            extra += places[np.argsort(learned_times[places], kind="stable")][-_MOST:].tolist()
    every = np.concatenate([labels, learned_labels[extra]]).astype(np.int64)
    parts: dict[str, Array] = {}
    arrived = np.flatnonzero(np.isin(every, list(new)))
    if len(arrived):
        parts["new actions"] = arrived
        if len(new) > 1:
            own = {action: np.flatnonzero(every == action) for action in new}
            parts |= {f"the new action {names[each]}": rows for each, rows in own.items() if len(rows) >= _FEWEST}
    count = max(_NEWEST_ROWS, round(_NEWEST_SHARE * len(labels)))
    if count < len(labels):
        parts[_NEWEST] = np.argsort(times, kind="stable")[-count:]
    return Judged(len(labels), np.array(extra, dtype=np.int64), every, parts)
