"""The command line `stillhouse`, and the command line of the flows."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from deltalake import write_deltalake
from rich.console import Console

from stillhouse.commands import status
from stillhouse.config import load_file
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import Spending
from tests.command import Command, command

ROOT = Path(__file__).parent.parent
NOW = datetime(2024, 1, 1, tzinfo=UTC)
TOY = ROOT / "tests" / "flows" / "toy.yaml"

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def agents(tmp_path: Path) -> Path:
    folder = tmp_path / "agents"
    folder.mkdir()
    shutil.copy(TOY, folder)
    return folder


@pytest.fixture
def run(tmp_path: Path, agents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command(tmp_path / "home", agents, monkeypatch, capsys)


@pytest.fixture
def flows(run: Command) -> Run:
    """``python -m flows …`` in a process of its own, in the same home."""

    def flows(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flows", *arguments],
            cwd=ROOT,
            env=os.environ | more,
            text=True,
            capture_output=True,
            timeout=600,
            check=False,
        )

    return flows


def test_help_lists_the_commands_and_imports_no_heavy_library(run: Command) -> None:
    shown = run("--help")
    assert shown.returncode == 0
    for word in ("check", "status", "history", "contract"):
        assert word in shown.stdout
    heavy = (
        "import sys, stillhouse.cli; print([m for m in ('torch', 'mlflow', 'prefect', 'pandas') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", heavy], text=True).strip() == "[]"


def test_check_passes_through_every_part(run: Command, agents: Path) -> None:
    shown = run("check", str(agents / "toy.yaml"))
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.count("✓") == 9
    assert "agent toy is ready" in shown.stdout


def test_check_tries_the_cascade(run: Command, agents: Path) -> None:
    file = agents / "toy.yaml"
    file.write_text(file.read_text() + "\nruntime: {cascade: {below: 0.9}}\n")
    shown = run("check", str(file))
    assert shown.returncode == 0, shown.stderr
    assert "cascade: the teacher answers in " in shown.stdout


def test_check_refuses_a_cascade_without_a_budget_or_time(run: Command, agents: Path) -> None:
    file = agents / "toy.yaml"
    text = file.read_text()
    file.write_text(f"{text}\nruntime: {{cascade: {{below: 0.9, timeout: 0.000001s}}}}\n")
    late = run("check", str(file))
    assert late.returncode == 1 and "runtime.cascade.timeout" in late.stderr and "Traceback" not in late.stderr
    paid = (
        "  - {kind: endpoint, name: llm, base_url: 'http://127.0.0.1:9/v1', model: m, prompt: '{a} {actions}', "
        "price_per_million_output: 2.0}"
    )
    text = text.replace("target: tests.flows.toy:Logistic}", f"target: tests.flows.toy:Logistic}}\n{paid}")
    file.write_text(f"{text}\nruntime: {{cascade: {{below: 0.9}}}}\n")
    paid_for = run("check", str(file))
    assert paid_for.returncode == 1 and "'llm' costs money" in paid_for.stderr and "cost_per_day" in paid_for.stderr


@pytest.mark.parametrize(
    ("right", "wrong", "message"),
    [
        ("cooldown: 3d", "cooldwon: 3d", "watch.cooldwon: unknown key; did you mean 'cooldown'"),
        ("folds: 3", "folds: 1", "distillation.folds: "),
        ("toy:Logistic", "toy:Logit", "has no 'Logit'"),
        ("tests.flows.toy:observations", "no_such_module:observations", "does not import"),
        ("actions: [wait, go]", "actions: [wait, run]", "gives actions ['go']"),
        ("since: 2024-01-01", "since: 2034-01-01", "observations.since"),
        ("    b: {type: number", "    bb: {type: number", "lack the columns ['bb']"),
    ],
)
def test_check_reports_the_error_with_its_key_and_remedy(
    run: Command, agents: Path, right: str, wrong: str, message: str
) -> None:
    file = agents / "toy.yaml"
    file.write_text(file.read_text().replace(right, wrong))
    shown = run("check", str(file))
    assert shown.returncode == 1
    assert message in shown.stderr
    assert "Traceback" not in shown.stderr + shown.stdout


def test_a_contract_is_drafted_from_the_source_and_overwrites_nothing(
    run: Command, agents: Path, tmp_path: Path
) -> None:
    file, draft = agents / "toy.yaml", tmp_path / "draft.yaml"
    before = file.read_text()
    shown = run("contract", "toy", "--last", "2w")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith("# Drafted from ") and "\nobservations:\n" in shown.stdout
    assert run("contract", "toy", "--start", "2024-01-03", "--last", "1w", "--output", str(draft)).returncode == 0
    text = draft.read_text()
    assert "of 2024-01-03 00:00 to 2024-01-09" in text
    again = run("contract", "toy", "--output", str(draft))
    assert again.returncode == 1 and "nothing is overwritten" in again.stderr and draft.read_text() == text
    assert file.read_text() == before
    settings = yaml.safe_load(before) | {"observations": yaml.safe_load(text)["observations"]}
    file.write_text(yaml.safe_dump(settings))
    checked = run("check", str(file))
    assert checked.returncode == 0, checked.stderr

    wrong = run("contract", "toy", "--last", "2 fortnights")
    assert wrong.returncode == 2 and "'2 fortnights' is not a duration" in " ".join(wrong.stderr.split())
    empty = run("contract", "toy", "--end", "1999-01-01")
    assert empty.returncode == 1 and "has 0 rows" in empty.stderr and "Traceback" not in empty.stderr
    assert "--source" in run("contract", "--help").stdout


def test_an_agent_without_models_or_verdicts(run: Command) -> None:
    for name in ("status", "history"):
        shown = run(name, "toy")
        assert shown.returncode == 0, shown.stderr
        assert "toy" in shown.stdout
    unknown = run("status", "tpy")
    assert unknown.returncode == 1 and "did you mean 'toy'" in unknown.stderr and "Traceback" not in unknown.stderr


@pytest.mark.slow  # each command brings a server of Prefect's up, and the demo goes the same way
def test_flows_by_hand_from_nothing_to_a_champion(run: Command, flows: Run) -> None:
    """The README's way to a first champion, with a server that Prefect starts itself."""
    assert "added" in flows("live", "2024-01-21", "--agent", "toy").stdout
    refresh = flows("refresh", "--agent", "toy", "--trigger", "bootstrap")
    assert refresh.returncode == 0, refresh.stderr[-3000:]
    assert "promoted" in refresh.stdout
    watched = flows("watch", "--agent", "toy")
    assert watched.returncode == 0 and "no drift" in watched.stdout
    status = run("status", "toy")
    assert "problem:" not in status.stdout
    assert "champion" in status.stdout and "last watch" in status.stdout
    assert "logistic" in status.stdout and "in all" in status.stdout
    assert "A small agent whose world turns over" in status.stdout
    history = run("history", "toy", "--reasons")
    assert "promoted" in history.stdout and "gate" in history.stdout and "passed" in history.stdout

    lost = flows("watch", "--agent", "toy", MLFLOW_TRACKING_URI="http://ann:secret@127.0.0.1:9")
    assert lost.returncode == 1
    assert "RegistryError" in lost.stderr and "127.0.0.1:9" in lost.stderr
    assert "Traceback" not in lost.stderr + lost.stdout and "secret" not in lost.stderr + lost.stdout
    wrong = flows("promote", "--agent", "toy", "--version", "99")
    assert wrong.returncode == 1 and "no version '99'" in wrong.stderr and "Traceback" not in wrong.stderr


