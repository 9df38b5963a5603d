"""Defaults of the section ``distillation`` that follow the rows there are."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import numpy as np
from pydantic import Field

from stillhouse.config.base import format_duration
from stillhouse.config.distillation import Distillation

__all__ = ["FittedDistillation", "fit_defaults", "mask_validation_blocks"]

Seconds = np.ndarray[Any, np.dtype[np.int64]]
Mask = np.ndarray[Any, np.dtype[np.bool_]]

_DAY = timedelta(days=1)
_STEPS_PER_EPOCH = 32  # about, as long as the batch is within its limits
_BATCH_SIZES = (16, 1024)
_MIN_STEPS = 600  # of a training
_EPOCHS = (8, 60)
_MANY_ROWS = 16_000
_LEARNING_RATE = 4e-3
_OUTCOME_WEIGHTS = (0.6, 0.3)  # few rows: a teacher fitted on them errs more, and their outcomes say more; many rows
_FOLDS = (4, 8)  # the fewer the rows, the more a teacher loses by each that it is not fitted on
_MIN_BLOCKS = 8  # validation blocks, so that each half has the four clusters that the controller needs
_MAX_SHARE = 0.35  # of the rows
_VALIDATION_BLOCKS: tuple[tuple[int, timedelta], ...] = (
    (10, _DAY),
    (5, _DAY),
    (5, timedelta(hours=6)),
    (5, timedelta(hours=1)),
    (5, timedelta(minutes=10)),
    (5, timedelta(minutes=1)),
    (5, timedelta(seconds=1)),
)
"""Every how many blocks of which length: the first that gives enough validation blocks is taken.

5 divides neither the blocks of a day nor those of a week, so all hours and weekdays have their turn.
"""


class FittedDistillation(Distillation):
    """The section ``distillation`` without a null where the number of rows decides; see :func:`fit_defaults`."""

    epochs: int = Field(ge=1, le=1000)
    batch_size: int = Field(ge=8)
    learning_rate: float = Field(gt=0, lt=1)
    outcome_weight: float = Field(ge=0, le=1)
    validation_every: int = Field(ge=2)
    validation_block: timedelta
    folds: int = Field(ge=2, le=20)

    @property
    def validation_text(self) -> str:
        """Which blocks are for validation: ``every 10th day``, or ``every 5th block of 6h``."""
        block = "day" if self.validation_block == _DAY else f"block of {format_duration(self.validation_block)}"
        return f"every {_ordinal(self.validation_every)} {block}"


def fit_defaults(
    settings: Distillation, rows: int, span: timedelta | None = None, times: Seconds | None = None
) -> FittedDistillation:
    """Choose what ``settings`` leave open; what they state stays.

    The values depend on the arguments alone, so the same rows get the same values. They were chosen on data sets of 800
    to 5,000 rows (``docs/decisions/0931-defaults-by-rows.md``); from some 77,000 rows on nothing changes any more.

    :param rows: number of rows to train and validate on.
    :param span: time from the first to the last row; None: the rows have no order in time.
    :param times: seconds since 1970 of each row, int64 ``[n]``: validation blocks are counted on them. None: they are
        estimated from ``span``.

    >>> from stillhouse.config import Distillation
    >>> fitted = fit_defaults(Distillation(), 2000, timedelta(weeks=4))
    >>> fitted.batch_size, fitted.epochs, fitted.folds, fitted.validation_every, fitted.validation_block
    (64, 20, 8, 5, datetime.timedelta(seconds=21600))
    >>> fitted = fit_defaults(Distillation(epochs=7), 64_000, timedelta(weeks=26))
    >>> fitted.batch_size, fitted.epochs, fitted.folds, fitted.validation_every, fitted.validation_block
    (1024, 7, 4, 10, datetime.timedelta(days=1))
    """
    if isinstance(settings, FittedDistillation):
        return settings
    batch_size = settings.batch_size or _fit_batch_size(rows)
    every, block = _fit_validation(settings, span, times)
    return FittedDistillation.model_validate(
        dict(settings)
        | {
            "batch_size": batch_size,
            "epochs": settings.epochs or _fit_epochs(rows, batch_size),
            "learning_rate": settings.learning_rate or _LEARNING_RATE,
            "outcome_weight": _fit_outcome_weight(rows) if settings.outcome_weight is None else settings.outcome_weight,
            "folds": settings.folds or _within(_FOLDS, _MANY_ROWS // max(1, rows)),
            "validation_every": every,
            "validation_block": block,
        }
    )


def mask_validation_blocks(times: Seconds, every: int, block: timedelta) -> Mask:
    """Which rows are for validation, bool ``[n]``: those of every ``every``-th block since 1970 (UTC).

    :param times: seconds since 1970, int64 ``[n]``.
    :param block: length of a block, at least a second.
    """
    mask: Mask = _number_blocks(times, block) % every == 0
    return mask


# --------------------------------------------------------------------------- inside


def _fit_batch_size(rows: int) -> int:
    """The power of two with about ``_STEPS_PER_EPOCH`` steps in an epoch."""
    return int(_within(_BATCH_SIZES, 2 ** max(0, round(np.log2(max(1, rows) / _STEPS_PER_EPOCH)))))


def _fit_epochs(rows: int, batch_size: int) -> int:
    return _within(_EPOCHS, -(-_MIN_STEPS * batch_size // max(1, rows)))


def _fit_outcome_weight(rows: int) -> float:
    return _OUTCOME_WEIGHTS[rows >= _MANY_ROWS]


def _fit_validation(settings: Distillation, span: timedelta | None, times: Seconds | None) -> tuple[int, timedelta]:
    """Every how many blocks of which length is a validation block."""
    candidates = list(_list_candidates(settings))
    if len(candidates) == 1 or (span is None and times is None):
        return candidates[0]
    counts = [
        _count_blocks(times, *candidate) if times is not None else _estimate_blocks(span or timedelta(0), *candidate)
        for candidate in candidates
    ]
    enough = (candidate for candidate, count in zip(candidates, counts, strict=True) if count >= _MIN_BLOCKS)
    return next(enough, candidates[int(np.argmax(counts))])


def _list_candidates(settings: Distillation) -> Iterator[tuple[int, timedelta]]:
    """The pairs that may be chosen: all, or those that keep what is set. A stated ``validation_every`` means days."""
    every, block = settings.validation_every, settings.validation_block
    if every is not None:
        yield every, block or _DAY
        return
    for usual_every, usual_block in _VALIDATION_BLOCKS:
        if block is None or usual_block == _DAY:
            yield usual_every, block or usual_block


def _count_blocks(times: Seconds, every: int, block: timedelta) -> int:
    """Validation blocks with rows; 0 if most of the rows would be validation rows."""
    mask = mask_validation_blocks(times, every, block)
    return 0 if mask.sum() > _MAX_SHARE * len(times) else len(np.unique(_number_blocks(times[mask], block)))


def _estimate_blocks(span: timedelta, every: int, block: timedelta) -> int:
    return int(span / (every * block))


def _number_blocks(times: Seconds, block: timedelta) -> Seconds:
    numbers: Seconds = times // max(1, int(block.total_seconds()))
    return numbers


def _ordinal(number: int) -> str:
    suffix = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"


def _within(limits: tuple[int, int], value: int) -> int:
    return min(max(value, limits[0]), limits[1])
