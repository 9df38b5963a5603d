"""Other people's models in MLflow: teachers of kind ``mlflow``, and classifiers to compress."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import mlflow.pytorch
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.models import Model

from stillhouse.errors import PartError, RegistryError
from stillhouse.registry import Registry
from stillhouse.registry.foreign import ForeignModels
from stillhouse.registry.runs import Runs


def test_an_alias_becomes_a_version(three: Registry) -> None:
    three.client.set_registered_model_alias("flights", "best", "2")
    models = ForeignModels()
    assert models.pin("models:/flights@best") == "models:/flights/2"
    for pinned in ("models:/flights/2", "models:/m-123", "runs:/abc/model"):
        assert models.pin(pinned) == pinned
    with pytest.raises(RegistryError, match="worst"):
        models.pin("models:/flights@worst")


def test_a_variant_of_another_agent_can_teach(registry: Registry, tmp_path: Path) -> None:
    from tests.registry.conftest import Life

    Life(registry, tmp_path / "work").refresh("r1")
    rows = pd.DataFrame({"wind": [1.0, 9.0], "hour": [3.0, 4.0], "origin": ["EWR", "JFK"]})
    said = ForeignModels().load("models:/flights/1")(rows)
    assert {"p_on_time", "p_late"} <= set(said.columns)
    assert np.allclose(said[["p_on_time", "p_late"]].sum(axis=1), 1, atol=1e-5)


def test_a_model_that_is_not_there(three: Registry) -> None:
    with pytest.raises(PartError, match=r"models:/flights/99 cannot be loaded from MLflow"):
        ForeignModels().load("models:/flights/99")


# --------------------------------------------------------------------------- classifiers to compress


def logged(folder: Path, name: str, save: Callable[[Path], None]) -> str:
    """A model's files, logged as somebody else's pipeline would; its address."""
    save(folder / name)
    models = Runs("theirs")
    model = models.client.create_logged_model(models.experiment_id, name)
    described = Model.load(str(folder / name))
    described.model_id = model.model_id
    described.save(str(folder / name / "MLmodel"))
    models.client.log_model_artifacts(model.model_id, str(folder / name))
    models.client.finalize_logged_model(model.model_id, "READY")
    return f"models:/{model.model_id}"


def test_a_student_is_fetched_by_any_address(three: Registry) -> None:
    three.client.set_registered_model_alias("flights-student", "champion", "2")
    found = ForeignModels().fetch_classifier("models:/flights-student@champion")
    assert (found.uri, found.name, found.file.name) == ("models:/flights-student/2", "flights-student", "model.pt2")
    assert np.shape(found.example) == (2, 3)
    assert found.key.startswith("m-")
    by_id = ForeignModels().fetch_classifier(f"models:/{found.key}")
    assert (by_id.file, by_id.name) == (found.file, found.key)


def test_a_variant_is_compressed_already(registry: Registry, tmp_path: Path) -> None:
    from tests.registry.conftest import Life

    Life(registry, tmp_path / "work").refresh("r1")
    with pytest.raises(PartError, match=r"compress its student, models:/flights-student@champion"):
        ForeignModels().fetch_classifier("models:/flights/1")
    with pytest.raises(PartError, match=r"models:/flights-teacher/1 has the flavours python_function, and only torch"):
        ForeignModels().fetch_classifier("models:/flights-teacher/1")


def test_a_pickled_torch_model_is_refused(registry: Registry, tmp_path: Path) -> None:
    def save(target: Path) -> None:
        mlflow.pytorch.save_model(
            torch.nn.Linear(3, 2), target, serialization_format="pickle", pip_requirements=["torch"]
        )

    uri = logged(tmp_path, "pickled", save)
    with pytest.raises(PartError, match=r"pickled torch model.*serialization_format='pt2'"):
        ForeignModels().fetch_classifier(uri)


def test_pickle_inside_a_program_is_not_read(three: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment allows."""
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "true")
    whole = ForeignModels().fetch_classifier("models:/flights-student/1").file.parent.parent

    def save(target: Path) -> None:
        shutil.copytree(whole, target)
        with zipfile.ZipFile(target / "data" / "model.pt2", "a") as archive:
            archive.writestr("model/data/constants/evil.pt", b"cos\nsystem\n(S'true'\ntR.")

    uri = logged(tmp_path, "evil", save)
    with pytest.raises(PartError, match=r"evil\.pt.* is not a pickle-free payload"):
        ForeignModels().fetch_classifier(uri)
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "true"


def test_what_is_no_model(three: Registry) -> None:
    for uri, said in (
        ("flights", "is no model's address"), ("models:/flights/99", "99"), ("runs:/abc/model", "abc"),
        ("models:/m-nobody", "m-nobody"),
    ):  # fmt: skip
        with pytest.raises(RegistryError, match=said):
            ForeignModels().fetch_classifier(uri)
