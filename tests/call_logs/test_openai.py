"""Requests and responses of the OpenAI protocol become observations, decisions and knowledge, each once."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.call_logs import ANY_TASK, CallSources, open_call_logs
from stillhouse.config import AgentConfig, leaves
from stillhouse.errors import ConfigError, SchemaError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.knowledge.importing import ImportSummary, import_files, preview
from stillhouse.knowledge.importing import run as import_run
from stillhouse.teachers.kinds import MemberContext, answer_version
from tests.call_logs.logs_for_tests import (
    BEGIN,
    INTENTS,
    SENTENCES,
    TEACHER,
    base_of,
    intents_agent,
    records,
    request,
    response,
    write,
)


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STILLHOUSE_HOME", str(tmp_path / "home"))


def run(base: KnowledgeBase, *paths: Path, kind: Any = "openai", **options: Any) -> ImportSummary:
    with open_call_logs(base.config, list(map(str, paths)), kind, **options) as opened:
        summary = import_files(base, opened.sources)
        summary.notes += opened.notes
    return summary


def counted(summary: ImportSummary) -> dict[str, int]:
    return {key: count for key, count in vars(summary).items() if isinstance(count, int) and count}


def reasons(summary: ImportSummary) -> dict[str, int]:
    return {reason: skipped.count for reason, skipped in summary.skipped.items()}


def version_of(config: AgentConfig, index: int = 0) -> str:
    return answer_version(MemberContext(config, leaves(config.teachers)[index], Path()))


def observations(base: KnowledgeBase) -> pd.DataFrame:
    start = pd.Timestamp(BEGIN - 1, unit="s", tz="UTC")
    return base.read_observations(base.window("all", start, start + pd.Timedelta(days=9)))


# --------------------------------------------------------------------------- what is stored


@pytest.mark.parametrize("name", ["log.jsonl", "log.jsonl.gz"])
def test_calls_become_observations_decisions_and_knowledge(tmp_path: Path, name: str) -> None:
    config = intents_agent()
    base, path = base_of(config, tmp_path), write(tmp_path / "log.jsonl", records())
    if name.endswith(".gz"):
        path = tmp_path / name
        path.write_bytes(gzip.compress((tmp_path / "log.jsonl").read_bytes()))
    summary = run(base, path)
    assert counted(summary) == {"rows": 4, "added": 4, "decisions": 4, "answers": 4}
    assert summary.notes == ["4 answers of gpt-2026 are knowledge of the teacher llm"]
    rows = observations(base)
    assert rows["said"].tolist() == SENTENCES
    assert rows["observation_id"].tolist() == [f"chatcmpl-{number}" for number in range(4)]
    assert rows["observed_at"].tolist() == [pd.Timestamp(BEGIN + 60 * n, unit="s", tz="UTC") for n in range(4)]
    decisions = base.read("decisions")
    assert decisions["action"].tolist() == INTENTS and set(decisions["version"]) == {"gpt-2026"}
    probs = base.answers.probs(rows, version_of(config))
    assert [config.actions[index] for index in probs.argmax(axis=1)] == INTENTS
    np.testing.assert_allclose(probs[0], [1 / 1.1 + 0.1 / 1.1 / 3, 0.1 / 1.1 / 3, 0.1 / 1.1 / 3])


def test_calls_are_imported_once_from_any_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_run, "_CHUNK_ROWS", 2)
    base = base_of(intents_agent(), tmp_path)
    path = write(tmp_path / "a.jsonl", records())
    run(base, path)
    again = run(base, path)
    assert counted(again) == {"rows": 4, "before": 4}
    other = write(tmp_path / "b.jsonl", [*records(), {"request": request("hi"), "response": response("greet", 9)}])
    assert counted(run(base, other)) == {"rows": 5, "added": 1, "duplicates": 4, "decisions": 1, "answers": 1}
    without_ids = [record | {"response": record["response"] | {"id": None}} for record in records()]
    more = write(tmp_path / "c.jsonl", [*without_ids, *without_ids])
    assert counted(run(base, more)) == {"rows": 8, "added": 4, "duplicates": 4, "decisions": 4}


def test_preview_writes_nothing(tmp_path: Path) -> None:
    config = intents_agent()
    base = base_of(config, tmp_path)
    path = write(tmp_path / "log.jsonl", [*records(), "{", {"request": request("x"), "response": response("other", 5)}])
    with open_call_logs(config, [str(path)], "openai") as opened:
        (shown,) = preview(config, opened.sources)
    assert shown.rows["decision"].tolist() == INTENTS and shown.lines_read == 6 and shown.answers == 4
    assert [problem.line for problem in shown.problems] == [5]
    assert {reason: found.first.line for reason, found in shown.skipped.items()} == {
        "its answer names no action of the agent": 6
    }
    assert base.tables.count_rows() == {}


def test_lines_that_are_no_json_go_to_quarantine(tmp_path: Path) -> None:
    base = base_of(intents_agent(), tmp_path)
    summary = run(base, write(tmp_path / "log.jsonl", [*records(), "no json", "[1]"]))
    assert summary.quarantined == 2 and [problem.line for problem in summary.problems] == [5, 6]
    assert "log.jsonl:5: cannot be read as JSON" in str(summary.problems[0])


# --------------------------------------------------------------------------- forms of a line


FORMS: list[tuple[str, dict[str, Any]]] = [
    ("texts of JSON", {"request": json.dumps(request("book it")), "response": json.dumps(response("book"))}),
    ("bodies", {"request": {"body": request("book it")}, "response": {"status_code": 200, "body": response("book")}}),
    ("request beside response", request("book it") | {"response": response("book")}),
    ("parts", {"request": request([{"type": "text", "text": "book it"}]), "response": response("book")}),
    ("JSON answer", {"request": request("book it"), "response": response('{"action": "book", "why": "cancel"}')}),
    ("JSON of another key", {"request": request("book it"), "response": response('{"intent": "book"}')}),
    (
        "tool",
        {
            "request": request("book it", tools=[{"type": "function", "function": {"name": "book"}}]),
            "response": response(None, message={"tool_calls": [{"function": {"name": "book", "arguments": "{}"}}]}),
        },
    ),
    (
        "argument of a tool",
        {
            "request": request("book it"),
            "response": response(
                None, message={"tool_calls": [{"function": {"name": "route", "arguments": '{"to": "book"}'}}]}
            ),
        },
    ),
    (
        "Responses API",
        {
            "request": {"model": "gpt", "instructions": "Which intent?", "input": "book it"},
            "response": {
                "id": "resp_1",
                "created_at": BEGIN,
                "model": "gpt-2026",
                "status": "completed",
                "output": [{"type": "message", "content": [{"type": "output_text", "text": "book"}]}],
            },
        },
    ),
    (
        "tool of the Responses API",
        {
            "request": {
                "model": "gpt",
                "input": [{"role": "user", "content": [{"type": "input_text", "text": "book it"}]}],
            },
            "response": {
                "created_at": BEGIN,
                "output": [{"type": "reasoning"}, {"type": "function_call", "name": "book", "arguments": "{}"}],
            },
        },
    ),
]


@pytest.mark.parametrize(("form", "record"), FORMS, ids=[name for name, _ in FORMS])
def test_forms_of_a_line(tmp_path: Path, form: str, record: dict[str, Any]) -> None:
    base = base_of(intents_agent(), tmp_path)
    summary = run(base, write(tmp_path / "log.jsonl", [record]))
    assert counted(summary) == {"rows": 1, "added": 1, "decisions": 1, "answers": 1}, reasons(summary)
    assert observations(base)["said"].tolist() == ["book it"]
    assert base.read("decisions")["action"].tolist() == ["book"]


@pytest.mark.parametrize(
    ("stated", "moment"),
    [
        (BEGIN + 0.25, "2023-11-14T22:13:20.250Z"),
        (BEGIN * 1000 + 250, "2023-11-14T22:13:20.250Z"),
        (str(BEGIN), "2023-11-14T22:13:20Z"),
        ("2023-11-14T23:13:20+01:00", "2023-11-14T22:13:20Z"),
        ("2023-11-14 22:13:20", "2023-11-14T22:13:20Z"),
    ],
)
def test_time_of_the_line_comes_before_that_of_the_response(tmp_path: Path, stated: Any, moment: str) -> None:
    base = base_of(intents_agent(), tmp_path)
    run(base, write(tmp_path / "log.jsonl", [records()[3] | {"timestamp": stated}]))
    assert observations(base)["observed_at"].tolist() == [pd.Timestamp(moment)]


def test_outcomes_of_lines(tmp_path: Path) -> None:
    base = base_of(intents_agent(), tmp_path)
    first, second, third, _ = records()
    first |= {"outcome": "cancel", "known_at": BEGIN + 3600}
    second |= {"outcome": True}
    third |= {"outcome": "nonsense"}
    assert run(base, write(tmp_path / "log.jsonl", [first, second, third])).outcomes == 2
    outcomes = base.read("outcomes").sort_values("known_at")
    assert outcomes["action"].tolist() == ["cancel", "cancel"]
    assert outcomes["known_at"].max() == pd.Timestamp(BEGIN + 3600, unit="s", tz="UTC")


def test_log_probabilities_give_the_probabilities(tmp_path: Path) -> None:
    def tokens(*names: str) -> list[dict[str, Any]]:
        return [{"token": name, "logprob": 0.0, "top_logprobs": []} for name in names]

    top = [{"token": "book", "logprob": log(0.7)}, {"token": "cancel", "logprob": log(0.3)}]
    content = [*tokens('{"intent": "'), {"token": "book", "logprob": log(0.7), "top_logprobs": top}, *tokens('"}')]
    record = {"request": request("book it"), "response": response('{"intent": "book"}', logprobs={"content": content})}
    config = intents_agent()
    base = base_of(config, tmp_path)
    run(base, write(tmp_path / "log.jsonl", [record]))
    np.testing.assert_allclose(base.answers.probs(observations(base), version_of(config)), [[0.7, 0.3, 0.0]])


def test_columns_come_from_an_object_in_the_message(tmp_path: Path) -> None:
    config = intents_agent(
        observations={"columns": {"said": {"type": "text"}, "age": {"type": "number"}}},
        importing={"observed_at": "t", "columns": {"said": "query"}, "actions": {"B": "book"}},
    )
    base = base_of(config, tmp_path)
    message = json.dumps({"query": "taxi!", "age": 3, "more": 1})
    run(base, write(tmp_path / "log.jsonl", [{"request": request(message), "response": response("B")}]))
    rows = observations(base)
    assert rows[["said", "age"]].to_numpy().tolist() == [["taxi!", 3.0]]
    assert base.read("decisions")["action"].tolist() == ["book"]


# --------------------------------------------------------------------------- what is left out


def changed(text: Any = "book it", answer: Any = "book", **keys: Any) -> dict[str, Any]:
    return {"request": request(text, **keys), "response": response(answer)}


LEFT_OUT: list[tuple[dict[str, Any], str]] = [
    (changed(answer="perhaps"), "its answer names no action of the agent"),
    (changed(answer=None), "its answer names no action of the agent"),
    (changed(answer='{"a": "book", "b": "cancel"}'), "its answer names several"),
    (changed(n=3), "it asks for several answers"),
    (changed(logit_bias={"5": 1}), "its logit_bias changes the answer"),
    (changed(previous_response_id="r"), "it continues a conversation that is stored elsewhere"),
    (changed(text=[{"type": "image_url", "image_url": {"url": "x"}}]), "the last message holds more than text"),
    (
        changed(
            messages=[
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"},
            ]
        ),
        "it has a history of answers",
    ),
    (
        changed(messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "{"}]),
        "its last message is not",
    ),
    (changed(messages=[]), "it has no messages"),
    ({"request": request("book it")}, "it has no response with an answer"),
    ({"request": request("book it"), "response": {"error": {"message": "no"}}}, "the response is an error"),
    ({"request": request("x"), "response": {"status_code": 429, "body": {}}}, "the server answered 429"),
    ({"request": request("x"), "response": response("boo", finish_reason="length")}, "the answer was cut off"),
    ({"request": request("x"), "response": response("", finish_reason="content_filter")}, "held back by a filter"),
    ({"request": request("x"), "response": response(None, message={"refusal": "no"})}, "the model refused"),
    ({"request": request("x"), "response": response("book") | {"created": None}}, "it has no time"),
    ({"request": request("x"), "response": response("book") | {"created": 1e20}}, "it has no time"),
    ({"request": request("x"), "response": response("book"), "time": 0.35}, "it has no time"),
    (
        {
            "request": request("x"),
            "response": response(None, message={"tool_calls": [{"function": {"name": "book"}}] * 2}),
        },
        "it calls several tools",
    ),
    (
        {"request": request("x"), "response": response("book") | {"choices": response("book")["choices"] * 2}},
        "several answers",
    ),
    ({"level": "info"}, "it has no request"),
]


@pytest.mark.parametrize(("record", "reason"), LEFT_OUT, ids=[reason for _, reason in LEFT_OUT])
def test_what_cannot_be_used_is_counted_with_its_reason(tmp_path: Path, record: dict[str, Any], reason: str) -> None:
    base = base_of(intents_agent(), tmp_path)
    summary = run(base, write(tmp_path / "log.jsonl", [records()[1], record, record]))
    assert counted(summary) == {"rows": 3, "added": 1, "decisions": 1, "answers": 1}
    ((stated, skipped),) = summary.skipped.items()
    assert reason in stated and (skipped.count, skipped.first.line) == (2, 2)
    assert "quarantine" not in base.tables.count_rows()


def test_agent_without_a_text_column_needs_objects(tmp_path: Path) -> None:
    columns = {"a": {"type": "number"}, "b": {"type": "number"}}
    config = intents_agent(
        observations={"columns": columns}, student={"kind": "tabular"}, teachers=[TEACHER | {"prompt": "{a}"}]
    )
    summary = run(base_of(config, tmp_path), write(tmp_path / "log.jsonl", records()))
    assert reasons(summary) == {"the last message is no JSON object with the agent's columns": 4}


def test_values_of_a_wrong_type_go_to_quarantine_with_their_line(tmp_path: Path) -> None:
    config = intents_agent(observations={"columns": {"said": {"type": "text"}, "age": {"type": "number"}}})
    record = {"request": request(json.dumps({"said": "x", "age": "old"})), "response": response("book")}
    summary = run(base_of(config, tmp_path), write(tmp_path / "log.jsonl", [records()[1], record]))
    assert summary.quarantined == 1 and summary.added == 1 and summary.problems[0].line == 2


# --------------------------------------------------------------------------- tasks and teachers


@pytest.fixture
def two_tasks(tmp_path: Path) -> Iterator[Path]:
    other = {"request": request("cancel?", system="Is it a\ncancellation?"), "response": response("cancel", 7)}
    yield write(tmp_path / "log.jsonl", [*records(), other])


def opened_tasks(config: AgentConfig, path: Path, **options: Any) -> CallSources:
    with open_call_logs(config, [str(path)], "openai", **options) as opened:
        return opened


def test_several_tasks_must_be_told_apart(tmp_path: Path, two_tasks: Path) -> None:
    config = intents_agent()
    with pytest.raises(SchemaError, match="calls of 2 tasks name actions of the agent") as caught:
        opened_tasks(config, two_tasks)
    message = str(caught.value)
    assert f"4 calls: {'Which intent has this sentence?'}" in message and "1 calls: Is it a cancellation?" in message
    key = message.partition("There are: ")[2].split()[0]
    summary = run(base_of(config, tmp_path), two_tasks, task=key)
    assert summary.added == 4 and reasons(summary) == {"it is of another task": 1}
    assert run(base_of(config, tmp_path), two_tasks, task=ANY_TASK).added == 1
    with pytest.raises(SchemaError, match="no call is of the task 'x'"):
        opened_tasks(config, two_tasks, task="x")


def test_answers_of_an_unknown_model_are_decisions_only(tmp_path: Path) -> None:
    config = intents_agent(teachers=[TEACHER | {"model": "other"}])
    summary = run(base_of(config, tmp_path), write(tmp_path / "log.jsonl", records()))
    assert counted(summary) == {"rows": 4, "added": 4, "decisions": 4}
    assert "4 answers of gpt-2026 are decisions only: no teacher of the agent asks this model" in summary.notes[0]
    base = KnowledgeBase(config, tmp_path / "named")
    summary = run(base, tmp_path / "log.jsonl", teacher="llm")
    assert summary.answers == 4 and not np.isnan(base.answers.probs(observations(base), version_of(config))).any()


def test_newest_of_several_models_is_the_teacher(tmp_path: Path) -> None:
    config = intents_agent()
    base = base_of(config, tmp_path)
    lines = records()
    for line in lines[:2]:
        line["response"]["model"] = "gpt-2025"
    summary = run(base, write(tmp_path / "log.jsonl", lines))
    probs = base.answers.probs(observations(base), version_of(config))
    assert np.isnan(probs[:, 0]).tolist() == [True, True, False, False] and summary.answers == 4
    assert "2 answers of gpt-2025 are another version than those of gpt-2026" in summary.notes[1]


def test_each_teacher_gets_the_answers_of_its_model(tmp_path: Path) -> None:
    decisions = {"kind": "decisions", "name": "d", "base_url": "http://127.0.0.1/v1", "model": "small-1"}
    config = intents_agent(teachers=[TEACHER, decisions])
    base = base_of(config, tmp_path)
    lines = records()
    lines[0]["request"]["model"], lines[0]["response"]["model"] = "small", "small-1"
    run(base, write(tmp_path / "log.jsonl", lines))
    rows = observations(base)
    assert np.isfinite(base.answers.probs(rows, version_of(config, 1))[:, 0]).tolist() == [True, False, False, False]
    assert np.isfinite(base.answers.probs(rows, version_of(config, 0))[:, 0]).tolist() == [False, True, True, True]


def test_teacher_that_asks_no_model_is_refused(tmp_path: Path) -> None:
    config = intents_agent(teachers=[TEACHER, {"kind": "python", "name": "t", "target": "toy:Teacher"}])
    path = write(tmp_path / "log.jsonl", records())
    with pytest.raises(ConfigError, match=r"teachers\.t: asks no model by its name"):
        opened_tasks(config, path, teacher="t")
    with pytest.raises(ConfigError, match="no teacher is called 'x'; there are: llm, t"):
        opened_tasks(config, path, teacher="x")


@pytest.mark.parametrize("name", ["log.csv", "log.parquet", "absent.jsonl"])
def test_other_files_are_refused(tmp_path: Path, name: str) -> None:
    if name == "log.csv":
        (tmp_path / name).write_text("a,b\n1,2\n")
    elif name == "log.parquet":
        pd.DataFrame({"a": [1]}).to_parquet(tmp_path / name)
    with pytest.raises(SchemaError, match=r"is no file of JSON lines|is not there"):
        opened_tasks(intents_agent(), tmp_path / name)


def test_fingerprint_is_part_of_the_version_of_a_decision(tmp_path: Path) -> None:
    base = base_of(intents_agent(), tmp_path)
    record = records()[0]
    record["response"]["system_fingerprint"] = "fp_1"
    run(base, write(tmp_path / "log.jsonl", [record]))
    assert base.read("decisions")["version"].tolist() == ["gpt-2026:fp_1"]
