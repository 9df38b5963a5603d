"""Runs in every peer's environment: writes one file per setting, and a list of the files and errors."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["batches", "record", "score"]

Setting = tuple[str, Callable[[Path], dict[str, Any] | None]]


def record(folder: Path, peer: str, version: str, settings: Mapping[str, Setting], suffix: str = ".onnx") -> None:
    """Write every point of ``settings``; ``points.json`` is rewritten after each, so that a timeout keeps the others.

    :param settings: by point: a sentence with the documented source, and the function that writes the point's file and
        may return more fields of the point.
    :param suffix: ``.onnx``; or ``.npz`` for a peer that is measured in its own process and writes probabilities.
    """
    folder.mkdir(parents=True, exist_ok=True)
    points: list[dict[str, Any]] = []
    for point, (sentence, write_point) in settings.items():
        fields: dict[str, Any] = {"point": point, "peer": peer, "version": version, "setting": sentence}
        file = folder / f"{point}{suffix}"
        try:
            fields |= write_point(file) or {}
            fields["file" if suffix == ".onnx" else "probabilities"] = file.name
        except Exception as error:  # any error of a peer is a result
            traceback.print_exc()
            fields["error"] = f"{type(error).__name__}: {error}".strip()[:600]
        points.append(fields)
        (folder / "points.json").write_text(json.dumps(points, indent=1), encoding="utf-8")


def batches(rows: np.ndarray[Any, Any], size: int) -> list[dict[str, np.ndarray[Any, Any]]]:
    """Feeds of at most ``size`` rows each."""
    return [{"x": rows[start : start + size]} for start in range(0, len(rows), size)]


def score(probabilities: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    """AUC for two actions, accuracy for more."""
    if probabilities.shape[1] > 2:
        return float((probabilities.argmax(axis=1) == y).mean())
    positive, negative = probabilities[y == 1, 1], np.sort(probabilities[y == 0, 1])
    below, upto = np.searchsorted(negative, positive, "left"), np.searchsorted(negative, positive, "right")
    return float((below + upto).mean() / 2 / len(negative))
