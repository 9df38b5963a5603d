"""Models that are data alone, read without MLflow: ONNX graphs, torch programs, and variants of agents."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from stillhouse.artifacts import checked_program, require_own_tensors
from stillhouse.errors import PartError
from stillhouse.registry.signatures import as_dtype

__all__ = [
    "CODE",
    "Predict",
    "agent_of",
    "inside",
    "onnx_file",
    "predictor",
    "program_file",
    "variant_folder",
    "what_it_brings",
]

Predict = Callable[[pd.DataFrame], Any]

CODE = frozenset(
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
"""Suffixes of files that hold Python, compiled code or pickles."""

_LOADERS = ("mlflow.onnx", "mlflow.pytorch")
_RUNS = ("code", "model_code_path", "python_model", "pickle_module_info")

Flavors = Mapping[str, Any]


def predictor(folder: Path, flavors: Flavors) -> Predict | None:
    """Rows to whatever the model gives; None unless it is data alone.

    :raises PartError: if it is damaged.
    """
    if (variant := variant_folder(folder, flavors)) is not None:
        return _variant(variant)  # by this stillhouse's own code: the Python beside it is left alone
    if what_it_brings(folder, flavors):
        return None
    if "onnx" in flavors:
        return _graph(onnx_file(folder, flavors))
    if "pytorch" in flavors:
        return _program(program_file(folder, flavors))
    return None


def what_it_brings(folder: Path, flavors: Flavors) -> str:
    """Code and pickles among a model's files, and what its description would run; empty where there is none."""
    found = []
    for name, flavor in flavors.items():
        if not isinstance(flavor, Mapping):
            continue
        found += [f"{name}.{key}: {flavor[key]}" for key in _RUNS if flavor.get(key)]
        loader = flavor.get("loader_module")
        if loader and loader not in _LOADERS:
            found.append(f"{name}.loader_module: {loader}")
    files = (file.relative_to(folder) for file in sorted(folder.rglob("*")) if file.is_file())
    found += [str(file) for file in files if file.suffix.lower() in CODE or file.name == "pickle_module_info.txt"]
    return ", ".join(found[:4]) + (f" and {len(found) - 4} more" if len(found) > 4 else "")


def onnx_file(folder: Path, flavors: Flavors) -> Path:
    """:raises PartError: if it is not there, or its tensors lie elsewhere."""
    file = inside(folder, flavors["onnx"].get("data"))
    require_own_tensors(file)
    return file


def program_file(folder: Path, flavors: Flavors) -> Path:
    """:raises PartError: if it is not there, or holds more than a graph and tensors."""
    file = inside(folder, f"{flavors['pytorch'].get('model_data')}/model.pt2")
    checked_program(file)
    return file


def variant_folder(folder: Path, flavors: Flavors) -> Path | None:
    """Where a variant of an agent lies among the model's files."""
    artifacts = flavors.get("python_function", {}).get("artifacts")
    variant = artifacts.get("variant") if isinstance(artifacts, Mapping) else None
    if not isinstance(variant, Mapping):
        return None
    manifest = inside(folder, f"{variant.get('path')}/manifest.json")
    return manifest.parent


def agent_of(variant: Path) -> str:
    """The agent that a variant belongs to."""
    try:
        return str(json.loads((variant / "manifest.json").read_text(encoding="utf-8"))["agent"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PartError(f"the manifest of the variant cannot be read: {type(error).__name__}: {error}") from error


def inside(folder: Path, name: object) -> Path:
    """A file of the model, wherever its description says that it is.

    :raises PartError: if that is not among its files.
    """
    file = folder / str(name)
    if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
        raise PartError(f"the model's MLmodel names {str(name)!r}, which is not among its files: log it again")
    return file


# --------------------------------------------------------------------------- the three kinds


def _variant(folder: Path) -> Predict:
    from stillhouse.variant import Variant

    predict: Predict = Variant(folder).predict
    return predict


def _graph(file: Path) -> Predict:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    inputs = session.get_inputs()

    def predict(given: Any) -> Any:
        feed = _feed(given, [(each.name, _DTYPES.get(each.type), len(each.shape)) for each in inputs])
        answers = session.run(None, feed)
        return dict(zip((each.name for each in session.get_outputs()), answers, strict=True))

    return predict


def _program(file: Path) -> Predict:
    import torch

    program = torch.export.load(checked_program(file))
    module = program.module(check_guards=False)
    values = [node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"]
    names = program.graph_signature.user_inputs
    values = values[-len(names) :] if names else []

    def predict(given: Any) -> Any:
        inputs = [
            (str(name), np.dtype(str(value.dtype).removeprefix("torch.")), value.ndim)
            for name, value in zip(names, values, strict=True)
        ]
        feed = _feed(given, inputs)
        with torch.no_grad():
            answers = module(*(torch.from_numpy(np.ascontiguousarray(array)) for array in feed.values()))
        return answers.numpy() if isinstance(answers, torch.Tensor) else [each.numpy() for each in answers]

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


def _feed(given: Any, inputs: Sequence[tuple[str, Any, int]]) -> dict[str, Any]:
    """Arrays by the model's inputs: one of all columns, or a column for each."""
    if strange := [name for name, dtype, _ in inputs if dtype is None]:
        raise PartError(f"the model's inputs {', '.join(strange)} are of a type that no column can be")
    if isinstance(given, np.ndarray):
        given = {inputs[0][0]: given}
    if isinstance(given, dict):
        if lacking := [name for name, _, _ in inputs if name not in given]:
            raise PartError(f"the model's inputs {', '.join(lacking)} are not in its signature: log it again")
        return {name: np.asarray(given[name], dtype=dtype) for name, dtype, _ in inputs}
    if len(inputs) == 1 and inputs[0][0] not in given:
        name, dtype, rank = inputs[0]
        array = np.column_stack([as_dtype(given[column], dtype) for column in given])
        return {name: array if rank != 1 else array[:, 0]}
    if lacking := [name for name, _, _ in inputs if name not in given]:
        raise PartError(f"the model reads {', '.join(lacking)}, which is not among the columns that it is given")
    return {name: as_dtype(given[name], dtype).reshape(len(given), *([1] * (rank - 1))) for name, dtype, rank in inputs}
