"""A real language model behind a real server on loopback: the protocol as it is spoken, whatever the model is worth."""

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
from tasks.living import live
from tests.teachers.servers import Server
from tests.teachers.test_endpoint import ask, endpoint

ROOT = Path(__file__).parents[2]
PYTHON = ROOT / ".venv-peers" / "endpoint" / "bin" / "python"
KEY = "key-of-the-real-server"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not PYTHON.exists(), reason="needs a language model: `make test-endpoint` sets it up"),
]


@contextmanager
def a_language_model() -> Iterator[tuple[Server, subprocess.Popen[str]]]:
    command = [str(PYTHON), str(Path(__file__).with_name("llm_server.py")), KEY]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, text=True, **pipes) as process:
        try:
            assert process.stdout is not None
            heard, _, _ = select.select([process.stdout], [], [], 120)
            assert heard, "the server did not start within two minutes"
            address = process.stdout.readline().strip()
            assert address.startswith("http://127.0.0.1:"), f"the server ended with {process.wait()}"
            yield Server(f"{address}/v1"), process
        finally:
            process.kill()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with a_language_model() as (server, _):
        yield server


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REAL_KEY", KEY)


def asked(server: Server, rows: int, **settings: Any) -> Any:
    plain = {"model": "smollm2", "key_variable": "REAL_KEY", "timeout": "120s", "retries": 0, "concurrency": 2}
    prompt = "The room is at {temp} degrees. Does the cat stay or move?"
    return ask(server, rows, **(plain | {"prompt": prompt} | settings))


def is_a_distribution(said: np.ndarray) -> None:
    assert (said >= 0).all()
    np.testing.assert_allclose(said.sum(axis=1), 1.0)


def test_constrained_answers_with_log_probabilities(server: Server) -> None:
    answers = asked(server, 6, probabilities="logprobs")
    is_a_distribution(answers.probabilities)
    assert np.ptp(answers.probabilities, axis=0).max() > 0  # it did read the rows
    assert (answers.spending.calls, answers.spending.rows, answers.refused, answers.stopped) == (6, 6, {}, None)
    assert answers.spending.input_tokens > 6 * 30 and answers.spending.output_tokens > 6 * 5


def test_the_same_question_has_the_same_answer(server: Server) -> None:
    first, second = (asked(server, 2, probabilities="logprobs", concurrency=1).probabilities for _ in range(2))
    np.testing.assert_allclose(first, second, atol=1e-3)


def test_constrained_votes(server: Server) -> None:
    answers = asked(server, 4, probabilities="votes", votes=5)
    is_a_distribution(answers.probabilities)
    assert (answers.refused, answers.stopped) == ({}, None)  # the schema holds: no vote is void
    assert set((answers.probabilities * 7).round(6).ravel()) <= {1, 2, 3, 4, 5, 6}
    assert 4 <= answers.spending.calls <= 4 * 5 + 2  # it gives no five at once: refused to both questions under way


def test_free_answers_are_read_or_refused_row_by_row(server: Server) -> None:
    answers = asked(server, 6, probabilities="votes", votes=1, structured=False, max_output_tokens=8)
    known = ~np.isnan(answers.probabilities[:, 0])
    assert known.sum() + len(answers.refused) == 6 and answers.stopped is None
    is_a_distribution(answers.probabilities[known])
    assert all("which is no action" in reason for reason in answers.refused.values())


def test_a_wrong_key_ends_the_asking_and_is_not_repeated(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REAL_KEY", "a-wrong-key")
    answers = asked(server, 5, concurrency=1)
    assert answers.spending.calls == 1 and "401" in str(answers.stopped) and "a-wrong-key" not in str(answers.stopped)


def test_a_time_out_is_kept(server: Server) -> None:
    answers = asked(server, 6, timeout="0.001s")
    assert np.isnan(answers.probabilities).all() and "did not answer within 0.001 s" in str(answers.stopped)


def test_a_server_that_is_killed_while_it_is_asked() -> None:
    with a_language_model() as (server, process):
        settings = {"model": "smollm2", "key_variable": "REAL_KEY", "timeout": "120s", "retries": 0, "concurrency": 2}
        teacher = endpoint(server, **settings)
        first = teacher.answer(pd.DataFrame({"temp": [1.0, 2.0]}), Allowance())
        process.kill()
        process.wait()
        then = teacher.answer(pd.DataFrame({"temp": np.arange(20.0)}), Allowance())
    assert np.isfinite(first.probabilities).all()
    assert np.isnan(then.probabilities).all() and "APIConnectionError" in str(then.stopped)
    assert then.spending.calls <= 6


@pytest.mark.usefixtures("prefect_server")
def test_it_is_examined_by_a_flow_before_it_may_teach(server: Server, agents: Path, day: Any) -> None:
    """A hundred million weights know nothing of the toy's world, and the examination says so."""
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
