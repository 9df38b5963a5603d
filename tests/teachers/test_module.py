"""A torch module as a teacher: made, given its weights, asked in batches, and held to its word."""

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
    """``[x, −x] · scale`` of one number x; never more than ``most`` rows at once."""

    def __init__(self, most: int = 9999) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.dropout = nn.Dropout(0.5)
        self.most = most

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert len(x) <= self.most, "too many at once"
        return self.dropout(torch.cat([x, -x], dim=1) * self.scale)


class Fixed(nn.Module):
    def __init__(self, said: list[float]) -> None:
        super().__init__()
        self.said = said

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self.said).repeat(len(x), 1)


class Seeing(Scaled):
    def features(self, x: torch.Tensor) -> torch.Tensor:
        assert len(x) <= self.most, "too many at once"
        return torch.cat([x, 2 * x, 3 * x], dim=1)


def not_a_module() -> int:
    return 3


def tenth(rows: pd.DataFrame) -> np.ndarray:
    return rows[["temp"]].to_numpy(dtype=np.float32) / 10


def teacher(target: str = "Scaled", **settings: Any) -> dict[str, Any]:
    plain = {"kind": "module", "name": "net", "target": f"{HERE}:{target}", "columns": ["temp"], "answers": "logits"}
    return {key: value for key, value in (plain | settings).items() if value is not None}


def fitted(folder: Path, **settings: Any) -> tuple[TeacherRef, ensemble.Ensemble]:
    config = make_config(teacher(**settings))
    ref = ensemble.fit(config, make_rows(24), WINDOW, folder)
    return ref, ensemble.load(folder, config)


def test_logits_of_its_columns_in_batches(tmp_path: Path) -> None:
    """softmax([x, −x]) gives 1 / (1 + e^{−2x}) to the first"""
    ref, loaded = fitted(tmp_path / "t", settings={"most": 4}, batch_size=4)
    said = loaded.predict_proba(make_rows(10))
    np.testing.assert_allclose(said[:, 0], 1 / (1 + np.exp(-2 * np.arange(10.0))), rtol=1e-6)
    assert said.dtype == np.float64
    assert ref.fitted is None and loaded.fitted is None
    assert loaded.ask(make_rows(2)).shape == (2, 2)  # nothing that it could have seen


def test_features_in_batches(tmp_path: Path) -> None:
    ref, loaded = fitted(tmp_path / "t", target="Seeing", settings={"most": 4}, batch_size=4, features=True)
    inside = loaded.features(make_rows(10))
    assert inside is not None and inside.dtype == np.float32
    np.testing.assert_array_equal(inside, np.arange(10.0)[:, None] * [1, 2, 3])
    assert ref.features == ref.version


def test_a_module_without_features(tmp_path: Path) -> None:
    with pytest.raises(PartError, match=r"teachers.net.features: the Scaled that .* gives has no method `features"):
        fitted(tmp_path / "t", features=True)


def test_weights_and_an_encoding_of_its_own(tmp_path: Path) -> None:
    save_file({"scale": torch.tensor(3.0)}, tmp_path / "w.safetensors")
    settings = {"weights": str(tmp_path / "w.safetensors"), "columns": None, "encode": f"{HERE}:tenth"}
    ref, loaded = fitted(tmp_path / "t", **settings)
    np.testing.assert_allclose(loaded.predict_proba(make_rows(3))[:, 0], 1 / (1 + np.exp(-0.6 * np.arange(3))), 1e-6)
    save_file({"scale": torch.tensor(2.0)}, tmp_path / "w.safetensors")
    assert fitted(tmp_path / "t2", **settings)[0].version != ref.version
    with pytest.raises(PartError, match=r"teachers\.net: is described otherwise than when this teacher was made"):
        ensemble.load(tmp_path / "t", make_config(teacher(**settings)))


def test_what_does_not_decide_leaves_the_version_alone(tmp_path: Path) -> None:
    assert fitted(tmp_path / "a")[0].version == fitted(tmp_path / "b", weight=3)[0].version
    assert fitted(tmp_path / "a")[0].version != fitted(tmp_path / "c", settings={"most": 5})[0].version


@pytest.mark.parametrize(
    ("said", "answers", "message"),
    [
        ([0.4, 0.4], "probabilities", "are not probabilities"),
        ([float("nan"), 1.0], "probabilities", "are not probabilities"),
        ([float("nan"), 1.0], "logits", "are not probabilities"),
        ([float("inf"), 1.0], "logits", "are not probabilities"),
        ([0.2, 0.3, 0.5], "probabilities", r"shape \(3, 3\), not \(3, 2\)"),
    ],
)
def test_an_answer_that_is_none(tmp_path: Path, said: list[float], answers: str, message: str) -> None:
    loaded = fitted(tmp_path / "t", target="Fixed", settings={"said": said}, answers=answers)[1]
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
def test_what_cannot_be_made(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PartError, match=message) as caught:
        fitted(tmp_path / "t", **settings)
    assert "agents/toy.yaml: teachers.net" in str(caught.value)


def test_weights_of_another_module(tmp_path: Path) -> None:
    save_file({"bias": torch.tensor(3.0)}, tmp_path / "w.safetensors")
    with pytest.raises(PartError, match=r"teachers\.net\.weights: .* does not fit"):
        fitted(tmp_path / "t", weights=str(tmp_path / "w.safetensors"))
    (tmp_path / "w.safetensors").write_bytes(b"no tensors")
    with pytest.raises(PartError, match=r"teachers\.net\.weights: .* does not fit"):
        fitted(tmp_path / "t", weights=str(tmp_path / "w.safetensors"))


def test_a_module_that_fails_says_where(tmp_path: Path) -> None:
    loaded = fitted(tmp_path / "t", settings={"most": 2})[1]
    with pytest.raises(PartError, match=r"teachers\.net: fails on 3 rows: AssertionError: too many at once"):
        loaded.predict_proba(make_rows(3))
