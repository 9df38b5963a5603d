"""Write models as folders in MLflow's format. Signatures and requirements are given, so MLflow infers nothing."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stillhouse.errors import RegistryError
from stillhouse.version import __version__

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import nn

__all__ = [
    "NATIVE_FOLDER",
    "PAYLOAD_FOLDERS",
    "VariantWriter",
    "payload",
    "save_onnx",
    "save_student",
    "save_teacher",
    "save_variant",
]

# Folder with the payload among the files of a logged model; of a teacher and a variant it is its only subfolder.
PAYLOAD_FOLDERS = {"teacher": "data", "student": "data", "variant": "artifacts"}
# Folder next to a student's graph with its weights, columns and replay memory, which an update needs.
NATIVE_FOLDER = "native"


def payload(target: Path, role: str) -> str:
    """The folder with the payload of a logged model, as a path below ``target``."""
    if role == "student":
        return PAYLOAD_FOLDERS[role]
    (inner,) = (child.name for child in (target / PAYLOAD_FOLDERS[role]).iterdir() if child.is_dir())
    return f"{PAYLOAD_FOLDERS[role]}/{inner}"


def save_variant(folder: Path, input_example: pd.DataFrame, target: Path, model: Any) -> None:
    """Save a variant's folder as a model from code: ``model.py`` loads the folder's own ``variant.py``.

    :param model: the ``mlflow.models.Model`` that is written to ``MLmodel``.
    :raises RegistryError: if the example lacks columns of the manifest.
    """
    import mlflow.pyfunc

    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    names = [column["name"] for column in manifest["columns"]]
    if missing := [name for name in names if name not in input_example.columns]:
        raise RegistryError(f"the input example of variant {manifest['variant']!r} lacks the columns {missing}")
    with TemporaryDirectory() as staging:
        code = Path(shutil.copyfile(Path(__file__).with_name("pyfunc_variant.py"), Path(staging, "model.py")))
        mlflow.pyfunc.save_model(
            target,
            mlflow_model=model,
            python_model=code,
            artifacts={"variant": str(folder)},
            signature=_variant_signature(manifest),
            input_example=input_example[names].head(5),
            metadata={"columns": [{key: column[key] for key in ("name", "type")} for column in manifest["columns"]]},
            pip_requirements=_pinned("mlflow", "numpy", "pandas", "onnxruntime"),
        )


class VariantWriter:
    """Saves the variants of one student with the same result as :func:`save_variant`, but faster.

    MLflow writes the first variant. Later variants differ only in their artifacts and the description of these in
    ``MLmodel``; signature, input example, code and environment are copied from the first.

    :param input_example: raw rows with at least the columns of the manifests.
    """

    def __init__(self, input_example: pd.DataFrame) -> None:
        self._example = input_example
        self._templates: dict[str, _Template] = {}

    def save(self, folder: Path, target: Path, model: Any) -> None:
        """Save the variant in ``folder``; parameters as of :func:`save_variant`."""
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        key = json.dumps([manifest["columns"], manifest["actions"]])
        if key in self._templates:
            self._templates[key].save(folder, target, model)
        else:
            save_variant(folder, self._example, target, model)
            self._templates[key] = _Template(folder, target, model)


class _Template:
    """The files that MLflow wrote for one variant and that are the same for others."""

    def __init__(self, folder: Path, target: Path, model: Any) -> None:
        self._model = model
        self._other_bytes = model.model_size_bytes - _size(folder)
        artifacts = target / PAYLOAD_FOLDERS["variant"]
        self._shared_files = {
            file.relative_to(target): file.read_bytes()
            for file in target.rglob("*")
            if file.is_file() and not file.is_relative_to(artifacts) and file.name != "MLmodel"
        }

    def save(self, folder: Path, target: Path, model: Any) -> None:
        path = f"{PAYLOAD_FOLDERS['variant']}/{folder.name}"
        shutil.copytree(folder, target / path)
        for name, content in self._shared_files.items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
        model.flavors = copy.deepcopy(self._model.flavors)
        model.flavors["python_function"]["artifacts"] = {"variant": {"path": path, "uri": str(folder)}}
        model.signature = self._model.signature
        model.metadata = self._model.metadata
        model.saved_input_example_info = self._model.saved_input_example_info
        model.model_size_bytes = self._other_bytes + _size(folder)
        model.save(str(target / "MLmodel"))


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def save_student(
    module: nn.Module, example: np.ndarray[Any, Any], target: Path, model: Any, folder: Path | None = None
) -> None:
    """Save a torch module as an exported graph (``.pt2``), which loads without its class and without pickle.

    :param example: float32 ``[n, D]``, n ≥ 1.
    :param folder: files that an update needs, copied unchanged to :data:`NATIVE_FOLDER`.
    """
    import mlflow.pytorch
    import numpy as np
    import torch
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema, TensorSpec

    module = copy.deepcopy(module).eval().cpu()
    # The export treats a first dimension of 1 as a constant, so a single row is repeated.
    rows = np.ascontiguousarray(np.resize(example, (max(2, min(len(example), 5)), example.shape[1])), np.float32)
    with torch.no_grad():
        actions = module(torch.from_numpy(rows)).shape[1]
    dtype = np.dtype(np.float32)
    mlflow.pytorch.save_model(
        module,
        target,
        mlflow_model=model,
        signature=ModelSignature(
            Schema([TensorSpec(dtype, (-1, rows.shape[1]))]), Schema([TensorSpec(dtype, (-1, actions))])
        ),
        input_example=rows,
        pip_requirements=_pinned("mlflow", "numpy", "torch"),
        serialization_format="pt2",
    )
    if folder is not None:
        shutil.copytree(folder, target / NATIVE_FOLDER)


def save_onnx(folder: Path, example: Mapping[str, np.ndarray[Any, Any]], target: Path, model: Any) -> None:
    """Save a folder with ``model.onnx`` and ``manifest.json`` in MLflow's ONNX flavour, without running the model.

    :param example: arrays ``[n, …]`` by input of the graph; the first rows are stored.
    """
    import mlflow.onnx
    import onnx

    graph = onnx.load(folder / "model.onnx")
    mlflow.onnx.save_model(
        graph,
        target,
        mlflow_model=model,
        signature=_onnx_signature(graph),
        input_example={name: array[:5] for name, array in example.items()},
        pip_requirements=_pinned("mlflow", "numpy", "onnx", "onnxruntime"),
        onnx_execution_providers=["CPUExecutionProvider"],
        save_as_external_data=False,
    )
    for file in folder.iterdir():
        shutil.copyfile(file, target / file.name)  # the same bytes that the manifest's checksums were computed from


def save_teacher(folder: Path, target: Path, model: Any) -> None:
    """Save the output of a teacher's ``save``. The agent file, not the artifact, names the class that reads them."""
    import mlflow.pyfunc

    mlflow.pyfunc.save_model(
        target,
        mlflow_model=model,
        loader_module="stillhouse.teachers.pyfunc",
        data_path=str(folder),
        pip_requirements=[f"stillhouse=={__version__}", *_pinned("mlflow", "numpy", "pandas")],
    )


