"""Ask the teachers about synthetic rows, which nobody has observed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stillhouse.teachers import labeling
from stillhouse.teachers.cross_fitting import CrossFit, exclude_block
from stillhouse.teachers.ensemble import Ensemble
from stillhouse.teachers.labeling import LabelingBudget

__all__ = ["ask_about_synthetic"]


def ask_about_synthetic(
    teacher: Ensemble,
    synthetic_rows: pd.DataFrame,
    budget: LabelingBudget,
    rows: pd.DataFrame | None = None,
    cross_fits: CrossFit | None = None,
) -> None:
    """Ask about synthetic rows and store the answers.

    A synthetic row resembles the observed rows of one time block. A teacher that was fitted on the labels of that
    block would leak them into its answer, so a fitted teacher answers by its fit without that block.

    :param synthetic_rows: as :mod:`stillhouse.distill.augment` makes them, with the time block in ``block``.
    :param rows: the labelled rows that ``teacher`` was fitted on; None: only synthetic rows outside its fit window are
        asked about.
    :param cross_fits: cross-fits of ``rows`` to reuse; None: the teachers are fitted here.
    """
    synthetic_rows = synthetic_rows[np.isnan(budget.base.answers.probs(synthetic_rows, teacher.version)[:, 0])]
    if budget.stop_reason or synthetic_rows.empty:
        return
    if rows is None or teacher.fit_window is None:
        labeling.ask(teacher, synthetic_rows[~teacher.in_fit_window(synthetic_rows)], budget)
        return
    cross_fits = CrossFit(teacher.config, rows) if cross_fits is None else cross_fits
    for block in np.unique(synthetic_rows["block"]):
        if not budget.stop_reason:
            unbiased = exclude_block(teacher, cross_fits, int(block))
            labeling.ask(unbiased, synthetic_rows[synthetic_rows["block"] == block], budget)
