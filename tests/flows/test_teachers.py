"""Teachers of other kinds through the flows: asked under a budget, examined before they teach, refused with reasons."""

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


def wise(request: dict[str, Any], number: int) -> Reply:
    """What the toy's world does before its turn, as an LLM that is sure of itself would tell it."""
    a, b, place = request["messages"][-1]["content"].split()
    go = 1 / (1 + math.exp(-(2 * float(a) + float(b) + (0.7 if place == "north" else -0.7))))
    text, p = ("go", go) if go > 0.5 else ("wait", 1 - go)
    other = "wait" if text == "go" else "go"
    return chat_completion(text, tokens=[token(text, min(p, 0.999), **{other: max(1 - p, 0.001)})])


@pytest.fixture
def server() -> Iterator[Server]:
    """A server whose behaviour can be changed: ``server.script``."""
    with serving(lambda request, number: server.script(request, number)) as server:  # type: ignore[attr-defined]
        server.script = wise  # type: ignore[attr-defined]
        yield server


def settle_on(agents: Path, teachers: str, budgets: str = "") -> None:
    """The toy with these teachers, a short training window and a few rows to be examined on."""
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
def champion(agents: Path, lived: Callable[..., KnowledgeBase]) -> Any:
    """A champion by the toy's own teacher."""
    settle_on(agents, PYTHON)
    lived(14, first=14)
    return open_registry("toy").champion()


# --------------------------------------------------------------------------- asked, and paid


@pytest.mark.slow  # above 20 s; below are quick tests of budgets, and of what is kept and not asked again
def test_an_endpoint_teaches_and_is_asked_about_nothing_twice(day, agents: Path, server: Server) -> None:
    settle_on(agents, llm(server))
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
    assert asked <= toy.PER_DAY + 150  # one more day, and other rows to be examined on
    kept = refresh(agent="toy", as_of=day(15), teacher="keep", cause="the same teacher")
    assert kept.kind == "gate" and len(server.requests) == spent.calls + asked


@pytest.mark.slow  # above 20 s; below are quick tests of budgets, and of what is kept and not asked again
def test_a_watch_asks_under_a_budget_of_its_own_and_a_demo_asks_nothing(day, agents: Path, server: Server) -> None:
    settle_on(agents, llm(server), "max_watch_calls: 70, ")
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


def test_a_budget_that_teaches_enough_and_one_that_does_not(day, agents: Path, server: Server) -> None:
    settle_on(agents, llm(server), "max_teacher_calls: 250, ")
    base = two_weeks(day)
    with pytest.raises(
        WindowError,
        match=r"has answered 100 of the 960 training rows, and 150 are needed: the budget "
        r"is reached \(budgets.max_teacher_calls: 250\).*allow it about 50 rows more",
    ):
        bootstrap(day)
    assert len(server.requests) == 250
    assert open_registry("toy").champion() is None and base.journal.verdicts() == []

    settle_on(agents, llm(server), "max_teacher_calls: 300, ")
    assert bootstrap(day).result == "promoted"
    assert len(server.requests) == 550  # another agent file, another refresh, nothing asked twice
    assert base.tables.count_rows()["knowledge"] == 550


@pytest.mark.slow
def test_a_budget_of_money(day, agents: Path, server: Server) -> None:
    settle_on(agents, llm(server), "max_teacher_cost: 1.0, ")
    base = two_weeks(day)
    assert bootstrap(day).result == "promoted"
    assert 0.9 < base.answers.spending()["llm"].money <= 1.0


@pytest.mark.slow
def test_a_mixed_ensemble(day, agents: Path, server: Server) -> None:
    inner = f"{{kind: ensemble, name: both, members: [{PYTHON}, {llm(server)}]}}"
    settle_on(agents, inner)
    base = two_weeks(day)
    verdict = bootstrap(day)
    assert verdict.result == "promoted", verdict.summary
    assert len(server.requests) == 8 * toy.PER_DAY + 150
    spent = base.answers.spending()
    assert spent["both.llm"].calls == spent["both.logistic"].calls == len(server.requests)
    assert base.read("knowledge")["teacher"].nunique() == 3  # each one's own answers, and the mean


