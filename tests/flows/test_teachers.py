"""Teachers of all kinds in the flows: budgets, admission, and refusals with reasons."""

from __future__ import annotations

import json
import logging
import math
import re
import threading
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import flows.refresh
from stillhouse import refresh, watch
from stillhouse.champion import open_registry
from stillhouse.config import home, load
from stillhouse.demonstrating import find_first_champion, score_week, summarize
from stillhouse.errors import PartError, WindowError
from stillhouse.evaluate import admission
from stillhouse.ingesting import ingest
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import Verdict
from stillhouse.rehearsal import rehearse
from tests.flows import toy
from tests.teachers.http_server import Reply, Server, chat_completion, error, serving, token

pytest.importorskip("openai")

PYTHON = "{kind: python, name: logistic, target: tests.flows.toy:Logistic}"
RATES = "price_per_million_input: 10, price_per_million_output: 100"
PROMPT = 'prompt: "{a} {b} {place}"'


def correct_answer(request: dict[str, Any], number: int) -> Reply:
    """Answer as an LLM that knows the toy's true probabilities before the drift."""
    a, b, place = request["messages"][-1]["content"].split()
    go = 1 / (1 + math.exp(-(2 * float(a) + float(b) + (0.7 if place == "north" else -0.7))))
    text, p = ("go", go) if go > 0.5 else ("wait", 1 - go)
    other = "wait" if text == "go" else "go"
    return chat_completion(text, tokens=[token(text, min(p, 0.999), **{other: max(1 - p, 0.001)})])


@pytest.fixture
def server() -> Iterator[Server]:
    """A server whose behaviour can be changed: ``server.script``."""
    with serving(lambda request, number: server.script(request, number)) as server:  # type: ignore[attr-defined]
        server.script = correct_answer  # type: ignore[attr-defined]
        yield server


def use_teachers(agents: Path, teachers: str, budgets: str = "") -> None:
    """Give the toy these teachers, a short training window and few rows for admission."""
    text = (Path(__file__).parent / "toy.yaml").read_text()
    text = text.replace(f"  - {PYTHON}\n", f"  - {teachers}\nteaching: {{rows: 150}}\n")
    text = text.replace("train: 14d", "train: 8d").replace("min_train_rows: 500", "min_train_rows: 300")
    text = text.replace("budgets: {", f"budgets: {{{budgets}")
    (agents / "toy.yaml").write_text(text)


def llm(server: Server, more: str = "") -> str:
    return (
        f"{{kind: endpoint, name: llm, base_url: {server.url!r}, model: m, {PROMPT}, concurrency: 8, timeout: 5s, "
        f"retries: 0, {RATES}{more}}}"
    )


def two_weeks(day: Callable[[int], Any]) -> KnowledgeBase:
    ingest("toy", day(0), day(14))
    return KnowledgeBase(load("toy"))


def bootstrap(day: Callable[[int], Any]) -> Verdict:
    return refresh(agent="toy", as_of=day(14), trigger="bootstrap", cause="first")


@pytest.fixture
def champion(agents: Path, toy_base: Callable[..., KnowledgeBase]) -> Any:
    """A champion that was distilled from the toy's own teacher."""
    use_teachers(agents, PYTHON)
    toy_base(14, first=14)
    return open_registry("toy").champion()


# --------------------------------------------------------------------------- questions and budgets


@pytest.mark.slow  # more than 20 s; the fast tests below cover budgets and stored answers
def test_endpoint_teacher_is_asked_no_question_twice(day, agents: Path, server: Server) -> None:
    use_teachers(agents, llm(server))
    base = two_weeks(day)
    verdict = bootstrap(day)
    assert verdict.result == "promoted", verdict.summary
    assert len(server.requests) == 8 * toy.PER_DAY + 150
    assert base.tables.count_rows()["knowledge"] == len(server.requests)

    spent = base.answers.spending()["llm"]
    assert (spent.calls, spent.rows) == (len(server.requests), len(server.requests))
    assert spent.money == pytest.approx(spent.calls * (100 * 10 + 5 * 100) / 1e6)
    registry = open_registry("toy")
    run = registry.client.search_runs([registry.experiment_id], "tags.role = 'refresh'")[0]
    assert run.data.metrics["teacher/llm/calls"] == spent.calls
    assert run.data.metrics["teacher/llm/money"] == pytest.approx(spent.money)
    assert registry.baseline(registry.champion()).disagreement.rows == 150

    ingest("toy", day(14), day(15))
    again = refresh(agent="toy", as_of=day(15), cause="a day later")
    assert again.kind == "gate"
    asked = len(server.requests) - spent.calls
    assert asked <= toy.PER_DAY + 150  # one more day, and other rows for admission
    second = refresh(agent="toy", as_of=day(15), teacher="keep", cause="the same teacher")
    assert second.kind == "gate" and len(server.requests) == spent.calls + asked


