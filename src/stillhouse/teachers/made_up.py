"""Asking about rows that were made up, which nobody has observed."""

from __future__ import annotations

import numpy as np
import pandas as pd

from stillhouse.teachers import asking
from stillhouse.teachers.asking import Account
from stillhouse.teachers.ensemble import CrossFit, Ensemble, without_block

__all__ = ["ask_made_up"]


def ask_made_up(
    teacher: Ensemble,
    made: pd.DataFrame,
    account: Account,
    rows: pd.DataFrame | None = None,
    cross: CrossFit | None = None,
) -> None:
    """Ask about rows that were made up within the blocks of the cross-fitting, and keep the answers.

    What learns answers by its fit outside of the block: whoever has seen the outcome of a row knows too much about
    those that were made of it.

    :param made: as :func:`stillhouse.distill.augment.make_synthetic_rows` gives them.
    :param rows: labelled, that ``teacher`` was fitted on; None: it is asked about what was made of other rows.
    :param cross: of ``rows``, whose fits are used again; None: each block is fitted here.
    """
    made = made[np.isnan(account.base.answers.probs(made, teacher.version)[:, 0])]
    if account.stopped or made.empty:
        return
    if rows is None or teacher.fitted is None:
        asking.ask(teacher, made[~teacher.seen(made)], account)
        return
    cross = CrossFit(teacher.config, rows) if cross is None else cross
    for block in np.unique(made["block"]):
        if not account.stopped:
            asking.ask(without_block(teacher, cross, int(block)), made[made["block"] == block], account)
