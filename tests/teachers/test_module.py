"""A torch module as a teacher: construction, weights, batches, and checks of its answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from stillhouse.errors import PartError
from stillhouse.records import TeacherRef
from stillhouse.teachers import ensemble
from tests.teachers.test_ensemble import WINDOW, make_config, make_rows

HERE = "tests.teachers.test_module"


class Scaled(nn.Module):
    """``[x, −x] · scale`` of one number x; never more than ``max_rows`` rows at once."""

    def __init__(self, max_rows: int = 9999) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.dropout = nn.Dropout(0.5)
        self.max_rows = max_rows

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert len(x) <= self.max_rows, "too many at once"
        return self.dropout(torch.cat([x, -x], dim=1) * self.scale)


class FixedOutput(nn.Module):
    def __init__(self, probs: list[float]) -> None:
        super().__init__()
        self.probs = probs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.probs).repeat(len(x), 1)


class WithFeatures(Scaled):
    def features(self, x: torch.Tensor) -> torch.Tensor:
        assert len(x) <= self.max_rows, "too many at once"
        return torch.cat([x, 2 * x, 3 * x], dim=1)


def not_a_module() -> int:
    return 3


def tenth(rows: pd.DataFrame) -> np.ndarray:
    return rows[["temp"]].to_numpy(dtype=np.float32) / 10


def teacher(target: str = "Scaled", **settings: Any) -> dict[str, Any]:
    plain = {"kind": "module", "name": "net", "target": f"{HERE}:{target}", "columns": ["temp"], "answers": "logits"}
    return {key: value for key, value in (plain | settings).items() if value is not None}


def fit_and_load(folder: Path, **settings: Any) -> tuple[TeacherRef, ensemble.Ensemble]:
    config = make_config(teacher(**settings))
    ref = ensemble.fit(config, make_rows(24), WINDOW, folder)
    return ref, ensemble.load(folder, config)


def test_module_predicts_from_columns_in_batches(tmp_path: Path) -> None:
    """softmax([x, −x]) gives 1 / (1 + e^{−2x}) to the first"""
    ref, loaded = fit_and_load(tmp_path / "t", settings={"max_rows": 4}, batch_size=4)
    probs = loaded.predict_proba(make_rows(10))
    np.testing.assert_allclose(probs[:, 0], 1 / (1 + np.exp(-2 * np.arange(10.0))), rtol=1e-6)
    assert probs.dtype == np.float64
    assert ref.fitted is None and loaded.fit_window is None
    assert loaded.ask(make_rows(2)).shape == (2, 2)  # nothing that it could have seen


def test_features_in_batches(tmp_path: Path) -> None:
    ref, loaded = fit_and_load(
        tmp_path / "t", target="WithFeatures", settings={"max_rows": 4}, batch_size=4, features=True
    )
    features = loaded.features(make_rows(10))
    assert features is not None and features.dtype == np.float32
    np.testing.assert_array_equal(features, np.arange(10.0)[:, None] * [1, 2, 3])
    assert ref.features == ref.version


def test_module_without_method_features_raises(tmp_path: Path) -> None:
    with pytest.raises(PartError, match=r"teachers.net.features: the Scaled that .* gives has no method `features"):
        fit_and_load(tmp_path / "t", features=True)


def test_weights_file_and_encode_function(tmp_path: Path) -> None:
    save_file({"scale": torch.tensor(3.0)}, tmp_path / "w.safetensors")
    settings = {"weights": str(tmp_path / "w.safetensors"), "columns": None, "encode": f"{HERE}:tenth"}
    ref, loaded = fit_and_load(tmp_path / "t", **settings)
    np.testing.assert_allclose(loaded.predict_proba(make_rows(3))[:, 0], 1 / (1 + np.exp(-0.6 * np.arange(3))), 1e-6)
    save_file({"scale": torch.tensor(2.0)}, tmp_path / "w.safetensors")
    assert fit_and_load(tmp_path / "t2", **settings)[0].version != ref.version
    with pytest.raises(PartError, match=r"teachers\.net: the section or the model has changed"):
        ensemble.load(tmp_path / "t", make_config(teacher(**settings)))


def test_version_ignores_settings_that_do_not_decide(tmp_path: Path) -> None:
    assert fit_and_load(tmp_path / "a")[0].version == fit_and_load(tmp_path / "b", weight=3)[0].version
    assert fit_and_load(tmp_path / "a")[0].version != fit_and_load(tmp_path / "c", settings={"max_rows": 5})[0].version


@pytest.mark.parametrize(
    ("probs", "answers", "message"),
    [
        ([0.4, 0.4], "probabilities", "are not probabilities"),
        ([float("nan"), 1.0], "probabilities", "are not probabilities"),
        ([float("nan"), 1.0], "logits", "are not probabilities"),
        ([float("inf"), 1.0], "logits", "are not probabilities"),
        ([0.2, 0.3, 0.5], "probabilities", r"shape \(3, 3\), not \(3, 2\)"),
    ],
)
def test_invalid_answer_raises(tmp_path: Path, probs: list[float], answers: str, message: str) -> None:
    loaded = fit_and_load(tmp_path / "t", target="FixedOutput", settings={"probs": probs}, answers=answers)[1]
    with pytest.raises(PartError, match=f"teacher 'net' answered with .*{message}"):
        loaded.predict_proba(make_rows(3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "not_a_module"}, "gives a int, not a torch.nn.Module"),
        ({"settings": {"least": 1}}, "cannot be made with settings {'least': 1}: TypeError"),
        ({"weights": "nowhere.safetensors"}, "nowhere.safetensors cannot be read"),
        ({"columns": None, "encode": f"{HERE}:untold"}, "has no 'untold'"),
    ],
)
def test_invalid_section_raises(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PartError, match=message) as caught:
        fit_and_load(tmp_path / "t", **settings)
    assert "agents/toy.yaml: teachers.net" in str(caught.value)


def test_weights_of_another_module_raise(tmp_path: Path) -> None:
    save_file({"bias": torch.tensor(3.0)}, tmp_path / "w.safetensors")
    with pytest.raises(PartError, match=r"teachers\.net\.weights: .* does not fit"):
        fit_and_load(tmp_path / "t", weights=str(tmp_path / "w.safetensors"))
    (tmp_path / "w.safetensors").write_bytes(b"no tensors")
    with pytest.raises(PartError, match=r"teachers\.net\.weights: .* does not fit"):
        fit_and_load(tmp_path / "t", weights=str(tmp_path / "w.safetensors"))


def test_failing_module_is_reported_with_its_name(tmp_path: Path) -> None:
    loaded = fit_and_load(tmp_path / "t", settings={"max_rows": 2})[1]
    with pytest.raises(PartError, match=r"teachers\.net: fails on 3 rows: AssertionError: too many at once"):
        loaded.predict_proba(make_rows(3))
