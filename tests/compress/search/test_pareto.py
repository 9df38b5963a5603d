"""The Pareto front, its hypervolume and the chosen candidate, by hand."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from stillhouse.compress.search.pareto import choose_candidate, dominates, hypervolume, normalized_scores, pareto_front
from stillhouse.records import CompressionCandidate, Latency, SizeLimits


def candidate(
    name: str, quality: float = 0.8, size: int = 1000, p50: float = 1.0, p95: float | None = None, **fields: Any
) -> CompressionCandidate:
    latency = Latency(p50_ms=p50, p95_ms=2 * p50 if p95 is None else p95, calls=10)
    return CompressionCandidate(
        candidate_id=name, name=name, recipe=(), quality=quality, bytes=size, latency=latency, **fields
    )


def refused(name: str) -> CompressionCandidate:
    return CompressionCandidate(candidate_id=name, name=name, recipe=(), refused="it does not apply")


REFERENCE = candidate("fp32")


# --------------------------------------------------------------------------- domination


@pytest.mark.parametrize(
    ("changes", "better"),
    [
        ({"quality": 0.81}, True),
        ({"size": 999}, True),
        ({"p50": 0.9}, True),
        ({}, False),  # equals do not beat each other
        ({"p95": 0.1}, False),  # the tail does not count
        ({"quality": 0.9, "size": 1001}, False),
        ({"quality": 0.79, "size": 1, "p50": 0.1}, False),
        ({"quality": 0.9, "size": 500, "p50": 0.5}, True),
    ],
)
def test_dominance(changes: dict[str, Any], better: bool) -> None:
    assert dominates(candidate("one", **changes), REFERENCE) is better


def test_the_front_is_sorted_by_size_without_refused_and_equal_candidates() -> None:
    best = [candidate("big", 0.9, 900, 3), candidate("small", 0.7, 100, 2), candidate("fast", 0.6, 500, 0.1)]
    twin, beaten = candidate("a_twin", 0.7, 100, 2), candidate("beaten", 0.69, 100, 2)
    front = pareto_front([*best, refused("broken"), beaten, twin])
    assert [entry.name for entry in front] == ["small", "fast", "big"]
    assert [entry.name for entry in pareto_front([twin, *best])] == ["a_twin", "fast", "big"]
    assert pareto_front([]) == [] == pareto_front([refused("x")])


@pytest.mark.parametrize("seed", range(6))
def test_only_candidates_outside_the_front_are_dominated(seed: int) -> None:
    random = np.random.default_rng(seed)
    candidates = [
        candidate(str(i), random.integers(1, 6) / 10, int(random.integers(1, 6)), float(random.integers(1, 6)))
        for i in range(25)
    ]
    best = pareto_front(candidates)
    assert not any(dominates(first, second) for first, second in itertools.permutations(best, 2))
    for entry in candidates:
        figures_of = {(second.quality, second.bytes, second.latency.p50_ms) for second in best if second.latency}
        assert entry.latency is not None
        assert (
            any(dominates(second, entry) for second in best)
            or (entry.quality, entry.bytes, entry.latency.p50_ms) in figures_of
        )


# --------------------------------------------------------------------------- the box


@pytest.mark.parametrize(
    ("changes", "point"),
    [
        ({}, (1, 1 / 9, 1 / 9)),
        ({"quality": 0.775}, (0.5, 1 / 9, 1 / 9)),
        ({"quality": 0.75}, (0, 1 / 9, 1 / 9)),
        ({"quality": 0.2}, (0, 1 / 9, 1 / 9)),
        ({"quality": 0.99}, (1, 1 / 9, 1 / 9)),  # better than the reference is as good as it
        ({"size": 2000}, (1, 0, 1 / 9)),
        ({"size": 9000}, (1, 0, 1 / 9)),
        ({"size": 500}, (1, 2 / 9, 1 / 9)),
        ({"size": 125}, (1, 4 / 9, 1 / 9)),
        ({"p50": 1 / 256}, (1, 1 / 9, 1)),
        ({"p50": 1e-9}, (1, 1 / 9, 1)),
        ({"p50": 0.25}, (1, 1 / 9, 3 / 9)),
        ({"p50": 0.0}, (1, 1 / 9, 1)),
    ],
)
def test_scores_at_the_corners(changes: dict[str, Any], point: tuple[float, ...]) -> None:
    assert normalized_scores(candidate("one", **changes), REFERENCE) == pytest.approx(point, abs=1e-9)


@pytest.mark.parametrize(
    ("points", "volume"),
    [
        ([], 0),
        ([(1, 1, 1)], 1),
        ([(0.5, 0.5, 0.5)], 0.125),
        ([(1, 0, 1)], 0),
        ([(0.5, 0.5, 0.5), (0.5, 0.5, 0.5)], 0.125),
        ([(0.5, 0.5, 0.5), (0.4, 0.4, 0.4)], 0.125),
        ([(1, 0.5, 0.5), (0.5, 1, 0.5)], 0.375),  # ¼ + ¼ − ⅛
        ([(1, 1, 0.5), (0.5, 0.5, 1)], 0.625),  # ½ + ¼ − ⅛
        ([(1, 0.5, 0.5), (0.5, 1, 0.5), (0.5, 0.5, 1)], 0.5),  # 3/4 − 3/8 + 1/8
    ],
)
def test_hypervolume_by_hand(points: list[tuple[float, float, float]], volume: float) -> None:
    for order in itertools.permutations(points):
        assert hypervolume(order) == pytest.approx(volume)


@pytest.mark.parametrize("seed", range(5))
def test_hypervolume_agrees_with_monte_carlo(seed: int) -> None:
    random = np.random.default_rng(seed)
    points = random.random((int(random.integers(1, 15)), 3))
    darts = random.random((100_000, 3))
    below = (darts[:, None, :] <= points[None, :, :]).all(axis=2).any(axis=1)
    front = hypervolume(tuple(map(float, point)) for point in points)  # type: ignore[misc]
    assert front == pytest.approx(below.mean(), abs=4 * float(np.sqrt(below.var() / len(darts))) + 1e-9)
    assert hypervolume([*(tuple(map(float, p)) for p in points), (0.5, 0.5, 0.5)]) >= front  # type: ignore[misc]


# --------------------------------------------------------------------------- choosing

BIG, SMALL, TINY = (
    candidate("big", 0.8, 1000, 1.0),
    candidate("small", 0.797, 400, 2.0, 4.0),
    candidate("tiny", 0.75, 100, 0.5),
)
ALL = (BIG, refused("broken"), SMALL, TINY)


@pytest.mark.parametrize(
    ("limits", "name", "why"),
    [
        ({}, "small", "small: the smallest within 0.5 points: 400 bytes, p95 4 ms, 0.3 points below the float32 model"),
        (
            {"max_quality_loss": 0.06},
            "tiny",
            "tiny: the smallest within 6 points: 100 bytes, p95 1 ms, 5 points below the float32 model",
        ),
        (
            {"max_quality_loss": 0},
            "big",
            "big: the smallest within 0 points: 1,000 bytes, p95 2 ms, no worse than the float32 model",
        ),
        (
            {"max_p95_ms": 3},
            "big",
            "big: the smallest within 0.5 points and 3 ms: 1,000 bytes, p95 2 ms, no worse than the float32 model",
        ),
        (
            {"max_bytes": 500, "max_p95_ms": 4},
            "small",
            "small: the smallest within 0.5 points, 4 ms and 500 bytes: 400 bytes, p95 4 ms, 0.3 points below the "
            "float32 model",
        ),
        (
            {"max_bytes": 400},
            "small",
            "small: the smallest within 0.5 points and 400 bytes: 400 bytes, p95 4 ms, 0.3 points below the "
            "float32 model",
        ),
    ],
)
def test_the_smallest_within_the_limits(limits: dict[str, Any], name: str, why: str) -> None:
    for order in itertools.permutations(ALL):
        chosen, fits, reason = choose_candidate(order, BIG, SizeLimits(**limits))
        assert (chosen.name, fits, reason) == (name, True, why)


def test_of_equal_sizes_the_faster_is_chosen_then_by_name() -> None:
    slow, fast = candidate("a", 0.8, 400, 2.0), candidate("b", 0.8, 400, 1.0)
    assert choose_candidate([slow, fast], REFERENCE, SizeLimits())[0].name == "b"
    twin = candidate("0", 0.8, 400, 1.0)
    assert (
        choose_candidate([fast, twin], REFERENCE, SizeLimits())[0]
        == choose_candidate([twin, fast], REFERENCE, SizeLimits())[0]
        == twin
    )


@pytest.mark.parametrize(
    ("limits", "name", "why"),
    [
        (
            {"max_bytes": 300},
            "small",
            "it would take a max_bytes of 400, not 300 (small), or a max_quality_loss of 0.0500, not 0.005 (tiny)",
        ),
        ({"max_bytes": 50, "max_quality_loss": 0.06}, "tiny", "it would take a max_bytes of 100, not 50 (tiny)"),
        (
            {"max_p95_ms": 1.5},
            "big",
            "it would take a max_p95_ms of 2, not 1.5 (big), or a max_quality_loss of 0.0500, not 0.005 (tiny)",
        ),
        (
            {"max_bytes": 500, "max_p95_ms": 1.5},
            "tiny",
            "it would take a max_p95_ms of 4, not 1.5 (small), or a max_quality_loss of 0.0500, not 0.005 (tiny)",
        ),
        (
            {"max_bytes": 50, "max_p95_ms": 0.5},
            "tiny",
            "the nearest, tiny, breaks max_bytes, max_p95_ms, max_quality_loss together: 100 bytes, p95 1 ms, 5 points "
            "below the float32 model",
        ),
    ],
)
def test_if_nothing_fits_the_needed_limits_are_named(limits: dict[str, Any], name: str, why: str) -> None:
    """Nearest is the one with the smallest sum of log ratios, and of losses in units of five points."""
    for order in itertools.permutations(ALL):
        chosen, fits, reason = choose_candidate(order, BIG, SizeLimits(**limits))
        assert (fits, reason) == (False, f"nothing fits: {why}")
        assert chosen.name == name


def test_a_named_limit_is_sufficient() -> None:
    """Raised to what the sentence says, exactly that candidate is chosen."""
    for limits, raised, name in (
        (SizeLimits(max_bytes=300), {"max_bytes": 400}, "small"),
        (SizeLimits(max_bytes=300), {"max_quality_loss": 0.0500001}, "tiny"),
        (SizeLimits(max_p95_ms=1.5), {"max_p95_ms": 2.0}, "big"),
    ):
        chosen, fits, _ = choose_candidate(ALL, BIG, limits.model_copy(update=raised))
        assert fits and chosen.name == name
