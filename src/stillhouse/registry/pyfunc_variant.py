"""A variant as MLflow loads it. Copied into the model as ``model.py``; needs mlflow and what the variant needs."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel  # type: ignore[attr-defined]


class VariantModel(PythonModel):
    """Runs the folder's own ``variant.py``."""

    def load_context(self, context: Any) -> None:
        """Load ``variant.py``, ``model.onnx`` and ``manifest.json``; damaged files are refused."""
        folder = Path(context.artifacts["variant"])
        expected = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["sha256"]["variant.py"]
        if hashlib.sha256((folder / "variant.py").read_bytes()).hexdigest() != expected:
            raise ValueError(f"{folder / 'variant.py'} is damaged: its checksum differs from the manifest's")
        spec = importlib.util.spec_from_file_location("stillhouse_variant", folder / "variant.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self.variant = module.Variant(folder)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Raw rows to ``action`` and one ``p_<action>`` per action."""
        result: pd.DataFrame = self.variant.predict(model_input)
        return result


set_model(VariantModel())