# --------------------------------------------------------------------------- drift


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    """``before.parquet`` and ``after.parquet``, of which ``temp`` moved and ``origin`` has a new value."""
    rng = np.random.default_rng(0)
    for name, shift, origins in (("before", 0, ["EWR", "JFK"]), ("after", 1, ["EWR", "JFK", "LGA"])):
        rows = {"temp": rng.normal(size=4000) + shift, "wind": rng.normal(size=4000)}
        pd.DataFrame(rows | {"origin": rng.choice(origins, 4000)}).to_parquet(tmp_path / f"{name}.parquet")
    return tmp_path


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip()]


def test_drift_ranks_the_columns_of_two_tables(run: Command, tables: Path) -> None:
    before, after, profile_file = (str(tables / name) for name in ("before.parquet", "after.parquet", "before.profile"))
    shown = run("drift", before, after, "--keep", profile_file)
    assert shown.returncode == 0, shown.stderr
    lines = [line.split() for line in lines_of(shown.stdout)]
    ranked = [line for line in lines if line[0] in ("temp", "wind", "origin")]
    assert [line[0] for line in ranked] == ["origin", "temp", "wind"]
    assert "new values of origin: LGA" in shown.stdout
    assert "4,000 rows before, 4,000 now" in shown.stdout
    as_json = json.loads(run("drift", before, after, "--json").stdout)
    assert (as_json["reference_rows"], as_json["current_rows"]) == (4000, 4000)
    assert [column["column"] for column in as_json["columns"]] == ["origin", "temp", "wind"]
    only = run("drift", profile_file, after, "--column", "wind").stdout
    assert next(line.split() for line in lines_of(only) if "wind" in line) == ranked[2] and "temp" not in only


def test_drift_reads_a_delta_table_as_it_stands(run: Command, tables: Path) -> None:
    write_deltalake(tables / "delta", pd.read_parquet(tables / "before.parquet"))
    write_deltalake(tables / "delta", pd.read_parquet(tables / "after.parquet"), mode="overwrite")
    shown = run("drift", str(tables / "delta"), str(tables / "after.parquet"))
    assert "4,000 rows before" in shown.stdout and "LGA" not in shown.stdout


@pytest.mark.parametrize(
    ("name", "column", "message"),
    [
        ("torn.parquet", "temp", "torn.parquet cannot be read"),
        ("torn.profile", "temp", "torn.profile: these bytes are not a profile"),
        ("before.parquet", "tmep", "no columns ['tmep'] in"),
    ],
)
def test_drift_reports_inputs_that_it_cannot_use(
    run: Command, tables: Path, name: str, column: str, message: str
) -> None:
    for torn in ("torn.parquet", "torn.profile"):
        (tables / torn).write_bytes(b"PAR1 and not much more")
    shown = run("drift", str(tables / name), str(tables / "after.parquet"), "--column", column)
    assert shown.returncode == 1 and message in shown.stderr.replace("\n", " ") and "Traceback" not in shown.stderr


