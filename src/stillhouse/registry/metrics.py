"""A scorecard as MLflow metrics and tags."""

from __future__ import annotations

import re

from stillhouse.records import Quality, Scorecard, short_id

__all__ = ["metric_name", "scorecard_metrics", "scorecard_tags"]


def scorecard_metrics(scorecard: Scorecard) -> dict[str, float]:
    """All figures by names that MLflow accepts, such as ``test/auc``, ``slice/origin:EWR/auc``, ``latency/p95_ms``.

    ``test/quality`` is the value of the measure that the agent file names.

    Characters that MLflow refuses in the name of a slice become ``_``; a digest of the slice's name follows.
    """
    figures: dict[str, float | None] = {"bytes": scorecard.bytes, "agreement": scorecard.agreement}
    for window, quality in scorecard.quality.items():
        figures |= _quality_metrics(window, quality)
    for name, quality in scorecard.slices.items():
        figures |= _quality_metrics(f"slice/{metric_name(name)}", quality)
    if scorecard.latency:
        figures |= {"latency/p50_ms": scorecard.latency.p50_ms, "latency/p95_ms": scorecard.latency.p95_ms}
    return {re.sub(r"[^\w.\- :/]", "_", name): value for name, value in figures.items() if value is not None}


def scorecard_tags(scorecard: Scorecard) -> dict[str, object]:
    """The figures that a table of versions shows; None where the scorecard has no value."""
    test = scorecard.quality.get("test")
    return {
        "auc": None if test is None or test.auc is None else round(test.auc, 4),
        "accuracy": None if test is None else round(test.accuracy, 4),
        "measure": None if test is None else test.measure,
        "quality": None if test is None else round(test.score, 4),
        "bytes": scorecard.bytes,
        "p50_ms": round(scorecard.latency.p50_ms, 4) if scorecard.latency else None,
    }


def metric_name(name: str) -> str:
    """``name`` as a part of a metric's name: at most 100 characters, and different for different names.

    >>> metric_name("origin=EWR")
    'origin:EWR'
    >>> metric_name("origin=São Paulo (GRU)").startswith("origin:São Paulo _GRU_-")
    True
    """
    plain = name.replace("=", ":", 1)
    safe = re.sub(r"[^\w.\- :]", "_", plain)[:80]
    return safe if safe == plain else f"{safe}-{short_id(name)}"


def _quality_metrics(prefix: str, quality: Quality) -> dict[str, float | None]:
    figures = quality.model_dump(exclude={"actions", "named"}) | {"quality": quality.score}
    return {f"{prefix}/{name}": value for name, value in figures.items()}
