"""A teacher as MLflow loads it: ``mlflow.pyfunc.load_model("models:/<agent>-teacher@champion")``.

The artifact names its agent and its members. Which class reads a member's files comes from the reviewed agent file
alone, so that no artifact can name Python code to import.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse import config

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from stillhouse.teachers.ensemble import Ensemble


class TeacherModel:
    """Raw rows to one column per action."""

    def __init__(self, ensemble: Ensemble) -> None:
        self.ensemble = ensemble

    def predict(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        """Raw rows to float64 ``[n, K]`` whose rows sum to 1."""
        return self.ensemble.predict_proba(rows)


def _load_pyfunc(path: str) -> TeacherModel:
    """The function that MLflow calls with the teacher's folder."""
    from stillhouse.teachers.ensemble import load

    folder = Path(path)
    description = json.loads((folder / "teacher.json").read_text(encoding="utf-8"))
    return TeacherModel(load(folder, config.load(description["agent"])))
