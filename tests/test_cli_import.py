"""`stillhouse import` in a process of its own, also when it is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml

from stillhouse.config import load_file
from stillhouse.knowledge import KnowledgeBase
from tests.flows import toy

ROOT = Path(__file__).parent.parent
COMMAND = [sys.executable, "-c", "from stillhouse.cli import main; main()", "import", "toy"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    raw = yaml.safe_load((ROOT / "tests" / "flows" / "toy.yaml").read_text())
    raw["importing"] = {
        "observation_id": "id",
        "observed_at": {"column": "seconds", "format": "s"},
        "columns": {"place": "Place"},
        "missing": ["", "NA"],
        "outcome": {"action": "action"},
    }
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "toy.yaml").write_text(yaml.safe_dump(raw))
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_"))},
        "STILLHOUSE_HOME": str(tmp_path / "home"),
        "STILLHOUSE_AGENTS": str(tmp_path / "agents"),
        "COLUMNS": "160",
        "HOME": str(tmp_path),
    }


@pytest.fixture
def log(tmp_path: Path) -> Path:
    rows = toy.HISTORY.rename(columns={"observation_id": "id", "place": "Place"})
    rows["seconds"] = rows.pop("observed_at").dt.as_unit("s").astype("int64")
    rows.to_csv(tmp_path / "log.csv", index=False, na_rep="NA")
    return tmp_path / "log.csv"


def run(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
        timeout=300,
        check=False,
    )


def base_of(tmp_path: Path) -> KnowledgeBase:
    return KnowledgeBase(load_file(tmp_path / "agents" / "toy.yaml"), tmp_path / "home" / "knowledge" / "toy")


def test_a_log_is_previewed_imported_and_then_recognised(
    environment: dict[str, str], log: Path, tmp_path: Path
) -> None:
    with log.open("a") as file:
        file.write("1,2,3\n")
    shown = run(environment, "--dry-run", log)
    assert shown.returncode == 0, shown.stderr
    assert (
        "of its first 1,000 rows, the import would add 1,000 observations" in shown.stdout
        and "toy-00009" in shown.stdout
    )
    assert base_of(tmp_path).tables.count_rows() == {}

    done = run(environment, log)
    assert done.returncode == 0, done.stderr
    assert "log.csv:7202: has 3 values, and there are 7 columns" in done.stdout
    assert [line.split() for line in done.stdout.splitlines() if line.split()[:1] == ["imported"]] == [
        ["imported", "7,201", "0", "7,200", "0", "1", "0", "7,200"]
    ]
    assert base_of(tmp_path).tables.count_rows() == {"observations": 7200, "outcomes": 7200, "quarantine": 1}
    again = run(environment, log)
    assert [line.split() for line in again.stdout.splitlines() if line.split()[:1] == ["imported"]] == [
        ["imported", "7,201", "7,201", "0", "0", "0", "0", "0"]
    ]

    rows = toy.observations(toy.BEGIN, toy.BEGIN + pd.Timedelta(days=60))
    base = base_of(tmp_path)
    imported = base.read_observations(base.window("all", toy.BEGIN, toy.BEGIN + pd.Timedelta(days=60)))
    pd.testing.assert_frame_equal(imported[["observation_id", "a", "c"]], rows[["observation_id", "a", "c"]])
    assert imported["place"].tolist() == rows["place"].tolist()


@pytest.mark.slow
def test_errors_are_reported_without_a_traceback(environment: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("id,second,a,b,c,Place,action\n")
    for arguments, message in (
        (["away.csv"], "SchemaError: away.csv is not there"),
        ([path], "has no column 'seconds', which the agent file wants for observed_at; did you mean 'second'?"),
        ([path, "--dry-run"], "has no column 'seconds'"),
    ):
        result = run(environment, *arguments)
        assert result.returncode == 1 and message in result.stderr and "Traceback" not in result.stderr


@pytest.mark.slow
def test_a_killed_import_can_be_continued(environment: dict[str, str], log: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(log, dtype=str, keep_default_na=False)
    rows = pd.concat([rows.assign(id=rows["id"] + f"-{copy}") for copy in range(30)])  # 216,000 rows: five chunks
    rows.to_csv(log, index=False)
    process = subprocess.Popen([*COMMAND, str(log)], cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not base_of(tmp_path).tables.count_rows().get("observations"):
        time.sleep(0.05)
    process.kill()
    process.wait()
    before = base_of(tmp_path).tables.count_rows()
    assert 0 < before["observations"] < len(rows)
    done = run(environment, log)
    assert done.returncode == 0, done.stderr
    after = base_of(tmp_path)
    assert after.tables.count_rows() == {"observations": len(rows), "outcomes": len(rows)}
    for table in ("observations", "outcomes"):
        assert after.read(table, columns=["observation_id"])["observation_id"].is_unique
