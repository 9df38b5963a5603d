"""A scorecard as MLflow metrics and tags."""

from __future__ import annotations

import re
from collections.abc import Mapping

from stillhouse.records import Quality, Scorecard, short_id

__all__ = ["metric_name", "scorecard_metrics", "scorecard_tags", "version_tags"]


_OWN_WINDOWS = frozenset({"train", "validation", "test", "past"})
"""Windows that every refresh chooses anew."""


def scorecard_metrics(scorecard: Scorecard) -> dict[str, float]:
    """All figures by names that MLflow accepts, such as ``own_test/auc``, ``own_slice/origin:EWR/auc``, ``p95_ms``.

    ``own_test/quality`` is the value of the measure that the agent file names. Figures of a window that is the
    model's own begin with ``own_``: those of two versions are of different rows and must not be compared. The windows
    of ``promotion.remember`` are the same for every version and keep their names.

    Characters that MLflow refuses in the name of a slice become ``_``; a digest of the slice's name follows.
    """
    figures: dict[str, float | None] = {"bytes": scorecard.bytes, "agreement": scorecard.agreement}
    for window, quality in scorecard.quality.items():
        figures |= _quality_metrics(f"own_{window}" if window in _OWN_WINDOWS else window, quality)
    for name, quality in scorecard.slices.items():
        figures |= _quality_metrics(f"own_slice/{metric_name(name)}", quality)
    if scorecard.latency:
        figures |= {
            "latency/p50_ms": scorecard.latency.p50_ms,
            "latency/p95_ms": scorecard.latency.p95_ms,
            "p95_ms": scorecard.latency.p95_ms,
        }
    return {re.sub(r"[^\w.\- :/]", "_", name): value for name, value in figures.items() if value is not None}


def scorecard_tags(scorecard: Scorecard) -> dict[str, object]:
    """The figures of a model as tags for programs; None where the scorecard has no value."""
    test = scorecard.quality.get("test")
    return {
        "auc": None if test is None or test.auc is None else round(test.auc, 4),
        "accuracy": None if test is None else round(test.accuracy, 4),
        "measure": None if test is None else test.measure,
        "quality": None if test is None else round(test.score, 4),
        "bytes": scorecard.bytes,
        "p50_ms": round(scorecard.latency.p50_ms, 4) if scorecard.latency else None,
        "p95_ms": round(scorecard.latency.p95_ms, 4) if scorecard.latency else None,
    }


def version_tags(tags: Mapping[str, str], **others: object) -> dict[str, str]:
    """What a person reads on the page of a version: its quality, bytes, latency and what became of it.

    >>> version_tags({"measure": "auc", "quality": "0.71", "bytes": "900", "role": "variant"}, result="promoted")
    {'quality': 'auc 0.71 on its own test window', 'bytes': '900', 'result': 'promoted'}

    :param tags: of its logged model, which holds what programs need.
    :param others: tags to add or to replace.
    """
    shown = {name: tags[name] for name in ("bytes", "p95_ms") if name in tags}
    if "quality" in tags:
        shown = {"quality": f"{tags.get('measure', 'quality')} {tags['quality']} on its own test window"} | shown
    return shown | {name: str(value) for name, value in others.items()}


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
    if quality.measure == "agreement":  # the same figure, of an agent without outcomes
        figures["agreement"] = figures.pop("accuracy")
    return {f"{prefix}/{name}": value for name, value in figures.items()}
