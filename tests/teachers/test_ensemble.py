"""Ensembles: weighted means, stored teachers, learned weights, and no answers in the fit window."""

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
from stillhouse.parts import TextEncoderState
from stillhouse.records import ModelRef, TeacherWeights, Window
from stillhouse.teachers import ensemble, mixture_weights
from stillhouse.teachers.answers import wrap_predict
from tests.agents import agent_config
from tests.teachers.toy_teachers import Constant, WithoutPredict

PARTS = "tests.teachers.toy_teachers"
START = datetime(2013, 1, 1, tzinfo=UTC)
WINDOW = Window(name="train", start=START, end=START + timedelta(hours=24), versions={"observations": 3})


def make_config(*teachers: dict[str, Any], folds: int = 4) -> AgentConfig:
    return agent_config(
        observations={"columns": {"temp": {"type": "number"}}},
        teachers=[{"kind": "python"} | teacher for teacher in teachers],
        distillation={"folds": folds},
    )


def constant_teacher(name: str, prob: float, weight: float = 1.0, target: str = "Constant") -> dict[str, Any]:
    return {"name": name, "target": f"{PARTS}:{target}", "weight": weight, "settings": {"prob": prob}}


MEMORY = {"name": "memory", "target": f"{PARTS}:Memory"}


def fixed_answer_teacher(answer: str) -> dict[str, Any]:
    return {"name": "fixed", "target": f"{PARTS}:FixedAnswer", "settings": {"answer": answer}}


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


def test_weighted_mean_matches_hand_computation(tmp_path: Path) -> None:
    """(3 · 0.2 + 1 · 0.6) / 4 = 0.3"""
    config = make_config(constant_teacher("a", 0.2, 3), constant_teacher("b", 0.6, 1))
    ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t")
    probs = ensemble.load(tmp_path / "t", config).predict_proba(make_rows(5))
    assert probs.dtype == np.float64
    np.testing.assert_allclose(probs, np.tile([0.7, 0.3], (5, 1)), rtol=1e-12)


def make_ensemble(teacher: Any, name: str = "x") -> ensemble.Ensemble:
    member = ensemble.Member(name, 1.0, wrap_predict(name, ("stay", "move"), teacher.predict_proba))
    return ensemble.Ensemble(make_config(MEMORY), [member], WINDOW, "v1")


def test_single_member_gives_its_own_answer() -> None:
    probs = make_ensemble(Constant(0.25)).predict_proba(make_rows(2))
    np.testing.assert_array_equal(probs, [[0.75, 0.25]] * 2)


def test_ask_rejects_rows_in_the_fit_window_by_count() -> None:
    teacher = make_ensemble(Constant())
    with pytest.raises(LeakageError, match=r"1 of 2 rows lie in train \[2013-01-01 .*'toy'.*cross-fitted"):
        teacher.ask(make_rows(2, START + timedelta(hours=23)))
    with pytest.raises(LeakageError, match="1 of 1 rows"):
        teacher.ask(make_rows(1, START))
    assert teacher.ask(make_rows(2, START + timedelta(hours=24))).shape == (2, 2)
    assert teacher.ask(make_rows(2, START - timedelta(hours=2))).shape == (2, 2)
    assert teacher.ask(make_rows(2).iloc[:0]).shape == (0, 2)


@pytest.mark.parametrize("answer", ["one column", "one row", "a vector"])
def test_answer_with_wrong_shape_raises(answer: str) -> None:
    teacher = make_ensemble(make_python_teacher(fixed_answer_teacher(answer)), "fixed")
    with pytest.raises(PartError, match=r"teacher 'fixed' answered with shape .*, not \(3, 2\)"):
        teacher.predict_proba(make_rows(3))


@pytest.mark.parametrize("answer", ["logits", "negative", "not normalised", "nan"])
def test_answer_that_is_no_distribution_raises(answer: str) -> None:
    teacher = make_ensemble(make_python_teacher(fixed_answer_teacher(answer)), "fixed")
    with pytest.raises(PartError, match="teacher 'fixed' answered with values that are not probabilities"):
        teacher.predict_proba(make_rows(3))


