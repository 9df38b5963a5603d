"""The rows that candidates are measured on, with slices for the newest rows and for new actions.

A new word, category or action is rare in the training window of a student, and may not occur on its validation days:
the quality on all validation rows says little about it. So ``max_quality_loss`` must hold on the newest validation rows
as well, and on rows of new actions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.compress.target import Array

__all__ = ["ValidationRows", "find_new_actions", "select_validation_rows"]

_MIN_SLICE_ROWS = 20  # if an action has fewer validation rows, training rows are added
_MAX_ADDED_ROWS = 200  # training rows that are added per action
_MIN_OLDER_SHARE = 0.2  # of the rows before ``since``: with fewer, the first occurrence after it says little
_MAX_STRAY_SHARE = 0.1  # of an action's rows that may be older than the action, because they are wrongly labelled
_NEWEST_SHARE, _MIN_NEWEST_ROWS = 0.25, 100  # of the validation rows that are in the slice of the newest rows
_NEWEST = "the newest rows"


@dataclass(frozen=True)
class ValidationRows:
    """The rows that candidates are measured on: the validation rows, then training rows of new actions.

    :param n_validation: number of validation rows.
    :param training_index: indices of the added training rows, among the training rows.
    :param labels: action indices of all these rows, ``[n]``.
    :param slice_index: by the name of a slice, the indices of its rows, among all these rows.
    """

    n_validation: int
    training_index: Array
    labels: Array
    slice_index: Mapping[str, Array]

    def make_quality(self, score: Callable[[Array, Array], float]) -> Callable[[Array], float]:
        """``score`` on the validation rows only, as models are compared everywhere else.

        :param score: called with the probabilities of some of these rows, and their indices among them.
        """
        index = np.arange(self.n_validation)
        return lambda probs: score(probs[index], index)

    def make_slices(self, score: Callable[[Array, Array], float]) -> Callable[[Array], dict[str, float]]:
        """By slice: ``score`` (as in :meth:`make_quality`) on the newest rows, and the accuracy on new actions."""

        def slice_scores(probs: Array) -> dict[str, float]:
            return {
                name: score(probs[index], index)
                if name == _NEWEST
                else float((probs[index].argmax(axis=1) == self.labels[index]).mean())
                for name, index in self.slice_index.items()
            }

        return slice_scores


def find_new_actions(
    times: Array, labels: Array, since: np.datetime64 | None, unknown: Collection[int] = ()
) -> list[int]:
    """Indices of the actions that are new in the data.

    :param times: of the rows that a student may learn from, datetime64 ``[n]``.
    :param labels: their action indices, −1 if unknown.
    :param since: the end of the champion's training window, as ``times``: an action is new if at most a tenth of its
        rows are older, which may be wrongly labelled. If None, or if hardly any row is older, an action is new if all
        its rows, at least 10, are in the newer half of the time.
    :param unknown: actions that the champion does not have.
    """
    new_actions: list[int] = []
    if not len(times):
        return new_actions
    use_newer_half = since is None or float((times < since).mean()) < _MIN_OLDER_SHARE
    boundary = times.min() + (times.max() - times.min()) / 2 if use_newer_half else since
    for action in np.unique(labels[labels >= 0]):
        action_times = times[labels == action]
        is_new = (
            len(action_times) >= _MIN_SLICE_ROWS // 2 and bool((action_times >= boundary).all())
            if use_newer_half
            else np.mean(action_times < boundary) <= _MAX_STRAY_SHARE
        )
        if is_new or int(action) in unknown:
            new_actions.append(int(action))
    return new_actions


def select_validation_rows(
    times: Array,
    labels: Array,
    training_times: Array,
    training_labels: Array,
    new_actions: Collection[int],
    actions: Sequence[str],
) -> ValidationRows:
    """The rows that candidates are measured on.

    Example:
        >>> times = np.datetime64("2024-01-01") + np.arange(200)
        >>> labels, training_labels = np.arange(200) % 2, np.repeat([0, 1, 2], [100, 70, 30])
        >>> rows = select_validation_rows(times, labels, times, training_labels, [2], ("wait", "go", "refund"))
        >>> {name: len(index) for name, index in rows.slice_index.items()}
        {'new actions': 30, 'the newest rows': 100}

    :param times: of the validation rows, ``[v]``, with their action indices ``labels``.
    :param training_times: of the training rows, ``[m]``, with their action indices ``training_labels``, −1 if unknown.
    :param new_actions: indices of the new actions.
    :param actions: names of all actions.
    """
    training_index: list[int] = []
    for action in new_actions:
        n_missing = _MIN_SLICE_ROWS - int((labels == action).sum())
        if n_missing > 0:
            index = np.flatnonzero(training_labels == action)
            training_index += index[np.argsort(training_times[index], kind="stable")][-_MAX_ADDED_ROWS:].tolist()
    all_labels = np.concatenate([labels, training_labels[training_index]]).astype(np.int64)
    slice_index: dict[str, Array] = {}
    new_action_index = np.flatnonzero(np.isin(all_labels, list(new_actions)))
    if len(new_action_index):
        slice_index["new actions"] = new_action_index
        if len(new_actions) > 1:
            by_action = {action: np.flatnonzero(all_labels == action) for action in new_actions}
            slice_index |= {
                f"the new action {actions[action]}": index
                for action, index in by_action.items()
                if len(index) >= _MIN_SLICE_ROWS
            }
    count = max(_MIN_NEWEST_ROWS, round(_NEWEST_SHARE * len(labels)))
    if count < len(labels):
        slice_index[_NEWEST] = np.argsort(times, kind="stable")[-count:]
    return ValidationRows(len(labels), np.array(training_index, dtype=np.int64), all_labels, slice_index)
