"""Rows of logs are imported once, through kills, changes and repetition; errors name the line."""

from __future__ import annotations

import gzip
import json
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stillhouse.config import AgentConfig, home
from stillhouse.errors import RuntimeStateError, SchemaError
from stillhouse.knowledge import KnowledgeBase, log_files
from stillhouse.knowledge.importing import ImportSummary, import_files, preview
from stillhouse.knowledge.importing import run as import_run
from stillhouse.knowledge.importing.keys import KeySet, _is_in
from stillhouse.knowledge.log_files import LogFile
from stillhouse.knowledge.tables import Tables
from tests.knowledge.parts_for_tests import START, make_config

HOUR = timedelta(hours=1)

MAPPED: dict[str, Any] = {
    "observation_id": "id",
    "observed_at": "when",
    "columns": {"temp": "Temperature"},
    "actions": {"1": "move", "0": "stay"},
    "decision": {"action": "did", "probabilities": {"stay": "p0", "move": "p1"}, "version": "model"},
    "outcome": {"action": "truth", "known_at": "known"},
}


def make(tmp_path: Path, **changes: Any) -> KnowledgeBase:
    mapping = {key: value for key, value in (MAPPED | changes).items() if value is not None}
    raw = make_config().model_dump() | {"importing": mapping}
    return KnowledgeBase(AgentConfig.model_validate(raw), tmp_path / "kb")


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))


def logged(first: int, count: int) -> pd.DataFrame:
    """Rows of a log, one per hour; every third without an outcome."""
    numbers = range(first, first + count)
    return pd.DataFrame(
        {
            "id": [f"r{i}" for i in numbers],
            "when": [(START + i * HOUR).isoformat() for i in numbers],
            "Temperature": [i / 4 for i in numbers],
            "wind": [i % 7 for i in numbers],
            "origin": ["EWR" if i % 2 else "JFK" for i in numbers],
            "did": [str(i % 2) for i in numbers],
            "p0": [0.75 - 0.5 * (i % 2) for i in numbers],
            "p1": [0.25 + 0.5 * (i % 2) for i in numbers],
            "model": ["old"] * count,
            "truth": ["move" if i % 3 else None for i in numbers],
            "known": [(START + (i + 5) * HOUR).isoformat() for i in numbers],
        }
    )


def write(path: Path, rows: pd.DataFrame) -> Path:
    match path.suffixes:
        case [*_, ".csv", ".gz"] | [".csv"]:
            rows.to_csv(path, index=False)
        case [*_, ".jsonl", ".gz"] | [".jsonl"]:
            rows.to_json(path, orient="records", lines=True)
        case _:
            rows.to_parquet(path)
    return path


def everything(base: KnowledgeBase) -> pd.DataFrame:
    return base.read_observations(base.window("all", START, START + 10_000 * HOUR))


def counted(summary: ImportSummary) -> dict[str, int]:
    return {key: value for key, value in vars(summary).items() if isinstance(value, int) and value}


FORMATS = ["log.csv", "log.csv.gz", "log.jsonl", "log.jsonl.gz", "log.parquet"]


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    base = make(tmp_path)
    counts: list[int] = []
    path = write(tmp_path / name, logged(0, 9))
    summary = import_files(base, [path], lambda _, count: counts.append(count))
    assert counted(summary) == {"rows": 9, "added": 9, "decisions": 9, "outcomes": 6}
    assert sum(counts) == 2 * path.stat().st_size
    rows = everything(base)
    assert rows["observation_id"].tolist() == [f"r{i}" for i in range(9)]
    assert rows["observed_at"].tolist() == [START + i * HOUR for i in range(9)]
    np.testing.assert_array_equal(rows["temp"], np.arange(9) / 4)
    np.testing.assert_array_equal(rows["wind"], np.arange(9.0) % 7)
    assert rows["origin"].tolist() == ["JFK", "EWR"] * 4 + ["JFK"]

    decisions = base.read("decisions")
    assert decisions["action"].tolist() == ["stay", "move"] * 4 + ["stay"]
    assert [probs.tolist() for probs in decisions["probabilities"][:2]] == [[0.75, 0.25], [0.25, 0.75]]
    assert decisions["decision_id"][3] == "r3:old"
    assert set(decisions["version"]) == {"old"} and set(decisions["decider"]) == {"elsewhere"}
    assert (decisions["decided_at"] == decisions["observed_at"]).all()
    labelled = base.read_labelled(base.window("all", START, START + 99 * HOUR), START + 12 * HOUR)
    assert labelled["observation_id"].tolist() == ["r1", "r2", "r4", "r5", "r7"]  # that of r8 is known an hour later
    assert set(labelled["outcome"]) == {1}