@pytest.mark.parametrize("answer", ["a list", "a frame", "float32"])
def test_answer_of_another_type_is_converted(answer: str) -> None:
    teacher = make_ensemble(make_python_teacher(fixed_answer_teacher(answer)), "fixed")
    probs = teacher.predict_proba(make_rows(3))
    assert probs.dtype == np.float64
    np.testing.assert_array_equal(probs, [[0.25, 0.75]] * 3)


# --------------------------------------------------------------------------- making


def make_python_teacher(teacher: dict[str, Any]) -> Any:
    config = make_config(teacher)
    return ensemble.make_teacher(config, config.teachers[0])


def test_teacher_is_constructed_with_its_settings() -> None:
    assert make_python_teacher(constant_teacher("a", 0.125)).prob == 0.125


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({"name": "t", "target": f"{PARTS}:WithoutPredict"}, r"lacks the methods \['predict_proba', 'load'\]"),
        ({"name": "t", "target": f"{PARTS}:not_a_class"}, "cannot be made with settings {}: TypeError"),
        (
            {"name": "t", "target": f"{PARTS}:Constant", "settings": {"prb": 1}},
            r"cannot be made with settings {'prb': 1}: TypeError: .*unexpected keyword argument 'prb'",
        ),
        (constant_teacher("t", 7), r"cannot be made with settings {'prob': 7}: ValueError: 7 is no probability"),
        ({"name": "t", "target": f"{PARTS}:Forest"}, r"has no 'Forest'; it has: Constant, AlwaysSecond, Memory"),
        ({"name": "t", "target": "no_such_module:Forest"}, "does not import"),
    ],
)
def test_invalid_teacher_raises_with_its_name(teacher: dict[str, Any], message: str) -> None:
    with pytest.raises(PartError, match=message) as caught:
        make_python_teacher(teacher)
    assert str(caught.value).startswith("agents/toy.yaml: teachers.t: ")
    assert not hasattr(WithoutPredict(), "load")


# --------------------------------------------------------------------------- fitting, keeping


def test_load_reads_what_fit_wrote(tmp_path: Path) -> None:
    config = make_config(MEMORY, constant_teacher("a", 0.5))
    ref = ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t")
    assert ref.folder == str(tmp_path / "t")
    assert ref.fitted == WINDOW
    assert ref.bytes == sum(file.stat().st_size for file in (tmp_path / "t").rglob("*") if file.is_file())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t"]
    teacher = ensemble.load(tmp_path / "t", config)
    assert teacher.fit_window == WINDOW
    assert teacher.version == ref.version
    probs = teacher.predict_proba(make_rows(24))
    np.testing.assert_allclose(probs[:2], [[0.75, 0.25], [0.25, 0.75]])
    model = ModelRef(name="toy-teacher", uri="models:/m-1")
    assert ensemble.read_reference(tmp_path / "t", model) == ref.model_copy(update={"model": model})


def test_version_depends_on_rows_settings_and_weights_only(tmp_path: Path) -> None:
    def version(*teachers: dict[str, Any], rows: int = 24, window: Window = WINDOW) -> str:
        return ensemble.fit(make_config(*teachers), make_rows(rows), window, tmp_path / "t").version

    reference = version(MEMORY, constant_teacher("a", 0.5))
    assert len(reference) == 12
    assert version(MEMORY, constant_teacher("a", 0.5)) == reference
    assert version(MEMORY, constant_teacher("a", 0.5), window=WINDOW.model_copy(update={"name": "x"})) == reference
    others = [
        version(MEMORY, constant_teacher("a", 0.5), rows=23),
        version(MEMORY, constant_teacher("a", 0.6)),
        version(MEMORY, constant_teacher("b", 0.5)),
        version(MEMORY, constant_teacher("a", 0.5, weight=2)),
        version(MEMORY, constant_teacher("a", 0.5, target="AlwaysSecond")),
        version(MEMORY),
    ]
    assert len({reference, *others}) == 7


