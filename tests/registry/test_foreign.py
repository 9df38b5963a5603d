"""Foreign models in MLflow: teachers of kind ``mlflow``, and classifiers to compress."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.onnx
import mlflow.pytorch
import numpy as np
import onnx
import pandas as pd
import pytest
import torch
import yaml
from mlflow.models import Model, ModelSignature
from mlflow.types.schema import ColSpec, Schema

from stillhouse.config import home
from stillhouse.errors import PartError, RegistryError
from stillhouse.registry import Registry
from stillhouse.registry.experiment import open_experiment
from stillhouse.registry.foreign import ForeignModels
from tests.compress.foreign.test_target import graph


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
    predictions = ForeignModels().load("models:/flights/1")(rows)
    assert {"p_on_time", "p_late"} <= set(predictions.columns)
    assert np.allclose(predictions[["p_on_time", "p_late"]].sum(axis=1), 1, atol=1e-5)


def test_a_model_that_is_not_there(three: Registry) -> None:
    with pytest.raises(PartError, match=r"models:/flights/99 cannot be loaded from MLflow"):
        ForeignModels().load("models:/flights/99")


# --------------------------------------------------------------------------- classifiers to compress


def logged(folder: Path, name: str, save: Callable[[Path], None]) -> str:
    """Log a model's files as a foreign pipeline would; returns its address."""
    save(folder / name)
    experiment = open_experiment("theirs")
    model = experiment.client.create_logged_model(experiment.experiment_id, name)
    description = Model.load(str(folder / name))
    description.model_id = model.model_id
    description.save(str(folder / name / "MLmodel"))
    experiment.client.log_model_artifacts(model.model_id, str(folder / name))
    experiment.client.finalize_logged_model(model.model_id, "READY")
    return f"models:/{model.model_id}"


def test_a_student_is_fetched_by_any_address(three: Registry) -> None:
    three.client.set_registered_model_alias("flights-student", "champion", "2")
    classifier = ForeignModels().fetch_classifier("models:/flights-student@champion")
    assert (classifier.uri, classifier.name, classifier.file.name) == (
        "models:/flights-student/2",
        "flights-student",
        "model.pt2",
    )
    assert np.shape(classifier.example) == (2, 3)
    assert classifier.key.startswith("m-")
    by_id = ForeignModels().fetch_classifier(f"models:/{classifier.key}")
    assert (by_id.file, by_id.name) == (classifier.file, classifier.key)


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
    student_folder = ForeignModels().fetch_classifier("models:/flights-student/1").file.parent.parent

    def save(target: Path) -> None:
        shutil.copytree(student_folder, target)
        with zipfile.ZipFile(target / "data" / "model.pt2", "a") as archive:
            archive.writestr("model/data/constants/evil.pt", b"cos\nsystem\n(S'true'\ntR.")

    uri = logged(tmp_path, "evil", save)
    with pytest.raises(PartError, match=r"evil\.pt.* is not a pickle-free payload"):
        ForeignModels().fetch_classifier(uri)
    assert os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "true"


def test_what_is_no_model(three: Registry) -> None:
    for uri, message in (
        ("flights", "is no model's address"),
        ("models:/flights/99", "99"),
        ("runs:/abc/model", "abc"),
        ("models:/m-nobody", "m-nobody"),
    ):
        with pytest.raises(RegistryError, match=message):
            ForeignModels().fetch_classifier(uri)


# --------------------------------------------------------------------------- code of a model's author

SPY = "from pathlib import Path\nPath({proof!r}).write_text('ran')\n"
ROWS = pd.DataFrame({"wind": [1.0, 9.0], "hour": [3.0, 4.0], "share": [0.1, 0.9]})


def edit_flavors(folder: Path, **flavors: Any) -> None:
    """The model's description with these keys in its flavours."""
    described = yaml.safe_load((folder / "MLmodel").read_text())
    for flavor, keys in flavors.items():
        described["flavors"].setdefault(flavor, {}).update(keys)
    (folder / "MLmodel").write_text(yaml.safe_dump(described))


def add_code(student_folder: Path, proof: Path, target: Path) -> None:
    """A clean program, and beside it what MLflow's own loader would import."""
    shutil.copytree(student_folder, target)
    (target / "code").mkdir()
    (target / "code" / "innocent.py").write_text(SPY.format(proof=str(proof)))
    edit_flavors(target, pytorch={"code": "code"})


def add_pickle(student_folder: Path, proof: Path, target: Path) -> None:
    shutil.copytree(student_folder, target)
    (target / "data" / "model.pth").write_bytes(b"")
    (target / "data" / "pickle_module_info.txt").write_text("innocent")


def add_loader(student_folder: Path, proof: Path, target: Path) -> None:
    shutil.copytree(student_folder, target)
    edit_flavors(target, python_function={"loader_module": "innocent"})


