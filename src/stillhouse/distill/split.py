"""Which rows are kept for validation, and what each half of them is for."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.config import Distillation, fit_defaults
from stillhouse.config.defaults import mask_validation_blocks

__all__ = ["mask_validation_rows", "seconds_since_1970", "split_validation"]

_SECONDS_PER_DAY = 86_400
_MIN_DAYS = 8  # with fewer, clusters are shorter than a day


def mask_validation_rows(times: pd.Series, settings: Distillation) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows are for validation, bool ``[n]``: those of every ``validation_every``-th block (UTC) since 1970.

    The choice depends on the time alone, so with the same settings a row stays on its side in every window.

    :param settings: what is null in them is chosen by the number and times of these rows.

    >>> from stillhouse.config import Distillation
    >>> times = pd.Series(pd.date_range("2024-01-01", periods=4, tz="UTC"))
    >>> mask_validation_rows(times, Distillation(validation_every=2)).tolist()
    [False, True, False, True]
    """
    seconds = seconds_since_1970(times)
    fitted = fit_defaults(settings, len(times), times=seconds)
    return mask_validation_blocks(seconds, fitted.validation_every, fitted.validation_block)


def split_validation(
    times: pd.Series, cluster: timedelta
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, np.dtype[np.bool_]]]:
    """Cluster ids of validation rows, and which rows are for the controller: the newer half of the clusters.

    The older half is for comparing students. A cluster is a day (UTC), or, with fewer than eight days, a time block as
    long as ``cluster``.

    :param times: when the validation rows were observed.
    :return: cluster ids int64 ``[n]``, numbered from 0 in order of time; bool ``[n]``.

    >>> split_validation(pd.Series(pd.date_range("2024-01-01", periods=4, freq="h", tz="UTC")), timedelta(hours=2))
    (array([0, 0, 1, 1]), array([False, False,  True,  True]))
    """
    seconds = seconds_since_1970(times)
    blocks = seconds // _SECONDS_PER_DAY
    if len(np.unique(blocks)) < _MIN_DAYS:
        blocks = seconds // max(1, int(cluster.total_seconds()))
    distinct, cluster_ids = np.unique(blocks, return_inverse=True)
    return cluster_ids.astype(np.int64), cluster_ids >= len(distinct) // 2


def seconds_since_1970(times: pd.Series) -> np.ndarray[Any, Any]:
    """Seconds since 1970, int64 ``[n]``."""
    seconds: np.ndarray[Any, Any] = times.dt.tz_convert("UTC").dt.as_unit("s").astype("int64").to_numpy()
    return seconds