@pytest.mark.slow  # more than 20 s; the fast tests below cover budgets and stored answers
def test_watch_has_its_own_budget_and_demo_asks_no_paid_teacher(day, agents: Path, server: Server) -> None:
    use_teachers(agents, llm(server), "max_watch_calls: 70, ")
    base = two_weeks(day)
    bootstrap(day)
    taught = len(server.requests)
    ingest("toy", day(14), day(21))
    verdict = watch(agent="toy", as_of=day(21))
    assert verdict.kind == "watch" and verdict.result != "data_broken"
    assert len(server.requests) - taught == 70
    watch(agent="toy", as_of=day(21))
    assert len(server.requests) - taught == 70

    year = summarize("toy", [score_week("toy", day(21), find_first_champion("toy"))], 1.0)
    assert len(server.requests) - taught == 70
    assert (year.summary.quality_teacher, year.weeks[0].quality_teacher) == (None, None)
    assert year.summary.quality_champion > 0.7
    assert year.summary.teacher_calls == base.answers.spending()["llm"].calls == len(server.requests)
    assert json.loads((Path(year.folder) / "summary.json").read_text())["quality_teacher"] is None


@pytest.mark.slow
def test_budgets_that_suffice_and_do_not_suffice(day, agents: Path, server: Server) -> None:
    use_teachers(agents, llm(server), "max_teacher_calls: 250, ")
    base = two_weeks(day)
    with pytest.raises(
        WindowError,
        match=r"has answered 100 of the 960 training rows, and 150 are needed: the budget "
        r"is reached \(budgets.max_teacher_calls: 250\).*allow it about 50 rows more",
    ):
        bootstrap(day)
    assert len(server.requests) == 250
    assert open_registry("toy").champion() is None and base.journal.verdicts() == []

    use_teachers(agents, llm(server), "max_teacher_calls: 300, ")
    assert bootstrap(day).result == "promoted"
    assert len(server.requests) == 550  # a changed agent file gives another refresh, which asks no question twice
    assert base.tables.count_rows()["knowledge"] == 550


@pytest.mark.slow
def test_cost_budget(day, agents: Path, server: Server) -> None:
    use_teachers(agents, llm(server), "max_teacher_cost: 1.0, ")
    base = two_weeks(day)
    assert bootstrap(day).result == "promoted"
    assert 0.9 < base.answers.spending()["llm"].money <= 1.0


@pytest.mark.slow
def test_ensemble_of_several_kinds(day, agents: Path, server: Server) -> None:
    inner = f"{{kind: ensemble, name: both, members: [{PYTHON}, {llm(server)}]}}"
    use_teachers(agents, inner)
    base = two_weeks(day)
    verdict = bootstrap(day)
    assert verdict.result == "promoted", verdict.summary
    assert len(server.requests) == 8 * toy.PER_DAY + 150
    spent = base.answers.spending()
    assert spent["both.llm"].calls == spent["both.logistic"].calls == len(server.requests)
    assert base.read("knowledge")["teacher"].nunique() == 3  # the answers of both members, and their mean


@pytest.mark.slow
def test_features_of_fixed_rules_are_stored_and_distilled(day, agents: Path) -> None:
    """The teacher's features reach the feature losses, in distillation and in recovery after pruning."""
    use_teachers(
        agents, "{kind: python, name: rules, target: tests.flows.toy:FixedRules, learns: false, features: true}"
    )
    text = (agents / "toy.yaml").read_text().replace("augment: {copies: 0}", "augment: {copies: 0.5}")
    losses = "losses: [{type: hinton}, {type: hints}, {type: relational, rows: 16}]"
    (agents / "toy.yaml").write_text(text.replace("distillation: {", f"distillation: {{{losses}, "))
    base = two_weeks(day)
    verdict = bootstrap(day)
    assert verdict.result == "promoted", verdict.summary
    knowledge = base.read("knowledge")
    assert base.answers.spending()["rules"].rows == len(knowledge) > 8 * toy.PER_DAY + 150  # and the synthetic rows
    assert {len(features) for features in knowledge["features"]} == {3} and knowledge["teacher"].nunique() == 1


