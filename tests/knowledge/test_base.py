"""Every row is stored once, and a window always reads the same rows."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from deltalake import DeltaTable, Transaction

from stillhouse.config import AgentConfig
from stillhouse.drift import evidence
from stillhouse.errors import SchemaError, WindowError
from stillhouse.knowledge import KnowledgeBase, content_keys, tidy, tidy_outcomes
from stillhouse.knowledge.pruning import observed_in
from stillhouse.knowledge.schemas import FIELDS, MONTH_COLUMN
from stillhouse.records import EvidenceRows, Verdict, Window
from tests.knowledge.parts_for_tests import (
    SPAWN,
    START,
    append,
    append_and_die,
    append_many,
    append_the_same,
    identity_of,
    make_config,
    make_rows,
    read_unlabelled,
)

HOUR = timedelta(hours=1)
CONFIG = make_config()


@pytest.fixture
def kb(tmp_path: Path) -> KnowledgeBase:
    return KnowledgeBase(CONFIG, tmp_path / "kb")


@pytest.fixture
def filled(kb: KnowledgeBase) -> KnowledgeBase:
    """A knowledge base of 48 hours with an observation each."""
    kb.append_observations(make_rows(0, 48), batch="first")
    return kb


def outcomes(numbers: range, action: str, *, known_after: timedelta) -> pd.DataFrame:
    rows = make_rows(numbers.start, len(numbers))[["observation_id", "observed_at"]]
    return rows.assign(known_at=rows["observed_at"] + known_after, action=action)


def quarantine(*numbers: int) -> pd.DataFrame:
    rows = pd.concat([make_rows(number, 1) for number in numbers])[["observation_id", "observed_at"]]
    return rows.assign(reasons=[["temp: nonsense"]] * len(rows))


def everything(kb: KnowledgeBase) -> Window:
    return kb.window("all", START, START + 1000 * HOUR)


# --------------------------------------------------------------------------- appending


def test_a_batch_is_written_once(kb: KnowledgeBase) -> None:
    assert kb.append_observations(make_rows(0, 5), batch="a") == 5
    assert kb.append_observations(make_rows(0, 5), batch="a") == 0
    assert kb.append_observations(make_rows(5, 5), batch="b") == 5
    assert kb.tables.count_rows() == {"observations": 10}
    assert kb.tables.has_batch("observations", "a")
    assert not kb.tables.has_batch("observations", "c")
    assert not kb.tables.has_batch("outcomes", "a")


def test_an_empty_batch_is_not_recorded(kb: KnowledgeBase) -> None:
    assert kb.append_observations(make_rows(0, 0), batch="a") == 0
    assert kb.append_observations(pd.DataFrame(columns=make_rows(0, 1).columns), batch="a") == 0
    assert kb.append_observations(make_rows(0, 3), batch="a") == 3


def test_rows_are_read_as_they_were_written(kb: KnowledgeBase) -> None:
    rows = make_rows(0, 3).assign(temp=[1, np.nan, -0.5], origin=["EWR", None, "São Paulo"])
    rows["observed_at"] = rows["observed_at"].dt.tz_convert("America/New_York")
    kb.append_observations(rows.assign(extra="ignored"), batch="a")
    actual = kb.read_observations(everything(kb))
    assert list(actual.columns) == ["observation_id", "observed_at", "content_key", "temp", "wind", "origin"]
    assert actual["observed_at"].tolist() == [START, START + HOUR, START + 2 * HOUR]
    np.testing.assert_array_equal(actual["temp"], [1, np.nan, -0.5])
    assert actual["origin"].isna().tolist() == [False, True, False]
    assert actual["origin"][2] == "São Paulo"


BAD = {
    "a missing column": (make_rows(50, 2).drop(columns="wind"), r"lack the columns \['wind'\].*toy:rows"),
    "text for numbers": (
        make_rows(50, 2).assign(temp=["warm", "cold"]),
        "column 'temp' of agent 'toy' must be numeric",
    ),
    "moments for numbers": (make_rows(50, 2).assign(temp=START), "column 'temp' of agent 'toy' must be numeric"),
    "naive times": (
        make_rows(50, 2).assign(observed_at=pd.to_datetime(["2013-01-05", "2013-01-06"])),
        "observed_at of agent 'toy' must be timestamps with a time zone",
    ),
    "no times": (make_rows(50, 2).assign(observed_at=["a", "b"]), "must be timestamps with a time zone"),
    "a list": (
        make_rows(50, 2).assign(origin=pd.Series([["EWR"], "JFK"])),
        r"column 'origin' of agent 'toy' must be text, row 0: the list \['EWR'\] is no text",
    ),
    "a list for a number": (make_rows(50, 2).assign(temp=pd.Series([[1], 2])), r"row 0: the list \[1\] is no number"),
    "a column twice": (
        pd.concat([make_rows(50, 2), make_rows(50, 2)[["temp"]]], axis=1),
        "observations of agent 'toy' have more than one column 'temp'",
    ),
    "an id that was an integer": (make_rows(50, 2).assign(observation_id=[2.0**60, None]), r"from 2\^53 on"),
}


@pytest.mark.parametrize(("rows", "message"), BAD.values(), ids=BAD)
def test_bad_rows_change_nothing(filled: KnowledgeBase, rows: pd.DataFrame, message: str) -> None:
    before = everything(filled)
    with pytest.raises(SchemaError, match=message):
        filled.append_observations(rows, batch="bad")
    assert everything(filled) == before
    assert filled.tables.count_rows() == {"observations": 48}
    assert not filled.tables.has_batch("observations", "bad")
    filled.append_observations(make_rows(50, 2), batch="bad")
    assert filled.tables.count_rows() == {"observations": 50}


CODES: dict[str, Any] = {
    "whole numbers": [1, 2],
    "beside a gap": [1, None],
    "nullable": pd.array([1, None], dtype="Int64"),
    "categorical": pd.Categorical([1, None]),
    "floats": [1.0, 2.0],
    "decimals": [Decimal("1.0"), None],
}


@pytest.mark.parametrize("codes", CODES.values(), ids=CODES)
def test_an_integer_gives_the_same_text_beside_any_other_value(codes: Any) -> None:
    assert tidy(make_rows(0, 2).assign(origin=codes), CONFIG)["origin"].iloc[0] == "1"


def test_typed_values_keep_their_meaning() -> None:
    rows = make_rows(0, 2).assign(
        observation_id=[2**60 + 1, 2**60 + 3],
        origin=pd.Series([True, "1.0"], dtype=object),
        temp=["1.5", True],
        wind=pd.array([1, None], dtype="Int64"),
    )
    tidied = tidy(rows, CONFIG)
    assert tidied["observation_id"].tolist() == [str(2**60 + 1), str(2**60 + 3)]
    assert tidied["origin"].tolist() == ["true", "1.0"] and tidied["temp"].tolist() == [1.5, 1.0]
    np.testing.assert_array_equal(tidied["wind"], [1, np.nan])


def test_outcomes_are_converted_like_observations() -> None:
    times = [START, START + HOUR]
    raw_outcomes = pd.DataFrame({"observation_id": [2**60 + 1, 7], "observed_at": times, "known_at": times})
    raw_outcomes["action"] = pd.Series([True, 1.0], dtype=object)
    actual = tidy_outcomes(raw_outcomes.assign(extra=1), CONFIG)
    assert actual["observation_id"].tolist() == [str(2**60 + 1), "7"] and actual["action"].tolist() == ["true", "1"]
    assert list(actual.columns) == ["observation_id", "observed_at", "known_at", "action"]
    with pytest.raises(SchemaError, match="outcomes of agent 'toy' have more than one column 'action'"):
        tidy_outcomes(pd.concat([raw_outcomes, raw_outcomes[["action"]]], axis=1), CONFIG)
    with pytest.raises(SchemaError, match=r"column 'action' of outcomes of agent 'toy' must be text, row 1: the list"):
        tidy_outcomes(raw_outcomes.assign(action=pd.Series(["stay", ["move"]])), CONFIG)


@pytest.mark.parametrize(("before", "after"), [("number", "category"), ("category", "number")])
def test_a_column_whose_type_changed_is_refused_by_name(tmp_path: Path, before: str, after: str) -> None:
    def base(kind: str) -> KnowledgeBase:
        raw = CONFIG.model_dump(exclude_unset=True)
        raw["observations"]["columns"]["wind"] = {"type": kind}
        return KnowledgeBase(AgentConfig.model_validate(raw), tmp_path / "kb")

    base(before).append_observations(make_rows(0, 2).assign(wind=["7", "8"]), batch="a")
    original, changed = base(before), base(after)
    window = original.window("all", START, START + 9 * HOUR)
    refused = f"has 'wind' as {'numbers' if before == 'number' else 'text'}, and the agent file calls it a {after}"
    for use in (
        lambda: changed.append_observations(make_rows(2, 1), batch="b"),
        lambda: changed.read_observations(window),
        lambda: list(changed.stream("observations", window)),
        changed.tables.require_column_types,
    ):
        with pytest.raises(SchemaError, match=f"{refused}.*or another name in `observations.columns`"):
            use()
    assert changed.read("observations", window, ["observation_id"])["observation_id"].tolist() == ["o0000", "o0001"]
    original.tables.require_column_types()
    assert len(original.read_observations(window)) == 2


def test_other_tables_require_their_columns(kb: KnowledgeBase) -> None:
    good = outcomes(range(3), "move", known_after=HOUR)
    with pytest.raises(SchemaError, match=r"table 'outcomes' of agent 'toy' lack the columns \['known_at'\]"):
        kb.tables.append("outcomes", good.drop(columns="known_at"), batch="a")
    with pytest.raises(SchemaError, match="table 'outcomes' of agent 'toy'"):
        kb.tables.append("outcomes", good.assign(known_at="soon"), batch="a")
    assert kb.tables.count_rows().get("outcomes", 0) == 0


# --------------------------------------------------------------------------- windows


def test_windows_are_half_open(filled: KnowledgeBase) -> None:
    actual = filled.read_observations(filled.window("w", START + 5 * HOUR, START + 8 * HOUR))
    assert actual["temp"].tolist() == [5, 6, 7]
    first, second = (filled.window("w", START + a * HOUR, START + b * HOUR) for a, b in ((0, 20), (20, 48)))
    assert len(filled.read_observations(first)) + len(filled.read_observations(second)) == 48


def test_a_window_in_another_time_zone_reads_the_same_rows(filled: KnowledgeBase) -> None:
    zone = timezone(timedelta(hours=-5))
    window = filled.window("w", (START + 5 * HOUR).astimezone(zone), (START + 8 * HOUR).astimezone(zone))
    assert filled.read_observations(window)["temp"].tolist() == [5, 6, 7]


def test_a_window_reads_the_same_rows_after_later_appends(filled: KnowledgeBase) -> None:
    window = everything(filled)
    observed, labelled = filled.read_observations(window), filled.read_labelled(window, START + 1000 * HOUR)
    filled.append_observations(make_rows(48, 10), batch="second")
    filled.tables.append("quarantine", quarantine(3, 4), batch="q")
    filled.tables.append("outcomes", outcomes(range(10), "move", known_after=HOUR), batch="o")
    pd.testing.assert_frame_equal(filled.read_observations(window), observed)
    pd.testing.assert_frame_equal(filled.read_labelled(window, START + 1000 * HOUR), labelled)
    assert len(observed) == 48
    assert len(labelled) == 0

    second = everything(filled)
    assert len(filled.read_observations(second)) == 56
    filled.tables.append("quarantine", quarantine(5), batch="q2")
    filled.tables.append("outcomes", outcomes(range(10, 20), "move", known_after=HOUR), batch="o2")
    assert len(filled.read_observations(second)) == 56
    assert len(filled.read_labelled(second, START + 1000 * HOUR)) == 8
    back = Window.model_validate_json(second.model_dump_json())
    pd.testing.assert_frame_equal(filled.read_observations(back), filled.read_observations(second))
    assert len(filled.read_observations(everything(filled))) == 55


def test_a_window_without_versions_reads_the_current_tables(filled: KnowledgeBase) -> None:
    window = Window(name="w", start=START, end=START + 1000 * HOUR)
    filled.tables.append("quarantine", quarantine(3), batch="q")
    assert len(filled.read_observations(window)) == 47


def test_rows_in_quarantine_are_left_out(filled: KnowledgeBase) -> None:
    filled.tables.append("quarantine", quarantine(3, 7), batch="q")
    filled.tables.append("outcomes", outcomes(range(48), "move", known_after=HOUR), batch="o")
    window = everything(filled)
    expected = [float(i) for i in range(48) if i not in (3, 7)]
    assert filled.read_observations(window)["temp"].tolist() == expected
    assert filled.read_labelled(window, START + 1000 * HOUR)["temp"].tolist() == expected


def test_an_observation_with_two_rows_is_read_once(filled: KnowledgeBase) -> None:
    filled.append_observations(make_rows(40, 10), batch="overlap")
    assert filled.tables.count_rows()["observations"] == 58
    assert filled.read_observations(everything(filled))["temp"].tolist() == [float(i) for i in range(50)]


def test_an_empty_knowledge_base(kb: KnowledgeBase) -> None:
    window = everything(kb)
    assert len(kb.read_observations(window)) == len(kb.read_labelled(window, START)) == len(kb.journal.verdicts()) == 0
    assert kb.tables.count_rows() == {}
    assert kb.journal.verdict("v") is None
    assert not kb.root.exists()


# --------------------------------------------------------------------------- outcomes


def test_only_outcomes_known_by_then_give_labels(filled: KnowledgeBase) -> None:
    filled.tables.append("outcomes", outcomes(range(20), "move", known_after=5 * HOUR), batch="a")
    filled.tables.append("outcomes", outcomes(range(20, 30), "stay", known_after=5 * HOUR), batch="b")
    window = everything(filled)
    at_ten = filled.read_labelled(window, START + 10 * HOUR)
    assert at_ten["temp"].tolist() == [0, 1, 2, 3, 4, 5]
    assert at_ten["outcome"].tolist() == [1] * 6
    later = filled.read_labelled(window, START + 1000 * HOUR)
    assert later["outcome"].tolist() == [1] * 20 + [0] * 10
    assert later["outcome"].dtype == np.int64
    assert list(filled.read_labelled(window, START).columns) == list(later.columns)


def test_a_corrected_outcome_counts_from_when_the_correction_was_known(filled: KnowledgeBase) -> None:
    filled.tables.append(
        "outcomes", outcomes(range(3), "move", known_after=9 * HOUR), batch="correction, arrived first"
    )
    filled.tables.append("outcomes", outcomes(range(3), "stay", known_after=2 * HOUR), batch="a")
    window = everything(filled)
    assert filled.read_labelled(window, START + 5 * HOUR)["outcome"].tolist() == [0, 0, 0]
    assert filled.read_labelled(window, START + 10 * HOUR)["outcome"].tolist() == [1, 1, 0]


def test_an_unknown_action_is_an_error(filled: KnowledgeBase) -> None:
    filled.tables.append("outcomes", outcomes(range(3), "jump", known_after=HOUR), batch="a")
    with pytest.raises(SchemaError, match=r"outcomes of agent 'toy' name unknown actions \['jump'\]"):
        filled.read_labelled(everything(filled), START + 1000 * HOUR)


def test_known_at_of_the_label_of_a_row(filled: KnowledgeBase) -> None:
    filled.tables.append("outcomes", outcomes(range(6), "stay", known_after=2 * HOUR), batch="a")
    filled.tables.append("outcomes", outcomes(range(3), "move", known_after=9 * HOUR), batch="correction")
    rows = filled.read_labelled(everything(filled), known_by=START + 100 * HOUR)
    actual = filled.join_known_at(rows, known_by=START + 100 * HOUR)
    assert ((actual["known_at"] - actual["observed_at"]) / HOUR).tolist() == [9, 9, 9, 2, 2, 2]
    early = filled.join_known_at(rows, known_by=START + 5 * HOUR)
    assert ((early["known_at"] - early["observed_at"]) / HOUR).tolist() == [
        2,
        2,
        2,
        2,
    ]  # rows without a known outcome are left out
    assert filled.join_known_at(rows.iloc[:0], known_by=START).empty


# --------------------------------------------------------------------------- knowledge


def test_unanswered_rows_are_nan(filled: KnowledgeBase) -> None:
    rows = filled.read_observations(everything(filled)).iloc[:3]
    assert np.isnan(filled.answers.probs(rows, "t")).all()
    assert filled.answers.append(rows.iloc[[1]], np.array([[0.25, 0.75]]), teacher="t") == 1
    np.testing.assert_array_equal(filled.answers.probs(rows, "t"), [[np.nan] * 2, [0.25, 0.75], [np.nan] * 2])
    assert np.isnan(filled.answers.probs(rows, "another")).all()
    assert filled.answers.probs(rows.iloc[:0], "t").shape == (0, 2)


def test_the_first_answer_is_kept(filled: KnowledgeBase) -> None:
    rows = filled.read_observations(everything(filled)).iloc[:2]
    filled.answers.append(rows.iloc[[0]], np.array([[0.25, 0.75]]), teacher="t")
    assert filled.answers.append(rows, np.array([[0.9, 0.1], [0.5, 0.5]]), teacher="t") == 1
    assert filled.answers.append(rows, np.array([[0.9, 0.1], [0.5, 0.5]]), teacher="t") == 0
    np.testing.assert_array_equal(filled.answers.probs(rows, "t"), [[0.25, 0.75], [0.5, 0.5]])


def keys(**columns: Any) -> list[str]:
    ordinary = {"temp": [1.0], "wind": [2.0], "origin": ["EWR"]}
    rows = pd.DataFrame({**ordinary, **columns}).assign(observation_id="o", observed_at=START)
    return content_keys(tidy(rows, CONFIG), CONFIG)


def test_features_are_stored_with_the_answers(filled: KnowledgeBase) -> None:
    rows, probs = filled.read_observations(everything(filled)).head(6), np.tile([0.25, 0.75], (6, 1))
    assert filled.answers.features(rows, "t") is None
    filled.answers.append(rows.iloc[:2], probs[:2], teacher="t")
    assert filled.answers.features(rows, "t") is None
    inside = np.arange(18.0).reshape(6, 3)
    filled.answers.append(rows.iloc[:5], probs[:5], teacher="t", features=inside[:5])
    stored = filled.answers.features(rows[::-1], "t")
    assert stored is not None and stored.dtype == np.float32
    np.testing.assert_array_equal(stored[::-1], [[np.nan] * 3] * 2 + inside[2:5].tolist() + [[np.nan] * 3])
    np.testing.assert_array_equal(filled.answers.probs(rows, "t")[:5], probs[:5])
    assert filled.answers.features(rows, "another") is None
    with pytest.raises(SchemaError, match="teacher t gives features of width 2, and gave 3 before"):
        filled.answers.append(rows.iloc[5:], probs[5:], teacher="t", features=inside[5:, :2])
    assert np.isnan(filled.answers.probs(rows, "t")[5]).all()


def test_a_knowledge_table_without_a_features_column(filled: KnowledgeBase, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, probs = filled.read_observations(everything(filled)).head(4), np.tile([0.25, 0.75], (4, 1))
    with monkeypatch.context() as patch:
        patch.setitem(FIELDS, "knowledge", [field for field in FIELDS["knowledge"] if field[0] != "features"])
        filled.answers.append(rows.iloc[:2], probs[:2], teacher="t")
    assert filled.answers.features(rows, "t") is None
    np.testing.assert_array_equal(filled.answers.probs(rows, "t")[:2], probs[:2])
    filled.answers.append(rows.iloc[2:], probs[2:], teacher="t", features=np.ones((2, 3)))
    features = filled.answers.features(rows, "t")
    assert features is not None and np.isnan(features[:2]).all() and (features[2:] == 1).all()
    np.testing.assert_array_equal(filled.answers.probs(rows, "t"), probs)


def test_content_keys_are_equal_for_equal_content_only(kb: KnowledgeBase) -> None:
    (plain,) = keys()
    assert len(plain) == 32
    assert int(plain[:16], 16) != int(plain[16:], 16)
    assert keys(temp=[1], wind=["2"]) == keys(temp=pd.array([1], dtype="Int64")) == [plain]
    assert keys(origin=pd.Categorical(["EWR"])) == [plain]
    assert keys(temp=[0.0]) == keys(temp=[-0.0])
    assert keys(temp=[np.nan]) == keys(temp=[None]) == keys(temp=pd.array([None], dtype="Float64"))
    assert keys(origin=[None]) == keys(origin=[np.nan]) == keys(origin=[pd.NA])
    others = [
        keys(temp=[2.0], wind=[1.0]),
        keys(temp=[1 + 1e-12]),
        keys(temp=[np.nan]),
        keys(wind=[np.nan]),
        keys(origin=[None]),
        keys(origin=[""]),
        keys(origin=["nan"]),
        keys(origin=["EWR "]),
        keys(),
    ]
    assert len({key for (key,) in others}) == len(others)
    many = keys(temp=np.repeat(np.arange(100.0), 100), wind=np.tile(np.arange(100.0), 100), origin=["EWR"] * 10_000)
    assert len(set(many)) == 10_000


def test_a_content_key_does_not_depend_on_other_rows_or_columns(filled: KnowledgeBase) -> None:
    rows = make_rows(0, 20).assign(origin=[None, "B", "A", "", "Ω"] * 4)
    tidied = tidy(rows, CONFIG)
    together = content_keys(tidied, CONFIG)
    assert together == [key for i in range(20) for key in content_keys(tidied.iloc[[i]], CONFIG)]
    filled.append_observations(rows.assign(observation_id=[f"n{i}" for i in range(20)]), batch="b")
    actual = filled.read("observations")
    actual = actual[actual["observation_id"].str.startswith("n")]
    assert actual["content_key"].tolist() == together == content_keys(actual, CONFIG)
    assert content_keys(tidied.iloc[:0], CONFIG) == []


def test_an_agent_with_only_numbers_or_only_categories() -> None:
    for kind, values in (("number", [1.0, 2.0, 1.0]), ("category", ["a", "b", "a"])):
        columns = {"x": {"type": kind}}
        observations = {**CONFIG.observations.model_dump(), "columns": columns}
        config = AgentConfig.model_validate({**CONFIG.model_dump(), "observations": observations})
        first, second, third = content_keys(pd.DataFrame({"x": values}), config)
        assert first == third != second


# --------------------------------------------------------------------------- samples, clocks, verdicts


def test_a_sample_is_without_replacement_and_reproducible(filled: KnowledgeBase) -> None:
    rows = filled.read_observations(everything(filled))
    sample = filled.sample(rows, 20)
    assert sample["observation_id"].is_unique
    assert len(sample) == 20
    assert sample["observed_at"].is_monotonic_increasing
    pd.testing.assert_frame_equal(sample, filled.sample(rows.copy(), 20))
    pd.testing.assert_frame_equal(sample, rows.loc[sample.index])
    pd.testing.assert_frame_equal(filled.sample(rows, 48), rows)
    pd.testing.assert_frame_equal(filled.sample(rows, 500), rows)


def test_samples_of_other_rows_are_uniform(filled: KnowledgeBase) -> None:
    """Over 400 sets of rows, every position is drawn 400 · ½ times, ± 4 standard deviations."""
    rows = filled.read_observations(everything(filled)).iloc[:40]
    drawn = np.zeros(40)
    for number in range(400):
        drawn[filled.sample(rows.assign(observation_id=f"{number}:" + rows["observation_id"]), 20).index] += 1
    assert drawn.sum() == 400 * 20
    assert np.abs(drawn - 200).max() < 4 * np.sqrt(400 * 0.25)


def test_the_current_time_by_each_clock(filled: KnowledgeBase, kb: KnowledgeBase, tmp_path: Path) -> None:
    assert filled.resolve_time(datetime(2013, 5, 1)) == datetime(2013, 5, 1, tzinfo=UTC)
    local = datetime(2013, 5, 1, tzinfo=timezone(timedelta(hours=-5)))
    assert filled.resolve_time(local) == local
    assert filled.resolve_time(local).utcoffset() == timedelta(0)
    assert abs(filled.resolve_time(None) - datetime.now(UTC)) < timedelta(minutes=1)
    watch = {**CONFIG.watch.model_dump(), "clock": "newest_observation"}
    replayed = AgentConfig.model_validate({**CONFIG.model_dump(), "watch": watch})
    assert KnowledgeBase(replayed, filled.root).resolve_time(None) == START + 47 * HOUR + timedelta(microseconds=1)
    with pytest.raises(WindowError, match=r"agent 'toy' .* has no observations"):
        KnowledgeBase(replayed, tmp_path / "empty").resolve_time(None)


def make_verdict(verdict_id: str, hours: int, kind: str = "watch", outcome: str = "no_drift") -> Verdict:
    return Verdict(
        verdict_id=verdict_id, kind=kind, agent="toy", as_of=START + hours * HOUR, result=outcome, summary="s"
    )


def test_a_verdict_is_recorded_once(kb: KnowledgeBase) -> None:
    first = make_verdict("a", 2)
    kb.journal.append_verdict(first)
    kb.journal.append_verdict(first)
    kb.journal.append_verdict(first.model_copy(update={"summary": "another"}))
    kb.journal.append_verdict(make_verdict("b", 1))
    assert kb.tables.count_rows() == {"verdicts": 2}
    assert [verdict.verdict_id for verdict in kb.journal.verdicts()] == ["b", "a"]
    assert kb.journal.verdict("a") == first
    assert kb.journal.verdict("c") is None


def test_verdicts_by_time(kb: KnowledgeBase) -> None:
    for verdict in (
        make_verdict("w1", 1),
        make_verdict("g1", 1, "gate", "refused"),
        make_verdict("w2", 5),
        make_verdict("g2", 5, "gate", "promoted"),
        make_verdict("p", 6, "promotion", "rolled_back"),
    ):
        kb.journal.append_verdict(verdict)
    assert kb.journal.verdict_at("watch", START + 5 * HOUR) == make_verdict("w2", 5)
    assert kb.journal.verdict_at("watch", START + 6 * HOUR) is None
    assert kb.journal.last_refresh(before=START + 6 * HOUR) == START + 5 * HOUR
    assert kb.journal.last_refresh(before=START + 5 * HOUR) == START + HOUR
    assert kb.journal.last_refresh(before=START + HOUR) is None
    assert kb.journal.last_refresh() == START + 5 * HOUR and not kb.journal.last_refresh_refused()


# --------------------------------------------------------------------------- processes


def run(target: Any, *arguments: Any) -> int | None:
    process = SPAWN.Process(target=target, args=arguments)
    process.start()
    process.join(300)
    return process.exitcode


@pytest.mark.parametrize("moment", ["before", "amid", "after"])
def test_a_killed_process_leaves_no_partial_commit(filled: KnowledgeBase, moment: str) -> None:
    assert run(append_and_die, filled.root, moment, 48, 12, "second") == 9
    assert filled.tables.count_rows() == {"observations": 60 if moment == "after" else 48}
    append(filled.root, 48, 12, "second")
    assert filled.read_observations(everything(filled))["temp"].tolist() == [float(i) for i in range(60)]
    assert filled.tables.count_rows() == {"observations": 60}


def test_a_process_killed_at_its_first_append(kb: KnowledgeBase) -> None:
    assert run(append_and_die, kb.root, "amid", 0, 5, "first") == 9
    assert len(kb.read_observations(everything(kb))) == 0
    append(kb.root, 0, 5, "first")
    assert len(kb.read_observations(everything(kb))) == 5


def test_concurrent_appends_of_three_processes_are_all_stored(kb: KnowledgeBase) -> None:
    workers = [SPAWN.Process(target=append_many, args=(kb.root, number)) for number in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    actual = kb.read_observations(everything(kb))
    assert actual["temp"].tolist() == [float(100 * w + i) for w in range(3) for i in range(50)]
    assert kb.tables.count_rows() == {"observations": 150}


def test_one_batch_from_three_processes_is_stored_once(kb: KnowledgeBase) -> None:
    barrier = SPAWN.Barrier(3)
    workers = [SPAWN.Process(target=append_the_same, args=(kb.root, barrier)) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(300)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    assert kb.tables.count_rows() == {"observations": 100}


def test_limit_samples_old_rows_and_keeps_the_newest(kb: KnowledgeBase) -> None:
    base = kb
    rows = pd.DataFrame({"observation_id": [f"o{i}" for i in range(100)], "n": range(100)})
    thinned = base.limit(rows, 40)
    assert len(thinned) == 40 and thinned["n"].is_monotonic_increasing and thinned["n"].is_unique
    assert thinned["n"].tolist()[20:] == list(range(80, 100))
    assert base.limit(rows, 40).equals(thinned)
    assert base.limit(rows, 100) is rows and base.limit(rows, None) is rows


# --------------------------------------------------------------------------- evidence


def step(process: str, number: int, champion: str = "toy@1", since: datetime = START) -> EvidenceRows:
    """The step of hour ``number``, with one audited row."""
    first_step = evidence.start(process, champion, since=since, null_mean=0.1, average_run_length=100)
    start = since + number * HOUR
    done = evidence.advance(first_step, np.array([0.2]), start=start, end=start + HOUR, rows=1)
    return EvidenceRows(
        step=done,
        observation_ids=(f"o{number}",),
        cluster_ids=(0,),
        probabilities=(0.5,),
        sampling_weights=(2.0,),
        losses=(0.1,),
    )


def test_evidence_is_read_as_it_was_written(kb: KnowledgeBase) -> None:
    assert kb.journal.latest_evidence() == [] and kb.journal.evidence("toy@1", START) == []
    counted = [step("disagreement", n) for n in range(3)] + [step("student_outcomes", n) for n in range(2)]
    kb.journal.append_evidence(counted)
    assert kb.journal.evidence("toy@1", START) == sorted(counted, key=lambda counted: counted.step.end)
    assert kb.journal.evidence("toy@1", START, after=START + 2 * HOUR) == [counted[2]]
    assert {last.process: last for last in kb.journal.latest_evidence()} == {
        "disagreement": counted[2].step,
        "student_outcomes": counted[4].step,
    }


def test_a_step_of_evidence_is_stored_once(kb: KnowledgeBase) -> None:
    first = [step("disagreement", n) for n in range(2)]
    kb.journal.append_evidence(first)
    kb.journal.append_evidence(first)
    kb.journal.append_evidence(
        [*first, step("disagreement", 2)]
    )  # a later watch that had not seen the first one's steps
    kb.journal.append_evidence([])
    assert [rows.step.end for rows in kb.journal.evidence("toy@1", START)] == [START + n * HOUR for n in (1, 2, 3)]


def test_each_champion_has_its_own_evidence(kb: KnowledgeBase) -> None:
    later = START + 10 * HOUR
    kb.journal.append_evidence([step("disagreement", 0)])
    kb.journal.append_evidence([step("disagreement", 0, "toy@2", later)])
    assert len(kb.journal.evidence("toy@1", START)) == len(kb.journal.evidence("toy@2", later)) == 1
    assert kb.journal.evidence("toy@2", START) == []
    kb.journal.append_evidence([step("disagreement", 1, "toy@2", later + 5 * HOUR)])  # restarted after an alarm
    assert [rows.step.since for rows in kb.journal.evidence("toy@2", None)] == [later, later + 5 * HOUR]
    assert [last.champion for last in kb.journal.latest_evidence()] == ["toy@2"]


def test_has_observations_in_a_time_range(kb: KnowledgeBase, filled: KnowledgeBase) -> None:
    first = filled.read("observations")["observed_at"].min().to_pydatetime()
    last = filled.newest_observed_at()
    tick = timedelta(microseconds=1)
    assert filled.has_observations(first, first + tick) and filled.has_observations(last, last + tick)
    assert not filled.has_observations(last + tick, last + 90 * HOUR)
    assert not filled.has_observations(last, last) and not filled.has_observations(last + HOUR, last)


def test_an_observation_is_newly_labelled_once(filled: KnowledgeBase) -> None:
    filled.tables.append("outcomes", outcomes(range(10), "stay", known_after=5 * HOUR), batch="o1")
    filled.tables.append("outcomes", outcomes(range(2), "move", known_after=8 * HOUR), batch="corrected")

    def names(start: int, end: int, since: int = 0) -> list[str]:
        actual = filled.read_newly_labelled(START + start * HOUR, START + end * HOUR, since=START + since * HOUR)
        return actual["observation_id"].tolist()

    assert names(5, 7) == ["o0000", "o0001"]
    assert names(7, 10) == ["o0002", "o0003", "o0004"]  # corrections in this range do not count
    assert names(0, 100) == [f"o{n:04d}" for n in range(10)]
    assert names(0, 100, since=4) == [f"o{n:04d}" for n in range(4, 10)]
    assert names(50, 60) == []
    arrived = filled.read_newly_labelled(START, START + 100 * HOUR, since=START)
    assert (arrived["known_at"] == arrived["observed_at"] + 5 * HOUR).all()
    assert arrived.loc[0, "outcome"] == 1  # the value known by then


def test_no_outcomes_give_no_newly_labelled_rows(filled: KnowledgeBase) -> None:
    actual = filled.read_newly_labelled(START, START + HOUR, since=START)
    assert actual.empty and {"outcome", "known_at", "temp"} <= set(actual.columns)


# --------------------------------------------------------------------------- texts


def test_an_agent_with_text_columns_only(tmp_path: Path) -> None:
    config = AgentConfig.model_validate(
        CONFIG.model_dump(exclude_unset=True)
        | {"student": {"kind": "text"}, "promotion": {}}
        | {"observations": {"source": "t:rows", "since": START.isoformat(), "columns": {"said": {"type": "text"}}}}
    )
    texts = ["a taxi to São Paulo", "", None, "a taxi to São Paulo"]
    rows = make_rows(0, 4)[["observation_id", "observed_at"]].assign(said=texts)
    base = KnowledgeBase(config, tmp_path / "texts")
    assert base.append_observations(rows, batch="a") == 4
    back = base.read_observations(everything(base))
    assert back["said"].fillna("-").tolist() == [texts[0], "", "-", texts[0]]
    keys = back["content_key"].tolist()
    assert keys[0] == keys[3] and len(set(keys)) == 3
    half = rows.assign(said=pd.Series(["half a \ud83d", "", "", ""], dtype=object))
    with pytest.raises(SchemaError, match=r"column 'said' of agent 'toy' must be text, row 0: .* is no Unicode text"):
        base.append_observations(half, batch="b")


# --------------------------------------------------------------------------- questions


def test_the_first_selection_of_a_job_is_stored_with_its_probabilities(filled: KnowledgeBase) -> None:
    rows = filled.read_observations(everything(filled))
    assert filled.answers.questions("r1", "t1") is None
    mask = np.array([True, False, False])
    filled.answers.append_questions(rows.iloc[:3], np.array([1.0, 0.5, 0.25]), mask, job="r1", teacher="t1")
    filled.answers.append_questions(rows.iloc[5:9], np.ones(4), np.zeros(4, dtype=bool), job="r1", teacher="t1")
    filled.answers.append_questions(rows.iloc[9:10], np.ones(1), np.zeros(1, dtype=bool), job="r2", teacher="t1")
    questions = filled.answers.questions("r1", "t1")
    assert questions is not None
    assert questions["observation_id"].tolist() == ["o0000", "o0001", "o0002"]
    assert questions["probability"].tolist() == [1.0, 0.5, 0.25] and questions["known"].tolist() == mask.tolist()
    assert filled.answers.questions("r1", "t2") is None


def test_rows_without_a_known_outcome(filled: KnowledgeBase) -> None:
    filled.tables.append("outcomes", outcomes(range(40), "move", known_after=HOUR), batch="outcomes")
    filled.tables.append("quarantine", quarantine(47), batch="bad")
    rows = read_unlabelled(filled, everything(filled), known_by=START + 31 * HOUR)
    assert rows["observation_id"].tolist() == [f"o{i:04d}" for i in range(31, 47)]
    assert (rows["outcome"] == -1).all()


# --------------------------------------------------------------------------- other actions


def test_a_model_of_fewer_actions_reads_outcomes_beyond_its_own(filled: KnowledgeBase) -> None:
    grown = KnowledgeBase(CONFIG.model_copy(update={"actions": ("stay", "turn", "move")}), filled.root)
    grown.tables.append("outcomes", outcomes(range(2), "move", known_after=HOUR), batch="move")
    grown.tables.append("outcomes", outcomes(range(2, 4), "turn", known_after=HOUR), batch="turn")
    window, later = everything(grown), START + 1000 * HOUR
    assert grown.read_labelled(window, known_by=later)["outcome"].tolist() == [2, 2, 1, 1]
    as_it_was = KnowledgeBase(grown.config, filled.root, actions=["stay", "move"])
    assert as_it_was.config.actions == ("stay", "move")
    assert as_it_was.read_labelled(window, known_by=later)["outcome"].tolist() == [1, 1, 2, 2]
    with pytest.raises(SchemaError, match="unknown actions"):
        filled.read_labelled(window, known_by=later)


def test_probabilities_for_another_number_of_actions_do_not_count(filled: KnowledgeBase) -> None:
    rows = filled.read_observations(everything(filled)).head(2)
    filled.answers.append(rows, np.array([[0.2, 0.8], [0.5, 0.5]]), teacher="t")
    grown = KnowledgeBase(CONFIG.model_copy(update={"actions": ("stay", "turn", "move")}), filled.root)
    assert np.isnan(grown.answers.probs(rows, "t")).all() and grown.answers.probs(rows, "t").shape == (2, 3)
    grown.answers.append(rows.tail(1), np.array([[0.2, 0.3, 0.5]]), teacher="t")
    assert grown.answers.probs(rows, "t")[1].tolist() == [0.2, 0.3, 0.5]
    assert filled.answers.probs(rows, "t").tolist() == [[0.2, 0.8], [0.5, 0.5]]


def test_whether_the_last_refresh_was_refused(kb: KnowledgeBase) -> None:
    assert not kb.journal.last_refresh_refused(before=START)
    kb.journal.append_verdict(make_verdict("a", 2, "gate", "refused"))
    kb.journal.append_verdict(make_verdict("b", 4, "gate", "promoted"))
    kb.journal.append_verdict(make_verdict("c", 6, "watch", "drift"))
    assert kb.journal.last_refresh_refused(before=START + 3 * HOUR) and not kb.journal.last_refresh_refused(
        before=START + 9 * HOUR
    )


# --------------------------------------------------------------------------- files


def test_a_window_of_a_day_reads_the_files_of_its_month(kb: KnowledgeBase) -> None:
    kb.append_observations(make_rows(0, 24 * 120), batch="four months")
    delta = kb.tables.open("observations")
    assert delta is not None and delta.metadata().partition_columns == [MONTH_COLUMN]
    assert len(delta.file_uris()) == 4
    day = START + timedelta(days=40)
    dataset, _ = observed_in(delta, day, day + timedelta(days=1))
    assert [MONTH_COLUMN + "=2013-02" in file for file in dataset.files] == [True]
    assert len(observed_in(delta, day - timedelta(days=30), day)[0].files) == 2
    assert observed_in(delta, day + timedelta(days=400))[0].files == []
    window = kb.window("day", day, day + timedelta(days=1))
    assert kb.read("observations", window)["temp"].tolist() == [float(24 * 40 + hour) for hour in range(24)]
    assert MONTH_COLUMN not in kb.read("observations", window)
    assert kb.read("observations", window, [MONTH_COLUMN])[MONTH_COLUMN].unique().tolist() == ["2013-02"]


def test_files_are_pruned_to_the_microsecond(kb: KnowledgeBase) -> None:
    """Delta truncates statistics to milliseconds: rows in the last microseconds of a file must still be read."""
    moments = [START + timedelta(microseconds=123_000 + n) for n in (0, 250, 999)]
    for number, moment in enumerate(moments):
        kb.append_observations(make_rows(number, 1).assign(observed_at=moment), batch=f"{number}")
    for number, moment in enumerate(moments):
        window = kb.window("one", moment, moment + timedelta(microseconds=1))
        assert kb.read("observations", window)["observation_id"].tolist() == [f"o{number:04d}"]
    assert kb.newest_observed_at() == moments[-1]


def test_an_unpartitioned_table_stays_unpartitioned(kb: KnowledgeBase) -> None:
    schema = kb.tables.schema("observations")
    kb.root.mkdir()
    DeltaTable.create(str(kb.root / "observations"), schema=schema)
    kb.append_observations(make_rows(0, 24 * 60), batch="two months")
    kb.append_observations(make_rows(24 * 60, 24), batch="another day")
    delta = kb.tables.open("observations")
    assert (
        delta is not None and delta.metadata().partition_columns == [] and MONTH_COLUMN not in delta.schema().to_json()
    )
    assert kb.tables.count_rows() == {"observations": 24 * 61}
    assert kb.newest_observed_at() == START + (24 * 61 - 1) * HOUR
    window = kb.window("w", START + 24 * HOUR, START + 26 * HOUR)
    assert kb.read_observations(window)["temp"].tolist() == [24.0, 25.0]


def test_row_counts_and_the_newest_observation_read_no_old_file(kb: KnowledgeBase) -> None:
    for number in range(3):
        kb.append_observations(make_rows(10 * number, 10), batch=f"{number}")
    delta = kb.tables.open("observations")
    assert delta is not None
    (oldest,) = observed_in(delta, end=START + 10 * HOUR)[0].files
    (kb.root / "observations" / oldest).write_bytes(b"not to be read")
    assert kb.tables.count_rows() == {"observations": 30}
    assert kb.newest_observed_at() == START + 29 * HOUR
    assert kb.observed_until() == START + 29 * HOUR + timedelta(microseconds=1)


def test_old_versions_are_readable_after_the_log_retention(kb: KnowledgeBase) -> None:
    """By default Delta deletes commits older than thirty days at a checkpoint."""
    kb.append_observations(make_rows(0, 5), batch="first")
    window = everything(kb)
    for number in range(45):
        log = kb.root / "observations" / "_delta_log"
        for file in log.iterdir():
            os.utime(file, (time.time() - 60 * 86_400,) * 2)
        kb.append_observations(make_rows(100 + number, 1), batch=f"{number}")
    assert len(list(log.glob("*.checkpoint.parquet"))) >= 2
    assert len(kb.read_observations(window)) == 5


def test_the_identity_of_a_knowledge_base_is_unique(kb: KnowledgeBase, tmp_path: Path) -> None:
    identity = kb.tables.identity()
    assert identity == KnowledgeBase(CONFIG, kb.root).tables.identity()
    assert identity != KnowledgeBase(CONFIG, tmp_path / "another").tables.identity()
    assert kb.tables.count_rows() == {"decisions": 0}


def test_concurrent_processes_get_one_identity(kb: KnowledgeBase) -> None:
    with SPAWN.Pool(4) as pool:
        actual = pool.map(identity_of, [kb.root] * 4)
    assert set(actual) == {kb.tables.identity()}


def test_the_answer_asked_for_first_counts_in_any_order_of_files(filled: KnowledgeBase) -> None:
    rows = filled.read_observations(everything(filled)).iloc[:1]
    for batch, hours, probs in (("late", 2, [0.1, 0.9]), ("early", 1, [0.6, 0.4]), ("latest", 3, [0.3, 0.7])):
        answers = rows[["content_key", "observed_at"]].assign(
            teacher="t", asked_at=START + hours * HOUR, probabilities=[probs], features=None
        )
        filled.tables.append("knowledge", answers, batch=batch)
    assert filled.answers.probs(rows, "t").tolist() == [[0.6, 0.4]]


def test_a_commit_is_synced_file_by_file(filled: KnowledgeBase) -> None:
    rows = filled.tables.to_arrow("observations", filled.read("observations"))
    version = filled.tables.commit("observations", rows, Transaction("s", 7))
    assert version is not None
    filled.tables.sync_commit("observations", version)
    assert filled.tables.transaction_version("observations", "s") == 7
    assert filled.tables.commit("observations", rows, Transaction("s", 7)) is None
    assert filled.tables.count_rows() == {"observations": 96}
    with pytest.raises(FileNotFoundError):
        filled.tables.sync_commit("observations", version + 1)