def test_fit_removes_files_of_an_interrupted_fit(tmp_path: Path) -> None:
    config = make_config(constant_teacher("a", 0.5))
    clean = ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "clean")
    for leftover in ("t.partial/a", "t.partial/of-another", "t"):
        (tmp_path / leftover).mkdir(parents=True)
        (tmp_path / leftover / "prob.json").write_text("0.9")
        (tmp_path / leftover / "junk").write_text("half a fi")
    ref = ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t")
    assert (ref.version, ref.bytes) == (clean.version, clean.bytes)
    assert sorted(path.name for path in (tmp_path / "t").rglob("*")) == ["a", "prob.json", "teacher.json"]
    assert not (tmp_path / "t.partial").exists()


def test_agent_file_alone_decides_the_class_that_loads(tmp_path: Path) -> None:
    ensemble.fit(make_config(constant_teacher("a", 0.25, 3)), make_rows(24), WINDOW, tmp_path / "t")
    assert "toy_teachers" not in (tmp_path / "t" / "teacher.json").read_text()
    now = make_config(constant_teacher("a", 0.9, 5, target="AlwaysSecond"))
    assert ensemble.load(tmp_path / "t", now).predict_proba(make_rows(1)).tolist() == [[0, 1]]


def test_load_rejects_member_missing_from_agent_file(tmp_path: Path) -> None:
    ensemble.fit(
        make_config(constant_teacher("a", 0.2), constant_teacher("b", 0.4)), make_rows(24), WINDOW, tmp_path / "t"
    )
    with pytest.raises(PartError, match=r"part 'b' that agents/toy\.yaml does not name; it names \['a', 'c'\]"):
        ensemble.load(tmp_path / "t", make_config(constant_teacher("a", 0.2), constant_teacher("c", 0.4)))
    stored = json.loads((tmp_path / "t" / "teacher.json").read_text())
    assert [part["name"] for part in stored["parts"]] == ["a", "b"]


# --------------------------------------------------------------------------- nested ensembles


def nested_ensemble(name: str, *members: dict[str, Any], weight: float = 1.0) -> dict[str, Any]:
    members = tuple({"kind": "python"} | member for member in members)
    return {"kind": "ensemble", "name": name, "weight": weight, "members": list(members)}


def test_nested_mean_matches_hand_computation(tmp_path: Path) -> None:
    """(3 · (1 · 0.2 + 3 · 0.6) / 4 + 1 · 0.9) / 4 = 0.6"""
    inner = nested_ensemble("inner", constant_teacher("a", 0.2, 1), constant_teacher("b", 0.6, 3), weight=3)
    config = make_config(inner, constant_teacher("a", 0.9, 1))
    ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t")
    teacher = ensemble.load(tmp_path / "t", config)
    assert [(m.name, m.share) for m in teacher.members] == [("inner.a", 3 / 16), ("inner.b", 9 / 16), ("a", 1 / 4)]
    np.testing.assert_allclose(teacher.predict_proba(make_rows(2)), [[0.4, 0.6]] * 2)


# --------------------------------------------------------------------------- the encoder that a student begins with


def fit_and_load(folder: Path, *teachers: dict[str, Any]) -> ensemble.Ensemble:
    config = make_config(*teachers)
    ensemble.fit(config, make_rows(24), WINDOW, folder)
    return ensemble.load(folder, config)


def test_text_encoder_comes_from_the_largest_share(tmp_path: Path) -> None:
    teachers = [
        constant_teacher("a", 0.2, 9),
        constant_teacher("b", 0.5, 2, "WithTextEncoder"),
        constant_teacher("c", 0.7, 3, "WithTextEncoder"),
    ]
    encoder = fit_and_load(tmp_path / "t", *teachers).text_encoder()
    assert encoder is not None and encoder.tokens == ["taxi"] and encoder.embeddings[0, 0] == 0.7
    assert fit_and_load(tmp_path / "u", *teachers[:1]).text_encoder() is None


def test_module_teacher_may_offer_a_text_encoder(tmp_path: Path) -> None:
    module = {
        "kind": "module",
        "name": "m",
        "target": f"{PARTS}:make_module_with_encoder",
        "columns": ["temp"],
        "answers": "logits",
    }
    encoder = fit_and_load(tmp_path / "t", module).text_encoder()
    assert encoder is not None and encoder.tokens == ["bus"]