def test_mlflow_model_as_teacher(champion, day, agents: Path) -> None:
    """The teacher is the champion, by its alias; when the alias moves, the teacher stays the same model."""
    use_teachers(agents, "{kind: mlflow, name: big, uri: 'models:/toy@champion'}")
    file = agents / "toy.yaml"
    file.write_text(file.read_text().replace("non_inferiority_margin: 0.02", "non_inferiority_margin: 0.05"))
    verdict = refresh(agent="toy", as_of=day(14), cause="learn from the champion")
    assert verdict.result == "promoted", verdict.summary
    registry = open_registry("toy")
    assert registry.champion() != champion
    assert KnowledgeBase(load("toy")).answers.spending()["big"].rows == 8 * toy.PER_DAY + 150
    ingest("toy", day(14), day(18))
    assert watch(agent="toy", as_of=day(18)).kind == "watch"


def test_check_of_an_agent_file_asks_about_three_rows(agents: Path, server: Server) -> None:
    use_teachers(agents, llm(server))
    file = agents / "toy.yaml"
    file.write_text(file.read_text().replace("train: 8d", "train: 14d"))  # eight days may contain no validation day
    lines = list(rehearse(load("toy"), 400))
    assert any("teachers llm: 3 rows answered, saved and loaded again" in line for line in lines), lines
    assert len(server.requests) == 3


# --------------------------------------------------------------------------- bad teachers


@pytest.mark.usefixtures("prefect_server")
def test_constant_teacher_is_not_admitted(champion, day, agents: Path, server: Server) -> None:
    server.script = lambda request, number: chat_completion("go", tokens=[token("go", 0.8, wait=0.2)])  # type: ignore[attr-defined]
    use_teachers(agents, llm(server))
    verdict = flows.refresh.refresh.fn(agent="toy", as_of=day(14), cause="a new teacher")
    assert (verdict.kind, verdict.result) == ("gate", "refused")
    assert "may not teach: its answer is the same for every row" in verdict.summary
    assert admission.replay(verdict) == verdict
    assert open_registry("toy").champion() == champion
    base = KnowledgeBase(load("toy"))
    assert base.journal.verdicts()[-1] == verdict
    assert len(server.requests) == 150  # no question about the training window

    again = flows.refresh.refresh.fn(agent="toy", as_of=day(14), cause="a new teacher")
    assert again == verdict and len(server.requests) == 150
    registry = open_registry("toy")
    runs = registry.client.search_runs([registry.experiment_id], "tags.role = 'refresh'")
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.parametrize(
    "text",
    [
        "As a language model, I cannot tell.",
        pytest.param("jump", marks=pytest.mark.slow),
        pytest.param('{"action": "jump"}', marks=pytest.mark.slow),
    ],
)
def test_invalid_answers_and_unknown_actions_are_refused(day, agents: Path, server: Server, text: str) -> None:
    use_teachers(agents, llm(server, ", probabilities: votes, votes: 1"))
    server.script = lambda request, number: chat_completion(text)  # type: ignore[attr-defined]
    base = two_weeks(day)
    verdict = bootstrap(day)
    assert verdict.result == "refused"
    assert "a usable answer to 0 of 150 rows (150 × answered" in verdict.summary
    assert base.tables.count_rows()["unanswered"] == 150 and open_registry("toy").versions() == []


@pytest.mark.slow
def test_few_invalid_answers_are_left_out(day, agents: Path, server: Server) -> None:
    def script(request: dict[str, Any], number: int) -> Reply:
        return chat_completion("hm", tokens=[token("hm", 0.9)]) if number % 20 == 0 else correct_answer(request, number)

    use_teachers(agents, llm(server))
    server.script = script  # type: ignore[attr-defined]
    base = two_weeks(day)
    assert bootstrap(day).result == "promoted"
    counts = base.tables.count_rows()
    assert counts["unanswered"] == pytest.approx(len(server.requests) / 20, abs=2)
    assert counts["knowledge"] + counts["unanswered"] == len(server.requests)
    assert set(base.read("unanswered")["reason"]) == {"answered 'hm', which is no action"}