@pytest.mark.slow
def test_rules_teach_and_show_what_they_see_inside(day, agents: Path) -> None:
    """Never fitted; their features reach the losses that match them, in the student and in what is pruned of it."""
    settle_on(agents, "{kind: python, name: rules, target: tests.flows.toy:Known, learns: false, features: true}")
    text = (agents / "toy.yaml").read_text().replace("augment: {copies: 0}", "augment: {copies: 0.5}")
    losses = "losses: [{type: hinton}, {type: hints}, {type: relational, rows: 16}]"
    (agents / "toy.yaml").write_text(text.replace("distillation: {", f"distillation: {{{losses}, "))
    base = two_weeks(day)
    verdict = bootstrap(day)
    assert verdict.result == "promoted", verdict.summary
    kept = base.read("knowledge")
    assert base.answers.spending()["rules"].rows == len(kept) > 8 * toy.PER_DAY + 150  # and the rows that were made up
    assert {len(inside) for inside in kept["features"]} == {3} and kept["teacher"].nunique() == 1


def test_a_model_from_mlflow_teaches(champion, day, agents: Path) -> None:
    """The champion itself, by its alias; then the alias moves, and the teacher stays what it was."""
    settle_on(agents, "{kind: mlflow, name: big, uri: 'models:/toy@champion'}")
    verdict = refresh(agent="toy", as_of=day(14), cause="learn from the champion")
    assert verdict.result == "promoted", verdict.summary
    registry = open_registry("toy")
    assert registry.champion() != champion
    assert KnowledgeBase(load("toy")).answers.spending()["big"].rows == 8 * toy.PER_DAY + 150
    ingest("toy", day(14), day(18))
    assert watch(agent="toy", as_of=day(18)).kind == "watch"


def test_the_check_of_an_agent_file_pays_for_three_rows(agents: Path, server: Server) -> None:
    settle_on(agents, llm(server))
    file = agents / "toy.yaml"
    file.write_text(file.read_text().replace("train: 8d", "train: 14d"))  # eight days may lack one to choose on
    said = list(rehearse(load("toy"), 400))
    assert any("teachers llm: 3 rows answered, saved and loaded again" in line for line in said), said
    assert len(server.requests) == 3


# --------------------------------------------------------------------------- bad teachers


@pytest.mark.usefixtures("prefect_server")
def test_a_teacher_that_says_the_same_about_everything_may_not_teach(
    champion, day, agents: Path, server: Server
) -> None:
    server.script = lambda request, number: chat_completion("go", tokens=[token("go", 0.8, wait=0.2)])  # type: ignore[attr-defined]
    settle_on(agents, llm(server))
    verdict = flows.refresh.refresh.fn(agent="toy", as_of=day(14), cause="a new teacher")
    assert (verdict.kind, verdict.result) == ("gate", "refused")
    assert "may not teach: it says the same about every row" in verdict.summary
    assert admission.replay(verdict) == verdict
    assert open_registry("toy").champion() == champion
    base = KnowledgeBase(load("toy"))
    assert base.journal.verdicts()[-1] == verdict
    assert len(server.requests) == 150  # and the training window was never asked about

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
def test_garbage_and_unknown_actions(day, agents: Path, server: Server, text: str) -> None:
    settle_on(agents, llm(server, ", probabilities: votes, votes: 1"))
    server.script = lambda request, number: chat_completion(text)  # type: ignore[attr-defined]
    base = two_weeks(day)
    verdict = bootstrap(day)
    assert verdict.result == "refused"
    assert "a usable answer to 0 of 150 rows (150 × answered" in verdict.summary
    assert base.tables.count_rows()["unanswered"] == 150 and open_registry("toy").versions() == []


