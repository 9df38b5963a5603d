"""The streams of `benchmarks.streams`: shapes and order in time, what is known when, and the readers on tiny data."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import stream_files
from benchmarks.stream_files import cache_path, parse_mails, parse_ratings
from benchmarks.stream_teachers import Boosting, Words
from benchmarks.streams_data import (
    RIVER_KINDS,
    Stream,
    agent_settings,
    banking,
    dev_streams,
    flights,
    merge_periods,
    moving_threshold,
    rotating,
    router,
    spam,
)
from stillhouse.errors import DataError
from stillhouse.replay.script import plain_script

SHARED = Path(os.environ.get("STILLHOUSE_DATA") or Path(__file__).parents[3] / "shared" / "data")


def check_stream(stream: Stream) -> None:
    rows = stream.rows
    assert {"observation_id", "observed_at", "outcome", "known_at"} <= set(rows)
    assert set(stream.settings.observations.columns) <= set(rows)
    assert rows["observation_id"].is_unique and rows["observed_at"].is_monotonic_increasing
    assert str(rows["observed_at"].dt.tz) == str(rows["known_at"].dt.tz) == "UTC"
    assert (rows["known_at"] >= rows["observed_at"]).all()
    assert rows["outcome"].dtype == np.int64
    assert rows["outcome"].between(-1, len(stream.settings.actions) - 1).all()
    assert 0 < stream.first_steps < stream.steps
    assert sum(len(stream.rows_of(step)) for step in range(stream.steps)) == len(rows)


@pytest.mark.parametrize("index", [0, 1, 2])
def test_dev_streams_have_rows_in_every_step(index: int) -> None:
    stream = dev_streams(seed=1)[index]
    check_stream(stream)
    assert stream.steps == 80
    assert all(200 <= len(stream.rows_of(step)) <= 700 for step in range(80))


def test_dev_streams_depend_on_the_seed_alone() -> None:
    again, first, other = dev_streams(seed=1)[0], dev_streams(seed=1)[0], dev_streams(seed=2)[0]
    pd.testing.assert_frame_equal(again.rows, first.rows)
    assert not again.rows["x0"].equals(other.rows["x0"])


# --------------------------------------------------------------------------- steps


def test_short_periods_are_merged_and_a_short_end_joins_the_step_before() -> None:
    assert merge_periods(np.array([3, 4, 10, 0, 0, 2]), min_rows=6).tolist() == [0, 0, 1, 1, 1, 1]
    assert merge_periods(np.array([3, 4]), min_rows=0).tolist() == [0, 1]
    assert merge_periods(np.array([1, 1]), min_rows=5).tolist() == [0, 0]


def test_flights_are_fifty_two_weeks_of_new_york() -> None:
    stream = flights()
    check_stream(stream)
    assert (stream.steps, stream.first_steps) == (52, 8)
    assert min(len(stream.rows_of(step)) for step in range(52)) > 5000
    assert stream.settings.actions == ("on_time", "late") and 0.15 < stream.rows["outcome"].mean() < 0.3


def test_the_router_has_a_step_a_day_or_a_week(clinc150: Path) -> None:
    daily, weekly = router(), router(pd.Timedelta(weeks=1).to_pytimedelta())
    check_stream(daily)
    assert (daily.steps, daily.first_steps) == (168, 56) and (weekly.steps, weekly.first_steps) == (24, 8)
    arrival = daily.change_points[0]
    travel = daily.settings.actions.index("book_hotel")
    assert (daily.rows.loc[daily.rows["outcome"] == travel, "observed_at"] >= arrival).all()


# --------------------------------------------------------------------------- mails


def _mail(hour: int, subject: str, body: str) -> str:
    received = f"Received: by last; Thu, 22 Aug 2002 {hour:02}:00:00 +0000\nReceived: by first; Mon, 1 Jan 2029"
    return f"From a@b  Mon\n{received}\nDate: Mon, 7 Feb 0102 09:39:51\nSubject: {subject}\n\n{body}"


def test_mails_are_in_the_order_in_which_the_last_server_received_them() -> None:
    records = [
        {"group": "spam-1", "id": "2", "text": _mail(9, "Pills", "<p>cheap</p><script>x()</script>")},
        {"group": "easy-ham-1", "id": "1", "text": _mail(8, "Minutes", "a < b &amp; c")},
    ]
    mails = parse_mails(records)
    assert mails["observation_id"].tolist() == ["easy-ham-1-1", "spam-1-2"]
    assert mails["spam"].tolist() == [False, True]
    assert mails["text"].tolist()[1] == "Pills cheap"
    assert "last" not in mails["text"].str.cat()  # no header but the subject


def test_spam_starts_when_both_classes_are_common(monkeypatch: pytest.MonkeyPatch) -> None:
    times = pd.to_datetime("2002-06-03", utc=True) + pd.to_timedelta(np.arange(2000) * 45, unit="min")
    mails = pd.DataFrame(
        {
            "observation_id": [str(index) for index in range(2000)],
            "observed_at": times,
            "text": "words",
            "spam": np.arange(2000) % 3 == 0,
        }
    )
    monkeypatch.setattr("benchmarks.streams_data.read_mails", lambda: mails)
    stream = spam()
    check_stream(stream)
    assert stream.rows_of(stream.first_steps)["observed_at"].iloc[0] >= pd.Timestamp("2002-07-29T00:00:00Z")
    assert all(len(stream.rows_of(step)) >= 100 for step in range(stream.steps))


# --------------------------------------------------------------------------- ratings


def _ratings_tables() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    ratings = pd.DataFrame(
        {"user_id": [1, 1, 2, 1], "movie_id": [1, 2, 1, 3], "rating": [5, 2, 3, 4], "timestamp": [10, 10, 20, 30]}
    )
    films = pd.DataFrame(
        {
            "movie_id": [1, 2, 3],
            "release_date": ["01-Jan-1969", None, "01-Jan-1970"],
            "unknown": 0,
            "Drama": [1, 0, 1],
            "War": [0, 1, 0],
        }
    )
    users = pd.DataFrame({"user_id": [1, 2], "age": [30, 40], "gender": ["F", "M"], "occupation": ["a", "b"]})
    return ratings, films, users


def test_features_of_a_rating_know_earlier_ratings_only() -> None:
    rows = parse_ratings(*_ratings_tables())
    assert rows["liked"].tolist() == [True, False, False, True]
    assert rows["user_count"].tolist() == [0, 0, 0, 2]  # the first two are of the same second
    np.testing.assert_array_equal(rows["user_mean"], [np.nan, np.nan, np.nan, 3.5])
    np.testing.assert_array_equal(rows["film_mean"], [np.nan, np.nan, 5.0, np.nan])
    np.testing.assert_array_equal(rows["taste"], [np.nan, np.nan, np.nan, 1.5])  # dramas 5, all 3.5
    assert rows["film_age"].round().tolist()[0] == 1 and np.isnan(rows["film_age"][1])


def test_features_do_not_depend_on_later_ratings() -> None:
    ratings, films, users = _ratings_tables()
    other = ratings.assign(rating=[5, 2, 3, 1])
    features = parse_ratings(ratings, films, users).drop(columns="liked")
    pd.testing.assert_frame_equal(features, parse_ratings(other, films, users).drop(columns="liked"))


# --------------------------------------------------------------------------- sentences to a bank


@pytest.fixture
def shared_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    if not (SHARED / "banking77" / "test.csv").exists():
        pytest.skip(f"BANKING77 is not in {SHARED}")
    monkeypatch.setenv("STILLHOUSE_DATA", str(SHARED))
    return SHARED


def test_two_groups_of_intents_arrive_later_and_test_sentences_are_held_out(shared_data: Path) -> None:
    stream = banking(seed=3)
    check_stream(stream)
    assert stream.held_out is not None and len(stream.held_out) == 3080
    assert not set(stream.held_out["text"]) & set(stream.rows["text"])
    first = stream.rows.groupby("outcome")["observed_at"].min()
    known_from = stream.held_out.groupby("outcome")["known_from"].first()
    assert (first >= known_from).all() and known_from.nunique() == 3
    assert known_from.value_counts().between(25, 26).all()
    assert not banking(seed=4).rows["outcome"].equals(stream.rows["outcome"])


def test_recorded_answers_are_the_teacher_of_the_llm_variant(
    shared_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(split: str, with_answers: bool) -> pd.DataFrame:
        rows = stream_files.read_banking(split)
        return rows.assign(answer=np.where(np.arange(len(rows)) % 4 == 0, "", rows["action"]))

    monkeypatch.setattr("benchmarks.streams_data.read_banking", read)
    stream = banking("llm", seed=3)
    assert stream.teacher_probs is not None and stream.teacher_probs.shape == (len(stream.rows), 77)
    answered = ~np.isnan(stream.teacher_probs).any(axis=1)
    assert 0.7 < answered.mean() < 0.8
    assert (stream.teacher_probs[answered].argmax(axis=1) == stream.rows["outcome"][answered]).all()
    assert (np.nansum(stream.teacher_probs, axis=1) == answered).all()


# --------------------------------------------------------------------------- files


def test_a_read_only_data_folder_is_read_and_never_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    (data / "banking77").mkdir(parents=True)
    (data / "banking77" / "test.csv").touch()
    data.chmod(0o555)
    monkeypatch.setenv("STILLHOUSE_DATA", str(data))
    monkeypatch.setattr(stream_files.pooch, "os_cache", lambda name: cache)
    try:
        assert cache_path("banking77/test.csv") == data / "banking77" / "test.csv"
        assert cache_path("river/rows.npz") == cache / "river" / "rows.npz"
    finally:
        data.chmod(0o755)
    assert cache_path("river/rows.npz") == data / "river" / "rows.npz"


def test_a_file_that_cannot_be_had_is_named_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = stream_files.PublicFile("folder/file.csv", "0" * 64, address="http://127.0.0.1:9/file.csv")
    monkeypatch.setitem(stream_files.FILES, "test", file)
    monkeypatch.setenv("STILLHOUSE_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        stream_files.fetch("test")
    for part in ("http://127.0.0.1:9/file.csv", str(tmp_path / "folder"), "STILLHOUSE_DATA", "0" * 64):
        assert part in str(caught.value)


def test_another_file_in_its_place_is_refused_and_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = stream_files.PublicFile("file.csv", hashlib.sha256(b"right").hexdigest(), command=("false",))
    monkeypatch.setitem(stream_files.FILES, "test", file)
    monkeypatch.setenv("STILLHOUSE_DATA", str(tmp_path))
    (tmp_path / "file.csv").write_bytes(b"right")
    assert stream_files.fetch("test") == tmp_path / "file.csv"
    (tmp_path / "file.csv").write_bytes(b"wrong")
    with pytest.raises(DataError, match="SHA-256"):
        stream_files.fetch("test")
    assert (tmp_path / "file.csv").read_bytes() == b"wrong"


# --------------------------------------------------------------------------- river


def test_there_are_nine_kinds_of_generated_drift() -> None:
    assert len(RIVER_KINDS) == 9 and "agrawal_recurring" in RIVER_KINDS


# --------------------------------------------------------------------------- teachers and the plain script


def test_teachers_are_saved_in_native_formats_and_read_again(tmp_path: Path) -> None:
    table = moving_threshold(0, weeks=4).rows
    features = table.drop(columns="outcome")
    boosting = Boosting(actions=2).fit(features, table["outcome"].to_numpy())
    boosting.save(tmp_path / "boosting")
    np.testing.assert_allclose(
        Boosting.load(tmp_path / "boosting").predict_proba(features), boosting.predict_proba(features)
    )
    texts = pd.DataFrame({"text": ["cheap pills", "the minutes", "a question"] * 20})
    words = Words(actions=4).fit(texts, np.array([0, 1, 3] * 20))
    words.save(tmp_path / "words")
    probs = Words.load(tmp_path / "words").predict_proba(texts)
    np.testing.assert_allclose(probs, words.predict_proba(texts))
    assert probs.shape == (60, 4) and probs[:, 2].max() < 1e-3  # an action without an example


def test_the_plain_script_is_close_to_the_best_possible_decisions() -> None:
    stream = rotating(0)
    train = stream.rows[stream.step_numbers() < 4]
    predict = plain_script(train, stream.settings, seed=0)
    test = stream.rows_of(4)
    probs = predict(test)
    np.testing.assert_allclose(probs.sum(axis=1), 1)
    accuracy = (probs.argmax(axis=1) == test["outcome"]).mean()
    assert accuracy > 0.74  # the best possible is about 0.82 before the first turn
    np.testing.assert_array_equal(probs, plain_script(train, stream.settings, seed=0)(test))


def test_the_plain_script_learns_texts_and_rows_without_labels() -> None:
    rows = pd.DataFrame({"text": ["cheap pills", "the minutes", "a question"] * 60, "outcome": [0, 1, 2] * 60})
    columns = {"text": {"type": "text", "max_length": 40}}
    student = {"kind": "text", "encoder": {"type": "bag", "width": 16}, "widths": []}
    settings = agent_settings(
        "words", ["spam", "wanted", "asked"], columns, "benchmarks.stream_teachers:Words", student
    )
    probs = np.eye(3)[rows["outcome"]]
    rows.loc[:89, "outcome"] = -1
    probs[90:] = np.nan
    predict = plain_script(rows, settings, seed=0, teacher_probs=probs)
    assert predict(pd.DataFrame({"text": ["pills", "minutes", "question"]})).argmax(axis=1).tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="too few"):
        plain_script(rows.tail(20), settings, seed=0, teacher_probs=probs[-20:])
