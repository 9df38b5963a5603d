"""Export of a torch student to a small ONNX graph, verified to give the same probabilities."""

from __future__ import annotations

import copy
import io
import itertools
import warnings

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import helper
from scipy import special
from torch import Tensor, nn
from torch.jit import TracerWarning  # type: ignore[attr-defined]  # public, but not in __all__

from stillhouse.compress.target import Array, Feed
from stillhouse.errors import ExportError

__all__ = ["INPUT_NAME", "MAX_DIFFERENCE", "OUTPUT_NAME", "check_rows", "export_onnx", "run_onnx", "run_torch", "slim"]

INPUT_NAME = "x"  # of a student's graph
OUTPUT_NAME = "probabilities"
MAX_DIFFERENCE = 1e-4  # largest |p_onnx − p_torch| of an exported student; float32 arithmetic gives about 1e-7
_OPSET = 18
_TRACED_ROWS = 3


def export_onnx(
    module: nn.Module, example: Feed, *, softmax: bool = True, logits: bool = False, output: str = OUTPUT_NAME
) -> onnx.ModelProto:
    """The module as an ONNX graph with the example's inputs and any number of rows; nodes keep the layers' names.

    The graph is verified: ONNX Runtime must agree with torch within :data:`MAX_DIFFERENCE` on all example rows at once,
    and on the first row alone. The module itself is not changed.

    Example:
        >>> import numpy as np
        >>> from torch import nn
        >>> rows = {"x": np.ones((3, 4), np.float32)}
        >>> model = export_onnx(nn.Linear(4, 2).eval(), rows)
        >>> run_onnx(model, rows).shape
        (3, 2)

    :param module: called with the example's arrays in their order; returns ``[n, K]``.
    :param example: arrays ``[n, …]`` with n ≥ 1: representative rows, missing values (NaN) included.
    :param softmax: whether a softmax is appended: a student's graph ends in probabilities.
    :param logits: whether the graph's output is logits; they are compared as probabilities.
    :param output: name of the graph's output.
    :raises ExportError: if the module cannot be expressed in ONNX, or the two disagree.
    """
    check_rows(example)
    wrapped = _inference_copy(module, softmax)
    model = _trace(wrapped, type(module).__name__, example, output)
    _verify(model, wrapped, type(module).__name__, example, logits)
    return model


def run_torch(module: nn.Module, feed: Feed, *, softmax: bool = True) -> Array:
    """The module's output in evaluation mode, ``[n, K]``; probabilities unless ``softmax`` is False."""
    return _run(_inference_copy(module, softmax), feed)


def run_onnx(model: onnx.ModelProto | bytes, feed: Feed) -> Array:
    """The first output of an ONNX model, ``[n, K]``, computed on one CPU thread.

    :raises ExportError: if ONNX Runtime cannot load the model, or run it on these rows.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4  # errors are in the exception
    try:
        content = model if isinstance(model, bytes) else model.SerializeToString()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        result: Array = session.run(None, dict(feed))[0]
    except Exception as error:  # ONNX Runtime's errors have no common base class
        raise ExportError(f"ONNX Runtime cannot run the model on {_row_count(feed)} rows: {error}") from error
    return result


def slim(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in fewer bytes: without the names, documentation and shapes that only tools read.

    Constants become initializers, equal initializers are merged, and every tensor except the graph's inputs and outputs
    gets the shortest free name. This saves a tenth of a model of 30 kB. A graph with subgraphs (loops, branches) is not
    changed, because the subgraphs refer to its names.
    """
    graph = model.graph
    if graph.sparse_initializer or any(attribute.g.ByteSize() for node in graph.node for attribute in node.attribute):
        return model
    names = {name: name for name in ("", *(value.name for value in (*graph.input, *graph.output)))}
    reserved = frozenset(names)
    numbers = (f"{number:x}" for number in itertools.count(len(reserved)))
    free_names = (number for number in numbers if number not in reserved)
    constants = [node for node in graph.node if _holds_tensor(node)]
    tensors: dict[bytes, onnx.TensorProto] = {}
    for name, tensor in [(t.name, t) for t in graph.initializer] + [(c.output[0], c.attribute[0].t) for c in constants]:
        nameless = _copy(tensor, name="", doc_string="")
        content = nameless.SerializeToString()
        if content not in tensors:
            tensors[content] = _copy(nameless, name=next(free_names))
        names[name] = tensors[content].name

    def short(name: str) -> str:
        if name not in names:
            names[name] = next(free_names)
        return str(names[name])

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