@pytest.mark.slow
def test_a_few_answers_of_no_use_are_left_out(day, agents: Path, server: Server) -> None:
    def script(request: dict[str, Any], number: int) -> Reply:
        return chat_completion("hm", tokens=[token("hm", 0.9)]) if number % 20 == 0 else wise(request, number)

    settle_on(agents, llm(server))
    server.script = script  # type: ignore[attr-defined]
    base = two_weeks(day)
    assert bootstrap(day).result == "promoted"
    counts = base.tables.count_rows()
    assert counts["unanswered"] == pytest.approx(len(server.requests) / 20, abs=2)
    assert counts["knowledge"] + counts["unanswered"] == len(server.requests)
    assert set(base.read("unanswered")["reason"]) == {"answered 'hm', which is no action"}


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back(day, agents: Path, server: Server) -> None:
    settle_on(agents, llm(server))
    base = two_weeks(day)
    server.script = lambda request, number: wise(request, number) if number < 200 else error(500)  # type: ignore[attr-defined]
    with pytest.raises(
        WindowError,
        match=r"has answered \d+ of the 960 training rows, and 150 are needed: teacher "
        r"'llm': \d+ questions in a row failed, the last one: http.*Its answers are kept",
    ):
        bootstrap(day)
    kept = base.tables.count_rows()["knowledge"]
    assert 150 < kept <= 200 and open_registry("toy").champion() is None
    server.script, failed = wise, len(server.requests)  # type: ignore[attr-defined]
    assert bootstrap(day).result == "promoted"
    assert len(server.requests) - failed == 8 * toy.PER_DAY + 150 - kept


@pytest.mark.slow
def test_a_server_that_never_answers(champion, day, agents: Path, server: Server) -> None:
    server.script = lambda request, number: Reply({}, delay=30)  # type: ignore[attr-defined]
    settle_on(agents, llm(server).replace("timeout: 5s", "timeout: 0.2s"))
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


