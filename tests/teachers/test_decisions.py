"""A model behind the System One protocol: correct servers, servers that break the protocol, and failing ones."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError

from stillhouse.config import AgentConfig, leaves
from stillhouse.errors import PartError
from stillhouse.teachers import ensemble
from stillhouse.teachers.answers import Allowance, Answers
from stillhouse.teachers.decisions import Decisions, read_probs, typed_question
from stillhouse.teachers.kinds import MemberContext, answer_version
from tests.agents import agent_config
from tests.teachers.http_server import Reply, Server, serving
from tests.teachers.test_ensemble import WINDOW, make_rows

pytest.importorskip("openai")

COLUMNS = {"temp": {"type": "number"}, "origin": {"type": "category"}}


def make_config(url: str, actions: tuple[str, ...] = ("stay", "move"), **settings: Any) -> AgentConfig:
    teacher = {"kind": "decisions", "name": "d", "base_url": url, "model": "m", "timeout": "2s", "retries": 2}
    return agent_config(actions=list(actions), observations={"columns": COLUMNS}, teachers=[teacher | settings])


def asker(url: str, actions: tuple[str, ...] = ("stay", "move"), **settings: Any) -> Decisions:
    config = make_config(url, actions, **settings)
    return Decisions(config, "d", config.teachers[0], pause=0.01)  # type: ignore[arg-type]


def rows(count: int) -> pd.DataFrame:
    return pd.DataFrame(
        {"temp": np.arange(float(count)), "origin": ["EWR", None] * (count // 2) + ["JFK"] * (count % 2)}
    )


def ask(server: Server, count: int = 1, allowance: Allowance | None = None, **settings: Any) -> Answers:
    return asker(server.url, **settings).answer(rows(count), allowance or Allowance())


def reply(answer: dict[str, Any], usage: Any = (100, 4), model: str = "m-1") -> Reply:
    body: dict[str, Any] = {"model": model, "answers": {"decision": answer}}
    if usage:
        body["usage"] = dict(zip(("input_tokens", "output_tokens"), usage, strict=True))
    return Reply(body)


def choice(*probs: float, names: tuple[str, ...] = ("stay", "move"), **more: Any) -> Reply:
    stated = dict(zip(names, probs, strict=True))
    return reply({"type": "choice", "choice": "stay", "probabilities": stated, "confidence": 0.5}, **more)


def by_temp(request: dict[str, Any], number: int) -> Reply:
    return choice(0.1, 0.9) if request["state"]["temp"] >= 2 else choice(0.75, 0.25)


# --------------------------------------------------------------------------- a correct server


def test_answers_match_their_rows_and_are_charged() -> None:
    with serving(by_temp) as server:
        answers = ask(server, 4, price_per_million_input=2.0, price_per_million_output=10.0)
    np.testing.assert_allclose(answers.probabilities, [[0.75, 0.25]] * 2 + [[0.1, 0.9]] * 2)
    spent = answers.spending
    assert (answers.refused, answers.stop_reason, answers.notes) == ({}, None, ())
    assert (spent.calls, spent.rows, spent.input_tokens, spent.output_tokens) == (4, 4, 400, 16)
    assert spent.money == pytest.approx((400 * 2 + 16 * 10) / 1e6)


def test_request_body(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D_KEY", "secret-key")
    with serving(by_temp) as server:
        ask(server, 2, instructions="Where to?", descriptions={"move": "to the north"}, key_variable="D_KEY")
    by_state = {request["state"]["temp"]: request for request in server.requests}
    assert by_state[1.0]["state"] == {"temp": 1.0, "origin": None}
    assert by_state[0.0] == {
        "model": "m",
        "state": {"temp": 0.0, "origin": "EWR"},
        "questions": {
            "decision": {
                "type": "choice",
                "instructions": "Where to?",
                "criteria": {"stay": None, "move": "to the north"},
            }
        },
    }
    assert {headers["authorization"] for headers in server.headers} == {"Bearer secret-key"}


@pytest.mark.parametrize(
    ("settings", "state"),
    [
        ({"state": "{origin}"}, "EWR"),
        ({"state": '{temp:.1f} at "{origin}"'}, '0.0 at "EWR"'),
        ({"columns": ["origin"]}, {"origin": "EWR"}),
    ],
)
def test_state_is_a_text_or_an_object(settings: dict[str, Any], state: object) -> None:
    with serving(lambda request, number: choice(0.5, 0.5)) as server:
        ask(server, 1 + 1, columns=settings.get("columns"), state=settings.get("state"))
    assert state in [request["state"] for request in server.requests]


def test_noul_is_the_probability_of_yes() -> None:
    settings: dict[str, Any] = {"question": "noul", "yes": "stay", "descriptions": {"stay": "all is well"}}
    with serving(lambda request, number: reply({"type": "noul", "noul": 0.8})) as server:
        answers = ask(server, **settings)
    np.testing.assert_allclose(answers.probabilities, [[0.8, 0.2]])
    assert server.requests[0]["questions"]["decision"] == {"type": "noul", "criteria": {"true": "all is well"}}


def test_score_levels_are_the_actions_in_order() -> None:
    answer = {"type": "score", "score": 0.7, "probabilities": {"1": 0.3, "0": 0.5, "2": 0.2}, "confidence": 0.3}
    with serving(lambda request, number: reply(answer)) as server:
        answers = ask(server, actions=("low", "mid", "high"), question="score", descriptions={"low": "below 3"})
    np.testing.assert_allclose(answers.probabilities, [[0.5, 0.3, 0.2]])
    assert server.requests[0]["questions"]["decision"]["criteria"] == ["below 3", "mid", "high"]


def test_rounded_probabilities_are_normalised() -> None:
    names = tuple(f"a{number}" for number in range(40))
    rounded = (0.02,) * 40  # of 0.025
    probs = read_probs(choice(*rounded, names=names).body, asker("http://h/v1", names).teacher, names)
    np.testing.assert_allclose(probs, np.full(40, 0.025))


# --------------------------------------------------------------------------- servers that break the protocol


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: choice(0.5, 0.5, names=("stay", "other")), "are not those of the options"),
        (lambda: choice(0.5, names=("stay",)), "are not those of the options"),
        (lambda: choice(0.4, 0.4), "sum to 0.8"),
        (lambda: choice(1.2, -0.2), "as the probability of 'stay'"),
        (lambda: choice(True, 0.0), "True as the probability"),
        (
            lambda: Reply('{"answers": {"decision": {"type": "choice", "probabilities": {"stay": NaN, "move": 1}}}}'),
            "nan",
        ),
        (lambda: reply({"type": "noul", "noul": 0.5}), "type 'noul' to a choice"),
        (lambda: Reply({"model": "m", "answers": {}}), "without an answer"),
        (lambda: Reply({"model": "m"}), "without answers"),
        (lambda: Reply(["no"]), "no JSON object"),
        (lambda: Reply("<html>"), "JSONDecodeError"),
        (lambda: Reply({"detail": {"error_type": "overloaded", "message": "come back"}}), "come back"),
    ],
)
def test_broken_reply_is_retried_and_reported(make: Callable[[], Reply], text: str) -> None:
    with serving(lambda request, number: make()) as server:
        answers = ask(server, 2 * 5, concurrency=1)
    assert np.isnan(answers.probabilities).all() and answers.refused == {}
    assert answers.stop_reason is not None and text in answers.stop_reason
    assert "5 questions in a row failed" in answers.stop_reason
    assert answers.spending.calls == 15  # five questions with two retries each


def test_missing_usage_is_charged_at_the_maximum() -> None:
    with serving(lambda request, number: choice(0.5, 0.5, usage=None)) as server:
        spent = ask(server, price_per_million_input=1.0).spending
        bound = asker(server.url, price_per_million_input=1.0).max_cost(rows(1))
    assert spent.money == pytest.approx(bound[0]) and spent.money > 0


def test_another_model_that_answers_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING), serving(lambda _, n: choice(0.5, 0.5, model=f"m-{min(n, 1)}")) as server:
        answers = ask(server, 4, concurrency=1)
    assert len(answers.notes) == 1 and "m-1 answers now, and m-0 did before" in answers.notes[0]
    assert "m-1 answers now" in caplog.text


# --------------------------------------------------------------------------- failing servers


@pytest.mark.parametrize("status", [429, 500, 503, 529])
def test_transient_failure_is_retried(status: int) -> None:
    def script(request: dict[str, Any], number: int) -> Reply:
        return Reply({"detail": {"error_type": "busy", "message": "no"}}, status) if number < 2 else choice(0.5, 0.5)

    with serving(script) as server:
        answers = ask(server)
    assert np.isfinite(answers.probabilities).all() and answers.spending.calls == 3


@pytest.mark.parametrize(("status", "calls"), [(401, 1), (404, 1), (422, 5)])
def test_refusal_ends_the_asking_without_the_key(status: int, calls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D_KEY", "secret-key")
    body = {"detail": {"error_type": "authentication_error", "message": "secret-key is wrong"}}
    with serving(lambda request, number: Reply(body, status)) as server:
        answers = ask(server, 8, concurrency=1, key_variable="D_KEY")
    assert answers.spending.calls == calls and answers.stop_reason is not None
    assert "*** is wrong" in answers.stop_reason and "secret" not in answers.stop_reason


def test_slow_and_cut_replies_are_retried() -> None:
    def script(request: dict[str, Any], number: int) -> Reply:
        answer = choice(0.5, 0.5)
        answer.delay, answer.cut = (1.5, False) if number == 0 else (0.0, number == 1)
        return answer

    with serving(script) as server:
        answers = ask(server, timeout="1s")
    assert np.isfinite(answers.probabilities).all() and answers.spending.calls == 3


def test_budget_ends_the_asking() -> None:
    with serving(by_temp) as server:
        answers = ask(server, 6, Allowance(calls=2), concurrency=1)
    assert np.isfinite(answers.probabilities[:, 0]).sum() == 2 and answers.stop_reason == "the budget is reached"


def test_max_calls_are_the_retries() -> None:
    assert asker("http://h/v1", retries=3).max_calls_per_row == 4


# --------------------------------------------------------------------------- the agent file, and its version


def test_missing_key_is_an_error() -> None:
    with pytest.raises(PartError, match=r"teachers\.d: the environment variable D_ABSENT"):
        asker("http://h/v1", key_variable="D_ABSENT")


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"descriptions": {"mov": "x"}}, "descriptions: no action is called 'mov'; did you mean 'move'"),
        ({"question": "noul"}, "yes: a noul needs the action"),
        ({"yes": "stay"}, "yes: a noul needs the action"),
        ({"question": "noul", "yes": "go"}, "yes: no action is called 'go'"),
        ({"columns": ["tmp"]}, "columns: no column is called 'tmp'"),
        ({"state": "always"}, "state: names no column in braces: every row would be the same state"),
        ({"state": "{temp}", "columns": ["temp"]}, "give either `state`"),
        ({"base_url": "http://me:pw@h/v1"}, "must hold no user"),
    ],
)
def test_wrong_section_is_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValidationError) as caught:
        make_config("http://h/v1", **settings)
    assert text in str(caught.value)


def test_question_has_a_limit_of_options() -> None:
    names = tuple(f"a{number}" for number in range(11))
    with pytest.raises(ValidationError, match="a score has at most 10 options, and the agent has 11 actions"):
        make_config("http://h/v1", names, question="score")


def version(**settings: Any) -> str:
    config = make_config("http://h/v1", **settings)
    return answer_version(MemberContext(config, leaves(config.teachers)[0], Path("x")))


def test_version_follows_what_decides_the_answers() -> None:
    same = [{"retries": 1}, {"concurrency": 2}, {"timeout": "3s"}, {"price_per_million_input": 1.0}, {"weight": 2.0}]
    other = [{"model": "m2"}, {"instructions": "x"}, {"descriptions": {"move": "y"}}, {"columns": ["temp"]}]
    assert {version(**settings) for settings in same} == {version()}
    assert len({version(**settings) for settings in other} | {version()}) == len(other) + 1


def test_teacher_is_stored_without_its_address_and_loaded(tmp_path: Path) -> None:
    with serving(by_temp) as server:
        config = make_config(server.url)
        reference = ensemble.fit(config, make_rows(8), WINDOW, tmp_path / "t")
        loaded = ensemble.load(tmp_path / "t", config)
        assert not loaded.local and loaded.version == reference.version
        probs = loaded.predict_proba(rows(4))
    np.testing.assert_allclose(probs[:, 0], [0.75, 0.75, 0.1, 0.1])
    assert "127.0.0.1" not in json.dumps(json.loads((tmp_path / "t" / "teacher.json").read_text()))
    with pytest.raises(PartError, match="the section or the model has changed"):
        ensemble.load(tmp_path / "t", make_config(server.url, instructions="other"))


def test_typed_question_without_texts_has_no_instructions() -> None:
    assert typed_question(asker("http://h/v1").teacher, ("stay", "move")) == {
        "type": "choice",
        "criteria": {"stay": None, "move": None},
    }
