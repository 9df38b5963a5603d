"""A language model behind llama.cpp's server on loopback: tests the protocol, not the quality of the model."""

from __future__ import annotations

import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from flows.refresh import refresh
from stillhouse.champion import open_registry
from stillhouse.config import load
from stillhouse.knowledge import KnowledgeBase
from stillhouse.teachers.answers import Allowance
from tasks.ingesting import live
from tests.teachers.http_server import Server
from tests.teachers.test_endpoint import ask, endpoint

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peers" / "endpoint" / "bin" / "python"
KEY = "key-of-the-real-server"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="needs a language model: `make test-endpoint` sets it up"),
]


@contextmanager
def run_language_model() -> Iterator[tuple[Server, subprocess.Popen[str]]]:
    command = [str(PYTHON), str(Path(__file__).with_name("llm_server.py")), KEY]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            assert process.stdout is not None
            readable, _, _ = select.select([process.stdout], [], [], 120)
            assert readable, "the server did not start within two minutes"
            address = process.stdout.readline().strip()
            assert address.startswith("http://127.0.0.1:"), f"the server ended with {process.wait()}"
            yield Server(f"{address}/v1"), process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with run_language_model() as (server, _):
        yield server


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REAL_KEY", KEY)


def ask_server(server: Server, rows: int, **settings: Any) -> Any:
    plain = {"model": "smollm2", "key_variable": "REAL_KEY", "timeout": "120s", "retries": 0, "concurrency": 2}
    prompt = "The room is at {temp} degrees. Does the cat stay or move?"
    return ask(server, rows, **(plain | {"prompt": prompt} | settings))


def require_distribution(probs: np.ndarray) -> None:
    assert (probs >= 0).all()
    np.testing.assert_allclose(probs.sum(axis=1), 1.0)


def test_structured_answers_with_logprobs(server: Server) -> None:
    answers = ask_server(server, 6, probabilities="logprobs")
    require_distribution(answers.probabilities)
    assert np.ptp(answers.probabilities, axis=0).max() > 0  # it did read the rows
    assert (answers.spending.calls, answers.spending.rows, answers.refused, answers.stop_reason) == (6, 6, {}, None)
    assert answers.spending.input_tokens > 6 * 30 and answers.spending.output_tokens > 6 * 5


def test_equal_questions_give_equal_answers(server: Server) -> None:
    first, second = (ask_server(server, 2, probabilities="logprobs", concurrency=1).probabilities for _ in range(2))
    np.testing.assert_allclose(first, second, atol=1e-3)


def test_structured_votes(server: Server) -> None:
    answers = ask_server(server, 4, probabilities="votes", votes=5)
    require_distribution(answers.probabilities)
    assert (answers.refused, answers.stop_reason) == ({}, None)  # the schema holds: no vote is void
    assert set((answers.probabilities * 7).round(6).ravel()) <= {1, 2, 3, 4, 5, 6}
    assert 4 <= answers.spending.calls <= 4 * 5 + 2  # it gives no five at once: refused to both questions under way


def test_free_answers_are_parsed_or_refused_by_row(server: Server) -> None:
    answers = ask_server(server, 6, probabilities="votes", votes=1, structured=False, max_output_tokens=8)
    answered = ~np.isnan(answers.probabilities[:, 0])
    assert answered.sum() + len(answers.refused) == 6 and answers.stop_reason is None
    require_distribution(answers.probabilities[answered])
    assert all("which is no action" in reason for reason in answers.refused.values())


def test_wrong_key_stops_the_round_and_is_redacted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REAL_KEY", "a-wrong-key")
    answers = ask_server(server, 5, concurrency=1)
    assert (
        answers.spending.calls == 1
        and "401" in str(answers.stop_reason)
        and "a-wrong-key" not in str(answers.stop_reason)
    )


def test_timeout_is_enforced(server: Server) -> None:
    answers = ask_server(server, 6, timeout="0.001s")
    assert np.isnan(answers.probabilities).all() and "did not answer within 0.001 s" in str(answers.stop_reason)


def test_killed_server_stops_the_round() -> None:
    with run_language_model() as (server, process):
        settings = {"model": "smollm2", "key_variable": "REAL_KEY", "timeout": "120s", "retries": 0, "concurrency": 2}
        teacher = endpoint(server, **settings)
        first = teacher.answer(pd.DataFrame({"temp": [1.0, 2.0]}), Allowance())
        process.kill()
        process.wait()
        then = teacher.answer(pd.DataFrame({"temp": np.arange(20.0)}), Allowance())
    assert np.isfinite(first.probabilities).all()
    assert np.isnan(then.probabilities).all() and "APIConnectionError" in str(then.stop_reason)
    assert then.spending.calls <= 6


@pytest.mark.usefixtures("prefect_server")
def test_refresh_flow_refuses_a_weak_language_model(server: Server, agents: Path, day: Any) -> None:
    """The small model knows nothing about the toy agent, and the examination refuses it."""
    llm = (
        f"{{kind: endpoint, name: llm, base_url: {server.url!r}, model: smollm2, key_variable: REAL_KEY, "
        'timeout: 120s, prompt: "a is {a:.2f}, b is {b:.2f}, the place is {place}. Go or wait?"}'
    )
    text = (agents / "toy.yaml").read_text()
    plain = "{kind: python, name: logistic, target: tests.flows.toy:Logistic}"
    assert plain in text
    (agents / "toy.yaml").write_text(text.replace(f"- {plain}\n", f"- {llm}\nteaching: {{rows: 40}}\n"))
    live.fn("toy", day(0), day(20))
    verdict = refresh.fn(agent="toy", as_of=day(20), trigger="bootstrap", cause="first")
    assert verdict.result == "refused", verdict.summary
    assert "a usable answer to 40 of 40 rows" in verdict.reasons[0].text
    base = KnowledgeBase(load("toy"))
    assert base.answers.spending()["llm"].calls == base.tables.count_rows()["knowledge"] == 40
    assert open_registry("toy").champion() is None
