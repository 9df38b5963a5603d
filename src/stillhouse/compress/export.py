"""A torch student as a small ONNX file that provably gives the same probabilities."""

from __future__ import annotations

import copy
import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper
from torch import Tensor, nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]  # public, but not in __all__

from stillhouse.errors import ExportError

__all__ = ["INPUT", "OUTPUT", "TOLERANCE", "check_rows", "export_onnx", "probabilities", "run_onnx", "slim"]

Array = np.ndarray[Any, Any]

INPUT = "x"
OUTPUT = "probabilities"
TOLERANCE = 1e-4  # largest |p_onnx − p_torch| of an exported student; float32 arithmetic gives about 1e-7
_OPSET = 18
_TRACED_ROWS = 3


def export_onnx(student: nn.Module, example: Array, path: Path) -> None:
    """Write ``softmax(student(x))`` as ONNX: float32 ``x [batch, D]`` to float32 ``probabilities [batch, K]``.

    Nothing is written unless ONNX Runtime agrees with torch within :data:`TOLERANCE` on every example row, all
    at once and one alone. The student itself is left as it is.

    :param example: float32 ``[n, D]`` with n ≥ 1; rows as they occur, missing values (NaN) included.
    :raises ExportError: if the student cannot be expressed in ONNX, or the two disagree.
    """
    check_rows(example)
    model = slim(_trace(student, example)).SerializeToString()
    _verify(model, student, example)
    path.write_bytes(model)


def probabilities(student: nn.Module, rows: Array) -> Array:
    """``softmax(student(rows))`` in evaluation mode: float32 ``[n, D]`` to ``[n, K]``."""
    with torch.no_grad():
        result: Array = _Probabilities(student)(torch.from_numpy(rows)).numpy()
    return result


def run_onnx(model: bytes, rows: Array) -> Array:
    """The output of an ONNX model on float32 ``[n, D]``: float32 ``[n, K]``, computed on one CPU thread.

    :raises ExportError: if ONNX Runtime cannot load the model, or run it on these rows.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # what goes wrong is in the exception
    try:
        session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        result: Array = session.run([OUTPUT], {INPUT: rows})[0]
    except Exception as error:  # ONNX Runtime's errors have no base of their own
        raise ExportError(f"ONNX Runtime cannot run the model on {len(rows)} rows: {error}") from error
    return result


def slim(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same arithmetic in fewer bytes: no names, documentation or shapes that only tools read.

    Constants become initializers, equal initializers become one, and everything but the graph's inputs and
    outputs gets the shortest free name. In a model of 30 kB that is a tenth.
    """
    graph = model.graph
    names = {name: name for name in ("", *(value.name for value in (*graph.input, *graph.output)))}
    constants = [node for node in graph.node if _holds_tensor(node)]
    tensors: dict[bytes, onnx.TensorProto] = {}
    for name, tensor in [(t.name, t) for t in graph.initializer] + [(c.output[0], c.attribute[0].t) for c in constants]:
        nameless = _copy(tensor, name="", doc_string="")
        kept = tensors.setdefault(nameless.SerializeToString(), _copy(nameless, name=f"{len(names):x}"))
        names[name] = kept.name

    def short(name: str) -> str:
        return str(names.setdefault(name, f"{len(names):x}"))

    nodes = [
        onnx.NodeProto(
            op_type=node.op_type,
            domain=node.domain,
            input=[short(name) for name in node.input],
            output=[short(name) for name in node.output],
            attribute=node.attribute,
        )
        for node in graph.node
        if not _holds_tensor(node)
    ]
    domains = {node.domain for node in nodes}
    return helper.make_model(
        helper.make_graph(nodes, "student", graph.input, graph.output, list(tensors.values())),
        ir_version=model.ir_version,
        opset_imports=[opset for opset in model.opset_import if opset.domain in domains],
    )


def check_rows(rows: Array) -> None:
    """Refuse rows that no student reads.

    :raises ExportError: unless they are float32 ``[n, D]`` with n ≥ 1.
    """
    if rows.ndim != 2 or rows.shape[0] == 0 or rows.dtype != np.float32:
        raise ExportError(f"needs float32 rows [n, D] with n ≥ 1, got {rows.dtype} {list(rows.shape)}")


class _Probabilities(nn.Module):
    """Softmax on a copy of the student that is in evaluation mode on the CPU."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.student = copy.deepcopy(student).cpu().eval()

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(self.student(x), dim=1)


def _trace(student: nn.Module, example: Array) -> onnx.ModelProto:
    # The tracing exporter costs 0.05 s in a fresh process; dynamo=True costs 2.6 s and 150 MB there (every refresh
    # is one) for the same operators. What tracing can get wrong is refused: Python control flow and shapes
    # that depend on the data warn, and such a warning is an error here; a frozen batch size fails in _verify.
    rows = torch.from_numpy(np.resize(example, (_TRACED_ROWS, example.shape[1])))
    file = io.BytesIO()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.onnx.export(
                _Probabilities(student).eval(),
                (rows,),
                file,  # type: ignore[arg-type]  # the stub forgets file objects
                dynamo=False,
                opset_version=_OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
            )
    except RuntimeError as error:
        raise ExportError(f"{type(student).__name__} cannot be exported to ONNX: {error}") from error
    for warning in caught:
        if issubclass(warning.category, TracerWarning):
            raise ExportError(f"{type(student).__name__} cannot be exported to ONNX: {warning.message}")
    return onnx.load_model_from_string(file.getvalue())


def _verify(model: bytes, student: nn.Module, example: Array) -> None:
    """Compare ONNX Runtime with torch on all rows at once and on the first alone."""
    for rows in (example, example[:1]):
        wanted, found = probabilities(student, rows), run_onnx(model, rows)
        if found.shape != wanted.shape:
            raise ExportError(
                f"the exported {type(student).__name__} answers {list(rows.shape)} rows with {list(found.shape)} "
                f"probabilities, torch with {list(wanted.shape)}"
            )
        difference = float(np.abs(found - wanted).max())
        if not difference <= TOLERANCE:  # a NaN difference is not ≤ either
            raise ExportError(
                f"the exported {type(student).__name__} differs from torch by {difference:.3g} in probability "
                f"on {len(rows)} rows (allowed: {TOLERANCE:g})"
            )


def _holds_tensor(node: onnx.NodeProto) -> bool:
    return bool(node.op_type == "Constant" and node.attribute[0].name == "value")


def _copy(tensor: onnx.TensorProto, **changes: str) -> onnx.TensorProto:
    result = onnx.TensorProto()
    result.CopyFrom(tensor)
    for field, value in changes.items():
        setattr(result, field, value)
    return result
