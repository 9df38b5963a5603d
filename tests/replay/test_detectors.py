"""Page–Hinkley and ADWIN on streams whose answers are computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from stillhouse.replay.detectors import Adwin, PageHinkley


def test_page_hinkley_by_hand() -> None:
    detector = PageHinkley(min_values=1, delta=0.0, threshold=1.0, alpha=1.0)
    # means 0, 0, 1/3, 1/2, 3/5; deviations 0, 0, 2/3, 1/2, 2/5; sums 0, 0, 2/3, 7/6
    assert [detector.update(value) for value in (0.0, 0.0, 1.0, 1.0)] == [False, False, False, True]


def test_page_hinkley_waits_for_enough_values_and_ignores_a_fall() -> None:
    detector = PageHinkley(threshold=2.0)
    assert not any(detector.update(value) for value in [0.0] * 15 + [1.0] * 14)
    assert detector.update(1.0)  # the thirtieth value
    falling = PageHinkley(threshold=2.0)
    assert not any(falling.update(value) for value in [1.0] * 200 + [0.0] * 200)


def test_page_hinkley_of_a_rise_from_none_to_all_errors() -> None:
    """After n zeros, the j-th one deviates by n/(n+j) less .005; the sum passes 50 first at the j computed here."""
    detector, alpha = PageHinkley(), 0.9999
    first = next(i for i, value in enumerate([0.0] * 200 + [1.0] * 200) if detector.update(value)) - 200
    total = sum(-0.005 * alpha**i for i in range(200))
    least = rise = total
    j = 0
    while rise - least <= 50:
        j += 1
        rise = alpha * rise + 200 / (200 + j) - 0.005
        least = min(least, rise)
    assert first == j - 1


def test_adwin_keeps_sums_and_counts_in_its_buckets() -> None:
    detector, rng = Adwin(), np.random.default_rng(0)
    values = rng.integers(0, 2, 500).astype(float)
    for value in values:
        detector.update(value)
    assert detector.count == 500 and detector.mean == pytest.approx(values.mean())
    assert all(len(row) <= 5 for row in detector._rows)


def test_adwin_cuts_where_the_bound_of_the_paper_says_so() -> None:
    """Of 32 zeros and 32 ones, the cut between them has ε = √(2/m · ¼ · L) + 2/(3m) · L with L = ln(2 ln 64 / δ)."""
    confidence = math.log(2 * math.log(64) / 0.002)
    inverse = 2 / (32 - 5 + 1)
    epsilon = math.sqrt(2 * inverse * 0.25 * confidence) + 2 / 3 * inverse * confidence
    assert epsilon < 1.0
    detector = Adwin(clock=64)
    changes = [detector.update(value) for value in [0.0] * 32 + [1.0] * 32]
    assert changes == [False] * 63 + [True]
    assert detector.count < 64 and detector.mean > 0.5 and not detector._find_cut()


def test_adwin_rarely_cuts_a_stream_without_a_change() -> None:
    rng = np.random.default_rng(1)
    detector = Adwin()
    cuts = sum(detector.update(float(value)) for value in rng.random(5000) < 0.3)
    assert cuts <= 1
