"""Several teachers speak as one, and never about rows whose outcomes they have seen."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stillhouse.config import AgentConfig, weighted_teachers
from stillhouse.errors import LeakageError, PartError
from stillhouse.records import ModelRef, TeacherWeights, Window
from stillhouse.teachers import ensemble, weighing
from stillhouse.teachers.answers import in_process
from tests.teachers.parts_for_tests import Constant, Memory, Mute

PARTS = "tests.teachers.parts_for_tests"
START = datetime(2013, 1, 1, tzinfo=UTC)
WINDOW = Window(name="train", start=START, end=START + timedelta(hours=24), versions={"observations": 3})


def make_config(*teachers: dict[str, Any], folds: int = 4) -> AgentConfig:
    return AgentConfig.model_validate(
        {
            "agent": "toy",
            "actions": ["stay", "move"],
            "observations": {
                "source": "toy:rows",
                "since": "2013-01-01T00:00:00Z",
                "columns": {"temp": {"type": "number"}},
            },
            "outcomes": {"source": "toy:outcomes", "delay": "1d"},
            "teachers": [{"kind": "python"} | teacher for teacher in teachers],
            "student": {"kind": "tabular"},
            "distillation": {"folds": folds},
            "windows": {"train": "8w", "test": "1w", "current": "7d"},
            "watch": {"thresholds": {"psi": 0.25}},
        }
    )


def constant(name: str, says: float, weight: float = 1.0, target: str = "Constant") -> dict[str, Any]:
    return {"name": name, "target": f"{PARTS}:{target}", "weight": weight, "settings": {"says": says}}


MEMORY = {"name": "memory", "target": f"{PARTS}:Memory"}


def careless(answer: str) -> dict[str, Any]:
    return {"name": "careless", "target": f"{PARTS}:Careless", "settings": {"answer": answer}}


def make_rows(count: int, start: datetime = START) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "observation_id": [f"{start:%m%d}-{i}" for i in range(count)],
            "observed_at": pd.to_datetime([start + timedelta(hours=i) for i in range(count)]),
            "temp": np.arange(float(count)),
            "outcome": np.arange(count) % 2,
        }
    )


# --------------------------------------------------------------------------- asking


def test_the_weighted_mean_by_hand(tmp_path: Path) -> None:
    """(3 · 0.2 + 1 · 0.6) / 4 = 0.3"""
    config = make_config(constant("a", 0.2, 3), constant("b", 0.6, 1))
    ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t")
    said = ensemble.load(tmp_path / "t", config).predict_proba(make_rows(5))
    assert said.dtype == np.float64
    np.testing.assert_allclose(said, np.tile([0.7, 0.3], (5, 1)), rtol=1e-12)


def of_one(teacher: Any, name: str = "x") -> ensemble.Ensemble:
    member = ensemble.Member(name, 1.0, in_process(name, ("stay", "move"), teacher.predict_proba))
    return ensemble.Ensemble(make_config(MEMORY), [member], WINDOW, "v1")


def test_one_teacher_is_itself() -> None:
    said = of_one(Constant(0.25)).predict_proba(make_rows(2))
    np.testing.assert_array_equal(said, [[0.75, 0.25]] * 2)


def test_rows_that_the_teachers_have_seen_are_refused() -> None:
    asked = of_one(Constant())
    with pytest.raises(LeakageError, match=r"1 of 2 rows lie in train \[2013-01-01 .*'toy'.*cross-fitted"):
        asked.ask(make_rows(2, START + timedelta(hours=23)))
    with pytest.raises(LeakageError, match="1 of 1 rows"):
        asked.ask(make_rows(1, START))
    assert asked.ask(make_rows(2, START + timedelta(hours=24))).shape == (2, 2)
    assert asked.ask(make_rows(2, START - timedelta(hours=2))).shape == (2, 2)
    assert asked.ask(make_rows(2).iloc[:0]).shape == (0, 2)


@pytest.mark.parametrize("answer", ["one column", "one row", "a vector"])
def test_an_answer_of_another_shape(answer: str) -> None:
    asked = of_one(made(careless(answer)), "careless")
    with pytest.raises(PartError, match=r"teacher 'careless' answered with shape .*, not \(3, 2\)"):
        asked.predict_proba(make_rows(3))


@pytest.mark.parametrize("answer", ["logits", "negative", "not normalised", "nan"])
def test_an_answer_that_is_no_probability(answer: str) -> None:
    asked = of_one(made(careless(answer)), "careless")
    with pytest.raises(PartError, match="teacher 'careless' answered with values that are not probabilities"):
        asked.predict_proba(make_rows(3))


@pytest.mark.parametrize("answer", ["a list", "a frame", "float32"])
def test_an_answer_of_another_type_will_do(answer: str) -> None:
    asked = of_one(made(careless(answer)), "careless")
    said = asked.predict_proba(make_rows(3))
    assert said.dtype == np.float64
    np.testing.assert_array_equal(said, [[0.25, 0.75]] * 3)


# --------------------------------------------------------------------------- making


def made(teacher: dict[str, Any]) -> Any:
    config = make_config(teacher)
    return ensemble.new_member(config, config.teachers[0])


def test_a_teacher_is_made_with_its_settings() -> None:
    assert made(constant("a", 0.125)).says == 0.125


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"name": "t", "target": f"{PARTS}:Mute"}, r"lacks the methods \['predict_proba', 'load'\]"),
        ({"name": "t", "target": f"{PARTS}:not_a_class"}, "cannot be made with settings {}: TypeError"),
        (
            {"name": "t", "target": f"{PARTS}:Constant", "settings": {"say": 1}},
            r"cannot be made with settings {'say': 1}: TypeError: .*unexpected keyword argument 'say'",
        ),
        (constant("t", 7), r"cannot be made with settings {'says': 7}: ValueError: 7 is no probability"),
        ({"name": "t", "target": f"{PARTS}:Forest"}, r"has no 'Forest'; it has: Constant, Shouting, Memory"),
        ({"name": "t", "target": "no_such_module:Forest"}, "does not import"),
    ],
)
def test_what_is_no_teacher_is_refused_by_name(teacher: dict[str, Any], message: str) -> None:
    with pytest.raises(PartError, match=message) as caught:
        made(teacher)
    assert str(caught.value).startswith("agents/toy.yaml: teachers.t: ")
    assert not hasattr(Mute(), "load")


# --------------------------------------------------------------------------- fitting, keeping


def test_fit_keeps_what_load_reads(tmp_path: Path) -> None:
    config = make_config(MEMORY, constant("a", 0.5))
    ref = ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t")
    assert ref.folder == str(tmp_path / "t")
    assert ref.fitted == WINDOW
    assert ref.bytes == sum(file.stat().st_size for file in (tmp_path / "t").rglob("*") if file.is_file())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t"]
    loaded = ensemble.load(tmp_path / "t", config)
    assert loaded.fitted == WINDOW
    assert loaded.version == ref.version
    said = loaded.predict_proba(make_rows(24))
    np.testing.assert_allclose(said[:2], [[0.75, 0.25], [0.25, 0.75]])
    model = ModelRef(name="toy-teacher", uri="models:/m-1")
    assert ensemble.reference(tmp_path / "t", model) == ref.model_copy(update={"model": model})


def test_the_version_depends_on_all_that_is_said_and_on_nothing_else(tmp_path: Path) -> None:
    def version(*teachers: dict[str, Any], rows: int = 24, window: Window = WINDOW) -> str:
        return ensemble.fit(make_config(*teachers), make_rows(rows), window, tmp_path / "t").version

    plain = version(MEMORY, constant("a", 0.5))
    assert len(plain) == 12
    assert version(MEMORY, constant("a", 0.5)) == plain
    assert version(MEMORY, constant("a", 0.5), window=WINDOW.model_copy(update={"name": "x"})) == plain
    others = [
        version(MEMORY, constant("a", 0.5), rows=23),
        version(MEMORY, constant("a", 0.6)),
        version(MEMORY, constant("b", 0.5)),
        version(MEMORY, constant("a", 0.5, weight=2)),
        version(MEMORY, constant("a", 0.5, target="Shouting")),
        version(MEMORY),
    ]
    assert len({plain, *others}) == 7


def test_what_an_interrupted_fit_left_is_swept_away(tmp_path: Path) -> None:
    config = make_config(constant("a", 0.5))
    clean = ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "clean")
    for leftover in ("t.partial/a", "t.partial/of-another", "t"):
        (tmp_path / leftover).mkdir(parents=True)
        (tmp_path / leftover / "says.json").write_text("0.9")
        (tmp_path / leftover / "junk").write_text("half a fi")
    ref = ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t")
    assert (ref.version, ref.bytes) == (clean.version, clean.bytes)
    assert sorted(path.name for path in (tmp_path / "t").rglob("*")) == ["a", "says.json", "teacher.json"]
    assert not (tmp_path / "t.partial").exists()


def test_the_agent_file_alone_says_which_class_reads(tmp_path: Path) -> None:
    ensemble.fit(make_config(constant("a", 0.25, 3)), make_rows(24), WINDOW, tmp_path / "t")
    assert "parts_for_tests" not in (tmp_path / "t" / "teacher.json").read_text()
    now = make_config(constant("a", 0.9, 5, target="Shouting"))
    assert ensemble.load(tmp_path / "t", now).predict_proba(make_rows(1)).tolist() == [[0, 1]]


def test_a_part_that_the_agent_file_does_not_name_is_refused(tmp_path: Path) -> None:
    ensemble.fit(make_config(constant("a", 0.2), constant("b", 0.4)), make_rows(24), WINDOW, tmp_path / "t")
    with pytest.raises(PartError, match=r"part 'b' that agents/toy\.yaml does not name; it names \['a', 'c'\]"):
        ensemble.load(tmp_path / "t", make_config(constant("a", 0.2), constant("c", 0.4)))
    stored = json.loads((tmp_path / "t" / "teacher.json").read_text())
    assert [part["name"] for part in stored["parts"]] == ["a", "b"]


# --------------------------------------------------------------------------- cross-fitting


@pytest.fixture
def fitted() -> list[set[str]]:
    """What each fit of :class:`Memory` in this test has seen."""
    Memory.fitted.clear()
    return Memory.fitted


def test_a_teacher_that_remembers_everything_cannot_show_it(fitted: list[set[str]]) -> None:
    rows, heard = make_rows(24), list[str]()
    said = ensemble.cross_fit(make_config(MEMORY), rows, heard.append)["memory"]
    np.testing.assert_array_equal(said, np.full((24, 2), 0.5))
    assert heard == [f"teacher, block {i} of 4" for i in (1, 2, 3, 4)]
    memory = Memory()
    memory.fit(rows, rows["outcome"].to_numpy())
    assert (memory.predict_proba(rows).max(axis=1) == 1).all()


def test_each_block_of_time_is_left_out_once(fitted: list[set[str]]) -> None:
    rows = make_rows(10)
    ensemble.cross_fit(make_config(MEMORY, folds=3), rows.sample(10, random_state=1))
    in_time = rows["observation_id"].tolist()
    left_out = [set(in_time) - seen for seen in fitted]
    assert left_out == [set(in_time[:4]), set(in_time[4:7]), set(in_time[7:])]


def test_only_what_is_wanted_is_said_and_blocks_without_any_are_not_fitted_for(fitted: list[set[str]]) -> None:
    rows = make_rows(12)
    wanted = np.isin(np.arange(12), [0, 2, 11])
    said = ensemble.cross_fit(make_config(MEMORY, folds=3), rows, wanted=wanted)["memory"]
    assert (~np.isnan(said[:, 0])).tolist() == wanted.tolist()
    assert len(fitted) == 2


# --------------------------------------------------------------------------- nested


def nested(name: str, *members: dict[str, Any], weight: float = 1.0) -> dict[str, Any]:
    members = tuple({"kind": "python"} | member for member in members)
    return {"kind": "ensemble", "name": name, "weight": weight, "members": list(members)}


def test_a_nested_mean_by_hand(tmp_path: Path) -> None:
    """(3 · (1 · 0.2 + 3 · 0.6) / 4 + 1 · 0.9) / 4 = 0.6"""
    inner = nested("inner", constant("a", 0.2, 1), constant("b", 0.6, 3), weight=3)
    config = make_config(inner, constant("a", 0.9, 1))
    ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t")
    loaded = ensemble.load(tmp_path / "t", config)
    assert [(m.name, m.share) for m in loaded.members] == [("inner.a", 3 / 16), ("inner.b", 9 / 16), ("a", 1 / 4)]
    np.testing.assert_allclose(loaded.predict_proba(make_rows(2)), [[0.4, 0.6]] * 2)


def test_answers_come_in_the_order_of_the_rows(fitted: list[set[str]]) -> None:
    """What is known by heart about row i when its neighbours are labelled tells whose row it is."""
    config = make_config({"name": "share", "target": f"{__name__}:Share"}, folds=2)
    rows = make_rows(8).assign(outcome=[0, 0, 0, 0, 1, 1, 1, 0])
    shuffled = rows.sample(8, random_state=3)
    said = pd.DataFrame(ensemble.cross_fit(config, shuffled)["share"], index=shuffled.index).sort_index()
    assert said[1].tolist() == [0.75] * 4 + [0.0] * 4


class Share(Constant):
    """The share of outcome 1 among what it was fitted on."""

    def fit(self, rows: pd.DataFrame, outcomes: np.ndarray[Any, Any]) -> None:
        self.says = float(outcomes.mean())


# --------------------------------------------------------------------------- the encoder that a student begins with


def loaded(folder: Path, *teachers: dict[str, Any]) -> ensemble.Ensemble:
    config = make_config(*teachers)
    ensemble.fit(config, make_rows(24), WINDOW, folder)
    return ensemble.load(folder, config)


def test_the_weightiest_teacher_that_offers_an_encoder_gives_it(tmp_path: Path) -> None:
    teachers = [constant("a", 0.2, 9), constant("b", 0.5, 2, "Reader"), constant("c", 0.7, 3, "Reader")]
    found = loaded(tmp_path / "t", *teachers).text_encoder()
    assert found is not None and found.tokens == ["taxi"] and found.embeddings[0, 0] == 0.7
    assert loaded(tmp_path / "u", *teachers[:1]).text_encoder() is None


def test_a_module_may_offer_one(tmp_path: Path) -> None:
    module = {
        "kind": "module",
        "name": "m",
        "target": f"{PARTS}:reading_module",
        "columns": ["temp"],
        "answers": "logits",
    }
    found = loaded(tmp_path / "t", module).text_encoder()
    assert found is not None and found.tokens == ["bus"]


@pytest.mark.parametrize(
    ("says", "message"),
    [
        (1.0, "teachers.b: text_encoder fails: OSError: no such weights"),
        (0.0, "teachers.b: text_encoder gives a dict, not a stillhouse.parts.TextEncoderState"),
    ],
)
def test_an_encoder_that_is_none(tmp_path: Path, says: float, message: str) -> None:
    with pytest.raises(PartError, match=message):
        loaded(tmp_path / "t", constant("b", says, 1, "Reader")).text_encoder()


# --------------------------------------------------------------------------- weights that were learned


def weights_of(config: AgentConfig, said: Any, outcomes: Any) -> TeacherWeights:
    names = [unit.name for unit in weighted_teachers(config)]
    begun = weighing.begin(names, [unit.share for unit in weighted_teachers(config)], [], START)
    return weighing.learn(begun, np.asarray(said), outcomes, pd.DataFrame(index=range(len(outcomes))), START).weights


def test_learned_weights_make_another_version_of_the_same_members(tmp_path: Path) -> None:
    config = make_config(constant("a", 0.2), constant("b", 0.8))
    plain = ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t")
    before = ensemble.load(tmp_path / "t", config)
    weights = weights_of(config, [[[0.8, 0.2], [0.2, 0.8]]] * 30, [1] * 30)
    weighted = ensemble.reweigh(plain, weights, tmp_path / "other")
    after = ensemble.load(tmp_path / "other", config)

    assert weighted.version == after.version != plain.version
    assert ensemble.reference(tmp_path / "t").version == plain.version
    assert ensemble.kept_weights(tmp_path / "t") is None
    assert ensemble.kept_weights(tmp_path / "other") == weights == after.weights
    own = [after.own_version(member) for member in after.members]
    assert own == [before.own_version(member) for member in before.members] and len({*own, after.version}) == 3
    share = weighing.share_in(weights)
    assert share[1] > 0.8
    np.testing.assert_allclose(after.predict_proba(make_rows(3))[:, 1], 0.2 * share[0] + 0.8 * share[1])
    np.testing.assert_allclose(before.predict_proba(make_rows(3))[:, 1], 0.5)

    again = ensemble.reweigh(weighted, weights, tmp_path / "other")
    assert again.version == weighted.version
    assert not list(tmp_path.rglob("*.partial"))


def test_an_ensemble_with_fixed_weights_has_one_weight(tmp_path: Path) -> None:
    """`both` is one unit: 1 and 3 parts within it, whatever it counts for."""
    both = nested("both", constant("b", 0.4, 1), constant("c", 0.8, 3), weight=2) | {"weights": {"follow": "fixed"}}
    config = make_config(constant("a", 0.1, 1), both)
    assert [(unit.name, unit.share) for unit in weighted_teachers(config)] == [
        ("a", pytest.approx(1 / 3)),
        ("both", 2 / 3),
    ]
    assert (
        len(
            weighted_teachers(
                make_config(constant("a", 0.1, 1), nested("both", constant("b", 0.4), constant("c", 0.8)))
            )
        )
        == 3
    )
    plain = ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t")
    said = [[[0.9, 0.1], [0.3, 0.7]]] * 30
    weighted = ensemble.reweigh(plain, weights_of(config, said, [1] * 30), tmp_path / "t")
    loaded = ensemble.load(tmp_path / "t", config)
    assert (weighted.version, loaded.weights is not None) == (loaded.version, True)
    shares = loaded.shares(make_rows(2))[0]
    assert shares[2] / shares[1] == pytest.approx(3) and shares[0] < 0.1


def test_fixed_weights_leave_one_thing_to_weigh() -> None:
    config = make_config(constant("a", 0.2), constant("b", 0.8))
    fixed = config.model_copy(update={"weights": config.weights.model_copy(update={"follow": "fixed"})})
    assert len(weighted_teachers(config)) == 2 and len(weighted_teachers(fixed)) == 1
