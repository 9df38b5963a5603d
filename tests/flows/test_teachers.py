"""Teachers of other kinds through the flows: asked under a budget, examined before they teach, refused with reasons."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.refresh import refresh
from flows.watch import watch
from stillhouse.config import load
from stillhouse.errors import PartError, WindowError
from stillhouse.evaluate import admission
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import Verdict
from stillhouse.rehearsal import rehearse
from tasks.common import registry
from tasks.living import live
from tests.flows import toy
from tests.teachers.servers import Reply, Server, error, says, serving, token

pytest.importorskip("openai")
pytestmark = pytest.mark.usefixtures("prefect_server")

PYTHON = "{kind: python, name: logistic, target: tests.flows.toy:Logistic}"
RATES = "price_per_million_input: 10, price_per_million_output: 100"
PROMPT = 'prompt: "{a} {b} {place}"'


def wise(request: dict[str, Any], number: int) -> Reply:
    """What the toy's world does before its turn, as an LLM that is sure of itself would tell it."""
    a, b, place = request["messages"][-1]["content"].split()
    go = 1 / (1 + math.exp(-(2 * float(a) + float(b) + (0.7 if place == "north" else -0.7))))
    text, p = ("go", go) if go > 0.5 else ("wait", 1 - go)
    other = "wait" if text == "go" else "go"
    return says(text, tokens=[token(text, min(p, 0.999), **{other: max(1 - p, 0.001)})])


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


def lived(day: Callable[[int], Any]) -> KnowledgeBase:
    live.fn("toy", day(0), day(14))
    return KnowledgeBase(load("toy"))


def bootstrap(day: Callable[[int], Any]) -> Verdict:
    return refresh.fn(agent="toy", as_of=day(14), trigger="bootstrap", cause="first")


def champion(day: Callable[[int], Any], agents: Path) -> Any:
    """A champion by the toy's own teacher."""
    settle_on(agents, PYTHON)
    lived(day)
    assert bootstrap(day).outcome == "promoted"
    return registry("toy").champion()


# --------------------------------------------------------------------------- asked, and paid


def test_an_endpoint_teaches_and_is_asked_about_nothing_twice(day, agents: Path, server: Server) -> None:
    settle_on(agents, llm(server))
    base = lived(day)
    verdict = bootstrap(day)
    assert verdict.outcome == "promoted", verdict.summary
    assert len(server.requests) == 8 * toy.PER_DAY + 150
    assert base.counts()["knowledge"] == len(server.requests)

    spent = base.spending()["llm"]
    assert (spent.calls, spent.rows) == (len(server.requests), len(server.requests))
    assert spent.money == pytest.approx(spent.calls * (100 * 10 + 5 * 100) / 1e6)
    models = registry("toy")
    run = models.client.search_runs([models.experiment_id], "tags.role = 'refresh'")[0]
    assert run.data.metrics["teacher/llm/calls"] == spent.calls
    assert run.data.metrics["teacher/llm/money"] == pytest.approx(spent.money)
    assert models.baseline(models.champion()).disagreement.rows == 150

    live.fn("toy", day(14), day(15))
    again = refresh.fn(agent="toy", as_of=day(15), cause="a day later")
    assert again.kind == "gate"
    asked = len(server.requests) - spent.calls
    assert asked <= toy.PER_DAY + 150  # one more day, and other rows to be examined on
    kept = refresh.fn(agent="toy", as_of=day(15), teacher="keep", cause="the same teacher")
    assert kept.kind == "gate" and len(server.requests) == spent.calls + asked


def test_a_watch_asks_under_a_budget_of_its_own(day, agents: Path, server: Server) -> None:
    settle_on(agents, llm(server), "max_watch_calls: 70, ")
    lived(day)
    bootstrap(day)
    taught = len(server.requests)
    live.fn("toy", day(14), day(18))
    verdict = watch.fn(agent="toy", as_of=day(18))
    assert verdict.kind == "watch" and verdict.outcome != "data_broken"
    assert len(server.requests) - taught == 70
    watch.fn(agent="toy", as_of=day(18))
    assert len(server.requests) - taught == 70