def test_drift_of_a_text_column(run: Command, tmp_path: Path) -> None:
    for name, words in (("before", ["book", "a", "taxi"]), ("after", ["book", "a", "taxi", "to", "town", "now"])):
        rng = np.random.default_rng(0)
        texts = [" ".join(rng.permutation(words)[: rng.integers(1, len(words) + 1)]) for _ in range(500)]
        pd.DataFrame({"message": [*texts, " ", None], "n": rng.normal(size=502)}).to_parquet(
            tmp_path / f"{name}.parquet"
        )
    before, after = (str(tmp_path / f"{name}.parquet") for name in ("before", "after"))
    profile_file = str(tmp_path / "before.profile")
    shown = run("drift", before, after, "--text", "message", "--keep", profile_file)
    assert shown.returncode == 0, shown.stderr
    assert "characters" in shown.stdout and "words" in shown.stdout and "502 rows before" in shown.stdout
    again = run("drift", profile_file, after, "--text", "message").stdout
    assert lines_of(again) == lines_of(shown.stdout)
    lacking = run("drift", before, after, "--text", "sad")
    assert lacking.returncode == 1 and "no column 'sad'; there are ['message', 'n']" in lacking.stderr


def show_spending(base: KnowledgeBase) -> None:
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    status.show_spending(base.answers.spending(), base.answers.spending(asked_since=midnight))


def test_spending_of_the_teachers_today_and_in_total(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = KnowledgeBase(load_file(TOY), tmp_path / "kb")
    shown = Console(file=StringIO(), width=120)
    monkeypatch.setattr(status, "console", shown)
    show_spending(base)
    assert shown.file.getvalue() == ""

    def spend(teacher: str, batch: str, money: float) -> None:
        spent = Spending(calls=12, rows=10, input_tokens=3400, output_tokens=50, seconds=2.0, money=money)
        base.answers.append_spending(
            spent, job="r", purpose="refresh", teacher=teacher, version="v", as_of=NOW, batch=batch
        )

    with monkeypatch.context() as patch:
        patch.setattr("stillhouse.knowledge.answers.datetime", Yesterday)
        spend("llm", "old", 0.5)
        spend("rules", "old rules", 0.0)
    spend("llm", "new", 0.25)
    show_spending(base)
    rows = [line.split() for line in shown.file.getvalue().splitlines()]
    assert rows[1:] == [
        ["llm", "today", "12", "10", "3,400", "50", "2.0", "0.2500"],
        ["in", "all", "24", "20", "6,800", "100", "4.0", "0.7500"],
        ["rules", "in", "all", "12", "10", "3,400", "50", "2.0", "0.0000"],
    ]


class Yesterday(datetime):
    @classmethod
    def now(cls, zone: tzinfo | None = None) -> datetime:
        return datetime.now(zone) - timedelta(days=1)


def test_commands_take_an_agent_by_the_path_of_its_file(
    run: Command, agents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.setenv("STILLHOUSE_AGENTS", str(tmp_path / "empty"))
    file = agents / "toy.yaml"
    for words in (["history"], ["quarantine"], ["teachers"], ["status"]):
        by_name, by_path = run(*words, "toy"), run(*words, str(file))
        assert by_name.returncode == 1 and "no agent 'toy'" in by_name.stderr
        assert by_path.returncode == 0, by_path.stderr
    renamed = file.rename(agents / "draft.yaml")
    shown = run("status", str(renamed))
    assert shown.returncode == 1 and "the file must be called toy.yaml" in shown.stderr
    shown = run("status", str(agents / "away.yaml"))
    assert shown.returncode == 1 and "away.yaml: cannot be read" in shown.stderr and "Traceback" not in shown.stderr


def test_flows_take_an_agent_by_the_path_of_its_file(flows: Run, agents: Path) -> None:
    done = flows("maintain", "--agent", str(agents / "away.yaml"))
    assert done.returncode == 1 and "away.yaml: cannot be read" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("words", "completed"),
    [("stillhouse stat", {"status"}), ("stillhouse status t", {"toy"}), ("stillhouse serve toy ro", {"router"})],
)
def test_a_shell_completes_commands_and_agents(words: str, completed: set[str], agents: Path, tmp_path: Path) -> None:
    shutil.copy(TOY, agents / "router.yaml")
    environment = os.environ | {
        "STILLHOUSE_AGENTS": str(agents),
        "STILLHOUSE_HOME": str(tmp_path / "home"),
        "_STILLHOUSE_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    program = "import sys; sys.argv = ['stillhouse']; from stillhouse.cli import main; main()"
    shown = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, text=True, capture_output=True, check=False
    )
    assert set(shown.stdout.split()) == completed, shown
    assert not (tmp_path / "home").exists()