def test_without_a_mapping_columns_have_the_names_of_the_tables(tmp_path: Path) -> None:
    base = KnowledgeBase(make_config(), tmp_path / "kb")
    rows = logged(0, 4).rename(columns={"id": "observation_id", "when": "observed_at", "Temperature": "temp"})
    assert counted(import_files(base, [write(tmp_path / "a.csv", rows)])) == {"rows": 4, "added": 4}


def test_stored_rows_are_not_imported_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_run, "_CHUNK_ROWS", 3)
    base = make(tmp_path)
    first = write(tmp_path / "a.csv", pd.concat([logged(0, 8), logged(2, 2)]))
    second = write(tmp_path / "b.jsonl", pd.concat([logged(5, 5), logged(9, 1)]))
    summary = import_files(base, [first, second])
    assert counted(summary) == {"rows": 16, "added": 10, "duplicates": 6, "decisions": 10, "outcomes": 6}
    assert len(base.read("observations")) == 10 and len(base.read("decisions")) == 10

    again = import_files(base, [first, second])
    assert again.added == again.decisions == again.outcomes == 0 and again.before + again.duplicates == 16
    assert len(base.read("observations")) == 10 and len(base.read("outcomes")) == 6

    renamed = write(tmp_path / "c.csv", logged(0, 8).assign(extra=1))  # other file content
    assert counted(import_files(base, [renamed])) == {"rows": 8, "duplicates": 8}


def test_a_later_outcome_is_added_to_a_stored_observation(tmp_path: Path) -> None:
    base = make(tmp_path)
    import_files(base, [write(tmp_path / "a.csv", logged(0, 6))])
    later = import_files(base, [write(tmp_path / "b.csv", logged(0, 6).assign(truth="0"))])
    assert counted(later) == {"rows": 6, "duplicates": 6, "outcomes": 6}
    assert set(base.read_labelled(base.window("all", START, START + 99 * HOUR), START + 99 * HOUR)["outcome"]) <= {0, 1}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("table", ["quarantine", "decisions", "outcomes", "observations"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_killed_import_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, moment: str) -> None:
    monkeypatch.setattr(import_run, "_CHUNK_ROWS", 4)
    base = make(tmp_path)
    rows = logged(0, 15).astype({"wind": object})
    rows.loc[[1, 6, 10], "wind"] = "strong"
    path = write(tmp_path / "a.csv", rows)
    append, calls = Tables.append, [0]

    def dying(self: Tables, name: str, *args: Any, **kwargs: Any) -> int:
        calls[0] += name == table
        if name == table and calls[0] == 2 and moment == "before":
            raise Killed
        done = append(self, name, *args, **kwargs)
        if name == table and calls[0] == 2:
            raise Killed
        return done

    with monkeypatch.context() as patch:
        patch.setattr(Tables, "append", dying)
        with pytest.raises(Killed):
            import_files(base, [path])
    assert len(base.read("observations")) < 12
    summary = import_files(base, [path])
    assert summary.rows == 15 and summary.before >= 4
    for name, key, count in (
        ("observations", "observation_id", 12),
        ("decisions", "decision_id", 12),
        ("outcomes", "observation_id", 8),
        ("quarantine", "observation_id", 3),
    ):
        actual = base.read(name)
        assert len(actual) == count and actual[key].is_unique, name
    assert not list((home() / "imports" / "toy").iterdir())


def test_a_file_that_changed_after_an_interruption_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_run, "_CHUNK_ROWS", 3)

    def interrupted(base: KnowledgeBase, path: Path) -> None:
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(LogFile, "require_unchanged", lambda self: (_ for _ in ()).throw(Killed))
            import_files(base, [path])

    path = write(tmp_path / "a.csv", logged(0, 6))
    base = make(tmp_path)
    interrupted(base, path)
    write(path, logged(0, 8))
    summary = import_files(base, [path])
    assert summary.added == 8 and "a.csv was changed since an import of it was interrupted" in summary.notes[0]

    by_line = make(tmp_path / "lines", observation_id=None, made_of="line")
    interrupted(by_line, path)
    write(path, logged(0, 9))
    with pytest.raises(SchemaError, match=r"a\.csv was changed since .* would come twice"):
        import_files(by_line, [path])
    write(path, logged(0, 8))
    assert import_files(by_line, [path]).added == 8


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_run, "_CHUNK_ROWS", 3)
    path, base = write(tmp_path / "a.csv", logged(0, 9)), make(tmp_path)

    def meddle(what: str, _: int) -> None:
        if what.startswith("importing"):
            with path.open("a") as file:
                file.write("more\n")

    with pytest.raises(SchemaError, match="changed while it was being read"):
        import_files(base, [path], meddle)
    write(path, logged(0, 9))
    assert import_files(base, [path]).rows == 9 and len(base.read("observations")) == 9


