"""A deployed variant: raw rows in, one action per row out. Needs numpy, pandas and onnxruntime, nothing else.

This file is copied as it is into every variant's folder, beside ``model.onnx`` and ``manifest.json``, so that
the folder runs on a device that knows neither stillhouse nor torch::

    variant = Variant("path/of/folder")
    variant.predict(rows)          # DataFrame: action, p_<action> for each of the K actions

It must therefore import nothing of stillhouse.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

__all__ = ["InputError", "Variant", "encode"]


class InputError(ValueError):
    """The rows do not have the columns or types that the model needs."""


def encode(rows: pd.DataFrame, columns: Sequence[Mapping[str, Any]]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Raw rows as the float32 matrix ``[n, F + C]`` that a student reads.

    First the F numbers in their own units (missing: NaN), then the C categories as codes ``1…V`` by their
    position in ``values``, both read as text; 0 stands for missing and for values that the student never saw.
    Extra columns are ignored.

    :param columns: ``{"name", "type": "number" | "category", "values"?}``, numbers before categories.
    :raises InputError: naming the columns that are missing, not numeric, or infinite.
    """
    missing = [column["name"] for column in columns if column["name"] not in rows.columns]
    if missing:
        raise InputError(f"missing columns {missing}; the rows have {list(rows.columns)}")
    matrix = np.empty((len(rows), len(columns)), dtype=np.float32)
    for i, column in enumerate(columns):
        values = rows[column["name"]]
        if column["type"] == "number":
            if values.dtype.kind in "mMc":
                raise InputError(f"column {column['name']!r} must be numeric, not {values.dtype}")
            try:
                matrix[:, i] = pd.to_numeric(values).to_numpy(dtype=np.float64, na_value=np.nan)
            except (TypeError, ValueError) as error:
                raise InputError(f"column {column['name']!r} must be numeric: {error}") from error
            if np.isinf(matrix[:, i]).any():
                raise InputError(f"column {column['name']!r} holds infinite values; missing is NaN")
        else:
            if not pd.api.types.is_string_dtype(values):
                values = values.astype("string")
            codes = pd.Index(column["values"]).get_indexer(pd.Index(values.astype("object")))
            matrix[:, i] = codes + 1
    return matrix


class Variant:
    """One variant's folder, checked and loaded.

    :param folder: holds ``model.onnx`` and ``manifest.json``.
    :param threads: of ONNX Runtime; one is best for single rows.
    :raises ValueError: if the model is not the one that the manifest was written for.
    """

    def __init__(self, folder: str | Path, threads: int = 1) -> None:
        import onnxruntime

        folder = Path(folder)
        self.manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        model = (folder / "model.onnx").read_bytes()
        if hashlib.sha256(model).hexdigest() != self.manifest["sha256"]["model.onnx"]:
            raise ValueError(f"{folder / 'model.onnx'} is damaged: its checksum differs from the manifest's")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name
        self.actions: list[str] = list(self.manifest["actions"])
        self.columns: list[dict[str, Any]] = list(self.manifest["columns"])

    def probabilities(self, matrix: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Encoded rows, float32 ``[n, F + C]``, to float32 ``[n, K]`` whose rows sum to 1."""
        result: np.ndarray[Any, Any] = self._session.run(None, {self._input: matrix})[0]
        return result

    def predict_proba(self, rows: pd.DataFrame) -> np.ndarray[Any, Any]:
        """Raw rows to float32 ``[n, K]`` whose rows sum to 1.

        :raises InputError: see :func:`encode`.
        """
        if rows.empty:
            return np.empty((0, len(self.actions)), dtype=np.float32)
        return self.probabilities(encode(rows, self.columns))

    def predict(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Raw rows to their most probable ``action`` and one column ``p_<action>`` each, on the same index."""
        proba = self.predict_proba(rows)
        result = pd.DataFrame(proba, columns=[f"p_{action}" for action in self.actions], index=rows.index)
        result.insert(0, "action", np.asarray(self.actions, dtype=object)[proba.argmax(axis=1)])
        return result
