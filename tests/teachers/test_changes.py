"""Ready teachers that follow the time and the knowledge base, and the changes that a watch looks for."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest

from stillhouse.errors import PartError
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import TeacherChange
from stillhouse.teachers import ensemble
from tests.teachers.test_ensemble import WINDOW, constant_teacher, make_config, make_rows

NOW = WINDOW.end + timedelta(days=3)


class Dated:
    """Rules in dated versions: more rows move from the second on."""

    begins: ClassVar[datetime] = NOW + timedelta(days=7)
    bases: ClassVar[list[KnowledgeBase]] = []
    wrong: ClassVar[object] = None

    def __init__(self, moves: float = 0.2, training_end: str = "") -> None:
        self.moves, self.training_end = moves, training_end

    def at(self, now: datetime, training_end: datetime) -> object:
        return self.wrong or Dated(0.9 if now >= self.begins else self.moves, training_end.isoformat())

    def use_knowledge_base(self, base: KnowledgeBase) -> None:
        self.bases.append(base)

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        return np.tile([1 - self.moves, self.moves], (len(rows), 1))

    def save(self, folder: Path) -> None:
        (folder / "dated.json").write_text(json.dumps([self.moves, self.training_end]))

    @classmethod
    def load(cls, folder: Path) -> Dated:
        return cls(*json.loads((folder / "dated.json").read_text()))


def dated(**settings: Any) -> dict[str, Any]:
    return {"name": "dated", "target": f"{__name__}:Dated", "learns": False, "settings": settings}


def test_a_teacher_is_made_for_the_time_of_the_refresh_and_the_end_of_its_training_window(tmp_path: Path) -> None:
    config = make_config(dated())
    ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t", now=NOW)
    stored = json.loads((tmp_path / "t" / "dated" / "dated.json").read_text())
    assert stored == [0.2, WINDOW.end.isoformat()]
    later = ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "later", now=Dated.begins)
    assert later.version != ensemble.read_reference(tmp_path / "t").version
    assert ensemble.load(tmp_path / "later", config).ask(make_rows(1)).tolist() == [[pytest.approx(0.1), 0.9]]


def test_a_teacher_gets_the_knowledge_base_of_its_agent(tmp_path: Path) -> None:
    config = make_config(dated())
    ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t", now=NOW)
    Dated.bases.clear()
    ensemble.load(tmp_path / "t", config)
    (base,) = Dated.bases
    assert base.config == config


def test_a_change_is_found_when_the_teacher_would_be_made_otherwise(tmp_path: Path) -> None:
    config = make_config(dated(), constant_teacher("fitted", 0.4))
    ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t", now=NOW)
    assert ensemble.find_changes(tmp_path / "t", config, Dated.begins - timedelta(seconds=1)) == ()
    (change,) = ensemble.find_changes(tmp_path / "t", config, Dated.begins)
    newer = ensemble.fit(make_config(dated()), make_rows(24), WINDOW, tmp_path / "newer", now=Dated.begins)
    older = ensemble.fit(make_config(dated()), make_rows(24), WINDOW, tmp_path / "older", now=NOW)
    assert change == TeacherChange(teacher="dated", before=older.version, now=newer.version)


def test_teachers_of_an_earlier_stillhouse_have_no_moment(tmp_path: Path) -> None:
    config = make_config(dated())
    ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t", now=NOW)
    file = tmp_path / "t" / "teacher.json"
    description = json.loads(file.read_text())
    del description["moment"]
    file.write_text(json.dumps(description))
    assert len(ensemble.find_changes(tmp_path / "t", config, NOW)) == 1  # made for no time, it was never `at` one


def test_what_at_gives_must_be_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Dated, "wrong", "rules")
    with pytest.raises(PartError, match=r"at\(\) gives a str, not a teacher"):
        ensemble.fit(make_config(dated()), make_rows(24), WINDOW, tmp_path / "t", now=NOW)


def test_outcomes_that_a_teacher_overrules_are_named_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, rows = make_config(dated(), constant_teacher("fitted", 0.4)), make_rows(4)
    ensemble.fit(config, make_rows(24), WINDOW, tmp_path / "t", now=NOW)
    assert ensemble.load(tmp_path / "t", config).overrules(rows).tolist() == [False] * 4
    monkeypatch.setattr(Dated, "overrules", lambda self, rows: np.arange(len(rows)) < 2, raising=False)
    assert ensemble.load(tmp_path / "t", config).overrules(rows).tolist() == [True, True, False, False]
    monkeypatch.setattr(Dated, "overrules", lambda self, rows: 1)
    with pytest.raises(PartError, match=r"teachers.dated: overrules\(\) gives int64 \[\], not one bool"):
        ensemble.load(tmp_path / "t", config).overrules(rows)
