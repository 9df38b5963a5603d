"""`stillhouse import --format`: a dry run shows what would come, and the import says what it left out."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.config import load_file
from stillhouse.knowledge import KnowledgeBase
from tests.agents import agent_file
from tests.call_logs.logs_for_tests import INTENTS_AGENT, records, request, response, write
from tests.command import Command, command


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "intents.yaml").write_text(agent_file(agent="intents", **INTENTS_AGENT))
    return command(tmp_path / "home", tmp_path / "agents", monkeypatch, capsys)


def rows(tmp_path: Path) -> dict[str, int]:
    config = load_file(tmp_path / "agents" / "intents.yaml")
    return KnowledgeBase(config, tmp_path / "home" / "knowledge" / "intents").tables.count_rows()


def test_dry_run_then_import(run: Command, tmp_path: Path) -> None:
    unusable = {"request": request("hm"), "response": response("perhaps", 8)}
    log = write(tmp_path / "log.jsonl", [*records(), unusable, "no json"])
    shown = run("import", "intents", "--format", "openai", "--dry-run", log)
    assert shown.returncode == 0, shown.stderr
    assert "would add 4 observations, 4 decisions, 4 answers as knowledge of a teacher" in shown.stdout
    assert "4 answers of gpt-2026 are knowledge of the teacher llm" in shown.stdout
    left_out = "its answer names no action of the agent (the first is log.jsonl:5)"
    assert f"1 calls would be left out: {left_out}" in shown.stdout and "log.jsonl:6" in shown.stdout
    assert rows(tmp_path) == {}

    done = run("import", "intents", "--format", "openai", log)
    assert done.returncode == 0, done.stderr
    assert f"1 calls are left out: {left_out}" in done.stdout
    assert [line.split()[1:] for line in done.stdout.splitlines() if line.split()[:1] == ["imported"]] == [
        ["6", "0", "4", "0", "1", "4", "0", "4"]
    ]
    assert rows(tmp_path) == {"observations": 4, "decisions": 4, "knowledge": 4, "quarantine": 1}


def test_errors_are_one_sentence(run: Command, tmp_path: Path) -> None:
    other = {"request": request("cancel?", system="Cancel?"), "response": response("cancel", 7)}
    log = write(tmp_path / "log.jsonl", [*records(), other])
    for arguments, code, message in (
        (["--format", "openai", log], 1, "calls of 2 tasks name actions of the agent: choose one with --task"),
        (["--format", "openai", "--task", "x", log], 1, "no call is of the task 'x'"),
        (["--format", "openai", "--task", "any", "--teacher", "x", log], 1, "no teacher is called 'x'"),
        (["--format", "otel", tmp_path / "absent.jsonl"], 1, "is not there: name files to import"),
        (["--task", "any", log], 2, "--task and --teacher belong to --format"),
        (["--format", "csv", log], 2, "'csv' is not one of 'openai', 'otel', 'mlflow'"),
    ):
        result = run("import", "intents", *arguments)
        assert result.returncode == code and message in " ".join(result.stderr.replace("│", " ").split()), result.stderr
        assert "Traceback" not in result.stderr


def test_nothing_usable_is_exit_code_1(run: Command, tmp_path: Path) -> None:
    log = write(tmp_path / "log.jsonl", [{"request": request("hm"), "response": response("perhaps")}])
    for option in (["--dry-run"], []):
        assert run("import", "intents", "--format", "openai", *option, log).returncode == 1
