"""Ctrl-C in a process of its own: one line at once, exit code 130."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
STILLHOUSE = ["-c", "from stillhouse.cli import main; main()"]
SOURCE = """
import time
from pathlib import Path

from tests.flows.toy import observations as rows, outcomes

HERE = Path(__file__).parent


def observations(start, end):
    (HERE / "busy").touch()
    while True:
        try:
            time.sleep(60)
        except BaseException:
            if not (HERE / "stubborn").exists():
                raise
"""
Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start a command whose agent reads its observations for ever, and wait until it does."""
    raw = yaml.safe_load((ROOT / "tests" / "flows" / "toy.yaml").read_text())
    raw["observations"]["source"] = "endless:observations"
    (tmp_path / "agents").mkdir()
    (tmp_path / "agents" / "toy.yaml").write_text(yaml.safe_dump(raw))
    (tmp_path / "endless.py").write_text(SOURCE)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_"))},
        "STILLHOUSE_HOME": str(tmp_path / "home"),
        "STILLHOUSE_AGENTS": str(tmp_path / "agents"),
        "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "HOME": str(tmp_path),
    }

    def start(*arguments: str, **streams: int) -> subprocess.Popen[str]:
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
        process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=environment, text=True, **streams)
        deadline = time.monotonic() + 240
        while not (tmp_path / "busy").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (tmp_path / "busy").exists(), process.communicate()
        time.sleep(0.2)
        return process

    return start


def test_a_command_answers_with_one_line(start: Start) -> None:
    process = start(*STILLHOUSE, "contract", "toy", "--source")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "interrupted: nothing was changed; run the same command again\n"
    assert time.monotonic() - began < 2
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and errors == ""


SLOW_LINE = """
import os, signal, time
from stillhouse import interrupts

write = interrupts._write_line
interrupts._write_line = lambda text: (time.sleep(0.5), write(text))
with interrupts.answer_interrupts("go on"):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        {ending}
"""


@pytest.mark.parametrize("ending", ["raise", "raise OSError('what a library makes of it')"])
def test_the_line_is_written_whichever_thread_is_first(ending: str) -> None:
    command = [sys.executable, "-c", SLOW_LINE.format(ending=ending)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (130, "interrupted: go on\n")


EARLY = """
import os, runpy, signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
runpy.run_module({module!r}, run_name="__main__")
"""


@pytest.mark.parametrize("module", ["stillhouse", "flows"])
def test_an_interrupt_while_modules_are_imported_is_answered_too(module: str) -> None:
    command = [sys.executable, "-c", EARLY.format(module=module)]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (130, "interrupted: nothing was begun; run the same command again\n")


@pytest.mark.slow
def test_code_that_goes_on_is_left_after_a_few_seconds_or_at_the_second_time(start: Start, tmp_path: Path) -> None:
    (tmp_path / "stubborn").touch()
    process = start(*STILLHOUSE, "contract", "toy", "--source")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130 and errors.count("\n") == 1
    assert 2.5 < time.monotonic() - began < 10

    (tmp_path / "busy").unlink()
    process = start(*STILLHOUSE, "contract", "toy", "--source")
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
    assert process.wait(timeout=1.5) == 130


@pytest.mark.slow
def test_on_a_terminal_the_cursor_comes_back(start: Start) -> None:
    ours, theirs = pty.openpty()
    process = start(*STILLHOUSE, "contract", "toy", "--source", stdin=theirs, stdout=theirs, stderr=theirs)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    shown = os.read(ours, 100_000).decode()  # while the other end is open: what was not read yet is lost with it
    os.close(theirs)
    os.close(ours)
    assert "\x1b[?25hinterrupted: nothing was changed" in shown and "Traceback" not in shown


@pytest.mark.slow
def test_a_flow_answers_with_one_line(start: Start) -> None:
    process = start("-m", "flows", "live", "2024-01-10", "--agent", "toy")
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - began < 10
    assert process.returncode == 130
    lines = errors.splitlines()
    assert lines[-1] == "interrupted: the rows so far are kept; run the same command again to go on"
    assert "Traceback" not in errors


@pytest.mark.parametrize("module", [STILLHOUSE, ["-m", "flows"]], ids=["stillhouse", "flows"])
def test_the_version_writes_nothing(module: list[str], tmp_path: Path) -> None:
    environment = os.environ | {"STILLHOUSE_HOME": str(tmp_path / "home")}
    shown = subprocess.check_output([sys.executable, *module, "--version"], cwd=ROOT, env=environment, text=True)
    assert shown.startswith("stillhouse 0.") and not (tmp_path / "home").exists()
