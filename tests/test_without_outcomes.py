"""An agent without outcomes and without a source: its rows and its teacher's answers come from the runtime."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

import stillhouse
from stillhouse import config, ingesting
from stillhouse.certifying.run import verify
from stillhouse.champion import open_registry
from stillhouse.config import AgentConfig
from stillhouse.errors import ConfigError, WindowError
from stillhouse.evaluate import admission
from stillhouse.evaluate.gate import replay
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import Verdict, words_for
from stillhouse.registry import names
from stillhouse.rehearsal import rehearse
from stillhouse.replay.rows import read_rows
from stillhouse.runtime import Agent
from stillhouse.watching.publishing import draw_timeline
from tests.agents import agent_config, agent_sections
from tests.command import command
from tests.flows import toy

Day = Callable[[int], datetime]

READY = {"kind": "python", "name": "rules", "target": "tests.flows.toy:FixedRules", "learns": False}


def sections_without_outcomes(**changes: object) -> dict:
    """The small agent without outcomes and source."""
    sections = agent_sections(teachers=[READY], **changes)
    del sections["outcomes"]
    del sections["observations"]["source"], sections["observations"]["since"]
    return sections


# --------------------------------------------------------------------------- the agent file


def test_labels_are_the_teachers_answers_and_words_say_so() -> None:
    settings = AgentConfig.model_validate(sections_without_outcomes())
    assert (settings.labels_are, settings.words.accuracy, settings.words.labels) == (
        "teacher answers",
        "agreement",
        "teacher's answers",
    )
    assert settings.label_delay.total_seconds() == 0 and settings.block_delay == settings.watch.every
    assert not settings.labels_depend_on_decision and not settings.asking.without_outcomes
    assert (settings.quality.measure, settings.margins.test) == ("agreement", 0.02)
    assert (settings.distillation.outcome_weight, settings.distillation.controller) == (0, "fixed")
    assert settings.weights.follow == "fixed" and settings.synthetic_copies == 0


def test_what_is_written_stays_and_an_agent_with_outcomes_has_the_usual_defaults() -> None:
    written = {"quality": {"measure": "log_loss"}, "asking": {"without_outcomes": True}}
    settings = AgentConfig.model_validate(sections_without_outcomes(**written))
    assert settings.quality.measure == "log_loss" and settings.asking.without_outcomes
    assert settings.margins.test == 0.02  # nats, as usual
    usual = agent_config()
    assert (usual.labels_are, usual.words.accuracy, usual.quality.measure) == ("outcomes", "accuracy", "log_loss")
    assert usual.distillation.outcome_weight is None and usual.asking.without_outcomes
    assert usual.block_delay == usual.label_delay == usual.outcomes.delay


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"teachers": [READY | {"learns": True}]}, "teachers.0: 'rules' is fitted on outcomes, and the agent has none"),
        (
            {"distillation": {"outcome_weight": 0.3}},
            "distillation.outcome_weight: is 0.3, and the agent has no outcomes",
        ),
        ({"distillation": {"controller": "adaptive"}}, "distillation.controller: 'adaptive' weighs teacher against"),
        ({"quality": {"measure": "accuracy"}}, "quality.measure: 'accuracy' needs outcomes, and the agent has none"),
        ({"weights": {"follow": "outcomes"}}, "weights.follow: the weights of teachers are estimated from outcomes"),
    ],
)
def test_what_needs_outcomes_is_refused_in_a_sentence(changes: dict, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        AgentConfig.model_validate(sections_without_outcomes() | changes)


def test_agreement_is_for_agents_without_outcomes() -> None:
    with pytest.raises(ValueError, match="'agreement' is for agents without outcomes"):
        agent_config(quality={"measure": "agreement"})


def test_a_source_needs_a_beginning() -> None:
    sections = sections_without_outcomes(observations={"source": "toy:rows"})
    sections["observations"]["source"] = "toy:rows"
    with pytest.raises(ValueError, match=r"observations\.since: is required with `source`"):
        AgentConfig.model_validate(sections)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("accuracy 0.91 on 60 outcomes, +0.01", "agreement 0.91 on 60 teacher's answers, +0.01"),
        ("only the challenger is right on 3 rows", "only the challenger agrees on 3 rows"),
        ("4 rows without an outcome.", "4 rows without a teacher's answer."),
        ("see `outcomes.delay` and accuracy_drop", "see `outcomes.delay` and accuracy_drop"),
        ("column 'outcome' of the champion's outcomes", "column 'outcome' of the champion's teacher's answers"),
        (
            "evidence that the student errs more than it did: 1",
            "evidence that the student agrees less with the recorded answers than it did: 1",
        ),
    ],
)
def test_sentences_about_outcomes_in_other_words(text: str, expected: str) -> None:
    assert words_for("teacher answers").say(text) == expected
    assert words_for("teacher answers").say(expected) == expected
    assert words_for("outcomes").say(text) == text


# --------------------------------------------------------------------------- admission


def test_a_teacher_is_admitted_for_answers_that_depend_on_the_row() -> None:
    settings = AgentConfig.model_validate(sections_without_outcomes())
    times = pd.date_range("2024-01-01", periods=200, freq="1h", tz="UTC")
    go = np.random.default_rng(0).random(200)
    rows = pd.DataFrame({"observed_at": times, "outcome": (go > 0.5).astype(int)})

    def judge(probs: np.ndarray) -> Verdict:
        examined = admission.examine(settings, "r", times[0].to_pydatetime(), "v1", rows, probs, np.array([0.5, 0.5]))
        return admission.judge(examined)

    passed = judge(np.column_stack([1 - go, go]))
    assert passed.result == "admitted" and "agreement with its answers" in passed.summary
    assert admission.replay(passed) == passed and passed.evidence["examination"]["labels"] == "teacher answers"
    assert judge(np.tile([0.9, 0.1], (200, 1))).result == "refused"
    assert judge(np.full((200, 2), np.nan)).result == "refused"


# --------------------------------------------------------------------------- the real path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of rows of each question to the teacher."""
    asked: list[int] = []
    answer = toy.FixedRules.predict_proba

    def count(self: toy.FixedRules, rows: pd.DataFrame) -> np.ndarray:
        asked.append(len(rows))
        return answer(self, rows)

    monkeypatch.setattr(toy.FixedRules, "predict_proba", count)
    return asked