@pytest.mark.slow
def test_refresh_resumes_after_a_server_failure(day, agents: Path, server: Server) -> None:
    use_teachers(agents, llm(server))
    base = two_weeks(day)
    server.script = lambda request, number: correct_answer(request, number) if number < 200 else error(500)  # type: ignore[attr-defined]
    with pytest.raises(
        WindowError,
        match=r"has answered \d+ of the 960 training rows, and 150 are needed: teacher "
        r"'llm': \d+ questions in a row failed, the last one: http.*Its answers are kept",
    ):
        bootstrap(day)
    stored = base.tables.count_rows()["knowledge"]
    assert 150 < stored <= 200 and open_registry("toy").champion() is None
    server.script, failed = correct_answer, len(server.requests)  # type: ignore[attr-defined]
    assert bootstrap(day).result == "promoted"
    assert len(server.requests) - failed == 8 * toy.PER_DAY + 150 - stored


@pytest.mark.slow
def test_server_that_never_answers_is_given_up(champion, day, agents: Path, server: Server) -> None:
    server.script = lambda request, number: Reply({}, delay=30)  # type: ignore[attr-defined]
    use_teachers(agents, llm(server).replace("timeout: 5s", "timeout: 0.2s"))
    with pytest.raises(WindowError, match=r"answered 0 of 150 rows .* did not answer within 0.2 s"):
        refresh(agent="toy", as_of=day(14), cause="a new teacher")
    assert open_registry("toy").champion() == champion


SORTS = {
    "logs": "TIMESTAMP_DESC",
    "artifacts": "UPDATED_DESC",
    "flow_runs": "START_TIME_DESC",
    "task_runs": "EXPECTED_START_TIME_DESC",
}
SECRET = "key-Zx81-not-to-be-seen"