# --------------------------------------------------------------------------- ids and moments


def test_ids_by_content_and_time_recognise_rows_in_any_file(tmp_path: Path) -> None:
    base = make(tmp_path, observation_id=None)
    twice = pd.concat([logged(0, 4), logged(0, 1), logged(0, 1).assign(wind=9)])
    summary = import_files(base, [write(tmp_path / "a.csv", twice), write(tmp_path / "b.parquet", logged(0, 4))])
    assert (summary.added, summary.duplicates) == (5, 5)
    assert everything(base)["observation_id"].is_unique


def test_ids_by_line_keep_identical_rows(tmp_path: Path) -> None:
    base = make(tmp_path, observation_id=None, made_of="line")
    path = write(tmp_path / "a.csv", pd.concat([logged(0, 4), logged(0, 1)]))
    assert import_files(base, [path]).added == 5
    assert import_files(base, [path]).added == 0
    assert len(everything(base)) == 5


MOMENTS: list[tuple[dict[str, str], Any, datetime | str]] = [
    ({}, "2013-06-01T12:00:00+02:00", START.replace(month=6, hour=10)),
    ({}, "2013-06-01 12:00Z", START.replace(month=6, hour=12)),
    ({}, "2013-06-01T12:00:00", "says no time zone"),
    ({}, "noon", "'noon' is no ISO moment"),
    ({"timezone": "America/New_York"}, "2013-06-01T12:00:00", START.replace(month=6, hour=16)),
    ({"timezone": "America/New_York"}, "2013-06-01T12:00:00Z", START.replace(month=6, hour=12)),
    ({"timezone": "America/New_York"}, "2013-11-03T01:30:00", "comes twice or never in America/New_York"),
    ({"timezone": "America/New_York"}, "2013-03-10T02:30:00", "comes twice or never in America/New_York"),
    ({"format": "s"}, 1370088000, START.replace(month=6, hour=12)),
    ({"format": "s"}, 1370088000.25, START.replace(month=6, hour=12, microsecond=250_000)),
    ({"format": "ms"}, "1370088000250", START.replace(month=6, hour=12, microsecond=250_000)),
    ({"format": "us"}, 1370088000250001, START.replace(month=6, hour=12, microsecond=250_001)),
    ({"format": "s"}, 1370088000250, "is before 1700 or after now"),
    ({"format": "s"}, "then", "'then' is no number of s since 1970"),
    ({"format": "%d.%m.%Y %H:%M", "timezone": "Europe/Berlin"}, "01.06.2013 12:00", START.replace(month=6, hour=10)),
    ({"format": "%d.%m.%Y %H:%M %z"}, "01.06.2013 12:00 +0200", START.replace(month=6, hour=10)),
    ({"format": "%d.%m.%Y %H:%M", "timezone": "UTC"}, "2013-06-01", "is not of the form %d.%m.%Y %H:%M"),
    ({}, "", "when: is missing"),
    ({"timezone": "America/New_York"}, "2013-06-01", START.replace(month=6, hour=4)),
    ({"timezone": "America/New_York"}, "20130601", START.replace(month=6, hour=4)),
    ({"timezone": "America/New_York"}, "2013-06-01T12", START.replace(month=6, hour=16)),
    ({"timezone": "America/New_York", "format": "%d.%m.%Y"}, "01.06.2013", START.replace(month=6, hour=4)),
    ({}, "2013-06-01", "says no time zone: write `{column: when, timezone: …}` in `importing`"),
    ({}, "2013-06", "'2013-06' says no time zone"),
    ({}, "2013-06-01T12-05", START.replace(month=6, hour=17)),
    ({"timezone": "UTC"}, 1370088000, "is no ISO moment"),
    ({"timezone": "UTC"}, "now", "'now' is no ISO moment"),  # pandas would parse it
    ({"timezone": "UTC", "format": "%d.%m.%Y"}, "today", "'today' is not of the form"),
]


@pytest.mark.parametrize(("settings", "written", "expected"), MOMENTS)
@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
def test_times(tmp_path: Path, name: str, settings: dict[str, str], written: Any, expected: datetime | str) -> None:
    config = make(tmp_path, observed_at={"column": "when"} | settings, outcome=None).config
    rows = logged(0, 2).astype({"when": object})
    rows["when"] = written
    (actual,) = preview(config, [write(tmp_path / name, rows)])
    if isinstance(expected, str):
        assert actual.rows.empty and expected in actual.problems[0].reason
    else:
        assert actual.rows["observed_at"].tolist() == [expected] * 2 and not actual.problems


