"""Which candidates nothing beats, how good they are together, and which one is put forward."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

from stillhouse.records import CompressionCandidate, SizeLimits

__all__ = ["choose", "dominates", "figures", "frontier", "hypervolume"]

_LARGEST, _SMALLEST = 2.0, 1 / 256  # of the reference's bytes or latency: where a gain counts as none, and as whole
_WORST_LOSS = 0.05  # of quality: where a candidate counts for nothing

Point = tuple[float, float, float]


def figures(candidate: CompressionCandidate, reference: CompressionCandidate) -> Point:
    """Quality, smallness and speed in 0…1 each, higher is better; the reference has (1, 1/9, 1/9).

    Quality falls linearly to 0 at a loss of 0.05; smallness and speed are logarithms of the ratio to the reference's
    bytes and median latency, 0 at twice as much and 1 at a 256th.
    """
    assert candidate.quality is not None and reference.quality is not None
    assert candidate.latency is not None and reference.latency is not None
    loss = (reference.quality - candidate.quality) / _WORST_LOSS
    size = candidate.bytes / reference.bytes
    time = max(candidate.latency.p50_ms, 1e-6) / max(reference.latency.p50_ms, 1e-6)
    return _unit(1 - loss), _gain(size), _gain(time)


def dominates(one: CompressionCandidate, other: CompressionCandidate) -> bool:
    """Whether ``one`` is as good as ``other`` in quality, bytes and median latency, and better in one of them."""
    mine, theirs = _measured(one), _measured(other)
    return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))


def frontier(candidates: Iterable[CompressionCandidate]) -> list[CompressionCandidate]:
    """Those that can serve and that no other dominates, smallest first; of equals the first."""
    able = [candidate for candidate in candidates if candidate.refused is None]
    best = [one for one in able if not any(dominates(other, one) for other in able)]
    unlike = {_measured(candidate): candidate for candidate in reversed(best)}
    return sorted(unlike.values(), key=lambda candidate: (candidate.bytes, candidate.name))


def hypervolume(points: Iterable[Point]) -> float:
    """Share of the unit cube that lies below at least one point.

    Zitzler and Thiele 1999, "Multiobjective Evolutionary Algorithms", §3; exact, by slices along the last axis.
    """
    ordered = sorted(set(points), key=lambda point: -point[2])
    volume = 0.0
    for place, point in enumerate(ordered):
        depth = point[2] - (ordered[place + 1][2] if place + 1 < len(ordered) else 0.0)
        volume += depth * _area([(each[0], each[1]) for each in ordered[: place + 1]])
    return volume


def choose(
    candidates: Sequence[CompressionCandidate], reference: CompressionCandidate, limits: SizeLimits
) -> tuple[CompressionCandidate, bool, str]:
    """The candidate to put forward, whether it keeps within the limits, and why, in a sentence.

    The smallest within all limits; of equals the faster. Where none is: the one that needs the least more of what
    is short, with what would have to give. A loss of quality is the largest of those on all judged rows and on each
    slice that must hold, too. Quality is that of the rows candidates were compared on: the best of many
    flatters itself a little there, so what is promised is measured again on rows that played no part.
    """
    able = [candidate for candidate in candidates if candidate.refused is None]
    fitting = [candidate for candidate in able if not _excess(candidate, reference, limits)]
    if fitting:
        chosen = min(fitting, key=lambda candidate: (candidate.bytes, _p95(candidate), candidate.name))
        return chosen, True, f"{chosen.name}: the smallest {_within(limits)}: {_described(chosen, reference)}"
    nearest = min(able, key=lambda candidate: (sum(_excess(candidate, reference, limits).values()), candidate.bytes))
    return nearest, False, f"nothing fits: {_what_gives(able, reference, limits)}"


def _excess(candidate: CompressionCandidate, reference: CompressionCandidate, limits: SizeLimits) -> dict[str, float]:
    """By limit that is broken, how far; logarithm of the ratio for bytes and latency, points for quality."""
    found: dict[str, float] = {}
    if limits.max_bytes is not None and candidate.bytes > limits.max_bytes:
        found["max_bytes"] = math.log(candidate.bytes / limits.max_bytes)
    if limits.max_p95_ms is not None and _p95(candidate) > limits.max_p95_ms:
        found["max_p95_ms"] = math.log(_p95(candidate) / limits.max_p95_ms)
    if (loss := _loss(candidate, reference)) > limits.max_quality_loss:
        found["max_quality_loss"] = (loss - limits.max_quality_loss) / _WORST_LOSS
    return found


def _what_gives(able: Sequence[CompressionCandidate], reference: CompressionCandidate, limits: SizeLimits) -> str:
    """For each limit alone: what it would have to be, all others kept; or, where that is not enough, the nearest."""
    ways = []
    say: tuple[tuple[str, Callable[[CompressionCandidate], str]], ...] = (
        ("max_bytes", lambda each: f"max_bytes of {each.bytes:,}, not {limits.max_bytes:,}"),
        ("max_p95_ms", lambda each: f"max_p95_ms of {_p95(each):.3g}, not {limits.max_p95_ms:g}"),
        (
            "max_quality_loss",
            lambda each: f"max_quality_loss of {_loss(each, reference):.4f}, not {limits.max_quality_loss:g}",
        ),
    )
    for name, needed in say:
        alone = [each for each in able if set(_excess(each, reference, limits)) == {name}]
        if alone:
            cheapest = min(alone, key=lambda each: _excess(each, reference, limits)[name])
            ways.append(f"{needed(cheapest)} ({cheapest.name})")
    if ways:
        return f"it would take a {', or a '.join(ways)}"
    nearest = min(able, key=lambda each: (sum(_excess(each, reference, limits).values()), each.bytes))
    broken = ", ".join(_excess(nearest, reference, limits))
    return f"the nearest, {nearest.name}, breaks {broken} together: {_described(nearest, reference)}"


def _described(candidate: CompressionCandidate, reference: CompressionCandidate) -> str:
    loss, where = candidate.loss(reference)
    place = f"{loss * 100:.2g} points below" if loss > 0 else "no worse than"
    there = f" on {where}" if where and loss > 0 else ""
    return f"{candidate.bytes:,} bytes, p95 {_p95(candidate):.3g} ms, {place} the float32 model{there}"


def _within(limits: SizeLimits) -> str:
    parts = [f"{limits.max_quality_loss * 100:g} points"]
    if limits.max_p95_ms is not None:
        parts.append(f"{limits.max_p95_ms:g} ms")
    if limits.max_bytes is not None:
        parts.append(f"{limits.max_bytes:,} bytes")
    return "within " + (" and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}")


def _measured(candidate: CompressionCandidate) -> Point:
    assert candidate.quality is not None and candidate.latency is not None
    return -candidate.quality, float(candidate.bytes), candidate.latency.p50_ms


def _loss(candidate: CompressionCandidate, reference: CompressionCandidate) -> float:
    return candidate.loss(reference)[0]


def _p95(candidate: CompressionCandidate) -> float:
    assert candidate.latency is not None
    return candidate.latency.p95_ms


def _gain(ratio: float) -> float:
    return _unit(math.log(ratio / _LARGEST) / math.log(_SMALLEST / _LARGEST))


def _unit(value: float) -> float:
    return min(1.0, max(0.0, value))


def _area(points: Iterable[tuple[float, float]]) -> float:
    """Area of the unit square below at least one point."""
    area, top = 0.0, 0.0
    for width, height in sorted(points, reverse=True):
        if height > top:
            area += width * (height - top)
            top = height
    return area
