"""The agent `memory`: its teacher remembers at once what is known, and nothing that was not known yet."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from examples import memory
from stillhouse.config import AgentConfig, load_file
from stillhouse.knowledge import KnowledgeBase

AGENT = Path(__file__).parents[2] / "agents" / "memory.yaml"
START = memory.FIRST_DAY
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def settings() -> AgentConfig:
    return load_file(AGENT)


@pytest.fixture
def base(tmp_path: Path, settings: AgentConfig) -> KnowledgeBase:
    return KnowledgeBase(settings, tmp_path / "base")


def case(
    name: str, day: float, action: str = "repair", place: float = 0.5, known_after: float = 1.0
) -> dict[str, object]:
    at = START + day * DAY
    columns = dict.fromkeys(memory.COLUMNS, place)
    return {"observation_id": name, "observed_at": at, "known_at": at + known_after * DAY, "action": action, **columns}


def remember(base: KnowledgeBase, *cases: dict[str, object]) -> pd.DataFrame:
    rows = pd.DataFrame(list(cases))
    base.append_observations(rows, batch=str(rows["observation_id"].iloc[0]))
    base.append_outcomes(rows, batch=str(rows["observation_id"].iloc[0]))
    return rows


def chosen(teacher: memory.Memory, *cases: dict[str, object]) -> list[str]:
    return [memory.ACTIONS[i] for i in teacher.predict_proba(pd.DataFrame(list(cases))).argmax(axis=1)]


@pytest.fixture
def teacher(base: KnowledgeBase) -> memory.Memory:
    teacher = memory.Memory()
    teacher.use_knowledge_base(base)
    return teacher


def test_stream_and_agent_file_belong_together(settings: AgentConfig) -> None:
    assert settings.actions == memory.ACTIONS and settings.observations.numbers == memory.COLUMNS
    week = memory.cases(START, START + 7 * DAY)
    outcomes = memory.settled(START, START + 7 * DAY)
    assert outcomes["observation_id"].tolist() == week["observation_id"].tolist() and len(week) > 700
    assert ((outcomes["known_at"] - outcomes["observed_at"]) == settings.label_delay).all()
    pd.testing.assert_frame_equal(memory.make_stream(20, seed=3), memory.make_stream(20, seed=3))


def test_what_cases_look_like_never_changes_and_a_third_of_the_kinds_is_settled_otherwise() -> None:
    stream = memory.make_stream(2000, weeks=4, turns=(2,), seed=1000)
    late = stream["observed_at"] >= START + timedelta(weeks=2)
    for column in memory.COLUMNS:
        assert abs(stream[column][late].mean() - stream[column][~late].mean()) < 0.02
    shares = [stream["action"][part].value_counts(normalize=True) for part in (~late, late)]
    assert abs(shares[0] - shares[1]).max() > 0.05


def test_an_outcome_counts_as_soon_as_it_is_known(base: KnowledgeBase, teacher: memory.Memory) -> None:
    assert teacher.predict_proba(pd.DataFrame([case("q", 0)])).tolist() == [[0.25] * 4]  # nothing is known
    remember(base, case("a", 0, "repair"))
    asked = [case("early", 0.99), case("late", 1.0)]
    assert teacher.predict_proba(pd.DataFrame(asked)).max(axis=1).tolist() == [0.25, pytest.approx(0.98, abs=0.01)]
    remember(base, case("b", 3, "refund"))
    assert chosen(teacher, case("before", 3.9), case("after", 4.1), case("far", 4.1, place=0.9)) == [
        "repair",
        "refund",
        "refund",
    ]


def test_a_row_never_reads_its_own_outcome(base: KnowledgeBase, settings: AgentConfig) -> None:
    rows = remember(base, case("a", 0, "refund"), case("b", 0.5, "repair"), case("c", 0.6, "repair"))
    taught = memory.Memory().at((START + 9 * DAY).to_pydatetime(), (START + 8 * DAY).to_pydatetime())
    taught.use_knowledge_base(base)
    assert chosen(taught, *rows.to_dict("records")) == ["repair", "repair", "repair"]  # its own neighbours say so
    outvoted = rows.assign(action=["repair", "repair", "refund"])
    base.append_outcomes(
        outvoted[outvoted["observation_id"] == "c"].assign(known_at=START + 2 * DAY), batch="corrected"
    )
    assert chosen(taught, *rows.to_dict("records"))[2] in ("repair", "refund")  # of a and b, whatever c became


def test_answers_do_not_depend_on_what_became_known_later(base: KnowledgeBase, settings: AgentConfig) -> None:
    """The answer to each row equals that of a knowledge base which ends where the row begins."""
    stream = memory.make_stream(60, weeks=3, turns=(2,), seed=1000)
    remember(base, *stream.to_dict("records"))
    teacher = memory.Memory()
    teacher.use_knowledge_base(base)
    probs = teacher.predict_proba(stream)
    for index in (40, 100, 160):
        row = stream.iloc[[index]]
        known = stream[stream["known_at"] <= row["observed_at"].iloc[0]]
        then = KnowledgeBase(settings, base.root.parent / f"then-{index}")
        remember(then, *known.to_dict("records"))
        earlier = memory.Memory()
        earlier.use_knowledge_base(then)
        np.testing.assert_allclose(probs[index], earlier.predict_proba(row)[0], rtol=1e-4)


def test_training_rows_are_answered_by_what_is_known_at_the_end_of_their_window(base: KnowledgeBase) -> None:
    remember(base, case("old", 0, "repair"), *(case(f"new{i}", 10 + i / 9, "refund") for i in range(5)))
    live = memory.Memory()
    taught = live.at((START + 14 * DAY).to_pydatetime(), (START + 13 * DAY).to_pydatetime())
    live.use_knowledge_base(base)
    taught.use_knowledge_base(base)
    row = case("row", 5)
    assert (chosen(live, row), chosen(taught, row)) == (["repair"], ["refund"])


def test_saved_memory_keeps_its_end_and_the_size_of_its_tables(base: KnowledgeBase, tmp_path: Path) -> None:
    remember(base, case("a", 0))
    taught = memory.Memory(near=5).at(START.to_pydatetime(), (START + DAY).to_pydatetime())
    taught.save(tmp_path)
    loaded = memory.Memory.load(tmp_path)
    assert loaded.settings == taught.settings and loaded.near == 5
    loaded.use_knowledge_base(base)
    assert loaded.bytes_elsewhere > 1000


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_server")
def test_demo_sees_the_student_fall_behind_its_memory(agents: Path) -> None:
    from flows.demo import demo

    text = AGENT.read_text(encoding="utf-8").replace("since: 2024-01-01", "since: 2024-02-26")
    (agents / "memory.yaml").write_text(text.replace("epochs: 30", "epochs: 20"), encoding="utf-8")
    result = demo(agent="memory", bootstrap_weeks=3, weeks=4)
    held, *changed = result.weeks
    assert held.response == "hold"
    assert "promoted" in [gate for week in changed for gate in week.gates]
    last = changed[-1]
    assert last.quality_champion > last.quality_static + 0.1  # type: ignore[operator]
    assert last.quality_teacher > last.quality_static + 0.1  # type: ignore[operator]