def test_timestamps_in_parquet(tmp_path: Path) -> None:
    base = make(tmp_path, observed_at={"column": "when", "timezone": "America/New_York"}, outcome=None)
    naive = logged(0, 3).assign(when=pd.to_datetime(["2013-06-01 12:00:00"] * 3))
    zoned = logged(3, 3).assign(when=pd.to_datetime(["2013-06-01 12:00:00"] * 3).tz_localize("Europe/Berlin"))
    import_files(base, [write(tmp_path / "a.parquet", naive), write(tmp_path / "b.parquet", zoned)])
    hours = base.read("observations").set_index("observation_id")["observed_at"].dt.hour
    assert set(hours[["r0", "r1", "r2"]]) == {16} and set(hours[["r3", "r4", "r5"]]) == {10}


@pytest.mark.parametrize("zone", [None, "America/New_York"])
def test_times_beyond_microsecond_range_are_bad_rows(tmp_path: Path, zone: str | None) -> None:
    when = pa.array([2**50, -(2**50), 0], pa.timestamp("s", zone))
    pq.write_table(pa.Table.from_pandas(logged(0, 3)).set_column(1, "when", when), tmp_path / "a.parquet")
    config = make(tmp_path, observed_at={"column": "when", "timezone": "UTC"}, outcome=None).config
    (actual,) = preview(config, [tmp_path / "a.parquet"])
    assert actual.rows["observed_at"].tolist() == [pd.Timestamp(0, tz="UTC")]
    assert [problem.line for problem in actual.problems] == [1, 2]
    assert all("is before 1700 or after now" in problem.reason for problem in actual.problems)


def test_a_date_beyond_python_names_the_file(tmp_path: Path) -> None:
    days = pa.array([2**30], pa.date32())
    pq.write_table(pa.Table.from_pandas(logged(0, 1)).set_column(4, "origin", days), tmp_path / "a.parquet")
    with pytest.raises(SchemaError, match=r"a\.parquet cannot be read as Parquet: year .* is out of range"):
        list(preview(make(tmp_path).config, [tmp_path / "a.parquet"]))


def test_large_integers_in_parquet_stay_exact(tmp_path: Path) -> None:
    base = make(tmp_path, decision=None, outcome=None)
    ids = pa.array([2**60 + 1, None, 2**60 + 3], pa.int64())
    table = pa.Table.from_pandas(logged(0, 3)).set_column(0, "id", ids)
    pq.write_table(table, tmp_path / "a.parquet")
    summary = import_files(base, [tmp_path / "a.parquet"])
    assert everything(base)["observation_id"].tolist() == [str(2**60 + 1), str(2**60 + 3)]
    assert [str(problem) for problem in summary.problems] == ["a.parquet:2: id: is missing"]


def test_dates_of_parquet_are_midnight_in_the_files_zone(tmp_path: Path) -> None:
    days = pa.array([date(2013, 6, 1), None, date(2013, 11, 3)])
    table = pa.Table.from_pandas(logged(0, 3)).set_column(1, "when", days)
    pq.write_table(table, tmp_path / "a.parquet")
    zone = {"column": "when", "timezone": "America/New_York"}
    for form in ({}, {"format": "%d.%m.%Y"}):
        (actual,) = preview(make(tmp_path, observed_at=zone | form, outcome=None).config, [tmp_path / "a.parquet"])
        assert actual.rows["observed_at"].tolist() == [
            START.replace(month=6, hour=4),
            START.replace(month=11, day=3, hour=4),
        ]
        assert [str(problem) for problem in actual.problems] == ["a.parquet:2: when: is missing"]
    (nowhere,) = preview(make(tmp_path, outcome=None).config, [tmp_path / "a.parquet"])
    assert nowhere.rows.empty and "2013-06-01" in nowhere.problems[0].reason


