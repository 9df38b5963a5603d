"""Cross-fitting: a teacher that learns labels each time block by a fit on the other blocks."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import AgentConfig, Leaf, fit_defaults
from stillhouse.parts import Teacher
from stillhouse.teachers.answers import Array, check_probs, wrap_predict
from stillhouse.teachers.ensemble import Ensemble, fit_members
from stillhouse.teachers.user_code import call_user_code

__all__ = ["CrossFit", "assign_time_blocks", "cross_fit", "exclude_block"]

Progress = Callable[[str], None]


class CrossFit:
    """The teachers that learn, fitted once for each time block on the labelled rows of all other blocks.

    The rows, ordered by time, are cut into ``distillation.folds`` contiguous blocks. The teachers that answer about a
    block have not seen its labels (cross-fitting; Chernozhukov et al. 2018, "Double/debiased machine learning", §3).
    The blocks are contiguous because rows near in time are dependent: a random split would leak labels. A block's
    teachers are fitted on first use and kept, so that observed and synthetic rows share the fits.

    :param rows: with ``outcome``; −1 where it is unknown: nothing is fitted on those rows.
    """

    def __init__(self, config: AgentConfig, rows: pd.DataFrame) -> None:
        self.config = config
        self.folds = fit_defaults(config.distillation, len(rows)).folds
        self.time_blocks = assign_time_blocks(config, rows)
        self._rows = rows
        self._fitted: dict[int, list[tuple[Leaf, Teacher]]] = {}

    def fit_without(self, block: int) -> list[tuple[Leaf, Teacher]]:
        """The teachers that have not seen the labels of this block."""
        if block not in self._fitted:
            self._fitted[block] = fit_members(self.config, self._rows[self.time_blocks != block])
        return self._fitted[block]


def cross_fit(
    config: AgentConfig,
    rows: pd.DataFrame,
    progress: Progress = lambda text: None,
    mask: np.ndarray[Any, np.dtype[np.bool_]] | None = None,
    cross_fits: CrossFit | None = None,
) -> dict[str, Array]:
    """Probabilities of the teachers that learn for ``rows``, each row by a fit that has not seen its label.

    :param rows: labelled, with ``outcome``.
    :param progress: called with a line of text after each block.
    :param mask: bool ``[n]``, the rows to answer; None: all.
    :param cross_fits: of these very ``rows``, to reuse; None: the teachers are fitted here.
    :returns: by the teacher's name, float64 ``[n, K]``, NaN outside ``mask``.
    :raises PartError: if a teacher fails, takes too long, or gives no probabilities.
    """
    mask = np.ones(len(rows), dtype=bool) if mask is None else mask
    cross_fits = CrossFit(config, rows) if cross_fits is None else cross_fits
    probs: dict[str, Array] = {}
    for block in range(cross_fits.folds):
        indices = np.flatnonzero((cross_fits.time_blocks == block) & mask)
        if len(indices):
            for leaf, teacher in cross_fits.fit_without(block):
                teacher_probs = probs.setdefault(leaf.name, np.full((len(rows), len(config.actions)), np.nan))
                what = f"teacher {leaf.name!r} on {len(indices)} rows"
                answer = call_user_code(what, leaf.teacher.call_timeout, teacher.predict_proba, rows.iloc[indices])
                teacher_probs[indices] = check_probs(leaf.name, answer, len(indices), config.actions)
        progress(f"teacher, block {block + 1} of {cross_fits.folds}")
    return probs


def assign_time_blocks(config: AgentConfig, rows: pd.DataFrame) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The time block of each row, int ``[n]`` in 0…folds−1: contiguous in time and of equal size up to one row.

    >>> from stillhouse.config import load
    >>> rows = pd.DataFrame({"observed_at": pd.date_range("2024-01-01", periods=7, freq="h")})
    >>> assign_time_blocks(load("flights"), rows)  # distillation.folds: 3
    array([0, 0, 0, 1, 1, 2, 2])
    """
    order = rows["observed_at"].array.argsort(kind="stable")
    blocks = np.empty(len(rows), dtype=np.int64)
    for block, indices in enumerate(np.array_split(order, fit_defaults(config.distillation, len(rows)).folds)):
        blocks[indices] = block
    return blocks


def exclude_block(teacher: Ensemble, cross_fits: CrossFit, block: int) -> Ensemble:
    """The same teachers, but those that learn are fitted without one block.

    Its answers are stored under the version of ``teacher``, as all cross-fitted answers are.
    """
    actions = teacher.config.actions
    answers = {
        leaf.name: wrap_predict(leaf.name, actions, fitted.predict_proba, timeout=leaf.teacher.call_timeout)
        for leaf, fitted in cross_fits.fit_without(block)
    }
    members = [
        replace(member, answer=answers[member.name]) if member.name in answers else member for member in teacher.members
    ]
    unbiased = copy(teacher)
    unbiased.members, unbiased.fit_window = tuple(members), None
    return unbiased
