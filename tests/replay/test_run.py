"""A replay from beginning to end: the report, the command, the flow, and that nothing else is written."""

from __future__ import annotations

import hashlib
import json
from datetime import timedelta
from pathlib import Path

import pytest

from stillhouse import config
from stillhouse.config import load
from stillhouse.errors import ConfigError, WindowError
from stillhouse.ingesting import ingest
from stillhouse.replay.publishing import format_page, log_replay
from stillhouse.replay.run import replay
from tests.command import Command, command

SHORT = {"first_weeks": 3, "weeks": 2, "processes": 1}


def digest(folder: Path) -> str:
    """A hash of all files and their times of change."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    parts = [f"{path} {path.stat().st_mtime_ns} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return "\n".join(parts)


@pytest.fixture
def run(agents: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    return command(config.home(), agents, monkeypatch, capsys)


@pytest.mark.slow
def test_sources_and_knowledge_base_give_the_same_report_and_nothing_is_written(agents: Path, day) -> None:
    ingest("toy", day(0), day(37))  # an outcome is known a day later
    before = digest(config.home())
    stored, read = (replay("toy", ["never", "every:1w"], from_sources=source, **SHORT) for source in (False, True))
    assert digest(config.home()) == before
    assert (stored.source, read.source) == ("knowledge base", "sources")
    dropped = {"seconds", "source"}
    assert stored.model_dump(exclude=dropped) == read.model_dump(exclude=dropped)
    never, weekly = stored.policies
    assert stored.measure == "auc" and stored.steps == 2 and stored.exchange_rate == 0.005
    assert never.responses == {} and never.quality_by_step[0] == weekly.quality_by_step[0]
    assert weekly.responses == {"redistil": 1} and weekly.trainings == 1 and weekly.price == 1.0
    assert weekly.total == pytest.approx(1 - weekly.quality + stored.exchange_rate / 2)
    rows = 14 * 120 - 119  # the training window, without the last day
    assert weekly.teacher_calls == pytest.approx(rows, abs=121)


@pytest.mark.slow
def test_further_agent_files_are_played_beside_the_agents_own(agents: Path) -> None:
    other = agents / "wider.yaml"
    other.write_text((agents / "toy.yaml").read_text().replace("widths: [16, 8]", "widths: [4]"))
    report = replay("toy", ["never"], files=[config.load_file(other)], from_sources=True, **SHORT)
    assert [policy.label(2) for policy in report.policies] == ["never (toy)", "never (wider)"]
    assert report.policies[0].log_loss != report.policies[1].log_loss


def test_what_is_asked_for_wrongly_is_answered_in_a_sentence(agents: Path, day) -> None:
    with pytest.raises(ConfigError, match="needs at least one policy"):
        replay("toy", [])
    with pytest.raises(WindowError, match=r"has no rows with outcomes since 2024-01-01; --from-sources reads"):
        replay("toy", ["never"])
    with pytest.raises(WindowError, match=r"the first champion needs the rows until .*: give fewer --first-weeks"):
        replay("toy", ["never"], from_sources=True, first_weeks=40)


def test_a_teacher_that_is_not_free_is_never_asked(agents: Path) -> None:
    file = agents / "toy.yaml"
    endpoint = "{kind: endpoint, name: words, base_url: 'http://127.0.0.1:9/v1', model: m, prompt: 'a is {a}'}"
    text = file.read_text()
    old = "  - {kind: python, name: logistic, target: tests.flows.toy:Logistic}"
    file.write_text(text.replace(old, f"  - {endpoint}"))
    with pytest.raises(WindowError, match="stored answers of the champion's teacher, and there is no champion yet"):
        replay("toy", ["never"], from_sources=True, **SHORT)


def test_the_command_shows_a_table_and_writes_its_report_only(run: Command, agents: Path, tmp_path: Path) -> None:
    before, out = digest(config.home()), tmp_path / "out"
    arguments = ("--first-weeks", "3", "--weeks", "2", "--processes", "1", "--from-sources", "--out", out)
    shown = run("replay", "toy", "--policy", "never", "--policy", "every:1w@script", *arguments)
    assert shown.returncode == 0, shown.stderr
    assert "every:1w@script" in shown.stdout and "1 redistil" in shown.stdout and "AUC" in shown.stdout
    report = json.loads((out / "replay.json").read_text())
    assert [policy["policy"] for policy in report["policies"]] == ["never", "every:1w@script"]
    assert (out / "replay.png").read_bytes().startswith(b"\x89PNG")
    assert digest(config.home()) == before and {path.name for path in out.iterdir()} == {"replay.json", "replay.png"}


def test_the_commands_messages(run: Command, agents: Path) -> None:
    shown = run("replay", "toy", "--policy", "monthly")
    assert shown.returncode == 1 and "there is no policy 'monthly'; there are: never," in " ".join(shown.stderr.split())
    shown = run("replay", "toy", "--step", "soon")
    assert shown.returncode == 1 and "--step soon" in shown.stderr
    assert "every:4w@script" in " ".join(run("replay", "--help").stdout.split())


@pytest.mark.slow
def test_mlflow_gets_an_experiment_with_a_run_for_each_policy(agents: Path) -> None:
    config.use_embedded_defaults()
    report = replay("toy", ["never", "every:1w"], from_sources=True, **SHORT)
    parent = log_replay(report)
    from stillhouse.registry.experiment import open_experiment

    experiment = open_experiment("toy-replay")
    runs = experiment.client.search_runs([experiment.experiment_id])
    assert {run.info.run_id for run in runs if run.data.tags["role"] == "replay"} == {parent}
    policies = {run.data.tags["policy"]: run for run in runs if run.data.tags["role"] == "policy"}
    assert policies["every:1w"].data.metrics["trainings"] == 1.0
    points = experiment.client.get_metric_history(policies["never"].info.run_id, "auc")
    assert [(point.step, point.value) for point in points] == [
        (1, report.policies[0].quality_by_step[0]),
        (2, report.policies[0].quality_by_step[1]),
    ]
    assert "| every:1w |" in format_page(report)


def test_a_week_less_an_hour_is_a_step(agents: Path) -> None:
    report = replay("toy", ["never"], from_sources=True, first_weeks=3, processes=1)
    assert report.steps == 6 and report.step_seconds == timedelta(weeks=1).total_seconds()
    assert load("toy").agent == report.agent