def moody(request: dict[str, Any], number: int) -> Reply:
    """Every fortieth time something else that servers do; some of it repeats the key that it was sent."""
    moods = [
        error(429, f"too many requests with {SECRET}", Retry_After="1"),
        error(429, Retry_After=formatdate(time.time() + 1, usegmt=True)),
        error(500, f"cannot read {SECRET}"),
        Reply(wise(request, number).body, cut=True),
        Reply(wise(request, number).body, delay=3.0),
        Reply('{"choices": [{"message": {"content": "g'),
        chat_completion(f"jump {SECRET}", tokens=[token("jump", 0.9)]),
    ]
    return wise(request, number) if number % 40 else moods[number // 40 % len(moods)]


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.slow  # above 20 s; below are quick tests of budgets, and of what is kept and not asked again
def test_a_server_in_every_mood_and_a_key_that_is_never_shown(
    day, agents: Path, server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("TOY_KEY", SECRET)
    settle_on(agents, llm(server, ", key_variable: TOY_KEY").replace("5s", "2s").replace("retries: 0", "retries: 3"))
    base = two_weeks(day)
    server.script = lambda request, number: error(401, f"unknown key {SECRET} in Bearer {SECRET}")  # type: ignore[attr-defined]
    with pytest.raises(
        WindowError, match=r"answered 0 of 150 rows .*AuthenticationError: .*unknown key \*\*\*"
    ) as told:
        flows.refresh.refresh.fn(agent="toy", as_of=day(14), trigger="bootstrap", cause="first")
    assert SECRET not in str(told.value)
    assert {sent["authorization"] for sent in server.headers} == {f"Bearer {SECRET}"}
    refused = len(server.requests)
    assert refused <= 8  # those that were under way

    server.script = moody  # type: ignore[attr-defined]
    verdict = flows.refresh.refresh.fn(agent="toy", as_of=day(14), trigger="bootstrap", cause="first")
    assert verdict.result == "promoted", verdict.summary
    counts, asked = base.tables.count_rows(), server.requests[refused:]
    assert counts["knowledge"] + counts["unanswered"] == 8 * toy.PER_DAY + 150
    assert base.answers.spending()["llm"].calls >= len(server.requests)  # a call may fail before it arrives
    again = len(asked) - len({sent["messages"][-1]["content"] for sent in asked})
    assert again <= len(asked) / 40 + 10  # what failed was asked again, and nothing else but what was slow just now
    assert set(base.read("unanswered")["reason"]) == {"answered 'jump ***', which is no action"}

    shown = [caplog.text, *(base.read(table).to_json() for table in counts), *on_disk(home()), *known_to_prefect()]
    assert len(shown) > 50 and any("labeling stopped early" in text for text in shown)
    assert [text[:300] for text in shown if SECRET in text] == []


def on_disk(folder: Path) -> Iterator[str]:
    """Every file: agent files, MLflow's database and artifacts, locks, Data Docs."""
    for file in folder.rglob("*"):
        if file.is_file():
            yield file.read_bytes().decode("latin-1")


def known_to_prefect() -> Iterator[str]:
    """Runs with their states, logs and artifacts."""
    from prefect.client.orchestration import get_client

    with get_client(sync_client=True) as client:
        for route in ("logs", "artifacts", "flow_runs", "task_runs"):
            found = client.request("POST", f"/{route}/filter", json={"limit": 200, "sort": SORTS[route]})
            found.raise_for_status()
            yield found.text


class Careless:
    """Does in one way or another what no teacher may; needs no fitting, and can be one that is fitted."""

    hangs = threading.Event()

    def __init__(self, wrong: str) -> None:
        self.wrong = wrong

    def fit(self, rows: Any, outcomes: Any) -> None:
        if self.wrong == "fit fails":
            raise RuntimeError("no licence")
        if self.wrong == "fit hangs":
            self.hangs.wait()

    def predict_proba(self, rows: Any) -> Any:
        if self.wrong == "hangs":
            self.hangs.wait()
        if self.wrong == "fails":
            raise RuntimeError("no licence")
        said = toy.Known().predict_proba(rows)
        return {
            "shape": said[:, :1],
            "too few rows": said[1:],
            "ragged": [[0.5, 0.5], [1.0]],
            "not finite": np.where(np.arange(len(said))[:, None] == 0, np.nan, said),
            "not normalised": said * 0.9,
            "negative": said * 3 - 1,
            "text": np.full(said.shape, "go"),
            "constant": np.full(said.shape, 0.5),
            "wrong way round": said[:, ::-1],
        }[self.wrong]

    def save(self, folder: Path) -> None:
        (folder / "wrong").write_text(self.wrong)

    @classmethod
    def load(cls, folder: Path) -> Careless:
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
    "constant": r"may not teach: it says the same about every row",
    "wrong way round": r"may not teach: on 150 rows that it has not seen its auc",
}
"""What a teacher does wrong, and the reason that is given."""


def test_a_class_that_does_what_no_teacher_may(champion, day, agents: Path) -> None:
    base, registry = KnowledgeBase(load("toy")), open_registry("toy")
    counts, verdicts = base.tables.count_rows(), len(base.journal.verdicts())
    for wrong, reason in BAD.items():
        learns = "true" if wrong.startswith("fit") else "false"
        bad = f"target: {__name__}:Careless, settings: {{wrong: {wrong}}}, learns: {learns}, timeout: 0.3s"
        settle_on(agents, f"{{kind: python, name: bad, {bad}}}")
        try:
            verdict = refresh(agent="toy", as_of=day(14), cause=wrong)
            said, ended = verdict.summary, "FINISHED"
            assert (verdict.kind, verdict.result) == ("gate", "refused")
            verdicts += 1
        except PartError as error:
            said, ended = str(error), "FAILED"
        assert re.search(reason, said), f"{wrong}: {said}"
        run = registry.client.search_runs([registry.experiment_id], "tags.role = 'refresh'", max_results=1)[0]
        assert run.info.status == ended
        assert ended == "FINISHED" or re.search(reason, run.data.tags["failed"])
        assert registry.champion() == champion and registry.previous() is None
        assert len(base.journal.verdicts()) == verdicts
    Careless.hangs.set()
    known = base.read("knowledge")
    assert set(known["teacher"].value_counts()) == {counts["knowledge"], 150}  # of the two that were well-formed only
    assert (np.stack(known["probabilities"]).sum(axis=1).round(6) == 1).all()