VALUES: dict[str, tuple[Any, Any]] = {
    "whole beside a gap": (pa.array([1, None]), ["1", None]),
    "large": (pa.array([2**64 - 1, None], pa.uint64()), [str(2**64 - 1), None]),
    "booleans": (pa.array([True, None]), ["true", None]),
    "whole floats": (pa.array([1.0, None]), ["1", None]),
    "decimals": (pa.array([Decimal("1.50"), None]), ["1.5", None]),
    "dates": (pa.array([date(2024, 5, 1), None]), ["2024-05-01", None]),
    "a dictionary": (pa.array(["1.0", None]).dictionary_encode(), ["1.0", None]),
    "a dictionary of numbers": (pa.array([7, None]).dictionary_encode(), ["7", None]),
    "long texts": (pa.array(["a", None], pa.large_string()), ["a", None]),
    "lists": (pa.array([[1], None]), "origin: the array [1] is no text"),
    "structs": (pa.array([{"a": 1}, None]), "origin: the dictionary {'a': 1} is no text"),
    "bytes": (pa.array([b"a", None]), "origin: the bytes b'a' is no text"),
    "durations": (pa.array([timedelta(1), None]), "origin: the Timedelta 1 days 00:00:00 is no text"),
    "ambiguous": (pa.array([2.0**60, None]), "origin: 1.152921504606847e+18 is a float from 2^53 on"),
}


@pytest.mark.parametrize(("values", "expected"), VALUES.values(), ids=VALUES)
def test_every_parquet_type_is_read_or_refused(tmp_path: Path, values: pa.Array, expected: Any) -> None:
    table = pa.Table.from_pandas(logged(0, 2)).set_column(4, "origin", values)
    pq.write_table(table, tmp_path / "a.parquet")
    (actual,) = preview(make(tmp_path).config, [tmp_path / "a.parquet"])
    if isinstance(expected, str):
        assert actual.problems[0].reason.startswith(expected) and actual.rows["observation_id"].tolist() == ["r1"]
    else:
        assert actual.rows["origin"].tolist() == expected and not actual.problems


def test_missing_value_strings_apply_to_dictionary_columns(tmp_path: Path) -> None:
    values = pa.array(["NA", "EWR", None]).dictionary_encode()
    table = pa.Table.from_pandas(logged(0, 3)).set_column(4, "origin", values)
    pq.write_table(table, tmp_path / "a.parquet")
    (actual,) = preview(make(tmp_path, missing=["NA"]).config, [tmp_path / "a.parquet"])
    assert actual.rows["origin"].tolist() == [None, "EWR", None] and not actual.problems


def test_numbers_of_every_type(tmp_path: Path) -> None:
    lines = [json.loads(logged(i, 1).to_json(orient="records", lines=True)) for i in range(7)]
    values = [True, 2**70, "1.5", 3, [1], "nan", "1_0"]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(line | {"wind": wind}) for line, wind in zip(lines, values, strict=True)))
    (actual,) = preview(make(tmp_path).config, [path])
    assert actual.rows["wind"].tolist() == [1.0, 2.0**70, 1.5, 3.0]
    assert [problem.line for problem in actual.problems] == [5, 6, 7]
    assert actual.problems[0].reason == "wind: the list [1] is no number"


def test_ids_and_actions_that_are_numbers_or_booleans(tmp_path: Path) -> None:
    words = {"1": "move", "true": "move", "0": "stay", "false": "stay"}
    base = make(tmp_path, actions=words, outcome={"action": "truth"})
    line = json.loads(logged(0, 1).to_json(orient="records", lines=True))
    values = [(2**60 + 1, 1, True), (2**70, 1.0, False), (True, "0", 0)]
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(line | {"id": i, "did": d, "truth": t}) for i, d, t in values))
    assert counted(import_files(base, [path])) == {"rows": 3, "added": 3, "decisions": 3, "outcomes": 3}
    decisions = base.read("decisions").set_index("observation_id")["action"]
    assert decisions.to_dict() == {str(2**60 + 1): "move", str(2**70): "move", "true": "stay"}
    assert base.read("outcomes").set_index("observation_id")["action"].to_dict() == {
        str(2**60 + 1): "move",
        str(2**70): "stay",
        "true": "stay",
    }


# --------------------------------------------------------------------------- bad rows