@pytest.mark.parametrize(
    ("says", "message"),
    [
        (1.0, "teachers.b: text_encoder fails: OSError: no such weights"),
        (0.0, f"teachers.b: text_encoder gives a dict, not a stillhouse.parts.{TextEncoderState.__name__}"),
    ],
)
def test_invalid_text_encoder_raises(tmp_path: Path, says: float, message: str) -> None:
    with pytest.raises(PartError, match=message):
        fit_and_load(tmp_path / "t", constant_teacher("b", says, 1, "WithTextEncoder")).text_encoder()


# --------------------------------------------------------------------------- weights that were learned


def weights_of(config: AgentConfig, probs: Any, outcomes: Any) -> TeacherWeights:
    names = [unit.name for unit in weighted_teachers(config)]
    weights_at_start = mixture_weights.start_weights(
        names, [unit.share for unit in weighted_teachers(config)], [], START
    )
    return mixture_weights.learn(
        weights_at_start, np.asarray(probs), outcomes, pd.DataFrame(index=range(len(outcomes))), START
    ).mixture


def test_reweigh_changes_the_version_and_keeps_the_members(tmp_path: Path) -> None:
    config = make_config(constant_teacher("a", 0.2), constant_teacher("b", 0.8))
    reference = ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t")
    before = ensemble.load(tmp_path / "t", config)
    mixture = weights_of(config, [[[0.8, 0.2], [0.2, 0.8]]] * 30, [1] * 30)
    weighted = ensemble.reweigh(reference, mixture, tmp_path / "other")
    after = ensemble.load(tmp_path / "other", config)

    assert weighted.version == after.version != reference.version
    assert ensemble.read_reference(tmp_path / "t").version == reference.version
    assert ensemble.read_weights(tmp_path / "t") is None
    assert ensemble.read_weights(tmp_path / "other") == mixture == after.mixture
    own = [after.member_version(member) for member in after.members]
    assert own == [before.member_version(member) for member in before.members] and len({*own, after.version}) == 3
    share = mixture_weights.slice_shares(mixture)
    assert share[1] > 0.8
    np.testing.assert_allclose(after.predict_proba(make_rows(3))[:, 1], 0.2 * share[0] + 0.8 * share[1])
    np.testing.assert_allclose(before.predict_proba(make_rows(3))[:, 1], 0.5)

    again = ensemble.reweigh(weighted, mixture, tmp_path / "other")
    assert again.version == weighted.version
    assert not list(tmp_path.rglob("*.partial"))


def test_ensemble_with_fixed_weights_has_one_learned_weight(tmp_path: Path) -> None:
    """`both` is one unit: 1 and 3 parts within it, whatever it counts for."""
    nested = nested_ensemble("both", constant_teacher("b", 0.4, 1), constant_teacher("c", 0.8, 3), weight=2) | {
        "weights": {"follow": "fixed"}
    }
    config = make_config(constant_teacher("a", 0.1, 1), nested)
    assert [(unit.name, unit.share) for unit in weighted_teachers(config)] == [
        ("a", pytest.approx(1 / 3)),
        ("both", 2 / 3),
    ]
    assert (
        len(
            weighted_teachers(
                make_config(
                    constant_teacher("a", 0.1, 1),
                    nested_ensemble("both", constant_teacher("b", 0.4), constant_teacher("c", 0.8)),
                )
            )
        )
        == 3
    )
    reference = ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t")
    probs = [[[0.9, 0.1], [0.3, 0.7]]] * 30
    weighted = ensemble.reweigh(reference, weights_of(config, probs, [1] * 30), tmp_path / "t")
    teacher = ensemble.load(tmp_path / "t", config)
    assert (weighted.version, teacher.mixture is not None) == (teacher.version, True)
    shares = teacher.member_shares(make_rows(2))[0]
    assert shares[2] / shares[1] == pytest.approx(3) and shares[0] < 0.1


def test_fixed_weights_leave_one_weighted_teacher() -> None:
    config = make_config(constant_teacher("a", 0.2), constant_teacher("b", 0.8))
    fixed = config.model_copy(update={"weights": config.weights.model_copy(update={"follow": "fixed"})})
    assert len(weighted_teachers(config)) == 2 and len(weighted_teachers(fixed)) == 1
