"""Read models that hold data only, without MLflow: ONNX graphs, torch programs, and variants of agents."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.artifacts import require_own_tensors, sanitize_program
from stillhouse.errors import PartError
from stillhouse.registry.schemas import cast_column

__all__ = [
    "CODE_SUFFIXES",
    "Predict",
    "find_onnx",
    "find_program",
    "find_variant",
    "list_code",
    "load_predictor",
    "read_agent_name",
    "resolve_file",
]

Predict = Callable[[pd.DataFrame], Any]

CODE_SUFFIXES = frozenset(
    (
        ".py",
        ".pyc",
        ".pyo",
        ".pyd",
        ".so",
        ".dll",
        ".dylib",
        ".whl",
        ".jar",
        ".pkl",
        ".pickle",
        ".pth",
        ".pt",
        ".ckpt",
        ".joblib",
        ".dill",
        ".cloudpickle",
        ".skops",
        ".h5",
        ".keras",
    )
)
"""Suffixes of files that hold Python code, compiled code or pickles."""

_DATA_LOADERS = ("mlflow.onnx", "mlflow.pytorch")
_CODE_KEYS = ("code", "model_code_path", "python_model", "pickle_module_info")

Flavors = Mapping[str, Any]


def load_predictor(folder: Path, flavors: Flavors) -> Predict | None:
    """A function from rows to the model's output; None if the model brings code or has another format.

    :raises PartError: if a file of the model is damaged.
    """
    if (variant := find_variant(folder, flavors)) is not None:
        return _load_variant(variant)  # run by the installed stillhouse; the Python files in the folder are not used
    if list_code(folder, flavors):
        return None
    if "onnx" in flavors:
        return _load_onnx(find_onnx(folder, flavors))
    if "pytorch" in flavors:
        return _load_program(find_program(folder, flavors))
    return None


def list_code(folder: Path, flavors: Flavors) -> str:
    """Code and pickles among a model's files, and code that its description would run, as text; empty if none."""
    parts = []
    for name, flavor in flavors.items():
        if not isinstance(flavor, Mapping):
            continue
        parts += [f"{name}.{key}: {flavor[key]}" for key in _CODE_KEYS if flavor.get(key)]
        loader = flavor.get("loader_module")
        if loader and loader not in _DATA_LOADERS:
            parts.append(f"{name}.loader_module: {loader}")
    files = (file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file())
    parts += [
        str(file) for file in files if file.suffix.lower() in CODE_SUFFIXES or file.name == "pickle_module_info.txt"
    ]
    return ", ".join(parts[:4]) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")


def find_onnx(folder: Path, flavors: Flavors) -> Path:
    """The ONNX file of the model.

    :raises PartError: if it does not exist, or refers to tensors outside its folder.
    """
    file = resolve_file(folder, flavors["onnx"].get("data"))
    require_own_tensors(file)
    return file


def find_program(folder: Path, flavors: Flavors) -> Path:
    """The torch program of the model.

    :raises PartError: if it does not exist, or holds more than a graph and tensors.
    """
    file = resolve_file(folder, f"{flavors['pytorch'].get('model_data')}/model.pt2")
    sanitize_program(file)
    return file


def find_variant(folder: Path, flavors: Flavors) -> Path | None:
    """The folder of an agent's variant among the model's files; None if the model is no variant."""
    artifacts = flavors.get("python_function", {}).get("artifacts")
    variant = artifacts.get("variant") if isinstance(artifacts, Mapping) else None
    if not isinstance(variant, Mapping):
        return None
    manifest = resolve_file(folder, f"{variant.get('path')}/manifest.json")
    return manifest.parent


def read_agent_name(variant: Path) -> str:
    """The name of the agent that a variant belongs to.

    :raises PartError: if the manifest cannot be read.
    """
    try:
        return str(json.loads((variant / "manifest.json").read_text(encoding="utf-8"))["agent"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PartError(f"the manifest of the variant cannot be read: {type(error).__name__}: {error}") from error


def resolve_file(folder: Path, name: object) -> Path:
    """The path of a file that the model's description names.

    :raises PartError: if it is not among the model's files.
    """
    file = folder / str(name)
    if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
        raise PartError(f"the model's MLmodel names {str(name)!r}, which is not among its files: log it again")
    return file


# --------------------------------------------------------------------------- the three formats


def _load_variant(folder: Path) -> Predict:
    from stillhouse.variant import Variant

    predict: Predict = Variant(folder).predict
    return predict


def _load_onnx(file: Path) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()

    def predict(rows: Any) -> Any:
        feed = _feed(rows, [(spec.name, _DTYPES.get(spec.type), len(spec.shape)) for spec in inputs])
        outputs = session.run(None, feed)
        return dict(zip((spec.name for spec in session.get_outputs()), outputs, strict=True))

    return predict


def _load_program(file: Path) -> Predict:
    import torch

    program = torch.export.load(sanitize_program(file))
    module = program.module(check_guards=False)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    names = program.graph_signature.user_inputs
    values = values[-len(names) :] if names else []

    def predict(rows: Any) -> Any:
        inputs = [
            (str(name), np.dtype(str(value.dtype).removeprefix("torch.")), value.ndim)
            for name, value in zip(names, values, strict=True)
        ]
        feed = _feed(rows, inputs)
        with torch.no_grad():
            outputs = module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in feed.values()))
        return outputs.numpy() if isinstance(outputs, torch.Tensor) else [tensor.numpy() for tensor in outputs]

    return predict


_DTYPES = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(double)": np.dtype(np.float64),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(int32)": np.dtype(np.int32),
    "tensor(int16)": np.dtype(np.int16),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(bool)": np.dtype(bool),
    "tensor(string)": np.dtype(object),
}


def _feed(rows: Any, inputs: Sequence[tuple[str, Any, int]]) -> dict[str, Any]:
    """Arrays by input of the model: one array of all columns, or one array per column.

    :param rows: an array, arrays by input, or a table.
    :param inputs: name, dtype and rank of each input; dtype None: a type that no column has.
    """
    if unsupported := [name for name, dtype, _ in inputs if dtype is None]:
        raise PartError(f"the model's inputs {', '.join(unsupported)} are of a type that no column can be")
    if isinstance(rows, np.ndarray):
        rows = {inputs[0][0]: rows}
    if isinstance(rows, dict):
        if missing := [name for name, _, _ in inputs if name not in rows]:
            raise PartError(f"the model's inputs {', '.join(missing)} are not in its signature: log it again")
        return {name: np.asarray(rows[name], dtype=dtype) for name, dtype, _ in inputs}
    if len(inputs) == 1 and inputs[0][0] not in rows:
        name, dtype, rank = inputs[0]
        array = np.column_stack([cast_column(rows[column], dtype) for column in rows])
        return {name: array if rank != 1 else array[:, 0]}
    if missing := [name for name, _, _ in inputs if name not in rows]:
        raise PartError(f"the model reads {', '.join(missing)}, which is not among the columns that it is given")
    return {
        name: cast_column(rows[name], dtype).reshape(len(rows), *([1] * (rank - 1))) for name, dtype, rank in inputs
    }