CSV = """\
id,when,Temperature,wind,origin,did,p0,p1,model,truth,known
a,2013-01-01T00:00Z,1,2,JFK,0,1,0,m,1,2013-01-02T00:00Z
b,2013-01-01T00:00Z,warm,2,JFK,0,1,0,m,1,2013-01-02T00:00Z
c,2013-01-01T00:00Z,1,2,"New
York",0,1,0,m,1,2013-01-02T00:00Z

d,2013-01-01T00:00Z,1,2
,yesterday,1,inf,JFK,0,1,0,m,1,2013-01-02T00:00Z
e,2013-01-01T00:00Z,1,2,JFK,fly,1,0,m,1,2013-01-02T00:00Z
f,2013-01-01T00:00Z,1,2,JFK,0,1,1,m,1,2013-01-02T00:00Z
g,2013-01-01T00:00Z,1,2,JFK,0,1,0,m,1,2012-01-02T00:00Z
h,2013-01-01T00:00Z,1,2,"J"FK,0,1,0,m,1,2013-01-02T00:00Z
i,2013-01-01T00:00Z,,,,,,,,,
"""
WRONG = [
    "a.csv:3: Temperature: 'warm' is no number",
    "a.csv:7: has 4 values, and there are 11 columns",
    "a.csv:8: when: 'yesterday' is no ISO moment such as 2024-05-01T12:00:00Z; wind: 'inf' is not finite; "
    "id: is missing",
    "a.csv:9: did: 'fly' is no action; there are: stay, move",
    "a.csv:10: p0, p1: [1.0, 1.0] are no probabilities that sum to 1",
    "a.csv:11: known_at: 2012-01-02 00:00:00+00:00 is before observed_at, 2013-01-01 00:00:00+00:00",
    "a.csv:12: cannot be read as CSV: ',' expected after '\"'",
]


def test_bad_lines_go_to_quarantine_with_their_numbers(tmp_path: Path) -> None:
    base, path = make(tmp_path), tmp_path / "a.csv"
    path.write_bytes(
        CSV.encode() + b"j,2013-01-01T00:00Z,1,2,S\xe3o Paulo,0,1,0,m,1,2013-01-02T00:00Z\n"
        b"k,2013-01-01T00:00Z,1,2,JFK,0,1,0,m,1,2013-01-02T00:00Z\n"
    )
    summary = import_files(base, [path])
    wrong = [*WRONG, "a.csv:14: is not UTF-8 (invalid continuation byte)"]
    assert [str(problem) for problem in summary.problems] == wrong
    assert counted(summary) == {"rows": 12, "added": 4, "quarantined": 8, "decisions": 3, "outcomes": 3}
    rows = everything(base).set_index("observation_id")
    assert sorted(rows.index) == ["a", "c", "i", "k"] and rows.loc["c", "origin"] == "New\nYork"
    assert rows.loc["i", ["temp", "wind", "origin"]].isna().all()
    reasons_by_id = base.read("quarantine").set_index("observation_id")["reasons"]
    assert len(reasons_by_id) == 8 and not set(reasons_by_id.index) & set(rows.index)
    (three,) = [reasons.tolist() for reasons in reasons_by_id if len(reasons) == 3]
    assert three == [
        "a.csv:8: when: 'yesterday' is no ISO moment such as 2024-05-01T12:00:00Z",
        "a.csv:8: wind: 'inf' is not finite",
        "a.csv:8: id: is missing",
    ]

    path.write_text(CSV.replace("warm", "3").replace('"J"FK', "JFK"))  # corrected and imported again
    assert import_files(base, [path]).added == 2
    assert sorted(everything(base)["observation_id"]) == ["a", "b", "c", "h", "i", "k"]


def test_bad_lines_of_json(tmp_path: Path) -> None:
    good = json.loads(logged(0, 1).to_json(orient="records", lines=True))
    lines = [
        json.dumps(good),
        "",
        "{",
        "[1, 2]",
        json.dumps(good | {"id": "x", "origin": ["a"]}),
        json.dumps(good | {"id": "y", "wind": {"a": 1}}),
        json.dumps(good | {"id": 7, "wind": True, "origin": 3}),
        json.dumps({key: value for key, value in good.items() if key != "wind"} | {"id": "z"}),
    ]
    path, base = tmp_path / "a.jsonl", make(tmp_path)
    path.write_text("\n".join(lines))
    summary = import_files(base, [path])
    messages = [str(problem) for problem in summary.problems]
    assert (
        messages[0].startswith("a.jsonl:3: cannot be read as JSON: ") and messages[1] == "a.jsonl:4: is no JSON object"
    )
    assert messages[2].startswith("a.jsonl:5: origin: the list ['a'] is no text")
    assert messages[3] == "a.jsonl:6: wind: the dictionary {'a': 1} is no number" and len(messages) == 4
    rows = everything(base).set_index("observation_id")
    assert rows.loc["7", "wind"] == 1 and rows.loc["7", "origin"] == "3" and np.isnan(rows.loc["z", "wind"])


def test_nan_in_json_is_named(tmp_path: Path) -> None:
    good = json.loads(logged(0, 1).to_json(orient="records", lines=True))
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(good | {"wind": value}) for value in (float("nan"), float("-inf"), 1)))
    (actual,) = preview(make(tmp_path).config, [path])
    assert [str(problem) for problem in actual.problems] == [
        "a.jsonl:1: holds NaN, which is no JSON: write null where a value is missing",
        "a.jsonl:2: holds -Infinity, which is no JSON: write null where a value is missing",
    ]
    assert len(actual.rows) == 1


