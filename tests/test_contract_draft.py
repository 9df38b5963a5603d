"""A draft contains the observed limits, is a valid section, and accepts the following weeks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from data_checks.check import check
from stillhouse.config import AgentConfig, CategoryColumn, NumberColumn, load_file
from stillhouse.contract_draft import draft, load_rows
from stillhouse.errors import PartError, SchemaError, WindowError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import Window
from tests.agents import agent_sections

START = pd.Timestamp("2024-03-01T00:00Z")
ROOT = Path(__file__).parent.parent


def agent(current: str = "7d", student: dict[str, Any] | None = None, **observations: Any) -> dict[str, Any]:
    source = {"source": "tests.test_contract_draft:source", "since": "2024-03-01T00:00:00Z"}
    return agent_sections(
        observations={**source, "columns": {"temp": {"type": "number"}}, **observations},
        student=student or {},
        windows={"current": current},
        watch={"thresholds": {}},
    )


def draft_and_load(rows: pd.DataFrame, **settings: Any) -> tuple[str, AgentConfig]:
    """The draft, and an agent file with the draft as its section."""
    config = agent(**settings)
    text = draft(rows, AgentConfig.model_validate(config))
    config["observations"] = yaml.safe_load(text)["observations"]
    return text, AgentConfig.model_validate(config)


def make_rows(days: int = 28, per_day: int = 50, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    n = days * per_day
    temp = rng.uniform(-3, 17, n)
    return pd.DataFrame(
        {
            "observation_id": [f"o{seed}-{i}" for i in range(n)],
            "observed_at": START + pd.to_timedelta(np.arange(n) * 86_400 // per_day, unit="s"),
            "temp": temp,
            "dewp": temp - rng.exponential(2, n) * (rng.random(n) < 0.8),
            "humid": np.where(rng.random(n) < 0.01, 100, rng.uniform(20, 99, n)),
            "rain": np.where(rng.random(n) < 0.1, rng.exponential(1, n), 0),
            "gust": np.where(rng.random(n) < 0.6, np.nan, rng.uniform(20, 45, n)),
            "weekday": rng.integers(0, 7, n),
            "carrier": rng.choice(["AA", "NO", "9E"], n),
            "ticket": [f"t{i}" for i in range(n)],
        }
    )


def source(start: datetime, end: datetime) -> pd.DataFrame:
    rows = make_rows()
    return rows[(rows["observed_at"] >= start) & (rows["observed_at"] < end)]


def broken_source(start: datetime, end: datetime) -> pd.DataFrame:
    raise OSError("no route to the feed")


# --------------------------------------------------------------------------- what is drafted


def test_values_are_drafted_as_stored_and_repeated_columns_are_refused():
    rows = make_rows().head(400).assign(code=pd.Series([1.0, 2.0, None, True] * 100, dtype=object))
    text, _ = draft_and_load(rows, columns={"code": {"type": "category"}})
    assert yaml.safe_load(text)["observations"]["columns"]["code"]["values"] == ["1", "2", "true"]
    with pytest.raises(SchemaError, match="the rows have more than one column 'code'"):
        draft(pd.concat([rows, rows[["code"]]], axis=1), AgentConfig.model_validate(agent()))


def test_ranges_are_wide_and_rounded_and_keep_natural_limits():
    rows = make_rows()
    rows.loc[:1, "temp"] = [-3, 17]
    columns = draft_and_load(rows)[1].observations.columns
    assert columns["temp"] == NumberColumn(type="number", min=-25, max=40)
    assert (columns["humid"].min, columns["humid"].max) == (0, 100)  # a percentage
    assert (columns["weekday"].min, columns["weekday"].max) == (0, 6)  # many rows lie on both ends
    assert columns["rain"].min == 0 and columns["rain"].max > 6
    assert columns["gust"].min == 0 and columns["gust"].max == 70


def test_a_range_contains_the_observed_values_at_any_scale():
    rng = np.random.default_rng(3)
    rows = make_rows(4)
    for _ in range(200):
        values = rng.normal(size=len(rows)) * 10.0 ** rng.integers(-8, 9) + rng.normal() * 10.0 ** rng.integers(-8, 9)
        text, config = draft_and_load(rows[["observation_id", "observed_at"]].assign(temp=values))
        column = config.observations.columns["temp"]
        assert column.min <= values.min() and values.max() <= column.max, text
        span = np.ptp(values)
        assert column.max - column.min <= 3.6 * span + 1e-12 * np.abs(values).max(), text


@pytest.mark.parametrize("value", [0.0, 7.0, -2.5, 1e300, float("inf")])
def test_a_constant_column_gives_only_a_sign(value):
    column = draft_and_load(make_rows(4).assign(temp=value))[1].observations.columns["temp"]
    expected = (None, None) if value == np.inf else (None, 0) if value < 0 else (0, None)
    assert (column.min, column.max) == expected


NAMES = (
    "wind\nspeed",
    "a\r",
    "tab\t",
    "x\x85y",
    "x\u2028y",
    "\u2029",
    "\u202egnp",
    "\ufeff",
    "\x00",
    "\x1b[31m",
    "a: b",
    "# x",
    "yes",
    "1.0",
    "~",
    "<<",
    "=",
    "'",
    '"',
    "\\n",
    "{x}",
    "[/INST]",
    "a, b",
    "!t",
    "&a",
    "*a",
    "%d",
    " lead",
    "é 日本 😀",
    "x" * 1500,
)


@pytest.mark.parametrize("name", NAMES)
def test_names_and_values_are_unchanged_in_the_draft(name):
    rows = make_rows()
    rows = rows.assign(**{name: ["plain", name] * (len(rows) // 2)})
    text, config = draft_and_load(rows)
    column = config.observations.columns[name]
    assert isinstance(column, CategoryColumn) and set(column.values or ()) == {"plain", name}
    assert not set("\r\x85\u2028\u2029\u202e\ufeff\x00\x1b") & set(text)
    assert all(yaml.safe_load(text)["observations"]["columns"])


@pytest.mark.parametrize("tiny", [5e-324, 1e-310, 2.3e-308, 1e-291])
def test_a_range_of_the_smallest_numbers_says_the_sign(tiny):
    _, config = draft_and_load(make_rows().assign(tiny=[0.0, tiny] * 700))
    column = config.observations.columns["tiny"]
    assert isinstance(column, NumberColumn) and column.min == 0 and (column.max is None or column.max >= tiny)


def test_columns_of_one_name_are_refused_by_name():
    rows = make_rows()
    with pytest.raises(SchemaError, match="more than one column 'temp'"):
        draft_and_load(pd.concat([rows, rows[["temp"]]], axis=1))


def test_missing_shares_have_a_margin():
    columns = draft_and_load(make_rows())[1].observations.columns
    assert columns["temp"].max_missing == 0 and 0.9 < columns["gust"].max_missing <= 1
    rows = make_rows()
    rows.loc[:9, "temp"] = np.nan  # a fifth of one day, and under 1 % of all
    assert draft_and_load(rows)[1].observations.columns["temp"].max_missing == pytest.approx(0.3)


def test_categories_are_closed_where_few_and_known_early():
    text, config = draft_and_load(make_rows())
    assert config.observations.columns["carrier"] == CategoryColumn(
        type="category", values=("9E", "AA", "NO"), max_unknown=0.02
    )
    assert "# ticket: left out; nearly every row has another value" in text
    many = draft_and_load(make_rows().assign(carrier=[f"c{i % 60}" for i in range(1400)]))[1].observations.columns[
        "carrier"
    ]
    new = draft_and_load(make_rows().assign(carrier=[f"c{i // 50}" for i in range(1400)]))[1].observations.columns[
        "carrier"
    ]
    assert many.values is None and new.values is None


def test_sentences_are_a_text_where_the_student_reads_texts():
    words = np.array(["where", "is", "my", "bag", "please", "the", "flight", "late"])
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, rng.integers(3, 9))) for _ in range(1400)]
    rows = make_rows().assign(message=[" ", *texts[1:]])
    text, config = draft_and_load(rows, student={"kind": "text"}, columns={"note": {"type": "text"}})
    column = config.observations.columns["message"]
    assert column.type == "text" and column.max_missing == 0.05
    longest = max(map(len, texts))
    assert 3 * longest <= column.max_length <= 3.3 * longest
    assert f"3 to 8 words, at most {longest} characters" in text
    assert config.observations.columns["carrier"].type == "category"
    assert config.observations.columns["note"].type == "text" and "not in these rows" in text
    draft = draft_and_load(
        rows, student={"kind": "text"}, columns={"message": {"type": "text", "max_length": 9, "drift": False}}
    )
    column = draft[1].observations.columns["message"]
    assert (column.max_length, column.drift) == (9, False)
    text, config = draft_and_load(rows)
    assert "message" not in config.observations.columns
    assert "# message: left out; a text, which only a student of kind 'text' reads" in text


def test_keys_of_the_agent_file_are_kept():
    settings = {
        "columns": {
            "carrier": {"type": "category", "drift": False},
            "temp": {"type": "number", "min": -1, "max_missing": 0.25, "drift": False},
            "later": {"type": "number", "max": 3},
        },
        "freshness": "90s",
        "volume": {"min_per_day": 1},
        "max_bad_rows": 0.125,
        "min_rows": 7,
        "unique": [["observed_at", "carrier"]],
        "rules": [{"type": "ordered", "low": "later", "high": "temp", "max_broken": 0.5}],
    }
    rows = make_rows()
    rows.loc[:1, "temp"] = [-3, 17]
    text, config = draft_and_load(rows, **settings)
    observations = config.observations
    assert list(observations.columns)[:3] == ["carrier", "temp", "later"]
    assert observations.columns["temp"] == NumberColumn(type="number", min=-1, max=40, max_missing=0.25, drift=False)
    assert observations.columns["later"] == NumberColumn(type="number", max=3) and "not in these rows" in text
    assert not observations.columns["carrier"].drift and observations.columns["carrier"].values == ("9E", "AA", "NO")
    assert (observations.freshness, observations.volume.min_per_day) == (timedelta(seconds=90), 1)
    assert (observations.max_bad_rows, observations.min_rows) == (0.125, 7)
    assert observations.unique[0] == ("observed_at", "carrier") and observations.rules[0].max_broken == 0.5
    assert "of the rows are outside" in text


def test_freshness_and_volume_come_from_days_and_silences():
    text, config = draft_and_load(make_rows())
    assert config.observations.freshness == timedelta(hours=1) and "longest time without a row: 28m 48s" in text
    assert (config.observations.volume.min_per_day, config.observations.volume.max_per_day) == (25, 100)
    silent = make_rows().drop(index=range(200, 400))
    text, config = draft_and_load(silent)
    assert config.observations.freshness is None and "left out" in text
    assert config.observations.volume.min_per_day is None
    hourly = draft_and_load(make_rows(), current="1h")[1].observations
    assert hourly.freshness is None and hourly.volume.max_per_day >= 96  # an hour with two or three rows


def test_rules_are_drafted_if_independent_columns_would_break_them():
    rules = draft_and_load(make_rows())[1].observations.rules
    assert [(rule.low, rule.high) for rule in rules] == [("dewp", "temp")]
    rng = np.random.default_rng(1)
    for seed in range(5):
        rows = make_rows(seed=seed)
        loose = rows[["observation_id", "observed_at"]].assign(temp=rng.normal(size=1400), other=rng.normal(size=1400))
        assert draft_and_load(loose)[1].observations.rules == ()


def test_a_rule_that_follows_from_two_others_is_left_out():
    rows = make_rows()
    rows = rows.assign(low=rows["dewp"] - np.random.default_rng(0).exponential(1, len(rows)))
    assert {(rule.low, rule.high) for rule in draft_and_load(rows)[1].observations.rules} == {
        ("low", "dewp"),
        ("dewp", "temp"),
    }


def test_pairs_and_unique_combinations():
    rng = np.random.default_rng(2)
    rows = make_rows()
    slots = pd.MultiIndex.from_product([rows["observed_at"].unique()[::40], list("ABCDE"), list("xyz")])
    sampled = rng.permutation(len(slots))[:400]
    rows = rows.iloc[:400].assign(
        observed_at=slots.get_level_values(0)[sampled],
        seat=slots.get_level_values(1)[sampled],
        row=slots.get_level_values(2)[sampled],
    )
    rows["zone"] = rows["seat"].map({"A": "front", "B": "front", "C": "back", "D": "back", "E": "back"})
    config = draft_and_load(rows.drop(columns=["dewp"]))[1]
    assert ("observed_at", "seat", "row") in config.observations.unique
    (pairs,) = config.observations.rules
    assert set(pairs.columns) == {"seat", "zone"} and len(pairs.allowed) == 5


def test_columns_that_are_no_features_are_left_out():
    rows = make_rows(8).assign(when=START, nothing=None, lists=[[1]] * 400, z=1j, flag=True)
    rows[7] = 1.0
    rows["a: #b"] = 1.5
    text, config = draft_and_load(rows)
    assert {"when", "nothing", "lists", "z", "ticket"} & config.observations.columns.keys() == set()
    assert text.count("left out;") == 6
    assert {"flag", "a: #b"} <= config.observations.columns.keys()


def test_rows_without_a_draft_are_refused():
    config = AgentConfig.model_validate(agent())
    with pytest.raises(WindowError, match=r"has 50 rows, and a draft needs 100"):
        draft(make_rows(1), config)
    with pytest.raises(SchemaError, match="lack observed_at"):
        draft(make_rows().drop(columns="observed_at"), config)
    with pytest.raises(SchemaError, match="time zone"):
        draft(make_rows().assign(observed_at=pd.Timestamp("2024-01-01")), config)


def test_any_frame_gives_a_draft_that_is_accepted_and_keeps_its_own_rows():
    """For any columns the draft loads, and the rows that it was drafted from keep it."""
    rng = np.random.default_rng(11)
    for seed in range(25):
        rows = make_rows(9, seed=seed)[["observation_id", "observed_at", "temp"]]
        for i in range(rng.integers(1, 8)):
            values = [
                rng.normal(size=450) * 10.0 ** rng.integers(-3, 4),
                rng.integers(-2, 3, 450),
                rng.choice([0, 1], 450),
                rng.choice(["a", "yes", "1", "", "é: {"], 450),
                np.zeros(450),
                rng.uniform(size=450).astype("float32"),
                np.round(rng.exponential(size=450), 1),
                rng.choice(["x", "y"], 450),
            ][rng.integers(8)]
            rows[f"c{i}"] = pd.Series(values).mask(rng.random(450) < rng.choice([0, 0, 0.02, 0.5]))
        text, config = draft_and_load(rows)
        window = Window(name="drafted", start=START.to_pydatetime(), end=(START + pd.Timedelta("9D")).to_pydatetime())
        report, bad = check(rows, window, config)
        assert report.failures == () and bad.empty, text


# --------------------------------------------------------------------------- reading the rows


def test_rows_come_from_the_source_until_the_knowledge_base_has_some(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path))
    config = AgentConfig.model_validate(agent())
    days = timedelta(days=10)
    assert len(load_rows(config, None, None, days)) == 500
    end = datetime(2024, 3, 21, tzinfo=UTC)
    assert load_rows(config, None, end, days)["observed_at"].min() == pd.Timestamp("2024-03-11T00:00Z")
    KnowledgeBase(config).append_observations(make_rows(15), batch="b")
    newest = load_rows(config, None, None, days)
    assert len(newest) == 500 and newest["observed_at"].max() == make_rows(15)["observed_at"].max()
    assert "carrier" not in newest and "carrier" in load_rows(config, None, None, days, from_source=True)
    start = datetime(2024, 3, 2, tzinfo=UTC)
    assert len(load_rows(config, start, datetime(2024, 3, 4, tzinfo=UTC), days)) == 100


def test_a_source_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path))
    config = AgentConfig.model_validate(agent(source="tests.test_contract_draft:broken_source"))
    with pytest.raises(PartError, match=r"observations\.source fails from 2024-03-01 .*OSError: no route to the feed"):
        load_rows(config, None, None, timedelta(days=1))


# --------------------------------------------------------------------------- real flights


def test_the_draft_of_january_accepts_the_following_weeks_of_flights(tmp_path):
    from examples.flights import departures

    file = ROOT / "agents" / "flights.yaml"
    flights = load_file(file)
    bare = {
        "source": "examples.flights:departures",
        "since": "2013-01-01T05:00:00Z",
        "columns": {"minute": {"type": "number"}},
    }
    since = flights.observations.since
    section = type(flights.observations).model_validate(bare)
    text = draft(departures(since, since + timedelta(weeks=4)), flights.model_copy(update={"observations": section}))

    settings = yaml.safe_load(file.read_text(encoding="utf-8"))
    settings["observations"] = yaml.safe_load(text)["observations"]
    settings["promotion"] = {}
    (tmp_path / "flights.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    config = load_file(tmp_path / "flights.yaml")
    assert set(config.observations.columns) == set(flights.observations.columns)
    assert {("dewp", "temp"), ("visib_3h", "visib")} <= {(rule.low, rule.high) for rule in config.observations.rules}
    for week in (4, 12, 22, 27, 34, 47):
        start = since + timedelta(weeks=week)
        window = Window(name="current", start=start, end=start + timedelta(weeks=1))
        report, bad = check(departures(start, window.end), window, config)
        assert not report.broken and len(bad) < 0.02 * report.rows, [failure.text for failure in report.failures]