@pytest.mark.parametrize(
    ("alter", "message"),
    [
        (add_code, r"pytorch\.code: code, code/innocent\.py"),
        (add_pickle, r"data/model\.pth"),
        (add_loader, r"loader_module: innocent"),
    ],
)
def test_models_that_bring_code_are_refused_and_run_nothing(
    three: Registry, tmp_path: Path, alter: Callable[[Path, Path, Path], None], message: str
) -> None:
    student_folder = ForeignModels().fetch_classifier("models:/flights-student/1").file.parent.parent
    uri = logged(tmp_path, "evil", lambda target: alter(student_folder, tmp_path / "proof", target))
    with pytest.raises(PartError, match=rf"brings code or pickles \(.*{message}"):
        ForeignModels().fetch_classifier(uri)
    with pytest.raises(PartError, match=rf"{message}.*trusts_code: true, digest: sha256:"):
        ForeignModels().load(uri)
    assert not (tmp_path / "proof").exists()


def save_from_code(proof: Path, target: Path) -> None:
    """A model from code, with whole numbers in its signature, as `infer_signature` makes them."""
    import mlflow.pyfunc

    code = target.parent / "theirs.py"
    code.write_text(SPY.format(proof=str(proof)) + MODEL)
    schema = Schema([ColSpec("double", "share"), ColSpec("long", "hour"), ColSpec("string", "note", required=False)])
    mlflow.pyfunc.save_model(
        target, python_model=str(code), signature=ModelSignature(schema), pip_requirements=["mlflow"]
    )


MODEL = """
import mlflow, numpy as np
class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        assert model_input["hour"].dtype == np.int64
        return np.column_stack([1 - model_input["share"], model_input["share"]])
mlflow.models.set_model(Model())
"""


def test_code_runs_only_where_it_is_trusted_and_pinned(three: Registry, tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    uri = logged(tmp_path, "coded", lambda target: save_from_code(proof, target))
    proof.unlink()  # saving runs it
    models = ForeignModels()
    with pytest.raises(PartError, match=r"trusts_code: true, digest: sha256:") as caught:
        models.load(uri)
    digest = re.search(r"sha256:[0-9a-f]{64}", str(caught.value))[0]  # type: ignore[index]
    for trust in ({"digest": digest}, {"trusts_code": True}):
        with pytest.raises(PartError, match="brings code or pickles"):
            models.load(uri, **trust)
    with pytest.raises(PartError, match=rf"is not what was trusted: the digest of its files is {digest}"):
        models.load(uri, digest="sha256:" + "0" * 64, trusts_code=True)
    assert not proof.exists()
    predict = models.load(uri, digest=digest, trusts_code=True)
    assert proof.exists()
    np.testing.assert_allclose(predict(ROWS), [[0.9, 0.1], [0.1, 0.9]])
    with pytest.raises(PartError, match=r"column hour as a whole number \(int64\), and it is missing in 1 of 2 rows"):
        predict(ROWS.assign(hour=[1.0, np.nan]))
    assert models.load(uri, digest=digest, trusts_code=True)(ROWS).shape == (2, 2)  # nothing was written beside it

    (cached,) = (home() / "models").glob(f"{uri.rpartition('/')[2]}-whole")
    (cached / "theirs.py").write_text("# another\n" + MODEL)
    with pytest.raises(PartError, match="is not what was trusted"):
        models.load(uri, digest=digest, trusts_code=True)


def test_a_graph_and_a_program_teach_without_trust(three: Registry, tmp_path: Path) -> None:
    model = onnx.load(graph(tmp_path / "graph.onnx", shape=("n", 6)))
    uri = logged(
        tmp_path, "graph", lambda target: mlflow.onnx.save_model(model, target, pip_requirements=["onnxruntime"])
    )
    rows = pd.DataFrame(np.random.default_rng(0).normal(size=(5, 6)), columns=list("abcdef"))
    predictions = ForeignModels().load(uri)(rows)
    assert predictions["p"].shape == (5, 3) and np.allclose(predictions["p"].sum(axis=1), 1, atol=1e-5)
    logits = ForeignModels().load("models:/flights-student/1")(ROWS)
    assert logits.shape == (2, 2) and logits.dtype == np.float32


def test_a_variant_is_read_by_code_of_this_package_alone(registry: Registry, tmp_path: Path) -> None:
    from tests.registry.conftest import Life

    Life(registry, tmp_path / "work").refresh("r1")
    models = ForeignModels()
    _, _, folder = models._fetch("models:/flights/1")
    for file in folder.rglob("*.py"):
        file.write_text(SPY.format(proof=str(tmp_path / "proof")))
    predictions = models.load("models:/flights/1")(ROWS.assign(origin=["EWR", "JFK"]))
    assert {"p_on_time", "p_late"} <= set(predictions.columns) and not (tmp_path / "proof").exists()


@pytest.mark.parametrize("data", ["../../secret.onnx", "/etc/hostname", "nowhere.onnx"])
def test_a_description_that_names_files_of_others(three: Registry, tmp_path: Path, data: str) -> None:
    def save(target: Path) -> None:
        graph(tmp_path / "secret.onnx")
        mlflow.onnx.save_model(onnx.load(tmp_path / "secret.onnx"), target, pip_requirements=["onnxruntime"])
        edit_flavors(target, onnx={"data": data})

    uri = logged(tmp_path, "away", save)
    with pytest.raises(PartError, match="is not among its files"):
        ForeignModels().fetch_classifier(uri)