def _variant_signature(manifest: dict[str, Any]) -> Any:
    """The signature of a variant's output. Its input has none: the variant checks columns and types by itself.

    MLflow 3.17 has no suitable number type: for ``double`` its check refuses integers, nullable numbers and booleans,
    and for ``AnyType()`` its scoring server refuses every CSV.
    """
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, Schema

    probabilities = (ColSpec("float", f"p_{action}") for action in manifest["actions"])
    return ModelSignature(inputs=None, outputs=Schema([ColSpec("string", "action"), *probabilities]))


def _onnx_signature(model: Any) -> Any:
    """Inputs and outputs of a graph as tensors with any number of rows; None if one of them holds strings."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types.schema import Schema, TensorSpec
    from onnx import helper

    def spec(value: Any) -> TensorSpec:
        kind = value.type.tensor_type
        sizes = (-1, *(size.dim_value for size in kind.shape.dim[1:]))
        return TensorSpec(np.dtype(helper.tensor_dtype_to_np_dtype(kind.elem_type)), sizes, value.name)

    values = [*model.graph.input, *model.graph.output]
    if any(value.type.tensor_type.elem_type == helper.np_dtype_to_tensor_dtype(np.dtype(object)) for value in values):
        return None
    return ModelSignature(Schema(list(map(spec, model.graph.input))), Schema(list(map(spec, model.graph.output))))


def _pinned(*packages: str) -> list[str]:
    """Installed versions, without local parts such as ``+cpu``, which no package index has."""
    return [f"{package}=={version(package).partition('+')[0]}" for package in packages]
