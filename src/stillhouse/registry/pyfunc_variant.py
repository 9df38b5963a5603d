"""Load a variant with MLflow. Copied into the model as ``model.py``; requires mlflow and the variant's packages."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel  # type: ignore[attr-defined]


class VariantModel(PythonModel):
    """Runs the folder's own ``variant.py``."""

    def load_context(self, context: Any) -> None:
        """Load the folder's code and model; every checksum is compared before any code is imported."""
        folder = Path(context.artifacts["variant"])
        for name, expected in json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["sha256"].items():
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != expected:
                raise ValueError(f"{folder / name} is damaged: its checksum differs from the manifest's")
        module = ModuleType("stillhouse_variant")
        module.__file__ = str(folder / "variant.py")
        exec(compile((folder / "variant.py").read_bytes(), module.__file__, "exec"), vars(module))  # ignores byte code
        self.variant = module.Variant(folder)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Raw rows to ``action`` and one column ``p_<action>`` per action."""
        result: pd.DataFrame = self.variant.predict(model_input)
        return result


set_model(VariantModel())