def test_a_budget_that_teaches_enough_and_one_that_does_not(day, agents: Path, server: Server) -> None:
    settle_on(agents, llm(server), "max_teacher_calls: 250, ")
    base = lived(day)
    with pytest.raises(WindowError, match=r"about 100 of the 960 training rows, and 150 are needed: the budget is "
                       r"reached \(budgets.max_teacher_calls: 250\).*allow it about 50 rows more"):  # fmt: skip
        bootstrap(day)
    assert len(server.requests) == 250
    assert registry("toy").champion() is None and base.verdicts() == []

    settle_on(agents, llm(server), "max_teacher_calls: 300, ")
    assert bootstrap(day).outcome == "promoted"
    assert len(server.requests) == 550  # another agent file, another refresh, nothing asked twice
    assert base.counts()["knowledge"] == 550


def test_a_budget_of_money(day, agents: Path, server: Server) -> None:
    settle_on(agents, llm(server), "max_teacher_cost: 1.0, ")
    base = lived(day)
    assert bootstrap(day).outcome == "promoted"
    assert 0.9 < base.spending()["llm"].money <= 1.0


def test_a_mixed_ensemble(day, agents: Path, server: Server) -> None:
    inner = f"{{kind: ensemble, name: both, members: [{PYTHON}, {llm(server)}]}}"
    settle_on(agents, inner)
    base = lived(day)
    verdict = bootstrap(day)
    assert verdict.outcome == "promoted", verdict.summary
    assert len(server.requests) == 8 * toy.PER_DAY + 150
    spent = base.spending()
    assert spent["both.llm"].calls == spent["both.logistic"].calls == len(server.requests)
    assert base.read("knowledge")["teacher"].nunique() == 2  # the endpoint's own answers, and the mean


def test_rules_teach_and_show_what_they_see_inside(day, agents: Path) -> None:
    """Never fitted; their features reach the losses that match them, in the student and in what is pruned of it."""
    settle_on(agents, "{kind: python, name: rules, target: tests.flows.toy:Known, learns: false, features: true}")
    text = (agents / "toy.yaml").read_text()
    losses = "losses: [{type: hinton}, {type: hints}, {type: relational, rows: 16}]"
    (agents / "toy.yaml").write_text(text.replace("distillation: {", f"distillation: {{{losses}, "))
    base = lived(day)
    verdict = bootstrap(day)
    assert verdict.outcome == "promoted", verdict.summary
    assert base.spending()["rules"].rows == 8 * toy.PER_DAY + 150
    kept = base.read("knowledge")
    assert {len(inside) for inside in kept["features"]} == {3} and kept["teacher"].nunique() == 1


def test_a_model_from_mlflow_teaches(day, agents: Path) -> None:
    """The champion itself, by its alias; then the alias moves, and the teacher stays what it was."""
    before = champion(day, agents)
    settle_on(agents, "{kind: mlflow, name: big, uri: 'models:/toy@champion'}")
    verdict = refresh.fn(agent="toy", as_of=day(14), cause="learn from the champion")
    assert verdict.outcome == "promoted", verdict.summary
    models = registry("toy")
    assert models.champion() != before
    assert KnowledgeBase(load("toy")).spending()["big"].rows == 8 * toy.PER_DAY + 150
    live.fn("toy", day(14), day(18))
    assert watch.fn(agent="toy", as_of=day(18)).kind == "watch"


def test_the_check_of_an_agent_file_pays_for_three_rows(agents: Path, server: Server) -> None:
    settle_on(agents, llm(server))
    said = list(rehearse(load("toy"), 400))
    assert "teachers llm: 3 rows answered, saved and loaded again" in said[2]
    assert len(server.requests) == 3


# --------------------------------------------------------------------------- bad teachers


def test_a_teacher_that_says_the_same_about_everything_may_not_teach(day, agents: Path, server: Server) -> None:
    before = champion(day, agents)
    server.script = lambda request, number: says("go", tokens=[token("go", 0.8, wait=0.2)])  # type: ignore[attr-defined]
    settle_on(agents, llm(server))
    verdict = refresh.fn(agent="toy", as_of=day(14), cause="a new teacher")
    assert (verdict.kind, verdict.outcome) == ("gate", "refused")
    assert "may not teach: it says the same about every row" in verdict.summary
    assert admission.replay(verdict) == verdict
    assert registry("toy").champion() == before
    base = KnowledgeBase(load("toy"))
    assert base.verdicts()[-1] == verdict
    assert len(server.requests) == 150  # and the training window was never asked about

    again = refresh.fn(agent="toy", as_of=day(14), cause="a new teacher")
    assert again == verdict and len(server.requests) == 150
    models = registry("toy")
    runs = models.client.search_runs([models.experiment_id], "tags.role = 'refresh'")
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.mark.parametrize("text", ["As a language model, I cannot tell.", "jump", '{"action": "jump"}'])
def test_garbage_and_unknown_actions(day, agents: Path, server: Server, text: str) -> None:
    settle_on(agents, llm(server, ", probabilities: votes, votes: 1"))
    server.script = lambda request, number: says(text)  # type: ignore[attr-defined]
    base = lived(day)
    verdict = bootstrap(day)
    assert verdict.outcome == "refused"
    assert "a usable answer to 0 of 150 rows (150 × answered" in verdict.summary
    assert base.counts()["unanswered"] == 150 and registry("toy").versions() == []