def unreliable_answer(request: dict[str, Any], number: int) -> Reply:
    """Give a faulty answer to every 40th question; some of these answers contain the request's key."""
    moods = [
        error(429, f"too many requests with {SECRET}", Retry_After="1"),
        error(429, Retry_After=formatdate(time.time() + 1, usegmt=True)),
        error(500, f"cannot read {SECRET}"),
        Reply(correct_answer(request, number).body, cut=True),
        Reply(correct_answer(request, number).body, delay=3.0),
        Reply('{"choices": [{"message": {"content": "g'),
        chat_completion(f"jump {SECRET}", tokens=[token("jump", 0.9)]),
    ]
    return correct_answer(request, number) if number % 40 else moods[number // 40 % len(moods)]


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.slow  # more than 20 s; the fast tests below cover budgets and stored answers
def test_unreliable_server_and_secret_key_that_is_never_stored(
    day, agents: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TOY_KEY", SECRET)
    use_teachers(agents, llm(server, ", key_variable: TOY_KEY").replace("5s", "2s").replace("retries: 0", "retries: 3"))
    base = two_weeks(day)
    server.script = lambda request, number: error(401, f"unknown key {SECRET} in Bearer {SECRET}")  # type: ignore[attr-defined]
    with pytest.raises(
        WindowError, match=r"answered 0 of 150 rows .*AuthenticationError: .*unknown key \*\*\*"
    ) as caught:
        flows.refresh.refresh.fn(agent="toy", as_of=day(14), trigger="bootstrap", cause="first")
    assert SECRET not in str(caught.value)
    assert {sent["authorization"] for sent in server.headers} == {f"Bearer {SECRET}"}
    refused = len(server.requests)
    assert refused <= 8  # the requests in progress

    server.script = unreliable_answer  # type: ignore[attr-defined]
    verdict = flows.refresh.refresh.fn(agent="toy", as_of=day(14), trigger="bootstrap", cause="first")
    assert verdict.result == "promoted", verdict.summary
    counts, asked = base.tables.count_rows(), server.requests[refused:]
    assert counts["knowledge"] + counts["unanswered"] == 8 * toy.PER_DAY + 150
    assert base.answers.spending()["llm"].calls >= len(server.requests)  # a call may fail before it reaches the server
    again = len(asked) - len({sent["messages"][-1]["content"] for sent in asked})
    assert again <= len(asked) / 40 + 10  # only failed and slow questions were repeated
    assert set(base.read("unanswered")["reason"]) == {"answered 'jump ***', which is no action"}

    shown = [caplog.text, *(base.read(table).to_json() for table in counts), *read_files(home()), *read_prefect()]
    assert len(shown) > 50 and any("labeling stopped early" in text for text in shown)
    assert [text[:300] for text in shown if SECRET in text] == []


def read_files(folder: Path) -> Iterator[str]:
    """Yield the content of each file: agent files, MLflow's database and artifacts, locks, Data Docs."""
    for file in folder.rglob("*"):
        if file.is_file():
            yield file.read_bytes().decode("latin-1")


def read_prefect() -> Iterator[str]:
    """Yield what the Prefect server has stored: runs with their states, logs and artifacts."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for route in ("logs", "artifacts", "flow_runs", "task_runs"):
            response = client.request("POST", f"/{route}/filter", json={"limit": 200, "sort": SORTS[route]})
            response.raise_for_status()
            yield response.text


class FaultyTeacher:
    """A teacher with one of several faults; works with and without fitting."""

    hangs = threading.Event()

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def fit(self, rows: Any, labels: Any) -> None:
        if self.wrong == "fit fails":
            raise RuntimeError("no licence")
        if self.wrong == "fit hangs":
            self.hangs.wait()

    def predict_proba(self, rows: Any) -> Any:
        if self.wrong == "hangs":
            self.hangs.wait()
        if self.wrong == "fails":
            raise RuntimeError("no licence")
        probs = toy.FixedRules().predict_proba(rows)
        return {
            "shape": probs[:, :1],
            "too few rows": probs[1:],
            "ragged": [[0.5, 0.5], [1.0]],
            "not finite": np.where(np.arange(len(probs))[:, None] == 0, np.nan, probs),
            "not normalised": probs * 0.9,
            "negative": probs * 3 - 1,
            "text": np.full(probs.shape, "go"),
            "constant": np.full(probs.shape, 0.5),
            "wrong way round": probs[:, ::-1],
        }[self.wrong]

    def save(self, folder: Path) -> None:
        (folder / "wrong").write_text(self.wrong)

    @classmethod
    def load(cls, folder: Path) -> FaultyTeacher:
        return cls((folder / "wrong").read_text())


BAD = {
    "shape": r"teacher 'bad' answered with shape \(150, 1\), not \(150, 2\)",
    "too few rows": r"teacher 'bad' answered with shape \(149, 2\), not \(150, 2\)",
    "ragged": r"teacher 'bad' answered with a list that is no array",
    "not finite": r"teacher 'bad' answered with values that are not probabilities",
    "not normalised": r"teacher 'bad' answered with values that are not probabilities",
    "negative": r"teacher 'bad' answered with values that are not probabilities",
    "text": r"teacher 'bad' answered with <U2 values, not with numbers",
    "fails": r"teacher 'bad' on 150 rows fails: RuntimeError: no licence \(test_teachers.py, line \d+\)",
    "hangs": r"teacher 'bad' on 150 rows is not done after 0.3 s: it hangs, or needs a longer `timeout`",
    "fit fails": r"fitting teacher 'bad' on 960 rows fails: RuntimeError: no licence",
    "fit hangs": r"fitting teacher 'bad' on 960 rows is not done after 0.3 s",
    "constant": r"may not teach: its answer is the same for every row",
    "wrong way round": r"may not teach: on 150 rows that it has not seen its auc",
}
"""Reason of the refusal, by fault."""


def test_faulty_teacher_classes_are_refused(champion, day, agents: Path) -> None:
    base, registry = KnowledgeBase(load("toy")), open_registry("toy")
    counts, verdicts = base.tables.count_rows(), len(base.journal.verdicts())
    for wrong, reason in BAD.items():
        learns = "true" if wrong.startswith("fit") else "false"
        bad = f"target: {__name__}:FaultyTeacher, settings: {{wrong: {wrong}}}, learns: {learns}, timeout: 0.3s"
        use_teachers(agents, f"{{kind: python, name: bad, {bad}}}")
        try:
            verdict = refresh(agent="toy", as_of=day(14), cause=wrong)
            message, ended = verdict.summary, "FINISHED"
            assert (verdict.kind, verdict.result) == ("gate", "refused")
            verdicts += 1
        except PartError as error:
            message, ended = str(error), "FAILED"
        assert re.search(reason, message), f"{wrong}: {message}"
        run = registry.client.search_runs([registry.experiment_id], "tags.role = 'refresh'", max_results=1)[0]
        assert run.info.status == ended
        assert ended == "FINISHED" or re.search(reason, run.data.tags["failed"])
        assert registry.champion() == champion and registry.previous() is None
        assert len(base.journal.verdicts()) == verdicts
    FaultyTeacher.hangs.set()
    known = base.read("knowledge")
    assert set(known["teacher"].value_counts()) == {
        counts["knowledge"],
        150,
    }  # only of the two with well-formed answers
    assert (np.stack(known["probabilities"]).sum(axis=1).round(6) == 1).all()
