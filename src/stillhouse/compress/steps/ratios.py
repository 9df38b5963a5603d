"""The ratio of a step for one layer, for the steps that have a ratio by layer."""

from __future__ import annotations

from stillhouse.config import LowRank, PruneHeads, PruneUnits

__all__ = ["ratio_for"]


def ratio_for(step: PruneUnits | PruneHeads | LowRank, layer: str) -> float:
    """The share that the step removes from this layer, in 0…1.

    Example:
        >>> ratio_for(LowRank(method="low_rank", ratio=0.5, ratios={"layers.0": 0.25}), "layers.0")
        0.25
    """
    return float(step.ratios.get(layer, step.ratio))
