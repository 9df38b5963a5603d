"""A label that the teacher overrules teaches nothing; the row keeps its teacher probabilities."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd

from stillhouse.config import fit_defaults
from stillhouse.distill.students import columns_of
from stillhouse.knowledge import KnowledgeBase
from stillhouse.records import TeacherRef
from stillhouse.refreshing.data import RefreshData
from stillhouse.teachers.answers import wrap_predict
from stillhouse.teachers.ensemble import Ensemble, Member
from tests.agents import agent_config

START = datetime(2024, 1, 1, tzinfo=UTC)
CONFIG = agent_config(
    observations={"columns": {"temp": {"type": "number"}}},
    teachers=[
        {
            "kind": "python",
            "name": "rules",
            "target": "toy:Rules",
            "learns": False,
        }
    ],
)


class Rules:
    """Its rules changed on the sixth day: what was decided before teaches nothing."""

    def overrules(self, rows: pd.DataFrame) -> np.ndarray:
        return (rows["observed_at"] < START + timedelta(days=5)).to_numpy()


def test_overruled_labels_are_not_trained_on(tmp_path: Path) -> None:
    base, days = KnowledgeBase(CONFIG, tmp_path), np.arange(10)
    at = [START + timedelta(days=int(day)) for day in days]
    rows = pd.DataFrame({"observation_id": [f"o{day}" for day in days], "observed_at": at, "temp": days * 1.0})
    base.append_observations(rows, batch="a")
    base.append_outcomes(rows.assign(known_at=rows["observed_at"], action="move"), batch="a")
    answer = wrap_predict("rules", CONFIG.actions, lambda rows: [[0.8, 0.2]] * len(rows))
    teacher = Ensemble(CONFIG, [Member("rules", 1.0, answer, "v1", user_object=Rules)], None, "v1")
    window = base.window("train", START, START + timedelta(days=10))
    stored = base.read_observations(window)
    base.answers.append(stored.iloc[[0, 1, 8]], teacher.predict_proba(stored.iloc[[0, 1, 8]]), teacher="v1")

    reference = TeacherRef(version="v1", folder=str(tmp_path), fitted=None, bytes=0)
    now = START + timedelta(days=20)
    for load_teacher, labelled in ((None, 10), (lambda reference: teacher, 5)):
        data = RefreshData(base, window, now, load_teacher=load_teacher)
        data.__dict__["distillation"] = fit_defaults(CONFIG.distillation, 10)  # no validation block
        training = data.read_training_rows(window)
        training.__dict__["is_validation"] = np.zeros(10, dtype=bool)
        learned = training.make_training_set(reference, columns_of(CONFIG, training.frame), synthetic=False)
        assert int(learned.has_label.sum()) == labelled
        assert int(learned.has_teacher_probs.sum()) == 3
        assert len(training.labelled) == 10  # models are proved on all labels
        assert len(learned.has_label) == (10 if labelled == 10 else 7)  # three rows have nothing left to teach
