"""`stillhouse evaluate` on files of rows with outcomes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from stillhouse.champion import Champion, open_registry
from stillhouse.promoting import promote_version
from stillhouse.teachers.answers import wrap_predict
from stillhouse.teachers.ensemble import Ensemble, Member
from tests.command import Command
from tests.flows import toy


@pytest.fixture
def run(command_on_toy: Callable[..., Command]) -> Command:
    return command_on_toy()


@pytest.fixture
def rows() -> pd.DataFrame:
    """Twenty days that no model has seen, the first four of them before the drift."""
    first, last = toy.BEGIN + pd.Timedelta(days=20), toy.BEGIN + pd.Timedelta(days=40)
    rows = toy.HISTORY[(toy.HISTORY["observed_at"] >= first) & (toy.HISTORY["observed_at"] < last)]
    return rows.rename(columns={"action": "outcome"})


def test_champion_previous_and_teacher_on_a_file(run: Command, rows: pd.DataFrame, tmp_path: Path) -> None:
    other = "1" if open_registry("toy").champion().version == "2" else "2"
    promote_version("toy", int(other), reason="so that there is a previous one", by="test")
    csv, parquet, jsonl = (tmp_path / f"rows.{ending}" for ending in ("csv", "parquet", "jsonl"))
    rows.to_csv(csv, index=False)
    rows.to_parquet(parquet)
    rows.to_json(jsonl, orient="records", lines=True, date_format="iso")
    results = [json.loads(run("evaluate", "toy", file, "--json").stdout) for file in (csv, parquet, jsonl)]
    for result in results:
        assert (result["rows_read"], result["rows"], result["unusable"], result["measure"]) == (2400, 2400, 0, "auc")
        assert result | {"files": []} == results[0] | {"files": []}
    models = results[0]["models"]
    assert [(model["role"], model["rows"]) for model in models] == [
        ("champion", 2400),
        ("previous", 2400),
        ("teacher", 2400),
    ]
    assert models[0]["name"] == f"toy@{other}" and models[0]["difference"] is None
    for model in models:
        assert model["quality"]["low"] < model["quality"]["value"] < model["quality"]["high"]
    for model in models[1:]:
        difference = model["difference"]
        assert difference["low"] < difference["value"] < difference["high"]
        assert difference["value"] == pytest.approx(model["quality"]["value"] - models[0]["quality"]["value"])
    with_both = json.loads(run("evaluate", "toy", csv, csv, "--version", other, "--no-teacher", "--json").stdout)
    assert with_both["duplicates"] == 2400 and len(with_both["models"]) == 2


def test_the_table_names_unusable_lines_and_fits_80_columns(run: Command, rows: pd.DataFrame, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    rows.iloc[3, rows.columns.get_loc("outcome")] = None
    broken = rows.astype({"a": object, "outcome": object})
    broken.iloc[0, broken.columns.get_loc("a")] = "hot"
    broken.iloc[1, broken.columns.get_loc("outcome")] = "fly"
    pd.concat([broken, broken.tail(1)]).to_csv(file, index=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stillhouse.commands.evaluate.console._width", 80)
        shown = run("evaluate", "toy", file)
    assert shown.returncode == 0, shown.stderr
    assert "rows.csv:2: a: 'hot' is no number" in shown.stdout
    assert "rows.csv:3: outcome: 'fly' is no action; there are: wait, go" in shown.stdout
    assert "2,401 rows read: 2,397 scored, 2 unusable, 1 without an outcome, 1 repeated" in shown.stdout
    assert "teacher: " in shown.stdout and "note: there is no previous champion" in shown.stdout
    table = shown.stdout.splitlines()[2:6]
    assert table[0].split()[:3] == ["model", "rows", "AUC"] and all(len(line) <= 80 for line in table)
    assert any(line.startswith("champion ") for line in table)


def test_rows_of_the_training_time_are_left_out(run: Command, agents: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    toy.HISTORY.head(22 * toy.PER_DAY).rename(columns={"action": "outcome"}).to_parquet(file)
    some = json.loads(run("evaluate", str(agents / "toy.yaml"), file, "--json").stdout)
    assert some["trained_on"] == 14 * toy.PER_DAY and some["rows"] == 8 * toy.PER_DAY
    assert any("rows left out" in note for note in some["notes"])
    everything = json.loads(run("evaluate", "toy", file, "--include-trained", "--json").stdout)
    assert everything["rows"] == 22 * toy.PER_DAY
    teacher = everything["models"][-1]
    assert teacher["role"] == "teacher" and teacher["rows"] < everything["rows"]
    toy.HISTORY.iloc[6 * toy.PER_DAY : 7 * toy.PER_DAY].rename(columns={"action": "outcome"}).to_parquet(file)
    none_left = run("evaluate", "toy", file)
    assert none_left.returncode == 1 and "--include-trained" in none_left.stderr


def test_the_mapping_of_the_agent_file_and_another_column(
    run: Command, rows: pd.DataFrame, agents: Path, tmp_path: Path
) -> None:
    raw = yaml.safe_load((agents / "toy.yaml").read_text())
    raw["importing"] = {
        "observed_at": "seen",
        "actions": {"1": "go", "0": "wait"},
        "outcome": {"action": "truth"},
    }
    (agents / "toy.yaml").write_text(yaml.safe_dump(raw))
    renamed = rows.drop(columns="observation_id").rename(columns={"observed_at": "seen", "outcome": "truth"})
    renamed["truth"] = (renamed["truth"] == "go").astype(int)
    renamed.assign(other=1 - renamed["truth"]).to_csv(tmp_path / "rows.csv", index=False)
    mapped = json.loads(run("evaluate", "toy", tmp_path / "rows.csv", "--json").stdout)
    other = json.loads(run("evaluate", "toy", tmp_path / "rows.csv", "--json", "--outcome", "other").stdout)
    values = [result["models"][0]["quality"]["value"] for result in (mapped, other)]
    assert mapped["rows"] == 2400 and sum(values) == pytest.approx(1.0)


def test_errors_without_a_traceback(run: Command, rows: pd.DataFrame, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    rows.to_csv(file, index=False)
    rows.assign(outcome=None).to_csv(tmp_path / "open.csv", index=False)
    for arguments, message in (
        (["toy", "away.csv"], "SchemaError: away.csv is not there"),
        (["toy", file, "--outcome", "truth"], "has no column 'truth', which the agent file wants for outcome.action"),
        (["toy", tmp_path / "open.csv"], "2,400 without an outcome"),
        (["toy", file, "--version", "99"], "no version 99"),
        (["tox", file], "did you mean 'toy'?"),
    ):
        shown = run("evaluate", *arguments)
        assert shown.returncode == 1 and message in shown.stderr and "Traceback" not in shown.stderr


def test_a_teacher_that_costs_money_asks_first(
    run: Command, rows: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = list[int]()

    def answer(rows: pd.DataFrame) -> np.ndarray:
        asked.append(len(rows))
        return np.tile([0.25, 0.75], (len(rows), 1))

    def remote(champion: Champion) -> Ensemble:
        predict = wrap_predict("llm", champion.actions, answer)
        members = [Member("llm", 1.0, predict, "v1", max_cost=lambda rows: [0.01] * len(rows))]
        return Ensemble(champion.settings, members, fit_window=None, version="v1", local=False)

    monkeypatch.setattr(Champion, "teacher", property(remote))
    file = tmp_path / "rows.csv"
    rows.to_csv(file, index=False)
    refused = run("evaluate", "toy", file)
    assert refused.returncode == 1 and "may cost up to 24" in refused.stderr and "--no-teacher" in refused.stderr
    without = json.loads(run("evaluate", "toy", file, "--no-teacher", "--json").stdout)
    assert not asked and [model["role"] for model in without["models"]] == ["champion"]
    paid = json.loads(run("evaluate", "toy", file, "--max-cost", "30", "--json").stdout)
    assert sum(asked) == 2400 and paid["models"][-1]["role"] == "teacher"
    again = run("evaluate", "toy", file)  # all answers are stored: nothing to ask
    assert again.returncode == 0 and sum(asked) == 2400
