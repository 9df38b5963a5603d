"""The Pareto front of the candidates, its hypervolume, and the candidate that is chosen from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from stillhouse.records import CompressionCandidate, SizeLimits

__all__ = ["choose_candidate", "dominates", "hypervolume", "normalized_scores", "pareto_front"]

# Ratios to the reference's bytes or latency: scores of 0 and of 1.
_WORST_RATIO, _BEST_RATIO = 2.0, 1 / 256
_WORST_LOSS = 0.05  # loss of quality with a score of 0

Point = tuple[float, float, float]


def normalized_scores(candidate: CompressionCandidate, reference: CompressionCandidate) -> Point:
    """Scores for quality, size and latency in 0…1 each, higher is better; the reference has (1, 1/9, 1/9).

    The quality score falls linearly to 0 at a loss of 0.05. The scores for size and latency are logarithms of the ratio
    to the reference's bytes and median latency: 0 at a ratio of 2, and 1 at a ratio of 1/256.
    """
    assert candidate.quality is not None and reference.quality is not None
    assert candidate.latency is not None and reference.latency is not None
    loss = (reference.quality - candidate.quality) / _WORST_LOSS
    size_ratio = candidate.bytes / reference.bytes
    latency_ratio = max(candidate.latency.p50_ms, 1e-6) / max(reference.latency.p50_ms, 1e-6)
    return _clip(1 - loss), _ratio_score(size_ratio), _ratio_score(latency_ratio)


def dominates(a: CompressionCandidate, b: CompressionCandidate) -> bool:
    """Whether ``a`` is as good as ``b`` in quality, bytes and median latency, and better in at least one of them."""
    costs_a, costs_b = _costs(a), _costs(b)
    return costs_a != costs_b and all(x <= y for x, y in zip(costs_a, costs_b, strict=True))


def pareto_front(candidates: Iterable[CompressionCandidate]) -> list[CompressionCandidate]:
    """The candidates that can serve and that no other one dominates, smallest first; of equal ones the first.

    Example:
        >>> from stillhouse.records import Latency
        >>> def candidate(name, size, quality):
        ...     latency = Latency(p50_ms=1.0, p95_ms=1.0, calls=10)
        ...     measured = {"bytes": size, "quality": quality, "latency": latency}
        ...     return CompressionCandidate(candidate_id=name, name=name, recipe=(), **measured)
        >>> front = pareto_front([candidate("fp32", 100, 0.9), candidate("int8", 30, 0.9), candidate("tiny", 9, 0.8)])
        >>> [each.name for each in front]
        ['tiny', 'int8']
    """
    servable = [candidate for candidate in candidates if candidate.refused is None]
    front = [candidate for candidate in servable if not any(dominates(other, candidate) for other in servable)]
    distinct = {_costs(candidate): candidate for candidate in reversed(front)}
    return sorted(distinct.values(), key=lambda candidate: (candidate.bytes, candidate.name))


def hypervolume(points: Iterable[Point]) -> float:
    """Share of the unit cube that at least one point dominates.

    Zitzler and Thiele 1999, "Multiobjective Evolutionary Algorithms", §3; exact, by slices along the last axis.

    Example:
        >>> hypervolume([(0.5, 0.5, 1.0), (1.0, 0.5, 0.5)])
        0.375
    """
    ordered = sorted(set(points), key=lambda point: -point[2])
    volume = 0.0
    for index, point in enumerate(ordered):
        depth = point[2] - (ordered[index + 1][2] if index + 1 < len(ordered) else 0.0)
        volume += depth * _area([(x, y) for x, y, _ in ordered[: index + 1]])
    return volume


def choose_candidate(
    candidates: Sequence[CompressionCandidate], reference: CompressionCandidate, limits: SizeLimits
) -> tuple[CompressionCandidate, bool, str]:
    """The chosen candidate, whether it is within the limits, and the reason, in a sentence.

    The smallest candidate within all limits is chosen; of equal ones the faster. If none is within the limits, the
    candidate that exceeds them least is chosen, and the reason names the limits that would have to change. The loss of
    quality is the largest of the losses on all validation rows and on each slice. The best of many candidates looks
    slightly better on the rows that they were compared on than it is: its quality is measured again on other rows.
    """
    servable = [candidate for candidate in candidates if candidate.refused is None]
    fitting = [candidate for candidate in servable if not _excess(candidate, reference, limits)]
    if fitting:
        chosen = min(fitting, key=lambda candidate: (candidate.bytes, _p95(candidate), candidate.name))
        return chosen, True, f"{chosen.name}: the smallest {_describe_limits(limits)}: {_describe(chosen, reference)}"
    nearest = min(
        servable, key=lambda candidate: (sum(_excess(candidate, reference, limits).values()), candidate.bytes)
    )
    return nearest, False, f"nothing fits: {_describe_needed_limits(servable, reference, limits)}"


def _excess(candidate: CompressionCandidate, reference: CompressionCandidate, limits: SizeLimits) -> dict[str, float]:
    """By exceeded limit, by how much: the logarithm of the ratio for bytes and latency, scaled points for quality."""
    excess: dict[str, float] = {}
    if limits.max_bytes is not None and candidate.bytes > limits.max_bytes:
        excess["max_bytes"] = math.log(candidate.bytes / limits.max_bytes)
    if limits.max_p95_ms is not None and _p95(candidate) > limits.max_p95_ms:
        excess["max_p95_ms"] = math.log(_p95(candidate) / limits.max_p95_ms)
    if (loss := _loss(candidate, reference)) > limits.max_quality_loss:
        excess["max_quality_loss"] = (loss - limits.max_quality_loss) / _WORST_LOSS
    return excess


def _describe_needed_limits(
    servable: Sequence[CompressionCandidate], reference: CompressionCandidate, limits: SizeLimits
) -> str:
    """For each limit, the value at which a candidate would fit with the other limits unchanged.

    If no change of a single limit is enough: the nearest candidate and the limits that it exceeds.
    """
    changes = []
    descriptions: tuple[tuple[str, Callable[[CompressionCandidate], str]], ...] = (
        ("max_bytes", lambda candidate: f"max_bytes of {candidate.bytes:,}, not {limits.max_bytes:,}"),
        ("max_p95_ms", lambda candidate: f"max_p95_ms of {_p95(candidate):.3g}, not {limits.max_p95_ms:g}"),
        (
            "max_quality_loss",
            lambda candidate: f"max_quality_loss of {_loss(candidate, reference):.4f}, not {limits.max_quality_loss:g}",
        ),
    )
    for name, describe in descriptions:
        exceeding_only = [candidate for candidate in servable if set(_excess(candidate, reference, limits)) == {name}]
        if exceeding_only:
            nearest = min(exceeding_only, key=lambda candidate: _excess(candidate, reference, limits)[name])
            changes.append(f"{describe(nearest)} ({nearest.name})")
    if changes:
        return f"it would take a {', or a '.join(changes)}"
    nearest = min(
        servable, key=lambda candidate: (sum(_excess(candidate, reference, limits).values()), candidate.bytes)
    )
    exceeded = ", ".join(_excess(nearest, reference, limits))
    return f"the nearest, {nearest.name}, breaks {exceeded} together: {_describe(nearest, reference)}"


def _describe(candidate: CompressionCandidate, reference: CompressionCandidate) -> str:
    loss, slice_name = candidate.loss(reference)
    comparison = f"{loss * 100:.2g} points below" if loss > 0 else "no worse than"
    on_slice = f" on {slice_name}" if slice_name and loss > 0 else ""
    return f"{candidate.bytes:,} bytes, p95 {_p95(candidate):.3g} ms, {comparison} the float32 model{on_slice}"


def _describe_limits(limits: SizeLimits) -> str:
    parts = [f"{limits.max_quality_loss * 100:g} points"]
    if limits.max_p95_ms is not None:
        parts.append(f"{limits.max_p95_ms:g} ms")
    if limits.max_bytes is not None:
        parts.append(f"{limits.max_bytes:,} bytes")
    return "within " + (" and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}")


def _costs(candidate: CompressionCandidate) -> Point:
    """Negative quality, bytes and median latency (ms): lower is better."""
    assert candidate.quality is not None and candidate.latency is not None
    return -candidate.quality, float(candidate.bytes), candidate.latency.p50_ms


def _loss(candidate: CompressionCandidate, reference: CompressionCandidate) -> float:
    return candidate.loss(reference)[0]


def _p95(candidate: CompressionCandidate) -> float:
    assert candidate.latency is not None
    return candidate.latency.p95_ms


def _ratio_score(ratio: float) -> float:
    return _clip(math.log(ratio / _WORST_RATIO) / math.log(_BEST_RATIO / _WORST_RATIO))


def _clip(value: float) -> float:
    return min(1.0, max(0.0, value))


def _area(points: Iterable[tuple[float, float]]) -> float:
    """Area of the unit square that at least one point dominates."""
    area, top = 0.0, 0.0
    for width, height in sorted(points, reverse=True):
        if height > top:
            area += width * (height - top)
            top = height
    return area
