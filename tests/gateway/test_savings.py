"""What an agent behind the door saves: the reckoning, the flag that it rests on, the command, the page, the status."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from stillhouse import champion, config
from stillhouse.agreement import lower_bound
from stillhouse.commands import status as status_command
from stillhouse.errors import ConfigError, RegistryError
from stillhouse.gateway.adopting import draft_agent
from stillhouse.gateway.savings import Savings, read_door_status, read_savings, reckon_savings
from stillhouse.gateway.settings import Price
from stillhouse.gateway.store import CaptureOutline, CaptureRow, GatewayStore, store_path
from stillhouse.gateway.tasks import Task
from stillhouse.records import Promise, PromiseStatus
from stillhouse.savings_page import describe_savings, format_savings_page, publish_savings, refresh_savings_page
from tests.command import Command, command
from tests.gateway.test_local_answers import TOKEN, ask, champion_before, wait_for_notes
from tests.gateway.upstream import Upstream, label_completion

KEY = "0123456789abcdef"
MONDAY = datetime(2026, 11, 2, tzinfo=UTC)
NOW = MONDAY + timedelta(days=12)


def outline(asked: Any, number: int = 0, **changes: Any) -> CaptureOutline:
    """A capture, ``number`` hours after a Monday; by the champion router@1 unless there was none."""
    at = MONDAY + timedelta(hours=number)
    base = CaptureOutline(
        f"r{asked}{number}", int(at.timestamp() * 1e6), asked, "move", "move", "router@1", True, 80, 20, 1000.0
    )
    if asked in ("first", "credential"):
        base = base._replace(local_action=None, local_version=None, would_answer=None)
    elif asked == "local":
        base = base._replace(action=None, input_tokens=None, output_tokens=None, ms=5.0)
    elif asked in ("unsure", "not_local"):
        base = base._replace(would_answer=False)
    return base._replace(**changes)


def reckon(rows: list[CaptureOutline], **options: Any) -> Savings:
    return reckon_savings("router", KEY, rows, as_of=NOW, **options)


STORY = [
    *(outline("first", n) for n in range(10)),
    *(outline("shadow", n) for n in range(10, 20)),
    outline("shadow", 20, action="stay"),
    outline("shadow", 21, action="stay", would_answer=False),
    *(outline("local", n) for n in range(22, 42)),
    *(outline("audit", n) for n in range(42, 50)),
    outline("audit", 50, action="stay"),
    outline("audit", 51, action="stay", would_answer=False),
    outline("audit", 52, action=None),
    outline("unsure", 53, ms=9000.0, input_tokens=900),
    outline("not_local", 54),
    *(outline("local", n, local_version="router@2") for n in range(170, 180)),
    outline("credential", 181),
    outline("audit", 182, local_version="router@2", action="wholly new"),
]


def test_each_question_is_counted_once_by_stage_and_by_week() -> None:
    savings = reckon(STORY)
    assert [(stage.name, stage.requests, stage.local) for stage in savings.stages] == [
        ("capture", 10, 0),
        ("router@1", 45, 20),
        ("router@2", 12, 10),
    ]
    assert [(week.name, week.requests, week.local) for week in savings.weeks] == [
        ("2026-11-02", 55, 20),
        ("2026-11-09", 12, 10),
    ]
    total, reign = savings.total, savings.stages[1]
    assert (total.first, total.shadow, total.audit, total.unsure) == (10, 12, 12, 1)
    assert (total.not_local, total.credential, total.unusable, total.local) == (1, 1, 1, 30)
    assert savings.stages[2].credential == 1, "a question without a decision belongs to the champion of that time"
    for slices in (savings.stages, savings.weeks):
        for name in ("requests", "local", "shadow", "audit", "unsure", "unusable", "money", "ms"):
            values = [getattr(one, name) for one in slices]
            assert values[0] is None or sum(values) == pytest.approx(getattr(total, name))
    assert reign.share == 20 / 45 and reign.begin == MONDAY + timedelta(hours=10)


def test_agreement_is_of_blind_questions_that_the_champion_would_have_answered() -> None:
    first, second = reckon(STORY).stages[1:]
    assert (first.audited.rows, first.audited.agreed, first.audited.share) == (10, 8, 0.8), "one is refused"
    assert first.audited.bound == lower_bound(10, 2, 0.95)
    assert (first.shadowed.rows, first.shadowed.agreed) == (11, 10)
    assert (second.audited.rows, second.audited.agreed, second.audited.bound) == (1, 0, 0.0), "an unknown answer"
    assert reckon(STORY[:10]).total.audited.bound is None
    assert reckon(STORY, confidence=0.5).stages[1].audited.bound == lower_bound(10, 2, 0.5)


def test_savings_are_local_answers_times_what_blind_ones_have_cost() -> None:
    savings = reckon(STORY, price=Price(per_million_input=1.0, per_million_output=10.0))
    cost, total = savings.upstream, savings.total
    assert (cost.median_ms, cost.input_tokens, cost.output_tokens) == (1000.0, 80.0, 20.0), "not the longer deferral"
    assert cost.money == pytest.approx(280e-6) and total.money == pytest.approx(30 * 280e-6)
    assert total.ms == 30 * (1000.0 - 5.0) and total.input_tokens == 2400 and total.output_tokens == 600
    assert savings.stages[0].money == 0 and savings.stages[0].ms == 0


def test_what_is_not_known_is_null() -> None:
    only_local = reckon([outline("local")], price=Price(per_million_input=1.0)).total
    assert only_local.money is None and only_local.ms is None and only_local.input_tokens is None
    silent = [outline("first", input_tokens=None), outline("local", 1)]
    assert reckon(silent, price=Price()).total.money is None and reckon(silent).total.ms == 995.0
    assert reckon([outline("first"), outline("local", 1)]).total.money is None, "no price"
    assert reckon([outline("unsure", ms=70.0)]).upstream.median_ms == 70.0, "better than nothing"
    assert reckon([]).total.requests == 0 and reckon([]).total.share is None


def test_a_request_with_several_questions_takes_its_time_once() -> None:
    rows = [outline("first"), *(outline("local", 1) for _ in range(3))]
    total = reckon(rows).total
    assert total.local == 3 and total.ms == 995.0


@pytest.mark.parametrize(
    ("options", "asked", "would_answer"),
    [
        ({}, "local", True),
        ({"standing": "audit", "allowed": True, "action": "unknown"}, "audit", False),
        ({"standing": "audit"}, "audit", False),
        ({"standing": "audit", "allowed": True}, "audit", True),
        ({"standing": "shadow", "allowed": True}, "shadow", True),
        ({"standing": "shadow", "allowed": True, "action": "unknown"}, "shadow", False),
        ({"standing": "unsure", "allowed": True}, "unsure", False),
        ({"has_champion": False}, "first", None),
    ],
)
def test_the_door_records_whether_the_champion_would_have_answered(
    behind: Upstream, options: dict[str, Any], asked: str, would_answer: bool | None
) -> None:
    behind.answer = label_completion('{"intent": "move"}')
    with champion_before(behind, champion=options) as (running, scripted):
        ask(running, **TOKEN, **{"x-stillhouse-task": "routing"})
        wait_for_notes(scripted, 1)  # after the record is on the disk
        (row,) = running.rows()
        assert (row["asked"], row["would_answer"]) == (asked, would_answer)
        store = running.wait_until_written()
        (read,) = store.outlines(row["task"])
        assert read.would_answer is would_answer and read.asked == asked and store.model_of(row["task"]) == "m"
        store.close()


# --------------------------------------------------------------------------- an adopted agent


@pytest.fixture
def agents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of an agent that has adopted a task, of which nothing is recorded yet."""
    folder = tmp_path / "agents"
    folder.mkdir()
    monkeypatch.setenv("STILLHOUSE_AGENTS", str(folder))
    summary = SimpleNamespace(
        task=Task(key=KEY, tenant="t", protocol="openai_chat", model="gpt-5-mini", actions=("stay", "move"))
    )
    (folder / "intents.yaml").write_text(draft_agent("intents", summary, []))  # type: ignore[arg-type]
    return folder


