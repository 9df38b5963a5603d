"""Python teachers that are not fitted: saved, loaded, and identified by their fingerprint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from stillhouse.errors import PartError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.teachers import ensemble, labeling, persistence
from stillhouse.teachers.cross_fitting import cross_fit
from tests.teachers.test_ensemble import MEMORY, WINDOW, constant_teacher, make_config, make_rows
from tests.teachers.test_labeling import TRAIN, refresh_budget, store_observations
from tests.teachers.toy_teachers import Memory


class Rules:
    """Prefers the second action from a temperature on. It has ``predict_proba`` and no other method."""

    calls: ClassVar[list[int]] = []

    def __init__(self, warm: float = 2.0, sure: float = 0.8) -> None:
        self.warm = warm
        self.sure = sure

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        self.calls.append(len(rows))
        move = np.where(rows["temp"] >= self.warm, self.sure, 1 - self.sure)
        return np.stack([1 - move, move], axis=1)


class Saved(Rules):
    """Is loaded from its file; a new object would answer otherwise."""

    warm_offset: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__(warm=2.0 + Saved.warm_offset)

    def save(self, folder: Path) -> None:
        (folder / "rules.json").write_text(json.dumps(self.warm))

    @classmethod
    def load(cls, folder: Path) -> Saved:
        stored = cls()
        stored.warm = json.loads((folder / "rules.json").read_text())
        return stored


class WithFingerprint(Rules):
    """Has a method ``fingerprint``."""

    sign: ClassVar[object] = "first"

    def fingerprint(self) -> object:
        return self.sign


class WithFeatures(Rules):
    """Gives features, ``width`` numbers per row, or an invalid form of them."""

    def __init__(self, width: int = 2, wrong: str = "") -> None:
        super().__init__()
        self.width = width
        self.wrong = wrong

    def features(self, rows: pd.DataFrame) -> Any:
        inside = np.tile(rows[["temp"]].to_numpy(), (1, self.width))
        return {
            "": inside,
            "flat": inside[:, 0],
            "short": inside[1:],
            "none": inside[:, :0],
            "nan": inside * np.nan,
            "text": inside.astype(str).astype(object) + "!",
        }[self.wrong]


class WithBytesElsewhere(Rules):
    bytes_elsewhere = 5_000_000


class SaveWithoutLoad(Rules):
    def save(self, folder: Path) -> None:
        pass


def rules(target: str = "Rules", **settings: Any) -> dict[str, Any]:
    return {"name": "rules", "target": f"{__name__}:{target}", "learns": False, "settings": settings}


def test_ready_teacher_is_constructed_and_never_fitted(tmp_path: Path) -> None:
    config = make_config(rules(warm=3))
    ref = ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t")
    assert ref.fitted is None
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["teacher.json"]
    loaded = ensemble.load(tmp_path / "t", config)
    np.testing.assert_allclose(
        loaded.ask(make_rows(5))[:, 1], [0.2, 0.2, 0.2, 0.8, 0.8]
    )  # in the window of the fit: allowed, as nothing was fitted
    assert loaded.version == loaded.members[0].version == ref.version
    assert cross_fit(config, make_rows(24)) == {}


def test_saved_ready_teacher_is_loaded_from_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(rules("Saved"))
    first = ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "first").version
    monkeypatch.setattr(Saved, "warm_offset", 1)
    loaded = ensemble.load(tmp_path / "first", config)
    np.testing.assert_allclose(loaded.predict_proba(make_rows(4))[:, 1], [0.2, 0.2, 0.8, 0.8])
    assert ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "second").version != first
    (tmp_path / "first" / "rules" / "rules.json").write_text("7.0")
    with pytest.raises(PartError, match=r"teachers.rules: the section or the model has changed.*teacher=fit"):
        ensemble.load(tmp_path / "first", config)
    (tmp_path / "first" / "rules" / "rules.json").unlink()
    with pytest.raises(
        PartError, match=r"teachers.rules: loading it from .* fails: FileNotFoundError: .*\(.*line \d+\)"
    ):
        ensemble.load(tmp_path / "first", config)


def test_bytes_elsewhere_count_in_the_size(tmp_path: Path) -> None:
    small = ensemble.fit(make_config(rules()), make_rows(24), WINDOW, tmp_path / "small").bytes
    large = ensemble.fit(make_config(rules("WithBytesElsewhere")), make_rows(24), WINDOW, tmp_path / "large").bytes
    assert 5_000_000 <= large - small < 5_000_100


def test_version_follows_settings_files_and_fingerprint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(teacher: dict[str, Any]) -> str:
        return ensemble.fit(make_config(teacher), make_rows(24), WINDOW, tmp_path / "t").version

    plain = version(rules())
    assert version(rules()) == plain
    assert version(rules() | {"name": "others", "weight": 3}) == plain
    signed = version(rules("WithFingerprint"))
    monkeypatch.setattr(WithFingerprint, "sign", "second")
    assert len({plain, version(rules(warm=3)), signed, version(rules("WithFingerprint")), version(rules("Saved"))}) == 5


def test_changed_source_is_rejected_on_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(rules())
    ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t")
    monkeypatch.setattr("inspect.getsource", lambda module: "other rules")
    with pytest.raises(PartError, match="the section or the model has changed"):
        ensemble.load(tmp_path / "t", config)


@pytest.mark.parametrize("sign", ["", None, 7])
def test_invalid_fingerprint_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: object) -> None:
    monkeypatch.setattr(WithFingerprint, "sign", sign)
    with pytest.raises(PartError, match=r"teachers.rules: fingerprint\(\) gives .*; it must be a text"):
        ensemble.fit(make_config(rules("WithFingerprint")), make_rows(24), WINDOW, tmp_path / "t")


def test_class_without_source_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(module: object) -> str:
        raise OSError("could not get source code")

    monkeypatch.setattr("inspect.getsource", fails)
    with pytest.raises(PartError, match=r"^t: Rules has neither `fingerprint` nor `save`, and its source cannot be"):
        persistence.fingerprint(Rules(), None, "t")


def test_ready_teacher_needs_predict_proba_and_load(tmp_path: Path) -> None:
    mute = rules() | {"target": "tests.teachers.toy_teachers:WithoutPredict"}
    with pytest.raises(PartError, match=r"lacks the methods \['predict_proba'\] of stillhouse.parts.ReadyTeacher"):
        ensemble.fit(make_config(mute), make_rows(24), WINDOW, tmp_path / "t")
    with pytest.raises(PartError, match="has `save` but no `load`"):
        ensemble.fit(make_config(rules("SaveWithoutLoad")), make_rows(24), WINDOW, tmp_path / "t")


def test_switching_learns_is_rejected_on_load(tmp_path: Path) -> None:
    learns, does_not = constant_teacher("a", 0.5), constant_teacher("a", 0.5) | {"learns": False}
    for first, second in ((learns, does_not), (does_not, learns)):
        ensemble.fit(make_config(first), make_rows(24), WINDOW, tmp_path / "t")
        with pytest.raises(PartError, match=r"teachers.a.learns: is (True|False), but was not when this teacher"):
            ensemble.load(tmp_path / "t", make_config(second))


def test_ready_teacher_is_not_cross_fitted(tmp_path: Path) -> None:
    base = KnowledgeBase(make_config(MEMORY, rules()), tmp_path / "kb")
    rows = store_observations(base, 40)
    Memory.fit_ids.clear()
    Rules.calls.clear()
    ensemble.fit(base.config, rows, TRAIN, tmp_path / "t")
    teacher = ensemble.load(tmp_path / "t", base.config)
    probs = labeling.ask_cross_fitted(teacher, rows, refresh_budget(base))
    np.testing.assert_allclose(probs[:, 1], (0.5 + np.where(rows["temp"] >= 2, 0.8, 0.2)) / 2)
    assert (len(Memory.fit_ids), sum(Rules.calls)) == (1 + base.config.distillation.folds, 40)
    labeling.ask_cross_fitted(teacher, rows, refresh_budget(base))
    assert sum(Rules.calls) == 40
    stored = base.answers.probs(rows, str(teacher.members[1].version))
    np.testing.assert_allclose(stored[:, 1], np.where(rows["temp"] >= 2, 0.8, 0.2))


# --------------------------------------------------------------------------- features


def test_features_are_stored_with_answers(tmp_path: Path) -> None:
    base = KnowledgeBase(make_config(MEMORY, rules("WithFeatures", width=3) | {"features": True}), tmp_path / "kb")
    rows = store_observations(base, 40)
    ref = ensemble.fit(base.config, rows, TRAIN, tmp_path / "t")
    teacher = ensemble.load(tmp_path / "t", base.config)
    assert ref.features == teacher.members[1].version != ref.version
    labeling.ask_cross_fitted(teacher, rows, refresh_budget(base, max_teacher_calls=30))
    stored = base.answers.features(rows, str(ref.features))
    assert stored is not None
    answered = ~np.isnan(base.answers.probs(rows, str(ref.features))[:, 0])
    assert answered.sum() == 30
    np.testing.assert_array_equal(stored[answered], np.tile(rows.loc[answered, ["temp"]], (1, 3)))
    assert np.isnan(stored[~answered]).all()
    np.testing.assert_array_equal(teacher.features(rows.head(2)), np.tile(rows.head(2)[["temp"]], (1, 3)))


def test_features_need_the_setting(tmp_path: Path) -> None:
    base = KnowledgeBase(make_config(rules("WithFeatures")), tmp_path / "kb")
    rows = store_observations(base, 10)
    ref = ensemble.fit(base.config, rows, TRAIN, tmp_path / "t")
    teacher = ensemble.load(tmp_path / "t", base.config)
    labeling.ask(teacher, rows, refresh_budget(base))
    assert ref.features is None and teacher.features(rows) is None
    assert base.answers.features(rows, ref.version) is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("flat", r"of shape \(5,\), not \(5, D\)"),
        ("short", r"of shape \(4, 2\), not \(5, D\)"),
        ("none", r"of shape \(5, 0\)"),
        ("nan", "not finite"),
        ("text", "not numbers"),
    ],
)
def test_invalid_features_raise(tmp_path: Path, wrong: str, message: str) -> None:
    config = make_config(rules("WithFeatures", wrong=wrong) | {"features": True})
    ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t")
    with pytest.raises(PartError, match=f"teacher 'rules' gives features .*{message}"):
        ensemble.load(tmp_path / "t", config).ask(make_rows(5))


def test_which_teachers_may_give_features(tmp_path: Path) -> None:
    with pytest.raises(PartError, match=r"lacks the methods \['features'\]"):
        ensemble.fit(make_config(rules() | {"features": True}), make_rows(24), WINDOW, tmp_path / "t")
    with pytest.raises(ValueError, match="features: a teacher with `learns: true` has other features after each fit"):
        make_config(MEMORY | {"features": True})
    seeing = rules("WithFeatures") | {"features": True}
    with pytest.raises(
        ValueError,
        match=r"teachers: 'rules', 'more' have `features: true`, and a student can match the features of one",
    ):
        make_config(seeing, seeing | {"name": "more"})
