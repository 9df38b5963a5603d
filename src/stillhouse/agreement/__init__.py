"""A promised agreement with the teacher: thresholds, the monitor of a permanent audit, novelty, and new answers.

>>> import numpy as np
>>> from stillhouse.agreement import Promise, PromiseKeeper
>>> generator = np.random.default_rng(0)
>>> confidences = generator.random(2000)
>>> agrees = generator.random(2000) < np.minimum(1, confidences + 0.3)  # always, at confidences of .7 and above
>>> keeper = PromiseKeeper(Promise(agreement=0.98, confidence=0.95)).fit(confidences, agrees)
>>> keeper.may_answer(0.9), keeper.may_answer(0.4)
(True, False)
"""

from stillhouse.agreement.keeper import PromiseKeeper
from stillhouse.agreement.novelty import NoveltyGuard
from stillhouse.agreement.thresholds import lower_bound, rows_needed
from stillhouse.records.agreement import Promise, PromiseState

__all__ = ["NoveltyGuard", "Promise", "PromiseKeeper", "PromiseState", "lower_bound", "rows_needed"]