def test_an_empty_json_string_is_a_value_unless_configured_as_missing(tmp_path: Path) -> None:
    good = json.loads(logged(0, 1).to_json(orient="records", lines=True))
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(good | {"origin": "", "wind": "", "truth": ""}))
    for settings, origin in (({}, ""), ({"missing": [""]}, None)):
        (actual,) = preview(make(tmp_path, **settings).config, [path])
        assert actual.rows["origin"].tolist() == [origin] and actual.rows["wind"].isna().all() and not actual.problems


def test_a_repeated_json_key_is_named(tmp_path: Path) -> None:
    lines = logged(0, 2).to_json(orient="records", lines=True).splitlines()
    path = tmp_path / "a.jsonl"
    path.write_text(f'{lines[0]}\n{lines[1][:-1]}, "wind": 5}}')
    (actual,) = preview(make(tmp_path).config, [path])
    assert [str(problem) for problem in actual.problems] == ["a.jsonl:2: has more than one key 'wind'"]
    assert actual.rows["observation_id"].tolist() == ["r0"]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"id": 1, "wind": NaN}\n' * 3, "a.jsonl:1: the line holds NaN, which is no JSON"),
        ('{"id": 1}{"id": 2}\n', "a.jsonl:1: the line cannot be read as JSON"),
        ('{"id": 1,\n"wind": 2}\n', "It is JSON over several lines"),
    ],
)
def test_the_reason_why_a_json_file_has_no_columns(tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(SchemaError, match=reason):
        list(preview(make(tmp_path).config, [tmp_path / "a.jsonl"]))


def test_a_late_json_key_is_a_column(tmp_path: Path) -> None:
    lines = [json.loads(line) for line in logged(0, 130).to_json(orient="records", lines=True).splitlines()]
    for line in lines[:120]:
        del line["wind"]
    path, base = tmp_path / "a.jsonl", make(tmp_path)
    path.write_text("\n".join(json.dumps(line) for line in lines))
    assert import_files(base, [path]).added == 130
    wind = everything(base)["wind"]
    assert wind.iloc[:120].isna().all() and wind.iloc[120:].tolist() == [i % 7 for i in range(120, 130)]
    path.write_text("\n".join(json.dumps(line) for line in lines[:120]))
    with pytest.raises(SchemaError, match="has no column 'wind'"):
        import_files(base, [path])


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.parquet"])
def test_a_chunk_is_bounded_in_bytes(tmp_path: Path, name: str) -> None:
    rows = logged(0, 30).assign(origin="A" * 50_000)
    file = LogFile(write(tmp_path / name, rows))
    sizes = [chunk.rows["origin"].str.len().sum() for chunk in file.chunks(["id", "origin"], 1000, 200_000)]
    assert sum(sizes) == 30 * 50_000 and max(sizes) <= 250_000 and len(sizes) >= 6
    lines = [line for chunk in file.chunks(["id"], 1000, 200_000) for line in chunk.lines]
    assert lines == list(range(2, 32) if "csv" in name else range(1, 31))


def test_an_endless_row_is_refused_in_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_files, "_MAX_LINE_BYTES", 100_000)
    path = tmp_path / "a.csv"
    path.write_text("id,when\na,b\n" + 'x,"\n' + '","\n' * 60_000)
    with pytest.raises(SchemaError, match=r"a\.csv:3: the row is longer than 16 MiB: is a quote left open"):
        list(LogFile(path).chunks(["id"], 1000))


def test_an_open_quote_is_one_bad_row_in_bounded_memory(tmp_path: Path) -> None:
    lines = CSV.splitlines(keepends=True)
    path, base = tmp_path / "a.csv", make(tmp_path)
    filler = [f"n{i},2013-01-01T00:00Z,1,2,JFK,0,1,0,m,1,2013-01-02T00:00Z\n" for i in range(5000)]
    path.write_text("".join([*lines[:2], 'q,2013-01-01T00:00Z,1,2,"JFK\n', *filler]))
    summary = import_files(base, [path])
    assert "a.csv:3: cannot be read as CSV: field larger than field limit (131072), read up to line" in str(
        summary.problems[0]
    )
    assert summary.added > 2500 and summary.added == len(base.read("observations"))


def test_configured_delimiters_and_missing_values(tmp_path: Path) -> None:
    base = make(tmp_path, delimiter=";", missing=["", "NA"], decision=None, outcome=None)
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfid;when;Temperature;wind;origin\na;2013-01-01T00:00Z;NA;2;NA\n")
    assert import_files(base, [path]).added == 1
    row = everything(base).iloc[0]
    assert np.isnan(row["temp"]) and pd.isna(row["origin"])


