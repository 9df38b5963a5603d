"""The monitor: false alarms are as rare as promised under the null, and a change is found."""

from __future__ import annotations

import numpy as np

from stillhouse.agreement.monitor import BETS, NO_EVIDENCE, advance, alternatives, mean_evidence


def rows_to_alarm(rng: np.random.Generator, rate: float, null: float, log_threshold: float, most: int) -> int:
    evidence, bets = np.full(BETS, NO_EVIDENCE), alternatives(null)
    for row, disagrees in enumerate(rng.random(most) < rate):
        evidence = advance(evidence, bool(disagrees), null, bets)
        if mean_evidence(evidence) >= log_threshold:
            return row
    return most


def test_a_bet_is_fair_at_the_null() -> None:
    bets = alternatives(0.02)
    start = np.full(BETS, 1.7)
    mean = 0.02 * np.exp(advance(start, True, 0.02, bets)) + 0.98 * np.exp(advance(start, False, 0.02, bets))
    assert np.allclose(mean, 1 + np.exp(1.7))


def test_false_alarms_are_rarer_than_one_in_the_run_length() -> None:
    rng = np.random.default_rng(0)
    alarms = sum(rows_to_alarm(rng, 0.02, 0.02, np.log(200), 200) < 200 for _ in range(300))
    assert alarms / 300 < 1.0 / 2  # Markov: at most one in 200 rows on average


def test_a_rise_from_2_to_20_percent_is_found_in_some_thirty_rows() -> None:
    rng = np.random.default_rng(1)
    assert np.median([rows_to_alarm(rng, 0.2, 0.02, np.log(400), 500) for _ in range(50)]) < 40
