"""A demo that is run again: nothing is played twice, and its duration stays what it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flows.demo import demo
from stillhouse import config
from stillhouse.stations import listening

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("prefect_server", "agents")]


def test_a_demo_that_is_run_again_keeps_its_duration(capsys: pytest.CaptureFixture[str]) -> None:
    heard = set[str]()
    with listening(lambda station, _done, _total: heard.add(station)):
        first = demo(agent="toy", bootstrap_weeks=3, weeks=1)
    assert {"live", "check data", "student", "compress", "prove", "measure drift", "decide"} <= heard
    summary = Path(first.folder) / "summary.json"
    stored = json.loads(summary.read_text())
    assert stored["seconds"] == first.summary.seconds > 0
    assert capsys.readouterr().out.count("week to ") == 1

    again = demo(agent="toy", bootstrap_weeks=3, weeks=1)
    assert again.summary.seconds == first.summary.seconds
    assert json.loads(summary.read_text())["seconds"] == stored["seconds"]
    assert capsys.readouterr().out.count("week to ") == 1

    longer = demo(agent="toy", bootstrap_weeks=3, weeks=2)
    assert longer.summary.seconds > first.summary.seconds and longer.summary.weeks == 2

    (config.home() / "demo" / "toy" / "duration.json").unlink()  # as of an earlier version
    assert demo(agent="toy", bootstrap_weeks=3, weeks=2).summary.seconds == longer.summary.seconds
