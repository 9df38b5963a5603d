"""What a person sees of a run: its name, the state in which it ends, and its log."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import get_args

import pytest
from prefect import flow_engine
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, State
from prefect.logging.handlers import APILogWorker

from flows.live import live
from flows.promote import promote
from flows.refresh import refresh
from flows.watch import watch
from stillhouse.champion import open_registry
from stillhouse.errors import RegistryError
from stillhouse.records import Verdict, VerdictResult
from tasks import endings, refreshing
from tasks.endings import STATE_NAMES, state_name

pytestmark = pytest.mark.usefixtures("prefect_server")


def newest_run(flow: str) -> FlowRun:
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName
    from prefect.client.schemas.sorting import FlowRunSort

    with get_client(sync_client=True) as client:
        runs = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])), sort=FlowRunSort.START_TIME_DESC, limit=1
        )
    return runs[0]


def read_log(run: FlowRun) -> list[str]:
    """The lines on the page of a run."""
    APILogWorker.instance().drain_all(timeout=30)
    with get_client(sync_client=True) as client:
        logs = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
    return [entry.message for entry in logs]


def verdict(result: str, kind: str = "watch", response: str = "hold") -> Verdict:
    return Verdict.model_validate(
        {
            "verdict_id": "v",
            "kind": kind,
            "agent": "toy",
            "as_of": datetime(2024, 1, 1, tzinfo=UTC),
            "result": result,
            "response": response,
            "summary": "s",
        }
    )


def test_each_result_has_a_name_of_its_state() -> None:
    assert set(STATE_NAMES) == set(get_args(VerdictResult))
    assert state_name(verdict("drift", response="redistil")) == "Drift"
    assert state_name(verdict("drift")) == state_name(verdict("cooling_down")) == "Held"
    assert state_name(verdict("promoted", kind="gate")) == "Promoted"


def test_state_name_and_log_of_a_run_say_what_came_out(toy_base, day) -> None:
    toy_base(24)
    found = watch(agent="toy", as_of=day(24))
    assert isinstance(found, Verdict) and found.result == "no_drift"  # callers get the verdict, not the state
    run = newest_run("watch")
    assert (run.state.name, run.state.type.value, run.state.message) == ("No drift", "COMPLETED", found.summary)
    assert run.name == "watch toy 2024-01-25 00:00: no drift"

    found = refresh(agent="toy", as_of=day(24), cause="a look\nat it")
    run = newest_run("refresh")
    assert run.state.name == state_name(found) and run.state.message == found.summary
    assert run.name == f"refresh toy 2024-01-25 00:00: {run.state.name.lower()}"
    log = read_log(run)
    assert not [line for line in log if line.startswith("Finished in state Completed")]
    story = "\n".join(log)
    parts = ("refresh by manual (a look\\nat it)", "teachers: fitted on", "teachers: examined", "student: trained on")
    for text in (*parts, "candidate int8_dynamic", "is chosen", "proof on", f"toy: {run.state.name}: {found.summary}"):
        assert text in story, story
    for reason in found.reasons:
        assert f"  {reason.status} {reason.measure}: {reason.text}" in story
    positions = [story.index(text) for text in parts]
    assert positions == sorted(positions)

    assert promote(agent="toy", action="rollback" if open_registry("toy").previous() else "promote", version=1)
    assert newest_run("promote").state.name in ("Promoted", "Rolled back")
    assert live("toy", day(25)) == 120
    assert newest_run("live").state.message == "120 observations added until 2024-01-26 00:00"


def test_the_caller_gets_the_verdict_if_the_server_answers_without_it(toy_base, day, monkeypatch) -> None:
    """As after a state that was stored, and whose answer was lost: the client asks again."""
    propose = flow_engine.propose_state_sync

    def propose_and_lose_data(*args, **kwargs):
        state = propose(*args, **kwargs)
        if state.is_final():
            state = State(type=state.type, name=state.name, message=state.message)
        return state

    toy_base(24)
    monkeypatch.setattr(flow_engine, "propose_state_sync", propose_and_lose_data)
    assert watch(agent="toy", as_of=day(24)).result == "no_drift"
    assert not endings._results
    assert not [line for line in read_log(newest_run("watch")) if "keep_result" in line]


def test_a_flow_function_without_a_run_returns_its_result(toy_base, day) -> None:
    toy_base(24)
    assert isinstance(watch.fn(agent="toy", as_of=day(24)), Verdict)


def test_a_failed_run_says_why_in_prefect_and_a_stopped_one_in_mlflow(toy_base, day, monkeypatch) -> None:
    toy_base(24)

    def fail(error: BaseException) -> None:
        def plan(job):
            raise error

        monkeypatch.setattr(refreshing, "plan", plan)
        with pytest.raises(type(error)):
            refresh(agent="toy", as_of=day(24), cause="to be stopped")

    registry = open_registry("toy")

    def newest() -> tuple[str, str, str]:
        run = registry.client.search_runs([registry.experiment_id], "tags.role = 'refresh'", max_results=1)[0]
        tags = run.data.tags
        return run.info.status, tags.get("failed") or tags["killed"], tags["mlflow.note.content"]

    fail(RegistryError("the teacher of toy\\@1 is gone: restore it"))
    state = newest_run("refresh").state
    assert state.name == "Failed" and "RegistryError: the teacher of" in state.message
    status, reason, note = newest()
    assert status == "FAILED" and reason.startswith("RegistryError: the teacher") and note.startswith("failed: ")
    fail(KeyboardInterrupt())
    status, reason, note = newest()
    assert status == "KILLED" and reason.startswith("stopped by Ctrl-C") and note == f"killed: {reason}"
