"""`status`, `history` and `teachers`: what they show in 80 columns, and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime

import pytest

import stillhouse
from stillhouse.commands.output import console
from stillhouse.promoting import promote_version
from tests.command import Command


@pytest.fixture
def run(command_on_toy: Callable[..., Command], monkeypatch: pytest.MonkeyPatch) -> Command:
    run = command_on_toy(24)
    monkeypatch.setattr(console, "_width", 80)
    return run


def test_the_status_begins_with_the_champion(run: Command, day: Callable[[int], datetime]) -> None:
    first = run("status", "toy")
    assert first.returncode == 0, first.stderr
    lines = first.stdout.splitlines()
    champion = json.loads(run("status", "toy", "--json").stdout)["champion"]
    assert lines[0] == f"{champion['model']} is champion since 2024-01-21 00:00"
    assert lines[1].startswith("why: ") and champion["verdict_id"] in first.stdout
    assert "still good: not watched since then" in first.stdout

    stillhouse.watch("toy", as_of=day(24))
    watched = run("status", "toy", "--last", "1")
    assert "still good: yes, by the watch of 2024-01-25 00:00: no drift" in watched.stdout
    assert all(len(line) <= 80 for line in watched.stdout.splitlines() if not line.startswith("problem:"))
    assert "champion" in watched.stdout  # its version is shown, however few versions are

    other = "1" if champion["model"] == "toy@2" else "2"
    promote_version("toy", int(other), reason="a trial", by="ann")
    report = json.loads(run("status", "toy", "--json").stdout)
    assert report["champion"]["model"] == f"toy@{other}" and "a trial" in report["champion"]["why"]
    assert report["champion"]["still_good"] == "not known"
    assert report["last_watch"]["result"] == "no_drift" and report["tables"]["observations"] == 24 * 120
    assert {alias for entry in report["versions"] for alias in entry["aliases"]} >= {"champion", "previous"}


@pytest.mark.slow
def test_the_history_is_in_the_order_in_which_things_happened(run: Command, day: Callable[[int], datetime]) -> None:
    for moment in (24, 22):  # the second one is for an earlier time
        stillhouse.watch("toy", as_of=day(moment))
    entries = json.loads(run("history", "toy", "--json").stdout)["entries"]
    assert [entry["as_of"][:10] for entry in entries] == ["2024-01-21", "2024-01-25", "2024-01-23"]
    recorded = [entry["recorded_at"] for entry in entries]
    assert recorded == sorted(recorded) and "evidence" not in entries[0]

    shown = run("history", "toy", "--reasons")
    assert shown.returncode == 0, shown.stderr
    lines = shown.stdout.splitlines()
    assert all(len(line) <= 80 and line == line.rstrip() for line in lines)
    heads = [line.split() for line in lines if not line.startswith(" ")]
    assert [(head[0], head[2], head[-1]) for head in heads] == [
        (entry["as_of"][:10], entry["kind"], entry["verdict_id"]) for entry in entries
    ]
    assert sum(line.startswith("      passed: ") for line in lines) > 3
    last = run("history", "toy", "--last", "1").stdout
    assert last.startswith("2024-01-23") and "gate" not in last


def test_teachers_as_json(run: Command) -> None:
    report = json.loads(run("teachers", "toy", "--json").stdout)
    assert report["agent"] == "toy" and report["changes"] == []
    assert report["teachers"] == [{"teacher": "logistic", "kinds": ["python"], "by_file": 1.0, "now": {}}]