def record(rows: list[CaptureOutline]) -> None:
    """Write the story to the door's store."""
    store = GatewayStore(store_path())
    task = Task(key=KEY, tenant="t", protocol="openai_chat", model="gpt-5-mini", actions=("stay", "move"))
    with store.transaction():
        store.admit(task, {}, rows[0].at, (10, 10))
        for row in rows:
            values = row._asdict() | {"task": KEY, "question_id": "", "caller": "c", "observation": "secret text"}
            store.add([tuple(values.get(name, 0 if name == "streamed" else None) for name in CaptureRow.COLUMNS)])
    store.close()


@pytest.fixture
def run(
    agents: Path, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Command]:
    record(STORY)
    (home / "gateway" / "gateway.yaml").write_text(
        "prices:\n  gpt-5-mini: {per_million_input: 1000, per_million_output: 10000}\n"
    )
    yield command(home, agents, monkeypatch, capsys)


def test_the_command_in_80_columns_and_as_json(run: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stillhouse.cli.console._width", 80)
    shown = run("savings", "intents")
    assert shown.returncode == 0, shown.stderr
    assert max(map(len, shown.stdout.splitlines())) <= 80
    words = [line.split() for line in shown.stdout.splitlines()]
    assert ["all", "67", "30", "44.7", "%", "72.7", "%", "43.5", "%", "8.40", "29.9", "s"] in words
    assert ["router@1", "0", "12", "11", "1", "1", "0", "10"] in words
    assert any(line[0] == "2026-11-09" for line in words) and "30 of 67 questions (44.7 %)" in shown.stdout
    read = Savings.model_validate_json(run("savings", "intents", "--json").stdout)
    assert read.total.local == 30 and read.total.money == pytest.approx(8.4) and read.model == "gpt-5-mini"


def test_an_agent_that_has_adopted_nothing_and_a_task_without_records(agents: Path) -> None:
    settings = config.load("intents")
    assert describe_savings(read_savings(settings)) == [f"no requests of task {KEY} are recorded"]
    with pytest.raises(ConfigError, match="decides no task of the front door"):
        read_savings(settings.model_copy(update={"front_door": None}))


def test_the_page_is_in_the_run_of_the_champion_and_has_no_text(
    run: Command, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    files = dict[str, dict[str, bytes]]()
    runs = SimpleNamespace(log_files=files.__setitem__)
    registry = SimpleNamespace(runs=runs, champion=lambda: SimpleNamespace(run_id="r1"))
    monkeypatch.setattr(champion, "open_registry", lambda agent: registry)
    shown = run("savings", "intents", "--publish")
    assert shown.returncode == 0 and "savings.md is in MLflow run r1" in shown.stdout
    page = files["r1"]["savings.md"].decode()
    settings = config.load("intents")
    assert page.startswith("# What intents saves\n") and "| router@2 | 12 | 10 |" in page.replace("&#64;", "@")
    assert "secret text" not in page and page.count("\n## ") == 2
    assert json.loads(run("savings", "intents", "--publish", "--json").stdout)["total"]["local"] == 30
    registry.champion = lambda: None
    with pytest.raises(RegistryError, match="no champion whose MLflow run"):
        publish_savings(settings)
    refresh_savings_page(settings)
    assert "was not published" in caplog.text, "a watch goes on"
    refresh_savings_page(settings.model_copy(update={"front_door": None}))
    assert format_savings_page(reckon(STORY)).count("capture") >= 2


def test_the_status_says_what_the_door_does(agents: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = config.load("intents")
    assert settings.front_door is not None
    record(STORY)
    promise = PromiseStatus.model_construct(promise=Promise(agreement=0.98), threshold=0.9)
    nothing = promise.model_copy(update={"threshold": None})
    hidden = settings.model_copy(update={"front_door": settings.front_door.model_copy(update={"shadow": True})})
    standings = [
        (settings, False, None, "recording"),
        (settings, True, None, "shadow"),
        (settings, True, nothing, "shadow"),
        (settings, True, promise, "answering"),
        (hidden, True, promise, "shadow"),
    ]
    for agent, has_champion, held, standing in standings:
        door = read_door_status(agent, has_champion=has_champion, promise=held, now=NOW)
        assert door is not None and door.standing == standing
    assert (door.requests, door.local, door.share) == (12, 10, 10 / 12)
    status_command._show_door(door)
    quiet = read_door_status(settings, has_champion=True, promise=promise, now=NOW + timedelta(days=30))
    assert quiet is not None and quiet.share is None
    status_command._show_door(quiet)
    shown = " ".join(capsys.readouterr().out.split())
    assert "is in shadow" in shown and "83.3% of 12 requests answered locally in the last 7 days" in shown
    assert "lets the champion answer where it may; no requests in the last 7 days" in shown
    without = settings.model_copy(update={"front_door": None})
    assert read_door_status(without, has_champion=True) is None