def check_rows(feed: Feed) -> None:
    """Refuse a feed that no model can read.

    :raises ExportError: unless all arrays have the same number n ≥ 1 of rows.
    """
    counts = {name: array.shape[0] if array.ndim else 0 for name, array in feed.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise ExportError(f"needs arrays with the same number of rows, at least one; got {counts}")


class _WithSoftmax(nn.Module):
    """A module followed by a softmax."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.student = module

    def forward(self, *inputs: Tensor) -> Tensor:
        return torch.softmax(self.student(*inputs), dim=1)


def _inference_copy(module: nn.Module, softmax: bool) -> nn.Module:
    """A copy in evaluation mode on the CPU."""
    copied = copy.deepcopy(module).cpu()
    return (_WithSoftmax(copied) if softmax else copied).eval()


def _run(module: nn.Module, feed: Feed) -> Array:
    with torch.no_grad():
        result: Array = module(*(torch.from_numpy(array) for array in feed.values())).numpy()
    return result


def _row_count(feed: Feed) -> int:
    return len(next(iter(feed.values())))


def _trace(module: nn.Module, module_name: str, example: Feed, output: str) -> onnx.ModelProto:
    # The tracing exporter takes 0.05 s in a fresh process; dynamo=True takes 2.6 s and 150 MB there for the same
    # operators, and every refresh is a fresh process. The known errors of tracing are caught: Python control flow and
    # shapes that depend on the data cause a warning, which is an error here; a frozen batch size fails in _verify.
    inputs = tuple(torch.from_numpy(np.resize(array, (_TRACED_ROWS, *array.shape[1:]))) for array in example.values())
    file = io.BytesIO()
    try:
        # On failure the exporter always prints the whole graph: keep it out of a command's output.
        torch._C._jit_set_onnx_log_output_stream("stderr")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.onnx.export(
                module,
                inputs,
                file,  # type: ignore[arg-type]  # the stub forgets file objects
                dynamo=False,
                opset_version=_OPSET,
                input_names=list(example),
                output_names=[output],
                dynamic_axes={name: {0: "batch"} for name in (*example, output)},
            )
    except Exception as error:  # torch's own, or whatever the module's forward raises
        raise ExportError(f"{module_name} cannot be exported to ONNX: {error}") from error
    for warning in caught:
        if issubclass(warning.category, TracerWarning):
            raise ExportError(f"{module_name} cannot be exported to ONNX: {warning.message}")
    return onnx.load_model_from_string(file.getvalue())


def _verify(model: onnx.ModelProto, module: nn.Module, module_name: str, example: Feed, logits: bool) -> None:
    """Compare ONNX Runtime with torch on all rows at once and on the first alone."""
    for feed in (example, {name: array[:1] for name, array in example.items()}):
        expected, actual = _run(module, feed), run_onnx(model, feed)
        if actual.shape != expected.shape:
            raise ExportError(
                f"the exported {module_name} answers {_row_count(feed)} rows with {list(actual.shape)} "
                f"probabilities, torch with {list(expected.shape)}"
            )
        if logits:
            expected, actual = special.softmax(expected, axis=1), special.softmax(actual, axis=1)
        difference = float(np.abs(actual - expected).max())
        if not difference <= MAX_DIFFERENCE:  # a NaN difference is not ≤ either
            raise ExportError(
                f"the exported {module_name} differs from torch by {difference:.3g} in probability "
                f"on {_row_count(feed)} rows (allowed: {MAX_DIFFERENCE:g})"
            )


def _holds_tensor(node: onnx.NodeProto) -> bool:
    return bool(node.op_type == "Constant" and node.attribute[0].name == "value")


def _copy(tensor: onnx.TensorProto, **changes: str) -> onnx.TensorProto:
    result = onnx.TensorProto()
    result.CopyFrom(tensor)
    for field, value in changes.items():
        setattr(result, field, value)
    return result
