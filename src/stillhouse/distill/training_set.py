"""The rows that a student is trained or validated on."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.distill.losses import soften
from stillhouse.errors import DataError

__all__ = ["TrainingSet", "effective_label_weight"]

_COLUMNS = ("x", "teacher_probs", "labels")  # tensors with one entry per row that every training set has


class TrainingSet:
    """Encoded rows in order of time, with teacher probabilities, labels, or both.

    :param x: float32 ``[n, F + C + ΣL]``, see :func:`stillhouse.variant.encode`.
    :param teacher_probs: probabilities ``[n, K]``; a row of NaN: the teacher has not been asked.
    :param labels: action indices ``[n]``; −1: not known (yet).
    :param numbers: F, the number of numeric columns, which come first; None: all but the tokens.
    :param features: hidden features of the teacher, ``[n, D]``; None where it has none.
    :param cluster_ids: integers ``[n]``; rows of one cluster (a day, say) have correlated errors. None: all rows are
        independent.
    :param tokens: ΣL, the number of token ids, which come last.
    :ivar synthetic_rows: how many of the rows, the last ones, are synthetic.
    :raises DataError: if a row has neither teacher probabilities nor a label, NaN for only some of the actions, or an
        action index out of range.

    >>> rows = TrainingSet(np.zeros((3, 2)), np.array([[0.9, 0.1], [0.2, 0.8], [np.nan, np.nan]]), np.array([0, -1, 1]))
    >>> rows.has_teacher_probs.tolist(), rows.has_label.tolist()
    ([True, True, False], [True, False, True])
    """

    def __init__(
        self,
        x: np.ndarray[Any, Any],
        teacher_probs: np.ndarray[Any, Any],
        labels: np.ndarray[Any, Any],
        numbers: int | None = None,
        features: np.ndarray[Any, Any] | None = None,
        cluster_ids: np.ndarray[Any, Any] | None = None,
        tokens: int = 0,
    ) -> None:
        self.numbers = x.shape[1] - tokens if numbers is None else numbers
        self.tokens = tokens
        self.synthetic_rows = 0
        self.x = torch.from_numpy(np.array(x, dtype=np.float32))
        self.teacher_probs = torch.from_numpy(np.array(teacher_probs, dtype=np.float32))
        self.labels = torch.from_numpy(np.array(labels, dtype=np.int64))
        self.features = None if features is None else torch.from_numpy(np.array(features, dtype=np.float32))
        self.cluster_ids = None if cluster_ids is None else torch.from_numpy(np.array(cluster_ids, dtype=np.int64))
        self._check()

    def __len__(self) -> int:
        return len(self.x)

    @property
    def has_teacher_probs(self) -> Tensor:
        """Which rows have teacher probabilities, bool ``[n]``."""
        return ~self.teacher_probs[:, 0].isnan()

    @property
    def has_label(self) -> Tensor:
        """Which rows have a label, bool ``[n]``."""
        return self.labels >= 0

    def _check(self) -> None:
        rows, actions = self.teacher_probs.shape
        if len(self.x) != rows or len(self.labels) != rows:
            raise DataError(
                f"a training set has {len(self.x)} rows, {rows} rows of teacher probabilities and {len(self.labels)} "
                f"labels"
            )
        missing = self.teacher_probs.isnan()
        if partial := int((missing.any(dim=1) & ~missing.all(dim=1)).sum()):
            raise DataError(
                f"{partial} of {rows} rows of a training set have teacher probabilities for some actions only: a row "
                f"must be NaN for all actions (not asked) or for none"
            )
        if empty := int((~self.has_teacher_probs & ~self.has_label).sum()):
            raise DataError(
                f"{empty} of {rows} rows of a training set have neither teacher probabilities nor a label, so nothing "
                f"can be learned from them: leave them out"
            )
        if rows and not -1 <= int(self.labels.min()) <= int(self.labels.max()) < actions:
            raise DataError(f"labels of a training set must lie in 0 … {actions - 1}, or be −1 where they are unknown")

    def take(self, index: Tensor) -> TrainingSet:
        """The rows at ``index``, int64 ``[m]``; the result does not know which of them are synthetic."""
        taken = copy(self)
        taken.synthetic_rows = 0
        for name in (*_COLUMNS, "features", "cluster_ids"):
            values = getattr(self, name)
            setattr(taken, name, None if values is None else values[index])
        return taken

    def select_labelled(self) -> TrainingSet:
        """The rows with a label."""
        return self.take(self.has_label.nonzero().squeeze(1))

    def select_with_both(self) -> TrainingSet:
        """The rows with both teacher probabilities and a label."""
        return self.take((self.has_teacher_probs & self.has_label).nonzero().squeeze(1))

    def drop_synthetic(self) -> TrainingSet:
        """The rows that are not synthetic."""
        return self.take(torch.arange(len(self) - self.synthetic_rows))

    def append(self, synthetic: TrainingSet) -> TrainingSet:
        """These rows followed by ``synthetic`` ones, with features where both have them; without cluster ids."""
        joined = self._join(self, synthetic)
        joined.synthetic_rows = self.synthetic_rows + len(synthetic)
        return joined

    def extend(self, newer: TrainingSet) -> TrainingSet:
        """``newer`` observed rows followed by these, so that synthetic rows stay last; otherwise as :meth:`append`.

        >>> one, two = (TrainingSet(np.zeros((n, 2)), np.full((n, 2), 0.5), np.zeros(n)) for n in (1, 2))
        >>> len(one.extend(two)), one.append(two).extend(two).synthetic_rows
        (3, 2)
        """
        joined = self._join(newer, self)
        joined.synthetic_rows = self.synthetic_rows
        return joined

    @staticmethod
    def _join(first: TrainingSet, second: TrainingSet) -> TrainingSet:
        joined = copy(first)
        for name in _COLUMNS:
            setattr(joined, name, torch.cat([getattr(first, name), getattr(second, name)]))
        have_features = first.features is not None and second.features is not None
        joined.features = torch.cat([first.features, second.features]) if have_features else None  # type: ignore[list-item]
        joined.cluster_ids = None
        return joined

    def soften(self, temperature: float) -> TrainingSet:
        """The same rows with their teacher probabilities at ``temperature``."""
        softened = copy(self)
        softened.teacher_probs = soften(self.teacher_probs, temperature)
        return softened

    def to(self, device: torch.device) -> TrainingSet:
        """The same rows on another device."""
        moved = copy(self)
        for name in (*_COLUMNS, "features", "cluster_ids"):
            values = getattr(self, name)
            setattr(moved, name, None if values is None else values.to(device))
        return moved


def effective_label_weight(rows: TrainingSet, weight: float) -> float:
    """The weight of the mean label loss, 0 … 1, if each label weighs ``weight`` and each teacher answer the rest.

    It is ``weight`` where every row has both, and less the fewer rows have a label: at full weight, few labels would be
    overfitted.

    >>> rows = TrainingSet(np.zeros((4, 1)), np.full((4, 2), 0.5), np.array([0, -1, -1, -1]))
    >>> round(effective_label_weight(rows, 0.5), 2)
    0.2
    """
    labels, answers = weight * int(rows.has_label.sum()), (1 - weight) * int(rows.has_teacher_probs.sum())
    return labels / (labels + answers) if labels + answers else weight