@pytest.fixture
def blind(agents: Path, calls: list[int]) -> Path:
    """The toy without outcomes and without a source."""
    file = agents / "toy.yaml"
    sections = yaml.safe_load(file.read_text())
    del sections["outcomes"], sections["quality"], sections["distillation"]["augment"]
    del sections["observations"]["source"], sections["observations"]["since"]
    sections["teachers"] = [READY]
    sections["watch"] = {"every": "1d", "clock": "newest_observation", "audit": {"rows": 70}, "policy": "alarms"}
    file.write_text(yaml.safe_dump(sections))
    return file


def record(first: datetime, end: datetime, *, answered: bool) -> None:
    """Let the runtime record the toy's rows of ``[first, end)``, with the teacher's answers or with decisions."""
    rows = toy.observations(first, end)
    with Agent("toy", follow=False, flush=False) as agent:
        if not answered:
            agent.follow(open_registry("toy"))
            agent.decide(rows)
        else:
            agent.observe(rows)
            go = toy.FixedRules().features(rows).astype(float).sum(axis=1) > 0
            answers = rows[["observation_id", "observed_at"]].assign(known_at=rows["observed_at"])
            agent.learn(answers.assign(action=np.where(go, "go", "wait")))
        agent.flush()


def test_first_champion_watch_and_refresh_without_outcomes(
    blind: Path,
    day: Day,
    calls: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    record(day(0), day(20), answered=True)
    settings, base = config.load("toy"), KnowledgeBase(config.load("toy"))
    lines = "\n".join(rehearse(settings))
    assert "knowledge base: 1680 observations with 4 columns" in lines
    assert "knowledge base: 1680 teacher's answers (" in lines and "120 rows with teacher's answers a day" in lines
    assert "outcomes" not in lines
    calls.clear()

    first = stillhouse.refresh("toy", as_of=day(20), trigger="bootstrap", cause="first")
    assert first.result == "promoted", first.summary
    assert base.answers.spending() == {} and set(calls) <= {1}  # nothing is asked again; one row is timed
    assert replay(first) == first
    champion = open_registry("toy").champion()
    baseline = open_registry("toy").baseline(champion)
    assert baseline.test.end == day(20) and set(baseline.losses) == {"disagreement", "student_outcomes"}

    calls.clear()
    record(day(20), day(28), answered=False)
    before = len(base.read("outcomes"))
    verdict = stillhouse.watch("toy", as_of=day(24))
    labels = base.read("outcomes").iloc[before:]
    asked = sum(calls)
    assert 0 < len(labels) < asked <= 4 * 70  # the uniform part of the audit
    assert set(labels["known_at"]) == {pd.Timestamp(day(n)) for n in range(21, 25)}
    rows = toy.HISTORY.set_index("observation_id").loc[labels["observation_id"]]
    go = toy.FixedRules().features(rows).astype(float).sum(axis=1) > 0
    assert (labels["action"].to_numpy() == np.where(go, "go", "wait")).all()
    assert {reason.measure for reason in verdict.reasons} >= {
        "agreement_drop",
        "evidence_disagreement",
        "evidence_student_answers",
    }
    assert any("agreement 0.9" in text or "agreement 1.0" in text for text in _texts(verdict)), verdict.reasons
    assert not _speaks_of_outcomes(verdict), verdict.reasons

    again = stillhouse.watch("toy", as_of=day(24))
    assert sum(calls) == asked and len(base.read("outcomes")) == before + len(labels)
    assert again.result == verdict.result
    stillhouse.watch("toy", as_of=day(28))
    blocks = base.read_labelled_blocks(base.window("w", day(20), day(28)), settings.watch.block, settings.block_delay)
    assert blocks["block_start"].nunique() == 8  # a block's answers are complete a step later

    for recorded in (first, verdict):
        found = verify("toy", recorded.verdict_id)
        assert found.identical, (found.differences, found.missing)
    history = read_rows(settings, day(14), day(28), from_sources=False)
    assert set(history["outcome"]) == {0, 1} and len(history) > 6 * toy.PER_DAY
    with pytest.raises(ConfigError, match="leave --from-sources out"):
        read_rows(settings, day(14), day(28), from_sources=True)

    calls.clear()
    second = stillhouse.refresh("toy", as_of=day(28), trigger="manual", cause="more answers", teacher="keep")
    assert set(calls) <= {1} and second.result in ("promoted", "inconclusive", "refused"), second.summary
    assert not _speaks_of_outcomes(second), second.reasons
    assert "agreement" in " ".join(reason.text for reason in second.reasons)

    registry = open_registry("toy")
    run_id = registry.models.tags(champion)["refresh_run"]
    why = registry.runs.read_file(run_id, names.WHY).decode()
    prose = re.sub("`[^`]*`", "", why)  # without the name of the table
    assert "agreement" in prose and "accuracy" not in prose and "outcome" not in prose, why
    assert draw_timeline(base, day(28)).startswith(b"\x89PNG")

    run = command(tmp_path / "home", blind.parent, monkeypatch, capsys)
    for name in ("status", "history"):
        shown = run(name, "toy")
        assert shown.returncode == 0, shown.stderr
        assert "accuracy" not in shown.stdout and "outcome" not in shown.stdout, shown.stdout


def _texts(verdict: Verdict) -> list[str]:
    return [verdict.summary, *(reason.text for reason in verdict.reasons)]


def _speaks_of_outcomes(verdict: Verdict) -> bool:
    return any("outcome" in text or "accuracy" in text for text in _texts(verdict))


def test_an_agent_without_rows_says_where_they_come_from(blind: Path) -> None:
    with pytest.raises(WindowError, match="no source, and its knowledge base no rows yet"):
        list(rehearse(config.load("toy")))
    with pytest.raises(WindowError, match=r"no `observations\.source`: its rows are those that its application"):
        ingesting.find_start("toy", None)


def test_live_reads_nothing_and_flushes(blind: Path, day: Day, caplog: pytest.LogCaptureFixture) -> None:
    record(day(0), day(1), answered=True)
    with caplog.at_level("INFO"):
        assert ingesting.ingest("toy", day(0), day(2)) == 0
    assert "no `observations.source`" in caplog.text


def test_a_demo_needs_sources(blind: Path) -> None:
    from stillhouse.demonstrating import list_week_ends

    with pytest.raises(ConfigError, match="a demo replays a history"):
        list_week_ends("toy", 2, None)
