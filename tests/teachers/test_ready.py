"""Python teachers that do not learn: asked as they are, never fitted, and known by what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from stillhouse.errors import PartError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.teachers import asking, ensemble, ready
from tests.teachers.parts_for_tests import Memory
from tests.teachers.test_asking import TRAIN, account, observed
from tests.teachers.test_ensemble import MEMORY, WINDOW, constant, make_config, make_rows


class Rules:
    """Moves where it is warm. Has no method but the one that answers."""

    said: ClassVar[list[int]] = []

    def __init__(self, warm: float = 2.0, sure: float = 0.8) -> None:
        self.warm = warm
        self.sure = sure

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        self.said.append(len(rows))
        move = np.where(rows["temp"] >= self.warm, self.sure, 1 - self.sure)
        return np.stack([1 - move, move], axis=1)


class Kept(Rules):
    """Is read back from its file; would be another if it were made anew."""

    made: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__(warm=2.0 + Kept.made)

    def save(self, folder: Path) -> None:
        (folder / "rules.json").write_text(json.dumps(self.warm))

    @classmethod
    def load(cls, folder: Path) -> Kept:
        kept = cls()
        kept.warm = json.loads((folder / "rules.json").read_text())
        return kept


class Signed(Rules):
    """Says itself which it is."""

    sign: ClassVar[object] = "first"

    def fingerprint(self) -> object:
        return self.sign


class Seeing(Rules):
    """Shows what it makes of the rows inside, ``width`` numbers each, or something else."""

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


class Large(Rules):
    bytes_elsewhere = 5_000_000


class Unreadable(Rules):
    def save(self, folder: Path) -> None:
        pass


def rules(target: str = "Rules", **settings: Any) -> dict[str, Any]:
    return {"name": "rules", "target": f"{__name__}:{target}", "learns": False, "settings": settings}


def test_it_is_made_with_its_settings_and_never_fitted(tmp_path: Path) -> None:
    config = make_config(rules(warm=3))
    ref = ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t")
    assert ref.fitted is None
    assert sorted(path.name for path in (tmp_path / "t").iterdir()) == ["teacher.json"]
    loaded = ensemble.load(tmp_path / "t", config)
    np.testing.assert_allclose(loaded.ask(make_rows(5))[:, 1], [0.2, 0.2, 0.2, 0.8, 0.8])  # of the window, and unharmed
    assert loaded.version == loaded.members[0].version == ref.version
    assert ensemble.cross_fit(config, make_rows(24)) == {}


def test_what_can_be_saved_is_asked_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(rules("Kept"))
    first = ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "first").version
    monkeypatch.setattr(Kept, "made", 1)
    loaded = ensemble.load(tmp_path / "first", config)
    np.testing.assert_allclose(loaded.predict_proba(make_rows(4))[:, 1], [0.2, 0.2, 0.8, 0.8])
    assert ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "second").version != first
    (tmp_path / "first" / "rules" / "rules.json").write_text("7.0")
    with pytest.raises(PartError, match=r"teachers.rules: is described otherwise .* or is another now.*teacher=fit"):
        ensemble.load(tmp_path / "first", config)
    (tmp_path / "first" / "rules" / "rules.json").unlink()
    with pytest.raises(
        PartError, match=r"teachers.rules: loading it from .* fails: FileNotFoundError: .*\(.*line \d+\)"
    ):
        ensemble.load(tmp_path / "first", config)


def test_what_it_needs_and_does_not_save_counts(tmp_path: Path) -> None:
    small = ensemble.fit(make_config(rules()), make_rows(24), WINDOW, tmp_path / "small").bytes
    large = ensemble.fit(make_config(rules("Large")), make_rows(24), WINDOW, tmp_path / "large").bytes
    assert 5_000_000 <= large - small < 5_000_100


def test_its_version_changes_with_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(teacher: dict[str, Any]) -> str:
        return ensemble.fit(make_config(teacher), make_rows(24), WINDOW, tmp_path / "t").version

    plain = version(rules())
    assert version(rules()) == plain
    assert version(rules() | {"name": "others", "weight": 3}) == plain
    signed = version(rules("Signed"))
    monkeypatch.setattr(Signed, "sign", "second")
    assert len({plain, version(rules(warm=3)), signed, version(rules("Signed")), version(rules("Kept"))}) == 5


def test_rules_whose_code_has_changed_are_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(rules())
    ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t")
    monkeypatch.setattr("inspect.getsource", lambda module: "other rules")
    with pytest.raises(PartError, match="or is another now"):
        ensemble.load(tmp_path / "t", config)


@pytest.mark.parametrize("sign", ["", None, 7])
def test_a_fingerprint_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sign: object) -> None:
    monkeypatch.setattr(Signed, "sign", sign)
    with pytest.raises(PartError, match=r"teachers.rules: fingerprint\(\) gives .*; it must be a text"):
        ensemble.fit(make_config(rules("Signed")), make_rows(24), WINDOW, tmp_path / "t")


def test_a_class_without_source(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(module: object) -> str:
        raise OSError("could not get source code")

    monkeypatch.setattr("inspect.getsource", fails)
    with pytest.raises(PartError, match=r"^t: Rules has neither `fingerprint` nor `save`, and its source cannot be"):
        ready.fingerprint(Rules(), None, "t")


def test_it_must_be_able_to_answer_and_to_be_read_again(tmp_path: Path) -> None:
    mute = rules() | {"target": "tests.teachers.parts_for_tests:Mute"}
    with pytest.raises(PartError, match=r"lacks the methods \['predict_proba'\] of stillhouse.parts.ReadyTeacher"):
        ensemble.fit(make_config(mute), make_rows(24), WINDOW, tmp_path / "t")
    with pytest.raises(PartError, match="has `save` but no `load`"):
        ensemble.fit(make_config(rules("Unreadable")), make_rows(24), WINDOW, tmp_path / "t")


def test_what_had_learned_and_what_does_not_are_two_teachers(tmp_path: Path) -> None:
    learns, does_not = constant("a", 0.5), constant("a", 0.5) | {"learns": False}
    for one, other in ((learns, does_not), (does_not, learns)):
        ensemble.fit(make_config(one), make_rows(24), WINDOW, tmp_path / "t")
        with pytest.raises(PartError, match=r"teachers.a.learns: is (True|False), but was not when this teacher"):
            ensemble.load(tmp_path / "t", make_config(other))


def test_beside_one_that_learns_only_that_one_is_cross_fitted(tmp_path: Path) -> None:
    base = KnowledgeBase(make_config(MEMORY, rules()), tmp_path / "kb")
    rows = observed(base, 40)
    Memory.fitted.clear()
    Rules.said.clear()
    ensemble.fit(base.config, rows, TRAIN, tmp_path / "t")
    teacher = ensemble.load(tmp_path / "t", base.config)
    said = asking.cross_fitted(teacher, rows, account(base))
    np.testing.assert_allclose(said[:, 1], (0.5 + np.where(rows["temp"] >= 2, 0.8, 0.2)) / 2)
    assert (len(Memory.fitted), sum(Rules.said)) == (1 + base.config.distillation.folds, 40)
    asking.cross_fitted(teacher, rows, account(base))
    assert sum(Rules.said) == 40
    kept = base.answers.probs(rows, str(teacher.members[1].version))
    np.testing.assert_allclose(kept[:, 1], np.where(rows["temp"] >= 2, 0.8, 0.2))


# --------------------------------------------------------------------------- features


def test_its_features_are_kept_with_what_it_says(tmp_path: Path) -> None:
    base = KnowledgeBase(make_config(MEMORY, rules("Seeing", width=3) | {"features": True}), tmp_path / "kb")
    rows = observed(base, 40)
    ref = ensemble.fit(base.config, rows, TRAIN, tmp_path / "t")
    teacher = ensemble.load(tmp_path / "t", base.config)
    assert ref.features == teacher.members[1].version != ref.version
    asking.cross_fitted(teacher, rows, account(base, max_teacher_calls=30))
    kept = base.answers.features(rows, str(ref.features))
    assert kept is not None
    asked = ~np.isnan(base.answers.probs(rows, str(ref.features))[:, 0])
    assert asked.sum() == 30
    np.testing.assert_array_equal(kept[asked], np.tile(rows.loc[asked, ["temp"]], (1, 3)))
    assert np.isnan(kept[~asked]).all()
    np.testing.assert_array_equal(teacher.features(rows.head(2)), np.tile(rows.head(2)[["temp"]], (1, 3)))


def test_features_that_are_not_asked_for_are_not_kept(tmp_path: Path) -> None:
    base = KnowledgeBase(make_config(rules("Seeing")), tmp_path / "kb")
    rows = observed(base, 10)
    ref = ensemble.fit(base.config, rows, TRAIN, tmp_path / "t")
    teacher = ensemble.load(tmp_path / "t", base.config)
    asking.ask(teacher, rows, account(base))
    assert ref.features is None and teacher.features(rows) is None
    assert base.answers.features(rows, ref.version) is None


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("flat", r"of shape \(5,\), not \(5, D\)"),
        ("short", r"of shape \(4, 2\), not \(5, D\)"),
        ("none", r"of shape \(5, 0\)"),
        ("nan", "not finite"),
        ("text", "not numbers"),
    ],
)
def test_features_that_are_none(tmp_path: Path, wrong: str, said: str) -> None:
    config = make_config(rules("Seeing", wrong=wrong) | {"features": True})
    ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t")
    with pytest.raises(PartError, match=f"teacher 'rules' gives features .*{said}"):
        ensemble.load(tmp_path / "t", config).ask(make_rows(5))


def test_who_may_give_features(tmp_path: Path) -> None:
    with pytest.raises(PartError, match=r"lacks the methods \['features'\]"):
        ensemble.fit(make_config(rules() | {"features": True}), make_rows(24), WINDOW, tmp_path / "t")
    with pytest.raises(ValueError, match="features: a teacher with `learns: true` has other features after each fit"):
        make_config(MEMORY | {"features": True})
    seeing = rules("Seeing") | {"features": True}
    with pytest.raises(
        ValueError,
        match=r"teachers: 'rules', 'more' have `features: true`, and a student can match the features of one",
    ):
        make_config(seeing, seeing | {"name": "more"})
