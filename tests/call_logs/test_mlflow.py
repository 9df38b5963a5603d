"""Traces of MLflow: of an experiment and of a file, with their assessments as outcomes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from stillhouse.call_logs import open_call_logs
from stillhouse.call_logs.calls import Call, Unusable
from stillhouse.call_logs.mlflow import reader
from stillhouse.errors import RegistryError
from stillhouse.registry.traces import write_traces
from tests.call_logs.logs_for_tests import (
    BEGIN,
    INTENTS,
    SENTENCES,
    base_of,
    intents_agent,
    request,
    response,
    write,
)
from tests.call_logs.test_openai import counted, own_home, reasons, run

__all__ = ["own_home"]  # a fixture of every test here

LATER = "2023-11-15T10:00:00.000Z"


def trace_span(number: int, text: str, answer: Any, kind: str = "CHAT_MODEL", **keys: Any) -> dict[str, Any]:
    attributes = {
        "mlflow.spanType": json.dumps(kind),
        "mlflow.spanInputs": json.dumps(request(text)),
        "mlflow.spanOutputs": json.dumps(response(answer, number)),
    }
    return {
        "span_id": f"s{number}",
        "start_time_unix_nano": (BEGIN + 60 * number) * 10**9,
        "status": {"code": "STATUS_CODE_OK"},
        "attributes": attributes,
    } | keys


def assessment(name: str, value: Any, kind: str = "expectation", source: str = "HUMAN", **keys: Any) -> dict[str, Any]:
    own = {"assessment_name": name, "source": {"source_type": source}, "create_time": LATER, "last_update_time": LATER}
    return own | {kind: {"value": value}, "valid": True} | keys


def trace(*spans: dict[str, Any], assessments: Any = ()) -> dict[str, Any]:
    info = {"trace_id": "tr-1", "request_time": "2023-11-14T22:13:20Z", "assessments": list(assessments)}
    return {"info": info, "data": {"spans": list(spans)}}


def outcome_of(*assessments: dict[str, Any], name: str | None = None) -> Any:
    (call,) = reader(name)(1, trace(trace_span(0, "book it", "book"), assessments=assessments))
    assert isinstance(call, Call)
    return call.outcome and call.outcome.value


# --------------------------------------------------------------------------- which assessments are outcomes


def test_expectations_come_before_feedback_and_newer_ones_before_older() -> None:
    old, new = assessment("intent", "greet"), assessment("intent", "cancel", last_update_time="2024-01-01T00:00:00Z")
    feedback = assessment("right", "book", "feedback", last_update_time="2025-01-01T00:00:00Z")
    assert outcome_of(new, old, feedback) == "cancel"
    assert outcome_of(feedback) == "book"
    assert outcome_of() is None


@pytest.mark.parametrize(
    ("stated", "value"),
    [
        (assessment("correctness", True, "feedback"), True),
        (assessment("correct", False, "feedback"), None),
        (assessment("polite", True, "feedback"), None),
        (assessment("correctness", True, "feedback", source="LLM_JUDGE"), None),
        (assessment("intent", "cancel", "feedback", source="CODE"), None),
        (assessment("intent", "cancel", valid=False), None),
        (assessment("intent", None), None),
        (assessment("facts", ["a", "b"]), None),
    ],
)
def test_only_what_a_person_says_is_an_outcome(stated: dict[str, Any], value: Any) -> None:
    assert outcome_of(stated) == value


def test_named_assessment_is_the_outcome_whoever_gave_it() -> None:
    judged = assessment("intent", "greet", "feedback", source="LLM_JUDGE")
    assert outcome_of(judged, assessment("other", "book"), name="intent") == "greet"


def test_assessments_of_a_trace_with_two_calls_belong_to_their_spans() -> None:
    spans = [trace_span(0, "a", "book"), trace_span(1, "b", "cancel")]
    of_trace, of_span = assessment("intent", "book"), assessment("intent", "greet", span_id="s1")
    calls = list(reader(None)(1, trace(*spans, assessments=[of_trace, of_span])))
    assert [call.outcome and call.outcome.value for call in calls] == [None, "greet"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"spans": []}, "it is no trace of MLflow"),
        (trace(), "its trace has no span of type CHAT_MODEL or LLM"),
        (trace(trace_span(0, "a", "b", kind="TOOL")), "its trace has no span of type CHAT_MODEL or LLM"),
        (trace(trace_span(0, "a", "b", attributes={"mlflow.spanType": '"LLM"'})), "hold no `messages`"),
    ],
)
def test_traces_without_a_call_are_counted(record: dict[str, Any], reason: str) -> None:
    (unusable,) = reader(None)(4, record)
    assert isinstance(unusable, Unusable) and reason in unusable.reason and unusable.line == 4


# --------------------------------------------------------------------------- files and experiments


def test_file_of_traces_with_outcomes(tmp_path: Path) -> None:
    base = base_of(intents_agent(), tmp_path)
    lines = [
        trace(trace_span(0, "book it", "book"), assessments=[assessment("intent", "cancel")]),
        trace(trace_span(1, "stop it", "cancel"), assessments=[assessment("correct", True, "feedback")]),
        trace(trace_span(2, "x", "book", status={"code": "STATUS_CODE_ERROR"})),
    ]
    summary = run(base, write(tmp_path / "traces.jsonl", lines), kind="mlflow")
    assert counted(summary) == {"rows": 3, "added": 2, "decisions": 2, "outcomes": 2, "answers": 2}
    assert reasons(summary) == {"the call failed": 1}
    outcomes = base.read("outcomes")
    assert outcomes["action"].tolist() == ["cancel", "cancel"]
    assert set(outcomes["known_at"]) == {pd.Timestamp(LATER)}


def test_experiment_is_read_from_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one test of the real path: traces that MLflow wrote, with assessments, imported twice."""
    import mlflow
    from mlflow.entities import AssessmentSource, SpanType

    from stillhouse.registry.connection import connect

    uri = f"sqlite:///{tmp_path}/m.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    connect()  # creates the tables
    mlflow.set_tracking_uri(uri)
    mlflow.set_experiment("support chat")
    for number, (text, intent) in enumerate(zip(SENTENCES, INTENTS, strict=True)):
        with mlflow.start_span("chat", span_type=SpanType.CHAT_MODEL) as made:
            made.set_inputs(request(text))
            made.set_outputs(response(intent, number))
        mlflow.flush_trace_async_logging()
        if number == 1:
            source = AssessmentSource(source_type="HUMAN", source_id="ann")
            mlflow.log_expectation(trace_id=made.trace_id, name="intent", value="greet", source=source)
    base = base_of(intents_agent(), tmp_path)
    summary = run(base, Path("support chat"), kind="mlflow")
    assert counted(summary) == {"rows": 4, "added": 4, "decisions": 4, "outcomes": 1, "answers": 4}, reasons(summary)
    now = pd.Timestamp.now(tz="UTC")
    rows = base.read_observations(base.window("all", now - pd.Timedelta(hours=1), now))
    assert sorted(rows["said"]) == sorted(SENTENCES) and base.read("outcomes")["action"].tolist() == ["greet"]
    again = run(base, Path("support chat"), kind="mlflow")
    assert again.added == again.decisions == again.outcomes == again.answers == 0
    assert not list((tmp_path / "home" / "imports").rglob("*.jsonl"))
    assert write_traces("support chat", tmp_path / "t.jsonl") == 4
    with (
        pytest.raises(RegistryError, match="there is no experiment 'support char'"),
        open_call_logs(base.config, ["support char"], "mlflow"),
    ):
        pass