def test_a_few_answers_of_no_use_are_left_out(day, agents: Path, server: Server) -> None:
    def script(request: dict[str, Any], number: int) -> Reply:
        return says("hm", tokens=[token("hm", 0.9)]) if number % 20 == 0 else wise(request, number)

    settle_on(agents, llm(server))
    server.script = script  # type: ignore[attr-defined]
    base = lived(day)
    assert bootstrap(day).outcome == "promoted"
    counts = base.counts()
    assert counts["unanswered"] == pytest.approx(len(server.requests) / 20, abs=2)
    assert counts["knowledge"] + counts["unanswered"] == len(server.requests)
    assert set(base.read("unanswered")["reason"]) == {"answered 'hm', which is no action"}


def test_a_server_that_dies_and_comes_back(day, agents: Path, server: Server) -> None:
    settle_on(agents, llm(server))
    base = lived(day)
    server.script = lambda request, number: wise(request, number) if number < 200 else error(500)  # type: ignore[attr-defined]
    with pytest.raises(WindowError, match=r"spoken about \d+ of the 960 training rows, and 150 are needed: teacher "
                       r"'llm': \d+ questions in a row failed, the last one: http.*What it said is kept"):  # fmt: skip
        bootstrap(day)
    kept = base.counts()["knowledge"]
    assert 150 < kept <= 200 and registry("toy").champion() is None
    server.script, failed = wise, len(server.requests)  # type: ignore[attr-defined]
    assert bootstrap(day).outcome == "promoted"
    assert len(server.requests) - failed == 8 * toy.PER_DAY + 150 - kept


def test_a_server_that_never_answers(day, agents: Path, server: Server) -> None:
    before = champion(day, agents)
    server.script = lambda request, number: Reply({}, delay=30)  # type: ignore[attr-defined]
    settle_on(agents, llm(server).replace("timeout: 5s", "timeout: 0.2s"))
    with pytest.raises(WindowError, match=r"answered 0 of 150 rows .* did not answer within 0.2 s"):
        refresh.fn(agent="toy", as_of=day(14), cause="a new teacher")
    assert registry("toy").champion() == before


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


def test_a_class_that_does_what_no_teacher_may(day, agents: Path) -> None:
    before = champion(day, agents)
    base, models = KnowledgeBase(load("toy")), registry("toy")
    counts, verdicts = base.counts(), len(base.verdicts())
    for wrong, reason in BAD.items():
        learns = "true" if wrong.startswith("fit") else "false"
        bad = f"target: {__name__}:Careless, settings: {{wrong: {wrong}}}, learns: {learns}, timeout: 0.3s"
        settle_on(agents, f"{{kind: python, name: bad, {bad}}}")
        try:
            verdict = refresh.fn(agent="toy", as_of=day(14), cause=wrong)
            said, ended = verdict.summary, "FINISHED"
            assert (verdict.kind, verdict.outcome) == ("gate", "refused")
            verdicts += 1
        except PartError as error:
            said, ended = str(error), "FAILED"
        assert re.search(reason, said), f"{wrong}: {said}"
        run = models.client.search_runs([models.experiment_id], "tags.role = 'refresh'", max_results=1)[0]
        assert run.info.status == ended
        assert ended == "FINISHED" or re.search(reason, run.data.tags["failed"])
        assert models.champion() == before and models.previous() is None
        assert len(base.verdicts()) == verdicts
    Careless.hangs.set()
    known = base.read("knowledge")
    assert set(known["teacher"].value_counts()) == {counts["knowledge"], 150}  # of the two that were well-formed only
    assert (np.stack(known["probabilities"]).sum(axis=1).round(6) == 1).all()
