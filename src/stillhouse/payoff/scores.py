"""The scores of one model on the rows of one block of time, in the form that the pool stores."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import numpy as np

from stillhouse.config import AgentConfig
from stillhouse.quality import clipped_log_loss
from stillhouse.records import BlockScore, short_id
from stillhouse.stats import half_brier, replace_non_finite

__all__ = ["score_block", "scoring_rule"]

Array = np.ndarray[Any, Any]


def score_block(
    member: str,
    probs: Array,
    labels: Array,
    ids: Sequence[str],
    start: datetime,
    end: datetime,
    *,
    complete: bool,
    clip: float,
    own: float | None = None,
) -> BlockScore:
    """Score the probabilities of one member on the labelled rows of the block ``[start, end)``.

    All members must be scored on the same rows in the same order (by time, then id): the key of the rows is a hash of
    their ids in this order. A label of K or more is an action that the member does not know, and its probability counts
    as ``clip``. A row on which the member answers NaN or infinity counts as a certain wrong answer.

    >>> from datetime import UTC, timedelta
    >>> start, day = datetime(2026, 1, 5, tzinfo=UTC), timedelta(days=1)
    >>> probs, labels = np.array([[0.5, 0.5], [1.0, 0.0]]), np.array([1, 0])
    >>> score = score_block("toy@1", probs, labels, ["a", "b"], start, start + day, complete=True, clip=0.01)
    >>> round(score.log_loss, 4), score.half_brier, score.accuracy, score.probs
    (0.3466, 0.125, 0.5, (0.5, 0.0))

    :param member: name@version.
    :param probs: float ``[n, K]``, n ≥ 1.
    :param labels: action indices ``[n]`` ≥ 0.
    :param ids: ids of the observations ``[n]``.
    :param complete: whether the outcomes of the block are complete by ``outcomes.delay``.
    :param clip: ε, smallest probability of an outcome that the log loss counts; so it lies in 0…ln(1/ε).
    :param own: mean of the user's own score on these rows, or of the episodes that belong to them, oriented so that
        more is better; None: there is none.
    :raises ValueError: if there are no rows, or the numbers of rows differ.
    """
    probs, labels = np.asarray(probs, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    if not len(labels) or not len(labels) == len(probs) == len(ids):
        raise ValueError(
            f"{member}: a block needs rows, and as many probabilities ({len(probs)}) and ids ({len(ids)}) as labels "
            f"({len(labels)})"
        )
    probs = replace_non_finite(probs, labels)
    binary = probs.shape[1] == 2 and int(labels.max()) < 2
    return BlockScore(
        member=member,
        start=start,
        end=end,
        complete=complete,
        rows=len(labels),
        rows_key=hashlib.sha256("\x1f".join(ids).encode()).hexdigest()[:16],
        log_loss=float(clipped_log_loss(probs, labels, clip).mean()),
        half_brier=float(half_brier(probs, labels).mean()),
        accuracy=float((probs.argmax(axis=1) == labels).mean()),
        score=own,
        probs=tuple(probs[:, 1].astype(np.float32).tolist()) if binary else (),
        labels=tuple(labels.tolist()) if binary else (),
    )


def scoring_rule(settings: AgentConfig) -> str:
    """Key of everything but rows and model that scores depend on; scores by another rule are not compared.

    Length and delay of the blocks, the actions, and the measure.
    """
    own, quality = settings.quality.own, settings.quality
    return short_id(
        "scores",
        settings.watch.block,
        settings.block_delay,
        quality.clip,
        own.model_dump_json(exclude={"on", "episodes"}) if own else "",
        *((own.on, own.episodes) if own and own.on == "episodes" else ()),
        *settings.actions,
    )