# --------------------------------------------------------------------------- files that cannot be read


def test_unreadable_files(tmp_path: Path) -> None:
    base = make(tmp_path)
    (tmp_path / "a.xlsx").touch()
    (tmp_path / "empty.csv").touch()
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "no.parquet").write_text("PAR0")
    (tmp_path / "no.csv.gz").write_text("id,when\n")
    (tmp_path / "twice.csv").write_text("id,id,when\n")
    (tmp_path / "array.jsonl").write_text(json.dumps([{"id": 1}, {"id": 2}]))
    (tmp_path / "lines.jsonl").write_text('[\n{"id": 1},\n{"id": 2}\n]\n')
    (tmp_path / "spread.jsonl").write_text(json.dumps({"id": 1, "when": 2}, indent=2))
    (tmp_path / "semicolons.csv").write_text("id;when\na;b\n")
    (tmp_path / "blanks.csv").write_text("id, when, Temperature\n")
    for name, message in {
        "away.csv": "is not there: name files to import",
        "kb": "is a folder: name files to import" if (tmp_path / "kb").mkdir() is None else "",
        "a.xlsx": "has no known format: the file name must end with .csv",
        "empty.csv": "has no columns: it does not begin with a first line with names",
        "empty.jsonl": "has no columns: it does not begin with a JSON object",
        "no.parquet": "cannot be read as Parquet: ",
        "no.csv.gz": "cannot be read as CSV in UTF-8 in gzip: ",
        "twice.csv": "has more than one column 'id': rename them",
        "array.jsonl": "is one JSON array, and must be JSON lines: write each object on a line",
        "lines.jsonl": "is one JSON array, and must be JSON lines: write each object on a line",
        "spread.jsonl": "It is JSON over several lines: write each object on a line of its own",
        "semicolons.csv": "separated by semicolons, and commas are expected; `importing.delimiter` says",
        "blanks.csv": "its heading has blanks around ' when': remove them, or name it so",
    }.items():
        with pytest.raises(SchemaError, match=message.replace(".", r"\.")):
            import_files(base, [write(tmp_path / "good.csv", logged(0, 3)), tmp_path / name])
    assert base.tables.count_rows() == {}


def test_a_missing_column_is_named_with_the_closest_match(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", logged(0, 3).rename(columns={"Temperature": "temperature"}))
    with pytest.raises(SchemaError) as caught:
        list(preview(make(tmp_path).config, [path]))
    assert str(caught.value).startswith(
        f"{path} has no column 'Temperature', which the agent file wants for the feature 'temp'; did you mean "
        "'temperature'? It has: 'id', 'when', 'temperature', "
    )


@pytest.mark.slow
def test_rows_of_a_truncated_file_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_run, "_CHUNK_ROWS", 100)
    base, path = make(tmp_path), write(tmp_path / "a.csv.gz", logged(0, 5000))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(SchemaError, match=r"a\.csv\.gz cannot be read as CSV in UTF-8 in gzip"):
        import_files(base, [path])
    before = len(base.read("observations"))
    path.write_bytes(gzip.compress(gzip.decompress(content)))
    summary = import_files(base, [path])
    assert 0 < before < 5000 and summary.added + before == 5000 == len(base.read("observations"))


def test_one_import_at_a_time(tmp_path: Path) -> None:
    base, path = make(tmp_path), write(tmp_path / "a.csv", logged(0, 3))

    def another(what: str, _: int) -> None:
        with pytest.raises(RuntimeStateError, match="another import for agent 'toy' is under way"):
            import_files(base, [path])

    assert import_files(base, [path], another).added == 3


def test_a_key_set_reports_new_keys() -> None:
    rng, keys, added = np.random.default_rng(0), KeySet(), set[str]()
    for _ in range(40):
        texts = [f"k{i}" for i in rng.integers(0, 4000, 200)]
        expected = []
        for text in texts:
            expected.append(text not in added)
            added.add(text)
        assert keys.add(pd.Series(texts, dtype=object)).tolist() == expected
    assert len(keys._runs) < 10


def test_keys_with_equal_first_hash_are_distinguished() -> None:
    stored = (np.array([5, 5, 5, 9], dtype=np.uint64), np.array([1, 2, 3, 4], dtype=np.uint64))
    queried = np.array([5, 5, 9, 9, 1], dtype=np.uint64), np.array([3, 4, 4, 5, 1], dtype=np.uint64)
    assert _is_in(*queried, stored).tolist() == [True, False, True, False, False]
